//! The queue as it should be: a map, a clock and the table of `after`. Random sequences tell whether the real one agrees.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::queue::{self, Options, Queue};
use super::webhooks::Receivers;
use super::worker::tests::spec;
use super::{Event, JobSpec, after};
use crate::service::metrics::process::Metrics;
use crate::service::store::sql::tests::{Scratch, name, new_artifact, new_dataset, new_model};
use crate::service::store::{
    self, ArtifactFilter, Catalog, Digest, Finish, IdempotencyKey, Job, JobError, JobErrorCode, JobFilter,
    JobId, JobProgress, JobState, Lease, Page, Pinned, Version,
};

/// Few may wait, so that the end of the queue is met.
const OPTIONS: Options = Options {
    attempts_max: 3,
    queued_max: 6,
    lease: Duration::from_secs(30),
    retry_wait: Duration::from_secs(2),
    receivers: Receivers::None,
};
const LEASE_MS: i64 = 30_000;
const RETRY_MS: i64 = 2_000;
/// How long a key is remembered.
const KEY_MS: i64 = 24 * 3_600_000;
const OWNERS: [&str; 3] = ["host/a", "host/b", "other/a"];
/// Operations of one sequence.
const STEPS: usize = 1_000;

/// The same sequence every time for the same seed: xorshift64* (Vigna, "An experimental exploration of Marsaglia's
/// xorshift generators, scrambled", 2016).
struct Dice(u64);

impl Dice {
    /// 0 to `sides - 1`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }

    fn one_of<T: Clone>(&mut self, things: &[T]) -> Option<T> {
        let sides = things.len() as u64;
        (sides > 0).then(|| things[self.roll(sides) as usize].clone())
    }
}

/// What a job is like, as far as the rules speak of it.
#[derive(Clone, Debug, PartialEq)]
struct Like {
    state: JobState,
    attempt: u32,
    handed_back: u32,
    attempts_max: u32,
    /// Whose it is and until when.
    held: Option<(String, i64)>,
    asked_to_stop: bool,
    data: Version,
    data_gone: bool,
    checkpoint: Option<Digest>,
    error: Option<JobErrorCode>,
    result: bool,
    phase: Option<String>,
}

impl Like {
    fn of(job: &Job) -> Like {
        let until = job.lease_until.map_or(0, |until| until.0);
        Like {
            state: job.state,
            attempt: job.attempt,
            handed_back: job.handed_back,
            attempts_max: job.attempts_max,
            held: job.lease_owner.clone().map(|owner| (owner, until)),
            asked_to_stop: job.cancel_requested,
            data: job.calibration.version,
            data_gone: job.calibration_deleted_at.is_some(),
            checkpoint: job.checkpoint,
            error: job.error.as_ref().map(|error| error.code),
            result: job.result.is_some(),
            phase: job.progress.as_ref().map(|progress| progress.phase.clone()),
        }
    }
}

/// A job of the reference.
#[derive(Clone, Debug)]
struct Known {
    like: Like,
    /// Not leased before.
    due: i64,
    keep: bool,
    deleted: bool,
}

/// Why the queue refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    NotFound,
    Lost,
    Finished,
    NotFinished,
    Full,
    KeyReused,
}

impl Refusal {
    fn of(error: queue::Error) -> Refusal {
        match error {
            queue::Error::Store(store::Error::NotFound { .. }) => Refusal::NotFound,
            queue::Error::Store(store::Error::LeaseLost { .. }) => Refusal::Lost,
            queue::Error::Store(store::Error::AlreadyFinished { .. }) => Refusal::Finished,
            queue::Error::Store(store::Error::NotFinished { .. }) => Refusal::NotFinished,
            queue::Error::Store(store::Error::QueueFull { .. }) => Refusal::Full,
            queue::Error::Store(store::Error::KeyReused { .. }) => Refusal::KeyReused,
            error => panic!("{error:?}"),
        }
    }
}

/// The queue in memory.
#[derive(Debug, Default)]
struct Reference {
    now: i64,
    jobs: BTreeMap<JobId, Known>,
    /// Versions of the data, and whether they are there.
    data: BTreeMap<Version, bool>,
    keys: BTreeMap<String, (Digest, JobId, i64)>,
    artifacts: usize,
}

impl Reference {
    fn newest(&self) -> Option<Version> {
        self.data.iter().rev().find(|(_, there)| **there).map(|(version, _)| *version)
    }

