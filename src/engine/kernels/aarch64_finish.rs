//! NEON: how the accumulators of integer tiles begin and become outputs, in registers. Knows no products.
//!
//! Tested to the bit under emulation only, and never timed.
#![expect(unsafe_code, reason = "vector loads and stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::tiles::Place;
use super::{IntOutput, Requant};
use std::arch::aarch64::*;

/// The elements of `values` for the columns of `place`, and zeros up to `V * 4`.
#[inline(always)]
fn columns<T: Copy + Default, const V: usize>(values: &[T], place: Place) -> [[T; 4]; V] {
    let mut lanes = [[T::default(); 4]; V];
    let to = lanes.as_flattened_mut();
    let from = &values[place.channel..][..place.columns];
    if from.len() == to.len() {
        to.copy_from_slice(from);
    } else {
        to[..from.len()].copy_from_slice(from);
    }
    lanes
}

/// What the sums of the columns of `place` begin with: what their tile adds to them, `starts`, one for each of `V * 4`
/// columns, and the bias of `out`.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn first_sums<const V: usize>(starts: &[i32], out: &IntOutput, place: Place) -> [int32x4_t; V] {
    let bias = match out {
        IntOutput::U8(_, requant) => requant.bias,
        IntOutput::F32(_, dequant) => dequant.bias,
        IntOutput::I32(_, bias) => bias,
    };
    let bias = columns::<i32, V>(bias, place);
    let starts = starts[..V * 4].as_chunks::<4>().0;
    let mut sums = [vdupq_n_s32(0); V];
    for v in 0..V {
        // SAFETY: both are arrays of 4.
        sums[v] = unsafe { vaddq_s32(vld1q_s32(bias[v].as_ptr()), vld1q_s32(starts[v].as_ptr())) };
    }
    sums
}

#[target_feature(enable = "neon")]
#[inline]
fn factors<const V: usize>(values: &[f32], place: Place) -> [float32x4_t; V] {
    // SAFETY: an array of 4.
    columns::<f32, V>(values, place).map(|lanes| unsafe { vld1q_f32(lanes.as_ptr()) })
}

/// The epilogue of one tile of up to `V * 4` columns, whose sums have the bias in them. `V` is 2 or 4.
///
/// # Safety
/// `out` holds `R` rows at `place`.
#[target_feature(enable = "neon")]
#[inline]
pub(super) unsafe fn store_int<const R: usize, const V: usize>(
    acc: [[int32x4_t; V]; R],
    out: &mut IntOutput,
    place: Place,
) {
    match out {
        IntOutput::U8(out, requant) => {
            let factor = factors::<V>(requant.multiplier, place);
            for r in 0..R {
                let codes = codes::<V>(acc[r], factor, requant);
                // SAFETY: the caller promises row `r` of the tile.
                unsafe { store(&codes[..V * 4], out, place.at + r * place.stride, place.columns) }
            }
        }
        IntOutput::F32(out, dequant) => {
            let factor = factors::<V>(dequant.scale, place);
            for r in 0..R {
                let mut y = [[0f32; 4]; V];
                for v in 0..V {
                    // SAFETY: an array of 4.
                    unsafe { vst1q_f32(y[v].as_mut_ptr(), vmulq_f32(vcvtq_f32_s32(acc[r][v]), factor[v])) }
                }
                // SAFETY: the caller promises row `r` of the tile.
                unsafe { store(y.as_flattened(), out, place.at + r * place.stride, place.columns) }
            }
        }
        IntOutput::I32(out, _) => {
            for r in 0..R {
                let mut y = [[0i32; 4]; V];
                for v in 0..V {
                    // SAFETY: an array of 4.
                    unsafe { vst1q_s32(y[v].as_mut_ptr(), acc[r][v]) }
                }
                // SAFETY: the caller promises row `r` of the tile.
                unsafe { store(y.as_flattened(), out, place.at + r * place.stride, place.columns) }
            }
        }
    }
}

/// Codes of one row as [`Requant::code`] makes them, the first `V * 4` of 16.
#[target_feature(enable = "neon")]
#[inline]
fn codes<const V: usize>(acc: [int32x4_t; V], factor: [float32x4_t; V], requant: &Requant) -> [u8; 16] {
    let (lo, hi) = requant.bounds();
    let zero_point = vdupq_n_s32(i32::from(requant.zero_point));
    let mut halves = [vdup_n_s16(0); 4];
    for v in 0..V {
        let scaled = vmulq_f32(vcvtq_f32_s32(acc[v]), factor[v]);
        // These two prefer a number to not-a-number, as `f32::max` and `f32::min` do.
        let clamped = vminnmq_f32(vmaxnmq_f32(scaled, vdupq_n_f32(lo)), vdupq_n_f32(hi));
        halves[v] = vmovn_s32(vaddq_s32(vcvtnq_s32_f32(clamped), zero_point));
    }
    let bytes = [0, 2].map(|v| vqmovun_s16(vcombine_s16(halves[v], halves[v + 1])));
    let mut codes = [0; 16];
    // SAFETY: an array of 16.
    unsafe { vst1q_u8(codes.as_mut_ptr(), vcombine_u8(bytes[0], bytes[1])) }
    codes
}

/// Writes the first `columns` of `row` to elements `at ..`.
///
/// # Safety
/// `row` and `out[at..]` have so many.
#[inline(always)]
unsafe fn store<T: Copy>(row: &[T], out: &mut [T], at: usize, columns: usize) {
    // SAFETY: the caller promises the elements. A whole row, whose length is known, becomes a few moves.
    unsafe {
        let to = out.as_mut_ptr().add(at);
        if columns == row.len() {
            std::ptr::copy_nonoverlapping(row.as_ptr(), to, row.len());
        } else {
            std::ptr::copy_nonoverlapping(row.as_ptr(), to, columns);
        }
    }
}
