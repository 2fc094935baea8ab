//! Integer depthwise convolution: each channel has its own kernel. Knows slices only.

#[cfg(target_arch = "aarch64")]
use super::aarch64_neon::Neon;
use super::coded::{Columns, Output};
#[cfg(target_arch = "x86_64")]
use super::depthwise_columns::{NOWHERE, Pixels, column_words, pack_columns};
#[cfg(target_arch = "x86_64")]
use super::depthwise_quads::{CHANNELS_MIN, QUAD, lines_at_once, pack_lines, pays, quads_of_line};
use super::halo::{self, BLOCK, blocks, lane};
use super::isa::Isa;
use super::lines::Aligned;
#[cfg(target_arch = "x86_64")]
use super::lines::with_scratch;
use super::parallel::{parts, split_rows};
use super::rows::Rows;
use super::tiles::Place;
#[cfg(target_arch = "x86_64")]
use super::x86_64::Avx2;
#[cfg(target_arch = "x86_64")]
use super::x86_64_vnni::Avx512Vnni;
use super::{IntOutput, Window};
use bytemuck::Pod;
use std::ops::Range;

/// Weights of a depthwise convolution with one output channel an input channel, packed.
#[derive(Clone)]
pub struct PackedDepthwise {
    isa: Isa,
    weights: Weights,
    column_sums: Vec<i32>,
    taps: usize,
}

/// `[block, taps / group, 4, 8, group]`: groups of taps, and of 32 channels first 0-3 16-19, then 4-7 20-23, 8-11 24-27,
/// 12-15 28-31, which is the order in which vector registers interleave bytes.
#[derive(Clone)]
enum Weights {
    /// Groups of two taps.
    Pairs(Aligned<i16>),
    /// The groups of [`columns_of`] instead, of a square kernel of whole blocks.
    #[cfg(target_arch = "x86_64")]
    Columns(Avx2, Aligned<i16>),
    /// Groups of four taps.
    #[cfg(target_arch = "x86_64")]
    Quads(Avx512Vnni, Aligned<i8>),
    /// Those of [`pack_lines`] instead.
    #[cfg(target_arch = "x86_64")]
    Lines(Avx512Vnni, Aligned<i8>),
    /// `[block, taps, 32]` instead, an even number of taps, channels in order, and what the sum of each channel of each
    /// block begins with, `[block, 32]`.
    #[cfg(target_arch = "aarch64")]
    Rows(Neon, Aligned<i8>, Aligned<i32>),
}

