//! The whole job: import, simplify, calibrate, quantize, evaluate, export. Reports progress, stops when asked.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::engine::artifact::{self, Origin, Source};
use crate::engine::exec::fold::fold_constants;
use crate::engine::exec::session::Session;
use crate::engine::exec::{self, Options, Port};
use crate::engine::graph::op::Op;
use crate::engine::graph::passes::Passes;
use crate::engine::graph::passes::simplify::simplify;
use crate::engine::graph::{Dim, Graph, ValueId};
use crate::engine::onnx::{external, import};
use crate::engine::quant::calibrate::{self, batch_size, calibrate};
use crate::engine::quant::dial::{self, Dial, Trials};
use crate::engine::quant::evaluate::{self, Evaluation};
use crate::engine::quant::histogram::Histogram;
use crate::engine::quant::plan::{self, Coded, Decision, Plan, Region};
use crate::engine::quant::ranges::{self, Choice, Method};
use crate::engine::quant::report::{self, Findings};
use crate::engine::quant::rewrite::{Layer, Rewritten, rewrite};
use crate::engine::quant::{self, MaxCode, Ranges, Recipe, report_html};
use crate::engine::tensor::dataset::{self, Dataset};
use crate::engine::tensor::npy;
use crate::engine::tensor::qparams::QuantParams;

/// Shares are quotients of counts: a drop of exactly `max_drop` must not fail by the last bit of a difference.
const ROUNDING: f64 = 1e-9;
/// Samples over which the noise of each layer is measured.
const LAYER_SAMPLES: usize = 64;
/// Samples over which the noise of one layer's smaller codes is measured, once a layer.
const TRIAL_SAMPLES: usize = 16;
/// Pairs of runs that are timed, at most.
const TIMED_RUNS: usize = 60;
/// Longest model that is read from files of the caller's own: what a mistaken path could cost.
const OWN_BYTES_MAX: u64 = 64 << 30;
/// Seconds that timing may take, about.
const TIMED_SECONDS: f64 = 3.0;

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

/// How the caller hears of the work and stops it. Also the only clock that the engine sees.
pub trait Progress: Sync {
    /// `done` of `total` units of `phase` are done (samples, layers; `total` 0 where not known).
    fn update(&self, phase: Phase, done: u64, total: u64);
    /// Whether to stop; asked between samples and layers.
    fn cancelled(&self) -> bool;
    /// Seconds since some fixed moment, for timing.
    fn seconds(&self) -> f64;
}

/// What a job works on. Files on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The float ONNX model.
    pub model: &'a Path,
    /// `.npz` or `.npy` with the calibration samples.
    pub calibration: &'a Path,
    /// `.npz` or `.npy` with the evaluation samples; without it, the calibration samples are used.
    pub evaluation: Option<&'a Path>,
    /// The recipe as JSON; `null` or `{}` means the defaults.
    pub recipe: &'a serde_json::Value,
    /// Threads that the job may use.
    pub threads: usize,
    /// Whether the model's data may lie in files beside it, or all in an archive: only where the files are the
    /// caller's own, since what lies beside them is read.
    pub beside: bool,
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
        /// `calibration` or `evaluation`.
        which: &'static str,
        /// What does not fit.
        reason: String,
    },
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

/// Does a whole job.
///
/// # Errors
/// [`Error`]; nothing is left behind.
pub fn quantize(request: &Request<'_>, progress: &dyn Progress) -> Result<Outcome, Error> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(request.threads.max(1)).build();
    let pool =
        pool.map_err(|e| Error::Io { path: "thread pool".to_owned(), source: std::io::Error::other(e) })?;
    pool.install(|| Job { request, progress }.run())
}

/// A job that runs.
struct Job<'a> {
    request: &'a Request<'a>,
    progress: &'a dyn Progress,
}

/// The float side of a job.
struct Prepared {
    graph: Graph,
    plan: Plan,
    recipe: Recipe,
    model: Source,
    /// Float weights of the model as it came.
    parameters: u64,
}

