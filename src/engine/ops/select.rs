//! Operators that pick elements by their value.

use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index, constant_ints, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Element, Tensor, TensorView};

use super::typed::{with_number, with_type};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[("", "NonZero", |_| Ok(Made::new(NonZero))), ("", "TopK", top_k)];

/// `x`: the indices of what is not zero, `[rank, count]`, in row-major order.
#[derive(Debug)]
struct NonZero;

impl Operator for NonZero {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        needed(inputs, 0)?;
        Err(Unfit::AtRun("X".to_owned()))
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = inputs[0].ok_or("input 0 is missing")?;
        fn places<T: Element>(x: &TensorView<'_>) -> Vec<usize> {
            let zero = T::zeroed();
            x.slice::<T>().iter().enumerate().filter(|(_, v)| **v != zero).map(|(i, _)| i).collect()
        }
        let found = with_type!(x.dtype, T => places::<T>(&x));
        let mut indices = vec![0i64; x.shape.len() * found.len()];
        let mut after = x.len();
        for (axis, &length) in x.shape.iter().enumerate() {
            after /= length.max(1);
            for (i, &place) in found.iter().enumerate() {
                indices[axis * found.len() + i] = (place / after.max(1) % length) as i64;
            }
        }
        Ok(vec![Tensor::from_slice(&[x.shape.len(), found.len()], &indices)])
    }
}

/// `x, k`: the `k` largest or smallest values along an axis, and where they stand.
#[derive(Debug)]
struct TopK {
    axis: i64,
    largest: bool,
}

fn top_k(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let made = Made::new(TopK { axis: a.int_or("axis", -1)?, largest: a.flag("largest", true)? });
    Ok(match a.int("k")? {
        Some(k) if call.opset < 10 => made.operand(1, Tensor::from_slice(&[1], &[k]), &["k"]),
        _ => made,
    })
}

impl Operator for TopK {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        let axis = axis_index(self.axis, x.shape.len(), false)?;
        let k = constant_ints(inputs, 1, "K")?;
        let [k] = k[..] else { return Err("K is not one number".into()) };
        let length = x.shape[axis];
        let k = usize::try_from(k).ok().filter(|&k| k <= length);
        let k = k.ok_or_else(|| format!("K is not between 0 and {length}, the length of axis {axis}"))?;
        let mut shape = x.shape.clone();
        shape[axis] = k;
        Ok(vec![(x.dtype, shape.clone()), (DType::I64, shape)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, k) = (inputs[0].ok_or("input 0 is missing")?, inputs[1].ok_or("input 1 is missing")?);
        let axis = axis_index(self.axis, x.shape.len(), false)?;
        let k = k.to_f64().first().map_or(0, |&k| k as usize);
        with_number!(x.dtype, T => Ok(top_of::<T>(&x, axis, k, self.largest)))
    }
}

/// Equal values keep their order; NaN counts as largest, as in numpy.
fn top_of<T: Element + PartialOrd>(x: &TensorView<'_>, axis: usize, k: usize, largest: bool) -> Vec<Tensor> {
    let length = x.shape[axis];
    let after: usize = x.shape[axis + 1..].iter().product();
    let before: usize = x.shape[..axis].iter().product();
    let mut shape = x.shape.to_vec();
    shape[axis] = k;
    let values = x.slice::<T>();
    let mut top = Tensor::zeros(x.dtype, &shape);
    let mut places = Tensor::zeros(DType::I64, &shape);
    let is_nan = |v: T| v.partial_cmp(&v).is_none();
    let ascending = |a: T, b: T| a.partial_cmp(&b).unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)));
    let mut order: Vec<usize> = Vec::with_capacity(length);
    for row in 0..before * after {
        let (block, column) = (row / after.max(1), row % after.max(1));
        let at = |i: usize, length: usize| (block * length + i) * after + column;
        let compare = |a: &usize, b: &usize| {
            let by_value = ascending(values[at(*a, length)], values[at(*b, length)]);
            let by_value = if largest { by_value.reverse() } else { by_value };
            by_value.then(a.cmp(b))
        };
        order.clear();
        order.extend(0..length);
        if k > 0 && k < length {
            order.select_nth_unstable_by(k - 1, compare);
        }
        order.truncate(k);
        order.sort_unstable_by(compare);
        for (i, &from) in order.iter().enumerate() {
            top.slice_mut::<T>()[at(i, k)] = values[at(from, length)];
            places.slice_mut::<i64>()[at(i, k)] = from as i64;
        }
    }
    vec![top, places]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_keep_their_order() {
        let x = Tensor::from_slice(&[2, 4], &[1.0f32, 3.0, 3.0, 2.0, 0.0, -1.0, f32::NAN, 5.0]);
        let made = top_of::<f32>(&x.view(), 1, 2, true);
        assert_eq!(made[1].slice::<i64>(), [1, 2, 2, 3]);
        let made = top_of::<f32>(&x.view(), 0, 1, false);
        assert_eq!(made[1].slice::<i64>(), [1, 1, 0, 0]);
    }
}
