//! The tiles of [`winograd`](super::winograd): where they lie in the input and in the output, and the steps done on
//! them, by AVX-512, AVX2 or in plain Rust. Knows no weights but their products.

use super::isa::Isa;
use super::lines::with_scratch;
use super::tiles::Place;
use super::walk::taps_inside;
use super::winograd_transform::{OUTPUTS_MAX, SIDE_MAX, Transform};
use super::{IntOutput, Window};
use std::ops::Range;

/// The steps of a transform on an instruction set.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    isa: Isa,
    pub(super) transform: Transform,
    pub(super) shape: Shape,
}

/// What they look like in registers.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Most tiles that a register tile of the products has.
    pub(super) rows: usize,
    /// Columns of a panel; the last one is half as wide if that is enough.
    pub(super) columns: usize,
    /// Channels of the input that are transformed at once.
    pub(super) channels: usize,
    /// Most bytes of transformed input in a block: most of a level-2 cache, for the weights only stream past.
    block_bytes: usize,
}

/// On AVX2, and in plain Rust. The smallest processors have 512 KiB of level-2 cache.
pub(super) const NARROW: Shape = Shape { rows: 6, columns: 16, channels: 16, block_bytes: 448 << 10 };

/// On AVX-512. Processors with that have 1 MiB or more.
pub(super) const WIDE: Shape = Shape { rows: 12, columns: 32, channels: 32, block_bytes: 896 << 10 };

/// Most tiles of a block: a position's panel is read once for so many, and more gain nothing. An image of 14 x 14 has
/// 49 of two by two outputs.
const BLOCK_TILES: usize = 54;

/// What the depth of a panel is a multiple of.
pub(super) const DEPTH: usize = 4;

/// Most columns of a panel.
pub(super) const COLUMNS_MAX: usize = WIDE.columns;

impl Steps {
    /// The steps of a transform.
    pub(super) fn new(isa: Isa, transform: Transform) -> Steps {
        let steps = Steps { isa, transform, shape: NARROW };
        #[cfg(target_arch = "x86_64")]
        if steps.wide().is_some() {
            return Steps { shape: WIDE, ..steps };
        }
        steps
    }

    /// AVX-512 has steps of its own for F4 only: with its byte dot products F2 gains nothing.
    #[cfg(target_arch = "x86_64")]
    fn wide(self) -> Option<super::x86_64_vnni::Avx512Vnni> {
        self.isa.wide().filter(|_| self.transform == Transform::F4)
    }

    /// Elements from one tile to the next in a transformed input of so many channels.
    pub(super) fn stride(self, inputs: usize) -> usize {
        inputs.next_multiple_of(self.shape.channels)
    }

    /// Most tiles of a block.
    pub(super) fn block(self, inputs: usize) -> usize {
        let Shape { rows, block_bytes, .. } = self.shape;
        let fit = block_bytes / (self.transform.positions() * self.stride(inputs) * size_of::<i16>());
        (fit / rows).clamp(1, BLOCK_TILES / rows) * rows
    }

    /// Sums of one tile and one panel lie apart by so much.
    pub(super) fn sums(self) -> usize {
        self.transform.positions() * self.shape.columns
    }

    /// Whether the outputs include what [`Requant::sum_in_registers`](super::Requant::sum_in_registers) gives.
    pub(super) fn adds_sums(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.wide().is_some();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

/// Whether a window is one that the transforms compute: 3x3 with stride and dilation 1.
pub(super) fn is_plain(window: &Window) -> bool {
    let Window { kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, .. } = *window;
    [kernel_h, kernel_w] == [3, 3] && [stride_h, stride_w, dilation_h, dilation_w] == [1; 4]
}

/// The input of a 3x3 convolution as overlapping tiles, numbered line by line through all images. The last tile of a line
/// or a column may stick out.
pub(super) struct Tiles<'a> {
    transform: Transform,
    /// `[batch, in_h, in_w, in_stride]`.
    x: &'a [u8],
    in_stride: usize,
    in_offset: usize,
    inputs: usize,
    window: &'a Window,
    pad: u8,
}

/// Tiles side by side.
pub(super) struct Run {
    pub(super) tiles: Range<usize>,
    /// Their first output pixel, numbered through all images.
    pub(super) pixel: usize,
    /// The same by image, line and column.
    image: usize,
    y: usize,
    x: usize,
    /// Output pixels in a line.
    pub(super) pixels: usize,
    /// Output lines: those of a tile, or fewer at the end of an image.
    pub(super) lines: usize,
}

impl<'a> Tiles<'a> {
    /// Channels `in_offset .. in_offset + inputs` of `x`, `[batch, in_h, in_w, in_stride]`; padding reads `pad`.
    pub(super) fn new(
        transform: Transform,
        x: &'a [u8],
        in_stride: usize,
        in_offset: usize,
        inputs: usize,
        window: &'a Window,
        pad: u8,
    ) -> Self {
        assert_eq!(x.len(), window.pixels() * in_stride, "input [batch, in_h, in_w, in_stride]");
        assert!(in_offset + inputs <= in_stride, "channels within a pixel");
        Tiles { transform, x, in_stride, in_offset, inputs, window, pad }
    }

