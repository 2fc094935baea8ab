//! What follows the chain of a float product: bias, activation, residual, clamp. Knows slices only.

use super::{clamp_f32, math};

/// A function of one float.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · clamp(x / 6 + 1/2, 0, 1)`.
    HardSwish,
    /// `0.5 x (1 + erf(x / √2))`.
    Gelu,
    /// `0.5 x (1 + tanh(0.7978846 (x + 0.044715 x³)))`.
    GeluTanh,
    /// `tanh x`.
    Tanh,
}

impl Activation {
    /// The function.
    pub fn of(self, x: f32) -> f32 {
        let mut y = [x];
        self.apply(&mut y);
        y[0]
    }

    /// `y[i] = f(y[i])`. A loop for each function, so that each is vectorized.
    #[inline(always)]
    pub(super) fn apply(self, y: &mut [f32]) {
        match self {
            Activation::Sigmoid => map(y, math::sigmoid),
            Activation::Silu => map(y, math::silu),
            Activation::HardSwish => map(y, math::hard_swish),
            Activation::Gelu => map(y, math::gelu),
            Activation::GeluTanh => map(y, math::gelu_tanh),
            Activation::Tanh => map(y, math::tanh),
        }
    }
}

#[inline(always)]
fn map(y: &mut [f32], f: impl Fn(f32) -> f32) {
    y.iter_mut().for_each(|y| *y = f(*y));
}

/// How the sum of output channel `n` becomes an element of the output:
///
/// ```text
/// y = clamp(activation(sum + bias[n]) + residual, lo, hi)
/// ```
///
/// What is not there is left out; not-a-number passes the clamp.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// `[channels]`.
    pub bias: Option<&'a [f32]>,
    /// A function of `sum + bias`.
    pub activation: Option<Activation>,
    /// Of the shape of the output, strides and all.
    pub residual: Option<&'a [f32]>,
    /// Smallest value.
    pub lo: f32,
    /// Largest value.
    pub hi: f32,
}

impl<'a> Epilogue<'a> {
    /// The sum as it is.
    pub const NONE: Epilogue<'static> =
        Epilogue { bias: None, activation: None, residual: None, lo: f32::NEG_INFINITY, hi: f32::INFINITY };

    /// `sum + bias[n]`.
    pub fn with_bias(bias: Option<&'a [f32]>) -> Epilogue<'a> {
        Epilogue { bias, ..Epilogue::NONE }
    }

    /// What becomes of the sum of channel `n` whose element of the output has index `at`.
    #[inline(always)]
    pub(super) fn finish(&self, sum: f32, n: usize, at: usize) -> f32 {
        let y = self.bias.map_or(sum, |bias| sum + bias[n]);
        clamp_f32(self.residual.map_or(y, |residual| y + residual[at]), self.lo, self.hi)
    }

    /// The part that a tile does while its sums are in registers: all of it, or only the bias where an activation
    /// follows, which `finish_rows` then does for many rows at once.
    pub(super) fn in_registers(&self) -> Epilogue<'a> {
        match self.activation {
            None => *self,
            Some(_) => Epilogue::with_bias(self.bias),
        }
    }
}
