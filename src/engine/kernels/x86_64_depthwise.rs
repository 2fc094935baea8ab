//! AVX2: the depthwise row of square kernels. Knows packed slices only; packing and walking are the callers'.
//!
//! Bytes are widened to pairs of 16-bit numbers once a row, into scratch, and not once an output: a column of pixels
//! serves as many outputs as the kernel is wide.
#![expect(unsafe_code, reason = "vector loads and stores take pointers, and target features must be proven")]
#![expect(clippy::needless_range_loop, reason = "indices of small arrays unroll into registers")]

use super::IntOutput;
use super::depthwise_columns::{NOWHERE, Pixels, column_words, group_count};
use super::halo::BLOCK;
use super::tiles::Place;
use super::x86_64::{Avx2, interleaved, natural_order};
use super::x86_64_finish::{Codes, are_plain, bias_lanes, lanes};
use std::arch::x86_64::*;

/// Elements that 32 channels of two pixels take as words.
const WORDS: usize = 2 * BLOCK;

impl Avx2 {
    /// Output rows, `line_len` apart, of a depthwise convolution with a `size` x `size` kernel in a block of 32 channels.
    ///
    /// Kernel line `i` of output row `l` is the one that begins at `starts[l * size + i]`, or [`NOWHERE`]. `weights` are the
    /// groups of [`columns_of`](super::depthwise_columns::columns_of), and `words` is scratch of [`column_words`] elements.
    #[expect(clippy::too_many_arguments, reason = "rows are their operands and their place")]
    pub(super) fn depthwise_columns(
        self,
        pixels: Pixels,
        starts: &[usize],
        (size, stride): (usize, usize),
        count: usize,
        weights: &[i16],
        words: &mut [i16],
        out: &mut IntOutput,
        place: Place,
        line_len: usize,
    ) {
        let last = starts.iter().filter(|start| **start != NOWHERE).max();
        let end = last.map_or(0, |last| last + (pixels.width - 1) * pixels.pixel + BLOCK);
        assert!(pixels.x.len() >= end && words.len() >= column_words(size, stride, count));
        assert!(weights.len() == group_count(size) * WORDS && place.columns == BLOCK);
        Place { at: place.at + (starts.len() / size - 1) * line_len, ..place }
            .assert_within(count, out.len());
        let rows = Rows { pixels, starts, size, stride, count, weights, place, line_len };
        // SAFETY: `self` proves AVX2 and FMA, and the lengths were just checked.
        unsafe {
            match (size, stride) {
                (3, 1) => rows_of::<3, 1>(rows, words, out),
                (3, 2) => rows_of::<3, 2>(rows, words, out),
                (5, 1) => rows_of::<5, 1>(rows, words, out),
                (5, 2) => rows_of::<5, 2>(rows, words, out),
                _ => rows_of::<0, 0>(rows, words, out),
            }
        }
    }
}

/// See [`Avx2::depthwise_columns`].
#[derive(Clone, Copy)]
struct Rows<'a> {
    pixels: Pixels<'a>,
    starts: &'a [usize],
    size: usize,
    stride: usize,
    count: usize,
    weights: &'a [i16],
    place: Place,
    line_len: usize,
}

/// `SIZE` and `STRIDE` are 0 if they are known at run time only.
///
/// # Safety
/// The lines, the words, the weights and the output have the elements of [`Avx2::depthwise_columns`].
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_of<const SIZE: usize, const STRIDE: usize>(
    rows: Rows,
    words: &mut [i16],
    out: &mut IntOutput,
) {
    let Rows { pixels, starts, size, stride, count, weights, place, line_len } = rows;
    let width = (count - 1) * stride + size;
    for (line, starts) in starts.chunks_exact(size).enumerate() {
        let place = Place { at: place.at + line * line_len, ..place };
        // SAFETY: the caller promises it.
        unsafe {
            widen(pixels, starts, width, words);
            outputs::<SIZE, STRIDE>(size, stride, count, weights, words, out, place);
        }
    }
}

