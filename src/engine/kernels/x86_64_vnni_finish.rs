//! AVX-512: how the accumulators of dense integer tiles become outputs, in registers. Knows no products.
#![expect(unsafe_code, reason = "vector stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::tiles::Place;
use super::{Dequant, Requant, SHIFT, SumForm};
use std::arch::x86_64::*;

/// The end of tiles of up to `V * 16` columns, whose accumulators began at the bias. What the tiles of a panel share is
/// loaded once for all of them.
pub(super) trait Finish<const V: usize> {
    /// Writes `R` rows from element `at` on.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW and VL, and the output holds the columns of `R` rows from `at` on.
    unsafe fn put<const R: usize>(&mut self, acc: [[__m512i; V]; R], at: usize);
}

/// Two rows fill a register of bytes; an odd last row is its own partner.
const fn partners<const R: usize>(pair: usize) -> (usize, usize) {
    let partner = if 2 * pair + 1 < R { 2 * pair + 1 } else { 2 * pair };
    (2 * pair, partner)
}

/// Writes the codes of two rows as packs leave them: in each 128-bit lane four of every register. The surrounding function
/// promises the rows. As a function it would not be inlined, and the accumulators would go through memory.
macro_rules! put_pair {
    ($finish:expr, $at:expr, ($r:expr, $partner:expr), $codes:expr) => {{
        let (out, Place { stride, columns, .. }) = ($finish.out.as_mut_ptr(), $finish.place);
        let put = |r: usize, codes: __m256i| {
            // SAFETY: the caller promises row `r` of the tile; the mask admits its columns only.
            unsafe {
                let to = out.add($at + r * stride);
                match columns {
                    32 => _mm256_storeu_si256(to.cast(), codes),
                    16 => _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(codes)),
                    columns => _mm256_mask_storeu_epi8(to.cast(), u32::MAX >> (32 - columns), codes),
                }
            }
        };
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let codes = _mm512_permutexvar_epi32(order, $codes);
        put($r, _mm512_castsi512_si256(codes));
        if $partner > $r {
            put($partner, _mm512_extracti64x4_epi64::<1>(codes));
        }
    }};
}

/// Whether codes of a place need no clamp but that of their type: no product of an accumulator and a factor below one
/// leaves the range of `i32`.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn are_plain<const V: usize>(requant: &Requant, place: Place) -> bool {
    let mut all = (requant.lo, requant.hi) == (0, 255);
    for factor in lanes::<f32, V>(requant.multiplier, place) {
        let size = _mm512_abs_ps(_mm512_castsi512_ps(factor));
        all &= _mm512_cmp_ps_mask::<_CMP_LT_OQ>(size, _mm512_set1_ps(1.0)) == u16::MAX;
    }
    all
}

/// Requantizes. `PLAIN` where [`are_plain`] says so.
pub(super) struct ToCodes<'a, const V: usize, const PLAIN: bool> {
    out: &'a mut [u8],
    factor: [__m512; V],
    hi: __m512,
    zero_point: __m512i,
    lo_code: __m512i,
    hi_code: __m512i,
    place: Place,
}

impl<'a, const V: usize, const PLAIN: bool> ToCodes<'a, V, PLAIN> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    pub(super) fn new(out: &'a mut [u8], requant: &Requant, place: Place) -> Self {
        ToCodes {
            out,
            factor: lanes::<f32, V>(requant.multiplier, place).map(|lanes| _mm512_castsi512_ps(lanes)),
            hi: _mm512_set1_ps(requant.bounds().1),
            zero_point: _mm512_set1_epi16(i16::from(requant.zero_point)),
            lo_code: _mm512_set1_epi8(requant.lo as i8),
            hi_code: _mm512_set1_epi8(requant.hi as i8),
            place,
        }
    }

    /// Distances from the zero point. Products too low for `i32` and what is not a number (`minps` gives its second operand
    /// then) become its least value, which the packs bring to `lo`; products too high would too, so they are cut before.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    fn rounded(&self, acc: __m512i, v: usize) -> __m512i {
        let product = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), self.factor[v]);
        _mm512_cvtps_epi32(if PLAIN { product } else { _mm512_min_ps(self.hi, product) })
    }
}

impl<const V: usize, const PLAIN: bool> Finish<V> for ToCodes<'_, V, PLAIN> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    unsafe fn put<const R: usize>(&mut self, acc: [[__m512i; V]; R], at: usize) {
        for pair in 0..R.div_ceil(2) {
            let (r, partner) = partners::<R>(pair);
            let mut q = [_mm512_setzero_si512(); 4];
            for v in 0..V {
                q[v] = self.rounded(acc[r][v], v);
                q[2 + v] = self.rounded(acc[partner][v], v);
            }
            let first = _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), self.zero_point);
            let second = _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), self.zero_point);
            let codes = _mm512_packus_epi16(first, second);
            let codes = match PLAIN {
                true => codes,
                false => _mm512_min_epu8(_mm512_max_epu8(codes, self.lo_code), self.hi_code),
            };
            put_pair!(self, at, (r, partner), codes);
        }
    }
}

/// Requantizes and adds other codes.
pub(super) struct ToSumsOfCodes<'a, const V: usize> {
    out: &'a mut [u8],
    other: &'a [u8],
    factor: [__m512; V],
    lo: __m512,
    hi: __m512,
    to_code: __m512,
    form: SumForm,
    place: Place,
}

