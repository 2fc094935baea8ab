//! Chooses the range of each activation by what its codes do to the results of the operators that read them, over a few
//! samples of the float model: a range that clips may serve a tensor and hurt the layer behind it, or the other way round.
//! Also tells how much each operator suffers from the codes of its operands alone.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use crate::engine::exec::session::Session;
use crate::engine::exec::{self, Options, ShapesOf};
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::kernels::isa::Isa;
use crate::engine::quant::abreast;
use crate::engine::quant::calibrate::Error;
use crate::engine::quant::nature::passes_codes;
use crate::engine::quant::noise;
use crate::engine::quant::observed::Observed;
use crate::engine::quant::plan::{Decision, Kept, Plan};
use crate::engine::quant::ranges::{self, Choice, Method};
use crate::engine::quant::samples::Feeds;
use crate::engine::quant::walk::{Walk, session_of};
use crate::engine::quant::{Ranges, flat};
use crate::engine::tensor::qparams::{Codes, QuantParams, code_range};
use crate::engine::tensor::{DType, Tensor};

/// What is tried for `auto`: ranges that come from all of the calibration data. Ranges that clip more look good on a few
/// samples.
const CANDIDATES: [Method; 4] = [Method::MinMax, Method::Held, Method::Percentile(99.999), Method::Mse];
/// Below this, in dB, an operator is said not to be held by its codes: where a tenth of the items has less.
const HELD_DB: f64 = 10.0;

/// One value in so many is few.
const FEW: u64 = 20;
/// How much further than all the others few values have to reach to be named: then a dozen codes of a sign are left.
const STRETCHED: f64 = 10.0;

/// Batches that the damage is measured over where there is one candidate.
const FEW_BATCHES: usize = 2;
/// Elements of a result that are looked at, about, and the items (indices of the first axis) that they come from at least.
const RESULTS: usize = 1 << 21;
const ITEMS_MIN: usize = 16;

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

/// An operator or a function that reads a value in codes, with what it does behind it.
struct Reader<'a> {
    /// Its place in the graph: that of its last node, for a function.
    node: usize,
    /// The first of its nodes.
    first: usize,
    value: ValueId,
    nodes: Vec<&'a Node>,
    result: ValueId,
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
    /// What was seen of every root, by name.
    pub observed: &'a BTreeMap<String, Observed>,
    /// What is tried; a fixed method is a list of one.
    pub candidates: &'a [Method],
    /// The codes.
    pub codes: Codes,
    /// The samples.
    pub batches: &'a [Feeds],
    /// Whether somebody asks for the damage of a method that is not chosen but given.
    pub damages: bool,
    /// How the operators are run.
    pub options: &'a Options,
}

/// What is chosen from under a recipe; a method that it names is taken at its word.
pub fn candidates(ranges: &Ranges) -> Vec<Method> {
    match *ranges {
        Ranges::Auto => CANDIDATES.to_vec(),
        Ranges::Minmax => vec![Method::MinMax],
        Ranges::MeanMinmax => vec![Method::MeanMinmax],
        Ranges::Percentile(share) => vec![Method::Percentile(share)],
        Ranges::Entropy => vec![Method::Entropy],
        Ranges::Mse => vec![Method::Mse],
    }
}

/// What is tried for a root, and what each of its readers makes of it.
struct Root {
    value: ValueId,
    tried: Vec<Choice>,
    /// For each reader the signal of its results, and the noise of each candidate.
    readers: Vec<(usize, f64, Vec<Sums>)>,
}

