//! Integer 3x3 convolution by Winograd's F(2x2,3x3): 16 products instead of 36 for four outputs, and still exact.
//! Knows slices only.
//!
//! With weights transformed by 2G instead of G everything is whole: a 4x4 tile of the input becomes 16 numbers within
//! +-1020, a kernel 16 numbers within +-1152, and the transform of their products is four times the sums of the
//! convolution. Products of 16-bit numbers are what AVX2 multiplies anyway (`vpmaddwd`), so no bit is lost. (Lavin and
//! Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.)

use super::isa::Isa;
use super::lines::{Aligned, with_scratch};
use super::parallel::{parts, split_rows, split_units};
use super::rows::Rows;
use super::tiles::Place;
use super::walk::even;
use super::winograd_tiles::{COLUMNS, POSITIONS, ROWS, Tiles, input, outputs, products};
use super::{IntOutput, Window};
use bytemuck::Pod;
use std::ops::Range;

/// What the depth of a panel is a multiple of.
pub(super) const DEPTH: usize = 4;

/// Taps of the kernel.
pub(super) const TAPS: usize = 9;

/// Most input channels: `4 * 9 * inputs * 255 * 128`, the largest sum before it is divided by four, is within `i32`.
pub(super) const INPUTS_MAX: usize = (1 << 31) / (4 * TAPS * 255 * 128);

/// Most tiles of a block: a position's panel is read once for so many, and more gain nothing. An image of 14 x 14 has
/// 49.
const BLOCK_TILES: usize = 54;

/// Most bytes of transformed input in a block: most of a level-2 cache of 512 KiB, for the weights only stream past.
const BLOCK_BYTES: usize = 448 << 10;

/// Channels whose weights are transformed at once.
const CHUNK: usize = 32;

/// Weights of a 3x3 convolution, transformed and packed for one [`Isa`]. The accumulators are those of
/// [`PackedInt8`](super::gemm_int8::PackedInt8), to the bit.
#[derive(Clone)]
pub struct PackedWinograd {
    isa: Isa,
    /// `[panel, POSITIONS, depth / 2, width, 2]`, where `depth` is `inputs` made a multiple of [`DEPTH`].
    panels: Aligned<i16>,
    column_sums: Vec<i32>,
    inputs: usize,
}

impl PackedWinograd {
    /// Packs `codes`, `[out, 9, inputs]`; taps run over the kernel row by row. Every code from -128 to 127 is exact.
    pub fn pack(isa: Isa, codes: &[i8], out: usize, inputs: usize) -> PackedWinograd {
        assert_eq!(codes.len(), out * TAPS * inputs, "codes [out, 9, inputs]");
        assert!(out > 0 && (1..=INPUTS_MAX).contains(&inputs), "1 to {INPUTS_MAX} inputs");
        let depth = inputs.next_multiple_of(DEPTH);
        let mut panels = Aligned::zeros(out.next_multiple_of(COLUMNS / 2) * POSITIONS * depth);
        for (codes, panel) in
            codes.chunks(COLUMNS * TAPS * inputs).zip(panels.chunks_mut(COLUMNS * POSITIONS * depth))
        {
            isa.vectorize(
                #[inline(always)]
                || pack_panel(codes, inputs, panel),
            );
        }
        let sum = |row: &[i8]| row.iter().map(|&code| i32::from(code)).sum();
        let column_sums = codes.chunks_exact(TAPS * inputs).map(sum).collect();
        PackedWinograd { isa, panels, column_sums, inputs }
    }

    /// `[out]`: the sum of each output channel's codes.
    pub fn column_sums(&self) -> &[i32] {
        &self.column_sums
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        self.panels.bytes() + size_of_val(&self.column_sums[..])
    }

    /// Convolution, with the meaning of [`PackedInt8::conv`](super::gemm_int8::PackedInt8::conv). The window is 3x3
    /// with stride and dilation 1.
    #[expect(clippy::too_many_arguments, reason = "a convolution is its two tensors and its geometry")]
    pub fn conv(
        &self,
        x: &[u8],
        in_stride: usize,
        in_offset: usize,
        window: &Window,
        pad: u8,
        out: IntOutput,
        out_stride: usize,
        out_offset: usize,
        threads: usize,
    ) {
        let (rows, columns) = (window.rows(), self.column_sums.len());
        assert!(is_plain(window), "a 3x3 window with stride and dilation 1");
        assert_eq!(out.len(), rows * out_stride, "output [batch, out_h, out_w, out_stride]");
        assert!(out_offset + columns <= out_stride, "channels within a pixel");
        out.assert_channels(columns);
        if rows == 0 {
            return;
        }
        let tiles = Tiles::new(x, in_stride, in_offset, self.inputs, window, pad);
        let products = tiles.count() * POSITIONS * columns * self.inputs;
        let parts = parts(threads, products / self.isa.products_per_ns());
        let (lines, panels) = (tiles.lines(), columns.div_ceil(COLUMNS));
        // A part wants tiles enough to read the weights for, and as many as another part.
        let few = tiles.count() < 64 * parts && panels >= parts || lines < parts.min(panels);
        if parts > 1 && few {
            let job = Columns { packed: self, tiles: &tiles, rows, out_stride, out_offset, parts };
            return match out {
                IntOutput::U8(out, requant) => job.run(out, |out| IntOutput::U8(out, requant)),
                IntOutput::F32(out, dequant) => job.run(out, |out| IntOutput::F32(out, dequant)),
                IntOutput::I32(out, bias) => job.run(out, |out| IntOutput::I32(out, bias)),
            };
        }
        let start = |line| tiles.first_pixel(line) * out_stride;
        split_units(out, 0..lines, &start, parts, &|lines, mut out| {
            out.with_own_part(start(lines.start), |out| {
                self.part(&tiles, lines, 0..columns, out, out_stride, out_offset, true);
            });
        });
    }

