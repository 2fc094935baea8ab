//! AVX2: how rows of a dense integer product are cut into register tiles, and how their accumulators become outputs, in
//! registers. Knows no products.
#![expect(unsafe_code, reason = "vector stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::tiles::{Place, even_tiles};
use super::{IntOutput, Requant};
use std::arch::asm;
use std::arch::x86_64::*;
use std::hint::black_box;
use std::mem::MaybeUninit;

/// The end of tiles of up to `V * 8` columns, whose accumulators began at the bias and are in natural column order. What
/// the tiles of a panel share is loaded once for all of them.
pub(super) trait Finish<const V: usize> {
    /// Writes `R` rows from element `at` on.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA, and the output holds the columns of `R` rows from `at` on.
    unsafe fn put<const R: usize>(&mut self, acc: &[[__m256i; V]; R], at: usize);
}

/// `pointer`, of which the compiler does not know what it leads to: pointers that it can derive from each other it would
/// step by strides in every step of a product, and these additions take turns with the products at their ports: 7 % of the
/// time (Sapphire Rapids, AVX-512).
#[inline(always)]
pub(super) fn opaque<T>(mut pointer: *const T) -> *const T {
    // SAFETY: nothing is executed.
    unsafe { asm!("/* {0} */", inout(reg) pointer, options(pure, readonly, nostack, preserves_flags)) }
    pointer
}

/// What a dense product adds up for its epilogue, over a panel of `V * 8` columns.
pub(super) trait Sums<const V: usize> {
    /// Most rows of a register tile.
    const ROWS: usize;

    /// Sums `R` rows from `row` on, begun at `bias`, to `out`. It should not be inlined: what the epilogue wants would then
    /// take registers of the accumulators, of which AVX2 has just enough. Nor should it return them, because they would be
    /// written to their place in every step.
    ///
    /// # Safety
    /// The processor has what the implementation is compiled for, and the left operand has the rows.
    unsafe fn sums<const R: usize>(
        &self,
        row: usize,
        bias: [__m256i; V],
        out: &mut MaybeUninit<[[__m256i; V]; R]>,
    );
}

/// Writes `rows` rows of a product, in register tiles of about the same number of rows.
///
/// # Safety
/// The left operand has the rows, and `out` holds them at `place`, at most `V * 8` columns.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tiles<const V: usize>(
    product: &impl Sums<V>,
    rows: usize,
    out: &mut IntOutput,
    place: Place,
) {
    let bias = bias_lanes::<V>(out, place);
    // SAFETY: the caller promises it.
    unsafe {
        match out {
            IntOutput::U8(out, requant) => {
                let factor = factor_lanes::<V>(requant.multiplier, place);
                if are_plain(requant, factor) {
                    let finish = ToCodes { out, codes: Codes::<true>::new(requant), factor, place };
                    tiles_to(product, rows, bias, finish, place);
                } else {
                    let finish = ToCodes { out, codes: Codes::<false>::new(requant), factor, place };
                    tiles_to(product, rows, bias, finish, place);
                }
            }
            IntOutput::F32(out, dequant) => {
                let factor = factor_lanes::<V>(dequant.scale, place);
                tiles_to(product, rows, bias, ToFloats { out, factor, place }, place);
            }
            IntOutput::I32(out, _) => {
                tiles_to(product, rows, bias, ToSums { out, place }, place);
            }
        }
    }
}

/// # Safety
/// Like `tiles`, `finish` having its output.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn tiles_to<const V: usize, S: Sums<V>>(
    product: &S,
    rows: usize,
    bias: [__m256i; V],
    mut finish: impl Finish<V>,
    place: Place,
) {
    const { assert!(S::ROWS <= 6) };
    for (row, count) in even_tiles(rows, S::ROWS) {
        let at = place.at + row * place.stride;
        // SAFETY: the caller promises the rows, of which these are some; `sums` writes all of `acc`.
        unsafe {
            macro_rules! put {
                ($rows:literal) => {{
                    let mut acc = MaybeUninit::uninit();
                    // Through a pointer of which the compiler does not know where it leads: `inline(never)` does not always
                    // keep the two apart.
                    let sums: unsafe fn(&S, usize, [__m256i; V], &mut MaybeUninit<[[__m256i; V]; $rows]>) =
                        black_box(S::sums::<$rows>);
                    sums(product, row, bias, &mut acc);
                    finish.put(acc.assume_init_ref(), at)
                }};
            }
            match count {
                6 if S::ROWS >= 6 => put!(6),
                5 if S::ROWS >= 5 => put!(5),
                4 => put!(4),
                3 => put!(3),
                2 => put!(2),
                _ => put!(1),
            }
        }
    }
}

