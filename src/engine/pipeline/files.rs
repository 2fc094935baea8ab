//! Models and data from files, and what went wrong with them.

use std::io::Write;
use std::path::Path;

use bytes::Bytes;

use super::{Error, Request};
use crate::engine::artifact;
use crate::engine::exec::Port;
use crate::engine::exec::session::Session;
use crate::engine::graph::{Dim, Graph};
use crate::engine::onnx::{external, import};
use crate::engine::quant::calibrate::{self, batch_size};
use crate::engine::tensor::{dataset, npy};

/// Longest model that is read from files of the caller's own: what a mistaken path could cost.
const OWN_BYTES_MAX: u64 = 64 << 30;

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Io { path: path.display().to_string(), source })
}

/// Reads a model of the caller's own: an ONNX file with or without data in files beside it, or an archive of both.
///
/// # Errors
/// [`Error::Model`] or [`Error::Io`].
pub fn read_own(model: &Path) -> Result<Vec<u8>, Error> {
    external::read(model, OWN_BYTES_MAX).map_err(|e| merge_error(e, model))
}

/// Writes the one ONNX file that an archive (zip, tar) makes, at most `bytes_max` long; gives `false` where the file is no
/// archive. The file may be of any length: little of it is in memory.
///
/// # Errors
/// [`Error::Model`] with the member or tensor at fault, or [`Error::Io`].
pub fn unpacked(file: &Path, bytes_max: u64, out: &mut dyn Write) -> Result<bool, Error> {
    external::unpacked(file, bytes_max, out).map_err(|e| merge_error(e, file))
}

fn merge_error(error: external::Error, path: &Path) -> Error {
    match error {
        external::Error::Wrong(text) => Error::Model(text),
        external::Error::TooLong(text) => Error::TooLong(text),
        external::Error::Io(source) => Error::Io { path: path.display().to_string(), source },
    }
}

/// The model in bytes.
pub(super) fn load(bytes: &[u8]) -> Result<Graph, Error> {
    import::import(bytes).map_err(|e| Error::Model(e.to_string()))
}

/// The model in a file of the store's.
pub(super) fn load_file(path: &Path) -> Result<Graph, Error> {
    import::import_file(path).map_err(|e| import_error(e, path))
}

/// As [`load_file`], large weights being zeros that take no memory.
pub(super) fn load_outline(path: &Path) -> Result<Graph, Error> {
    import::import_outline(path).map_err(|e| import_error(e, path))
}

/// From so many bytes on, a float model is looked into by its outline: its weights stay on the disk.
const OUTLINE_BYTES: u64 = 256 << 20;

pub(super) fn is_large(model: &Path) -> Result<bool, Error> {
    let failed = |source| Error::Io { path: model.display().to_string(), source };
    Ok(std::fs::metadata(model).map_err(failed)?.len() >= OUTLINE_BYTES)
}

/// The model that a job asks for, and the file that it is.
pub(super) fn load_asked(request: &Request<'_>) -> Result<(Graph, artifact::Source), Error> {
    if !request.beside {
        let failed = |source| Error::Io { path: request.model.display().to_string(), source };
        let (graph, source) =
            rayon::join(|| load_file(request.model), || artifact::Source::of_file(request.model));
        return Ok((graph?, source.map_err(failed)?));
    }
    let bytes = Bytes::from(read_own(request.model)?);
    let graph = || import::import_owned(bytes.clone()).map_err(|e| Error::Model(e.to_string()));
    let (graph, source) = rayon::join(graph, || artifact::Source::of(&bytes));
    Ok((graph?, source))
}

fn import_error(error: import::Error, path: &Path) -> Error {
    match error {
        import::Error::Read(source) => Error::Io { path: path.display().to_string(), source },
        error => Error::Model(error.to_string()),
    }
}

/// The inputs of a model as a dataset sees them.
pub fn ports(inputs: &[Port]) -> Vec<dataset::Port> {
    let known = |d: &Dim| if let Dim::Known(n) = d { Some(*n) } else { None };
    let port = |p: &Port| dataset::Port {
        name: p.name.clone(),
        dtype: p.dtype,
        dims: p.dims.iter().map(known).collect(),
    };
    inputs.iter().map(port).collect()
}

/// Samples a batch, by the size of the inputs where dimensions that are not given count as one.
pub(super) fn batch_for(session: &Session) -> usize {
    let bytes = |p: &Port| {
        let length = |d: &Dim| if let Dim::Known(n) = d { *n } else { 1 };
        p.dims.iter().map(length).product::<usize>() * p.dtype.size()
    };
    batch_size(session.inputs().iter().map(bytes).sum())
}

pub(super) fn data_error(error: dataset::Error, path: &Path, which: &'static str) -> Error {
    match error {
        dataset::Error::File(npy::Error::Io(source)) if source.kind() == std::io::ErrorKind::NotFound => {
            Error::Io { path: path.display().to_string(), source }
        }
        other => Error::Data { which, reason: other.to_string() },
    }
}

/// A run that failed. Of a model that was taken it is the data, also where a node cannot do with their shapes or values.
pub(super) fn run_error(error: calibrate::Error, which: &'static str) -> Error {
    match error {
        calibrate::Error::Cancelled => Error::Cancelled,
        calibrate::Error::Unseen(_) => Error::Model(format!("on the {which} data: {error}")),
        other => Error::Data { which, reason: other.to_string() },
    }
}
