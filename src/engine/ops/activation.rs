//! The functions of one number that recurrent operators name in their attributes.

use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::math;

/// One function with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are the ONNX names")]
pub(super) enum Activation {
    Affine { alpha: f32, beta: f32 },
    Relu,
    LeakyRelu { alpha: f32 },
    ThresholdedRelu { alpha: f32 },
    Tanh,
    ScaledTanh { alpha: f32, beta: f32 },
    Sigmoid,
    HardSigmoid { alpha: f32, beta: f32 },
    Elu { alpha: f32 },
    Softsign,
    Softplus,
}

/// The functions called `names`, in any case, as files write them. Each takes the next of `alphas` and of `betas` if
/// it has such a parameter; where they run out, it has its default (as ONNX Runtime reads them).
pub(super) fn named(names: &[String], alphas: &[f32], betas: &[f32]) -> Result<Vec<Activation>, String> {
    let (mut alphas, mut betas) = (alphas.iter().copied(), betas.iter().copied());
    let mut function = |name: &String| {
        let mut alpha = |default: f32| alphas.next().unwrap_or(default);
        let mut beta = |default: f32| betas.next().unwrap_or(default);
        Ok(match name.to_ascii_lowercase().as_str() {
            "affine" => Activation::Affine { alpha: alpha(1.0), beta: beta(0.0) },
            "relu" => Activation::Relu,
            "leakyrelu" => Activation::LeakyRelu { alpha: alpha(0.01) },
            "thresholdedrelu" => Activation::ThresholdedRelu { alpha: alpha(1.0) },
            "tanh" => Activation::Tanh,
            "scaledtanh" => Activation::ScaledTanh { alpha: alpha(1.0), beta: beta(1.0) },
            "sigmoid" => Activation::Sigmoid,
            "hardsigmoid" => Activation::HardSigmoid { alpha: alpha(0.2), beta: beta(0.5) },
            "elu" => Activation::Elu { alpha: alpha(1.0) },
            "softsign" => Activation::Softsign,
            "softplus" => Activation::Softplus,
            _ => return Err(format!("activation {name} is not supported")),
        })
    };
    names.iter().map(&mut function).collect()
}

impl Activation {
    /// Puts the function's values in the place of `xs`.
    pub(super) fn apply(self, isa: Isa, xs: &mut [f32]) {
        /// The loop, compiled once a function.
        #[inline(always)]
        fn each(isa: Isa, xs: &mut [f32], f: impl Fn(f32) -> f32) {
            isa.vectorize(|| xs.iter_mut().for_each(|x| *x = f(*x)));
        }
        match self {
            Activation::Affine { alpha, beta } => each(isa, xs, |x| alpha * x + beta),
            Activation::Relu => each(isa, xs, |x| if x < 0.0 { 0.0 } else { x }),
            Activation::LeakyRelu { alpha } => each(isa, xs, |x| if x < 0.0 { alpha * x } else { x }),
            Activation::ThresholdedRelu { alpha } => each(isa, xs, |x| if x < alpha { 0.0 } else { x }),
            Activation::Tanh => each(isa, xs, math::tanh),
            Activation::ScaledTanh { alpha, beta } => each(isa, xs, |x| alpha * math::tanh(beta * x)),
            Activation::Sigmoid => each(isa, xs, math::sigmoid),
            Activation::HardSigmoid { alpha, beta } => each(isa, xs, |x| (alpha * x + beta).clamp(0.0, 1.0)),
            Activation::Elu { alpha } => {
                each(isa, xs, |x| if x < 0.0 { alpha * (math::exp(x) - 1.0) } else { x });
            }
            Activation::Softsign => each(isa, xs, |x| x / (1.0 + x.abs())),
            // ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|), which does not overflow.
            Activation::Softplus => {
                xs.iter_mut().for_each(|x| *x = x.max(0.0) + math::exp(-x.abs()).ln_1p());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_go_to_the_functions_that_have_them_in_order() {
        let names = ["HardSigmoid", "tanh", "Affine", "LeakyRelu"].map(str::to_owned);
        let made = named(&names, &[0.3, 2.0], &[0.7]).unwrap();
        let want = [
            Activation::HardSigmoid { alpha: 0.3, beta: 0.7 },
            Activation::Tanh,
            Activation::Affine { alpha: 2.0, beta: 0.0 },
            Activation::LeakyRelu { alpha: 0.01 },
        ];
        assert_eq!(made, want);
        assert!(named(&["Swish".to_owned()], &[], &[]).unwrap_err().contains("Swish"));
    }

    #[test]
    fn softplus_does_not_overflow() {
        let mut xs = [-200.0, 0.0, 200.0];
        Activation::Softplus.apply(Isa::best(), &mut xs);
        assert_eq!(xs, [0.0, std::f32::consts::LN_2, 200.0]);
    }
}