    /// Whether a job may be added; `Ok(Some)` is that of then.
    fn may_create(&self, key: Option<&IdempotencyKey>) -> Result<Option<JobId>, Refusal> {
        let then = key.and_then(|key| Some((key, self.keys.get(&key.key)?)));
        if let Some((key, (fingerprint, job, at))) = then
            && *at >= self.now - KEY_MS
        {
            return if *fingerprint == key.fingerprint { Ok(Some(*job)) } else { Err(Refusal::KeyReused) };
        }
        if self.newest().is_none() {
            return Err(Refusal::NotFound);
        }
        let queued = self.jobs.values().filter(|job| job.like.state == JobState::Queued).count();
        if queued as u64 >= OPTIONS.queued_max { Err(Refusal::Full) } else { Ok(None) }
    }

    fn create(&mut self, id: JobId, attempts_max: u32, keep: bool, key: Option<&IdempotencyKey>) {
        let like = Like {
            state: JobState::Queued,
            attempt: 0,
            handed_back: 0,
            attempts_max,
            held: None,
            asked_to_stop: false,
            data: self.newest().expect("asked before"),
            data_gone: false,
            checkpoint: None,
            error: None,
            result: false,
            phase: None,
        };
        self.jobs.insert(id, Known { like, due: self.now, keep, deleted: false });
        if let Some(key) = key {
            self.keys.insert(key.key.clone(), (key.fingerprint, id, self.now));
        }
    }

    /// The next that is due: the one that waits for the longest.
    fn lease(&mut self, owner: &str) -> Option<JobId> {
        let waits = |job: &Known| job.like.state == JobState::Queued && job.due <= self.now;
        let (_, id) = self.jobs.iter().filter(|(_, job)| waits(job)).map(|(id, job)| (job.due, *id)).min()?;
        let held = (owner.to_owned(), self.now + LEASE_MS);
        let job = self.jobs.get_mut(&id)?;
        job.like.state = after(job.like.state, Event::Lease).expect("it is queued");
        job.like.attempt += 1;
        job.like.held = Some(held);
        job.like.phase = None;
        Some(id)
    }

    /// The job, where the lease is the one that holds.
    fn held(&mut self, lease: &Lease) -> Result<&mut Known, Refusal> {
        let job = self.jobs.get_mut(&lease.job).ok_or(Refusal::Lost)?;
        let owner = job.like.held.as_ref().map(|(owner, _)| owner);
        if job.like.attempt == lease.attempt && owner == Some(&lease.owner) {
            Ok(job)
        } else {
            Err(Refusal::Lost)
        }
    }

    /// The job is not running or waiting any more, or waits again from `due` on. Gives the blobs it let go of.
    fn happen(&mut self, id: JobId, event: Event, error: Option<JobErrorCode>, due: i64) -> Vec<Digest> {
        let job = self.jobs.get_mut(&id).expect("the caller has it");
        let like = &mut job.like;
        like.state = after(like.state, event).expect("the caller knows that it can");
        (like.held, like.error) = (None, error);
        like.result = matches!(event, Event::Succeed | Event::FailGate);
        like.asked_to_stop |= like.state == JobState::Cancelled;
        if !like.state.is_final() {
            job.due = due;
            return Vec::new();
        }
        let checkpoint = like.checkpoint.take();
        let data = like.data;
        // Who corrects the request asks again with the same data.
        if like.state == JobState::Failed && error == Some(JobErrorCode::BadData) {
            return checkpoint.into_iter().collect();
        }
        let users = || self.jobs.values().filter(|job| job.like.data == data);
        let needed = users().any(|job| job.keep || !job.like.state.is_final());
        let mut freed = Vec::new();
        if !needed && self.data.insert(data, false) == Some(true) {
            freed.push(digest_of(data));
            for job in self.jobs.values_mut().filter(|job| job.like.data == data) {
                job.like.data_gone = true;
            }
        }
        freed.extend(checkpoint);
        freed
    }

    /// An attempt came to nothing; another one where one is left.
    fn fail(&mut self, id: JobId, code: JobErrorCode, retry: Event, last: Event, due: i64) -> Vec<Digest> {
        let like = &self.jobs[&id].like;
        if like.asked_to_stop {
            self.happen(id, Event::Stop, None, 0)
        } else if like.attempt - like.handed_back >= like.attempts_max {
            self.happen(id, last, Some(code), 0)
        } else {
            self.happen(id, retry, Some(code), due)
        }
    }

