//! Integer product and convolution: `u8` activations times packed `i8` weights, accumulated in `i32` and
//! finished in registers. Neither an im2col copy nor an `i32` tensor is made. Knows slices only.

use super::isa::Isa;
use super::lines::Aligned;
use super::parallel::{parts, split_rows};
use super::patches::Patches;
use super::rows::Rows;
#[cfg(target_arch = "x86_64")]
use super::schedule::Schedule;
#[cfg(target_arch = "x86_64")]
use super::tiles::{INT8_MATRIX, INT8_QUADS, INT8_QUADS_NARROW, INT8_SCHEDULED};
use super::tiles::{INT8_PAIRS, Place, Reach, Shape};
use super::walk::{walk, walk_lines};
use super::{IntOutput, Window};
#[cfg(target_arch = "aarch64")]
use super::{aarch64_dot::NeonDot, aarch64_neon::Neon, tiles::INT8_QUADS_NEON};
#[cfg(target_arch = "x86_64")]
use super::{
    blocks::{Product, Runs},
    lines::with_scratch,
    x86_64::Avx2,
    x86_64_amx::Amx,
    x86_64_avxvnni::AvxVnni,
    x86_64_vnni::Avx512Vnni,
};
use bytemuck::Pod;
use std::cell::RefCell;
use std::ops::Range;

/// Weights from which on a layer is read from a far cache each time, so that bytes come sooner than numbers of 16 bits.
#[cfg(target_arch = "x86_64")]
const STREAMED: usize = 128 << 10;

/// Output pixels in a line, and output channels, from which on and up to which a convolution reads lines: narrower lines leave
/// tiles half empty, and more channels share what gathering takes.
const LINES_WIDTH_MIN: usize = 20;
const LINES_COLUMNS_MAX: usize = 128;

/// Hundredths of the time of pairs that widening the activations takes, times the columns that share it.
#[cfg(target_arch = "x86_64")]
const WIDENING: usize = 360;

/// Weights of a dense layer or convolution, packed for one [`Isa`].
///
/// The accumulator of output channel `n` is `sum(a[k] * w[n, k])` over taps and inputs, without zero points: a
/// caller whose input has zero point `z` puts `-z * column_sums()[n]` into the bias.
#[derive(Clone)]
pub struct PackedInt8 {
    isa: Isa,
    panels: Panels,
    column_sums: Vec<i32>,
    taps: usize,
    inputs: usize,
    /// Rows of the kernel, where a convolution reads lines of its input and each row is padded by itself.
    lines: Option<usize>,
}

/// What packed weights look like, for reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// Numbers of 16 bits, two of a column side by side.
    Pairs,
    /// The same in bytes, which are extended when they are read.
    BytePairs,
    /// Bytes, four of a column side by side, in an order that lets most of their products add in 16 bits.
    Scheduled(Shares),
    /// Bytes, four of a column side by side, for dot products of bytes.
    Quads,
}

/// Shares of the quads of scheduled weights, fastest first. They add up to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// Two quads added in 16 bits.
    pub paired: f32,
    /// Quads whose products add in 16 bits two by two.
    pub single: f32,
    /// Quads whose products are added in 32 bits only.
    pub wide: f32,
}

/// The same weights as the instruction sets want them.
#[derive(Clone)]
enum Panels {
    /// Panels of [`INT8_PAIRS`], for products of 16-bit numbers.
    Pairs(Aligned<i16>),
    /// The same in bytes, which are extended when they are read.
    #[cfg(target_arch = "x86_64")]
    BytePairs(Avx2, Aligned<i8>),
    /// Panels of [`INT8_SCHEDULED`], for products of bytes that add in 16 bits where that is exact.
    #[cfg(target_arch = "x86_64")]
    Scheduled(Avx2, Schedule),
    /// Panels of [`INT8_QUADS`], for dot products of bytes.
    #[cfg(target_arch = "x86_64")]
    Quads(Avx512Vnni, Aligned<i8>),
    /// Panels of [`INT8_QUADS_NARROW`].
    #[cfg(target_arch = "x86_64")]
    NarrowQuads(AvxVnni, Aligned<i8>),
    /// Panels of [`INT8_MATRIX`], for matrix tiles, and how their depth is padded.
    #[cfg(target_arch = "x86_64")]
    Matrix(Amx, Runs, Aligned<i8>),
    /// Panels of [`INT8_QUADS_NEON`] with [parted quads](Neon::part_quads), for products of signed bytes, and what the
    /// sum of each column begins with.
    #[cfg(target_arch = "aarch64")]
    Signed(Neon, Aligned<i8>, Aligned<i32>),
    /// The same with whole quads, for dot products.
    #[cfg(target_arch = "aarch64")]
    SignedDot(NeonDot, Aligned<i8>, Aligned<i32>),
}

