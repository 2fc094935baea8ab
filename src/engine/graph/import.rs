//! ONNX bytes to a [`Graph`]: which operators and opsets are taken, and in which form.

use crate::engine::graph::Graph;

/// Why a file is not a model that we can run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not an ONNX file.
    #[error("not an ONNX model: {0}")]
    NotOnnx(String),
    /// Operators that are not supported; each with its node.
    #[error("not supported: {}", .0.join("; "))]
    Unsupported(Vec<String>),
    /// A model that contradicts itself.
    #[error("invalid model: {0}")]
    Invalid(String),
}

/// Reads a model.
///
/// # Errors
/// [`Error`], which names the node, tensor or field at fault.
pub fn import(bytes: &[u8]) -> Result<Graph, Error> {
    let _ = bytes;
    Err(Error::NotOnnx("the importer has not landed".to_owned()))
}
