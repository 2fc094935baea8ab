//! Operators that are on codes in the file itself (ONNX's QLinear and Integer ones, and those of com.microsoft) to the
//! integer steps that QDQ graphs become as well. What has parameters that are computed, or a form that no kernel has,
//! stays the operator that it is.

use crate::engine::graph::op::{Binary, Op, Sliding, groups};
use crate::engine::graph::operator::Other;
use crate::engine::graph::{Node, Value, ValueId};
use crate::engine::tensor::qparams::QuantParams;
use crate::engine::tensor::{DType, Tensor};

use super::lowering::{Codes, FULL, Lowering, Target, Weight};
use super::others;

/// The integer form of an operator on codes.
pub(super) fn operator_form(pass: &mut Lowering, node: &Node, other: &Other) -> Option<Node> {
    let a = &other.attributes;
    match other.name {
        "QLinearConv" => conv(pass, node, other),
        "QLinearMatMul" => matmul(pass, node),
        "QGemm" => gemm(pass, node, other),
        "MatMulInteger" | "ConvInteger" => integer_product(pass, node, other),
        "MatMulIntegerToFloat" => product_to_float(pass, node),
        "QLinearAdd" | "QLinearMul" => {
            let op = if other.name == "QLinearAdd" { Binary::Add } else { Binary::Mul };
            let (a, b, target) = (codes(pass, node, 0)?, codes(pass, node, 3)?, result(pass, node, 6)?);
            Some(pass.binary_of(node, op, &a, &b, target))
        }
        "QLinearAveragePool" => {
            let count_include_pad = a.flag("count_include_pad", false).ok()?;
            let sliding = Sliding::read(a).ok().filter(|s| s.averages_codes(count_include_pad))?;
            let (x, target) = (codes(pass, node, 0)?, result(pass, node, 3)?);
            Some(pass.one_to_one(node, &x, target, Op::QAveragePool { sliding, count_include_pad }))
        }
        "QLinearGlobalAveragePool" => {
            let (x, target) = (codes(pass, node, 0)?, result(pass, node, 3)?);
            Some(pass.one_to_one(node, &x, target, Op::QGlobalAveragePool))
        }
        "QLinearSigmoid" | "QLinearLeakyRelu" => table(pass, node, other),
        "QLinearConcat" => {
            let parts: Option<Vec<Codes>> =
                (2..node.inputs.len()).step_by(3).map(|i| codes(pass, node, i)).collect();
            let (parts, target) = (parts?, result(pass, node, 0)?);
            let axis = a.int("axis").ok()??;
            Some(pass.concat_of(node, axis, &parts, target))
        }
        _ => None,
    }
}

/// The codes at operand `at`, their scale and zero point being the two after it.
fn codes(pass: &Lowering, node: &Node, at: usize) -> Option<Codes> {
    let id = node.input(at)?;
    let params =
        pass.constant_params(node.input(at + 1), node.input(at + 2), 0, usize::MAX >> 1, pass.type_of(id))?;
    pass.codes_with(id, params)
}

/// The codes that the node gives, scale and zero point being operands `at` and the next.
fn result(pass: &Lowering, node: &Node, at: usize) -> Option<Target> {
    let id = node.outputs[0];
    // Without a zero point codes are of the type of the operand.
    let dtype = pass.type_of(id).or(node.input(0).and_then(|x| pass.type_of(x)));
    let params = pass.constant_params(node.input(at), node.input(at + 1), 0, usize::MAX >> 1, dtype)?;
    Some(Target { codes: pass.codes_with(id, params)?, clamp: FULL, absorbs: Vec::new(), real: id })
}

/// Constant weights at operand `at`, scales and zero points being the two after it, along `axis`.
fn weight(pass: &mut Lowering, node: &Node, at: usize, axis: i64) -> Option<Weight> {
    let id = node.input(at)?;
    let (rank, dtype) = (pass.graph.constant(id)?.shape().len(), pass.type_of(id));
    let params = pass.constant_params(node.input(at + 1), node.input(at + 2), axis, rank, dtype)?;
    pass.constant_weight(id, params)
}

fn conv(pass: &mut Lowering, node: &Node, other: &Other) -> Option<Node> {
    let (sliding, groups) = (Sliding::read(&other.attributes).ok()?, groups(&other.attributes).ok()?);
    let (x, target) = (codes(pass, node, 0)?, result(pass, node, 6)?);
    let weight = weight(pass, node, 3, 0).filter(|w| (3..=4).contains(&w.tensor.shape().len()))?;
    let bias = constant_bias(pass, node.input(8), weight.tensor.shape()[0])?;
    Some(pass.weighted(node, &x, &weight, bias, Some(target), |clamp| Op::QConv { sliding, groups, clamp }))
}

