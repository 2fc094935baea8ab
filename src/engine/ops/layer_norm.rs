//! Normalization of rows, the last axes of a tensor, to one mean and one deviation: LayerNormalization,
//! RMSNormalization, and the names that ONNX Runtime gives them where it fuses a residual sum into them.

use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index, broadcast, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::real::{Real, elements, for_each_chunk, given, optional, reals, sum_of, with_real};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "LayerNormalization", |call| rows(call, true)),
    ("com.microsoft", "LayerNormalization", |call| rows(call, true)),
    ("", "RMSNormalization", |call| rows(call, false)),
    ("", "SimplifiedLayerNormalization", |call| rows(call, false)),
    ("com.microsoft", "SimplifiedLayerNormalization", |call| rows(call, false)),
    ("com.microsoft", "SkipLayerNormalization", |call| skip(call, true)),
    ("com.microsoft", "SkipSimplifiedLayerNormalization", |call| skip(call, false)),
];

/// `x, scale [, bias]`: `(x − mean) / sqrt(variance + ε) · scale + bias` over the axes from `axis` on; without
/// `centred`, `x / sqrt(mean of squares + ε) · scale`. Then the mean, if `centred`, and `1 / sqrt(… + ε)`, as float32
/// with those axes of length 1.
#[derive(Debug)]
struct RowNorm {
    axis: i64,
    epsilon: f32,
    centred: bool,
    opset: i64,
}

fn rows(call: &Call<'_>, centred: bool) -> Result<Made, String> {
    let a = call.attributes;
    // 1: float32, what is computed in here; 16 and 10 are bfloat16 and float16.
    match a.int_or("stash_type", 1)? {
        1 => {}
        other => return Err(format!("stash_type={other} is not supported")),
    }
    Ok(Made::new(RowNorm {
        axis: a.int_or("axis", -1)?,
        epsilon: a.float_or("epsilon", 1e-5)?,
        centred,
        opset: if call.name == "RMSNormalization" { 23 } else { 17 },
    }))
}

/// What the rows of a tensor are normalized with.
struct Rows<'a, T> {
    length: usize,
    epsilon: f32,
    centred: bool,
    scale: &'a [T],
    bias: Option<&'a [T]>,
}

impl<T: Real> Rows<'_, T> {
    /// Mean (0 where rows are not centred) and inverse deviation of a row.
    fn moments(&self, row: &[T]) -> (T, T) {
        let count = T::of(row.len() as f64);
        let mean = if self.centred { sum_of(row, |v| v) / count } else { T::default() };
        let variance = sum_of(row, |v| (v - mean) * (v - mean)) / count;
        (mean, T::of(1.0 / (variance.wide() + f64::from(self.epsilon)).sqrt()))
    }

    /// Normalizes the rows of `out` in place.
    fn apply(&self, out: &mut [T]) {
        for_each_chunk(out, self.length, self.length, |_, row| {
            let (mean, inverse) = self.moments(row);
            match self.bias {
                Some(bias) => {
                    for ((y, &scale), &bias) in row.iter_mut().zip(self.scale).zip(bias) {
                        *y = (*y - mean) * inverse * scale + bias;
                    }
                }
                None => {
                    for (y, &scale) in row.iter_mut().zip(self.scale) {
                        *y = (*y - mean) * inverse * scale;
                    }
                }
            }
        });
    }

    /// The moments of every row of `x`, each a float32 tensor.
    fn statistics(&self, x: &[T], shape: &[usize]) -> [Tensor; 2] {
        let rows = x.chunks_exact(self.length.max(1)).map(|row| self.moments(row));
        let (means, inverses): (Vec<f32>, Vec<f32>) =
            rows.map(|(mean, inverse)| (mean.wide() as f32, inverse.wide() as f32)).unzip();
        [Tensor::from_slice(shape, &means), Tensor::from_slice(shape, &inverses)]
    }
}

/// Shape of the moments of a tensor whose axes from `axis` on are rows.
fn moments_shape(shape: &[usize], axis: usize) -> Vec<usize> {
    shape.iter().enumerate().map(|(i, &d)| if i < axis { d } else { 1 }).collect()
}