impl Job<'_> {
    fn run(&self) -> Result<Outcome, Error> {
        let Prepared { graph, plan, recipe, model, parameters } = self.prepare()?;
        let float = self.session(graph.clone())?;
        let ports = ports(float.inputs());
        let calibration = self.dataset(self.request.calibration, &ports, "calibration")?;
        let evaluation = match self.request.evaluation {
            Some(path) => Some(self.dataset(path, &ports, "evaluation")?),
            None => None,
        };
        let (judged, which) = match &evaluation {
            Some(data) => (data, "evaluation"),
            None => (&calibration, "calibration"),
        };

        let histograms = self.calibrate(&float, &graph, &plan, &calibration)?;
        let choices = self.choose(&graph, &plan, &recipe, &histograms)?;
        let params: HashMap<ValueId, QuantParams> =
            choices.iter().map(|(root, choice)| (*root, choice.params.clone())).collect();
        let (graph, plan, params, recipe) = (&graph, &plan, &params, recipe);
        let trial =
            Trial { job: self, float: &float, graph, plan, params, recipe: &recipe, data: judged, which };
        let dial = self.dial(trial)?;
        let rewritten = rewrite(graph, plan, params, &recipe, &dial);
        self.step(Phase::Quantize, 1, 1)?;
        let (bytes, manifest) = self.write(&rewritten, graph, plan, params, &recipe, &model)?;

        // The INT8 side is read back from the bytes, so that what is judged is what is served.
        let int8 = import::import(&bytes)
            .map_err(|e| Error::Model(format!("the artifact does not read back: {e}")))?;
        let int8 = self.session(int8)?;
        let found = self.evaluate(&float, &int8, judged, which)?;
        let noise = self.layers(&float, &int8, judged, which, &rewritten)?;
        let latency = self.measure(&float, &int8, judged, which)?;

        self.step(Phase::Export, 0, 1)?;
        let size_ratio = bytes.len() as f64 / model.bytes.max(1) as f64;
        let gate_failure = gate_failure(&recipe, &found);
        let activations: Vec<_> = choices
            .iter()
            .map(|(root, choice)| {
                let name = &graph.value(*root).name;
                report::activation(name, &histograms[name], choice)
            })
            .collect();
        let layers = report::layer_rows(&rewritten.layers, &noise);
        let findings = Findings {
            engine: artifact::ENGINE,
            contract: artifact::CONTRACT,
            model: report::Model { name: graph.name.clone(), sha256: model.sha256, parameters },
            recipe,
            evaluated_on: which,
            latency: report::Times {
                float_ms: latency.float_ms,
                int8_ms: latency.int8_ms,
                speedup: latency.float_ms / latency.int8_ms.max(1e-9),
            },
            size: report::Sizes {
                float_bytes: model.bytes,
                int8_bytes: bytes.len() as u64,
                ratio: size_ratio,
            },
            coverage: report::coverage(plan),
            advice: report::advice(&layers, &activations),
            layers,
            activations,
            float_nodes: report::float_rows(graph, plan),
            gate_failure: gate_failure.clone(),
            evaluation: found,
        };
        let accuracy = accuracy(&findings.evaluation);
        let report_html = report_html::page(&findings);
        let report = serde_json::to_value(&findings).expect("findings are finite numbers and texts");
        self.step(Phase::Export, 1, 1)?;
        Ok(Outcome {
            artifact: bytes,
            manifest,
            report,
            report_html,
            accuracy,
            latency,
            size_ratio,
            gate_failure,
        })
    }

    /// Tells of progress; an error where the caller wants to stop.
    fn step(&self, phase: Phase, done: usize, total: usize) -> Result<(), Error> {
        self.progress.update(phase, done as u64, total as u64);
        if self.progress.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// The same for loops that ask whether to go on.
    fn going(&self, phase: Phase, done: usize, total: usize) -> bool {
        self.step(phase, done, total).is_ok()
    }

    fn prepare(&self) -> Result<Prepared, Error> {
        let recipe = Recipe::parse(self.request.recipe).map_err(|e| Error::Recipe(e.to_string()))?;
        self.step(Phase::Import, 0, 1)?;
        let bytes = match self.request.beside {
            true => read_own(self.request.model)?,
            false => read(self.request.model)?,
        };
        let model = Source { sha256: artifact::sha256(&bytes), bytes: bytes.len() as u64 };
        let mut graph = load(&bytes)?;
        drop(bytes);
        if is_quantized(&graph) {
            let reason = "it is quantized already (it has QuantizeLinear or DequantizeLinear nodes)";
            return Err(Error::Model(reason.to_owned()));
        }
        let parameters = report::parameters(&graph);
        fold_constants(&mut graph);
        simplify(&mut graph, Passes::ALL);
        let plan = plan::plan(&graph, &recipe).map_err(|e| Error::Recipe(e.to_string()))?;
        if plan.integer_nodes() == 0 {
            let why = report::float_rows(&graph, &plan).into_iter().take(3);
            let why: Vec<String> = why.map(|r| format!("`{}` ({}): {}", r.node, r.op, r.reason)).collect();
            return Err(Error::Model(format!("nothing in it can be quantized; {}", why.join("; "))));
        }
        self.step(Phase::Import, 1, 1)?;
        Ok(Prepared { graph, plan, recipe, model, parameters })
    }

    fn session(&self, graph: Graph) -> Result<Session, Error> {
        let options = Options { threads: self.request.threads.max(1), ..Options::default() };
        Session::new(graph, options).map_err(|e| Error::Model(e.to_string()))
    }

    fn dataset(&self, path: &Path, ports: &[dataset::Port], which: &'static str) -> Result<Dataset, Error> {
        Dataset::open(path, ports).map_err(|e| data_error(e, path, which))
    }

    /// Histograms by the name of the value.
    fn calibrate(
        &self,
        float: &Session,
        graph: &Graph,
        plan: &Plan,
        data: &Dataset,
    ) -> Result<HashMap<String, Histogram>, Error> {
        let wanted: Vec<String> = roots(plan).map(|c| graph.value(c.value).name.clone()).collect();
        let total = data.samples();
        self.step(Phase::Calibrate, 0, total)?;
        let mut on_samples = |done| self.going(Phase::Calibrate, done, total);
        let batch = batch_for(float);
        calibrate(float, data, &wanted, batch, &mut on_samples).map_err(|e| run_error(e, "calibration"))
    }

    fn choose(
        &self,
        graph: &Graph,
        plan: &Plan,
        recipe: &Recipe,
        histograms: &HashMap<String, Histogram>,
    ) -> Result<Vec<(ValueId, Choice)>, Error> {
        let roots: Vec<&Coded> = roots(plan).collect();
        let mut choices = Vec::with_capacity(roots.len());
        for (done, coded) in roots.iter().enumerate() {
            self.step(Phase::Quantize, done, roots.len() + 1)?;
            let method = match (recipe.ranges, coded.region) {
                (Ranges::Minmax, _) | (Ranges::Auto, Region::Island) => Method::MinMax,
                (Ranges::Mse, _) | (Ranges::Auto, Region::Flow) => Method::Mse,
            };
            let histogram = &histograms[&graph.value(coded.value).name];
            choices.push((coded.value, ranges::choose(histogram, method)));
        }
        Ok(choices)
    }

    fn write(
        &self,
        rewritten: &Rewritten,
        graph: &Graph,
        plan: &Plan,
        params: &HashMap<ValueId, QuantParams>,
        recipe: &Recipe,
        model: &Source,
    ) -> Result<(Vec<u8>, Value), Error> {
        let values: Vec<(String, QuantParams)> =
            plan.coded.iter().map(|c| (graph.value(c.value).name.clone(), params[&c.root].clone())).collect();
        let max_code = |l: &Layer| Some((l.node.clone(), l.weights.as_ref()?.max_code));
        let max_codes: Vec<(String, u8)> = rewritten.layers.iter().filter_map(max_code).collect();
        let calibration = source(self.request.calibration)?;
        let evaluation = self.request.evaluation.map(source).transpose()?;
        let manifest = artifact::manifest(&Origin {
            model,
            calibration: &calibration,
            evaluation: evaluation.as_ref(),
            recipe,
            values: &values,
            max_codes: &max_codes,
        });
        Ok((artifact::write(&rewritten.graph, &manifest), manifest))
    }

    fn evaluate(
        &self,
        float: &Session,
        int8: &Session,
        data: &Dataset,
        which: &'static str,
    ) -> Result<Evaluation, Error> {
        let total = data.samples() + data.samples().min(LAYER_SAMPLES);
        self.step(Phase::Evaluate, 0, total)?;
        let mut on_samples = |done| self.going(Phase::Evaluate, done, total);
        evaluate::evaluate(float, int8, data, usize::MAX, batch_for(float), &mut on_samples)
            .map_err(|e| run_error(e, which))
    }

    /// The largest weight code of each layer.
    fn dial(&self, mut trial: Trial<'_>) -> Result<Dial, Error> {
        let layers = dial::layers(trial.graph, trial.plan);
        match trial.recipe.weights.max_code {
            MaxCode::Fixed(code) => Ok(Dial::fixed(&layers, code)),
            MaxCode::Auto => dial::search(&layers, &mut trial),
        }
    }

    fn layers(
        &self,
        float: &Session,
        int8: &Session,
        data: &Dataset,
        which: &'static str,
        rewritten: &Rewritten,
    ) -> Result<Vec<Option<evaluate::LayerNoise>>, Error> {
        let all = data.samples() + data.samples().min(LAYER_SAMPLES);
        let mut on_samples = |done| self.going(Phase::Evaluate, data.samples() + done, all);
        let noise = evaluate::layers(float, int8, data, &rewritten.layers, LAYER_SAMPLES, &mut on_samples);
        noise.map_err(|e| run_error(e, which))
    }

    /// Times both models on the first sample, in turns, so that what else the machine does hits both.
    fn measure(
        &self,
        float: &Session,
        int8: &Session,
        data: &Dataset,
        which: &'static str,
    ) -> Result<Latency, Error> {
        let failed = |e: dataset::Error| Error::Data { which, reason: e.to_string() };
        let mut reader = data.reader().map_err(failed)?;
        let first =
            reader.batches(1).map_err(failed)?.next().expect("a dataset has samples").map_err(failed)?;
        let feeds: Vec<_> = first.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let time = |session: &Session| {
            let start = self.progress.seconds();
            let ran = session.run(&feeds);
            ran.map(|_| self.progress.seconds() - start).map_err(|e| Error::Model(e.to_string()))
        };
        let (mut floats, mut int8s) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            time(float)?;
            time(int8)?;
        }
        let start = self.progress.seconds();
        while floats.len() < TIMED_RUNS
            && (floats.len() < 5 || self.progress.seconds() - start < TIMED_SECONDS)
        {
            self.step(Phase::Measure, floats.len(), TIMED_RUNS)?;
            floats.push(time(float)?);
            int8s.push(time(int8)?);
        }
        Ok(Latency { float_ms: 1e3 * median(floats), int8_ms: 1e3 * median(int8s) })
    }
}

