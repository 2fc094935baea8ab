//! What ONNX Runtime does to a graph before it fuses Q and DQ nodes with what is between them (1.32, its passes of
//! level 1 and those of level 2 that come first): bit by bit what decides a fusion, and nothing else.

use std::collections::HashMap;

use crate::engine::graph::op::{Binary, Op, Unary};
use crate::engine::graph::{Node, Value, ValueId};
use crate::engine::tensor::qparams::code_range;
use crate::engine::tensor::{DType, Tensor};

use super::net::{Net, Params};
use super::shapes::{Length, Shapes};

/// A graph as ONNX Runtime has it when it looks for what to fuse.
pub(super) struct Prepared {
    pub(super) net: Net,
    /// Sums that became part of a Gemm, by node of the file, and that Gemm.
    pub(super) added: HashMap<usize, usize>,
    /// Clamps that the quantizer behind them does, by node of the file.
    pub(super) clamps: Vec<usize>,
}

/// Runs the passes. `shapes` are those of the file.
pub(super) fn prepare(net: Net, shapes: &Shapes) -> Prepared {
    let mut prepared = Prepared { net, added: HashMap::new(), clamps: Vec::new() };
    drop_identities(&mut prepared.net);
    make_dequantizers_unique(&mut prepared.net);
    drop_double_pairs(&mut prepared.net);
    prepared.make_gemms(shapes);
    quantizers_backward(&mut prepared.net);
    dequantizers_forward(&mut prepared.net);
    quantize_weights_and_biases(&mut prepared.net);
    make_dequantizers_unique(&mut prepared.net);
    prepared.drop_clamps();
    signed_to_unsigned(&mut prepared.net);
    prepared
}

fn drop_identities(net: &mut Net) {
    for n in net.nodes() {
        let (Op::Identity, Some(from)) = (&net.node(n).op, net.node(n).input(0)) else { continue };
        let to = net.node(n).outputs[0];
        if net.is_output(to) {
            continue;
        }
        for (reader, operand) in net.readers(to).to_vec() {
            net.set_input(reader, operand, from);
        }
        net.remove(n);
    }
}

/// One DequantizeLinear for each reader.
fn make_dequantizers_unique(net: &mut Net) {
    for n in net.nodes() {
        if !net.is_dequantizer(n) {
            continue;
        }
        let reals = net.node(n).outputs[0];
        let keep = usize::from(!net.is_output(reals));
        for (reader, operand) in net.readers(reals).to_vec().into_iter().skip(keep) {
            let copy = net.add_value(Value { dtype: Some(DType::F32), ..Value::default() });
            let node = net.node(n);
            let twin = Node::new(node.name.clone(), node.op.clone(), node.inputs.clone(), vec![copy]);
            net.add_node(twin, None);
            net.set_input(reader, operand, copy);
        }
    }
}

/// Q → DQ → Q → DQ becomes the outer two, over the range that both have.
fn drop_double_pairs(net: &mut Net) {
    for inner in net.nodes() {
        if !net.is_alive(inner) || !net.is_dequantizer(inner) {
            continue;
        }
        let codes = net.node(inner).input(0);
        let first = codes.and_then(|c| net.maker(c)).filter(|&n| net.is_quantizer(n));
        let alone = |value: ValueId| net.only_reader(value).map(|r| r.0);
        let second = alone(net.node(inner).outputs[0]).filter(|&n| net.is_quantizer(n));
        let (Some(first), Some(second)) = (first, second) else { continue };
        let last = alone(net.node(second).outputs[0]).filter(|&n| net.is_dequantizer(n));
        let (Some(last), Some(_)) = (last, alone(net.node(first).outputs[0])) else { continue };
        let params = |n: usize| net.params(n).filter(|p| p.is_scalar() && p.has_zero);
        let (Some(a), Some(b), Some(c), Some(d)) =
            (params(first), params(inner), params(second), params(last))
        else {
            continue;
        };
        let eight = matches!(a.dtype, DType::U8 | DType::I8);
        if !a.same_as(&b) || !c.same_as(&d) || a.dtype != c.dtype || !eight {
            continue;
        }
        if !a.same_as(&c) {
            let (scale, zero) = narrower(&a, &c);
            for n in [first, last] {
                let scale = net.add_value(constant(Tensor::scalar(scale)));
                let zero = net.add_value(constant(code(zero, a.dtype)));
                net.set_input(n, 1, scale);
                net.set_input(n, 2, zero);
            }
        }
        let codes = net.node(first).outputs[0];
        net.remove(inner);
        net.remove(second);
        net.set_input(last, 0, codes);
    }
}

