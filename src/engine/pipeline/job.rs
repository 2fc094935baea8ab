//! A job from its files to its outcome. Decides nothing about numbers: it asks `quant` and keeps the order.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::even::Even;
use super::files::{batch_for, data_error, load_asked, ports, read, run_error};
use super::running::Job;
use super::trials::{Bench, DialTrials, FloatTrials, Planned, too_few_integers};
use super::{Accuracy, Error, Latency, Outcome, Phase, Progress, Request, gate, nothing, trained};
use crate::engine::artifact::{self, Origin, Source};
use crate::engine::exec::Port;
use crate::engine::exec::fold::fold_constants;
use crate::engine::exec::session::Session;
use crate::engine::graph::{Graph, ValueId};
use crate::engine::onnx::import;
use crate::engine::quant::calibrate::{self, calibrate, needed};
use crate::engine::quant::checks::around;
use crate::engine::quant::checks::convergence::SampleRanges;
use crate::engine::quant::checks::normalization::{FirstLayer, first_layers};
use crate::engine::quant::dial::{self, Dial};
use crate::engine::quant::effect::{self, Effects};
use crate::engine::quant::evaluate::{Evaluation, Reference};
use crate::engine::quant::layer_noise::{self, Compared, LayerNoise};
use crate::engine::quant::plan::{Coded, Kept, Plan};
use crate::engine::quant::reconstruct::{self, Reconstructed};
use crate::engine::quant::report::html::page;
use crate::engine::quant::report::{self, Findings, advice, rows};
use crate::engine::quant::rewrite::{Layer, Rewritten, rewrite};
use crate::engine::quant::samples::{self, Samples};
use crate::engine::quant::schemes::{any, float16, windows};
use crate::engine::quant::search::{self, Sensitivity, Trial};
use crate::engine::quant::statistics::{self, Statistics};
use crate::engine::quant::targets::shared::unsign_shared;
use crate::engine::quant::targets::{Profile, simplify_for};
use crate::engine::quant::{MaxCode, Ranges, Recipe, Rounding, Scheme, Target};
use crate::engine::tensor::dataset::{self, Dataset};
use crate::engine::tensor::digest::SampleDigests;
use crate::engine::tensor::qparams::QuantParams;

/// Samples over which the noise of each layer is measured.
const LAYER_SAMPLES: usize = 64;
/// Samples that are looked at closely, at least and at most; between them what fits.
const CLOSE_MIN: usize = 4;
const CLOSE_MAX: usize = 64;
/// What they may take in memory, by the values of a run.
const CLOSE_BYTES: u64 = 512 << 20;
/// Samples that are run together while layers are looked at, at most.
const CLOSE_BATCH: usize = 4;
/// Batches of them that are wanted at least, where there are so many samples.
const CLOSE_BATCHES: usize = 8;
/// Pairs of runs that are timed, at most.
const TIMED_RUNS: usize = 60;
/// Seconds that timing may take, about.
const TIMED_SECONDS: f64 = 0.5;

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

/// The INT8 side of a job.
struct Made {
    planned: Planned,
    rewritten: Rewritten,
    sensitivities: Vec<Sensitivity>,
    trials: Vec<Trial>,
}

/// The float side of a job.
struct Prepared {
    graph: Graph,
    /// Where the model comes quantized, the float model that it is compared with.
    reference: Option<Graph>,
    plan: Plan,
    recipe: Recipe,
    model: Source,
    /// Float weights of the model as it came.
    parameters: u64,
    /// What was done otherwise than asked.
    notes: Vec<String>,
    /// What the first layers tell of the data that the model was trained on.
    first_layers: Vec<FirstLayer>,
}

