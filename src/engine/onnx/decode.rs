//! Bytes or a file to the messages of ONNX, and why they are none.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use prost::Message;

use super::ModelProto;
use super::bounds::{self, Fault};
use super::outline::{self, Place, outline};

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
    /// The file cannot be read.
    #[error("reading the model: {0}")]
    Read(std::io::Error),
}

/// Where the data of large tensors are.
#[derive(Clone, Copy)]
pub(super) enum Data<'f> {
    /// With everything else.
    Inside,
    /// In the file, whose outline is read.
    File(&'f File),
    /// Nowhere: zeros stand for them, which take no memory until they are written.
    Zeros,
}

impl Data<'_> {
    pub(super) fn read(self, from: u64, bytes: &mut [u8]) -> Result<(), String> {
        if let Data::File(mut file) = self {
            let read = file.seek(SeekFrom::Start(from)).and_then(|_| file.read_exact(bytes));
            read.map_err(|e| format!("its data cannot be read: {e}"))?;
        }
        Ok(())
    }
}

/// The messages of a file as its outline, the file, and how long it is.
pub(super) fn open(path: &Path) -> Result<(File, ModelProto, u64), Error> {
    let file = File::open(path).map_err(Error::Read)?;
    let bytes = file.metadata().map_err(Error::Read)?.len();
    let model = decode_outline(&file, Place { file: 0, from: 0, bytes })?;
    Ok((file, model, bytes))
}

/// The messages of a file; data stay where they are.
pub(super) fn decode(bytes: &Bytes) -> Result<ModelProto, Error> {
    decoded(bytes, bytes.first().copied(), bytes.len() as u64)
}

/// The messages of the model at a place of a file, as its outline.
pub(super) fn decode_outline(file: &File, place: Place) -> Result<ModelProto, Error> {
    let copy = || file.try_clone().map_err(Error::Read);
    let mut first = Vec::new();
    let start = Place { bytes: place.bytes.min(1), ..place };
    start.copy(copy()?, &mut first).map_err(Error::Read)?;
    match outline(copy()?, place) {
        Ok(bytes) => decoded(&Bytes::from(bytes), first.first().copied(), place.bytes),
        Err(outline::Error::Io(e)) => Err(Error::Read(e)),
        Err(outline::Error::Damaged(e)) if first.is_empty() => Err(Error::NotOnnx(e.to_owned())),
        Err(outline::Error::Damaged(e)) => Err(broken(first[0], place.bytes, e)),
    }
}

fn broken(first: u8, file_bytes: u64, why: &str) -> Error {
    // A file that starts like a model and breaks off is most often an upload that was cut.
    let starts_like_a_model = first == 0x08;
    let kind = if starts_like_a_model { "truncated or damaged" } else { "not protobuf" };
    Error::NotOnnx(format!("{kind} ({file_bytes} bytes): {why}"))
}

/// `bytes` are a file that is `file_bytes` long, or its outline.
fn decoded(bytes: &Bytes, first: Option<u8>, file_bytes: u64) -> Result<ModelProto, Error> {
    let Some(first) = first else {
        return Err(Error::NotOnnx("the file is empty".to_owned()));
    };
    bounds::check(bytes, file_bytes).map_err(|fault| match fault {
        Fault::Damaged(e) => broken(first, file_bytes, e),
        Fault::Excess(e) => Error::Invalid(e),
    })?;
    let model = ModelProto::decode(bytes.clone()).map_err(|e| broken(first, file_bytes, &e.to_string()))?;
    if model.ir_version.is_none() && model.opset_import.is_empty() && model.graph.is_none() {
        return Err(Error::NotOnnx("no ONNX field was found".to_owned()));
    }
    Ok(model)
}
