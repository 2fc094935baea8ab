//! Does the jobs: lease, files, engine on the rayon pool, one commit. Knows no SQL and no HTTP.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::monitor::{Monitor, StopEngine};
use super::outcome::{gone, job_error, new_artifact, storage};
use super::queue::{self, Queue};
use super::{goes_on, stopped};
use crate::engine::pipeline::{self, Named, Outcome, Progress, Request};
use crate::service::metrics::process::Metrics;
use crate::service::store::blobs::{self, Blobs, Pin};
use crate::service::store::{
    self, ArtifactFilter, Catalog, Digest, Finish, Job, JobError, JobErrorCode, JobId, JobProgress, JobState,
    Lease, Page, chain, panic_text,
};

/// What does the work: `engine::pipeline::job::quantize`, or a stand-in in tests.
pub type Engine = Arc<dyn Fn(&Request<'_>, &dyn Progress) -> Result<Outcome, pipeline::Error> + Send + Sync>;

/// How often a worker looks after the job it does: progress goes to the catalog, a wish to stop comes from it.
const BEAT: Duration = Duration::from_millis(500);
/// How often expired leases are looked for and gauges are set.
const TEND: Duration = Duration::from_secs(2);
/// In a shared store, copies of what others have removed are looked for so often.
const SWEEP_COPIES: Duration = Duration::from_secs(60);
/// And what nobody refers to: once an hour, in rounds of [`SWEEP_COPIES`].
const SWEEP_ALL: u32 = 60;

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
    /// What calibration found out is kept for another attempt where it took at least so long.
    pub checkpoint_after: Duration,
    /// How long the engine may take for one attempt.
    pub timeout: Option<Duration>,
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
    /// Works until `stop` becomes `true` (or its sender is gone); then asks the engine to stop, hands running
    /// jobs back, and returns.
    ///
    /// At start it takes the leases that an earlier process of this host has left. Beside the jobs it removes blobs that
    /// no record refers to. With no workers it still looks after leases and gauges.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let owner = format!("{}/{}", self.options.host, uuid::Uuid::now_v7().simple());
        match self.queue.release(&self.options.host, &owner).await {
            Ok(0) => {}
            Ok(jobs) => info!(jobs, "{jobs} jobs of an earlier process are taken up again"),
            Err(error) => error!(error = %chain(&error), "Leases of an earlier process could not be taken"),
        }
        let mut tasks = JoinSet::new();
        for _ in 0..self.options.workers {
            tasks.spawn(self.clone().work(owner.clone(), stop.clone()));
        }
        tasks.spawn(self.clone().sweep(stop.clone()));
        tasks.spawn(self.tend(stop));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                error!(%error, "A worker task ended by a fault");
            }
        }
    }

    /// Removes blobs that no record refers to: once, and in a shared store, where only those who work sweep all of it and
    /// others their copies, again and again.
    async fn sweep(self, mut stop: watch::Receiver<bool>) {
        let mut rounds = 0u32;
        while goes_on(&stop) {
            let all = if self.blobs.is_shared() {
                self.options.workers > 0 && rounds.is_multiple_of(SWEEP_ALL)
            } else {
                true
            };
            let swept = if all {
                self.blobs.sweep(&*self.catalog, || goes_on(&stop)).await
            } else {
                self.blobs.sweep_copies(&*self.catalog).await
            };
            match swept {
                Ok(0) => {}
                Ok(blobs) => info!(blobs, "{blobs} blobs that no record refers to were removed"),
                Err(error) => error!(error = %chain(&error), "Blobs could not be swept"),
            }
            if !self.blobs.is_shared() {
                return;
            }
            rounds = rounds.wrapping_add(1);
            tokio::select! {
                () = stopped(&mut stop) => return,
                () = tokio::time::sleep(SWEEP_COPIES) => {}
            }
        }
    }

    async fn tend(self, mut stop: watch::Receiver<bool>) {
        let mut changes = self.queue.changes();
        loop {
            self.metrics.set_uploads_incomplete(self.blobs.incomplete());
            match self.queue.tend().await {
                Ok(freed) => self.discard(&freed).await,
                Err(error) => warn!(error = %chain(&error), "Looking after the queue failed"),
            }
            if let Err(error) = self.blobs.discard_doomed(&*self.catalog).await {
                warn!(error = %chain(&error), "Blobs are left for the next look");
            }
            if let Some(reserve) = self.blobs.reserve() {
                // A disk that has no room for it is full: who writes there is told, and this comes again.
                let _ = tokio::task::spawn_blocking(move || reserve.keep()).await;
            }
            tokio::select! {
                () = stopped(&mut stop) => return,
                _ = tokio::time::timeout(TEND, self.listen(&mut changes)) => {}
            }
        }
    }

    /// Tells watchers at once of what other processes do, where there are any.
    async fn listen(&self, changes: &mut watch::Receiver<u64>) {
        while self.blobs.is_shared() && changes.changed().await.is_ok() {
            if let Err(error) = self.queue.look().await {
                warn!(error = %chain(&error), "Those who watch jobs hear of them later");
            }
        }
        std::future::pending().await
    }

    async fn work(self, owner: String, mut stop: watch::Receiver<bool>) {
        // A change between a look at the queue and the wait for one is not lost: the receiver has not seen it.
        let mut changes = self.queue.changes();
        while goes_on(&stop) {
            match self.queue.lease(&owner).await {
                Ok(Some(job)) => {
                    self.attempt(job, &mut stop).await;
                    continue;
                }
                Ok(None) => {}
                Err(error) => warn!(error = %chain(&error), "No job could be leased"),
            }
            tokio::select! {
                () = stopped(&mut stop) => return,
                _ = tokio::time::timeout(self.options.poll, changes.changed()) => {}
            }
        }
    }

    /// One attempt of one job, whatever comes of it.
    async fn attempt(&self, job: Job, stop: &mut watch::Receiver<bool>) {
        let Some(lease) = job.lease() else { return };
        let (id, attempt) = (job.id, job.attempt);
        info!(job.id = %id, attempt, model = %job.model, "Job {id} begins");
        let begun = Instant::now();
        let ended = match self.run_engine(&job, &lease, stop).await {
            Ended::Made(made) => self.keep(&job, &lease, *made).await,
            Ended::Failed(error) => self.queue.fail(&job, &lease, error).await,
            Ended::Cancelled => self.queue.finish(&lease, Finish::Cancelled).await,
            Ended::Stopping => self.queue.finish(&lease, Finish::HandBack).await,
            Ended::Lost => Err(store::Error::LeaseLost { job: id, attempt }.into()),
        };
        let duration_ms = begun.elapsed().as_millis() as u64;
        match ended {
            Ok(job) => {
                // The code only: the message may quote a value or a label of a sample. The job has it.
                let error = job.error.as_ref().map(|error| error.code.as_str());
                info!(job.id = %id, attempt, duration_ms, state = %job.state, error, "Job {id} is {}", job.state);
                self.discard(&job.freed).await;
                if job.calibration_deleted_at.is_some() && !job.freed.is_empty() {
                    info!(job.id = %id, "The calibration data of job {id} are deleted");
                }
            }
            // The lease runs out, and the job is tried again; nothing of this attempt is visible.
            Err(error) => {
                warn!(job.id = %id, attempt, duration_ms, error = %chain(&error), "Job {id} goes on elsewhere");
            }
        }
    }

    /// Removes blobs of data that no record refers to any more.
    async fn discard(&self, freed: &[Digest]) {
        if let Err(error) = self.blobs.discard(&*self.catalog, freed).await {
            warn!(error = %chain(&error), "Blobs are left for the next look");
        }
    }

    /// Does what may take longer than a lease, such as moving blobs, and prolongs the lease meanwhile.
    async fn holding<T>(&self, lease: &Lease, work: impl Future<Output = T>) -> T {
        let beats = async {
            loop {
                tokio::time::sleep(self.queue.lease_time() / 3).await;
                // One that is lost is told of by what comes after the work: every write is fenced.
                if let Err(error) = self.queue.heartbeat(lease, None).await {
                    warn!(job.id = %lease.job, error = %chain(&error), "Heartbeat failed");
                }
            }
        };
        // Side by side: the work may have the connection to the catalog that a beat waits for.
        tokio::select! {
            done = work => done,
            () = beats => unreachable!("it has no end"),
        }
    }

    /// Runs the engine on the pool and looks after the lease meanwhile.
    async fn run_engine(&self, job: &Job, lease: &Lease, stop: &mut watch::Receiver<bool>) -> Ended {
        let inputs = match self.holding(lease, self.inputs(job)).await {
            Ok(inputs) => inputs,
            Err(error) => return Ended::Failed(error),
        };
        let monitor = Arc::new(Monitor::new(Arc::clone(&self.metrics), self.options.checkpoint_after));
        // Whatever ends this future stops the engine.
        let _stop_engine = StopEngine(Arc::clone(&monitor));
        let mut result = self.spawn(inputs, job.recipe.clone(), Names::of(job), Arc::clone(&monitor));
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut prolonged = Instant::now();
        let mut late = pin!(after(self.options.timeout));
        let mut why = None;
        let result = loop {
            tokio::select! {
                timeout = &mut late, if why.is_none() => {
                    let message = format!("it took longer than {} s (jobs.timeout_seconds)", timeout.as_secs());
                    why = Some(Ended::Failed(JobError { code: JobErrorCode::Timeout, message, retriable: false }));
                    monitor.stop();
                }
                result = &mut result => break result,
                () = stopped(stop), if why.is_none() => {
                    why = Some(Ended::Stopping);
                    monitor.stop();
                }
                _ = beat.tick() => match self.beat(lease, &monitor, &mut prolonged).await {
                    Ok(job) if job.cancel_requested => {
                        why = Some(Ended::Cancelled);
                        monitor.stop();
                    }
                    Ok(_) => self.checkpoint(lease, &monitor).await,
                    Err(queue::Error::Store(store::Error::LeaseLost { .. })) => {
                        why = Some(Ended::Lost);
                        monitor.stop();
                    }
                    // The lease holds until it runs out, and every write is fenced: going on is safe.
                    Err(error) => warn!(job.id = %lease.job, error = %chain(&error), "Heartbeat failed"),
                },
            }
        };
        monitor.leave_phase();
        match (result, why) {
            (_, Some(Ended::Lost)) => Ended::Lost,
            (Ok(Ok(made)), _) => Ended::Made(Box::new(made)),
            (Ok(Err(pipeline::Error::Cancelled)), Some(why)) => why,
            (Ok(Err(error)), _) => Ended::Failed(job_error(&error)),
            (Err(_), _) => Ended::Failed(JobError {
                code: JobErrorCode::Internal,
                message: "a fault of octet itself; its log has the cause".to_owned(),
                retriable: false,
            }),
        }
    }

    /// Starts the engine. The receiver gets nothing where the engine panics.
    fn spawn(
        &self,
        inputs: Inputs,
        recipe: Value,
        names: Names,
        monitor: Arc<Monitor>,
    ) -> oneshot::Receiver<Result<Made, pipeline::Error>> {
        let (sender, receiver) = oneshot::channel();
        let engine = Arc::clone(&self.engine);
        let threads = self.options.threads;
        self.pool.spawn(move || {
            let request = Request {
                model: inputs.model.path(),
                calibration: inputs.calibration.as_ref().map(Pin::path),
                statistics: inputs.statistics.as_ref().map(Pin::path),
                evaluation: inputs.evaluation.as_ref().map(Pin::path),
                recipe: &recipe,
                named: names.named(),
                beside: false,
                threads,
            };
            let work = || {
                let outcome = engine(&request, &*monitor)?;
                let report = outcome.report.to_string().into_bytes();
                Ok(Made { outcome, report })
            };
            // Safe to look at after a panic: all that was shared is the monitor, which has only plain values.
            let done = catch_unwind(AssertUnwindSafe(work));
            // Not held any more when the end of the job deletes them.
            drop(inputs);
            match done {
                // The worker may be gone; then nobody wants the result.
                Ok(result) => drop(sender.send(result)),
                Err(panic) => error!(panic = panic_text(&*panic), "The engine panicked"),
            }
        });
        receiver
    }

    /// The files of a job, held while it runs.
    async fn inputs(&self, job: &Job) -> Result<Inputs, JobError> {
        let model = self.catalog.model(&job.model.clone().into()).await;
        let model = model.map_err(|error| gone(error, JobErrorCode::ModelDeleted))?;
        let data = |pinned: store::Pinned| async move {
            let found = self.catalog.dataset(&pinned.into()).await;
            let found = found.map_err(|error| gone(error, JobErrorCode::DatasetDeleted))?;
            self.pin(found.sha256).await
        };
        let (calibration, statistics) = match job.calibration_of {
            None => (Some(data(job.calibration.clone()).await?), self.earlier(job).await),
            Some(earlier) => (None, Some(self.statistics(earlier).await?)),
        };
        Ok(Inputs {
            model: self.pin(model.sha256).await?,
            calibration,
            statistics,
            evaluation: match job.evaluation.clone() {
                None => None,
                Some(pinned) => Some(data(pinned).await?),
            },
        })
    }

    /// Keeps what calibration has found out, if it is new. Without it, another attempt only takes longer.
    async fn checkpoint(&self, lease: &Lease, monitor: &Monitor) {
        let Some(statistics) = monitor.statistics() else { return };
        let kept = async {
            let put = self.holding(lease, self.blobs.put(&statistics));
            let pin = put.await.map_err(|error| chain(&error))?;
            self.queue.keep_checkpoint(lease, pin.digest()).await.map_err(|error| chain(&error))
        };
        match kept.await {
            Ok(before) => self.discard(before.as_slice()).await,
            Err(error) => {
                warn!(job.id = %lease.job, error, "What calibration found out is not kept: {error}")
            }
        }
    }

    /// What an earlier attempt has found out, where that is still there.
    async fn earlier(&self, job: &Job) -> Option<Pin> {
        let pin = self.blobs.pin(job.checkpoint?).await;
        pin.inspect_err(|error| warn!(job.id = %job.id, error = %chain(error), "It calibrates again")).ok()
    }

    /// The statistics that a job has kept.
    async fn statistics(&self, job: JobId) -> Result<Pin, JobError> {
        let filter = ArtifactFilter { job: Some(job), model: None };
        let made = self.catalog.artifacts(&filter, &Page::first(1)).await.map_err(|error| storage(&error))?;
        match made.items.first().and_then(|artifact| artifact.statistics) {
            Some(digest) => self.pin(digest).await,
            None => Err(JobError {
                code: JobErrorCode::DatasetDeleted,
                message: format!("the statistics of job `{job}` were deleted before the job began"),
                retriable: false,
            }),
        }
    }

    async fn pin(&self, digest: Digest) -> Result<Pin, JobError> {
        self.blobs.pin(digest).await.map_err(|error| storage(&error))
    }

    /// Tells the catalog what has changed, or that the worker lives, or only asks whether to stop.
    async fn beat(
        &self,
        lease: &Lease,
        monitor: &Monitor,
        prolonged: &mut Instant,
    ) -> Result<Job, queue::Error> {
        let progress = monitor.news();
        if progress.is_none() && prolonged.elapsed() < self.queue.lease_time() / 3 {
            // Reading costs no sync of the disk.
            let job = self.queue.find(lease.job).await?;
            if job.lease().as_ref() != Some(lease) {
                return Err(store::Error::LeaseLost { job: lease.job, attempt: lease.attempt }.into());
            }
            return Ok(job);
        }
        let job = self.queue.heartbeat(lease, progress).await?;
        *prolonged = Instant::now();
        Ok(job)
    }

    /// Keeps what was made: blobs first, then one commit of artifact, endpoint and job.
    async fn keep(&self, job: &Job, lease: &Lease, made: Made) -> Result<Job, queue::Error> {
        let begun = Instant::now();
        let progress = JobProgress { phase: "store".to_owned(), done: 0, total: 0 };
        self.queue.heartbeat(lease, Some(progress)).await?;
        let Made { outcome, report } = made;
        let blobs = async {
            let artifact = self.blobs.put(&outcome.artifact).await?;
            let report = self.blobs.put(&report).await?;
            let report_html = self.blobs.put(outcome.report_html.as_bytes()).await?;
            let statistics = self.blobs.put(&outcome.statistics).await?;
            Ok::<_, blobs::Error>([artifact, report, report_html, statistics])
        };
        // The pins live until the commit has answered.
        let pins = match self.holding(lease, blobs).await {
            Ok(pins) => pins,
            Err(error) => return self.queue.fail(job, lease, storage(&error)).await,
        };
        let digests = pins.each_ref().map(Pin::digest);
        let new = new_artifact(&pins, &outcome);
        let size_ratio = new.size_ratio;
        let ended = self.queue.finish(lease, Finish::Done(Box::new(new))).await;
        drop(pins);
        self.metrics.job_phase("store", begun.elapsed().as_secs_f64());
        match &ended {
            Ok(job) if matches!(job.state, JobState::Succeeded | JobState::GateFailed) => {
                self.metrics.artifact(size_ratio);
            }
            // Cancelled meanwhile, model deleted, or lease lost: nothing refers to the blobs.
            Ok(_) | Err(_) => {
                if let Err(error) = self.blobs.discard(&*self.catalog, &digests).await {
                    warn!(job.id = %job.id, error = %chain(&error), "Blobs are left for the next look");
                }
            }
        }
        ended
    }
}