    /// The share of one thread, lines `lines` of tiles: `out` starts at the first pixel and column of it. The table is
    /// applied if the rows are `whole`.
    #[expect(clippy::too_many_arguments, reason = "a part is its operands and its place")]
    fn part(
        &self,
        tiles: &Tiles,
        lines: Range<usize>,
        columns: Range<usize>,
        out: &mut IntOutput,
        out_stride: usize,
        out_offset: usize,
        whole: bool,
    ) {
        let (inputs, isa) = (self.inputs, self.isa);
        let (depth, ld) = (inputs.next_multiple_of(DEPTH), inputs.next_multiple_of(16));
        let first_pixel = tiles.first_pixel(lines.start);
        let most = (BLOCK_BYTES / (POSITIONS * ld * 2) / ROWS).clamp(1, BLOCK_TILES / ROWS) * ROWS;
        let all = lines.start * tiles.per_line()..lines.end * tiles.per_line();
        let most = most.min(all.len());
        // Positions lie apart by no multiple of 4096 bytes, for sixteen such would fall into one set of the cache.
        let slab = most * ld + 32;
        with_scratch::<i16, _>(POSITIONS * slab, |v| {
            with_scratch::<i32, _>(most * POSITIONS * COLUMNS, |m| {
                for block in even(all, most) {
                    input(isa, tiles, block.clone(), v, ld, slab);
                    for first in columns.clone().step_by(COLUMNS) {
                        let panel = &self.panels[first * POSITIONS * depth..];
                        let width =
                            if self.column_sums.len() - first <= COLUMNS / 2 { COLUMNS / 2 } else { COLUMNS };
                        for p in 0..POSITIONS {
                            let (v, m) = (&v[p * slab..], &mut m[p * COLUMNS..]);
                            let panel = &panel[p * width * depth..][..width * depth];
                            products(isa, v, ld, block.len(), panel, width, depth, m);
                        }
                        for run in tiles.runs(block.clone()) {
                            let m = &m[(run.tiles.start - block.start) * POSITIONS * COLUMNS..];
                            let at =
                                (run.pixel - first_pixel) * out_stride + out_offset + first - columns.start;
                            let columns = COLUMNS.min(columns.end - first);
                            let place = Place { at, stride: out_stride, channel: first, columns };
                            let line = tiles.out_w() * out_stride;
                            outputs(isa, m, width, run.pixels, run.lines, line, out, place);
                        }
                    }
                    if whole {
                        self.finish(tiles, block, first_pixel, out, out_stride, out_offset);
                    }
                }
            });
        });
    }

    /// What is done with whole rows of output, those of tiles `block`, while they are hot.
    fn finish(
        &self,
        tiles: &Tiles,
        block: Range<usize>,
        first_pixel: usize,
        out: &mut IntOutput,
        out_stride: usize,
        out_offset: usize,
    ) {
        let columns = self.column_sums.len();
        for run in tiles.runs(block) {
            for line in 0..run.lines {
                let first = run.pixel - first_pixel + line * tiles.out_w();
                let starts = (first..first + run.pixels).map(|row| row * out_stride + out_offset);
                Rows { starts, stride: out_stride, channels: 0..columns, summed: false }
                    .complete(self.isa, out);
            }
        }
    }

    /// Whether a convolution gains by this: a 3x3 window with stride and dilation 1, and enough channels and tiles to
    /// pay for the transforms. With byte dot products a direct product is as fast.
    pub fn suits(isa: Isa, window: &Window, inputs: usize, out: usize) -> bool {
        #[cfg(target_arch = "x86_64")]
        let pairs = matches!(isa, Isa::Avx2(_));
        #[cfg(not(target_arch = "x86_64"))]
        let pairs = false;
        let _ = isa;
        pairs && is_plain(window) && (1..=INPUTS_MAX).contains(&inputs) && pays(window, inputs, out)
    }
}

/// A convolution whose threads share columns. As those do not lie side by side in the output, the parts write to
/// scratch; it is little, or the threads would share rows.
struct Columns<'a> {
    packed: &'a PackedWinograd,
    tiles: &'a Tiles<'a>,
    rows: usize,
    out_stride: usize,
    out_offset: usize,
    parts: usize,
}

