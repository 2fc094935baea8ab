//! Serves loaded models: limits, ports, timings, errors. Speaks of tensors and endpoints, not of HTTP.

pub mod batcher;
pub mod drift;
pub mod lane;
pub mod registry;
pub mod served;
pub mod shadow;
pub mod shared_memory;
pub mod stats;
pub mod watch;

use std::fmt;
use std::time::{Duration, Instant};

use crate::engine::exec;
use crate::engine::graph::Dim;
use crate::engine::tensor::{DType, Tensor};
use crate::service::store::Precision;

/// How much is served at once: by the whole server, and by each version of an endpoint.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Runs at the same time: over all endpoints, and of a version. Times the threads of a run, it should not pass the
    /// cores.
    pub runs_max: usize,
    /// Requests that may wait, for each version of each endpoint. One more is refused with
    /// [`Error::QueueFull`].
    pub queue_max: usize,
    /// Samples that are run together at most; 1 switches batching off.
    pub batch_samples_max: usize,
    /// How long the first request of a batch waits for others. 0 runs at once: batches then form only of
    /// requests that wait anyway because all runs are taken.
    pub batch_delay: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { runs_max: 1, queue_max: 256, batch_samples_max: 8, batch_delay: Duration::ZERO }
    }
}

/// An input or output of an endpoint.
#[derive(Clone, Debug)]
pub struct Port {
    /// Name in the model.
    pub name: String,
    /// What one element is.
    pub dtype: DType,
    /// Declared shape; `None` is a free dimension.
    pub shape: Vec<Option<usize>>,
    /// Names of the free dimensions, `?` where they have none; the text of the others.
    pub dims: Vec<String>,
}

impl From<&exec::Port> for Port {
    fn from(port: &exec::Port) -> Port {
        let length = |dim: &Dim| match dim {
            Dim::Known(n) => Some(*n),
            Dim::Symbol(_) | Dim::Unknown => None,
        };
        Port {
            name: port.name.clone(),
            dtype: port.dtype,
            shape: port.dims.iter().map(length).collect(),
            dims: port.dims.iter().map(Dim::to_string).collect(),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.dtype, self.dims.join(", "))
    }
}

/// What a request asks for beside its tensors.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// `fp32` asks for the float twin of an INT8 version; `None` for what is served.
    pub precision: Option<String>,
    /// When the answer is of no more use: a request that still waits then is refused.
    pub deadline: Option<Instant>,
    /// 1 goes first; 0 is [`PRIORITY_DEFAULT`].
    pub priority: u64,
}

/// The priority of a request that names none.
pub const PRIORITY_DEFAULT: u64 = 100;

/// Inputs by name.
pub type Inputs = Vec<(String, Tensor)>;

/// What a run gave.
#[derive(Debug)]
pub struct Answer {
    /// In the order of the outputs of the model.
    pub outputs: Vec<Tensor>,
    /// In what numbers it was computed.
    pub precision: Precision,
    /// How long it took.
    pub timing: Timing,
}

/// Where the time of one request went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// From the queue's door to the start of the run.
    pub queue: Duration,
    /// Putting inputs of several requests together.
    pub merge: Duration,
    /// The run.
    pub compute: Duration,
    /// Taking the outputs apart again.
    pub split: Duration,
    /// Samples in the run, of this and other requests.
    pub batch_samples: usize,
    /// Samples of this request.
    pub samples: usize,
}

/// Why a request was not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No endpoint of that name.
    #[error("no endpoint `{name}`")]
    UnknownEndpoint {
        /// What was asked for.
        name: String,
    },
    /// The process has just begun: which endpoints there are is not known yet.
    #[error("the endpoints are being read")]
    Starting,
    /// The endpoint does not serve that version.
    #[error("endpoint `{name}` has no version {version}; it serves {served:?}")]
    UnknownVersion {
        /// The endpoint.
        name: String,
        /// What was asked for.
        version: String,
        /// What there is.
        served: Vec<u32>,
    },
    /// The version is being loaded, was unloaded, or could not be loaded.
    #[error("endpoint `{name}` version {version} is not ready: {reason}")]
    NotReady {
        /// The endpoint.
        name: String,
        /// The version.
        version: u32,
        /// Why.
        reason: String,
    },
    /// A precision that the endpoint does not have.
    #[error("precision `{asked}`: endpoint `{name}` has {available:?}")]
    UnknownPrecision {
        /// The endpoint.
        name: String,
        /// What was asked for.
        asked: String,
        /// What there is.
        available: Vec<&'static str>,
    },
    /// An input of another type than the model takes.
    #[error("input `{name}` is {got}, the model needs {want}")]
    InputType {
        /// The input.
        name: String,
        /// What was given.
        got: DType,
        /// What the model declares.
        want: DType,
    },
    /// The inputs do not fit the model.
    #[error("{0}")]
    BadInput(String),
    /// The run would take more memory than allowed.
    #[error("{0}")]
    TooLarge(String),
    /// Too many requests wait.
    #[error("the queue of endpoint `{name}` is full: {limit} requests wait")]
    QueueFull {
        /// The endpoint.
        name: String,
        /// The limit.
        limit: usize,
    },
    /// The request waited longer than its own `timeout`.
    #[error("the request waited longer than its timeout")]
    Deadline,
    /// A fault of ours; the log has more.
    #[error("the run failed: {0}")]
    Internal(String),
}

impl From<exec::Error> for Error {
    fn from(error: exec::Error) -> Error {
        let text = error.to_string();
        match error {
            exec::Error::InputType { name, got, want } => Error::InputType { name, got, want },
            exec::Error::MissingInput { .. }
            | exec::Error::UnknownInput { .. }
            | exec::Error::InputShape { .. }
            // The model loaded and ran once: now it is the shapes of this request that a node cannot take.
            | exec::Error::Node { .. } => Error::BadInput(text),
            exec::Error::TooLarge { .. } => Error::TooLarge(text),
            exec::Error::NotPlanned { .. } => Error::Internal(text),
        }
    }
}