impl PackedInt8 {
    /// Packs `codes`, `[out, taps, inputs]`; taps run over the kernel row by row. A matrix `B[k, n]` is codes
    /// `[n, 1, k]`. Every code from -128 to 127 is exact.
    pub fn pack(isa: Isa, codes: &[i8], out: usize, taps: usize, inputs: usize) -> PackedInt8 {
        PackedInt8::pack_as(isa, codes, out, taps, inputs, false)
    }

    /// [`PackedInt8::pack`], in the smallest form instead of the fastest if `small`.
    pub fn pack_as(
        isa: Isa,
        codes: &[i8],
        out: usize,
        taps: usize,
        inputs: usize,
        small: bool,
    ) -> PackedInt8 {
        PackedInt8::pack_by(isa, codes, out, taps, inputs, small, None)
    }

    /// [`PackedInt8::pack_as`] for convolutions with the kernel of `window`: where they read few pixels of many, or few
    /// products are made of each, they need not gather what they read.
    pub fn pack_for(
        isa: Isa,
        codes: &[i8],
        out: usize,
        window: &Window,
        inputs: usize,
        small: bool,
    ) -> PackedInt8 {
        let suits = window.taps() > 1
            && window.dilation_w == 1
            && window.out_w >= LINES_WIDTH_MIN
            && out <= LINES_COLUMNS_MAX;
        let lines = suits.then_some(window.kernel_h);
        PackedInt8::pack_by(isa, codes, out, window.taps(), inputs, small, lines)
    }

    fn pack_by(
        isa: Isa,
        codes: &[i8],
        out: usize,
        taps: usize,
        inputs: usize,
        small: bool,
        lines: Option<usize>,
    ) -> PackedInt8 {
        let depth = taps * inputs;
        assert_eq!(codes.len(), out * depth, "codes [out, taps, inputs]");
        assert!(out > 0 && depth > 0, "a product has columns and depth");
        let panels = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(vnni) => Panels::Quads(vnni, pack(INT8_QUADS, codes, out, lines)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => match Schedule::pack(isa, codes, depth, 100 + WIDENING / out) {
                Some(schedule) if !small || schedule.bytes() <= codes.len() / 4 * 5 => {
                    Panels::Scheduled(avx2, schedule)
                }
                _ if small || codes.len() >= STREAMED => {
                    Panels::BytePairs(avx2, pack(INT8_PAIRS, codes, out, lines))
                }
                _ => Panels::Pairs(pack(INT8_PAIRS, codes, out, lines)),
            },
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni(vnni) => Panels::NarrowQuads(vnni, pack(INT8_QUADS_NARROW, codes, out, lines)),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(amx) => {
                let runs = Runs::of(taps, inputs);
                let places: Vec<Option<usize>> = (0..runs.depth()).map(|k| runs.element(k)).collect();
                let code = |n, k: usize| places[k].map_or(0, |k| codes[n * depth + k]);
                Panels::Matrix(amx, runs, pack_elements(INT8_MATRIX, out, runs.depth(), code))
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => {
                let mut panels = pack(INT8_QUADS_NEON, codes, out, None);
                Neon::part_quads(&mut panels);
                Panels::Signed(neon, panels, starts(codes, depth, Neon::excess))
            }
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot(dot) => {
                let panels = pack(INT8_QUADS_NEON, codes, out, None);
                Panels::SignedDot(dot, panels, starts(codes, depth, NeonDot::excess))
            }
            _ => Panels::Pairs(pack(INT8_PAIRS, codes, out, lines)),
        };
        // The other forms gather.
        let lines = lines.filter(|_| match &panels {
            Panels::Pairs(_) => true,
            #[cfg(target_arch = "x86_64")]
            Panels::BytePairs(..) | Panels::Quads(..) | Panels::NarrowQuads(..) => true,
            #[cfg(target_arch = "x86_64")]
            Panels::Scheduled(..) | Panels::Matrix(..) => false,
            #[cfg(target_arch = "aarch64")]
            Panels::Signed(..) | Panels::SignedDot(..) => false,
        });
        let sum = |row: &[i8]| row.iter().map(|&code| i32::from(code)).sum();
        let column_sums = codes.chunks_exact(depth).map(sum).collect();
        PackedInt8 { isa, panels, column_sums, taps, inputs, lines }
    }

    /// `[out]`: the sum of each output channel's codes.
    pub fn column_sums(&self) -> &[i32] {
        &self.column_sums
    }

    /// How the weights were packed.
    pub fn form(&self) -> Form {
        match &self.panels {
            Panels::Pairs(_) => Form::Pairs,
            #[cfg(target_arch = "x86_64")]
            Panels::BytePairs(..) => Form::BytePairs,
            #[cfg(target_arch = "x86_64")]
            Panels::Scheduled(_, schedule) => {
                let quads = schedule.quads();
                let all: usize = quads.iter().sum();
                let [paired, single, wide] = quads.map(|quads| quads as f32 / all as f32);
                Form::Scheduled(Shares { paired, single, wide })
            }
            #[cfg(target_arch = "x86_64")]
            Panels::Quads(..) | Panels::NarrowQuads(..) | Panels::Matrix(..) => Form::Quads,
            #[cfg(target_arch = "aarch64")]
            Panels::Signed(..) | Panels::SignedDot(..) => Form::Quads,
        }
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        let panels = match &self.panels {
            Panels::Pairs(panels) => panels.bytes(),
            #[cfg(target_arch = "x86_64")]
            Panels::Scheduled(_, schedule) => schedule.bytes(),
            #[cfg(target_arch = "x86_64")]
            Panels::BytePairs(_, panels) => panels.bytes(),
            #[cfg(target_arch = "x86_64")]
            Panels::Quads(_, panels) | Panels::NarrowQuads(_, panels) | Panels::Matrix(.., panels) => {
                panels.bytes()
            }
            #[cfg(target_arch = "aarch64")]
            Panels::Signed(_, panels, starts) | Panels::SignedDot(_, panels, starts) => {
                panels.bytes() + starts.bytes()
            }
        };
        panels + size_of_val(&self.column_sums[..])
    }

    /// Product of `a`, `[rows, inputs]`, with the weights; `out` is `[rows, n]`. Uses up to `threads` threads.
    pub fn matmul(&self, a: &[u8], rows: usize, out: IntOutput, threads: usize) {
        let columns = self.column_sums.len();
        self.conv(a, self.inputs, 0, &Window::of_rows(rows), 0, out, columns, 0, threads);
    }

    /// Convolution of channels `in_offset .. in_offset + inputs` of `x`, `[batch, in_h, in_w, in_stride]`, to
    /// channels `out_offset ..` of `out`, `[batch, out_h, out_w, out_stride]`, with up to `threads` threads.
    ///
    /// Padding reads the code `pad`, which is the input's zero point. Strides and offsets serve groups and
    /// concatenation in place; other channels of `out` are left alone.
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
        assert_eq!(window.taps(), self.taps, "a window of the packed kernel");
        assert!(
            self.lines.is_none_or(|lines| lines == window.kernel_h && window.dilation_w == 1),
            "the kernel that was packed by lines"
        );
        assert_eq!(out.len(), rows * out_stride, "output [batch, out_h, out_w, out_stride]");
        assert!(out_offset + columns <= out_stride, "channels within a pixel");
        out.assert_channels(columns);
        if rows == 0 {
            return;
        }
        let patches = Patches::new(x, in_stride, in_offset, self.inputs, window, pad);
        let products = rows * columns * self.taps * self.inputs;
        let parts = parts(threads, products / self.isa.byte_products_per_ns());
        let shape = self.shape();
        if rows == 1 && out_stride == columns {
            // One row has no rows to share, but its columns lie side by side.
            split_rows(out, 0..columns, 1, shape.columns, parts, &|range, mut out| {
                self.part(&patches, 0..1, range, &mut out, out_stride, 0);
            });
        } else {
            split_rows(out, 0..rows, out_stride, self.row_quantum(window), parts, &|range, mut out| {
                self.part(&patches, range, 0..columns, &mut out, out_stride, out_offset);
            });
        }
    }

