//! AVX2 and FMA: the register tile of the float product, the depthwise row, and a way to compile plain loops for
//! this instruction set. Knows packed slices only; packing and walking are the callers'.
#![expect(unsafe_code, reason = "vector loads and stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::Epilogue;
use super::IntOutput;
use super::tiles::{Part, Place};
use super::x86_64_finish::{self, Codes, store_floats};
use super::x86_64_tile::Tile;
use std::arch::x86_64::*;

/// Proof that this processor has AVX2 and FMA: only [`Avx2::detect`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

/// Channels that the depthwise row treats at once.
pub(super) const DEPTHWISE_CHANNELS: usize = 32;

impl Avx2 {
    /// The token, if the processor has what it stands for.
    pub fn detect() -> Option<Avx2> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }

    /// Runs `f` compiled for AVX2 and FMA: what is inlined into `f` is vectorized for them. Rust never fuses or
    /// reorders float operations on its own, so the results are those of any other instruction set.
    #[inline(always)]
    pub(super) fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma")]
        fn with_avx2<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { with_avx2(f) }
    }

    /// A tile of a float product: `rows` rows of `a`, `lda` apart, times a packed panel of `width` columns and `depth`
    /// elements, to `out`: each element is one chain of fused multiply-adds from 0.0, then `+ bias`, then the clamp.
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
        assert!(panel.as_ptr().addr().is_multiple_of(32), "panels are aligned");
        place.assert_within(rows, out.len());
        // SAFETY: `self` proves AVX2 and FMA; the lengths and the alignment were just checked.
        unsafe {
            match (rows, width) {
                (6, 16) => f32_tile::<6, 2>(a, lda, panel, depth, part, epilogue, out, place),
                (5, 16) => f32_tile::<5, 2>(a, lda, panel, depth, part, epilogue, out, place),
                (4, 16) => f32_tile::<4, 2>(a, lda, panel, depth, part, epilogue, out, place),
                (3, 16) => f32_tile::<3, 2>(a, lda, panel, depth, part, epilogue, out, place),
                (2, 16) => f32_tile::<2, 2>(a, lda, panel, depth, part, epilogue, out, place),
                (1, 16) => f32_tile::<1, 2>(a, lda, panel, depth, part, epilogue, out, place),
                (6, 8) => f32_tile::<6, 1>(a, lda, panel, depth, part, epilogue, out, place),
                (5, 8) => f32_tile::<5, 1>(a, lda, panel, depth, part, epilogue, out, place),
                (4, 8) => f32_tile::<4, 1>(a, lda, panel, depth, part, epilogue, out, place),
                (3, 8) => f32_tile::<3, 1>(a, lda, panel, depth, part, epilogue, out, place),
                (2, 8) => f32_tile::<2, 1>(a, lda, panel, depth, part, epilogue, out, place),
                (1, 8) => f32_tile::<1, 1>(a, lda, panel, depth, part, epilogue, out, place),
                _ => unreachable!("a tile has 1 to 6 rows and 8 or 16 columns"),
            }
        }
    }

    /// `x[i] = table[x[i]]` for a multiple of 32 codes.
    pub(super) fn apply_table(self, x: &mut [u8], table: &[u8; 256]) {
        assert!(x.len().is_multiple_of(32));
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { apply_table(x, table) }
    }

    /// One output row of a float depthwise convolution in a block of up to 32 channels, like
    /// [`Avx2::depthwise_row`]: each element one chain of fused multiply-adds from 0.0, then `+ bias`, then the clamp.
    /// `weights` is `[taps.len(), 32]`.
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
        for i in (0..count).step_by(2) {
            let place = Place { at: place.at + i * place.stride, ..place };
            // SAFETY: `self` proves AVX2 and FMA, and the lengths were just checked.
            unsafe {
                if i + 1 < count {
                    depthwise_pixels_f32::<2>(&x[i * step..], taps, step, weights, epilogue, out, place);
                } else {
                    depthwise_pixels_f32::<1>(&x[i * step..], taps, step, weights, epilogue, out, place);
                }
            }
        }
    }

    /// One output row of a depthwise convolution in a block of up to 32 channels.
    ///
    /// `x` is scratch with 32 elements to spare; output `i` of `count` reads `x[taps[t] + i * step ..]`. `taps` has
    /// an even length, and `weights` is `[taps.len() / 2, 4, 8, 2]`: pairs of taps in the order in which the
    /// bytes of 32 channels are interleaved.
    #[expect(clippy::too_many_arguments, reason = "a row is its operands and its place")]
    pub(super) fn depthwise_row(
        self,
        x: &[u8],
        taps: &[usize],
        step: usize,
        count: usize,
        weights: &[i16],
        out: &mut IntOutput,
        place: Place,
    ) {
        let last = taps.iter().max().expect("a kernel has a tap") + (count - 1) * step;
        assert!(x.len() >= last + DEPTHWISE_CHANNELS && taps.len().is_multiple_of(2));
        assert!(weights.len() == taps.len() / 2 * 64 && place.columns <= DEPTHWISE_CHANNELS);
        place.assert_within(count, out.len());
        // SAFETY: `self` proves AVX2 and FMA, and the lengths were just checked.
        unsafe {
            match taps.len() {
                10 => depthwise_row::<5>(x, taps, step, count, weights, out, place),
                26 => depthwise_row::<13>(x, taps, step, count, weights, out, place),
                _ => depthwise_row::<0>(x, taps, step, count, weights, out, place),
            }
        }
    }
}

