//! What this program makes of a file: its executor says what it computes on codes, the rules here only say why not.

use std::collections::HashMap;

use crate::engine::exec::integers::{Form, forms};
use crate::engine::graph::Graph;
use crate::engine::graph::op::{Binary, Op};
use crate::engine::tensor::DType;

use super::net::{Net, is_reshape};
use super::{Finding, Judged};
use crate::engine::quant::nature::moves_data;

/// Judges every node that computes.
pub(super) fn findings(graph: &Graph) -> Vec<Finding> {
    let net = Net::new(graph);
    let run = forms(graph.clone());
    let by_name: HashMap<&str, &Form> = run.iter().map(|form| (form.node.as_str(), form)).collect();
    let mut findings = Vec::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        let form = by_name.get(node.name.as_str()).copied();
        let table = net.is_quantizer(n) && form.is_some_and(|form| form.op == "QTable");
        if !table && !net.is_of_interest(n) {
            continue;
        }
        let judged = match form {
            Some(form) if form.on_codes => Judged::fuses(form.op),
            None if net.touches_codes(n) || near_codes(&net, n) => {
                Judged::absorbed("its neighbour takes it over, or a table of codes does")
            }
            _ => why(&net, n),
        };
        findings.push(judged.of(&node.name, node.op.name()));
    }
    findings
}

/// Whether a node that is gone stood between codes, with others.
fn near_codes(net: &Net, n: usize) -> bool {
    let node = net.node(n);
    let makers = node.inputs.iter().flatten().filter_map(|&id| net.maker(id));
    let readers = node.outputs.iter().flat_map(|&id| net.readers(id)).map(|r| r.0);
    makers.chain(readers).any(|other| net.touches_codes(other))
}

fn why(net: &Net, n: usize) -> Judged {
    let node = net.node(n);
    if !net.touches_codes(n) {
        return Judged::float("not_quantized", "nothing around it is quantized", "");
    }
    let before: Vec<usize> = (0..node.inputs.len()).filter_map(|i| net.dequantizer(n, i)).collect();
    let behind: Vec<usize> = node.outputs.iter().flat_map(|&o| net.quantizers(o)).collect();
    let all = || before.iter().chain(&behind);
    if all().any(|&q| matches!(net.codes_of(q), DType::I16 | DType::U16)) {
        return Judged::float("sixteen_bit", "its codes have 16 bits; the kernels compute with 8", "");
    }
    if all().any(|&q| net.params(q).is_none()) {
        let text = "scale or zero point beside it are not constants";
        return Judged::float("parameters", text, "write scales and zero points as constants");
    }
    let weighted = matches!(node.op, Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul);
    let scalar = |q: usize| net.params(q).is_some_and(|p| p.is_scalar());
    if weighted {
        let Some(x) = net.dequantizer(n, 0) else {
            let text = "its activations are not dequantized from codes";
            return Judged::float("operand_is_real", text, "quantize its first operand");
        };
        if !scalar(x) {
            let text = "its activations have a scale for each channel";
            return Judged::float("activation_per_axis", text, "use one scale for the tensor");
        }
        if net.dequantizer(n, 1).is_none() {
            return Judged::float(
                "operand_is_real",
                "its weights are not dequantized from codes",
                "quantize them",
            );
        }
        let text = "its weights, their scales or its bias have a form that no integer kernel takes";
        return Judged::float(
            "form",
            text,
            "quantize weights by tensor or by output channel, with a constant bias",
        );
    }
    let integer = is_reshape(&node.op)
        || moves_data(&node.op)
        || matches!(
            node.op,
            Op::Binary(Binary::Add | Binary::Mul)
                | Op::MaxPool { .. }
                | Op::AveragePool { .. }
                | Op::GlobalAveragePool
                | Op::GlobalMaxPool
        );
    match () {
        () if !integer && !node.op.is_clamp() => Judged::float(
            "no_integer_kernel",
            format!("{} is computed in float", node.op.name()),
            "leave out the Q and DQ nodes around it",
        ),
        () if before.is_empty() => {
            Judged::float("operand_is_real", "its operands are not dequantized from codes", "quantize them")
        }
        () if behind.is_empty() => {
            Judged::float("result_is_real", "its result goes on in float", "quantize it where integers go on")
        }
        () => Judged::float(
            "parameters",
            "the parameters before and behind it differ, or other nodes read its result in float",
            "give its operand and its result the same scale and zero point",
        ),
    }
}
