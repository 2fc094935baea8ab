//! Normalization of images over their channels and pixels: by instance, by group, by batch, over neighbouring
//! channels, by a norm.

use crate::engine::graph::attributes::Attributes;
use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{Tensor, TensorView};

use super::real::{Real, elements, for_each_chunk, given, made_in_chunks, reals, sum_of, with_real};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "InstanceNormalization", instance_norm),
    ("", "GroupNormalization", group_norm),
    ("", "BatchNormalization", batch_norm),
    ("", "LRN", lrn),
    ("", "LpNormalization", lp_normalization),
    ("", "MeanVarianceNormalization", mean_variance),
];

/// `x [N, C, …], scale, bias`: each group of channels of each image gets mean 0 and variance 1, then a scale and a
/// bias a channel (a group, for GroupNormalization before opset 21).
#[derive(Debug)]
struct GroupNorm {
    /// As many as there are channels, where it is not said.
    groups: Option<usize>,
    /// Whether scale and bias are `[groups]` and not `[C]`.
    by_group: bool,
    epsilon: f32,
    opset: i64,
}

fn instance_norm(call: &Call<'_>) -> Result<Made, String> {
    let epsilon = call.attributes.float_or("epsilon", 1e-5)?;
    Ok(Made::new(GroupNorm { groups: None, by_group: false, epsilon, opset: 13 }))
}

fn group_norm(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    a.only("stash_type", 1)?;
    let groups = a.int("num_groups")?.ok_or("attribute `num_groups` is missing")?;
    let groups = usize::try_from(groups).ok().filter(|&g| g > 0).ok_or("num_groups is not positive")?;
    let by_group = call.opset < 21;
    Ok(Made::new(GroupNorm {
        groups: Some(groups),
        by_group,
        epsilon: a.float_or("epsilon", 1e-5)?,
        opset: if by_group { 18 } else { 21 },
    }))
}

/// Batch, channels, pixels.
fn image(shape: &[usize]) -> Result<(usize, usize, usize), String> {
    match shape {
        [batch, channels, pixels @ ..] => Ok((*batch, *channels, pixels.iter().product())),
        _ => Err(format!("the input has shape {shape:?}, at least 2 dimensions are needed")),
    }
}

/// The same type and shape as operand 0.
fn like_first(inputs: &[Option<&Fact>]) -> Result<Results, Unfit> {
    let x = needed(inputs, 0)?;
    Ok(vec![(x.dtype, x.shape.clone())])
}

/// Mean and variance.
fn moments<T: Real>(values: &[T]) -> (T, T) {
    let count = T::of(values.len().max(1) as f64);
    let mean = sum_of(values, |v| v) / count;
    (mean, sum_of(values, |v| (v - mean) * (v - mean)) / count)
}

fn inverse_root<T: Real>(variance: T, epsilon: f32) -> T {
    T::of(1.0 / (variance.wide() + f64::from(epsilon)).sqrt())
}

impl GroupNorm {
    /// Groups, and how many entries scale and bias have.
    fn groups(&self, channels: usize) -> Result<(usize, usize), String> {
        let groups = self.groups.unwrap_or(channels);
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(format!("{channels} channels do not make {groups} groups"));
        }
        Ok((groups, if self.by_group { groups } else { channels }))
    }
}

impl Operator for GroupNorm {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (_, channels, _) = image(&needed(inputs, 0)?.shape)?;
        let (_, want) = self.groups(channels)?;
        for index in [1, 2] {
            let shape = &needed(inputs, index)?.shape;
            if *shape != [want] {
                return Err(format!("input {index} has shape {shape:?}, [{want}] is needed").into());
            }
        }
        like_first(inputs)
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, scale, bias) = (given(inputs, 0)?, given(inputs, 1)?, given(inputs, 2)?);
        let (_, channels, pixels) = image(x.shape)?;
        let (groups, entries) = self.groups(channels)?;
        let (per_group, per_entry) = (channels / groups, channels / entries);
        with_real!(x.dtype, T => {
            let (scale, bias) = (elements::<T>(&scale)?, elements::<T>(&bias)?);
            let mut made = x.to_tensor();
            let length = per_group * pixels;
            for_each_chunk(made.slice_mut::<T>(), length, length, |i, group| {
                let (mean, variance) = moments(group);
                let inverse = inverse_root(variance, self.epsilon);
                for (c, plane) in group.chunks_exact_mut(pixels.max(1)).enumerate() {
                    let entry = (i % groups * per_group + c) / per_entry;
                    let (factor, bias) = (inverse * scale[entry], bias[entry]);
                    plane.iter_mut().for_each(|y| *y = (*y - mean) * factor + bias);
                }
            });
            Ok(vec![made])
        })
    }

    fn opset(&self) -> i64 {
        self.opset
    }
}

