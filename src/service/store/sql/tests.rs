//! The same tests on both databases.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde_json::json;

use super::super::{
    AccuracySummary, ArtifactFilter, ArtifactId, Catalog, Census, Clock, Created, Cursor, Digest,
    EndpointChange, Error, Expect, Finish, IdempotencyKey, Job, JobErrorCode, JobKind, JobProgress, JobState,
    KeyId, LatencySummary, Lease, Name, NewArtifact, NewAudit, NewDataset, NewJob, NewKey, NewModel, Owner,
    Page, Pinned, Route, Timestamp, Version, Webhook, WebhookClaim, WebhookOutcome, WebhookState,
};
use super::jobs::{KEY_LIFETIME_MS, Next, write_next};
use super::open::Sql;

/// Runs each test on SQLite, and on Postgres where the variable names one (`tests/postgres` starts it).
macro_rules! on_both {
    ($($test:ident,)*) => {
        mod sqlite {
            $(#[tokio::test] async fn $test() { super::$test(super::Scratch::new().await).await; })*
        }
        mod postgres {
            $(
                #[tokio::test]
                #[ignore = "needs a Postgres: tests/run starts one"]
                async fn $test() { super::$test(super::Scratch::postgres().await).await; }
            )*
        }
    };
}

on_both! {
    the_same_bytes_under_a_name_are_the_same_version,
    a_version_is_never_given_twice,
    pages_give_every_record_once_newest_first,
    jobs_are_leased_in_order_and_once,
    a_job_that_may_not_be_deleted_is_passed_over_by_no_worker,
    progress_is_kept_and_counted,
    a_worker_that_lost_its_lease_can_write_nothing,
    a_job_whose_workers_die_fails_after_its_attempts,
    a_job_survives_kill_and_restart,
    success_commits_artifact_endpoint_and_job_together,
    what_misses_its_gate_is_kept_and_not_served,
    a_model_deleted_under_a_job_fails_it,
    endpoints_change_only_as_expected,
    a_key_used_again_gives_the_job_of_then,
    the_queue_has_an_end,
    no_job_is_leased_twice,
    a_hold_and_a_removal_exclude_each_other,
    the_census_counts,
    keys_come_back_as_they_were_made,
    a_key_is_revoked_once,
    a_key_stores_no_more_than_its_quota,
    the_audit_log_is_paged_and_has_an_end,
    a_file_of_a_newer_program_is_refused,
    the_webhook_of_a_job_is_told_once_however_often_it_ends,
    a_webhook_whose_sender_died_is_due_again,
    a_webhook_is_given_up_and_stays_so,
    a_webhook_is_sent_by_one_of_many,
    the_webhooks_of_a_busy_receiver_wait,
}

/// A catalog of its own, with a clock that stands still until it is moved.
pub(crate) struct Scratch {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) catalog: Arc<Sql>,
    pub(crate) now: Arc<AtomicI64>,
    /// Of the Postgres database; `None` is SQLite in the folder.
    url: Option<String>,
}

impl Scratch {
    /// In SQLite.
    pub(crate) async fn new() -> Scratch {
        Scratch::with(None).await
    }

    /// In a new database of the Postgres that `OCTET_TEST_POSTGRES` names.
    pub(crate) async fn postgres() -> Scratch {
        let server = std::env::var("OCTET_TEST_POSTGRES").expect(
            "OCTET_TEST_POSTGRES: the URL of a Postgres server (`tests/postgres` starts one and prints it)",
        );
        let database = format!("t{}", uuid::Uuid::now_v7().simple());
        sqlx::any::install_default_drivers();
        let admin = sqlx::AnyPool::connect(&server).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {database}")))
            .execute(&admin)
            .await
            .unwrap();
        admin.close().await;
        let mut url: url::Url = server.parse().unwrap();
        url.set_path(&database);
        Scratch::with(Some(url.into())).await
    }

    async fn with(url: Option<String>) -> Scratch {
        let folder = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicI64::new(1_795_421_730_250));
        let catalog = Arc::new(open(folder.path(), url.as_deref(), &now).await);
        Scratch { folder, catalog, now, url }
    }

    pub(crate) fn pass(&self, milliseconds: i64) {
        self.now.fetch_add(milliseconds, Ordering::Relaxed);
    }

    /// As after a restart of the process.
    pub(crate) async fn reopen(&mut self) {
        self.catalog.close().await;
        self.catalog = Arc::new(self.open_again().await);
    }

    /// As another process would.
    pub(crate) async fn open_again(&self) -> Sql {
        open(self.folder.path(), self.url.as_deref(), &self.now).await
    }
}

