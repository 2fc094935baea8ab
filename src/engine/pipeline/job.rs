//! A job from its files to its outcome. Decides nothing about numbers: it asks `quant` and keeps the order.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::files::{batch_for, data_error, is_quantized, load, ports, read, read_own, run_error};
use super::{Accuracy, Error, Latency, Outcome, Phase, Progress, Request};
use crate::engine::artifact::{self, Origin, Samples, Source};
use crate::engine::exec::Options;
use crate::engine::exec::fold::fold_constants;
use crate::engine::exec::session::Session;
use crate::engine::graph::passes::Passes;
use crate::engine::graph::passes::simplify::simplify;
use crate::engine::graph::{Graph, ValueId};
use crate::engine::onnx::import;
use crate::engine::quant::calibrate::{self, calibrate, needed};
use crate::engine::quant::dial::{self, Dial, Trials};
use crate::engine::quant::evaluate::{self, Evaluation};
use crate::engine::quant::plan::{Coded, Kept, Plan, Region};
use crate::engine::quant::ranges::{self, Choice, Method};
use crate::engine::quant::report::{self, Findings};
use crate::engine::quant::rewrite::{Layer, Rewritten, rewrite};
use crate::engine::quant::statistics::{self, Statistics};
use crate::engine::quant::targets::Profile;
use crate::engine::quant::targets::{planner, settle};
use crate::engine::quant::{MaxCode, Ranges, Recipe, Rounding, report_html};
use crate::engine::tensor::dataset::{self, Dataset};
use crate::engine::tensor::digest::SampleDigests;
use crate::engine::tensor::qparams::QuantParams;

/// Shares are quotients of counts: a drop of exactly `max_drop` must not fail by the last bit of a difference.
const ROUNDING: f64 = 1e-9;
/// Samples over which the noise of each layer is measured.
const LAYER_SAMPLES: usize = 64;
/// Samples over which the noise of one layer's smaller codes is measured, once a layer.
const TRIAL_SAMPLES: usize = 16;
/// Pairs of runs that are timed, at most.
const TIMED_RUNS: usize = 60;
/// Seconds that timing may take, about.
const TIMED_SECONDS: f64 = 3.0;

/// What a recipe does without where there are statistics and no samples.
const WITHOUT_SAMPLES: &str = "ranges come from the statistics of an earlier job and no calibration samples were \
                               there: weights are rounded to the nearest code, biases are not corrected";

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
    /// What was done otherwise than asked.
    notes: Vec<String>,
}