/// `columns` elements from `at` on; the lanes past them hold zeros.
///
/// # Safety
/// `x` holds `columns` (at most `V * 8`) elements at `at`.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn load_floats<const V: usize>(x: &[f32], at: usize, columns: usize) -> [__m256; V] {
    let mut row = [[0f32; 8]; V];
    let mut y = [_mm256_setzero_ps(); V];
    // SAFETY: the caller promises the elements read; a whole tile reads `V * 8`, another `columns`.
    unsafe {
        let mut from = x.as_ptr().add(at);
        if columns < V * 8 {
            std::ptr::copy_nonoverlapping(from, row.as_mut_ptr().cast(), columns);
            from = row.as_ptr().cast();
        }
        for v in 0..V {
            y[v] = _mm256_loadu_ps(from.add(v * 8));
        }
    }
    y
}

/// Asserts that an epilogue has what the tile at `place` of an output of `len` elements needs.
#[inline(always)]
pub(super) fn assert_epilogue(epilogue: &Epilogue, place: Place, len: usize) {
    assert!(epilogue.bias.is_none_or(|bias| bias.len() >= place.channel + place.columns), "a bias a channel");
    assert!(
        epilogue.residual.is_none_or(|residual| residual.len() == len),
        "a residual of the output's shape"
    );
    assert!(epilogue.activation.is_none(), "activations are for whole rows");
}

