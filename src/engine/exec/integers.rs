//! What of a graph computes on codes, told without planning a run: for those who judge a file.

use std::collections::HashSet;

use crate::engine::graph::Graph;
use crate::engine::graph::op::Op;
use crate::engine::graph::passes::Passes;
use crate::engine::graph::passes::simplify::simplify;

use super::fold::fold_constants;
use super::fuse::{Finder, gives_codes};
use super::lower::lower;

/// A node as a session runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// Name of the node of the file.
    pub node: String,
    /// What it has become.
    pub op: &'static str,
    /// Whether it computes on codes.
    pub on_codes: bool,
}

/// The nodes that a session would run, Q and DQ nodes left out. Nodes that others take over are not among them.
pub fn forms(mut graph: Graph) -> Vec<Form> {
    fold_constants(&mut graph);
    simplify(&mut graph, Passes::ALL);
    let graph = lower(graph).graph;
    let (consumers, wanted) = (graph.consumers(), HashSet::new());
    let finder = Finder { graph: &graph, consumers: &consumers, wanted: &wanted, fact: &|_| None };
    let products = graph.nodes.iter().filter(|node| gives_codes(&node.op));
    // Without shapes: what is told here has none.
    let tails = products.map(|node| finder.tail(node.outputs[0], &[], false, true));
    let taken: HashSet<usize> = tails.filter(|t| t.codes.is_some()).flat_map(|tail| tail.nodes).collect();
    let boundary =
        |op: &Op| matches!(op, Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. } | Op::Recode);
    let form = |node: &crate::engine::graph::Node| {
        let reads_codes = node.input(0).is_some_and(|id| graph.value(id).qparams.is_some());
        Form { node: node.name.clone(), op: node.op.name(), on_codes: node.op.is_integer() || reads_codes }
    };
    let left = graph.nodes.iter().enumerate().filter(|(n, node)| !boundary(&node.op) && !taken.contains(n));
    left.map(|(_, node)| form(node)).collect()
}