impl PackedDepthwise {
    /// Packs `codes`, `[channels, taps]`, for `window` over images of any size; taps run over the kernel row by row. Every code
    /// from -128 to 127 is exact. `small` keeps to the smallest form.
    pub fn pack(isa: Isa, codes: &[i8], channels: usize, window: &Window, small: bool) -> PackedDepthwise {
        let taps = window.taps();
        assert_eq!(codes.len(), channels * taps, "codes [channels, taps]");
        assert!(channels > 0 && taps > 0, "a kernel has channels and taps");
        let pairs = || pack_groups(codes, channels, taps, 2);
        #[cfg(target_arch = "x86_64")]
        let weights = match (isa.wide(), isa.avx2()) {
            (Some(wide), _) if !small && channels >= CHANNELS_MIN && pays(window) => {
                Weights::Lines(wide, pack_lines(codes, channels, window.kernel_w, window.stride_w))
            }
            (Some(wide), _) => Weights::Quads(wide, pack_groups(codes, channels, taps, QUAD)),
            (None, Some(avx2))
                if channels >= BLOCK && window.kernel_h == window.kernel_w && window.dilation_w == 1 =>
            {
                Weights::Columns(avx2, pack_columns(codes, channels, window.kernel_w))
            }
            _ => Weights::Pairs(pairs()),
        };
        #[cfg(target_arch = "aarch64")]
        let weights = match isa.neon() {
            Some(neon) => {
                let (weights, starts) = pack_rows(codes, channels, taps);
                Weights::Rows(neon, weights, starts)
            }
            None => Weights::Pairs(pairs()),
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let weights = Weights::Pairs(pairs());
        #[cfg(not(target_arch = "x86_64"))]
        let _ = small;
        let sum = |kernel: &[i8]| kernel.iter().map(|&code| i32::from(code)).sum();
        let column_sums = codes.chunks_exact(taps).map(sum).collect();
        PackedDepthwise { isa, weights, column_sums, taps }
    }

    /// `[channels]`: the sum of each channel's codes.
    pub fn column_sums(&self) -> &[i32] {
        &self.column_sums
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        let weights = match &self.weights {
            Weights::Pairs(weights) => weights.bytes(),
            #[cfg(target_arch = "x86_64")]
            Weights::Columns(_, weights) => weights.bytes(),
            #[cfg(target_arch = "x86_64")]
            Weights::Quads(_, weights) | Weights::Lines(_, weights) => weights.bytes(),
            #[cfg(target_arch = "aarch64")]
            Weights::Rows(_, weights, starts) => weights.bytes() + starts.bytes(),
        };
        weights + size_of_val(&self.column_sums[..])
    }

    /// Convolution of `x`, `[batch, in_h, in_w, channels]`, to `out`, `[batch, out_h, out_w, channels]`, with up to
    /// `threads` threads. Padding reads the code `pad`, which is the input's zero point.
    pub fn conv<'a, 'b>(
        &self,
        x: &[u8],
        window: &Window,
        pad: u8,
        out: impl Into<Output<'a, 'b>>,
        threads: usize,
    ) {
        let (channels, out) = (self.column_sums.len(), out.into());
        assert_eq!(window.taps(), self.taps, "a window of the packed kernel");
        assert_eq!(out.len(), window.rows() * channels, "output [batch, out_h, out_w, channels]");
        out.assert_channels(channels);
        if window.rows() == 0 {
            return;
        }
        let products = window.rows() * channels * self.taps;
        let parts = parts(threads, 4 * products / self.isa.products_per_ns());
        let (lines, line_len) = (0..window.batch * window.out_h, window.out_w * channels);
        let written = Columns { stride: channels, offset: 0, count: channels };
        split_rows(out, lines, line_len, 1, parts, &|lines, out: Output| {
            out.in_bands(
                self.isa,
                written,
                lines,
                1,
                |line| line * line_len,
                |lines, out| {
                    self.part(x, window, pad, lines, out);
                },
            );
        });
    }

    /// The share of one thread: `out` starts at its first line.
    fn part(&self, x: &[u8], window: &Window, pad: u8, lines: Range<usize>, out: &mut IntOutput) {
        let (step, count) = (window.stride_w * self.column_sums.len(), window.out_w);
        match &self.weights {
            Weights::Pairs(weights) => {
                self.part_by_taps(2, x, window, pad, lines, out, |block, x, taps, out, place| {
                    let len = taps.len() * BLOCK;
                    pairs(self.isa, x, taps, step, count, &weights[block * len..][..len], out, place);
                });
            }
            #[cfg(target_arch = "x86_64")]
            Weights::Columns(avx2, weights) => {
                self.part_by_columns(*avx2, weights, x, window, pad, lines, out);
            }
            #[cfg(target_arch = "x86_64")]
            Weights::Quads(vnni, weights) => {
                self.part_by_taps(QUAD, x, window, pad, lines, out, |block, x, taps, out, place| {
                    let len = taps.len() * BLOCK;
                    let weights = &weights[block * len..][..len];
                    vnni.depthwise_row(x, taps, self.taps, step, count, weights, out, place);
                });
            }
            #[cfg(target_arch = "x86_64")]
            Weights::Lines(vnni, weights) => {
                self.part_by_lines(*vnni, weights, x, window, pad, lines, out);
            }
            #[cfg(target_arch = "aarch64")]
            Weights::Rows(neon, weights, starts) => {
                self.part_by_taps(2, x, window, pad, lines, out, |block, x, taps, out, place| {
                    let len = taps.len() * BLOCK;
                    let (weights, starts) =
                        (&weights[block * len..][..len], &starts[block * BLOCK..][..BLOCK]);
                    neon.depthwise_row(x, taps, step, count, weights, starts, out, place);
                });
            }
        }
    }

    /// The same, a line of a block at a time: `row` gets the number of the block, its rows, its taps there, in groups of
    /// `group`, and where the line goes.
    #[expect(clippy::too_many_arguments, reason = "a convolution is its operands")]
    #[inline(always)]
    fn part_by_taps(
        &self,
        group: usize,
        x: &[u8],
        window: &Window,
        pad: u8,
        lines: Range<usize>,
        out: &mut IntOutput,
        row: impl Fn(usize, &[u8], &[usize], &mut IntOutput, Place),
    ) {
        let (first, channels) = (lines.start, self.column_sums.len());
        let line_len = window.out_w * channels;
        halo::for_each_line(x, channels, window, pad, lines, group, |line, rows, taps| {
            let at = (line - first) * line_len;
            for (i, block) in blocks(channels).enumerate() {
                let (channel, columns) = (block.start, block.len());
                let place = Place { at: at + channel, stride: channels, channel, columns };
                row(i, &rows[channel..], taps, out, place);
            }
            self.complete(at, window.out_w, out);
        });
    }

    /// Completes `count` pixels from element `at` on.
    fn complete(&self, at: usize, count: usize, out: &mut IntOutput) {
        let channels = self.column_sums.len();
        let starts = (0..count).map(|i| at + i * channels);
        Rows { starts, stride: channels, channels: 0..channels, summed: false }.complete(self.isa, out);
    }
}

#[cfg(target_arch = "x86_64")]
impl PackedDepthwise {
    /// The same with `weights` of [`pack_lines`].
    #[expect(clippy::too_many_arguments, reason = "a convolution is its operands")]
    fn part_by_lines(
        &self,
        vnni: Avx512Vnni,
        weights: &[i8],
        x: &[u8],
        window: &Window,
        pad: u8,
        lines: Range<usize>,
        out: &mut IntOutput,
    ) {
        let (first, channels) = (lines.start, self.column_sums.len());
        assert_eq!(x.len(), window.pixels() * channels, "input [batch, in_h, in_w, channels]");
        assert!(pays(window), "a window that it was packed for");
        let (line_len, row_len) = (window.out_w * channels, window.in_w * channels);
        let len = weights.len() / blocks(channels).len();
        let quads = quads_of_line(window.kernel_w, window.stride_w, window.out_w);
        with_scratch::<u8, _>(channels, |padding| {
            padding.fill(pad);
            let fill = |source: Option<usize>, to: &mut [u8]| {
                let line = source.map_or(&[][..], |source| &x[source * row_len..][..row_len]);
                vnni.put_together(line, channels, window.pad_left, padding, to);
            };
            let scratch_len = quads * QUAD * channels;
            let at_once = lines_at_once(window, scratch_len).min(lines.len());
            halo::for_each_line_of(window, lines, at_once, scratch_len, fill, |lines, rows, starts| {
                let at = (lines.start - first) * line_len;
                let (kernel, count) = ((window.kernel_w, window.stride_w), window.out_w);
                for (block, weights) in blocks(channels).zip(weights.chunks_exact(len)) {
                    let (channel, columns) = (block.start, block.len());
                    let place = Place { at: at + channel, stride: channels, channel, columns };
                    vnni.depthwise_lines(
                        rows, starts, kernel, channels, count, weights, out, place, line_len,
                    );
                }
                self.complete(at, lines.len() * count, out);
            });
        });
    }