/// # Safety
/// `a` holds `R` rows `lda` apart, `panel` `V * 8 * depth` elements, the bias the tile's channels, and `out` and the
/// residual the tile at `place`.
#[expect(clippy::too_many_arguments, reason = "a tile is its operands, its epilogue and its place")]
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_tile<const R: usize, const V: usize>(
    a: &[f32],
    lda: usize,
    panel: &[f32],
    depth: usize,
    part: Part,
    epilogue: Epilogue,
    out: &mut [f32],
    place: Place,
) {
    let mut acc = [[_mm256_setzero_ps(); V]; R];
    if !part.first {
        for r in 0..R {
            // SAFETY: the caller promises row `r` of the tile.
            acc[r] = unsafe { load_floats(out, place.at + r * place.stride, place.columns) };
        }
    }
    let (a, b) = (a.as_ptr(), panel.as_ptr());
    if V == 2 {
        let next = std::ptr::null();
        let tile = Tile { a, row: lda, run: 0, runs: 1, steps: depth, panel: b, next, pace: 0 };
        // SAFETY: the caller promises `R` rows and a panel of that depth.
        unsafe { tile.fuse(&mut acc) };
    } else {
        for k in 0..depth {
            // SAFETY: `k < depth`, and the caller promises `R` rows and a panel of that depth.
            unsafe {
                let mut columns = [_mm256_setzero_ps(); V];
                for v in 0..V {
                    columns[v] = _mm256_load_ps(b.add(k * V * 8 + v * 8));
                }
                for r in 0..R {
                    let value = _mm256_set1_ps(*a.add(r * lda + k));
                    for v in 0..V {
                        acc[r][v] = _mm256_fmadd_ps(value, columns[v], acc[r][v]);
                    }
                }
            }
        }
    }
    let epilogue = if part.last { epilogue } else { Epilogue::NONE };
    // SAFETY: the caller promises the tile and its epilogue.
    unsafe { store_f32(acc, epilogue, out, place) }
}

/// The epilogue of a float tile.
///
/// # Safety
/// `out` and the residual hold `R` rows at `place`, and the bias the tile's channels.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn store_f32<const R: usize, const V: usize>(
    mut acc: [[__m256; V]; R],
    epilogue: Epilogue,
    out: &mut [f32],
    place: Place,
) {
    if let Some(bias) = epilogue.bias {
        let mut row = [[0f32; 8]; V];
        row.as_flattened_mut()[..place.columns].copy_from_slice(&bias[place.channel..][..place.columns]);
        for v in 0..V {
            // SAFETY: a row of `row` is eight floats.
            let bias = unsafe { _mm256_loadu_ps(row[v].as_ptr()) };
            for acc in &mut acc {
                acc[v] = _mm256_add_ps(acc[v], bias);
            }
        }
    }
    let (lo, hi) = (_mm256_set1_ps(epilogue.lo), _mm256_set1_ps(epilogue.hi));
    for (r, mut acc) in acc.into_iter().enumerate() {
        let at = place.at + r * place.stride;
        if let Some(residual) = epilogue.residual {
            // SAFETY: the caller promises row `r` of the residual.
            let residual = unsafe { load_floats::<V>(residual, at, place.columns) };
            for v in 0..V {
                acc[v] = _mm256_add_ps(acc[v], residual[v]);
            }
        }
        for v in 0..V {
            // The bound comes first: `maxps` and `minps` give the second operand where one is not a number and
            // where both are equal, as `clamp_f32` does.
            acc[v] = _mm256_min_ps(hi, _mm256_max_ps(lo, acc[v]));
        }
        // SAFETY: the caller promises row `r` of the tile.
        unsafe { store_floats::<V>(acc, out, at, place.columns) }
    }
}

/// `R` neighbouring pixels of [`Avx2::depthwise_row_f32`], so that a weight is loaded once for them.
///
/// # Safety
/// Every tap of both pixels has 32 elements of `x`, `weights` is `[taps.len(), 32]`, `out` holds `R` rows at `place`,
/// and the bias the block's channels.
#[target_feature(enable = "avx2,fma")]
unsafe fn depthwise_pixels_f32<const R: usize>(
    x: &[f32],
    taps: &[usize],
    step: usize,
    weights: &[f32],
    epilogue: Epilogue,
    out: &mut [f32],
    place: Place,
) {
    let mut acc = [[_mm256_setzero_ps(); 4]; R];
    for (t, &tap) in taps.iter().enumerate() {
        for v in 0..4 {
            // SAFETY: `t` is a tap, and the caller promises 32 elements and 32 weights of it.
            unsafe {
                let weight = _mm256_loadu_ps(weights.as_ptr().add(t * DEPTHWISE_CHANNELS + v * 8));
                for r in 0..R {
                    let value = _mm256_loadu_ps(x.as_ptr().add(tap + r * step + v * 8));
                    acc[r][v] = _mm256_fmadd_ps(value, weight, acc[r][v]);
                }
            }
        }
    }
    // SAFETY: the caller promises the rows and the bias.
    unsafe { store_f32(acc, epilogue, out, place) }
}