    /// Tiles of all images.
    pub(super) fn count(&self) -> usize {
        self.lines() * self.per_line()
    }

    /// Lines of tiles in all images.
    pub(super) fn lines(&self) -> usize {
        self.window.batch * self.window.out_h.div_ceil(self.transform.outputs())
    }

    /// Tiles of a line.
    pub(super) fn per_line(&self) -> usize {
        self.window.out_w.div_ceil(self.transform.outputs())
    }

    /// Pixels of an output line.
    pub(super) fn out_w(&self) -> usize {
        self.window.out_w
    }

    /// The output pixel that a line of tiles begins with.
    pub(super) fn first_pixel(&self, line: usize) -> usize {
        let (image, y) = self.line(line);
        (image * self.window.out_h + y) * self.window.out_w
    }

    /// Image and output line of a line of tiles.
    fn line(&self, line: usize) -> (usize, usize) {
        let outputs = self.transform.outputs();
        let lines = self.window.out_h.div_ceil(outputs);
        (line / lines, line % lines * outputs)
    }

    /// The tiles of a range, line by line.
    pub(super) fn runs(&self, tiles: Range<usize>) -> impl Iterator<Item = Run> {
        let (per_line, outputs) = (self.per_line(), self.transform.outputs());
        (tiles.start / per_line..tiles.end.div_ceil(per_line)).map(move |line| {
            let first = line * per_line;
            let tiles = tiles.start.max(first)..tiles.end.min(first + per_line);
            let x = (tiles.start - first) * outputs;
            let pixels = (tiles.len() * outputs).min(self.window.out_w - x);
            let (image, y) = self.line(line);
            let lines = (self.window.out_h - y).min(outputs);
            Run { tiles, pixel: self.first_pixel(line) + x, image, y, x, pixels, lines }
        })
    }

    /// Calls `visit` with each tile of a range, its pixels, and their strides by line and by pixel. Where some of a
    /// tile is padding, or a pixel has fewer than `least` channels, they are copied, `ld` apart.
    fn for_each(
        &self,
        tiles: Range<usize>,
        least: usize,
        ld: usize,
        mut visit: impl FnMut(usize, &[u8], usize, usize),
    ) {
        let (window, side) = (self.window, self.transform.side());
        let line_stride = window.in_w * self.in_stride;
        // Without padding these are input line and column, shifted so as not to be negative.
        let inside = |at: usize, pad: usize, len: usize| at >= pad && at + side <= len + pad;
        with_scratch::<u8, _>(side * side * ld, |patch| {
            for run in self.runs(tiles) {
                let in_lines = self.inputs >= least && inside(run.y, window.pad_top, window.in_h);
                let outputs = self.transform.outputs();
                for (tile, x) in run.tiles.zip((run.x..).step_by(outputs)) {
                    if in_lines && inside(x, window.pad_left, window.in_w) {
                        let line = run.image * window.in_h + run.y - window.pad_top;
                        let pixel = line * window.in_w + x - window.pad_left;
                        let from = &self.x[pixel * self.in_stride + self.in_offset..];
                        visit(tile, from, line_stride, self.in_stride);
                        continue;
                    }
                    self.copy(run.image, run.y, x, patch, ld);
                    visit(tile, patch, side * ld, ld);
                }
            }
        });
    }

