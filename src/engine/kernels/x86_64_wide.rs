//! AVX-512 for floats: the register tile of the product and the depthwise row. Knows packed slices only; packing and
//! walking are the callers'.
#![expect(unsafe_code, reason = "vector loads and stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::Epilogue;
use super::tiles::{Part, Place};
use super::x86_64::{DEPTHWISE_CHANNELS, assert_epilogue};
use super::x86_64_vnni::Avx512Vnni;
use super::x86_64_vnni_finish::mask;
use std::arch::x86_64::*;

/// How many steps of the depth a panel is fetched ahead. Panels lie one after the other, so the end of one fetches the
/// next. Measured on Zen 5: 16 steps gain 2 %, 40 gain 4 %, 80 and 160 gain 5 % of ResNet-50.
const AHEAD: usize = 80;

impl Avx512Vnni {
    /// A tile of a float product: `rows` rows of `a`, `lda` apart, times a packed panel of `width` columns and `depth`
    /// elements: each element is one chain of fused multiply-adds, of which this is `part`, then its epilogue.
    #[expect(clippy::too_many_arguments, reason = "a tile is its operands, its epilogue and its place")]
    #[inline(always)]
    pub(super) fn f32_tile(
        self,
        a: &[f32],
        lda: usize,
        rows: usize,
        panel: &[f32],
        width: usize,
        depth: usize,
        part: Part,
        epilogue: Epilogue,
        out: &mut [f32],
        place: Place,
    ) {
        assert!(a.len() >= (rows - 1) * lda + depth && panel.len() >= width * depth);
        assert!(place.columns <= width, "the columns of a panel");
        assert_epilogue(&epilogue, place, out.len());
        place.assert_within(rows, out.len());
        macro_rules! call {
            ($($rows:literal)*) => {
                match (rows, width) {
                    // SAFETY: `self` proves the features; the lengths were just checked.
                    $(($rows, 32) => unsafe {
                        f32_tile::<$rows, 2>(a, lda, panel, depth, part, &epilogue, out, &place)
                    },)*
                    // SAFETY: likewise.
                    $(($rows, 16) => unsafe {
                        f32_tile::<$rows, 1>(a, lda, panel, depth, part, &epilogue, out, &place)
                    },)*
                    _ => unreachable!("a tile has 1 to 14 rows and 16 or 32 columns"),
                }
            };
        }
        call!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }

    /// One output row of a float depthwise convolution in a block of up to 32 channels: as
    /// [`Avx2::depthwise_row_f32`](super::x86_64::Avx2::depthwise_row_f32).
    #[expect(clippy::too_many_arguments, reason = "a row is its operands, its epilogue and its place")]
    pub(super) fn depthwise_row_f32(
        self,
        x: &[f32],
        taps: &[usize],
        step: usize,
        count: usize,
        weights: &[f32],
        epilogue: Epilogue,
        out: &mut [f32],
        place: Place,
    ) {
        let last = taps.iter().max().expect("a kernel has a tap") + (count - 1) * step;
        assert!(x.len() >= last + DEPTHWISE_CHANNELS && weights.len() == taps.len() * DEPTHWISE_CHANNELS);
        assert!(place.columns <= DEPTHWISE_CHANNELS);
        assert_epilogue(&epilogue, place, out.len());
        place.assert_within(count, out.len());
        let mut i = 0;
        while i < count {
            let (x, place) = (&x[i * step..], Place { at: place.at + i * place.stride, ..place });
            // SAFETY: `self` proves the features, and the lengths were just checked.
            i += unsafe {
                match count - i {
                    1 => pixels::<1>(x, taps, step, weights, epilogue, out, place),
                    2 => pixels::<2>(x, taps, step, weights, epilogue, out, place),
                    3 => pixels::<3>(x, taps, step, weights, epilogue, out, place),
                    4 | 8 => pixels::<4>(x, taps, step, weights, epilogue, out, place),
                    5 => pixels::<5>(x, taps, step, weights, epilogue, out, place),
                    6 => pixels::<6>(x, taps, step, weights, epilogue, out, place),
                    _ => pixels::<7>(x, taps, step, weights, epilogue, out, place),
                }
            };
        }
    }
}

