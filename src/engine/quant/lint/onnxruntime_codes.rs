//! What ONNX Runtime does with operators that are on codes in the file itself: which it has kernels for, and which of
//! those whose ranges the run tells become one operator.

use std::collections::HashMap;

use crate::engine::graph::op::{Binary, Op};
use crate::engine::tensor::DType;

use super::net::Net;
use super::{Judged, Verdict};

/// Judges an operator on codes.
pub(super) fn operator(net: &Net, n: usize) -> Judged {
    let node = net.node(n);
    let name = node.op.name();
    let dtype = |at: usize| {
        let id = node.input(at)?;
        net.graph.constant(id).map(|t| t.dtype()).or(net.graph.value(id).dtype)
    };
    // The zero point of the activations has the type of their codes.
    let (x, w) = match name {
        "QLinearConv" | "QLinearMatMul" | "QGemm" => (dtype(2).or(dtype(0)), dtype(3)),
        "ConvInteger" | "MatMulInteger" => (dtype(2).or(dtype(0)), dtype(1)),
        _ => (None, None),
    };
    // ConvInteger takes int8 and uint8 on both sides (tried on 1.32, CPUExecutionProvider), but where it runs it checks
    // for one zero point: "Non per-tensor quantization is not supported now" (conv_integer.cc).
    let zeros = |at: usize| net.constant(node.input(at)).map_or(1, |zeros| zeros.len());
    match name {
        "ConvInteger" if zeros(3) > 1 => Judged::refused(
            "weights_per_axis",
            "ONNX Runtime's ConvInteger takes one zero point for all weights",
            "give the weights one zero point, or write a static QDQ file",
        ),
        "QLinearConv" | "QLinearMatMul" | "QGemm" if x == Some(DType::I8) && w == Some(DType::U8) => {
            Judged::refused(
                "no_kernel",
                format!("ONNX Runtime has no {name} of int8 activations and uint8 weights"),
                "use int8 weights",
            )
        }
        name => Judged::fuses(name),
    }
}

/// Nodes of products whose ranges the run tells, judged.
pub(super) struct Dynamic(HashMap<usize, Judged>);

impl Dynamic {
    /// Finds MatMulInteger → Cast → Mul by the product of both scales [→ Add of a bias].
    pub(super) fn of(net: &Net) -> Dynamic {
        let mut found: HashMap<usize, Judged> = HashMap::new();
        for product in net.nodes() {
            if net.node(product).op.name() == "MatMulInteger"
                && let Some(parts) = parts(net, product)
            {
                let quantizer = dynamic_quantizer(net, product);
                let alone = quantizer.is_some_and(|q| {
                    let edges: usize = net.node(q).outputs.iter().map(|&o| net.readers(o).len()).sum();
                    edges == 3 && net.constant(net.node(product).input(1)).is_some()
                });
                let becomes = if alone { "DynamicQuantizeMatMul" } else { "MatMulIntegerToFloat" };
                found.insert(product, Judged::fuses(becomes));
                let part = || Judged::absorbed(format!("part of `{}`", net.name(product)));
                found.extend(parts.into_iter().map(|n| (n, part())));
                found.extend(quantizer.filter(|_| alone).map(|q| (q, part())));
            }
        }
        for n in net.nodes() {
            if net.node(n).op.name() == "DynamicQuantizeLinear" {
                found.entry(n).or_insert_with(|| Judged::fuses("DynamicQuantizeLinear"));
            }
        }
        debug_assert!(found.values().all(|j| j.verdict == Verdict::Fuses));
        Dynamic(found)
    }

    pub(super) fn judged(&self, n: usize) -> Option<Judged> {
        self.0.get(&n).cloned()
    }
}

fn dynamic_quantizer(net: &Net, product: usize) -> Option<usize> {
    let maker = net.maker(net.node(product).input(0)?)?;
    (net.node(maker).op.name() == "DynamicQuantizeLinear").then_some(maker)
}

fn parts(net: &Net, product: usize) -> Option<Vec<usize>> {
    let alone = |n: usize| net.only_reader(net.node(n).outputs[0]);
    let (cast, _) = alone(product)?;
    let Op::Cast { .. } = net.node(cast).op else { return None };
    let (scaled, at) = alone(cast)?;
    let Op::Binary(Binary::Mul) = net.node(scaled).op else { return None };
    let scale = net.maker(net.node(scaled).input(1 - at)?)?;
    let Op::Binary(Binary::Mul) = net.node(scale).op else { return None };
    alone(scale)?;
    let mut parts = vec![cast, scaled, scale];
    if let Some((add, 0)) = alone(scaled)
        && let Op::Binary(Binary::Add) = net.node(add).op
        && let Some(bias) = net.constant(net.node(add).input(1))
        && let Some((&last, rest)) = bias.shape().split_last()
        && last > 1
        && rest.iter().all(|&d| d == 1)
    {
        parts.push(add);
    }
    Some(parts)
}
