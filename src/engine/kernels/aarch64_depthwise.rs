//! NEON: rows of the integer depthwise convolution. Knows packed slices only; packing and walking are the callers'.
//!
//! Tested to the bit under emulation only, and never timed.
#![expect(unsafe_code, reason = "vector loads take pointers, and target features must be proven")]

use super::IntOutput;
use super::aarch64_finish::{first_sums, store_int};
use super::aarch64_neon::Neon;
use super::halo::BLOCK;
use super::tiles::Place;
use std::arch::aarch64::*;

/// Registers of 4 sums that a block of channels takes.
const SUMS: usize = BLOCK / 4;

impl Neon {
    /// What [`Neon::depthwise_row`] adds to the product of code and weight for tap `t`, in weights.
    pub(super) fn depthwise_excess(t: usize) -> i32 {
        if t.is_multiple_of(2) { 128 } else { 127 }
    }

    /// One output row in a block of up to 32 channels: output `i` is the sum of `x[taps[t] + i * step + c]` times
    /// `weights[t, c]`, through the epilogue of `out` (without the table).
    ///
    /// The number of taps is even, and `weights` is `[taps.len(), 32]`. Products of two taps are added in 16 bits as
    /// in [`Neon::int8_tile`]; `starts`, one for each of 32 channels, is the sum of the weights, each times
    /// [`Neon::depthwise_excess`].
    #[expect(clippy::too_many_arguments, reason = "a row is its operands and its place")]
    #[inline(always)]
    pub(super) fn depthwise_row(
        self,
        x: &[u8],
        taps: &[usize],
        step: usize,
        count: usize,
        weights: &[i8],
        starts: &[i32],
        out: &mut IntOutput,
        place: Place,
    ) {
        let last = taps.iter().max().expect("a kernel has taps") + (count - 1) * step;
        assert!(x.len() >= last + BLOCK, "a block at every tap of every output");
        assert!(taps.len().is_multiple_of(2) && weights.len() == taps.len() * BLOCK && starts.len() == BLOCK);
        assert!(place.columns <= BLOCK, "the channels of a block");
        place.assert_within(count, out.len());
        // SAFETY: `self` proves NEON; the lengths were just checked.
        unsafe { depthwise_row(x, taps, step, count, weights, starts, out, place) }
    }
}

/// # Safety
/// `x` holds a block at every tap of every output, `weights` one for every tap, and `out` `count` rows at `place`.
#[target_feature(enable = "neon")]
#[expect(clippy::too_many_arguments, reason = "a row is its operands and its place")]
unsafe fn depthwise_row(
    x: &[u8],
    taps: &[usize],
    step: usize,
    count: usize,
    weights: &[i8],
    starts: &[i32],
    out: &mut IntOutput,
    place: Place,
) {
    let (low, high) = halves(place);
    let mut first = [vdupq_n_s32(0); SUMS];
    first[..4].copy_from_slice(&first_sums::<4>(&starts[..16], out, low));
    first[4..].copy_from_slice(&first_sums::<4>(&starts[16..], out, high));
    // Two outputs at once use a weight twice.
    let pairs = count / 2;
    for i in (0..2 * pairs).step_by(2) {
        let place = Place { at: place.at + i * place.stride, ..place };
        // SAFETY: outputs `i` and `i + 1` are two of `count`.
        unsafe { outputs::<2>(&x[i * step..], taps, step, weights, first, out, place) }
    }
    if count > 2 * pairs {
        let place = Place { at: place.at + 2 * pairs * place.stride, ..place };
        // SAFETY: the last of `count` outputs.
        unsafe { outputs::<1>(&x[2 * pairs * step..], taps, step, weights, first, out, place) }
    }
}

/// The first 16 channels of a block and the others.
fn halves(place: Place) -> (Place, Place) {
    let columns = place.columns.min(16);
    (
        Place { columns, ..place },
        Place {
            columns: place.columns - columns,
            channel: place.channel + columns,
            at: place.at + columns,
            ..place
        },
    )
}

/// `O` outputs, `step` elements of `x` apart.
///
/// # Safety
/// As for [`depthwise_row`], with `O` outputs.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn outputs<const O: usize>(
    x: &[u8],
    taps: &[usize],
    step: usize,
    weights: &[i8],
    first: [int32x4_t; SUMS],
    out: &mut IntOutput,
    place: Place,
) {
    let mut acc = [first; O];
    for (t, taps) in taps.as_chunks::<2>().0.iter().enumerate() {
        for half in 0..2 {
            // SAFETY: the caller promises 32 weights for both taps, and 32 codes at both for every output.
            unsafe {
                let w = weights.as_ptr().add(2 * t * BLOCK + half * 16);
                let (w0, w1) = (vld1q_s8(w), vld1q_s8(w.add(BLOCK)));
                for o in 0..O {
                    let x = x.as_ptr().add(o * step + half * 16);
                    let added = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(x.add(taps[0])), vdupq_n_u8(0x80)));
                    let taken = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(x.add(taps[1])), vdupq_n_u8(0x7f)));
                    let low = vmull_s8(vget_low_s8(w0), vget_low_s8(added));
                    let low = vmlsl_s8(low, vget_low_s8(w1), vget_low_s8(taken));
                    let high = vmull_high_s8(w0, added);
                    let high = vmlsl_high_s8(high, w1, taken);
                    let acc = &mut acc[o][half * 4..][..4];
                    acc[0] = vaddw_s16(acc[0], vget_low_s16(low));
                    acc[1] = vaddw_high_s16(acc[1], low);
                    acc[2] = vaddw_s16(acc[2], vget_low_s16(high));
                    acc[3] = vaddw_high_s16(acc[3], high);
                }
            }
        }
    }
    let (low, high) = halves(place);
    // SAFETY: the caller promises the outputs.
    unsafe {
        store_int::<O, 4>(acc.map(|acc| [acc[0], acc[1], acc[2], acc[3]]), out, low);
        if high.columns > 0 {
            store_int::<O, 4>(acc.map(|acc| [acc[4], acc[5], acc[6], acc[7]]), out, high);
        }
    }
}