/// Writes the words of `width` columns: for every two lines those of each column, then, if a line is left, those of
/// every two columns of it.
///
/// # Safety
/// Each line has its pixels, and `words` what [`column_words`] says.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn widen(pixels: Pixels, lines: &[usize], width: usize, words: &mut [i16]) {
    let Pixels { x, left, pad, pixel, .. } = pixels;
    let inside = left.min(width)..(left + pixels.width).min(width);
    let padding = [pad; BLOCK];
    // Where a line begins, and how far it is from pixel to pixel.
    let line = |start: usize| match start {
        NOWHERE => (padding.as_ptr(), 0),
        _ => (x.as_ptr().wrapping_add(start), pixel),
    };
    let mut to = words.as_mut_ptr();
    let (pairs, rest) = lines.as_chunks::<2>();
    // SAFETY: the caller promises the elements read and written.
    unsafe {
        for &[a, b] in pairs {
            let ((mut a, step_a), (mut b, step_b)) = (line(a), line(b));
            to = fill(inside.start, pad, to);
            for _ in inside.clone() {
                widen_pair(a, b, to);
                (a, b, to) = (a.wrapping_add(step_a), b.wrapping_add(step_b), to.add(WORDS));
            }
            to = fill(width - inside.end, pad, to);
        }
        for &start in rest {
            let (first, step) = line(start);
            let at = |column: usize| match inside.contains(&column) {
                true => first.wrapping_add((column - inside.start) * step),
                false => padding.as_ptr(),
            };
            for column in (0..width).step_by(2) {
                // The partner of a last column has zeros for weights.
                widen_pair(at(column), at((column + 1).min(width - 1)), to);
                to = to.add(WORDS);
            }
        }
    }
}

/// Writes the words of `columns` columns of padding, and gives what is behind them.
///
/// # Safety
/// `to` leads to their elements.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn fill(columns: usize, pad: u8, to: *mut i16) -> *mut i16 {
    for i in 0..columns * 4 {
        // SAFETY: the caller promises the elements.
        unsafe { _mm256_storeu_si256(to.add(i * 16).cast(), _mm256_set1_epi16(i16::from(pad))) }
    }
    to.wrapping_add(columns * WORDS)
}

/// The words of two pixels: within 128-bit lanes bytes are interleaved, then widened with zeros.
///
/// # Safety
/// `a` and `b` lead to 32 bytes, `to` to [`WORDS`] elements.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn widen_pair(a: *const u8, b: *const u8, to: *mut i16) {
    let zero = _mm256_setzero_si256();
    // SAFETY: the caller promises the elements.
    unsafe {
        let (a, b) = (_mm256_loadu_si256(a.cast()), _mm256_loadu_si256(b.cast()));
        let (low, high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
        let words = [
            _mm256_unpacklo_epi8(low, zero),
            _mm256_unpackhi_epi8(low, zero),
            _mm256_unpacklo_epi8(high, zero),
            _mm256_unpackhi_epi8(high, zero),
        ];
        for v in 0..4 {
            _mm256_storeu_si256(to.add(v * 16).cast(), words[v]);
        }
    }
}

/// All outputs of a row from its words. `SIZE` and `STRIDE` are 0 if they are known at run time only.
///
/// # Safety
/// `weights` and `words` are as [`Avx2::depthwise_columns`] says, and `out` holds `count` rows at `place`.
#[target_feature(enable = "avx2,fma")]
unsafe fn outputs<const SIZE: usize, const STRIDE: usize>(
    size: usize,
    stride: usize,
    count: usize,
    weights: &[i16],
    words: &[i16],
    out: &mut IntOutput,
    place: Place,
) {
    let (size, stride) = if SIZE == 0 { (size, stride) } else { (SIZE, STRIDE) };
    let row = ((count - 1) * stride + size) * WORDS;
    let (words, weights) = (words.as_ptr(), weights.as_ptr());
    let start = interleaved(bias_lanes::<4>(out, place));
    if let IntOutput::U8(out, requant) = out {
        let factor = interleaved(lanes::<f32, 4>(requant.multiplier, place)).map(|f| _mm256_castsi256_ps(f));
        let row = Row { size, stride, row, weights, words, start, factor };
        let to = out.as_mut_ptr().wrapping_add(place.at);
        // SAFETY: the caller promises words and weights of all outputs, and their place.
        unsafe {
            return match are_plain(requant, factor) {
                true => codes::<SIZE, STRIDE, true>(row, count, Codes::new(requant), to, place.stride),
                false => codes::<SIZE, STRIDE, false>(row, count, Codes::new(requant), to, place.stride),
            };
        }
    }
    if let IntOutput::F32(out, dequant) = out {
        let factor = interleaved(lanes::<f32, 4>(dequant.scale, place)).map(|f| _mm256_castsi256_ps(f));
        let row = Row { size, stride, row, weights, words, start, factor };
        // SAFETY: likewise.
        return unsafe {
            reals::<SIZE, STRIDE>(row, count, out.as_mut_ptr().wrapping_add(place.at), place.stride)
        };
    }
    for i in 0..count {
        // SAFETY: likewise.
        let [acc] = unsafe {
            sums::<1, SIZE, STRIDE>(size, stride, i, row, weights, words, [_mm256_setzero_si256(); 4])
        };
        out.put(place.at + i * place.stride, place.channel, &natural_order(acc));
    }
}

/// What the codes of a row are made of: see [`sums`].
struct Row {
    size: usize,
    stride: usize,
    row: usize,
    weights: *const i16,
    words: *const i16,
    start: [__m256i; 4],
    factor: [__m256; 4],
}

