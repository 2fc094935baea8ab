//! What the training of a model did to each node and value: which nodes are between codes, which values have parameters,
//! what was left in float. Changes nothing.

use std::collections::{HashMap, HashSet};

use super::{computes_on_codes, is_boundary, params_of};
use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::tensor::DType;
use crate::engine::tensor::qparams::QuantParams;

/// What became of a node before it came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It makes codes of reals, or reals of codes.
    Boundary,
    /// It is between codes, or its weights are codes.
    Computes,
    /// A Relu or Clip between one of those and the codes of its result.
    Clamps,
    /// It was left in float.
    Left,
}

/// What a model that comes quantized brings along; nothing of one that comes in float.
#[derive(Clone, Debug, Default)]
pub struct Trained {
    /// One for each node; none where the model came in float.
    roles: Vec<Role>,
    /// For each node between codes the value that it makes in the end.
    results: HashMap<usize, ValueId>,
    /// Parameters of 8 bits, one scale a value: of reals that come from codes, and of reals that go to codes.
    params: HashMap<ValueId, QuantParams>,
    /// Reals that come from codes with such parameters, in execution order.
    dequantized: Vec<ValueId>,
    /// Reals that are made codes by each node that reads them.
    to_codes: HashSet<ValueId>,
}

impl Trained {
    /// What there is in a graph.
    pub fn of(graph: &Graph) -> Trained {
        if !super::is_quantized(graph) {
            return Trained::default();
        }
        let mut found = Finder {
            graph,
            readers: graph.consumers(),
            producers: graph.producers(),
            codes: HashSet::new(),
            trained: Trained::default(),
        };
        found.params();
        for (n, node) in graph.nodes.iter().enumerate() {
            let role = found.role(node);
            found.trained.roles.push(role);
            if role == Role::Computes {
                let result = found.result(node.outputs[0]);
                found.trained.results.insert(n, result);
            }
        }
        found.trained
    }

    /// Whether the model came in float.
    pub fn is_empty(&self) -> bool {
        self.roles.is_empty()
    }

    /// What became of a node.
    pub fn role(&self, node: usize) -> Role {
        self.roles.get(node).copied().unwrap_or(Role::Left)
    }

    /// The value that a node between codes makes, after the clamp behind it.
    pub fn result(&self, node: usize) -> Option<ValueId> {
        self.results.get(&node).copied()
    }

    /// The parameters that a value was trained with.
    pub fn params(&self, value: ValueId) -> Option<&QuantParams> {
        self.params.get(&value)
    }

    /// Whether a value is what codes with one scale stand for.
    pub fn is_dequantized(&self, value: ValueId) -> bool {
        self.dequantized.contains(&value)
    }

    /// The values that are what codes with one scale stand for, with their parameters, in execution order.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &QuantParams)> {
        self.dequantized.iter().map(|value| (*value, &self.params[value]))
    }

    /// Whether all that reads a value makes codes of it.
    pub fn goes_to_codes(&self, value: ValueId) -> bool {
        self.to_codes.contains(&value)
    }
}

struct Finder<'a> {
    graph: &'a Graph,
    readers: Vec<Vec<usize>>,
    producers: HashMap<ValueId, usize>,
    /// Values that are codes.
    codes: HashSet<ValueId>,
    trained: Trained,
}