/// A scale or bias as long as a row.
fn across<T: Real>(x: &TensorView<'_>, row: &[usize]) -> Result<Vec<T>, String> {
    let values = elements::<T>(x)?;
    let length: usize = row.iter().product();
    if values.len() == length {
        return Ok(values.to_vec());
    }
    if broadcast(x.shape, row)? != row {
        return Err(format!("an operand of shape {:?} is no row of {row:?}", x.shape));
    }
    let at = |flat: usize| {
        let (mut rest, mut place, mut step) = (flat, 0, 1);
        for (i, &n) in row.iter().enumerate().rev() {
            let own = (i + x.shape.len()).checked_sub(row.len()).map_or(1, |own| x.shape[own]);
            place += if own == 1 { 0 } else { rest % n * step };
            step *= own;
            rest /= n;
        }
        place
    };
    Ok((0..length).map(|i| values[at(i)]).collect())
}

impl Operator for RowNorm {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, scale) = (needed(inputs, 0)?, needed(inputs, 1)?);
        let axis = axis_index(self.axis, x.shape.len(), false)?;
        let row = &x.shape[axis..];
        for operand in [Some(scale), inputs.get(2).copied().flatten()].into_iter().flatten() {
            let own = operand.shape.iter().copied().reduce(usize::saturating_mul).unwrap_or(1);
            if own != row.iter().product::<usize>() && broadcast(&operand.shape, row)? != row {
                return Err(format!("an operand of shape {:?} is no row of {row:?}", operand.shape).into());
            }
        }
        let moments = (DType::F32, moments_shape(&x.shape, axis));
        let mut results = vec![(x.dtype, x.shape.clone())];
        results.extend(std::iter::repeat_n(moments, if self.centred { 2 } else { 1 }));
        Ok(results)
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], outputs: usize) -> Result<Vec<Tensor>, String> {
        let (x, scale) = (given(inputs, 0)?, given(inputs, 1)?);
        let axis = axis_index(self.axis, x.shape.len(), false)?;
        let row = &x.shape[axis..];
        with_real!(x.dtype, T => {
            let scale = across::<T>(&scale, row)?;
            let bias = optional(inputs, 2).map(|bias| across::<T>(&bias, row)).transpose()?;
            let length = row.iter().product();
            let (epsilon, centred) = (self.epsilon, self.centred);
            let rows = Rows { length, epsilon, centred, scale: &scale, bias: bias.as_deref() };
            let mut made = x.to_tensor();
            rows.apply(made.slice_mut::<T>());
            let mut all = vec![made];
            if outputs > 1 && length > 0 {
                let moments = rows.statistics(elements::<T>(&x)?, &moments_shape(x.shape, axis));
                all.extend(moments.into_iter().skip(usize::from(!centred)));
            } else if outputs > 1 {
                let empty = Tensor::zeros(DType::F32, &moments_shape(x.shape, axis));
                all.extend([empty.clone(), empty]);
            }
            Ok(all)
        })
    }

    fn opset(&self) -> i64 {
        self.opset
    }
}

/// `x, skip, scale [, bias] [, sum_bias]` (`bias` only if `centred`): the rows of `x + skip + sum_bias`, normalized,
/// then their mean and inverse deviation, then the sum.
#[derive(Debug)]
struct SkipNorm {
    epsilon: f32,
    centred: bool,
}

fn skip(call: &Call<'_>, centred: bool) -> Result<Made, String> {
    Ok(Made::new(SkipNorm { epsilon: call.attributes.float_or("epsilon", 1e-12)?, centred }))
}

