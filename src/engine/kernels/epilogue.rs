//! What follows the chain of a float product: bias, activation, residual, clamp. Knows slices only.

use super::{Activation, Epilogue, clamp_f32, math};

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
            Activation::HardSigmoid { alpha, beta } => map(y, |x| math::hard_sigmoid(x, alpha, beta)),
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