/// What a search for the largest weight codes tries a dial on.
#[derive(Clone, Copy)]
struct Trial<'a> {
    job: &'a Job<'a>,
    float: &'a Session,
    graph: &'a Graph,
    plan: &'a Plan,
    params: &'a HashMap<ValueId, QuantParams>,
    recipe: &'a Recipe,
    data: &'a Dataset,
    which: &'static str,
}

impl Trial<'_> {
    /// The float model against the one with a dial, on the first samples.
    fn judge(&self, dial: &Dial, samples: usize) -> Result<Evaluation, Error> {
        let Trial { job, float, graph, plan, params, recipe, data, which } = *self;
        let int8 = job.session(rewrite(graph, plan, params, recipe, dial).graph)?;
        let total = data.samples().min(samples);
        let mut on_samples = |done| job.going(Phase::Quantize, done, total);
        evaluate::evaluate(float, &int8, data, samples, batch_for(float), &mut on_samples)
            .map_err(|e| run_error(e, which))
    }
}

impl Trials for Trial<'_> {
    type Error = Error;

    fn noise(&mut self, dial: &Dial) -> Result<f64, Error> {
        Ok(10f64.powf(-self.judge(dial, TRIAL_SAMPLES)?.sqnr_db / 10.0))
    }

    fn passes(&mut self, dial: &Dial) -> Result<bool, Error> {
        Ok(gate_failure(self.recipe, &self.judge(dial, usize::MAX)?).is_none())
    }
}

