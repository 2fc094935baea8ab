//! The order in which a dense product is walked: blocks of rows that stay in the cache, panels of columns, tiles.
//! Knows no arithmetic.

use super::Window;
use super::isa::Isa;
use super::lines::with_scratch;
use super::patches::Patches;
use super::tiles::{Reach, Shape};
use bytemuck::Pod;
use std::any::TypeId;
use std::ops::Range;

/// Bytes of input lines that a block may hold: what a level-2 cache keeps beside the panels.
pub(super) const LINES_BYTES: usize = 64 << 10;

/// Walks rows `rows` of `patches` times columns `columns` of a product whose panels are `depth` deep and
/// cover `all_columns`.
///
/// A block of rows is gathered (or read in place, if it can be), then panel after panel is multiplied with it, so
/// that a panel comes from a far cache for the first tile only. `tile` gets the gathered rows from its first on and
/// their stride, the tile's rows, its columns, the width of its panel, which part of the depth the rows hold, and the rows of
/// the block;
/// `done` gets the rows of each block that is complete.
#[expect(clippy::too_many_arguments, reason = "a walk is a product and its two visitors")]
pub(super) fn walk<S: Pod, D: Pod + From<S>>(
    isa: Isa,
    shape: Shape,
    patches: &Patches<S>,
    depth: usize,
    all_columns: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    mut tile: impl FnMut(&[D], usize, Range<usize>, Range<usize>, usize, Range<usize>, &Range<usize>),
    mut done: impl FnMut(Range<usize>),
) {
    let depths = depth.div_ceil(shape.block_depth);
    let row_len = shape.padded(depth.div_ceil(depths));
    let mut tiles = |a: &[D], stride: usize, block: Range<usize>, part: Range<usize>| {
        for first in columns.clone().step_by(shape.columns) {
            let panel = first..(first + shape.columns).min(columns.end);
            let width = shape.width(first, all_columns);
            for rows in even(block.clone(), shape.rows * shape.tiles) {
                let a = &a[(rows.start - block.start) * stride..];
                tile(a, stride, rows, panel.clone(), width, part.clone(), &block);
            }
        }
    };
    let block_rows = block_rows(shape, row_len * size_of::<D>());
    if shape.padded(depth) == depth
        && TypeId::of::<S>() == TypeId::of::<D>()
        && let Some((_, stride)) = patches.in_place(rows.start)
        && !collides(stride * size_of::<D>())
    {
        for block in even(rows, block_rows) {
            let (a, _) = patches.in_place(block.start).expect("the same window");
            for part in even(0..depth, shape.block_depth) {
                tiles(bytemuck::cast_slice(&a[part.start..]), stride, block.clone(), part);
            }
            done(block);
        }
        return;
    }
    let mut stride = row_len + patches.spare();
    if collides(stride * size_of::<D>()) {
        stride += 64 / size_of::<D>();
    }
    with_scratch::<D, _>(block_rows.min(rows.len()) * stride, |gathered| {
        for block in even(rows, block_rows) {
            let gathered = &mut gathered[..block.len() * stride];
            for part in even(0..depth, shape.block_depth) {
                isa.vectorize(
                    #[inline(always)]
                    || patches.gather(block.start, part.clone(), gathered, stride),
                );
                tiles(gathered, stride, block.clone(), part);
            }
            done(block);
        }
    });
}

