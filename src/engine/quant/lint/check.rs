//! Lints a graph for a target.

use crate::engine::graph::Graph;
use crate::engine::quant::Target;

// The crate has the name of this target as well.
use super::octet as this_program;
use super::{Report, file, onnxruntime, openvino, tensorrt, tflite_rules};

/// What a target makes of an imported graph, which must be as the file has it: no pass may have run over it.
pub fn lint(graph: &Graph, target: Target) -> Report {
    let findings = match target {
        Target::Octet => this_program::findings(graph),
        Target::Onnxruntime => onnxruntime::findings(graph),
        Target::Tensorrt => tensorrt::findings(graph),
        Target::Openvino => openvino::findings(graph),
        Target::TfliteRules => tflite_rules::findings(graph),
    };
    let notes = file::notes(graph, target, &findings);
    Report::new(target, notes, findings)
}
