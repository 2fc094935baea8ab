//! AVX-512 with byte dot products: the register tile of the integer product. Knows packed slices only; packing and
//! walking are the callers'.
#![expect(unsafe_code, reason = "vector loads and stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::tiles::Place;
use super::x86_64::Avx2;
use std::arch::x86_64::*;

/// Proof that this processor has AVX-512 F, BW, VL and VNNI beside AVX2 and FMA: only [`Avx512Vnni::detect`] makes
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

    /// A tile of an integer product: `rows` rows of `a`, `lda` apart, times a packed panel of `width` columns and
    /// `depth` (a multiple of 4) elements, to `out` through its epilogue (without the table).
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
        out: &mut IntOutput,
        place: Place,
    ) {
        assert!(
            depth.is_multiple_of(4) && a.len() >= (rows - 1) * lda + depth && panel.len() >= width * depth
        );
        assert!(place.columns <= width, "the columns of a panel");
        place.assert_within(rows, out.len());
        macro_rules! call {
            ($($rows:literal)*) => {
                match (rows, width) {
                    // SAFETY: `self` proves the features; the lengths were just checked.
                    $(($rows, 32) => unsafe { int8_tile::<$rows, 2>(a, lda, panel, depth, out, place) },)*
                    // SAFETY: likewise.
                    $(($rows, 16) => unsafe { int8_tile::<$rows, 1>(a, lda, panel, depth, out, place) },)*
                    _ => unreachable!("a tile has 1 to 12 rows and 16 or 32 columns"),
                }
            };
        }
        call!(1 2 3 4 5 6 7 8 9 10 11 12)
    }
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

/// `depth / 4` steps of `vpdpbusd`: four products of a `u8` and an `i8` added in 32 bits, without a 16-bit stage and
/// so exact.
///
/// # Safety
/// `a` holds `R` rows `lda` apart, `panel` `V * 16 * depth` elements, and `out` the tile at `place`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn int8_tile<const R: usize, const V: usize>(
    a: &[u8],
    lda: usize,
    panel: &[i8],
    depth: usize,
    out: &mut IntOutput,
    place: Place,
) {
    let mut acc = [[_mm512_setzero_si512(); V]; R];
    let (a, b) = (a.as_ptr(), panel.as_ptr());
    for k in (0..depth).step_by(4) {
        // SAFETY: `k + 3 < depth`, and the caller promises `R` rows and a panel of that depth.
        unsafe {
            let mut columns = [_mm512_setzero_si512(); V];
            for v in 0..V {
                columns[v] = _mm512_loadu_si512(b.add(k * V * 16 + v * 64).cast());
            }
            for r in 0..R {
                let quad = _mm512_set1_epi32(a.add(r * lda + k).cast::<i32>().read_unaligned());
                for v in 0..V {
                    acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], quad, columns[v]);
                }
            }
        }
    }
    let columns = u32::try_from(place.columns).expect("at most 32 columns");
    let channels = place.channel..place.channel + place.columns;
    let (bias, factor) = match out {
        IntOutput::U8(_, requant) => (&requant.bias[channels.clone()], &requant.multiplier[channels]),
        IntOutput::F32(_, dequant) => (&dequant.bias[channels.clone()], &dequant.scale[channels]),
    };
    for v in 0..V {
        // Lanes past the last column are neither read nor written.
        let mask = mask(columns.saturating_sub(v as u32 * 16));
        // SAFETY: the mask admits as many lanes as the slices have elements from `v * 16` on.
        let (bias, factor) = unsafe {
            let bias = _mm512_maskz_loadu_epi32(mask, bias.as_ptr().wrapping_add(v * 16));
            (bias, _mm512_maskz_loadu_ps(mask, factor.as_ptr().wrapping_add(v * 16)))
        };
        let value = |acc| _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(acc, bias)), factor);
        match out {
            IntOutput::U8(out, requant) => {
                let (lo, hi) = requant.bounds();
                let (lo, hi) = (_mm512_set1_ps(lo), _mm512_set1_ps(hi));
                let zero_point = _mm512_set1_epi32(i32::from(requant.zero_point));
                for r in 0..R {
                    // `maxps` gives its second operand where the first is not a number.
                    let clamped = _mm512_min_ps(_mm512_max_ps(value(acc[r][v]), lo), hi);
                    let codes = _mm512_add_epi32(_mm512_cvtps_epi32(clamped), zero_point);
                    let to = out.as_mut_ptr().wrapping_add(place.at + r * place.stride + v * 16);
                    // SAFETY: the caller promises the tile; the mask admits its columns only.
                    unsafe {
                        match mask {
                            u16::MAX => _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(codes)),
                            _ => _mm_mask_storeu_epi8(to.cast(), mask, _mm512_cvtepi32_epi8(codes)),
                        }
                    }
                }
            }
            IntOutput::F32(out, _) => {
                for r in 0..R {
                    let to = out.as_mut_ptr().wrapping_add(place.at + r * place.stride + v * 16);
                    // SAFETY: the caller promises the tile; the mask admits its columns only.
                    unsafe { _mm512_mask_storeu_ps(to, mask, value(acc[r][v])) }
                }
            }
        }
    }
}

/// The first `lanes` of 16.
fn mask(lanes: u32) -> __mmask16 {
    if lanes >= 16 { u16::MAX } else { (1 << lanes) - 1 }
}
