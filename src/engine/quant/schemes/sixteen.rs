//! 16-bit activations for single nodes: QuantizeLinear and DequantizeLinear of `u16` around them, weights in `i8`. No
//! runtime has integer kernels for these on the CPU; they compute on the reals that the codes stand for, here too. It is
//! the remedy where a value spans many magnitudes, as a spectrum does, and the target wants codes all the same.

use crate::engine::graph::{Node, ValueId};
use crate::engine::quant::rewrite::{Layer, Writer};
use crate::engine::tensor::qparams::QuantParams;
use crate::engine::tensor::{DType, Tensor};

/// Codes less one.
const STEPS: f64 = 65535.0;

/// Parameters of type `u16` that cover a range and zero: nothing is cut off, as sixteen bits have codes enough.
pub fn params(min: f32, max: f32) -> QuantParams {
    let (lo, hi) = (f64::from(min.min(0.0)), f64::from(max.max(0.0)));
    let scale = ((hi - lo) / STEPS) as f32;
    if scale < f32::MIN_POSITIVE {
        return QuantParams::per_tensor(1.0, 0, DType::U16);
    }
    let zero_point = (-lo / f64::from(scale)).round_ties_even().clamp(0.0, STEPS);
    QuantParams::per_tensor(scale, zero_point as i32, DType::U16)
}

impl Writer<'_> {
    /// A node on reals that were 16-bit codes, as what it makes becomes.
    pub(in crate::engine::quant) fn sixteen(&mut self, node: &Node) {
        let mut inputs = self.reals(node);
        for (input, &value) in inputs.iter_mut().zip(&node.inputs) {
            if let (Some(input), Some(value)) = (input, value) {
                *input = self.in_sixteen(value, *input);
            }
        }
        let (weights, _) = self.stored_weights(node, &mut inputs);
        let made: Vec<ValueId> = node
            .outputs
            .iter()
            .map(|&output| match self.plan.sixteen.get(&output) {
                Some(_) => self.value_like(output, "f", DType::F32),
                None => output,
            })
            .collect();
        self.layers.push(Layer {
            node: node.name.clone(),
            op: node.op.name(),
            float_value: self.source.value(node.outputs[0]).name.clone(),
            int8_value: self.out.value(made[0]).name.clone(),
            weights,
            constants: None,
        });
        self.out.nodes.push(Node { inputs, outputs: made.clone(), ..node.clone() });
        for (&output, made) in node.outputs.iter().zip(made) {
            if made != output {
                self.through_sixteen(output, made, output);
                self.sixteen.insert(output, output);
            }
            self.codes(output, output);
        }
    }

    /// The reals behind the 16-bit codes of a value that is there as `real`.
    fn in_sixteen(&mut self, value: ValueId, real: ValueId) -> ValueId {
        if !self.plan.sixteen.contains_key(&value) {
            return real;
        }
        if let Some(&known) = self.sixteen.get(&value) {
            return known;
        }
        let back = self.value_like(value, "x", DType::F32);
        self.through_sixteen(value, real, back);
        self.sixteen.insert(value, back);
        back
    }

    /// `from` through the codes of `value` to `to`.
    fn through_sixteen(&mut self, value: ValueId, from: ValueId, to: ValueId) {
        let params = &self.plan.sixteen[&value];
        let zero_point = u16::try_from(params.zero_point[0]).expect("zero points are codes");
        let scale = Tensor::scalar(params.scale[0]);
        let scale = self.constant(value, "s", scale);
        let zero = self.constant(value, "z", Tensor::scalar(zero_point));
        let codes = self.value_like(value, "q", DType::U16);
        self.quantization(true, from, scale, zero, codes);
        self.quantization(false, codes, scale, zero, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_cover_the_range_and_zero() {
        for (min, max, scale, zero_point) in [
            (0.0f32, 65535.0f32, 1.0f32, 0),
            (-1.0, 1.0, 2.0 / 65535.0, 32768),
            (5.0, 65535.0, 1.0, 0),
            (-65535.0, -3.0, 1.0, 65535),
            (0.0, 0.0, 1.0, 0),
        ] {
            let got = params(min, max);
            assert_eq!((got.scale[0], got.zero_point[0]), (scale, zero_point), "{min} {max}");
        }
    }
}
