//! Depthwise kernels over quads of pixels: how many there are, and their weights. Knows no instructions.

use super::Window;
use super::halo::{BLOCK, blocks, ring_rows};
use super::lines::Aligned;

/// Taps, or pixels, whose products are added at once.
pub(super) const QUAD: usize = 4;

/// Outputs whose sums are in registers at a time.
pub(super) const OUTPUTS: usize = 4;

/// Channels of one register of quads: the fewest that there must be.
pub(super) const CHANNELS_MIN: usize = 16;

/// Whether there are rows of such a kernel. With five lines and stride 2 outputs share few quads, and so many zeros are among
/// their weights that quads of taps are as fast.
pub(super) fn pays(window: &Window) -> bool {
    let square = window.kernel_h == window.kernel_w && window.dilation_w == 1;
    square && matches!((window.kernel_w, window.stride_w), (3 | 5, 1) | (3, 2))
}

/// Quads that a line of a kernel of `size` columns takes for `OUTPUTS` outputs.
pub(super) const fn quads_at_once(size: usize, stride: usize) -> usize {
    ((OUTPUTS - 1) * stride + size).div_ceil(QUAD)
}

/// Quads that a line of a kernel of `size` columns takes for `count` outputs, of which there are `OUTPUTS` at a time.
pub(super) fn quads_of_line(size: usize, stride: usize, count: usize) -> usize {
    (count.div_ceil(OUTPUTS) - 1) * stride + quads_at_once(size, stride)
}

/// Output lines that are computed block by block, so that weights stay close and what a block begins with is done once: as
/// many as what they read, `row` bytes a line, leaves room for in a level-2 cache.
pub(super) fn lines_at_once(window: &Window, row: usize) -> usize {
    const NEAR: usize = 256 << 10;
    let fits = |lines: &usize| ring_rows(window, *lines) * row <= NEAR;
    (1..=window.out_h).take_while(fits).last().unwrap_or(1)
}

/// Quads of pixels that a line of a kernel touches whose first pixel is so far into one.
pub(super) const fn quad_count(size: usize, offset: usize) -> usize {
    (offset + size).div_ceil(QUAD)
}

/// Quads that a block of [`pack_lines`] has before those of an output that is the `index`-th to begin in a quad.
pub(super) const fn quads_before(size: usize, stride: usize, index: usize) -> usize {
    let (mut before, mut count) = (0, 0);
    while before < index {
        count += size * quad_count(size, before * stride);
        before += 1;
    }
    count
}

/// Packs codes `[channels, size, size]` as `[block, output, line, quad, 32, 4]`: each line over the quads of pixels that it
/// touches, for each output that begins in a quad, with zeros before and after.
pub(super) fn pack_lines(codes: &[i8], channels: usize, size: usize, stride: usize) -> Aligned<i8> {
    let outputs = QUAD / stride;
    let len = quads_before(size, stride, outputs) * QUAD * BLOCK;
    let mut packed = Aligned::zeros(blocks(channels).len() * len);
    for (block, packed) in blocks(channels).zip(packed.chunks_exact_mut(len)) {
        for (output, line) in (0..outputs).flat_map(|output| (0..size).map(move |line| (output, line))) {
            let offset = output * stride;
            let quad = quads_before(size, stride, output) + line * quad_count(size, offset);
            for (c, j) in block.clone().flat_map(|c| (0..size).map(move |j| (c, j))) {
                let (quad, t) = (quad + (offset + j) / QUAD, (offset + j) % QUAD);
                packed[(quad * BLOCK + c - block.start) * QUAD + t] = codes[(c * size + line) * size + j];
            }
        }
    }
    packed
}