/// `x, scale, bias, mean, variance`, as in training: the batch's own moments normalize it, and the running ones, the
/// second and third result, move towards them by `1 − momentum`.
#[derive(Debug)]
struct BatchNorm {
    epsilon: f32,
    momentum: f32,
}

fn batch_norm(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    if !a.flag("training_mode", false)? {
        return Err("the outputs of training are not supported without training_mode=1".to_owned());
    }
    let momentum = a.float_or("momentum", 0.9)?;
    Ok(Made::new(BatchNorm { epsilon: a.float_or("epsilon", 1e-5)?, momentum }))
}

impl Operator for BatchNorm {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        let (_, channels, _) = image(&x.shape)?;
        for index in 1..=4 {
            let shape = &needed(inputs, index)?.shape;
            if *shape != [channels] {
                return Err(format!("input {index} has shape {shape:?}, [{channels}] is needed").into());
            }
        }
        let (mean, variance) = (needed(inputs, 3)?.dtype, needed(inputs, 4)?.dtype);
        Ok(vec![(x.dtype, x.shape.clone()), (mean, vec![channels]), (variance, vec![channels])])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let (_, channels, pixels) = image(x.shape)?;
        with_real!(x.dtype, T => {
            let [scale, bias] = [reals::<T>(&given(inputs, 1)?), reals::<T>(&given(inputs, 2)?)];
            let values = elements::<T>(&x)?;
            let own: Vec<(T, T)> = (0..channels)
                .map(|channel| {
                    let planes = values.chunks_exact(pixels.max(1)).skip(channel).step_by(channels);
                    moments(&planes.flatten().copied().collect::<Vec<T>>())
                })
                .collect();
            let mut made = x.to_tensor();
            for_each_chunk(made.slice_mut::<T>(), pixels, pixels, |i, plane| {
                let channel = i % channels;
                let (mean, variance) = own[channel];
                let factor = inverse_root(variance, self.epsilon) * scale[channel];
                plane.iter_mut().for_each(|y| *y = (*y - mean) * factor + bias[channel]);
            });
            let running = |index: usize, own: Vec<T>| -> Result<Tensor, String> {
                let before = given(inputs, index)?;
                let old = T::of(self.momentum.into());
                let moved = |(before, own): (T, T)| before * old + own * (T::of(1.0) - old);
                let moved = reals::<T>(&before).into_iter().zip(own).map(moved).map(Real::wide);
                Ok(match before.dtype {
                    crate::engine::tensor::DType::F64 => {
                        Tensor::from_slice(before.shape, &moved.collect::<Vec<f64>>())
                    }
                    _ => Tensor::from_slice(before.shape, &moved.map(|v| v as f32).collect::<Vec<f32>>()),
                })
            };
            let (means, variances) = own.iter().copied().unzip();
            Ok(vec![made, running(3, means)?, running(4, variances)?])
        })
    }

    fn opset(&self) -> i64 {
        15
    }
}

/// `x [N, C, …]`: each element divided by `(bias + α / size · squares)^β`, `squares` being summed over the `size`
/// channels around it.
#[derive(Debug)]
struct Lrn {
    size: usize,
    alpha: f32,
    beta: f32,
    bias: f32,
}

