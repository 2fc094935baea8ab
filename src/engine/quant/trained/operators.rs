//! What operators on codes (ONNX's QLinear and Integer ones, and those of com.microsoft) compute, on reals.

use super::constant_params;
use super::reals_of;
use super::writer::{Reference, refused};
use crate::engine::graph::op::{Binary, Op, Sliding, Unary, groups};
use crate::engine::graph::operator::Other;
use crate::engine::graph::{Node, ValueId};
use crate::engine::tensor::{DType, Tensor};

/// Writes the float form of an operator on codes.
///
/// # Errors
/// A sentence that names the node, where there is none.
pub(super) fn take(to: &mut Reference<'_>, node: &Node, other: &Other) -> Result<(), String> {
    let a = &other.attributes;
    let failed = |reason: String| refused(node, &reason);
    match other.name {
        "QLinearConv" => {
            let op =
                Op::Conv { sliding: Sliding::read(a).map_err(failed)?, groups: groups(a).map_err(failed)? };
            if a.int_or("channels_last", 0) != Ok(0) {
                return Err(refused(node, "with channels_last is not supported in a quantization job"));
            }
            let mut inputs = vec![operand(to, node, 0, 1)?, operand(to, node, 3, 0)?];
            inputs.extend(bias(to, node, 8, 1.0)?);
            finish(to, node, op, inputs, 6)
        }
        "QLinearMatMul" => {
            let inputs = vec![operand(to, node, 0, -2)?, operand(to, node, 3, -1)?];
            finish(to, node, Op::MatMul, inputs, 6)
        }
        "QGemm" => {
            let alpha = a.float_or("alpha", 1.0).map_err(failed)?;
            let [trans_a, trans_b] = ["transA", "transB"].map(|name| a.flag(name, false));
            let (trans_a, trans_b) = (trans_a.map_err(failed)?, trans_b.map_err(failed)?);
            let inputs = vec![operand(to, node, 0, 0)?, operand(to, node, 3, if trans_b { 0 } else { 1 })?];
            let inputs = inputs.into_iter().chain(bias(to, node, 6, alpha)?).collect();
            finish(to, node, Op::Gemm { alpha, beta: 1.0, trans_a, trans_b }, inputs, 7)
        }
        "QLinearAdd" | "QLinearMul" => {
            let op = if other.name == "QLinearAdd" { Binary::Add } else { Binary::Mul };
            let inputs = vec![operand(to, node, 0, 0)?, operand(to, node, 3, 0)?];
            finish(to, node, Op::Binary(op), inputs, 6)
        }
        "QLinearAveragePool" | "QLinearGlobalAveragePool" => {
            if a.int_or("channels_last", 0) != Ok(0) {
                return Err(refused(node, "with channels_last is not supported in a quantization job"));
            }
            let op = match other.name {
                "QLinearGlobalAveragePool" => Op::GlobalAveragePool,
                _ => Op::AveragePool {
                    sliding: Sliding::read(a).map_err(failed)?,
                    count_include_pad: a.flag("count_include_pad", false).map_err(failed)?,
                },
            };
            let inputs = vec![operand(to, node, 0, 0)?];
            finish(to, node, op, inputs, 3)
        }
        "QLinearSigmoid" | "QLinearLeakyRelu" | "QLinearSoftmax" => {
            let op = match other.name {
                "QLinearSigmoid" => Op::Unary(Unary::Sigmoid),
                "QLinearLeakyRelu" => {
                    Op::Unary(Unary::LeakyRelu { alpha: a.float_or("alpha", 0.01).map_err(failed)? })
                }
                _ => Op::Softmax {
                    axis: a.int_or("axis", -1).map_err(failed)?,
                    log: false,
                    coerce_2d: a.int_or("opset", 13).map_err(failed)? < 13,
                },
            };
            let inputs = vec![operand(to, node, 0, 0)?];
            finish(to, node, op, inputs, 3)
        }
        "QLinearConcat" => {
            let axis = a.int("axis").map_err(failed)?.ok_or_else(|| refused(node, "has no axis"))?;
            let parts = (2..node.inputs.len()).step_by(3).map(|at| operand(to, node, at, 0));
            let inputs = parts.collect::<Result<Vec<_>, _>>()?;
            finish(to, node, Op::Concat { axis }, inputs, 0)
        }
        "DynamicQuantizeLinear" => {
            // Codes that stand for themselves: scale 1, zero at 0.
            let x = node.input(0).ok_or_else(|| refused(node, "has no operand"))?;
            to.saturated(&node.name, x, None, node.outputs[0]);
            for (&output, one) in
                node.outputs.iter().skip(1).zip([Tensor::scalar(1.0f32), Tensor::scalar(0u8)])
            {
                to.becomes_constant(output, one);
            }
            Ok(())
        }
        "MatMulInteger" | "ConvInteger" => {
            let op = match other.name {
                "MatMulInteger" => Op::MatMul,
                _ => Op::Conv {
                    sliding: Sliding::read(a).map_err(failed)?,
                    groups: groups(a).map_err(failed)?,
                },
            };
            let axis = if other.name == "MatMulInteger" { -1 } else { 0 };
            let inputs = vec![taken(to, node, 0)?, whole(to, node, 1, 3, axis)?];
            to.becomes_f32(node.outputs[0]);
            to.push(&node.name, op, inputs.into_iter().map(Some).collect(), node.outputs[0]);
            Ok(())
        }
        _ => Err(refused(node, "is not supported in a quantization job")),
    }
}