    /// Ends the attempts of those that `gone` says; gives how many and the blobs they let go of.
    fn expire(&mut self, gone: impl Fn(&str, i64) -> bool, due: i64) -> (usize, Vec<Digest>) {
        let is_gone = |job: &Known| job.like.held.as_ref().is_some_and(|(owner, until)| gone(owner, *until));
        let all: Vec<JobId> = self.jobs.iter().filter(|(_, job)| is_gone(job)).map(|(id, _)| *id).collect();
        let end = |id: &JobId| self.fail(*id, JobErrorCode::LeaseLost, Event::Expire, Event::ExpireLast, due);
        (all.len(), all.iter().flat_map(end).collect())
    }

    fn finish(&mut self, lease: &Lease, how: End) -> Result<Vec<Digest>, Refusal> {
        let now = self.now;
        let like = self.held(lease)?.like.clone();
        let id = lease.job;
        let failed_before = like.attempt - like.handed_back - 1;
        Ok(match how {
            End::Done | End::OffTheMark | End::HandBack if like.asked_to_stop => {
                self.happen(id, Event::Stop, None, 0)
            }
            End::Done => {
                self.artifacts += 1;
                self.happen(id, Event::Succeed, None, 0)
            }
            End::OffTheMark => {
                self.artifacts += 1;
                self.happen(id, Event::FailGate, Some(JobErrorCode::GateFailed), 0)
            }
            End::ForGood => self.happen(id, Event::Fail, Some(JobErrorCode::BadData), 0),
            End::ForNow => {
                let due = now + (RETRY_MS << failed_before.min(5));
                self.fail(id, JobErrorCode::Storage, Event::Retry, Event::Fail, due)
            }
            End::Stopped => self.happen(id, Event::Stop, None, 0),
            End::HandBack => {
                self.held(lease)?.like.handed_back += 1;
                self.happen(id, Event::HandBack, like.error, now)
            }
        })
    }

    fn cancel(&mut self, id: JobId) -> Result<Vec<Digest>, Refusal> {
        let job = self.jobs.get_mut(&id).filter(|job| !job.deleted).ok_or(Refusal::NotFound)?;
        match (job.like.state, after(job.like.state, Event::Cancel)) {
            (_, None) => Err(Refusal::Finished),
            (JobState::Queued, Some(_)) => Ok(self.happen(id, Event::Cancel, None, 0)),
            (_, Some(_)) => {
                job.like.asked_to_stop = true;
                Ok(Vec::new())
            }
        }
    }

    /// Somebody deletes all data, whoever needs them.
    fn delete_data(&mut self) -> Result<BTreeSet<Version>, Refusal> {
        let take = |(version, there): (&Version, &mut bool)| std::mem::take(there).then_some(*version);
        let gone: BTreeSet<Version> = self.data.iter_mut().filter_map(take).collect();
        for job in self.jobs.values_mut().filter(|job| gone.contains(&job.like.data)) {
            job.like.data_gone = true;
        }
        if gone.is_empty() { Err(Refusal::NotFound) } else { Ok(gone) }
    }

    fn delete(&mut self, id: JobId) -> Result<(), Refusal> {
        let job = self.jobs.get_mut(&id).filter(|job| !job.deleted).ok_or(Refusal::NotFound)?;
        if !job.like.state.is_final() {
            return Err(Refusal::NotFinished);
        }
        job.deleted = true;
        self.keys.retain(|_, (_, job, _)| *job != id);
        Ok(())
    }
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Done,
    OffTheMark,
    ForGood,
    ForNow,
    Stopped,
    HandBack,
}

const ENDS: [End; 8] = [
    End::Done,
    End::Done,
    End::OffTheMark,
    End::ForGood,
    End::ForNow,
    End::ForNow,
    End::Stopped,
    End::HandBack,
];

/// Of a version of the data.
fn digest_of(version: Version) -> Digest {
    let mut bytes = [2; 32];
    bytes[..4].copy_from_slice(&version.0.to_le_bytes());
    Digest(bytes)
}

/// The real queue beside the reference.
struct Both {
    scratch: Scratch,
    queue: Arc<Queue>,
    reference: Reference,
    dice: Dice,
    /// Every lease ever given, the newest last.
    leases: Vec<(Job, Lease)>,
    /// The last number of each job.
    seqs: BTreeMap<JobId, (u64, Like)>,
    /// What came of the last operation.
    before: String,
    /// How often each thing came of it.
    seen: BTreeMap<String, usize>,
}

