//! Weights that a QuantizeLinear makes codes of before every run become those codes: what training with quantization in
//! mind leaves behind. The codes are those that the node would have made, to the bit.

use std::collections::HashSet;
use std::sync::Arc;

use crate::engine::graph::op::Op;
use crate::engine::graph::{Dim, Graph, Node};
use crate::engine::tensor::linear::{Spread, quantize, tensor_of_codes};
use crate::engine::tensor::{DType, Tensor};

/// Replaces QuantizeLinear nodes over constants by what they make; gives how many those were. What they read is left to
/// the writer of the file, which leaves out what nobody reads.
pub fn fold_quantized(graph: &mut Graph) -> usize {
    let mut folded: HashSet<usize> = HashSet::new();
    for index in 0..graph.nodes.len() {
        let Some(tensor) = codes_of(graph, &graph.nodes[index]) else { continue };
        let output = graph.nodes[index].outputs[0];
        let value = graph.value_mut(output);
        value.dtype = Some(tensor.dtype());
        value.dims = Some(tensor.shape().iter().map(|&d| Dim::Known(d)).collect());
        value.constant = Some(Arc::new(tensor));
        folded.insert(index);
    }
    let kept = graph.nodes.drain(..).enumerate().filter(|(i, _)| !folded.contains(i)).map(|(_, n)| n);
    graph.nodes = kept.collect();
    folded.len()
}

/// Tells the type of codes where the file does not: parts of a graph that begin with them cannot be run without.
pub fn declare_codes(graph: &mut Graph) {
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let zero_point = node.input(2).and_then(|id| graph.constant(id)).map(|tensor| tensor.dtype());
        let (codes, dtype) = match node.op {
            Op::QuantizeLinear { .. } => (node.outputs.first().copied(), zero_point.or(Some(DType::U8))),
            Op::DequantizeLinear { .. } => (node.input(0), zero_point),
            _ => continue,
        };
        if let (Some(codes), Some(dtype)) = (codes, dtype) {
            graph.value_mut(codes).dtype.get_or_insert(dtype);
        }
    }
}

/// The codes that a node makes of a constant, where all that it reads is known.
fn codes_of(graph: &Graph, node: &Node) -> Option<Tensor> {
    let Op::QuantizeLinear { axis } = node.op else { return None };
    let constant = |index: usize| node.input(index).and_then(|id| graph.constant(id));
    let (real, scale) = (constant(0)?, constant(1)?);
    if real.dtype() != DType::F32 || scale.dtype() != DType::F32 || graph.outputs.contains(&node.outputs[0]) {
        return None;
    }
    let zero_point = match node.input(2) {
        None => None,
        Some(id) => Some(graph.constant(id)?),
    };
    let dtype = zero_point.map_or(DType::U8, |z| z.dtype());
    let scales = scale.slice::<f32>();
    let zeros: Vec<i32> = match zero_point {
        None => vec![0; scales.len()],
        Some(z) => z.to_i64().into_iter().map(|z| z as i32).collect(),
    };
    let known = matches!(dtype, DType::U8 | DType::I8 | DType::U16 | DType::I16 | DType::I32);
    let usable = known && zeros.len() == scales.len() && scales.iter().all(|s| s.is_finite() && *s > 0.0);
    let spread = Spread::new(real.shape(), scale.shape(), axis, 0).ok().filter(|_| usable)?;
    Some(tensor_of_codes(dtype, real.shape(), &quantize(real.slice(), scales, &zeros, spread, dtype)))
}