/// The operator, and what its codes would cut; the scale of the result is operand `at`, the zero point the next. Without
/// them the result is real in the model too.
fn finish(
    to: &mut Reference<'_>,
    node: &Node,
    op: Op,
    inputs: Vec<ValueId>,
    at: usize,
) -> Result<(), String> {
    let (inputs, result) = (inputs.into_iter().map(Some).collect(), node.outputs[0]);
    if node.input(at).is_none() {
        to.push(&node.name, op, inputs, result);
        return Ok(());
    }
    let dtype = to.source.value(result).dtype;
    let params = constant_params(to.source, node.input(at), node.input(at + 1), dtype);
    let made = to.fresh(&to.source.value(result).name.clone());
    to.push(&node.name, op, inputs, made);
    to.saturated(&format!("{}.range", node.name), made, params, result);
    Ok(())
}

/// The reals of operand `at`, whose scale and zero point are the two after it.
fn operand(to: &mut Reference<'_>, node: &Node, at: usize, axis: i64) -> Result<ValueId, String> {
    let id = node.input(at).ok_or_else(|| refused(node, "lacks an operand"))?;
    let (scale, zero_point) = (node.input(at + 1), node.input(at + 2));
    if to.is_taken(id) {
        return Ok(id);
    }
    if to.source.constant(id).is_some() {
        let tensor = reals_of(to.source, id, scale, zero_point, axis).map_err(|e| refused(node, &e))?;
        return Ok(to.constant(&to.source.value(id).name.clone(), tensor));
    }
    // Codes that come in from outside.
    let reals = to.fresh(&to.source.value(id).name.clone());
    to.push(&node.name, Op::DequantizeLinear { axis }, vec![Some(id), scale, zero_point], reals);
    Ok(reals)
}

/// An operand that is codes of the model's own making.
fn taken(to: &Reference<'_>, node: &Node, at: usize) -> Result<ValueId, String> {
    let id = node.input(at).filter(|&id| to.is_taken(id));
    id.ok_or_else(|| refused(node, "reads codes that the model does not make itself"))
}

/// Constant codes less their zero point, as reals.
fn whole(to: &mut Reference<'_>, node: &Node, at: usize, zero: usize, axis: i64) -> Result<ValueId, String> {
    let id = node.input(at).ok_or_else(|| refused(node, "lacks an operand"))?;
    let name = to.source.value(id).name.clone();
    let zeros = node.input(zero).and_then(|z| to.source.constant(z)).map_or(1, |z| z.len());
    let ones = match zeros {
        1 => Tensor::scalar(1.0f32),
        n => Tensor::from_slice(&[n], &vec![1.0f32; n]),
    };
    let scale = to.constant(&name, ones);
    let tensor = reals_of(&to.out, id, Some(scale), node.input(zero), axis).map_err(|e| refused(node, &e))?;
    Ok(to.constant(&name, tensor))
}

/// The bias of a product on codes, whose scale is that of the products: of `[activation, weights]` at operands 1 and 4.
fn bias(to: &mut Reference<'_>, node: &Node, at: usize, alpha: f32) -> Result<Option<ValueId>, String> {
    let Some(id) = node.input(at) else { return Ok(None) };
    let source = to.source;
    let constant = |index: Option<ValueId>| index.and_then(|id| source.constant(id));
    let reals = |index: usize| constant(node.input(index)).filter(|t| t.dtype() == DType::F32);
    let (Some(codes), Some(x), Some(w)) = (constant(Some(id)), reals(1), reals(4)) else {
        return Err(refused(node, "has a bias or scales that are not constant"));
    };
    let (x, w) = (x.slice::<f32>().first().copied().unwrap_or(1.0), w.slice::<f32>());
    let scale = |i: usize| if w.len() == 1 { w[0] } else { w.get(i).copied().unwrap_or(1.0) };
    let channels = codes.shape().last().copied().unwrap_or(1).max(1);
    let each = codes.to_i64().into_iter().enumerate();
    let each: Vec<f32> = each.map(|(i, c)| c as f32 * (alpha * x * scale(i % channels))).collect();
    let tensor = Tensor::from_slice(codes.shape(), &each);
    Ok(Some(to.constant(&to.source.value(id).name.clone(), tensor)))
}
