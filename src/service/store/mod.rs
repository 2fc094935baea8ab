//! What is kept: ids, records, and the [`Catalog`] that keeps them. Knows no SQL dialect and no files.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use tokio::sync::watch;

pub mod blobs;
mod endpoint;
pub mod partial;
pub mod remote;
pub mod reserve;
pub mod sql;

/// Tells the time. Handed in by `app`, so that tests can set it; only sensible within one host.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// A moment: milliseconds since 1970-01-01T00:00:00Z. Shown as RFC 3339 (`2026-11-23T08:15:30.250Z`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This moment and `wait` later.
    #[must_use]
    pub fn plus(self, wait: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Seconds from `earlier` to this moment; 0 where `earlier` is later.
    #[must_use]
    pub fn seconds_since(self, earlier: Timestamp) -> f64 {
        self.0.saturating_sub(earlier.0).max(0) as f64 / 1e3
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        // Days to civil date (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms",
        // civil_from_days): years start on March 1, eras have 400 years or 146,097 days.
        let z = days + 719_468;
        let era = z.div_euclid(146_097);
        let day_of_era = z.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1_000)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a text is not a name, id, digest or cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: {rule}")]
pub struct BadText {
    /// What was given, at most 200 characters of it.
    pub text: String,
    /// What it should be, with its article: `a name`.
    pub what: &'static str,
    /// What it has to look like.
    pub rule: &'static str,
}

fn bad(text: &str, what: &'static str, rule: &'static str) -> BadText {
    BadText { text: text.chars().take(200).collect(), what, rule }
}

/// Serializes a type as its `Display` and reads it back with its `FromStr`.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// The name of a model, dataset or endpoint, chosen by the user.
///
/// 1 to 128 characters of `A-Z a-z 0-9 . _ -`, the first a letter or digit: safe in a path, a URL, a
/// metric label and a log line without quoting.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Name, BadText> {
        let fits = text.len() <= 128
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !fits {
            return Err(bad(
                text,
                "a name",
                "1 to 128 characters of A-Z a-z 0-9 . _ -, the first a letter or digit",
            ));
        }
        Ok(Name(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
serde_as_text!(Name);

/// Counts the uploads under a name, or the changes of an endpoint: 1, 2, 3 … A number is never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u32);

impl FromStr for Version {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Version, BadText> {
        let digits = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        match text.parse() {
            Ok(number) if digits => Ok(Version(number)),
            _ => Err(bad(text, "a version", "a whole number from 1, without leading zeros")),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One version of one name: `resnet18@3`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pinned {
    /// The name.
    pub name: Name,
    /// The version.
    pub version: Version,
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// A name and perhaps a version; without it, the newest. Written `resnet18` or `resnet18@3`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The name.
    pub name: Name,
    /// The version; `None` is the newest that is not deleted.
    pub version: Option<Version>,
}

impl From<Pinned> for Wanted {
    fn from(pinned: Pinned) -> Wanted {
        Wanted { name: pinned.name, version: Some(pinned.version) }
    }
}

impl From<Name> for Wanted {
    fn from(name: Name) -> Wanted {
        Wanted { name, version: None }
    }
}

impl FromStr for Wanted {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Wanted, BadText> {
        match text.split_once('@') {
            None => Ok(Wanted { name: text.parse()?, version: None }),
            Some((name, version)) => Ok(Wanted { name: name.parse()?, version: Some(version.parse()?) }),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            None => self.name.fmt(f),
            Some(version) => write!(f, "{}@{version}", self.name),
        }
    }
}
serde_as_text!(Wanted);

/// SHA-256 of some bytes. Shown as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Digest {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Digest, BadText> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| bad(text, "a SHA-256 digest", "64 hexadecimal digits"))?;
        Ok(Digest(bytes))
    }
}
serde_as_text!(Digest);

/// An id made here: a prefix and a UUID version 7, so ids of one process sort by age.
macro_rules! id {
    ($(#[$doc:meta])* $type:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(uuid::Uuid);

        impl $type {
            /// A new one.
            #[must_use]
            #[expect(clippy::new_without_default, reason = "a default id would not be the same twice")]
            pub fn new() -> $type {
                $type(uuid::Uuid::now_v7())
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}"), self.0.simple())
            }
        }

        impl FromStr for $type {
            type Err = BadText;
            fn from_str(text: &str) -> Result<$type, BadText> {
                let digits = text.strip_prefix(concat!($prefix, "_"));
                // `try_parse` also takes hyphens, braces and upper case: one spelling is enough.
                match digits.map(uuid::Uuid::try_parse) {
                    Some(Ok(uuid)) if $type(uuid).to_string() == text => Ok($type(uuid)),
                    _ => Err(bad(text, $what, concat!($prefix, "_ and 32 lower-case hexadecimal digits"))),
                }
            }
        }
        serde_as_text!($type);
    };
}

id!(
    /// Names a model version.
    ModelId, "model", "a model id"
);
id!(
    /// Names a dataset version.
    DatasetId, "data", "a dataset id"
);
id!(
    /// Names a job.
    JobId, "job", "a job id"
);
id!(
    /// Names an artifact.
    ArtifactId, "art", "an artifact id"
);
id!(
    /// Names the hold of somebody who writes a blob.
    HoldId, "hold", "the id of a hold"
);
id!(
    /// Names a line of the audit log.
    AuditId, "audit", "the id of an audit line"
);
id!(
    /// Names an upload that comes in parts.
    UploadId, "upload", "the id of an upload"
);

/// A float model as uploaded. Never changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// Its id; listings sort by it.
    pub id: ModelId,
    /// The name it was uploaded under.
    pub name: Name,
    /// Which upload under the name.
    pub version: Version,
    /// Of the file.
    pub sha256: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// What `engine::pipeline::inspect::inspect` found: inputs, outputs, operators.
    pub info: Value,
    /// When it was uploaded first.
    pub created_at: Timestamp,
}

impl Model {
    /// Its name and version.
    #[must_use]
    pub fn pinned(&self) -> Pinned {
        Pinned { name: self.name.clone(), version: self.version }
    }
}

/// Calibration or evaluation inputs as uploaded. Never changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dataset {
    /// Its id; listings sort by it.
    pub id: DatasetId,
    /// The name it was uploaded under.
    pub name: Name,
    /// Which upload under the name.
    pub version: Version,
    /// Of the file.
    pub sha256: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// How many samples it holds.
    pub samples: u64,
    /// What `engine::pipeline::inspect::inspect_dataset` found: arrays, types, shapes.
    pub info: Value,
    /// When it was uploaded first.
    pub created_at: Timestamp,
}

impl Dataset {
    /// Its name and version.
    #[must_use]
    pub fn pinned(&self) -> Pinned {
        Pinned { name: self.name.clone(), version: self.version }
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

/// Whether the end of a job was told to whom its webhook names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookState {
    /// An attempt is due, or will be.
    Pending,
    /// It was told.
    Delivered,
    /// It was tried often enough.
    GivenUp,
}

impl WebhookState {
    /// Every state.
    pub const ALL: [WebhookState; 3] =
        [WebhookState::Pending, WebhookState::Delivered, WebhookState::GivenUp];

    /// As shown in the API and the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            WebhookState::Pending => "pending",
            WebhookState::Delivered => "delivered",
            WebhookState::GivenUp => "given_up",
        }
    }
}

impl FromStr for WebhookState {
    type Err = BadText;
    fn from_str(text: &str) -> Result<WebhookState, BadText> {
        WebhookState::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| bad(text, "a webhook state", "pending, delivered or given_up"))
    }
}