/// How the engine's part of an attempt ended.
enum Ended {
    Made(Box<Made>),
    Failed(JobError),
    /// The user asked to stop.
    Cancelled,
    /// The process stops.
    Stopping,
    /// Another attempt has begun.
    Lost,
}

/// What the engine has made, and its report as bytes.
struct Made {
    outcome: Outcome,
    report: Vec<u8>,
}

/// What a job and its things are called, for its report.
struct Names {
    model: String,
    calibration: String,
    evaluation: Option<String>,
    begun_at: Option<String>,
}

impl Names {
    fn of(job: &Job) -> Names {
        Names {
            model: job.model.to_string(),
            calibration: job.calibration.to_string(),
            evaluation: job.evaluation.as_ref().map(ToString::to_string),
            begun_at: job.started_at.map(|at| at.to_string()),
        }
    }

    fn named(&self) -> Named<'_> {
        Named {
            model: Some(&self.model),
            calibration: Some(&self.calibration),
            evaluation: self.evaluation.as_deref(),
            begun_at: self.begun_at.as_deref(),
        }
    }
}

struct Inputs {
    model: Pin,
    calibration: Option<Pin>,
    statistics: Option<Pin>,
    evaluation: Option<Pin>,
}

/// Waits for so long, which it gives back; for ever where there is no limit.
async fn after(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
    limit.unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::super::webhooks::Receivers;
    use super::super::{Calibration, JobSpec};
    use super::*;
    use crate::engine::pipeline::Phase;
    use crate::service::store::sql::tests::{Scratch, name, new_dataset, new_model};

    /// A service without HTTP, and with an engine of the test's choice.
    struct Bench {
        scratch: Scratch,
        workers: Workers,
        stop: watch::Sender<bool>,
    }

    /// A job over the model and the data of the tests.
    pub(in crate::service::jobs) fn spec() -> JobSpec {
        JobSpec {
            model: name("m").into(),
            calibration: Calibration::Data(name("d").into()),
            evaluation: None,
            keep: true,
            recipe: json!({}),
            endpoint: Some(name("prod")),
            webhook_url: None,
            attempts_max: None,
        }
    }

    impl Bench {
        async fn new(
            engine: impl Fn(&Request<'_>, &dyn Progress) -> Result<Outcome, pipeline::Error>
            + Send
            + Sync
            + 'static,
        ) -> Bench {
            let scratch = Scratch::new().await;
            let blobs = Blobs::open(scratch.folder.path()).unwrap();
            let catalog: Arc<dyn Catalog> = scratch.catalog.clone();
            let metrics = Arc::new(Metrics::new("0", "scalar"));
            let options = queue::Options {
                attempts_max: 3,
                queued_max: 10,
                lease: Duration::from_secs(30),
                retry_wait: Duration::ZERO,
                receivers: Receivers::None,
            };
            let workers = Workers {
                queue: Queue::new(Arc::clone(&catalog), Arc::clone(&metrics), options),
                catalog,
                blobs,
                metrics,
                engine: Arc::new(engine),
                pool: Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap()),
                options: Options {
                    workers: 1,
                    threads: 1,
                    host: "host".to_owned(),
                    poll: Duration::from_millis(20),
                    checkpoint_after: Duration::ZERO,
                    timeout: None,
                },
            };
            let model = workers.blobs.put(b"a model").await.unwrap();
            let data = workers.blobs.put(b"data").await.unwrap();
            workers.catalog.create_model(new_model("m", model.digest())).await.unwrap();
            workers.catalog.create_dataset(new_dataset("d", data.digest())).await.unwrap();
            Bench { scratch, workers, stop: watch::Sender::new(false) }
        }

        async fn enqueue(&self) -> JobId {
            self.workers.queue.enqueue(spec(), None).await.unwrap().record.id
        }

        fn start(&self) -> tokio::task::JoinHandle<()> {
            tokio::spawn(self.workers.clone().run(self.stop.subscribe()))
        }

        /// Waits for the job to be as wanted.
        async fn until(&self, id: JobId, wanted: impl Fn(&Job) -> bool) -> Job {
            let mut watcher = self.workers.queue.watch(id).await.unwrap();
            let job = watcher.wait_for(|job| wanted(job));
            let job = tokio::time::timeout(Duration::from_secs(20), job).await.expect("in time");
            Job::clone(&job.expect("before the job ended otherwise"))
        }

        async fn done(&self, id: JobId) -> Job {
            self.until(id, |job| job.state.is_final()).await
        }

        async fn artifacts(&self) -> usize {
            let filter = ArtifactFilter::default();
            self.workers.catalog.artifacts(&filter, &Page::first(99)).await.unwrap().items.len()
        }

        /// How many blobs there are, whole or half.
        fn blobs(&self) -> usize {
            let root = self.scratch.folder.path().join("blobs");
            let folders = std::fs::read_dir(root).unwrap();
            let count = |folder: std::io::Result<std::fs::DirEntry>| {
                std::fs::read_dir(folder.unwrap().path()).unwrap().count()
            };
            folders.map(count).sum::<usize>() + usize::try_from(self.workers.blobs.incomplete()).unwrap()
        }
    }

    /// What an engine that has done its work gives.
    pub(in super::super) fn outcome(gate_failure: Option<&str>) -> Outcome {
        Outcome {
            artifact: b"an artifact".to_vec(),
            manifest: json!({ "contract": 1 }),
            report: json!({ "layers": [] }),
            statistics: b"counts".to_vec(),
            report_html: "<html>".to_owned(),
            accuracy: pipeline::Accuracy {
                metric: "top1".to_owned(),
                float: 0.75,
                int8: 0.75,
                delta: 0.0,
                agreement: 1.0,
                sqnr_db: f64::INFINITY,
                samples: 8,
            },
            latency: pipeline::Latency { float_ms: 2.0, int8_ms: 1.0 },
            size_ratio: 0.26,
            gate_failure: gate_failure.map(str::to_owned),
        }
    }

    /// An engine that goes on until it is stopped.
    fn endless(_: &Request<'_>, progress: &dyn Progress) -> Result<Outcome, pipeline::Error> {
        progress.update(Phase::Calibrate, 1, 0);
        while !progress.cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(pipeline::Error::Cancelled)
    }

    fn io_error() -> pipeline::Error {
        pipeline::Error::Io { path: "disk".to_owned(), source: std::io::Error::other("broken") }
    }

    #[tokio::test]
    async fn what_an_attempt_found_out_is_there_for_the_next() {
        let attempts = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&attempts);
        let bench = Bench::new(move |request, progress| {
            let mut seen = seen.lock().unwrap();
            seen.push((
                request.calibration.is_some(),
                request.statistics.map(|path| std::fs::read(path).unwrap()),
            ));
            if seen.len() > 1 {
                return Ok(outcome(None));
            }
            progress.update(Phase::Calibrate, 8, 8);
            progress.calibrated(b"found out");
            // The worker keeps it at its next look; then the disk breaks.
            std::thread::sleep(3 * BEAT);
            Err(io_error())
        })
        .await;
        let id = bench.enqueue().await;
        let workers = bench.start();
        let job = bench.done(id).await;
        assert_eq!((job.state, job.attempt), (JobState::Succeeded, 2));
        let attempts = attempts.lock().unwrap().clone();
        assert_eq!(attempts, [(true, None), (true, Some(b"found out".to_vec()))]);
        let checkpoint = Digest(
            sha2::Digest::finalize(sha2::Digest::chain_update(sha2::Sha256::default(), b"found out")).into(),
        );
        let begun = Instant::now();
        while bench.workers.blobs.holds(checkpoint).await.unwrap() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it goes with the job");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bench.stop.send_replace(true);
        workers.await.unwrap();
    }

    #[tokio::test]
    async fn a_job_is_done_and_served() {
        let bench = Bench::new(|request, progress| {
            assert_eq!(std::fs::read(request.model).unwrap(), b"a model");
            assert_eq!(std::fs::read(request.calibration.unwrap()).unwrap(), b"data");
            assert!(request.evaluation.is_none());
            progress.update(Phase::Import, 1, 1);
            progress.update(Phase::Calibrate, 8, 8);
            Ok(outcome(None))
        })
        .await;
        let _workers = bench.start();
        let job = bench.done(bench.enqueue().await).await;
        assert_eq!((job.state, job.attempt, &job.error), (JobState::Succeeded, 1, &None));
        assert_eq!(job.progress.unwrap().phase, "store");
        let endpoint = bench.workers.catalog.endpoint(&name("prod")).await.unwrap();
        let artifact = bench.workers.catalog.artifact(endpoint.versions[0].artifact.unwrap()).await.unwrap();
        assert_eq!(bench.workers.blobs.read(artifact.sha256, 99).await.unwrap(), b"an artifact");
        assert_eq!(bench.workers.blobs.read(artifact.report, 99).await.unwrap(), b"{\"layers\":[]}");
        assert_eq!(bench.workers.blobs.read(artifact.report_html, 99).await.unwrap(), b"<html>");
        assert_eq!(artifact.accuracy.sqnr_db, 999.0);
        let text = bench.workers.metrics.render();
        for line in [
            "octet_calibration_samples_total 8",
            "octet_jobs_finished_total{kind=\"quantize\",outcome=\"succeeded\"} 1",
            "octet_job_phase_duration_seconds_count{phase=\"import\"} 1",
            "octet_artifact_size_ratio_count 1",
        ] {
            assert!(text.contains(line), "{line}");
        }
    }

    #[tokio::test]
    async fn a_missed_gate_keeps_the_artifact_and_serves_nothing() {
        let bench = Bench::new(|_, _| Ok(outcome(Some("top1 fell by 0.02")))).await;
        let _workers = bench.start();
        let job = bench.done(bench.enqueue().await).await;
        assert_eq!(job.state, JobState::GateFailed);
        assert_eq!(job.error.unwrap().message, "top1 fell by 0.02");
        assert_eq!(bench.artifacts().await, 1);
        assert!(bench.workers.catalog.endpoint(&name("prod")).await.is_err());
    }

    #[tokio::test]
    async fn each_fault_of_the_engine_has_its_code() {
        type Make = fn() -> pipeline::Error;
        let rows: [(Make, JobErrorCode, u32); 6] = [
            (|| pipeline::Error::Model("truncated".to_owned()), JobErrorCode::BadModel, 1),
            (
                || pipeline::Error::Model("node `r`: Resize with mode=cubic is not supported".to_owned()),
                JobErrorCode::UnsupportedOp,
                1,
            ),
            (
                || pipeline::Error::Data { which: "calibration", reason: "empty".to_owned() },
                JobErrorCode::BadData,
                1,
            ),
            (|| pipeline::Error::Recipe("`scheme`".to_owned()), JobErrorCode::BadRecipe, 1),
            (|| pipeline::Error::Cancelled, JobErrorCode::Internal, 1),
            (io_error, JobErrorCode::Storage, 3),
        ];
        for (make, code, attempts) in rows {
            let bench = Bench::new(move |_, _| Err(make())).await;
            let _workers = bench.start();
            let job = bench.done(bench.enqueue().await).await;
            assert_eq!((job.state, job.attempt), (JobState::Failed, attempts), "{code:?}");
            assert_eq!(job.error.unwrap().code, code);
        }
    }

    #[tokio::test]
    async fn a_panic_is_a_failed_job_and_the_worker_lives() {
        let calls = AtomicUsize::new(0);
        let bench = Bench::new(move |_, _| {
            assert!(calls.fetch_add(1, Ordering::Relaxed) > 0, "a planted fault");
            Ok(outcome(None))
        })
        .await;
        let _workers = bench.start();
        let job = bench.done(bench.enqueue().await).await;
        assert_eq!((job.state, job.attempt), (JobState::Failed, 1));
        assert_eq!(job.error.unwrap().code, JobErrorCode::Internal);
        assert_eq!(bench.done(bench.enqueue().await).await.state, JobState::Succeeded);
    }

    #[tokio::test]
    async fn a_fault_that_passes_is_tried_again() {
        let calls = AtomicUsize::new(0);
        let bench = Bench::new(move |_, _| match calls.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Err(io_error()),
            _ => Ok(outcome(None)),
        })
        .await;
        let _workers = bench.start();
        let job = bench.done(bench.enqueue().await).await;
        assert_eq!((job.state, job.attempt, job.error), (JobState::Succeeded, 3, None));
    }

    #[tokio::test]
    async fn a_cancelled_job_leaves_no_artifact() {
        let bench = Bench::new(endless).await;
        let _workers = bench.start();
        let id = bench.enqueue().await;
        bench.until(id, |job| job.progress.is_some()).await;
        bench.workers.queue.cancel(id).await.unwrap();
        assert_eq!(bench.done(id).await.state, JobState::Cancelled);
        assert_eq!((bench.artifacts().await, bench.blobs()), (0, 2));
    }

    #[tokio::test]
    async fn a_job_that_takes_too_long_fails_at_once_and_for_good() {
        let mut bench = Bench::new(endless).await;
        bench.workers.options.timeout = Some(Duration::from_millis(200));
        let _workers = bench.start();
        let job = bench.done(bench.enqueue().await).await;
        let error = job.error.unwrap();
        assert_eq!((job.state, job.attempt, error.code), (JobState::Failed, 1, JobErrorCode::Timeout));
        assert!(error.message.contains("jobs.timeout_seconds"), "{}", error.message);
        assert_eq!((bench.artifacts().await, bench.blobs()), (0, 2));
    }

    #[tokio::test]
    async fn a_model_deleted_under_its_job_fails_it_and_leaves_nothing() {
        let bench = Bench::new(|request, progress| {
            progress.update(Phase::Import, 0, 1);
            // `blobs/ab/cdef…`: the third folder above is that of the test.
            let go = request.model.ancestors().nth(3).unwrap().join("go");
            while !go.exists() && !progress.cancelled() {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(std::fs::read(request.model).unwrap(), b"a model", "its files stay while it runs");
            Ok(outcome(None))
        })
        .await;
        let _workers = bench.start();
        let id = bench.enqueue().await;
        bench.until(id, |job| job.progress.is_some()).await;
        let digests = bench.workers.catalog.delete_model(&name("m"), None).await.unwrap();
        bench.workers.blobs.discard(&*bench.workers.catalog, &digests).await.unwrap();
        std::fs::write(bench.scratch.folder.path().join("go"), b"").unwrap();
        let job = bench.done(id).await;
        assert_eq!((job.state, job.error.unwrap().code), (JobState::Failed, JobErrorCode::ModelDeleted));
        assert_eq!(bench.artifacts().await, 0);
        // The files of the model go at the next sweep.
        while bench.workers.blobs.sweep(&*bench.workers.catalog, || true).await.unwrap() == 0
            && bench.blobs() > 1
        {
            tokio::task::yield_now().await;
        }
        assert_eq!(bench.blobs(), 1);
    }

    #[tokio::test]
    async fn a_job_whose_model_or_data_are_gone_fails_with_a_clear_code() {
        let bench = Bench::new(|_, _| Ok(outcome(None))).await;
        let (first, second) = (bench.enqueue().await, bench.enqueue().await);
        bench.workers.catalog.delete_dataset(&name("d"), None).await.unwrap();
        let _workers = bench.start();
        let code = async |id| bench.done(id).await.error.unwrap().code;
        assert_eq!(code(first).await, JobErrorCode::DatasetDeleted);
        assert_eq!(code(second).await, JobErrorCode::DatasetDeleted);
        let data = bench.workers.blobs.put(b"data").await.unwrap();
        bench.workers.catalog.create_dataset(new_dataset("d", data.digest())).await.unwrap();
        bench.stop.send_replace(true);
        let third = bench.enqueue().await;
        bench.workers.catalog.delete_model(&name("m"), None).await.unwrap();
        bench.stop.send_replace(false);
        let _workers = bench.start();
        assert_eq!(code(third).await, JobErrorCode::ModelDeleted);
    }

    #[tokio::test]
    async fn a_graceful_stop_hands_the_job_back() {
        let bench = Bench::new(endless).await;
        let workers = bench.start();
        let id = bench.enqueue().await;
        bench.until(id, |job| job.progress.is_some()).await;
        bench.stop.send_replace(true);
        tokio::time::timeout(Duration::from_secs(20), workers).await.expect("in time").unwrap();
        let job = bench.workers.queue.find(id).await.unwrap();
        assert_eq!((job.state, job.attempt, job.handed_back), (JobState::Queued, 1, 1));
    }

    #[tokio::test]
    async fn a_job_of_a_killed_process_runs_again_at_once() {
        let calls = AtomicUsize::new(0);
        let bench = Bench::new(move |request, progress| match calls.fetch_add(1, Ordering::Relaxed) {
            0 => endless(request, progress),
            _ => Ok(outcome(None)),
        })
        .await;
        let id = bench.enqueue().await;
        let killed = bench.start();
        bench.until(id, |job| job.progress.is_some()).await;
        // The closest to `kill -9` inside one process: no more heartbeat, no hand-back, no commit.
        killed.abort();
        assert!(killed.await.unwrap_err().is_cancelled());
        assert_eq!(bench.workers.queue.find(id).await.unwrap().state, JobState::Running);
        let _workers = bench.start();
        let job = bench.done(id).await;
        assert_eq!((job.state, job.attempt), (JobState::Succeeded, 2));
        assert!(bench.workers.metrics.render().contains("octet_job_lease_expired_total 1"));
    }

    #[tokio::test]
    async fn a_worker_that_lost_its_lease_throws_its_work_away() {
        let calls = AtomicUsize::new(0);
        let bench = Bench::new(move |_, progress| {
            progress.update(Phase::Quantize, 0, 1);
            if calls.fetch_add(1, Ordering::Relaxed) == 0 {
                // Does not look whether it should stop before it is done.
                while !progress.cancelled() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let mut late = outcome(None);
                late.artifact = b"too late".to_vec();
                return Ok(late);
            }
            Ok(outcome(None))
        })
        .await;
        let id = bench.enqueue().await;
        let _workers = bench.start();
        bench.until(id, |job| job.progress.is_some()).await;
        bench.scratch.pass(30_001);
        bench.workers.queue.tend().await.unwrap();
        let job = bench.done(id).await;
        assert_eq!((job.state, job.attempt), (JobState::Succeeded, 2));
        let sha256 = job.result.unwrap()["artifact"]["sha256"].as_str().unwrap().parse().unwrap();
        assert_eq!(bench.workers.blobs.read(sha256, 99).await.unwrap(), b"an artifact");
        assert_eq!((bench.artifacts().await, bench.blobs()), (1, 6));
    }
}
