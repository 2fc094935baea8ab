//! The queue: every change of a job goes through here and is told to those who watch it. Knows no SQL.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::webhooks::{self, Receivers};
use super::{Calibration, JobSpec};
use crate::engine::pipeline;
use crate::service::metrics::process::Metrics;
use crate::service::store::{
    self, ArtifactFilter, Catalog, Created, Digest, Finish, IdempotencyKey, Job, JobError, JobFilter, JobId,
    JobKind, JobProgress, JobState, Lease, NewJob, Page, Pinned, Slice, Webhook,
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
    /// There is nothing to take ranges from.
    #[error(
        "give `calibration`, or `calibration_of` a job; only a model that comes quantized and is not completed needs \
         no more than `evaluation`"
    )]
    NoCalibration,
    /// The statistics of a job cannot be used.
    #[error("calibration_of: {0}")]
    BadStatistics(String),
    /// Nobody can be told at that address.
    #[error(transparent)]
    BadWebhook(#[from] webhooks::BadUrl),
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
    /// Who may be told that a job has ended.
    pub receivers: Receivers,
}

/// At most so many different jobs are watched at a time.
pub const WATCHED_MAX: usize = 10_000;

/// The queue of jobs.
pub struct Queue {
    catalog: Arc<dyn Catalog>,
    metrics: Arc<Metrics>,
    options: Options,
    watched: Mutex<HashMap<JobId, watch::Sender<Arc<Job>>>>,
}

impl Queue {
    /// A queue over the jobs of the catalog.
    #[must_use]
    pub fn new(catalog: Arc<dyn Catalog>, metrics: Arc<Metrics>, options: Options) -> Arc<Queue> {
        Arc::new(Queue { catalog, metrics, options, watched: Mutex::default() })
    }

    /// Checks the recipe, resolves names, and adds the job; with a key that was used before, gives the job of
    /// then.
    ///
    /// # Errors
    /// [`Error`]; [`store::Error::NotFound`] where the model or data do not exist.
    pub async fn enqueue(&self, spec: JobSpec, key: Option<IdempotencyKey>) -> Result<Created<Job>, Error> {
        let attempts_max = self.attempts_max(spec.attempts_max)?;
        if let Some(url) = &spec.webhook_url {
            webhooks::check(url, self.options.receivers)?;
        }
        let recipe = if spec.recipe.is_null() { json!({}) } else { spec.recipe };
        let recipe: Value =
            pipeline::inspect::check_recipe(&recipe).map_err(|error| Error::BadRecipe(error.to_string()))?;
        let spec = JobSpec { recipe, ..spec };
        let new = match self.resolve(spec, attempts_max, key.clone()).await {
            Ok(new) => new,
            // The job of then has deleted its data, or somebody the model: the answer is still that job.
            Err(gone @ (Error::BadStatistics(_) | Error::Store(store::Error::NotFound { .. }))) => {
                let then = match &key {
                    Some(key) => self.catalog.job_of_key(key).await?,
                    None => None,
                };
                return then.map(|record| Created { record, new: false }).ok_or(gone);
            }
            Err(error) => return Err(error),
        };
        let created = self.catalog.create_job(new).await?;
        if created.new {
            self.metrics.job_submitted(created.record.kind.as_str());
        }
        Ok(created)
    }

    /// How many attempts a job may have that asks for so many.
    ///
    /// # Errors
    /// [`Error::BadAttempts`].
    pub fn attempts_max(&self, asked: Option<u32>) -> Result<u32, Error> {
        let limit = self.options.attempts_max;
        let got = asked.unwrap_or(limit);
        if (1..=limit).contains(&got) { Ok(got) } else { Err(Error::BadAttempts { got, limit }) }
    }

