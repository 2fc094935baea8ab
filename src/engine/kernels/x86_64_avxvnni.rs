//! AVX2 with byte dot products: the register tile of the integer product. Knows packed slices only; packing and
//! walking are the callers'.
#![expect(unsafe_code, reason = "vector loads take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::tiles::{Place, Reach};
use super::x86_64::Avx2;
use super::x86_64_finish::{bias_lanes, store_int};
use std::arch::x86_64::*;

/// Proof that this processor has AVX-VNNI beside AVX2 and FMA: only [`AvxVnni::detect`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvxVnni {
    avx2: Avx2,
}

impl AvxVnni {
    /// The token, if the processor has what it stands for.
    pub fn detect() -> Option<AvxVnni> {
        Avx2::detect().filter(|_| is_x86_feature_detected!("avxvnni")).map(|avx2| AvxVnni { avx2 })
    }

    /// The proof of the smaller instruction set.
    pub(super) fn avx2(self) -> Avx2 {
        self.avx2
    }

    /// A tile of an integer product, like [`Avx2::int8_tile`], but of bytes and with a `depth` that is a multiple
    /// of 4.
    #[expect(clippy::too_many_arguments, reason = "a tile is its operands and its place")]
    #[inline(always)]
    pub(super) fn int8_tile(
        self,
        a: &[u8],
        reach: Reach,
        rows: usize,
        panel: &[i8],
        width: usize,
        depth: usize,
        out: &mut IntOutput,
        place: Place,
    ) {
        assert!(depth.is_multiple_of(4), "whole quads");
        reach.assert_within(rows, depth, a.len(), width, panel.len());
        assert!(place.columns <= width, "the columns of a panel");
        place.assert_within(rows, out.len());
        macro_rules! call {
            ($($rows:literal)*) => {
                match (rows, width) {
                    // SAFETY: `self` proves the features; the lengths were just checked.
                    $(($rows, 16) => unsafe { int8_tile::<$rows, 2>(a, reach, panel, depth, out, place) },)*
                    // SAFETY: likewise.
                    $(($rows, 8) => unsafe { int8_tile::<$rows, 1>(a, reach, panel, depth, out, place) },)*
                    _ => unreachable!("a tile has 1 to 6 rows and 8 or 16 columns"),
                }
            };
        }
        call!(1 2 3 4 5 6)
    }
}

/// For each run `depth / 4` steps of `vpdpbusd`: four products of a `u8` and an `i8` added in 32 bits, without a 16-bit stage and
/// so exact.
///
/// # Safety
/// `a` holds `R` rows as `reach` has them, `panel` `V * 8 * depth` elements a run, and `out` the tile at `place`.
#[target_feature(enable = "avx2,fma,avxvnni")]
unsafe fn int8_tile<const R: usize, const V: usize>(
    a: &[u8],
    reach: Reach,
    panel: &[i8],
    depth: usize,
    out: &mut IntOutput,
    place: Place,
) {
    let mut acc = [bias_lanes::<V>(out, place); R];
    let (mut a, mut b) = (a.as_ptr(), panel.as_ptr());
    for _ in 0..reach.runs {
        for k in (0..depth).step_by(4) {
            // SAFETY: `k + 3 < depth`, and the caller promises `R` rows and a panel of that depth.
            unsafe {
                let mut columns = [_mm256_setzero_si256(); V];
                for v in 0..V {
                    columns[v] = _mm256_loadu_si256(b.add(k * V * 8 + v * 32).cast());
                }
                for r in 0..R {
                    let quad = _mm256_set1_epi32(a.add(r * reach.row + k).cast::<i32>().read_unaligned());
                    for v in 0..V {
                        acc[r][v] = _mm256_dpbusd_avx_epi32(acc[r][v], quad, columns[v]);
                    }
                }
            }
        }
        a = a.wrapping_add(reach.run);
        b = b.wrapping_add(V * 8 * depth);
    }
    // SAFETY: the caller promises that the tile lies within `out`.
    unsafe { store_int::<R, V>(acc, out, place) }
}
