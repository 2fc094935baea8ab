//! The elementwise, pooling and joining operators on codes of com.microsoft: exactly what DequantizeLinear, the operator
//! and QuantizeLinear give, but for averages, which are exact sums with one rounding, and Softmax.

use crate::engine::graph::attributes::Attributes;
use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index, broadcast, needed, operand};
use crate::engine::graph::op::Sliding;
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::graph::shapes::windows;
use crate::engine::tensor::linear::{code_of, codes, tensor_of_codes};
use crate::engine::tensor::qparams::code_range;
use crate::engine::tensor::{DType, Tensor};

use super::codes::{Params, Views, bytes, code_type, maybe, params, requantized, view};
use super::{Entry, Made};

const MS: &str = "com.microsoft";

pub(super) const OPERATORS: &[Entry] = &[
    (MS, "QLinearAdd", |_| Ok(Made::new(Two { multiply: false }))),
    (MS, "QLinearMul", |_| Ok(Made::new(Two { multiply: true }))),
    (MS, "QLinearSigmoid", |_| Ok(Made::new(One::Sigmoid))),
    (MS, "QLinearLeakyRelu", |call| Ok(Made::new(One::LeakyRelu(call.attributes.float_or("alpha", 0.01)?)))),
    (MS, "QLinearSoftmax", softmax),
    (MS, "QLinearAveragePool", average_pool),
    (MS, "QLinearGlobalAveragePool", global_average_pool),
    (MS, "QLinearReduceMean", reduce_mean),
    (MS, "QLinearConcat", concat),
    (MS, "QLinearWhere", |_| Ok(Made::new(QLinearWhere))),
];

/// The codes of reals.
fn coded(dtype: DType, shape: &[usize], y: Params, reals: impl Iterator<Item = f32>) -> Tensor {
    let made: Vec<i32> = reals.map(|x| code_of(x, y.scale, y.zero_point, dtype)).collect();
    tensor_of_codes(dtype, shape, &made)
}

fn type_of(inputs: Views<'_, '_>, zero_point: usize, default: DType) -> DType {
    maybe(inputs, zero_point).map_or(default, |z| z.dtype)
}

/// For each element of a broadcast its place in an operand.
fn places(out: &[usize], operand: &[usize]) -> Vec<usize> {
    let lead = out.len() - operand.len();
    let mut strides = vec![0; out.len()];
    let mut span = 1;
    for (axis, &length) in operand.iter().enumerate().rev() {
        strides[lead + axis] = if length == 1 { 0 } else { span };
        span *= length;
    }
    let place = |mut i: usize| {
        let mut at = 0;
        for (axis, &length) in out.iter().enumerate().rev() {
            at += i % length * strides[axis];
            i /= length;
        }
        at
    };
    (0..out.iter().product()).map(place).collect()
}

/// `a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point`, broadcasting.
#[derive(Debug)]
struct Two {
    multiply: bool,
}

impl Operator for Two {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (a, b) = (bytes(inputs, 0)?, bytes(inputs, 3)?);
        Ok(vec![(code_type(inputs, 7, a.dtype)?, broadcast(&a.shape, &b.shape)?)])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (a, b) = (view(inputs, 0)?, view(inputs, 3)?);
        let (a_params, b_params, y) = (params(inputs, 1)?, params(inputs, 4)?, params(inputs, 6)?);
        let shape = broadcast(a.shape, b.shape)?;
        let (a_codes, b_codes) = (codes(&a)?, codes(&b)?);
        let pairs = places(&shape, a.shape).into_iter().zip(places(&shape, b.shape));
        let reals = pairs.map(|(i, j)| {
            let (a, b) = (a_params.real(a_codes[i]), b_params.real(b_codes[j]));
            if self.multiply { a * b } else { a + b }
        });
        Ok(vec![coded(type_of(inputs, 7, a.dtype), &shape, y, reals)])
    }
}

/// `x, x_scale, x_zero_point, y_scale, y_zero_point`: a function of one code.
#[derive(Debug)]
enum One {
    Sigmoid,
    LeakyRelu(f32),
}

