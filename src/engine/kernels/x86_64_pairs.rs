//! AVX2: products of pairs of 16-bit numbers. Knows packed slices only; packing and walking are the callers'.
#![expect(unsafe_code, reason = "vector loads take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::tiles::{Ahead, INT8_PAIRS, Place, Reach};
use super::x86_64::Avx2;
use super::x86_64_finish::{Sums, opaque, tiles};
use super::x86_64_tile::{BLOCK, Requests, Tile};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

impl Avx2 {
    /// Rows of an integer product: `rows` rows of `a`, with runs of `depth` (even) elements, times a packed panel of
    /// `width` columns, to `out` through its epilogue (without the table); `ahead` is asked for early.
    #[expect(clippy::too_many_arguments, reason = "a tile is its operands and its place")]
    #[inline(always)]
    pub(super) fn pair_rows<W: PairWeight>(
        self,
        a: &[i16],
        reach: Reach,
        rows: usize,
        panel: &[W],
        ahead: &[W],
        width: usize,
        depth: usize,
        out: &mut IntOutput,
        place: Place,
    ) {
        assert!(depth.is_multiple_of(2), "whole pairs");
        reach.assert_within(rows, depth, a.len(), width, panel.len());
        assert!(panel.as_ptr().addr().is_multiple_of(16), "panels are aligned");
        assert!(place.columns <= width, "the columns of a panel");
        place.assert_within(rows, out.len());
        let ahead = Ahead::new(ahead, rows, depth.div_ceil(2 * BLOCK) * reach.runs);
        let product = Pairs { a, reach, panel, depth, ahead };
        // SAFETY: `self` proves AVX2 and FMA; the lengths and the alignment were just checked.
        unsafe {
            match width {
                16 => tiles::<2>(&product, rows, out, place),
                8 => tiles::<1>(&product, rows, out, place),
                _ => unreachable!("a panel has 8 or 16 columns"),
            }
        }
    }
}

/// What weights in pairs are stored as.
pub(super) trait PairWeight: Copy {
    /// Sixteen weights as numbers of 16 bits.
    ///
    /// # Safety
    /// The processor has AVX2, and `from` leads to sixteen weights, as many of their sizes from an address that is a
    /// multiple of that.
    unsafe fn load(from: *const Self) -> __m256i;
}

impl PairWeight for i16 {
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(from: *const i16) -> __m256i {
        // SAFETY: the caller promises 32 aligned bytes.
        unsafe { _mm256_load_si256(from.cast()) }
    }
}

/// Half the memory; the extension takes one of some thirteen instructions more.
impl PairWeight for i8 {
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(from: *const i8) -> __m256i {
        // SAFETY: the caller promises 16 aligned bytes.
        _mm256_cvtepi8_epi16(unsafe { _mm_load_si128(from.cast()) })
    }
}

/// Rows and a panel.
struct Pairs<'a, W> {
    a: &'a [i16],
    reach: Reach,
    panel: &'a [W],
    depth: usize,
    ahead: Ahead,
}

impl<const V: usize, W: PairWeight> Sums<V> for Pairs<'_, W> {
    const ROWS: usize = INT8_PAIRS.rows;

    /// For each run `depth / 2` steps of `vpmaddwd`: two products of 16-bit numbers added in 32 bits, which is exact for
    /// every `u8` and `i8` (`vpmaddubsw` is not: 2 * 255 * 127 does not fit its 16 bits).
    #[target_feature(enable = "avx2,fma")]
    #[inline(never)]
    unsafe fn sums<const R: usize>(
        &self,
        row: usize,
        bias: [__m256i; V],
        out: &mut MaybeUninit<[[__m256i; V]; R]>,
    ) {
        let (Reach { row: lda, run, runs }, depth) = (self.reach, self.depth);
        let mut acc = [bias; R];
        if V == 2 {
            let tile = Tile {
                a: self.a.as_ptr().wrapping_add(row * lda),
                row: lda,
                run,
                runs,
                steps: depth / 2,
                panel: self.panel.as_ptr(),
                next: self.ahead.of_row(row),
                pace: self.ahead.pace * R,
            };
            // SAFETY: the caller promises `R` rows and a panel of that depth.
            unsafe { tile.add(Requests::InBlock, &mut acc) };
            out.write(acc);
            return;
        }
        let mut rows: [*const i16; 2] =
            std::array::from_fn(|i| opaque(self.a.as_ptr().wrapping_add((row + 3 * i) * lda)));
        let mut b = self.panel.as_ptr();
        let mut next = self.ahead.of_row(row);
        for _ in 0..runs {
            for k in (0..depth).step_by(2) {
                if k % (2 * BLOCK) == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(next);
                    next = next.wrapping_add(self.ahead.pace * R);
                }
                // SAFETY: `k + 1 < depth`, and the caller promises `R` rows and a panel of that depth.
                unsafe {
                    let mut columns = [_mm256_setzero_si256(); V];
                    for v in 0..V {
                        columns[v] = W::load(b.add(v * 16));
                    }
                    for r in 0..R {
                        let from = rows[r / 3].add(r % 3 * lda + k);
                        let pair = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
                        for v in 0..V {
                            acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(pair, columns[v]));
                        }
                    }
                }
                b = b.wrapping_add(V * 16);
            }
            for row in &mut rows {
                *row = row.wrapping_add(run);
            }
        }
        out.write(acc);
    }
}