/// Chooses among the candidates for every root of a plan.
///
/// # Errors
/// Where the model cannot be run, or the caller wants to stop.
pub fn choose(asked: Asked<'_>, on_reader: &mut dyn FnMut(usize, usize) -> bool) -> Result<Effects, Error> {
    let Asked { graph, plan, candidates, batches, options, .. } = asked;
    // Where there is nothing to choose, a few samples tell the damage.
    let batches = match (candidates.len(), asked.damages) {
        (1, false) => &[],
        (1, true) => &batches[..batches.len().min(FEW_BATCHES)],
        _ => batches,
    };
    let failed = |source| Error::Run { sample: 0, source };
    let readers = readers(graph, plan);
    let mut roots: Vec<Root> = plan
        .coded
        .iter()
        .filter(|c| c.value == c.root)
        .map(|c| asked.root(c.value))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    let place: HashMap<ValueId, usize> = roots.iter().enumerate().map(|(i, root)| (root.value, i)).collect();
    let mut walk = Walk::new(graph, batches, options.clone());
    for (done, reader) in readers.iter().enumerate().filter(|_| !batches.is_empty()) {
        if !on_reader(done, readers.len()) {
            return Err(Error::Cancelled);
        }
        let root = plan.coded(reader.value).and_then(|coded| place.get(&coded.root));
        let Some(&root) = root else { continue };
        walk.advance(graph, reader.first).map_err(failed)?;
        let tried = &roots[root].tried;
        let (signal, sums) = reader.judge(graph, &walk, batches.len(), tried, options).map_err(failed)?;
        roots[root].readers.push((done, signal, sums));
    }
    let mut effects = Effects::default();
    for root in &mut roots {
        let best = root.best();
        for (reader, signal, sums) in &root.readers {
            let (sums, Reader { node, value, .. }) = (&sums[best], &readers[*reader]);
            let (sqnr_db, low_db) = (db(*signal, sums.noise), sums.low_db());
            effects.damages.push(Damage { node: *node, value: *value, sqnr_db, low_db });
        }
        effects.choices.push((root.value, root.tried.swap_remove(best)));
    }
    Ok(effects)
}

impl Asked<'_> {
    /// A root with the ranges that the candidates give it, each but once.
    fn root(&self, value: ValueId) -> Result<Root, exec::Error> {
        let observed = &self.observed[&self.graph.value(value).name];
        // A range that the recipe names is taken at its word.
        let telling = if self.candidates.len() > 1 { self.telling_range(value, observed)? } else { None };
        let cut = telling.map(|(lo, hi)| {
            let histogram = observed.histogram.clamped(lo, hi);
            Observed { histogram, extremes: observed.extremes.clone() }
        });
        let mut tried: Vec<Choice> = Vec::new();
        for &method in self.candidates {
            let choice = ranges::choose(cut.as_ref().unwrap_or(observed), method, self.codes);
            if tried.iter().all(|c| c.params != choice.params) {
                tried.push(choice);
            }
        }
        Ok(Root { value, tried, readers: Vec::new() })
    }

    /// Where a value is read by one function only, the range that tells it anything.
    fn telling_range(&self, value: ValueId, observed: &Observed) -> Result<Option<(f32, f32)>, exec::Error> {
        let functions = (0..self.graph.nodes.len()).filter_map(|n| self.plan.function(n));
        let mut functions = functions.filter(|f| f.sources == [value]);
        let (Some(function), Some((min, max))) = (functions.next(), observed.histogram.range()) else {
            return Ok(None);
        };
        // The range of codes holds zero.
        let (min, max) = (min.min(0.0), max.max(0.0));
        if !flat::reads_alone(self.graph, function, value) {
            return Ok(None);
        }
        let found = flat::telling_range(self.graph, function, (min, max), self.options)?;
        Ok(found.map(|(lo, hi)| (lo.min(0.0), hi.max(0.0))))
    }
}

impl Root {
    /// The candidate that its readers suffer least from; where nobody reads it, the one of least noise of its own.
    fn best(&self) -> usize {
        let noise = |candidate: usize| -> f64 {
            let all = self.readers.iter();
            all.map(|(_, signal, sums)| if *signal > 0.0 { sums[candidate].noise / signal } else { 0.0 })
                .sum()
        };
        let own = |candidate: usize| -self.tried[candidate].sqnr_db.unwrap_or(f64::INFINITY);
        let blind = self.readers.iter().all(|(_, signal, _)| *signal == 0.0);
        let score = |candidate| if blind { own(candidate) } else { noise(candidate) };
        let best = (0..self.tried.len()).min_by(|&a, &b| score(a).total_cmp(&score(b)).then(a.cmp(&b)));
        best.expect("there are candidates")
    }
}

