//! Float product and convolution, for the layers that stay in floats. Knows slices only.
//!
//! Every output element is one chain `acc = fma(a, b, acc)` over the depth from 0.0, then `+ bias`, then the
//! clamp. So results do not depend on tile, batch, threads or instruction set, to the bit.

use super::Window;
use super::isa::Isa;
use super::lines::Aligned;
use super::parallel::{parts, split_rows};
use super::patches::Patches;
use super::tiles::{F32, FloatEpilogue, Place};
use super::walk::walk;
use std::ops::Range;

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
        let mut panels = Aligned::zeros(F32.packed_len(outputs, taps * inputs));
        F32.pack(outputs, taps * inputs, &mut panels, element);
        PackedF32 { isa, panels, outputs, taps, inputs }
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// Product of `a`, `[rows, k]`, with the weights: `out[r, n] = clamp(a[r, :] . w[:, n] + bias[n], lo, hi)`,
    /// `[rows, n]`. Not-a-number stays. Uses up to `threads` threads.
    #[expect(clippy::too_many_arguments, reason = "a product is its operands and its epilogue")]
    pub fn matmul(
        &self,
        a: &[f32],
        rows: usize,
        bias: Option<&[f32]>,
        lo: f32,
        hi: f32,
        out: &mut [f32],
        threads: usize,
    ) {
        let window = Window::of_rows(rows);
        self.conv(a, self.inputs, 0, &window, bias, lo, hi, out, self.outputs, 0, threads);
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
        bias: Option<&[f32]>,
        lo: f32,
        hi: f32,
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
            epilogue: FloatEpilogue { bias, lo, hi },
            out_stride,
            out_offset,
        };
        product.run(window.rows(), out, threads);
    }
}

/// Product of two activations: `a`, `[m, k]`, times `b`, `[k, n]`, to `out`, `[m, n]`, with up to `threads` threads.
/// `scratch` holds the packed `b` and grows as needed.
#[expect(clippy::too_many_arguments, reason = "a product is its operands and its sizes")]
pub fn matmul_f32(
    isa: Isa,
    a: &[f32],
    b: &[f32],
    m: usize,
    k: usize,
    n: usize,
    out: &mut [f32],
    scratch: &mut Vec<f32>,
    threads: usize,
) {
    assert_eq!((a.len(), b.len(), out.len()), (m * k, k * n, m * n), "[m, k] times [k, n] to [m, n]");
    if m * n * k == 0 {
        return out.fill(0.0);
    }
    let len = F32.packed_len(n, k);
    // Panels start on a cache line; a `Vec` need not.
    let spare = 64 / size_of::<f32>();
    if scratch.len() < len + spare {
        scratch.resize(len + spare, 0.0);
    }
    let skip = scratch.as_ptr().align_offset(64);
    let panels = &mut scratch[skip..][..len];
    for first in (0..n).step_by(F32.columns) {
        let width = F32.width(first, n);
        let panel = &mut panels[F32.panel_start(first, k)..][..width * k];
        let columns = width.min(n - first);
        for (to, from) in panel.chunks_exact_mut(width).zip(b.chunks_exact(n)) {
            to[..columns].copy_from_slice(&from[first..][..columns]);
            to[columns..].fill(0.0);
        }
    }
    let window = Window::of_rows(m);
    let product = Product {
        isa,
        patches: &Patches::new(a, k, 0, k, &window, 0.0),
        depth: k,
        panels,
        columns: n,
        epilogue: FloatEpilogue { bias: None, lo: f32::NEG_INFINITY, hi: f32::INFINITY },
        out_stride: n,
        out_offset: 0,
    };
    product.run(m, out, threads);
}

/// A product whose right side is packed.
struct Product<'a> {
    isa: Isa,
    patches: &'a Patches<'a, f32>,
    depth: usize,
    panels: &'a [f32],
    columns: usize,
    epilogue: FloatEpilogue<'a>,
    out_stride: usize,
    out_offset: usize,
}