/// The bias, where there is one; `None` where it is no list of constant sums.
fn constant_bias(pass: &Lowering, id: Option<ValueId>, channels: usize) -> Option<Option<ValueId>> {
    let Some(id) = id else { return Some(None) };
    let tensor = pass.graph.constant(id)?;
    let list = tensor.shape() == [channels] || tensor.shape() == [1, channels];
    (tensor.dtype() == DType::I32 && list).then_some(Some(id))
}

fn matmul(pass: &mut Lowering, node: &Node) -> Option<Node> {
    let (x, target) = (codes(pass, node, 0)?, result(pass, node, 6)?);
    match weight(pass, node, 3, 1).filter(|w| w.tensor.shape().len() == 2) {
        Some(weight) => {
            let op = |clamp| Op::QMatMul { trans_b: false, clamp };
            Some(pass.weighted(node, &x, &weight, None, Some(target), op))
        }
        None => {
            let b = codes(pass, node, 3)?;
            Some(pass.product_of(node, &x, &b, Some(target)))
        }
    }
}

fn gemm(pass: &mut Lowering, node: &Node, other: &Other) -> Option<Node> {
    let a = &other.attributes;
    let trans_b = a.flag("transB", false).ok()?;
    if a.float_or("alpha", 1.0) != Ok(1.0) || a.flag("transA", false) != Ok(false) {
        return None;
    }
    let x = codes(pass, node, 0)?;
    let target = match node.input(7) {
        Some(_) => Some(result(pass, node, 7)?),
        None => None,
    };
    let axis = if trans_b { 0 } else { 1 };
    let weight = weight(pass, node, 3, axis).filter(|w| w.tensor.shape().len() == 2)?;
    let bias = constant_bias(pass, node.input(6), weight.tensor.shape()[axis as usize])?;
    Some(pass.weighted(node, &x, &weight, bias, target, |clamp| Op::QMatMul { trans_b, clamp }))
}

/// Left operand, zero point and weights of a product whose activations' range only the run tells.
struct Integers {
    x: ValueId,
    x_zero_point: Option<ValueId>,
    weight: ValueId,
}

fn integers(pass: &mut Lowering, node: &Node, zero_points: [usize; 2], axis: usize) -> Option<Integers> {
    let (x, w) = (node.input(0)?, node.input(1)?);
    let (x_zero, w_zero) = (node.input(zero_points[0]), node.input(zero_points[1]));
    let dynamic = |id: ValueId, output: usize| {
        let producer = pass.producers.get(&id).map(|&n| &pass.graph.nodes[n]);
        producer.is_some_and(|n| {
            matches!(&n.op, Op::Other(o) if o.name == "DynamicQuantizeLinear")
                && n.outputs.get(output) == Some(&id)
        })
    };
    let constant = x_zero.and_then(|id| pass.graph.constant(id)).cloned();
    let dtype = match (&constant, x_zero) {
        (Some(zero_point), _) if zero_point.len() == 1 => zero_point.dtype(),
        (None, Some(id)) if dynamic(id, 2) => DType::U8,
        (None, None) if dynamic(x, 0) => DType::U8,
        (None, None) => pass.type_of(x)?,
        _ => return None,
    };
    let tensor = pass.graph.constant(w)?.clone();
    let channels = *tensor.shape().get(axis)?;
    let w_zero = match w_zero {
        None => vec![0; channels],
        Some(id) => pass.graph.constant(id)?.to_i64().into_iter().map(|z| z as i32).collect(),
    };
    let zero_point = match w_zero.len() {
        1 => vec![w_zero[0]; channels],
        n if n == channels => w_zero,
        _ => return None,
    };
    let params =
        QuantParams { scale: vec![1.0; channels], zero_point, axis: Some(axis), dtype: tensor.dtype() };
    let weight = pass.constant_weight(w, params)?;
    let (x, x_zero_point) = match dtype {
        DType::U8 => (x, x_zero),
        DType::I8 => {
            let zero_point = constant.map_or(0, |z| z.slice::<i8>()[0]);
            let params = QuantParams::per_tensor(1.0, zero_point.into(), DType::I8);
            let codes = pass.codes_with(x, params)?;
            let shifted = Tensor::scalar(codes.params.zero_point[0] as u8);
            let id = pass.hidden_constant(&format!("{}.zero_point", node.name), shifted);
            (pass.bare_operand(&codes), Some(id))
        }
        _ => return None,
    };
    Some(Integers { x, x_zero_point, weight: pass.weight_operand(&weight) })
}

