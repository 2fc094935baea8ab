//! `octet inspect`: what a model takes, gives and is made of.

use std::fmt::Write as _;
use std::path::PathBuf;

use octet::engine::exec::Options;
use octet::engine::pipeline;
use serde_json::Value;

use crate::cli::{Error, print};

/// Arguments of `octet inspect`.
#[derive(clap::Args)]
pub(crate) struct Inspect {
    /// The ONNX model, float or INT8.
    model: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Inspect {
    /// Tells of the model.
    pub(crate) fn run(self) -> Result<(), Error> {
        let failed = |e| Error::work(&self.model, e);
        let bytes = pipeline::files::read_own(&self.model).map_err(failed)?;
        let found =
            pipeline::inspect::inspect_bytes(&bytes, Options::default().memory_bytes_max).map_err(failed)?;
        if self.json {
            return print(&format!("{found:#}\n"));
        }
        let mut text = String::new();
        show(&mut text, &found, 0);
        print(&text)
    }
}

/// A value as indented lines, an object of plain values on one line.
fn show(text: &mut String, value: &Value, indent: usize) {
    let pad = "  ".repeat(indent);
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::Object(_) => {
                        let _ = writeln!(text, "{pad}{key}:");
                        show(text, value, indent + 1);
                    }
                    Value::Array(items) if items.iter().any(Value::is_object) => {
                        let _ = writeln!(text, "{pad}{key}:");
                        for item in items {
                            let _ = writeln!(text, "{pad}  {}", line(item));
                        }
                    }
                    plain => {
                        let _ = writeln!(text, "{pad}{key}: {}", line(plain));
                    }
                }
            }
        }
        other => {
            let _ = writeln!(text, "{pad}{}", line(other));
        }
    }
}

fn line(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(line).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields: Vec<_> = fields.iter().map(|(key, value)| format!("{key} {}", line(value))).collect();
            fields.join(", ")
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}
