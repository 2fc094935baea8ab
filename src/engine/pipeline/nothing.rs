//! What is said where nothing of a model can be quantized, or was: why, and what else there is to try.

use crate::engine::graph::Graph;
use crate::engine::quant::plan::{Decision, Kept, Plan};
use crate::engine::quant::schemes::any;
use crate::engine::quant::{Recipe, Scheme, Target};

/// Nodes whose reasons are told.
const REASONS_MAX: usize = 3;

/// Why nothing of a float model can be quantized as a recipe asks, and which schemes could.
pub(super) fn refusal(graph: &Graph, plan: &Plan, recipe: &Recipe) -> String {
    let mut said = vec!["nothing in it can be quantized".to_owned()];
    said.extend(reasons(graph, plan, |_| true));
    if graph.nodes.iter().any(|node| !node.bodies.is_empty()) {
        said.push("the bodies of If, Loop and Scan are not looked into".to_owned());
    } else if said.len() == 1 {
        said.push("it only moves data".to_owned());
    }
    let helps = |scheme: &(Scheme, &str)| {
        let recipe = Recipe { scheme: scheme.0, ..recipe.clone() };
        any::plan(graph, &recipe, &Kept::new()).is_ok_and(|plan| plan.quantized_nodes() > 0)
    };
    let others = match recipe.scheme {
        // Other targets have a form for the static scheme only, and so have 16 bits.
        Scheme::Auto | Scheme::Static if recipe.target == Target::Octet && recipe.sixteen_bit.is_empty() => {
            vec![(Scheme::WeightOnly, "weight_only"), (Scheme::Dynamic, "dynamic")]
        }
        _ => Vec::new(),
    };
    let helpful: Vec<String> =
        others.iter().filter(|s| helps(s)).map(|(_, name)| format!("\"scheme\": \"{name}\"")).collect();
    if !helpful.is_empty() {
        said.push(format!("with {} in the recipe some of it can", helpful.join(" or ")));
    }
    said.join("; ")
}

/// What a report says of an artifact in which nothing is quantized after all; `kept` are the nodes that were found to
/// need reals.
pub(super) fn note(graph: &Graph, plan: &Plan, kept: &Kept) -> Option<String> {
    if plan.quantized_nodes() > 0 {
        return None;
    }
    let told = |n: usize| kept.is_empty() || kept.contains_key(&n);
    let said =
        "nothing is quantized: the artifact computes in float throughout, as large and as fast as the model";
    let said = std::iter::once(said.to_owned()).chain(reasons(graph, plan, told));
    Some(said.collect::<Vec<_>>().join("; "))
}

/// The first nodes that stay in float, each with its reason.
fn reasons(graph: &Graph, plan: &Plan, told: impl Fn(usize) -> bool) -> Vec<String> {
    let reason = |(n, decision): (usize, &Decision)| match decision {
        Decision::Float(reason) if told(n) => {
            let node = &graph.nodes[n];
            Some(format!("`{}` ({}): {reason}", node.name, node.op.name()))
        }
        _ => None,
    };
    plan.decisions.iter().enumerate().filter_map(reason).take(REASONS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::graph::op::{Op, Unary};
    use crate::engine::graph::{Node, Value};
    use crate::engine::tensor::{DType, Tensor};

    fn graph(op: Op, weights: &[usize]) -> Graph {
        let mut g = Graph::default();
        let value = |name: &str| Value { name: name.to_owned(), dtype: Some(DType::F32), ..Value::default() };
        let (x, y) = (g.add_value(value("x")), g.add_value(value("y")));
        let ones = vec![1f32; weights.iter().product()];
        let weights = g.add_constant("w", Tensor::from_slice(weights, &ones));
        g.nodes = vec![Node::new("n".to_owned(), op, vec![Some(weights), Some(x)], vec![y])];
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g
    }

    fn check_refusal(graph: &Graph, recipe: serde_json::Value, want: &str) {
        let recipe = Recipe::parse(&recipe).unwrap();
        let plan = any::plan(graph, &recipe, &Kept::new()).unwrap();
        assert_eq!(plan.quantized_nodes(), 0);
        assert_eq!(refusal(graph, &plan, &recipe), want);
    }

    #[test]
    fn a_refusal_names_what_else_there_is() {
        let product = graph(Op::MatMul, &[64, 64]);
        let first = "nothing in it can be quantized; `n` (MatMul): its first operand is constant";
        let others =
            "with \"scheme\": \"weight_only\" or \"scheme\": \"dynamic\" in the recipe some of it can";
        for recipe in [serde_json::json!({}), serde_json::json!({"scheme": "static"})] {
            check_refusal(&product, recipe, &format!("{first}; {others}"));
        }
        check_refusal(&graph(Op::MatMul, &[2, 2]), serde_json::json!({}), first);
        let moves = graph(Op::Identity, &[2, 2]);
        let said = "nothing in it can be quantized; it only moves data";
        check_refusal(&moves, serde_json::json!({}), said);
        let mut holds_bodies = moves;
        holds_bodies.nodes[0].bodies = vec![Arc::new(Graph::default())];
        let said = "nothing in it can be quantized; the bodies of If, Loop and Scan are not looked into";
        check_refusal(&holds_bodies, serde_json::json!({}), said);
    }

    #[test]
    fn an_artifact_in_float_says_so_and_why() {
        let graph = graph(Op::Unary(Unary::Relu), &[2]);
        let plan = |decision: Decision| Plan::of_decisions(vec![decision]);
        let float = plan(Decision::Float("8 bits do not hold `x`".to_owned()));
        let said = note(&graph, &float, &Kept::from([(0, "8 bits do not hold `x`".to_owned())]));
        let want = "nothing is quantized: the artifact computes in float throughout, as large and as fast as the model; \
                    `n` (Relu): 8 bits do not hold `x`";
        assert_eq!(said.as_deref(), Some(want));
        assert_eq!(note(&graph, &plan(Decision::Integer), &Kept::new()), None);
    }
}
