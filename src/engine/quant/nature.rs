//! What sort of work a node does: whether it moves data, passes codes on, counts, or computes on reals.

use crate::engine::graph::op::{Op, Unary};
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::tensor::DType;

use super::schemes::stored;

/// Whether an operator gives its input's codes on as they are.
pub fn passes_codes(op: &Op) -> bool {
    matches!(
        op,
        Op::MaxPool { .. }
            | Op::Flatten { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Squeeze
            | Op::Unsqueeze
            | Op::Split { .. }
            | Op::Slice
    ) || takes_nearest(op)
        || op.lays_blocks()
}

/// Whether an operator enlarges or shrinks an image by taking elements as they are.
fn takes_nearest(op: &Op) -> bool {
    matches!(op, Op::Other(other) if other.name == "Resize"
        && matches!(other.attributes.text_or("mode", "nearest"), Ok("nearest"))
        && !matches!(other.attributes.text("coordinate_transformation_mode"), Ok(Some("tf_crop_and_resize"))))
}

/// Whether an operator computes new codes from those of one input.
pub(super) fn computes_mean(op: &Op) -> bool {
    matches!(op, Op::AveragePool { .. } | Op::GlobalAveragePool)
}

/// Whether an operator does no arithmetic on reals.
pub fn moves_data(op: &Op) -> bool {
    matches!(
        op,
        Op::Concat { .. }
            | Op::Split { .. }
            | Op::Slice
            | Op::Gather { .. }
            | Op::Shape { .. }
            | Op::ConstantOfShape { .. }
            | Op::Range
            | Op::Expand
            | Op::Tile
            | Op::Where
            | Op::Pad { .. }
            | Op::Cast { .. }
            | Op::Identity
    )
}

/// Whether a node computes nothing that could be quantized: it moves data, or computes shapes, indices, masks.
pub fn is_data(graph: &Graph, node: &Node) -> bool {
    let passes = passes_codes(&node.op) && !matches!(node.op, Op::MaxPool { .. });
    moves_data(&node.op) || passes || counts(graph, node)
}

/// Whether a node certainly takes reals and makes one.
pub(super) fn computes_on_reals(graph: &Graph, node: &Node) -> bool {
    let reals = match &node.op {
        Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul | Op::LayerNorm { .. } | Op::BatchNorm { .. } => true,
        Op::Softmax { .. } | Op::Reduce { .. } | Op::AveragePool { .. } | Op::GlobalAveragePool => true,
        Op::Unary(_) | Op::Binary(_) | Op::Clip => !is_logical(&node.op),
        _ => !stored::operands(graph, node).is_empty(),
    };
    reals && !counts(graph, node)
}

/// Whether an operator makes truth values.
pub(super) fn is_logical(op: &Op) -> bool {
    matches!(op, Op::Unary(Unary::Not)) || matches!(op, Op::Binary(binary) if binary.is_comparison())
}

/// Whether a node computes with integers or truth values of the model's own: shapes, indices, masks.
pub(super) fn counts(graph: &Graph, node: &Node) -> bool {
    let whole = |id: &ValueId| graph.value(*id).dtype.is_some_and(|dtype| !is_real(dtype));
    matches!(&node.op, Op::Binary(binary) if binary.is_comparison())
        || node.outputs.iter().any(whole)
        || node.inputs.iter().flatten().any(whole)
}

fn is_real(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
}

/// A Relu, or a Clip with constant bounds that has zero within them: codes hold zero, so they can saturate there.
pub(super) fn clamps_around_zero(graph: &Graph, node: &Node) -> bool {
    let bound = |index: usize, default: f64| match node.input(index) {
        None => Some(default),
        Some(v) => graph.constant(v).and_then(|t| t.to_f64().first().copied()),
    };
    match node.op {
        Op::Unary(Unary::Relu) => true,
        Op::Clip => match (bound(1, f64::NEG_INFINITY), bound(2, f64::INFINITY)) {
            (Some(lo), Some(hi)) => lo <= 0.0 && 0.0 <= hi,
            _ => false,
        },
        _ => false,
    }
}
