//! The order in which a product is walked: blocks of rows that stay in the cache, panels of columns, tiles.
//! Knows no arithmetic.

use super::isa::Isa;
use super::lines::with_scratch;
use super::patches::Patches;
use bytemuck::Pod;
use std::ops::Range;

/// Bytes of gathered rows that a block may hold: a share of a 512 KiB level-2 cache that leaves room for the
/// panels that stream past it.
const BLOCK_BYTES: usize = 128 << 10;

/// A block longer than this gains nothing: its panel is already read once for this many rows.
const BLOCK_ROWS_MAX: usize = 96;

/// Integer products in 16-bit pairs: 12 accumulators of AVX2's 16 registers. Wider tiles spill (4 x 24 and 3 x 32
/// reach 17 instead of 25 products a cycle, Zen 3).
pub(super) const INT8_PAIRS: Shape = Shape { rows: 6, columns: 16, group: 2 };

/// Float products, of the same size for the same reason.
pub(super) const F32: Shape = Shape { rows: 6, columns: 16, group: 1 };

/// Columns and rows of a register tile, and what a panel of packed weights looks like.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Rows of a tile.
    pub(super) rows: usize,
    /// Columns of a panel. The last panel is half as wide if that is enough.
    pub(super) columns: usize,
    /// Consecutive elements of one column that lie side by side.
    pub(super) group: usize,
}

impl Shape {
    /// `depth` elements of a column with the zeros that fill the last group.
    pub(super) fn padded(self, depth: usize) -> usize {
        depth.next_multiple_of(self.group)
    }

    /// Width of the panel that starts at column `first` of `columns`.
    pub(super) fn width(self, first: usize, columns: usize) -> usize {
        if columns - first <= self.columns / 2 { self.columns / 2 } else { self.columns }
    }

    /// Where the panel that starts at column `first` begins; panels lie one after the other.
    pub(super) fn panel_start(self, first: usize, depth: usize) -> usize {
        first * self.padded(depth)
    }

    /// Elements of `columns` columns of `depth`, packed.
    pub(super) fn packed_len(self, columns: usize, depth: usize) -> usize {
        columns.next_multiple_of(self.columns / 2) * self.padded(depth)
    }

    /// Packs columns `[columns, depth]` given by `element(column, k)` into panels `[depth / group, width,
    /// group]`. `packed` is all zero before.
    pub(super) fn pack<T>(
        self,
        columns: usize,
        depth: usize,
        packed: &mut [T],
        element: impl Fn(usize, usize) -> T,
    ) {
        for first in (0..columns).step_by(self.columns) {
            let width = self.width(first, columns);
            let panel = &mut packed[self.panel_start(first, depth)..][..width * self.padded(depth)];
            for column in 0..width.min(columns - first) {
                for k in 0..depth {
                    let at = (k / self.group * width + column) * self.group + k % self.group;
                    panel[at] = element(first + column, k);
                }
            }
        }
    }

    /// Rows in a block if each takes `row_bytes`: a whole number of tiles.
    pub(super) fn block_rows(self, row_bytes: usize) -> usize {
        let tiles = (BLOCK_BYTES / row_bytes.max(1)).min(BLOCK_ROWS_MAX) / self.rows;
        tiles.max(1) * self.rows
    }

    /// Walks rows `rows` of `patches` times columns `columns` of a product whose panels are `depth` deep and
    /// cover `all_columns`.
    ///
    /// A block of rows is gathered, then panel after panel is multiplied with it, so that a panel comes from a
    /// far cache for the first tile only. `tile` gets the gathered rows from its first on and their stride, the
    /// tile's rows, its columns and the width of its panel; `done` gets the rows of each block that is complete.
    #[expect(clippy::too_many_arguments, reason = "a walk is a product and its two visitors")]
    pub(super) fn walk<S: Copy, D: Pod + From<S>>(
        self,
        isa: Isa,
        patches: &Patches<S>,
        depth: usize,
        all_columns: usize,
        rows: Range<usize>,
        columns: Range<usize>,
        mut tile: impl FnMut(&[D], usize, Range<usize>, Range<usize>, usize),
        mut done: impl FnMut(Range<usize>),
    ) {
        let stride = self.padded(depth);
        let block_rows = self.block_rows(stride * size_of::<D>());
        with_scratch::<D, _>(block_rows.min(rows.len()) * stride, |gathered| {
            for start in rows.clone().step_by(block_rows) {
                let block = start..(start + block_rows).min(rows.end);
                let gathered = &mut gathered[..block.len() * stride];
                isa.vectorize(|| patches.gather(start, gathered, stride));
                for first in columns.clone().step_by(self.columns) {
                    let panel = first..(first + self.columns).min(columns.end);
                    let width = self.width(first, all_columns);
                    for row in block.clone().step_by(self.rows) {
                        let tile_rows = row..(row + self.rows).min(block.end);
                        tile(&gathered[(row - start) * stride..], stride, tile_rows, panel.clone(), width);
                    }
                }
                done(block);
            }
        });
    }
}

/// Where a tile of results goes in an output buffer.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Element of the buffer that holds the first row's first column.
    pub(super) at: usize,
    /// Elements from one row to the next.
    pub(super) stride: usize,
    /// Output channel of the first column.
    pub(super) channel: usize,
    /// Columns to write.
    pub(super) columns: usize,
}

impl Place {
    /// Asserts that `rows` rows fit a buffer of `len` elements.
    #[inline(always)]
    pub(super) fn assert_within(&self, rows: usize, len: usize) {
        assert!(self.at + (rows - 1) * self.stride + self.columns <= len, "the tile lies within the output");
    }
}

/// What follows the chain of a float product.
#[derive(Clone, Copy)]
pub(super) struct FloatEpilogue<'a> {
    /// `[channels]`.
    pub(super) bias: Option<&'a [f32]>,
    /// Smallest value.
    pub(super) lo: f32,
    /// Largest value.
    pub(super) hi: f32,
}