/// # Safety
/// Like [`outputs`], `to` leading to the first of the row's outputs, `apart` from each other.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn codes<const SIZE: usize, const STRIDE: usize, const PLAIN: bool>(
    of: Row,
    count: usize,
    epilogue: Codes<PLAIN>,
    to: *mut u8,
    apart: usize,
) {
    let Row { size, stride, row, weights, words, start, factor } = of;
    let mut i = 0;
    while i < count {
        // An odd last output is computed together with its neighbour again.
        let first = if i + 1 < count { i } else { i.saturating_sub(1) };
        // SAFETY: the caller promises it.
        unsafe {
            if count == 1 {
                let [acc] = sums::<1, SIZE, STRIDE>(size, stride, first, row, weights, words, start);
                let q = [0, 1, 2, 3].map(|v| epilogue.rounded(acc[v], factor[v]));
                _mm256_storeu_si256(to.cast(), epilogue.bytes(q));
            } else {
                let acc = sums::<2, SIZE, STRIDE>(size, stride, first, row, weights, words, start);
                for r in 0..2 {
                    let q = [0, 1, 2, 3].map(|v| epilogue.rounded(acc[r][v], factor[v]));
                    _mm256_storeu_si256(to.add((first + r) * apart).cast(), epilogue.bytes(q));
                }
            }
        }
        i += 2;
    }
}

/// As [`codes`], of the reals that the sums stand for.
///
/// # Safety
/// Likewise.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn reals<const SIZE: usize, const STRIDE: usize>(of: Row, count: usize, to: *mut f32, apart: usize) {
    let Row { size, stride, row, weights, words, start, factor } = of;
    for i in (0..count).step_by(2) {
        // An odd last output is computed together with its neighbour again, or with itself.
        let (first, last) = (if i + 1 < count { i } else { i.saturating_sub(1) }, (count - 1).min(1));
        // SAFETY: the caller promises it.
        unsafe {
            let acc = match last {
                0 => [sums::<1, SIZE, STRIDE>(size, stride, first, row, weights, words, start)[0]; 2],
                _ => sums::<2, SIZE, STRIDE>(size, stride, first, row, weights, words, start),
            };
            for r in 0..=last {
                let to = to.add((first + r) * apart);
                for v in 0..4 {
                    let y = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[r][v]), factor[v]);
                    // Half of a register is of the first 16 channels: see [`interleaved`].
                    _mm_storeu_ps(to.add(v * 4), _mm256_castps256_ps128(y));
                    _mm_storeu_ps(to.add(16 + v * 4), _mm256_extractf128_ps::<1>(y));
                }
            }
        }
    }
}

/// Sums of `R` neighbouring outputs from `first` on, begun at `start`, in the order of [`interleaved`]. The words of a
/// pair of lines are `row` elements.
///
/// # Safety
/// `words` and `weights` lead to those of the outputs.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn sums<const R: usize, const SIZE: usize, const STRIDE: usize>(
    size: usize,
    stride: usize,
    first: usize,
    row: usize,
    weights: *const i16,
    words: *const i16,
    start: [__m256i; 4],
) -> [[__m256i; 4]; R] {
    let (size, stride) = if SIZE == 0 { (size, stride) } else { (SIZE, STRIDE) };
    let mut acc = [start; R];
    // One register of channels after the other: the sums of all would not leave room for weights and products.
    for v in 0..4 {
        // SAFETY: the caller promises the words and weights of `size / 2` pairs of lines, and of the last line's pairs
        // of columns for outputs that begin at an even and at an odd column.
        unsafe {
            let (weights, words) = (weights.add(v * 16), words.add(v * 16));
            for p in 0..size / 2 {
                for j in 0..size {
                    let weight = _mm256_load_si256(weights.add((p * size + j) * WORDS).cast());
                    for r in 0..R {
                        let from = words.add(p * row + ((first + r) * stride + j) * WORDS);
                        let products = _mm256_madd_epi16(weight, _mm256_load_si256(from.cast()));
                        acc[r][v] = _mm256_add_epi32(acc[r][v], products);
                    }
                }
            }
            if !size.is_multiple_of(2) {
                let (weights, words) = (weights.add(size / 2 * size * WORDS), words.add(size / 2 * row));
                let pairs = size / 2 + 1;
                for r in 0..R {
                    let column = (first + r) * stride;
                    let weights = weights.add(column % 2 * pairs * WORDS);
                    for j in 0..pairs {
                        let weight = _mm256_load_si256(weights.add(j * WORDS).cast());
                        let from = words.add((column / 2 + j) * WORDS);
                        let products = _mm256_madd_epi16(weight, _mm256_load_si256(from.cast()));
                        acc[r][v] = _mm256_add_epi32(acc[r][v], products);
                    }
                }
            }
        }
    }
    acc
}
