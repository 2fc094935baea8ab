//! Operators that pick elements by their place: an index for each element, or a tuple of indices for each slice.

use std::borrow::Cow;

use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::real::given;
use super::strides::{last, row_major, rows, with_width, words, words_mut};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "GatherElements", |call| Ok(Made::new(GatherElements { axis: call.attributes.int_or("axis", 0)? }))),
    ("", "GatherND", gather_nd),
];

/// `index` counted from the front, or that it is outside of an axis.
pub(super) fn place(index: i64, length: usize) -> Result<usize, String> {
    let from_front = if index < 0 { index.saturating_add(length as i64) } else { index };
    match usize::try_from(from_front) {
        Ok(place) if place < length => Ok(place),
        _ => Err(format!("index {index} is outside of an axis of length {length}")),
    }
}

/// Indices as int64.
pub(super) fn integers<'a>(x: &TensorView<'a>) -> Result<Cow<'a, [i64]>, String> {
    match x.dtype {
        DType::I64 => Ok(Cow::Borrowed(x.slice())),
        DType::I32 => Ok(x.slice::<i32>().iter().map(|&i| i.into()).collect()),
        other => Err(format!("indices are int64 or int32, not {other}")),
    }
}

/// An operand that holds indices.
pub(super) fn indices<'a>(inputs: &[Option<&'a Fact>], index: usize) -> Result<&'a Fact, String> {
    let fact = needed(inputs, index)?;
    match fact.dtype {
        DType::I64 | DType::I32 => Ok(fact),
        other => Err(format!("indices are int64 or int32, not {other}")),
    }
}

/// Where the elements of an index tensor point: `each` gets the place in the index tensor, and the place in data of
/// shape `data` that differs from it along `axis` alone.
pub(super) fn along(
    axis: usize,
    data: &[usize],
    (shape, indices): (&[usize], &[i64]),
    mut each: impl FnMut(usize, usize),
) -> Result<(), String> {
    let mut strides = row_major(data);
    let step = std::mem::take(&mut strides[axis]);
    let inner = last(&strides);
    let mut wrong = None;
    rows(shape, [&strides], |start, length, [at]| {
        for (i, &index) in indices[start..][..length].iter().enumerate() {
            match place(index, data[axis]) {
                Ok(place) => each(start + i, at + i * inner + place * step),
                Err(e) => wrong = Some(e),
            }
        }
    });
    wrong.map_or(Ok(()), Err)
}

/// Whether indices of `shape` stay within `data` on every axis but one.
pub(super) fn check_along(axis: usize, data: &[usize], shape: &[usize]) -> Result<(), String> {
    let fits = data.len() == shape.len()
        && (0..shape.len()).all(|i| i == axis || shape[i] <= data[i] || shape.contains(&0));
    match fits {
        true => Ok(()),
        false => {
            Err(format!("indices of shape {shape:?} do not fit data of shape {data:?} along axis {axis}"))
        }
    }
}

/// `data, indices` of one rank: `out[i][j] = data[indices[i][j]][j]` for axis 0, in the shape of the indices.
#[derive(Debug)]
struct GatherElements {
    axis: i64,
}

impl Operator for GatherElements {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (data, indices) = (needed(inputs, 0)?, indices(inputs, 1)?);
        let axis = axis_index(self.axis, data.shape.len(), false)?;
        check_along(axis, &data.shape, &indices.shape)?;
        Ok(vec![(data.dtype, indices.shape.clone())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (data, indices) = (given(inputs, 0)?, given(inputs, 1)?);
        let axis = axis_index(self.axis, data.shape.len(), false)?;
        let mut made = Tensor::zeros(data.dtype, indices.shape);
        with_width!(data.dtype, W => {
            let (from, to) = (words::<W>(&data), words_mut::<W>(&mut made));
            along(axis, data.shape, (indices.shape, &integers(&indices)?), |i, at| to[i] = from[at])?;
        });
        Ok(vec![made])
    }
}

/// `data, indices [.., depth]`: the slice of `data` at each tuple of `depth` indices. The first `batch_dims` axes of
/// both are walked together.
#[derive(Debug)]
struct GatherNd {
    batch_dims: usize,
}

fn gather_nd(call: &Call<'_>) -> Result<Made, String> {
    let batch_dims = call.attributes.int_or("batch_dims", 0)?;
    let batch_dims =
        usize::try_from(batch_dims).map_err(|_| format!("batch_dims={batch_dims} is negative"))?;
    Ok(Made::new(GatherNd { batch_dims }))
}

/// Tuples of indices into the axes of `data` behind the first `batch` ones.
pub(super) struct Tuples {
    /// Indices in a tuple.
    pub(super) depth: usize,
    /// Tuples in a batch.
    pub(super) count: usize,
    /// Elements of the slice that a tuple names.
    pub(super) slice: usize,
    /// Shape of one such slice.
    pub(super) slice_shape: Vec<usize>,
    /// Length and step, in elements, of each axis that a tuple has an index for.
    axes: Vec<(usize, usize)>,
}

impl Tuples {
    pub(super) fn new(data: &[usize], indices: &[usize], batch: usize) -> Result<Tuples, String> {
        let unfit = || format!("indices of shape {indices:?} do not fit data of shape {data:?}");
        let (&depth, tuples) = indices.split_last().ok_or_else(unfit)?;
        let end = batch.checked_add(depth).filter(|&end| end <= data.len()).ok_or_else(unfit)?;
        if tuples.len() < batch || tuples[..batch] != data[..batch] {
            return Err(unfit());
        }
        let strides = row_major(data);
        Ok(Tuples {
            depth,
            count: tuples[batch..].iter().product(),
            slice: data[end..].iter().product(),
            slice_shape: data[end..].to_vec(),
            axes: (batch..end).map(|axis| (data[axis], strides[axis])).collect(),
        })
    }

