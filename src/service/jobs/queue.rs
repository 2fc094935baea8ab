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
    self, Catalog, Created, Finish, IdempotencyKey, Job, JobError, JobFilter, JobId, JobKind, JobProgress,
    JobState, Lease, NewJob, Page, Slice,
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
        let (job, changed) = self.catalog.cancel_job(id).await?;
        if changed {
            self.tell(&job);
        }
        Ok(job)
    }

    /// Deletes a job that has ended; its artifact stays.
    ///
    /// # Errors
    /// [`store::Error::NotFinished`] or [`store::Error::NotFound`].
    pub async fn delete(&self, id: JobId) -> Result<(), Error> {
        Ok(self.catalog.delete_job(id).await?)
    }

    /// The job now, and each time it has changed. `changed()` fails once the job has ended and its last state
    /// was seen. A slow reader misses states in between, never the last: every event is the whole job, and
    /// its id is `Job::seq`, so a reader that comes back needs no history.
    ///
    /// # Errors
    /// [`store::Error::NotFound`] or [`Error::TooManyWatched`].
    pub async fn watch(&self, id: JobId) -> Result<watch::Receiver<Arc<Job>>, Error> {
        let job = Arc::new(self.catalog.job(id).await?);
        if job.state.is_final() {
            return Ok(watch::channel(job).1);
        }
        let receiver = {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            if watched.len() >= WATCHED_MAX {
                watched.retain(|_, sender| sender.receiver_count() > 0);
            }
            if watched.len() >= WATCHED_MAX && !watched.contains_key(&id) {
                return Err(Error::TooManyWatched { limit: WATCHED_MAX });
            }
            watched.entry(id).or_insert_with(|| watch::channel(job).0).subscribe()
        };
        // Once more, now that changes are heard of: it may have ended between the first look and here.
        let job = self.catalog.job(id).await?;
        self.publish(&job);
        Ok(receiver)
    }

    /// The next job that is due, for `owner`.
    ///
    /// # Errors
    /// [`store::Error::Database`].
    pub async fn lease(&self, owner: &str) -> Result<Option<Job>, Error> {
        let Some(job) = self.catalog.lease_job(owner, self.options.lease).await? else { return Ok(None) };
        if job.attempt == 1
            && let Some(started_at) = job.started_at
        {
            self.metrics.job_started(started_at.seconds_since(job.created_at));
        }
        self.publish(&job);
        Ok(Some(job))
    }

    /// Waits until a job may be there, but not longer than `poll`.
    pub async fn wait(&self, poll: Duration) {
        // A wake-up that nobody waits for is kept by `Notify`, so one between `lease` and here is not lost.
        let _ = tokio::time::timeout(poll, self.wake.notified()).await;
    }

    /// Prolongs a lease and notes the progress.
    ///
    /// # Errors
    /// [`store::Error::LeaseLost`]: stop, and throw away what was made.
    pub async fn heartbeat(&self, lease: &Lease, progress: Option<JobProgress>) -> Result<Job, Error> {
        let job = self.catalog.heartbeat(lease, self.options.lease, progress).await?;
        self.publish(&job);
        Ok(job)
    }

    /// How long a lease lasts without a heartbeat.
    #[must_use]
    pub fn lease_time(&self) -> Duration {
        self.options.lease
    }

    /// Ends an attempt.
    ///
    /// # Errors
    /// [`store::Error::LeaseLost`].
    pub async fn finish(&self, lease: &Lease, finish: Finish) -> Result<Job, Error> {
        let job = self.catalog.finish_job(lease, finish).await?;
        self.tell(&job);
        Ok(job)
    }

    /// Ends an attempt of `job` that failed: for good, or until a wait is over that doubles with each attempt.
    ///
    /// # Errors
    /// [`store::Error::LeaseLost`].
    pub async fn fail(&self, job: &Job, lease: &Lease, error: JobError) -> Result<Job, Error> {
        if !error.retriable {
            return self.finish(lease, Finish::Failed(error)).await;
        }
        let failed_before = job.attempt.saturating_sub(job.handed_back).saturating_sub(1);
        let wait = self.options.retry_wait * 2u32.pow(failed_before.min(5));
        self.finish(lease, Finish::Retry(error, wait)).await
    }

    /// Takes the leases that an earlier process of this host has left. Once, at start.
    ///
    /// # Errors
    /// [`store::Error::Database`].
    pub async fn release(&self, host: &str, owner: &str) -> Result<usize, Error> {
        let jobs = self.catalog.release_jobs(host, owner).await?;
        self.expired(&jobs);
        Ok(jobs.len())
    }

    /// What has to be done now and then: takes leases that ran out, tells watchers of changes that another
    /// process has made, and sets the gauges.
    ///
    /// # Errors
    /// [`store::Error::Database`].
    pub async fn tend(&self) -> Result<(), Error> {
        let jobs = self.catalog.reap_jobs(self.options.retry_wait).await?;
        self.expired(&jobs);
        let watched: Vec<JobId> = {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.retain(|_, sender| sender.receiver_count() > 0);
            watched.keys().copied().collect()
        };
        for id in watched {
            match self.catalog.job(id).await {
                Ok(job) => self.publish(&job),
                Err(store::Error::NotFound { .. }) => self.forget(id),
                Err(error) => return Err(error.into()),
            }
        }
        let census = self.catalog.census().await?;
        for (state, count) in JobState::ALL.into_iter().zip(census.jobs) {
            self.metrics.set_jobs(state.as_str(), count);
        }
        self.metrics.set_oldest_queued(census.oldest_queued_s);
        self.metrics.set_stored_bytes(census.float_bytes, census.int8_bytes, census.dataset_bytes);
        Ok(())
    }

    fn expired(&self, jobs: &[Job]) {
        self.metrics.leases_expired(jobs.len() as u64);
        for job in jobs {
            self.tell(job);
        }
    }

    /// Counts, wakes and publishes after a change of state.
    fn tell(&self, job: &Job) {
        if job.state.is_final() {
            let seconds = job.finished_at.zip(job.started_at).map(|(end, start)| end.seconds_since(start));
            self.metrics.job_finished(job.kind.as_str(), job.state.as_str(), job.attempt, seconds);
        } else if job.state == JobState::Queued {
            self.wake.notify_one();
        }
        self.publish(job);
    }

    fn publish(&self, job: &Job) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = watched.get(&job.id) else { return };
        sender.send_if_modified(|known| {
            let newer = job.seq > known.seq;
            if newer {
                *known = Arc::new(job.clone());
            }
            newer
        });
        if job.state.is_final() {
            // Without its sender the channel ends, after the last value.
            watched.remove(&job.id);
        }
    }

    fn forget(&self, id: JobId) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}