impl Both {
    async fn new(scratch: Scratch, seed: u64) -> Both {
        scratch.catalog.create_model(new_model("m", Digest([1; 32]))).await.unwrap();
        let queue = Both::queue_of(&scratch);
        let now = scratch.now.load(std::sync::atomic::Ordering::Relaxed);
        Both {
            scratch,
            queue,
            reference: Reference { now, ..Reference::default() },
            dice: Dice(seed),
            leases: Vec::new(),
            seqs: BTreeMap::new(),
            before: "the beginning".to_owned(),
            seen: BTreeMap::new(),
        }
    }

    fn queue_of(scratch: &Scratch) -> Arc<Queue> {
        Queue::new(scratch.catalog.clone(), Arc::new(Metrics::new("0", "scalar")), OPTIONS)
    }

    /// Counts what came of an operation, and compares it.
    fn same<T: Debug + PartialEq>(
        &mut self,
        what: &str,
        real: Result<T, queue::Error>,
        should: Result<T, Refusal>,
    ) {
        let real = real.map_err(Refusal::of);
        assert_eq!(real, should, "{what}, after {}", self.before);
        let came = should.map_or_else(|refusal| format!("{what}: {refusal:?}"), |_| what.to_owned());
        self.before.clone_from(&came);
        *self.seen.entry(came).or_default() += 1;
    }

    /// A lease that a worker may have: mostly a recent one, sometimes one that nobody was given.
    fn some_lease(&mut self) -> Option<(Job, Lease)> {
        let recent = self.leases.len().saturating_sub(5);
        let (job, mut lease) = self.dice.one_of(&self.leases[recent..])?;
        match self.dice.roll(20) {
            0 => lease.owner = "host/nobody".to_owned(),
            1 => lease.attempt += 1,
            _ => {}
        }
        Some((job, lease))
    }

    fn some_job(&mut self) -> Option<JobId> {
        let all: Vec<JobId> = self.reference.jobs.keys().copied().collect();
        self.dice.one_of(&all[all.len().saturating_sub(12)..])
    }

    async fn upload(&mut self) {
        let next = Version(self.reference.data.len() as u32 + 1);
        let new = new_dataset("d", digest_of(next));
        assert_eq!(self.scratch.catalog.create_dataset(new).await.unwrap().record.version, next);
        self.reference.data.insert(next, true);
    }

    async fn create(&mut self) {
        if self.reference.newest().is_none() && self.dice.roll(2) > 0 || self.dice.roll(12) == 0 {
            self.upload().await;
        }
        let keep = self.dice.roll(25) == 0;
        let attempts_max = 1 + self.dice.roll(3) as u32;
        let key = (self.dice.roll(3) == 0).then(|| IdempotencyKey {
            key: format!("key {}", self.dice.roll(6)),
            fingerprint: Digest([u8::from(self.dice.roll(6) == 0); 32]),
        });
        let spec =
            JobSpec { keep, recipe: Value::Null, endpoint: None, attempts_max: Some(attempts_max), ..spec() };
        let should = self.reference.may_create(key.as_ref());
        let real = self.queue.enqueue(spec, key.clone()).await;
        if should == Ok(None)
            && let Ok(created) = &real
        {
            assert!(created.new);
            let id = created.record.id;
            self.reference.create(id, attempts_max, keep, key.as_ref());
            return self.same("create", real.map(|created| created.record.id), Ok(id));
        }
        // A job that is there, or a refusal.
        let should = should.map(|then| (then, false));
        let what =
            if self.reference.newest().is_some() { "create again" } else { "create again without data" };
        self.same(what, real.map(|created| (Some(created.record.id), created.new)), should);
    }

    async fn lease(&mut self) {
        let owner = self.dice.one_of(&OWNERS).expect("there are three");
        let real = self.queue.lease(owner).await;
        let should = self.reference.lease(owner);
        if let Ok(Some(job)) = &real {
            self.leases.push((job.clone(), job.lease().expect("it was leased")));
        }
        let what = if should.is_some() { "lease" } else { "lease nothing" };
        self.same(what, real.map(|job| job.map(|job| job.id)), Ok(should));
    }