/// Requantizes.
pub(super) struct ToCodes<'a, const V: usize, const PLAIN: bool> {
    pub(super) out: &'a mut [u8],
    pub(super) codes: Codes<PLAIN>,
    pub(super) factor: [__m256; V],
    pub(super) place: Place,
}

impl<const V: usize, const PLAIN: bool> Finish<V> for ToCodes<'_, V, PLAIN> {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn put<const R: usize>(&mut self, acc: &[[__m256i; V]; R], at: usize) {
        // SAFETY: the caller promises the rows.
        unsafe {
            if self.place.columns == 16 {
                self.rows::<R, true>(acc, at);
            } else {
                self.rows::<R, false>(acc, at);
            }
        }
    }
}

impl<const V: usize, const PLAIN: bool> ToCodes<'_, V, PLAIN> {
    /// [`Finish::put`] of `WHOLE` rows of sixteen columns, or of fewer.
    ///
    /// # Safety
    /// Like it.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn rows<const R: usize, const WHOLE: bool>(&mut self, acc: &[[__m256i; V]; R], at: usize) {
        let (codes, factor) = (&self.codes, &self.factor);
        let out = self.out.as_mut_ptr();
        let put = |r: usize, bytes: __m128i| {
            // SAFETY: the caller promises row `r` of the tile, `columns` elements.
            unsafe {
                let to = out.add(at + r * self.place.stride);
                if WHOLE {
                    _mm_storeu_si128(to.cast(), bytes);
                } else {
                    let mut row = [0u8; 16];
                    _mm_storeu_si128(row.as_mut_ptr().cast(), bytes);
                    std::ptr::copy_nonoverlapping(row.as_ptr(), to, self.place.columns);
                }
            }
        };
        // Two rows fill a register of bytes; an odd last row is its own partner.
        for pair in 0..R.div_ceil(2) {
            let (r, partner) = (2 * pair, (2 * pair + 1).min(R - 1));
            let mut q = [_mm256_setzero_si256(); 4];
            for v in 0..V {
                q[v] = codes.rounded(acc[r][v], factor[v]);
                q[2 + v] = codes.rounded(acc[partner][v], factor[v]);
            }
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(codes.bytes(q), order);
            put(r, _mm256_castsi256_si128(bytes));
            if partner > r {
                put(partner, _mm256_extracti128_si256::<1>(bytes));
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
    unsafe fn put<const R: usize>(&mut self, acc: &[[__m256i; V]; R], at: usize) {
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
    unsafe fn put<const R: usize>(&mut self, acc: &[[__m256i; V]; R], at: usize) {
        let out = bytemuck::cast_slice_mut(self.out);
        for (r, acc) in acc.iter().enumerate() {
            let sums = acc.map(|lanes| _mm256_castsi256_ps(lanes));
            // SAFETY: the caller promises row `r` of the tile. Floats are only moved here.
            unsafe { store_floats::<V>(sums, out, at + r * self.place.stride, self.place.columns) }
        }
    }
}

/// # Safety
/// `out` holds `columns` (at most `V * 8`) elements at `at`.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) unsafe fn store_floats<const V: usize>(
    y: [__m256; V],
    out: &mut [f32],
    at: usize,
    columns: usize,
) {
    // SAFETY: the caller promises the elements written; a whole tile writes `V * 8`, another `columns`.
    unsafe {
        let to = out.as_mut_ptr().add(at);
        if columns == V * 8 {
            for v in 0..V {
                _mm256_storeu_ps(to.add(v * 8), y[v]);
            }
        } else {
            let mut row = [[0f32; 8]; V];
            for v in 0..V {
                _mm256_storeu_ps(row[v].as_mut_ptr(), y[v]);
            }
            std::ptr::copy_nonoverlapping(row.as_ptr().cast(), to, columns);
        }
    }
}

/// The bias of the tile's channels. Accumulators begin at it: 32-bit sums wrap, so their order is free.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn bias_lanes<const V: usize>(out: &IntOutput, place: Place) -> [__m256i; V] {
    let bias = match out {
        IntOutput::U8(_, requant) => requant.bias,
        IntOutput::F32(_, dequant) => dequant.bias,
        IntOutput::I32(_, bias) => bias,
    };
    lanes::<i32, V>(bias, place)
}