/// How far the message about the end of a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Where it stands.
    pub state: WebhookState,
    /// Attempts that were begun.
    pub attempts: u32,
    /// Status of the last answer; `None` where there was none.
    pub last_status: Option<u16>,
}

/// One attempt to tell the end of a job.
#[derive(Clone, Debug)]
pub struct WebhookClaim {
    /// The job, which has ended.
    pub job: Job,
    /// Which attempt this is, from 1.
    pub attempt: u32,
}

/// What came of an attempt to tell the end of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookOutcome {
    /// It was told.
    Delivered,
    /// It was not; the next attempt is due after so long.
    Retry(Duration),
    /// It was not, and there will be no further attempt.
    GivenUp,
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

/// Float against INT8 on the evaluation data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccuracySummary {
    /// `top1` or `agreement`.
    pub metric: String,
    /// The float model's figure, 0 to 1.
    pub float: f64,
    /// The INT8 model's figure, 0 to 1.
    pub int8: f64,
    /// `int8 − float`.
    pub delta: f64,
    /// Share of samples on which both choose the same class.
    pub agreement: f64,
    /// Signal to quantization noise of the first output, in dB.
    pub sqnr_db: f64,
    /// Number of samples.
    pub samples: u64,
}

/// Median time of one run at batch 1, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// The float model.
    pub float_ms: f64,
    /// The INT8 model.
    pub int8_ms: f64,
}