    /// The job to be, with names resolved.
    async fn resolve(
        &self,
        spec: JobSpec,
        attempts_max: u32,
        key: Option<IdempotencyKey>,
    ) -> Result<NewJob, Error> {
        let found = self.catalog.model(&spec.model).await?;
        let model = found.pinned();
        let mut keep = spec.keep;
        let mut evaluation = match &spec.evaluation {
            None => None,
            Some(wanted) => Some(self.catalog.dataset(wanted).await?.pinned()),
        };
        let (calibration, calibration_of) = match spec.calibration {
            Calibration::Data(wanted) => (self.catalog.dataset(&wanted).await?.pinned(), None),
            Calibration::Of(id) => {
                let earlier = self.statistics_of(id, &model).await?;
                if evaluation.is_none() {
                    evaluation = Some(self.evaluation_of(&earlier).await?);
                }
                (earlier.calibration, Some(id))
            }
            Calibration::Model => {
                let as_trained = found.info["quantized"] == true && spec.recipe["complete"] != true;
                let data = evaluation.clone().filter(|_| as_trained).ok_or(Error::NoCalibration)?;
                // They are calibration data by name only: not those that go with the job.
                keep = true;
                (data, None)
            }
        };
        Ok(NewJob {
            kind: JobKind::Quantize,
            model,
            calibration,
            calibration_of,
            evaluation,
            keep,
            recipe: spec.recipe,
            endpoint: spec.endpoint,
            webhook_url: spec.webhook_url,
            attempts_max,
            idempotency: key,
            queued_max: self.options.queued_max,
        })
    }

    /// The job that has statistics of this model.
    async fn statistics_of(&self, id: JobId, model: &Pinned) -> Result<Job, Error> {
        let earlier = self.catalog.job(id).await?;
        if !earlier.state.is_final() {
            return Err(store::Error::NotFinished { job: id, state: earlier.state }.into());
        }
        if earlier.model != *model {
            let text = format!("job `{id}` is of model `{}`, not of `{model}`", earlier.model);
            return Err(Error::BadStatistics(text));
        }
        let made = ArtifactFilter { job: Some(id), model: None };
        let made = self.catalog.artifacts(&made, &Page::first(1)).await?.items;
        if made.first().and_then(|artifact| artifact.statistics).is_none() {
            let why = match (earlier.state, made.is_empty()) {
                (JobState::Succeeded | JobState::GateFailed, true) => "its artifact was deleted".to_owned(),
                (_, true) => format!("it is {}", earlier.state),
                (_, false) => "it was done before statistics were kept".to_owned(),
            };
            return Err(Error::BadStatistics(format!("job `{id}` has no statistics: {why}")));
        }
        Ok(earlier)
    }

    /// The evaluation data of an earlier job, if they are still there.
    async fn evaluation_of(&self, earlier: &Job) -> Result<Pinned, Error> {
        let data = earlier.evaluation.clone().unwrap_or_else(|| earlier.calibration.clone());
        match self.catalog.dataset(&data.clone().into()).await {
            Ok(found) => Ok(found.pinned()),
            Err(store::Error::NotFound { .. }) => Err(Error::BadStatistics(format!(
                "statistics hold no samples, and `{data}`, which job `{}` was evaluated on, was deleted: give \
                 `evaluation`",
                earlier.id
            ))),
            Err(error) => Err(error.into()),
        }
    }

    /// The job.
    ///
    /// # Errors
    /// [`store::Error::NotFound`].
    pub async fn find(&self, id: JobId) -> Result<Job, Error> {
        Ok(self.catalog.job(id).await?)
    }

