//! What the depthwise kernels share: rows of an NHWC input with their padding around them, a few at a time in
//! scratch, so that there are no borders, and blocks of channels. Knows no weights.

use super::Window;
use super::lines::with_scratch;
use bytemuck::Pod;
use std::ops::Range;

/// Channels that are treated at once.
pub(super) const BLOCK: usize = 32;

/// Elements that may be read past the last one.
const SLACK: usize = 64;

/// Visits output rows `lines` (numbered through all images) of a window over `x`, `[batch, in_h, in_w, channels]`,
/// with padding `pad`.
///
/// `visit` gets a line, rows of scratch and the place of each tap there: tap `t`, channel `c` of output column `ox`
/// is `rows[taps[t] + ox * stride_w * channels + c]`. The last tap is repeated until their number is a multiple of
/// `tap_multiple`. Up to 64 elements past a row may be read. An input row is copied once, not once a kernel row.
pub(super) fn for_each_line<T: Pod>(
    x: &[T],
    channels: usize,
    window: &Window,
    pad: T,
    lines: Range<usize>,
    tap_multiple: usize,
    mut visit: impl FnMut(usize, &[T], &[usize]),
) {
    assert_eq!(x.len(), window.pixels() * channels, "input [batch, in_h, in_w, channels]");
    let width = (window.out_w - 1) * window.stride_w + (window.kernel_w - 1) * window.dilation_w + 1;
    let row_len = width * channels;
    let tap_count = window.taps().next_multiple_of(tap_multiple);
    let fill = |source: Option<usize>, to: &mut [T]| match source {
        Some(source) => {
            let from = &x[source * window.in_w * channels..][..window.in_w * channels];
            fill_row(from, to, window.pad_left * channels, pad);
        }
        None => to.fill(pad),
    };
    with_scratch::<usize, _>(tap_count, |taps| {
        for_each_line_of(window, lines, 1, row_len, fill, |lines, rows, starts| {
            for (ky, kx) in (0..window.kernel_h).flat_map(|ky| (0..window.kernel_w).map(move |kx| (ky, kx))) {
                taps[ky * window.kernel_w + kx] = starts[ky] + kx * window.dilation_w * channels;
            }
            let last = taps[window.taps() - 1];
            taps[window.taps()..].fill(last);
            visit(lines.start, rows, taps);
        });
    });
}

/// Visits output rows `lines` (numbered through all images), up to `at_once` of an image at a time, of a window whose input
/// rows take `row_len` elements of scratch each.
///
/// `fill` gets the number of an input row through all images, or `None` for one that is all padding, and where it goes.
/// `visit` gets output rows, rows of scratch and where each line of the kernel begins there, `[output rows, kernel_h]`. Up
/// to 64 elements past a row may be read. An input row is filled in once, not once a kernel row.
pub(super) fn for_each_line_of<T: Pod>(
    window: &Window,
    lines: Range<usize>,
    at_once: usize,
    row_len: usize,
    mut fill: impl FnMut(Option<usize>, &mut [T]),
    mut visit: impl FnMut(Range<usize>, &[T], &[usize]),
) {
    // Input rows live in a ring that is as long as the kernel is high; one row more is all padding.
    let ring = ring_rows(window, at_once);
    with_scratch::<T, _>((ring + 1) * row_len + SLACK, |rows| {
        with_scratch::<usize, _>(ring + at_once * window.kernel_h, |indices| {
            let (held, starts) = indices.split_at_mut(ring);
            held.fill(usize::MAX);
            fill(None, &mut rows[ring * row_len..][..row_len]);
            for strip in strips(window, lines, at_once) {
                let starts = &mut starts[..strip.len() * window.kernel_h];
                for (source, start) in sources(window, strip.clone()).zip(starts.iter_mut()) {
                    let slot = source.map_or(ring, |source| source % ring);
                    if let Some(number) = source
                        && held[slot] != number
                    {
                        held[slot] = number;
                        fill(source, &mut rows[slot * row_len..][..row_len]);
                    }
                    *start = slot * row_len;
                }
                visit(strip, rows, starts);
            }
        });
    });
}

/// Output rows `lines` in strips of up to `at_once` of one image.
pub(super) fn strips(
    window: &Window,
    lines: Range<usize>,
    at_once: usize,
) -> impl Iterator<Item = Range<usize>> {
    let mut first = lines.start;
    std::iter::from_fn(move || {
        let end = lines.end.min((first / window.out_h + 1) * window.out_h).min(first + at_once);
        let strip = first..end;
        first = end;
        (!strip.is_empty()).then_some(strip)
    })
}

/// The input rows that output rows `lines` of one image read, `[output rows, kernel_h]`, numbered through all images; none
/// where it is all padding.
pub(super) fn sources(window: &Window, lines: Range<usize>) -> impl Iterator<Item = Option<usize>> {
    lines.flat_map(move |line| {
        (0..window.kernel_h).map(move |ky| {
            let y = line % window.out_h * window.stride_h + ky * window.dilation_h;
            let inside = y.checked_sub(window.pad_top).filter(|y| *y < window.in_h);
            inside.map(|y| line / window.out_h * window.in_h + y)
        })
    })
}

/// Input rows that `at_once` output rows take.
pub(super) fn ring_rows(window: &Window, at_once: usize) -> usize {
    (window.kernel_h - 1) * window.dilation_h + 1 + (at_once - 1) * window.stride_h
}

/// The channels of each block. The last one is moved back to be whole where there are channels enough: it
/// computes a few outputs again, which costs less than a narrow block.
pub(super) fn blocks(channels: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    (0..channels.div_ceil(BLOCK)).map(move |i| {
        let end = ((i + 1) * BLOCK).min(channels);
        end.saturating_sub(BLOCK)..end
    })
}

/// Where channel `c` of a block stands among the 32 lanes of the packed order.
pub(super) fn lane(c: usize) -> usize {
    (c % 16) / 4 * 8 + c / 16 * 4 + c % 4
}

/// `to` is `left` elements of padding, then as much of `from` as fits, then padding.
fn fill_row<T: Copy>(from: &[T], to: &mut [T], left: usize, pad: T) {
    let (before, rest) = to.split_at_mut(left.min(to.len()));
    before.fill(pad);
    let inside = from.len().min(rest.len());
    rest[..inside].copy_from_slice(&from[..inside]);
    rest[inside..].fill(pad);
}