async fn open(folder: &Path, url: Option<&str>, now: &Arc<AtomicI64>) -> Sql {
    let now = Arc::clone(now);
    let clock: Clock = Arc::new(move || Timestamp(now.load(Ordering::Relaxed)));
    match url {
        None => Sql::sqlite(&folder.join("octet.db"), clock).await.unwrap(),
        Some(url) => Sql::postgres(url, clock).await.unwrap(),
    }
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn new_model(called: &str, sha256: Digest) -> NewModel {
    NewModel { name: name(called), sha256, bytes: 1000, info: json!({ "inputs": [] }), owner: None }
}

pub(crate) fn new_dataset(called: &str, sha256: Digest) -> NewDataset {
    NewDataset {
        name: name(called),
        sha256,
        bytes: 500,
        samples: 8,
        info: json!({ "samples": 8 }),
        owner: None,
    }
}

pub(crate) fn new_artifact(gate_failure: Option<&str>) -> NewArtifact {
    NewArtifact {
        id: ArtifactId::new(),
        sha256: Digest([7; 32]),
        bytes: 260,
        size_ratio: 0.26,
        manifest: json!({ "contract": 1 }),
        accuracy: AccuracySummary {
            metric: "top1".to_owned(),
            float: 0.75,
            int8: 0.74,
            delta: -0.01,
            agreement: 0.98,
            sqnr_db: 31.5,
            samples: 8,
        },
        latency: LatencySummary { float_ms: 2.0, int8_ms: 1.0 },
        gate_failure: gate_failure.map(str::to_owned),
        report: Digest([8; 32]),
        report_html: Digest([9; 32]),
        statistics: Digest([10; 32]),
    }
}

/// A job for model `m` with data `d`, which are made if they are not there.
pub(crate) async fn new_job(catalog: &Sql) -> NewJob {
    let model = catalog.create_model(new_model("m", Digest([1; 32]))).await.unwrap().record;
    let data = catalog.create_dataset(new_dataset("d", Digest([2; 32]))).await.unwrap().record;
    NewJob {
        kind: JobKind::Quantize,
        model: model.pinned(),
        calibration: data.pinned(),
        calibration_of: None,
        evaluation: None,
        keep: false,
        recipe: json!({ "scheme": "static" }),
        endpoint: None,
        webhook_url: None,
        attempts_max: 3,
        idempotency: None,
        queued_max: 1000,
    }
}

const LEASE: Duration = Duration::from_secs(30);

async fn queued(catalog: &Sql) -> Job {
    catalog.create_job(new_job(catalog).await).await.unwrap().record
}

async fn leased(catalog: &Sql, owner: &str) -> (Job, Lease) {
    let job = catalog.lease_job(owner, LEASE).await.unwrap().expect("a job is due");
    let lease = job.lease().unwrap();
    (job, lease)
}

fn is_lost<T>(answer: Result<T, Error>) -> bool {
    matches!(answer, Err(Error::LeaseLost { .. }))
}

async fn the_same_bytes_under_a_name_are_the_same_version(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let upload = |called, byte| catalog.create_model(new_model(called, Digest([byte; 32])));
    let first = upload("resnet", 1).await.unwrap();
    assert!(first.new);
    assert_eq!((first.record.version, first.record.bytes), (Version(1), 1000));
    assert_eq!(upload("resnet", 1).await.unwrap(), Created { record: first.record.clone(), new: false });
    assert_eq!(upload("resnet", 2).await.unwrap().record.version, Version(2));
    assert_eq!(upload("other", 1).await.unwrap().record.version, Version(1));
    let newest = catalog.model(&"resnet".parse().unwrap()).await.unwrap();
    assert_eq!(newest.version, Version(2));
    assert_eq!(catalog.model(&"resnet@1".parse().unwrap()).await.unwrap(), first.record);
}

async fn a_version_is_never_given_twice(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let upload = || catalog.create_dataset(new_dataset("d", Digest([1; 32])));
    upload().await.unwrap();
    let deleted = catalog.delete_dataset(&name("d"), None).await.unwrap();
    assert_eq!(deleted.iter().map(|dataset| dataset.sha256).collect::<Vec<_>>(), [Digest([1; 32])]);
    assert!(!catalog.blob_referenced(Digest([1; 32])).await.unwrap());
    let error = catalog.dataset(&"d".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.to_string(), "no dataset `d`");
    let again = upload().await.unwrap();
    assert!(again.new);
    assert_eq!(again.record.version, Version(2));
    assert!(catalog.blob_referenced(Digest([1; 32])).await.unwrap());
}

async fn pages_give_every_record_once_newest_first(scratch: Scratch) {
    for index in 0..7 {
        // Pairs share a moment: the id decides.
        scratch.pass(index % 2);
        scratch
            .catalog
            .create_model(new_model("m", Digest([u8::try_from(index).unwrap(); 32])))
            .await
            .unwrap();
    }
    for limit in [1, 2, 3, 7, 8] {
        let mut versions = Vec::new();
        let mut page = Page::first(limit);
        loop {
            let slice = scratch.catalog.models(Some(&name("m")), &page).await.unwrap();
            versions.extend(slice.items.iter().map(|model| model.version.0));
            assert!(slice.items.len() <= limit as usize);
            let Some(next) = slice.next else { break };
            // As through a client.
            page.after = Some(next.to_string().parse().unwrap());
        }
        assert_eq!(versions, [7, 6, 5, 4, 3, 2, 1], "limit {limit}");
    }
    assert!(scratch.catalog.models(Some(&name("n")), &Page::first(5)).await.unwrap().items.is_empty());
    assert_eq!(scratch.catalog.models(None, &Page::first(0)).await.unwrap().items.len(), 1);
    assert!("nonsense".parse::<Cursor>().is_err());
}

async fn jobs_are_leased_in_order_and_once(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let (first, second) = (queued(catalog).await, queued(catalog).await);
    let (job, _) = leased(catalog, "host/a").await;
    assert_eq!((job.id, job.attempt, job.state), (first.id, 1, JobState::Running));
    assert_eq!(leased(catalog, "host/b").await.0.id, second.id);
    assert!(catalog.lease_job("host/a", LEASE).await.unwrap().is_none());
}

async fn a_job_that_may_not_be_deleted_is_passed_over_by_no_worker(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let id = queued(catalog).await.id;
    for turn in 0..100 {
        // One after the other, and both at once.
        let (refused, job) = if turn % 2 == 0 {
            (catalog.delete_job(id).await, catalog.lease_job("host/a", LEASE).await)
        } else {
            tokio::join!(catalog.delete_job(id), catalog.lease_job("host/a", LEASE))
        };
        assert!(matches!(refused, Err(Error::NotFinished { .. })), "{refused:?}");
        let job = job.unwrap().unwrap_or_else(|| panic!("turn {turn}: a job is due"));
        catalog.finish_job(&job.lease().unwrap(), Finish::HandBack).await.unwrap();
    }
}

async fn progress_is_kept_and_counted(scratch: Scratch) {
    queued(&scratch.catalog).await;
    let (job, lease) = leased(&scratch.catalog, "host/a").await;
    scratch.pass(10_000);
    let progress = JobProgress { phase: "calibrate".to_owned(), done: 3, total: 8 };
    let after = scratch.catalog.heartbeat(&lease, LEASE, Some(progress.clone())).await.unwrap();
    assert_eq!(after.progress, Some(progress.clone()));
    assert_eq!(after.seq, job.seq + 1);
    assert_eq!(after.lease_until, Some(after.updated_at.plus(LEASE)));
    scratch.pass(10_000);
    let silent = scratch.catalog.heartbeat(&lease, LEASE, None).await.unwrap();
    assert_eq!((silent.progress, silent.seq), (Some(progress), after.seq));
    assert!(silent.lease_until > after.lease_until);
}

async fn a_worker_that_lost_its_lease_can_write_nothing(scratch: Scratch) {
    let catalog = &scratch.catalog;
    queued(catalog).await;
    let (_, old) = leased(catalog, "host/a").await;
    assert!(catalog.reap_jobs(Duration::ZERO).await.unwrap().is_empty(), "the lease still holds");
    scratch.pass(30_001);
    assert_eq!(catalog.reap_jobs(Duration::ZERO).await.unwrap()[0].state, JobState::Queued);
    // The same process, another attempt: only the number tells them apart.
    let (job, new) = leased(catalog, "host/a").await;
    assert_eq!(job.attempt, 2);
    assert!(is_lost(catalog.heartbeat(&old, LEASE, None).await));
    assert!(is_lost(catalog.finish_job(&old, Finish::Done(Box::new(new_artifact(None)))).await));
    assert!(is_lost(catalog.finish_job(&old, Finish::HandBack).await));
    assert!(catalog.artifacts(&ArtifactFilter::default(), &Page::first(9)).await.unwrap().items.is_empty());
    catalog.finish_job(&new, Finish::Done(Box::new(new_artifact(None)))).await.unwrap();
    assert!(is_lost(catalog.finish_job(&new, Finish::Cancelled).await));
}

async fn a_job_whose_workers_die_fails_after_its_attempts(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let id = queued(catalog).await.id;
    for attempt in 1..=3 {
        assert_eq!(leased(catalog, "host/a").await.0.attempt, attempt);
        scratch.pass(30_001);
        let jobs = catalog.reap_jobs(Duration::from_secs(5)).await.unwrap();
        assert_eq!(jobs.len(), 1);
        assert!(catalog.lease_job("host/a", LEASE).await.unwrap().is_none(), "not before the wait is over");
        scratch.pass(5_000);
    }
    let job = catalog.job(id).await.unwrap();
    assert_eq!(job.state, JobState::Failed);
    assert_eq!(job.error.unwrap().code, JobErrorCode::LeaseLost);
    assert!(job.finished_at.is_some() && job.lease_owner.is_none());
}

async fn a_job_survives_kill_and_restart(mut scratch: Scratch) {
    let id = queued(&scratch.catalog).await.id;
    leased(&scratch.catalog, "host/first").await;
    let waiting = queued(&scratch.catalog).await.id;
    scratch.reopen().await;
    let catalog = &scratch.catalog;
    assert_eq!(catalog.job(waiting).await.unwrap().state, JobState::Queued);
    assert!(catalog.release_jobs("hos", "hos/second").await.unwrap().is_empty(), "another host");
    let released = catalog.release_jobs("host", "host/second").await.unwrap();
    assert_eq!(released.len(), 1);
    let (job, lease) = leased(catalog, "host/second").await;
    assert_eq!((job.id, job.attempt), (id, 2), "the older one first");
    assert!(catalog.release_jobs("host", "host/second").await.unwrap().is_empty(), "its own");
    let job = catalog.finish_job(&lease, Finish::Done(Box::new(new_artifact(None)))).await.unwrap();
    assert_eq!(job.state, JobState::Succeeded);
    assert_eq!(leased(catalog, "host/second").await.0.id, waiting);
}

async fn success_commits_artifact_endpoint_and_job_together(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let mut changes = catalog.endpoint_changes();
    let mut job_changes = catalog.job_changes();
    for round in 1..=3u32 {
        let mut new = new_job(catalog).await;
        new.endpoint = Some(name("prod"));
        catalog.create_job(new).await.unwrap();
        let (_, lease) = leased(catalog, "host/a").await;
        let made = new_artifact(None);
        let id = made.id;
        job_changes.borrow_and_update();
        let job = catalog.finish_job(&lease, Finish::Done(Box::new(made))).await.unwrap();
        assert_eq!(job.state, JobState::Succeeded);
        let result = job.result.unwrap();
        assert_eq!(result["artifact"]["id"], json!(id));
        assert_eq!(result["endpoint"], json!({ "name": "prod", "version": round }));
        let artifact = catalog.artifact(id).await.unwrap();
        assert_eq!((artifact.job, artifact.accuracy.sqnr_db), (job.id, 31.5));
        let endpoint = catalog.endpoint(&name("prod")).await.unwrap();
        assert_eq!((endpoint.revision, endpoint.default_version), (u64::from(round), Version(round)));
        assert_eq!(endpoint.versions.len(), 2.min(round as usize));
        let newest = endpoint.versions.last().unwrap();
        assert_eq!((newest.artifact, newest.precision()), (Some(id), super::super::Precision::Int8));
        assert!(changes.has_changed().unwrap());
        assert!(job_changes.has_changed().unwrap(), "a webhook may wait for the end");
        changes.borrow_and_update();
    }
    let filter = ArtifactFilter { model: Some(name("m")), job: None };
    assert_eq!(catalog.artifacts(&filter, &Page::first(9)).await.unwrap().items.len(), 3);
}

async fn what_misses_its_gate_is_kept_and_not_served(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let mut new = new_job(catalog).await;
    new.endpoint = Some(name("prod"));
    catalog.create_job(new).await.unwrap();
    let (_, lease) = leased(catalog, "host/a").await;
    let made = new_artifact(Some("top1 fell by 0.01, at most 0.005"));
    let id = made.id;
    let job = catalog.finish_job(&lease, Finish::Done(Box::new(made))).await.unwrap();
    assert_eq!(job.state, JobState::GateFailed);
    assert_eq!(job.error.unwrap().code, JobErrorCode::GateFailed);
    assert!(catalog.artifact(id).await.is_ok());
    assert!(catalog.endpoint(&name("prod")).await.is_err());
    let error =
        catalog.change_endpoint(&name("prod"), adding(Some(id), job.model), Expect::Any).await.unwrap_err();
    assert!(error.to_string().contains("does not keep its gate"), "{error}");
}

async fn a_model_deleted_under_a_job_fails_it(scratch: Scratch) {
    let catalog = &scratch.catalog;
    queued(catalog).await;
    let (_, lease) = leased(catalog, "host/a").await;
    catalog.delete_model(&name("m"), None).await.unwrap();
    let made = new_artifact(None);
    let id = made.id;
    let job = catalog.finish_job(&lease, Finish::Done(Box::new(made))).await.unwrap();
    assert_eq!(job.state, JobState::Failed);
    assert_eq!(job.error.unwrap().code, JobErrorCode::ModelDeleted);
    assert!(catalog.artifact(id).await.is_err());
}

fn adding(artifact: Option<ArtifactId>, model: Pinned) -> EndpointChange {
    EndpointChange { add: Some((artifact, model)), by: "api".into(), ..EndpointChange::default() }
}

async fn endpoints_change_only_as_expected(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let model = new_job(catalog).await.model;
    let prod = name("prod");
    let add = |expect| catalog.change_endpoint(&prod, adding(None, model.clone()), expect);
    let none = add(Expect::Present).await.unwrap_err().to_string();
    assert_eq!(none, "endpoint `prod`: expected that it exists, there is none");
    let first = add(Expect::Absent).await.unwrap();
    assert_eq!((first.revision, first.versions.len()), (1, 1));
    let error = async |expect| add(expect).await.unwrap_err().to_string();
    let it_has = "it has revision 1";
    assert_eq!(
        error(Expect::Absent).await,
        format!("endpoint `prod`: expected that it does not exist, {it_has}")
    );
    assert_eq!(error(Expect::Revision(2)).await, format!("endpoint `prod`: expected revision 2, {it_has}"));
    assert_eq!(add(Expect::Revision(1)).await.unwrap().revision, 2);
    let routes = Some(vec![Route { version: Version(2), weight: 99 }]);
    let wrong = EndpointChange { routes, ..EndpointChange::default() };
    let error = catalog.change_endpoint(&prod, wrong, Expect::Any).await.unwrap_err();
    assert!(matches!(error, Error::BadEndpoint { .. }), "{error}");
    assert_eq!(catalog.endpoint(&prod).await.unwrap().revision, 2, "what is refused changes nothing");
    let error = catalog.delete_model(&name("m"), Some(Version(1))).await.unwrap_err().to_string();
    assert_eq!(error, "model `m@1` is served by endpoint `prod`");
    catalog.delete_endpoint(&prod, Expect::Revision(2), "api").await.unwrap();
    assert!(catalog.endpoint(&prod).await.is_err());
    let again = add(Expect::Absent).await.unwrap();
    assert_eq!((again.revision, again.default_version), (4, Version(3)), "numbers go on");
    assert_eq!(catalog.endpoints(&Page::first(9)).await.unwrap().items, [again]);
    let records = catalog.endpoint_records(&prod).await.unwrap();
    let told: Vec<_> = records.iter().map(|r| (r.revision, r.by.as_str())).collect();
    assert_eq!(told, [(4, "api"), (3, "api"), (2, "api"), (1, "api")]);
}

async fn a_key_used_again_gives_the_job_of_then(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let keyed = |fingerprint| async move {
        let mut new = new_job(catalog).await;
        let fingerprint = Digest([fingerprint; 32]);
        new.idempotency = Some(IdempotencyKey { key: "k".to_owned(), fingerprint });
        catalog.create_job(new).await
    };
    let first = keyed(1).await.unwrap();
    assert!(first.new);
    let of_key = |key: &str, fingerprint| {
        let key = IdempotencyKey { key: key.to_owned(), fingerprint: Digest([fingerprint; 32]) };
        async move { catalog.job_of_key(&key).await }
    };
    assert_eq!(of_key("k", 1).await.unwrap(), Some(first.record.clone()));
    assert_eq!(of_key("other", 1).await.unwrap(), None);
    assert!(matches!(of_key("k", 2).await, Err(Error::KeyReused { .. })));
    assert_eq!(keyed(1).await.unwrap(), Created { record: first.record.clone(), new: false });
    assert!(matches!(keyed(2).await, Err(Error::KeyReused { .. })));
    scratch.pass(KEY_LIFETIME_MS + 1);
    assert_eq!(of_key("k", 1).await.unwrap(), None);
    let second = keyed(2).await.unwrap().record.id;
    assert_ne!(second, first.record.id);
    // A job that nobody finds any more has no key either.
    catalog.cancel_job(second).await.unwrap();
    catalog.delete_job(second).await.unwrap();
    let third = keyed(2).await.unwrap();
    assert!(third.new && third.record.id != second);
}

async fn the_queue_has_an_end(scratch: Scratch) {
    let new = NewJob { queued_max: 1, ..new_job(&scratch.catalog).await };
    scratch.catalog.create_job(new.clone()).await.unwrap();
    let full = scratch.catalog.create_job(new).await;
    assert!(matches!(full, Err(Error::QueueFull { limit: 1 })));
}

/// Eight workers, each with connections of its own, take all jobs there are. `CLAIMS` makes it longer: 100,000 is what we
/// hold to.
async fn no_job_is_leased_twice(scratch: Scratch) {
    let jobs = std::env::var("CLAIMS").map_or(400, |text| text.parse::<usize>().unwrap());
    queued(&scratch.catalog).await;
    // Copies of the first, by the database itself: a row each by itself would take longer than the claims.
    let copy = "INSERT INTO jobs (id, kind, state, attempts_max, model_name, model_version, calibration_name,
                                  calibration_version, recipe, run_at, created_at, updated_at)
                WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
                SELECT substr(id, 1, 24) || substr('000000000000' || CAST(i AS TEXT), length(CAST(i AS TEXT)) + 1, 12), kind,
                       state, attempts_max, model_name, model_version, calibration_name, calibration_version, recipe,
                       run_at, created_at, updated_at
                FROM jobs, n WHERE jobs.id NOT LIKE '%000000000000'";
    let more = i64::try_from(jobs - 1).unwrap();
    sqlx::query(copy).bind(more).execute(&scratch.catalog.writer).await.unwrap();
    let begun = std::time::Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        // SQLite has one process, whose workers share its one writer.
        let catalog = match &scratch.url {
            None => Arc::clone(&scratch.catalog),
            Some(_) => Arc::new(scratch.open_again().await),
        };
        workers.spawn(async move {
            let owner = format!("host/{worker}");
            let mut leased = Vec::new();
            while let Some(job) = catalog.lease_job(&owner, LEASE).await.unwrap() {
                assert_eq!(job.attempt, 1, "{} is leased twice", job.id);
                leased.push(job.id);
            }
            leased
        });
    }
    let leased: Vec<_> = workers.join_all().await.into_iter().flatten().collect();
    let seconds = begun.elapsed().as_secs_f64();
    let different: std::collections::HashSet<_> = leased.iter().collect();
    assert_eq!((leased.len(), different.len()), (jobs, jobs));
    println!("{jobs} claims by 8 workers, {:.0} a second", jobs as f64 / seconds);
}

