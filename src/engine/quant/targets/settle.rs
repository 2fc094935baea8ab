//! One scale for values that a target wants to have one, and scales that a target prescribes.

use std::collections::{BTreeMap, HashMap};

use crate::engine::graph::op::{Op, Unary};
use crate::engine::graph::{Graph, ValueId};
use crate::engine::quant::plan::{Decision, Plan};
use crate::engine::tensor::DType;
use crate::engine::tensor::qparams::{Codes, QuantParams};

use super::{Profile, Shared};

/// Changes the parameters of the roots of a plan to those that the target takes: values of one group cover what each of
/// them did, and results of some functions have the scale that the specification of TensorFlow Lite gives them.
pub fn settle(graph: &Graph, plan: &Plan, profile: &Profile, params: &mut HashMap<ValueId, QuantParams>) {
    let fixed = fixed(graph, plan, profile);
    for group in groups(graph, plan, profile) {
        let known: Vec<&QuantParams> = group.iter().filter_map(|root| params.get(root)).collect();
        if known.is_empty() {
            continue;
        }
        let prescribed = group.iter().find_map(|root| fixed.get(root).cloned());
        let one = prescribed.unwrap_or_else(|| joint(&known, profile.codes));
        for root in group {
            params.insert(root, one.clone());
        }
    }
}

/// Parameters that cover the reals of all.
fn joint(all: &[&QuantParams], codes: Codes) -> QuantParams {
    if all.windows(2).all(|pair| pair[0] == pair[1]) {
        return all[0].clone();
    }
    let reals = all.iter().map(|p| p.reals());
    let (lo, hi) = reals.fold((0.0f64, 0.0f64), |(lo, hi), (a, b)| (lo.min(a), hi.max(b)));
    // The lowest of symmetric codes is not used.
    let lo = if codes.symmetric { lo.max(-hi) } else { lo };
    QuantParams::from_range(codes, lo as f32, hi as f32)
}

/// The roots that have one scale, each group in the order of the plan; also groups of one that are prescribed.
fn groups(graph: &Graph, plan: &Plan, profile: &Profile) -> Vec<Vec<ValueId>> {
    let mut parents: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    fn top(parents: &BTreeMap<ValueId, ValueId>, mut id: ValueId) -> ValueId {
        while let Some(&up) = parents.get(&id)
            && up != id
        {
            id = up;
        }
        id
    }
    let root = |value: ValueId| plan.coded(value).map(|coded| coded.root);
    for (n, node) in graph.nodes.iter().enumerate() {
        let joins = matches!(node.op, Op::Concat { .. }) && profile.shared != Shared::Passed;
        let averages = matches!(node.op, Op::AveragePool { .. }) && profile.shared == Shared::Averaged;
        if plan.decisions[n] != Decision::Integer || !(joins || averages) {
            continue;
        }
        let operands = plan.operands(graph, n).into_iter().filter_map(root);
        let Some(result) = root(plan.result(graph, n)) else { continue };
        for operand in operands {
            let (a, b) = (top(&parents, operand), top(&parents, result));
            parents.insert(a.max(b), a.min(b));
        }
    }
    let mut groups: BTreeMap<ValueId, Vec<ValueId>> = BTreeMap::new();
    for coded in plan.coded.iter().filter(|c| c.value == c.root) {
        groups.entry(top(&parents, coded.value)).or_default().push(coded.value);
    }
    groups.into_values().collect()
}

/// What the specification of TensorFlow Lite prescribes, by root.
fn fixed(graph: &Graph, plan: &Plan, profile: &Profile) -> HashMap<ValueId, QuantParams> {
    if profile.shared != Shared::Averaged {
        return HashMap::new();
    }
    let of = |(n, node): (usize, &crate::engine::graph::Node)| {
        let (scale, zero) = match node.op {
            Op::Unary(Unary::Sigmoid) => (1.0 / 256.0, -128),
            Op::Unary(Unary::Tanh) => (1.0 / 128.0, 0),
            Op::Softmax { log: false, .. } => (1.0 / 256.0, -128),
            _ => return None,
        };
        let coded = plan.coded(node.outputs[0]).filter(|_| plan.decisions[n] == Decision::Integer)?;
        Some((coded.root, QuantParams::per_tensor(scale, zero, DType::I8)))
    };
    graph.nodes.iter().enumerate().filter_map(of).collect()
}
