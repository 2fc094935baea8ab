//! HardSwish that an exporter spells out becomes one node.
//!
//! Its value may differ in the last bit: the operator is defined with a multiplication by 1/6 where models divide. So this is
//! for a model that is written anew, and none of the passes that keep the answer.

use std::collections::HashMap;

use crate::engine::graph::function::rank_of;
use crate::engine::graph::op::{Binary, Op, Unary};
use crate::engine::graph::{Graph, ValueId};
use crate::engine::tensor::DType;

const SIXTH: f32 = 1.0 / 6.0;

/// Gives `x · clip(x + 3, 0, 6) / 6`, divided before or after the product, and `x · HardSigmoid(x)`, their name.
pub fn name_hard_swish(graph: &mut Graph) {
    let search = Search { graph, producers: graph.producers(), consumers: graph.consumers() };
    let found: Vec<(usize, ValueId)> =
        (0..graph.nodes.len()).filter_map(|n| Some((n, search.ending_at(n)?))).collect();
    for (n, x) in found {
        let node = &mut graph.nodes[n];
        (node.op, node.inputs) = (Op::Unary(Unary::HardSwish), vec![Some(x)]);
    }
    graph.remove_unused_nodes();
}

struct Search<'a> {
    graph: &'a Graph,
    producers: HashMap<ValueId, usize>,
    consumers: Vec<Vec<usize>>,
}

