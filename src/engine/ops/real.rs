//! Loops over float32 or float64 elements, and over shares of a result.

use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

use rayon::prelude::*;

use crate::engine::kernels::parallel::threads;
use crate::engine::tensor::{Element, Tensor, TensorView};

/// A type of real numbers.
pub(super) trait Real:
    Element
    + Default
    + PartialOrd
    + Debug
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Sum
{
    /// The nearest number to `x`.
    fn of(x: f64) -> Self;
    /// The same number.
    fn wide(self) -> f64;
}

impl Real for f32 {
    fn of(x: f64) -> f32 {
        x as f32
    }
    fn wide(self) -> f64 {
        self.into()
    }
}

impl Real for f64 {
    fn of(x: f64) -> f64 {
        x
    }
    fn wide(self) -> f64 {
        self
    }
}

/// Runs `$body` with `$t` standing for `f32` or `f64`; other types are refused by name.
macro_rules! with_real {
    ($dtype:expr, $t:ident => $body:expr) => {{
        use $crate::engine::tensor::DType;
        match $dtype {
            DType::F32 => {
                type $t = f32;
                $body
            }
            DType::F64 => {
                type $t = f64;
                $body
            }
            other => Err(format!("{other} is not supported here").into()),
        }
    }};
}

pub(super) use with_real;

/// Operand `index`, or that it is missing.
pub(super) fn given<'a>(inputs: &[Option<TensorView<'a>>], index: usize) -> Result<TensorView<'a>, String> {
    optional(inputs, index).ok_or_else(|| format!("input {index} is missing"))
}

/// Operand `index`, where it is there.
pub(super) fn optional<'a>(inputs: &[Option<TensorView<'a>>], index: usize) -> Option<TensorView<'a>> {
    inputs.get(index).copied().flatten()
}

/// The elements of an operand, or that it is of another type than operand 0.
pub(super) fn elements<'a, T: Element>(x: &TensorView<'a>) -> Result<&'a [T], String> {
    match x.dtype == T::DTYPE {
        true => Ok(x.slice::<T>()),
        false => Err(format!("an operand is {}, {} was expected", x.dtype, T::DTYPE)),
    }
}

/// The numbers of a tensor as another type of reals.
pub(super) fn reals<T: Real>(x: &TensorView<'_>) -> Vec<T> {
    x.to_f64().into_iter().map(T::of).collect()
}

/// The sum of `f` over all values, in sixteen strands: they keep the rounding error small and vectors full.
pub(super) fn sum_of<T: Real>(values: &[T], f: impl Fn(T) -> T) -> T {
    let mut strands = [T::default(); 16];
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (strand, &v) in strands.iter_mut().zip(chunk) {
            *strand += f(v);
        }
    }
    let rest: T = rest.iter().map(|&v| f(v)).sum();
    strands.into_iter().sum::<T>() + rest
}

/// A tensor of a shape, each chunk of it made by `fill`, which is told the chunk's number. `work` is about the
/// nanoseconds of one chunk: shares go to the threads of the pool that the run is in, where that is worth it.
pub(super) fn made_in_chunks<T: Element>(
    shape: &[usize],
    chunk: usize,
    work: usize,
    fill: impl Fn(usize, &mut [T]) + Sync,
) -> Tensor {
    let mut made = Tensor::zeros(T::DTYPE, shape);
    for_each_chunk(made.slice_mut::<T>(), chunk, work, fill);
    made
}

/// Calls `fill` with each chunk of `out` and its number; see [`made_in_chunks`].
pub(super) fn for_each_chunk<T: Send>(
    out: &mut [T],
    chunk: usize,
    work: usize,
    fill: impl Fn(usize, &mut [T]) + Sync,
) {
    const SHARE_NS: usize = 20_000;
    let chunk = chunk.max(1);
    let total = work.saturating_mul(out.len() / chunk);
    if threads() > 1 && total >= 2 * SHARE_NS {
        let least = SHARE_NS.div_ceil(work.max(1));
        out.par_chunks_mut(chunk).with_min_len(least).enumerate().for_each(|(i, part)| fill(i, part));
    } else {
        out.chunks_mut(chunk).enumerate().for_each(|(i, part)| fill(i, part));
    }
}