/// Scale and zero point over the reals that both have.
fn narrower(a: &Params, b: &Params) -> (f32, i64) {
    let (lo, hi) = code_range(a.dtype);
    let real = |p: &Params, q: i64| (q - p.zero()) as f32 * p.scale[0];
    let (least, most) = (real(a, lo).max(real(b, lo)), real(a, hi).min(real(b, hi)));
    let scale = (most - least) / (hi - lo) as f32;
    (scale, (lo as f32 - least / scale).round() as i64)
}

fn code(zero: i64, dtype: DType) -> Tensor {
    match dtype {
        DType::I8 => Tensor::scalar(zero.clamp(-128, 127) as i8),
        _ => Tensor::scalar(zero.clamp(0, 255) as u8),
    }
}

fn constant(tensor: Tensor) -> Value {
    Value { dtype: Some(tensor.dtype()), constant: Some(std::sync::Arc::new(tensor)), ..Value::default() }
}

impl Prepared {
    /// A product by a matrix and the sum behind it become one Gemm, where the shapes are known.
    fn make_gemms(&mut self, shapes: &Shapes) {
        let net = &mut self.net;
        for n in net.nodes() {
            let (Op::MatMul, [Some(a), Some(b)]) = (&net.node(n).op, &net.node(n).inputs[..]) else {
                continue;
            };
            let (a, b, product) = (*a, *b, net.node(n).outputs[0]);
            let Some((add, at)) = net.only_reader(product) else { continue };
            let Op::Binary(Binary::Add) = net.node(add).op else { continue };
            let Some(bias) = net.node(add).input(1 - at) else { continue };
            let (Some(of_a), Some(of_b), Some(of_bias)) =
                (shapes.of(net, a), shapes.of(net, b), shapes.of(net, bias))
            else {
                continue;
            };
            if of_b.len() != 2 || of_a.is_empty() {
                continue;
            }
            let known = |l: &Length| matches!(l, Length::Known(_));
            let flat = of_a.len() == 2;
            if !(flat || of_a.iter().all(known) && of_b.iter().all(known)) {
                continue;
            }
            let columns = &of_b[1];
            let fits = match &of_bias[..] {
                [n] => n == columns,
                [Length::Known(1), n] => flat && n == columns,
                [m, n] => flat && *m == of_a[0] && (n == columns || *n == Length::Known(1)),
                _ => false,
            };
            if !fits {
                continue;
            }
            let (name, origin, sum) = (net.name(n).to_owned(), net.origin[n], net.node(add).outputs[0]);
            let of_add = net.origin[add];
            net.remove(n);
            net.remove(add);
            let (mut x, mut y) = (a, sum);
            if !flat {
                let real = || Value { dtype: Some(DType::F32), ..Value::default() };
                (x, y) = (net.add_value(real()), net.add_value(real()));
                let shape = net.add_value(constant(Tensor::from_slice(&[1], &[0i64])));
                for (from, to) in [(a, x), (y, sum)] {
                    let op = Op::Reshape { allow_zero: false };
                    net.add_node(Node::new(name.clone(), op, vec![Some(from), Some(shape)], vec![to]), None);
                }
            }
            let op = Op::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false };
            let gemm = net.add_node(Node::new(name, op, vec![Some(x), Some(b), Some(bias)], vec![y]), origin);
            self.added.extend(of_add.map(|add| (add, gemm)));
        }
    }

    /// Clamps that the quantizer behind them would do as well go.
    fn drop_clamps(&mut self) {
        let net = &mut self.net;
        for n in net.nodes() {
            if !net.node(n).op.is_clamp() {
                continue;
            }
            let Some((q, 0)) = net.only_reader(net.node(n).outputs[0]) else { continue };
            let Some(from) = net.node(n).input(0) else { continue };
            if !net.is_quantizer(q) || !clamp_is_redundant(net, n, q) {
                continue;
            }
            net.set_input(q, 0, from);
            self.clamps.extend(net.origin[n]);
            net.remove(n);
        }
    }
}