impl Product<'_> {
    fn run(&self, rows: usize, out: &mut [f32], threads: usize) {
        assert_eq!(out.len(), rows * self.out_stride, "output [rows, out_stride]");
        assert!(self.out_offset + self.columns <= self.out_stride, "channels within a pixel");
        assert!(self.epilogue.bias.is_none_or(|bias| bias.len() == self.columns), "one bias a channel");
        if rows == 0 {
            return;
        }
        let parts = parts(threads, rows * self.columns * self.depth / self.isa.products_per_ns());
        if rows == 1 && self.out_stride == self.columns {
            split_rows(out, 0..self.columns, 1, F32.columns, parts, &|range, out: &mut [f32]| {
                self.part(0..1, range, out);
            });
        } else {
            split_rows(out, 0..rows, self.out_stride, F32.rows, parts, &|range, out: &mut [f32]| {
                self.part(range, 0..self.columns, out);
            });
        }
    }

    /// The share of one thread: `out` starts at its first row and column.
    fn part(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        let (first_row, first_column) = (rows.start, columns.start);
        walk(
            self.isa,
            F32,
            self.patches,
            self.depth,
            self.columns,
            rows,
            columns,
            |a: &[f32], lda, rows, columns, width| {
                let row = (rows.start - first_row) * self.out_stride;
                let place = Place {
                    at: row + self.out_offset + columns.start - first_column,
                    stride: self.out_stride,
                    channel: columns.start,
                    columns: columns.len(),
                };
                let panel = &self.panels[F32.panel_start(columns.start, self.depth)..][..width * self.depth];
                tile(self.isa, a, lda, rows.len(), panel, width, self.depth, self.epilogue, out, place);
            },
            |_| {},
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
    epilogue: FloatEpilogue,
    out: &mut [f32],
    place: Place,
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = isa.avx2() {
        return avx2.f32_tile(a, lda, rows, panel, width, depth, epilogue, out, place);
    }
    let _ = isa;
    for r in 0..rows {
        let mut acc = [0f32; F32.columns];
        for (&a, b) in a[r * lda..][..depth].iter().zip(panel.chunks_exact(width)) {
            for (acc, &b) in acc.iter_mut().zip(b) {
                *acc = a.mul_add(b, *acc);
            }
        }
        let out = &mut out[place.at + r * place.stride..][..place.columns];
        for (i, (y, acc)) in out.iter_mut().zip(acc).enumerate() {
            *y = epilogue.finish(acc, place.channel + i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::super::testing::{Random, window, windows};
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
        for (bias, lo, hi) in [
            (None, f32::NEG_INFINITY, f32::INFINITY),
            (Some(&bias[..]), 0.0, 6.0),
            (Some(&bias), 0.0, f32::INFINITY),
        ] {
            let want = reference::conv_f32(&x, in_stride, in_offset, &weights, inputs, window, bias, lo, hi);
            for isa in Isa::available() {
                let packed = PackedF32::pack(isa, &weights, outputs, window.taps(), inputs);
                let mut y = vec![77.0; window.rows() * out_stride];
                let (y_stride, y_offset) = (out_stride, out_offset);
                packed.conv(
                    &x, in_stride, in_offset, window, bias, lo, hi, &mut y, y_stride, y_offset, threads,
                );
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
    }

    #[test]
    fn products_match_the_reference_to_the_bit() {
        let mut random = Random::new(2);
        let mut scratch = Vec::new();
        for (m, k, n, threads) in [
            (1, 1, 1, 1),
            (2, 3, 5, 1),
            (6, 16, 16, 1),
            (7, 33, 17, 1),
            (13, 70, 31, 1),
            (1, 900, 300, 2),
            (70, 65, 90, 2),
            (0, 4, 4, 1),
            (5, 0, 3, 1),
        ] {
            let (a, b) = (random.f32s(m * k), random.f32s(k * n));
            let chain = |i: usize| (0..k).fold(0.0, |acc, p| a[i / n * k + p].mul_add(b[p * n + i % n], acc));
            let want: Vec<f32> = (0..m * n).map(chain).collect();
            for isa in Isa::available() {
                let mut y = vec![1.0; m * n];
                matmul_f32(isa, &a, &b, m, k, n, &mut y, &mut scratch, threads);
                assert!(same_bits(&y, &want), "{isa:?} [{m}, {k}] [{k}, {n}]");
                if k > 0 {
                    y.fill(1.0);
                    let packed = PackedF32::pack_matrix(isa, &b, k, n);
                    packed.matmul(&a, m, None, f32::NEG_INFINITY, f32::INFINITY, &mut y, threads);
                    assert!(same_bits(&y, &want), "{isa:?} [{m}, {k}] [{k}, {n}] packed");
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_passes_the_clamp() {
        for isa in Isa::available() {
            let packed = PackedF32::pack_matrix(isa, &[1.0, 0.0], 1, 2);
            let mut y = [0.0; 4];
            packed.matmul(&[f32::NAN, f32::INFINITY], 2, None, 0.0, 6.0, &mut y, 1);
            assert!(y[0].is_nan() && y[1].is_nan() && y[2] == 6.0 && y[3].is_nan(), "{isa:?} {y:?}");
        }
    }
}
