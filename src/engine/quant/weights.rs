//! Weights to `i8`, biases to `i32`. Knows nothing of graphs.
//!
//! Rules: ONNX Runtime's `quant_utils.compute_scale_zp` and `_adjust_weight_scale_for_int32_bias` (1.32), with two
//! differences: a channel of zeros takes its scale from the others instead of 1, and the guard leaves room for the
//! products beside the bias, so that a sum never overflows 32 bits.

use crate::engine::kernels::round_half_even_small;
use crate::engine::quant::noise;
use crate::engine::tensor::{DType, Tensor, qparams::QuantParams};

/// Least room for a bias beside the products, in codes.
const BIAS_CODES_MIN: i64 = 1 << 24;

/// Symmetric codes of a weight tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// `i8`, in the shape of the weights.
    pub codes: Tensor,
    /// Scales: one, or one for each index along the axis. Zero points are 0.
    pub params: QuantParams,
}

/// Largest number of products in one sum: `count · 255 · 127` and a bias fit 32 bits.
pub fn terms_max() -> usize {
    ((i64::from(i32::MAX) - BIAS_CODES_MIN) / (255 * 127)) as usize
}

/// Symmetric scales of a weight tensor: `absmax / max_code`, in f64, stored as f32; one for each index along `axis`, or
/// one.
///
/// A channel whose largest magnitude is too small for a normal scale gets a hundredth of the largest scale
/// (NNCF's floor), or 1 where all weights are zero.
pub fn scales(weights: &Tensor, axis: Option<usize>, max_code: u8) -> Vec<f32> {
    let mut largest = vec![0f64; axis.map_or(1, |axis| weights.shape()[axis])];
    for_each(weights, axis, |_, channel, x| largest[channel] = largest[channel].max(f64::from(x.abs())));
    let scales: Vec<f64> = largest.iter().map(|m| m / f64::from(max_code)).collect();
    let all = scales.iter().fold(0f64, |a, &b| a.max(b));
    let least = f64::from(f32::MIN_POSITIVE);
    let spare = if all * 0.01 >= least { all * 0.01 } else { 1.0 };
    scales.iter().map(|&s| if s < least { spare as f32 } else { s as f32 }).collect()
}

/// Raises scales until the bias fits beside `terms` products: `|bias| / (scale_x · scale) ≤ 2³¹ − 1 − terms · 255 · 127`.
///
/// `scales` has one value or one for each bias. A raised channel uses fewer of its codes; dead channels with a large
/// bias are where this happens.
///
/// # Panics
/// If `terms` is above [`terms_max`].
pub fn raise_for_bias(scales: &mut [f32], scale_x: f32, bias: &[f32], terms: usize) {
    assert!(terms <= terms_max(), "the plan leaves such a node in float");
    let room = (i64::from(i32::MAX) - terms as i64 * 255 * 127) as f64;
    let channels = scales.len();
    for (c, b) in bias.iter().enumerate() {
        // 1.0001: the products and quotients of f32 scales round.
        let least = 1.0001 * f64::from(b.abs()) / (room * f64::from(scale_x));
        let scale = &mut scales[c % channels];
        *scale = scale.max(least as f32);
    }
}

/// Codes of a weight tensor under given scales: `clamp(round_half_even(w / scale), −max_code, max_code)`.
///
/// # Panics
/// If there are not as many scales as indices along the axis.
pub fn quantize(weights: &Tensor, axis: Option<usize>, scales: Vec<f32>, max_code: u8) -> Weights {
    assert_eq!(scales.len(), axis.map_or(1, |axis| weights.shape()[axis]));
    let mut codes = Tensor::zeros(DType::I8, weights.shape());
    let out = codes.slice_mut::<i8>();
    let most = f32::from(max_code);
    for_each(weights, axis, |at, channel, x| {
        // The bounds are whole, so it is the same before rounding; what is then small is rounded without a call.
        out[at] = round_half_even_small((x / scales[channel]).clamp(-most, most)) as i8;
    });
    let zero_point = vec![0; scales.len()];
    Weights { codes, params: QuantParams { scale: scales, zero_point, axis, dtype: DType::I8 } }
}

/// Codes of a bias `[channels]` at `scale_x · scale_w`, products in f32: `clamp(round_half_even(b / scale))`.
/// `scales` are the weights', one or one for each channel.
pub fn quantize_bias(bias: &[f32], scale_x: f32, scales: &[f32]) -> Weights {
    let scale: Vec<f32> = scales.iter().map(|s| scale_x * s).collect();
    let code = |(c, b): (usize, &f32)| {
        let code = (f64::from(*b) / f64::from(scale[c % scale.len()])).round_ties_even();
        code.clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32
    };
    let codes: Vec<i32> = bias.iter().enumerate().map(code).collect();
    let (zero_point, axis) = (vec![0; scale.len()], (scale.len() > 1).then_some(0));
    let params = QuantParams { scale, zero_point, axis, dtype: DType::I32 };
    Weights { codes: Tensor::from_slice(&[codes.len()], &codes), params }
}