    /// The same with `weights` of [`pack_columns`].
    #[expect(clippy::too_many_arguments, reason = "a convolution is its operands")]
    fn part_by_columns(
        &self,
        avx2: Avx2,
        weights: &[i16],
        x: &[u8],
        window: &Window,
        pad: u8,
        lines: Range<usize>,
        out: &mut IntOutput,
    ) {
        let (first, channels) = (lines.start, self.column_sums.len());
        assert_eq!(x.len(), window.pixels() * channels, "input [batch, in_h, in_w, channels]");
        let (line_len, row_len) = (window.out_w * channels, window.in_w * channels);
        let (size, stride, count) = (window.kernel_w, window.stride_w, window.out_w);
        let len = weights.len() / blocks(channels).len();
        let at_once = lines_at_once(window, row_len).min(lines.len());
        with_scratch::<i16, _>(column_words(size, stride, count), |words| {
            with_scratch::<usize, _>(at_once * size, |starts| {
                for lines in halo::strips(window, lines, at_once) {
                    let starts = &mut starts[..lines.len() * size];
                    for (source, start) in halo::sources(window, lines.clone()).zip(starts.iter_mut()) {
                        *start = source.map_or(NOWHERE, |source| source * row_len);
                    }
                    let at = (lines.start - first) * line_len;
                    for (block, weights) in blocks(channels).zip(weights.chunks_exact(len)) {
                        let (channel, columns) = (block.start, block.len());
                        let place = Place { at: at + channel, stride: channels, channel, columns };
                        let (x, left) = (&x[channel..], window.pad_left);
                        let pixels = Pixels { x, width: window.in_w, pixel: channels, left, pad };
                        avx2.depthwise_columns(
                            pixels,
                            starts,
                            (size, stride),
                            count,
                            weights,
                            words,
                            out,
                            place,
                            line_len,
                        );
                    }
                    self.complete(at, lines.len() * count, out);
                }
            });
        });
    }
}

/// Packs codes in groups of `group` taps, zeros after the last.
fn pack_groups<T: Pod + From<i8>>(codes: &[i8], channels: usize, taps: usize, group: usize) -> Aligned<T> {
    let padded = taps.next_multiple_of(group);
    let blocks = blocks(channels);
    let mut packed = Aligned::zeros(blocks.len() * padded * BLOCK);
    for (block, packed) in blocks.zip(packed.chunks_exact_mut(padded * BLOCK)) {
        for (t, c) in (0..taps).flat_map(|t| block.clone().map(move |c| (t, c))) {
            let at = t / group * BLOCK * group + lane(c - block.start) * group + t % group;
            packed[at] = T::from(codes[c * taps + t]);
        }
    }
    packed
}

/// Packs codes tap by tap, and sums each channel's, times what a product has too little for each.
#[cfg(target_arch = "aarch64")]
fn pack_rows(codes: &[i8], channels: usize, taps: usize) -> (Aligned<i8>, Aligned<i32>) {
    let (len, blocks) = (taps.next_multiple_of(2) * BLOCK, blocks(channels));
    let mut packed = Aligned::zeros(blocks.len() * len);
    let mut starts = Aligned::zeros(blocks.len() * BLOCK);
    for (i, block) in blocks.enumerate() {
        for (t, c) in (0..taps).flat_map(|t| block.clone().map(move |c| (t, c))) {
            let (code, at) = (codes[c * taps + t], c - block.start);
            packed[i * len + t * BLOCK + at] = code;
            starts[i * BLOCK + at] += i32::from(code) * Neon::depthwise_excess(t);
        }
    }
    (packed, starts)
}

/// One line of one block with weights in pairs, by AVX2 or in plain Rust.
#[expect(clippy::too_many_arguments, reason = "a line is its operands and its place")]
#[inline(always)]
fn pairs(
    isa: Isa,
    x: &[u8],
    taps: &[usize],
    step: usize,
    count: usize,
    weights: &[i16],
    out: &mut IntOutput,
    place: Place,
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = isa.avx2() {
        return avx2.depthwise_row(x, taps, step, count, weights, out, place);
    }
    let _ = isa;
    for i in 0..count {
        let mut acc = [0i32; BLOCK];
        for (pair, weights) in taps.chunks_exact(2).zip(weights.chunks_exact(2 * BLOCK)) {
            let [a, b] = [pair[0], pair[1]].map(|tap| &x[tap + i * step..][..BLOCK]);
            for c in 0..BLOCK {
                let w = &weights[lane(c) * 2..][..2];
                acc[c] += i32::from(a[c]) * i32::from(w[0]) + i32::from(b[c]) * i32::from(w[1]);
            }
        }
        out.put(place.at + i * place.stride, place.channel, &acc[..place.columns]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, window, windows};
    use super::super::{Dequant, Requant, reference};
    use super::*;

    fn check(window: &Window, channels: usize, pad: u8, threads: usize) {
        let mut random = Random::new(channels as u64);
        let mut x = random.u8s(window.pixels() * channels);
        let mut codes = random.i8s(channels * window.taps());
        x.iter_mut().step_by(channels).for_each(|x| *x = 255);
        codes[..window.taps()].fill(-128);
        let bias: Vec<i32> = (0..channels).map(|_| random.next() as i32 % 20_000).collect();
        let factor: Vec<f32> = (0..channels).map(|_| (random.next() % 999 + 1) as f32 * 4e-6).collect();
        let table: [u8; 256] = random.u8s(256).try_into().expect("256 codes");
        let acc = reference::depthwise_int8(&x, &codes, channels, window, pad);
        for isa in Isa::available() {
            let name = format!("{isa:?} {channels} channels, {window:?}, pad {pad}");
            let packed = PackedDepthwise::pack(isa, &codes, channels, window, channels % 2 == 1);
            for (lo, hi, zero_point, table) in
                [(0, 255, 128, None), (3, 200, 0, Some(&table)), (0, 255, 255, None)]
            {
                let requant =
                    Requant { bias: &bias, multiplier: &factor, zero_point, lo, hi, table, sum: None };
                let mut y = vec![0; acc.len()];
                packed.conv(&x, window, pad, IntOutput::U8(&mut y, &requant), threads);
                assert_eq!(y, reference::requantize(&acc, &requant), "{name}");
            }
            let mut y = vec![0; acc.len()];
            packed.conv(&x, window, pad, IntOutput::I32(&mut y, &bias), threads);
            let sum = |(i, acc): (usize, &i32)| acc.wrapping_add(bias[i % bias.len()]);
            assert_eq!(y, acc.iter().enumerate().map(sum).collect::<Vec<_>>(), "{name}");
            let dequant = Dequant { bias: &bias, scale: &factor, then: None };
            let mut y = vec![0.0; acc.len()];
            packed.conv(&x, window, pad, IntOutput::F32(&mut y, &dequant), threads);
            assert_eq!(y, reference::dequantize_sums(&acc, &dequant), "{name}");
        }
    }

    #[test]
    fn depthwise_convolutions_match_the_reference() {
        for (i, window) in windows().iter().enumerate() {
            for (channels, pad) in [(1, 0), (16, 255), (31, 7), (32, 128), (33, 0), (64, 3), (100, 255)] {
                check(window, channels, pad, 1 + i % 2);
            }
        }
    }

    #[test]
    fn random_depthwise_convolutions_match_the_reference() {
        let mut random = Random::new(97);
        for _ in 0..100 {
            check(&random.window(), 1 + random.next() as usize % 80, random.next() as u8, 1);
        }
    }

    #[test]
    fn square_kernels_of_every_size_match_the_reference() {
        for size in 1..=7 {
            for width in [11 + size, 12 + size, 20] {
                let window = window(1, (8, width), (size, size), (1, 1), (1, 1), (size / 2, 0));
                check(&window, 32, 77, 1);
                check(&window, 70, 255, 1);
            }
        }
        check(&window(1, (9, 16), (3, 3), (2, 1), (2, 1), (1, 1)), 40, 9, 1);
        check(&window(1, (9, 20), (3, 3), (1, 1), (1, 2), (1, 1)), 40, 9, 1);
    }

    #[test]
    fn lines_of_every_length_match_the_reference() {
        for (size, stride) in [(3, 1), (3, 2), (5, 1), (5, 2)] {
            for width in size..size + 19 {
                let window = window(1, (6, width), (size, size), (stride, stride), (1, 1), (1, width % 3));
                for channels in [16, 20, 50, 64] {
                    check(&window, channels, 91, 1);
                }
            }
        }
    }

    /// More lines than are computed at once.
    #[test]
    fn large_images_match_the_reference() {
        check(&window(2, (40, 100), (3, 3), (1, 1), (1, 1), (1, 1)), 96, 131, 1);
        check(&window(1, (61, 120), (3, 3), (2, 2), (1, 1), (1, 1)), 96, 131, 2);
    }

    #[test]
    fn every_channel_count_matches_the_reference() {
        for channels in 1..=97 {
            check(&window(1, (4, 5), (3, 3), (1, 1), (1, 1), (1, 1)), channels, 130, 1);
        }
    }

    /// Sums on the way to 32 bits are largest here, of either sign, for every two neighbouring taps.
    #[test]
    fn extremes_of_codes_and_weights_match_the_reference() {
        let (channels, taps) = (64, 8);
        let code = |i: usize| if (i % channels) >> (i / channels % 3) & 1 == 1 { 255 } else { 0 };
        let x: Vec<u8> = (0..taps * channels).map(code).collect();
        let weight = |i: usize| if (i / taps) >> (3 + i % taps % 3) & 1 == 1 { 127 } else { -128 };
        let codes: Vec<i8> = (0..channels * taps).map(weight).collect();
        let window = window(1, (1, taps), (1, taps), (1, 1), (1, 1), (0, 0));
        let want = reference::depthwise_int8(&x, &codes, channels, &window, 0);
        for isa in Isa::available() {
            let mut y = vec![0; channels];
            let packed = PackedDepthwise::pack(isa, &codes, channels, &window, false);
            packed.conv(&x, &window, 0, IntOutput::I32(&mut y, &vec![0; channels]), 1);
            assert_eq!(y, want, "{isa:?}");
        }
    }

    #[test]
    fn two_threads_give_what_one_gives() {
        check(&window(2, (30, 31), (3, 3), (1, 1), (1, 1), (1, 1)), 40, 131, 2);
        check(&window(2, (30, 31), (5, 5), (2, 2), (1, 1), (2, 2)), 40, 131, 2);
    }
}
