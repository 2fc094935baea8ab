//! What the bodies of If, Loop and Scan read of the graph around them.

use std::collections::HashSet;

use super::{GraphProto, NodeProto};

/// The graphs that a node holds, with the attributes' names.
pub(super) fn bodies(node: &NodeProto) -> impl Iterator<Item = (&str, &GraphProto)> {
    node.attribute.iter().filter_map(|a| Some((a.name.as_str(), a.g.as_deref()?)))
}

/// The names that a node reads: its operands, and what its bodies take from around them.
pub(super) fn reads(node: &NodeProto) -> Vec<String> {
    let mut names: Vec<String> = node.input.iter().filter(|n| !n.is_empty()).cloned().collect();
    for (_, body) in bodies(node) {
        names.extend(free_names(body));
    }
    names
}

/// The names that a graph reads and does not make, in the order in which it reads them, each once.
pub(super) fn free_names(graph: &GraphProto) -> Vec<String> {
    let mut made: HashSet<&str> = graph.input.iter().map(|v| v.name.as_str()).collect();
    made.extend(graph.initializer.iter().map(|t| t.name.as_str()));
    made.extend(graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str)));
    let read = graph.node.iter().flat_map(reads).chain(graph.output.iter().map(|v| v.name.clone()));
    let mut seen = HashSet::new();
    read.filter(|name| !made.contains(name.as_str()) && seen.insert(name.clone())).collect()
}