impl Operator for One {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = bytes(inputs, 0)?;
        Ok(vec![(code_type(inputs, 4, x.dtype)?, x.shape.clone())])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (x, x_params, y) = (view(inputs, 0)?, params(inputs, 1)?, params(inputs, 3)?);
        let f = |x: f32| match self {
            One::Sigmoid => (1.0 / (1.0 + (-f64::from(x)).exp())) as f32,
            One::LeakyRelu(alpha) if x < 0.0 => x * alpha,
            One::LeakyRelu(_) => x,
        };
        let reals = codes(&x)?.into_iter().map(|q| f(x_params.real(q)));
        Ok(vec![coded(type_of(inputs, 4, x.dtype), x.shape, y, reals)])
    }
}

/// `x, x_scale, x_zero_point, y_scale, y_zero_point`: over one axis, or before opset 13 over all from it on.
#[derive(Debug)]
struct QLinearSoftmax {
    axis: i64,
    coerce_2d: bool,
}

fn softmax(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let opset = a.int("opset")?.ok_or("attribute `opset` is missing")?;
    Ok(Made::new(QLinearSoftmax { axis: a.int_or("axis", -1)?, coerce_2d: opset < 13 }))
}

impl Operator for QLinearSoftmax {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = bytes(inputs, 0)?;
        axis_index(self.axis, x.shape.len(), false)?;
        Ok(vec![(code_type(inputs, 4, x.dtype)?, x.shape.clone())])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (x, x_params, y) = (view(inputs, 0)?, params(inputs, 1)?, params(inputs, 3)?);
        let axis = axis_index(self.axis, x.shape.len(), false)?;
        let (length, inner) = match self.coerce_2d {
            true => (x.shape[axis..].iter().product(), 1),
            false => (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>()),
        };
        let q = codes(&x)?;
        let (lo, hi) = code_range(type_of(inputs, 4, x.dtype));
        // How ONNX Runtime, whose operator it is, computes it: in integers, the reciprocal of the scale cut to a whole
        // number (254 for 1/255).
        let unit = (f64::from(u32::MAX) / length.max(1) as f64).min(f64::from(0x7f_ffff));
        let steps = (1.0 / y.scale).floor().clamp(0.0, 65_536.0) as u64;
        let table: Vec<u64> = (0..256)
            .map(|distance| {
                (unit * (-f64::from(distance) * f64::from(x_params.scale)).exp()).round_ties_even() as u64
            })
            .collect();
        let mut made = vec![0i32; q.len()];
        let block = (length * inner).max(1);
        for start in (0..q.len()).step_by(block).flat_map(|b| b..b + inner) {
            let row = || (0..length).map(|i| start + i * inner);
            let largest = row().map(|i| q[i]).max().unwrap_or(0);
            // The zero point cancels: only distances from the largest code count.
            let exp = |i: usize| table[(largest - q[i]) as usize];
            let sum: u64 = row().map(exp).sum::<u64>().max(1);
            for i in row() {
                let code = (exp(i) * steps + sum / 2) / sum;
                made[i] = (code as i64).saturating_add(y.zero_point.into()).clamp(lo, hi) as i32;
            }
        }
        Ok(vec![tensor_of_codes(type_of(inputs, 4, x.dtype), x.shape, &made)])
    }
}

/// Averages of codes: `round_half_even((sum − count · zero_point) · (x_scale / (count · y_scale)))`, then the zero point.
fn averages(inputs: Views<'_, '_>, shape: &[usize], sums: &[(i32, usize)]) -> Result<Vec<Tensor>, String> {
    let (x, x_params, y) = (view(inputs, 0)?, params(inputs, 1)?, params(inputs, 3)?);
    let to = type_of(inputs, 4, x.dtype);
    let plain: Vec<i32> = sums.iter().map(|(sum, _)| *sum).collect();
    let factor = |i: usize| x_params.scale / (sums[i].1 as f32 * y.scale);
    Ok(vec![requantized(to, shape, &plain, factor, y.zero_point)])
}

/// The codes of operand 0 with their zero point taken off.
fn distances(inputs: Views<'_, '_>) -> Result<Vec<i32>, String> {
    let zero_point = params(inputs, 1)?.zero_point;
    Ok(codes(&view(inputs, 0)?)?.into_iter().map(|q| q - zero_point).collect())
}

/// `x, x_scale, x_zero_point, y_scale, y_zero_point`.
#[derive(Debug)]
struct QLinearAveragePool {
    sliding: Sliding,
    count_include_pad: bool,
}