/// The values whose parameters are chosen; the others take over those of a root.
fn roots(plan: &Plan) -> impl Iterator<Item = &Coded> {
    plan.coded.iter().filter(|c| c.value == c.root)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Samples a batch, by the size of the inputs where dimensions that are not given count as one.
fn batch_for(session: &Session) -> usize {
    let bytes = |p: &Port| {
        let length = |d: &Dim| if let Dim::Known(n) = d { *n } else { 1 };
        p.dims.iter().map(length).product::<usize>() * p.dtype.size()
    };
    batch_size(session.inputs().iter().map(bytes).sum())
}

fn accuracy(e: &Evaluation) -> Accuracy {
    Accuracy {
        metric: e.metric.to_owned(),
        float: e.float.value,
        int8: e.int8.value,
        delta: e.int8.value - e.float.value,
        agreement: e.agreement.value,
        sqnr_db: e.sqnr_db,
        samples: e.samples,
    }
}

/// Why the gate of a recipe is not kept, with the figures.
fn gate_failure(recipe: &Recipe, e: &Evaluation) -> Option<String> {
    let mut reasons = Vec::new();
    let drop = e.float.value - e.int8.value;
    if let Some(max_drop) = recipe.gate.max_drop
        && drop > max_drop + ROUNDING
    {
        reasons.push(format!(
            "{} fell by {drop:.4} (from {:.4} to {:.4} on {} samples), more than max_drop {max_drop}",
            e.metric, e.float.value, e.int8.value, e.samples
        ));
    }
    if let Some(least) = recipe.gate.min_agreement
        && e.agreement.value < least - ROUNDING
    {
        reasons.push(format!(
            "float and INT8 agree on {:.4} of {} samples, less than min_agreement {least}",
            e.agreement.value, e.samples
        ));
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Io { path: path.display().to_string(), source })
}

/// Reads a model of the caller's own: an ONNX file with or without data in files beside it, or an archive of both.
///
/// # Errors
/// [`Error::Model`] or [`Error::Io`].
pub fn read_own(model: &Path) -> Result<Vec<u8>, Error> {
    if let Err(source) = std::fs::metadata(model) {
        return Err(Error::Io { path: model.display().to_string(), source });
    }
    external::read(model, OWN_BYTES_MAX).map_err(Error::Model)
}

/// The one ONNX file that an archive (zip, tar) makes, at most `bytes_max` long; `None` where the file is no archive.
///
/// # Errors
/// [`Error::Model`] with the member or tensor at fault.
pub fn unpacked(file: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
    external::unpacked(file, bytes_max).map_err(Error::Model)
}

fn source(path: &Path) -> Result<Source, Error> {
    let failed = |source| Error::Io { path: path.display().to_string(), source };
    artifact::source(&mut File::open(path).map_err(failed)?).map_err(failed)
}

fn load(bytes: &[u8]) -> Result<Graph, Error> {
    import::import(bytes).map_err(|e| Error::Model(e.to_string()))
}

fn is_quantized(graph: &Graph) -> bool {
    let on_codes = |op: &Op| match op {
        Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. } => true,
        // QLinearConv, QGemm, MatMulInteger, DynamicQuantizeLinear and their like.
        Op::Other(o) => ["QLinear", "QGemm", "Integer", "Quantize"].iter().any(|part| o.name.contains(part)),
        op => op.is_integer(),
    };
    graph.nodes.iter().any(|n| on_codes(&n.op))
}

