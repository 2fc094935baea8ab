//! Operators that write elements or slices to places that indices name.

use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index, needed, operand};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::gather::{Tuples, along, check_along, indices, integers};
use super::number::Number;
use super::real::given;
use super::strides::{around, with_width, words, words_mut};
use super::typed::with_number;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "Scatter", scatter_elements),
    ("", "ScatterElements", scatter_elements),
    ("", "ScatterND", |call| Ok(Made::new(ScatterNd { reduction: reduction(call)? }))),
    ("", "TensorScatter", tensor_scatter),
];

/// What becomes of an element that is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reduction {
    Replace,
    Add,
    Mul,
    Min,
    Max,
}

fn reduction(call: &Call<'_>) -> Result<Reduction, String> {
    Ok(match call.attributes.text_or("reduction", "none")? {
        "none" => Reduction::Replace,
        "add" => Reduction::Add,
        "mul" => Reduction::Mul,
        "min" => Reduction::Min,
        "max" => Reduction::Max,
        other => return Err(format!("reduction={other} is not supported")),
    })
}

impl Reduction {
    fn check(self, data: &Fact, updates: &Fact) -> Result<(), String> {
        if data.dtype != updates.dtype {
            return Err(format!("data are {}, updates {}", data.dtype, updates.dtype));
        }
        match self != Reduction::Replace && data.dtype == DType::Bool {
            true => Err("a reduction of bool is not supported".to_owned()),
            false => Ok(()),
        }
    }

    /// The opset in which operators got this reduction.
    fn opset(self) -> i64 {
        match self {
            Reduction::Replace => 13,
            Reduction::Add | Reduction::Mul => 16,
            Reduction::Min | Reduction::Max => 18,
        }
    }

    fn of<T: Number>(self) -> fn(T, T) -> T {
        match self {
            Reduction::Replace => |_, new| new,
            Reduction::Add => T::plus,
            Reduction::Mul => T::times,
            // A NaN stays, on either side, as in numpy.
            Reduction::Min => |old, new| if new < old || new.is_nan() { new } else { old },
            Reduction::Max => |old, new| if new > old || new.is_nan() { new } else { old },
        }
    }
}

/// `data, indices, updates`: `data` with `out[indices[i][j]][j] = updates[i][j]` for axis 0. Also the old Scatter.
#[derive(Debug)]
struct ScatterElements {
    axis: i64,
    reduction: Reduction,
}

fn scatter_elements(call: &Call<'_>) -> Result<Made, String> {
    let axis = call.attributes.int_or("axis", 0)?;
    Ok(Made::new(ScatterElements { axis, reduction: reduction(call)? }).renamed("ScatterElements", &[]))
}