impl<'a, const V: usize> ToSumsOfCodes<'a, V> {
    /// `other` has the shape of `out`, strides and all.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    pub(super) fn new(
        out: &'a mut [u8],
        requant: &Requant,
        (other, form): (&'a [u8], SumForm),
        place: Place,
    ) -> Self {
        assert!(other.len() >= out.len(), "a code for each that something is added to");
        let (lo, hi) = requant.bounds();
        ToSumsOfCodes {
            out,
            other,
            factor: lanes::<f32, V>(requant.multiplier, place).map(|lanes| _mm512_castsi512_ps(lanes)),
            lo: _mm512_set1_ps(lo),
            hi: _mm512_set1_ps(hi),
            to_code: _mm512_set1_ps(SHIFT - f32::from(requant.zero_point)),
            form,
            place,
        }
    }

    /// Sums, before their clamp. What is not a number becomes `lo` (`maxps` gives its second operand then); a product is
    /// rounded by adding [`SHIFT`], and on the way back the zero point comes in.
    ///
    /// # Safety
    /// There are 16 codes at `other`, or as many as the mask admits.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    unsafe fn rounded(&self, acc: __m512i, v: usize, other: *const u8, mask: __mmask16) -> __m512i {
        let SumForm { own, other: from, offset, .. } = self.form;
        // SAFETY: the caller promises the codes.
        let other = unsafe { _mm_maskz_loadu_epi8(mask, other.cast()) };
        let product = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), self.factor[v]);
        let product = _mm512_max_ps(_mm512_min_ps(self.hi, product), self.lo);
        let code = _mm512_sub_ps(_mm512_add_ps(product, _mm512_set1_ps(SHIFT)), self.to_code);
        let sum = _mm512_fmadd_ps(code, _mm512_set1_ps(own), _mm512_set1_ps(offset));
        let other = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(other));
        _mm512_cvtps_epi32(_mm512_fmadd_ps(other, _mm512_set1_ps(from), sum))
    }
}

impl<const V: usize> Finish<V> for ToSumsOfCodes<'_, V> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    unsafe fn put<const R: usize>(&mut self, acc: [[__m512i; V]; R], at: usize) {
        let (lo, hi) = self.form.clamp;
        let (lo, hi) = (_mm512_set1_epi8(lo as i8), _mm512_set1_epi8(hi as i8));
        for pair in 0..R.div_ceil(2) {
            let (r, partner) = partners::<R>(pair);
            let mut q = [_mm512_setzero_si512(); 4];
            for v in 0..V {
                let mask = mask(self.place.columns.saturating_sub(v * 16));
                let other = |r: usize| self.other.as_ptr().wrapping_add(at + r * self.place.stride + v * 16);
                // SAFETY: there is another code for each of the output, of which the caller promises the rows; the mask
                // admits their columns only.
                unsafe {
                    q[v] = self.rounded(acc[r][v], v, other(r), mask);
                    q[2 + v] = self.rounded(acc[partner][v], v, other(partner), mask);
                }
            }
            let codes = _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
            let codes = _mm512_min_epu8(_mm512_max_epu8(codes, lo), hi);
            put_pair!(self, at, (r, partner), codes);
        }
    }
}

/// Dequantizes.
pub(super) struct ToFloats<'a, const V: usize> {
    out: &'a mut [f32],
    factor: [__m512; V],
    place: Place,
}

impl<'a, const V: usize> ToFloats<'a, V> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    pub(super) fn new(out: &'a mut [f32], dequant: &Dequant, place: Place) -> Self {
        let factor = lanes::<f32, V>(dequant.scale, place).map(|lanes| _mm512_castsi512_ps(lanes));
        ToFloats { out, factor, place }
    }
}

impl<const V: usize> Finish<V> for ToFloats<'_, V> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    unsafe fn put<const R: usize>(&mut self, acc: [[__m512i; V]; R], at: usize) {
        for v in 0..V {
            let mask = mask(self.place.columns.saturating_sub(v * 16));
            for r in 0..R {
                let to = self.out.as_mut_ptr().wrapping_add(at + r * self.place.stride + v * 16);
                let y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][v]), self.factor[v]);
                // SAFETY: the caller promises the tile; the mask admits its columns only.
                unsafe { _mm512_mask_storeu_ps(to, mask, y) }
            }
        }
    }
}

/// Leaves them as they are.
pub(super) struct ToSums<'a> {
    pub(super) out: &'a mut [i32],
    pub(super) place: Place,
}

impl<const V: usize> Finish<V> for ToSums<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    unsafe fn put<const R: usize>(&mut self, acc: [[__m512i; V]; R], at: usize) {
        for v in 0..V {
            let mask = mask(self.place.columns.saturating_sub(v * 16));
            for r in 0..R {
                let to = self.out.as_mut_ptr().wrapping_add(at + r * self.place.stride + v * 16);
                // SAFETY: the caller promises the tile; the mask admits its columns only.
                unsafe { _mm512_mask_storeu_epi32(to, mask, acc[r][v]) }
            }
        }
    }
}

/// The 32-bit values of the tile's channels; zeros past the last column.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn lanes<T: bytemuck::Pod, const V: usize>(values: &[T], place: Place) -> [__m512i; V] {
    const { assert!(size_of::<T>() == 4) };
    let values = &values[place.channel..][..place.columns];
    let mut lanes = [_mm512_setzero_si512(); V];
    for v in 0..V {
        let mask = mask(values.len().saturating_sub(v * 16));
        // SAFETY: the mask admits as many lanes as there are values from `v * 16` on.
        lanes[v] = unsafe { _mm512_maskz_loadu_epi32(mask, values.as_ptr().wrapping_add(v * 16).cast()) };
    }
    lanes
}

/// The first `lanes` of 16.
pub(super) fn mask(lanes: usize) -> __mmask16 {
    if lanes >= 16 { u16::MAX } else { (1 << lanes) - 1 }
}
