//! Chooses the range of each activation by what its codes do to the results of the operators that read them, over a few
//! samples of the float model: a range that clips may serve a tensor and hurt the layer behind it, or the other way round.
//! Also tells how much each operator suffers from the codes of its operands alone.

use std::collections::{BTreeMap, HashMap};

use crate::engine::exec::session::Session;
use crate::engine::exec::{self, Options, Tap};
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::quant::calibrate::Error;
use crate::engine::quant::observed::Observed;
use crate::engine::quant::plan::{Decision, Kept, Plan, passes_codes};
use crate::engine::quant::ranges::{self, Choice, Method};
use crate::engine::quant::samples::Feeds;
use crate::engine::quant::walk::session_of;
use crate::engine::tensor::qparams::{Codes, QuantParams};
use crate::engine::tensor::{DType, Tensor, TensorView};

/// What is tried: ranges that come from all of the calibration data. Ranges that clip more look good on a few samples.
pub const CANDIDATES: [Method; 3] = [Method::MinMax, Method::Percentile(99.999), Method::Mse];
/// Below this, in dB, an operator is said not to be held by its codes: where a tenth of the items has less.
const HELD_DB: f64 = 10.0;

/// Batches that the damage is measured over where there is one candidate.
const FEW_BATCHES: usize = 2;

/// What the codes of one value do to one operator that reads them.
#[derive(Clone, Debug, PartialEq)]
pub struct Damage {
    /// The operator: its place in the float graph.
    pub node: usize,
    /// The value.
    pub value: ValueId,
    /// Signal to noise of the operator's result where nothing but this operand has codes, in dB.
    pub sqnr_db: f64,
    /// The same for the item (index of the first axis) at the tenth part from the worst.
    pub low_db: f64,
}

/// What was chosen, and what it does.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// A choice for each root of the plan, in its order.
    pub choices: Vec<(ValueId, Choice)>,
    /// What the chosen codes do.
    pub damages: Vec<Damage>,
}

/// An operator that reads a value, as a model of its own.
struct Reader {
    node: usize,
    /// The value that it reads in codes.
    value: ValueId,
    session: Session,
    /// What it takes.
    inputs: Vec<ValueId>,
}

/// Sums over the samples of what a candidate does to a reader.
#[derive(Clone, Debug, Default)]
struct Sums {
    noise: f64,
    items: Vec<(f64, f64)>,
}

/// What is chosen from, and what it is judged by.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// The float graph.
    pub graph: &'a Graph,
    /// Which of its values get codes.
    pub plan: &'a Plan,
    /// A session of the graph.
    pub float: &'a Session,
    /// What was seen of every root, by name.
    pub observed: &'a BTreeMap<String, Observed>,
    /// What is tried; a fixed method is a list of one.
    pub candidates: &'a [Method],
    /// The codes.
    pub codes: Codes,
    /// The samples.
    pub batches: &'a [Feeds],
    /// How the operators are run.
    pub options: &'a Options,
}

