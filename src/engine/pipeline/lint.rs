//! A file against the rules of the runtimes that may run it.

use std::path::Path;

use serde_json::{Value, json};

use super::Error;
use super::files::{load, load_file};
use crate::engine::graph::Graph;
use crate::engine::quant::Target;
use crate::engine::quant::lint::check;
use crate::engine::quant::trained::is_quantized;

/// Whose rules a file is held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets(Vec<Target>);

impl Targets {
    /// The target of a name; all of them without one.
    ///
    /// # Errors
    /// A sentence with the names that there are.
    pub fn named(name: Option<&str>) -> Result<Targets, String> {
        match name {
            None => Ok(Targets(Target::ALL.to_vec())),
            Some(name) => Target::named(name).map(|target| Targets(vec![target])),
        }
    }
}

/// What each target makes of an ONNX file: `{"model": {"name", "opset", "quantized"}, "reports": [{"target", "fused"
/// (counts of the target's integer operators), "float" and "refused" (counts of operators), "notes": [{"severity",
/// "rule", "reason", "remedy"}], "findings": [{"node", "op", "verdict", "becomes", "rule", "reason", "remedy"}]}]}`.
///
/// # Errors
/// [`Error::Model`] or [`Error::Io`].
pub fn lint(model: &Path, targets: &Targets) -> Result<Value, Error> {
    Ok(of(&load_file(model)?, targets))
}

/// As [`lint`].
///
/// # Errors
/// [`Error::Model`].
pub fn lint_bytes(model: &[u8], targets: &Targets) -> Result<Value, Error> {
    Ok(of(&load(model)?, targets))
}

fn of(graph: &Graph, targets: &Targets) -> Value {
    let reports: Vec<_> = targets.0.iter().map(|&target| check::lint(graph, target)).collect();
    json!({
        "model": {"name": graph.name, "opset": graph.opset, "quantized": is_quantized(graph)},
        "reports": reports,
    })
}
