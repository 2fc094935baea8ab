//! Two reports, manifests or artifacts compared.

use std::path::Path;

use serde_json::{Value, json};

use super::Error;
use super::files::{load, read};
use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, ValueId};
use crate::engine::quant::report::diff;
use crate::engine::quant::report::html::difference;

/// What is different between two reports, from `a` to `b`: as JSON and as a page. `names` are what the two are called.
pub fn compare(a: &Value, b: &Value, names: [&str; 2]) -> (Value, String) {
    let found = diff::diff(a, b);
    let page = difference::page(&found, names[0], names[1]);
    (serde_json::to_value(&found).expect("figures of JSON are finite"), page)
}

/// A figure of a comparison, by its path, in its unit and with the digits that matter.
pub fn figure(path: &str, x: f64) -> String {
    diff::figure(path, x)
}

/// Its change with its sign; nothing where it shows none.
pub fn change_of(path: &str, delta: f64) -> Option<String> {
    diff::change_of(path, delta)
}

/// What a comparison says of the data that both were judged on; nothing where they are the same or not known.
pub fn of_data(found: &Value) -> Option<&'static str> {
    (found["same_data"] == false).then_some(diff::OTHER_DATA)
}

/// Reads what can be compared: a report or a manifest as JSON, the folder that holds them, or an artifact.
///
/// # Errors
/// [`Error::Io`], or [`Error::Model`] where the file is none of these.
pub fn read_side(path: &Path) -> Result<Value, Error> {
    let path = if path.is_dir() { path.join("report.json") } else { path.to_owned() };
    let bytes = read(&path)?;
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') {
        return serde_json::from_slice(&bytes)
            .map_err(|e| Error::Model(format!("`{}` is no report: {e}", path.display())));
    }
    Ok(of_artifact(&load(&bytes)?))
}

/// What an artifact tells by itself: its codes, and what computes on them.
fn of_artifact(graph: &Graph) -> Value {
    let producers = graph.producers();
    let dequantized = |id: &ValueId| {
        producers.get(id).is_some_and(|&n| matches!(graph.nodes[n].op, Op::DequantizeLinear { .. }))
    };
    let number = |id: Option<ValueId>| {
        id.and_then(|id| graph.constant(id)).filter(|t| t.len() == 1).map(|t| t.to_f64()[0])
    };
    let (mut layers, mut floats, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for node in &graph.nodes {
        match node.op {
            Op::QuantizeLinear { .. } => {
                if let (Some(input), Some(scale)) = (node.input(0), number(node.input(1))) {
                    let zero = number(node.input(2)).unwrap_or(0.0);
                    values.push(json!({
                        "name": graph.value(input).name,
                        "scale": scale,
                        "zero_point": zero as i64,
                    }));
                }
            }
            Op::DequantizeLinear { .. } => {}
            _ if node.inputs.iter().flatten().any(dequantized) => layers.push(json!({ "node": node.name })),
            _ => floats.push(json!({ "node": node.name, "reason": "it reads no codes" })),
        }
    }
    json!({ "model": { "name": graph.name }, "layers": layers, "float_nodes": floats, "values": values })
}
