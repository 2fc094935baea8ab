//! Elementwise nodes that together compute a function of few values: an activation, however an exporter spells it.
//! Knows which operators are elementwise, not what they compute.

use std::collections::{BTreeSet, HashMap};

use crate::engine::tensor::DType;

use super::op::{Binary, Op, Unary};
use super::{Graph, Node, ValueId};

/// Most nodes of a function: the longest spelling of a common activation has six.
const NODES_MAX: usize = 12;

/// Nodes that compute `f(sources)`, element by element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// What it is a function of, in the order in which it is read.
    pub sources: Vec<ValueId>,
    /// Indices of the nodes, in order; the last makes the result.
    pub nodes: Vec<usize>,
}

impl Function {
    /// The function that ends with node `last`: everything between it and values for which `is_source` holds.
    /// `None` if there is something else behind it than sources and constants of one element.
    pub fn ending_at(
        graph: &Graph,
        producers: &HashMap<ValueId, usize>,
        last: usize,
        is_source: impl Fn(ValueId) -> bool,
    ) -> Option<Function> {
        let (mut sources, mut nodes, mut open) = (Vec::new(), BTreeSet::new(), vec![last]);
        // Of the constants: one with more dimensions than a source would give the result more.
        let mut rank = 0;
        while let Some(n) = open.pop() {
            let node = &graph.nodes[n];
            if !is_elementwise(&node.op) || !nodes.insert(n) {
                continue;
            }
            if nodes.len() > NODES_MAX {
                return None;
            }
            for input in node.inputs.iter().flatten() {
                match graph.constant(*input) {
                    Some(tensor) if tensor.len() == 1 && tensor.dtype() == DType::F32 => {
                        rank = rank.max(tensor.shape().len());
                    }
                    Some(_) => return None,
                    None if is_source(*input) => {
                        if !sources.contains(input) {
                            sources.push(*input);
                        }
                    }
                    None => {
                        let producer = *producers.get(input)?;
                        if !is_elementwise(&graph.nodes[producer].op) {
                            return None;
                        }
                        open.push(producer);
                    }
                }
            }
        }
        let fits = |source: &ValueId| rank <= rank_of(graph, *source);
        let complete = nodes.contains(&last) && !sources.is_empty() && sources.iter().all(fits);
        complete.then(|| Function { sources, nodes: nodes.into_iter().collect() })
    }

    /// Whether only nodes of the function read what it makes on the way, so that nobody misses it.
    pub fn is_closed(&self, graph: &Graph, consumers: &[Vec<usize>]) -> bool {
        let (_, inner) = self.nodes.split_last().expect("a function has a node");
        let outputs = inner.iter().flat_map(|&n| &graph.nodes[n].outputs);
        outputs.into_iter().all(|output| {
            let readers = &consumers[output.0 as usize];
            !graph.outputs.contains(output) && readers.iter().all(|n| self.nodes.contains(n))
        })
    }

    /// The value of the function at reals `source(id)`, with the functions that single nodes compute.
    pub fn at(
        &self,
        graph: &Graph,
        source: impl Fn(ValueId) -> f32,
        node: impl Fn(&Node, &[Option<f32>]) -> Option<f32>,
    ) -> Option<f32> {
        let mut known: HashMap<ValueId, f32> = self.sources.iter().map(|&id| (id, source(id))).collect();
        let mut result = None;
        for &n in &self.nodes {
            let (of, mut operands) = (&graph.nodes[n], Vec::new());
            for input in &of.inputs {
                operands.push(match input {
                    None => None,
                    Some(id) => Some(match graph.constant(*id) {
                        Some(tensor) => tensor.slice::<f32>()[0],
                        None => *known.get(id)?,
                    }),
                });
            }
            let value = node(of, &operands)?;
            known.insert(of.outputs[0], value);
            result = Some(value);
        }
        result
    }
}

/// Dimensions that a value has at least: those that are declared, or one.
pub fn rank_of(graph: &Graph, value: ValueId) -> usize {
    graph.value(value).dims.as_ref().map_or(1, Vec::len)
}