fn average_pool(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    a.only("channels_last", 0)?;
    let count_include_pad = a.flag("count_include_pad", false)?;
    Ok(Made::new(QLinearAveragePool { sliding: Sliding::read(a)?, count_include_pad }))
}

fn image(x: &Fact) -> Result<(), String> {
    match x.shape.len() {
        3.. => Ok(()),
        _ => Err(format!("the input has shape {:?}, at least 3 dimensions are needed", x.shape)),
    }
}

impl Operator for QLinearAveragePool {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = bytes(inputs, 0)?;
        image(x)?;
        let out = windows(&self.sliding, &x.shape[2..], &self.sliding.kernel)?.out;
        Ok(vec![(code_type(inputs, 4, x.dtype)?, [&x.shape[..2], &out].concat())])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (x, q) = (view(inputs, 0)?, distances(inputs)?);
        let (spatial, kernel) = (&x.shape[2..], &self.sliding.kernel);
        let w = windows(&self.sliding, spatial, kernel)?;
        let (pixels, outs): (usize, usize) = (spatial.iter().product(), w.out.iter().product());
        let taps: usize = kernel.iter().product();
        let mut sums = Vec::with_capacity(x.shape[0] * x.shape[1] * outs);
        for image in 0..x.shape[0] * x.shape[1] {
            for out in 0..outs {
                let (mut sum, mut count) = (0, 0);
                for tap in 0..taps {
                    let (mut pixel, mut out, mut tap, mut span) = (Some(0), out, tap, 1);
                    for axis in (0..spatial.len()).rev() {
                        let (o, t) = (out % w.out[axis], tap % kernel[axis]);
                        (out, tap) = (out / w.out[axis], tap / kernel[axis]);
                        let at = (o * w.strides[axis] + t * w.dilations[axis]).checked_sub(w.begin[axis]);
                        let at = at.filter(|&at| at < spatial[axis]);
                        pixel = pixel.zip(at).map(|(pixel, at)| pixel + at * span);
                        span *= spatial[axis];
                    }
                    if let Some(pixel) = pixel {
                        sum += q[image * pixels + pixel];
                        count += 1;
                    }
                }
                sums.push((sum, if self.count_include_pad { taps } else { count.max(1) }));
            }
        }
        averages(inputs, &[&x.shape[..2], &w.out].concat(), &sums)
    }
}

/// `x, x_scale, x_zero_point, y_scale, y_zero_point`.
#[derive(Debug)]
struct QLinearReduceMean {
    /// `None`: all spatial axes, kept.
    axes: Option<Vec<i64>>,
    keep_dims: bool,
}

fn global_average_pool(call: &Call<'_>) -> Result<Made, String> {
    call.attributes.only("channels_last", 0)?;
    Ok(Made::new(QLinearReduceMean { axes: None, keep_dims: true }))
}

fn reduce_mean(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let axes = a.ints("axes")?.ok_or("attribute `axes` is missing")?;
    Ok(Made::new(QLinearReduceMean { axes: Some(axes), keep_dims: a.flag("keepdims", true)? }))
}

impl QLinearReduceMean {
    fn folded(&self, rank: usize) -> Result<Vec<bool>, String> {
        let mut folded = vec![false; rank];
        match &self.axes {
            None => folded.iter_mut().skip(2).for_each(|f| *f = true),
            Some(axes) => {
                for &axis in axes {
                    folded[axis_index(axis, rank, false)?] = true;
                }
            }
        }
        Ok(folded)
    }

    fn shape(&self, x: &[usize], keep: bool) -> Result<Vec<usize>, String> {
        let folded = self.folded(x.len())?;
        let length = |(&d, folded): (&usize, bool)| match (folded, keep) {
            (false, _) => Some(d),
            (true, true) => Some(1),
            (true, false) => None,
        };
        Ok(x.iter().zip(folded).filter_map(length).collect())
    }
}

impl Operator for QLinearReduceMean {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = bytes(inputs, 0)?;
        if self.axes.is_none() {
            image(x)?;
        }
        Ok(vec![(code_type(inputs, 4, x.dtype)?, self.shape(&x.shape, self.keep_dims)?)])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (x, q) = (view(inputs, 0)?, distances(inputs)?);
        let kept = self.shape(x.shape, true)?;
        let results: usize = kept.iter().product();
        let count = q.len() / results.max(1);
        let mut sums = vec![(0, count.max(1)); results];
        for (&q, at) in q.iter().zip(places(x.shape, &kept)) {
            sums[at].0 += q;
        }
        averages(inputs, &self.shape(x.shape, self.keep_dims)?, &sums)
    }
}

