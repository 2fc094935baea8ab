//! What is asked of the records. Knows no SQL dialect and no files.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;

use super::error::Error;
use super::records::{
    Artifact, ArtifactFilter, ArtifactId, AuditEntry, Created, Dataset, Digest, Endpoint, EndpointChange,
    EndpointRecord, Expect, Finish, HoldId, IdempotencyKey, Job, JobFilter, JobId, JobProgress, Key, KeyId,
    Lease, Model, Name, NewAudit, NewDataset, NewJob, NewKey, NewModel, Page, Slice, Version, Wanted,
    Webhook, WebhookClaim, WebhookOutcome,
};

/// What the catalog answers, later.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// Keeps the records. Every call is one transaction and durable when it answers.
///
/// Deletions are logical: the row stays, with its number, so that versions are never given twice. Deleting gives
/// back the blobs that the row held; the caller hands them to `Blobs::discard`, which removes those that no
/// other row holds.
///
/// A model or dataset may be deleted while jobs need it, so that nobody has to wait for a queue to give memory
/// back: a queued job then fails with `model_deleted` or `dataset_deleted` when its turn comes; a running one
/// keeps its files until it ends and fails with `model_deleted`. A model or artifact that an endpoint serves, or
/// has as its twin, is not deleted: [`Error::InUse`].
///
/// The calibration data of a job are deleted in the transaction that ends it, unless a job that used them said `keep`,
/// or one that is not done yet needs them: then the end of that one decides. Evaluation data that no job took ranges
/// from stay.
pub trait Catalog: Send + Sync {
    /// Adds a version, or gives the one that holds the same bytes under that name.
    fn create_model(&self, new: NewModel) -> Answer<'_, Created<Model>>;
    /// The model.
    fn model<'a>(&'a self, wanted: &'a Wanted) -> Answer<'a, Model>;
    /// Models, all versions; those of one name where given.
    fn models<'a>(&'a self, name: Option<&'a Name>, page: &'a Page) -> Answer<'a, Slice<Model>>;
    /// Deletes a version, or all of them; gives the blobs they held.
    fn delete_model<'a>(&'a self, name: &'a Name, version: Option<Version>) -> Answer<'a, Vec<Digest>>;

    /// Adds a version, or gives the one that holds the same bytes under that name.
    fn create_dataset(&self, new: NewDataset) -> Answer<'_, Created<Dataset>>;
    /// The dataset.
    fn dataset<'a>(&'a self, wanted: &'a Wanted) -> Answer<'a, Dataset>;
    /// Datasets, all versions; those of one name where given.
    fn datasets<'a>(&'a self, name: Option<&'a Name>, page: &'a Page) -> Answer<'a, Slice<Dataset>>;
    /// Deletes a version, or all of them; gives what was deleted. Jobs that used it tell of it.
    fn delete_dataset<'a>(&'a self, name: &'a Name, version: Option<Version>) -> Answer<'a, Vec<Dataset>>;

    /// The artifact.
    fn artifact(&self, id: ArtifactId) -> Answer<'_, Artifact>;
    /// Artifacts.
    fn artifacts<'a>(&'a self, filter: &'a ArtifactFilter, page: &'a Page) -> Answer<'a, Slice<Artifact>>;
    /// Deletes an artifact; gives the blobs it held.
    fn delete_artifact(&self, id: ArtifactId) -> Answer<'_, Vec<Digest>>;

    /// The endpoint.
    fn endpoint<'a>(&'a self, name: &'a Name) -> Answer<'a, Endpoint>;
    /// Endpoints.
    fn endpoints<'a>(&'a self, page: &'a Page) -> Answer<'a, Slice<Endpoint>>;
    /// Makes or changes an endpoint, and keeps a record of it.
    fn change_endpoint<'a>(
        &'a self,
        name: &'a Name,
        change: EndpointChange,
        expect: Expect,
    ) -> Answer<'a, Endpoint>;
    /// The changes that an endpoint has seen, newest first, at most 200.
    fn endpoint_records<'a>(&'a self, name: &'a Name) -> Answer<'a, Vec<EndpointRecord>>;
    /// Deletes an endpoint. `by` is who does it: see [`EndpointChange::by`].
    fn delete_endpoint<'a>(&'a self, name: &'a Name, expect: Expect, by: &'a str) -> Answer<'a, ()>;
    /// Changes whenever an endpoint has changed: look at the catalog again, then. The number means nothing.
    fn endpoint_changes(&self) -> watch::Receiver<u64>;

    /// Changes whenever a job was added or an attempt has ended, in any process: look again, then.
    fn job_changes(&self) -> watch::Receiver<u64>;
    /// Adds a job, or gives the one that the same idempotency key made.
    fn create_job(&self, new: NewJob) -> Answer<'_, Created<Job>>;
    /// The job that the idempotency key made, where it made one: also one that is deleted.
    fn job_of_key<'a>(&'a self, key: &'a IdempotencyKey) -> Answer<'a, Option<Job>>;
    /// The job.
    fn job(&self, id: JobId) -> Answer<'_, Job>;
    /// Jobs.
    fn jobs<'a>(&'a self, filter: &'a JobFilter, page: &'a Page) -> Answer<'a, Slice<Job>>;
    /// Gives the oldest queued job that is due to `owner`.
    fn lease_job<'a>(&'a self, owner: &'a str, lease: Duration) -> Answer<'a, Option<Job>>;
    /// Prolongs a lease and notes the progress. The job tells whether to stop.
    fn heartbeat<'a>(
        &'a self,
        lease: &'a Lease,
        prolong: Duration,
        progress: Option<JobProgress>,
    ) -> Answer<'a, Job>;
    /// Keeps what an attempt has found out for the next one. Gives the blob that this one replaces.
    fn keep_checkpoint<'a>(&'a self, lease: &'a Lease, statistics: Digest) -> Answer<'a, Option<Digest>>;
    /// Ends an attempt.
    fn finish_job<'a>(&'a self, lease: &'a Lease, finish: Finish) -> Answer<'a, Job>;
    /// A queued job is cancelled at once, a running one is asked to stop. Asking again changes nothing. Gives
    /// the job, and whether this call changed it.
    fn cancel_job(&self, id: JobId) -> Answer<'_, (Job, bool)>;
    /// Deletes a job that has ended. Its artifact stays.
    fn delete_job(&self, id: JobId) -> Answer<'_, ()>;
    /// Takes leases that have run out: cancelled where asked, else queued again after `wait`, or failed
    /// (`lease_lost`) where no attempt is left. Gives the jobs that changed.
    fn reap_jobs(&self, wait: Duration) -> Answer<'_, Vec<Job>>;
    /// The same at once for leases of owners that begin with `host` and a slash, other than `owner`: those of
    /// a process that is gone. To be called once, at start.
    fn release_jobs<'a>(&'a self, host: &'a str, owner: &'a str) -> Answer<'a, Vec<Job>>;

    /// Whether a row that is not deleted holds the blob.
    fn blob_referenced(&self, digest: Digest) -> Answer<'_, bool>;
    /// The rows that are not deleted and hold the blob, in words (`dataset calib@2`); at most so many.
    fn blob_holders(&self, digest: Digest, limit: u32) -> Answer<'_, Vec<String>>;
    /// Holds a blob that several processes share, so that none removes it before the row that refers to it is committed;
    /// `None` while it is being removed: ask again. A hold ends by itself after `lifetime`.
    fn hold_blob(&self, digest: Digest, lifetime: Duration) -> Answer<'_, Option<HoldId>>;
    /// Ends a hold.
    fn release_blob(&self, hold: HoldId) -> Answer<'_, ()>;
    /// Says that a shared blob is being removed; `false` where a row refers to it or somebody holds it. What a process
    /// that died was removing may be held again after `lifetime`.
    fn begin_removal(&self, digest: Digest, lifetime: Duration) -> Answer<'_, bool>;
    /// The blob is gone, or stays after all.
    fn end_removal(&self, digest: Digest) -> Answer<'_, ()>;
    /// Figures for the metrics.
    fn census(&self) -> Answer<'_, Census>;
    /// Bytes of the models and datasets that were uploaded with a key and are not deleted.
    fn stored_bytes(&self, key: KeyId) -> Answer<'_, u64>;

    /// Puts a request that changed something on record.
    fn add_audit(&self, new: NewAudit) -> Answer<'_, ()>;
    /// Requests that changed something; those with one key where given.
    fn audit<'a>(&'a self, key: Option<KeyId>, page: &'a Page) -> Answer<'a, Slice<AuditEntry>>;
    /// Removes from the record what is older than `keep`; gives how many.
    fn prune_audit(&self, keep: Duration) -> Answer<'_, u64>;

    /// How far the message about the end of a job is; `None` where it has not ended or nobody wants to know.
    fn webhook(&self, job: JobId) -> Answer<'_, Option<Webhook>>;
    /// Gives one attempt to tell the end of a job, where one is due whose address begins with none of `busy`. It is due
    /// again after `lease`, unless settled.
    fn claim_webhook<'a>(&'a self, lease: Duration, busy: &'a [String]) -> Answer<'a, Option<WebhookClaim>>;
    /// Notes what came of an attempt, and the status that was answered; `false` where another attempt has begun.
    fn settle_webhook<'a>(
        &'a self,
        claim: &'a WebhookClaim,
        outcome: WebhookOutcome,
        status: Option<u16>,
    ) -> Answer<'a, bool>;

    /// Adds a key.
    fn create_key(&self, new: NewKey) -> Answer<'_, Key>;
    /// All keys, also those that are not taken any more, oldest first.
    fn keys(&self) -> Answer<'_, Vec<Key>>;
    /// From now on the key is not taken. Asking again changes nothing.
    fn revoke_key(&self, id: KeyId) -> Answer<'_, Key>;
}

/// Figures for the metrics, all of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Census {
    /// Number of jobs, in the order of [`JobState::ALL`](super::records::JobState::ALL).
    pub jobs: [u64; 6],
    /// Age of the oldest queued job, in seconds; 0 without one.
    pub oldest_queued_s: f64,
    /// Bytes of float models that are not deleted.
    pub float_bytes: u64,
    /// Bytes of artifacts that are not deleted.
    pub int8_bytes: u64,
    /// Bytes of datasets that are not deleted.
    pub dataset_bytes: u64,
}
