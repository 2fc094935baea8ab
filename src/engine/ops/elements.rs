//! Operators on one element, or on elements of operands that broadcast: bits, types, slopes, means.

use crate::engine::graph::fact::{Fact, Results, Unfit, broadcast, needed};
use crate::engine::graph::operator::{Call, Operator, Prepared};
use crate::engine::tensor::{DType, Element, Tensor, TensorView};

use super::number::{Number, cast, type_attribute};
use super::real::given;
use super::strides::{broadcast_to, last, rows, with_width};
use super::typed::with_number;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "BitCast", |call| {
        let to = type_attribute(call.attributes, "to")?.ok_or("attribute `to` is missing")?;
        Ok(Made::new(BitCast { to }))
    }),
    ("", "BitShift", bit_shift),
    ("", "BitwiseAnd", |_| Ok(Made::new(Bits::And))),
    ("", "BitwiseNot", |_| Ok(Made::new(BitwiseNot))),
    ("", "BitwiseOr", |_| Ok(Made::new(Bits::Or))),
    ("", "BitwiseXor", |_| Ok(Made::new(Bits::Xor))),
    ("", "CastLike", |_| Ok(Made::new(CastLike))),
    ("", "IsInf", |call| {
        let a = call.attributes;
        let (negative, positive) = (a.flag("detect_negative", true)?, a.flag("detect_positive", true)?);
        Ok(Made::new(Asks::IsInf { negative, positive }))
    }),
    ("", "IsNaN", |_| Ok(Made::new(Asks::IsNaN))),
    ("", "Mean", |_| Ok(Made::new(Mean))),
    ("", "PRelu", |_| Ok(Made::new(PRelu))),
    ("", "Size", |_| Ok(Made::new(Size))),
];

/// `f` of the elements of two operands that broadcast.
fn zip<T: Element>(a: &TensorView<'_>, b: &TensorView<'_>, shape: &[usize], f: impl Fn(T, T) -> T) -> Tensor {
    let mut made = Tensor::zeros(a.dtype, shape);
    let (x, y, out) = (a.slice::<T>(), b.slice::<T>(), made.slice_mut::<T>());
    let (of_a, of_b) = (broadcast_to(a.shape, shape), broadcast_to(b.shape, shape));
    let (step_a, step_b) = (last(&of_a), last(&of_b));
    rows(shape, [&of_a, &of_b], |start, length, [at_a, at_b]| {
        for (i, out) in out[start..][..length].iter_mut().enumerate() {
            *out = f(x[at_a + i * step_a], y[at_b + i * step_b]);
        }
    });
    made
}

/// Two operands of one type, and the shape to which they broadcast.
fn pair(inputs: &[Option<&Fact>]) -> Result<(DType, Vec<usize>), String> {
    let (a, b) = (needed(inputs, 0)?, needed(inputs, 1)?);
    match a.dtype == b.dtype {
        true => Ok((a.dtype, broadcast(&a.shape, &b.shape)?)),
        false => Err(format!("its operands are {} and {}, they must be of one type", a.dtype, b.dtype)),
    }
}

/// Refuses what has no bits to compute with.
fn integers(dtype: DType) -> Result<(), String> {
    match dtype {
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 | DType::Bool => {
            Err(format!("it takes integers, not {dtype}"))
        }
        _ => Ok(()),
    }
}

/// An integer tensor under the unsigned type of its width, for which bits are all the same.
fn as_unsigned(x: TensorView<'_>) -> TensorView<'_> {
    let dtype = match x.dtype.size() {
        1 => DType::U8,
        2 => DType::U16,
        4 => DType::U32,
        _ => DType::U64,
    };
    TensorView { dtype, ..x }
}

/// `a, b`, integers of one type: BitwiseAnd, BitwiseOr, BitwiseXor, BitShift (`a` by `b` bits, unsigned).
#[derive(Clone, Copy, Debug)]
enum Bits {
    And,
    Or,
    Xor,
    Left,
    Right,
}

fn bit_shift(call: &Call<'_>) -> Result<Made, String> {
    match call.attributes.text("direction")? {
        Some("LEFT") => Ok(Made::new(Bits::Left)),
        Some("RIGHT") => Ok(Made::new(Bits::Right)),
        other => Err(format!("direction={} is neither LEFT nor RIGHT", other.unwrap_or(""))),
    }
}

impl Operator for Bits {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (dtype, shape) = pair(inputs)?;
        integers(dtype)?;
        let signed = matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64);
        if signed && matches!(self, Bits::Left | Bits::Right) {
            return Err(format!("it takes unsigned integers, not {dtype}").into());
        }
        Ok(vec![(dtype, shape)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, y) = (given(inputs, 0)?, given(inputs, 1)?);
        let shape = broadcast(x.shape, y.shape)?;
        let (a, b) = (as_unsigned(x), as_unsigned(y));
        // A shift by the width or more leaves nothing; in C++, and so in ONNX Runtime, it is undefined.
        let made = with_width!(x.dtype, W => match self {
            Bits::And => zip::<W>(&a, &b, &shape, |a, b| a & b),
            Bits::Or => zip::<W>(&a, &b, &shape, |a, b| a | b),
            Bits::Xor => zip::<W>(&a, &b, &shape, |a, b| a ^ b),
            Bits::Left => zip::<W>(&a, &b, &shape, |a, b| a.checked_shl(bits(b)).unwrap_or(0)),
            Bits::Right => zip::<W>(&a, &b, &shape, |a, b| a.checked_shr(bits(b)).unwrap_or(0)),
        });
        Ok(vec![made.retyped(x.dtype)])
    }

    fn opset(&self) -> i64 {
        if matches!(self, Bits::Left | Bits::Right) { 13 } else { 18 }
    }
}

