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
    if found["same_model"] != true {
        line("not the same float model".to_owned());
    }
    for field in rows("recipe") {
        line(format!("recipe {}: {} -> {}", word(&field["field"]), field["a"], field["b"]));
    }
    for figure in rows("figures") {
        let number = |key: &str| figure[key].as_f64().unwrap_or_default();
        line(format!(
            "{}: {:.4} -> {:.4} ({:+.4})",
            word(&figure["name"]),
            number("a"),
            number("b"),
            number("delta")
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