    fn shape(&self) -> Shape {
        match self.panels {
            Panels::Pairs(_) => INT8_PAIRS,
            #[cfg(target_arch = "x86_64")]
            Panels::BytePairs(..) => INT8_PAIRS,
            #[cfg(target_arch = "x86_64")]
            Panels::Scheduled(..) => INT8_SCHEDULED,
            #[cfg(target_arch = "x86_64")]
            Panels::Quads(..) => INT8_QUADS,
            #[cfg(target_arch = "x86_64")]
            Panels::NarrowQuads(..) => INT8_QUADS_NARROW,
            #[cfg(target_arch = "x86_64")]
            Panels::Matrix(..) => INT8_MATRIX,
            #[cfg(target_arch = "aarch64")]
            Panels::Signed(..) | Panels::SignedDot(..) => INT8_QUADS_NEON,
        }
    }

    /// Threads share the work in multiples of so many rows: register tiles, or lines, which would be copied twice.
    fn row_quantum(&self, window: &Window) -> usize {
        match self.lines {
            Some(_) if window.out_h > 1 => window.out_w,
            _ => self.shape().rows,
        }
    }

    /// The share of one thread: `out` starts at its first row and column.
    fn part(
        &self,
        patches: &Patches<u8>,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut IntOutput,
        out_stride: usize,
        out_offset: usize,
    ) {
        let isa = self.isa;
        match &self.panels {
            Panels::Pairs(panels) => {
                let tile = |a: &[i16],
                            reach: Reach,
                            rows,
                            width,
                            depth,
                            out: &mut IntOutput,
                            place: Place,
                            share: Share| {
                    let range = INT8_PAIRS.panel(place.channel, width, depth * reach.runs);
                    let (panel, ahead) = (&panels[range.clone()], ahead(panels, range, share));
                    tile(isa, a, reach, rows, panel, ahead, width, depth, out, place)
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "x86_64")]
            Panels::BytePairs(avx2, panels) => {
                let tile = |a: &[i16],
                            reach: Reach,
                            rows,
                            width,
                            depth,
                            out: &mut IntOutput,
                            place: Place,
                            share: Share| {
                    let range = INT8_PAIRS.panel(place.channel, width, depth * reach.runs);
                    let (panel, ahead) = (&panels[range.clone()], ahead(panels, range, share));
                    avx2.pair_rows(a, reach, rows, panel, ahead, width, depth, out, place)
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "x86_64")]
            Panels::Scheduled(avx2, schedule) => {
                let tile = |a: &[u8],
                            reach: Reach,
                            rows,
                            width,
                            _,
                            out: &mut IntOutput,
                            place: Place,
                            share: Share| {
                    let ahead = schedule.ahead(place.channel, share);
                    avx2.scheduled_rows(
                        a,
                        reach.row,
                        rows,
                        schedule.panel(place.channel, width),
                        ahead,
                        out,
                        place,
                    )
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "x86_64")]
            Panels::Quads(vnni, panels) => {
                let tile = |a: &[u8],
                            reach: Reach,
                            rows,
                            width,
                            depth,
                            out: &mut IntOutput,
                            place: Place,
                            _: Share| {
                    let panel = &panels[INT8_QUADS.panel(place.channel, width, depth * reach.runs)];
                    vnni.int8_rows(a, reach, rows, panel, width, depth, out, place)
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "x86_64")]
            Panels::NarrowQuads(vnni, panels) => {
                let tile = |a: &[u8],
                            reach: Reach,
                            rows,
                            width,
                            depth,
                            out: &mut IntOutput,
                            place: Place,
                            _: Share| {
                    let panel = &panels[INT8_QUADS_NARROW.panel(place.channel, width, depth * reach.runs)];
                    vnni.int8_rows(a, reach, rows, panel, width, depth, out, place)
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "aarch64")]
            Panels::Signed(neon, panels, starts) => {
                let tile = |a: &[u8],
                            reach: Reach,
                            rows,
                            width,
                            depth,
                            out: &mut IntOutput,
                            place: Place,
                            _: Share| {
                    let panel = &panels[INT8_QUADS_NEON.panel(place.channel, width, depth)];
                    neon.int8_tile(
                        a,
                        reach.row,
                        rows,
                        panel,
                        width,
                        depth,
                        &starts[place.channel..],
                        out,
                        place,
                    )
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "aarch64")]
            Panels::SignedDot(dot, panels, starts) => {
                let tile = |a: &[u8],
                            reach: Reach,
                            rows,
                            width,
                            depth,
                            out: &mut IntOutput,
                            place: Place,
                            _: Share| {
                    let panel = &panels[INT8_QUADS_NEON.panel(place.channel, width, depth)];
                    dot.int8_tile(
                        a,
                        reach.row,
                        rows,
                        panel,
                        width,
                        depth,
                        &starts[place.channel..],
                        out,
                        place,
                    )
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "x86_64")]
            Panels::Matrix(amx, runs, panels) if rows.len() == 1 => {
                let origin = rows.start * out_stride + columns.start;
                self.single_row(*amx, *runs, panels, patches, rows.start, columns, out, out_offset, origin);
            }
            #[cfg(target_arch = "x86_64")]
            Panels::Matrix(amx, runs, panels) => {
                let (first_row, run) = (rows.start, columns.len());
                let product = Product {
                    amx: *amx,
                    panels,
                    runs: *runs,
                    columns: run,
                    out,
                    out_stride,
                    out_offset,
                    first_row,
                };
                product.multiply(patches, rows, |out, rows| {
                    let starts = rows.map(|row| (row - first_row) * out_stride + out_offset);
                    let origin = first_row * out_stride;
                    Rows { starts, stride: out_stride, channels: 0..run, origin }.complete(isa, out);
                });
            }
        }
    }

