//! The tiles of [`winograd`](super::winograd): where they lie in the input and in the output, and the steps done on
//! them, by AVX2 or in plain Rust. Knows no weights but their products.

use super::isa::Isa;
use super::lines::with_scratch;
use super::tiles::Place;
use super::{IntOutput, Window};
use std::ops::Range;

/// Numbers that a tile of the input and a kernel become.
pub(super) const POSITIONS: usize = 16;

/// Most tiles that a register tile of the products has.
pub(super) const ROWS: usize = 6;

/// Columns of a panel; the last one is half as wide if that is enough.
pub(super) const COLUMNS: usize = 16;

/// The input of a 3x3 convolution as overlapping 4x4 tiles, each for 2x2 outputs, numbered line by line through all
/// images. The last tile of a line or a column may stick out.
pub(super) struct Tiles<'a> {
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
    /// Output pixels in a line.
    pub(super) pixels: usize,
    /// Output lines: two, or one at the end of an odd height.
    pub(super) lines: usize,
}

impl<'a> Tiles<'a> {
    /// Channels `in_offset .. in_offset + inputs` of `x`, `[batch, in_h, in_w, in_stride]`; padding reads `pad`.
    pub(super) fn new(
        x: &'a [u8],
        in_stride: usize,
        in_offset: usize,
        inputs: usize,
        window: &'a Window,
        pad: u8,
    ) -> Self {
        assert_eq!(x.len(), window.pixels() * in_stride, "input [batch, in_h, in_w, in_stride]");
        assert!(in_offset + inputs <= in_stride, "channels within a pixel");
        Tiles { x, in_stride, in_offset, inputs, window, pad }
    }

    /// Tiles of all images.
    pub(super) fn count(&self) -> usize {
        self.lines() * self.per_line()
    }

    /// Lines of tiles in all images.
    pub(super) fn lines(&self) -> usize {
        self.window.batch * self.window.out_h.div_ceil(2)
    }

    /// Tiles of a line.
    pub(super) fn per_line(&self) -> usize {
        self.window.out_w.div_ceil(2)
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
        let lines = self.window.out_h.div_ceil(2);
        (line / lines, line % lines * 2)
    }

    /// The tiles of a range, line by line.
    pub(super) fn runs(&self, tiles: Range<usize>) -> impl Iterator<Item = Run> {
        let per_line = self.per_line();
        (tiles.start / per_line..tiles.end.div_ceil(per_line)).map(move |line| {
            let first = line * per_line;
            let tiles = tiles.start.max(first)..tiles.end.min(first + per_line);
            let x = (tiles.start - first) * 2;
            let pixels = (tiles.len() * 2).min(self.window.out_w - x);
            let lines = (self.window.out_h - self.line(line).1).min(2);
            Run { tiles, pixel: self.first_pixel(line) + x, pixels, lines }
        })
    }

    /// Calls `visit` with each tile of a range, its pixels, and their strides by line and by pixel. Where some of a
    /// tile is padding, or a pixel has fewer than 16 channels, they are copied, `ld` apart.
    fn for_each(&self, tiles: Range<usize>, ld: usize, mut visit: impl FnMut(usize, &[u8], usize, usize)) {
        let window = self.window;
        let line_stride = window.in_w * self.in_stride;
        with_scratch::<u8, _>(POSITIONS * ld, |patch| {
            for tile in tiles {
                let (line, column) = (tile / self.per_line(), tile % self.per_line());
                let (image, y) = self.line(line);
                let x = column * 2;
                // Without padding these are input line and column, shifted so as not to be negative.
                let inside = |at: usize, pad: usize, len: usize| at >= pad && at + 4 <= len + pad;
                if self.inputs >= 16
                    && inside(y, window.pad_top, window.in_h)
                    && inside(x, window.pad_left, window.in_w)
                {
                    let line = image * window.in_h + y - window.pad_top;
                    let pixel = line * window.in_w + x - window.pad_left;
                    let from = &self.x[pixel * self.in_stride + self.in_offset..];
                    visit(tile, from, line_stride, self.in_stride);
                    continue;
                }
                for (p, to) in patch.chunks_exact_mut(ld).enumerate() {
                    let (y, x) =
                        ((y + p / 4).wrapping_sub(window.pad_top), (x + p % 4).wrapping_sub(window.pad_left));
                    if y < window.in_h && x < window.in_w {
                        let pixel = (image * window.in_h + y) * window.in_w + x;
                        let from = &self.x[pixel * self.in_stride + self.in_offset..][..self.inputs];
                        to[..self.inputs].copy_from_slice(from);
                    } else {
                        to.fill(self.pad);
                    }
                }
                visit(tile, patch, 4 * ld, ld);
            }
        });
    }
}