impl Columns<'_> {
    fn run<'b, T: Pod>(self, out: &'b mut [T], kind: impl for<'o> Fn(&'o mut [T]) -> IntOutput<'o, 'b>) {
        let Columns { packed, tiles, rows, out_stride, out_offset, parts } = self;
        let columns = packed.column_sums.len();
        let most = columns.div_ceil(parts).next_multiple_of(COLUMNS);
        with_scratch::<T, _>(rows * columns, |scratch| {
            let parts = columns.div_ceil(most);
            split_rows(kind(scratch), 0..columns, rows, most, parts, &|columns, mut out| {
                packed.part(tiles, 0..tiles.lines(), columns.clone(), &mut out, columns.len(), 0, false);
            });
            for (i, part) in scratch.chunks(most * rows).enumerate() {
                let len = part.len() / rows;
                for (row, part) in part.chunks(len).enumerate() {
                    out[row * out_stride + out_offset + i * most..][..len].copy_from_slice(part);
                }
            }
        });
        packed.finish(tiles, 0..tiles.count(), 0, &mut kind(out), out_stride, out_offset);
    }
}

/// Whether a window is one that this file computes.
fn is_plain(window: &Window) -> bool {
    let Window { kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, .. } = *window;
    [kernel_h, kernel_w] == [3, 3] && [stride_h, stride_w, dilation_h, dilation_w] == [1; 4]
}

/// Whether the transforms and the larger weights cost less than the products saved, in cycles of one core. The
/// constants come from AVX2 on a Sapphire Rapids; no other processor was measured.
fn pays(window: &Window, inputs: usize, out: usize) -> bool {
    let tiles = window.batch * window.out_h.div_ceil(2) * window.out_w.div_ceil(2);
    let weights = inputs.next_multiple_of(DEPTH) * out.next_multiple_of(COLUMNS / 2);
    // 24 products a cycle; weights come at some 6 bytes a cycle where they do not fit the level-2 cache.
    let product = |rows: usize, bytes: usize| {
        let stream = if bytes > 512 << 10 { bytes / 6 } else { 0 };
        (rows * weights / 24).max(stream)
    };
    let direct = product(window.rows() * TAPS, weights * TAPS * 2);
    let transforms = tiles * (60 * inputs.div_ceil(16) + 60 * out.div_ceil(COLUMNS));
    inputs >= 16 && out >= 8 && product(tiles * POSITIONS, weights * POSITIONS * 2) + transforms < direct
}

/// Transforms and packs up to 16 output channels `codes`, `[.., 9, inputs]`, into `panel`, which is all zero before.
#[inline(always)]
fn pack_panel(codes: &[i8], inputs: usize, panel: &mut [i16]) {
    let depth = inputs.next_multiple_of(DEPTH);
    let width = panel.len() / (POSITIONS * depth);
    // `[COLUMNS, POSITIONS, CHUNK]`
    let mut u = [[[0i16; CHUNK]; POSITIONS]; COLUMNS];
    for first in (0..inputs).step_by(CHUNK) {
        let len = CHUNK.min(inputs - first);
        for (codes, u) in codes.chunks_exact(TAPS * inputs).zip(&mut u) {
            let mut taps = [[0i16; CHUNK]; TAPS];
            for (tap, codes) in taps.iter_mut().zip(codes.chunks_exact(inputs)) {
                let codes = &codes[first..][..len];
                match codes.first_chunk::<CHUNK>() {
                    Some(codes) => *tap = codes.map(i16::from),
                    None => tap.iter_mut().zip(codes).for_each(|(to, &code)| *to = i16::from(code)),
                }
            }
            transform(&taps, u);
        }
        for p in 0..POSITIONS {
            let at = (p * depth + first) * width;
            let pairs = panel[at..][..len.next_multiple_of(2) * width].chunks_exact_mut(2 * width);
            for (k, pair) in pairs.enumerate() {
                for (to, u) in pair.as_chunks_mut::<2>().0.iter_mut().zip(&u) {
                    *to = [u[p][2 * k], u[p][2 * k + 1]];
                }
            }
        }
    }
}

/// 2G g (2G)^T of the kernels of `CHUNK` channels.
#[inline(always)]
fn transform(taps: &[[i16; CHUNK]; TAPS], u: &mut [[i16; CHUNK]; POSITIONS]) {
    for c in 0..CHUNK {
        let mut t = [[0i16; 3]; 4];
        for x in 0..3 {
            let column = kernel(taps[x][c], taps[3 + x][c], taps[6 + x][c]);
            for i in 0..4 {
                t[i][x] = column[i];
            }
        }
        for i in 0..4 {
            let row = kernel(t[i][0], t[i][1], t[i][2]);
            for j in 0..4 {
                u[i * 4 + j][c] = row[j];
            }
        }
    }
}

/// 2G g for one column of a kernel.
#[inline(always)]
fn kernel(a: i16, b: i16, c: i16) -> [i16; 4] {
    [2 * a, a + b + c, a - b + c, 2 * c]
}
