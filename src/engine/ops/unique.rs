//! Operators that make a one of a number, or keep what is named or new: OneHot, Compress, Unique.

use std::cmp::Ordering;

use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index, constant, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Element, Tensor, TensorView};

use super::real::given;
use super::strides::{around, with_width, words, words_mut};
use super::typed::with_type;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "Compress", |call| Ok(Made::new(Compress { axis: call.attributes.int("axis")? }))),
    ("", "OneHot", |call| Ok(Made::new(OneHot { axis: call.attributes.int_or("axis", -1)? }))),
    ("", "Unique", unique),
];

/// `indices, depth, values [off, on]`: a new axis of length `depth` with `on` where the index points, `off` elsewhere.
/// An index outside of the axis points nowhere.
#[derive(Debug)]
struct OneHot {
    axis: i64,
}

impl Operator for OneHot {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (indices, values) = (needed(inputs, 0)?, needed(inputs, 2)?);
        let axis = axis_index(self.axis, indices.shape.len() + 1, false)?;
        if values.shape != [2] {
            return Err(format!("values have shape {:?}, [2] is needed", values.shape).into());
        }
        let depth = constant(inputs, 1, "depth")?;
        let [depth] = depth.to_f64()[..] else { return Err("depth is not one number".into()) };
        if !(1.0..=u32::MAX.into()).contains(&depth) {
            return Err(format!("depth {depth} is not positive").into());
        }
        let mut shape = indices.shape.clone();
        shape.insert(axis, depth as usize);
        Ok(vec![(values.dtype, shape)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (indices, depth, values) = (given(inputs, 0)?, given(inputs, 1)?, given(inputs, 2)?);
        let axis = axis_index(self.axis, indices.shape.len() + 1, false)?;
        let depth = *depth.to_f64().first().ok_or("depth is empty")? as usize;
        let mut shape = indices.shape.to_vec();
        shape.insert(axis, depth);
        let (_, _, after) = around(&shape, axis);
        let points = indices.to_f64();
        let mut made = Tensor::zeros(values.dtype, &shape);
        with_width!(values.dtype, W => {
            let (values, to) = (words::<W>(&values), words_mut::<W>(&mut made));
            let &[off, on] = values else { return Err("values are not two".to_owned()) };
            to.fill(off);
            for (i, &index) in points.iter().enumerate() {
                let index = if index < 0.0 { index + depth as f64 } else { index };
                if (0.0..depth as f64).contains(&index) {
                    to[(i / after * depth + index as usize) * after + i % after] = on;
                }
            }
        });
        Ok(vec![made])
    }
}

/// `x, condition [n]`: the slices along an axis for which the condition holds; without an axis the elements.
#[derive(Debug)]
struct Compress {
    axis: Option<i64>,
}

impl Operator for Compress {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, condition) = (needed(inputs, 0)?, needed(inputs, 1)?);
        if let Some(axis) = self.axis {
            axis_index(axis, x.shape.len(), false)?;
        }
        match condition.dtype == DType::Bool && condition.shape.len() == 1 {
            true => Err(Unfit::AtRun("condition".to_owned())),
            false => {
                Err(format!("the condition is {}{:?}, not one row of bool", condition.dtype, condition.shape)
                    .into())
            }
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, condition) = (given(inputs, 0)?, given(inputs, 1)?);
        let axis = self.axis.map(|axis| axis_index(axis, x.shape.len(), false)).transpose()?;
        let (before, length, after) = axis.map_or((1, x.len(), 1), |axis| around(x.shape, axis));
        // ONNX wants a condition that is no longer than the axis; what holds behind its end has no slice.
        let holds = condition.slice::<u8>().iter().enumerate().filter(|(_, c)| **c != 0);
        let kept: Vec<usize> = holds.map(|(i, _)| i).collect();
        if let Some(&behind) = kept.last().filter(|&&i| i >= length) {
            return Err(format!("the condition holds at {behind}, the axis has length {length}"));
        }
        let mut shape = x.shape.to_vec();
        match axis {
            Some(axis) => shape[axis] = kept.len(),
            None => shape = vec![kept.len()],
        }
        Ok(vec![taken(&x, (before, length, after), &kept, &shape)])
    }
}

