//! Convolutions of codes by the definition: exact sums in 32 bits, then one rounding. What a session runs in integer
//! kernels gives the same; this is for operands that those do not take.

use crate::engine::graph::attributes::Attributes;
use crate::engine::graph::fact::{Fact, Results, Unfit, operand};
use crate::engine::graph::op::{Sliding, groups};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::graph::shapes::{conv, windows};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::codes::{
    Views, bytes, centred, code_type, each, floats, maybe, one_or, optional_codes, params, requantized, view,
};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "QLinearConv", |call| Ok(Made::new(QLinearConv(Geometry::read(call.attributes)?)))),
    ("", "ConvInteger", |call| Ok(Made::new(ConvInteger(Geometry::read(call.attributes)?)))),
    ("com.microsoft", "QLinearConv", ms_conv),
];

/// How the window of a convolution moves.
#[derive(Debug)]
struct Geometry {
    sliding: Sliding,
    groups: usize,
}

impl Geometry {
    fn read(a: &Attributes) -> Result<Geometry, String> {
        Ok(Geometry { sliding: Sliding::read(a)?, groups: groups(a)? })
    }

    /// Sums `[N, O, …]` of `x`, `[N, C, …]`, times `w`, `[O, C / groups, …]`, both with their zero points taken off.
    fn sums(&self, x: &[i32], x_shape: &[usize], w: &[i32], w_shape: &[usize]) -> Result<Vec<i32>, String> {
        let (spatial, kernel) = (&x_shape[2..], &w_shape[2..]);
        let windows = windows(&self.sliding, spatial, kernel)?;
        let (taps, pixels): (usize, usize) = (kernel.iter().product(), spatial.iter().product());
        let (inputs, out_channels) = (w_shape[1], w_shape[0]);
        let outs: usize = windows.out.iter().product();
        let mut sums = Vec::with_capacity(x_shape[0] * out_channels * outs);
        let mut inside: Vec<(usize, usize)> = Vec::with_capacity(taps);
        // Which tap reads which pixel, for each output pixel.
        let mut places = Vec::with_capacity(outs);
        for out in 0..outs {
            inside.clear();
            for tap in 0..taps {
                let mut pixel = Some(0usize);
                let (mut out, mut tap_left, mut span) = (out, tap, 1usize);
                for axis in (0..spatial.len()).rev() {
                    let (o, t) = (out % windows.out[axis], tap_left % kernel[axis]);
                    (out, tap_left) = (out / windows.out[axis], tap_left / kernel[axis]);
                    let at = (o * windows.strides[axis] + t * windows.dilations[axis])
                        .checked_sub(windows.begin[axis])
                        .filter(|&at| at < spatial[axis]);
                    pixel = pixel.zip(at).map(|(pixel, at)| pixel + at * span);
                    span *= spatial[axis];
                }
                inside.extend(pixel.map(|pixel| (tap, pixel)));
            }
            places.push(inside.clone());
        }
        for image in 0..x_shape[0] {
            for o in 0..out_channels {
                let first = image * x_shape[1] + o / (out_channels / self.groups) * inputs;
                for inside in &places {
                    let mut sum = 0i32;
                    for c in 0..inputs {
                        let (x, w) = (&x[(first + c) * pixels..], &w[(o * inputs + c) * taps..]);
                        for &(tap, pixel) in inside {
                            sum = sum.wrapping_add(x[pixel].wrapping_mul(w[tap]));
                        }
                    }
                    sums.push(sum);
                }
            }
        }
        Ok(sums)
    }
}

/// `x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point [, bias: i32]`.
#[derive(Debug)]
struct QLinearConv(Geometry);

fn ms_conv(call: &Call<'_>) -> Result<Made, String> {
    call.attributes.only("channels_last", 0)?;
    Ok(Made::new(QLinearConv(Geometry::read(call.attributes)?)))
}

impl Operator for QLinearConv {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, w) = (bytes(inputs, 0)?, bytes(inputs, 3)?);
        let shape = conv(&self.0.sliding, self.0.groups, x, w)?;
        if let Some(bias) = operand(inputs, 8)
            && (bias.dtype, &bias.shape[..]) != (DType::I32, &[w.shape[0]][..])
        {
            return Err(format!("the bias is {}{:?}", bias.dtype, bias.shape).into());
        }
        Ok(vec![(code_type(inputs, 7, x.dtype)?, shape)])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (x, w) = (view(inputs, 0)?, view(inputs, 3)?);
        let (x_params, y_params) = (params(inputs, 1)?, params(inputs, 6)?);
        let channels = w.shape[0];
        let w_scale = one_or(floats(inputs, 4)?, channels)?;
        let inner = w.len() / channels.max(1);
        let w_codes = centred(&w, &optional_codes(inputs, 5)?, |i| i / inner.max(1))?;
        let mut sums =
            self.0.sums(&centred(&x, &[x_params.zero_point], |_| 0)?, x.shape, &w_codes, w.shape)?;
        let shape = out_shape(&self.0, &x, &w)?;
        let pixels: usize = shape[2..].iter().product();
        let channel = |i: usize| i / pixels.max(1) % channels;
        if let Some(bias) = maybe(inputs, 8) {
            let bias = bias.slice::<i32>();
            sums.iter_mut().enumerate().for_each(|(i, sum)| *sum = sum.wrapping_add(bias[channel(i)]));
        }
        let to = maybe(inputs, 7).map_or(x.dtype, |z| z.dtype);
        let factor = |i: usize| x_params.scale * each(w_scale, channel(i)) / y_params.scale;
        Ok(vec![requantized(to, &shape, &sums, factor, y_params.zero_point)])
    }

    fn opset(&self) -> i64 {
        10
    }
}

fn out_shape(geometry: &Geometry, x: &TensorView<'_>, w: &TensorView<'_>) -> Result<Vec<usize>, String> {
    let fact = |v: &TensorView<'_>| Fact::computed(v.dtype, v.shape.to_vec());
    conv(&geometry.sliding, geometry.groups, &fact(x), &fact(w))
}

/// `x, w [, x_zero_point] [, w_zero_point]`: the sums.
#[derive(Debug)]
struct ConvInteger(Geometry);

impl Operator for ConvInteger {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, w) = (bytes(inputs, 0)?, bytes(inputs, 1)?);
        Ok(vec![(DType::I32, conv(&self.0.sliding, self.0.groups, x, w)?)])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (x, w) = (view(inputs, 0)?, view(inputs, 1)?);
        let inner = (w.len() / w.shape[0].max(1)).max(1);
        let x_codes = centred(&x, &optional_codes(inputs, 2)?, |_| usize::MAX)?;
        let w_codes = centred(&w, &optional_codes(inputs, 3)?, |i| i / inner)?;
        let sums = self.0.sums(&x_codes, x.shape, &w_codes, w.shape)?;
        Ok(vec![Tensor::from_slice(&out_shape(&self.0, &x, &w)?, &sums)])
    }

    fn opset(&self) -> i64 {
        10
    }
}
