//! Writes nodes on reals whose weights are stored in `i8`: DequantizeLinear before each operand.

use crate::engine::graph::op::Op;
use crate::engine::graph::{Node, ValueId};
use crate::engine::quant::constants::weights_of;
use crate::engine::quant::rewrite::{Constants, Integers, Layer, LayerWeights, Writer};
use crate::engine::quant::{MaxCode, weights};
use crate::engine::tensor::{DType, Tensor};

use super::stored::{self, Channels, Stored};

impl Writer<'_> {
    /// A node on reals whose weights are integers, dequantized.
    pub(in crate::engine::quant) fn stored(&mut self, node: &Node) {
        let mut inputs = self.reals(node);
        let (summary, constants) = self.stored_weights(node, &mut inputs);
        self.note_layer(node, summary, constants);
        self.out.nodes.push(Node { inputs, ..node.clone() });
        for &output in &node.outputs {
            self.codes(output, output);
        }
    }

    /// Puts dequantized integers in the place of weights; tells of the first of them, and where they are if the node
    /// multiplies by them and by nothing else.
    pub(super) fn stored_weights(
        &mut self,
        node: &Node,
        inputs: &mut [Option<ValueId>],
    ) -> (Option<LayerWeights>, Option<Constants>) {
        let (mut summary, mut constants) = (None, None);
        let all = stored::operands(self.source, node);
        let alone = all.len() == 1 && !matches!(node.op, Op::Gemm { alpha, .. } if alpha != 1.0);
        for Stored { input, value, channels } in all {
            let tensor = self.source.constant(value).expect("the plan checked the weights").clone();
            let (integers, weights) = match channels {
                Channels::Axis(axis) => self.stored_along(value, &tensor, axis),
                Channels::Gates => self.stored_gates(value, &tensor),
            };
            inputs[input] = Some(integers.reals);
            summary.get_or_insert(weights);
            if alone && weights_of(self.source, node).is_ok_and(|(operand, ..)| operand == value) {
                constants = Some(Constants {
                    codes: integers.codes,
                    scales: integers.scales,
                    bias: None,
                    by_row: None,
                });
            }
        }
        (summary, constants)
    }

    fn stored_along(&mut self, value: ValueId, tensor: &Tensor, axis: usize) -> (Integers, LayerWeights) {
        let axis = self.per_channel.then_some(axis);
        let scales = weights::scales(tensor, axis, MaxCode::MOST);
        self.shared_weights(value, tensor, axis, scales, MaxCode::MOST, 0)
    }

    /// `[directions, gates, …]` as `[directions · gates, …]`, and back once they are reals: a scale has one axis.
    fn stored_gates(&mut self, value: ValueId, tensor: &Tensor) -> (Integers, LayerWeights) {
        let shape = tensor.shape();
        if shape[0] == 1 {
            return self.stored_along(value, tensor, 1);
        }
        let flat = tensor.clone().reshaped(&[shape[0] * shape[1], shape[2]]).expect("as many elements");
        let (rows, summary) = self.stored_along(value, &flat, 0);
        let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
        let dims = self.constant(value, "shape", Tensor::from_slice(&[3], &dims));
        let reals = self.value_like(value, "w", DType::F32);
        let name = self.out.value(reals).name.clone();
        let op = Op::Reshape { allow_zero: false };
        self.out.nodes.push(Node::new(name, op, vec![Some(rows.reals), Some(dims)], vec![reals]));
        (Integers { reals, ..rows }, summary)
    }

    /// A layer whose result has the same name in both graphs.
    pub(super) fn note_layer(
        &mut self,
        node: &Node,
        weights: Option<LayerWeights>,
        constants: Option<Constants>,
    ) {
        let value = self.source.value(node.outputs[0]).name.clone();
        self.layers.push(Layer {
            node: node.name.clone(),
            op: node.op.name(),
            float_value: value.clone(),
            int8_value: value,
            weights,
            constants,
        });
    }
}