impl Operator for ScatterElements {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (data, indices, updates) = (needed(inputs, 0)?, indices(inputs, 1)?, needed(inputs, 2)?);
        let axis = axis_index(self.axis, data.shape.len(), false)?;
        check_along(axis, &data.shape, &indices.shape)?;
        self.reduction.check(data, updates)?;
        match indices.shape == updates.shape {
            true => Ok(vec![(data.dtype, data.shape.clone())]),
            false => Err(format!("indices are {:?}, updates {:?}", indices.shape, updates.shape).into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (data, indices, updates) = (given(inputs, 0)?, given(inputs, 1)?, given(inputs, 2)?);
        let axis = axis_index(self.axis, data.shape.len(), false)?;
        let all = integers(&indices)?;
        let mut made = data.to_tensor();
        if self.reduction == Reduction::Replace {
            with_width!(data.dtype, W => {
                let (from, to) = (words::<W>(&updates), words_mut::<W>(&mut made));
                along(axis, data.shape, (indices.shape, &all), |i, at| to[at] = from[i])?;
            });
            return Ok(vec![made]);
        }
        with_number!(data.dtype, T => {
            let (fold, from) = (self.reduction.of::<T>(), updates.slice::<T>());
            let to = made.slice_mut::<T>();
            along(axis, data.shape, (indices.shape, &all), |i, at| to[at] = fold(to[at], from[i]))
        })?;
        Ok(vec![made])
    }

    fn opset(&self) -> i64 {
        self.reduction.opset()
    }
}

/// `data, indices [.., depth], updates`: `data` with the slice at each tuple of indices replaced or reduced.
#[derive(Debug)]
struct ScatterNd {
    reduction: Reduction,
}

impl Operator for ScatterNd {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (data, indices, updates) = (needed(inputs, 0)?, indices(inputs, 1)?, needed(inputs, 2)?);
        self.reduction.check(data, updates)?;
        let tuples = Tuples::new(&data.shape, &indices.shape, 0)?;
        let want = [&indices.shape[..indices.shape.len() - 1], &tuples.slice_shape].concat();
        match updates.shape == want {
            true => Ok(vec![(data.dtype, data.shape.clone())]),
            false => Err(format!("updates are {:?}, {want:?} is needed", updates.shape).into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (data, indices, updates) = (given(inputs, 0)?, given(inputs, 1)?, given(inputs, 2)?);
        let tuples = Tuples::new(data.shape, indices.shape, 0)?;
        let all = integers(&indices)?;
        let mut made = data.to_tensor();
        if updates.is_empty() {
            return Ok(vec![made]);
        }
        let (depth, slice) = (tuples.depth, tuples.slice);
        if self.reduction == Reduction::Replace {
            with_width!(data.dtype, W => {
                let (from, to) = (words::<W>(&updates), words_mut::<W>(&mut made));
                for (i, from) in from.chunks_exact(slice).enumerate() {
                    let at = tuples.place(&all[i * depth..][..depth])?;
                    to[at..][..slice].copy_from_slice(from);
                }
            });
            return Ok(vec![made]);
        }
        with_number!(data.dtype, T => {
            let (fold, from) = (self.reduction.of::<T>(), updates.slice::<T>());
            let to = made.slice_mut::<T>();
            for (i, from) in from.chunks_exact(slice).enumerate() {
                let at = tuples.place(&all[i * depth..][..depth])?;
                to[at..][..slice].iter_mut().zip(from).for_each(|(y, &x)| *y = fold(*y, x));
            }
            Ok::<(), String>(())
        })?;
        Ok(vec![made])
    }

    fn opset(&self) -> i64 {
        self.reduction.opset()
    }
}

/// `cache, update [, write_indices]`: the cache with the update written along an axis, for each sample of the batch
/// (axis 0) from its own index on, around the end where `circular`.
#[derive(Debug)]
struct TensorScatter {
    axis: i64,
    circular: bool,
}

fn tensor_scatter(call: &Call<'_>) -> Result<Made, String> {
    let circular = match call.attributes.text_or("mode", "linear")? {
        "linear" => false,
        "circular" => true,
        other => return Err(format!("mode={other} is not supported")),
    };
    Ok(Made::new(TensorScatter { axis: call.attributes.int_or("axis", -2)?, circular }))
}

impl Operator for TensorScatter {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (cache, update) = (needed(inputs, 0)?, needed(inputs, 1)?);
        let axis = axis_index(self.axis, cache.shape.len(), false)?;
        if axis == 0 {
            return Err("axis 0 is the batch: it cannot be written along".into());
        }
        let fits = cache.dtype == update.dtype
            && cache.shape.len() == update.shape.len()
            && (0..cache.shape.len()).all(|i| i == axis || cache.shape[i] == update.shape[i])
            && update.shape[axis] <= cache.shape[axis];
        if !fits {
            let text = format!(
                "an update of shape {:?} does not fit a cache of shape {:?}",
                update.shape, cache.shape
            );
            return Err(text.into());
        }
        match operand(inputs, 2).map(|_| indices(inputs, 2)).transpose()? {
            Some(start) if start.shape != cache.shape[..1] => {
                Err(format!("write_indices are {:?}, {:?} is needed", start.shape, &cache.shape[..1]).into())
            }
            _ => Ok(vec![(cache.dtype, cache.shape.clone())]),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (cache, update) = (given(inputs, 0)?, given(inputs, 1)?);
        let axis = axis_index(self.axis, cache.shape.len(), false)?;
        let starts = inputs.get(2).copied().flatten().map(|x| integers(&x)).transpose()?;
        let (before, room, slice) = around(cache.shape, axis);
        let length = update.shape[axis];
        let mut made = cache.to_tensor();
        if update.is_empty() {
            return Ok(vec![made]);
        }
        let samples = cache.shape[0];
        with_width!(cache.dtype, W => {
            let (from, to) = (words::<W>(&update), words_mut::<W>(&mut made));
            for prefix in 0..before {
                let start = starts.as_ref().map_or(0, |all| all[prefix / (before / samples)]);
                for i in 0..length {
                    let at = start.checked_add(i as i64).ok_or("a write index overflows")?;
                    let at = if self.circular { at.rem_euclid(room as i64) } else { at };
                    let at = usize::try_from(at).ok().filter(|&at| at < room);
                    let at = at.ok_or_else(|| format!("{length} slices from {start} on do not fit {room}"))?;
                    let from = &from[(prefix * length + i) * slice..][..slice];
                    to[(prefix * room + at) * slice..][..slice].copy_from_slice(from);
                }
            }
        });
        Ok(vec![made])
    }

