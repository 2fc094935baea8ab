//! Operator to kernel: one `match` from every [`Op`] to the function that compiles it for given operands.

use crate::engine::graph::fact::{Fact, axis_index};
use crate::engine::graph::op::Op;
use crate::engine::graph::shapes::{pad_amounts, reduced_axes};
use crate::engine::graph::{Graph, Node};
use crate::engine::tensor::DType;

use super::fuse::{Fused, FusedCodes};
use super::layout::{self, Layout};
use super::ops_product_int8::After;
use super::step::{Context, Kernel};
use super::weights::Weights;
use super::{ops_int8, ops_math, ops_move, ops_product, ops_product_int8};

/// What is compiled, and for whom.
pub(super) struct Request<'a> {
    pub(super) graph: &'a Graph,
    pub(super) weights: &'a Weights,
    pub(super) context: Context,
    /// Index of the node.
    pub(super) index: usize,
    pub(super) node: &'a Node,
    /// The memory order of images here.
    pub(super) layout: Layout,
    /// What the kernel does besides: of Conv, Gemm and MatMul only, where `ops_product::epilogue_of` allows it.
    pub(super) fused: Fused,
    /// The same of an integer product that gives codes.
    pub(super) fused_codes: FusedCodes,
}

/// Whether the kernel of a node packs its second operand, where that is a constant, and reads it in no other way.
pub(super) fn packs(graph: &Graph, node: &Node) -> bool {
    let fact = |i: usize| {
        let constant = node.input(i).map(|id| graph.constant(id));
        // Of what is computed nothing is asked but that it is.
        constant.map(|c| c.map_or(Fact::computed(DType::F32, Vec::new()), |t| Fact::constant(t.clone())))
    };
    match node.op {
        Op::QConv { .. }
        | Op::QMatMul { .. }
        | Op::ConvInteger { .. }
        | Op::MatMulInteger
        | Op::RowProduct => true,
        Op::Conv { .. } | Op::MatMul | Op::Gemm { .. } => fact(1)
            .filter(|weight| weight.constant.is_some())
            .is_some_and(|weight| ops_product::packs(&node.op, &weight, fact(2).as_ref())),
        _ => false,
    }
}