/// By how many bits to shift.
fn bits<W: Into<u64>>(b: W) -> u32 {
    u32::try_from(b.into()).unwrap_or(u32::MAX)
}

/// `x`, integers: each with its bits turned over.
#[derive(Debug)]
struct BitwiseNot;

impl Operator for BitwiseNot {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        integers(x.dtype)?;
        Ok(vec![(x.dtype, x.shape.clone())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let mut made = given(inputs, 0)?.to_tensor();
        made.view_mut().bytes.iter_mut().for_each(|byte| *byte = !*byte);
        Ok(vec![made])
    }

    fn opset(&self) -> i64 {
        18
    }
}

/// `x, like`: `x` in the type of `like`, as Cast has it. What it says of float8 does not concern the types here.
#[derive(Debug)]
struct CastLike;

impl Operator for CastLike {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        Ok(vec![(needed(inputs, 1)?.dtype, needed(inputs, 0)?.shape.clone())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        Ok(vec![cast(&given(inputs, 0)?, given(inputs, 1)?.dtype)?])
    }

    fn opset(&self) -> i64 {
        15
    }
}

/// `x`: the same bits read as another type of the same width.
#[derive(Debug)]
struct BitCast {
    to: DType,
}

impl Operator for BitCast {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        match x.dtype.size() == self.to.size() {
            // A byte that is neither 0 nor 1 is no truth value here.
            true if self.to == DType::Bool && x.dtype != DType::Bool => {
                Err("to=bool is not supported".into())
            }
            true => Ok(vec![(self.to, x.shape.clone())]),
            false => Err(format!("{} and {} are not of one width", x.dtype, self.to).into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        match x.dtype.size() == self.to.size() {
            true => Ok(vec![x.to_tensor().retyped(self.to)]),
            // A half that came as float32: `prepare` knows which.
            false => Err("the bits of a constant half are not supported".to_owned()),
        }
    }

    fn prepare(&self, inputs: &[Option<&Fact>]) -> Option<Prepared> {
        let to = self.to;
        let from = needed(inputs, 0).ok()?.dtype;
        let bits: fn(f32) -> u16 = match from {
            DType::F16 => |x| half::f16::from_f32(x).to_bits(),
            DType::BF16 => |x| half::bf16::from_f32(x).to_bits(),
            _ => return None,
        };
        Some(Box::new(move |inputs, _| {
            let x = given(inputs, 0)?;
            let all: Vec<u16> = x.slice::<f32>().iter().map(|&x| bits(x)).collect();
            Ok(vec![Tensor::from_slice(x.shape, &all).retyped(to)])
        }))
    }