impl Operator for SkipNorm {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, skip, scale) = (needed(inputs, 0)?, needed(inputs, 1)?, needed(inputs, 2)?);
        let Some(&row) = x.shape.last() else { return Err("the input is a single number".into()) };
        if broadcast(&skip.shape, &x.shape)? != x.shape {
            return Err(format!("skip {:?} does not broadcast to {:?}", skip.shape, x.shape).into());
        }
        for operand in [Some(scale)].into_iter().chain(inputs.iter().skip(3).copied()).flatten() {
            if operand.shape != [row] {
                return Err(format!("an operand of shape {:?} is no row of {row}", operand.shape).into());
            }
        }
        let moments = (DType::F32, moments_shape(&x.shape, x.shape.len() - 1));
        let whole = (x.dtype, x.shape.clone());
        Ok(vec![whole.clone(), moments.clone(), moments, whole])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], outputs: usize) -> Result<Vec<Tensor>, String> {
        let (x, skip, scale) = (given(inputs, 0)?, given(inputs, 1)?, given(inputs, 2)?);
        let length = x.shape.last().copied().ok_or("the input is a single number")?;
        let (bias, more) = match self.centred {
            true => (optional(inputs, 3), optional(inputs, 4)),
            false => (None, optional(inputs, 3)),
        };
        with_real!(x.dtype, T => {
            let skip = across::<T>(&skip, x.shape)?;
            let mut sum = x.to_tensor();
            sum.slice_mut::<T>().iter_mut().zip(&skip).for_each(|(y, &v)| *y += v);
            if let Some(more) = more {
                let more = elements::<T>(&more)?;
                for row in sum.slice_mut::<T>().chunks_exact_mut(length.max(1)) {
                    row.iter_mut().zip(more).for_each(|(y, &v)| *y += v);
                }
            }
            let bias = bias.map(|bias| reals::<T>(&bias));
            let (epsilon, centred) = (self.epsilon, self.centred);
            let scale = elements::<T>(&scale)?;
            let rows = Rows { length, epsilon, centred, scale, bias: bias.as_deref() };
            let mut made = sum.clone();
            rows.apply(made.slice_mut::<T>());
            if outputs == 1 {
                return Ok(vec![made]);
            }
            let shape = moments_shape(x.shape, x.shape.len() - 1);
            let [mean, inverse] = match length {
                0 => [Tensor::zeros(DType::F32, &shape), Tensor::zeros(DType::F32, &shape)],
                _ => rows.statistics(sum.slice::<T>(), &shape),
            };
            Ok(vec![made, mean, inverse, sum])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &Tensor, want: &[f32]) {
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
        assert!(got.slice::<f32>().iter().zip(want).all(near) && got.len() == want.len(), "{got:?} {want:?}");
    }

    #[test]
    fn rows_get_mean_zero_and_deviation_one() {
        let x = Tensor::from_slice(&[2, 2], &[1.0f32, 3.0, 10.0, 20.0]);
        let (scale, bias) = (Tensor::from_slice(&[1], &[2.0f32]), Tensor::from_slice(&[2], &[0.0f32, 1.0]));
        let op = RowNorm { axis: -1, epsilon: 0.0, centred: true, opset: 17 };
        let made = op.run(&[Some(x.view()), Some(scale.view()), Some(bias.view())], 3).unwrap();
        close(&made[0], &[-2.0, 3.0, -2.0, 3.0]);
        close(&made[1], &[2.0, 15.0]);
        close(&made[2], &[1.0, 0.2]);
        assert_eq!(made[1].shape(), [2, 1]);
    }

    #[test]
    fn rows_of_several_axes_are_divided_by_their_root_mean_square() {
        let x = Tensor::from_slice(&[1, 2, 2], &[3.0f32, 4.0, 0.0, 0.0]);
        let scale = Tensor::from_slice(&[2, 1], &[1.0f32, 5.0]);
        let op = RowNorm { axis: 1, epsilon: 0.0, centred: false, opset: 23 };
        let made = op.run(&[Some(x.view()), Some(scale.view())], 2).unwrap();
        close(&made[0], &[1.2, 1.6, 0.0, 0.0]);
        close(&made[1], &[0.4]);
    }

    #[test]
    fn a_skip_is_added_before_the_rows_are_normalized() {
        let x = Tensor::from_slice(&[2, 1, 2], &[0.0f32, 1.0, 4.0, 9.0]);
        let skip = Tensor::from_slice(&[1, 2], &[1.0f32, 2.0]);
        let one = Tensor::from_slice(&[2], &[1.0f32, 1.0]);
        let op = SkipNorm { epsilon: 0.0, centred: true };
        let inputs = [Some(x.view()), Some(skip.view()), Some(one.view()), None, Some(one.view())];
        let made = op.run(&inputs, 4).unwrap();
        close(&made[0], &[-1.0, 1.0, -1.0, 1.0]);
        close(&made[3], &[2.0, 4.0, 6.0, 12.0]);
    }
}