/// [`walk`] over the lines of the input in place of gathered rows: neighbouring output pixels of a line read overlapping
/// runs of input lines, which are copied once with their padding. `tile` gets the lines from its first row on, how its
/// rows lie there, and the rest as in [`walk`].
#[expect(clippy::too_many_arguments, reason = "a walk is a product and its two visitors")]
pub(super) fn walk_lines<S: Pod, D: Pod + From<S>>(
    isa: Isa,
    shape: Shape,
    patches: &Patches<S>,
    all_columns: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    mut tile: impl FnMut(&[D], Reach, Range<usize>, Range<usize>, usize, &Range<usize>),
    mut done: impl FnMut(Range<usize>),
) {
    let window = patches.window;
    let (out_w, out_h, step) = (window.out_w, window.out_h, window.stride_h);
    let line_len = line_len(window, patches.inputs);
    let reach = Reach {
        row: window.stride_w * patches.inputs,
        run: window.dilation_h * line_len,
        runs: window.kernel_h,
    };
    // Input lines of so many output lines, and how many of the latter a block has.
    let under = (window.kernel_h - 1) * window.dilation_h + 1;
    let input_lines = |lines: usize| (lines - 1) * step + under;
    let room = LINES_BYTES / (line_len * size_of::<D>());
    let most = (room.saturating_sub(under) / step + 1).min(out_h);
    // A whole group may be read where a run ends within one: its weights are zeros.
    with_scratch::<D, _>(input_lines(most) * line_len + shape.group, |scratch| {
        let (mut line, end) = (rows.start / out_w, rows.end.div_ceil(out_w));
        while line < end {
            let (image, oy) = (line / out_h, line % out_h);
            let lines = line..(line + most.min(out_h - oy)).min(end);
            let len = input_lines(lines.len()) * line_len;
            isa.vectorize(
                #[inline(always)]
                || patches.lines(image, oy * step, &mut scratch[..len], line_len),
            );
            let held = &scratch[..len + shape.group];
            let of_line = |line: usize| rows.start.max(line * out_w)..rows.end.min((line + 1) * out_w);
            let block = of_line(lines.start).start..of_line(lines.end - 1).end;
            for first in columns.clone().step_by(shape.columns) {
                let panel = first..(first + shape.columns).min(columns.end);
                let width = shape.width(first, all_columns);
                for line in lines.clone() {
                    for rows in even(of_line(line), shape.rows * shape.tiles) {
                        let from =
                            (line - lines.start) * step * line_len + (rows.start - line * out_w) * reach.row;
                        tile(&held[from..], reach, rows, panel.clone(), width, &block);
                    }
                }
            }
            done(block);
            line = lines.end;
        }
    });
}

/// Elements of an input line that a line of output reads, with the padding.
pub(super) fn line_len(window: &Window, inputs: usize) -> usize {
    ((window.out_w - 1) * window.stride_w + window.kernel_w) * inputs
}

/// Which of `taps` taps, `dilation` apart from padded position `start`, lie on the `len` positions after `pad`.
pub(super) fn taps_inside(
    start: usize,
    pad: usize,
    len: usize,
    taps: usize,
    dilation: usize,
) -> Range<usize> {
    let before = |end: usize| {
        let distance = end.saturating_sub(start);
        // A division takes as long as the largest of a window is looked for.
        let tap = if dilation == 1 { distance } else { distance.div_ceil(dilation) };
        tap.min(taps)
    };
    before(pad)..before(pad + len).max(before(pad))
}

/// Cuts a range into as few pieces of at most `most` as will do, all of about the same length: a last tile of one
/// row would take a third of the time of a whole one.
pub(super) fn even(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let (start, len, pieces) = (range.start, range.len(), range.len().div_ceil(most));
    (0..pieces).map(move |i| start + len * i / pieces..start + len * (i + 1) / pieces)
}

/// Whether rows so many bytes apart fall into one set of an eight-way first-level cache, which a tile of twelve
/// rows would overflow.
fn collides(stride_bytes: usize) -> bool {
    stride_bytes.is_multiple_of(4096)
}

/// Rows in a block if each takes `row_bytes`: a whole number of tiles.
fn block_rows(shape: Shape, row_bytes: usize) -> usize {
    let tiles = (shape.block_bytes / row_bytes.max(1)).min(shape.block_rows) / shape.rows;
    tiles.max(1) * shape.rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_pieces_cover_a_range() {
        for (len, most) in [(0, 3), (1, 3), (3, 3), (4, 3), (49, 14), (100, 14), (5, usize::MAX)] {
            let pieces: Vec<_> = even(7..7 + len, most).collect();
            assert!(pieces.iter().flat_map(Clone::clone).eq(7..7 + len), "{len} {most} {pieces:?}");
            let lens = || pieces.iter().map(|p| p.len());
            assert!(lens().all(|l| l <= most), "{pieces:?}");
            assert!(lens().max().unwrap_or(0) - lens().min().unwrap_or(0) <= 1, "{pieces:?}");
        }
    }
}
