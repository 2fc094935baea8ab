//! The words of the Open Inference Protocol (KServe v2) as Triton speaks it: datatypes, requests, errors.
//! Knows tensors; knows neither models nor HTTP. Public for the tests and fuzz targets of hostile bodies.

mod decimal;
pub mod request;
pub mod response;
mod scan;

use crate::engine::tensor::{DType, Tensor};

/// Why a body is not an inference request. All of them are the caller's to mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The JSON part is not JSON, or not of the shape that the protocol asks for.
    #[error("malformed JSON at line {line} column {column}: {reason}")]
    Json {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What was expected and found.
        reason: String,
    },
    /// A field that must be there is not, or holds what it cannot hold.
    #[error("{0}")]
    Field(String),
    /// A tensor that contradicts itself.
    #[error("input `{name}`: {reason}")]
    Input {
        /// Name of the tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The lengths of the JSON part, of the tensors and of the body do not fit each other.
    #[error("{0}")]
    Framing(String),
    /// An output that cannot be given as asked.
    #[error("output `{name}`: {reason}")]
    Output {
        /// Name of the output.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// The same fault, inside the value of a key.
    fn within(mut self, key: &str) -> Error {
        if let Error::Json { reason, .. } = &mut self {
            *reason = format!("`{key}`: {reason}");
        }
        self
    }
}

/// How a body is laid out: what the header `Inference-Header-Content-Length` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No header: all JSON.
    Json,
    /// So many bytes of JSON, then raw tensors in input order.
    Binary(usize),
    /// Header 0: the whole body is the only input of the model.
    Raw,
}

/// One input or output of a model, as far as the protocol shows it. `None` is a free dimension.
pub struct Port<'a> {
    /// Name in the model.
    pub name: &'a str,
    /// What one element is.
    pub dtype: DType,
    /// Declared shape, with the batch dimension.
    pub shape: &'a [Option<usize>],
}

/// An inference request, decoded.
#[derive(Debug, Default)]
pub struct InferRequest {
    /// Given back as it came, where not empty.
    pub id: Option<String>,
    /// Inputs by name.
    pub inputs: Vec<(String, Tensor)>,
    /// Inputs that are still to be fetched.
    pub shared_inputs: Vec<SharedInput>,
    /// Outputs that were asked for; empty means all.
    pub outputs: Vec<OutputRequest>,
    /// Whether outputs without a flag of their own come back raw.
    pub binary_output: bool,
    /// `parameters.precision`: `fp32` asks for the float twin of an INT8 endpoint.
    pub precision: Option<String>,
    /// `parameters.timeout`, microseconds: how long the request may wait in the queue.
    pub timeout_us: Option<u64>,
    /// `parameters.priority`: 1 goes first, 0 leaves it to the server.
    pub priority: u64,
}

/// One output that was asked for.
#[derive(Clone, Debug)]
pub struct OutputRequest {
    /// Name in the model.
    pub name: String,
    /// Whether it comes back raw; `None` leaves it to the request.
    pub binary: Option<bool>,
    /// Gives the `k` largest values as `value:index` instead of the tensor; 0 is off.
    pub classification: usize,
    /// Where it goes instead of into the answer.
    pub place: Option<Place>,
}

/// An input that lies in shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedInput {
    /// Name in the model.
    pub name: String,
    /// What one element is.
    pub dtype: DType,
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// As many bytes as the shape takes.
    pub place: Place,
}

/// A part of a region of shared memory that the client has registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the region.
    pub region: String,
    /// First byte in the region.
    pub offset: u64,
    /// Bytes.
    pub byte_size: usize,
}

impl OutputRequest {
    /// An output that is asked for.
    ///
    /// # Errors
    /// [`Error::Output`] where classes should go to shared memory.
    pub(crate) fn new(
        name: String,
        binary: Option<bool>,
        classification: usize,
        place: Option<Place>,
    ) -> Result<OutputRequest, Error> {
        if place.is_some() && classification > 0 {
            let reason = "a classification comes with the answer, not in shared memory".to_owned();
            return Err(Error::Output { name, reason });
        }
        Ok(OutputRequest { name, binary, classification, place })
    }
}

/// The protocol's name of a data type.
pub(crate) fn datatype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "FP32",
        DType::F64 => "FP64",
        DType::F16 => "FP16",
        DType::BF16 => "BF16",
        DType::I64 => "INT64",
        DType::I32 => "INT32",
        DType::I16 => "INT16",
        DType::I8 => "INT8",
        DType::U64 => "UINT64",
        DType::U32 => "UINT32",
        DType::U16 => "UINT16",
        DType::U8 => "UINT8",
        DType::Bool => "BOOL",
    }
}

/// The data type that the protocol means by a name.
pub(crate) fn datatype(name: &str) -> Option<DType> {
    use DType::{BF16, Bool, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
    [F32, F64, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, Bool]
        .into_iter()
        .find(|&dtype| datatype_name(dtype) == name)
}