/// See [`Avx2::apply_table`]. A byte shuffle looks up 16 entries; the distance of a code from the row in question
/// has its top bit set unless the row is the right one, and then the shuffle gives 0.
#[target_feature(enable = "avx2")]
fn apply_table(x: &mut [u8], table: &[u8; 256]) {
    for chunk in x.as_chunks_mut::<32>().0 {
        // SAFETY: a chunk is 32 bytes.
        let codes = unsafe { _mm256_loadu_si256(chunk.as_ptr().cast()) };
        let mut values = _mm256_setzero_si256();
        for (i, row) in table.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: a row is 16 bytes.
            let row = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(row.as_ptr().cast()) });
            let distance = _mm256_xor_si256(codes, _mm256_set1_epi8((i * 16) as u8 as i8));
            let index = _mm256_adds_epu8(distance, _mm256_set1_epi8(0x70));
            values = _mm256_or_si256(values, _mm256_shuffle_epi8(row, index));
        }
        // SAFETY: a chunk is 32 bytes.
        unsafe { _mm256_storeu_si256(chunk.as_mut_ptr().cast(), values) }
    }
}

/// See [`Avx2::depthwise_row`]. `P` pairs of taps, or 0 if that is known at run time only.
///
/// Bytes of two taps are interleaved, then widened with zeros, within 128-bit lanes: `vpmovzxbw` would cross
/// them at half the rate. The four registers hold channels 0-3 16-19, 4-7 20-23, 8-11 24-27 and 12-15 28-31, and
/// the packs of the epilogue bring them back to order without a shuffle.
///
/// # Safety
/// Every tap of every output has 32 elements of `x`, `weights` is `[taps.len() / 2, 4, 8, 2]`, and `out` holds
/// `count` rows at `place`.
#[target_feature(enable = "avx2,fma")]
unsafe fn depthwise_row<const P: usize>(
    x: &[u8],
    taps: &[usize],
    step: usize,
    count: usize,
    weights: &[i16],
    out: &mut IntOutput,
    place: Place,
) {
    let pairs = if P == 0 { taps.len() / 2 } else { P };
    let weight = weights.as_ptr();
    finish_depthwise(
        count,
        out,
        place,
        // SAFETY: the caller promises the elements of every tap of the outputs asked for, and the weights.
        |i, start| unsafe { pair_sums(x.as_ptr().add(i * step), step, taps, pairs, weight, start) },
        // SAFETY: likewise.
        |i, start| unsafe { pair_sums(x.as_ptr().add(i * step), step, taps, pairs, weight, start) },
    )
}

/// Sums of `R` neighbouring outputs over pairs of taps, so that a weight is loaded once for them.
///
/// # Safety
/// Every tap has 32 elements from each of `R` places `step` apart from `x` on, and `weight` leads to `[pairs, 4, 8, 2]`.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn pair_sums<const R: usize>(
    x: *const u8,
    step: usize,
    taps: &[usize],
    pairs: usize,
    weight: *const i16,
    start: [__m256i; 4],
) -> [[__m256i; 4]; R] {
    let zero = _mm256_setzero_si256();
    let mut acc = [start; R];
    for p in 0..pairs {
        for r in 0..R {
            // SAFETY: `p` is a pair of taps; the caller promises their elements and weights.
            unsafe {
                let a = _mm256_loadu_si256(x.add(r * step + *taps.get_unchecked(2 * p)).cast());
                let b = _mm256_loadu_si256(x.add(r * step + *taps.get_unchecked(2 * p + 1)).cast());
                let (low, high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
                let words = [
                    _mm256_unpacklo_epi8(low, zero),
                    _mm256_unpackhi_epi8(low, zero),
                    _mm256_unpacklo_epi8(high, zero),
                    _mm256_unpackhi_epi8(high, zero),
                ];
                for v in 0..4 {
                    let w = _mm256_loadu_si256(weight.add(p * 64 + v * 16).cast());
                    acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(words[v], w));
                }
            }
        }
    }
    acc
}