/// The slices `kept` of the middle axis of `[before, length, after]`, under `shape`.
fn taken(
    x: &TensorView<'_>,
    (before, length, after): (usize, usize, usize),
    kept: &[usize],
    shape: &[usize],
) -> Tensor {
    let mut made = Tensor::zeros(x.dtype, shape);
    if made.is_empty() {
        return made;
    }
    with_width!(x.dtype, W => {
        let (from, to) = (words::<W>(x), words_mut::<W>(&mut made));
        for block in 0..before {
            for (i, place) in kept.iter().enumerate() {
                let from = &from[(block * length + place) * after..][..after];
                to[(block * kept.len() + i) * after..][..after].copy_from_slice(from);
            }
        }
    });
    made
}

/// `x`: its different elements, or slices along an axis; the place of the first of each, for each element or slice
/// of `x` which one it is, and how many there are of each. Sorted, or in the order in which they come.
#[derive(Debug)]
struct Unique {
    axis: Option<i64>,
    sorted: bool,
}

fn unique(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    Ok(Made::new(Unique { axis: a.int("axis")?, sorted: a.flag("sorted", true)? }))
}

/// An order of all values; NaN is the largest, and equal to itself.
fn compare<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    let is_nan = |x: &T| x.partial_cmp(x).is_none();
    a.partial_cmp(b).unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)))
}

/// Which slices are new, which of those each slice is, and how many there are of each.
struct Found {
    first: Vec<usize>,
    inverse: Vec<usize>,
    counts: Vec<usize>,
}