/// Whether a Relu or Clip changes no code of the quantizer behind it.
pub(super) fn clamp_is_redundant(net: &Net, clamp: usize, quantizer: usize) -> bool {
    let Some(params) = net.params(quantizer).filter(|p| p.scale.len() == 1) else { return false };
    let (lowest, highest) = code_range(params.dtype);
    let node = net.node(clamp);
    if let Op::Unary(Unary::Relu) = node.op {
        return params.zero() == lowest;
    }
    let bound = |at: usize, open: f64| match node.input(at) {
        None => Some(open),
        some => net.constant(some).and_then(|t| t.to_f64().first().copied()),
    };
    let (Some(least), Some(most)) = (bound(1, f64::MIN), bound(2, f64::MAX)) else { return false };
    let code =
        |x: f64| (x / f64::from(params.scale[0])).round_ties_even().clamp(-1e9, 1e9) as i64 + params.zero();
    code(least) <= lowest && code(most) >= highest
}

/// Whether Q and DQ nodes move across a node.
fn passes_on(net: &Net, n: usize) -> bool {
    match net.node(n).op {
        Op::MaxPool { .. } => net.graph.opset >= 12,
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Squeeze | Op::Unsqueeze | Op::Slice => true,
        _ => false,
    }
}

fn movable(net: &Net, n: usize) -> bool {
    net.params(n).is_some_and(|p| p.is_scalar())
}

/// A pair with the parameters of node `like` between a value and some of its readers; gives the Q node.
fn insert_pair(net: &mut Net, value: ValueId, readers: &[(usize, usize)], like: usize) -> usize {
    let quantized = net.add_value(Value::default());
    let params = |net: &Net, first: ValueId| {
        let mut inputs = net.node(like).inputs.clone();
        inputs[0] = Some(first);
        inputs
    };
    let inputs = params(net, value);
    let node = Node::new(String::new(), Op::QuantizeLinear { axis: 1 }, inputs, vec![quantized]);
    let quantizer = net.add_node(node, None);
    for &(reader, operand) in readers {
        let back = net.add_value(Value { dtype: Some(DType::F32), ..Value::default() });
        let inputs = params(net, quantized);
        net.add_node(Node::new(String::new(), Op::DequantizeLinear { axis: 1 }, inputs, vec![back]), None);
        net.set_input(reader, operand, back);
    }
    quantizer
}

/// The same where the value is an output of the graph.
fn insert_pair_at_output(net: &mut Net, output: ValueId, maker: usize, like: usize) {
    let [before, quantized] = [(); 2].map(|()| net.add_value(Value::default()));
    net.set_output(maker, 0, before);
    for (op, from, to) in [
        (Op::QuantizeLinear { axis: 1 }, before, quantized),
        (Op::DequantizeLinear { axis: 1 }, quantized, output),
    ] {
        let mut inputs = net.node(like).inputs.clone();
        inputs[0] = Some(from);
        net.add_node(Node::new(String::new(), op, inputs, vec![to]), None);
    }
}

fn quantizers_backward(net: &mut Net) {
    for q in net.nodes() {
        if !net.is_quantizer(q) || !movable(net, q) {
            continue;
        }
        let Some(mut value) = net.node(q).input(0) else { continue };
        let mut reader = (q, 0);
        loop {
            // The value has one reader, and what makes it passes codes on.
            let single = net.maker(value).is_some() && net.only_reader(value) == Some(reader);
            let Some(maker) = net.maker(value).filter(|&m| single && passes_on(net, m)) else { break };
            let Some(source) = net.node(maker).input(0) else { break };
            let from = net.maker(source);
            if from.is_some() && net.only_reader(source) != Some((maker, 0)) {
                break;
            }
            if from.is_some_and(|m| net.is_dequantizer(m)) {
                break;
            }
            let new = insert_pair(net, source, &[(maker, 0)], q);
            (value, reader) = (source, (new, 0));
        }
    }
}