    async fn heartbeat(&mut self) {
        let Some((_, lease)) = self.some_lease() else { return };
        let progress = (self.dice.roll(2) == 0).then(|| JobProgress {
            phase: "calibrate".to_owned(),
            done: self.dice.roll(9),
            total: 9,
        });
        let real = self.queue.heartbeat(&lease, progress.clone()).await;
        let until = self.reference.now + LEASE_MS;
        let should = self.reference.held(&lease).map(|job| {
            job.like.held = Some((lease.owner.clone(), until));
            job.like.phase = progress.map(|progress| progress.phase).or(job.like.phase.take());
            job.like.asked_to_stop
        });
        self.same("heartbeat", real.map(|job| job.cancel_requested), should);
    }

    async fn checkpoint(&mut self) {
        let Some((_, lease)) = self.some_lease() else { return };
        let statistics = Digest([100 + self.dice.roll(3) as u8; 32]);
        let real = self.queue.keep_checkpoint(&lease, statistics).await;
        let should = self.reference.held(&lease).map(|job| {
            let before = job.like.checkpoint.replace(statistics);
            before.filter(|before| *before != statistics)
        });
        self.same("checkpoint", real, should);
    }

    async fn finish(&mut self) {
        let Some((job, lease)) = self.some_lease() else { return };
        let how = self.dice.one_of(&ENDS).expect("there are some");
        let error = |code, retriable| JobError { code, message: "a fault".to_owned(), retriable };
        let real = match how {
            End::Done => self.queue.finish(&lease, Finish::Done(Box::new(new_artifact(None)))).await,
            End::OffTheMark => {
                self.queue.finish(&lease, Finish::Done(Box::new(new_artifact(Some("off"))))).await
            }
            End::ForGood => self.queue.fail(&job, &lease, error(JobErrorCode::BadData, false)).await,
            End::ForNow => self.queue.fail(&job, &lease, error(JobErrorCode::Storage, true)).await,
            End::Stopped => self.queue.finish(&lease, Finish::Cancelled).await,
            End::HandBack => self.queue.finish(&lease, Finish::HandBack).await,
        };
        let should = self.reference.finish(&lease, how);
        self.same(&format!("finish {how:?}"), real.map(|job| job.freed), should);
    }

    async fn cancel(&mut self) {
        let Some(id) = self.some_job() else { return };
        let real = self.queue.cancel(id).await.map(|job| job.freed);
        let should = self.reference.cancel(id);
        self.same("cancel", real, should);
    }

    async fn delete(&mut self) {
        let Some(id) = self.some_job() else { return };
        let real = self.queue.delete(id).await;
        let should = self.reference.delete(id);
        self.same("delete", real, should);
    }

    async fn delete_data(&mut self) {
        let real = self.scratch.catalog.delete_dataset(&name("d"), None).await;
        let real = real.map(|gone| gone.into_iter().map(|data| data.version).collect());
        let should = self.reference.delete_data();
        self.same("delete data", real.map_err(queue::Error::Store), should);
    }

    async fn tend(&mut self) {
        let now = self.reference.now;
        let real = self.queue.tend().await.map(BTreeSet::from_iter);
        let (count, freed) = self.reference.expire(|_, until| until < now, now + RETRY_MS);
        let what = if count > 0 { "tend" } else { "tend nothing" };
        self.same(what, real, Ok(freed.into_iter().collect()));
    }

    async fn release(&mut self) {
        let owner = self.dice.one_of(&["host/a", "host/new"]).expect("there are two");
        let real = self.queue.release("host", owner).await;
        let gone = |other: &str, _| other.starts_with("host/") && other != owner;
        let (count, _) = self.reference.expire(gone, self.reference.now);
        self.same("release", real, Ok(count));
    }

    fn pass(&mut self) {
        let milliseconds = self
            .dice
            .one_of(&[1, 700, 2_000, 4_000, LEASE_MS, LEASE_MS + 1, KEY_MS / 30])
            .expect("there are some");
        self.scratch.pass(milliseconds);
        self.reference.now += milliseconds;
    }

    async fn step(&mut self) {
        match self.dice.roll(100) {
            0..18 => self.create().await,
            18..42 => self.lease().await,
            42..54 => self.heartbeat().await,
            54..74 => self.finish().await,
            74..80 => self.cancel().await,
            80..84 => self.delete().await,
            84..87 => self.checkpoint().await,
            87 => self.delete_data().await,
            88..91 => self.tend().await,
            91..93 => self.release().await,
            93..99 => self.pass(),
            _ => {
                self.scratch.reopen().await;
                self.queue = Both::queue_of(&self.scratch);
            }
        }
    }

