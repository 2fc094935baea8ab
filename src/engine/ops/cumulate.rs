//! Running sums and products along an axis.

use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::number::Number;
use super::real::given;
use super::strides::around;
use super::typed::with_number;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] =
    &[("", "CumProd", |call| cumulate(call, true)), ("", "CumSum", |call| cumulate(call, false))];

/// `x, axis`: along the axis the sum (or product) of all elements up to each, without it where `exclusive`, from
/// the end where `reverse`.
#[derive(Debug)]
struct Cumulate {
    product: bool,
    exclusive: bool,
    reverse: bool,
}

fn cumulate(call: &Call<'_>, product: bool) -> Result<Made, String> {
    let a = call.attributes;
    Ok(Made::new(Cumulate {
        product,
        exclusive: a.flag("exclusive", false)?,
        reverse: a.flag("reverse", false)?,
    }))
}

/// The running fold over the middle of `[before, length, after]`, row after row.
fn run<T: Number>(values: &[T], out: &mut [T], (length, after): (usize, usize), operator: &Cumulate) {
    let (neutral, fold): (T, fn(T, T) -> T) =
        if operator.product { (T::ONE, T::times) } else { (T::ZERO, T::plus) };
    let mut sums = vec![neutral; after];
    for (values, out) in values.chunks_exact(length * after).zip(out.chunks_exact_mut(length * after)) {
        sums.fill(neutral);
        for i in 0..length {
            let at = if operator.reverse { length - 1 - i } else { i } * after;
            let (row, out) = (&values[at..][..after], &mut out[at..][..after]);
            for ((sum, &x), y) in sums.iter_mut().zip(row).zip(out) {
                let with = fold(*sum, x);
                *y = if operator.exclusive { *sum } else { with };
                *sum = with;
            }
        }
    }
}

impl Operator for Cumulate {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, axis) = (needed(inputs, 0)?, needed(inputs, 1)?);
        if x.shape.is_empty() {
            return Err("it takes a tensor with at least one axis".into());
        }
        match (x.dtype, axis.shape.iter().product::<usize>()) {
            (DType::Bool, _) => Err("it takes numbers, not bool".into()),
            (_, 1) => Ok(vec![(x.dtype, x.shape.clone())]),
            (_, count) => Err(format!("its axis is {count} numbers, not one").into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, axis) = (given(inputs, 0)?, given(inputs, 1)?);
        let axis = *axis.to_f64().first().ok_or("its axis is empty")? as i64;
        let (_, length, after) = around(x.shape, axis_index(axis, x.shape.len(), false)?);
        let mut made = Tensor::zeros(x.dtype, x.shape);
        if made.is_empty() {
            return Ok(vec![made]);
        }
        with_number!(x.dtype, T => {
            run(x.slice::<T>(), made.slice_mut::<T>(), (length, after), self);
            Ok::<_, String>(())
        })?;
        Ok(vec![made])
    }

    fn opset(&self) -> i64 {
        if self.product { 26 } else { 14 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_products_run_either_way_with_or_without_the_element() {
        let x = Tensor::from_slice(&[2, 3], &[1i32, 2, 3, 4, 5, 6]);
        for (product, exclusive, reverse, axis, want) in [
            (false, false, false, 1i64, [1, 3, 6, 4, 9, 15]),
            (false, true, false, 1, [0, 1, 3, 0, 4, 9]),
            (false, false, true, -1, [6, 5, 3, 15, 11, 6]),
            (true, true, true, 1, [6, 3, 1, 30, 6, 1]),
            (true, false, false, 0, [1, 2, 3, 4, 10, 18]),
        ] {
            let operator = Cumulate { product, exclusive, reverse };
            let axis = Tensor::scalar(axis);
            let made = operator.run(&[Some(x.view()), Some(axis.view())], 1).unwrap();
            assert_eq!(made[0].slice::<i32>(), want, "{operator:?}");
        }
    }
}
