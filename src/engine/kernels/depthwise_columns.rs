//! Depthwise kernels over columns of pixels: what of an input they read, how many words it becomes, and their weights. Knows
//! no instructions.

use super::halo::{BLOCK, blocks, lane};
use super::lines::Aligned;

/// A line that is all padding.
pub(super) const NOWHERE: usize = usize::MAX;

/// A block of channels in lines of an input, and what is around them.
#[derive(Clone, Copy)]
pub(super) struct Pixels<'a> {
    pub(super) x: &'a [u8],
    /// Pixels of a line, elements from one to the next, and how many of padding are before them.
    pub(super) width: usize,
    pub(super) pixel: usize,
    pub(super) left: usize,
    pub(super) pad: u8,
}

/// Groups of two taps that a `size` x `size` kernel has by columns.
pub(super) fn group_count(size: usize) -> usize {
    size / 2 * size + if size.is_multiple_of(2) { 0 } else { 2 * (size / 2 + 1) }
}

/// Elements that `count` outputs of a line take as words, 64 for two pixels.
pub(super) fn column_words(size: usize, stride: usize, count: usize) -> usize {
    let width = (count - 1) * stride + size;
    (size / 2 * width + width.div_ceil(2) + 1) * 2 * BLOCK
}

/// The taps of each group of a `size` x `size` kernel by columns: two lines of a column, for every two lines. A last
/// line goes by two columns, once for outputs that begin at an even column and once for the others.
pub(super) fn columns_of(size: usize) -> impl Iterator<Item = [Option<usize>; 2]> {
    let pairs = (0..size / 2 * size).map(move |i| {
        let first = i / size * 2 * size + i % size;
        [Some(first), Some(first + size)]
    });
    let last = (0..2 * (size / 2 + 1)).filter(move |_| !size.is_multiple_of(2)).map(move |i| {
        let (odd, j) = (i / (size / 2 + 1), i % (size / 2 + 1));
        [2 * j, 2 * j + 1].map(|column| {
            column.checked_sub(odd).filter(|&column| column < size).map(|column| (size - 1) * size + column)
        })
    });
    pairs.chain(last)
}

/// Packs codes `[channels, size, size]` in the groups of [`columns_of`].
pub(super) fn pack_columns(codes: &[i8], channels: usize, size: usize) -> Aligned<i16> {
    let len = group_count(size) * 2 * BLOCK;
    let mut packed = Aligned::zeros(blocks(channels).len() * len);
    for (block, packed) in blocks(channels).zip(packed.chunks_exact_mut(len)) {
        for (group, packed) in columns_of(size).zip(packed.chunks_exact_mut(2 * BLOCK)) {
            for (c, (i, tap)) in
                block.clone().flat_map(|c| group.into_iter().enumerate().map(move |t| (c, t)))
            {
                packed[lane(c - block.start) * 2 + i] =
                    tap.map_or(0, |t| i16::from(codes[c * size * size + t]));
            }
        }
    }
    packed
}
