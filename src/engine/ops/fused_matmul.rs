//! Products of com.microsoft that transpose their operands.

use crate::engine::graph::fact::{Fact, Results, Unfit, broadcast, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::matrix::multiply;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] =
    &[("com.microsoft", "FusedMatMul", fused), ("com.microsoft", "TransposeMatMul", fused)];

/// `a, b`: `alpha · a' · b'`, where the leading axes broadcast.
#[derive(Debug)]
struct FusedMatMul {
    alpha: f32,
    a: Turn,
    b: Turn,
}

/// What is done to an operand first.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// The last two axes change places, after the next.
    last: bool,
    /// The first axis goes behind the batch axes: `[m, batch…, k]` is `[batch…, m, k]`.
    batch: bool,
}

fn fused(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let turn = |last: &str, batch: &str| -> Result<Turn, String> {
        Ok(Turn { last: a.flag(last, false)?, batch: a.flag(batch, false)? })
    };
    let (turn_a, turn_b) = (turn("transA", "transBatchA")?, turn("transB", "transBatchB")?);
    Ok(Made::new(FusedMatMul { alpha: a.float_or("alpha", 1.0)?, a: turn_a, b: turn_b }))
}

impl Turn {
    /// For each axis of the turned operand which one it was.
    fn axes(self, rank: usize) -> Result<Vec<usize>, String> {
        if rank < 2 {
            return Err(format!("an operand has {rank} dimensions, two are needed"));
        }
        let mut axes: Vec<usize> = (0..rank).collect();
        if self.batch {
            axes[..rank - 1].rotate_left(1);
        }
        if self.last {
            axes.swap(rank - 2, rank - 1);
        }
        Ok(axes)
    }

    fn shape(self, shape: &[usize]) -> Result<Vec<usize>, String> {
        Ok(self.axes(shape.len())?.into_iter().map(|axis| shape[axis]).collect())
    }

    /// The elements in their new order.
    fn apply(self, x: &TensorView<'_>) -> Result<Vec<f32>, String> {
        let axes = self.axes(x.shape.len())?;
        let values = x.slice::<f32>();
        let strides: Vec<usize> = axes.iter().map(|&axis| x.shape[axis + 1..].iter().product()).collect();
        let shape = self.shape(x.shape)?;
        let mut turned = Vec::with_capacity(values.len());
        let mut index = vec![0; shape.len()];
        for _ in 0..values.len() {
            turned.push(values[index.iter().zip(&strides).map(|(i, stride)| i * stride).sum::<usize>()]);
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok(turned)
    }
}

impl FusedMatMul {
    /// The shapes of the turned operands, and of the result.
    fn shapes(&self, a: &[usize], b: &[usize]) -> Result<[Vec<usize>; 3], String> {
        let (a, b) = (self.a.shape(a)?, self.b.shape(b)?);
        let (leading_a, matrix_a) = a.split_at(a.len() - 2);
        let (leading_b, matrix_b) = b.split_at(b.len() - 2);
        if matrix_a[1] != matrix_b[0] {
            return Err(format!("{a:?} and {b:?} do not multiply"));
        }
        let mut out = broadcast(leading_a, leading_b)?;
        out.extend([matrix_a[0], matrix_b[1]]);
        Ok([a, b, out])
    }
}

impl Operator for FusedMatMul {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (a, b) = (needed(inputs, 0)?, needed(inputs, 1)?);
        if !matches!(a.dtype, DType::F32 | DType::F16 | DType::BF16) || a.dtype != b.dtype {
            return Err(format!("{} times {} is not supported", a.dtype, b.dtype).into());
        }
        let [.., out] = self.shapes(&a.shape, &b.shape)?;
        Ok(vec![(a.dtype, out)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let [Some(a), Some(b)] = inputs else { return Err("two inputs are needed".to_owned()) };
        let [a_shape, b_shape, shape] = self.shapes(a.shape, b.shape)?;
        let (a, b) = (self.a.apply(a)?, self.b.apply(b)?);
        let mut y = Tensor::zeros(DType::F32, &shape);
        if y.is_empty() {
            return Ok(vec![y]);
        }
        let (leading, matrix) = shape.split_at(shape.len() - 2);
        let (m, k, n) = (matrix[0], a_shape[a_shape.len() - 1], matrix[1]);
        // The matrix of an operand that stands at one place of the leading axes; an axis of length 1 stays.
        let matrix_at = |shape: &[usize], place: usize| {
            let own = &shape[..shape.len() - 2];
            let (mut rest, mut at, mut stride) = (place, 0, 1);
            for (axis, &length) in leading.iter().enumerate().rev() {
                let index = rest % length;
                rest /= length;
                if let Some(&have) = (axis + own.len()).checked_sub(leading.len()).map(|i| &own[i]) {
                    at += if have == 1 { 0 } else { index * stride };
                    stride *= have;
                }
            }
            at
        };
        for (place, out) in y.slice_mut::<f32>().chunks_exact_mut(m * n).enumerate() {
            let a = &a[matrix_at(&a_shape, place) * m * k..][..m * k];
            let b = &b[matrix_at(&b_shape, place) * k * n..][..k * n];
            multiply(a, b, (m, k, n), out);
            out.iter_mut().for_each(|y| *y *= self.alpha);
        }
        Ok(vec![y])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_turned_before_the_product() {
        // [m, batch, k] = [2, 2, 1]: batch 0 holds 1 and 3, batch 1 holds 2 and 4.
        let a = Tensor::from_slice(&[2, 2, 1], &[1.0f32, 2.0, 3.0, 4.0]);
        let b = Tensor::from_slice(&[3, 1], &[1.0f32, 10.0, 100.0]);
        let plain = Turn { last: false, batch: false };
        let op =
            FusedMatMul { alpha: 2.0, a: Turn { batch: true, ..plain }, b: Turn { last: true, ..plain } };
        let y = op.run(&[Some(a.view()), Some(b.view())], 1).unwrap().remove(0);
        assert_eq!(y.shape(), [2, 2, 3]);
        let want = [2.0, 20.0, 200.0, 6.0, 60.0, 600.0, 4.0, 40.0, 400.0, 8.0, 80.0, 800.0];
        assert_eq!(y.slice::<f32>(), want);
    }
}
