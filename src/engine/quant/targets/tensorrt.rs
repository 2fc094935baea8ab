//! The plan for TensorRT, which fuses for itself: Q and DQ stand before what multiplies by constants, and before the
//! operand of a sum that skips layers. Results, biases and everything else stay real.

use std::collections::{BTreeMap, HashMap};

use crate::engine::graph::op::{Binary, Op};
use crate::engine::graph::{Graph, ValueId};
use crate::engine::quant::constants::multiplies;
use crate::engine::quant::nature::is_data;
use crate::engine::quant::plan::{Coded, Decision, Kept, Plan, Region, names_exist};
use crate::engine::quant::{Error, Recipe};

/// Plans a simplified float graph.
///
/// # Errors
/// [`Error::NoMatch`] where a pattern of `keep_float` names no node.
pub(super) fn plan(graph: &Graph, recipe: &Recipe, kept: &Kept) -> Result<Plan, Error> {
    names_exist(graph, "keep_float", &recipe.keep_float)?;
    let decide = |n: usize| {
        let node = &graph.nodes[n];
        if recipe.keeps_float(&node.name) {
            return Decision::Float("kept by the recipe".to_owned());
        }
        if let Some(reason) = kept.get(&n) {
            return Decision::Float(reason.clone());
        }
        match &node.op {
            Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul => match multiplies(graph, node) {
                Ok(()) => Decision::Integer,
                Err(reason) => Decision::Float(reason),
            },
            _ if is_data(graph, node) => Decision::Data,
            _ => Decision::Float("TensorRT fuses it with its neighbours, or computes it on reals".to_owned()),
        }
    };
    let decisions: Vec<Decision> = (0..graph.nodes.len()).map(decide).collect();
    let skips = skips(graph, &decisions);
    let mut coded: BTreeMap<usize, Coded> = BTreeMap::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        let operand = match decisions[n] {
            Decision::Integer => Some(0),
            _ => skips.get(&n).copied(),
        };
        if let Some(value) = operand.and_then(|i| node.input(i)) {
            let region = Region::Flow;
            coded.insert(value.0 as usize, Coded { value, root: value, by_integer: false, region });
        }
    }
    let order = order(graph);
    let mut coded: Vec<Coded> = coded.into_values().collect();
    coded.sort_by_key(|c| order.get(&c.value).copied());
    let mut plan = Plan::of_decisions(decisions);
    (plan.coded, plan.skips) = (coded, skips);
    Ok(plan)
}

/// For each value its place in execution order; graph inputs come first.
fn order(graph: &Graph) -> HashMap<ValueId, usize> {
    let made = graph.nodes.iter().flat_map(|node| &node.outputs);
    graph.inputs.iter().chain(made).enumerate().map(|(place, &value)| (value, place)).collect()
}

/// For each sum that a product flows into the operand that skips it: of two products the one with fewer before it.
fn skips(graph: &Graph, decisions: &[Decision]) -> BTreeMap<usize, usize> {
    let (readers, producers) = (graph.consumers(), graph.producers());
    let mut depths: HashMap<ValueId, usize> = HashMap::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        let before = node.inputs.iter().flatten().filter_map(|id| depths.get(id)).max().copied().unwrap_or(0);
        let depth = before + usize::from(decisions[n] == Decision::Integer);
        depths.extend(node.outputs.iter().map(|&output| (output, depth)));
    }
    let mut skips = BTreeMap::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        let (Op::Binary(Binary::Add), [Some(a), Some(b)]) = (&node.op, &node.inputs[..]) else { continue };
        if [a, b].iter().any(|id| graph.constant(**id).is_some()) || a == b {
            continue;
        }
        let product = |id: &ValueId| {
            let alone = readers[id.0 as usize].len() == 1 && !graph.outputs.contains(id);
            let conv = |n: &usize| {
                decisions[*n] == Decision::Integer && matches!(graph.nodes[*n].op, Op::Conv { .. })
            };
            alone && producers.get(id).is_some_and(conv)
        };
        let depth = |id: &ValueId| depths.get(id).copied().unwrap_or(0);
        let skip = match (product(a), product(b)) {
            (true, true) => usize::from(depth(a) >= depth(b)),
            (true, false) => 1,
            (false, true) => 0,
            (false, false) => continue,
        };
        skips.insert(n, skip);
    }
    skips
}
