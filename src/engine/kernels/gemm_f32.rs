//! Float product and convolution, for the layers that stay in floats. Knows slices only.
//!
//! Every output element is one chain `acc = fma(a, b, acc)` over the depth from 0.0, then its epilogue. So results do
//! not depend on tile, batch, threads or instruction set, to the bit. A deep product is done in several parts of the
//! depth, the sums lying in the output between them; storing and loading a sum does not change it.

use super::Epilogue;
use super::Window;
use super::activate::finish_rows;
use super::isa::Isa;
use super::lines::{Aligned, with_scratch};
use super::parallel::{parts, split_rows};
use super::patches::Patches;
#[cfg(target_arch = "x86_64")]
use super::tiles::F32_WIDE;
use super::tiles::{F32, Part, Place, Shape};
use super::walk::walk;
use std::cell::RefCell;
use std::ops::Range;

/// The tile of an instruction set.
fn shape(isa: Isa) -> Shape {
    #[cfg(target_arch = "x86_64")]
    if isa.wide().is_some() {
        return F32_WIDE;
    }
    let _ = isa;
    F32
}

/// Weights of a float layer or convolution, packed.
#[derive(Clone)]
pub struct PackedF32 {
    isa: Isa,
    panels: Aligned<f32>,
    outputs: usize,
    taps: usize,
    inputs: usize,
}

impl PackedF32 {
    /// Packs `weights`, `[out, taps, inputs]`; taps run over the kernel row by row.
    pub fn pack(isa: Isa, weights: &[f32], out: usize, taps: usize, inputs: usize) -> PackedF32 {
        let depth = taps * inputs;
        assert_eq!(weights.len(), out * depth, "weights [out, taps, inputs]");
        Self::pack_with(isa, out, taps, inputs, |n, k| weights[n * depth + k])
    }

    /// Packs a matrix `b`, `[k, n]`.
    pub fn pack_matrix(isa: Isa, b: &[f32], k: usize, n: usize) -> PackedF32 {
        assert_eq!(b.len(), k * n, "matrix [k, n]");
        Self::pack_with(isa, n, 1, k, |column, row| b[row * n + column])
    }

