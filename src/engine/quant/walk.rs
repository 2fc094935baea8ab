//! Runs a graph part by part over a few samples and keeps only what later parts read. Between two parts the caller may
//! look at values and change constants that later parts use.

use std::collections::{HashMap, HashSet};

use crate::engine::exec::session::Session;
use crate::engine::exec::{self, Options};
use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, Value, ValueId};
use crate::engine::quant::abreast;
use crate::engine::quant::samples::Feeds;
use crate::engine::tensor::{DType, Tensor};

/// A run that has come to some node.
pub struct Walk {
    /// The next node to be run.
    at: usize,
    /// Values that are there: one tensor a batch.
    values: HashMap<ValueId, Vec<Tensor>>,
    /// For each value the last node that reads it.
    last: HashMap<ValueId, usize>,
    batches: usize,
    options: Options,
}

impl Walk {
    /// At the start of a graph, with its inputs.
    pub fn new(graph: &Graph, batches: &[Feeds], options: Options) -> Walk {
        let mut last = HashMap::new();
        for (n, node) in graph.nodes.iter().enumerate() {
            last.extend(node.inputs.iter().flatten().map(|&v| (v, n)));
        }
        // Codes are kept as long as somebody reads the reals that they stand for.
        for node in graph.nodes.iter().rev().filter(|node| is_inline(node)) {
            let (codes, reals) = (node.inputs[0].expect("it has an operand"), node.outputs[0]);
            let until = last.get(&reals).copied().unwrap_or(0);
            let entry = last.entry(codes).or_insert(until);
            *entry = until.max(*entry);
        }
        let tensors = |name: &str| -> Vec<Tensor> {
            let feed =
                |feeds: &Feeds| feeds.iter().find(|(n, _)| n == name).map(|(_, tensor)| tensor.clone());
            batches.iter().filter_map(feed).collect()
        };
        let values = graph.inputs.iter().map(|&id| (id, tensors(&graph.value(id).name))).collect();
        Walk { at: 0, values, last, batches: batches.len(), options }
    }

    /// Runs the nodes before `until` that have not been run.
    ///
    /// # Errors
    /// What a node gives that cannot be run.
    pub fn advance(&mut self, graph: &Graph, until: usize) -> Result<(), exec::Error> {
        let from = self.at;
        self.at = until.max(from);
        let own: Vec<&Node> = graph.nodes[from..self.at].iter().filter(|node| !is_inline(node)).collect();
        if own.is_empty() {
            return Ok(());
        }
        let made: HashSet<ValueId> = own.iter().flat_map(|n| n.outputs.iter().copied()).collect();
        let wanted: Vec<ValueId> = own
            .iter()
            .flat_map(|n| n.outputs.iter().copied())
            .filter(|v| self.last.get(v).is_some_and(|&last| last >= self.at))
            .collect();
        if !wanted.is_empty() {
            let part = part(graph, &own, &made, &wanted, &|v| self.dtype(v));
            let session = Session::new(part.graph, self.options.clone())?;
            let names: Vec<String> = part.inputs.iter().map(|&v| graph.value(v).name.clone()).collect();
            let run = |batch: usize| {
                let operands = part.inputs.iter().zip(&names);
                let feeds = operands.map(|(v, name)| (name.as_str(), &self.values[v][batch]));
                session.run(&feeds.collect::<Vec<_>>())
            };
            for results in abreast::each((0..self.batches).collect(), run) {
                for (&value, tensor) in wanted.iter().zip(results?) {
                    self.values.entry(value).or_default().push(tensor);
                }
            }
        }
        let (last, at) = (&self.last, self.at);
        self.values.retain(|v, _| last.get(v).is_some_and(|&last| last >= at));
        Ok(())
    }

    /// The type of a value that is there.
    fn dtype(&self, id: ValueId) -> Option<DType> {
        self.values.get(&id)?.first().map(Tensor::dtype)
    }

    /// A value that is there, one tensor a batch. What codes stand for has the name of the codes here.
    pub fn value(&self, id: ValueId) -> Option<&[Tensor]> {
        self.values.get(&id).map(Vec::as_slice)
    }
}

/// Whether a node is run anew wherever its result is read: what makes reals of codes. The codes take a quarter of the
/// memory, and products of them run on integers.
fn is_inline(node: &Node) -> bool {
    matches!(node.op, Op::DequantizeLinear { .. })
}

/// Nodes as a graph of their own.
struct Part {
    graph: Graph,
    /// What it takes, in the graph that it was taken from.
    inputs: Vec<ValueId>,
}