/// The nodes that eight bits do not hold, with the reason: a tenth of their inputs lose more than they keep, mostly
/// because they are quiet and share a range with loud ones. Few loud values are enough, of one broken sample say: a
/// range that cuts them off is not chosen, as most of the signal is theirs.
pub fn unsafe_nodes(
    graph: &Graph,
    plan: &Plan,
    effects: &Effects,
    observed: &BTreeMap<String, Observed>,
) -> Kept {
    let lost = effects.damages.iter().filter(|damage| {
        plan.decisions[damage.node] != Decision::Data && damage.low_db.is_finite() && damage.low_db < HELD_DB
    });
    lost.map(|damage| {
        let value = &graph.value(damage.value).name;
        let mut reason = format!(
            "8 bits do not hold `{value}`: a tenth of its items leaves less than {:.1} dB of the result",
            damage.low_db.max(0.0) + 0.05
        );
        let root = plan.coded(damage.value).map_or(damage.value, |coded| coded.root);
        if let Some((most, bound)) = observed.get(&graph.value(root).name).and_then(stretched) {
            let share = 100 - 100 / FEW;
            reason.push_str(&format!(
                "; its range, up to {most:.3}, is stretched by few values: {share} % of them lie within {bound:.3}"
            ));
        }
        (damage.node, reason)
    })
    .collect()
}

/// Where few values stretch a range: the largest magnitude, and the one that all but one in [`FEW`] lie within.
fn stretched(observed: &Observed) -> Option<(f64, f64)> {
    let (width, counts) = observed.histogram.magnitudes();
    let few = counts.iter().sum::<u64>() / FEW;
    let mut beyond = 0;
    let last = counts.iter().rposition(|count| {
        beyond += count;
        beyond > few
    })?;
    let (most, bound) = (counts.len() as f64 * width, (last + 1) as f64 * width);
    (most >= STRETCHED * bound).then_some((most, bound))
}

/// The operators that compute with codes; those that only pass them on are looked through. In the order of their
/// first nodes.
fn readers<'a>(graph: &'a Graph, plan: &Plan) -> Vec<Reader<'a>> {
    let absorbed = plan.absorbed();
    let mut readers = Vec::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        if passes_codes(&node.op) || matches!(plan.decisions[n], Decision::Absorbed { .. }) {
            continue;
        }
        // What a function does on the way nobody sees; what an operator has absorbed is a part of what it does.
        let (own, result) = match (plan.function(n), &plan.decisions[n]) {
            (_, Decision::Inner { .. }) => continue,
            (Some(function), _) => (function.nodes.clone(), node.outputs[0]),
            (None, Decision::Integer) => (vec![n], plan.result(graph, n)),
            (None, _) => (vec![n], node.outputs[0]),
        };
        // Of several sources some may not be there before the last node.
        let first = if plan.function(n).is_some_and(|f| f.sources.len() == 1) { own[0] } else { n };
        let absorbed = absorbed.get(&n).into_iter().flatten();
        let nodes: Vec<&Node> = own.iter().chain(absorbed).map(|&m| &graph.nodes[m]).collect();
        let mut values: Vec<ValueId> = match plan.function(n) {
            Some(function) => function.sources.clone(),
            None => node.inputs.iter().flatten().copied().collect(),
        };
        values.sort_unstable();
        values.dedup();
        for value in values {
            let reads_codes = plan
                .coded(value)
                .is_some_and(|coded| coded.by_integer || plan.decisions[n] == Decision::Integer);
            if reads_codes {
                readers.push(Reader { node: n, first, value, nodes: nodes.clone(), result });
            }
        }
    }
    readers.sort_by_key(|reader| (reader.first, reader.node));
    readers
}

