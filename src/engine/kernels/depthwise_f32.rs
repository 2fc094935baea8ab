//! Float depthwise convolution, for the layers that stay in floats. Knows slices only.
//!
//! Every output element is one chain `acc = fma(x, w, acc)` over the taps from 0.0, then its epilogue.

use super::Epilogue;
use super::Window;
use super::activate::finish_rows;
use super::halo::{self, BLOCK, blocks};
use super::isa::Isa;
use super::lines::Aligned;
use super::parallel::{parts, split_rows};
use super::tiles::Place;
use std::ops::Range;

/// Weights of a float depthwise convolution with one output channel an input channel, packed.
#[derive(Clone)]
pub struct PackedDepthwiseF32 {
    isa: Isa,
    /// `[block, taps, 32]`.
    weights: Aligned<f32>,
    channels: usize,
    taps: usize,
}

impl PackedDepthwiseF32 {
    /// Packs `weights`, `[channels, taps]`; taps run over the kernel row by row.
    pub fn pack(isa: Isa, weights: &[f32], channels: usize, taps: usize) -> PackedDepthwiseF32 {
        assert_eq!(weights.len(), channels * taps, "weights [channels, taps]");
        assert!(channels > 0 && taps > 0, "a kernel has channels and taps");
        let blocks = blocks(channels);
        let mut packed = Aligned::zeros(blocks.len() * taps * BLOCK);
        for (block, packed) in blocks.zip(packed.chunks_exact_mut(taps * BLOCK)) {
            for (t, packed) in packed.chunks_exact_mut(BLOCK).enumerate() {
                for (w, c) in packed.iter_mut().zip(block.clone()) {
                    *w = weights[c * taps + t];
                }
            }
        }
        PackedDepthwiseF32 { isa, weights: packed, channels, taps }
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Convolution of `x`, `[batch, in_h, in_w, channels]`, to `out`, `[batch, out_h, out_w, channels]`, with up to
    /// `threads` threads. Padding takes part in the chain as 0.0.
    pub fn conv(&self, x: &[f32], window: &Window, epilogue: &Epilogue, out: &mut [f32], threads: usize) {
        let channels = self.channels;
        assert_eq!(window.taps(), self.taps, "a window of the packed kernel");
        assert_eq!(out.len(), window.rows() * channels, "output [batch, out_h, out_w, channels]");
        assert!(epilogue.bias.is_none_or(|bias| bias.len() == channels), "one bias a channel");
        assert!(epilogue.residual.is_none_or(|r| r.len() == out.len()), "a residual of the output's shape");
        if window.rows() == 0 {
            return;
        }
        let products = window.rows() * channels * self.taps;
        let parts = parts(threads, 4 * products / self.isa.products_per_ns());
        let (lines, line_len) = (0..window.batch * window.out_h, window.out_w * channels);
        let step = window.stride_w * channels;
        split_rows(out, lines, line_len, 1, parts, &|lines: Range<usize>, out: &mut [f32]| {
            let first = lines.start;
            let residual = epilogue.residual.map(|residual| &residual[first * line_len..][..out.len()]);
            let epilogue = Epilogue { residual, ..*epilogue };
            let in_registers = epilogue.in_registers();
            halo::for_each_line(x, channels, window, 0.0, lines, 1, |line, rows, taps| {
                let at = (line - first) * line_len;
                for (block, weights) in blocks(channels).zip(self.weights.chunks_exact(self.taps * BLOCK)) {
                    let place = Place {
                        at: at + block.start,
                        stride: channels,
                        channel: block.start,
                        columns: block.len(),
                    };
                    let x = &rows[block.start..];
                    line_of_block(self.isa, x, taps, step, window.out_w, weights, in_registers, out, place);
                }
                finish_rows(&epilogue, self.isa, out, std::iter::once(at), line_len);
            });
        });
    }
}

#[expect(clippy::too_many_arguments, reason = "a line is its operands, its epilogue and its place")]
#[inline(always)]
fn line_of_block(
    isa: Isa,
    x: &[f32],
    taps: &[usize],
    step: usize,
    count: usize,
    weights: &[f32],
    epilogue: Epilogue,
    out: &mut [f32],
    place: Place,
) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(wide) = isa.wide() {
            return wide.depthwise_row_f32(x, taps, step, count, weights, epilogue, out, place);
        }
        if let Some(avx2) = isa.avx2() {
            return avx2.depthwise_row_f32(x, taps, step, count, weights, epilogue, out, place);
        }
    }
    let _ = isa;
    for i in 0..count {
        let at = place.at + i * place.stride;
        let out = &mut out[at..][..place.columns];
        for (c, y) in out.iter_mut().enumerate() {
            let mut acc = 0f32;
            for (&tap, weights) in taps.iter().zip(weights.chunks_exact(BLOCK)) {
                acc = x[tap + i * step + c].mul_add(weights[c], acc);
            }
            *y = epilogue.finish(acc, place.channel + c, at + c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::super::testing::{Random, epilogues, window, windows};
    use super::*;

    fn check(window: &Window, channels: usize, threads: usize) {
        let mut random = Random::new(channels as u64);
        let x = random.f32s(window.pixels() * channels);
        let weights = random.f32s(channels * window.taps());
        let bias = random.f32s(channels);
        let residual = random.f32s(window.rows() * channels);
        for epilogue in epilogues(&bias, &residual) {
            let want = reference::depthwise_f32(&x, &weights, channels, window, &epilogue);
            for isa in Isa::available() {
                let packed = PackedDepthwiseF32::pack(isa, &weights, channels, window.taps());
                let mut y = vec![0.0; want.len()];
                packed.conv(&x, window, &epilogue, &mut y, threads);
                let same = y.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{isa:?} {channels} channels, {window:?}");
            }
        }
    }

    #[test]
    fn depthwise_convolutions_match_the_reference_to_the_bit() {
        for (i, window) in windows().iter().enumerate() {
            for channels in [1, 16, 31, 32, 33, 70] {
                check(window, channels, 1 + i % 2);
            }
        }
        let mut random = Random::new(96);
        for _ in 0..40 {
            check(&random.window(), 1 + random.next() as usize % 80, 1);
        }
        check(&window(2, (20, 21), (3, 3), (1, 1), (1, 1), (1, 1)), 40, 2);
    }
}