/// Whether an operator on reals of one shape does the same with every element, and nothing else.
fn is_elementwise(op: &Op) -> bool {
    match op {
        Op::Unary(unary) => *unary != Unary::Not,
        Op::Clip | Op::Identity => true,
        Op::Other(other) => other.operator.is_elementwise(),
        Op::Binary(binary) => matches!(
            binary,
            Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Pow | Binary::Min | Binary::Max
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Dim, Value};
    use super::*;
    use crate::engine::tensor::Tensor;

    /// `y = x · sigmoid(x)`, then `z = y + 1`.
    fn silu() -> (Graph, [ValueId; 4]) {
        let mut graph = Graph::default();
        let ids = ["x", "s", "y", "z"]
            .map(|name| graph.add_value(Value { name: name.to_owned(), ..Value::default() }));
        let [x, s, y, z] = ids;
        let one = graph.add_constant("one", Tensor::from_slice(&[1], &[1f32]));
        let mut add = |name: &str, op, inputs: &[ValueId], output| {
            let inputs = inputs.iter().map(|&id| Some(id)).collect();
            graph.nodes.push(Node::new(name.to_owned(), op, inputs, vec![output]));
        };
        add("sigmoid", Op::Unary(Unary::Sigmoid), &[x], s);
        add("mul", Op::Binary(Binary::Mul), &[x, s], y);
        add("add", Op::Binary(Binary::Add), &[y, one], z);
        graph.outputs = vec![z];
        (graph, ids)
    }

    #[test]
    fn a_function_reaches_back_to_its_sources() {
        let (mut graph, [x, s, y, z]) = silu();
        let found = |graph: &Graph, last, sources: &[ValueId]| {
            Function::ending_at(graph, &graph.producers(), last, |id| sources.contains(&id))
        };
        assert_eq!(found(&graph, 2, &[x]), Some(Function { sources: vec![x], nodes: vec![0, 1, 2] }));
        assert_eq!(found(&graph, 2, &[y]), Some(Function { sources: vec![y], nodes: vec![2] }));
        assert_eq!(found(&graph, 1, &[x, s]).map(|f| f.sources), Some(vec![x, s]));
        assert_eq!(found(&graph, 2, &[]), None, "x is made by no node");
        let function = found(&graph, 2, &[x]).unwrap();
        assert!(function.is_closed(&graph, &graph.consumers()));
        graph.outputs = vec![s, z];
        assert!(!function.is_closed(&graph, &graph.consumers()), "s is an output");
    }

    #[test]
    fn a_function_has_the_value_that_its_nodes_compute() {
        let (graph, [x, ..]) = silu();
        let function = Function::ending_at(&graph, &graph.producers(), 2, |id| id == x).unwrap();
        let node = |node: &Node, operands: &[Option<f32>]| match node.op {
            Op::Unary(_) => Some(operands[0]? / 2.0),
            Op::Binary(Binary::Mul) => Some(operands[0]? * operands[1]?),
            _ => Some(operands[0]? + operands[1]?),
        };
        assert_eq!(function.at(&graph, |_| 4.0, node), Some(9.0));
    }

    #[test]
    fn a_constant_of_more_dimensions_is_no_number() {
        let (mut graph, [x, ..]) = silu();
        let deep = graph.add_constant("deep", Tensor::from_slice(&[1, 1, 1], &[1f32]));
        graph.nodes[2].inputs[1] = Some(deep);
        let found = |graph: &Graph| Function::ending_at(graph, &graph.producers(), 2, |id| id == x);
        assert_eq!(found(&graph), None);
        graph.value_mut(x).dims = Some(vec![Dim::Known(2); 3]);
        assert!(found(&graph).is_some(), "x is known to have as many");
    }

    #[test]
    fn a_list_of_numbers_ends_the_search() {
        let (mut graph, [x, ..]) = silu();
        let list = graph.add_constant("list", Tensor::from_slice(&[2], &[1f32, 2.0]));
        graph.nodes[2].inputs[1] = Some(list);
        assert_eq!(Function::ending_at(&graph, &graph.producers(), 2, |id| id == x), None);
    }
}
