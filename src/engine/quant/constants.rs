//! The constants that a node computes with: matrices, kernels, tables, biases; and whether integers can.

use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::tensor::DType;

use super::weights;

/// Elements from which on a table is worth a scale and a zero point a column.
const TABLE_MIN: usize = 1 << 12;

/// The matrix or kernel of a node that multiplies by constants: `(operand, axis of the output channels, terms of a sum)`.
///
/// # Errors
/// Why the node cannot be computed on integers.
pub fn weights_of(graph: &Graph, node: &Node) -> Result<(ValueId, usize, usize), String> {
    let operand = node.input(1).ok_or("it has no weights")?;
    let weights = graph.constant(operand).ok_or(match node.op {
        Op::MatMul => "a product of two activations",
        _ => "its weights are not constant",
    })?;
    let shape = weights.shape();
    if weights.dtype() != DType::F32 {
        return Err(format!("its weights are {}", weights.dtype()));
    }
    if weights.is_empty() {
        return Err("its weights are empty".to_owned());
    }
    if !weights.slice::<f32>().iter().all(|w| w.is_finite()) {
        return Err("its weights hold NaN or infinity".to_owned());
    }
    let (axis, terms) = match node.op {
        Op::Conv { .. } if shape.len() >= 3 => (0, shape[1..].iter().product()),
        Op::Gemm { trans_b, .. } if shape.len() == 2 => match trans_b {
            true => (0, shape[1]),
            false => (1, shape[0]),
        },
        Op::MatMul if shape.len() == 2 => (1, shape[0]),
        _ => return Err(format!("its weights have shape {shape:?}")),
    };
    if terms > weights::terms_max() {
        return Err(format!("a sum of {terms} products can overflow 32 bits"));
    }
    Ok((operand, axis, terms))
}

/// Whether a node multiplies an activation by constants in a way that integers can.
///
/// # Errors
/// Why it does not.
pub fn multiplies(graph: &Graph, node: &Node) -> Result<(), String> {
    if let Op::Gemm { trans_a: true, .. } = node.op {
        return Err("its first operand is transposed".to_owned());
    }
    let x = node.input(0).ok_or("it has no operand")?;
    if graph.constant(x).is_some() {
        return Err("its first operand is constant".to_owned());
    }
    let real = graph.value(x).dtype.unwrap_or(DType::F32);
    if real != DType::F32 {
        return Err(format!("its operand is {real}"));
    }
    let (operand, axis, _) = weights_of(graph, node)?;
    let channels = graph.constant(operand).map_or(0, |w| w.shape()[axis]);
    bias_of(graph, node, channels).map(|_| ())
}

/// The constant table `[rows, columns]` of reals that a Gather reads rows of, if it is worth storing in codes.
pub fn table_of(graph: &Graph, node: &Node) -> Option<ValueId> {
    let operand = node.input(0).filter(|_| matches!(node.op, Op::Gather { axis: 0 }))?;
    let table = graph.constant(operand)?;
    let large = table.shape().len() == 2 && table.len() >= TABLE_MIN && table.dtype() == DType::F32;
    (large && table.slice::<f32>().iter().all(|x| x.is_finite())).then_some(operand)
}

/// The bias of a Conv or Gemm, one value for each output channel and times `beta`; `None` where there is none.
///
/// # Errors
/// Why the bias cannot be computed on integers.
pub fn bias_of(graph: &Graph, node: &Node, channels: usize) -> Result<Option<Vec<f32>>, String> {
    let Some(operand) = node.input(2) else { return Ok(None) };
    let bias = graph.constant(operand).ok_or("its bias is not constant")?;
    if bias.dtype() != DType::F32 {
        return Err(format!("its bias is {}", bias.dtype()));
    }
    let beta = if let Op::Gemm { beta, .. } = node.op { beta } else { 1.0 };
    let values = bias.slice::<f32>();
    let one_row = bias.shape().split_last().is_none_or(|(_, rows)| rows.iter().all(|&d| d == 1));
    let spread = match values.len() {
        1 => vec![values[0] * beta; channels],
        n if n == channels && one_row => values.iter().map(|b| b * beta).collect(),
        _ => return Err(format!("its bias has shape {:?}", bias.shape())),
    };
    if !spread.iter().all(|b| b.is_finite()) {
        return Err("its bias holds NaN or infinity".to_owned());
    }
    Ok(Some(spread))
}

/// Spatial axes of the windows of a convolution with constant weights.
pub(super) fn axes_of_weights(graph: &Graph, node: &Node) -> usize {
    let weights = node.input(1).and_then(|id| graph.constant(id));
    weights.map_or(0, |weights| weights.shape().len().saturating_sub(2))
}
