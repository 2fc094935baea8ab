//! Reals to codes and back, in the forms that are rare: by block, with the type of the result as an attribute, and with
//! parameters that the data decides.

use crate::engine::graph::fact::{Fact, Results, Unfit, needed, operand};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::requant;
use crate::engine::tensor::linear::{Spread, codes, dequantize, quantize, tensor_of_codes};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::codes::{Views, code_type, floats, optional_codes, view};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "QuantizeLinear", linear),
    ("", "DequantizeLinear", linear),
    ("", "DynamicQuantizeLinear", |_| Ok(Made::new(DynamicQuantizeLinear))),
];

/// `x, scale [, zero_point]`, with `block_size` or `output_dtype`.
#[derive(Debug)]
struct Linear {
    to_codes: bool,
    axis: i64,
    block: usize,
    to: Option<DType>,
}

fn linear(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let block = a.int_or("block_size", 0)?;
    let to = match a.int_or("output_dtype", 0)? {
        0 => None,
        1 => Some(DType::F32),
        2 => Some(DType::U8),
        3 => Some(DType::I8),
        4 => Some(DType::U16),
        5 => Some(DType::I16),
        10 => Some(DType::F16),
        16 => Some(DType::BF16),
        other => return Err(format!("output_dtype={other} is not supported")),
    };
    let to_codes = call.name == "QuantizeLinear";
    if to.is_some_and(|to| matches!(to, DType::F32 | DType::F16 | DType::BF16) == to_codes) {
        return Err(format!("output_dtype={} is not supported", a.int_or("output_dtype", 0)?));
    }
    let block = usize::try_from(block).map_err(|_| format!("block_size={block} is not supported"))?;
    Ok(Made::new(Linear { to_codes, axis: a.int_or("axis", 1)?, block, to }))
}

impl Operator for Linear {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, scale) = (needed(inputs, 0)?, needed(inputs, 1)?);
        Spread::new(&x.shape, &scale.shape, self.axis, self.block)?;
        if let Some(zero_point) = operand(inputs, 2) {
            let own = if self.to_codes { self.to } else { Some(x.dtype) };
            if zero_point.shape != scale.shape || own.is_some_and(|own| own != zero_point.dtype) {
                return Err(format!("the zero point is {}{:?}", zero_point.dtype, zero_point.shape).into());
            }
        }
        let to = match (self.to_codes, self.to) {
            (_, Some(to)) => to,
            (true, None) => code_type(inputs, 2, DType::U8)?,
            (false, None) => scale.dtype,
        };
        Ok(vec![(to, x.shape.clone())])
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let (x, scale) = (view(inputs, 0)?, floats(inputs, 1)?);
        let zero_point = optional_codes(inputs, 2)?;
        let spread = Spread::new(x.shape, view(inputs, 1)?.shape, self.axis, self.block)?;
        if !self.to_codes {
            return Ok(vec![Tensor::from_slice(
                x.shape,
                &dequantize(&codes(&x)?, scale, &zero_point, spread),
            )]);
        }
        let to = self.to.or(inputs.get(2).copied().flatten().map(|z| z.dtype)).unwrap_or(DType::U8);
        let made = quantize(&reals(&x)?, scale, &zero_point, spread, to);
        Ok(vec![tensor_of_codes(to, x.shape, &made)])
    }

    fn opset(&self) -> i64 {
        if self.to.is_some() && !self.to_codes { 23 } else { 21 }
    }
}

fn reals(x: &TensorView<'_>) -> Result<Vec<f32>, String> {
    match x.dtype {
        DType::F32 => Ok(x.slice::<f32>().to_vec()),
        DType::I32 => Ok(x.slice::<i32>().iter().map(|&x| x as f32).collect()),
        other => Err(format!("QuantizeLinear of {other} is not supported")),
    }
}

/// `x`: its codes of type `u8`, their scale and their zero point, so that they cover its range and zero.
#[derive(Debug)]
struct DynamicQuantizeLinear;

impl Operator for DynamicQuantizeLinear {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        match x.dtype {
            DType::F32 => {
                Ok(vec![(DType::U8, x.shape.clone()), (DType::F32, Vec::new()), (DType::U8, Vec::new())])
            }
            other => Err(format!("the input is {other}, float32 is needed").into()),
        }
    }

    fn run(&self, inputs: Views<'_, '_>, _: usize) -> Result<Vec<Tensor>, String> {
        let x = floats(inputs, 0)?;
        let (codes, scale, zero_point) = dynamic_codes(x);
        let shape = view(inputs, 0)?.shape;
        Ok(vec![Tensor::from_slice(shape, &codes), Tensor::scalar(scale), Tensor::scalar(zero_point)])
    }

    fn opset(&self) -> i64 {
        11
    }
}

/// Codes, scale and zero point that cover the values and zero. In f32 and in this order of operations:
///
/// ```text
/// scale = (max − min) / 255,  zero_point = round_half_even(saturate(0 − min / scale))
/// ```
///
/// Values that are all zero have scale 1, as in ONNX Runtime.
pub(super) fn dynamic_codes(x: &[f32]) -> (Vec<u8>, f32, u8) {
    let (lo, hi) = range(x);
    let scale = if lo == hi { 1.0 } else { (hi - lo) / 255.0 };
    let zero_point = (0.0 - lo / scale).clamp(0.0, 255.0).round_ties_even() as u8;
    let mut codes = vec![0; x.len()];
    requant::quantize(Isa::best(), x, scale, zero_point, &mut codes, 1);
    (codes, scale, zero_point)
}

/// Least and largest of the values and zero; what is not a number is neither.
fn range(x: &[f32]) -> (f32, f32) {
    const LANES: usize = 16;
    let (mut lo, mut hi) = ([0f32; LANES], [0f32; LANES]);
    let narrow = |lo: &mut f32, hi: &mut f32, x: f32| {
        *lo = if x < *lo { x } else { *lo };
        *hi = if x > *hi { x } else { *hi };
    };
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        (0..LANES).for_each(|i| narrow(&mut lo[i], &mut hi[i], x[i]));
    }
    rest.iter().for_each(|&x| narrow(&mut lo[0], &mut hi[0], x));
    (lo.into_iter().fold(0.0, f32::min), hi.into_iter().fold(0.0, f32::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_range_is_that_of_onnx_runtime() {
        let check = |x: &[f32], codes: &[u8], scale: f32, zero_point: u8| {
            assert_eq!(dynamic_codes(x), (codes.to_vec(), scale, zero_point), "{x:?}");
        };
        check(&[2.0, 3.0, 4.0], &[127, 191, 255], 4.0 / 255.0, 0);
        check(&[0.0, 0.0], &[0, 0], 1.0, 0);
        check(&[], &[], 1.0, 0);
        let many: Vec<f32> = (0..40).map(|i| (i * 7 % 40) as f32 - 3.0).collect();
        assert_eq!((range(&many), range(&[f32::NAN, 1.0])), ((-3.0, 36.0), (0.0, 1.0)));
        assert_eq!(dynamic_codes(&[-1.0, 1.0, 0.3]).2, 127, "f32 gives 127.49999");
    }
}
