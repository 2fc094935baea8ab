//! 16-bit activations for single nodes: QuantizeLinear and DequantizeLinear of `u16` around them, weights in `i8`. No
//! runtime has integer kernels for these on the CPU; they compute on the reals that the codes stand for, here too. It is
//! the remedy where a value spans many magnitudes, as a spectrum does, and the target wants codes all the same.

use crate::engine::graph::{Node, ValueId};
use crate::engine::quant::rewrite::{Layer, Writer};
use crate::engine::tensor::{DType, Tensor};

impl Writer<'_> {
    /// A node on reals that were 16-bit codes, as what it makes becomes.
    pub(in crate::engine::quant) fn sixteen(&mut self, node: &Node) {
        let mut inputs = self.reals(node);
        for (input, &value) in inputs.iter_mut().zip(&node.inputs) {
            if let (Some(input), Some(value)) = (input, value) {
                *input = self.in_sixteen(value, *input);
            }
        }
        let (weights, constants) = self.stored_weights(node, &mut inputs);
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
            constants,
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
