//! Integer product and convolution: `u8` activations times packed `i8` weights, accumulated in `i32` and
//! finished in registers. Neither an im2col copy nor an `i32` tensor is made. Knows slices only.

use super::coded::{Columns, Output};
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
use super::walk::{LINES_BYTES, line_len, walk, walk_lines};
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

/// Hundredths of the time of pairs that widening gathered activations takes, times the columns that share it.
#[cfg(target_arch = "x86_64")]
const WIDENING: usize = 360;

/// The same for gathering activations that pairs read in lines.
#[cfg(target_arch = "x86_64")]
const GATHERING: usize = 480;

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
            && out <= LINES_COLUMNS_MAX
            && window.kernel_h * line_len(window, inputs) <= LINES_BYTES;
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
        #[cfg(not(target_arch = "x86_64"))]
        let _ = small;
        let panels = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(vnni) => Panels::Quads(vnni, pack(INT8_QUADS, codes, out, lines)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => match Schedule::pack(isa, codes, depth, schedule_cost_max(out, lines)) {
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
    pub fn matmul<'a, 'b>(&self, a: &[u8], rows: usize, out: impl Into<Output<'a, 'b>>, threads: usize) {
        let columns = self.column_sums.len();
        self.conv(a, self.inputs, 0, &Window::of_rows(rows), 0, out, columns, 0, threads);
    }

    /// Convolution of channels `in_offset .. in_offset + inputs` of `x`, `[batch, in_h, in_w, in_stride]`, to
    /// channels `out_offset ..` of `out`, `[batch, out_h, out_w, out_stride]`, with up to `threads` threads.
    ///
    /// Padding reads the code `pad`, which is the input's zero point. Strides and offsets serve groups and
    /// concatenation in place; other channels of `out` are left alone.
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
            split_rows(out, 0..columns, 1, shape.columns, parts, &|range, out: Output| {
                out.in_bands(
                    self.isa,
                    Columns::DENSE,
                    range,
                    shape.columns,
                    |column| column,
                    |range, out| {
                        self.part(&patches, 0..1, range, out, out_stride, 0);
                    },
                );
            });
        } else {
            let (quantum, start) = (self.row_quantum(window), |row| row * out_stride);
            let written = Columns { stride: out_stride, offset: out_offset, count: columns };
            split_rows(out, 0..rows, out_stride, quantum, parts, &|range, out: Output| {
                out.in_bands(self.isa, written, range, quantum, start, |range, out| {
                    self.part(&patches, range, 0..columns, out, out_stride, out_offset);
                });
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

    /// Whether tiles add what [`Requant::sum_in_registers`](super::Requant::sum_in_registers) gives.
    fn sums_in_registers(&self) -> bool {
        match self.panels {
            // With half the registers it takes longer than over the finished rows.
            #[cfg(target_arch = "x86_64")]
            Panels::Quads(..) => true,
            _ => false,
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
                let tile = |t: Tile<i16>, out: &mut IntOutput| {
                    let (panel, ahead) = t.panel(INT8_PAIRS, panels);
                    tile(isa, t.a, t.reach, t.rows, panel, ahead, t.width, t.depth, out, t.place)
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "x86_64")]
            Panels::BytePairs(avx2, panels) => {
                let tile = |t: Tile<i16>, out: &mut IntOutput| {
                    let (panel, ahead) = t.panel(INT8_PAIRS, panels);
                    avx2.pair_rows(t.a, t.reach, t.rows, panel, ahead, t.width, t.depth, out, t.place)
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "x86_64")]
            Panels::Scheduled(avx2, schedule) => {
                let tile = |t: Tile<u8>, out: &mut IntOutput| {
                    let ahead = schedule.ahead(t.place.channel, t.share);
                    let panel = schedule.panel(t.place.channel, t.width);
                    avx2.scheduled_rows(t.a, t.reach.row, t.rows, panel, ahead, out, t.place)
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "x86_64")]
            Panels::Quads(vnni, panels) => {
                let tile = |t: Tile<u8>, out: &mut IntOutput| {
                    let (panel, ahead) = t.panel(INT8_QUADS, panels);
                    vnni.int8_rows(t.a, t.reach, t.rows, panel, ahead, t.width, t.depth, out, t.place)
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "x86_64")]
            Panels::NarrowQuads(vnni, panels) => {
                let tile = |t: Tile<u8>, out: &mut IntOutput| {
                    let (panel, ahead) = t.panel(INT8_QUADS_NARROW, panels);
                    vnni.int8_rows(t.a, t.reach, t.rows, panel, ahead, t.width, t.depth, out, t.place)
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "aarch64")]
            Panels::Signed(neon, panels, starts) => {
                let tile = |t: Tile<u8>, out: &mut IntOutput| {
                    let ((panel, _), starts) = (t.panel(INT8_QUADS_NEON, panels), &starts[t.place.channel..]);
                    neon.int8_tile(t.a, t.reach.row, t.rows, panel, t.width, t.depth, starts, out, t.place)
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "aarch64")]
            Panels::SignedDot(dot, panels, starts) => {
                let tile = |t: Tile<u8>, out: &mut IntOutput| {
                    let ((panel, _), starts) = (t.panel(INT8_QUADS_NEON, panels), &starts[t.place.channel..]);
                    dot.int8_tile(t.a, t.reach.row, t.rows, panel, t.width, t.depth, starts, out, t.place)
                };
                self.part_of(patches, rows, columns, out, out_stride, out_offset, tile);
            }
            #[cfg(target_arch = "x86_64")]
            Panels::Matrix(amx, runs, panels) if rows.len() == 1 => {
                self.single_row(*amx, *runs, panels, patches, rows.start, columns, out, out_offset);
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
                    Rows { starts, stride: out_stride, channels: 0..run, summed: false }.complete(isa, out);
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
                amx.wide().int8_rows(a, Reach::of_rows(depth), 1, panel, &[], width, depth, out, place);
            }
        });
        let starts = std::iter::once(out_offset);
        Rows { starts, stride: columns.len(), channels: columns, summed: true }.complete(self.isa, out);
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
        tile: impl Fn(Tile<A>, &mut IntOutput),
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
                let rows = rows.len();
                tile(Tile { a, reach, rows, width, depth: padded, place, share }, &mut out.borrow_mut());
            };
        let done = |rows: Range<usize>| {
            let (starts, channels) = (rows.map(at), first_column..first_column + run);
            Rows { starts, stride: out_stride, channels, summed: self.sums_in_registers() }
                .complete(self.isa, &mut out.borrow_mut());
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

/// Rows of a block, and the panel that they are multiplied with.
struct Tile<'a, A> {
    /// From the first row on.
    a: &'a [A],
    reach: Reach,
    rows: usize,
    /// Columns of the panel, and the depth of a run.
    width: usize,
    depth: usize,
    place: Place,
    share: Share,
}

impl<A> Tile<'_, A> {
    /// The panel among `panels`, and what should be asked for early: the tile's share of the panel behind, which the block
    /// wants next.
    fn panel<'p, T>(&self, shape: Shape, panels: &'p [T]) -> (&'p [T], &'p [T]) {
        let panel = shape.panel(self.place.channel, self.width, self.depth * self.reach.runs);
        let (from, to, of) = self.share;
        let len = panel.len().min(panels.len() - panel.end);
        let ahead = panel.end + len * from / of..panel.end + len * to / of;
        (&panels[panel], &panels[ahead])
    }
}

/// Hundredths of the time of pairs that a schedule may take: pairs have to widen what they read, a schedule to gather it.
#[cfg(target_arch = "x86_64")]
fn schedule_cost_max(columns: usize, lines: Option<usize>) -> usize {
    match lines {
        Some(_) => 100 - (GATHERING / columns).min(40),
        None => 100 + WIDENING / columns,
    }
}

/// Packs codes `[columns, depth]`, each of `lines` equal parts of a column padded by itself.
fn pack<T: Pod + From<i8>>(shape: Shape, codes: &[i8], columns: usize, lines: Option<usize>) -> Aligned<T> {
    let (depth, lines) = (codes.len() / columns, lines.unwrap_or(1));
    let (run, padded) = (depth / lines, shape.padded(depth / lines));
    // Found once for all columns: divisions would take most of the time.
    let place = |k: usize| (k % padded < run).then_some(k / padded * run + k % padded);
    let places: Vec<Option<usize>> = (0..lines * padded).map(place).collect();
    pack_elements(shape, columns, lines * padded, |n, k| match places[k] {
        Some(at) => T::from(codes[n * depth + at]),
        None => T::from(0),
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
mod tests;
