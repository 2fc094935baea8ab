//! Lints a graph for a target.

use crate::engine::graph::Graph;
use crate::engine::quant::Target;

// The crate has the name of this target as well.
use super::net::Net;
use super::octet as this_program;
use super::{
    Finding, Judged, Report, file, onnxruntime, onnxruntime_notes, openvino, tensorrt, tflite_rules,
};

/// What a target makes of an imported graph, which must be as the file has it: no pass may have run over it.
pub fn lint(graph: &Graph, target: Target) -> Report {
    let findings = match target {
        Target::Octet => this_program::findings(graph),
        Target::Onnxruntime => onnxruntime::findings(graph),
        Target::Tensorrt => judged(graph, tensorrt::judge),
        Target::Openvino => judged(graph, openvino::judge),
        Target::TfliteRules => judged(graph, tflite_rules::judge),
    };
    let mut notes = file::notes(graph, target);
    if target == Target::Onnxruntime {
        notes.extend(onnxruntime_notes::notes(graph, &findings));
    }
    Report::new(target, notes, findings)
}

/// The findings of a target that judges each node by itself.
fn judged(graph: &Graph, judge: impl Fn(&Net, usize) -> Judged) -> Vec<Finding> {
    let net = Net::new(graph);
    let of = |n: usize| judge(&net, n).of(net.name(n), net.node(n).op.name());
    (0..graph.nodes.len()).filter(|&n| net.is_of_interest(n)).map(of).collect()
}