fn part(
    graph: &Graph,
    own: &[&Node],
    made: &HashSet<ValueId>,
    wanted: &[ValueId],
    dtype: &dyn Fn(ValueId) -> Option<DType>,
) -> Part {
    let producers: HashMap<ValueId, &Node> =
        graph.nodes.iter().flat_map(|n| n.outputs.iter().map(move |&v| (v, n))).collect();
    let mut cut = Cutter { graph, out: Graph::default(), places: HashMap::new(), inputs: Vec::new(), dtype };
    cut.out.opset = graph.opset;
    for node in own {
        for &operand in node.inputs.iter().flatten() {
            if made.contains(&operand) || graph.constant(operand).is_some() || cut.has(operand) {
                continue;
            }
            match producers.get(&operand).filter(|n| is_inline(n)) {
                Some(inline) => {
                    let codes = inline.inputs[0].expect("it has an operand");
                    if !made.contains(&codes) && !cut.has(codes) && graph.constant(codes).is_none() {
                        cut.input(codes);
                    }
                    cut.node(inline);
                }
                None => cut.input(operand),
            }
        }
        cut.node(node);
    }
    cut.out.outputs = wanted.iter().map(|&v| cut.place(v)).collect();
    Part { graph: cut.out, inputs: cut.inputs }
}

struct Cutter<'a> {
    graph: &'a Graph,
    out: Graph,
    places: HashMap<ValueId, ValueId>,
    inputs: Vec<ValueId>,
    dtype: &'a dyn Fn(ValueId) -> Option<DType>,
}

impl Cutter<'_> {
    fn has(&self, value: ValueId) -> bool {
        self.places.contains_key(&value)
    }

    fn place(&mut self, value: ValueId) -> ValueId {
        if let Some(&place) = self.places.get(&value) {
            return place;
        }
        let source = self.graph.value(value);
        // Declared shapes are for another batch; those of constants are their own.
        let dims = source.constant.as_ref().and(source.dims.clone());
        let place = self.out.add_value(Value { dims, ..source.clone() });
        self.places.insert(value, place);
        place
    }

    fn input(&mut self, value: ValueId) {
        let place = self.place(value);
        let dtype = (self.dtype)(value).or(self.graph.value(value).dtype);
        self.out.value_mut(place).dtype = dtype;
        self.out.inputs.push(place);
        self.inputs.push(value);
    }

    fn node(&mut self, node: &Node) {
        let inputs = node.inputs.iter().map(|v| v.map(|v| self.place(v))).collect();
        let outputs = node.outputs.iter().map(|&v| self.place(v)).collect();
        self.out.nodes.push(Node { inputs, outputs, ..node.clone() });
    }
}

/// Some nodes of a graph as a session: it takes the values that they read from others, by name, and gives `wanted`. The
/// types of those that are `there` are told by them: files need not declare what a size in between is.
///
/// # Errors
/// Where the nodes cannot be run.
pub fn session_of(
    graph: &Graph,
    nodes: &[&Node],
    wanted: &[ValueId],
    there: Option<&Walk>,
    options: Options,
) -> Result<(Session, Vec<ValueId>), exec::Error> {
    let made: HashSet<ValueId> = nodes.iter().flat_map(|n| n.outputs.iter().copied()).collect();
    let Part { graph, inputs } = part(graph, nodes, &made, wanted, &|v| there?.dtype(v));
    Ok((Session::new(graph, options)?, inputs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_there_tell_their_types() {
        let mut g = Graph::default();
        // The file declares nothing about the shape in between.
        let [x, shape, y] =
            ["x", "shape", "y"].map(|name| g.add_value(Value { name: name.to_owned(), ..Value::default() }));
        let node = |op, inputs: &[ValueId], output| {
            Node::new(String::new(), op, inputs.iter().map(|&id| Some(id)).collect(), vec![output])
        };
        g.nodes = vec![
            node(Op::Shape { start: 0, end: None }, &[x], shape),
            node(Op::Reshape { allow_zero: false }, &[x, shape], y),
        ];
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        let samples = Tensor::from_slice(&[2, 3], &[1f32; 6]);
        let mut walk = Walk::new(&g, &[vec![("x".to_owned(), samples.clone())]], Options::default());
        walk.advance(&g, 1).unwrap();
        let (session, inputs) =
            session_of(&g, &[&g.nodes[1]], &[y], Some(&walk), Options::default()).unwrap();
        assert_eq!(inputs, [x, shape]);
        let made = session.run(&[("x", &samples), ("shape", &walk.value(shape).unwrap()[0])]).unwrap();
        assert_eq!(made[0], samples);
    }
}
