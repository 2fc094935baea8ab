//! The INT8 product of a job, and how it compares with the float model.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::endpoint::Precision;
use super::names::{ArtifactId, Digest, JobId, Name, Pinned};
use super::time::Timestamp;

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

/// Which artifacts to list; `None` takes all.
#[derive(Clone, Debug, Default)]
pub struct ArtifactFilter {
    /// Made from any version of this model.
    pub model: Option<Name>,
    /// Made by this job.
    pub job: Option<JobId>,
}
