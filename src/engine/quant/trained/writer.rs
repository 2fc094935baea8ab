//! A float model while its quantization is taken away: values that were codes are reals, and what is known of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::engine::graph::op::Op;
use crate::engine::graph::{Dim, Graph, Node, Value, ValueId};
use crate::engine::tensor::qparams::{QuantParams, code_range};
use crate::engine::tensor::{DType, Tensor};

/// A float model that is being written.
pub(super) struct Reference<'a> {
    pub(super) source: &'a Graph,
    pub(super) out: Graph,
    /// Values that are codes in the model and reals here.
    pub(super) reals: HashSet<ValueId>,
    /// The parameters that those have there, where there is one scale.
    pub(super) params: HashMap<ValueId, QuantParams>,
    /// Bounds that values are known to keep.
    clipped: HashMap<ValueId, (f32, f32)>,
    /// Inputs of the model, and what was only moved of them.
    pub(super) given: HashSet<ValueId>,
}

impl Reference<'_> {
    /// A copy of a graph without its nodes.
    pub(super) fn of(source: &Graph) -> Reference<'_> {
        Reference {
            out: Graph { nodes: Vec::new(), ..source.clone() },
            source,
            reals: HashSet::new(),
            params: HashMap::new(),
            clipped: HashMap::new(),
            given: source.inputs.iter().copied().collect(),
        }
    }

    /// The reals of an operand as `to`, which is codes in the model; cut where codes may stand for an activation.
    pub(super) fn saturated(&mut self, name: &str, from: ValueId, params: Option<QuantParams>, to: ValueId) {
        self.becomes_real(to);
        let bounds = params.as_ref().and_then(one_sided).filter(|_| !self.given.contains(&from));
        let known = self.clipped.get(&from).copied();
        let cut = bounds.filter(|&(lo, hi)| !known.is_some_and(|(l, h)| lo <= l && h <= hi));
        match cut {
            None => self.push(name, Op::Identity, vec![Some(from)], to),
            Some((lo, hi)) => {
                let bounds = [lo, hi].map(|x| Some(self.constant(name, Tensor::scalar(x))));
                self.push(name, Op::Clip, vec![Some(from), bounds[0], bounds[1]], to);
            }
        }
        if let Some(bounds) = cut.or(known) {
            self.clipped.insert(to, bounds);
        }
        if self.given.contains(&from) {
            self.given.insert(to);
        }
        self.params.extend(params.map(|params| (to, params)));
    }

    /// What is known of an operand is known of a result, which holds the same reals.
    pub(super) fn follow(&mut self, operand: ValueId, result: ValueId) {
        if self.given.contains(&operand) {
            self.given.insert(result);
        }
        let bounds = self.clipped.get(&operand).copied();
        self.clipped.extend(bounds.map(|bounds| (result, bounds)));
        let params = self.params.get(&operand).cloned();
        self.params.extend(params.map(|params| (result, params)));
    }

    /// Whether a value is codes in the model and reals here.
    pub(super) fn is_taken(&self, value: ValueId) -> bool {
        self.reals.contains(&value)
    }

    /// Makes reals of a value that is codes in the model.
    pub(super) fn becomes_real(&mut self, value: ValueId) {
        self.reals.insert(value);
        self.becomes_f32(value);
    }

    pub(super) fn becomes_f32(&mut self, value: ValueId) {
        let value = self.out.value_mut(value);
        (value.dtype, value.qparams) = (Some(DType::F32), None);
    }

    pub(super) fn becomes_constant(&mut self, value: ValueId, tensor: Tensor) {
        let value = self.out.value_mut(value);
        value.dtype = Some(tensor.dtype());
        value.dims = Some(tensor.shape().iter().map(|&d| Dim::Known(d)).collect());
        value.constant = Some(Arc::new(tensor));
    }

    pub(super) fn push(&mut self, name: &str, op: Op, inputs: Vec<Option<ValueId>>, to: ValueId) {
        self.out.nodes.push(Node::new(name.to_owned(), op, inputs, vec![to]));
    }

    pub(super) fn constant(&mut self, stem: &str, tensor: Tensor) -> ValueId {
        let name = self.out.unused_name(&format!("{stem}.real"));
        self.out.add_constant(&name, tensor)
    }

    /// A value of its own.
    pub(super) fn fresh(&mut self, stem: &str) -> ValueId {
        let name = self.out.unused_name(&format!("{stem}.unrounded"));
        self.out.add_value(Value { name, dtype: Some(DType::F32), ..Value::default() })
    }
}

/// The range of codes whose zero lies at one of its ends.
fn one_sided(params: &QuantParams) -> Option<(f32, f32)> {
    let (least, most) = code_range(params.dtype);
    let zero = i64::from(params.zero_point[0]);
    let (lo, hi) = params.reals();
    (zero == least || zero == most).then_some((lo as f32, hi as f32))
}

/// Why a model has no float model behind it.
pub(super) fn refused(node: &Node, why: &str) -> String {
    format!("node `{}` ({}) {why}", node.name, node.op.name())
}
