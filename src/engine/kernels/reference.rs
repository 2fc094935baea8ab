//! The obvious loop of each kernel: what the others are tested against. Slow, and knows no instruction set.

use super::Epilogue;
use super::{Dequant, PoolScales, Requant, Window, clamp_f32};

/// Accumulators of a dense convolution, `[batch, out_h, out_w, outputs]`, modulo 2^32.
///
/// `x` is `[batch, in_h, in_w, in_stride]`, of which channels `in_offset .. in_offset + inputs` are read; `codes` is
/// `[outputs, taps, inputs]`; padding reads `pad`. No zero point is subtracted.
pub fn conv_int8(
    x: &[u8],
    in_stride: usize,
    in_offset: usize,
    codes: &[i8],
    inputs: usize,
    window: &Window,
    pad: u8,
) -> Vec<i32> {
    let depth = window.taps() * inputs;
    let mut out = Vec::new();
    for taps in output_pixels(window) {
        for code in codes.chunks_exact(depth) {
            let mut acc = 0i32;
            for (t, pixel) in taps.iter().enumerate() {
                for c in 0..inputs {
                    let a = pixel.map_or(pad, |pixel| x[pixel * in_stride + in_offset + c]);
                    acc = acc.wrapping_add(i32::from(a) * i32::from(code[t * inputs + c]));
                }
            }
            out.push(acc);
        }
    }
    out
}

/// Accumulators of a depthwise convolution, `[batch, out_h, out_w, channels]`; `codes` is `[channels, taps]`.
pub fn depthwise_int8(x: &[u8], codes: &[i8], channels: usize, window: &Window, pad: u8) -> Vec<i32> {
    let mut out = Vec::new();
    for taps in output_pixels(window) {
        for c in 0..channels {
            let code = |t: usize| i32::from(codes[c * window.taps() + t]);
            let a = |pixel: Option<usize>| i32::from(pixel.map_or(pad, |pixel| x[pixel * channels + c]));
            out.push(taps.iter().enumerate().map(|(t, &pixel)| a(pixel) * code(t)).sum());
        }
    }
    out
}

/// Codes of accumulators `[rows, channels]`, as [`Requant`] says.
pub fn requantize(acc: &[i32], requant: &Requant) -> Vec<u8> {
    let channels = requant.bias.len();
    let code = |(i, acc): (usize, &i32)| {
        let n = i % channels;
        let scaled = acc.wrapping_add(requant.bias[n]) as f32 * requant.multiplier[n];
        // Saturating: a product out of range of `i64` is far out of range of a code.
        let rounded = scaled.round_ties_even() as i64;
        let (lo, hi) = (i64::from(requant.lo), i64::from(requant.hi));
        let code = rounded.saturating_add(i64::from(requant.zero_point)).clamp(lo, hi) as u8;
        requant.table.map_or(code, |table| table[usize::from(code)])
    };
    acc.iter().enumerate().map(code).collect()
}

/// Values of accumulators `[rows, channels]`, as [`Dequant`] says.
pub fn dequantize_sums(acc: &[i32], dequant: &Dequant) -> Vec<f32> {
    let channels = dequant.bias.len();
    let value = |(i, acc): (usize, &i32)| {
        acc.wrapping_add(dequant.bias[i % channels]) as f32 * dequant.scale[i % channels]
    };
    acc.iter().enumerate().map(value).collect()
}

/// Dense float convolution, `[batch, out_h, out_w, outputs]`; shapes as in [`conv_int8`], padding reads 0.0.
pub fn conv_f32(
    x: &[f32],
    in_stride: usize,
    in_offset: usize,
    weights: &[f32],
    inputs: usize,
    window: &Window,
    epilogue: &Epilogue,
) -> Vec<f32> {
    let depth = window.taps() * inputs;
    let mut out = Vec::new();
    for taps in output_pixels(window) {
        for (n, weights) in weights.chunks_exact(depth).enumerate() {
            let mut acc = 0f32;
            for (t, pixel) in taps.iter().enumerate() {
                for c in 0..inputs {
                    let a = pixel.map_or(0.0, |pixel| x[pixel * in_stride + in_offset + c]);
                    acc = a.mul_add(weights[t * inputs + c], acc);
                }
            }
            out.push(finished(acc, n, out.len(), epilogue));
        }
    }
    out
}

