//! What ONNX Runtime 1.32 makes of a file as a whole, on an x86 CPU: options of a session that decide how exact its results
//! are, and whether it opens the file at all.

use std::collections::{BTreeSet, HashSet};

use crate::engine::graph::Graph;
use crate::engine::graph::op::Op;
use crate::engine::tensor::DType;

use super::file::{listed, note};
use super::net::Net;
use super::{Finding, Note, Severity, Verdict};

/// Largest weight code with which two products with `u8` fit 16 bits.
const SAFE_CODE: i64 = 64;

/// The notes on a file, of whose nodes this was found.
pub(super) fn notes(graph: &Graph, findings: &[Finding]) -> Vec<Note> {
    let net = Net::new(graph);
    let all = [saturation(&net, findings), rounded_activations(findings), shared_weights(&net)];
    all.into_iter().flatten().collect()
}

/// The 16-bit sums of ONNX Runtime's default mode on processors without VNNI: of what it computes on codes, for a node
/// that stays in float multiplies reals.
fn saturation(net: &Net, findings: &[Finding]) -> Option<Note> {
    // MatMulNBits has kernels of its own, which that mode does not change.
    let fused = findings.iter().filter(|f| f.verdict == Verdict::Fuses && f.becomes != Some("MatMulNBits"));
    let fused: HashSet<&str> = fused.map(|f| f.node.as_str()).collect();
    let mut nodes = Vec::new();
    for n in net.nodes().into_iter().filter(|&n| fused.contains(net.name(n))) {
        let node = net.node(n);
        let codes = match &node.op {
            Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul => {
                net.dequantizer(n, 1).and_then(|dq| net.node(dq).input(0))
            }
            Op::Other(o) if ["QLinearConv", "QLinearMatMul", "QGemm"].contains(&o.name) => node.input(3),
            Op::Other(o) if ["MatMulInteger", "ConvInteger", "MatMulIntegerToFloat"].contains(&o.name) => {
                node.input(1)
            }
            _ => None,
        };
        let Some(tensor) = net.constant(codes).filter(|t| t.dtype() == DType::I8) else { continue };
        if tensor.slice::<i8>().iter().any(|&w| i64::from(w).abs() > SAFE_CODE) {
            nodes.push(net.name(n).to_owned());
        }
    }
    match nodes.is_empty() {
        true => None,
        false => note(
            Severity::Warning,
            "saturation",
            format!(
                "on x86 without VNNI ONNX Runtime's default mode adds two products in 16 bits: weights above {SAFE_CODE} \
                 may saturate ({} nodes have some: {})",
                nodes.len(),
                listed(&nodes)
            ),
            "set the session option session.x64quantprecision to 1, or quantize with \"max_code\": 64",
        ),
    }
}

/// Products of reals with weights in codes: by default MatMulNBits rounds their reals to 8 bits, whatever the file says.
fn rounded_activations(findings: &[Finding]) -> Option<Note> {
    let rounds = |f: &&Finding| f.becomes == Some("MatMulNBits");
    let names: Vec<String> = findings.iter().filter(rounds).map(|f| f.node.clone()).collect();
    match names.is_empty() {
        true => None,
        false => note(
            Severity::Warning,
            "rounded_activations",
            format!(
                "MatMulNBits, which ONNX Runtime makes of products with weights in codes, rounds the activations to 8 \
                 bits as well: {}",
                listed(&names)
            ),
            "set the session option session.qdq_matmulnbits_accuracy_level to 1",
        ),
    }
}

/// Weights, or zero points of weights, in `i8` with several readers: the exact mode stores them anew as `u8` for each reader,
/// under one name, and gives up.
fn shared_weights(net: &Net) -> Option<Note> {
    let (mut seen, mut shared) = (HashSet::new(), BTreeSet::new());
    for n in net.nodes() {
        let node = net.node(n);
        let operands = match node.op.name() {
            "DequantizeLinear" if node.input(0).is_some_and(|id| net.is_constant(id)) => [0, 2],
            "QLinearConv" | "QLinearMatMul" | "QGemm" => [3, 5],
            _ => continue,
        };
        let split = net.is_dequantizer(n) && net.readers(node.outputs[0]).len() > 1;
        for id in operands.into_iter().filter_map(|i| node.input(i)) {
            let is_i8 = net.constant(Some(id)).is_some_and(|t| t.dtype() == DType::I8);
            if is_i8 && (!seen.insert(id) || split) {
                shared.insert(net.value_name(id).to_owned());
            }
        }
    }
    let names: Vec<String> = shared.into_iter().collect();
    match names.is_empty() {
        true => None,
        false => note(
            Severity::Warning,
            "shared_weights",
            format!(
                "several nodes share int8 weights or their zero points: with session.x64quantprecision set to 1 ONNX \
                 Runtime does not open the file: {}",
                listed(&names)
            ),
            "store them as uint8 with zero points of 128; \"target\": \"onnxruntime\" does",
        ),
    }
}
