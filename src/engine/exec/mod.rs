//! Runs graphs. Speaks of ports, taps and run errors; does not know that quantization exists.

mod arena;
mod channels;
mod compile;
mod control;
mod describe;
pub mod fold;
mod forms;
pub mod fuse;
mod half;
pub mod integers;
mod layout;
mod lower;
mod lower_by_row;
mod lower_qoperator;
mod lower_table;
mod lowering;
mod memory;
mod ops_int8;
mod ops_math;
mod ops_move;
mod ops_product;
mod ops_product_int8;
mod ops_typed;
mod others;
mod plan;
mod products;
mod reorder;
pub mod runner;
pub mod session;
mod step;
mod strided;
pub mod symbolic;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_control;
#[cfg(test)]
mod tests_int8;
mod weights;
mod windows;

use crate::engine::graph::Dim;
use crate::engine::graph::passes::Passes;
use crate::engine::kernels::isa::Isa;
pub use crate::engine::kernels::parallel::on_this_thread;
use crate::engine::tensor::{DType, TensorView};

/// How a session runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Instruction set of the kernels.
    pub isa: Isa,
    /// Most threads that one run uses; they come from the rayon pool that `run` is called in. They stay awake until
    /// the run ends, so a pool for runs of several threads does one at a time; [`on_this_thread`] is for the others.
    pub threads: usize,
    /// The optimizing passes that run. The answers are the same without them.
    pub passes: Passes,
    /// Whether DequantizeLinear, an operator and QuantizeLinear are one step on codes: the numeric contract.
    /// Without it they run one by one in float, the way ONNX defines them; a code may differ by one on a tie.
    pub integers: bool,
    /// Most bytes that the values of one run may take together.
    pub memory_bytes_max: u64,
    /// What counts more for packed weights.
    pub memory: Memory,
}

/// What counts more where a faster form of the weights takes more memory. The answers are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The fastest form.
    Fast,
    /// The smallest form.
    Small,
}

impl Memory {
    /// `fast` or `small`.
    pub fn named(name: &str) -> Option<Memory> {
        match name {
            "fast" => Some(Memory::Fast),
            "small" => Some(Memory::Small),
            _ => None,
        }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            isa: Isa::best(),
            threads: 1,
            passes: Passes::ALL,
            integers: true,
            memory_bytes_max: 16 << 30,
            memory: Memory::Fast,
        }
    }
}

/// An input or output of a model.
#[derive(Clone, Debug)]
pub struct Port {
    /// Name in the model.
    pub name: String,
    /// What one element is.
    pub dtype: DType,
    /// Declared shape; of an output also what follows from the shapes of the inputs.
    pub dims: Vec<Dim>,
    /// Whether the number of dimensions is known; where it is not, `dims` is empty and every shape is taken.
    pub ranked: bool,
}

impl Port {
    /// The shape, where every dimension is a number or `length` gives one for its name.
    pub fn shape(&self, length: impl Fn(&Dim) -> Option<usize>) -> Option<Vec<usize>> {
        let number = |dim: &Dim| match dim {
            Dim::Known(n) => Some(*n),
            other => length(other),
        };
        self.dims.iter().map(number).collect()
    }
}

/// What tells the shapes of its values for given shapes of its inputs.
pub trait ShapesOf {
    /// What a caller hands in.
    fn inputs(&self) -> &[Port];
    /// Name, type and shape of every value that is known before a run over inputs of these shapes, in the order of
    /// the graph.
    ///
    /// # Errors
    /// Shapes that do not fit the model.
    fn value_shapes(&self, shapes: &[Vec<usize>]) -> Result<Vec<(String, DType, Vec<usize>)>, Error>;
}

/// One step of a run, for people who look where the time goes.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Name of the node that the step belongs to.
    pub node: String,
    /// What the step does: an operator, or a change of memory order.
    pub op: String,
    /// Whether it computes on codes.
    pub integer: bool,
    /// Multiply-accumulates of one run.
    pub macs: u64,
    /// Shape of the result in memory.
    pub shape: Vec<usize>,
    /// Median time of one run.
    pub seconds: f64,
}

/// Sees values while a graph runs: calibration and evaluation hang on here.
pub trait Tap: Send {
    /// Whether `observe` should be called for this value. Asked once per value and plan.
    fn wants(&self, value: &str) -> bool;
    /// One value of one run, in the shape the model gives it (`[N, C, H, W]` even where the memory order
    /// was another). Called in execution order.
    fn observe(&mut self, value: &str, tensor: TensorView<'_>);
    /// The same of a value whose channels come last, with the shape `[N, H, W, C]`: only where `order` says so.
    fn observe_channels_last(&mut self, value: &str, tensor: TensorView<'_>) {
        self.observe(value, tensor);
    }
    /// In which order of its elements it takes a value: less than that of the model saves moving them.
    fn order(&self, _value: &str) -> ElementOrder {
        ElementOrder::Model
    }
}

/// Orders of the elements of a value that a [`Tap`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementOrder {
    /// That of the model.
    Model,
    /// That of the model, or with the channels last where they are so in memory.
    ChannelsLast,
    /// Whatever is in memory, with the shape of that order, which keeps the first axis.
    Any,
}

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An input that the model has was not given.
    #[error("input `{name}` is missing; the model needs {expected:?}")]
    MissingInput {
        /// The input.
        name: String,
        /// All inputs of the model.
        expected: Vec<String>,
    },
    /// A given input that the model does not have.
    #[error("the model has no input `{name}`; it needs {expected:?}")]
    UnknownInput {
        /// What was given.
        name: String,
        /// All inputs of the model.
        expected: Vec<String>,
    },
    /// An input of another type than the model declares.
    #[error("input `{name}` is {got}, the model needs {want}")]
    InputType {
        /// The input.
        name: String,
        /// What was given.
        got: DType,
        /// What the model declares.
        want: DType,
    },
    /// An input of a shape that the model does not take.
    #[error("input `{name}` has shape {got:?}, the model needs [{want}]")]
    InputShape {
        /// The input.
        name: String,
        /// What was given.
        got: Vec<usize>,
        /// What the model declares.
        want: String,
    },
    /// A node whose operands do not fit it.
    #[error("node `{node}` ({op}): {reason}")]
    Node {
        /// Name of the node.
        node: String,
        /// Its operator.
        op: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// A node whose results only a run can tell, where a plan for all nodes is needed.
    #[error("node `{node}`: the shapes of its results depend on the data")]
    NotPlanned {
        /// Name of the node.
        node: String,
    },
    /// The values of a run would take more memory than allowed.
    #[error("a run with these shapes needs {need_bytes} bytes, more than the limit of {limit_bytes}")]
    TooLarge {
        /// What it would take.
        need_bytes: u64,
        /// What is allowed.
        limit_bytes: u64,
    },
}
