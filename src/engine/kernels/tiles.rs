//! What the tiles of the dense products look like, how weights are packed for them, and where they go. Knows no
//! arithmetic.

use std::ops::Range;

/// Integer products in 16-bit pairs: 12 accumulators of AVX2's 16 registers. Wider tiles spill (4 x 24 and 3 x 32
/// reach 17 instead of 25 products a cycle, Zen 3).
pub(super) const INT8_PAIRS: Shape = Shape {
    rows: 6,
    tiles: 16,
    columns: 16,
    group: 2,
    block_rows: 96,
    block_bytes: 128 << 10,
    block_depth: WHOLE,
};

/// Integer products in quads of bytes: 24 accumulators of AVX-512's 32 registers, two for the panel, one for a row.
/// Processors with these have a level-2 cache of 1 MiB or more, and a block of the 7 x 7 pixels of 512 channels that a
/// 3 x 3 kernel reads reads its weights once.
#[cfg(target_arch = "x86_64")]
pub(super) const INT8_QUADS: Shape = Shape {
    rows: 12,
    tiles: 8,
    columns: 32,
    group: 4,
    block_rows: 96,
    block_bytes: 320 << 10,
    block_depth: WHOLE,
};

/// Integer products of bytes on AVX2, scheduled: 10 accumulators, a register of weights, one of ones, a row's two quads and
/// two more for what is on its way. The other weights are read where they are multiplied, which cores that load two registers
/// a cycle can do for five rows and not for six (5 rows over 4: 3 to 6 % on Zen 3).
#[cfg(target_arch = "x86_64")]
pub(super) const INT8_SCHEDULED: Shape = Shape {
    rows: 5,
    tiles: 6,
    columns: 16,
    group: 4,
    block_rows: 96,
    block_bytes: 224 << 10,
    block_depth: WHOLE,
};

/// Integer products in quads of bytes on AVX2: tiles of the size of the pairs, blocks as with AVX-512.
#[cfg(target_arch = "x86_64")]
pub(super) const INT8_QUADS_NARROW: Shape = Shape { group: 4, block_bytes: 320 << 10, ..INT8_PAIRS };

/// Integer products in matrix tiles, two by two. The depth is padded by the packer.
#[cfg(target_arch = "x86_64")]
pub(super) const INT8_MATRIX: Shape = Shape { rows: 32, tiles: 1, ..INT8_QUADS };

/// Integer products in quads of signed bytes on NEON: 16 accumulators of 32 registers, 4 for the panel, one for a row.
/// Wide rather than high, because the codes of each row are made signed in the tile.
#[cfg(target_arch = "aarch64")]
pub(super) const INT8_QUADS_NEON: Shape = Shape { rows: 4, tiles: 1, group: 4, ..INT8_PAIRS };

/// Float products, of the size of the pairs and for the same reason.
pub(super) const F32: Shape = Shape {
    rows: 6,
    tiles: 1,
    columns: 16,
    group: 1,
    block_rows: 96,
    block_bytes: 128 << 10,
    block_depth: 512,
};

/// Float products on AVX-512: 28 accumulators of 32 registers, two for the panel, one for a row. Fourteen rows
/// divide the 7 x 7, 14 x 14, 28 x 28 and 56 x 56 pixels of image networks without a rest. Processors with AVX-512 have
/// a level-2 cache of 1 MiB or more.
#[cfg(target_arch = "x86_64")]
pub(super) const F32_WIDE: Shape = Shape {
    rows: 14,
    tiles: 1,
    columns: 32,
    group: 1,
    block_rows: 56,
    block_bytes: 512 << 10,
    block_depth: 2304,
};

/// Sums that never leave the registers are as deep as the product.
const WHOLE: usize = usize::MAX;