/// The inputs of a model as a dataset sees them.
pub fn ports(inputs: &[Port]) -> Vec<dataset::Port> {
    let known = |d: &Dim| if let Dim::Known(n) = d { Some(*n) } else { None };
    let port = |p: &Port| dataset::Port {
        name: p.name.clone(),
        dtype: p.dtype,
        dims: p.dims.iter().map(known).collect(),
    };
    inputs.iter().map(port).collect()
}

fn data_error(error: dataset::Error, path: &Path, which: &'static str) -> Error {
    match error {
        dataset::Error::File(npy::Error::Io(source)) if source.kind() == std::io::ErrorKind::NotFound => {
            Error::Io { path: path.display().to_string(), source }
        }
        other => Error::Data { which, reason: other.to_string() },
    }
}

/// A run that failed: where the inputs do not fit it is the data, where a node fails it is the model.
fn run_error(error: calibrate::Error, which: &'static str) -> Error {
    match error {
        calibrate::Error::Cancelled => Error::Cancelled,
        calibrate::Error::Run { source: exec::Error::Node { .. }, .. } | calibrate::Error::Unseen(_) => {
            Error::Model(error.to_string())
        }
        other => Error::Data { which, reason: other.to_string() },
    }
}

/// Whether a file is a model that can be run, and what it is: what an upload is checked with. Gives `inputs`, `outputs`
/// (`{name, dtype, shape}`, numbers or names), `operators` (counts), `parameters`, `macs` (of one sample, `null` where
/// the shapes are not fixed but for the batch), `quantized`, and what a job with the default recipe would do: `integer`
/// (node names), `float` (`{node, op, reason}`); and `memory`, the bytes that it takes: `weights` as loaded, `run` of
/// one sample, where dimensions that are not given count as one (`null` where only a run tells).
///
/// # Errors
/// [`Error::Model`] or [`Error::Io`].
pub fn inspect(model: &Path, memory_bytes_max: u64) -> Result<Value, Error> {
    inspect_bytes(&read(model)?, memory_bytes_max)
}