/// The INT8 product of a job. Never changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Artifact {
    /// Its id; listings sort by it.
    pub id: ArtifactId,
    /// The job that made it.
    pub job: JobId,
    /// The float model it was made from.
    pub model: Pinned,
    /// Of the QDQ ONNX file.
    pub sha256: Digest,
    /// Size of the QDQ ONNX file.
    pub bytes: u64,
    /// `bytes` over the bytes of the float model.
    pub size_ratio: f64,
    /// Digests of what went in, the recipe in full, versions.
    pub manifest: Value,
    /// Float against INT8.
    pub accuracy: AccuracySummary,
    /// Float against INT8.
    pub latency: LatencySummary,
    /// Why the gate of the recipe is not kept; `None` where it is.
    pub gate_failure: Option<String>,
    /// Blob of the report as JSON.
    pub report: Digest,
    /// Blob of the report as a page.
    pub report_html: Digest,
    /// Blob of the statistics of the calibration; `None` where it was made before they were kept.
    pub statistics: Option<Digest>,
    /// When it was committed.
    pub created_at: Timestamp,
}

impl Artifact {
    /// In what numbers it computes, by its manifest.
    #[must_use]
    pub fn precision(&self) -> Precision {
        Precision::of_artifact(Precision::deserialize(&self.manifest["precision"]).ok())
    }
}

/// In what numbers a version of an endpoint computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// The float model.
    Fp32,
    /// An artifact with half as many bits.
    Fp16,
    /// Any other artifact.
    Int8,
}

impl Precision {
    /// As shown in the API and the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Int8 => "int8",
        }
    }

    /// That of an artifact; the manifests of old ones do not tell.
    fn of_artifact(told: Option<Precision>) -> Precision {
        told.unwrap_or(Precision::Int8)
    }
}

/// One version of an endpoint: what it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointVersion {
    /// Its number in the endpoint; not the version of the model.
    pub version: Version,
    /// The artifact that is served; `None` serves the float `model` itself.
    pub artifact: Option<ArtifactId>,
    /// What the manifest of the artifact tells.
    pub artifact_precision: Option<Precision>,
    /// The float model: the twin of the artifact, or what is served.
    pub model: Pinned,
}

impl EndpointVersion {
    /// In what numbers it computes.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.artifact.map_or(Precision::Fp32, |_| Precision::of_artifact(self.artifact_precision))
    }
}

/// A share of the requests that name no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Who answers.
    pub version: Version,
    /// Percent; those of an endpoint add up to 100.
    pub weight: u32,
}

/// How an endpoint serves. Fields that are not set leave it to the settings of the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointSettings {
    /// Runs a part of the requests in float as well, and compares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// When a version loses its requests to another without anybody asking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
    /// How requests are run together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<Batching>,
    /// Requests that may wait at a version, 1 to 100,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_limit: Option<u32>,
    /// Runs of a version at the same time, 1 to 1,024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Whether the server is ready only when the default version answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Runs of made-up samples before a version is ready, 1 to 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<u32>,
}

/// See [`EndpointSettings::shadow`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shadow {
    /// Part of the requests, 0 to 1.
    pub fraction: f64,
    /// Whether the compared requests also add to statistics (histograms, no samples) that a job can take ranges from.
    #[serde(default)]
    pub statistics: bool,
}

/// See [`EndpointSettings::rollback`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// Least agreement with the float twin over the recent comparisons, 0 to 1; needs `shadow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_agreement: Option<f64>,
    /// Largest part of the recent requests that may end in a fault of the server, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_error_ratio: Option<f64>,
    /// So many comparisons or requests there must be before either is judged, 1 to 1,000,000.
    #[serde(default = "min_requests")]
    pub min_requests: u32,
}

fn min_requests() -> u32 {
    50
}

/// See [`EndpointSettings::batching`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// Samples that run together at most, 1 to 1,024; 1 is no batching.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Microseconds that a sample waits for others, 0 to 1,000,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_us: Option<u32>,
}

