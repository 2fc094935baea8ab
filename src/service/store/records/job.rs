//! Jobs: what is asked, where one stands, who works on it, how it ends.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::artifact::NewArtifact;
use super::names::{BadText, Digest, JobId, Name, Pinned, bad};
use super::time::Timestamp;

/// One unit of queued work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Job {
    /// Its id; listings sort by it.
    pub id: JobId,
    /// What is to be done.
    pub kind: JobKind,
    /// Where it stands.
    pub state: JobState,
    /// How far; `None` until an attempt has begun.
    pub progress: Option<JobProgress>,
    /// How often it has been leased. Goes up with each lease and so fences writes of an earlier holder.
    pub attempt: u32,
    /// After so many attempts that failed, the job fails. Attempts handed back in a graceful stop do not count.
    pub attempts_max: u32,
    /// Attempts that were handed back.
    pub handed_back: u32,
    /// Who works on it.
    pub lease_owner: Option<String>,
    /// Until when, unless prolonged.
    pub lease_until: Option<Timestamp>,
    /// Whether the user has asked to stop it.
    pub cancel_requested: bool,
    /// The model.
    pub model: Pinned,
    /// The calibration data; where there is a `calibration_of`, those that its statistics came from.
    pub calibration: Pinned,
    /// The job whose statistics are used in place of calibration data.
    pub calibration_of: Option<JobId>,
    /// The evaluation data, where there are any.
    pub evaluation: Option<Pinned>,
    /// Whether the calibration data stay when the job has ended.
    pub keep: bool,
    /// When the calibration data were deleted.
    pub calibration_deleted_at: Option<Timestamp>,
    /// When the evaluation data were deleted.
    pub evaluation_deleted_at: Option<Timestamp>,
    /// Blobs that the job needs no more since it has ended (its data, its checkpoint): to be handed to `Blobs::discard` by whoever ended it, and empty
    /// in every other answer.
    #[serde(skip)]
    pub freed: Vec<Digest>,
    /// Blob of the statistics that an attempt has taken: the next one need not calibrate again.
    #[serde(skip)]
    pub checkpoint: Option<Digest>,
    /// The recipe with every default filled in.
    pub recipe: Value,
    /// The endpoint that serves the artifact on success.
    pub endpoint: Option<Name>,
    /// Whom to tell when it has ended. Not shown: its path and query may be secrets of the receiver.
    #[serde(skip)]
    pub webhook_url: Option<String>,
    /// On success and gate failure: artifact, accuracy, latency, size; endpoint and its version.
    pub result: Option<Value>,
    /// Why it failed, or why its last attempt did.
    pub error: Option<JobError>,
    /// Goes up with every change: the id of the event and the ETag of the job.
    pub seq: u64,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When the current or last attempt began.
    pub started_at: Option<Timestamp>,
    /// When it came to its final state.
    pub finished_at: Option<Timestamp>,
    /// When it changed last.
    pub updated_at: Timestamp,
}

impl Job {
    /// What proves that a worker holds this attempt; `None` unless it is running.
    #[must_use]
    pub fn lease(&self) -> Option<Lease> {
        let owner = self.lease_owner.clone()?;
        (self.state == JobState::Running).then_some(Lease { job: self.id, attempt: self.attempt, owner })
    }
}

/// What kind of work a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Model and data in, artifact and report out.
    Quantize,
}

impl JobKind {
    /// Every kind.
    pub const ALL: [JobKind; 1] = [JobKind::Quantize];

    /// As shown in the API, the database and the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            JobKind::Quantize => "quantize",
        }
    }
}

/// Where a job stands. `service::jobs::after` says which state may follow which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a worker, perhaps after a failed attempt.
    Queued,
    /// A worker holds its lease.
    Running,
    /// Done; the artifact is kept and, where asked, served.
    Succeeded,
    /// Done, but the gate of the recipe is not kept; the artifact is kept and not served.
    GateFailed,
    /// Not done, and will not be tried again.
    Failed,
    /// Stopped by the user.
    Cancelled,
}

impl JobState {
    /// Every state.
    pub const ALL: [JobState; 6] = [
        JobState::Queued,
        JobState::Running,
        JobState::Succeeded,
        JobState::GateFailed,
        JobState::Failed,
        JobState::Cancelled,
    ];

    /// Whether the job will never change again.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, JobState::Queued | JobState::Running)
    }

    /// As shown in the API, the database and the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Succeeded => "succeeded",
            JobState::GateFailed => "gate_failed",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = BadText;
    fn from_str(text: &str) -> Result<JobState, BadText> {
        JobState::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            bad(text, "a job state", "queued, running, succeeded, gate_failed, failed or cancelled")
        })
    }
}

