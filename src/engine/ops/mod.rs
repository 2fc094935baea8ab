//! Operators that are one object each (`Operator`), a file a family: their attributes, their shapes, the obvious loop.
//! What runs often in a network has a variant of `Op` and kernels of its own instead.

mod chance;
mod cumulate;
mod curves;
mod einsum;
mod elements;
mod extremes;
mod gather;
mod geometry;
mod number;
mod rearrange;
mod regions;
pub mod registry;
mod scatter;
mod select;
mod strides;
mod tables;
mod typed;
mod unique;

use std::sync::Arc;

use crate::engine::graph::attributes::Attribute;
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{Tensor, TensorView};

/// Reads the attributes of a node.
type Parse = fn(&Call<'_>) -> Result<Made, String>;

/// An operator that was made of a node.
struct Made {
    operator: Arc<dyn Operator>,
    /// The name of today, where the node has one that went out of use.
    name: Option<&'static str>,
    added: Vec<(usize, Tensor)>,
    /// What is written to a file whether the node said so or not.
    set: Vec<(&'static str, Attribute)>,
    dropped: &'static [&'static str],
}

impl Made {
    /// An operator in the form that the node has.
    fn new(operator: impl Operator + 'static) -> Made {
        Made { operator: Arc::new(operator), name: None, added: Vec::new(), set: Vec::new(), dropped: &[] }
    }

    /// An operator that has another name today.
    fn called(self, name: &'static str) -> Made {
        Made { name: Some(name), ..self }
    }

    /// An attribute whose default is another one today.
    fn with(mut self, name: &'static str, value: Attribute) -> Made {
        self.set.push((name, value));
        self
    }

    /// An attribute of older opsets becomes operand `position`; it is not written again as an attribute.
    fn operand(mut self, position: usize, tensor: Tensor, dropped: &'static [&'static str]) -> Made {
        self.added.push((position, tensor));
        self.dropped = dropped;
        self
    }
}

/// One entry: domain, name, how it is read.
type Entry = (&'static str, &'static str, Parse);

/// Operand `index` of a run, or that it is missing.
fn given<'a>(inputs: &[Option<TensorView<'a>>], index: usize) -> Result<TensorView<'a>, String> {
    inputs.get(index).copied().flatten().ok_or_else(|| format!("input {index} is missing"))
}