fn find<T: Element + PartialOrd>(
    values: &[T],
    (before, length, after): (usize, usize, usize),
    sorted: bool,
) -> Found {
    // A slice lies in `before` runs of `after` elements.
    let by_value = |&a: &usize, &b: &usize| {
        let run = |slice: usize, block: usize| &values[(block * length + slice) * after..][..after];
        let runs = (0..before).flat_map(|block| run(a, block).iter().zip(run(b, block)));
        runs.map(|(x, y)| compare(x, y)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
    };
    let mut order: Vec<usize> = (0..length).collect();
    order.sort_by(by_value);
    let mut found = Found { first: Vec::new(), inverse: vec![0; length], counts: Vec::new() };
    for (i, slice) in order.iter().enumerate() {
        // The sort is stable: of equal slices the first comes first.
        if i == 0 || by_value(&order[i - 1], slice).is_ne() {
            found.first.push(*slice);
            found.counts.push(0);
        }
        found.inverse[*slice] = found.first.len() - 1;
        *found.counts.last_mut().expect("the first slice is new") += 1;
    }
    if sorted {
        return found;
    }
    let mut as_they_come: Vec<usize> = (0..found.first.len()).collect();
    as_they_come.sort_unstable_by_key(|&i| found.first[i]);
    let mut rank = vec![0; as_they_come.len()];
    as_they_come.iter().enumerate().for_each(|(to, &from)| rank[from] = to);
    Found {
        first: as_they_come.iter().map(|&i| found.first[i]).collect(),
        inverse: found.inverse.iter().map(|&i| rank[i]).collect(),
        counts: as_they_come.iter().map(|&i| found.counts[i]).collect(),
    }
}

impl Operator for Unique {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        if let Some(axis) = self.axis {
            let axis = axis_index(axis, x.shape.len(), false)?;
            // Slices without elements are all the same, and there may be any number of them.
            if x.shape[axis] > 0 && x.shape.contains(&0) {
                return Err(format!("slices along axis {axis} of {:?} are empty", x.shape).into());
            }
        }
        Err(Unfit::AtRun("X".to_owned()))
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let axis = self.axis.map(|axis| axis_index(axis, x.shape.len(), false)).transpose()?;
        let cut = axis.map_or((1, x.len(), 1), |axis| around(x.shape, axis));
        let found = with_type!(x.dtype, T => find(x.slice::<T>(), cut, self.sorted));
        let mut shape = x.shape.to_vec();
        match axis {
            Some(axis) => shape[axis] = found.first.len(),
            None => shape = vec![found.first.len()],
        }
        let row = |all: &[usize]| {
            let all: Vec<i64> = all.iter().map(|&i| i as i64).collect();
            Tensor::from_slice(&[all.len()], &all)
        };
        let new = taken(&x, cut, &found.first, &shape);
        Ok(vec![new, row(&found.first), row(&found.inverse), row(&found.counts)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(operator: &dyn Operator, operands: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let views: Vec<_> = operands.iter().map(|t| Some(t.view())).collect();
        operator.run(&views, usize::MAX)
    }

    #[test]
    fn an_index_that_points_nowhere_makes_no_one() {
        let indices = Tensor::from_slice(&[2, 2], &[0i64, -1, 3, -4]);
        let all = [indices, Tensor::scalar(3.0f32), Tensor::from_slice(&[2], &[5i8, 7])];
        let made = run(&OneHot { axis: 1 }, &all).unwrap();
        assert_eq!(made[0].shape(), [2, 3, 2]);
        assert_eq!(made[0].slice::<i8>(), [7, 5, 5, 5, 5, 7, 5, 5, 5, 5, 5, 5]);
    }

    #[test]
    fn a_condition_keeps_slices_or_elements() {
        let x = Tensor::from_slice(&[2, 3], &[1i16, 2, 3, 4, 5, 6]);
        let of = |axis, condition: &[u8]| {
            let condition = Tensor::from_slice(&[condition.len()], condition).retyped(DType::Bool);
            run(&Compress { axis }, &[x.clone(), condition]).map(|made| made[0].clone())
        };
        assert_eq!(of(Some(1), &[1, 0, 1]).unwrap(), Tensor::from_slice(&[2, 2], &[1i16, 3, 4, 6]));
        assert_eq!(of(Some(0), &[0, 1]).unwrap(), Tensor::from_slice(&[1, 3], &[4i16, 5, 6]));
        assert_eq!(of(None, &[0, 1, 0, 0, 1]).unwrap(), Tensor::from_slice(&[2], &[2i16, 5]));
        assert!(of(Some(0), &[0, 1, 1]).unwrap_err().contains("holds at 2"));
    }

    #[test]
    fn unique_sorts_or_keeps_the_order() {
        let x = Tensor::from_slice(&[6], &[2.0f32, 1.0, 1.0, f32::NAN, 4.0, f32::NAN]);
        let of = |sorted| run(&Unique { axis: None, sorted }, std::slice::from_ref(&x)).unwrap();
        let ints = |t: &Tensor| t.slice::<i64>().to_vec();
        let made = of(true);
        assert_eq!(made[0].slice::<f32>()[..3], [1.0, 2.0, 4.0]);
        assert_eq!([ints(&made[1]), ints(&made[3])], [[1, 0, 4, 3], [2, 1, 1, 2]]);
        assert_eq!(ints(&made[2]), [1, 0, 0, 3, 2, 3]);
        let made = of(false);
        assert_eq!([ints(&made[1]), ints(&made[3])], [[0, 1, 3, 4], [1, 2, 2, 1]]);
        assert_eq!(ints(&made[2]), [0, 1, 1, 2, 3, 2]);
    }

    #[test]
    fn unique_slices_along_an_axis() {
        let x = Tensor::from_slice(&[2, 3], &[2i32, 1, 2, 5, 0, 5]);
        let made = run(&Unique { axis: Some(1), sorted: true }, &[x]).unwrap();
        assert_eq!(made[0], Tensor::from_slice(&[2, 2], &[1i32, 2, 0, 5]));
        assert_eq!(made[2].slice::<i64>(), [1, 0, 1]);
    }
}
