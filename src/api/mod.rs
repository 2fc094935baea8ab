//! Speaks HTTP and gRPC. This file holds the handles that every handler shares; the routes stand in `http/router.rs`
//! and `grpc/router.rs`.

pub(crate) mod access;
pub(crate) mod answered;
pub(crate) mod error;
pub mod grpc;
pub mod http;
pub mod tls;
pub(crate) mod until;
pub(crate) mod v2;
pub mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Semaphore, SemaphorePermit, watch};

use crate::service::infer::registry::Registry;
use crate::service::infer::shared_memory::SharedMemory;
use crate::service::jobs::queue::Queue;
use crate::service::keys::Keys;
use crate::service::metrics::process::Metrics;
use crate::service::store::blobs::Blobs;
use crate::service::store::partial::Partials;
use crate::service::store::{Catalog, Clock, Digest, Timestamp};

/// What every handler shares.
pub struct Context {
    /// The records.
    pub catalog: Arc<dyn Catalog>,
    /// The files.
    pub blobs: Blobs,
    /// The uploads that come in parts.
    pub partials: Arc<Partials>,
    /// The jobs.
    pub queue: Arc<Queue>,
    /// The endpoints in memory.
    pub registry: Arc<Registry>,
    /// Where clients on this machine hand over tensors; `None` where they may not.
    pub shared_memory: Option<SharedMemory>,
    /// The figures.
    pub metrics: Arc<Metrics>,
    /// Tells the time.
    pub clock: Clock,
    /// What a stranger may send.
    pub limits: Limits,
    /// Whether the server takes requests.
    pub readiness: Readiness,
    /// Becomes `true` when the server stops: streams end then.
    pub stopping: watch::Receiver<bool>,
    /// The requests being answered, over both protocols.
    pub in_flight: InFlight,
    /// From so many bytes on, the answer of an inference is compressed for clients that ask; 0 is never.
    pub compress_bytes: u64,
    /// Held by the one request that carries a whole model in a message.
    pub loading: Mutex<()>,
    /// The keys that are taken; `None` where nobody is asked for one.
    pub keys: Option<Arc<Keys>>,
    /// Whether the ports speak TLS.
    pub tls: bool,
    /// What this process is.
    pub about: About,
    /// Changes which log lines are written; `None` where that is fixed.
    pub logs: Option<Arc<dyn Logs>>,
    /// Takes what traces are made of; `None` where nobody traces.
    pub traces: Option<Arc<dyn Traces>>,
    /// Which requests have a line in the log.
    pub log_requests: LogRequests,
}

/// What a process is, for whoever runs it.
#[derive(Clone, Debug)]
pub struct About {
    /// `all`, `api` or `worker`.
    pub role: &'static str,
    /// Instructions of the kernels.
    pub isa: &'static str,
    /// Those that the CPU has.
    pub isas: Vec<&'static str>,
    /// Cores that the process may use.
    pub cores: usize,
    /// Threads that answer inference.
    pub serving_threads: usize,
    /// Jobs that run side by side.
    pub job_workers: usize,
    /// `sqlite` or `postgres`.
    pub database: &'static str,
    /// What its tables are like.
    pub schema_version: i64,
    /// `local` or `s3`.
    pub files: &'static str,
    /// When it began.
    pub started_at: Timestamp,
}

/// Takes what a trace of requests is made of.
pub trait Traces: Send + Sync {
    /// A request was answered. Gives the id of its trace, 32 hexadecimal digits, for whoever looks for it in the log.
    fn record(&self, request: &Answered<'_>) -> Option<String>;
}

/// Which requests have a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogRequests {
    /// None.
    Off,
    /// Those that failed in us or found us too busy.
    Errors,
    /// All.
    All,
}

/// A request that was answered.
#[derive(Debug)]
pub struct Answered<'a> {
    /// The client's id or ours.
    pub request_id: &'a str,
    /// The method and what it was asked of.
    pub call: Call<'a>,
    /// The endpoint that was asked, where one was.
    pub endpoint: Option<&'a str>,
    /// `traceparent` of the W3C, as it came.
    pub parent: Option<&'a str>,
    /// `tracestate` of the W3C, as it came.
    pub state: Option<&'a str>,
    /// When it began.
    pub start: Instant,
    /// When the answer was ready.
    pub end: Instant,
    /// Where the time of an inference went.
    pub phases: Option<&'a Phases>,
}

