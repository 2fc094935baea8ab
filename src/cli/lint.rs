//! `octet lint`: what other runtimes make of an INT8 file.

use std::fmt::Write as _;
use std::path::PathBuf;

use octet::engine::pipeline;
use octet::engine::pipeline::lint::Targets;
use serde_json::Value;

use crate::cli::{Error, print};

/// Arguments of `octet lint`.
#[derive(clap::Args)]
pub(crate) struct Lint {
    /// The INT8 ONNX file: QDQ, QOperator or dynamic.
    model: PathBuf,
    /// octet, onnxruntime, openvino, tensorrt or tflite_rules; without it, a summary of all.
    #[arg(long)]
    target: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Lint {
    /// Tells of the file.
    pub(crate) fn run(self) -> Result<(), Error> {
        let targets = Targets::named(self.target.as_deref()).map_err(Error::Usage)?;
        let failed = |e| Error::work(&self.model, e);
        let bytes = pipeline::files::read_own(&self.model).map_err(failed)?;
        let found = pipeline::lint::lint_bytes(&bytes, &targets).map_err(failed)?;
        if self.json {
            return print(&format!("{found:#}\n"));
        }
        let reports = found["reports"].as_array().map_or(&[][..], Vec::as_slice);
        match (&self.target, reports) {
            (Some(_), [report]) => print(&full(report)),
            _ => print(&summary(reports)),
        }
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// `12 QLinearConv, 2 QGemm`.
fn counts(value: &Value) -> String {
    let Some(fields) = value.as_object().filter(|fields| !fields.is_empty()) else {
        return "none".to_owned();
    };
    let all: Vec<String> = fields.iter().map(|(name, count)| format!("{count} {name}")).collect();
    all.join(", ")
}

fn notes(out: &mut String, report: &Value) {
    for note in report["notes"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "  {}: {}", text(note, "severity"), text(note, "reason"));
        if !text(note, "remedy").is_empty() {
            let _ = writeln!(out, "    remedy: {}", text(note, "remedy"));
        }
    }
}

/// A few lines for each target.
fn summary(reports: &[Value]) -> String {
    let mut out = String::new();
    for report in reports {
        let _ = writeln!(out, "{}", text(report, "target"));
        for (title, key) in [("integer", "fused"), ("float", "float"), ("refused", "refused")] {
            let _ = writeln!(out, "  {title:8} {}", counts(&report[key]));
        }
        notes(&mut out, report);
    }
    out.push_str("`--target` tells the reason for each node.\n");
    out
}

/// Every node of one target.
fn full(report: &Value) -> String {
    let mut out = String::new();
    let findings = report["findings"].as_array().map_or(&[][..], Vec::as_slice);
    let width = |key: &str, least: usize| {
        findings.iter().map(|f| text(f, key).chars().count()).max().unwrap_or(0).clamp(least, 48)
    };
    let (node, op) = (width("node", 4), width("op", 2));
    let _ = writeln!(out, "{:node$}  {:op$}  {:11}  reason", "node", "op", "verdict");
    for finding in findings {
        let (name, operator, verdict) =
            (text(finding, "node"), text(finding, "op"), text(finding, "verdict"));
        let mut why = text(finding, "reason").to_owned();
        if let Some(becomes) = finding["becomes"].as_str() {
            why = if why.is_empty() { becomes.to_owned() } else { format!("{becomes}: {why}") };
        }
        let _ = writeln!(out, "{name:node$}  {operator:op$}  {verdict:11}  {why}");
        if !text(finding, "remedy").is_empty() {
            let _ = writeln!(out, "{:node$}  {:op$}  {:11}  remedy: {}", "", "", "", text(finding, "remedy"));
        }
    }
    let _ = writeln!(out);
    out.push_str(
        &summary(std::slice::from_ref(report)).replace("`--target` tells the reason for each node.\n", ""),
    );
    out
}
