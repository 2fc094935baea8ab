//! Models that a job tries before it makes one: with other weight codes, with layers in float. What `quant` searches
//! over is measured here.

use std::collections::{BTreeSet, HashMap};

use super::files::{batch_for, run_error};
use super::running::Job;
use super::{Error, Phase, gate};
use crate::engine::exec::session::Session;
use crate::engine::exec::{self, Port};
use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, ValueId};
use crate::engine::quant::Recipe;
use crate::engine::quant::dial::{self, Dial};
use crate::engine::quant::effect::Effects;
use crate::engine::quant::evaluate::{Evaluation, Reference};
use crate::engine::quant::flat;
use crate::engine::quant::nature;
use crate::engine::quant::observed::Observed;
use crate::engine::quant::plan::{Decision, Kept, Plan};
use crate::engine::quant::ranges::{self, Method};
use crate::engine::quant::reconstruct::Reconstructed;
use crate::engine::quant::rewrite::{Rewritten, rewrite};
use crate::engine::quant::samples::Samples;
use crate::engine::quant::schemes::any;
use crate::engine::quant::search::{Judge, Sensitivity, Trial};
use crate::engine::quant::statistics::Statistics;
use crate::engine::quant::targets::Profile;
use crate::engine::quant::targets::settle::settle;
use crate::engine::tensor::dataset::feeds;
use crate::engine::tensor::qparams::{Codes, QuantParams};
use crate::engine::tensor::{DType, Tensor};

/// Samples over which the noise of one layer's smaller codes is measured, once a layer.
const TRIAL_SAMPLES: usize = 16;
/// Batches of samples over which the noise of one layer is measured.
const SENSITIVITY_BATCHES: usize = 2;
/// Least share of the multiply-accumulates on integers: a gate that more layers in float would keep is not kept, because
/// what is left is the float model.
const INTEGER_LEAST: f64 = 0.5;
/// Why a layer is in float that the search has kept.
pub(super) const KEPT: &str = "kept in float for the gate";

/// What a gate that is not kept says besides its figures: of the trials that were refused for too few integers that with
/// the most.
pub(super) fn too_few_integers(trials: &[Trial]) -> Option<String> {
    let refused = trials.iter().filter(|t| t.refused.is_some());
    let nearest = refused.max_by(|a, b| a.integer_mac_share.total_cmp(&b.integer_mac_share))?;
    let (layers, why) = (nearest.keeps_float.len(), nearest.refused.as_ref()?);
    Some(format!("with {layers} layers in float the figures would be within the limits, but {why}"))
}

/// What models are made from, and what they are judged by.
#[derive(Clone, Copy)]
pub(super) struct Bench<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) float: &'a Session,
    pub(super) graph: &'a Graph,
    pub(super) recipe: &'a Recipe,
    pub(super) statistics: &'a Statistics,
    pub(super) effects: &'a Effects,
    /// Nodes that stay in float because eight bits do not hold their operands.
    pub(super) kept: &'a Kept,
    pub(super) reference: &'a Reference<'a>,
    pub(super) which: &'static str,
    pub(super) samples: &'a Samples,
}

/// A plan with the parameters of all its roots.
pub(super) struct Planned {
    pub(super) plan: Plan,
    pub(super) params: HashMap<ValueId, QuantParams>,
    /// The range of each root, and behind them those of the values with 16-bit codes.
    pub(super) choices: Vec<(ValueId, ranges::Choice)>,
}