impl Reader<'_> {
    /// Runs it on all batches with its operand as it is and with each candidate's codes of it: the power of its results,
    /// and the noise of each candidate. Nothing where its operands are not known or its result is no real.
    fn judge(
        &self,
        graph: &Graph,
        walk: &Walk,
        batches: usize,
        tried: &[Choice],
        options: &Options,
    ) -> Result<(f64, Vec<Sums>), exec::Error> {
        let mut found = (0.0, vec![Sums::default(); tried.len()]);
        let (session, inputs) = session_of(graph, &self.nodes, &[self.result], Some(walk), options.clone())?;
        let names: Vec<&str> = inputs.iter().map(|&input| graph.value(input).name.as_str()).collect();
        let Some(operands) = inputs.iter().map(|&input| walk.value(input)).collect::<Option<Vec<_>>>() else {
            return Ok(found);
        };
        let shapes: Vec<_> = operands.iter().map(|tensors| tensors[0].shape().to_vec()).collect();
        let batches = batches.min(enough(&session, &shapes, &graph.value(self.result).name));
        let of_batch = |batch: usize| -> Result<Option<(f64, Vec<Sums>)>, exec::Error> {
            let run = |codes: Option<&QuantParams>| {
                let operands: Vec<Cow<'_, Tensor>> = inputs
                    .iter()
                    .zip(&operands)
                    .map(|(&input, tensors)| match codes {
                        Some(params) if input == self.value => {
                            through_codes(&tensors[batch], params, options.isa)
                        }
                        _ => Cow::Borrowed(&tensors[batch]),
                    })
                    .collect();
                let feeds: Vec<(&str, &Tensor)> =
                    names.iter().copied().zip(operands.iter().map(|t| &**t)).collect();
                let made = session.run(&feeds)?.into_iter().next();
                Ok(made.filter(|tensor| tensor.dtype() == DType::F32))
            };
            let Some(wanted) = run(None)? else { return Ok(None) };
            let signals = distance(&wanted, None, options.isa);
            let sums = |choice: &Choice| {
                let changed = run(Some(&choice.params))?.expect("it ran without codes");
                Ok(Sums::of(&signals, distance(&wanted, Some(&changed), options.isa)))
            };
            let sums = tried.iter().map(sums).collect::<Result<_, _>>()?;
            Ok(Some((signals.iter().sum(), sums)))
        };
        for of_batch in abreast::each((0..batches).collect(), of_batch) {
            let Some((signal, sums)) = of_batch? else { continue };
            found.0 += signal;
            found.1.iter_mut().zip(sums).for_each(|(all, sums)| all.merge(sums));
        }
        Ok(found)
    }
}

/// How many batches tell what codes do to a result, by the shape that it has for one.
fn enough(session: &Session, shapes: &[Vec<usize>], result: &str) -> usize {
    let values = session.value_shapes(shapes).unwrap_or_default();
    let shape = values.into_iter().find(|(name, ..)| name == result).map(|(_, _, shape)| shape);
    let Some(shape) = shape else { return usize::MAX };
    let items = shape.first().copied().unwrap_or(1).max(1);
    let elements = shape.iter().product::<usize>().max(1);
    RESULTS.div_ceil(elements).max(ITEMS_MIN.div_ceil(items))
}

/// What is left of reals that go through codes of one scale.
fn through_codes<'a>(tensor: &'a Tensor, params: &QuantParams, isa: Isa) -> Cow<'a, Tensor> {
    if tensor.dtype() != DType::F32 {
        return Cow::Borrowed(tensor);
    }
    let mut out = tensor.clone();
    let (scale, zero_point) = (params.scale[0], params.zero_point[0] as f32);
    let (least, most) = code_range(params.dtype);
    let (least, most) = (least as f32 - zero_point, most as f32 - zero_point);
    let reals = out.slice_mut::<f32>();
    isa.vectorize(
        #[inline(always)]
        || {
            for x in reals {
                *x = (*x / scale).round_ties_even().clamp(least, most) * scale;
            }
        },
    );
    Cow::Owned(out)
}

impl Sums {
    fn of(signals: &[f64], noises: Vec<f64>) -> Sums {
        Sums { noise: noises.iter().sum(), items: signals.iter().copied().zip(noises).collect() }
    }

    fn merge(&mut self, other: Sums) {
        self.noise += other.noise;
        self.items.extend(other.items);
    }

    fn low_db(&self) -> f64 {
        let mut all: Vec<f64> = self.items.iter().map(|&(signal, noise)| db(signal, noise)).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 10).copied().unwrap_or(f64::INFINITY)
    }
}