/// # Safety
/// `a` holds `R` rows `lda` apart, `panel` `V * 16 * depth` elements, the bias the tile's channels, and `out` and the
/// residual the tile at `place`.
#[expect(clippy::too_many_arguments, reason = "a tile is its operands, its epilogue and its place")]
#[target_feature(enable = "avx512f")]
unsafe fn f32_tile<const R: usize, const V: usize>(
    a: &[f32],
    lda: usize,
    panel: &[f32],
    depth: usize,
    part: Part,
    epilogue: &Epilogue,
    out: &mut [f32],
    place: &Place,
) {
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    if !part.first {
        for r in 0..R {
            // SAFETY: the caller promises row `r` of the tile.
            acc[r] = unsafe { load(out, place.at + r * place.stride, place.columns) };
        }
    }
    let (a, b) = (a.as_ptr(), panel.as_ptr());
    for k in 0..depth {
        // SAFETY: `k < depth`, and the caller promises `R` rows and a panel of that depth.
        unsafe {
            let mut columns = [_mm512_setzero_ps(); V];
            for v in 0..V {
                columns[v] = _mm512_loadu_ps(b.add(k * V * 16 + v * 16));
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add((k + AHEAD) * V * 16 + v * 16).cast());
            }
            for r in 0..R {
                let value = _mm512_set1_ps(*a.add(r * lda + k));
                for v in 0..V {
                    acc[r][v] = _mm512_fmadd_ps(value, columns[v], acc[r][v]);
                }
            }
        }
    }
    let epilogue = if part.last { *epilogue } else { Epilogue::NONE };
    // SAFETY: the caller promises the tile and its epilogue.
    unsafe { store(acc, epilogue, out, *place) }
}

/// The epilogue of a float tile.
///
/// # Safety
/// `out` and the residual hold `R` rows at `place`, and the bias the tile's channels.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn store<const R: usize, const V: usize>(
    mut acc: [[__m512; V]; R],
    epilogue: Epilogue,
    out: &mut [f32],
    place: Place,
) {
    if let Some(bias) = epilogue.bias {
        // SAFETY: the caller promises the bias of the tile's channels.
        let bias = unsafe { load::<V>(bias, place.channel, place.columns) };
        for acc in &mut acc {
            for v in 0..V {
                acc[v] = _mm512_add_ps(acc[v], bias[v]);
            }
        }
    }
    let (lo, hi) = (_mm512_set1_ps(epilogue.lo), _mm512_set1_ps(epilogue.hi));
    for (r, mut acc) in acc.into_iter().enumerate() {
        let at = place.at + r * place.stride;
        if let Some(residual) = epilogue.residual {
            // SAFETY: the caller promises row `r` of the residual.
            let residual = unsafe { load::<V>(residual, at, place.columns) };
            for v in 0..V {
                acc[v] = _mm512_add_ps(acc[v], residual[v]);
            }
        }
        for v in 0..V {
            // The bound comes first: `maxps` and `minps` give the second operand where one is not a number and
            // where both are equal, as `clamp_f32` does.
            acc[v] = _mm512_min_ps(hi, _mm512_max_ps(lo, acc[v]));
            let to = out.as_mut_ptr().wrapping_add(at + v * 16);
            // SAFETY: the caller promises row `r` of the tile; the mask admits its columns only.
            unsafe { _mm512_mask_storeu_ps(to, mask(place.columns.saturating_sub(v * 16)), acc[v]) }
        }
    }
}

/// `columns` elements from `at` on; the lanes past them hold zeros.
///
/// # Safety
/// `x` holds `columns` (at most `V * 16`) elements at `at`.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load<const V: usize>(x: &[f32], at: usize, columns: usize) -> [__m512; V] {
    let mut y = [_mm512_setzero_ps(); V];
    for v in 0..V {
        let from = x.as_ptr().wrapping_add(at + v * 16);
        // SAFETY: the mask admits the elements that the caller promises.
        y[v] = unsafe { _mm512_maskz_loadu_ps(mask(columns.saturating_sub(v * 16)), from) };
    }
    y
}

/// `R` neighbouring pixels of [`Avx512Vnni::depthwise_row_f32`], so that a weight is loaded once for them; gives `R`.
///
/// # Safety
/// Every tap of each pixel has 32 elements of `x`, `weights` is `[taps.len(), 32]`, `out` and the residual hold `R` rows
/// at `place`, and the bias the block's channels.
#[target_feature(enable = "avx512f")]
unsafe fn pixels<const R: usize>(
    x: &[f32],
    taps: &[usize],
    step: usize,
    weights: &[f32],
    epilogue: Epilogue,
    out: &mut [f32],
    place: Place,
) -> usize {
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    for (t, &tap) in taps.iter().enumerate() {
        for v in 0..2 {
            // SAFETY: `t` is a tap, and the caller promises 32 elements and 32 weights of it.
            unsafe {
                let weight = _mm512_loadu_ps(weights.as_ptr().add(t * DEPTHWISE_CHANNELS + v * 16));
                for r in 0..R {
                    let value = _mm512_loadu_ps(x.as_ptr().add(tap + r * step + v * 16));
                    acc[r][v] = _mm512_fmadd_ps(value, weight, acc[r][v]);
                }
            }
        }
    }
    // SAFETY: the caller promises the rows and the epilogue.
    unsafe { store(acc, epilogue, out, place) }
    R
}