/// Chooses among the candidates for every root of a plan.
///
/// # Errors
/// Where the model cannot be run, or the caller wants to stop.
pub fn choose(asked: Asked<'_>, on_value: &mut dyn FnMut(usize) -> bool) -> Result<Effects, Error> {
    let Asked { graph, plan, float, observed, candidates, codes, batches, options } = asked;
    // Where there is nothing to choose, a few samples tell the damage.
    let batches = if candidates.len() == 1 { &batches[..batches.len().min(FEW_BATCHES)] } else { batches };
    let failed = |source| Error::Run { sample: 0, source };
    let readers = readers(graph, plan, options).map_err(failed)?;
    let roots: Vec<ValueId> = plan.coded.iter().filter(|c| c.value == c.root).map(|c| c.value).collect();
    let tried: Vec<Vec<Choice>> = roots
        .iter()
        .map(|root| {
            let observed = &observed[&graph.value(*root).name];
            let mut all: Vec<Choice> = Vec::new();
            for &method in candidates {
                let choice = ranges::choose(observed, method, codes);
                if all.iter().all(|c| c.params != choice.params) {
                    all.push(choice);
                }
            }
            all
        })
        .collect();
    // For each root and candidate, for each of its readers.
    let of_root: Vec<Vec<usize>> = roots
        .iter()
        .map(|root| (0..readers.len()).filter(|&r| root_of(plan, readers[r].value) == Some(*root)).collect())
        .collect();
    let mut sums: Vec<Vec<Vec<Sums>>> = tried
        .iter()
        .zip(&of_root)
        .map(|(tried, readers)| vec![vec![Sums::default(); readers.len()]; tried.len()])
        .collect();
    let mut signal: Vec<f64> = vec![0.0; readers.len()];
    for batch in batches {
        let mut seen = Seen { values: HashMap::new() };
        for reader in &readers {
            seen.values.extend(reader.inputs.iter().map(|&v| (graph.value(v).name.clone(), None)));
        }
        for (name, tensor) in batch {
            seen.values.insert(name.clone(), Some(tensor.clone()));
        }
        let feeds: Vec<_> = batch.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        float.run_tapped(&feeds, &mut seen).map_err(failed)?;
        for (place, root) in roots.iter().enumerate() {
            for (slot, &r) in of_root[place].iter().enumerate() {
                let reader = &readers[r];
                let Some(wanted) = reader.run(graph, &seen, None).map_err(failed)? else { continue };
                signal[r] += power(&wanted);
                // With one candidate that nobody asks about there is still the damage to be told.
                for (choice, sums) in tried[place].iter().zip(&mut sums[place]) {
                    let changed = reader.run(graph, &seen, Some(&choice.params)).map_err(failed)?;
                    sums[slot].add(&wanted, &changed.expect("it ran without codes"));
                }
            }
            let _ = root;
            if !on_value(place) {
                return Err(Error::Cancelled);
            }
        }
    }
    let mut effects = Effects::default();
    for (place, root) in roots.iter().enumerate() {
        let score = |candidate: usize| -> f64 {
            let all = sums[place][candidate].iter().zip(&of_root[place]);
            all.map(|(sums, &r)| if signal[r] > 0.0 { sums.noise / signal[r] } else { 0.0 }).sum()
        };
        let blind = of_root[place].iter().all(|&r| signal[r] == 0.0);
        let best = match blind {
            // Nobody reads it: its own noise is all there is.
            true => (0..tried[place].len()).max_by(|&a, &b| {
                let db = |i: usize| tried[place][i].sqnr_db.unwrap_or(f64::INFINITY);
                db(a).total_cmp(&db(b)).then(b.cmp(&a))
            }),
            false => (0..tried[place].len()).min_by(|&a, &b| score(a).total_cmp(&score(b)).then(a.cmp(&b))),
        };
        let best = best.expect("there are candidates");
        for (slot, &r) in of_root[place].iter().enumerate() {
            let (sums, reader) = (&sums[place][best][slot], &readers[r]);
            let (node, value) = (reader.node, reader.value);
            let sqnr_db = db(signal[r], sums.noise);
            effects.damages.push(Damage { node, value, sqnr_db, low_db: sums.low_db() });
        }
        effects.choices.push((*root, tried[place][best].clone()));
    }
    Ok(effects)
}

/// The nodes that eight bits do not hold, with the reason: a tenth of their inputs lose more than they keep, mostly
/// because they are quiet and share a range with loud ones.
pub fn unsafe_nodes(graph: &Graph, plan: &Plan, effects: &Effects) -> Kept {
    let lost = effects.damages.iter().filter(|damage| {
        plan.decisions[damage.node] != Decision::Data && damage.low_db.is_finite() && damage.low_db < HELD_DB
    });
    lost.map(|damage| {
        let value = &graph.value(damage.value).name;
        let reason = format!(
            "8 bits do not hold `{value}`: a tenth of its items leaves less than {:.1} dB of the result",
            damage.low_db.max(0.0) + 0.05
        );
        (damage.node, reason)
    })
    .collect()
}

fn root_of(plan: &Plan, value: ValueId) -> Option<ValueId> {
    plan.coded(value).map(|coded| coded.root)
}

