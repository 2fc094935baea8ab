//! The whole job: import, simplify, calibrate, quantize, evaluate, export. Here is what it speaks of: what is asked,
//! how it reports progress and is stopped, what it makes.

pub mod compare;
pub mod dry_run;
mod even;
pub mod files;
mod gate;
pub mod inspect;
pub mod job;
pub mod lint;
mod nothing;
mod running;
#[cfg(test)]
mod tests;
mod trained;
mod trials;

use std::path::Path;

use serde::{Deserialize, Serialize};

/// What part of a job is being done. Serialized in snake case, as the API and the metrics show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading the model.
    Import,
    /// The float model runs over the calibration data.
    Calibrate,
    /// Ranges, weights, biases; the graph is rewritten.
    Quantize,
    /// Float and INT8 run over the evaluation data.
    Evaluate,
    /// Timing both.
    Measure,
    /// Writing the artifact and the report.
    Export,
}

impl Phase {
    /// Its name in the API, the metrics and on the terminal: as it is serialized.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Import => "import",
            Phase::Calibrate => "calibrate",
            Phase::Quantize => "quantize",
            Phase::Evaluate => "evaluate",
            Phase::Measure => "measure",
            Phase::Export => "export",
        }
    }
}

/// How the caller hears of the work and stops it. Also the only clock that the engine sees.
pub trait Progress: Sync {
    /// `done` of `total` units of `phase` are done (samples, layers; `total` 0 where not known).
    fn update(&self, phase: Phase, done: u64, total: u64);
    /// Whether to stop; asked between samples and layers.
    fn cancelled(&self) -> bool;
    /// Seconds since some fixed moment, for timing.
    fn seconds(&self) -> f64;
    /// What calibration found out ([`Outcome::statistics`]): given as [`Request::statistics`] beside the same data, the
    /// same job makes the same artifact without calibrating again.
    fn calibrated(&self, statistics: &[u8]) {
        let _ = statistics;
    }
}

/// What a job works on. Files on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The ONNX model, in float or quantized already.
    pub model: &'a Path,
    /// `.npz` or `.npy` with the calibration samples; not needed where there are statistics and evaluation samples,
    /// nor where a model comes quantized and is not completed.
    pub calibration: Option<&'a Path>,
    /// [`Outcome::statistics`] of an earlier job on the same model: ranges are chosen by them, and the model does not
    /// run over the calibration samples.
    pub statistics: Option<&'a Path>,
    /// `.npz` or `.npy` with the evaluation samples; without it, the calibration samples are used.
    pub evaluation: Option<&'a Path>,
    /// The recipe as JSON; `null` or `{}` means the defaults.
    pub recipe: &'a serde_json::Value,
    /// Threads that the job may use.
    pub threads: usize,
    /// What those who will read the report call these things.
    pub named: Named<'a>,
    /// Whether the model's data may lie in files beside it, or all in an archive: only where the files are the
    /// caller's own, since what lies beside them is read.
    pub beside: bool,
}

/// What a report calls the things that it is about, as plain text: the engine knows files, not who keeps them. Names of
/// graphs tell little, every exporter of PyTorch says `main_graph` or `torch_jit`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Named<'a> {
    /// The model, with its version; without it the name of its graph.
    pub model: Option<&'a str>,
    /// The calibration data.
    pub calibration: Option<&'a str>,
    /// The evaluation data.
    pub evaluation: Option<&'a str>,
    /// When the job was begun.
    pub begun_at: Option<&'a str>,
}

/// Float against INT8 on the evaluation data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// `top1` where there are labels, else `agreement` (float counts as right).
    pub metric: String,
    /// The float model's figure, 0 to 1.
    pub float: f64,
    /// The INT8 model's figure, 0 to 1.
    pub int8: f64,
    /// `int8 − float`.
    pub delta: f64,
    /// Share of samples on which both choose the same class.
    pub agreement: f64,
    /// Signal to quantization noise of the first output, in dB.
    pub sqnr_db: f64,
    /// Number of samples.
    pub samples: u64,
}

/// Time of one run at batch 1, median, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The float model.
    pub float_ms: f64,
    /// The INT8 model.
    pub int8_ms: f64,
}

/// What a job makes.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The QDQ ONNX file.
    pub artifact: Vec<u8>,
    /// Digests of what went in, the recipe in full, versions: the same inputs give the same manifest.
    pub manifest: serde_json::Value,
    /// Everything found out, for people and programs.
    pub report: serde_json::Value,
    /// What calibration found out, for later jobs on the same model. Holds counts and extremes, no sample.
    pub statistics: Vec<u8>,
    /// The report as one self-contained page.
    pub report_html: String,
    /// Float against INT8.
    pub accuracy: Accuracy,
    /// Float against INT8.
    pub latency: Latency,
    /// Bytes of the artifact over bytes of the model.
    pub size_ratio: f64,
    /// Why the gate of the recipe is not kept; `None` where it is.
    pub gate_failure: Option<String>,
}

/// Why a job cannot be done. The text names the node, tensor, field or sample.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model cannot be read or run.
    #[error("model: {0}")]
    Model(String),
    /// The data do not fit the model or hold what cannot be used.
    #[error("{which} data: {reason}")]
    Data {
        /// `calibration`, `evaluation` or `statistics`.
        which: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// A file is longer than is taken, as it is or unpacked; the text has the limit.
    #[error("{0}")]
    TooLong(String),
    /// The recipe is not one.
    #[error("recipe: {0}")]
    Recipe(String),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A file could not be read.
    #[error("reading `{path}`: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}