    /// One row: a matrix tile would stay empty but for that row.
    #[cfg(target_arch = "x86_64")]
    #[expect(clippy::too_many_arguments, reason = "a part is its operands and its place")]
    fn single_row(
        &self,
        amx: Amx,
        runs: Runs,
        panels: &[i8],
        patches: &Patches<u8>,
        row: usize,
        columns: Range<usize>,
        out: &mut IntOutput,
        out_offset: usize,
        origin: usize,
    ) {
        let (depth, stride, all) =
            (runs.depth(), self.taps * self.inputs + patches.spare(), self.column_sums.len());
        with_scratch::<u8, _>(stride + depth, |scratch| {
            let (gathered, a) = scratch.split_at_mut(stride);
            patches.gather(row, 0..self.taps * self.inputs, gathered, stride);
            runs.spread(&gathered[..self.taps * self.inputs], a);
            for first in columns.clone().step_by(INT8_MATRIX.columns) {
                let (at, count) =
                    (out_offset + first - columns.start, (columns.end - first).min(INT8_MATRIX.columns));
                let place = Place { at, stride: count, channel: first, columns: count };
                let width = INT8_MATRIX.width(first, all);
                let panel = &panels[INT8_MATRIX.panel_start(first, depth)..][..width * depth];
                amx.wide().int8_rows(a, Reach::of_rows(depth), 1, panel, width, depth, out, place);
            }
        });
        let starts = std::iter::once(out_offset);
        Rows { starts, stride: columns.len(), channels: columns, origin }.complete(self.isa, out);
    }

