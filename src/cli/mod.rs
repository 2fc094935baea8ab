//! What the commands share: errors with their exit codes, loading a model, pools, printing.

pub(crate) mod bench;
pub(crate) mod conformance;
pub(crate) mod convert;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod inspect;
pub(crate) mod key;
pub(crate) mod lint;
pub(crate) mod operate;
#[cfg(feature = "otel")]
pub(crate) mod otel;
pub(crate) mod quantize;
pub(crate) mod run;
pub(crate) mod serve;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use octet::engine::exec::Options;
use octet::engine::exec::session::Session;
use octet::engine::graph::passes::{Pass, Passes};
use octet::engine::graph::{Dim, Graph};
use octet::engine::kernels::isa::Isa;
use octet::engine::onnx::import;
use octet::engine::pipeline;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line or the settings are wrong.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read or written.
    #[error("{tried} `{path}`: {source}")]
    File {
        /// Reading or writing.
        tried: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The work cannot be done.
    #[error("{0}")]
    Work(String),
    /// The artifact was made, but is not good enough for its recipe.
    #[error("the gate is not kept: {0}")]
    Gate(String),
}

impl Error {
    /// What the process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::File { .. } | Error::Work(_) => 1,
            Error::Usage(_) => 2,
            Error::Gate(_) => 3,
        }
    }

    /// An error of the engine, with the file that it speaks of.
    pub(crate) fn work(path: &Path, error: impl std::fmt::Display) -> Error {
        Error::Work(format!("`{}`: {error}", path.display()))
    }
}

/// Prints to standard output. A reader that has closed it, such as `head`, is no error.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Work(format!("writing to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { tried: "reading", path: path.to_owned(), source })
}

/// Writes a file.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    std::fs::write(path, bytes).map_err(|source| Error::File {
        tried: "writing",
        path: path.to_owned(),
        source,
    })
}

/// Reads a model, with data that lie in files beside it, or from an archive.
pub(crate) fn import(path: &Path) -> Result<Graph, Error> {
    // A file that is whole is never in memory beside its tensors.
    if let Ok(graph) = import::import_file(path) {
        return Ok(graph);
    }
    let bytes = pipeline::files::read_own(path).map_err(|error| Error::work(path, error))?;
    import::import_owned(bytes).map_err(|error| Error::work(path, error))
}

/// Loads a model, float or INT8.
pub(crate) fn load(path: &Path, options: Options) -> Result<Session, Error> {
    let graph = import(path)?;
    Session::new(graph, options).map_err(|error| Error::work(path, error))
}

/// Which passes run: for people who look for the one that changes an answer.
#[derive(clap::Args)]
pub(crate) struct PassArgs {
    /// Leave the graph as it is. The answers are the same.
    #[arg(long)]
    no_passes: bool,
    /// Leave out one pass; may be given several times.
    #[arg(long, value_name = "NAME", value_parser = pass_named)]
    without_pass: Vec<Pass>,
}

impl PassArgs {
    pub(crate) fn passes(&self) -> Passes {
        let all = if self.no_passes { Passes::NONE } else { Passes::ALL };
        self.without_pass.iter().copied().fold(all, Passes::without)
    }
}

fn pass_named(name: &str) -> Result<Pass, String> {
    let names = || Pass::all().map(Pass::name).collect::<Vec<_>>().join(", ");
    Pass::named(name).ok_or_else(|| format!("the passes are {}", names()))
}

/// Threads where the user says none: one for each core.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A pool of so many threads for the engine.
pub(crate) fn pool(threads: usize) -> Result<rayon::ThreadPool, Error> {
    let threads = threads.max(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|error| Error::Work(format!("making {threads} threads: {error}")))
}

/// The instruction set that the user names, else the best.
pub(crate) fn isa(asked: Option<&str>) -> Result<Isa, Error> {
    let Some(asked) = asked.filter(|asked| *asked != "auto") else { return Ok(Isa::best()) };
    Isa::named(asked).ok_or_else(|| {
        let available: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
        Error::Usage(format!("isa `{asked}`: this CPU has {}", available.join(", ")))
    })
}

/// A declared shape as text: `[batch, 3, 224, 224]`.
pub(crate) fn dims_text(dims: &[Dim]) -> String {
    let dims: Vec<_> = dims.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}