    fn opset(&self) -> i64 {
        24
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(operator: &dyn Operator, operands: &[Tensor]) -> Result<Tensor, String> {
        let facts: Vec<Fact> =
            operands.iter().map(|t| Fact::computed(t.dtype(), t.shape().to_vec())).collect();
        operator.infer(&facts.iter().map(Some).collect::<Vec<_>>(), 1)?;
        let views: Vec<_> = operands.iter().map(|t| Some(t.view())).collect();
        Ok(operator.run(&views, 1)?.remove(0))
    }

    #[test]
    fn elements_are_replaced_or_reduced() {
        let data = Tensor::from_slice(&[1, 4], &[1.0f32, 2.0, 3.0, 4.0]);
        let indices = Tensor::from_slice(&[1, 3], &[1i64, -3, 3]);
        let updates = Tensor::from_slice(&[1, 3], &[10.0f32, 0.5, f32::NAN]);
        for (reduction, at_1) in [
            (Reduction::Replace, 0.5),
            (Reduction::Add, 12.5),
            (Reduction::Mul, 10.0),
            (Reduction::Min, 0.5),
            (Reduction::Max, 10.0),
        ] {
            let operator = ScatterElements { axis: 1, reduction };
            let made = run(&operator, &[data.clone(), indices.clone(), updates.clone()]).unwrap();
            assert_eq!(made.slice::<f32>()[..3], [1.0, at_1, 3.0], "{reduction:?}");
            assert!(made.slice::<f32>()[3].is_nan());
        }
        let outside = Tensor::from_slice(&[1, 3], &[1i64, 4, 3]);
        let operator = ScatterElements { axis: 1, reduction: Reduction::Add };
        assert!(run(&operator, &[data, outside, updates]).unwrap_err().contains("index 4"));
    }

    #[test]
    fn slices_are_replaced_or_reduced() {
        let data = Tensor::from_slice(&[3, 2], &[1i32, 2, 3, 4, 5, 6]);
        let indices = Tensor::from_slice(&[2, 1], &[2i64, -1]);
        let updates = Tensor::from_slice(&[2, 2], &[10i32, 20, 30, 40]);
        let all = [data, indices, updates];
        let made = run(&ScatterNd { reduction: Reduction::Add }, &all).unwrap();
        assert_eq!(made.slice::<i32>(), [1, 2, 3, 4, 45, 66]);
        let made = run(&ScatterNd { reduction: Reduction::Replace }, &all).unwrap();
        assert_eq!(made.slice::<i32>(), [1, 2, 3, 4, 30, 40]);
    }

    #[test]
    fn a_cache_is_written_around_its_end_where_circular() {
        let cache = Tensor::from_slice(&[2, 3, 1], &[0i16; 6]);
        let update = Tensor::from_slice(&[2, 2, 1], &[1i16, 2, 3, 4]);
        let starts = Tensor::from_slice(&[2], &[0i64, 2]);
        let all = [cache, update, starts];
        let made = run(&TensorScatter { axis: 1, circular: true }, &all).unwrap();
        assert_eq!(made.slice::<i16>(), [1, 2, 0, 4, 0, 3]);
        assert!(run(&TensorScatter { axis: 1, circular: false }, &all).is_err());
    }
}
