//! Functions of one real operand, element by element: activations, trigonometric and hyperbolic ones.

use crate::engine::graph::fact::{Fact, Results, Unfit, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Element, Tensor, TensorView};

use super::number::Number;
use super::real::given;
use super::typed::with_number;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "Acos", |_| curve(Curve::Acos)),
    ("", "Acosh", |_| curve(Curve::Acosh)),
    ("", "Asin", |_| curve(Curve::Asin)),
    ("", "Asinh", |_| curve(Curve::Asinh)),
    ("", "Atan", |_| curve(Curve::Atan)),
    ("", "Atanh", |_| curve(Curve::Atanh)),
    ("", "Celu", |call| {
        let alpha = call.attributes.float_or("alpha", 1.0)?;
        if alpha == 0.0 { Err("alpha=0 divides by zero".to_owned()) } else { curve(Curve::Celu { alpha }) }
    }),
    ("", "Cosh", |_| curve(Curve::Cosh)),
    ("", "Mish", |_| curve(Curve::Mish)),
    ("", "Selu", selu),
    ("", "Shrink", |call| {
        let a = call.attributes;
        Ok(Made::new(Shrink { bias: a.float_or("bias", 0.0)?, lambd: a.float_or("lambd", 0.5)? }))
    }),
    ("", "Sinh", |_| curve(Curve::Sinh)),
    ("", "Softsign", |_| curve(Curve::Softsign)),
    ("", "Swish", |call| curve(Curve::Swish { alpha: call.attributes.float_or("alpha", 1.0)? })),
    ("", "Tan", |_| curve(Curve::Tan)),
    ("", "ThresholdedRelu", |call| {
        curve(Curve::ThresholdedRelu { alpha: call.attributes.float_or("alpha", 1.0)? })
    }),
];

/// `x`: a function of each element, float32 or float64.
#[derive(Clone, Copy, Debug)]
enum Curve {
    Acos,
    Acosh,
    Asin,
    Asinh,
    Atan,
    Atanh,
    Celu { alpha: f32 },
    Cosh,
    Mish,
    Selu { alpha: f32, gamma: f32 },
    Sinh,
    Softsign,
    Swish { alpha: f32 },
    Tan,
    ThresholdedRelu { alpha: f32 },
}

fn curve(curve: Curve) -> Result<Made, String> {
    Ok(Made::new(curve))
}

fn selu(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    // The defaults of the standard, which are those of the paper (Klambauer et al. 2017) in float32.
    let (alpha, gamma) = (a.float_or("alpha", 1.673_263_2)?, a.float_or("gamma", 1.050_701)?);
    curve(Curve::Selu { alpha, gamma })
}

macro_rules! curves {
    ($name:ident, $t:ty) => {
        /// The function in this precision.
        fn $name(self) -> Box<dyn Fn($t) -> $t> {
            match self {
                Curve::Acos => Box::new(<$t>::acos),
                Curve::Acosh => Box::new(<$t>::acosh),
                Curve::Asin => Box::new(<$t>::asin),
                Curve::Asinh => Box::new(<$t>::asinh),
                Curve::Atan => Box::new(<$t>::atan),
                Curve::Atanh => Box::new(<$t>::atanh),
                Curve::Celu { alpha } => {
                    let alpha = <$t>::from(alpha);
                    Box::new(move |x| x.max(0.0) + (alpha * (x / alpha).exp_m1()).min(0.0))
                }
                Curve::Cosh => Box::new(<$t>::cosh),
                Curve::Mish => Box::new(|x| x * softplus(x.into()).tanh() as $t),
                Curve::Selu { alpha, gamma } => {
                    let (alpha, gamma) = (<$t>::from(alpha), <$t>::from(gamma));
                    Box::new(move |x| if x > 0.0 { gamma * x } else { gamma * alpha * x.exp_m1() })
                }
                Curve::Sinh => Box::new(<$t>::sinh),
                Curve::Softsign => Box::new(|x| x / (1.0 + x.abs())),
                Curve::Swish { alpha } => {
                    let alpha = <$t>::from(alpha);
                    Box::new(move |x| x / (1.0 + (-alpha * x).exp()))
                }
                Curve::Tan => Box::new(<$t>::tan),
                Curve::ThresholdedRelu { alpha } => {
                    let alpha = <$t>::from(alpha);
                    Box::new(move |x| if x > alpha { x } else { 0.0 })
                }
            }
        }
    };
}