/// Columns and rows of a register tile, what a panel of packed weights looks like, and how much is done at once.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Most rows of a register tile.
    pub(super) rows: usize,
    /// Register tiles that are done at once, because they share a panel's bias and factors.
    pub(super) tiles: usize,
    /// Columns of a panel. The last panel is half as wide if that is enough.
    pub(super) columns: usize,
    /// Consecutive elements of one column that lie side by side.
    pub(super) group: usize,
    /// Most rows of a block: a panel is read once for so many, and more gain nothing.
    pub(super) block_rows: usize,
    /// Bytes of gathered rows that a block may hold: a share of the level-2 cache that leaves room for the panels
    /// that stream past it.
    pub(super) block_bytes: usize,
    /// Most depth of a block. Deeper products are done in several, their sums being stored in between.
    pub(super) block_depth: usize,
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

    /// The panel that starts at column `first` and is `width` columns wide.
    pub(super) fn panel(self, first: usize, width: usize, depth: usize) -> Range<usize> {
        let start = self.panel_start(first, depth);
        start..start + width * self.padded(depth)
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
            // Groups go first: a panel is then written from its start to its end.
            for (group, quad) in panel.chunks_exact_mut(width * self.group).enumerate() {
                let elements = group * self.group..depth.min((group + 1) * self.group);
                let columns = quad.chunks_exact_mut(self.group).take(columns - first);
                for (column, to) in columns.enumerate() {
                    for (to, k) in to.iter_mut().zip(elements.clone()) {
                        *to = element(first + column, k);
                    }
                }
            }
        }
    }
}

/// Where the elements of a tile's rows lie: row `r` is `runs` runs of a depth each, run `i` from
/// `r * row + i * run` on. Rows may overlap.
#[derive(Clone, Copy)]
pub(super) struct Reach {
    /// Elements from one row to the next.
    pub(super) row: usize,
    /// Elements from one run to the next.
    pub(super) run: usize,
    /// Runs of a row.
    pub(super) runs: usize,
}

impl Reach {
    /// Rows of one run.
    pub(super) fn of_rows(row: usize) -> Reach {
        Reach { row, run: 0, runs: 1 }
    }

    /// Asserts that `rows` rows with runs of `depth` lie within `a` elements, and as deep a panel, `width` wide, within
    /// `panel`.
    #[inline(always)]
    pub(super) fn assert_within(self, rows: usize, depth: usize, a: usize, width: usize, panel: usize) {
        assert!(a >= (rows - 1) * self.row + (self.runs - 1) * self.run + depth, "the tile's rows");
        assert!(panel >= width * depth * self.runs, "the tile's panel");
    }
}

/// Weights that are wanted next. Each row of a tile asks for its share of them, in requests that are spread over the depth,
/// so that they come from a far cache while others are multiplied.
#[derive(Clone, Copy)]
#[cfg(target_arch = "x86_64")]
pub(super) struct Ahead {
    first: *const i8,
    share: usize,
    /// Bytes between two requests of a row.
    pub(super) pace: usize,
}

#[cfg(target_arch = "x86_64")]
impl Ahead {
    /// Of `rows` rows with `requests` requests each.
    pub(super) fn new<T>(weights: &[T], rows: usize, requests: usize) -> Ahead {
        let share = size_of_val(weights) / rows;
        Ahead { first: weights.as_ptr().cast(), share, pace: share.div_ceil(requests) }
    }

    /// Where the share of a row begins.
    pub(super) fn of_row(self, row: usize) -> *const i8 {
        self.first.wrapping_add(row * self.share)
    }
}

/// The register tiles of `rows` rows, at most `most` in each and about as many in all of them: the first row of a tile, and
/// how many it has. Divides once: a division takes as long as a third of a small tile.
#[cfg(target_arch = "x86_64")]
pub(super) fn even_tiles(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let tiles = rows.div_ceil(most).max(1);
    let (fewest, with_more) = (rows / tiles, rows % tiles);
    (0..tiles).map(move |tile| (tile * fewest + tile.min(with_more), fewest + usize::from(tile < with_more)))
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

/// Which part of its chains a float tile computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Whether the chains begin here, at 0.0. Otherwise they go on from what the output holds.
    pub(super) first: bool,
    /// Whether the chains end here, so that the epilogue follows.
    pub(super) last: bool,
}
