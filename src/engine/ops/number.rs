//! Numbers of any element type: the arithmetic that the operators here need, and the change from one type to another.

use crate::engine::graph::attributes::Attributes;
use crate::engine::tensor::{DType, Element, Tensor, TensorView};

use super::typed::with_number;

/// An element with arithmetic. Integers wrap around, as in numpy.
pub(super) trait Number: Element + PartialOrd {
    const ZERO: Self;
    const ONE: Self;
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    fn to_f64(self) -> f64;
    /// The nearest value; fractions of integers are cut.
    fn from_f64(x: f64) -> Self;

    /// Whether it is NaN.
    fn is_nan(self) -> bool {
        self.partial_cmp(&self).is_none()
    }
}

macro_rules! numbers {
    ($($t:ty, $one:expr, $plus:expr, $times:expr);*) => { $(impl Number for $t {
        const ZERO: $t = 0 as $t;
        const ONE: $t = $one;
        fn plus(self, other: $t) -> $t {
            $plus(self, other)
        }
        fn times(self, other: $t) -> $t {
            $times(self, other)
        }
        fn to_f64(self) -> f64 {
            self as f64
        }
        fn from_f64(x: f64) -> $t {
            x as $t
        }
    })* };
}
numbers!(
    f32, 1.0, std::ops::Add::add, std::ops::Mul::mul;
    f64, 1.0, std::ops::Add::add, std::ops::Mul::mul;
    i64, 1, i64::wrapping_add, i64::wrapping_mul;
    i32, 1, i32::wrapping_add, i32::wrapping_mul;
    i16, 1, i16::wrapping_add, i16::wrapping_mul;
    i8, 1, i8::wrapping_add, i8::wrapping_mul;
    u64, 1, u64::wrapping_add, u64::wrapping_mul;
    u32, 1, u32::wrapping_add, u32::wrapping_mul;
    u16, 1, u16::wrapping_add, u16::wrapping_mul;
    u8, 1, u8::wrapping_add, u8::wrapping_mul
);

/// `x` as another type, as Cast has it: reals to integers are cut and saturate, integers wrap around. To float16 and
/// bfloat16 it gives float32, which the caller rounds.
pub(super) fn cast(x: &TensorView<'_>, to: DType) -> Result<Tensor, String> {
    let from = if x.dtype == DType::Bool { DType::U8 } else { x.dtype };
    let to_number = match to {
        DType::F16 | DType::BF16 => DType::F32,
        DType::Bool => DType::U8,
        other => other,
    };
    with_number!(from, S => {
        let given = x.slice::<S>();
        if to == DType::Bool {
            let truth: Vec<u8> = given.iter().map(|&v| u8::from(v != S::ZERO)).collect();
            return Ok(Tensor::from_slice(x.shape, &truth).retyped(DType::Bool));
        }
        with_number!(to_number, T => {
            let mut made = Tensor::zeros(to_number, x.shape);
            made.slice_mut::<T>().iter_mut().zip(given).for_each(|(y, &x)| *y = x as T);
            Ok(made)
        })
    })
}

/// Numbers as a tensor of a type; float16 and bfloat16 as float32.
pub(super) fn of_f64(to: DType, shape: &[usize], values: &[f64]) -> Result<Tensor, String> {
    cast(&Tensor::from_slice(shape, values).view(), to)
}

/// The element type that an attribute names by its ONNX number (`TensorProto.DataType`).
pub(super) fn type_attribute(a: &Attributes, name: &str) -> Result<Option<DType>, String> {
    let Some(number) = a.int(name)? else { return Ok(None) };
    match DType::of_onnx(number) {
        None => Err(format!("{name}={number}: that element type is not supported")),
        known => Ok(known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cast_cuts_and_saturates() {
        let x = Tensor::from_slice(&[4], &[-1.5f32, 2.9, 300.0, f32::NAN]);
        assert_eq!(cast(&x.view(), DType::U8).unwrap().slice::<u8>(), [0, 2, 255, 0]);
        assert_eq!(cast(&x.view(), DType::Bool).unwrap().slice::<u8>(), [1, 1, 1, 1]);
        let x = Tensor::from_slice(&[2], &[257i64, -1]);
        assert_eq!(cast(&x.view(), DType::U8).unwrap().slice::<u8>(), [1, 255]);
    }
}