    /// Every job is as it should be, and its number has gone up if it has changed.
    async fn compare(&mut self) {
        let mut real = BTreeMap::new();
        let mut page = Page::first(Page::LIMIT_MAX);
        loop {
            let part = self.queue.list(&JobFilter::default(), &page).await.unwrap();
            real.extend(part.items.into_iter().map(|job| (job.id, job)));
            if part.next.is_none() {
                break;
            }
            page.after = part.next;
        }
        let should = self.reference.jobs.iter().filter(|(_, job)| !job.deleted);
        let should: BTreeMap<JobId, Like> = should.map(|(id, job)| (*id, job.like.clone())).collect();
        let likes: BTreeMap<JobId, Like> = real.iter().map(|(id, job)| (*id, Like::of(job))).collect();
        for (id, like) in &should {
            assert_eq!(likes.get(id), Some(like), "{id}");
        }
        assert_eq!(likes.len(), should.len());
        for (id, job) in &real {
            // Whose lease it is until and what is kept for another attempt is not shown to anybody.
            let shown = Like { held: None, checkpoint: None, ..likes[id].clone() };
            if let Some((seq, before)) = self.seqs.insert(*id, (job.seq, shown.clone())) {
                assert!(job.seq > seq || job.seq == seq && shown == before, "{id}: {seq}, {}", job.seq);
            }
        }
    }

    async fn compare_in_the_end(&self) {
        let mut artifacts = 0;
        let mut page = Page::first(Page::LIMIT_MAX);
        loop {
            let part = self.scratch.catalog.artifacts(&ArtifactFilter::default(), &page).await.unwrap();
            artifacts += part.items.len();
            if part.next.is_none() {
                break;
            }
            page.after = part.next;
        }
        assert_eq!(artifacts, self.reference.artifacts);
        for (version, there) in &self.reference.data {
            let data = Pinned { name: name("d"), version: *version };
            assert_eq!(self.scratch.catalog.dataset(&data.into()).await.is_ok(), *there, "{version}");
        }
        let census = self.scratch.catalog.census().await.unwrap();
        let count = |state| {
            self.reference.jobs.values().filter(|job| !job.deleted && job.like.state == state).count() as u64
        };
        assert_eq!(census.jobs, JobState::ALL.map(count));
    }
}

async fn agrees(scratch: Scratch, seed: u64) {
    let mut both = Both::new(scratch, seed).await;
    for _ in 0..STEPS {
        both.step().await;
        both.compare().await;
    }
    both.compare_in_the_end().await;
    println!("seed {seed}: {} jobs, {:?}", both.reference.jobs.len(), both.seen);
    // A sequence that does nothing would agree too.
    for what in [
        "create",
        "create again",
        "create again: Full",
        "create again without data: NotFound",
        "create again: KeyReused",
        "lease",
        "lease nothing",
        "heartbeat",
        "heartbeat: Lost",
        "checkpoint",
        "finish Done",
        "finish Done: Lost",
        "finish OffTheMark",
        "finish ForGood",
        "finish ForNow",
        "finish Stopped",
        "finish HandBack",
        "cancel",
        "cancel: Finished",
        "delete",
        "delete: NotFinished",
        "delete data",
        "tend",
        "release",
    ] {
        assert!(both.seen.contains_key(what), "seed {seed} has no `{what}`: {:?}", both.seen);
    }
}

/// The seeds of the sequences: each is a test, so that they run side by side.
macro_rules! sequences {
    ($($test:ident: $seed:expr,)*) => {
        mod sqlite {
            $(#[tokio::test] async fn $test() { super::agrees(super::Scratch::new().await, $seed).await; })*
        }
        mod postgres {
            $(
                #[tokio::test]
                #[ignore = "needs a Postgres: tests/run starts one"]
                async fn $test() { super::agrees(super::Scratch::postgres().await, $seed).await; }
            )*
        }
    };
}

sequences! {
    the_queue_does_as_the_reference_1: 1,
    the_queue_does_as_the_reference_2: 2,
    the_queue_does_as_the_reference_3: 3,
    the_queue_does_as_the_reference_4: 0xDEAD_BEEF,
    the_queue_does_as_the_reference_5: 20_261_127,
}