impl Bench<'_> {
    /// The plan with more layers in float.
    pub(super) fn plan(&self, kept: &Kept) -> Result<Option<Planned>, Error> {
        let mut all = self.kept.clone();
        all.extend(kept.iter().map(|(n, reason)| (*n, reason.clone())));
        let mut plan = any::plan(self.graph, self.recipe, &all).map_err(|e| Error::Recipe(e.to_string()))?;
        let profile = Profile::of(self.recipe);
        let Some(wide) = self.wide(&mut plan) else { return Ok(None) };
        let mut choices = Vec::new();
        for coded in plan.coded.iter().filter(|c| c.value == c.root) {
            let known = self.effects.choices.iter().find(|(root, _)| *root == coded.value);
            let choice = match known {
                Some((_, choice)) => choice.clone(),
                None => match self.statistics.values.get(&self.graph.value(coded.value).name) {
                    Some(observed) => ranges::choose(observed, Method::Mse, profile.codes),
                    None => return Ok(None),
                },
            };
            let observed = self.statistics.values.get(&self.graph.value(coded.value).name);
            let choice = match plan.trained.params(coded.value).zip(observed) {
                Some((params, observed)) => ranges::given(observed, params.clone()),
                None => choice,
            };
            choices.push((coded.value, choice));
        }
        let mut params = choices.iter().map(|(root, choice)| (*root, choice.params.clone())).collect();
        settle(self.graph, &plan, &profile, &mut params);
        let params = plan.with_trained(&params);
        choices.extend(wide);
        Ok(Some(Planned { plan, params, choices }))
    }

    /// Gives the values with 16-bit codes of a plan their parameters; `None` where one was not counted.
    fn wide(&self, plan: &mut Plan) -> Option<Vec<(ValueId, ranges::Choice)>> {
        let mut choices = Vec::new();
        for (&id, params) in &mut plan.sixteen {
            let observed = self.statistics.values.get(&self.graph.value(id).name)?;
            let exponents = flat::only_exponents(self.graph, id);
            let telling = exponents.then(|| flat::telling_exponents(&observed.histogram)).flatten();
            let cut = telling.map(|(lo, hi)| Observed {
                histogram: observed.histogram.clamped(lo, hi),
                extremes: observed.extremes.clone(),
            });
            let choice = ranges::choose(cut.as_ref().unwrap_or(observed), Method::Doubled, Codes::U16);
            *params = choice.params.clone();
            choices.push((id, choice));
        }
        Some(choices)
    }

    /// Float against another model on the evaluation data.
    fn evaluate(&self, graph: Graph, samples: usize) -> Result<Evaluation, Error> {
        let Bench { job, float, reference, which, .. } = *self;
        let int8 = job.session(graph)?;
        let total = reference.samples().min(samples);
        let mut on_samples = |done| job.going(Phase::Quantize, done, total);
        let found = reference.evaluate(&int8, samples, batch_for(float), &mut on_samples);
        found.map_err(|e| run_error(e, which))
    }

    /// Multiply-accumulates of one sample, by the name of the node; none where shapes are not known before a run.
    pub(super) fn macs(&self) -> HashMap<String, u64> {
        let first = self.samples.batches.first();
        let shape = |port: &Port| {
            let feed = first?.iter().find(|(name, _)| *name == port.name)?;
            Some(feed.1.shape().to_vec())
        };
        let shapes: Option<Vec<Vec<usize>>> = self.float.inputs().iter().map(shape).collect();
        let steps = shapes.and_then(|shapes| self.float.steps(&shapes).ok()).unwrap_or_default();
        steps.into_iter().map(|step| (step.node, step.macs)).collect()
    }

    /// Noise of each layer that computes on codes, measured alone over a few samples.
    pub(super) fn sensitivities(
        &self,
        base: &Rewritten,
        plan: &Plan,
        reconstructed: &[Reconstructed],
    ) -> Result<Vec<Sensitivity>, Error> {
        let macs = self.macs();
        let layers: Vec<usize> = (0..self.graph.nodes.len())
            .filter(|&n| {
                use Decision::{Dynamic, Integer, Sixteen, Stored};
                let coded = matches!(plan.decisions[n], Integer | Dynamic | Sixteen | Stored);
                coded && !nature::passes_codes(&self.graph.nodes[n].op)
            })
            .collect();
        let batches = &self.samples.batches[..self.samples.batches.len().min(SENSITIVITY_BATCHES)];
        let run = |session: &Session, batch: &[(String, Tensor)]| {
            let outputs = session.run(&feeds(batch)).map_err(|e: exec::Error| Error::Model(e.to_string()))?;
            Ok::<_, Error>(outputs.into_iter().next())
        };
        let wanted: Vec<Option<Tensor>> =
            batches.iter().map(|batch| run(self.float, batch)).collect::<Result<_, _>>()?;
        let mut found = Vec::new();
        for (done, &layer) in layers.iter().enumerate() {
            self.job.step(Phase::Quantize, done, layers.len())?;
            let others = layers.iter().filter(|&&n| n != layer);
            let kept: Kept = others.map(|&n| (n, KEPT.to_owned())).collect();
            let Some(Planned { plan, params, .. }) = self.plan(&kept)? else { continue };
            let dial = Dial::default();
            let mut alone = rewrite(self.graph, &plan, &params, self.recipe, &dial);
            take_over(base, &mut alone);
            let int8 = self.job.session(alone.graph)?;
            let (mut signal, mut noise) = (0.0, 0.0);
            for (batch, wanted) in batches.iter().zip(&wanted) {
                let (Some(a), Some(b)) = (wanted, run(&int8, batch)?) else { continue };
                for (a, b) in a.to_f64().iter().zip(b.to_f64()) {
                    signal += a * a;
                    noise += (a - b) * (a - b);
                }
            }
            let node = &self.graph.nodes[layer];
            let noise = if signal > 0.0 { noise / signal } else { 0.0 };
            let db = |noise: f64| -10.0 * noise.max(1e-20).log10();
            let weights = noise * self.weights_share(layer, reconstructed);
            found.push(Sensitivity {
                place: layer,
                node: node.name.clone(),
                noise,
                sqnr_db: db(noise),
                weights_db: db(weights),
                activations_db: db(noise - weights),
                macs: macs.get(&node.name).copied().unwrap_or(0),
                bytes: weight_bytes(self.graph, layer),
            });
        }
        Ok(found)
    }

    /// Part of the noise of a layer's result that its weights make.
    fn weights_share(&self, layer: usize, reconstructed: &[Reconstructed]) -> f64 {
        let node = &self.graph.nodes[layer].name;
        let power = |db: f64| 10f64.powf(-db / 10.0);
        let Some(weights) = reconstructed.iter().find(|r| r.node == *node) else { return 0.0 };
        let operands = self.effects.damages.iter().filter(|d| d.node == layer);
        let operands: f64 = operands.map(|d| power(d.sqnr_db)).sum();
        let weights = power(weights.weights_db);
        if weights + operands > 0.0 { weights / (weights + operands) } else { 0.0 }
    }
}