/// Transforms the input of tiles `block` to `v`: position `p`, channel `c` of tile `i` of the block is
/// `v[p * slab + i * ld + c]`. `ld` is the number of channels made a multiple of 16; those past the last mean nothing.
pub(super) fn input(isa: Isa, tiles: &Tiles, block: Range<usize>, v: &mut [i16], ld: usize, slab: usize) {
    let (first, channels) = (block.start, tiles.inputs.max(16));
    tiles.for_each(block, ld, |tile, x, line, pixel| {
        let v = &mut v[(tile - first) * ld..];
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = isa.avx2() {
            return avx2.winograd_input(x, line, pixel, channels, v, slab);
        }
        let _ = isa;
        let four = |d: [i16; 4]| [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]];
        for c in 0..channels.min(tiles.inputs) {
            let lines =
                [0, 1, 2, 3].map(|i| four([0, 1, 2, 3].map(|j| i16::from(x[i * line + j * pixel + c]))));
            for j in 0..4 {
                for (i, value) in four(lines.map(|line| line[j])).into_iter().enumerate() {
                    v[(i * 4 + j) * slab + c] = value;
                }
            }
        }
    });
}

/// Products of one position, as [`Avx2::winograd_products`](super::x86_64::Avx2::winograd_products) says.
#[expect(clippy::too_many_arguments, reason = "a product is its operands and their strides")]
pub(super) fn products(
    isa: Isa,
    v: &[i16],
    ld: usize,
    count: usize,
    panel: &[i16],
    width: usize,
    depth: usize,
    m: &mut [i32],
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = isa.avx2() {
        return avx2.winograd_products(v, ld, count, panel, width, depth, m);
    }
    let _ = isa;
    for i in 0..count {
        let mut acc = [0i32; COLUMNS];
        for (pair, b) in v[i * ld..][..depth].chunks_exact(2).zip(panel.chunks_exact(2 * width)) {
            for (acc, b) in acc.iter_mut().zip(b.chunks_exact(2)) {
                let products = i32::from(pair[0]) * i32::from(b[0]) + i32::from(pair[1]) * i32::from(b[1]);
                *acc = acc.wrapping_add(products);
            }
        }
        m[i * POSITIONS * COLUMNS..][..width].copy_from_slice(&acc[..width]);
    }
}

/// Outputs of a run, as [`Avx2::winograd_outputs`](super::x86_64::Avx2::winograd_outputs) says.
#[expect(clippy::too_many_arguments, reason = "a run is its operands and its place")]
pub(super) fn outputs(
    isa: Isa,
    m: &[i32],
    width: usize,
    pixels: usize,
    lines: usize,
    line: usize,
    out: &mut IntOutput,
    place: Place,
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = isa.avx2() {
        return avx2.winograd_outputs(m, width, pixels, lines, line, out, place);
    }
    let _ = (isa, width);
    let two = |m: [i32; 4]| {
        let (sum, difference) = (m[1].wrapping_add(m[2]), m[1].wrapping_sub(m[2]));
        [m[0].wrapping_add(sum), difference.wrapping_sub(m[3])]
    };
    for (x, y) in (0..pixels).flat_map(|x| (0..lines).map(move |y| (x, y))) {
        let m = &m[x / 2 * POSITIONS * COLUMNS..];
        let mut acc = [0i32; COLUMNS];
        for (n, acc) in acc[..place.columns].iter_mut().enumerate() {
            let row = [0, 1, 2, 3].map(|j| two([0, 1, 2, 3].map(|i| m[(i * 4 + j) * COLUMNS + n]))[y]);
            *acc = two(row)[x % 2] >> 2;
        }
        out.put(place.at + x * place.stride + y * line, place.channel, &acc[..place.columns]);
    }
}