/// MatMulInteger and ConvInteger with constant weights.
fn integer_product(pass: &mut Lowering, node: &Node, other: &Other) -> Option<Node> {
    let weight_rank = pass.graph.constant(node.input(1)?)?.shape().len();
    let (op, axis) = match other.name {
        "MatMulInteger" if weight_rank == 2 => (Op::MatMulInteger, 1),
        "ConvInteger" if (3..=4).contains(&weight_rank) => {
            let a = &other.attributes;
            (Op::ConvInteger { sliding: Sliding::read(a).ok()?, groups: groups(a).ok()? }, 0)
        }
        _ => return None,
    };
    let Integers { x, x_zero_point, weight } = integers(pass, node, [2, 3], axis)?;
    Some(Node::new(node.name.clone(), op, vec![Some(x), Some(weight), x_zero_point], node.outputs.clone()))
}

/// A MatMulInteger of a graph that was never a file.
pub(super) fn integer_matmul(pass: &mut Lowering, node: &Node) -> Option<Node> {
    let rank = pass.graph.constant(node.input(1)?)?.shape().len();
    let Integers { x, x_zero_point, weight } = integers(pass, node, [2, 3], 1).filter(|_| rank == 2)?;
    let inputs = vec![Some(x), Some(weight), x_zero_point];
    Some(Node::new(node.name.clone(), Op::MatMulInteger, inputs, node.outputs.clone()))
}

/// MatMulIntegerToFloat: the product of the two scales is a node of its own, and so is the bias.
fn product_to_float(pass: &mut Lowering, node: &Node) -> Option<Node> {
    let weights = pass.graph.constant(node.input(1)?)?;
    let channels = *weights.shape().get(1).filter(|_| weights.shape().len() == 2)?;
    let (a_scale, b_scale) = (node.input(2)?, node.input(3)?);
    let one = |id: ValueId| pass.graph.constant(id).map(|t| t.dtype() == DType::F32 && t.len() == 1);
    let b_list = pass.graph.constant(b_scale)?;
    let b_fits =
        b_list.dtype() == DType::F32 && [1, channels].contains(&b_list.len()) && b_list.shape().len() <= 1;
    let a_fits = one(a_scale).unwrap_or_else(|| {
        let producer = pass.producers.get(&a_scale).map(|&n| &pass.graph.nodes[n].op);
        matches!(producer, Some(Op::Other(o)) if o.name == "DynamicQuantizeLinear")
    });
    if !a_fits || !b_fits {
        return None;
    }
    let Integers { x, x_zero_point, weight } = integers(pass, node, [4, 5], 1)?;
    let value = |pass: &mut Lowering, what: &str| {
        let name = pass.graph.unused_name(&format!("{}.{what}", node.name));
        pass.graph.add_value(Value { name, dtype: Some(DType::F32), ..Value::default() })
    };
    let scale = value(pass, "scale");
    let multiply = Node::new(
        format!("{}.scale", node.name),
        Op::Binary(Binary::Mul),
        vec![Some(a_scale), Some(b_scale)],
        vec![scale],
    );
    pass.add_before_current(multiply);
    let inputs = vec![Some(x), Some(weight), x_zero_point, Some(scale)];
    let Some(bias) = node.input(6) else {
        return Some(Node::new(node.name.clone(), Op::MatMulInteger, inputs, node.outputs.clone()));
    };
    let product = value(pass, "product");
    pass.add_before_current(Node::new(node.name.clone(), Op::MatMulInteger, inputs, vec![product]));
    let operands = vec![Some(product), Some(bias)];
    Some(Node::new(format!("{}.bias", node.name), Op::Binary(Binary::Add), operands, node.outputs.clone()))
}

/// A function of one code: the operator run over all of them.
fn table(pass: &mut Lowering, node: &Node, other: &Other) -> Option<Node> {
    let (x, target) = (codes(pass, node, 0)?, result(pass, node, 3)?);
    // The table is over `u8`, in their order.
    let shift = if x.signed { 0x80 } else { 0 };
    let all: Vec<u8> = (0..=255u8).map(|q| q ^ shift).collect();
    let dtype = if x.signed { DType::I8 } else { DType::U8 };
    let codes = Tensor::from_slice(&[256], &all).retyped(dtype);
    let mut inputs: Vec<Option<&Tensor>> =
        node.inputs.iter().map(|id| id.and_then(|id| pass.graph.constant(id)).map(|t| &**t)).collect();
    inputs[0] = Some(&codes);
    let made = others::run(other, &inputs, None).ok()?.pop()?;
    let back = if made.dtype() == DType::I8 { 0x80 } else { 0 };
    let bytes = made.view().bytes;
    let table: Box<[u8; 256]> = Box::new(std::array::from_fn(|q| bytes[q] ^ back));
    Some(pass.one_to_one(node, &x, target, Op::QTable { table }))
}