/// Bytes of the float weights of a node.
fn weight_bytes(graph: &Graph, node: usize) -> u64 {
    let constants = graph.nodes[node].inputs.iter().flatten().filter_map(|&v| graph.constant(v));
    constants.map(|tensor| tensor.view().bytes.len() as u64).sum()
}

/// Gives the layers of a graph the weights and biases that were found for them in another one, where what they read has
/// the same scale in both.
fn take_over(from: &Rewritten, to: &mut Rewritten) {
    let by_name: HashMap<String, usize> =
        to.graph.values.iter().enumerate().map(|(i, v)| (v.name.clone(), i)).collect();
    let from_by_name: HashMap<&str, usize> =
        from.graph.values.iter().enumerate().map(|(i, v)| (v.name.as_str(), i)).collect();
    for layer in &to.layers {
        let Some(own) = &layer.constants else { continue };
        let Some(theirs) = from.layers.iter().find(|l| l.node == layer.node) else { continue };
        let Some(found) = &theirs.constants else { continue };
        if own.bias.is_some() != found.bias.is_some()
            || own.by_row.is_some() != found.by_row.is_some()
            || operand_scale(&from.graph, &layer.node) != operand_scale(&to.graph, &layer.node)
        {
            continue;
        }
        let mut pairs = vec![(&own.codes, &found.codes), (&own.scales, &found.scales)];
        if let (Some(own), Some(found)) = (&own.bias, &found.bias) {
            pairs.extend([(&own.0, &found.0), (&own.1, &found.1)]);
        }
        if let (Some(own), Some(found)) = (&own.by_row, &found.by_row) {
            pairs.push((&own.sums, &found.sums));
            pairs.extend(own.bias.as_ref().zip(found.bias.as_ref()));
        }
        for (own, found) in pairs {
            if let (Some(&own), Some(&found)) = (by_name.get(own), from_by_name.get(found.as_str())) {
                to.graph.values[own].constant = from.graph.values[found].constant.clone();
            }
        }
    }
}

/// The scale of the codes that a node of a QDQ graph reads.
fn operand_scale(graph: &Graph, node: &str) -> Option<u32> {
    let node = graph.nodes.iter().find(|n| n.name == node)?;
    let reals = node.input(0)?;
    let made = graph.nodes.iter().find(|n| n.outputs.contains(&reals))?;
    let Op::DequantizeLinear { .. } = made.op else { return None };
    let scale = graph.constant(made.input(1)?)?;
    (scale.dtype() == DType::F32).then(|| scale.slice::<f32>()[0].to_bits())
}

/// A search for the largest weight codes.
pub(super) struct DialTrials<'a> {
    pub(super) bench: Bench<'a>,
    pub(super) planned: &'a Planned,
}

