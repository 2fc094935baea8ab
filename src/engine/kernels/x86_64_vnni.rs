//! AVX-512 with byte dot products: the register tile of the integer product, the depthwise row, tables. Knows packed slices only; packing and
//! walking are the callers'.
#![expect(unsafe_code, reason = "vector loads and stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::tiles::{Ahead, INT8_QUADS, Place, Reach, even_tiles};
use super::x86_64::{Avx2, DEPTHWISE_CHANNELS, define_finish_depthwise, interleaved, natural_order};
use super::x86_64_finish::{self, Codes, opaque};
use super::x86_64_vnni_finish::{Finish, ToCodes, ToFloats, ToSums, ToSumsOfCodes, are_plain, lanes};
use std::arch::x86_64::*;

/// Proof that this processor has AVX-512 F, BW, VL, DQ and VNNI beside AVX2 and FMA: only [`Avx512Vnni::detect`] makes
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512Vnni {
    avx2: Avx2,
    vbmi: Option<Vbmi>,
}

/// Proof of AVX-512 VBMI, permutations of bytes, which came one generation after VNNI on Intel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vbmi(());

impl Avx512Vnni {
    /// The token, if the processor has what it stands for.
    pub fn detect() -> Option<Avx512Vnni> {
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni");
        let vbmi = (wide && is_x86_feature_detected!("avx512vbmi")).then_some(Vbmi(()));
        Avx2::detect().filter(|_| wide).map(|avx2| Avx512Vnni { avx2, vbmi })
    }

    /// The proof of the smaller instruction set.
    pub(super) fn avx2(self) -> Avx2 {
        self.avx2
    }

    /// The proof of byte permutations, if the processor has them.
    pub(super) fn vbmi(self) -> Option<Vbmi> {
        self.vbmi
    }