/// Signal to noise of weight codes, in dB; `None` where the weights are zero or exact.
pub fn sqnr_db(weights: &Tensor, quantized: &Weights) -> Option<f64> {
    let codes = quantized.codes.slice::<i8>();
    let (mut signal, mut noise) = (0f64, 0f64);
    for_each(weights, quantized.params.axis, |at, channel, x| {
        let back = quantized.params.dequantize(codes[at].into(), channel);
        signal += f64::from(x).powi(2);
        noise += (f64::from(x) - f64::from(back)).powi(2);
    });
    noise::db(signal, noise)
}

/// Calls `f(position, channel, value)` for every weight.
fn for_each(weights: &Tensor, axis: Option<usize>, mut f: impl FnMut(usize, usize, f32)) {
    let (channels, inner) = match axis {
        Some(axis) => (weights.shape()[axis], weights.shape()[axis + 1..].iter().product::<usize>()),
        None => (1, weights.len()),
    };
    let (inner, mut at) = (inner.max(1), 0);
    for all in weights.slice::<f32>().chunks(inner * channels.max(1)) {
        for (channel, values) in all.chunks(inner).enumerate() {
            for &x in values {
                f(at, channel, x);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_uses_its_own_largest_magnitude() {
        let w = Tensor::from_slice(&[2, 2], &[127.0f32, -1.0, 0.5, -2.54]);
        for (axis, scales_want, codes) in [
            (Some(0), vec![1.0, 0.02], vec![127, -1, 25, -127]),
            (Some(1), vec![1.0, 0.02], vec![127, -50, 0, -127]),
            (None, vec![1.0], vec![127, -1, 0, -3]),
        ] {
            let scales = scales(&w, axis, 127);
            assert_eq!(scales, scales_want, "{axis:?}");
            let quantized = quantize(&w, axis, scales, 127);
            assert_eq!(quantized.codes.slice::<i8>(), codes, "{axis:?}");
        }
    }

    #[test]
    fn the_largest_code_is_the_one_asked_for() {
        let w = Tensor::from_slice(&[1, 3], &[1.0f32, -0.5, 0.26]);
        let scales = scales(&w, Some(0), 64);
        assert_eq!(scales, [1.0 / 64.0]);
        assert_eq!(quantize(&w, Some(0), scales, 64).codes.slice::<i8>(), [64, -32, 17]);
    }

    #[test]
    fn a_dead_channel_takes_its_scale_from_the_others() {
        let w = Tensor::from_slice(&[3, 1], &[0.0f32, 1.27, 1e-45]);
        let got = scales(&w, Some(0), 127);
        assert!((got[0] - 0.0001).abs() < 1e-9 && got[0] == got[2], "{got:?}");
        assert_eq!(quantize(&w, Some(0), got, 127).codes.slice::<i8>(), [0, 127, 0]);
        assert_eq!(scales(&Tensor::from_slice(&[2], &[0f32, 0.0]), Some(0), 127), [1.0, 1.0]);
    }

    #[test]
    fn a_sum_of_extreme_products_and_the_bias_fits_32_bits() {
        for (terms, bias) in [(1, 1e6f32), (1000, -3.0), (terms_max(), 1e30), (9, 1e-3)] {
            let mut scales = vec![1e-12f32];
            raise_for_bias(&mut scales, 0.01, &[bias], terms);
            let code = i64::from(quantize_bias(&[bias], 0.01, &scales).codes.slice::<i32>()[0]);
            let extreme = terms as i64 * 255 * 127;
            assert!(code.abs() + extreme <= i64::from(i32::MAX), "{terms} {bias}: {code}");
            let back = code as f32 * (0.01 * scales[0]);
            assert!((back - bias).abs() <= 1e-4 * bias.abs(), "{terms} {bias}: {back}");
        }
    }

    #[test]
    fn scales_that_need_no_raise_stay() {
        let mut scales = vec![0.01f32, 0.02];
        raise_for_bias(&mut scales, 0.05, &[1.0, -2.0], 100);
        assert_eq!(scales, [0.01, 0.02]);
    }

    #[test]
    fn a_bias_is_rounded_at_the_scale_of_the_products() {
        let got = quantize_bias(&[1.0, -0.3], 0.5, &[0.5, 0.25]);
        assert_eq!(got.codes.slice::<i32>(), [4, -2]);
        assert_eq!((got.params.scale, got.params.axis), (vec![0.25, 0.125], Some(0)));
        assert_eq!(quantize_bias(&[1.0, -0.3], 0.5, &[0.5]).params.axis, None);
    }
}