/// The kernel of a node. `inputs` and `shape` are as in memory.
///
/// # Errors
/// A sentence about what is not supported; the caller adds the node.
pub(super) fn compile(
    request: &Request<'_>,
    inputs: &[Option<&Fact>],
    dtype: DType,
    shape: &[usize],
) -> Result<Kernel, String> {
    let Request { graph, weights, context, index, node, layout, fused, ref fused_codes } = *request;
    let after = || After { reals: fused, codes: fused_codes.clone() };
    let need = |i: usize| inputs.get(i).copied().flatten().ok_or_else(|| format!("input {i} is missing"));
    let in_memory = |axis: i64| -> Result<usize, String> {
        Ok(layout.axis(axis_index(axis, shape.len(), false)?, shape.len()))
    };
    match &node.op {
        Op::Conv { sliding, groups } => {
            ops_product::conv(context, weights, index, (sliding, *groups), inputs, fused)
        }
        Op::Gemm { .. } => ops_product::gemm(context, weights, index, &node.op, inputs, fused),
        Op::MatMul => ops_product::matmul(context, weights, index, need(0)?, need(1)?, fused),
        Op::BatchNorm { epsilon } => ops_math::batch_norm(*epsilon, need(0)?),
        Op::LayerNorm { axis, epsilon } => ops_math::layer_norm(context, *axis, *epsilon, need(0)?),
        Op::MaxPool { sliding } => ops_product::max_pool(context, sliding, need(0)?),
        Op::AveragePool { sliding, count_include_pad } => {
            ops_product::average_pool(context, sliding, *count_include_pad, need(0)?)
        }
        Op::GlobalAveragePool => ops_product::global_pool(context, false, need(0)?),
        Op::GlobalMaxPool => ops_product::global_pool(context, true, need(0)?),
        Op::Unary(unary) => ops_math::unary(context, *unary, need(0)?),
        Op::Clip => ops_math::clip(context, need(0)?),
        Op::Binary(op) => ops_math::binary(context, *op, need(0)?, need(1)?, shape),
        Op::Reduce { kind, noop_with_empty_axes, .. } => {
            let x = need(0)?;
            ops_math::reduce(*kind, &reduced_axes(x.shape.len(), inputs, *noop_with_empty_axes)?, x)
        }
        Op::Softmax { axis, log, coerce_2d } => ops_math::softmax(context, *axis, *log, *coerce_2d, need(0)?),
        Op::Transpose { perm } => ops_move::transpose(need(0)?, perm),
        Op::Reshape { .. } | Op::Flatten { .. } | Op::Squeeze | Op::Unsqueeze | Op::Identity => {
            Ok(ops_move::same_bytes())
        }
        Op::Concat { axis } => Ok(ops_move::concat(in_memory(*axis)?, inputs, shape)),
        Op::Split { .. } | Op::Shape { .. } => unreachable!("the plan takes them apart"),
        Op::Slice => ops_move::slice(inputs),
        Op::Gather { axis } => ops_move::gather(*axis, need(0)?, need(1)?),
        Op::ConstantOfShape { value } => Ok(ops_move::fill(value.view().bytes.to_vec())),
        Op::Range => ops_math::range(need(0)?),
        Op::Expand => Ok(ops_move::expand(need(0)?, shape)),
        Op::Tile => Ok(ops_move::tile(need(0)?, shape)),
        Op::Where => ops_move::choose(inputs, shape),
        Op::Pad { mode } => {
            let amounts = layout::pads(layout, &pad_amounts(shape.len(), inputs)?);
            ops_move::pad_by(*mode, need(0)?, &amounts, inputs.get(2).copied().flatten().is_some())
        }
        Op::Cast { to } => ops_math::cast(context, need(0)?.dtype, *to),
        Op::QuantizeLinear { axis } => ops_int8::quantize(context, *axis, inputs, dtype),
        Op::DequantizeLinear { axis } => ops_int8::dequantize(context, *axis, inputs),
        Op::If | Op::Loop { .. } | Op::Scan(_) | Op::Other(_) => {
            unreachable!("no step of its own is compiled")
        }
        Op::QConv { sliding, groups, clamp } => {
            let op = (sliding, *groups, *clamp);
            ops_product_int8::conv(context, weights, (index, node), graph, op, inputs, after())
        }
        Op::QMatMul { trans_b, clamp } => {
            let op = (*trans_b, *clamp);
            ops_product_int8::matmul(context, weights, (index, node), graph, op, inputs, after())
        }
        Op::QProduct { clamp } => ops_product_int8::product(context, node, graph, *clamp, inputs),
        Op::ConvInteger { sliding, groups } => {
            ops_product_int8::conv_integer(context, weights, (index, node), graph, (sliding, *groups), inputs)
        }
        Op::MatMulInteger => ops_product_int8::matmul_integer(context, weights, (index, node), graph, inputs),
        Op::RowProduct => {
            ops_product_int8::row_product(context, weights, (index, node), graph, inputs, fused)
        }
        Op::Recode => Ok(ops_int8::recode(context)),
        Op::QBinary { op, clamp } => ops_int8::binary(context, node, graph, (*op, *clamp), inputs, shape),
        Op::QTable { table } => Ok(ops_int8::table(context, table)),
        Op::QAveragePool { .. } | Op::QGlobalAveragePool => {
            ops_int8::average_pool(context, node, graph, &node.op, need(0)?)
        }
        Op::QConcat { axis } => ops_int8::concat(context, node, graph, in_memory(*axis)?, inputs, shape),
    }
}
