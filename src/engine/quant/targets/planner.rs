//! Plans for a target: the plan of this program, without what the target would not compute on integers.

use std::collections::{BTreeMap, HashMap};

use crate::engine::graph::{Graph, ValueId};
use crate::engine::quant::dial::Dial;
use crate::engine::quant::lint::check::lint;
use crate::engine::quant::lint::{Report, Verdict};
use crate::engine::quant::plan::{Decision, Kept, Plan, plan_keeping};
use crate::engine::quant::rewrite::rewrite;
use crate::engine::quant::trained::is_quantized;
use crate::engine::quant::{Error, Recipe, Target};
use crate::engine::tensor::qparams::{QuantParams, code_range};

use super::settle::settle;
use super::{Profile, tensorrt};

/// How often a plan is made anew without nodes that do not fuse. What is left after that stays as it is: it costs time
/// where the target computes it, and is right.
const ROUNDS: usize = 8;

/// Plans a simplified float graph for the target of a recipe, with more nodes in float than the recipe names.
///
/// # Errors
/// [`Error::NoMatch`] where a pattern of the recipe names no node.
pub fn plan(graph: &Graph, recipe: &Recipe, kept: &Kept) -> Result<Plan, Error> {
    match recipe.target {
        // What is kept as it was trained follows the rules of those who trained it.
        _ if !recipe.complete && is_quantized(graph) => plan_keeping(graph, recipe, kept),
        Target::Octet => plan_keeping(graph, recipe, kept),
        Target::Tensorrt => tensorrt::plan(graph, recipe, kept),
        Target::Onnxruntime | Target::Openvino | Target::TfliteRules => fitted(graph, recipe, kept),
    }
}

/// The plan whose every integer node the linter takes for one of the target's.
fn fitted(graph: &Graph, recipe: &Recipe, kept: &Kept) -> Result<Plan, Error> {
    let mut kept = kept.clone();
    let mut plan = plan_keeping(graph, recipe, &kept)?;
    for _ in 0..ROUNDS {
        let more = misfits(graph, recipe, &plan);
        if more.is_empty() {
            break;
        }
        kept.extend(more);
        plan = plan_keeping(graph, recipe, &kept)?;
    }
    Ok(plan)
}

/// Integer nodes of a plan that the target would compute on reals, each with the reason.
fn misfits(graph: &Graph, recipe: &Recipe, plan: &Plan) -> Kept {
    let report = tried(graph, recipe, plan);
    let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (n, node) in graph.nodes.iter().enumerate() {
        places.entry(&node.name).or_default().push(n);
    }
    let mut misfits = Kept::new();
    for finding in report.findings.iter().filter(|f| f.verdict != Verdict::Fuses) {
        for &n in places.get(finding.node.as_str()).into_iter().flatten() {
            let n = if let Decision::Inner { of } = plan.decisions[n] { of } else { n };
            if plan.decisions[n] == Decision::Integer {
                misfits.insert(
                    n,
                    format!("{} would compute it on reals: {}", recipe.target.name(), finding.reason),
                );
            }
        }
    }
    misfits
}

/// What the linter says of the file that a plan makes, whatever the data are.
fn tried(graph: &Graph, recipe: &Recipe, plan: &Plan) -> Report {
    let profile = Profile::of(recipe);
    let (least, _) = code_range(profile.codes.dtype);
    let zero = if profile.codes.symmetric { 0 } else { least as i32 };
    let roots = plan.coded.iter().filter(|c| c.value == c.root);
    // Scales that differ, but for values that have one in any case, and so small that codes do every clamp.
    let params = |(i, root): (usize, ValueId)| {
        let scale = 1e-9 * (i + 1) as f32;
        (root, QuantParams::per_tensor(scale, zero, profile.codes.dtype))
    };
    let mut params: HashMap<_, _> = roots.map(|c| c.value).enumerate().map(params).collect();
    settle(graph, plan, &profile, &mut params);
    let rewritten = rewrite(graph, plan, &params, recipe, &Dial::default());
    let mut written = rewritten.graph;
    // What the exporter writes.
    written.opset = written.opset.max(13);
    lint(&written, recipe.target)
}
