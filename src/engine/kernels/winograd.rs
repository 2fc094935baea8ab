//! Integer 3x3 convolution by Winograd's F(2x2,3x3) and F(4x4,3x3): 16 products instead of 36 for four outputs, or 36
//! instead of 144 for sixteen, and still exact. Knows slices only.
//!
//! Products of 16-bit numbers are what AVX2 multiplies anyway (`vpmaddwd`), and half as many at once as of bytes with dot
//! products (`vpdpwssd`), so no bit is lost. (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.)

use super::coded::{Columns, Output};
use super::isa::Isa;
use super::lines::{Aligned, with_scratch};
use super::parallel::{parts, split_rows, split_units};
use super::rows::Rows;
use super::tiles::Place;
use super::walk::even;
use super::winograd_tiles::{COLUMNS_MAX, DEPTH, Steps, Tiles, input, is_plain, outputs, products};
use super::winograd_transform::{SIDE_MAX, TAPS, Transform};
use super::{IntOutput, Window};
use bytemuck::Pod;
use std::ops::Range;

/// Channels whose weights are transformed at once.
const CHUNK: usize = 32;

/// Weights of a 3x3 convolution, transformed and packed for one [`Isa`]. The accumulators are those of
/// [`PackedInt8`](super::gemm_int8::PackedInt8), to the bit.
#[derive(Clone)]
pub struct PackedWinograd {
    isa: Isa,
    transform: Transform,
    /// `[panel, positions, depth / 2, width, 2]`, where `depth` is `inputs` made a multiple of [`DEPTH`].
    panels: Aligned<i16>,
    column_sums: Vec<i32>,
    inputs: usize,
}

impl PackedWinograd {
    /// Packs `codes`, `[out, 9, inputs]`; taps run over the kernel row by row. The transform is exact with them.
    pub fn pack(isa: Isa, transform: Transform, codes: &[i8], out: usize, inputs: usize) -> PackedWinograd {
        assert_eq!(codes.len(), out * TAPS * inputs, "codes [out, 9, inputs]");
        assert!(out > 0 && inputs > 0, "channels");
        assert!(transform.exact(codes, inputs), "the sums of {transform:?} fit");
        let (depth, columns) = (inputs.next_multiple_of(DEPTH), Steps::new(isa, transform).shape.columns);
        let elements = transform.positions() * depth;
        let mut panels = Aligned::zeros(out.next_multiple_of(columns / 2) * elements);
        let whole = codes.chunks(columns * TAPS * inputs).zip(panels.chunks_mut(columns * elements));
        for (codes, panel) in whole {
            isa.vectorize(
                #[inline(always)]
                || match transform {
                    Transform::F2 => pack_panel(Transform::F2, codes, inputs, panel),
                    Transform::F4 => pack_panel(Transform::F4, codes, inputs, panel),
                },
            );
        }
        let sum = |row: &[i8]| row.iter().map(|&code| i32::from(code)).sum();
        let column_sums = codes.chunks_exact(TAPS * inputs).map(sum).collect();
        PackedWinograd { isa, transform, panels, column_sums, inputs }
    }

    /// `[out]`: the sum of each output channel's codes.
    pub fn column_sums(&self) -> &[i32] {
        &self.column_sums
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        self.panels.bytes() + size_of_val(&self.column_sums[..])
    }

    fn steps(&self) -> Steps {
        Steps::new(self.isa, self.transform)
    }

    /// Convolution, with the meaning of [`PackedInt8::conv`](super::gemm_int8::PackedInt8::conv). The window is 3x3
    /// with stride and dilation 1.
    #[expect(clippy::too_many_arguments, reason = "a convolution is its two tensors and its geometry")]
    pub fn conv<'a, 'b>(
        &self,
        x: &[u8],
        in_stride: usize,
        in_offset: usize,
        window: &Window,
        pad: u8,
        out: impl Into<Output<'a, 'b>>,
        out_stride: usize,
        out_offset: usize,
        threads: usize,
    ) {
        let (rows, columns, out) = (window.rows(), self.column_sums.len(), out.into());
        assert!(is_plain(window), "a 3x3 window with stride and dilation 1");
        assert_eq!(out.len(), rows * out_stride, "output [batch, out_h, out_w, out_stride]");
        assert!(out_offset + columns <= out_stride, "channels within a pixel");
        out.assert_channels(columns);
        if rows == 0 {
            return;
        }
        let steps = self.steps();
        let tiles = Tiles::new(self.transform, x, in_stride, in_offset, self.inputs, window, pad);
        let products = tiles.count() * self.transform.positions() * columns * self.inputs;
        let parts = parts(threads, products / self.isa.products_per_ns());
        let (lines, panels) = (tiles.lines(), columns.div_ceil(steps.shape.columns));
        let written = Columns { stride: out_stride, offset: out_offset, count: columns };
        // A part wants tiles enough to read the weights for, and as many as another part.
        let few = tiles.count() < 64 * parts && panels >= parts || lines < parts.min(panels);
        if parts > 1 && few {
            // Of reals that become codes at once there is one band: it is little.
            let job = Job { packed: self, tiles: &tiles, rows, out_stride, out_offset, parts };
            return out.in_one_band(self.isa, written, |out| job.run(out));
        }
        let start = |line| tiles.first_pixel(line) * out_stride;
        split_units(out, 0..lines, &start, parts, &|lines, out: Output| {
            out.in_bands(self.isa, written, lines, 1, start, |lines, out| {
                self.part(&tiles, lines, 0..columns, out, out_stride, out_offset, true);
            });
        });
    }