    /// Where the slice of a tuple begins.
    pub(super) fn place(&self, tuple: &[i64]) -> Result<usize, String> {
        let steps = tuple.iter().zip(&self.axes);
        steps.map(|(&index, &(length, step))| Ok(place(index, length)? * step)).sum()
    }
}

impl Operator for GatherNd {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (data, indices) = (needed(inputs, 0)?, indices(inputs, 1)?);
        let tuples = Tuples::new(&data.shape, &indices.shape, self.batch_dims)?;
        let mut shape = indices.shape[..indices.shape.len() - 1].to_vec();
        shape.extend(tuples.slice_shape);
        Ok(vec![(data.dtype, shape)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (data, indices) = (given(inputs, 0)?, given(inputs, 1)?);
        let tuples = Tuples::new(data.shape, indices.shape, self.batch_dims)?;
        let all = integers(&indices)?;
        let mut shape = indices.shape[..indices.shape.len() - 1].to_vec();
        shape.extend_from_slice(&tuples.slice_shape);
        let mut made = Tensor::zeros(data.dtype, &shape);
        if made.is_empty() {
            return Ok(vec![made]);
        }
        let batch: usize = data.shape[self.batch_dims..].iter().product();
        with_width!(data.dtype, W => {
            let (from, to) = (words::<W>(&data), words_mut::<W>(&mut made));
            for (i, to) in to.chunks_exact_mut(tuples.slice).enumerate() {
                let tuple = &all[i * tuples.depth..][..tuples.depth];
                let at = i / tuples.count * batch + tuples.place(tuple)?;
                to.copy_from_slice(&from[at..][..tuples.slice]);
            }
        });
        Ok(vec![made])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(operator: &dyn Operator, data: &Tensor, indices: &Tensor) -> Result<Tensor, String> {
        let facts = [data, indices].map(|t| Fact::computed(t.dtype(), t.shape().to_vec()));
        let results = operator.infer(&[Some(&facts[0]), Some(&facts[1])], 1)?;
        let made = operator.run(&[Some(data.view()), Some(indices.view())], 1)?.remove(0);
        assert_eq!((made.dtype(), made.shape()), (results[0].0, &results[0].1[..]));
        Ok(made)
    }

    #[test]
    fn elements_are_picked_along_an_axis() {
        let data = Tensor::from_slice(&[3, 2], &[1i16, 2, 3, 4, 5, 6]);
        let indices = Tensor::from_slice(&[2, 2], &[2i64, 0, -2, 1]);
        let made = run(&GatherElements { axis: 0 }, &data, &indices).unwrap();
        assert_eq!(made.slice::<i16>(), [5, 2, 3, 4]);
        let indices = Tensor::from_slice(&[3, 1], &[1i32, -1, 0]);
        let made = run(&GatherElements { axis: -1 }, &data, &indices).unwrap();
        assert_eq!(made.slice::<i16>(), [2, 4, 5]);
        let indices = Tensor::from_slice(&[1, 1], &[3i64]);
        assert!(run(&GatherElements { axis: 0 }, &data, &indices).unwrap_err().contains("index 3"));
        let indices = Tensor::from_slice(&[1, 3], &[0i64; 3]);
        assert!(run(&GatherElements { axis: 0 }, &data, &indices).unwrap_err().contains("do not fit"));
    }

    #[test]
    fn tuples_name_slices_within_their_batch() {
        let data = Tensor::from_slice(&[2, 2, 2], &[0i64, 1, 2, 3, 4, 5, 6, 7]);
        let of = |batch_dims, shape: &[usize], indices: &[i64]| {
            run(&GatherNd { batch_dims }, &data, &Tensor::from_slice(shape, indices))
        };
        assert_eq!(of(0, &[2, 1], &[1, -2]).unwrap().slice::<i64>(), [4, 5, 6, 7, 0, 1, 2, 3]);
        assert_eq!(of(1, &[2, 1], &[1, 0]).unwrap().slice::<i64>(), [2, 3, 4, 5]);
        assert_eq!(of(0, &[1, 3], &[1, 0, 1]).unwrap().slice::<i64>(), [5]);
        assert!(of(0, &[1, 1], &[2]).is_err());
        assert!(of(0, &[1, 4], &[0; 4]).is_err());
    }
}