/// As [`inspect`].
///
/// # Errors
/// [`Error::Model`].
pub fn inspect_bytes(model: &[u8], memory_bytes_max: u64) -> Result<Value, Error> {
    let mut graph = load(model)?;
    let mut operators: BTreeMap<&str, u64> = BTreeMap::new();
    for node in &graph.nodes {
        *operators.entry(node.op.name()).or_default() += 1;
    }
    let quantized = is_quantized(&graph);
    let (parameters, name) = (report::parameters(&graph), graph.name.clone());
    let (mut integer, mut float) = (Vec::new(), Vec::new());
    if !quantized {
        fold_constants(&mut graph);
        simplify(&mut graph, Passes::ALL);
        let plan = plan::plan(&graph, &Recipe::default()).map_err(|e| Error::Recipe(e.to_string()))?;
        let named = graph
            .nodes
            .iter()
            .zip(&plan.decisions)
            .filter(|(_, d)| matches!(d, Decision::Integer | Decision::Lookup));
        integer = named.map(|(n, _)| n.name.clone()).collect();
        float = report::float_rows(&graph, &plan);
    }
    // No value is allocated yet: a session plans, and packs weights.
    let constants =
        graph.values.iter().filter_map(|v| v.constant.as_ref()).map(|t| t.view().bytes.len() as u64);
    let constants: u64 = constants.sum();
    let options = Options { memory_bytes_max, ..Options::default() };
    let session = Session::new(graph, options).map_err(|e| Error::Model(e.to_string()))?;
    let shape = |p: &Port| p.shape(|_| Some(1)).expect("every dimension has a length");
    let run = session.arena_bytes(&session.inputs().iter().map(shape).collect::<Vec<_>>());
    let run = match run {
        Err(e @ exec::Error::TooLarge { .. }) => return Err(Error::Model(e.to_string())),
        run => run.ok(),
    };
    let weights = constants.saturating_add(session.weight_bytes());
    let memory = weights.saturating_add(run.unwrap_or(0));
    if memory > memory_bytes_max {
        let text = format!("it takes {memory} bytes of memory, more than the limit of {memory_bytes_max}");
        return Err(Error::Model(text));
    }
    if quantized {
        integer =
            session.nodes().filter(|(.., on_codes)| *on_codes).map(|(name, ..)| name.to_owned()).collect();
        let boundary = |op: &Op| matches!(op, Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. });
        let left =
            session.nodes().filter(|(_, op, on_codes)| !on_codes && !boundary(op) && !plan::moves_data(op));
        float = left.map(|(node, op, _)| report::FloatRow::not_in_codes(node, op.name())).collect();
    }
    let dim = |d: &Dim| match d {
        Dim::Known(n) => json!(n),
        Dim::Symbol(name) => json!(name),
        Dim::Unknown => Value::Null,
    };
    let port = |p: &Port| json!({"name": p.name, "dtype": p.dtype.name(), "shape": p.dims.iter().map(dim).collect::<Vec<_>>()});
    Ok(json!({
        "name": name,
        "inputs": session.inputs().iter().map(port).collect::<Vec<_>>(),
        "outputs": session.outputs().iter().map(port).collect::<Vec<_>>(),
        "operators": operators,
        "parameters": parameters,
        "macs": macs(&session),
        "memory": {"weights": weights, "run": run},
        "quantized": quantized,
        "integer": integer,
        "float": float,
        "unsupported": [],
    }))
}

