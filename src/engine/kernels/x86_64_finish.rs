//! AVX2: how the accumulators of dense integer tiles become outputs, in registers. Knows no products.
#![expect(unsafe_code, reason = "vector stores take pointers, and target features must be proven")]

use super::IntOutput;
use super::tiles::Place;
use super::x86_64::{Codes, factor_lanes, store_floats};
use std::arch::x86_64::*;

/// The end of tiles of up to `V * 8` columns, whose accumulators began at the bias and are in natural column order. What
/// the tiles of a panel share is loaded once for all of them.
pub(super) trait Finish<const V: usize> {
    /// Writes `R` rows from element `at` on.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA, and the output holds the columns of `R` rows from `at` on.
    unsafe fn put<const R: usize>(&mut self, acc: [[__m256i; V]; R], at: usize);
}

/// The epilogue of one tile.
///
/// # Safety
/// `out` holds `R` rows at `place`.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) unsafe fn store_int<const R: usize, const V: usize>(
    acc: [[__m256i; V]; R],
    out: &mut IntOutput,
    place: Place,
) {
    // SAFETY: the caller promises the tile.
    unsafe {
        match out {
            IntOutput::U8(out, requant) => {
                let factor = factor_lanes::<V>(requant.multiplier, place);
                ToCodes { out, codes: Codes::new(requant), factor, place }.put(acc, place.at);
            }
            IntOutput::F32(out, dequant) => {
                let factor = factor_lanes::<V>(dequant.scale, place);
                ToFloats { out, factor, place }.put(acc, place.at);
            }
            IntOutput::I32(out, _) => ToSums { out, place }.put(acc, place.at),
        }
    }
}

/// Requantizes.
pub(super) struct ToCodes<'a, const V: usize> {
    pub(super) out: &'a mut [u8],
    pub(super) codes: Codes,
    pub(super) factor: [__m256; V],
    pub(super) place: Place,
}

impl<const V: usize> Finish<V> for ToCodes<'_, V> {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn put<const R: usize>(&mut self, acc: [[__m256i; V]; R], at: usize) {
        let (codes, factor, columns) = (&self.codes, &self.factor, self.place.columns);
        // Two rows fill a register of bytes; an odd last row is its own partner.
        for r in (0..R).step_by(2) {
            let partner = (r + 1).min(R - 1);
            let mut q = [_mm256_setzero_si256(); 4];
            for v in 0..V {
                q[v] = codes.rounded(acc[r][v], factor[v]);
                q[2 + v] = codes.rounded(acc[partner][v], factor[v]);
            }
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(codes.bytes(q), order);
            let rows = [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)];
            for (r, bytes) in (r..=partner).zip(rows) {
                // SAFETY: the caller promises row `r` of the tile, `columns` elements.
                unsafe {
                    let to = self.out.as_mut_ptr().add(at + r * self.place.stride);
                    if columns == 16 {
                        _mm_storeu_si128(to.cast(), bytes);
                    } else {
                        let mut row = [0u8; 16];
                        _mm_storeu_si128(row.as_mut_ptr().cast(), bytes);
                        std::ptr::copy_nonoverlapping(row.as_ptr(), to, columns);
                    }
                }
            }
        }
    }
}

/// Dequantizes.
pub(super) struct ToFloats<'a, const V: usize> {
    pub(super) out: &'a mut [f32],
    pub(super) factor: [__m256; V],
    pub(super) place: Place,
}

impl<const V: usize> Finish<V> for ToFloats<'_, V> {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn put<const R: usize>(&mut self, acc: [[__m256i; V]; R], at: usize) {
        for (r, acc) in acc.iter().enumerate() {
            let mut y = [_mm256_setzero_ps(); V];
            for v in 0..V {
                y[v] = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[v]), self.factor[v]);
            }
            // SAFETY: the caller promises row `r` of the tile.
            unsafe { store_floats::<V>(y, self.out, at + r * self.place.stride, self.place.columns) }
        }
    }
}

/// Leaves them as they are.
pub(super) struct ToSums<'a> {
    pub(super) out: &'a mut [i32],
    pub(super) place: Place,
}

impl<const V: usize> Finish<V> for ToSums<'_> {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn put<const R: usize>(&mut self, acc: [[__m256i; V]; R], at: usize) {
        let out = bytemuck::cast_slice_mut(self.out);
        for (r, acc) in acc.iter().enumerate() {
            let sums = acc.map(|lanes| _mm256_castsi256_ps(lanes));
            // SAFETY: the caller promises row `r` of the tile. Floats are only moved here.
            unsafe { store_floats::<V>(sums, out, at + r * self.place.stride, self.place.columns) }
        }
    }
}