    fn opset(&self) -> i64 {
        26
    }
}

/// `x`, reals: a truth value for each element. IsNaN, IsInf.
#[derive(Debug)]
enum Asks {
    IsNaN,
    IsInf { negative: bool, positive: bool },
}

impl Operator for Asks {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        match x.dtype {
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => Ok(vec![(DType::Bool, x.shape.clone())]),
            other => Err(format!("it takes real numbers, not {other}").into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let holds = |v: f64| match self {
            Asks::IsNaN => v.is_nan(),
            Asks::IsInf { negative, positive } => {
                (*positive && v == f64::INFINITY) || (*negative && v == f64::NEG_INFINITY)
            }
        };
        let truth: Vec<u8> = match x.dtype {
            DType::F64 => x.slice::<f64>().iter().map(|&v| u8::from(holds(v))).collect(),
            _ => x.slice::<f32>().iter().map(|&v| u8::from(holds(v.into()))).collect(),
        };
        Ok(vec![Tensor::from_slice(x.shape, &truth).retyped(DType::Bool)])
    }
}

/// `x…`, reals that broadcast: their mean.
#[derive(Debug)]
struct Mean;

impl Operator for Mean {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let first = needed(inputs, 0)?;
        let mut shape = first.shape.clone();
        for index in 1..inputs.len() {
            let x = needed(inputs, index)?;
            if x.dtype != first.dtype {
                return Err(format!("its operands are {} and {}", first.dtype, x.dtype).into());
            }
            shape = broadcast(&shape, &x.shape)?;
        }
        match first.dtype {
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => Ok(vec![(first.dtype, shape)]),
            other => Err(format!("it takes real numbers, not {other}").into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let first = given(inputs, 0)?;
        let mut shape = first.shape.to_vec();
        for index in 1..inputs.len() {
            shape = broadcast(&shape, given(inputs, index)?.shape)?;
        }
        fn mean<T: Number>(
            inputs: &[Option<TensorView<'_>>],
            shape: &[usize],
            divided: impl Fn(T, f64) -> T,
        ) -> Result<Tensor, String> {
            let mut sum = Tensor::zeros(T::DTYPE, shape);
            for index in 0..inputs.len() {
                sum = zip::<T>(&sum.view(), &given(inputs, index)?, shape, T::plus);
            }
            let count = inputs.len() as f64;
            sum.slice_mut::<T>().iter_mut().for_each(|x| *x = divided(*x, count));
            Ok(sum)
        }
        Ok(vec![match first.dtype {
            DType::F64 => mean::<f64>(inputs, &shape, |x, n| x / n)?,
            _ => mean::<f32>(inputs, &shape, |x, n| x / n as f32)?,
        }])
    }
}

/// `x, slope`: `x`, times the slope where it is negative. The slope broadcasts to `x`.
#[derive(Debug)]
struct PRelu;

impl Operator for PRelu {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (dtype, shape) = pair(inputs)?;
        let x = needed(inputs, 0)?;
        if dtype == DType::Bool {
            return Err(format!("it takes numbers, not {dtype}").into());
        }
        match shape == x.shape {
            true => Ok(vec![(dtype, shape)]),
            false => Err(format!("its slope does not broadcast to {:?}", x.shape).into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, slope) = (given(inputs, 0)?, given(inputs, 1)?);
        with_number!(x.dtype, T => {
            Ok(vec![zip::<T>(&x, &slope, x.shape, bent)])
        })
    }
}

fn bent<T: Number>(x: T, slope: T) -> T {
    if x < T::ZERO { x.times(slope) } else { x }
}

/// `x`: the number of its elements, known as soon as its shape is.
#[derive(Debug)]
struct Size;

impl Operator for Size {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        needed(inputs, 0)?;
        Ok(vec![(DType::I64, Vec::new())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        Ok(vec![Tensor::scalar(given(inputs, 0)?.len() as i64)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(operator: impl Operator, operands: &[Tensor]) -> Tensor {
        let facts: Vec<Fact> =
            operands.iter().map(|t| Fact::computed(t.dtype(), t.shape().to_vec())).collect();
        operator.infer(&facts.iter().map(Some).collect::<Vec<_>>(), 1).unwrap();
        let views: Vec<_> = operands.iter().map(|t| Some(t.view())).collect();
        operator.run(&views, 1).unwrap().pop().unwrap()
    }

    #[test]
    fn bits_broadcast_and_a_shift_past_the_width_leaves_nothing() {
        let x = Tensor::from_slice(&[2, 1], &[-1i32, 6]);
        let y = Tensor::from_slice(&[2], &[3i32, 4]);
        assert_eq!(run(Bits::And, &[x.clone(), y.clone()]).slice::<i32>(), [3, 4, 2, 4]);
        assert_eq!(run(Bits::Xor, &[x, y]).slice::<i32>(), [-4, -5, 5, 2]);
        let x = Tensor::from_slice(&[3], &[1u8, 2, 255]);
        let by = Tensor::from_slice(&[3], &[7u8, 8, 200]);
        assert_eq!(run(Bits::Left, &[x.clone(), by.clone()]).slice::<u8>(), [128, 0, 0]);
        assert_eq!(run(Bits::Right, &[x, by]).slice::<u8>(), [0, 0, 0]);
    }

    #[test]
    fn a_slope_broadcasts_and_leaves_what_is_positive() {
        let x = Tensor::from_slice(&[1, 2, 2], &[-1i32, 1, -2, 2]);
        let slope = Tensor::from_slice(&[2, 1], &[3i32, 5]);
        assert_eq!(run(PRelu, &[x, slope]).slice::<i32>(), [-3, 1, -10, 2]);
    }

    #[test]
    fn infinities_are_told_apart() {
        let x = Tensor::from_slice(&[3], &[f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
        let is = |a: Asks| run(a, std::slice::from_ref(&x)).slice::<u8>().to_vec();
        assert_eq!(is(Asks::IsInf { negative: false, positive: true }), [1, 0, 0]);
        assert_eq!(is(Asks::IsInf { negative: true, positive: true }), [1, 1, 0]);
        assert_eq!(is(Asks::IsNaN), [0, 0, 1]);
    }

    #[test]
    fn mean_broadcasts() {
        let x = Tensor::from_slice(&[2], &[1.0f32, 2.0]);
        assert_eq!(run(Mean, &[x, Tensor::scalar(3.0f32)]).slice::<f32>(), [2.0, 2.5]);
    }
}