async fn a_hold_and_a_removal_exclude_each_other(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let digest = Digest([5; 32]);
    let hold = catalog.hold_blob(digest, LEASE).await.unwrap().expect("nobody removes it");
    assert!(!catalog.begin_removal(digest, LEASE).await.unwrap());
    catalog.release_blob(hold).await.unwrap();
    assert!(catalog.begin_removal(digest, LEASE).await.unwrap());
    assert!(catalog.hold_blob(digest, LEASE).await.unwrap().is_none());
    catalog.end_removal(digest).await.unwrap();
    assert!(catalog.hold_blob(digest, LEASE).await.unwrap().is_some());
    // What a process that died has held or was removing comes free.
    scratch.pass(30_001);
    assert!(catalog.begin_removal(digest, LEASE).await.unwrap());
    scratch.pass(30_001);
    assert!(catalog.hold_blob(digest, LEASE).await.unwrap().is_some());
    catalog.create_model(new_model("m", Digest([6; 32]))).await.unwrap();
    assert!(!catalog.begin_removal(Digest([6; 32]), LEASE).await.unwrap(), "a row refers to it");
}

async fn the_census_counts(scratch: Scratch) {
    assert_eq!(scratch.catalog.census().await.unwrap(), Census::default());
    queued(&scratch.catalog).await;
    scratch.pass(1_500);
    let census = scratch.catalog.census().await.unwrap();
    let expected = Census {
        jobs: [1, 0, 0, 0, 0, 0],
        oldest_queued_s: 1.5,
        float_bytes: 1000,
        int8_bytes: 0,
        dataset_bytes: 500,
    };
    assert_eq!(census, expected);
}