impl Finder<'_> {
    fn params(&mut self) {
        let eight = |params: &QuantParams| matches!(params.dtype, DType::U8 | DType::I8);
        for node in &self.graph.nodes {
            let Some(params) = params_of(self.graph, node).filter(eight) else { continue };
            let (Some(operand), Some(&result)) = (node.input(0), node.outputs.first()) else { continue };
            if self.graph.constant(operand).is_some() {
                continue;
            }
            match node.op {
                Op::DequantizeLinear { .. } => {
                    self.trained.params.insert(result, params);
                    self.trained.dequantized.push(result);
                }
                // What comes from codes has the parameters of those.
                _ => drop(self.trained.params.entry(operand).or_insert(params)),
            }
        }
        for (value, readers) in self.readers.iter().enumerate() {
            let id = ValueId(value as u32);
            let quantizes = |&n: &usize| matches!(self.graph.nodes[n].op, Op::QuantizeLinear { .. });
            if !readers.is_empty() && readers.iter().all(quantizes) && !self.graph.outputs.contains(&id) {
                self.trained.to_codes.insert(id);
            }
        }
    }

    fn role(&mut self, node: &Node) -> Role {
        if is_boundary(&node.op) {
            if let Op::QuantizeLinear { .. } = node.op {
                self.codes.extend(&node.outputs);
            }
            return Role::Boundary;
        }
        if computes_on_codes(&node.op) {
            self.codes.extend(node.outputs.first().filter(|_| gives_codes(node)));
            let ranges = matches!(&node.op, Op::Other(o) if o.name == "DynamicQuantizeLinear");
            return if ranges { Role::Boundary } else { Role::Computes };
        }
        if node.inputs.iter().flatten().any(|v| self.codes.contains(v)) {
            self.codes.extend(&node.outputs);
            return Role::Computes;
        }
        if node.inputs.iter().flatten().any(|&v| self.is_weight(v)) {
            return Role::Computes;
        }
        if self.clamps(node) {
            return Role::Clamps;
        }
        let reals: Vec<ValueId> =
            node.inputs.iter().flatten().copied().filter(|v| self.is_real(*v)).collect();
        let from_codes = |v: &ValueId| self.dequantizes(*v);
        let between = !reals.is_empty()
            && reals.iter().all(from_codes)
            && node.outputs.iter().all(|&output| self.trained.goes_to_codes(self.result(output)));
        // A product whose weights are reals has not been quantized, whatever is around it.
        let multiplies = matches!(node.op, Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul);
        let whole = !multiplies || node.input(1).is_some_and(|w| self.dequantizes(w));
        if between && whole { Role::Computes } else { Role::Left }
    }

    /// Whether a value is what codes stand for.
    fn dequantizes(&self, value: ValueId) -> bool {
        let producer = self.producers.get(&value).map(|&n| &self.graph.nodes[n].op);
        matches!(producer, Some(Op::DequantizeLinear { .. }))
    }

    /// Whether a value is what constant codes stand for, perhaps turned or reshaped.
    fn is_weight(&self, value: ValueId) -> bool {
        let mut value = value;
        while let Some(&n) = self.producers.get(&value) {
            let node = &self.graph.nodes[n];
            let Some(operand) = node.input(0) else { return false };
            match node.op {
                Op::DequantizeLinear { .. } => return self.graph.constant(operand).is_some(),
                Op::Transpose { .. } | Op::Reshape { .. } | Op::Flatten { .. } => value = operand,
                Op::Squeeze | Op::Unsqueeze | Op::Identity => value = operand,
                _ => return false,
            }
        }
        false
    }

    fn is_real(&self, value: ValueId) -> bool {
        let whole = self.graph.value(value).dtype.is_some_and(|dtype| dtype != DType::F32);
        !whole && self.graph.constant(value).is_none()
    }

    /// Whether a node is a clamp behind one that is between codes.
    fn clamps(&self, node: &Node) -> bool {
        let Some(&n) = node.input(0).and_then(|v| self.producers.get(&v)) else { return false };
        let behind = self.trained.roles.get(n) == Some(&Role::Computes);
        behind && node.outputs.first() == Some(&self.result(self.graph.nodes[n].outputs[0]))
    }

    /// The value that is made codes: the result of a node, or that of the Relu or Clip which alone reads it.
    fn result(&self, value: ValueId) -> ValueId {
        if let [reader] = self.readers[value.0 as usize][..]
            && let node = &self.graph.nodes[reader]
            && node.op.is_clamp()
            && node.input(0) == Some(value)
            && !self.graph.outputs.contains(&value)
            && self.trained.goes_to_codes(node.outputs[0])
        {
            return node.outputs[0];
        }
        value
    }
}

/// Whether an operator on codes gives codes, not sums or reals.
fn gives_codes(node: &Node) -> bool {
    match &node.op {
        Op::Other(o) if o.name == "QGemm" => node.input(7).is_some(),
        Op::Other(o) => o.name.starts_with("QLinear") || o.name == "DynamicQuantizeLinear",
        _ => false,
    }
}
