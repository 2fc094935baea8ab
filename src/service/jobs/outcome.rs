//! What came of an attempt, as a record: an artifact or an error of the job. Knows neither leases nor the queue.

use crate::engine::pipeline::{self, Outcome};
use crate::service::store::blobs::Pin;
use crate::service::store::{
    self, AccuracySummary, ArtifactId, JobError, JobErrorCode, LatencySummary, NewArtifact, chain,
};

pub(super) fn new_artifact(blobs: &[Pin; 4], outcome: &Outcome) -> NewArtifact {
    let [artifact, report, report_html, statistics] = blobs;
    let accuracy = &outcome.accuracy;
    NewArtifact {
        id: ArtifactId::new(),
        sha256: artifact.digest(),
        bytes: artifact.bytes(),
        size_ratio: finite(outcome.size_ratio),
        manifest: outcome.manifest.clone(),
        accuracy: AccuracySummary {
            metric: accuracy.metric.clone(),
            float: finite(accuracy.float),
            int8: finite(accuracy.int8),
            delta: finite(accuracy.delta),
            agreement: finite(accuracy.agreement),
            sqnr_db: finite(accuracy.sqnr_db),
            samples: accuracy.samples,
        },
        latency: LatencySummary {
            float_ms: finite(outcome.latency.float_ms),
            int8_ms: finite(outcome.latency.int8_ms),
        },
        gate_failure: outcome.gate_failure.clone(),
        report: report.digest(),
        report_html: report_html.digest(),
        statistics: statistics.digest(),
    }
}

/// JSON has no infinity and no NaN, and would turn them into `null`: an INT8 output that equals the float one
/// has an infinite SQNR, shown as 999 dB. NaN becomes 0.
fn finite(value: f64) -> f64 {
    match value {
        value if value.is_nan() => 0.0,
        value if value.is_infinite() => 999f64.copysign(value),
        value => value,
    }
}

pub(super) fn job_error(error: &pipeline::Error) -> JobError {
    let (code, retriable) = match error {
        // The engine refuses by name («Resize with mode=cubic is not supported») and has no variant for it.
        pipeline::Error::Model(reason) if reason.contains("not supported") => {
            (JobErrorCode::UnsupportedOp, false)
        }
        pipeline::Error::Model(_) => (JobErrorCode::BadModel, false),
        pipeline::Error::Data { .. } | pipeline::Error::TooLong(_) => (JobErrorCode::BadData, false),
        pipeline::Error::Recipe(_) => (JobErrorCode::BadRecipe, false),
        pipeline::Error::Io { .. } => (JobErrorCode::Storage, true),
        // Nobody asked it to stop.
        pipeline::Error::Cancelled => (JobErrorCode::Internal, false),
    };
    JobError { code, message: error.to_string(), retriable }
}

pub(super) fn gone(error: store::Error, code: JobErrorCode) -> JobError {
    match error {
        store::Error::NotFound { kind, id } => JobError {
            code,
            message: format!("{kind} `{id}` was deleted before the job began"),
            retriable: false,
        },
        error => storage(&error),
    }
}

pub(super) fn storage(error: &dyn std::error::Error) -> JobError {
    JobError { code: JobErrorCode::Storage, message: chain(error), retriable: true }
}