async fn a_file_of_a_newer_program_is_refused(scratch: Scratch) {
    sqlx::query("INSERT INTO schema_version VALUES (999, 'later', 0)")
        .execute(&scratch.catalog.writer)
        .await
        .unwrap();
    scratch.catalog.close().await;
    let error = match &scratch.url {
        None => Sql::sqlite(&scratch.folder.path().join("octet.db"), Arc::new(|| Timestamp(0))).await,
        Some(url) => Sql::postgres(url, Arc::new(|| Timestamp(0))).await,
    };
    let Err(Error::Database { source, .. }) = error else { panic!("it was opened") };
    assert!(source.to_string().contains("999"), "{source}");
}

fn new_key(id: u8, lifetime: Option<Duration>) -> NewKey {
    NewKey {
        id: KeyId([id; 8]),
        name: name("ci"),
        sha256: Digest([id; 32]),
        scopes: "read,infer".parse().unwrap(),
        rate: lifetime.map(|_| 50),
        quota: lifetime.map(|_| 1 << 40),
        lifetime,
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_told_at_once_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("octet.db");
    let bytes: Vec<u8> = (0..8192u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let begun = std::time::Instant::now();
    let opened = Sql::sqlite(&path, Arc::new(|| Timestamp(0))).await;
    let looked_at = super::open::schema_of_sqlite(&path).await;
    for error in [opened.err().expect("it is refused"), looked_at.expect_err("it is refused")] {
        let text = crate::service::store::chain(&error);
        for want in ["octet.db", "file is not a database", "octet restore"] {
            assert!(text.contains(want), "no `{want}` in `{text}`");
        }
    }
    // It was half a minute for each; on a busy machine it is not at once either.
    assert!(begun.elapsed() < std::time::Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

async fn keys_come_back_as_they_were_made(mut scratch: Scratch) {
    let first = scratch.catalog.create_key(new_key(2, None)).await.unwrap();
    scratch.pass(1_000);
    let day = Duration::from_secs(86_400);
    let second = scratch.catalog.create_key(new_key(1, Some(day))).await.unwrap();
    assert_eq!(second.expires_at, Some(second.created_at.plus(day)));
    scratch.reopen().await;
    assert_eq!(scratch.catalog.keys().await.unwrap(), [first, second]);
    // An id is given once.
    assert!(scratch.catalog.create_key(new_key(1, None)).await.is_err());
}

async fn a_key_is_revoked_once(scratch: Scratch) {
    let key = scratch.catalog.create_key(new_key(1, None)).await.unwrap();
    scratch.pass(1_000);
    let revoked = scratch.catalog.revoke_key(key.id).await.unwrap();
    assert_eq!(revoked.revoked_at, Some(key.created_at.plus(Duration::from_secs(1))));
    scratch.pass(1_000);
    assert_eq!(scratch.catalog.revoke_key(key.id).await.unwrap(), revoked);
    let unknown = scratch.catalog.revoke_key(KeyId([9; 8])).await;
    assert!(matches!(unknown, Err(Error::NotFound { .. })), "{unknown:?}");
}

async fn a_key_stores_no_more_than_its_quota(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let key = KeyId([3; 8]);
    let owner = |quota| Some(Owner { key, quota });
    let model = |byte, quota| {
        catalog.create_model(NewModel { owner: owner(quota), ..new_model("m", Digest([byte; 32])) })
    };
    let data = |byte, quota| {
        catalog.create_dataset(NewDataset { owner: owner(quota), ..new_dataset("d", Digest([byte; 32])) })
    };
    // What others have stored does not count.
    catalog.create_model(new_model("other", Digest([9; 32]))).await.unwrap();
    model(1, Some(1_500)).await.unwrap();
    assert!(!model(1, Some(0)).await.unwrap().new, "what is there already takes no room");
    data(2, Some(1_500)).await.unwrap();
    assert_eq!(catalog.stored_bytes(key).await.unwrap(), 1_500);
    let refused = data(3, Some(1_999)).await;
    let Err(Error::QuotaExceeded { used: 1_500, asked: 500, quota: 1_999, .. }) = refused else {
        panic!("{refused:?}");
    };
    catalog.delete_model(&name("m"), None).await.unwrap();
    data(3, Some(1_999)).await.unwrap();
    model(4, None).await.unwrap();
    assert_eq!(catalog.stored_bytes(key).await.unwrap(), 2_000);
    assert_eq!(catalog.stored_bytes(KeyId([4; 8])).await.unwrap(), 0);
}

async fn the_audit_log_is_paged_and_has_an_end(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let line = |key: Option<u8>, record: Option<&str>| NewAudit {
        key: key.map(|byte| (KeyId([byte; 8]), name("ci"))),
        method: "PUT".to_owned(),
        route: "/v1/models/{name}".to_owned(),
        path: "/v1/models/m".to_owned(),
        record: record.map(str::to_owned),
        outcome: "201".to_owned(),
        request_id: "r".to_owned(),
    };
    let lines = [line(None, None), line(Some(1), Some("/v1/models/m@1")), line(Some(2), None)];
    for line in &lines {
        catalog.add_audit(line.clone()).await.unwrap();
        scratch.pass(1_000);
    }
    let first = catalog.audit(None, &Page::first(2)).await.unwrap();
    let what =
        |items: &[super::super::AuditEntry]| -> Vec<_> { items.iter().map(|e| e.what.clone()).collect() };
    assert_eq!(what(&first.items), [lines[2].clone(), lines[1].clone()]);
    let rest = catalog.audit(None, &Page { after: first.next, limit: 2 }).await.unwrap();
    assert_eq!((what(&rest.items), rest.next), (vec![lines[0].clone()], None));
    let own = catalog.audit(Some(KeyId([1; 8])), &Page::first(9)).await.unwrap();
    assert_eq!(what(&own.items), [lines[1].clone()]);
    assert_eq!(catalog.prune_audit(Duration::from_millis(2_000)).await.unwrap(), 1);
    assert_eq!(catalog.audit(None, &Page::first(9)).await.unwrap().items.len(), 2);
}

const HOOK: &str = "https://hooks.example/secret";

async fn queued_with_webhook(catalog: &Sql) -> Job {
    let new = NewJob { webhook_url: Some(HOOK.to_owned()), ..new_job(catalog).await };
    catalog.create_job(new).await.unwrap().record
}

async fn claimed(catalog: &Sql) -> WebhookClaim {
    catalog.claim_webhook(LEASE, &[]).await.unwrap().expect("an attempt is due")
}

async fn the_webhook_of_a_job_is_told_once_however_often_it_ends(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let silent = queued(catalog).await;
    catalog.cancel_job(silent.id).await.unwrap();
    let job = queued_with_webhook(catalog).await;
    assert_eq!(job.webhook_url.as_deref(), Some(HOOK));
    assert!(!serde_json::to_string(&job).unwrap().contains("secret"), "the path is not shown");
    assert_eq!(catalog.webhook(job.id).await.unwrap(), None, "it has not ended");
    let (_, lease) = leased(catalog, "a").await;
    // An attempt that failed, or was handed back, is no end.
    catalog.finish_job(&lease, Finish::HandBack).await.unwrap();
    assert!(catalog.claim_webhook(LEASE, &[]).await.unwrap().is_none());
    let (_, lease) = leased(catalog, "a").await;
    catalog.finish_job(&lease, Finish::Done(Box::new(new_artifact(None)))).await.unwrap();
    assert_eq!(catalog.webhook(silent.id).await.unwrap(), None, "nobody wants to know");

    let claim = claimed(catalog).await;
    assert_eq!((claim.job.id, claim.job.state, claim.attempt), (job.id, JobState::Succeeded, 1));
    assert!(catalog.settle_webhook(&claim, WebhookOutcome::Delivered, Some(204)).await.unwrap());
    let told = Webhook { state: WebhookState::Delivered, attempts: 1, last_status: Some(204) };
    assert_eq!(catalog.webhook(job.id).await.unwrap(), Some(told));

    // No call ends a job twice; if one did, nobody would be told again.
    let mut transaction = catalog.begin().await.ok().unwrap();
    let next = Next::ended(JobState::Failed, None);
    let again = write_next(&mut transaction, job.id, next, Timestamp(0)).await.ok().unwrap();
    assert_eq!(again.state, JobState::Failed);
    transaction.commit().await.unwrap();
    scratch.pass(3_600_000);
    assert!(catalog.claim_webhook(LEASE, &[]).await.unwrap().is_none());
    assert_eq!(catalog.webhook(job.id).await.unwrap(), Some(told));
}

async fn a_webhook_whose_sender_died_is_due_again(mut scratch: Scratch) {
    let job = queued_with_webhook(&scratch.catalog).await;
    scratch.catalog.cancel_job(job.id).await.unwrap();
    // What is deleted meanwhile has ended all the same.
    scratch.catalog.delete_job(job.id).await.unwrap();
    let first = claimed(&scratch.catalog).await;
    assert!(scratch.catalog.claim_webhook(LEASE, &[]).await.unwrap().is_none(), "somebody sends it");
    scratch.reopen().await;
    let catalog = &scratch.catalog;
    scratch.pass(29_999);
    assert!(catalog.claim_webhook(LEASE, &[]).await.unwrap().is_none(), "the lease still holds");
    scratch.pass(1);
    let second = claimed(catalog).await;
    assert_eq!((second.job.id, second.job.state, second.attempt), (job.id, JobState::Cancelled, 2));
    // The first sender was only slow: what it says does not count any more.
    assert!(!catalog.settle_webhook(&first, WebhookOutcome::GivenUp, None).await.unwrap());
    assert!(catalog.settle_webhook(&second, WebhookOutcome::Delivered, Some(200)).await.unwrap());
    let told = Webhook { state: WebhookState::Delivered, attempts: 2, last_status: Some(200) };
    assert_eq!(catalog.webhook(job.id).await.unwrap(), Some(told));
}

async fn a_webhook_is_given_up_and_stays_so(scratch: Scratch) {
    let catalog = &scratch.catalog;
    let job = queued_with_webhook(catalog).await;
    catalog.cancel_job(job.id).await.unwrap();
    let claim = claimed(catalog).await;
    let retry = WebhookOutcome::Retry(Duration::from_secs(14));
    assert!(catalog.settle_webhook(&claim, retry, Some(503)).await.unwrap());
    let told = |state, attempts, last_status| Some(Webhook { state, attempts, last_status });
    assert_eq!(catalog.webhook(job.id).await.unwrap(), told(WebhookState::Pending, 1, Some(503)));
    scratch.pass(13_999);
    assert!(catalog.claim_webhook(LEASE, &[]).await.unwrap().is_none(), "it waits");
    scratch.pass(1);
    let claim = claimed(catalog).await;
    assert_eq!(claim.attempt, 2);
    assert!(catalog.settle_webhook(&claim, WebhookOutcome::GivenUp, None).await.unwrap());
    assert!(!catalog.settle_webhook(&claim, WebhookOutcome::Delivered, Some(200)).await.unwrap());
    scratch.pass(3_600_000);
    assert!(catalog.claim_webhook(LEASE, &[]).await.unwrap().is_none());
    assert_eq!(catalog.webhook(job.id).await.unwrap(), told(WebhookState::GivenUp, 2, None));
}

async fn the_webhooks_of_a_busy_receiver_wait(scratch: Scratch) {
    let catalog = &scratch.catalog;
    for _ in 0..2 {
        let job = queued_with_webhook(catalog).await;
        catalog.cancel_job(job.id).await.unwrap();
    }
    let other = "https://hooks.example.org/x";
    let new = NewJob { webhook_url: Some(other.to_owned()), ..new_job(catalog).await };
    let job = catalog.create_job(new).await.unwrap().record;
    catalog.cancel_job(job.id).await.unwrap();
    let busy = ["https://hooks.example/".to_owned(), "https://nobody.example/".to_owned()];
    let claim = catalog.claim_webhook(LEASE, &busy).await.unwrap().expect("that of another receiver");
    assert_eq!((claim.job.id, claim.attempt), (job.id, 1));
    assert!(catalog.claim_webhook(LEASE, &busy).await.unwrap().is_none());
    assert_eq!(claimed(catalog).await.job.webhook_url.as_deref(), Some(HOOK));
}

async fn a_webhook_is_sent_by_one_of_many(scratch: Scratch) {
    let mut jobs = std::collections::HashSet::new();
    for _ in 0..40 {
        let job = queued_with_webhook(&scratch.catalog).await;
        scratch.catalog.cancel_job(job.id).await.unwrap();
        jobs.insert(job.id);
    }
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..4 {
        // SQLite has one process.
        let catalog = match &scratch.url {
            None => Arc::clone(&scratch.catalog),
            Some(_) => Arc::new(scratch.open_again().await),
        };
        senders.spawn(async move {
            let mut claims = Vec::new();
            while let Some(claim) = catalog.claim_webhook(LEASE, &[]).await.unwrap() {
                assert_eq!(claim.attempt, 1, "{} is claimed twice", claim.job.id);
                claims.push(claim.job.id);
            }
            claims
        });
    }
    let claimed: Vec<_> = senders.join_all().await.into_iter().flatten().collect();
    assert_eq!(claimed.len(), jobs.len());
    assert_eq!(claimed.into_iter().collect::<std::collections::HashSet<_>>(), jobs);
}