    /// Copies the pixels of a tile, some of which may be padding, to `patch`, `ld` apart. `(y, x)` is its first one,
    /// counted from the first of the padding.
    fn copy(&self, image: usize, y: usize, x: usize, patch: &mut [u8], ld: usize) {
        let (window, side) = (self.window, self.transform.side());
        let columns = taps_inside(x, window.pad_left, window.in_w, side, 1);
        for (i, line) in patch.chunks_exact_mut(side * ld).enumerate() {
            if taps_inside(y + i, window.pad_top, window.in_h, 1, 1).is_empty() || columns.is_empty() {
                line.fill(self.pad);
                continue;
            }
            line[..columns.start * ld].fill(self.pad);
            line[columns.end * ld..].fill(self.pad);
            let in_line = image * window.in_h + y + i - window.pad_top;
            let pixel = in_line * window.in_w + x + columns.start - window.pad_left;
            let from = &self.x[pixel * self.in_stride + self.in_offset..];
            let to = &mut line[columns.start * ld..columns.end * ld];
            if self.in_stride == ld && self.inputs == ld {
                to.copy_from_slice(&from[..to.len()]);
            } else {
                for (to, from) in to.chunks_exact_mut(ld).zip(from.chunks(self.in_stride)) {
                    to[..self.inputs].copy_from_slice(&from[..self.inputs]);
                }
            }
        }
    }
}

/// Transforms the input of tiles `block` to `v`: position `p`, channel `c` of tile `i` of the block is
/// `v[p * slab + i * ld + c]`. `ld` is the number of channels made a multiple of those of a step; those past the last mean
/// nothing.
pub(super) fn input(steps: Steps, tiles: &Tiles, block: Range<usize>, v: &mut [i16], ld: usize, slab: usize) {
    let first = block.start;
    #[cfg(target_arch = "x86_64")]
    let channels = tiles.inputs.max(steps.shape.channels);
    let (transform, side) = (steps.transform, steps.transform.side());
    tiles.for_each(block, steps.shape.channels, ld, |tile, x, line, pixel| {
        let v = &mut v[(tile - first) * ld..];
        #[cfg(target_arch = "x86_64")]
        if let Some(wide) = steps.wide() {
            return wide.winograd_input(x, line, pixel, channels, v, slab);
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = steps.isa.avx2() {
            return avx2.winograd_input(transform, x, line, pixel, channels, v, slab);
        }
        for c in 0..tiles.inputs {
            let mut lines = [[0i16; SIDE_MAX]; SIDE_MAX];
            for (i, to) in lines[..side].iter_mut().enumerate() {
                let mut d = [0i16; SIDE_MAX];
                (0..side).for_each(|j| d[j] = i16::from(x[i * line + j * pixel + c]));
                *to = transform.input(d);
            }
            for j in 0..side {
                let column = transform.input(lines.map(|line| line[j]));
                (0..side).for_each(|i| v[(i * side + j) * slab + c] = column[i]);
            }
        }
    });
}

/// Products of one position: `count` rows of `v`, `ld` apart, times a panel of `width` columns and `depth` (a multiple of
/// 4) elements, to `m`, rows [`Steps::sums`] apart.
#[expect(clippy::too_many_arguments, reason = "a product is its operands and their strides")]
pub(super) fn products(
    steps: Steps,
    v: &[i16],
    ld: usize,
    count: usize,
    panel: &[i16],
    width: usize,
    depth: usize,
    m: &mut [i32],
) {
    let apart = steps.sums();
    #[cfg(target_arch = "x86_64")]
    if let Some(wide) = steps.wide() {
        return wide.winograd_products(v, ld, count, panel, width, depth, m, apart);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = steps.isa.avx2() {
        return avx2.winograd_products(v, ld, count, panel, width, depth, m, apart);
    }
    for i in 0..count {
        let mut acc = [0i32; COLUMNS_MAX];
        for (pair, b) in v[i * ld..][..depth].chunks_exact(2).zip(panel.chunks_exact(2 * width)) {
            for (acc, b) in acc.iter_mut().zip(b.chunks_exact(2)) {
                let products = i32::from(pair[0]) * i32::from(b[0]) + i32::from(pair[1]) * i32::from(b[1]);
                *acc = acc.wrapping_add(products);
            }
        }
        m[i * apart..][..width].copy_from_slice(&acc[..width]);
    }
}

/// Outputs of neighbouring tiles, `pixels` in each of `lines` output lines that are `line` elements apart, from sums `m`,
/// `[tiles, positions, columns]`, through the epilogue: without the table, and without a sum of codes unless `summed`,
/// which asks for [`Steps::adds_sums`]. `place` is the first pixel's.
#[expect(clippy::too_many_arguments, reason = "a run is its operands and its place")]
pub(super) fn outputs(
    steps: Steps,
    m: &[i32],
    width: usize,
    pixels: usize,
    lines: usize,
    line: usize,
    out: &mut IntOutput,
    place: Place,
    summed: bool,
) {
    let (transform, side, outputs) = (steps.transform, steps.transform.side(), steps.transform.outputs());
    #[cfg(target_arch = "x86_64")]
    if let Some(wide) = steps.wide() {
        return wide.winograd_outputs(m, width, pixels, lines, line, out, place, summed);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = steps.isa.avx2() {
        return avx2.winograd_outputs(transform, m, width, pixels, lines, line, out, place);
    }
    let _ = (width, summed);
    for first in (0..pixels).step_by(outputs) {
        let m = &m[first / outputs * steps.sums()..];
        let mut sums = [[[0i32; COLUMNS_MAX]; OUTPUTS_MAX]; OUTPUTS_MAX];
        for n in 0..place.columns {
            let mut columns = [[0i32; OUTPUTS_MAX]; SIDE_MAX];
            for (j, to) in columns[..side].iter_mut().enumerate() {
                let mut column = [0i32; SIDE_MAX];
                (0..side).for_each(|i| column[i] = m[(i * side + j) * steps.shape.columns + n]);
                *to = transform.output(column);
            }
            for (y, sums) in sums[..outputs].iter_mut().enumerate() {
                let row = transform.output(columns.map(|column| column[y]));
                (0..outputs).for_each(|x| sums[x][n] = transform.sum(y, x, row[x]));
            }
        }
        for (x, y) in (0..outputs.min(pixels - first)).flat_map(|x| (0..lines).map(move |y| (x, y))) {
            let at = place.at + (first + x) * place.stride + y * line;
            out.put(at, place.channel, &sums[y][x][..place.columns]);
        }
    }
}
