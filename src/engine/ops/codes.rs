//! What the quantized operators share: their operands checked and read as numbers.

use crate::engine::graph::fact::{Fact, needed, operand};
use crate::engine::tensor::linear::{codes, tensor_of_codes};
use crate::engine::tensor::qparams::code_range;
use crate::engine::tensor::{DType, Tensor, TensorView};

/// The operands of a run.
pub(super) type Views<'a, 'v> = &'a [Option<TensorView<'v>>];

/// Scale and zero point of a whole tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Params {
    pub(super) scale: f32,
    pub(super) zero_point: i32,
}

impl Params {
    /// The real that a code stands for.
    pub(super) fn real(self, code: i32) -> f32 {
        code.wrapping_sub(self.zero_point) as f32 * self.scale
    }
}

/// Operand `index` of a run.
pub(super) fn view<'v>(inputs: Views<'_, 'v>, index: usize) -> Result<TensorView<'v>, String> {
    maybe(inputs, index).ok_or_else(|| format!("input {index} is missing"))
}

/// Operand `index` of a run, where it is there.
pub(super) fn maybe<'v>(inputs: Views<'_, 'v>, index: usize) -> Option<TensorView<'v>> {
    inputs.get(index).copied().flatten()
}

/// The values of a float operand.
pub(super) fn floats<'v>(inputs: Views<'_, 'v>, index: usize) -> Result<&'v [f32], String> {
    let x = view(inputs, index)?;
    match x.dtype {
        DType::F32 => Ok(x.slice()),
        other => Err(format!("input {index} is {other}, float32 is needed")),
    }
}

/// The codes of an operand that may be left out.
pub(super) fn optional_codes(inputs: Views<'_, '_>, index: usize) -> Result<Vec<i32>, String> {
    maybe(inputs, index).map_or(Ok(Vec::new()), |x| codes(&x))
}

/// The scale at `index` and the zero point after it, one for the whole tensor.
pub(super) fn params(inputs: Views<'_, '_>, index: usize) -> Result<Params, String> {
    let scale = floats(inputs, index)?;
    let zero_point = optional_codes(inputs, index + 1)?;
    match (scale, &zero_point[..]) {
        ([scale], []) => Ok(Params { scale: *scale, zero_point: 0 }),
        ([scale], [zero_point]) => Ok(Params { scale: *scale, zero_point: *zero_point }),
        _ => Err(format!(
            "input {index} has {} scales and {} zero points, one is needed",
            scale.len(),
            zero_point.len()
        )),
    }
}

/// Operand `index`, which must hold 8-bit codes.
pub(super) fn bytes<'a>(inputs: &[Option<&'a Fact>], index: usize) -> Result<&'a Fact, String> {
    let x = needed(inputs, index)?;
    match x.dtype {
        DType::U8 | DType::I8 => Ok(x),
        other => Err(format!("input {index} is {other}, int8 or uint8 is needed")),
    }
}

/// The type of a result: that of its zero point at `index`, else `default`.
pub(super) fn code_type(inputs: &[Option<&Fact>], index: usize, default: DType) -> Result<DType, String> {
    match operand(inputs, index).map_or(default, |zero_point| zero_point.dtype) {
        dtype @ (DType::U8 | DType::I8 | DType::U16 | DType::I16) => Ok(dtype),
        other => Err(format!("codes of type {other} are not supported")),
    }
}

/// The codes of accumulators: `saturate(round_half_even(acc as f32 · factor) + zero_point)`.
pub(super) fn requantized(
    dtype: DType,
    shape: &[usize],
    sums: &[i32],
    factor: impl Fn(usize) -> f32,
    zero_point: i32,
) -> Tensor {
    let (lo, hi) = code_range(dtype);
    let code = |(i, &acc): (usize, &i32)| {
        let rounded = (acc as f32 * factor(i)).round_ties_even() as i64;
        rounded.saturating_add(i64::from(zero_point)).clamp(lo, hi) as i32
    };
    tensor_of_codes(dtype, shape, &sums.iter().enumerate().map(code).collect::<Vec<_>>())
}

/// Codes with their zero points taken off; `of` tells which one an element has.
pub(super) fn centred(
    x: &TensorView<'_>,
    zero_points: &[i32],
    of: impl Fn(usize) -> usize,
) -> Result<Vec<i32>, String> {
    let mut codes = codes(x)?;
    match zero_points {
        [] => {}
        [one] => codes.iter_mut().for_each(|q| *q = q.wrapping_sub(*one)),
        many => {
            for (i, q) in codes.iter_mut().enumerate() {
                let zero_point = many.get(of(i)).ok_or("there are too few zero points")?;
                *q = q.wrapping_sub(*zero_point);
            }
        }
    }
    Ok(codes)
}

/// The scales, or why there are neither one nor `count` of them.
pub(super) fn one_or(scales: &[f32], count: usize) -> Result<&[f32], String> {
    match scales.len() {
        1 => Ok(scales),
        n if n == count => Ok(scales),
        n => Err(format!("{n} scales for {count} channels")),
    }
}

pub(super) fn each(scales: &[f32], i: usize) -> f32 {
    if scales.len() == 1 { scales[0] } else { scales[i] }
}