/// The factors of the tile's channels.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn factor_lanes<const V: usize>(factor: &[f32], place: Place) -> [__m256; V] {
    lanes::<f32, V>(factor, place).map(|lanes| _mm256_castsi256_ps(lanes))
}

/// The 32-bit values of the tile's channels; zeros past the last column.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn lanes<T: bytemuck::Pod, const V: usize>(values: &[T], place: Place) -> [__m256i; V] {
    const { assert!(size_of::<T>() == 4) };
    let values = &values[place.channel..][..place.columns];
    let mut tail = [[T::zeroed(); 8]; V];
    let from = if values.len() == V * 8 {
        values.as_ptr()
    } else {
        tail.as_flattened_mut()[..values.len()].copy_from_slice(values);
        tail.as_ptr().cast()
    };
    let mut lanes = [_mm256_setzero_si256(); V];
    for v in 0..V {
        // SAFETY: `from` leads to `V * 8` values of 32 bits: the slice if that is its length, else the tail.
        lanes[v] = unsafe { _mm256_loadu_si256(from.add(v * 8).cast()) };
    }
    lanes
}

/// Whether codes with these factors need no clamp but that of their type: no product of an accumulator and a factor below
/// one leaves the range of `i32`.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn are_plain<const V: usize>(requant: &Requant, factor: [__m256; V]) -> bool {
    let mut less = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    for v in 0..V {
        let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), factor[v]);
        less = _mm256_and_ps(less, _mm256_cmp_ps::<_CMP_LT_OQ>(size, _mm256_set1_ps(1.0)));
    }
    (requant.lo, requant.hi) == (0, 255) && _mm256_movemask_ps(less) == 0xff
}

/// The end of an integer epilogue: what all channels share. `PLAIN` where [`are_plain`] says so.
pub(super) struct Codes<const PLAIN: bool> {
    hi: __m256,
    zero_point: __m256i,
    lo_code: __m256i,
    hi_code: __m256i,
}

impl<const PLAIN: bool> Codes<PLAIN> {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(super) fn new(requant: &Requant) -> Self {
        Codes {
            hi: _mm256_set1_ps(requant.bounds().1),
            zero_point: _mm256_set1_epi16(i16::from(requant.zero_point)),
            lo_code: _mm256_set1_epi8(requant.lo as i8),
            hi_code: _mm256_set1_epi8(requant.hi as i8),
        }
    }

    /// Distances from the zero point. Products too low for `i32` and what is not a number (`minps` gives its second
    /// operand then) become its least value, which the packs bring to `lo`; products too high would become that
    /// too, so they are cut before.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(super) fn rounded(&self, acc: __m256i, factor: __m256) -> __m256i {
        let product = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), factor);
        _mm256_cvtps_epi32(if PLAIN { product } else { _mm256_min_ps(self.hi, product) })
    }

    /// Codes of 32 distances: in each 128-bit lane four of every register.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(super) fn bytes(&self, q: [__m256i; 4]) -> __m256i {
        let low = _mm256_adds_epi16(_mm256_packs_epi32(q[0], q[1]), self.zero_point);
        let high = _mm256_adds_epi16(_mm256_packs_epi32(q[2], q[3]), self.zero_point);
        let codes = _mm256_packus_epi16(low, high);
        if PLAIN { codes } else { _mm256_min_epu8(_mm256_max_epu8(codes, self.lo_code), self.hi_code) }
    }
}