impl DialTrials<'_> {
    fn judge(&self, dial: &Dial, samples: usize) -> Result<Evaluation, Error> {
        let Planned { plan, params, .. } = self.planned;
        let made = rewrite(self.bench.graph, plan, params, self.bench.recipe, dial);
        self.bench.evaluate(made.graph, samples)
    }
}

impl dial::Trials for DialTrials<'_> {
    type Error = Error;

    fn noise(&mut self, dial: &Dial) -> Result<f64, Error> {
        Ok(10f64.powf(-self.judge(dial, TRIAL_SAMPLES)?.sqnr_db / 10.0))
    }

    fn passes(&mut self, dial: &Dial) -> Result<bool, Error> {
        let found = self.judge(dial, usize::MAX)?;
        Ok(gate::judge(&self.bench.recipe.gate, &found).failure.is_none())
    }
}

/// A search for the layers that stay in float.
pub(super) struct FloatTrials<'a> {
    pub(super) bench: Bench<'a>,
    /// The model with all of them on codes.
    pub(super) base: &'a Rewritten,
    pub(super) dial: &'a Dial,
    pub(super) macs: HashMap<String, u64>,
}

impl FloatTrials<'_> {
    /// The trial with no more layers in float than the recipe says.
    pub(super) fn first(&self, plan: &Plan) -> Result<Trial, Error> {
        self.judged(&BTreeSet::new(), plan, self.base.graph.clone())
    }

    /// The model with these layers in float, the others as they were found.
    pub(super) fn model(&self, kept: &BTreeSet<usize>) -> Result<(Planned, Rewritten), Error> {
        let reasons: Kept = kept.iter().map(|&n| (n, KEPT.to_owned())).collect();
        let Bench { graph, recipe, .. } = self.bench;
        let planned = self.bench.plan(&reasons)?;
        let planned = planned.ok_or_else(|| Error::Model("a value was not counted".to_owned()))?;
        let mut made = rewrite(graph, &planned.plan, &planned.params, recipe, self.dial);
        take_over(self.base, &mut made);
        Ok((planned, made))
    }

    /// Names of layers.
    pub(super) fn names(&self, kept: &BTreeSet<usize>) -> Vec<String> {
        kept.iter().map(|&n| self.bench.graph.nodes[n].name.clone()).collect()
    }

    /// A model on the whole evaluation data.
    pub(super) fn judged(&self, kept: &BTreeSet<usize>, plan: &Plan, model: Graph) -> Result<Trial, Error> {
        let Bench { graph, recipe, .. } = self.bench;
        let e = self.bench.evaluate(model, usize::MAX)?;
        let verdict = gate::judge(&recipe.gate, &e);
        let of = |n: usize| self.macs.get(&graph.nodes[n].name).copied().unwrap_or(0);
        let nodes = || 0..graph.nodes.len();
        let all: u64 = nodes().map(of).sum();
        let integer: u64 = nodes()
            .filter(|&n| {
                matches!(plan.decisions[n], Decision::Integer | Decision::Dynamic | Decision::Trained)
            })
            .map(of)
            .sum();
        let bytes = |n: usize| match plan.decisions[n] {
            Decision::Integer | Decision::Dynamic | Decision::Lookup => weight_bytes(graph, n) / 4,
            Decision::Stored | Decision::Sixteen => weight_bytes(graph, n) / 4,
            _ => weight_bytes(graph, n),
        };
        let integer_mac_share = integer as f64 / all.max(1) as f64;
        let enough = kept.is_empty() || integer_mac_share >= INTEGER_LEAST;
        let refused = (verdict.failure.is_none() && !enough).then(|| {
            format!(
                "{:.1} % of the multiply-accumulates stay in integers; a search keeps at least {:.0} % there",
                100.0 * integer_mac_share,
                100.0 * INTEGER_LEAST
            )
        });
        Ok(Trial {
            keeps_float: self.names(kept),
            metric: gate::metric(&recipe.gate, &e).map_or(e.int8.value, |(_, _, int8)| int8.value),
            agreement: e.agreement.value,
            sqnr_db: e.sqnr_db,
            integer_mac_share,
            bytes: nodes().map(bytes).sum(),
            passes: verdict.failure.is_none() && enough,
            refused,
            margin: if enough { verdict.margin } else { f64::NEG_INFINITY },
        })
    }
}

impl Judge for FloatTrials<'_> {
    type Error = Error;

    fn judge(&mut self, kept: &BTreeSet<usize>) -> Result<Trial, Error> {
        let (planned, made) = self.model(kept)?;
        self.judged(kept, &planned.plan, made.graph)
    }
}
