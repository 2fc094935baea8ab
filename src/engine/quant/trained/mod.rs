//! Models that come quantized: from training with quantization in mind, or from another tool. Here is how they are told
//! and what their Q and DQ nodes say; `roles` tells what the training did to each node, `reference` takes the quantization
//! away again, with `operators` for those on codes.

mod operators;
pub mod reference;
pub mod roles;
#[cfg(test)]
mod tests;
mod writer;

use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::tensor::linear::{Spread, codes, dequantize};
use crate::engine::tensor::qparams::QuantParams;
use crate::engine::tensor::{DType, Tensor};

/// Whether a graph has nodes that make, read or compute with codes.
pub fn is_quantized(graph: &Graph) -> bool {
    graph.nodes.iter().any(|n| is_boundary(&n.op) || computes_on_codes(&n.op))
}

/// Whether an operator makes codes of reals or reals of codes.
pub fn is_boundary(op: &Op) -> bool {
    matches!(op, Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. })
}

/// Whether an operator is on codes in the file itself: QLinearConv, QGemm, MatMulInteger, DynamicQuantizeLinear and
/// their like, and Q and DQ nodes of a form that is one object.
pub fn computes_on_codes(op: &Op) -> bool {
    match op {
        Op::Other(o) => ["QLinear", "QGemm", "Integer", "Quantize"].iter().any(|part| o.name.contains(part)),
        op => op.is_integer(),
    }
}

/// The parameters of a Q or DQ node with one scale, where they are constants.
pub fn params_of(graph: &Graph, node: &Node) -> Option<QuantParams> {
    if !is_boundary(&node.op) {
        return None;
    }
    let codes = match node.op {
        Op::QuantizeLinear { .. } => None,
        _ => node.input(0).and_then(|id| graph.constant(id).map(|t| t.dtype()).or(graph.value(id).dtype)),
    };
    constant_params(graph, node.input(1), node.input(2), codes)
}

/// Parameters from a scale and a zero point that are constants and one each. `codes` is their type where it is known;
/// without it and without a zero point they are `u8`.
pub(super) fn constant_params(
    graph: &Graph,
    scale: Option<ValueId>,
    zero_point: Option<ValueId>,
    codes: Option<DType>,
) -> Option<QuantParams> {
    let scale = graph.constant(scale?).filter(|t| t.dtype() == DType::F32 && t.len() == 1)?;
    let scale = scale.slice::<f32>()[0];
    let zero_point = match zero_point {
        None => None,
        Some(id) => Some(graph.constant(id).filter(|t| t.len() == 1)?),
    };
    let dtype = zero_point.map(|t| t.dtype()).or(codes).unwrap_or(DType::U8);
    let whole = matches!(dtype, DType::U8 | DType::I8 | DType::U16 | DType::I16 | DType::I32);
    let zero_point = zero_point.map_or(0, |t| t.to_i64()[0]) as i32;
    (whole && scale.is_finite() && scale > 0.0).then(|| QuantParams::per_tensor(scale, zero_point, dtype))
}

/// What constant codes stand for. The operands are those of the model; scales run along `axis` where there are many.
///
/// # Errors
/// A sentence that names the value.
pub(super) fn reals_of(
    graph: &Graph,
    of: ValueId,
    scale: Option<ValueId>,
    zero_point: Option<ValueId>,
    axis: i64,
) -> Result<Tensor, String> {
    let name = &graph.value(of).name;
    let failed = |reason: String| format!("codes `{name}`: {reason}");
    let constant = |id: Option<ValueId>, what: &str| {
        let id = id.ok_or_else(|| failed(format!("they have no {what}")))?;
        graph.constant(id).ok_or_else(|| failed(format!("their {what} is not constant")))
    };
    let (tensor, scale) = (constant(Some(of), "data")?, constant(scale, "scale")?);
    if scale.dtype() != DType::F32 {
        return Err(failed(format!(
            "a scale of type {} is not supported in a quantization job",
            scale.dtype()
        )));
    }
    let zero_points = match zero_point {
        None => Vec::new(),
        Some(_) => constant(zero_point, "zero point")?.to_i64().into_iter().map(|z| z as i32).collect(),
    };
    let spread = Spread::new(tensor.shape(), scale.shape(), axis, 0).map_err(failed)?;
    let whole = codes(&tensor.view()).map_err(failed)?;
    let zeros = match zero_points.len() {
        // One zero point for scales of many channels.
        1 => vec![zero_points[0]; scale.len()],
        _ => zero_points,
    };
    Ok(Tensor::from_slice(tensor.shape(), &dequantize(&whole, scale.slice(), &zeros, spread)))
}