impl Search<'_> {
    /// What the function that ends with node `n` is a function of.
    fn ending_at(&self, n: usize) -> Option<ValueId> {
        let gate = |x: ValueId, gate: ValueId| self.is_gate(x, gate).then_some(x);
        let whole = self.binary(n, Binary::Mul).and_then(|[a, b]| gate(a, b).or_else(|| gate(b, a)));
        let divided = || {
            let product = *self.producers.get(&self.inner(self.sixth_of(n)?)?)?;
            let [a, b] = self.binary(product, Binary::Mul)?;
            let six = |x: ValueId, gate: ValueId| self.is_six_gates(x, gate).then_some(x);
            six(a, b).or_else(|| six(b, a))
        };
        let x = whole.or_else(divided)?;
        let real = self.graph.value(x).dtype.is_none_or(|dtype| dtype == DType::F32);
        (real && self.graph.constant(x).is_none()).then_some(x)
    }

    /// Whether a value is `clip(x / 6 + 1/2, 0, 1)`.
    fn is_gate(&self, x: ValueId, gate: ValueId) -> bool {
        let Some(&n) = self.inner(gate).and_then(|gate| self.producers.get(&gate)) else { return false };
        let hard = |op: &Op| {
            matches!(op, Op::Unary(Unary::HardSigmoid { alpha, beta })
                if (alpha - SIXTH).abs() < 1e-6 && *beta == 0.5)
        };
        let node = &self.graph.nodes[n];
        hard(&node.op) && node.input(0) == Some(x)
            || self.sixth_of(n).is_some_and(|six| self.is_six_gates(x, six))
    }

    /// Whether a value is `clip(x + 3, 0, 6)`.
    fn is_six_gates(&self, x: ValueId, value: ValueId) -> bool {
        let found = || {
            let clip = &self.graph.nodes[*self.producers.get(&self.inner(value)?)?];
            let Op::Clip = clip.op else { return None };
            let bounds = [1, 2].map(|i| clip.input(i).and_then(|bound| self.number(x, bound)));
            let sum = *self.producers.get(&self.inner(clip.input(0)?)?)?;
            let [a, b] = self.binary(sum, Binary::Add)?;
            let three = |other: ValueId, addend| other == x && self.number(x, addend) == Some(3.0);
            Some(bounds == [Some(0.0), Some(6.0)] && (three(a, b) || three(b, a)))
        };
        found() == Some(true)
    }

    /// The value that node `n` gives a sixth of.
    fn sixth_of(&self, n: usize) -> Option<ValueId> {
        if let Some([a, b]) = self.binary(n, Binary::Div) {
            return (self.number(a, b) == Some(6.0)).then_some(a);
        }
        let [a, b] = self.binary(n, Binary::Mul)?;
        let sixth =
            |a: ValueId, b: ValueId| self.number(a, b).filter(|v| (v - SIXTH).abs() < 1e-6).map(|_| a);
        sixth(a, b).or_else(|| sixth(b, a))
    }

    fn binary(&self, n: usize, op: Binary) -> Option<[ValueId; 2]> {
        let node = &self.graph.nodes[n];
        matches!(node.op, Op::Binary(own) if own == op).then(|| Some([node.input(0)?, node.input(1)?]))?
    }

    /// The one number of a constant that gives `x` no more dimensions.
    fn number(&self, x: ValueId, id: ValueId) -> Option<f32> {
        let tensor = self.graph.constant(id)?;
        let fits = tensor.len() == 1 && tensor.dtype() == DType::F32;
        (fits && tensor.shape().len() <= rank_of(self.graph, x)).then(|| tensor.slice::<f32>()[0])
    }

    /// A value that one node reads and nobody else.
    fn inner(&self, value: ValueId) -> Option<ValueId> {
        (self.consumers[value.0 as usize].len() == 1 && !self.graph.outputs.contains(&value)).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::{Node, Value};
    use crate::engine::tensor::Tensor;

    /// A graph of nodes `(op, operands, result)`; operands that are numbers are constants.
    fn graph(nodes: &[(Op, &[&str], &str)]) -> Graph {
        let mut graph = Graph::default();
        let mut ids: HashMap<String, ValueId> = HashMap::new();
        let mut id = |graph: &mut Graph, name: &str| {
            *ids.entry(name.to_owned()).or_insert_with(|| match name.parse::<f32>() {
                Ok(number) => graph.add_constant(name, Tensor::from_slice(&[1], &[number])),
                Err(_) => graph.add_value(Value { name: name.to_owned(), ..Value::default() }),
            })
        };
        for (op, operands, result) in nodes {
            let inputs = operands.iter().map(|name| Some(id(&mut graph, name))).collect();
            let output = id(&mut graph, result);
            graph.nodes.push(Node::new((*result).to_owned(), op.clone(), inputs, vec![output]));
            graph.outputs = vec![output];
        }
        graph.inputs = vec![id(&mut graph, "x")];
        graph
    }

    fn named(nodes: &[(Op, &[&str], &str)]) -> bool {
        let mut graph = graph(nodes);
        let x = graph.inputs[0];
        name_hard_swish(&mut graph);
        let [node] = &graph.nodes[..] else { return false };
        matches!(node.op, Op::Unary(Unary::HardSwish)) && node.inputs == [Some(x)]
    }

    const ADD: Op = Op::Binary(Binary::Add);
    const MUL: Op = Op::Binary(Binary::Mul);
    const DIV: Op = Op::Binary(Binary::Div);

    #[test]
    fn every_spelling_gets_its_name() {
        let six: [(Op, &[&str], &str); 2] = [(ADD, &["x", "3"], "a"), (Op::Clip, &["a", "0", "6"], "c")];
        let with = |rest: &[(Op, &'static [&'static str], &'static str)]| named(&[&six[..], rest].concat());
        assert!(with(&[(MUL, &["x", "c"], "m"), (DIV, &["m", "6"], "y")]));
        assert!(with(&[(MUL, &["c", "x"], "m"), (MUL, &["0.16666667", "m"], "y")]));
        assert!(with(&[(DIV, &["c", "6"], "d"), (MUL, &["x", "d"], "y")]));
        let hard = Op::Unary(Unary::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 });
        assert!(named(&[(hard, &["x"], "h"), (MUL, &["h", "x"], "y")]));
    }

    #[test]
    fn what_is_something_else_stays() {
        let hard = Op::Unary(Unary::HardSigmoid { alpha: 0.2, beta: 0.5 });
        assert!(!named(&[(hard, &["x"], "h"), (MUL, &["h", "x"], "y")]));
        let six: [(Op, &[&str], &str); 2] = [(ADD, &["x", "3"], "a"), (Op::Clip, &["a", "0", "6"], "c")];
        let with = |rest: &[(Op, &'static [&'static str], &'static str)]| named(&[&six[..], rest].concat());
        assert!(!with(&[(MUL, &["a", "c"], "m"), (DIV, &["m", "6"], "y")]), "the gate of another value");
        assert!(!with(&[(MUL, &["x", "c"], "m"), (DIV, &["m", "5"], "y")]));
        assert!(!with(&[(MUL, &["x", "c"], "m"), (DIV, &["6", "m"], "y")]));
        assert!(
            !with(&[(DIV, &["c", "6"], "d"), (MUL, &["x", "d"], "y"), (ADD, &["y", "d"], "z")]),
            "read twice"
        );
    }
}