/// New values of [`EndpointSettings`], field by field: `None` keeps, `Some(None)` takes back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SettingsPatch {
    /// See [`EndpointSettings::shadow`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Option<Shadow>>,
    /// See [`EndpointSettings::rollback`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Option<Rollback>>,
    /// See [`EndpointSettings::batching`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub batching: Option<Option<Batching>>,
    /// See [`EndpointSettings::queue_limit`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub queue_limit: Option<Option<u32>>,
    /// See [`EndpointSettings::concurrency`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Option<u32>>,
    /// See [`EndpointSettings::required`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub required: Option<Option<bool>>,
    /// See [`EndpointSettings::warm_up`].
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<Option<u32>>,
}

/// A field that stands there, `null` or not.
///
/// # Errors
/// As `T`.
pub fn given<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(from).map(Some)
}

/// Names an API key: 16 lower-case hexadecimal digits, which are no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for KeyId {
    type Err = BadText;
    fn from_str(text: &str) -> Result<KeyId, BadText> {
        let mut bytes = [0; 8];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if KeyId(bytes).to_string() == text => Ok(KeyId(bytes)),
            _ => Err(bad(text, "the id of a key", "16 lower-case hexadecimal digits")),
        }
    }
}
serde_as_text!(KeyId);

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Look: lists, reports, downloads, figures, pages.
    Read,
    /// Run a model.
    Infer,
    /// Upload, start jobs, change endpoints, delete.
    Write,
    /// Everything, and load, unload, and change settings of the server.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Scope; 4] = [Scope::Read, Scope::Infer, Scope::Write, Scope::Admin];

    /// As shown in the API, the database and the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Infer => "infer",
            Scope::Write => "write",
            Scope::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Some scopes, at least one. Written `read,write`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scopes(Vec<Scope>);

impl Scopes {
    /// Whether they allow what needs `scope`: `admin` allows everything.
    #[must_use]
    pub fn allow(&self, scope: Scope) -> bool {
        self.0.contains(&scope) || self.0.contains(&Scope::Admin)
    }
}

impl FromStr for Scopes {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Scopes, BadText> {
        let named = |name: &str| Scope::ALL.into_iter().find(|scope| scope.as_str() == name.trim());
        let scopes: Option<Vec<Scope>> = text.split(',').map(named).collect();
        let rule = "one or more of read, infer, write and admin, with commas between them";
        let mut scopes = scopes.ok_or_else(|| bad(text, "a list of scopes", rule))?;
        scopes.sort_unstable();
        scopes.dedup();
        Ok(Scopes(scopes))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|scope| scope.as_str()).collect();
        f.write_str(&names.join(","))
    }
}
serde_as_text!(Scopes);

/// Lets whoever has its secret do something. The secret itself is kept nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Its id: the part of the key that is no secret.
    pub id: KeyId,
    /// What people call it. Several may have the same, as when one replaces another.
    pub name: Name,
    /// Of the bytes of the secret.
    #[serde(skip)]
    pub sha256: Digest,
    /// What it may do.
    pub scopes: Scopes,
    /// Requests a second; `None` is no limit of its own.
    pub rate: Option<u32>,
    /// Bytes of models and datasets that it may have stored; `None` is no limit of its own.
    pub quota: Option<u64>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A key to be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its id.
    pub id: KeyId,
    /// What people call it.
    pub name: Name,
    /// Of the bytes of the secret.
    pub sha256: Digest,
    /// What it may do.
    pub scopes: Scopes,
    /// Requests a second; `None` is no limit of its own.
    pub rate: Option<u32>,
    /// Bytes of models and datasets that it may have stored; `None` is no limit of its own.
    pub quota: Option<u64>,
    /// How long it is taken, from now on; `None` is until it is revoked.
    pub lifetime: Option<Duration>,
}

/// A request that changed something, or tried to. Holds no body and no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAudit {
    /// The key and its name; `None` where nobody was asked for one.
    pub key: Option<(KeyId, Name)>,
    /// The method; `gRPC` for a call.
    pub method: String,
    /// The template of the route.
    pub route: String,
    /// The path as it came, without a query.
    pub path: String,
    /// What was made, where something was.
    pub record: Option<String>,
    /// The status of the answer.
    pub outcome: String,
    /// Of the request.
    pub request_id: String,
}

