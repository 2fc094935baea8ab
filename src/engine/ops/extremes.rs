//! Operators that find the largest or the smallest value along an axis: where it stands, or a one in its place.

use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::number::Number;
use super::real::given;
use super::strides::around;
use super::typed::with_number;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "ArgMax", |call| arg(call, true)),
    ("", "ArgMin", |call| arg(call, false)),
    ("", "Hardmax", hardmax),
];

/// `x`: the place of the largest (ArgMax) or smallest value along an axis, int64.
#[derive(Debug)]
struct Arg {
    axis: i64,
    keep_dims: bool,
    largest: bool,
    /// Of equal values the last counts, not the first.
    last: bool,
}

fn arg(call: &Call<'_>, largest: bool) -> Result<Made, String> {
    let a = call.attributes;
    let (keep_dims, last) = (a.flag("keepdims", true)?, a.flag("select_last_index", false)?);
    Ok(Made::new(Arg { axis: a.int_or("axis", 0)?, keep_dims, largest, last }))
}

/// Whether `new` takes the place of `old`. A NaN is the most extreme value there is, as in numpy.
fn beats<T: Number>(new: T, old: T, largest: bool, ties: bool) -> bool {
    if old.is_nan() {
        return ties && new.is_nan();
    }
    new.is_nan() || (if largest { new > old } else { new < old }) || (ties && new == old)
}

/// For every line along the middle of `[before, length, after]` the place of its extreme, `[before, after]`.
fn extremes<T: Number>(
    values: &[T],
    (before, length, after): (usize, usize, usize),
    (largest, last): (bool, bool),
) -> Vec<usize> {
    let mut places = vec![0usize; before * after];
    if length == 0 || after == 0 {
        return places;
    }
    // Row after row, so that memory is read in its order whatever the axis.
    let mut best: Vec<T> = Vec::with_capacity(after);
    for (block, places) in values.chunks_exact(length * after).zip(places.chunks_exact_mut(after)) {
        best.clear();
        best.extend_from_slice(&block[..after]);
        for (i, row) in block.chunks_exact(after).enumerate().skip(1) {
            for ((best, place), &new) in best.iter_mut().zip(&mut *places).zip(row) {
                if beats(new, *best, largest, last) {
                    (*best, *place) = (new, i);
                }
            }
        }
    }
    debug_assert_eq!(places.len(), before * after);
    places
}

impl Arg {
    fn shape(&self, x: &[usize], axis: usize) -> Vec<usize> {
        let mut shape = x.to_vec();
        if self.keep_dims {
            shape[axis] = 1;
        } else {
            shape.remove(axis);
        }
        shape
    }
}

impl Operator for Arg {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        let axis = axis_index(self.axis, x.shape.len(), false)?;
        let shape = self.shape(&x.shape, axis);
        match x.shape[axis] == 0 && !shape.contains(&0) {
            true => Err(format!("axis {axis} is empty: it has no extreme").into()),
            false => Ok(vec![(DType::I64, shape)]),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let axis = axis_index(self.axis, x.shape.len(), false)?;
        let lines = around(x.shape, axis);
        let places = with_number!(x.dtype, T => {
            Ok::<_, String>(extremes(x.slice::<T>(), lines, (self.largest, self.last)))
        })?;
        let places: Vec<i64> = places.into_iter().map(|place| place as i64).collect();
        Ok(vec![Tensor::from_slice(&self.shape(x.shape, axis), &places)])
    }
}

/// `x`: 1 at the first of the largest values along an axis, 0 elsewhere. `coerce_2d` is the form before opset 13:
/// all axes from `axis` on are one.
#[derive(Debug)]
struct Hardmax {
    axis: i64,
    coerce_2d: bool,
}

fn hardmax(call: &Call<'_>) -> Result<Made, String> {
    let coerce_2d = call.opset < 13;
    let axis = call.attributes.int_or("axis", if coerce_2d { 1 } else { -1 })?;
    Ok(Made::new(Hardmax { axis, coerce_2d }))
}

impl Hardmax {
    fn lines(&self, shape: &[usize]) -> Result<(usize, usize, usize), String> {
        if !self.coerce_2d {
            return Ok(around(shape, axis_index(self.axis, shape.len(), false)?));
        }
        let axis = axis_index(self.axis, shape.len(), true)?;
        Ok((shape[..axis].iter().product(), shape[axis..].iter().product(), 1))
    }
}

impl Operator for Hardmax {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        self.lines(&x.shape)?;
        match x.dtype {
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => Ok(vec![(x.dtype, x.shape.clone())]),
            other => Err(format!("it takes real numbers, not {other}").into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let (before, length, after) = self.lines(x.shape)?;
        let mut made = Tensor::zeros(x.dtype, x.shape);
        if made.is_empty() {
            return Ok(vec![made]);
        }
        with_number!(x.dtype, T => {
            let places = extremes(x.slice::<T>(), (before, length, after), (true, false));
            let ones = made.slice_mut::<T>();
            for (line, place) in places.into_iter().enumerate() {
                ones[(line / after * length + place) * after + line % after] = T::ONE;
            }
            Ok::<_, String>(())
        })?;
        Ok(vec![made])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_values_the_first_or_the_last_counts() {
        let x = Tensor::from_slice(&[2, 3], &[1i32, 3, 3, 2, 2, 1]);
        let of = |axis: i64, largest: bool, last: bool| {
            let made = Arg { axis, keep_dims: false, largest, last }.run(&[Some(x.view())], 1).unwrap();
            made[0].slice::<i64>().to_vec()
        };
        assert_eq!(of(1, true, false), [1, 0]);
        assert_eq!(of(1, true, true), [2, 1]);
        assert_eq!(of(0, true, false), [1, 0, 0]);
        assert_eq!(of(-1, false, true), [0, 2]);
    }

    #[test]
    fn nan_is_the_extreme_and_an_empty_axis_has_none() {
        let x = Tensor::from_slice(&[3], &[1.0f32, f32::NAN, 3.0]);
        let operator = Arg { axis: 0, keep_dims: true, largest: false, last: false };
        assert_eq!(operator.run(&[Some(x.view())], 1).unwrap()[0].slice::<i64>(), [1]);
        let fact = Fact::computed(DType::F32, vec![2, 0]);
        let operator = Arg { axis: 1, keep_dims: true, largest: true, last: false };
        assert!(matches!(operator.infer(&[Some(&fact)], 1), Err(Unfit::Wrong(_))));
    }

    #[test]
    fn hardmax_of_the_old_form_is_over_all_axes_from_one_on() {
        let x = Tensor::from_slice(&[2, 1, 2], &[1.0f32, 5.0, 7.0, 7.0]);
        let of = |axis, coerce_2d| {
            let made = Hardmax { axis, coerce_2d }.run(&[Some(x.view())], 1).unwrap();
            made[0].slice::<f32>().to_vec()
        };
        assert_eq!(of(0, true), [0.0, 0.0, 1.0, 0.0]);
        assert_eq!(of(0, false), [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(of(1, true), [0.0, 1.0, 1.0, 0.0]);
    }
}
