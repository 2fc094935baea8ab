//! Operators that are one object each (`Operator`), a file a family: their attributes, their shapes, the obvious loop.
//! What runs often in a network has a variant of `Op` and kernels of its own instead.

mod activation;
mod attention;
mod attention_microsoft;
mod attention_onnx;
mod cells;
mod chance;
mod channel_norm;
mod codes;
mod col2im;
mod conv_transpose;
mod cumulate;
mod curves;
mod einsum;
mod elements;
mod extremes;
mod fourier;
mod fused_matmul;
mod gather;
mod geometry;
mod layer_norm;
mod linear_attention;
mod losses;
mod matrix;
mod number;
mod pooling;
mod product;
mod quantized;
mod quantized_conv;
mod quantized_math;
mod quantized_products;
mod real;
mod rearrange;
mod recurrent;
mod regions;
pub mod registry;
mod resample;
mod resize;
mod rotary;
mod sampling;
mod scatter;
mod select;
mod signal;
mod strides;
mod tables;
mod typed;
mod unique;

use std::sync::Arc;

use crate::engine::graph::attributes::Attribute;
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::Tensor;

/// Reads the attributes of a node.
type Parse = fn(&Call<'_>) -> Result<Made, String>;

/// An operator that was made of a node.
struct Made {
    operator: Arc<dyn Operator>,
    /// The name that the operator has now, where an older one was taken over by another.
    name: Option<&'static str>,
    added: Vec<(usize, Tensor)>,
    dropped: &'static [&'static str],
    /// Attributes that are written instead of those of the node.
    written: Vec<(String, Attribute)>,
}

impl Made {
    /// An operator in the form that the node has.
    fn new(operator: impl Operator + 'static) -> Made {
        Made {
            operator: Arc::new(operator),
            name: None,
            added: Vec::new(),
            dropped: &[],
            written: Vec::new(),
        }
    }

    /// An attribute of older opsets becomes operand `position`; it is not written again as an attribute. An operand
    /// that stands there moves on by one.
    fn operand(mut self, position: usize, tensor: Tensor, dropped: &'static [&'static str]) -> Made {
        self.added.push((position, tensor));
        self.dropped = dropped;
        self
    }

    /// The operator is written under another name, with attributes that older opsets took for granted.
    fn renamed(mut self, name: &'static str, written: &[(&str, &str)]) -> Made {
        self.name = Some(name);
        self.written =
            written.iter().map(|(n, v)| ((*n).to_owned(), Attribute::Text((*v).to_owned()))).collect();
        self
    }
}

/// One entry: domain, name, how it is read.
type Entry = (&'static str, &'static str, Parse);