fn lrn(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let size = a.int("size")?.ok_or("attribute `size` is missing")?;
    let size = usize::try_from(size).ok().filter(|&s| s > 0).ok_or("size is not positive")?;
    Ok(Made::new(Lrn {
        size,
        alpha: a.float_or("alpha", 1e-4)?,
        beta: a.float_or("beta", 0.75)?,
        bias: a.float_or("bias", 1.0)?,
    }))
}

impl Operator for Lrn {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        image(&needed(inputs, 0)?.shape)?;
        like_first(inputs)
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let (_, channels, pixels) = image(x.shape)?;
        let (before, after) = ((self.size - 1) / 2, self.size / 2);
        with_real!(x.dtype, T => {
            let values = elements::<T>(&x)?;
            let work = pixels.saturating_mul(self.size.min(channels) + 10);
            Ok(vec![made_in_chunks::<T>(x.shape, pixels, work, |i, out| {
                let (image, channel) = (i / channels, i % channels);
                let around = channel.saturating_sub(before)..channel.saturating_add(after + 1).min(channels);
                for other in around {
                    let plane = &values[(image * channels + other) * pixels..][..pixels];
                    out.iter_mut().zip(plane).for_each(|(y, &v)| *y += v * v);
                }
                let ratio = f64::from(self.alpha) / self.size as f64;
                for (y, &v) in out.iter_mut().zip(&values[i * pixels..][..pixels]) {
                    let base = f64::from(self.bias) + ratio * y.wide();
                    *y = T::of(v.wide() / base.powf(self.beta.into()));
                }
            })])
        })
    }
}

/// `x`: divided by its norm along an axis; what has norm 0 stays 0.
#[derive(Debug)]
struct LpNormalization {
    axis: i64,
    order: i64,
}

fn lp_normalization(call: &Call<'_>) -> Result<Made, String> {
    let order = call.attributes.int_or("p", 2)?;
    if order != 1 && order != 2 {
        return Err(format!("p={order} is not supported"));
    }
    Ok(Made::new(LpNormalization { axis: call.attributes.int_or("axis", -1)?, order }))
}

impl Operator for LpNormalization {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        axis_index(self.axis, needed(inputs, 0)?.shape.len(), false)?;
        like_first(inputs)
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let axis = axis_index(self.axis, x.shape.len(), false)?;
        let inner: usize = x.shape[axis + 1..].iter().product();
        let block = inner * x.shape[axis];
        with_real!(x.dtype, T => {
            let mut made = x.to_tensor();
            for_each_chunk(made.slice_mut::<T>(), block, block * 2, |_, block| {
                let mut norms = vec![0f64; inner];
                for line in block.chunks_exact(inner.max(1)) {
                    for (norm, v) in norms.iter_mut().zip(line) {
                        let v = v.wide();
                        *norm += if self.order == 1 { v.abs() } else { v * v };
                    }
                }
                if self.order == 2 {
                    norms.iter_mut().for_each(|n| *n = n.sqrt());
                }
                for line in block.chunks_exact_mut(inner.max(1)) {
                    for (y, &norm) in line.iter_mut().zip(&norms) {
                        *y = if norm == 0.0 { T::default() } else { T::of(y.wide() / norm) };
                    }
                }
            });
            Ok(vec![made])
        })
    }
}

/// `x`: `(x − mean) / (deviation + 1e-9)` over `axes`.
#[derive(Debug)]
struct MeanVariance {
    axes: Vec<i64>,
}

fn mean_variance(call: &Call<'_>) -> Result<Made, String> {
    let a: &Attributes = call.attributes;
    Ok(Made::new(MeanVariance { axes: a.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3]) }))
}

impl MeanVariance {
    /// For each axis whether it is averaged over.
    fn folded(&self, rank: usize) -> Result<Vec<bool>, String> {
        let mut folded = vec![false; rank];
        for &axis in &self.axes {
            folded[axis_index(axis, rank, false)?] = true;
        }
        Ok(folded)
    }
}