/// `y_scale, y_zero_point, (x, scale, zero_point)…`.
#[derive(Debug)]
struct QLinearConcat {
    axis: i64,
}

fn concat(call: &Call<'_>) -> Result<Made, String> {
    let a: &Attributes = call.attributes;
    if call.inputs.len() < 5 || !(call.inputs.len() - 2).is_multiple_of(3) {
        return Err(format!("it has {} inputs, the operator takes 2 and 3 for each part", call.inputs.len()));
    }
    Ok(Made::new(QLinearConcat { axis: a.int("axis")?.ok_or("attribute `axis` is missing")? }))
}

impl Operator for QLinearConcat {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let first = bytes(inputs, 2)?;
        let axis = axis_index(self.axis, first.shape.len(), false)?;
        let mut shape = first.shape.clone();
        for index in (5..inputs.len()).step_by(3) {
            let x = bytes(inputs, index)?;
            let fits =
                x.shape.len() == shape.len() && (0..shape.len()).all(|i| i == axis || x.shape[i] == shape[i]);
            if !fits {
                return Err(format!("{shape:?} and {:?} do not join on axis {axis}", x.shape).into());
            }
            shape[axis] = shape[axis].checked_add(x.shape[axis]).ok_or("the joined axis overflows")?;
        }
        Ok(vec![(code_type(inputs, 1, first.dtype)?, shape)])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (first, y) = (view(inputs, 2)?, params(inputs, 0)?);
        let axis = axis_index(self.axis, first.shape.len(), false)?;
        let after: usize = first.shape[axis + 1..].iter().product();
        let before: usize = first.shape[..axis].iter().product();
        let mut parts = Vec::new();
        let mut shape = first.shape.to_vec();
        shape[axis] = 0;
        for index in (2..inputs.len()).step_by(3) {
            let (x, x_params) = (view(inputs, index)?, params(inputs, index + 1)?);
            let reals: Vec<f32> = codes(&x)?.into_iter().map(|q| x_params.real(q)).collect();
            parts.push((x.shape[axis] * after, reals));
            shape[axis] += x.shape[axis];
        }
        let row =
            |i: usize| parts.iter().flat_map(move |(n, reals)| reals[i * n..(i + 1) * n].iter().copied());
        Ok(vec![coded(type_of(inputs, 1, first.dtype), &shape, y, (0..before).flat_map(row))])
    }
}

/// `condition, x, x_scale, x_zero_point, y, y_scale, y_zero_point, z_scale, z_zero_point`.
#[derive(Debug)]
struct QLinearWhere;

impl Operator for QLinearWhere {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (condition, x, y) = (needed(inputs, 0)?, bytes(inputs, 1)?, bytes(inputs, 4)?);
        if condition.dtype != DType::Bool {
            return Err(format!("the condition is {}", condition.dtype).into());
        }
        let to = operand(inputs, 8).map_or(x.dtype, |z| z.dtype);
        Ok(vec![(to, broadcast(&broadcast(&condition.shape, &x.shape)?, &y.shape)?)])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (condition, x, y) = (view(inputs, 0)?, view(inputs, 1)?, view(inputs, 4)?);
        let (x_params, y_params, z) = (params(inputs, 2)?, params(inputs, 5)?, params(inputs, 7)?);
        let shape = broadcast(&broadcast(condition.shape, x.shape)?, y.shape)?;
        let [of_condition, of_x, of_y] = [condition.shape, x.shape, y.shape].map(|s| places(&shape, s));
        let (truth, x_codes, y_codes) = (condition.slice::<u8>(), codes(&x)?, codes(&y)?);
        let real = |i: usize| match truth[of_condition[i]] {
            0 => y_params.real(y_codes[of_y[i]]),
            _ => x_params.real(x_codes[of_x[i]]),
        };
        Ok(vec![coded(type_of(inputs, 8, x.dtype), &shape, z, (0..of_x.len()).map(real))])
    }
}
