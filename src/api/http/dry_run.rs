//! `"dry_run": true`: what a job would do, told at once. Nothing is queued.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::error::Problem;
use crate::api::http::{Shared, uploads};
use crate::engine::pipeline::dry_run::{self, DryRun};
use crate::engine::pipeline::{self, Named, Request};
use crate::service::store::Wanted;
use crate::service::store::blobs::Pin;

/// What a job would do.
#[derive(Serialize, ToSchema)]
pub(crate) struct DryRunView {
    /// Always `true`: no job was made.
    dry_run: bool,
    /// The float model, `NAME@VERSION`.
    model: String,
    /// Of the model file, 64 hexadecimal digits.
    model_sha256: String,
    /// The recipe with every default filled in.
    recipe: serde_json::Value,
    /// How many nodes compute on integers, on reals, or move data only.
    coverage: CoverageView,
    /// The nodes that would compute on integers.
    integer: Vec<IntegerNodeView>,
    /// The nodes that would compute on reals, with the reasons.
    float: Vec<FloatNodeView>,
    /// Predicted size of the artifact in bytes, exact but for a few.
    artifact_bytes: u64,
    /// `artifact_bytes` over the bytes of the model.
    size_ratio: f64,
    /// Multiply-accumulates of one run at batch 1; `null` where only a run tells.
    macs: Option<u64>,
    /// The share of them on integers, 0 to 1.
    integer_share: Option<f64>,
    /// Predicted times; `null` where only a run tells.
    seconds: Option<SecondsView>,
    /// Predicted peak of the job's memory in bytes, within a factor of about two; `null` where only a run tells.
    memory_bytes: Option<u64>,
    /// What the predictions rest on.
    basis: String,
}

/// How many nodes compute on what.
#[derive(Serialize, ToSchema)]
pub(crate) struct CoverageView {
    /// On codes.
    integer: usize,
    /// On reals.
    float: usize,
    /// Nodes that move data.
    data: usize,
}

/// A node that would compute on integers.
#[derive(Serialize, ToSchema)]
pub(crate) struct IntegerNodeView {
    /// Its name.
    node: String,
    /// Its operator.
    op: &'static str,
    /// What becomes of it.
    becomes: String,
}

/// A node that would compute on reals.
#[derive(Serialize, ToSchema)]
pub(crate) struct FloatNodeView {
    /// Its name.
    node: String,
    /// Its operator.
    op: &'static str,
    /// Why.
    reason: String,
}

/// Predicted times, in seconds.
#[derive(Serialize, ToSchema)]
pub(crate) struct SecondsView {
    /// One run of the float model at batch 1.
    float_run: f64,
    /// One run of the INT8 model at batch 1.
    int8_run: f64,
    /// The float model runs over the calibration data.
    calibrate: f64,
    /// Both run over the evaluation data.
    evaluate: f64,
}

impl DryRunView {
    fn new(model: String, run: DryRun) -> DryRunView {
        let integer =
            |row: dry_run::IntegerRow| IntegerNodeView { node: row.node, op: row.op, becomes: row.becomes };
        DryRunView {
            dry_run: true,
            model,
            model_sha256: run.model_sha256,
            recipe: serde_json::to_value(run.recipe).unwrap_or_default(),
            coverage: CoverageView {
                integer: run.coverage.integer,
                float: run.coverage.float,
                data: run.coverage.data,
            },
            integer: run.integer.into_iter().map(integer).collect(),
            float: run
                .float
                .into_iter()
                .map(|row| FloatNodeView { node: row.node, op: row.op, reason: row.reason })
                .collect(),
            artifact_bytes: run.artifact_bytes,
            size_ratio: run.size_ratio,
            macs: run.macs,
            integer_share: run.integer_share,
            seconds: run.seconds.map(|s| SecondsView {
                float_run: s.float_run,
                int8_run: s.int8_run,
                calibrate: s.calibrate,
                evaluate: s.evaluate,
            }),
            memory_bytes: run.memory_bytes,
            basis: run.basis,
        }
    }
}

/// What the job would do.
pub(crate) async fn answer(
    shared: &Shared,
    model: &Wanted,
    data: [Option<&Wanted>; 2],
    recipe: serde_json::Value,
) -> Result<Response, Problem> {
    let model = shared.catalog.model(model).await?;
    let file = shared.blobs.pin(model.sha256).await?;
    let mut pins: [Option<Pin>; 2] = [None, None];
    for (pin, wanted) in pins.iter_mut().zip(data) {
        if let Some(wanted) = wanted {
            *pin = Some(shared.blobs.pin(shared.catalog.dataset(wanted).await?.sha256).await?);
        }
    }
    let memory_bytes_max = shared.limits.model_memory_bytes;
    let threads = shared.limits.job_threads;
    let run = uploads::blocking(move || {
        let [calibration, evaluation] = &pins;
        let request = Request {
            model: file.path(),
            calibration: calibration.as_ref().map(Pin::path),
            statistics: None,
            evaluation: evaluation.as_ref().map(Pin::path),
            recipe: &recipe,
            threads,
            named: Named::default(),
            beside: false,
        };
        pipeline::dry_run::dry_run(&request, memory_bytes_max)
    });
    let run = run.await?;
    Ok(Json(DryRunView::new(model.pinned().to_string(), run)).into_response())
}
