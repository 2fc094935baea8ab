//! NEON, which every 64-bit Arm processor has: the register tile of the integer product, and tables of codes.
//! Knows packed slices only; packing and walking are the callers'.
//!
//! Tested to the bit under emulation only, and never timed.
#![expect(unsafe_code, reason = "vector loads take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::aarch64_finish::{first_sums, store_int};
use super::tiles::Place;
use std::arch::aarch64::*;

/// Proof that this processor has NEON: only [`Neon::detect`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neon(());

impl Neon {
    /// The token, if the processor has what it stands for.
    pub fn detect() -> Option<Neon> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }

    /// `x[i] = table[x[i]]`.
    pub(super) fn apply_table(self, x: &mut [[u8; 16]], table: &[u8; 256]) {
        // SAFETY: `self` proves NEON.
        unsafe { apply_table(x, table) }
    }

    /// What [`Neon::int8_tile`] adds to the product of code and weight for each element `k` of a column, in weights.
    pub(super) fn excess(k: usize) -> i32 {
        if k % 4 < 2 { 128 } else { 127 }
    }

    /// Changes quads to the order of [`Neon::int8_tile`]: of 8 columns, the first halves of the quads, then the second
    /// ones. Loads that part them (`ld2`) want neighbouring registers, for which there is no room.
    pub(super) fn part_quads(panels: &mut [i8]) {
        for quads in panels.as_chunks_mut::<32>().0 {
            *quads = std::array::from_fn(|i| quads[i % 16 / 2 * 4 + i / 16 * 2 + i % 2]);
        }
    }

    /// A tile of an integer product: `rows` rows of `a`, `lda` apart, times a packed panel of `width` columns and
    /// `depth` elements (a multiple of 4) in the order of [`Neon::part_quads`], to `out` through its epilogue (without the
    /// table).
    ///
    /// NEON multiplies signed bytes by signed bytes into 16 bits, where two of the largest products, `-128 * -128`, just
    /// do not fit if added. They fit if one is subtracted: so the codes of two elements of a quad become `code - 128`,
    /// those of the other two `127 - code`, whose products are subtracted. Both are `code ^ constant`. `starts`, one for
    /// each of `width` columns, makes up for the constants: the sum of the weights, each times [`Neon::excess`].
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
        // SAFETY: `self` proves NEON; the lengths were just checked.
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

/// `depth / 4` steps of two multiplications and an addition of pairs for each 4 columns.
///
/// # Safety
/// `a` holds `R` rows `lda` apart, `panel` `V * 4 * depth` elements, and `out` the tile at `place`.
#[target_feature(enable = "neon")]
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
    let flip = vreinterpretq_s16_u32(vdupq_n_u32(u32::from_le_bytes([0x80, 0x80, 0x7f, 0x7f])));
    let (whole, mut codes) = (depth / 16 * 16, [vdupq_n_s16(0); R]);
    // SAFETY: `k` and the elements read from it on lie within `depth`, and the caller promises `R` rows and a panel of
    // that depth.
    unsafe {
        for k in (0..whole).step_by(16) {
            for r in 0..R {
                codes[r] = veorq_s16(vreinterpretq_s16_u8(vld1q_u8(a.add(r * lda + k))), flip);
            }
            step::<R, V, 0, 1>(&mut acc, &codes, b.add(k * V * 4));
            step::<R, V, 2, 3>(&mut acc, &codes, b.add((k + 4) * V * 4));
            step::<R, V, 4, 5>(&mut acc, &codes, b.add((k + 8) * V * 4));
            step::<R, V, 6, 7>(&mut acc, &codes, b.add((k + 12) * V * 4));
        }
        for k in (whole..depth).step_by(4) {
            for r in 0..R {
                let quad = a.add(r * lda + k).cast::<u32>().read_unaligned();
                codes[r] = veorq_s16(vreinterpretq_s16_u32(vdupq_n_u32(quad)), flip);
            }
            step::<R, V, 0, 1>(&mut acc, &codes, b.add(k * V * 4));
        }
        store_int::<R, V>(acc, out, place);
    }
}

/// One quad: elements `FIRST` and `SECOND` of `codes`, two codes each, times the quads at `b`.
///
/// # Safety
/// `b` points at `V * 16` weights, in the order of [`Neon::part_quads`].
#[target_feature(enable = "neon")]
#[inline]
unsafe fn step<const R: usize, const V: usize, const FIRST: i32, const SECOND: i32>(
    acc: &mut [[int32x4_t; V]; R],
    codes: &[int16x8_t; R],
    b: *const i8,
) {
    let mut halves = [[vdupq_n_s8(0); 2]; V];
    for v in 0..V / 2 {
        // SAFETY: the caller promises the weights.
        halves[v] = unsafe { [vld1q_s8(b.add(v * 32)), vld1q_s8(b.add(v * 32 + 16))] };
    }
    // Rows outside and columns inside: the other way round the repeated codes of all rows want registers.
    for r in 0..R {
        let added = vreinterpretq_s8_s16(vdupq_laneq_s16::<FIRST>(codes[r]));
        let taken = vreinterpretq_s8_s16(vdupq_laneq_s16::<SECOND>(codes[r]));
        for v in 0..V / 2 {
            let [first, second] = halves[v];
            let low = vmull_s8(vget_low_s8(first), vget_low_s8(added));
            let low = vmlsl_s8(low, vget_low_s8(second), vget_low_s8(taken));
            let high = vmull_high_s8(first, added);
            let high = vmlsl_high_s8(high, second, taken);
            acc[r][2 * v] = vpadalq_s16(acc[r][2 * v], low);
            acc[r][2 * v + 1] = vpadalq_s16(acc[r][2 * v + 1], high);
        }
    }
}

/// `x[i] = table[x[i]]`.
///
/// One look-up (`tbl`) reaches 64 bytes. A code past them gives 0 there, and what it was (`tbx`) in those that follow.
#[target_feature(enable = "neon")]
fn apply_table(x: &mut [[u8; 16]], table: &[u8; 256]) {
    // SAFETY: four arrays of 64.
    let [first, others @ ..] =
        [0, 64, 128, 192].map(|start| unsafe { vld1q_u8_x4(table[start..start + 64].as_ptr()) });
    for codes in x {
        // SAFETY: an array of 16.
        let mut index = unsafe { vld1q_u8(codes.as_ptr()) };
        let mut y = vqtbl4q_u8(first, index);
        for part in others {
            index = vsubq_u8(index, vdupq_n_u8(64));
            y = vqtbx4q_u8(y, part, index);
        }
        // SAFETY: an array of 16.
        unsafe { vst1q_u8(codes.as_mut_ptr(), y) }
    }
}
