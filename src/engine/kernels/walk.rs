//! The order in which a dense product is walked: blocks of rows that stay in the cache, panels of columns, tiles.
//! Knows no arithmetic.

use super::isa::Isa;
use super::lines::with_scratch;
use super::patches::Patches;
use super::tiles::Shape;
use bytemuck::Pod;
use std::any::TypeId;
use std::ops::Range;

/// Bytes of gathered rows that a block may hold: a share of a 512 KiB level-2 cache that leaves room for the
/// panels that stream past it.
const BLOCK_BYTES: usize = 128 << 10;

/// A block longer than this gains nothing: its panel is already read once for this many rows.
const BLOCK_ROWS_MAX: usize = 96;

/// Walks rows `rows` of `patches` times columns `columns` of a product whose panels are `depth` deep and
/// cover `all_columns`.
///
/// A block of rows is gathered (or read in place, if it can be), then panel after panel is multiplied with it, so that a panel comes from a
/// far cache for the first tile only. `tile` gets the gathered rows from its first on and their stride, the
/// tile's rows, its columns and the width of its panel; `done` gets the rows of each block that is complete.
#[expect(clippy::too_many_arguments, reason = "a walk is a product and its two visitors")]
pub(super) fn walk<S: Pod, D: Pod + From<S>>(
    isa: Isa,
    shape: Shape,
    patches: &Patches<S>,
    depth: usize,
    all_columns: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    mut tile: impl FnMut(&[D], usize, Range<usize>, Range<usize>, usize),
    mut done: impl FnMut(Range<usize>),
) {
    let row_len = shape.padded(depth);
    let mut tiles = |a: &[D], stride: usize, block: Range<usize>| {
        for first in columns.clone().step_by(shape.columns) {
            let panel = first..(first + shape.columns).min(columns.end);
            let width = shape.width(first, all_columns);
            for row in block.clone().step_by(shape.rows) {
                let tile_rows = row..(row + shape.rows).min(block.end);
                tile(&a[(row - block.start) * stride..], stride, tile_rows, panel.clone(), width);
            }
        }
        done(block);
    };
    let block_rows = block_rows(shape, row_len * size_of::<D>());
    let blocks = rows.clone().step_by(block_rows).map(|start| start..(start + block_rows).min(rows.end));
    if row_len == depth
        && TypeId::of::<S>() == TypeId::of::<D>()
        && let Some((_, stride)) = patches.in_place(rows.start)
        && !collides(stride * size_of::<D>())
    {
        for block in blocks {
            let (a, _) = patches.in_place(block.start).expect("the same window");
            tiles(bytemuck::cast_slice(a), stride, block);
        }
        return;
    }
    let mut stride = row_len + patches.spare();
    if collides(stride * size_of::<D>()) {
        stride += 64 / size_of::<D>();
    }
    with_scratch::<D, _>(block_rows.min(rows.len()) * stride, |gathered| {
        for block in blocks {
            let gathered = &mut gathered[..block.len() * stride];
            isa.vectorize(|| patches.gather(block.start, gathered, stride));
            tiles(gathered, stride, block);
        }
    });
}

/// Whether rows so many bytes apart fall into one set of an eight-way first-level cache, which a tile of twelve
/// rows would overflow.
fn collides(stride_bytes: usize) -> bool {
    stride_bytes.is_multiple_of(4096)
}

/// Rows in a block if each takes `row_bytes`: a whole number of tiles.
fn block_rows(shape: Shape, row_bytes: usize) -> usize {
    let tiles = (BLOCK_BYTES / row_bytes.max(1)).min(BLOCK_ROWS_MAX) / shape.rows;
    tiles.max(1) * shape.rows
}
