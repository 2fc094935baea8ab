//! `octet diff`: what is different between two reports.

use std::fmt::Write as _;
use std::path::PathBuf;

use octet::engine::pipeline::compare;
use serde_json::Value;

use crate::cli::{Error, print, write};

/// Layers that are printed without `--json`.
const LAYERS_SHOWN: usize = 20;

/// Arguments of `octet diff`.
#[derive(clap::Args)]
pub(crate) struct Diff {
    /// `report.json`, `manifest.json`, the folder that holds them, or an artifact.
    before: PathBuf,
    /// The same of the other.
    after: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Where to write the comparison as a page.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Diff {
    /// Tells what is different.
    pub(crate) fn run(self) -> Result<(), Error> {
        let side = |path: &PathBuf| compare::read_side(path).map_err(|e| Error::work(path, e));
        let names = [&self.before, &self.after].map(|path| path.display().to_string());
        let (found, page) =
            compare::compare(&side(&self.before)?, &side(&self.after)?, [&names[0], &names[1]]);
        if let Some(path) = &self.html {
            write(path, page.as_bytes())?;
        }
        print(&if self.json { format!("{found:#}\n") } else { text(&found) })
    }
}

fn text(found: &Value) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        let _ = writeln!(text, "{words}");
    };
    let rows = |key: &str| found[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if found["same_model"] == false {
        line("not the same float model".to_owned());
    }
    if let Some(said) = compare::of_data(found) {
        line(said.to_owned());
    }
    for field in rows("recipe") {
        line(format!("recipe {}: {} -> {}", word(&field["field"]), field["a"], field["b"]));
    }
    for figure in rows("figures") {
        let number = |key: &str| figure[key].as_f64().unwrap_or_default();
        let path = figure["figure"].as_str().unwrap_or_default();
        let change = compare::change_of(path, number("delta"));
        line(format!(
            "{}: {} -> {} ({})",
            word(&figure["name"]),
            compare::figure(path, number("a")),
            compare::figure(path, number("b")),
            change.as_deref().unwrap_or("the same")
        ));
    }
    for layer in rows("layers").iter().take(LAYERS_SHOWN) {
        let changed: Vec<String> = layer["changed"].as_array().into_iter().flatten().map(word).collect();
        let noise = |side: &str| layer[side]["noise_db"].as_f64();
        let noise = match (noise("a"), noise("b")) {
            (Some(a), Some(b)) => format!(" ({a:.1} -> {b:.1} dB)"),
            _ => String::new(),
        };
        line(format!("{}: {}{noise}", word(&layer["node"]), changed.join(", ")));
    }
    let more = rows("layers").len().saturating_sub(LAYERS_SHOWN);
    if more > 0 {
        line(format!("... and {more} more; --json has them all"));
    }
    line(format!("{} layers and values are the same", found["layers_same"]));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// It said "not the same float model" of a file and itself, and `samples: 500.0000`.
    #[test]
    fn what_is_unknown_is_not_different_and_numbers_are_short() {
        let side = |data: &str| json!({ "evaluated_on_sha256": data, "evaluation": { "samples": 500, "cosine": 0.999 }, "size": { "int8_bytes": 125_285 } });
        let said = |a: &Value, b: &Value| text(&compare::compare(a, b, ["a", "b"]).0);
        let same = said(&side("1"), &side("1"));
        assert!(!same.contains("not the same") && !same.contains("different data"), "{same}");
        for line in
            ["samples: 500 -> 500 (the same)", "cosine: 0.99900 -> 0.99900", "artifact: 125 kB -> 125 kB"]
        {
            assert!(same.contains(line), "{same}");
        }
        assert!(said(&side("1"), &side("2")).contains("evaluated on different data"));
        assert!(!said(&json!({}), &json!({})).contains("not the same"));
    }
}