/// Depthwise float convolution, `[batch, out_h, out_w, channels]`; `weights` is `[channels, taps]`.
pub fn depthwise_f32(
    x: &[f32],
    weights: &[f32],
    channels: usize,
    window: &Window,
    epilogue: &Epilogue,
) -> Vec<f32> {
    let mut out = Vec::new();
    for taps in output_pixels(window) {
        for c in 0..channels {
            let mut acc = 0f32;
            for (t, pixel) in taps.iter().enumerate() {
                let a = pixel.map_or(0.0, |pixel| x[pixel * channels + c]);
                acc = a.mul_add(weights[c * window.taps() + t], acc);
            }
            out.push(finished(acc, c, out.len(), epilogue));
        }
    }
    out
}

/// What an epilogue makes of the sum of channel `n` and element `at`.
pub fn finished(sum: f32, n: usize, at: usize, epilogue: &Epilogue) -> f32 {
    let y = epilogue.bias.map_or(sum, |bias| sum + bias[n]);
    let y = epilogue.activation.map_or(y, |activation| activation.of(y));
    let y = epilogue.residual.map_or(y, |residual| y + residual[at]);
    clamp_f32(y, epilogue.lo, epilogue.hi)
}

/// ONNX `QuantizeLinear` of one value; not-a-number gives the zero point.
pub fn quantize(x: f32, scale: f32, zero_point: u8) -> u8 {
    let rounded = (x / scale).round_ties_even() as i64;
    rounded.saturating_add(i64::from(zero_point)).clamp(0, 255) as u8
}

/// ONNX `DequantizeLinear` of one code.
pub fn dequantize(q: u8, scale: f32, zero_point: u8) -> f32 {
    (i32::from(q) - i32::from(zero_point)) as f32 * scale
}

/// Largest element of each window, `[batch, out_h, out_w, channels]`; `least` where all is padding.
pub fn max_pool<T: Copy + PartialOrd>(x: &[T], channels: usize, window: &Window, least: T) -> Vec<T> {
    let mut out = Vec::new();
    for taps in output_pixels(window) {
        for c in 0..channels {
            let inside = taps.iter().flatten().map(|pixel| x[pixel * channels + c]);
            out.push(inside.fold(least, |a, b| if b > a { b } else { a }));
        }
    }
    out
}

/// Average code of each window, requantized as [`PoolScales`] says.
pub fn avg_pool_u8(
    x: &[u8],
    scales: PoolScales,
    channels: usize,
    window: &Window,
    count_include_pad: bool,
) -> Vec<u8> {
    let mut out = Vec::new();
    for taps in output_pixels(window) {
        let inside: Vec<usize> = taps.iter().flatten().copied().collect();
        let count = if count_include_pad { taps.len() } else { inside.len().max(1) };
        for c in 0..channels {
            let distance =
                |pixel: &usize| i32::from(x[pixel * channels + c]) - i32::from(scales.x_zero_point);
            let sum: i32 = inside.iter().map(distance).sum();
            let scaled = sum as f32 * (scales.x_scale / (count as f32 * scales.y_scale));
            let code = scaled.round_ties_even() as i64 + i64::from(scales.y_zero_point);
            out.push(code.clamp(0, 255) as u8);
        }
    }
    out
}

/// Average of each window: the sum in the order of the taps, divided by their count.
pub fn avg_pool_f32(x: &[f32], channels: usize, window: &Window, count_include_pad: bool) -> Vec<f32> {
    let mut out = Vec::new();
    for taps in output_pixels(window) {
        let inside: Vec<usize> = taps.iter().flatten().copied().collect();
        let count = if count_include_pad { taps.len() } else { inside.len().max(1) };
        for c in 0..channels {
            out.push(inside.iter().fold(0.0, |sum, pixel| sum + x[pixel * channels + c]) / count as f32);
        }
    }
    out
}

/// For each output pixel, the input pixel of each tap, or none where it is padding.
fn output_pixels(window: &Window) -> impl Iterator<Item = Vec<Option<usize>>> {
    let w = window.clone();
    (0..window.rows()).map(move |row| {
        let (image, oy, ox) = (row / (w.out_h * w.out_w), row / w.out_w % w.out_h, row % w.out_w);
        let mut taps = Vec::new();
        for ky in 0..w.kernel_h {
            for kx in 0..w.kernel_w {
                let y = (oy * w.stride_h + ky * w.dilation_h).checked_sub(w.pad_top).filter(|&y| y < w.in_h);
                let x = (ox * w.stride_w + kx * w.dilation_w).checked_sub(w.pad_left).filter(|&x| x < w.in_w);
                taps.push(y.zip(x).map(|(y, x)| (image * w.in_h + y) * w.in_w + x));
            }
        }
        taps
    })
}