    /// [`PackedInt8::part`] for one form of the weights and its tile.
    #[expect(clippy::too_many_arguments, reason = "a part is its operands, its place and its tile")]
    fn part_of<A: Pod + From<u8>>(
        &self,
        patches: &Patches<u8>,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut IntOutput,
        out_stride: usize,
        out_offset: usize,
        tile: impl Fn(&[A], Reach, usize, usize, usize, &mut IntOutput, Place, Share),
    ) {
        let (shape, all) = (self.shape(), self.column_sums.len());
        let (depth, run) = (self.taps * self.inputs, columns.len());
        let padded = shape.padded(depth / self.lines.unwrap_or(1));
        let (first_row, first_column) = (rows.start, columns.start);
        let at = |row: usize| (row - first_row) * out_stride + out_offset;
        // Both visitors write: the tiles of a block, then its table.
        let out = RefCell::new(out);
        let tile =
            |a: &[A], reach, rows: Range<usize>, columns: Range<usize>, width, block: &Range<usize>| {
                let place = Place {
                    at: at(rows.start) + columns.start - first_column,
                    stride: out_stride,
                    channel: columns.start,
                    columns: columns.len(),
                };
                let share = (rows.start - block.start, rows.end - block.start, block.len());
                tile(a, reach, rows.len(), width, padded, &mut out.borrow_mut(), place, share);
            };
        let done = |rows: Range<usize>| {
            let (starts, channels) = (rows.map(at), first_column..first_column + run);
            let origin = first_row * out_stride + first_column;
            Rows { starts, stride: out_stride, channels, origin }.complete(self.isa, &mut out.borrow_mut());
        };
        if self.lines.is_some() {
            walk_lines(self.isa, shape, patches, all, rows, columns, tile, done);
        } else {
            let tile = |a: &[A], lda, rows, columns, width, _, block: &Range<usize>| {
                tile(a, Reach::of_rows(lda), rows, columns, width, block);
            };
            walk(self.isa, shape, patches, depth, all, rows, columns, tile, done);
        }
    }
}

/// Of the rows of a block those of a tile: from, to, of how many.
type Share = (usize, usize, usize);

/// What a tile should ask for early: its share of the panel behind `panel`, which the block wants next.
fn ahead<T>(panels: &[T], panel: Range<usize>, (from, to, of): Share) -> &[T] {
    let len = panel.len().min(panels.len() - panel.end);
    &panels[panel.end + len * from / of..panel.end + len * to / of]
}

/// Packs codes `[columns, depth]`, each of `lines` equal parts of a column padded by itself.
fn pack<T: Pod + From<i8>>(shape: Shape, codes: &[i8], columns: usize, lines: Option<usize>) -> Aligned<T> {
    let (depth, lines) = (codes.len() / columns, lines.unwrap_or(1));
    let (run, padded) = (depth / lines, shape.padded(depth / lines));
    pack_elements(shape, columns, lines * padded, |n, k| match k % padded < run {
        true => T::from(codes[n * depth + k / padded * run + k % padded]),
        false => T::from(0),
    })
}

/// Packs columns `[columns, depth]` given by `element(column, k)`.
fn pack_elements<T: Pod>(
    shape: Shape,
    columns: usize,
    depth: usize,
    element: impl Fn(usize, usize) -> T,
) -> Aligned<T> {
    let mut panels = Aligned::zeros(shape.packed_len(columns, depth));
    shape.pack(columns, depth, &mut panels, element);
    panels
}

/// The sum of each column's weights `[columns, depth]`, times `excess` of their place in it, modulo 2^32; zeros up to a
/// whole panel.
#[cfg(target_arch = "aarch64")]
fn starts(codes: &[i8], depth: usize, excess: impl Fn(usize) -> i32) -> Aligned<i32> {
    let columns = codes.len() / depth;
    let mut starts = Aligned::<i32>::zeros(columns.next_multiple_of(INT8_QUADS_NEON.columns));
    for (start, codes) in starts.iter_mut().zip(codes.chunks_exact(depth)) {
        let products = codes.iter().enumerate().map(|(k, &code)| i32::from(code) * excess(k));
        *start = products.fold(0, i32::wrapping_add);
    }
    starts
}

