//! What follows the chain of a float product: bias, activation, residual, clamp. Knows slices only.

use super::{Activation, Epilogue, clamp_f32, math};

impl Activation {
    /// The function.
    pub fn of(self, x: f32) -> f32 {
        let mut y = [x];
        self.apply(&mut y);
        y[0]
    }

    /// `y[i] = f(y[i])`.
    #[inline(always)]
    pub(super) fn apply(self, y: &mut [f32]) {
        self.choose(Map(y));
    }

    /// Gives a loop its function: there is a loop for each, so that each is vectorized.
    #[inline(always)]
    pub(super) fn choose(self, of: impl Loop) {
        match self {
            Activation::Sigmoid => of.run(math::sigmoid),
            Activation::Silu => of.run(math::silu),
            Activation::HardSigmoid { alpha, beta } => of.run(|x| math::hard_sigmoid(x, alpha, beta)),
            Activation::HardSwish => of.run(math::hard_swish),
            Activation::Gelu => of.run(math::gelu),
            Activation::GeluTanh => of.run(math::gelu_tanh),
            Activation::Tanh => of.run(math::tanh),
        }
    }
}

/// A loop over elements with a function in it. To be vectorized, `run` is `#[inline(always)]`.
pub(super) trait Loop {
    /// Runs it.
    fn run(self, f: impl Fn(f32) -> f32);
}

struct Map<'a>(&'a mut [f32]);

impl Loop for Map<'_> {
    #[inline(always)]
    fn run(self, f: impl Fn(f32) -> f32) {
        self.0.iter_mut().for_each(|y| *y = f(*y));
    }
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

    /// What follows the bias, of elements from `at` on of the output.
    #[inline(always)]
    pub(super) fn after_bias(&self, y: &mut [f32], at: usize) {
        if let Some(activation) = self.activation {
            activation.apply(y);
        }
        if let Some(residual) = self.residual {
            let residual = &residual[at..][..y.len()];
            y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
        }
        if (self.lo, self.hi) != (f32::NEG_INFINITY, f32::INFINITY) {
            y.iter_mut().for_each(|y| *y = clamp_f32(*y, self.lo, self.hi));
        }
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