impl Curve {
    curves!(of_f32, f32);
    curves!(of_f64, f64);

    fn opset(self) -> i64 {
        match self {
            Curve::Mish => 18,
            Curve::Swish { .. } => 24,
            _ => 13,
        }
    }
}

/// `ln(1 + exp(x))`, without an overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn map<T: Element>(x: &TensorView<'_>, f: impl Fn(T) -> T) -> Tensor {
    let mut made = Tensor::zeros(x.dtype, x.shape);
    made.slice_mut::<T>().iter_mut().zip(x.slice::<T>()).for_each(|(y, &x)| *y = f(x));
    made
}

impl Operator for Curve {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        match x.dtype {
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => Ok(vec![(x.dtype, x.shape.clone())]),
            other => Err(format!("it takes real numbers, not {other}").into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        Ok(vec![match x.dtype {
            DType::F64 => map(&x, self.of_f64()),
            _ => map(&x, self.of_f32()),
        }])
    }

    fn is_elementwise(&self) -> bool {
        true
    }

    fn opset(&self) -> i64 {
        Curve::opset(*self)
    }
}

/// `x`, any number: `x + bias` below `-lambd`, `x - bias` above `lambd`, 0 between.
#[derive(Debug)]
struct Shrink {
    bias: f32,
    lambd: f32,
}

impl Operator for Shrink {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        Ok(vec![(x.dtype, x.shape.clone())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let (bias, lambd) = (f64::from(self.bias), f64::from(self.lambd));
        let shrunk = |x: f64| match x {
            x if x < -lambd => x + bias,
            x if x > lambd => x - bias,
            _ => 0.0,
        };
        with_number!(x.dtype, T => Ok(vec![map::<T>(&x, |v| T::from_f64(shrunk(v.to_f64())))]))
    }

    fn is_elementwise(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(curve: Curve, x: &[f32], want: &[f32]) {
        let x = Tensor::from_slice(&[x.len()], x);
        let made = curve.run(&[Some(x.view())], 1).unwrap();
        let close = made[0].slice::<f32>().iter().zip(want).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
        assert!(close, "{curve:?}: {:?}, not {want:?}", made[0]);
    }

    #[test]
    fn curves_are_those_of_the_standard() {
        check(Curve::Celu { alpha: 2.0 }, &[3.0, -2.0], &[3.0, 2.0 * (0.367_879_44 - 1.0)]);
        check(Curve::Selu { alpha: 2.0, gamma: 3.0 }, &[1.0, 0.0, -1.0], &[3.0, 0.0, 6.0 * -0.632_120_56]);
        check(Curve::ThresholdedRelu { alpha: 2.0 }, &[2.0, 2.5, -3.0], &[0.0, 2.5, 0.0]);
        check(Curve::Softsign, &[1.0, -3.0], &[0.5, -0.75]);
        check(Curve::Mish, &[1.0, 1000.0, -1000.0], &[0.865_098_4, 1000.0, 0.0]);
        check(Curve::Swish { alpha: 0.5 }, &[2.0, 0.0], &[2.0 * 0.731_058_6, 0.0]);
    }

    #[test]
    fn shrink_of_integers_stays_an_integer() {
        let x = Tensor::from_slice(&[4], &[-3i8, -1, 1, 3]);
        let made = Shrink { bias: 1.0, lambd: 1.5 }.run(&[Some(x.view())], 1).unwrap();
        assert_eq!(made[0].slice::<i8>(), [-2, 0, 0, 2]);
    }
}