/// For each item the sum of the squared distances from zero, or from another tensor.
fn distance(from: &Tensor, to: Option<&Tensor>, isa: Isa) -> Vec<f64> {
    let items = from.shape().first().copied().unwrap_or(1).max(1);
    let each = (from.len() / items).max(1);
    let to = to.map(Tensor::slice::<f32>);
    let of_item = |(item, from): (usize, &[f32])| {
        let to = to.map(|to| &to[item * each..][..from.len()]);
        isa.vectorize(
            #[inline(always)]
            || squares(from, to),
        )
    };
    from.slice::<f32>().chunks(each).enumerate().map(of_item).collect()
}

/// Sums in lanes, in an order of their own on every machine.
#[inline(always)]
fn squares(from: &[f32], to: Option<&[f32]>) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0f64; LANES];
    let mut add = |lane: usize, x: f32| sums[lane] += f64::from(x) * f64::from(x);
    let (from, rest) = from.as_chunks::<LANES>();
    match to {
        None => {
            for part in from {
                for (lane, &x) in part.iter().enumerate() {
                    add(lane, x);
                }
            }
            rest.iter().for_each(|&x| add(0, x));
        }
        Some(to) => {
            let (to, other) = to.as_chunks::<LANES>();
            for (a, b) in from.iter().zip(to) {
                for (lane, (&a, &b)) in a.iter().zip(b).enumerate() {
                    add(lane, a - b);
                }
            }
            rest.iter().zip(other).for_each(|(&a, &b)| add(0, a - b));
        }
    }
    sums.iter().sum()
}

fn db(signal: f64, noise: f64) -> f64 {
    noise::db(signal, noise).unwrap_or(if noise > 0.0 { f64::NEG_INFINITY } else { f64::INFINITY })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::quant::observed::Samples;

    /// What stretches the range of 31 samples of small values and one of values up to `most`.
    fn check(most: f32, want: bool) {
        let small = |i: usize| (i % 100) as f32 * 0.01;
        let values: Vec<f32> = (0..3200).map(|i| if i < 100 { small(i) * most } else { small(i) }).collect();
        let mut observed = Observed::default();
        observed
            .observe(Tensor::from_slice(&[32, 100], &values).view(), Samples::Along { axis: 0, count: 32 });
        let found = stretched(&observed);
        assert_eq!(found.is_some(), want, "{most}: {found:?}");
        assert!(found.is_none_or(|(most, bound)| (0.9..1.2).contains(&bound) && most > 9.0), "{found:?}");
    }

    #[test]
    fn one_loud_sample_stretches_a_range() {
        check(1.0, false);
        check(5.0, false);
        check(100.0, true);
        assert_eq!(stretched(&Observed::default()), None);
    }

    #[test]
    fn a_node_that_a_loud_sample_leaves_in_float_says_so() {
        let mut graph = Graph::default();
        let named = |name: &str| crate::engine::graph::Value { name: name.to_owned(), ..Default::default() };
        let (x, y) = (graph.add_value(named("x")), graph.add_value(named("y")));
        let relu = crate::engine::graph::op::Op::Unary(crate::engine::graph::op::Unary::Relu);
        graph.nodes = vec![Node::new("n".to_owned(), relu, vec![Some(x)], vec![y])];
        let plan = Plan::of_decisions(vec![Decision::Integer]);
        let damages = vec![Damage { node: 0, value: x, sqnr_db: 20.0, low_db: 3.0 }];
        let effects = Effects { choices: Vec::new(), damages };
        let mut observed = Observed::default();
        let loud: Vec<f32> = (0..1000).map(|i| if i == 0 { 64.0 } else { 0.5 }).collect();
        observed.observe(Tensor::from_slice(&[1000], &loud).view(), Samples::Mixed);
        let values = BTreeMap::from([("x".to_owned(), observed)]);
        let reasons: Vec<String> = unsafe_nodes(&graph, &plan, &effects, &values).into_values().collect();
        let [reason] = &reasons[..] else { panic!("{reasons:?}") };
        assert!(reason.contains("is stretched by few values: 95 % of them lie within 0.5"), "{reason}");
        let [reason] =
            &unsafe_nodes(&graph, &plan, &effects, &BTreeMap::new()).into_values().collect::<Vec<_>>()[..]
        else {
            panic!("one node")
        };
        assert!(!reason.contains("stretched"), "{reason}");
    }
}