/// The same, on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its id; listings sort by it.
    pub id: AuditId,
    /// When it was answered.
    pub at: Timestamp,
    /// What.
    pub what: NewAudit,
}

/// Whose key stores something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The key.
    pub key: KeyId,
    /// Bytes of models and datasets that it may have stored; `None` is no limit of its own.
    pub quota: Option<u64>,
}

/// What shall change of an endpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointChange {
    /// Adds a version: the artifact, or the float model where there is none. Its number is one more than any the name
    /// ever had.
    pub add: Option<(Option<ArtifactId>, Pinned)>,
    /// Percent of the requests that the added version gets, 0 to 100; the others share the rest as before.
    pub weight: Option<u32>,
    /// All routes anew. Versions that are not named get no requests but those that name them.
    pub routes: Option<Vec<Route>>,
    /// Settings.
    pub settings: SettingsPatch,
    /// Who changes it: `api`, `job`, `rollback`, or the key that was used.
    pub by: Cow<'static, str>,
    /// Why, where there is more to say.
    pub reason: Option<String>,
}

/// One change that an endpoint has seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointRecord {
    /// The revision that it made.
    pub revision: u64,
    /// When.
    pub at: Timestamp,
    /// See [`EndpointChange::by`].
    pub by: String,
    /// What was changed: the fields of the change, and the routes that came of it.
    pub change: Value,
    /// See [`EndpointChange::reason`].
    pub reason: Option<String>,
}

/// A name under `/v2/models/` that serves versions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Endpoint {
    /// The name.
    pub name: Name,
    /// What is served, by ascending number; 1 to [`ENDPOINT_VERSIONS_MAX`].
    pub versions: Vec<EndpointVersion>,
    /// Which of them is meant when the client names none and only one can be: the one with the most requests.
    pub default_version: Version,
    /// Who answers requests that name no version; only weights above 0, adding up to 100.
    pub routes: Vec<Route>,
    /// How it serves.
    pub settings: EndpointSettings,
    /// Goes up with every change: the ETag. Not reset when the endpoint is deleted and made again.
    pub revision: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it changed last.
    pub updated_at: Timestamp,
}

/// So many versions an endpoint has at most. When one is added, those without requests go, except the way back: the
/// version that answered before, so that a swap can be taken back without loading anything.
pub const ENDPOINT_VERSIONS_MAX: usize = 4;

/// What an endpoint has to look like for a change to be made (`If-Match`, `If-None-Match`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anything, or nothing.
    Any,
    /// It must not exist.
    Absent,
    /// It must exist.
    Present,
    /// It must have this revision.
    Revision(u64),
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expect::Any => f.write_str("anything"),
            Expect::Absent => f.write_str("that it does not exist"),
            Expect::Present => f.write_str("that it exists"),
            Expect::Revision(revision) => write!(f, "revision {revision}"),
        }
    }
}

/// What an upload becomes. The blob must be there already.
#[derive(Clone, Debug)]
pub struct NewModel {
    /// The name.
    pub name: Name,
    /// Of the file.
    pub sha256: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// What `inspect` found.
    pub info: Value,
    /// Whose key it counts for; `None` where nobody was asked for one.
    pub owner: Option<Owner>,
}

/// What an upload becomes. The blob must be there already.
#[derive(Clone, Debug)]
pub struct NewDataset {
    /// The name.
    pub name: Name,
    /// Of the file.
    pub sha256: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// How many samples it holds.
    pub samples: u64,
    /// What `inspect_dataset` found.
    pub info: Value,
    /// Whose key it counts for; `None` where nobody was asked for one.
    pub owner: Option<Owner>,
}

/// A record, and whether this call made it: an upload of bytes that the name already has makes nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Created<T> {
    /// The record.
    pub record: T,
    /// `false` where it was there before.
    pub new: bool,
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
    /// Refuse with [`Error::QueueFull`] where so many jobs are queued.
    pub queued_max: u64,
}

