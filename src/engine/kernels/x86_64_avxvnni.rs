//! AVX2 with byte dot products: the register tile of the integer product. Knows packed slices only; packing and
//! walking are the callers'.
#![expect(unsafe_code, reason = "vector loads take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::tiles::{Ahead, INT8_QUADS_NARROW, Place, Reach};
use super::x86_64::Avx2;
use super::x86_64_finish::{Sums, opaque, tiles};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

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

    /// Rows of an integer product, like [`Avx2::pair_rows`], but of bytes and with a `depth` that is a multiple
    /// of 4.
    #[expect(clippy::too_many_arguments, reason = "a tile is its operands and its place")]
    #[inline(always)]
    pub(super) fn int8_rows(
        self,
        a: &[u8],
        reach: Reach,
        rows: usize,
        panel: &[i8],
        ahead: &[i8],
        width: usize,
        depth: usize,
        out: &mut IntOutput,
        place: Place,
    ) {
        assert!(depth.is_multiple_of(4), "whole quads");
        reach.assert_within(rows, depth, a.len(), width, panel.len());
        assert!(place.columns <= width, "the columns of a panel");
        place.assert_within(rows, out.len());
        let ahead = Ahead::new(ahead, rows, depth / 4 * reach.runs);
        let product = Quads { a, reach, panel, depth, ahead };
        // SAFETY: `self` proves the features; the lengths were just checked.
        unsafe {
            match width {
                16 => tiles::<2>(&product, rows, out, place),
                8 => tiles::<1>(&product, rows, out, place),
                _ => unreachable!("a panel has 8 or 16 columns"),
            }
        }
    }
}

/// Rows and a panel.
struct Quads<'a> {
    a: &'a [u8],
    reach: Reach,
    panel: &'a [i8],
    depth: usize,
    ahead: Ahead,
}

impl<const V: usize> Sums<V> for Quads<'_> {
    const ROWS: usize = INT8_QUADS_NARROW.rows;

    /// For each run `depth / 4` steps of `vpdpbusd`: four products of a `u8` and an `i8` added in 32 bits, without a 16-bit
    /// stage and so exact.
    #[target_feature(enable = "avx2,fma,avxvnni")]
    #[inline(never)]
    unsafe fn sums<const R: usize>(
        &self,
        row: usize,
        bias: [__m256i; V],
        out: &mut MaybeUninit<[[__m256i; V]; R]>,
    ) {
        let Reach { row: lda, run, runs } = self.reach;
        let mut acc = [bias; R];
        let mut rows: [*const u8; 2] =
            std::array::from_fn(|i| opaque(self.a.as_ptr().wrapping_add((row + 3 * i) * lda)));
        let (mut b, mut next) = (self.panel.as_ptr(), self.ahead.of_row(row));
        for _ in 0..runs {
            for k in (0..self.depth).step_by(4) {
                _mm_prefetch::<_MM_HINT_T1>(next);
                next = next.wrapping_add(self.ahead.pace * R);
                // SAFETY: `k + 3 < depth`, and the caller promises `R` rows and a panel of that depth.
                unsafe {
                    let mut columns = [_mm256_setzero_si256(); V];
                    for v in 0..V {
                        columns[v] = _mm256_loadu_si256(b.add(v * 32).cast());
                    }
                    for r in 0..R {
                        let from = rows[r / 3].add(r % 3 * lda + k);
                        let quad = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
                        for v in 0..V {
                            acc[r][v] = _mm256_dpbusd_avx_epi32(acc[r][v], quad, columns[v]);
                        }
                    }
                }
                b = b.wrapping_add(V * 32);
            }
            for row in &mut rows {
                *row = row.wrapping_add(run);
            }
        }
        out.write(acc);
    }
}