    fn pack_with(
        isa: Isa,
        outputs: usize,
        taps: usize,
        inputs: usize,
        element: impl Fn(usize, usize) -> f32,
    ) -> PackedF32 {
        assert!(outputs > 0 && taps * inputs > 0, "a product has columns and depth");
        let mut panels = Aligned::zeros(shape(isa).packed_len(outputs, taps * inputs));
        shape(isa).pack(outputs, taps * inputs, &mut panels, element);
        PackedF32 { isa, panels, outputs, taps, inputs }
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// Product of `a`, `[rows, k]`, with the weights: `out[r, n]` is what `epilogue` makes of `a[r, :] . w[:, n]`,
    /// `[rows, n]`. Uses up to `threads` threads.
    pub fn matmul(&self, a: &[f32], rows: usize, epilogue: &Epilogue, out: &mut [f32], threads: usize) {
        let window = Window::of_rows(rows);
        self.conv(a, self.inputs, 0, &window, epilogue, out, self.outputs, 0, threads);
    }

    /// Convolution of channels `in_offset .. in_offset + inputs` of `x`, `[batch, in_h, in_w, in_stride]`, to
    /// channels `out_offset ..` of `out`, `[batch, out_h, out_w, out_stride]`, with up to `threads` threads.
    /// Padding takes part in the chain as 0.0.
    #[expect(clippy::too_many_arguments, reason = "a convolution is its two tensors and its geometry")]
    pub fn conv(
        &self,
        x: &[f32],
        in_stride: usize,
        in_offset: usize,
        window: &Window,
        epilogue: &Epilogue,
        out: &mut [f32],
        out_stride: usize,
        out_offset: usize,
        threads: usize,
    ) {
        assert_eq!(window.taps(), self.taps, "a window of the packed kernel");
        let product = Product {
            isa: self.isa,
            patches: &Patches::new(x, in_stride, in_offset, self.inputs, window, 0.0),
            depth: self.taps * self.inputs,
            panels: &self.panels,
            columns: self.outputs,
            epilogue: *epilogue,
            out_stride,
            out_offset,
        };
        product.run(window.rows(), out, threads);
    }
}

/// Products of two activations: for each `i` of `batch`, `a[a_of(i)]`, `[m, k]`, times `b[b_of(i)]`, `[k, n]`, to
/// `out[i]`, `[m, n]`, with up to `threads` threads.
pub fn matmul_f32(
    isa: Isa,
    a: &[f32],
    b: &[f32],
    (batch, m, k, n): (usize, usize, usize, usize),
    operands: &(impl Fn(usize) -> (usize, usize) + Sync),
    out: &mut [f32],
    threads: usize,
) {
    assert_eq!(out.len(), batch * m * n, "output [batch, m, n]");
    if m * n * k * batch == 0 {
        return out.fill(0.0);
    }
    let one = |i: usize, out: &mut [f32], threads: usize| {
        let (ia, ib) = operands(i);
        let (a, b) = (&a[ia * m * k..][..m * k], &b[ib * k * n..][..k * n]);
        with_scratch(shape(isa).packed_len(n, k), |panels| {
            isa.vectorize(
                #[inline(always)]
                || pack_rows(shape(isa), b, k, n, panels),
            );
            let window = Window::of_rows(m);
            let product = Product {
                isa,
                patches: &Patches::new(a, k, 0, k, &window, 0.0),
                depth: k,
                panels,
                columns: n,
                epilogue: Epilogue::NONE,
                out_stride: n,
                out_offset: 0,
            };
            product.run(m, out, threads);
        });
    };
    // Whole products to each thread where there are enough of them: nobody packs twice, and nobody waits.
    let parts = parts(threads, batch * m * n * k / isa.products_per_ns());
    if batch < parts {
        for (i, out) in out.chunks_exact_mut(m * n).enumerate() {
            one(i, out, threads);
        }
        return;
    }
    split_rows(out, 0..batch, m * n, 1, parts, &|range: Range<usize>, out: &mut [f32]| {
        for (i, out) in range.zip(out.chunks_exact_mut(m * n)) {
            one(i, out, 1);
        }
    });
}

/// Packs `b`, `[k, n]`, into panels, as [`Shape::pack`] does; `panels` may hold anything before.
#[inline(always)]
fn pack_rows(shape: Shape, b: &[f32], k: usize, n: usize, panels: &mut [f32]) {
    for first in (0..n).step_by(shape.columns) {
        let width = shape.width(first, n);
        let panel = &mut panels[shape.panel_start(first, k)..][..width * k];
        let columns = width.min(n - first);
        for (to, from) in panel.chunks_exact_mut(width).zip(b.chunks_exact(n)) {
            to[..columns].copy_from_slice(&from[first..][..columns]);
            to[columns..].fill(0.0);
        }
    }
}

/// A product whose right side is packed.
struct Product<'a> {
    isa: Isa,
    patches: &'a Patches<'a, f32>,
    depth: usize,
    panels: &'a [f32],
    columns: usize,
    epilogue: Epilogue<'a>,
    out_stride: usize,
    out_offset: usize,
}

impl Product<'_> {
    fn run(&self, rows: usize, out: &mut [f32], threads: usize) {
        assert_eq!(out.len(), rows * self.out_stride, "output [rows, out_stride]");
        assert!(self.out_offset + self.columns <= self.out_stride, "channels within a pixel");
        assert!(self.epilogue.bias.is_none_or(|bias| bias.len() == self.columns), "one bias a channel");
        assert!(
            self.epilogue.residual.is_none_or(|r| r.len() == out.len()),
            "a residual of the output's shape"
        );
        if rows == 0 {
            return;
        }
        let parts = parts(threads, rows * self.columns * self.depth / self.isa.products_per_ns());
        if rows == 1 && self.out_stride == self.columns {
            let panel = shape(self.isa).columns;
            split_rows(out, 0..self.columns, 1, panel, parts, &|range, out: &mut [f32]| {
                self.part(0..1, range, out);
            });
        } else {
            split_rows(out, 0..rows, self.out_stride, 1, parts, &|range, out: &mut [f32]| {
                self.part(range, 0..self.columns, out);
            });
        }
    }

    /// The share of one thread: `out` starts at its first row and column.
    fn part(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        let (shape, run) = (shape(self.isa), columns.len());
        // Element of the whole output, and of this part, at which a tile begins.
        let skipped = rows.start * self.out_stride + columns.start;
        let at = |row: usize, column: usize| row * self.out_stride + self.out_offset + column - skipped;
        let residual = self.epilogue.residual.map(|residual| &residual[skipped..][..out.len()]);
        let epilogue = Epilogue { residual, ..self.epilogue };
        let (in_registers, first_column) = (epilogue.in_registers(), columns.start);
        // Both visitors write: the tiles of a block, then its activation.
        let out = RefCell::new(out);
        walk(
            self.isa,
            shape,
            self.patches,
            self.depth,
            self.columns,
            rows,
            columns,
            |a: &[f32], lda, rows, columns, width, depth, _| {
                let place = Place {
                    at: at(rows.start, columns.start),
                    stride: self.out_stride,
                    channel: columns.start,
                    columns: columns.len(),
                };
                let part = Part { first: depth.start == 0, last: depth.end == self.depth };
                let panel = &self.panels[shape.panel_start(columns.start, self.depth)..];
                let panel = &panel[width * depth.start..width * depth.end];
                let out = &mut out.borrow_mut();
                tile(self.isa, a, lda, rows.len(), panel, width, depth.len(), part, in_registers, out, place);
            },
            |rows| {
                finish_rows(
                    &epilogue,
                    self.isa,
                    &mut out.borrow_mut(),
                    rows.map(|r| at(r, first_column)),
                    run,
                )
            },
        );
    }
}

