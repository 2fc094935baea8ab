//! Speaks HTTP. This file holds the handles that every handler shares; the routes stand in `http/router.rs`.

pub(crate) mod error;
pub mod http;
pub(crate) mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::service::infer::registry::Registry;
use crate::service::jobs::queue::Queue;
use crate::service::metrics::Metrics;
use crate::service::store::blobs::Blobs;
use crate::service::store::{Catalog, Clock};

/// What every handler shares.
pub struct Context {
    /// The records.
    pub catalog: Arc<dyn Catalog>,
    /// The files.
    pub blobs: Blobs,
    /// The jobs.
    pub queue: Arc<Queue>,
    /// The endpoints in memory.
    pub registry: Arc<Registry>,
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
    /// Bytes of a dataset, as sent.
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

/// Whether the server takes requests: `/v2/health/ready`.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Says from now on whether the server takes requests.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// Whether the server takes requests.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