/// A tile in pairs, of AVX2 or in plain Rust.
#[expect(clippy::too_many_arguments, reason = "a tile is its operands and its place")]
#[inline(always)]
fn tile(
    isa: Isa,
    a: &[i16],
    reach: Reach,
    rows: usize,
    panel: &[i16],
    ahead: &[i16],
    width: usize,
    depth: usize,
    out: &mut IntOutput,
    place: Place,
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = isa.avx2() {
        return avx2.pair_rows(a, reach, rows, panel, ahead, width, depth, out, place);
    }
    let _ = (isa, ahead);
    for r in 0..rows {
        let mut acc = [0i32; INT8_PAIRS.columns];
        for (i, panel) in panel.chunks_exact(depth * width).enumerate() {
            let a = &a[r * reach.row + i * reach.run..][..depth];
            for (pair, b) in a.chunks_exact(2).zip(panel.chunks_exact(2 * width)) {
                for (acc, b) in acc.iter_mut().zip(b.chunks_exact(2)) {
                    let products =
                        i32::from(pair[0]) * i32::from(b[0]) + i32::from(pair[1]) * i32::from(b[1]);
                    *acc = acc.wrapping_add(products);
                }
            }
        }
        out.put(place.at + r * place.stride, place.channel, &acc[..place.columns]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, window, windows};
    use super::super::{Dequant, Requant, reference};
    use super::*;

    /// Where the channels used lie within the pixels of both tensors.
    #[derive(Clone, Copy, Debug)]
    struct Channels {
        inputs: usize,
        in_stride: usize,
        in_offset: usize,
        outputs: usize,
        out_stride: usize,
        out_offset: usize,
    }

    fn dense(inputs: usize, outputs: usize) -> Channels {
        Channels { inputs, in_stride: inputs, in_offset: 0, outputs, out_stride: outputs, out_offset: 0 }
    }

    /// The weights as every instruction set may pack them, whatever it would choose.
    fn every_form(codes: &[i8], out: usize, window: &Window, inputs: usize) -> Vec<PackedInt8> {
        let mut forms = Vec::new();
        let taps = window.taps();
        let lines = (window.dilation_w == 1).then_some(window.kernel_h);
        for isa in Isa::available() {
            forms.push(PackedInt8::pack(isa, codes, out, taps, inputs));
            forms.push(PackedInt8::pack_by(isa, codes, out, taps, inputs, false, lines));
            #[cfg(target_arch = "x86_64")]
            if let Isa::Avx2(avx2) = isa {
                let schedule = Schedule::pack(isa, codes, taps * inputs, usize::MAX).expect("at any cost");
                let bytes = pack(INT8_PAIRS, codes, out, lines);
                forms.push(PackedInt8 { isa, panels: Panels::Scheduled(avx2, schedule), ..forms[0].clone() });
                // The first two are the scalar ones: gathered, and by lines.
                forms.push(PackedInt8 { isa, panels: Panels::BytePairs(avx2, bytes), ..forms[1].clone() });
                for of_scalar in 0..2 {
                    forms.push(PackedInt8 { isa, ..forms[of_scalar].clone() });
                }
            }
        }
        forms
    }

    /// Both outputs of a convolution on every instruction set, against the reference.
    fn check(window: &Window, channels: Channels, pad: u8, threads: usize) {
        let mut random = Random::new(channels.inputs as u64 * 1000 + channels.outputs as u64);
        let Channels { inputs, in_stride, in_offset, outputs, out_stride, out_offset } = channels;
        let depth = window.taps() * inputs;
        let mut x = random.u8s(window.pixels() * in_stride);
        let mut codes = random.i8s(outputs * depth);
        // Large codes in some quads and small ones in others, so that a schedule has all its lists; the first row and
        // quads of the last column are at their extremes.
        codes.iter_mut().enumerate().for_each(|(i, code)| *code >>= (i % depth / 4 % 4) as i8);
        x.iter_mut().take(in_stride).for_each(|x| *x = 255);
        codes[(outputs - 1) * depth..].chunks_mut(4).step_by(2).for_each(|quad| quad.fill(-128));
        let bias: Vec<i32> = (0..outputs).map(|_| random.next() as i32 % 20_000).collect();
        let factor: Vec<f32> = (0..outputs)
            .map(|_| (random.next() % 999 + 1) as f32 * 1e-3 / (depth as f32).sqrt() / 90.0)
            .collect();
        let table: [u8; 256] = random.u8s(256).try_into().expect("256 codes");
        let acc = reference::conv_int8(&x, in_stride, in_offset, &codes, inputs, window, pad);
        let at = |row: usize, n: usize| row * out_stride + out_offset + n;
        for packed in every_form(&codes, outputs, window, inputs) {
            let name = format!(
                "{:?} {:?} {:?} {window:?} {channels:?} pad {pad}",
                packed.isa,
                packed.form(),
                packed.lines
            );
            let sums: Vec<i32> = codes.chunks(depth).map(|c| c.iter().map(|&c| i32::from(c)).sum()).collect();
            assert_eq!(packed.column_sums(), sums);
            for (lo, hi, zero_point, table) in
                [(0, 255, 128, None), (3, 200, 0, Some(&table)), (0, 255, 255, None)]
            {
                let requant =
                    Requant { bias: &bias, multiplier: &factor, zero_point, lo, hi, table, sum: None };
                let want = reference::requantize(&acc, &requant);
                let mut y = vec![77; window.rows() * out_stride];
                let out = IntOutput::U8(&mut y, &requant);
                packed.conv(&x, in_stride, in_offset, window, pad, out, out_stride, out_offset, threads);
                for (i, &want) in want.iter().enumerate() {
                    assert_eq!(y[at(i / outputs, i % outputs)], want, "{name} {i}");
                }
                let others = y
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| !(out_offset..out_offset + outputs).contains(&(i % out_stride)));
                assert!(others.into_iter().all(|(_, &v)| v == 77), "{name}: other channels are left alone");
            }
            let mut y = vec![0; window.rows() * out_stride];
            let out = IntOutput::I32(&mut y, &bias);
            packed.conv(&x, in_stride, in_offset, window, pad, out, out_stride, out_offset, threads);
            for (i, &want) in acc.iter().enumerate() {
                let want = want.wrapping_add(bias[i % outputs]);
                assert_eq!(y[at(i / outputs, i % outputs)], want, "{name} {i} as sums");
            }
            let dequant = Dequant { bias: &bias, scale: &factor, then: None };
            let want = reference::dequantize_sums(&acc, &dequant);
            let mut y = vec![0.0; window.rows() * out_stride];
            let out = IntOutput::F32(&mut y, &dequant);
            packed.conv(&x, in_stride, in_offset, window, pad, out, out_stride, out_offset, threads);
            for (i, &want) in want.iter().enumerate() {
                assert_eq!(y[at(i / outputs, i % outputs)].to_bits(), want.to_bits(), "{name} {i} as float");
            }
        }
    }

    #[test]
    fn products_of_every_depth_match_the_reference() {
        for depth in 1..=70 {
            check(&Window::of_rows(1 + depth % 14), dense(depth, 1 + depth * 7 % 40), 0, 1);
        }
        for (rows, depth, outputs) in [(0, 5, 3), (1, 300, 100), (13, 256, 64), (25, 1030, 33), (200, 64, 17)]
        {
            check(&Window::of_rows(rows), dense(depth, outputs), 0, 2);
        }
    }

    #[test]
    fn every_number_of_rows_and_columns_matches_the_reference() {
        for rows in 1..=26 {
            check(&Window::of_rows(rows), dense(9, 2 * rows - 1), 0, 1);
            check(&Window::of_rows(rows), dense(8, 90 - rows), 0, 1);
        }
    }

    /// Sums on the way to 32 bits are largest here, of either sign, in every place of a quad and of a longer step.
    #[test]
    fn extremes_of_codes_and_weights_match_the_reference() {
        let (rows, depth, outputs) = (16, 44, 16);
        let bit = |i: usize, k: usize| i >> (k % 4) & 1 == 1;
        let at = |i: usize| (i / depth, i % depth);
        let x: Vec<u8> = (0..rows * depth).map(at).map(|(r, k)| if bit(r, k) { 255 } else { 0 }).collect();
        let codes: Vec<i8> =
            (0..outputs * depth).map(at).map(|(n, k)| if bit(n, k) { 127 } else { -128 }).collect();
        let window = Window::of_rows(rows);
        let want = reference::conv_int8(&x, depth, 0, &codes, depth, &window, 0);
        for packed in every_form(&codes, outputs, &window, depth) {
            let mut y = vec![0; rows * outputs];
            packed.matmul(&x, rows, IntOutput::I32(&mut y, &vec![0; outputs]), 1);
            assert_eq!(y, want, "{:?} {:?}", packed.isa, packed.form());
        }
    }

    #[test]
    fn convolutions_match_the_reference() {
        for (i, window) in windows().iter().enumerate() {
            for (inputs, outputs, pad) in [(3, 16, 0), (16, 24, 128), (5, 7, 255), (32, 40, 3)] {
                check(window, dense(inputs, outputs), pad, 1 + i % 2);
            }
        }
    }

    #[test]
    fn groups_and_concatenation_use_parts_of_a_pixel() {
        let part =
            Channels { inputs: 8, in_stride: 24, in_offset: 8, outputs: 12, out_stride: 30, out_offset: 7 };
        for window in windows() {
            check(&window, part, 9, 2);
        }
        let last =
            Channels { inputs: 4, in_stride: 7, in_offset: 3, outputs: 5, out_stride: 9, out_offset: 4 };
        check(&window(2, (6, 6), (3, 3), (1, 1), (1, 1), (1, 1)), last, 255, 1);
        check(&Window::of_rows(1), last, 0, 2);
        check(&Window::of_rows(0), last, 0, 2);
    }

    #[test]
    fn random_convolutions_match_the_reference() {
        let mut random = Random::new(99);
        for _ in 0..150 {
            let window = random.window();
            let [inputs, outputs, before, after] =
                [40, 70, 5, 5].map(|most| 1 + random.next() as usize % most);
            let part = Channels {
                inputs,
                in_stride: inputs + before + after,
                in_offset: before,
                outputs,
                out_stride: outputs + after,
                out_offset: after - 1,
            };
            let pad = random.next() as u8;
            check(&window, if before == 1 { part } else { dense(inputs, outputs) }, pad, 1);
        }
    }

    /// Sizes at which matrix tiles are full, and those just beside; several blocks; lines and images that end within a
    /// block; planes of strided inputs.
    #[test]
    fn blocks_of_matrix_tiles_match_the_reference() {
        for (rows, depth, outputs) in [
            (31, 64, 32),
            (32, 63, 33),
            (33, 65, 48),
            (64, 128, 16),
            (97, 192, 80),
            (600, 20, 40),
            (1100, 3, 33),
        ] {
            check(&Window::of_rows(rows), dense(depth, outputs), 0, 1);
        }
        let part =
            Channels { inputs: 70, in_stride: 75, in_offset: 4, outputs: 37, out_stride: 41, out_offset: 3 };
        check(&Window::of_rows(70), part, 0, 2);
        for (i, (inputs, outputs)) in [(64, 32), (16, 40), (3, 33), (40, 70)].into_iter().enumerate() {
            for window in [
                window(2, (14, 14), (3, 3), (1, 1), (1, 1), (1, 1)),
                window(3, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
                window(1, (17, 35), (3, 3), (2, 2), (1, 1), (1, 1)),
                window(2, (23, 21), (7, 7), (2, 2), (1, 1), (3, 3)),
                window(1, (15, 16), (3, 3), (1, 1), (2, 2), (2, 2)),
                window(1, (15, 16), (3, 3), (1, 1), (1, 1), (3, 3)),
                window(1, (13, 12), (5, 5), (1, 1), (1, 1), (0, 2)),
                window(1, (12, 13), (1, 5), (1, 1), (1, 1), (0, 2)),
                window(1, (12, 13), (3, 3), (3, 2), (2, 1), (2, 1)),
                window(2, (12, 13), (1, 1), (2, 2), (1, 1), (0, 0)),
                window(1, (20, 2), (3, 3), (1, 1), (1, 1), (1, 1)),
            ] {
                check(&window, dense(inputs, outputs), 77, 1 + i % 2);
                let wide = Channels { in_stride: inputs + 9, in_offset: 5, ..dense(inputs, outputs) };
                check(&window, wide, 200, 1);
            }
        }
        // More panels than meet a block at once, a kernel that is not the square it was packed for, and more lines than one
        // copy takes.
        check(&Window::of_rows(34), dense(4100, 170), 0, 1);
        check(&window(1, (30, 40), (1, 4), (1, 1), (1, 1), (0, 0)), dense(16, 33), 5, 1);
        check(&window(1, (70, 70), (3, 3), (1, 1), (1, 1), (1, 1)), dense(100, 3), 5, 1);
    }

    #[test]
    fn products_out_of_range_saturate_alike() {
        let factors = [1e30, -1e30, f32::INFINITY, f32::NAN, 3e4, -3e4, 1e-30, 0.0];
        let outputs = 40;
        let (x, codes) = ([255u8, 0, 7, 255], vec![127i8; outputs * 2]);
        let bias: Vec<i32> = (0..outputs).map(|n| [0, i32::MAX, i32::MIN, -64_770, 5][n % 5]).collect();
        let multiplier: Vec<f32> = (0..outputs).map(|n| factors[n % 8]).collect();
        let requant = Requant {
            bias: &bias,
            multiplier: &multiplier,
            zero_point: 100,
            lo: 2,
            hi: 251,
            table: None,
            sum: None,
        };
        let mut want = None;
        for isa in Isa::available() {
            let mut y = vec![0; 2 * outputs];
            let packed = PackedInt8::pack(isa, &codes, outputs, 1, 2);
            packed.matmul(&x, 2, IntOutput::U8(&mut y, &requant), 1);
            assert_eq!(&y, want.get_or_insert(y.clone()), "{isa:?}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn avx2_takes_the_form_that_its_weights_are_fast_in() {
        let Some(avx2) = Isa::named("avx2") else { return };
        let form = |most: i8| {
            let codes: Vec<i8> = Random::new(5).i8s(64 * 256).iter().map(|code| code % most).collect();
            PackedInt8::pack(avx2, &codes, 64, 1, 256).form()
        };
        assert_eq!(form(33), Form::Scheduled(Shares { paired: 1.0, single: 0.0, wide: 0.0 }));
        assert_eq!(form(127), Form::Pairs);
    }

    #[test]
    fn two_threads_give_what_one_gives() {
        check(&window(2, (24, 25), (3, 3), (1, 1), (1, 1), (1, 1)), dense(40, 33), 131, 2);
        check(&Window::of_rows(1), dense(2000, 500), 0, 2);
    }
}
