//! What becomes of each node of a graph, and which values get codes. Does not know how that is decided.

use std::collections::{BTreeMap, HashMap};

use crate::engine::graph::function::Function;
use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::tensor::qparams::QuantParams;

use super::trained::roles::Trained;

/// What becomes of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Computes on codes.
    Integer,
    /// Reads rows of a table that is stored in `i8`; the result is real.
    Lookup,
    /// Multiplies codes of rows that get their range in each run; the result is real.
    Dynamic,
    /// Computes on reals, with weights that are stored in `i8`.
    Stored,
    /// What the node before it does before its sums become codes: a Relu or Clip that the codes take over, or a function.
    Absorbed {
        /// Position of that node in the graph.
        into: usize,
    },
    /// A step of a function whose result goes to codes: with the others it becomes a table.
    Inner {
        /// Position of the last step in the graph.
        of: usize,
    },
    /// Computes on reals that were rounded to 16-bit codes, with weights that are stored in `i8`.
    Sixteen,
    /// Computes in float16.
    Half,
    /// Stands between codes in the model itself, and stays as it is.
    Trained,
    /// Computes on reals, for a reason.
    Float(String),
    /// Moves data or computes shapes; there is nothing to gain.
    Data,
}

/// Which operators read the codes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Integers flow on: convolutions and the layers of a perceptron.
    Flow,
    /// An island among float operators: a matrix product in a transformer.
    Island,
}

/// A value that gets codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coded {
    /// The value; after absorption, the result of the absorbed activation.
    pub value: ValueId,
    /// The value whose parameters it has: itself, or where its codes were passed on from.
    pub root: ValueId,
    /// Whether an integer node makes it. Then every reader sees the codes; otherwise integer nodes only do.
    pub by_integer: bool,
    /// Who reads it.
    pub region: Region,
}

/// What is quantized and what is not.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// One for each node of the graph.
    pub decisions: Vec<Decision>,
    /// Values that get codes: graph inputs first, then in execution order.
    pub coded: Vec<Coded>,
    /// Values that get 16-bit codes, beside those of 8 bits where they have both, and their parameters: any that are of
    /// the type until the data have been seen, so that a plan can be written, linted and weighed without data.
    pub sixteen: BTreeMap<ValueId, QuantParams>,
    /// For nodes on reals that read one operand through codes all the same: which.
    pub skips: BTreeMap<usize, usize>,
    /// What the model itself has quantized.
    pub trained: Trained,
    /// For each integer node what it makes in the end: its result, or that of the activation that it absorbs.
    pub(super) results: HashMap<usize, ValueId>,
    /// Functions of one value, by their last node.
    pub(super) functions: HashMap<usize, Function>,
}

impl Plan {
    /// A plan without codes of activations.
    pub fn of_decisions(decisions: Vec<Decision>) -> Plan {
        Plan { decisions, ..Plan::default() }
    }

    /// The operands of an integer node that it reads as codes of activations.
    pub fn operands(&self, graph: &Graph, node: usize) -> Vec<ValueId> {
        operands(&graph.nodes[node], self.functions.get(&node))
    }

    /// The function that an integer node is the last step of.
    pub fn function(&self, node: usize) -> Option<&Function> {
        self.functions.get(&node)
    }

    /// The value that an integer node makes, after absorption.
    pub fn result(&self, graph: &Graph, node: usize) -> ValueId {
        self.results.get(&node).copied().unwrap_or(graph.nodes[node].outputs[0])
    }

    /// The entry of a value that gets codes.
    pub fn coded(&self, value: ValueId) -> Option<&Coded> {
        self.coded.iter().find(|c| c.value == value)
    }

    /// These parameters, but for roots that the model itself has parameters for: those.
    pub fn with_trained(&self, params: &HashMap<ValueId, QuantParams>) -> HashMap<ValueId, QuantParams> {
        let own = |(root, params): (&ValueId, &QuantParams)| {
            (*root, self.trained.params(*root).unwrap_or(params).clone())
        };
        params.iter().map(own).collect()
    }

    /// Number of nodes that compute on codes or have weights in codes.
    pub fn quantized_nodes(&self) -> usize {
        let plain = |d: &&Decision| matches!(d, Decision::Float(_) | Decision::Data);
        self.decisions.iter().filter(|d| !plain(d)).count()
    }

    /// For each node that takes over others those, in execution order.
    pub fn absorbed(&self) -> HashMap<usize, Vec<usize>> {
        let mut absorbed: HashMap<usize, Vec<usize>> = HashMap::new();
        for (n, decision) in self.decisions.iter().enumerate() {
            if let Decision::Absorbed { into } = decision {
                absorbed.entry(*into).or_default().push(n);
            }
        }
        absorbed
    }

    /// Number of nodes that compute on codes.
    pub fn integer_nodes(&self) -> usize {
        self.decisions.iter().filter(|d| **d == Decision::Integer).count()
    }
}

/// The operands of an integer node that it reads as codes of activations.
pub(super) fn operands(node: &Node, function: Option<&Function>) -> Vec<ValueId> {
    if let Some(function) = function {
        return function.sources.clone();
    }
    let count = match node.op {
        Op::Binary(_) => 2,
        Op::Concat { .. } => node.inputs.len(),
        _ => 1,
    };
    (0..count).filter_map(|i| node.input(i)).collect()
}