/// The operators that compute with codes; those that only pass them on are looked through.
fn readers(graph: &Graph, plan: &Plan, options: &Options) -> Result<Vec<Reader>, exec::Error> {
    let mut readers = Vec::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        if passes_codes(&node.op) || matches!(plan.decisions[n], Decision::Absorbed { .. }) {
            continue;
        }
        // A clamp behind it is a part of what it does.
        let result = match plan.decisions[n] {
            Decision::Integer if plan.function(n).is_none() => plan.result(graph, n),
            _ => node.outputs[0],
        };
        let mut nodes: Vec<&Node> = vec![node];
        nodes.extend(
            (n + 1..graph.nodes.len())
                .filter(|&m| plan.decisions[m] == Decision::Absorbed { into: n })
                .map(|m| &graph.nodes[m]),
        );
        let mut values: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
        values.sort_unstable();
        values.dedup();
        for value in values {
            let reads_codes = plan.coded(value).is_some_and(|coded| {
                coded.by_integer || matches!(plan.decisions[n], Decision::Integer | Decision::Inner { .. })
            });
            if reads_codes {
                let (session, inputs) = session_of(graph, &nodes, &[result], options.clone())?;
                readers.push(Reader { node: n, value, session, inputs });
            }
        }
    }
    Ok(readers)
}

impl Reader {
    /// The result with the operand as it is or as its codes stand for it; `None` where an operand was not seen.
    fn run(
        &self,
        graph: &Graph,
        seen: &Seen,
        codes: Option<&QuantParams>,
    ) -> Result<Option<Tensor>, exec::Error> {
        let mut operands: Vec<(&str, Tensor)> = Vec::with_capacity(self.inputs.len());
        for &input in &self.inputs {
            let name = graph.value(input).name.as_str();
            let Some(Some(tensor)) = seen.values.get(name) else { return Ok(None) };
            let tensor = match codes {
                Some(params) if input == self.value => through_codes(tensor, params),
                _ => tensor.clone(),
            };
            operands.push((name, tensor));
        }
        let feeds: Vec<(&str, &Tensor)> = operands.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let made = self.session.run(&feeds)?.into_iter().next();
        Ok(made.filter(|tensor| tensor.dtype() == DType::F32))
    }
}

/// What is left of reals that go through codes of one scale.
fn through_codes(tensor: &Tensor, params: &QuantParams) -> Tensor {
    let mut out = tensor.clone();
    if tensor.dtype() == DType::F32 {
        out.slice_mut::<f32>().iter_mut().for_each(|x| *x = params.dequantize(params.quantize(*x, 0), 0));
    }
    out
}

impl Sums {
    fn add(&mut self, wanted: &Tensor, got: &Tensor) {
        let items = wanted.shape().first().copied().unwrap_or(1).max(1);
        let each = (wanted.len() / items).max(1);
        let pairs = wanted.slice::<f32>().chunks(each).zip(got.slice::<f32>().chunks(each));
        for (a, b) in pairs {
            let (mut signal, mut noise) = (0f64, 0f64);
            for (&a, &b) in a.iter().zip(b) {
                signal += f64::from(a) * f64::from(a);
                noise += f64::from(a - b) * f64::from(a - b);
            }
            self.noise += noise;
            self.items.push((signal, noise));
        }
    }

    fn low_db(&self) -> f64 {
        let mut all: Vec<f64> = self.items.iter().map(|&(signal, noise)| db(signal, noise)).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 10).copied().unwrap_or(f64::INFINITY)
    }
}

fn power(tensor: &Tensor) -> f64 {
    tensor.slice::<f32>().iter().map(|&x| f64::from(x) * f64::from(x)).sum()
}

fn db(signal: f64, noise: f64) -> f64 {
    match (signal > 0.0, noise > 0.0) {
        (_, false) => f64::INFINITY,
        (false, true) => f64::NEG_INFINITY,
        (true, true) => 10.0 * (signal / noise).log10(),
    }
}

/// Keeps the values that readers take.
struct Seen {
    values: HashMap<String, Option<Tensor>>,
}

impl Tap for Seen {
    fn wants(&self, value: &str) -> bool {
        self.values.get(value).is_some_and(Option::is_none)
    }

    fn observe(&mut self, value: &str, tensor: TensorView<'_>) {
        if let Some(place) = self.values.get_mut(value) {
            *place = Some(tensor.to_tensor());
        }
    }
}
