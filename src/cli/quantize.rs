//! `octet quantize`: the whole job without a server.

use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use octet::engine::pipeline::dry_run::{DryRun, dry_run};
use octet::engine::pipeline::{self, Named, Outcome, Phase, Progress, Request};
use serde_json::Value;

use crate::cli::{Error, cores, pool, print, read, write};

/// Arguments of `octet quantize`.
#[derive(clap::Args)]
pub(crate) struct Quantize {
    /// The ONNX model: in float, or quantized already.
    model: PathBuf,
    /// `.npz` or `.npy` with the samples that ranges are taken from.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["statistics", "evaluation", "dry_run"])]
    calibration: Option<PathBuf>,
    /// `statistics.bin` of an earlier job on the same model: ranges come from it, no calibration samples are needed.
    #[arg(long, value_name = "FILE")]
    statistics: Option<PathBuf>,
    /// `.npz` or `.npy` with the samples that float and INT8 are compared on [default: the calibration data].
    #[arg(long, value_name = "FILE")]
    evaluation: Option<PathBuf>,
    /// The recipe in JSON [default: the defaults].
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Where to write the QDQ ONNX file; also one that does not keep its gate, which exit status 3 tells.
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Only tell what the job would do: nodes, size, time and memory. No data are needed.
    #[arg(long)]
    dry_run: bool,
    /// Folder for `report.json`, `report.html`, `manifest.json` and `statistics.bin`, or for `dry_run.json`.
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
            calibration: self.calibration.as_deref(),
            statistics: self.statistics.as_deref(),
            evaluation: self.evaluation.as_deref(),
            recipe: &recipe,
            threads,
            named: Named::default(),
            beside: true,
        };
        let Some(output) = self.output.as_deref().filter(|_| !self.dry_run) else {
            return self.plan(&request);
        };
        let bar = Bar::new();
        let outcome = pool(threads)?.install(|| pipeline::job::quantize(&request, &bar));
        bar.bar.finish_and_clear();
        let outcome = outcome.map_err(failed)?;
        write(output, &outcome.artifact)?;
        if let Some(folder) = &self.report {
            write_report(folder, &outcome)?;
        }
        print(&summary(output, &outcome))?;
        print(&notes(&outcome.report))?;
        match outcome.gate_failure {
            Some(reason) => Err(Error::Gate(reason)),
            None => Ok(()),
        }
    }

    fn plan(&self, request: &Request<'_>) -> Result<(), Error> {
        let run = pool(request.threads)?.install(|| dry_run(request, u64::MAX)).map_err(failed)?;
        if let Some(folder) = &self.report {
            make_folder(folder)?;
            let json = serde_json::to_value(&run).map_err(|e| Error::work(folder, e))?;
            write(&folder.join("dry_run.json"), format!("{json:#}\n").as_bytes())?;
        }
        print(&planned(&run))
    }
}

fn failed(error: pipeline::Error) -> Error {
    match error {
        pipeline::Error::Recipe(_) => Error::Usage(error.to_string()),
        pipeline::Error::Model(_)
        | pipeline::Error::Data { .. }
        | pipeline::Error::TooLong(_)
        | pipeline::Error::Cancelled
        | pipeline::Error::Io { .. } => Error::Work(error.to_string()),
    }
}

/// What a job would do, for people.
fn planned(run: &DryRun) -> String {
    let mut text = String::new();
    for row in &run.integer {
        text += &format!("integer  {} ({}): {}\n", row.node, row.op, row.becomes);
    }
    for row in &run.float {
        text += &format!("float    {} ({}): {}\n", row.node, row.op, row.reason);
    }
    let unknown = || "known only by a run".to_owned();
    let share = run.integer_share.map_or_else(unknown, |share| format!("{:.1} %", share * 100.0));
    let memory = run.memory_bytes.map_or_else(unknown, |bytes| format!("about {} MB", bytes / 1_000_000));
    let coverage = &run.coverage;
    text += &format!(
        "{} nodes on integers, {} on reals, {} move data; of the multiply-accumulates on integers: {share}\n\
         artifact: {} bytes, {:.1} % of the float model\n\
         memory: {memory}\n",
        coverage.integer,
        coverage.float,
        coverage.data,
        run.artifact_bytes,
        run.size_ratio * 100.0,
    );
    if let Some(s) = &run.seconds {
        let numbers = run.recipe.scheme.numbers();
        text += &format!(
            "one run: float {:.3} ms, {numbers} {:.3} ms; calibration {:.1} s, evaluation {:.1} s ({})\n",
            s.float_run * 1e3,
            s.int8_run * 1e3,
            s.calibrate,
            s.evaluate,
            run.basis
        );
    }
    text
}

fn write_report(folder: &Path, outcome: &Outcome) -> Result<(), Error> {
    make_folder(folder)?;
    let pretty = |value: &Value| format!("{value:#}\n");
    write(&folder.join("report.json"), pretty(&outcome.report).as_bytes())?;
    write(&folder.join("manifest.json"), pretty(&outcome.manifest).as_bytes())?;
    write(&folder.join("statistics.bin"), &outcome.statistics)?;
    write(&folder.join("report.html"), outcome.report_html.as_bytes())
}

fn make_folder(folder: &Path) -> Result<(), Error> {
    let made = std::fs::create_dir_all(folder);
    made.map_err(|source| Error::File { tried: "making", path: folder.to_owned(), source })
}

fn summary(output: &Path, outcome: &Outcome) -> String {
    let (accuracy, latency) = (&outcome.accuracy, &outcome.latency);
    let numbers = outcome.manifest["precision"].as_str().unwrap_or_default().to_uppercase();
    format!(
        "{}: {} bytes, {:.1} % of the float model\n\
         {}: float {:.4}, {numbers} {:.4} ({:+.4}) on {} samples; both choose alike on {:.2} %\n\
         one run: float {:.3} ms, {numbers} {:.3} ms\n",
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

/// What the report says was done otherwise than asked, a line each: an artifact that has nothing quantized in it is a
/// success too, and must not look like any other.
fn notes(report: &Value) -> String {
    let notes = report["notes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    notes.map(|note| format!("note: {note}\n")).collect()
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
        self.bar.set_message(phase.name());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_the_report_are_shown() {
        let report = serde_json::json!({"notes": ["nothing is quantized", "another"]});
        assert_eq!(notes(&report), "note: nothing is quantized\nnote: another\n");
        assert_eq!(notes(&serde_json::json!({"notes": []})), "");
    }
}