/// What was asked, in the words of its protocol.
#[derive(Clone, Copy, Debug)]
pub enum Call<'a> {
    /// A request over HTTP.
    Http {
        /// `POST`.
        method: &'a str,
        /// The template: `/v2/models/{name}/infer`; `None` where nothing stands.
        route: Option<&'a str>,
        /// As it came.
        path: &'a str,
        /// Of the answer.
        status: u16,
    },
    /// A call over gRPC.
    Grpc {
        /// `/inference.GRPCInferenceService/ModelInfer`.
        path: &'a str,
        /// Of the answer: 0 is OK.
        status: i32,
    },
}

impl Call<'_> {
    /// Whether we failed, or were too busy: what whoever runs the server wants to know.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        match self {
            Call::Http { status, .. } => *status == 429 || *status >= 500,
            // UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
            Call::Grpc { status, .. } => matches!(status, 2 | 4 | 8 | 13 | 14 | 15),
        }
    }
}

/// Where the time of an inference went, one after the other.
#[derive(Clone, Debug)]
pub struct Phases {
    /// The version that answered.
    pub version: u32,
    /// In what numbers it was computed: `int8`, `fp32`.
    pub precision: &'static str,
    /// Samples of this request.
    pub samples: usize,
    /// Samples that ran together, of this and other requests.
    pub batch_samples: usize,
    /// From the last byte of the body.
    pub decode: Instant,
    /// In the queue from here on.
    pub queue: Instant,
    /// The run, with putting batches together and taking them apart.
    pub compute: Instant,
    /// The end of the run.
    pub computed: Instant,
    /// From here on the outputs become bytes.
    pub encode: Instant,
    /// The end of that.
    pub encoded: Instant,
}

/// Changes which log lines are written, while the server runs.
pub trait Logs: Send + Sync {
    /// The least important lines that are written.
    fn level(&self) -> LogLevel;

    /// Writes lines from `level` on.
    ///
    /// # Errors
    /// Why it cannot be changed.
    fn set_level(&self, level: LogLevel) -> Result<(), String>;
}

/// From which lines on the log is written. The later ones include the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the variants are the levels of tracing")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// All levels.
    pub const ALL: [LogLevel; 6] =
        [LogLevel::Off, LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];

    /// As the setting `log.level` names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Off => "off",
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// Counts the requests being answered.
#[derive(Debug)]
pub struct InFlight {
    slots: Semaphore,
    max: usize,
}

impl InFlight {
    /// At most `max` at a time.
    #[must_use]
    pub fn new(max: usize) -> InFlight {
        InFlight { slots: Semaphore::new(max.min(Semaphore::MAX_PERMITS)), max }
    }

    /// One more, until the result is dropped; `None` where there are as many as allowed.
    pub fn enter(&self) -> Option<SemaphorePermit<'_>> {
        self.slots.try_acquire().ok()
    }

    /// The most at a time.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }
}

/// What a stranger may send.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a model.
    pub model_bytes: u64,
    /// Bytes that the weights of a model and one run of it may take.
    pub model_memory_bytes: u64,
    /// Threads of a job: what a dry run predicts for.
    pub job_threads: usize,
    /// Bytes of a dataset, as sent and as unpacked.
    pub dataset_bytes: u64,
    /// Bytes of the body of an inference request, decompressed.
    pub infer_body_bytes: u64,
    /// Bytes of any other body that is JSON.
    pub json_body_bytes: u64,
    /// Levels of JSON inside each other.
    pub json_depth: usize,
    /// For a request that is no upload; in an upload, for the next part of the body.
    pub request_timeout: Duration,
    /// Requests being answered at a time.
    pub requests_in_flight: usize,
}

impl Context {
    /// Removes blobs of rows that were deleted. What cannot be removed now is tried again: the rows are gone all the same.
    pub(crate) async fn discard(&self, freed: &[Digest]) {
        if let Err(error) = self.blobs.discard(&*self.catalog, freed).await {
            tracing::warn!(%error, "Blobs are left for later: {error}");
        }
    }

    /// Why the server takes no requests; `None` where it does.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if !self.readiness.get() {
            return Some("the server is starting or stopping".to_owned());
        }
        let missing = self.registry.missing();
        (!missing.is_empty()).then(|| format!("required endpoints do not answer: {}", missing.join(", ")))
    }
}

/// Whether the server takes requests: `/v2/health/ready`, `grpc.health.v1`.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<bool>>);

impl Default for Readiness {
    fn default() -> Readiness {
        Readiness(Arc::new(watch::Sender::new(false)))
    }
}

impl Readiness {
    /// Says from now on whether the server takes requests.
    pub fn set(&self, ready: bool) {
        self.0.send_replace(ready);
    }

    /// Whether the server takes requests.
    #[must_use]
    pub fn get(&self) -> bool {
        *self.0.borrow()
    }

    /// Hears of each change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }
}
