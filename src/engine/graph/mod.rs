//! The graph: values, nodes and operators with ids. One form of each operator, that of ONNX opset 18
//! (the importer lifts older ones), plus the integer operators that the executor lowers to.

pub mod attributes;
pub mod fact;
pub mod function;
pub mod op;
pub mod operator;
pub mod passes;
pub mod reach;
pub mod shapes;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use self::op::Op;
use crate::engine::tensor::qparams::QuantParams;
use crate::engine::tensor::{DType, Tensor};

/// A value of a graph: an index into [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// Length of one dimension, as the model declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// A number.
    Known(usize),
    /// A name, such as `batch`: the same name is the same length.
    Symbol(String),
    /// Not said.
    Unknown,
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Symbol(name) => f.write_str(name),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// What flows between nodes.
#[derive(Clone, Debug, Default)]
pub struct Value {
    /// Name in the model; unique in a graph.
    pub name: String,
    /// What one element is, where known.
    pub dtype: Option<DType>,
    /// The declared shape, where known.
    pub dims: Option<Vec<Dim>>,
    /// The data of a constant.
    pub constant: Option<Arc<Tensor>>,
    /// How the codes of an integer value stand for reals.
    pub qparams: Option<QuantParams>,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name in the model; errors and reports use it.
    pub name: String,
    /// What it does.
    pub op: Op,
    /// Operands; `None` where an optional one is left out.
    pub inputs: Vec<Option<ValueId>>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// The bodies of If (then, else), Loop and Scan. What a body reads of the graph around it is an operand of the
    /// node and an input of the body, after those that ONNX lists.
    pub bodies: Vec<Arc<Graph>>,
}

impl Node {
    /// A node without bodies.
    pub fn new(name: String, op: Op, inputs: Vec<Option<ValueId>>, outputs: Vec<ValueId>) -> Node {
        Node { name, op, inputs, outputs, bodies: Vec::new() }
    }

    /// Operand `index`, where it is there.
    pub fn input(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }
}

/// A model: values, and nodes in execution order.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Name of the graph in the model.
    pub name: String,
    /// The opset of ONNX that the model was written in; 0 where it was made here.
    pub opset: i64,
    /// All values; a [`ValueId`] is an index.
    pub values: Vec<Value>,
    /// All nodes in execution order.
    pub nodes: Vec<Node>,
    /// What a caller hands in.
    pub inputs: Vec<ValueId>,
    /// What a caller gets back.
    pub outputs: Vec<ValueId>,
}

impl Graph {
    /// A value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// A value, to be changed.
    pub fn value_mut(&mut self, id: ValueId) -> &mut Value {
        &mut self.values[id.0 as usize]
    }

    /// The data of a value, where it is a constant.
    pub fn constant(&self, id: ValueId) -> Option<&Arc<Tensor>> {
        self.value(id).constant.as_ref()
    }

    /// Adds a value.
    pub fn add_value(&mut self, value: Value) -> ValueId {
        self.values.push(value);
        ValueId(u32::try_from(self.values.len() - 1).expect("the importer bounds the number of values"))
    }

    /// Adds a constant under a name that no other value has.
    pub fn add_constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let dims = tensor.shape().iter().map(|&d| Dim::Known(d)).collect();
        self.add_value(Value {
            name: name.to_owned(),
            dtype: Some(tensor.dtype()),
            dims: Some(dims),
            constant: Some(Arc::new(tensor)),
            qparams: None,
        })
    }

    /// For each value the node that makes it.
    pub fn producers(&self) -> HashMap<ValueId, usize> {
        let outputs =
            |(n, node): (usize, &Node)| node.outputs.iter().map(move |&v| (v, n)).collect::<Vec<_>>();
        self.nodes.iter().enumerate().flat_map(outputs).collect()
    }

    /// For each value the nodes that read it, one entry an operand, in execution order. Graph outputs do not count.
    pub fn consumers(&self) -> Vec<Vec<usize>> {
        let mut readers = vec![Vec::new(); self.values.len()];
        for (n, node) in self.nodes.iter().enumerate() {
            for input in node.inputs.iter().flatten() {
                readers[input.0 as usize].push(n);
            }
        }
        readers
    }

    /// Puts `new` in the place of `old` wherever a node or a graph output reads it.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        let operands = self.nodes.iter_mut().flat_map(|n| n.inputs.iter_mut().flatten());
        for id in operands.chain(self.outputs.iter_mut()) {
            if *id == old {
                *id = new;
            }
        }
    }

    /// Takes out the nodes whose results nobody reads.
    pub fn remove_unused_nodes(&mut self) {
        let mut needed: HashSet<ValueId> = self.outputs.iter().copied().collect();
        let mut keep = vec![false; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate().rev() {
            if node.outputs.iter().any(|o| needed.contains(o)) {
                keep[index] = true;
                needed.extend(node.inputs.iter().flatten());
            }
        }
        let mut keep = keep.into_iter();
        self.nodes.retain(|_| keep.next().unwrap_or(false));
    }

    /// A name that no value has: `base`, or `base_1`, `base_2`, ….
    pub fn unused_name(&self, base: &str) -> String {
        let taken = |name: &str| self.values.iter().any(|v| v.name == name);
        if !taken(base) {
            return base.to_owned();
        }
        (1..).map(|i| format!("{base}_{i}")).find(|name| !taken(name)).expect("the numbers do not end")
    }
}
