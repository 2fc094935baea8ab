//! AVX-512 with byte dot products: the register tile of the integer product, the depthwise row, tables. Knows packed slices only; packing and
//! walking are the callers'.
#![expect(unsafe_code, reason = "vector loads and stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::tiles::{Place, Reach};
use super::x86_64::{Avx2, DEPTHWISE_CHANNELS, define_finish_depthwise, interleaved, natural_order};
use super::x86_64_finish::{self, Codes};
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

    /// A tile of an integer product: `rows` rows of `a`, with runs of `depth` (a multiple of 4) elements, times a packed
    /// panel of `width` columns, to `out` through its epilogue (without the table).
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
                    $(($rows, 32) => unsafe { int8_tile::<$rows, 2>(a, reach, panel, depth, out, place) },)*
                    // SAFETY: likewise.
                    $(($rows, 16) => unsafe { int8_tile::<$rows, 1>(a, reach, panel, depth, out, place) },)*
                    _ => unreachable!("a tile has 1 to 12 rows and 16 or 32 columns"),
                }
            };
        }
        call!(1 2 3 4 5 6 7 8 9 10 11 12)
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

/// For each run `depth / 4` steps of `vpdpbusd`: four products of a `u8` and an `i8` added in 32 bits, without a 16-bit stage and
/// so exact.
///
/// # Safety
/// `a` holds `R` rows as `reach` has them, `panel` `V * 16 * depth` elements a run, and `out` the tile at `place`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn int8_tile<const R: usize, const V: usize>(
    a: &[u8],
    reach: Reach,
    panel: &[i8],
    depth: usize,
    out: &mut IntOutput,
    place: Place,
) {
    let bias = match out {
        IntOutput::U8(_, requant) => requant.bias,
        IntOutput::F32(_, dequant) => dequant.bias,
        IntOutput::I32(_, bias) => bias,
    };
    // Sums wrap at 32 bits, so they may begin at the bias.
    let mut acc = [lanes::<i32, V>(bias, place); R];
    // Pointers that the compiler cannot derive from each other, or else it adds a stride a row in every step, and the
    // additions take turns with the products at their ports: 7 % of the time (Sapphire Rapids).
    let Reach { row: lda, run, runs } = reach;
    let mut rows: [*const u8; 4] = std::array::from_fn(|i| a.as_ptr().wrapping_add(3 * i * lda));
    for row in &mut rows {
        // SAFETY: nothing is executed.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) * row, options(pure, readonly, nostack, preserves_flags))
        }
    }
    let mut b = panel.as_ptr();
    for _ in 0..runs {
        for _ in 0..depth / 4 {
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
    // SAFETY: the caller promises the tile.
    unsafe { store(acc, out, place) }
}

/// The epilogue of a tile whose accumulators began at the bias.
///
/// # Safety
/// `out` holds `R` rows at `place`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
unsafe fn store<const R: usize, const V: usize>(acc: [[__m512i; V]; R], out: &mut IntOutput, place: Place) {
    match out {
        IntOutput::U8(out, requant) => {
            let factor = lanes::<f32, V>(requant.multiplier, place);
            let hi = _mm512_set1_ps(requant.bounds().1);
            let zero_point = _mm512_set1_epi16(i16::from(requant.zero_point));
            let (lo_code, hi_code) = (_mm512_set1_epi8(requant.lo as i8), _mm512_set1_epi8(requant.hi as i8));
            // Products too low for `i32` and what is not a number (`minps` gives its second operand then) become its
            // least value, which the packs bring to `lo`; products too high would too, so they are cut before.
            let rounded = |acc, v: usize| {
                let product = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_castsi512_ps(factor[v]));
                _mm512_cvtps_epi32(_mm512_min_ps(hi, product))
            };
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            // Two rows fill a register of bytes; an odd last row is its own partner.
            for r in (0..R).step_by(2) {
                let partner = (r + 1).min(R - 1);
                let mut q = [_mm512_setzero_si512(); 4];
                for v in 0..V {
                    q[v] = rounded(acc[r][v], v);
                    q[2 + v] = rounded(acc[partner][v], v);
                }
                let first = _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), zero_point);
                let second = _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), zero_point);
                let codes = _mm512_packus_epi16(first, second);
                let codes = _mm512_min_epu8(_mm512_max_epu8(codes, lo_code), hi_code);
                let codes = _mm512_permutexvar_epi32(order, codes);
                let rows = [_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64::<1>(codes)];
                for (r, codes) in (r..=partner).zip(rows) {
                    // SAFETY: the caller promises row `r` of the tile; the mask admits its columns only.
                    unsafe {
                        let to = out.as_mut_ptr().add(place.at + r * place.stride);
                        match place.columns {
                            32 => _mm256_storeu_si256(to.cast(), codes),
                            16 => _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(codes)),
                            columns => _mm256_mask_storeu_epi8(to.cast(), u32::MAX >> (32 - columns), codes),
                        }
                    }
                }
            }
        }
        IntOutput::F32(out, dequant) => {
            let factor = lanes::<f32, V>(dequant.scale, place);
            for v in 0..V {
                let mask = mask(place.columns.saturating_sub(v * 16));
                for r in 0..R {
                    let to = out.as_mut_ptr().wrapping_add(place.at + r * place.stride + v * 16);
                    let y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][v]), _mm512_castsi512_ps(factor[v]));
                    // SAFETY: the caller promises the tile; the mask admits its columns only.
                    unsafe { _mm512_mask_storeu_ps(to, mask, y) }
                }
            }
        }
        IntOutput::I32(out, _) => {
            for v in 0..V {
                let mask = mask(place.columns.saturating_sub(v * 16));
                for r in 0..R {
                    let to = out.as_mut_ptr().wrapping_add(place.at + r * place.stride + v * 16);
                    // SAFETY: the caller promises the tile; the mask admits its columns only.
                    unsafe { _mm512_mask_storeu_epi32(to, mask, acc[r][v]) }
                }
            }
        }
    }
}

/// The 32-bit values of the tile's channels; zeros past the last column.
#[target_feature(enable = "avx512f")]
#[inline]
fn lanes<T: bytemuck::Pod, const V: usize>(values: &[T], place: Place) -> [__m512i; V] {
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
