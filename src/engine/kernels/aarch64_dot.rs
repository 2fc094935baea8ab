//! NEON with dot products of bytes: the register tile of the integer product. Knows packed slices only; packing and
//! walking are the callers'.
//!
//! Tested to the bit under emulation only, and never timed.
#![expect(unsafe_code, reason = "vector loads take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::aarch64_finish::{first_sums, store_int};
use super::aarch64_neon::Neon;
use super::tiles::Place;
use std::arch::{aarch64::*, asm};

/// Proof that this processor has byte dot products beside NEON: only [`NeonDot::detect`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeonDot {
    neon: Neon,
}

impl NeonDot {
    /// The token, if the processor has what it stands for.
    pub fn detect() -> Option<NeonDot> {
        let has = std::arch::is_aarch64_feature_detected!("dotprod");
        Neon::detect().filter(|_| has).map(|neon| NeonDot { neon })
    }

    /// The proof of the smaller instruction set.
    pub(super) fn neon(self) -> Neon {
        self.neon
    }

    /// What [`NeonDot::int8_tile`] adds to the product of code and weight for each element of a column, in weights.
    pub(super) fn excess(_: usize) -> i32 {
        128
    }

    /// A tile of an integer product, like [`Neon::int8_tile`], but with `code - 128` for every code: the
    /// instruction multiplies signed bytes by signed bytes, and adds in 32 bits.
    #[expect(clippy::too_many_arguments, reason = "a tile is its operands and its place")]
    #[inline(always)]
    pub(super) fn int8_tile(
        self,
        a: &[u8],
        lda: usize,
        rows: usize,
        panel: &[i8],
        width: usize,
        depth: usize,
        starts: &[i32],
        out: &mut IntOutput,
        place: Place,
    ) {
        assert!(
            depth.is_multiple_of(4) && a.len() >= (rows - 1) * lda + depth && panel.len() >= width * depth
        );
        assert!(place.columns <= width, "the columns of a panel");
        place.assert_within(rows, out.len());
        // SAFETY: `self` proves the features; the lengths were just checked.
        unsafe {
            match (rows, width) {
                (4, 16) => int8_tile::<4, 4>(a, lda, panel, depth, starts, out, place),
                (3, 16) => int8_tile::<3, 4>(a, lda, panel, depth, starts, out, place),
                (2, 16) => int8_tile::<2, 4>(a, lda, panel, depth, starts, out, place),
                (1, 16) => int8_tile::<1, 4>(a, lda, panel, depth, starts, out, place),
                (4, 8) => int8_tile::<4, 2>(a, lda, panel, depth, starts, out, place),
                (3, 8) => int8_tile::<3, 2>(a, lda, panel, depth, starts, out, place),
                (2, 8) => int8_tile::<2, 2>(a, lda, panel, depth, starts, out, place),
                (1, 8) => int8_tile::<1, 2>(a, lda, panel, depth, starts, out, place),
                _ => unreachable!("a tile has 1 to 4 rows and 8 or 16 columns"),
            }
        }
    }
}

/// `depth / 4` steps of `sdot`.
///
/// # Safety
/// `a` holds `R` rows `lda` apart, `panel` `V * 4 * depth` elements, and `out` the tile at `place`.
#[target_feature(enable = "neon,dotprod")]
unsafe fn int8_tile<const R: usize, const V: usize>(
    a: &[u8],
    lda: usize,
    panel: &[i8],
    depth: usize,
    starts: &[i32],
    out: &mut IntOutput,
    place: Place,
) {
    let mut acc = [first_sums::<V>(starts, out, place); R];
    let (a, b) = (a.as_ptr(), panel.as_ptr());
    let flip = vdupq_n_u8(0x80);
    let (whole, mut codes) = (depth / 16 * 16, [vdupq_n_s8(0); R]);
    // SAFETY: `k` and the elements read from it on lie within `depth`, and the caller promises `R` rows and a panel of
    // that depth.
    unsafe {
        for k in (0..whole).step_by(16) {
            for r in 0..R {
                codes[r] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(a.add(r * lda + k)), flip));
            }
            step::<R, V, 0>(&mut acc, &codes, b.add(k * V * 4));
            step::<R, V, 1>(&mut acc, &codes, b.add((k + 4) * V * 4));
            step::<R, V, 2>(&mut acc, &codes, b.add((k + 8) * V * 4));
            step::<R, V, 3>(&mut acc, &codes, b.add((k + 12) * V * 4));
        }
        for k in (whole..depth).step_by(4) {
            for r in 0..R {
                let quad = vdupq_n_u32(a.add(r * lda + k).cast::<u32>().read_unaligned());
                codes[r] = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_u32(quad), flip));
            }
            step::<R, V, 0>(&mut acc, &codes, b.add(k * V * 4));
        }
        store_int::<R, V>(acc, out, place);
    }
}

/// One quad: quad `LANE` of `codes` times the quads at `b`.
///
/// # Safety
/// `b` points at `V * 16` weights.
#[target_feature(enable = "neon,dotprod")]
#[inline]
unsafe fn step<const R: usize, const V: usize, const LANE: i32>(
    acc: &mut [[int32x4_t; V]; R],
    codes: &[int8x16_t; R],
    b: *const i8,
) {
    for v in 0..V {
        // SAFETY: the caller promises the weights.
        let weights = unsafe { vld1q_s8(b.add(v * 16)) };
        for r in 0..R {
            acc[r][v] = sdot::<LANE>(acc[r][v], weights, codes[r]);
        }
    }
}

/// `acc` plus, in each of 4 lanes, the dot product of a quad of `weights` and quad `LANE` of `codes`. The intrinsic,
/// `vdotq_laneq_s32`, is not stable in Rust 1.95.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn sdot<const LANE: i32>(mut acc: int32x4_t, weights: int8x16_t, codes: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes these registers only, and the function's target feature proves it.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {weights:v}.16b, {codes:v}.4b[{lane}]",
            acc = inout(vreg) acc,
            weights = in(vreg) weights,
            codes = in(vreg) codes,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}