/// Why a job failed: a closed list, part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobErrorCode {
    /// The file is not a model that can be read or run.
    BadModel,
    /// The model uses an operator, or a mode of one, that is not supported.
    UnsupportedOp,
    /// The data do not fit the model.
    BadData,
    /// The recipe is not one.
    BadRecipe,
    /// The model was deleted before the job was done.
    ModelDeleted,
    /// A dataset was deleted before the job began.
    DatasetDeleted,
    /// The gate of the recipe is not kept.
    GateFailed,
    /// Workers died or hung while they held the job, `max_attempts` times.
    LeaseLost,
    /// An attempt took longer than `jobs.timeout_seconds`.
    Timeout,
    /// A file or the database could not be read or written.
    Storage,
    /// A fault of ours; the log has the cause.
    Internal,
}

impl JobErrorCode {
    /// As shown in the API and the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            JobErrorCode::BadModel => "bad_model",
            JobErrorCode::UnsupportedOp => "unsupported_op",
            JobErrorCode::BadData => "bad_data",
            JobErrorCode::BadRecipe => "bad_recipe",
            JobErrorCode::ModelDeleted => "model_deleted",
            JobErrorCode::DatasetDeleted => "dataset_deleted",
            JobErrorCode::GateFailed => "gate_failed",
            JobErrorCode::LeaseLost => "lease_lost",
            JobErrorCode::Timeout => "timeout",
            JobErrorCode::Storage => "storage",
            JobErrorCode::Internal => "internal",
        }
    }

    /// Whether model, data or recipe are not what they must be: another request may do better with the same data.
    #[must_use]
    pub fn is_of_request(self) -> bool {
        match self {
            JobErrorCode::BadModel
            | JobErrorCode::UnsupportedOp
            | JobErrorCode::BadData
            | JobErrorCode::BadRecipe => true,
            JobErrorCode::ModelDeleted
            | JobErrorCode::DatasetDeleted
            | JobErrorCode::GateFailed
            | JobErrorCode::LeaseLost
            | JobErrorCode::Timeout
            | JobErrorCode::Storage
            | JobErrorCode::Internal => false,
        }
    }
}

/// Why a job failed, or why its last attempt did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// For programs.
    pub code: JobErrorCode,
    /// For people; names the node, tensor, field or sample.
    pub message: String,
    /// Whether the same job may succeed later without a change.
    pub retriable: bool,
}

/// How far a phase is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobProgress {
    /// The phase: `import`, `calibrate`, `quantize`, `evaluate`, `measure`, `export`, `store`.
    pub phase: String,
    /// Units done.
    pub done: u64,
    /// Of so many; 0 where not known.
    pub total: u64,
}

/// The right to work on a job: every write of a worker carries it, and fails once another attempt has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: u32,
    /// Whose.
    pub owner: String,
}

/// Makes a repeated request harmless: the same key gives the same job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Chosen by the client; at most 255 bytes, checked by the API.
    pub key: String,
    /// Of the request: the same key with another digest is refused.
    pub fingerprint: Digest,
}

/// A job to be. Models and datasets are resolved and exist.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// What is to be done.
    pub kind: JobKind,
    /// The model.
    pub model: Pinned,
    /// The calibration data; where there is a `calibration_of`, those that its statistics came from.
    pub calibration: Pinned,
    /// The job whose statistics are used in place of calibration data.
    pub calibration_of: Option<JobId>,
    /// The evaluation data, where there are any.
    pub evaluation: Option<Pinned>,
    /// Whether the calibration data stay when the job has ended.
    pub keep: bool,
    /// The recipe with every default filled in.
    pub recipe: Value,
    /// The endpoint that serves the artifact on success.
    pub endpoint: Option<Name>,
    /// Whom to tell when it has ended.
    pub webhook_url: Option<String>,
    /// At most so many attempts, from 1.
    pub attempts_max: u32,
    /// Of the request.
    pub idempotency: Option<IdempotencyKey>,
    /// Refuse with [`Error::QueueFull`](crate::service::store::Error::QueueFull) where so many jobs are queued.
    pub queued_max: u64,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub enum Finish {
    /// With an artifact: `succeeded`, or `gate_failed` where the artifact has a `gate_failure`. One transaction
    /// commits the artifact, the endpoint and the job. Where the user has asked to stop, or the model was
    /// deleted, the job becomes `cancelled` or `failed` (`model_deleted`) and no artifact is kept.
    Done(Box<NewArtifact>),
    /// Without one, for good.
    Failed(JobError),
    /// Without one; queued again after the wait, or failed where no attempt is left.
    Retry(JobError, Duration),
    /// The worker stopped as the user asked.
    Cancelled,
    /// The worker stops: queued again at once, and the attempt does not count.
    HandBack,
}

/// Which jobs to list; `None` takes all.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// In this state.
    pub state: Option<JobState>,
    /// Of any version of this model.
    pub model: Option<Name>,
}
