//! Operators that are one object each: what they make of shapes, and what they make of data. The importer builds
//! them, the executor runs them, and neither knows which there are.

use std::fmt;
use std::sync::Arc;

use crate::engine::tensor::{Tensor, TensorView};

use super::attributes::Attributes;
use super::fact::{Fact, Results, Unfit};

/// An operator with its attributes read.
pub trait Operator: fmt::Debug + Send + Sync {
    /// Type and shape of each result for operands of these types and shapes. `outputs` is how many are asked for.
    ///
    /// # Errors
    /// [`Unfit::Wrong`] says what does not fit; [`Unfit::AtRun`] that the data decides.
    fn infer(&self, inputs: &[Option<&Fact>], outputs: usize) -> Result<Results, Unfit>;

    /// The results, of the types and shapes that `infer` gives. Operands come row-major, float16 and bfloat16 ones
    /// as float32; float32 results become again what `infer` says.
    ///
    /// # Errors
    /// A sentence about the data: an index out of range, say.
    fn run(&self, inputs: &[Option<TensorView<'_>>], outputs: usize) -> Result<Vec<Tensor>, String>;

    /// What `run` does, with everything prepared that depends on constants alone: packed weights, tables. `None`
    /// where there is nothing to gain.
    fn prepare(&self, _inputs: &[Option<&Fact>]) -> Option<Prepared> {
        None
    }

    /// What writes the one result straight from the first operand, where the others are constants. Shapes are those
    /// of the model; `channels_last` says that in memory both are `[N, …, C]`. `None` where there is no such way.
    fn writer(&self, _inputs: &[Option<&Fact>], _channels_last: bool) -> Option<Writer> {
        None
    }

    /// For an operator that adds up windows of weights `[C, M, …]` (of this shape) which do not overlap: what lays the
    /// results of a Conv of 1x1 with the weights `[taps · M, C, 1, 1]`, tap by tap, out as it does. `None` for all others.
    fn layer_of_windows(&self, _weight: &[usize]) -> Option<Other> {
        None
    }

    /// Whether it makes one result of one operand of reals, by the same function for every element.
    fn is_elementwise(&self) -> bool {
        false
    }

    /// The opset from which on the operator has this form.
    fn opset(&self) -> i64 {
        13
    }
}

/// A prepared operator: as [`Operator::run`].
pub type Prepared =
    Box<dyn Fn(&[Option<TensorView<'_>>], usize) -> Result<Vec<Tensor>, String> + Send + Sync>;

/// Makes the bytes of a result from an operand, whose shape is that in memory.
pub type Writer = Box<dyn Fn(&TensorView<'_>, &mut [u8]) + Send + Sync>;

/// An operator of this kind in a graph.
#[derive(Clone, Debug)]
pub struct Other {
    /// The ONNX name.
    pub name: &'static str,
    /// Empty, or `com.microsoft`.
    pub domain: &'static str,
    /// What it does.
    pub operator: Arc<dyn Operator>,
    /// As they are written to a file.
    pub attributes: Attributes,
}

/// A node as the importer finds it, before it is known what it does.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// Empty for ONNX's own operators.
    pub domain: &'a str,
    /// The ONNX name.
    pub name: &'a str,
    /// The opset of ONNX's own operators that the model speaks.
    pub opset: i64,
    /// What the node sets.
    pub attributes: &'a Attributes,
    /// For each operand that the node lists whether it is there.
    pub inputs: Vec<bool>,
    /// For each result that the node lists whether somebody may read it.
    pub outputs: Vec<bool>,
}

impl Call<'_> {
    /// Whether result `index` is asked for.
    pub fn wants(&self, index: usize) -> bool {
        self.outputs.get(index).copied().unwrap_or(false)
    }

    /// Whether operand `index` is given.
    pub fn has(&self, index: usize) -> bool {
        self.inputs.get(index).copied().unwrap_or(false)
    }
}