    /// How far the message about the end of a job is; `None` where it has not ended or nobody wants to know.
    ///
    /// # Errors
    /// [`store::Error::Database`].
    pub async fn webhook(&self, id: JobId) -> Result<Option<Webhook>, Error> {
        Ok(self.catalog.webhook(id).await?)
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

    /// Changes whenever a job may be there, in this process or another.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.catalog.job_changes()
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

    /// Keeps what an attempt has found out for the next one. Gives the blob that this one replaces.
    ///
    /// # Errors
    /// [`store::Error::LeaseLost`].
    pub async fn keep_checkpoint(&self, lease: &Lease, statistics: Digest) -> Result<Option<Digest>, Error> {
        Ok(self.catalog.keep_checkpoint(lease, statistics).await?)
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
    /// process has made, and sets the gauges. Gives the blobs of data that were deleted as jobs ended.
    ///
    /// # Errors
    /// [`store::Error::Database`].
    pub async fn tend(&self) -> Result<Vec<Digest>, Error> {
        let jobs = self.catalog.reap_jobs(self.options.retry_wait).await?;
        self.expired(&jobs);
        self.look().await?;
        let census = self.catalog.census().await?;
        for (state, count) in JobState::ALL.into_iter().zip(census.jobs) {
            self.metrics.set_jobs(state.as_str(), count);
        }
        self.metrics.set_oldest_queued(census.oldest_queued_s);
        self.metrics.set_stored_bytes(census.float_bytes, census.int8_bytes, census.dataset_bytes);
        Ok(jobs.into_iter().flat_map(|job| job.freed).collect())
    }

    /// Tells watchers of changes that another process has made.
    ///
    /// # Errors
    /// [`store::Error::Database`].
    pub async fn look(&self) -> Result<(), Error> {
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

#[cfg(test)]
mod tests {
    use super::super::{Event, after};
    use super::*;
    use crate::service::store::sql::tests::{Scratch, name, new_artifact, new_dataset, new_job, new_model};
    use crate::service::store::{JobErrorCode, Wanted};

    const OPTIONS: Options = Options {
        attempts_max: 3,
        queued_max: 10,
        lease: Duration::from_secs(30),
        retry_wait: Duration::from_secs(2),
        receivers: Receivers::Public,
    };

    async fn queue() -> (Scratch, Arc<Queue>) {
        let scratch = Scratch::new().await;
        let queue = Queue::new(scratch.catalog.clone(), Arc::new(Metrics::new("0", "scalar")), OPTIONS);
        (scratch, queue)
    }

    fn spec() -> JobSpec {
        JobSpec {
            model: Wanted::from(name("m")),
            calibration: Calibration::Data(Wanted::from(name("d"))),
            evaluation: None,
            keep: false,
            recipe: Value::Null,
            endpoint: None,
            webhook_url: None,
            attempts_max: None,
        }
    }

    fn error(retriable: bool) -> JobError {
        JobError { code: JobErrorCode::Storage, message: "no space left".to_owned(), retriable }
    }

    /// Brings a fresh job into `state`; gives its lease where it is or was running.
    async fn bring(scratch: &Scratch, queue: &Queue, state: JobState, attempts_max: u32) -> (JobId, Lease) {
        let new = NewJob { attempts_max, ..new_job(&scratch.catalog).await };
        let id = scratch.catalog.create_job(new).await.unwrap().record.id;
        if state == JobState::Queued {
            return (id, Lease { job: id, attempt: 0, owner: "host/a".to_owned() });
        }
        let lease = queue.lease("host/a").await.unwrap().unwrap().lease().unwrap();
        let finish = match state {
            JobState::Queued | JobState::Running => return (id, lease),
            JobState::Succeeded => Finish::Done(Box::new(new_artifact(None))),
            JobState::GateFailed => Finish::Done(Box::new(new_artifact(Some("too far off")))),
            JobState::Failed => Finish::Failed(error(false)),
            JobState::Cancelled => Finish::Cancelled,
        };
        assert_eq!(queue.finish(&lease, finish).await.unwrap().state, state);
        (id, lease)
    }

    #[tokio::test]
    async fn catalog_and_table_agree_on_every_pair() {
        for state in JobState::ALL {
            for event in Event::ALL {
                let (scratch, queue) = queue().await;
                let attempts_max = if event == Event::ExpireLast { 1 } else { 3 };
                let (id, lease) = bring(&scratch, &queue, state, attempts_max).await;
                let finish = |finish| async { queue.finish(&lease, finish).await.map(|job| job.state) };
                let happened = match event {
                    Event::Lease => {
                        queue.lease("host/b").await.map(|job| job.map(|job| job.state)).unwrap().ok_or(())
                    }
                    Event::Succeed => finish(Finish::Done(Box::new(new_artifact(None)))).await.map_err(drop),
                    Event::FailGate => {
                        finish(Finish::Done(Box::new(new_artifact(Some("off"))))).await.map_err(drop)
                    }
                    Event::Fail => finish(Finish::Failed(error(false))).await.map_err(drop),
                    Event::Retry => finish(Finish::Retry(error(true), Duration::ZERO)).await.map_err(drop),
                    Event::Stop => finish(Finish::Cancelled).await.map_err(drop),
                    Event::HandBack => finish(Finish::HandBack).await.map_err(drop),
                    Event::Cancel => queue.cancel(id).await.map(|job| job.state).map_err(drop),
                    Event::Expire | Event::ExpireLast => {
                        scratch.pass(30_001);
                        let jobs = scratch.catalog.reap_jobs(Duration::ZERO).await.unwrap();
                        jobs.first().map(|job| job.state).ok_or(())
                    }
                };
                assert_eq!(happened.ok(), after(state, event), "{state} after {event:?}");
                let expected = after(state, event).unwrap_or(state);
                assert_eq!(queue.find(id).await.unwrap().state, expected, "{state} after {event:?}");
            }
        }
    }

    #[test]
    fn nothing_follows_a_final_state() {
        for state in JobState::ALL {
            let follows =
                Event::ALL.iter().any(|&event| after(state, event).is_some_and(|next| next != state));
            assert_eq!(follows, !state.is_final(), "{state}");
        }
    }

    #[tokio::test]
    async fn a_job_needs_model_data_and_attempts() {
        let (scratch, queue) = queue().await;
        let refused = queue.enqueue(spec(), None).await.unwrap_err().to_string();
        assert_eq!(refused, "no model `m`");
        scratch.catalog.create_model(new_model("m", Digest([1; 32]))).await.unwrap();
        assert_eq!(queue.enqueue(spec(), None).await.unwrap_err().to_string(), "no dataset `d`");
        scratch.catalog.create_dataset(new_dataset("d", Digest([2; 32]))).await.unwrap();
        for attempts_max in [0, 4] {
            let spec = JobSpec { attempts_max: Some(attempts_max), ..spec() };
            assert!(matches!(queue.enqueue(spec, None).await, Err(Error::BadAttempts { limit: 3, .. })));
        }
        let mut changes = queue.changes();
        let job = queue.enqueue(spec(), None).await.unwrap().record;
        assert_eq!((job.state, job.attempts_max, job.seq), (JobState::Queued, 3, 1));
        assert!(queue.metrics.render().contains("octet_jobs_submitted_total{kind=\"quantize\"} 1"));
        // An idle worker is woken, whether it waits before or after.
        tokio::time::timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_key_gives_the_job_of_then_whose_data_are_gone() {
        let (scratch, queue) = queue().await;
        scratch.catalog.create_model(new_model("m", Digest([1; 32]))).await.unwrap();
        scratch.catalog.create_dataset(new_dataset("d", Digest([2; 32]))).await.unwrap();
        let key =
            |text: &str, byte| Some(IdempotencyKey { key: text.to_owned(), fingerprint: Digest([byte; 32]) });
        let id = queue.enqueue(spec(), key("k", 1)).await.unwrap().record.id;
        // It ends, and with it go its data: the client has not heard of the job yet.
        queue.cancel(id).await.unwrap();
        let again = queue.enqueue(spec(), key("k", 1)).await.unwrap();
        assert_eq!((again.record.id, again.new), (id, false));
        let reused = queue.enqueue(spec(), key("k", 2)).await.unwrap_err();
        assert!(matches!(reused, Error::Store(store::Error::KeyReused { .. })), "{reused}");
        for key in [None, key("other", 1)] {
            assert_eq!(queue.enqueue(spec(), key).await.unwrap_err().to_string(), "no dataset `d`");
        }
        scratch.catalog.delete_model(&name("m"), None).await.unwrap();
        assert_eq!(queue.enqueue(spec(), key("k", 1)).await.unwrap().record.id, id);
        assert_eq!(queue.list(&JobFilter::default(), &Page::first(9)).await.unwrap().items.len(), 1);
    }

    #[tokio::test]
    async fn waits_double_until_no_attempt_is_left() {
        let (scratch, queue) = queue().await;
        let (id, mut lease) = bring(&scratch, &queue, JobState::Running, 3).await;
        for wait_ms in [2_000, 4_000] {
            let job = queue.find(id).await.unwrap();
            let job = queue.fail(&job, &lease, error(true)).await.unwrap();
            assert_eq!((job.state, job.error), (JobState::Queued, Some(error(true))));
            scratch.pass(wait_ms - 1);
            assert!(queue.lease("host/a").await.unwrap().is_none());
            scratch.pass(1);
            lease = queue.lease("host/a").await.unwrap().unwrap().lease().unwrap();
        }
        let job = queue.find(id).await.unwrap();
        assert_eq!(queue.fail(&job, &lease, error(true)).await.unwrap().state, JobState::Failed);
        assert!(queue.metrics.render().contains("outcome=\"failed\"} 1"));
    }

    #[tokio::test]
    async fn an_attempt_handed_back_does_not_count() {
        let (scratch, queue) = queue().await;
        let (id, mut lease) = bring(&scratch, &queue, JobState::Running, 1).await;
        for attempt in 2..=4 {
            queue.finish(&lease, Finish::HandBack).await.unwrap();
            let job = queue.lease("host/a").await.unwrap().unwrap();
            assert_eq!(job.attempt, attempt);
            lease = job.lease().unwrap();
        }
        let job = queue.find(id).await.unwrap();
        assert_eq!(queue.fail(&job, &lease, error(true)).await.unwrap().state, JobState::Failed);
    }

    #[tokio::test]
    async fn asked_to_stop_a_job_ends_cancelled_however_its_attempt_ends() {
        for finish in [
            Finish::Done(Box::new(new_artifact(None))),
            Finish::Retry(error(true), Duration::ZERO),
            Finish::Cancelled,
            Finish::HandBack,
        ] {
            let (scratch, queue) = queue().await;
            let (id, lease) = bring(&scratch, &queue, JobState::Running, 3).await;
            let asked = queue.cancel(id).await.unwrap();
            assert!(asked.cancel_requested && asked.state == JobState::Running);
            assert_eq!(queue.cancel(id).await.unwrap().seq, asked.seq, "again changes nothing");
            assert!(queue.heartbeat(&lease, None).await.unwrap().cancel_requested);
            let text = format!("{finish:?}");
            assert_eq!(queue.finish(&lease, finish).await.unwrap().state, JobState::Cancelled, "{text}");
            assert!(!scratch.catalog.blob_referenced(Digest([7; 32])).await.unwrap(), "{text}");
        }
        let (scratch, queue) = queue().await;
        let (id, _) = bring(&scratch, &queue, JobState::Running, 3).await;
        queue.cancel(id).await.unwrap();
        scratch.pass(30_001);
        queue.tend().await.unwrap();
        assert_eq!(queue.find(id).await.unwrap().state, JobState::Cancelled, "its worker has died");
    }

    #[tokio::test]
    async fn watchers_see_the_last_state_and_then_the_end() {
        let (scratch, queue) = queue().await;
        let (id, _) = bring(&scratch, &queue, JobState::Queued, 3).await;
        let mut watcher = queue.watch(id).await.unwrap();
        assert_eq!(watcher.borrow_and_update().state, JobState::Queued);
        let lease = queue.lease("host/a").await.unwrap().unwrap().lease().unwrap();
        watcher.changed().await.unwrap();
        assert_eq!(watcher.borrow_and_update().seq, 2);
        // Of another process: seen at the next look.
        let progress = JobProgress { phase: "import".to_owned(), done: 1, total: 1 };
        scratch.catalog.heartbeat(&lease, OPTIONS.lease, Some(progress.clone())).await.unwrap();
        queue.tend().await.unwrap();
        watcher.changed().await.unwrap();
        assert_eq!(watcher.borrow_and_update().progress, Some(progress));
        queue.finish(&lease, Finish::Done(Box::new(new_artifact(None)))).await.unwrap();
        watcher.changed().await.unwrap();
        assert_eq!(watcher.borrow_and_update().state, JobState::Succeeded);
        assert!(watcher.changed().await.is_err());
        let mut late = queue.watch(id).await.unwrap();
        assert_eq!(late.borrow_and_update().state, JobState::Succeeded);
        assert!(late.changed().await.is_err());
        assert!(queue.watched.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn only_what_has_ended_is_deleted() {
        let (scratch, queue) = queue().await;
        let (id, _) = bring(&scratch, &queue, JobState::Queued, 3).await;
        assert!(matches!(queue.delete(id).await, Err(Error::Store(store::Error::NotFinished { .. }))));
        queue.cancel(id).await.unwrap();
        queue.delete(id).await.unwrap();
        assert!(matches!(queue.find(id).await, Err(Error::Store(store::Error::NotFound { .. }))));
        let jobs = queue.list(&JobFilter::default(), &Page::first(9)).await.unwrap();
        assert!(jobs.items.is_empty());
    }

    #[tokio::test]
    async fn tending_sets_the_gauges() {
        let (scratch, queue) = queue().await;
        bring(&scratch, &queue, JobState::Running, 3).await;
        bring(&scratch, &queue, JobState::Queued, 3).await;
        scratch.pass(30_001);
        queue.tend().await.unwrap();
        let text = queue.metrics.render();
        for line in [
            "octet_jobs{state=\"queued\"} 2",
            "octet_jobs{state=\"running\"} 0",
            "octet_job_lease_expired_total 1",
            "octet_job_oldest_queued_age_seconds 30.001",
            "octet_artifact_bytes{kind=\"float\"} 1000",
        ] {
            assert!(text.contains(line), "{line}");
        }
    }
}