    /// The share of one thread, lines `lines` of tiles: `out` starts at the first pixel and column of it. The table is
    /// applied, and codes are added, if the rows are `whole`.
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
        let (steps, inputs, positions) = (self.steps(), self.inputs, self.transform.positions());
        let (depth, ld) = (inputs.next_multiple_of(DEPTH), steps.stride(inputs));
        let first_pixel = tiles.first_pixel(lines.start);
        let all = lines.start * tiles.per_line()..lines.end * tiles.per_line();
        let most = steps.block(inputs).min(all.len());
        // Positions lie apart by no multiple of 4096 bytes, for sixteen such would fall into one set of the cache.
        let slab = most * ld + 32;
        with_scratch::<i16, _>(positions * slab, |v| {
            with_scratch::<i32, _>(most * steps.sums(), |m| {
                for block in even(all, most) {
                    input(steps, tiles, block.clone(), v, ld, slab);
                    for first in columns.clone().step_by(steps.shape.columns) {
                        let panel = &self.panels[first * positions * depth..];
                        let half = self.column_sums.len() - first <= steps.shape.columns / 2;
                        let width = if half { steps.shape.columns / 2 } else { steps.shape.columns };
                        for p in 0..positions {
                            let (v, m) = (&v[p * slab..], &mut m[p * steps.shape.columns..]);
                            let panel = &panel[p * width * depth..][..width * depth];
                            products(steps, v, ld, block.len(), panel, width, depth, m);
                        }
                        for run in tiles.runs(block.clone()) {
                            let m = &m[(run.tiles.start - block.start) * steps.sums()..];
                            let at =
                                (run.pixel - first_pixel) * out_stride + out_offset + first - columns.start;
                            let columns = steps.shape.columns.min(columns.end - first);
                            let place = Place { at, stride: out_stride, channel: first, columns };
                            let line = tiles.out_w() * out_stride;
                            outputs(steps, m, width, run.pixels, run.lines, line, out, place, whole);
                        }
                    }
                    if whole {
                        self.finish(
                            tiles,
                            block,
                            first_pixel,
                            out,
                            out_stride,
                            out_offset,
                            steps.adds_sums(),
                        );
                    }
                }
            });
        });
    }

    /// What is done with whole rows of output, those of tiles `block`, while they are hot: `summed` as in [`Rows`].
    #[expect(clippy::too_many_arguments, reason = "a part is its operands and its place")]
    fn finish(
        &self,
        tiles: &Tiles,
        block: Range<usize>,
        first_pixel: usize,
        out: &mut IntOutput,
        out_stride: usize,
        out_offset: usize,
        summed: bool,
    ) {
        let columns = self.column_sums.len();
        for run in tiles.runs(block) {
            for line in 0..run.lines {
                let first = run.pixel - first_pixel + line * tiles.out_w();
                let starts = (first..first + run.pixels).map(|row| row * out_stride + out_offset);
                Rows { starts, stride: out_stride, channels: 0..columns, summed }.complete(self.isa, out);
            }
        }
    }
}

/// A convolution whose threads share columns. As those do not lie side by side in the output, the parts write to
/// scratch; it is little, or the threads would share rows.
struct Job<'a> {
    packed: &'a PackedWinograd,
    tiles: &'a Tiles<'a>,
    rows: usize,
    out_stride: usize,
    out_offset: usize,
    parts: usize,
}

impl Job<'_> {
    fn run(&self, out: &mut IntOutput) {
        match out {
            IntOutput::U8(out, requant) => self.run_to(out, |out| IntOutput::U8(out, requant)),
            IntOutput::F32(out, dequant) => self.run_to(out, |out| IntOutput::F32(out, dequant)),
            IntOutput::I32(out, bias) => self.run_to(out, |out| IntOutput::I32(out, bias)),
        }
    }

    fn run_to<'b, T: Pod>(&self, out: &'b mut [T], kind: impl for<'o> Fn(&'o mut [T]) -> IntOutput<'o, 'b>) {
        let &Job { packed, tiles, rows, out_stride, out_offset, parts } = self;
        let columns = packed.column_sums.len();
        let most = columns.div_ceil(parts).next_multiple_of(packed.steps().shape.columns);
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
        packed.finish(tiles, 0..tiles.count(), 0, &mut kind(out), out_stride, out_offset, false);
    }
}

/// Transforms and packs the output channels `codes`, `[.., 9, inputs]`, of one panel into `panel`, which is all zero
/// before.
#[inline(always)]
fn pack_panel(transform: Transform, codes: &[i8], inputs: usize, panel: &mut [i16]) {
    let (depth, positions) = (inputs.next_multiple_of(DEPTH), transform.positions());
    let width = panel.len() / (positions * depth);
    // `[columns, positions, CHUNK]`
    let mut u = [[[0i16; CHUNK]; SIDE_MAX * SIDE_MAX]; COLUMNS_MAX];
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
            transform_kernels(transform, &taps, u);
        }
        for p in 0..positions {
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

/// G g G^T, scaled, of the kernels of `CHUNK` channels.
#[inline(always)]
fn transform_kernels(
    transform: Transform,
    taps: &[[i16; CHUNK]; TAPS],
    u: &mut [[i16; CHUNK]; SIDE_MAX * SIDE_MAX],
) {
    let side = transform.side();
    for c in 0..CHUNK {
        let mut t = [[0i16; 3]; SIDE_MAX];
        for x in 0..3 {
            let column = transform.kernel([taps[x][c], taps[3 + x][c], taps[6 + x][c]]);
            for i in 0..SIDE_MAX {
                t[i][x] = column[i];
            }
        }
        for i in 0..side {
            let row = transform.kernel(t[i]);
            for j in 0..side {
                u[i * side + j][c] = row[j];
            }
        }
    }
}