/// Defines `finish_depthwise` for some target features, which have to be those of the closures it gets: a function of
/// fewer features cannot take in one of more, and a call for every two outputs takes as long as the sums.
macro_rules! define_finish_depthwise {
    ($features:literal) => {
        /// Turns sums of a depthwise row into its `count` outputs. `two` and `one` give the sums of outputs `i..`, in the order
        /// of [`interleaved`], begun at the values they get.
        #[target_feature(enable = $features)]
        #[inline]
        fn finish_depthwise(
            count: usize,
            out: &mut IntOutput,
            place: Place,
            two: impl Fn(usize, [__m256i; 4]) -> [[__m256i; 4]; 2],
            one: impl Fn(usize, [__m256i; 4]) -> [[__m256i; 4]; 1],
        ) {
            let (out, requant) = match out {
                IntOutput::U8(out, requant) => (out, requant),
                _ => {
                    for i in 0..count {
                        let [acc] = one(i, [_mm256_setzero_si256(); 4]);
                        let row = natural_order(acc);
                        out.put(place.at + i * place.stride, place.channel, &row[..place.columns]);
                    }
                    return;
                }
            };
            let epilogue = Codes::<false>::new(requant);
            let start = interleaved(x86_64_finish::lanes::<i32, 4>(requant.bias, place));
            let factor = interleaved(x86_64_finish::lanes::<f32, 4>(requant.multiplier, place));
            let mut put = |i: usize, acc: [__m256i; 4]| {
                let q = [0, 1, 2, 3].map(|v| epilogue.rounded(acc[v], _mm256_castsi256_ps(factor[v])));
                let to = &mut out[place.at + i * place.stride..][..place.columns];
                let mut codes = [0u8; DEPTHWISE_CHANNELS];
                let whole = place.columns == DEPTHWISE_CHANNELS;
                let at = if whole { to.as_mut_ptr() } else { codes.as_mut_ptr() };
                // SAFETY: the slice is 32 elements long if it is `whole`, and so is the array.
                unsafe { _mm256_storeu_si256(at.cast(), epilogue.bytes(q)) }
                if !whole {
                    to.copy_from_slice(&codes[..place.columns]);
                }
            };
            for i in (0..count / 2 * 2).step_by(2) {
                let [first, second] = two(i, start);
                put(i, first);
                put(i + 1, second);
            }
            if !count.is_multiple_of(2) {
                let [last] = one(count - 1, start);
                put(count - 1, last);
            }
        }
    };
}
pub(super) use define_finish_depthwise;

define_finish_depthwise!("avx2,fma");

/// 32 values in the order of the depthwise accumulators.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn interleaved(natural: [__m256i; 4]) -> [__m256i; 4] {
    let [a, b, c, d] = natural;
    [
        _mm256_permute2x128_si256::<0x20>(a, c),
        _mm256_permute2x128_si256::<0x31>(a, c),
        _mm256_permute2x128_si256::<0x20>(b, d),
        _mm256_permute2x128_si256::<0x31>(b, d),
    ]
}

/// The depthwise accumulators as 32 channels in order.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn natural_order(acc: [__m256i; 4]) -> [i32; 32] {
    let mut row = [0i32; 32];
    for (v, acc) in acc.into_iter().enumerate() {
        // SAFETY: both halves lie within the 32 elements: `v < 4`.
        unsafe {
            _mm_storeu_si128(row.as_mut_ptr().add(v * 4).cast(), _mm256_castsi256_si128(acc));
            _mm_storeu_si128(row.as_mut_ptr().add(16 + v * 4).cast(), _mm256_extracti128_si256::<1>(acc));
        }
    }
    row
}
