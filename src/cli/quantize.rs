//! `octet quantize`: the whole job without a server.

use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use octet::engine::pipeline::{self, Outcome, Phase, Progress, Request};
use serde_json::Value;

use crate::cli::{Error, cores, pool, print, read, write};

/// Arguments of `octet quantize`.
#[derive(clap::Args)]
pub(crate) struct Quantize {
    /// The float ONNX model.
    model: PathBuf,
    /// `.npz` or `.npy` with the samples that ranges are taken from.
    #[arg(long, value_name = "FILE")]
    calibration: PathBuf,
    /// `.npz` or `.npy` with the samples that float and INT8 are compared on [default: the calibration data].
    #[arg(long, value_name = "FILE")]
    evaluation: Option<PathBuf>,
    /// The recipe in JSON [default: the defaults].
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Where to write the QDQ ONNX file.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Folder for `report.json`, `report.html` and `manifest.json`.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Threads [default: one for each core].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl Quantize {
    /// Does the job; exit code 3 where the gate of the recipe is not kept.
    pub(crate) fn run(self) -> Result<(), Error> {
        let recipe = match &self.recipe {
            None => Value::Null,
            Some(path) => serde_json::from_slice(&read(path)?).map_err(|e| Error::work(path, e))?,
        };
        let threads = self.threads.unwrap_or_else(cores).max(1);
        let request = Request {
            model: &self.model,
            calibration: &self.calibration,
            evaluation: self.evaluation.as_deref(),
            recipe: &recipe,
            threads,
            beside: true,
        };
        let bar = Bar::new();
        let outcome = pool(threads)?.install(|| pipeline::job::quantize(&request, &bar));
        bar.bar.finish_and_clear();
        let outcome = outcome.map_err(|e| match e {
            pipeline::Error::Recipe(_) => Error::Usage(e.to_string()),
            pipeline::Error::Model(_)
            | pipeline::Error::Data { .. }
            | pipeline::Error::Cancelled
            | pipeline::Error::Io { .. } => Error::Work(e.to_string()),
        })?;
        write(&self.output, &outcome.artifact)?;
        if let Some(folder) = &self.report {
            write_report(folder, &outcome)?;
        }
        print(&summary(&self.output, &outcome))?;
        match outcome.gate_failure {
            Some(reason) => Err(Error::Gate(reason)),
            None => Ok(()),
        }
    }
}

fn write_report(folder: &Path, outcome: &Outcome) -> Result<(), Error> {
    let made = std::fs::create_dir_all(folder);
    made.map_err(|source| Error::File { tried: "making", path: folder.to_owned(), source })?;
    let pretty = |value: &Value| format!("{value:#}\n");
    write(&folder.join("report.json"), pretty(&outcome.report).as_bytes())?;
    write(&folder.join("manifest.json"), pretty(&outcome.manifest).as_bytes())?;
    write(&folder.join("report.html"), outcome.report_html.as_bytes())
}

fn summary(output: &Path, outcome: &Outcome) -> String {
    let (accuracy, latency) = (&outcome.accuracy, &outcome.latency);
    format!(
        "{}: {} bytes, {:.1} % of the float model\n\
         {}: float {:.4}, INT8 {:.4} ({:+.4}) on {} samples; both choose alike on {:.2} %\n\
         one run: float {:.3} ms, INT8 {:.3} ms\n",
        output.display(),
        outcome.artifact.len(),
        outcome.size_ratio * 100.0,
        accuracy.metric,
        accuracy.float,
        accuracy.int8,
        accuracy.delta,
        accuracy.samples,
        accuracy.agreement * 100.0,
        latency.float_ms,
        latency.int8_ms,
    )
}

/// Progress on the terminal; nothing where standard error is none.
struct Bar {
    bar: ProgressBar,
    start: Instant,
}

impl Bar {
    fn new() -> Bar {
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{msg:10} {bar:40} {pos}/{len} {elapsed}");
        bar.set_style(style.expect("the template names known keys"));
        Bar { bar, start: Instant::now() }
    }
}

impl Progress for Bar {
    fn update(&self, phase: Phase, done: u64, total: u64) {
        let name = match phase {
            Phase::Import => "import",
            Phase::Calibrate => "calibrate",
            Phase::Quantize => "quantize",
            Phase::Evaluate => "evaluate",
            Phase::Measure => "measure",
            Phase::Export => "export",
        };
        self.bar.set_message(name);
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    fn cancelled(&self) -> bool {
        // Ctrl-C ends the process: there is nothing to tidy up.
        false
    }

    fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}
