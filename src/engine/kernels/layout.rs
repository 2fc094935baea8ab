//! Between channels-first (ONNX) and channels-last (these kernels), for images and for weights. Knows slices only.

use super::isa::Isa;
use super::parallel::{parts, split_rows};
use std::ops::Range;

/// Rows and columns of a block: its lines on both sides fit the first-level cache.
const BLOCK: usize = 32;

/// `x`, `[batch, channels, pixels]`, to `out`, `[batch, pixels, channels]`, with up to `threads` threads. The same on every
/// instruction set.
pub fn nchw_to_nhwc<T: Copy + Send + Sync>(
    isa: Isa,
    x: &[T],
    batch: usize,
    channels: usize,
    pixels: usize,
    out: &mut [T],
    threads: usize,
) {
    transpose(isa, x, batch, channels, pixels, out, threads);
}

/// `x`, `[batch, pixels, channels]`, to `out`, `[batch, channels, pixels]`, with up to `threads` threads. The same on every
/// instruction set.
pub fn nhwc_to_nchw<T: Copy + Send + Sync>(
    isa: Isa,
    x: &[T],
    batch: usize,
    channels: usize,
    pixels: usize,
    out: &mut [T],
    threads: usize,
) {
    transpose(isa, x, batch, pixels, channels, out, threads);
}

/// `x`, `[batch, rows, columns]`, to `out`, `[batch, columns, rows]`, with up to `threads` threads. The same on every
/// instruction set.
pub(in crate::engine) fn transpose<T: Copy + Send + Sync>(
    isa: Isa,
    x: &[T],
    batch: usize,
    rows: usize,
    columns: usize,
    out: &mut [T],
    threads: usize,
) {
    let len = batch * rows * columns;
    assert_eq!((x.len(), out.len()), (len, len), "both [batch, rows, columns] in some order");
    if len == 0 {
        return;
    }
    if rows == 1 || columns == 1 {
        return out.copy_from_slice(x);
    }
    if rows == 3 {
        return interleave(isa, x, columns, out, threads);
    }
    let parts = parts(threads, len);
    split_rows(out, 0..batch * columns, rows, 1, parts, &|range: Range<usize>, out: &mut [T]| {
        let mut start = range.start;
        while start < range.end {
            let image = start / columns;
            let end = (start / BLOCK * BLOCK + BLOCK).min((image + 1) * columns).min(range.end);
            let x = &x[image * rows * columns..][..rows * columns];
            let first = start - image * columns;
            let out = &mut out[(start - range.start) * rows..(end - range.start) * rows];
            for row in (0..rows).step_by(BLOCK) {
                let x = &x[row * columns..(row + BLOCK).min(rows) * columns];
                for (j, out) in out.chunks_exact_mut(rows).enumerate() {
                    let column = x.chunks_exact(columns).map(|row| row[first + j]);
                    out[row..].iter_mut().zip(column).for_each(|(y, x)| *y = x);
                }
            }
            start = end;
        }
    });
}

/// Three planes of `columns` elements, [`transpose`]d: an image on its way in, whose rows are too short for blocks.
fn interleave<T: Copy + Send + Sync>(isa: Isa, x: &[T], columns: usize, out: &mut [T], threads: usize) {
    let parts = parts(threads, out.len() / 16);
    split_rows(out, 0..x.len() / 3, 3, 1, parts, &|range: Range<usize>, mut out: &mut [T]| {
        let mut start = range.start;
        while start < range.end {
            let (image, first) = (start / columns, start % columns);
            let count = (columns - first).min(range.end - start);
            let plane = |i: usize| &x[(image * 3 + i) * columns + first..][..count];
            let (to, rest) = out.split_at_mut(count * 3);
            let (a, b, c) = (plane(0), plane(1), plane(2));
            // Compiled for shuffles of whole vectors, which the baseline does not have: a quarter of the time.
            isa.vectorize(
                #[inline(always)]
                || {
                    for (((y, &a), &b), &c) in to.as_chunks_mut::<3>().0.iter_mut().zip(a).zip(b).zip(c) {
                        *y = [a, b, c];
                    }
                },
            );
            (out, start) = (rest, start + count);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    #[test]
    fn there_and_back_is_the_same() {
        let mut random = Random::new(5);
        for (batch, channels, pixels, threads) in [
            (1, 1, 1, 1),
            (2, 3, 35, 1),
            (3, 33, 70, 2),
            (1, 64, 32, 1),
            (2, 100, 1, 1),
            (2, 40, 3000, 2),
            (3, 3, 9000, 2),
            (0, 3, 4, 1),
        ] {
            let x = random.u8s(batch * channels * pixels);
            let (mut last, mut first) = (vec![0; x.len()], vec![0; x.len()]);
            nchw_to_nhwc(Isa::Scalar, &x, batch, channels, pixels, &mut last, threads);
            for (i, &v) in last.iter().enumerate() {
                let (image, pixel, channel) = (i / channels / pixels, i / channels % pixels, i % channels);
                assert_eq!(
                    v,
                    x[(image * channels + channel) * pixels + pixel],
                    "{batch} {channels} {pixels}"
                );
            }
            nhwc_to_nchw(Isa::Scalar, &last, batch, channels, pixels, &mut first, threads);
            assert_eq!(first, x);
            for isa in Isa::available() {
                first.fill(0);
                nchw_to_nhwc(isa, &x, batch, channels, pixels, &mut first, threads);
                assert_eq!(first, last, "{isa:?} {batch} {channels} {pixels}");
            }
        }
    }
}