/// Checks that a file is a dataset (`.npz` or `.npy` with arrays that share their first dimension), without a model.
/// Gives `{"samples": n, "arrays": [{"name", "dtype", "shape"}]}`.
///
/// # Errors
/// [`Error::Data`] or [`Error::Io`].
pub fn inspect_dataset(path: &Path) -> Result<Value, Error> {
    let failed = |e: npy::Error| data_error(e.into(), path, "dataset");
    let archive = npy::Archive::open(path).map_err(failed)?;
    let refused = |reason: String| Error::Data { which: "dataset", reason };
    let mut samples: Option<(&str, usize)> = None;
    for entry in archive.arrays() {
        // The mean and deviation of a byte image are not samples.
        let scaling = ["_mean", "_std"].iter().find_map(|suffix| entry.name.strip_suffix(suffix));
        if scaling.is_some_and(|name| archive.arrays().iter().any(|e| e.name == format!("{name}_u8"))) {
            continue;
        }
        let Some(&first) = entry.header.shape.first() else {
            return Err(refused(format!("array `{}` has no dimension, expected samples first", entry.name)));
        };
        match samples {
            None => samples = Some((&entry.name, first)),
            Some((_, n)) if n == first => {}
            Some((other, n)) => {
                let reason = format!("array `{}` has {first} samples, `{other}` has {n}", entry.name);
                return Err(refused(reason));
            }
        }
    }
    let samples = samples.map_or(0, |(_, n)| n);
    if samples == 0 {
        return Err(refused("the file holds no samples".to_owned()));
    }
    let array =
        |e: &npy::Entry| json!({"name": e.name, "dtype": e.header.kind.name(), "shape": e.header.shape});
    Ok(json!({"samples": samples, "arrays": archive.arrays().iter().map(array).collect::<Vec<_>>()}))
}

/// Checks a recipe without running it; gives it back with every default filled in.
///
/// # Errors
/// [`Error::Recipe`] with the field at fault.
pub fn check_recipe(recipe: &Value) -> Result<Value, Error> {
    let recipe: Result<Recipe, quant::Error> = Recipe::parse(recipe);
    let recipe = recipe.map_err(|e| Error::Recipe(e.to_string()))?;
    Ok(serde_json::to_value(recipe).expect("a recipe is numbers and texts"))
}