impl Job<'_> {
    fn run(&self) -> Result<Outcome, Error> {
        let Prepared { graph, plan, recipe, model, parameters, notes } = self.prepare()?;
        let float = self.session(graph.clone())?;
        let ports = ports(float.inputs());
        let calibration = self.dataset(self.request.calibration, &ports, "calibration")?;
        let evaluation = self.dataset(self.request.evaluation, &ports, "evaluation")?;
        let (judged, which) = match (&evaluation, &calibration) {
            (Some(data), _) => (data, "evaluation"),
            (None, Some(data)) => (data, "calibration"),
            (None, None) => return Err(no_samples()),
        };
        let (statistics, kept) = match self.request.statistics {
            Some(path) => self.earlier(path, &model)?,
            None => {
                let calibration = calibration.as_ref().ok_or_else(no_samples)?;
                let found = self.calibrate(&float, &graph, &plan, calibration, &model)?;
                let kept = found.encode();
                (found, kept)
            }
        };
        let choices = self.choose(&graph, &plan, &recipe, &statistics)?;
        let mut params: HashMap<ValueId, QuantParams> =
            choices.iter().map(|(root, choice)| (*root, choice.params.clone())).collect();
        settle::settle(&graph, &plan, &Profile::of(&recipe), &mut params);
        let (graph, plan, params, recipe) = (&graph, &plan, &params, recipe);
        let trial =
            Trial { job: self, float: &float, graph, plan, params, recipe: &recipe, data: judged, which };
        let dial = self.dial(trial)?;
        let rewritten = rewrite(graph, plan, params, &recipe, &dial);
        self.step(Phase::Quantize, 1, 1)?;
        let used = Used { model: &model, statistics: &statistics, evaluation: evaluation.as_ref() };
        let (bytes, manifest) = self.write(&rewritten, graph, plan, params, &recipe, used)?;

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
                report::activation(name, &statistics.values[name], choice)
            })
            .collect();
        let layers = report::layer_rows(&rewritten.layers, &noise);
        let findings = Findings {
            engine: artifact::ENGINE,
            contract: artifact::CONTRACT,
            model: report::Model { name: graph.name.clone(), sha256: model.sha256, parameters },
            recipe,
            notes,
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
            statistics: kept,
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
        let mut recipe = Recipe::parse(self.request.recipe).map_err(|e| Error::Recipe(e.to_string()))?;
        let mut notes = Vec::new();
        if self.request.calibration.is_none()
            && (recipe.rounding != Rounding::Nearest || recipe.bias_correction)
        {
            (recipe.rounding, recipe.bias_correction) = (Rounding::Nearest, false);
            notes.push(WITHOUT_SAMPLES.to_owned());
        }
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
        let plan = planner::plan(&graph, &recipe, &Kept::new()).map_err(|e| Error::Recipe(e.to_string()))?;
        if plan.integer_nodes() == 0 {
            let why = report::float_rows(&graph, &plan).into_iter().take(3);
            let why: Vec<String> = why.map(|r| format!("`{}` ({}): {}", r.node, r.op, r.reason)).collect();
            return Err(Error::Model(format!("nothing in it can be quantized; {}", why.join("; "))));
        }
        self.step(Phase::Import, 1, 1)?;
        Ok(Prepared { graph, plan, recipe, model, parameters, notes })
    }

    fn session(&self, graph: Graph) -> Result<Session, Error> {
        let options = Options { threads: self.request.threads.max(1), ..Options::default() };
        Session::new(graph, options).map_err(|e| Error::Model(e.to_string()))
    }

    fn dataset(
        &self,
        path: Option<&Path>,
        ports: &[dataset::Port],
        which: &'static str,
    ) -> Result<Option<Dataset>, Error> {
        path.map(|path| Dataset::open(path, ports).map_err(|e| data_error(e, path, which))).transpose()
    }

    /// The statistics of an earlier job, and their bytes.
    fn earlier(&self, path: &Path, model: &Source) -> Result<(Statistics, Vec<u8>), Error> {
        let bytes = read(path)?;
        let refused = |reason: String| Error::Data { which: "statistics", reason };
        let statistics = Statistics::decode(&bytes).map_err(|e| refused(e.to_string()))?;
        let of = hex::encode(statistics.model);
        match of == model.sha256 {
            true => Ok((statistics, bytes)),
            false => {
                Err(refused(format!("they are of the model with SHA-256 {of}, this is {}", model.sha256)))
            }
        }
    }

    /// What is known of each value that a plan could want, not this one alone.
    fn calibrate(
        &self,
        float: &Session,
        graph: &Graph,
        plan: &Plan,
        data: &Dataset,
        model: &Source,
    ) -> Result<Statistics, Error> {
        let mut wanted: Vec<ValueId> =
            roots(plan).map(|c| c.value).chain(statistics::wanted(graph)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let wanted: Vec<String> = wanted.into_iter().map(|v| graph.value(v).name.clone()).collect();
        let mut digest = [0; 32];
        hex::decode_to_slice(&model.sha256, &mut digest).expect("a digest is 64 hexadecimal digits");
        let total = data.samples();
        self.step(Phase::Calibrate, 0, total)?;
        let mut on_samples = |done| self.going(Phase::Calibrate, done, total);
        let batch = batch_for(float);
        calibrate(float, data, &wanted, digest, batch, &mut on_samples)
            .map_err(|e| run_error(e, "calibration"))
    }

    fn choose(
        &self,
        graph: &Graph,
        plan: &Plan,
        recipe: &Recipe,
        statistics: &Statistics,
    ) -> Result<Vec<(ValueId, Choice)>, Error> {
        let roots: Vec<&Coded> = roots(plan).collect();
        let mut choices = Vec::with_capacity(roots.len());
        for (done, coded) in roots.iter().enumerate() {
            self.step(Phase::Quantize, done, roots.len() + 1)?;
            let method = match (recipe.ranges, coded.region) {
                (Ranges::Minmax, _) | (Ranges::Auto, Region::Island) => Method::MinMax,
                (Ranges::Mse, _) | (Ranges::Auto, Region::Flow) => Method::Mse,
                (Ranges::MeanMinmax, _) => Method::MeanMinmax,
                (Ranges::Percentile(share), _) => Method::Percentile(share),
                (Ranges::Entropy, _) => Method::Entropy,
            };
            let name = &graph.value(coded.value).name;
            let observed =
                needed(&statistics.values, name).map_err(|e| match (e, self.request.statistics) {
                    (calibrate::Error::Unseen(value), Some(_)) => {
                        let reason = format!("they do not know of value `{value}`: calibrate again");
                        Error::Data { which: "statistics", reason }
                    }
                    (e, _) => run_error(e, "calibration"),
                })?;
            choices.push((coded.value, ranges::choose(observed, method, Profile::of(recipe).codes)));
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
        used: Used<'_>,
    ) -> Result<(Vec<u8>, Value), Error> {
        let values: Vec<(String, QuantParams)> =
            plan.coded.iter().map(|c| (graph.value(c.value).name.clone(), params[&c.root].clone())).collect();
        let max_code = |l: &Layer| Some((l.node.clone(), l.weights.as_ref()?.max_code));
        let max_codes: Vec<(String, u8)> = rewritten.layers.iter().filter_map(max_code).collect();
        let Statistics { data: digest, samples, .. } = *used.statistics;
        let calibration = Samples { sha256: hex::encode(digest), samples };
        let evaluation = used.evaluation.map(|data| self.digest(data)).transpose()?;
        let manifest = artifact::manifest(&Origin {
            model: used.model,
            calibration: &calibration,
            evaluation: evaluation.as_ref(),
            recipe,
            values: &values,
            max_codes: &max_codes,
        });
        Ok((artifact::write(&rewritten.graph, &manifest), manifest))
    }

    /// The digest of evaluation data.
    fn digest(&self, data: &Dataset) -> Result<Samples, Error> {
        let failed = |e: dataset::Error| Error::Data { which: "evaluation", reason: e.to_string() };
        let mut digests = SampleDigests::default();
        let mut reader = data.reader().map_err(failed)?;
        for batch in reader.batches(1).map_err(failed)? {
            digests.add(data, &batch.map_err(failed)?);
            self.step(Phase::Quantize, 1, 1)?;
        }
        let samples = digests.samples();
        Ok(Samples { sha256: hex::encode(digests.finish()), samples })
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

/// What went into an artifact.
#[derive(Clone, Copy)]
struct Used<'a> {
    model: &'a Source,
    statistics: &'a Statistics,
    evaluation: Option<&'a Dataset>,
}

fn no_samples() -> Error {
    let reason = "there are none: statistics hold no samples to compare float and INT8 on";
    Error::Data { which: "evaluation", reason: reason.to_owned() }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::quant::evaluate::{Share, wilson};

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