impl Job<'_> {
    fn run(&self) -> Result<Outcome, Error> {
        let prepared = self.prepare()?;
        let Prepared { graph, reference, plan, recipe, model, parameters, mut notes, first_layers } =
            prepared;
        // What is given as calibration data may be statistics, of live traffic for example.
        let given = self.request.calibration.filter(|path| Statistics::is_file(path));
        let known = self.request.statistics.or(given).map(|path| self.earlier(path, &model)).transpose()?;
        let quantized = reference.is_some();
        let as_trained = quantized && !recipe.complete;
        // What is left to quantize of a quantized model is looked at in that model.
        let whole = (quantized && recipe.complete).then(|| self.unfused(graph.clone())).transpose()?;
        let float = self.session(reference.unwrap_or_else(|| graph.clone()))?;
        let seen = whole.as_ref().unwrap_or(&float);
        let ports = ports(float.inputs());
        let calibration = self.request.calibration.filter(|_| given.is_none());
        let calibration = self.dataset(calibration, &ports, "calibration")?;
        let evaluation = self.dataset(self.request.evaluation, &ports, "evaluation")?;
        let (judged, which) = match (&evaluation, &calibration) {
            (Some(data), _) => (data, "evaluation"),
            (None, Some(data)) => (data, "calibration"),
            (None, None) => return Err(no_samples()),
        };
        if let Some(reason) = gate::unanswered(&recipe.gate, judged) {
            return Err(Error::Data { which, reason });
        }
        let before = around::before(&first_layers, &float, calibration.as_ref(), evaluation.as_ref());
        let before = before.map_err(|(which, e)| run_error(e, which))?;
        let samples = self.samples(&float, calibration.as_ref())?;
        let even = match quantized {
            true => Even::unchanged(graph, Vec::new()),
            false => self.even(graph, &plan, &recipe, &float, &samples)?,
        };
        notes.extend_from_slice(&even.notes);
        let (graph, own) = (&even.graph, even.session(&float));
        let mut ranges = SampleRanges::default();
        let (statistics, kept) = match known {
            Some(known) => known,
            None if as_trained => {
                let nothing = trained::nothing_seen(&model);
                let kept = nothing.encode();
                (nothing, kept)
            }
            None => {
                let calibration = calibration.as_ref().ok_or_else(no_calibration)?;
                let found = self.calibrate(seen, &even, &plan, calibration, &model, &mut ranges)?;
                let kept = found.encode();
                self.progress.calibrated(&kept);
                (found, kept)
            }
        };

        let (effects, unsafe_) = self.choose(graph, plan, &recipe, &statistics, &samples)?;
        let reference = Reference::new(&float, judged);
        let bench = Bench {
            job: self,
            float: &float,
            graph,
            recipe: &recipe,
            statistics: &statistics,
            effects: &effects,
            kept: &unsafe_,
            reference: &reference,
            which,
            samples: &samples,
        };
        let Made { planned, rewritten, sensitivities, trials } = match recipe.scheme {
            Scheme::Float16 => self.halves(&float, graph, &recipe, calibration.as_ref().unwrap_or(judged))?,
            Scheme::Auto | Scheme::Static | Scheme::Dynamic | Scheme::WeightOnly => self.make(bench)?,
        };
        self.step(Phase::Quantize, 1, 1)?;
        let (plan, params, choices) = (&planned.plan, &planned.params, &planned.choices);
        notes.extend(trained::notes(plan, &recipe));
        notes.extend(nothing::note(graph, plan, &unsafe_));
        let judged_on = self.digest(judged, which)?;
        let used = Used {
            model: &model,
            statistics: &statistics,
            evaluation: evaluation.as_ref().map(|_| &judged_on),
        };
        let (bytes, manifest) = self.write(&rewritten, graph, plan, params, &recipe, used)?;

        // The INT8 side is read back from the bytes, so that what is judged is what is served.
        let int8 = import::import(&bytes)
            .map_err(|e| Error::Model(format!("the artifact does not read back: {e}")))?;
        let int8 = self.session(int8)?;
        let compared = Compared { int8: &int8, float: own, layers: &rewritten.layers };
        let (found, noise) = self.evaluate(&reference, compared, which)?;
        let checked = around::after(before, &ranges, &float, judged, &found);
        let (data_checks, convergence) = checked.map_err(|e| run_error(e, which))?;
        let latency = self.measure(&float, &int8, judged, which)?;

        self.step(Phase::Export, 0, 1)?;
        let size_ratio = bytes.len() as f64 / model.bytes.max(1) as f64;
        let gate_failure = gate::judge(&recipe.gate, &found).failure;
        let gate_failure = gate_failure.map(|why| match too_few_integers(&trials) {
            Some(also) => format!("{why}; {also}"),
            None => why,
        });
        let activations: Vec<_> = choices
            .iter()
            .map(|(root, choice)| {
                let name = &graph.value(*root).name;
                rows::activation(name, &statistics.values[name], choice)
            })
            .collect();
        let from = rows::Source { graph, plan, recipe: &recipe, activations: &activations };
        let layers = rows::layer_rows(&rewritten.layers, &noise, from);
        let unheld: Vec<(String, String)> =
            unsafe_.iter().map(|(&n, why)| (graph.nodes[n].name.clone(), why.clone())).collect();
        let mut advice = advice::of_unheld(&unheld, &recipe);
        let others = advice::advice(&layers, &activations, &sensitivities, &recipe);
        advice.extend(trained::of_own(others, graph, plan));
        let named = self.request.named;
        let findings = Findings {
            engine: artifact::ENGINE,
            contract: artifact::CONTRACT,
            model: report::Model {
                name: named.model.map_or_else(|| graph.name.clone(), str::to_owned),
                sha256: model.sha256,
                parameters,
            },
            calibration: named.calibration.map(str::to_owned),
            evaluated: named.evaluation.map(str::to_owned),
            begun_at: named.begun_at.map(str::to_owned),
            data_checks,
            convergence,
            advice,
            recipe,
            notes,
            evaluated_on: which,
            evaluated_on_sha256: judged_on.sha256.clone(),
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
            coverage: rows::coverage(plan),
            layers,
            activations,
            float_nodes: rows::float_rows(graph, plan),
            gate_failure: gate_failure.clone(),
            evaluation: found,
            sensitivity: sensitivities,
            trials,
        };
        let accuracy = accuracy(&findings.evaluation);
        let report_html = page::page(&findings);
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

    fn prepare(&self) -> Result<Prepared, Error> {
        let mut recipe = Recipe::parse(self.request.recipe).map_err(|e| Error::Recipe(e.to_string()))?;
        let mut notes = Vec::new();
        if self.request.calibration.is_none()
            && self.request.statistics.is_some()
            && (recipe.rounding != Rounding::Nearest || recipe.bias_correction)
        {
            (recipe.rounding, recipe.bias_correction) = (Rounding::Nearest, false);
            notes.push(WITHOUT_SAMPLES.to_owned());
        }
        self.step(Phase::Import, 0, 1)?;
        let (mut graph, model) = load_asked(self.request)?;
        let reference = trained::take(&mut graph, &mut recipe)?;
        let parameters = rows::parameters(reference.as_ref().unwrap_or(&graph));
        fold_constants(&mut graph);
        let first_layers = first_layers(reference.as_ref().unwrap_or(&graph));
        if reference.is_none() || recipe.complete {
            simplify_for(&mut graph, &recipe);
        }
        let plan_of = |graph: &Graph| any::plan(graph, &recipe, &Kept::new());
        let mut plan = plan_of(&graph).map_err(|e| Error::Recipe(e.to_string()))?;
        if reference.is_none()
            && recipe.ranges_by_row()
            && let Some(unrolled) = windows::unrolled(&graph, &plan)
        {
            graph = unrolled;
            plan = plan_of(&graph).map_err(|e| Error::Recipe(e.to_string()))?;
        }
        if plan.quantized_nodes() == 0 {
            return Err(Error::Model(nothing::refusal(&graph, &plan, &recipe)));
        }
        self.step(Phase::Import, 1, 1)?;
        Ok(Prepared { graph, reference, plan, recipe, model, parameters, notes, first_layers })
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
        even: &Even,
        plan: &Plan,
        data: &Dataset,
        model: &Source,
        ranges: &mut SampleRanges,
    ) -> Result<Statistics, Error> {
        let (graph, float) = (&even.graph, even.observer(float));
        let mut wanted: Vec<ValueId> =
            plan.coded.iter().map(|c| c.value).chain(statistics::wanted(graph)).collect();
        wanted.extend(plan.sixteen.keys());
        wanted.sort_unstable();
        wanted.dedup();
        let wanted = wanted.into_iter().map(|v| graph.value(v).name.clone());
        let wanted: Vec<String> = wanted.chain(even.before().iter().cloned()).collect();
        let mut digest = [0; 32];
        hex::decode_to_slice(&model.sha256, &mut digest).expect("a digest is 64 hexadecimal digits");
        let total = data.samples();
        self.step(Phase::Calibrate, 0, total)?;
        let mut on_samples = |done| self.going(Phase::Calibrate, done, total);
        let batch = batch_for(float);
        calibrate(float, data, &wanted, digest, batch, ranges, &mut on_samples)
            .map_err(|e| run_error(e, "calibration"))
    }

    /// The samples that are looked at closely.
    fn samples(&self, float: &Session, data: Option<&Dataset>) -> Result<Samples, Error> {
        let Some(data) = data else { return Ok(Samples::default()) };
        let shape = |p: &Port| p.shape(|_| Some(1)).expect("every dimension has a length");
        let one = float.arena_bytes(&float.inputs().iter().map(shape).collect::<Vec<_>>()).unwrap_or(0);
        let room = usize::try_from(CLOSE_BYTES / one.max(1)).unwrap_or(usize::MAX);
        let count = room.clamp(CLOSE_MIN, CLOSE_MAX);
        // Some batches are there to judge what was found on the others.
        let batch = (count.min(data.samples()) / CLOSE_BATCHES).clamp(1, CLOSE_BATCH);
        let mut on_samples = |_| !self.progress.cancelled();
        samples::select(data, count, CLOSE_BYTES as usize / 2, batch, &mut on_samples)
            .map_err(|e| run_error(e, "calibration"))
    }

    /// The model in float16.
    fn halves(&self, float: &Session, graph: &Graph, recipe: &Recipe, data: &Dataset) -> Result<Made, Error> {
        let total = data.samples();
        let mut on_samples = |done| self.going(Phase::Calibrate, done, total);
        let seen = float16::look(float, data, batch_for(float), &mut on_samples)
            .map_err(|e| run_error(e, "calibration"))?;
        let (plan, rewritten) =
            float16::rewrite(graph, recipe, &seen).map_err(|e| Error::Recipe(e.to_string()))?;
        let planned = Planned { plan, params: HashMap::new(), choices: Vec::new() };
        Ok(Made { planned, rewritten, sensitivities: Vec::new(), trials: Vec::new() })
    }

    fn choose(
        &self,
        graph: &Graph,
        plan: Plan,
        recipe: &Recipe,
        statistics: &Statistics,
        samples: &Samples,
    ) -> Result<(Effects, Kept), Error> {
        let candidates = effect::candidates(&recipe.ranges);
        let mut kept = Kept::new();
        let mut plan = plan;
        loop {
            for coded in roots(&plan) {
                let name = &graph.value(coded.value).name;
                needed(&statistics.values, name).map_err(|e| match (e, self.request.statistics) {
                    (calibrate::Error::Unseen(value), Some(_)) => {
                        let reason = format!("they do not know of value `{value}`: calibrate again");
                        Error::Data { which: "statistics", reason }
                    }
                    (e, _) => run_error(e, "calibration"),
                })?;
            }
            let mut on_reader = |done, all| self.going(Phase::Quantize, done, all);
            let asked = effect::Asked {
                graph,
                plan: &plan,
                observed: &statistics.values,
                candidates: &candidates,
                codes: Profile::of(recipe).codes,
                batches: &samples.batches,
                damages: recipe.search.trials(&recipe.gate) > 0,
                options: &self.options(),
            };
            let found = effect::choose(asked, &mut on_reader).map_err(|e| run_error(e, "calibration"))?;
            // What eight bits do not hold stays in float; what is behind it is looked at again. A method that the recipe
            // names is taken at its word: what it makes does not depend on samples that may be gone.
            let before = kept.len();
            if recipe.ranges != Ranges::Auto {
                return Ok((found, kept));
            }
            kept.extend(effect::unsafe_nodes(graph, &plan, &found, &statistics.values));
            if kept.len() == before {
                return Ok((found, kept));
            }
            plan = any::plan(graph, recipe, &kept).map_err(|e| Error::Recipe(e.to_string()))?;
        }
    }

    /// Rounds weights and corrects biases, as far as the recipe asks for it.
    fn reconstruct(
        &self,
        graph: &Graph,
        rewritten: &mut Rewritten,
        samples: &Samples,
        recipe: &Recipe,
    ) -> Result<Vec<Reconstructed>, Error> {
        let asked = recipe.rounding != Rounding::Nearest || recipe.bias_correction;
        if !asked || samples.count == 0 {
            return Ok(Vec::new());
        }
        let mut on_layer = |done, all| self.going(Phase::Quantize, done, all);
        let found =
            reconstruct::reconstruct(graph, rewritten, samples, recipe, &self.options(), &mut on_layer);
        let found = found.map_err(|e| run_error(e, "calibration"))?;
        Ok(found)
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
        let of_sixteen =
            |(id, params): (&ValueId, &QuantParams)| (graph.value(*id).name.clone(), params.clone());
        let trained = plan.trained.values().filter(|(id, _)| plan.coded(*id).is_none());
        let trained = trained.map(|(id, params)| (graph.value(id).name.clone(), params.clone()));
        let sixteen = plan.sixteen.iter().map(of_sixteen);
        let values: Vec<_> = trained.chain(values).chain(sixteen).collect();
        let max_code = |l: &Layer| Some((l.node.clone(), l.weights.as_ref()?.max_code));
        let max_codes: Vec<(String, u8)> = rewritten.layers.iter().filter_map(max_code).collect();
        let Statistics { data: digest, samples, .. } = *used.statistics;
        let calibration = artifact::Samples { sha256: hex::encode(digest), samples };
        let manifest = artifact::manifest(&Origin {
            model: used.model,
            calibration: &calibration,
            evaluation: used.evaluation,
            recipe,
            values: &values,
            max_codes: &max_codes,
        });
        let mut graph = Cow::Borrowed(&rewritten.graph);
        if recipe.target == Target::Onnxruntime && plan.trained.is_empty() {
            unsign_shared(graph.to_mut());
        }
        Ok((artifact::write(&graph, &manifest), manifest))
    }

    /// The digest of data.
    fn digest(&self, data: &Dataset, which: &'static str) -> Result<artifact::Samples, Error> {
        let failed = |e: dataset::Error| Error::Data { which, reason: e.to_string() };
        let mut digests = SampleDigests::default();
        let mut reader = data.reader().map_err(failed)?;
        for batch in reader.batches(1).map_err(failed)? {
            digests.add(data, &batch.map_err(failed)?);
            self.step(Phase::Quantize, 1, 1)?;
        }
        let samples = digests.samples();
        Ok(artifact::Samples { sha256: hex::encode(digests.finish()), samples })
    }

    /// Judges the artifact, and the first samples layer by layer.
    fn evaluate(
        &self,
        reference: &Reference<'_>,
        compared: Compared<'_>,
        which: &'static str,
    ) -> Result<(Evaluation, Vec<Option<LayerNoise>>), Error> {
        let total = reference.samples();
        self.step(Phase::Evaluate, 0, total)?;
        let mut on_samples = |done| self.going(Phase::Evaluate, done, total);
        let batch = batch_for(compared.float);
        layer_noise::evaluate(reference, compared, LAYER_SAMPLES, batch, &mut on_samples)
            .map_err(|e| run_error(e, which))
    }

    /// Plans and writes the QDQ graph; where a gate is not kept, with layers in float that are searched for.
    fn make(&self, bench: Bench<'_>) -> Result<Made, Error> {
        let Bench { graph, recipe, samples, .. } = bench;
        let planned = bench.plan(&Kept::new())?.ok_or_else(unknown_value)?;
        let layers = dial::layers(graph, &planned.plan);
        let dial = match recipe.weights.max_code {
            MaxCode::Fixed(code) => Dial::fixed(&layers, code),
            MaxCode::Auto => dial::search(&layers, &mut DialTrials { bench, planned: &planned })?,
        };
        let mut rewritten = rewrite(graph, &planned.plan, &planned.params, recipe, &dial);
        let reconstructed = self.reconstruct(graph, &mut rewritten, samples, recipe)?;
        let trials_max = recipe.search.trials(&recipe.gate);
        if trials_max == 0 {
            return Ok(Made { planned, rewritten, sensitivities: Vec::new(), trials: Vec::new() });
        }
        let macs = bench.macs();
        let mut trials = FloatTrials { bench, base: &rewritten, dial: &dial, macs };
        let first = trials.first(&planned.plan)?;
        if first.passes {
            return Ok(Made { planned, rewritten, sensitivities: Vec::new(), trials: vec![first] });
        }
        let sensitivities = bench.sensitivities(&rewritten, &planned.plan, &reconstructed)?;
        let found = search::search(&sensitivities, first, trials_max, &mut trials)?;
        if found.kept.is_empty() {
            return Ok(Made { planned, rewritten, sensitivities, trials: found.trials });
        }
        let (planned, mut tried) = trials.model(&found.kept)?;
        // Layers behind those that are in float now see less noise: found anew, and kept where that is no worse.
        let mut anew = rewrite(graph, &planned.plan, &planned.params, recipe, &dial);
        self.reconstruct(graph, &mut anew, samples, recipe)?;
        let before = found.trials.iter().find(|t| t.keeps_float == trials.names(&found.kept));
        let after = trials.judged(&found.kept, &planned.plan, anew.graph.clone())?;
        if before.is_none_or(|before| after.passes >= before.passes && after.margin >= before.margin.min(0.0))
        {
            tried = anew;
        }
        Ok(Made { planned, rewritten: tried, sensitivities, trials: found.trials })
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
        let feeds = first.feeds();
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
    evaluation: Option<&'a artifact::Samples>,
}

/// Statistics of an earlier job know what some recipes give codes to, not what each does.
fn unknown_value() -> Error {
    let reason = "they do not know all values that this recipe gives codes to: calibrate again";
    Error::Data { which: "statistics", reason: reason.to_owned() }
}

fn no_samples() -> Error {
    let reason = "there are none: statistics hold no samples to compare float and INT8 on";
    Error::Data { which: "evaluation", reason: reason.to_owned() }
}

fn no_calibration() -> Error {
    let reason = "there are none, and ranges are chosen by them";
    Error::Data { which: "calibration", reason: reason.to_owned() }
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