fn dequantizers_forward(net: &mut Net) {
    for dq in net.nodes() {
        if !net.is_alive(dq) || !net.is_dequantizer(dq) || !movable(net, dq) {
            continue;
        }
        let Some(reader) = net.only_reader(net.node(dq).outputs[0]) else { continue };
        let mut groups = vec![reader.0];
        while let Some(n) = groups.pop() {
            if !passes_on(net, n) {
                continue;
            }
            let result = net.node(n).outputs[0];
            let readers: Vec<_> = net.readers(result).to_vec();
            if readers.is_empty() && net.is_output(result) {
                insert_pair_at_output(net, result, n, dq);
            } else if !net.is_output(result) {
                let wanted: Vec<_> = readers.into_iter().filter(|r| !net.is_quantizer(r.0)).collect();
                if !wanted.is_empty() {
                    insert_pair(net, result, &wanted, dq);
                    groups.extend(wanted.iter().map(|r| r.0));
                }
            }
        }
    }
}

/// Whether one reader after another leads to a quantizer, through clamps.
fn leads_to_quantizer(net: &Net, n: usize) -> bool {
    let mut n = n;
    loop {
        let &[(reader, _)] = net.readers(net.node(n).outputs[0]) else { return false };
        match net.node(reader).op {
            Op::QuantizeLinear { .. } => return true,
            Op::Unary(Unary::Relu) | Op::Clip => n = reader,
            _ => return false,
        }
    }
}

/// Weights and biases in float get codes where all else has them.
fn quantize_weights_and_biases(net: &mut Net) {
    for n in net.nodes() {
        let axis = match &net.node(n).op {
            Op::Conv { .. } => 0,
            Op::Gemm { trans_b, .. } => i64::from(!trans_b),
            Op::Other(o) if o.name == "ConvTranspose" => 0,
            _ => continue,
        };
        let x = net.dequantizer(n, 0).and_then(|dq| net.params(dq));
        if !x.is_some_and(|p| p.is_scalar()) || !leads_to_quantizer(net, n) {
            continue;
        }
        let (w, bias) = (net.dequantizer(n, 1), net.node(n).input(2));
        let list = bias.map(|b| net.constant(Some(b)).filter(|t| t.shape().len() == 1).map(|t| t.len()));
        let bias_length = match list {
            Some(None) => continue,
            Some(Some(length)) => Some(length),
            None => None,
        };
        match w {
            Some(_) if bias_length.is_none() => continue,
            Some(dq) => {
                let Some(params) = net.params(dq) else { continue };
                let rank = net.constant(net.node(dq).input(0)).map_or(2, |t| t.shape().len() as i64);
                let own = if params.axis < 0 { params.axis + rank } else { params.axis };
                if !params.is_scalar() && (bias_length != Some(params.scale.len()) || own != axis) {
                    continue;
                }
            }
            None => {
                let Some(weights) = net.node(n).input(1) else { continue };
                if net.constant(Some(weights)).is_none_or(|t| t.dtype() != DType::F32) {
                    continue;
                }
                let codes = net.add_value(constant(Tensor::scalar(0i8)));
                dequantized(net, n, 1, codes);
            }
        }
        if bias.is_some() {
            let codes = net.add_value(constant(Tensor::scalar(0i32)));
            dequantized(net, n, 2, codes);
        }
    }
}

/// Lets an operand be codes, made real. Of the codes only the type counts here.
fn dequantized(net: &mut Net, n: usize, operand: usize, codes: ValueId) {
    let scale = net.add_value(constant(Tensor::scalar(1.0f32)));
    let back = net.add_value(Value { dtype: Some(DType::F32), ..Value::default() });
    let op = Op::DequantizeLinear { axis: 1 };
    net.add_node(Node::new(String::new(), op, vec![Some(codes), Some(scale)], vec![back]), None);
    net.set_input(n, operand, back);
}

/// Signed codes that one DequantizeLinear reads become unsigned: x86 has no fast product of two signed bytes.
fn signed_to_unsigned(net: &mut Net) {
    for q in net.nodes() {
        if !net.is_quantizer(q) {
            continue;
        }
        let Some((dq, 0)) = net.only_reader(net.node(q).outputs[0]) else { continue };
        if !net.is_dequantizer(dq) {
            continue;
        }
        let (Some(a), Some(b)) = (net.params(q), net.params(dq)) else { continue };
        let signed = |p: &Params| p.dtype == DType::I8 && p.zeros.len() == 1;
        if !signed(&a) || !signed(&b) || a.zero() != b.zero() {
            continue;
        }
        let zero = net.add_value(constant(Tensor::scalar((a.zero() + 128) as u8)));
        net.set_input(q, 2, zero);
        net.set_input(dq, 2, zero);
    }
}