/// What a worker has made. The blobs must be there already.
#[derive(Clone, Debug)]
pub struct NewArtifact {
    /// Its id.
    pub id: ArtifactId,
    /// Of the QDQ ONNX file.
    pub sha256: Digest,
    /// Size of the QDQ ONNX file.
    pub bytes: u64,
    /// `bytes` over the bytes of the float model.
    pub size_ratio: f64,
    /// Digests of what went in, the recipe in full, versions.
    pub manifest: Value,
    /// Float against INT8.
    pub accuracy: AccuracySummary,
    /// Float against INT8.
    pub latency: LatencySummary,
    /// Why the gate of the recipe is not kept; `None` where it is.
    pub gate_failure: Option<String>,
    /// Blob of the report as JSON.
    pub report: Digest,
    /// Blob of the report as a page.
    pub report_html: Digest,
    /// Blob of the statistics of the calibration.
    pub statistics: Digest,
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

/// Which page of a listing. Newest first.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Begin after this record.
    pub after: Option<Cursor>,
    /// At most so many records, 1 to [`Page::LIMIT_MAX`]; other numbers are moved into that range.
    pub limit: u32,
}

impl Page {
    /// At most so many records come at once.
    pub const LIMIT_MAX: u32 = 200;

    /// The first `limit` records.
    #[must_use]
    pub fn first(limit: u32) -> Page {
        Page { after: None, limit }
    }
}

/// A part of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice<T> {
    /// The records, newest first.
    pub items: Vec<T>,
    /// Where the next part begins; `None` at the end.
    pub next: Option<Cursor>,
}

/// A place in a listing. Opaque to clients: keep it and hand it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Of the last record seen.
    pub(super) created_at: Timestamp,
    /// Of the last record seen.
    pub(super) id: String,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(format!("{}/{}", self.created_at.0, self.id)))
    }
}

impl FromStr for Cursor {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Cursor, BadText> {
        let parse = || {
            let plain = String::from_utf8(hex::decode(text).ok()?).ok()?;
            let (created_at, id) = plain.split_once('/')?;
            Some(Cursor { created_at: Timestamp(created_at.parse().ok()?), id: id.to_owned() })
        };
        parse().ok_or_else(|| bad(text, "a cursor", "the `next_cursor` of an earlier answer, unchanged"))
    }
}
serde_as_text!(Cursor);

/// Which jobs to list; `None` takes all.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// In this state.
    pub state: Option<JobState>,
    /// Of any version of this model.
    pub model: Option<Name>,
}

/// Which artifacts to list; `None` takes all.
#[derive(Clone, Debug, Default)]
pub struct ArtifactFilter {
    /// Made from any version of this model.
    pub model: Option<Name>,
    /// Made by this job.
    pub job: Option<JobId>,
}

/// Figures for the metrics, all of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Census {
    /// Number of jobs, in the order of [`JobState::ALL`].
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

/// What kind of record an error speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`Model`].
    Model,
    /// A [`Dataset`].
    Dataset,
    /// A [`Job`].
    Job,
    /// An [`Artifact`].
    Artifact,
    /// An [`Endpoint`].
    Endpoint,
    /// A [`Key`].
    Key,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Model => "model",
            Kind::Dataset => "dataset",
            Kind::Job => "job",
            Kind::Artifact => "artifact",
            Kind::Endpoint => "endpoint",
            Kind::Key => "key",
        })
    }
}