impl Operator for MeanVariance {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        self.folded(needed(inputs, 0)?.shape.len())?;
        like_first(inputs)
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let folded = self.folded(x.shape.len())?;
        // The group of each element: its index along the axes that stay.
        let mut groups = vec![0usize];
        let mut count = 1;
        for (&length, &folded) in x.shape.iter().zip(&folded) {
            let step =
                |g: &usize| (0..length).map(|i| if folded { *g } else { g * length + i }).collect::<Vec<_>>();
            groups = groups.iter().flat_map(step).collect();
            count *= if folded { 1 } else { length };
        }
        with_real!(x.dtype, T => {
            let values = elements::<T>(&x)?;
            let size = (values.len() / count.max(1)) as f64;
            let (mut means, mut squares) = (vec![0f64; count], vec![0f64; count]);
            values.iter().zip(&groups).for_each(|(v, &g)| means[g] += v.wide() / size);
            for (v, &g) in values.iter().zip(&groups) {
                let distance = v.wide() - means[g];
                squares[g] += distance * distance / size;
            }
            let normal = |(v, &g): (&T, &usize)| T::of((v.wide() - means[g]) / (squares[g].sqrt() + 1e-9));
            let made: Vec<T> = values.iter().zip(&groups).map(normal).collect();
            Ok(vec![Tensor::from_slice(x.shape, &made)])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(op: &impl Operator, inputs: &[Tensor], want: &[f32]) {
        let views: Vec<_> = inputs.iter().map(|x| Some(x.view())).collect();
        let made = op.run(&views, 1).unwrap();
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
        assert!(made[0].slice::<f32>().iter().zip(want).all(near), "{:?} {want:?}", made[0]);
    }

    fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_slice(shape, values)
    }

    #[test]
    fn groups_get_mean_zero_and_variance_one() {
        let x = f32s(&[1, 2, 2], &[1.0, 3.0, 10.0, 30.0]);
        let one_each = GroupNorm { groups: None, by_group: false, epsilon: 0.0, opset: 13 };
        let (scale, bias) = (f32s(&[2], &[1.0, 2.0]), f32s(&[2], &[0.0, 1.0]));
        check(&one_each, &[x.clone(), scale, bias], &[-1.0, 1.0, -1.0, 3.0]);
        let whole = GroupNorm { groups: Some(1), by_group: true, epsilon: 0.0, opset: 18 };
        let x = f32s(&[1, 2, 1], &[1.0, 3.0]);
        check(&whole, &[x, f32s(&[1], &[2.0]), f32s(&[1], &[1.0])], &[-1.0, 3.0]);
        assert!(whole.groups(0).is_ok() && GroupNorm { groups: Some(3), ..whole }.groups(4).is_err());
    }

    #[test]
    fn a_norm_of_zero_leaves_zeros() {
        let x = f32s(&[2, 2], &[3.0, 0.0, 4.0, 0.0]);
        check(&LpNormalization { axis: 0, order: 2 }, std::slice::from_ref(&x), &[0.6, 0.0, 0.8, 0.0]);
        check(&LpNormalization { axis: 0, order: 1 }, &[x], &[3.0 / 7.0, 0.0, 4.0 / 7.0, 0.0]);
    }

    #[test]
    fn responses_are_normalized_over_the_channels_around() {
        let op = Lrn { size: 2, alpha: 2.0, beta: 1.0, bias: 1.0 };
        check(&op, &[f32s(&[1, 3, 1], &[1.0, 2.0, 3.0])], &[1.0 / 6.0, 2.0 / 14.0, 3.0 / 10.0]);
    }

    #[test]
    fn a_batch_moves_the_running_moments() {
        let op = BatchNorm { epsilon: 0.0, momentum: 0.5 };
        let one = f32s(&[1], &[1.0]);
        let inputs = [f32s(&[2, 1], &[0.0, 4.0]), one.clone(), one.clone(), one.clone(), one];
        let views: Vec<_> = inputs.iter().map(|x| Some(x.view())).collect();
        let made = op.run(&views, 3).unwrap();
        assert_eq!(made[0].slice::<f32>(), [0.0, 2.0]);
        assert_eq!((made[1].slice::<f32>()[0], made[2].slice::<f32>()[0]), (1.5, 2.5));
    }
}
