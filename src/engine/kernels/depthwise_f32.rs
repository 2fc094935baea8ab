//! Float depthwise convolution, for the layers that stay in floats. Knows slices only.
//!
//! Every output element is one chain `acc = fma(x, w, acc)` over the taps from 0.0, then `+ bias`, then the clamp.

use super::halo;
use super::isa::Isa;
use super::parallel::{parts, split_rows};
use super::{Window, clamp_f32};
use std::ops::Range;

/// Channels that are treated at once: four vector registers of AVX2.
const BLOCK: usize = 32;

/// Weights of a float depthwise convolution with one output channel an input channel, packed.
#[derive(Clone)]
pub struct PackedDepthwiseF32 {
    isa: Isa,
    /// `[taps, channels]`.
    weights: Vec<f32>,
    channels: usize,
    taps: usize,
}

impl PackedDepthwiseF32 {
    /// Packs `weights`, `[channels, taps]`; taps run over the kernel row by row.
    pub fn pack(isa: Isa, weights: &[f32], channels: usize, taps: usize) -> PackedDepthwiseF32 {
        assert_eq!(weights.len(), channels * taps, "weights [channels, taps]");
        assert!(channels > 0 && taps > 0, "a kernel has channels and taps");
        let weights = (0..taps * channels).map(|i| weights[i % channels * taps + i / channels]).collect();
        PackedDepthwiseF32 { isa, weights, channels, taps }
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.weights[..])
    }

    /// Convolution of `x`, `[batch, in_h, in_w, channels]`, to `out`, `[batch, out_h, out_w, channels]`, with up to
    /// `threads` threads. Padding takes part in the chain as 0.0; not-a-number stays.
    #[expect(clippy::too_many_arguments, reason = "a convolution is its two tensors and its epilogue")]
    pub fn conv(
        &self,
        x: &[f32],
        window: &Window,
        bias: Option<&[f32]>,
        lo: f32,
        hi: f32,
        out: &mut [f32],
        threads: usize,
    ) {
        let channels = self.channels;
        assert_eq!(window.taps(), self.taps, "a window of the packed kernel");
        assert_eq!(out.len(), window.rows() * channels, "output [batch, out_h, out_w, channels]");
        assert!(bias.is_none_or(|bias| bias.len() == channels), "one bias a channel");
        if window.rows() == 0 {
            return;
        }
        let products = window.rows() * channels * self.taps;
        let parts = parts(threads, 4 * products / self.isa.products_per_ns());
        let (lines, line_len) = (0..window.batch * window.out_h, window.out_w * channels);
        let step = window.stride_w * channels;
        split_rows(out, lines, line_len, 1, parts, &|lines: Range<usize>, out: &mut [f32]| {
            let first = lines.start;
            halo::for_each_line(x, channels, window, 0.0, lines, 1, |line, rows, taps| {
                let out = &mut out[(line - first) * line_len..][..line_len];
                self.isa.vectorize(|| {
                    let finish =
                        |sum: f32, c: usize| clamp_f32(bias.map_or(sum, |bias| sum + bias[c]), lo, hi);
                    for (i, out) in out.chunks_exact_mut(channels).enumerate() {
                        self.pixel(&rows[i * step..], taps, out, finish);
                    }
                });
            });
        });
    }

    #[inline(always)]
    fn pixel(&self, x: &[f32], taps: &[usize], out: &mut [f32], finish: impl Fn(f32, usize) -> f32) {
        let whole = out.len() / BLOCK * BLOCK;
        for c in (0..whole).step_by(BLOCK) {
            let mut acc = [0f32; BLOCK];
            for (t, &tap) in taps.iter().enumerate() {
                let (x, w) = (&x[tap + c..][..BLOCK], &self.weights[t * self.channels + c..][..BLOCK]);
                for i in 0..BLOCK {
                    acc[i] = x[i].mul_add(w[i], acc[i]);
                }
            }
            for (i, (y, acc)) in out[c..].iter_mut().zip(acc).enumerate() {
                *y = finish(acc, c + i);
            }
        }
        for (c, y) in out.iter_mut().enumerate().skip(whole) {
            let mut acc = 0f32;
            for (t, &tap) in taps.iter().enumerate() {
                acc = x[tap + c].mul_add(self.weights[t * self.channels + c], acc);
            }
            *y = finish(acc, c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::super::testing::{Random, window, windows};
    use super::*;

    fn check(window: &Window, channels: usize, threads: usize) {
        let mut random = Random::new(channels as u64);
        let x = random.f32s(window.pixels() * channels);
        let weights = random.f32s(channels * window.taps());
        let bias = random.f32s(channels);
        for (bias, lo, hi) in [(None, f32::NEG_INFINITY, f32::INFINITY), (Some(&bias[..]), 0.0, 6.0)] {
            let want = reference::depthwise_f32(&x, &weights, channels, window, bias, lo, hi);
            for isa in Isa::available() {
                let packed = PackedDepthwiseF32::pack(isa, &weights, channels, window.taps());
                let mut y = vec![0.0; want.len()];
                packed.conv(&x, window, bias, lo, hi, &mut y, threads);
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
        check(&window(2, (20, 21), (3, 3), (1, 1), (1, 1), (1, 1)), 40, 2);
    }
}