/// Why the catalog could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such record, or it was deleted.
    #[error("no {kind} `{id}`")]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// Its name or id.
        id: String,
    },
    /// The record cannot be deleted.
    #[error("{kind} `{id}` is served by endpoint `{endpoint}`")]
    InUse {
        /// What was to be deleted.
        kind: Kind,
        /// Its name or id.
        id: String,
        /// What needs it.
        endpoint: Name,
    },
    /// The endpoint is not as the caller expected.
    #[error("endpoint `{name}`: expected {expected}, {}", revision_text(*.got))]
    RevisionMismatch {
        /// The endpoint.
        name: Name,
        /// What the caller expected.
        expected: Expect,
        /// What it has; `None` where it does not exist.
        got: Option<u64>,
    },
    /// The versions given for an endpoint cannot be served.
    #[error("endpoint `{name}`: {reason}")]
    BadEndpoint {
        /// The endpoint.
        name: Name,
        /// What does not fit.
        reason: String,
    },
    /// The worker does not hold the attempt any more: it must stop and throw away what it made.
    #[error("attempt {attempt} of job `{job}` has lost its lease")]
    LeaseLost {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: u32,
    },
    /// The job has ended otherwise.
    #[error("job `{job}` is {state} already")]
    AlreadyFinished {
        /// The job.
        job: JobId,
        /// How it ended.
        state: JobState,
    },
    /// The job has not ended, so it cannot be deleted.
    #[error("job `{job}` is {state}: cancel it, and delete it when it has ended")]
    NotFinished {
        /// The job.
        job: JobId,
        /// Where it stands.
        state: JobState,
    },
    /// The key was used before for another request.
    #[error("idempotency key `{key}` was used for another request")]
    KeyReused {
        /// The key.
        key: String,
    },
    /// The key has stored as much as it may.
    #[error(
        "key `{key}` may store {quota} bytes; {used} are used, and this takes {asked}: delete what is not needed"
    )]
    QuotaExceeded {
        /// The key.
        key: KeyId,
        /// Bytes that it may have stored.
        quota: u64,
        /// Bytes of its models and datasets that are not deleted, and of its uploads that are not finished.
        used: u64,
        /// Bytes of what shall come to them.
        asked: u64,
    },
    /// Too many jobs wait.
    #[error("{limit} jobs are queued already")]
    QueueFull {
        /// The limit.
        limit: u64,
    },
    /// The database has no room left.
    #[error("database: {tried}")]
    Full {
        /// What was tried.
        tried: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database does not answer, for now.
    #[error("database: {tried}")]
    Unavailable {
        /// What was tried.
        tried: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database did not do it.
    #[error("database: {tried}")]
    Database {
        /// What was tried.
        tried: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// An error and what caused it, in one line: for the log, and for whoever runs the server. A cause that the text before
/// it ends with already is not said again.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// What a caught panic said: for the log.
#[must_use]
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "no text",
    }
}

fn revision_text(got: Option<u64>) -> String {
    got.map_or_else(|| "there is none".to_owned(), |revision| format!("it has revision {revision}"))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_each_cause_once() {
        fn because(tried: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
            Error::Database { tried: tried.to_owned(), source: source.into() }
        }
        for (error, want) in [
            (because("a", because("b", "no room")), "database: a: database: b: no room"),
            (because("a: no room", "no room"), "database: a: no room"),
            (because("a: no room", because("a: no room", "no room")), "database: a: no room"),
        ] {
            assert_eq!(chain(&error), want);
        }
    }

    #[test]
    fn moments_are_shown_as_rfc_3339() {
        for (milliseconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
            (4_107_542_400_001, "2100-03-01T00:00:00.001Z"),
        ] {
            assert_eq!(Timestamp(milliseconds).to_string(), text);
        }
    }

    #[test]
    fn names_are_safe_everywhere() {
        let long = "a".repeat(128);
        for text in ["a", "9", "ResNet-18_v1.5", &long] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
        let longer = "a".repeat(129);
        for text in ["", ".", "..", "-a", "_a", "a b", "a/b", "a@1", "ä", "a\n", &longer] {
            assert!(text.parse::<Name>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ids_versions_and_digests_have_one_spelling() {
        let id = JobId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
        let text = id.to_string();
        assert!(text.to_uppercase().parse::<JobId>().is_err());
        assert!(text.replace("job_", "art_").parse::<JobId>().is_err());
        for text in ["0", "01", "+1", "-1", "", "4294967296", "1.0"] {
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
        assert_eq!("m@7".parse::<Wanted>().unwrap().version, Some(Version(7)));
        for text in ["m@", "@1", "m@1@2"] {
            assert!(text.parse::<Wanted>().is_err(), "{text:?}");
        }
        let digest = Digest([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("ab".parse::<Digest>().is_err());
        assert_eq!("00ff00ff00ff00ff".parse::<KeyId>().unwrap().to_string(), "00ff00ff00ff00ff");
        for text in ["", "00", "00FF00FF00FF00FF", "00ff00ff00ff00ff00"] {
            assert!(text.parse::<KeyId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn scopes_are_named_and_only_admin_includes_others() {
        let scopes = |text: &str| text.parse::<Scopes>();
        assert_eq!(scopes("write, read,write").unwrap().to_string(), "read,write");
        for text in ["", "read,", "root", "READ"] {
            assert!(scopes(text).is_err(), "{text:?}");
        }
        let allowed = |text: &str| Scope::ALL.map(|scope| scopes(text).unwrap().allow(scope));
        assert_eq!(allowed("read"), [true, false, false, false]);
        assert_eq!(allowed("infer,write"), [false, true, true, false]);
        assert_eq!(allowed("admin"), [true; 4]);
    }
}