/// Multiply-accumulates of one sample; `None` where more than the first dimension is open.
fn macs(session: &Session) -> Option<u64> {
    let length = |(axis, dim): (usize, &Dim)| match dim {
        Dim::Known(n) => Some(*n),
        Dim::Symbol(_) | Dim::Unknown => (axis == 0).then_some(1),
    };
    let shape = |p: &Port| p.dims.iter().enumerate().map(length).collect::<Option<Vec<usize>>>();
    let shapes: Option<Vec<Vec<usize>>> = session.inputs().iter().map(shape).collect();
    let steps = session.steps(&shapes?).ok()?;
    Some(steps.iter().map(|step| step.macs).sum())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::engine::quant::evaluate::{Share, wilson};
    use crate::engine::tensor::Tensor;

    #[test]
    fn a_dataset_is_told_by_its_arrays() {
        let floats = |shape: &[usize]| Tensor::zeros(crate::engine::tensor::DType::F32, shape);
        let (x, mean, odd) = (floats(&[4, 3]), floats(&[]), floats(&[3]));
        let file = tempfile::NamedTempFile::new().unwrap();
        for (arrays, want) in [
            (&[("x_u8", &x), ("x_mean", &mean), ("x_std", &mean)][..], Ok(4)),
            (&[("x", &x), ("y", &odd)], Err("`y` has 3 samples, `x` has 4")),
            (&[("x", &mean)], Err("no dimension")),
            (&[("x", &floats(&[0, 1]))], Err("no samples")),
        ] {
            let bytes = npy::write_npz(Cursor::new(Vec::new()), arrays).unwrap().into_inner();
            std::fs::write(file.path(), bytes).unwrap();
            match (inspect_dataset(file.path()), want) {
                (Ok(found), Ok(samples)) => {
                    assert_eq!(found["samples"], samples);
                    assert_eq!(
                        found["arrays"][0],
                        json!({"name": "x_u8", "dtype": "float32", "shape": [4, 3]})
                    );
                }
                (Err(error), Err(says)) => assert!(error.to_string().contains(says), "{error}"),
                (found, want) => panic!("{found:?}, expected {want:?}"),
            }
        }
        assert!(matches!(inspect_dataset(Path::new("/nowhere/x.npz")), Err(Error::Io { .. })));
    }

    #[test]
    fn a_recipe_comes_back_in_full() {
        let full = check_recipe(&json!({"ranges": "mse"})).unwrap();
        assert_eq!(full["weights"]["per_channel"], true);
        assert_eq!(full["ranges"], "mse");
        assert_eq!(check_recipe(&full).unwrap(), full);
        assert!(check_recipe(&json!({"ranges": 1})).unwrap_err().to_string().contains("`ranges`"));
    }

    #[test]
    fn a_gate_that_is_not_kept_says_by_how_much() {
        let found = |float: u64, int8: u64, agree: u64| Evaluation {
            metric: "top1",
            agreement_by: "class",
            samples: 1000,
            float: wilson(float, 1000),
            int8: wilson(int8, 1000),
            float_top5: None,
            int8_top5: None,
            agreement: Share { value: agree as f64 / 1000.0, ..Share::default() },
            broken: 0,
            mended: 0,
            sqnr_db: 30.0,
            cosine: 1.0,
            worst: Vec::new(),
            classes: Vec::new(),
            slices: Vec::new(),
        };
        for (gate, float, int8, agree, want) in [
            (json!({}), 900, 100, 0, None),
            (json!({"max_drop": 0.01}), 900, 890, 0, None),
            (
                json!({"max_drop": 0.01}),
                900,
                889,
                0,
                Some("from 0.9000 to 0.8890 on 1000 samples), more than max_drop 0.01"),
            ),
            (json!({"min_agreement": 0.98}), 900, 900, 979, Some("agree on 0.9790")),
        ] {
            let recipe = Recipe::parse(&json!({"gate": gate})).unwrap();
            let got = gate_failure(&recipe, &found(float, int8, agree));
            match want {
                None => assert_eq!(got, None, "{gate}"),
                Some(says) => assert!(got.as_deref().is_some_and(|g| g.contains(says)), "{gate}: {got:?}"),
            }
        }
    }
}
