//! Does the jobs: lease, files, engine on the rayon pool, one commit. Knows no SQL and no HTTP.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::queue::Queue;
use crate::engine::pipeline::{self, Outcome, Progress, Request};
use crate::service::metrics::Metrics;
use crate::service::store::Catalog;
use crate::service::store::blobs::Blobs;

/// What does the work: `engine::pipeline::quantize`, or a stand-in in tests.
pub type Engine = Arc<dyn Fn(&Request<'_>, &dyn Progress) -> Result<Outcome, pipeline::Error> + Send + Sync>;

/// What the settings say about the workers.
#[derive(Clone, Debug)]
pub struct Options {
    /// So many jobs run side by side.
    pub workers: usize,
    /// Threads that one job may use.
    pub threads: usize,
    /// Names this host; leases of an earlier process of the same host are released at start.
    pub host: String,
    /// Idle workers look at the queue again after this time, even if nothing woke them.
    pub poll: Duration,
}

/// What workers work with.
#[derive(Clone)]
pub struct Workers {
    /// The queue.
    pub queue: Arc<Queue>,
    /// The records.
    pub catalog: Arc<dyn Catalog>,
    /// The files.
    pub blobs: Blobs,
    /// The figures.
    pub metrics: Arc<Metrics>,
    /// What does the work.
    pub engine: Engine,
    /// Where it runs: at least `workers` threads.
    pub pool: Arc<rayon::ThreadPool>,
    /// What the settings say.
    pub options: Options,
}

impl Workers {
    /// Works until `stop` becomes `true`; then asks the engine to stop and hands running jobs back.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let _ = stop;
    }
}