#[expect(clippy::too_many_arguments, reason = "a tile is its operands, its epilogue and its place")]
#[inline(always)]
fn tile(
    isa: Isa,
    a: &[f32],
    lda: usize,
    rows: usize,
    panel: &[f32],
    width: usize,
    depth: usize,
    part: Part,
    epilogue: Epilogue,
    out: &mut [f32],
    place: Place,
) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(wide) = isa.wide() {
            return wide.f32_tile(a, lda, rows, panel, width, depth, part, epilogue, out, place);
        }
        if let Some(avx2) = isa.avx2() {
            return avx2.f32_tile(a, lda, rows, panel, width, depth, part, epilogue, out, place);
        }
    }
    let _ = isa;
    for r in 0..rows {
        let at = place.at + r * place.stride;
        let out = &mut out[at..][..place.columns];
        let mut acc = [0f32; F32.columns];
        if !part.first {
            acc[..out.len()].copy_from_slice(out);
        }
        for (&a, b) in a[r * lda..][..depth].iter().zip(panel.chunks_exact(width)) {
            for (acc, &b) in acc.iter_mut().zip(b) {
                *acc = a.mul_add(b, *acc);
            }
        }
        for (i, (y, acc)) in out.iter_mut().zip(acc).enumerate() {
            *y = if part.last { epilogue.finish(acc, place.channel + i, at + i) } else { acc };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::super::testing::{Random, epilogues, window, windows};
    use super::*;

    fn same_bits(a: &[f32], b: &[f32]) -> bool {
        a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()))
    }

    /// A convolution on every instruction set, against the reference, to the bit: both do the same operations.
    fn check(window: &Window, inputs: usize, outputs: usize, threads: usize) {
        let mut random = Random::new(inputs as u64 * 1000 + outputs as u64);
        let (in_stride, in_offset, out_stride, out_offset) = (inputs + 3, 2, outputs + 2, 1);
        let x = random.f32s(window.pixels() * in_stride);
        let weights = random.f32s(outputs * window.taps() * inputs);
        let bias = random.f32s(outputs);
        let residual = random.f32s(window.rows() * outputs);
        let padded: Vec<f32> = residual.chunks(outputs).flat_map(|p| [&[7.0], p, &[7.0]].concat()).collect();
        for (epilogue, strided) in epilogues(&bias, &residual).iter().zip(epilogues(&bias, &padded)) {
            let want = reference::conv_f32(&x, in_stride, in_offset, &weights, inputs, window, epilogue);
            for isa in Isa::available() {
                let packed = PackedF32::pack(isa, &weights, outputs, window.taps(), inputs);
                let mut y = vec![77.0; window.rows() * out_stride];
                let (y_stride, y_offset) = (out_stride, out_offset);
                packed.conv(&x, in_stride, in_offset, window, &strided, &mut y, y_stride, y_offset, threads);
                let got: Vec<f32> = y.chunks(out_stride).flat_map(|p| &p[1..=outputs]).copied().collect();
                assert!(same_bits(&got, &want), "{isa:?} {window:?} {inputs} to {outputs}");
                assert!(y.chunks(out_stride).all(|p| (p[0], p[outputs + 1]) == (77.0, 77.0)));
            }
        }
    }

    #[test]
    fn convolutions_match_the_reference_to_the_bit() {
        for (i, window) in windows().iter().enumerate() {
            for (inputs, outputs) in [(3, 16), (5, 7), (16, 25)] {
                check(window, inputs, outputs, 1 + i % 2);
            }
        }
        let mut random = Random::new(98);
        for _ in 0..40 {
            check(&random.window(), 1 + random.next() as usize % 20, 1 + random.next() as usize % 40, 1);
        }
        check(&window(2, (24, 25), (3, 3), (1, 1), (1, 1), (1, 1)), 20, 33, 2);
        // Deeper than a block, with parts that begin and end within a tap.
        check(&window(1, (7, 9), (3, 3), (1, 1), (1, 1), (1, 1)), 150, 33, 1);
        check(&window(1, (7, 9), (3, 3), (1, 1), (2, 2), (1, 1)), 150, 40, 1);
        check(&window(1, (9, 9), (1, 1), (2, 2), (1, 1), (0, 0)), 1100, 20, 1);
    }

    #[test]
    fn products_match_the_reference_to_the_bit() {
        let mut random = Random::new(2);
        for (m, k, n, threads) in [
            (1, 1, 1, 1),
            (2, 3, 5, 1),
            (6, 16, 16, 1),
            (7, 33, 17, 1),
            (13, 70, 31, 1),
            (1, 900, 300, 2),
            (70, 65, 90, 2),
            (3, 1300, 70, 1),
            (0, 4, 4, 1),
            (5, 0, 3, 1),
        ] {
            let (a, b) = (random.f32s(m * k), random.f32s(k * n));
            let chain = |i: usize| (0..k).fold(0.0, |acc, p| a[i / n * k + p].mul_add(b[p * n + i % n], acc));
            let want: Vec<f32> = (0..m * n).map(chain).collect();
            for isa in Isa::available() {
                let mut y = vec![1.0; m * n];
                matmul_f32(isa, &a, &b, (1, m, k, n), &|_| (0, 0), &mut y, threads);
                assert!(same_bits(&y, &want), "{isa:?} [{m}, {k}] [{k}, {n}]");
                if k > 0 {
                    y.fill(1.0);
                    let packed = PackedF32::pack_matrix(isa, &b, k, n);
                    packed.matmul(&a, m, &Epilogue::NONE, &mut y, threads);
                    assert!(same_bits(&y, &want), "{isa:?} [{m}, {k}] [{k}, {n}] packed");
                }
            }
        }
    }

    #[test]
    fn a_batch_of_products_is_each_of_them() {
        let mut random = Random::new(4);
        for (batch, m, k, n, threads) in [(3, 5, 7, 33, 1), (5, 40, 64, 50, 2), (2, 100, 64, 100, 4)] {
            let (a, b) = (random.f32s(batch * m * k), random.f32s(2 * k * n));
            let operands = |i: usize| (i, i % 2);
            for isa in Isa::available() {
                let mut y = vec![1.0; batch * m * n];
                matmul_f32(isa, &a, &b, (batch, m, k, n), &operands, &mut y, threads);
                for (i, y) in y.chunks(m * n).enumerate() {
                    let (a, b) = (&a[i * m * k..][..m * k], &b[i % 2 * k * n..][..k * n]);
                    let mut want = vec![1.0; m * n];
                    matmul_f32(Isa::Scalar, a, b, (1, m, k, n), &|_| (0, 0), &mut want, 1);
                    assert!(same_bits(y, &want), "{isa:?} {i}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_passes_the_clamp() {
        for isa in Isa::available() {
            let packed = PackedF32::pack_matrix(isa, &[1.0, 0.0], 1, 2);
            let mut y = [0.0; 4];
            let clamp = Epilogue { lo: 0.0, hi: 6.0, ..Epilogue::NONE };
            packed.matmul(&[f32::NAN, f32::INFINITY], 2, &clamp, &mut y, 1);
            assert!(y[0].is_nan() && y[1].is_nan() && y[2] == 6.0 && y[3].is_nan(), "{isa:?} {y:?}");
        }
    }
}
