//! Operators that are one object each (`Operator`), a file a family: their attributes, their shapes, the obvious loop.
//! What runs often in a network has a variant of `Op` and kernels of its own instead.

mod codes;
mod quantized;
mod quantized_math;
mod quantized_products;
pub mod registry;
mod select;
mod typed;

use std::sync::Arc;

use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::Tensor;

/// Reads the attributes of a node.
type Parse = fn(&Call<'_>) -> Result<Made, String>;

/// An operator that was made of a node.
struct Made {
    operator: Arc<dyn Operator>,
    added: Vec<(usize, Tensor)>,
    dropped: &'static [&'static str],
}

impl Made {
    /// An operator in the form that the node has.
    fn new(operator: impl Operator + 'static) -> Made {
        Made { operator: Arc::new(operator), added: Vec::new(), dropped: &[] }
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