    /// Runs `f` compiled for AVX-512, like [`Avx2::vectorize`].
    #[inline(always)]
    pub(super) fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
        fn with_avx512<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` exists only where `detect` found the features.
        unsafe { with_avx512(f) }
    }

    /// One output row of a depthwise convolution in a block of up to 32 channels, like [`Avx2::depthwise_row`], but with
    /// quads of taps: `taps` is a multiple of four long, the last of `tap_count` taps repeated, and `weights` is
    /// `[taps.len() / 4, 4, 8, 4]`.
    #[expect(clippy::too_many_arguments, reason = "a row is its operands and its place")]
    pub(super) fn depthwise_row(
        self,
        x: &[u8],
        taps: &[usize],
        tap_count: usize,
        step: usize,
        count: usize,
        weights: &[i8],
        out: &mut IntOutput,
        place: Place,
    ) {
        let last = taps.iter().max().expect("a kernel has a tap") + (count - 1) * step;
        assert!(x.len() >= last + DEPTHWISE_CHANNELS && taps.len() == tap_count.next_multiple_of(4));
        assert!(weights.len() == taps.len() * DEPTHWISE_CHANNELS && place.columns <= DEPTHWISE_CHANNELS);
        place.assert_within(count, out.len());
        // SAFETY: `self` proves the features, and the lengths were just checked.
        unsafe {
            match tap_count {
                9 => depthwise_row::<2, true>(x, taps, step, count, weights, out, place),
                25 => depthwise_row::<6, true>(x, taps, step, count, weights, out, place),
                t if t % 4 == 1 => depthwise_row::<0, true>(x, taps, step, count, weights, out, place),
                _ => depthwise_row::<0, false>(x, taps, step, count, weights, out, place),
            }
        }
    }

    /// Rows of an integer product: `rows` rows of `a`, with runs of `depth` (a multiple of 4) elements, times a packed
    /// panel of `width` columns, to `out` through its epilogue (without the table); `ahead` is asked for early.
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
        let quads = Quads { a, reach, panel, depth, ahead };
        // SAFETY: `self` proves the features; the lengths were just checked.
        unsafe {
            match width {
                32 => tiles::<2>(quads, rows, out, place),
                16 => tiles::<1>(quads, rows, out, place),
                _ => unreachable!("a panel has 16 or 32 columns"),
            }
        }
    }
}

/// See [`Avx512Vnni::depthwise_row`]. `Q` whole quads of taps, or 0 if that is known at run time only; `SINGLE` if
/// the last quad is one tap and zeros, as in every square kernel of odd size.
///
/// # Safety
/// Every tap of every output has 32 elements of `x`, `weights` is `[taps.len() / 4, 4, 8, 4]`, and `out` holds `count`
/// rows at `place`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn depthwise_row<const Q: usize, const SINGLE: bool>(
    x: &[u8],
    taps: &[usize],
    step: usize,
    count: usize,
    weights: &[i8],
    out: &mut IntOutput,
    place: Place,
) {
    let quads = if Q == 0 { taps.len() / 4 - usize::from(SINGLE) } else { Q };
    let weight = weights.as_ptr();
    finish_depthwise(
        count,
        out,
        place,
        // SAFETY: the caller promises the elements of every tap of the outputs asked for, and the weights.
        |i, start| unsafe {
            quad_sums::<2, SINGLE>(x.as_ptr().add(i * step), step, taps, quads, weight, start)
        },
        // SAFETY: likewise.
        |i, start| unsafe {
            quad_sums::<1, SINGLE>(x.as_ptr().add(i * step), step, taps, quads, weight, start)
        },
    )
}

define_finish_depthwise!("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma");

/// Sums of `R` neighbouring outputs over quads of taps. Bytes of four taps are interleaved within 128-bit lanes, which
/// leaves channels in the order of the pairs of AVX2.
///
/// # Safety
/// Every tap has 32 elements from each of `R` places `step` apart from `x` on, and `weight` leads to `[quads, 4, 8, 4]`,
/// one quad more if `SINGLE`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn quad_sums<const R: usize, const SINGLE: bool>(
    x: *const u8,
    step: usize,
    taps: &[usize],
    quads: usize,
    weight: *const i8,
    start: [__m256i; 4],
) -> [[__m256i; 4]; R] {
    let mut acc = [start; R];
    for q in 0..quads + usize::from(SINGLE) {
        for r in 0..R {
            // SAFETY: `q` is a quad of taps; the caller promises their elements and weights.
            unsafe {
                let load =
                    |t: usize| _mm256_loadu_si256(x.add(r * step + *taps.get_unchecked(4 * q + t)).cast());
                let interleave = |a, b| (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
                let (a, b, c, d) = if SINGLE && q == quads {
                    let (a, b) = interleave(load(0), _mm256_setzero_si256());
                    (a, b, _mm256_setzero_si256(), _mm256_setzero_si256())
                } else {
                    let ((a, b), (c, d)) = (interleave(load(0), load(1)), interleave(load(2), load(3)));
                    (a, b, c, d)
                };
                let bytes = [
                    _mm256_unpacklo_epi16(a, c),
                    _mm256_unpackhi_epi16(a, c),
                    _mm256_unpacklo_epi16(b, d),
                    _mm256_unpackhi_epi16(b, d),
                ];
                for v in 0..4 {
                    let w = _mm256_loadu_si256(weight.add(q * 128 + v * 32).cast());
                    acc[r][v] = _mm256_dpbusd_epi32(acc[r][v], bytes[v], w);
                }
            }
        }
    }
    acc
}

impl Vbmi {
    /// `x[i] = table[x[i]]`.
    pub(super) fn apply_table(self, x: &mut [u8], table: &[u8; 256]) {
        // SAFETY: `self` proves the features.
        unsafe { apply_table(x, table) }
    }
}

/// Two permutations look up the low seven bits in either half of the table; the top bit chooses.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn apply_table(x: &mut [u8], table: &[u8; 256]) {
    // SAFETY: the four quarters of the table.
    let [a, b, c, d] =
        [0, 64, 128, 192].map(|at| unsafe { _mm512_loadu_si512(table.as_ptr().add(at).cast()) });
    for chunk in x.chunks_mut(64) {
        let mask = u64::MAX >> (64 - chunk.len());
        // SAFETY: the mask admits the bytes of the chunk only.
        let codes = unsafe { _mm512_maskz_loadu_epi8(mask, chunk.as_ptr().cast()) };
        let low = _mm512_permutex2var_epi8(a, codes, b);
        let high = _mm512_permutex2var_epi8(c, codes, d);
        let values = _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
        let to: *mut i8 = chunk.as_mut_ptr().cast();
        // SAFETY: a whole chunk is 64 bytes; of a shorter one the mask admits its bytes only.
        unsafe {
            match mask {
                u64::MAX => _mm512_storeu_si512(to.cast(), values),
                _ => _mm512_mask_storeu_epi8(to, mask, values),
            }
        }
    }
}

/// Rows and a panel.
#[derive(Clone, Copy)]
struct Quads<'a> {
    a: &'a [u8],
    reach: Reach,
    panel: &'a [i8],
    depth: usize,
    ahead: Ahead,
}

/// Writes `rows` rows of a product, in register tiles of about the same number of rows.
///
/// # Safety
/// `quads` has the rows and a panel `V * 16` columns wide, and `out` holds the rows at `place`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tiles<const V: usize>(quads: Quads, rows: usize, out: &mut IntOutput, place: Place) {
    // SAFETY: the caller promises it.
    unsafe {
        match out {
            IntOutput::U8(out, requant) => {
                let bias = lanes::<i32, V>(requant.bias, place);
                match requant.sum_in_registers() {
                    Some(sum) => {
                        tiles_to(quads, rows, bias, ToSumsOfCodes::new(out, requant, sum, place), place);
                    }
                    None if are_plain::<V>(requant, place) => {
                        tiles_to(quads, rows, bias, ToCodes::<V, true>::new(out, requant, place), place);
                    }
                    None => {
                        tiles_to(quads, rows, bias, ToCodes::<V, false>::new(out, requant, place), place);
                    }
                }
            }
            IntOutput::F32(out, dequant) => {
                let bias = lanes::<i32, V>(dequant.bias, place);
                tiles_to(quads, rows, bias, ToFloats::new(out, dequant, place), place);
            }
            IntOutput::I32(out, bias) => {
                tiles_to(quads, rows, lanes::<i32, V>(bias, place), ToSums { out, place }, place);
            }
        }
    }
}

/// # Safety
/// Like [`tiles`], `finish` having its output.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn tiles_to<const V: usize>(
    quads: Quads,
    rows: usize,
    bias: [__m512i; V],
    mut finish: impl Finish<V>,
    place: Place,
) {
    for (row, count) in even_tiles(rows, INT8_QUADS.rows) {
        let at = place.at + row * place.stride;
        macro_rules! put {
            ($($rows:literal)*) => {
                match count {
                    $($rows => {
                        let mut acc = [[_mm512_setzero_si512(); V]; $rows];
                        // SAFETY: the caller promises the rows, of which these are some.
                        unsafe {
                            sums(quads, row, bias, &mut acc);
                            finish.put(acc, at);
                        }
                    })*
                    _ => unreachable!("a tile has 1 to 12 rows"),
                }
            };
        }
        put!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

/// For each run `depth / 4` steps of `vpdpbusd`: four products of a `u8` and an `i8` added in 32 bits, without a 16-bit
/// stage and so exact. Sums wrap at 32 bits, so they may begin at the bias. They are not returned: where this is no part of
/// its caller, they would be written to their place in every step.
///
/// # Safety
/// `quads` has `R` rows from `row` on and a panel `V * 16` columns wide.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn sums<const R: usize, const V: usize>(
    quads: Quads,
    row: usize,
    bias: [__m512i; V],
    out: &mut [[__m512i; V]; R],
) {
    let Quads { a, reach: Reach { row: lda, run, runs }, panel, depth, ahead } = quads;
    let mut acc = [bias; R];
    let mut rows: [*const u8; 4] =
        std::array::from_fn(|i| opaque(a.as_ptr().wrapping_add((row + 3 * i) * lda)));
    let mut b = panel.as_ptr();
    let mut next = ahead.of_row(row);
    for _ in 0..runs {
        for _ in 0..depth / 4 {
            // In every step, because a branch would cost the accumulators their registers.
            _mm_prefetch::<_MM_HINT_T1>(next);
            next = next.wrapping_add(ahead.pace * R);
            // SAFETY: the caller promises `R` rows and a panel of that depth, of which this is a step.
            unsafe {
                let mut columns = [_mm512_setzero_si512(); V];
                for v in 0..V {
                    columns[v] = _mm512_loadu_si512(b.add(v * 64).cast());
                }
                for r in 0..R {
                    let quad = _mm512_set1_epi32(rows[r / 3].add(r % 3 * lda).cast::<i32>().read_unaligned());
                    for v in 0..V {
                        acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], quad, columns[v]);
                    }
                }
            }
            for row in &mut rows {
                *row = row.wrapping_add(4);
            }
            b = b.wrapping_add(V * 64);
        }
        for row in &mut rows {
            *row = row.wrapping_add(run).wrapping_sub(depth);
        }
    }
    *out = acc;
}
