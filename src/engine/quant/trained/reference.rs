//! The model without its quantization, to compare it with: weights are what their codes stand for, values are not rounded.
//!
//! A pair of Q and DQ nodes also saturates. Tools leave out a Relu, and even a Clip, where the codes begin at zero
//! and do its work: so where the range of the codes has zero at one of its ends, a Clip to that range stays. A range with
//! zero inside says nothing but what was seen, and is not kept; neither is that of an input of the model.

use super::operators;
use super::writer::{Reference, refused};
use super::{computes_on_codes, params_of, reals_of};
use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::tensor::Tensor;
use crate::engine::tensor::qparams::QuantParams;

/// The float model behind a quantized one. Nodes and values keep their names.
///
/// # Errors
/// A sentence that names the node that computes with codes in a way that reals cannot stand for.
pub fn without_quantization(graph: &Graph) -> Result<Graph, String> {
    let mut taken = Reference::of(graph);
    for node in &graph.nodes {
        taken.node(node)?;
    }
    if let Some(&output) = graph.outputs.iter().find(|v| taken.reals.contains(v)) {
        let name = &graph.value(output).name;
        return Err(format!(
            "its output `{name}` is codes: add the DequantizeLinear that tells what they stand for"
        ));
    }
    let mut out = taken.out;
    out.remove_unused_nodes();
    Ok(out)
}

impl Reference<'_> {
    fn node(&mut self, node: &Node) -> Result<(), String> {
        match &node.op {
            Op::QuantizeLinear { .. } => self.quantize(node),
            Op::DequantizeLinear { axis } => return self.dequantize(node, *axis),
            Op::Other(other) if computes_on_codes(&node.op) => return operators::take(self, node, other),
            _ if node.inputs.iter().flatten().any(|v| self.reals.contains(v)) => return self.moved(node),
            op if op.is_integer() => return Err(refused(node, "is not supported in a quantization job")),
            _ => self.out.nodes.push(node.clone()),
        }
        Ok(())
    }

    fn quantize(&mut self, node: &Node) {
        let operand = node.input(0).filter(|&v| self.source.constant(v).is_none());
        let Some(operand) = operand else { return self.out.nodes.push(node.clone()) };
        let params = params_of(self.source, node);
        self.saturated(&node.name, operand, params, node.outputs[0]);
    }

    fn dequantize(&mut self, node: &Node, axis: i64) -> Result<(), String> {
        let (Some(operand), result) = (node.input(0), node.outputs[0]) else {
            return Err(refused(node, "has no operand"));
        };
        if self.source.constant(operand).is_some() {
            let tensor = reals_of(self.source, operand, node.input(1), node.input(2), axis);
            self.becomes_constant(result, tensor.map_err(|e| refused(node, &e))?);
        } else if self.reals.contains(&operand) {
            self.push(&node.name, Op::Identity, vec![Some(operand)], result);
            self.follow(operand, result);
        } else {
            // What comes in as codes.
            self.out.nodes.push(node.clone());
            self.given.insert(result);
        }
        Ok(())
    }

    /// A node that is on codes in the model and does the same to reals.
    fn moved(&mut self, node: &Node) -> Result<(), String> {
        let alike = |v: &ValueId| self.reals.contains(v) || self.source.constant(*v).is_none();
        let mut moved = node.clone();
        match &node.op {
            Op::Shape { .. } => {
                self.out.nodes.push(moved);
                return Ok(());
            }
            Op::Clip => {
                let params = node.input(0).and_then(|v| self.params.get(&v)).cloned();
                let params = params.ok_or_else(|| refused(node, "clips codes with more than one scale"))?;
                for place in [1, 2] {
                    if let Some(bound) = node.input(place) {
                        moved.inputs[place] = Some(self.real(node, bound, &params)?);
                    }
                }
            }
            Op::Pad { .. } => {
                if let Some(filling) = node.input(2) {
                    let params = node.input(0).and_then(|v| self.params.get(&v)).cloned();
                    let params =
                        params.ok_or_else(|| refused(node, "pads codes with more than one scale"))?;
                    moved.inputs[2] = Some(self.real(node, filling, &params)?);
                }
            }
            Op::Concat { .. } if node.inputs.iter().flatten().all(alike) => {}
            Op::MaxPool { .. } | Op::GlobalMaxPool | Op::Identity | Op::Expand | Op::Tile | Op::Slice => {}
            Op::Reshape { .. } | Op::Flatten { .. } | Op::Squeeze | Op::Unsqueeze | Op::Transpose { .. } => {}
            Op::Split { .. } => {}
            Op::Gather { .. } if node.input(0).is_some_and(|v| self.reals.contains(&v)) => {}
            op if op.lays_blocks() => {}
            // Means of codes stand for means of reals, whatever the zero point; a filling does not.
            Op::Other(o)
                if o.name == "Resize"
                    && !matches!(
                        o.attributes.text("coordinate_transformation_mode"),
                        Ok(Some("tf_crop_and_resize"))
                    ) => {}
            _ => {
                return Err(refused(
                    node,
                    "computes with the numbers of codes, not with what they stand for",
                ));
            }
        }
        for &output in &node.outputs {
            self.becomes_real(output);
            if let Some(operand) = node.input(0) {
                self.follow(operand, output);
            }
        }
        self.out.nodes.push(moved);
        Ok(())
    }

    /// What a constant code stands for, as a constant.
    fn real(&mut self, node: &Node, code: ValueId, params: &QuantParams) -> Result<ValueId, String> {
        let code = self.source.constant(code).filter(|t| t.len() == 1);
        let code =
            code.ok_or_else(|| refused(node, "has bounds or a filling that are not constant"))?.to_i64()[0];
        let real = params.dequantize(code as i32, 0);
        Ok(self.constant(&node.name, Tensor::scalar(real)))
    }
}
