//! Jobs: create, list, find, cancel, and their progress as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::Interval;
use utoipa::{IntoParams, ToSchema};

use crate::api::access::{By, still_admitted};
use crate::api::error::Problem;
use crate::api::http::artifacts::{AccuracyView, LatencyView};
use crate::api::http::dry_run::DryRunView;
use crate::api::http::fields::Query;
use crate::api::http::{
    Listing, ProblemBody, Shared, dry_run, etag, header_text, listing, located, page, parse_json, read_body,
    uploads,
};
use crate::engine::pipeline;
use crate::service::jobs::{Calibration, JobSpec, webhooks};
use crate::service::store::{
    Digest, IdempotencyKey, Job, JobFilter, JobId, JobKind, JobState, Name, Pinned, Scope, Timestamp, Wanted,
};

/// What is to be done.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobRequest {
    /// `quantize`.
    #[schema(value_type = String, example = "quantize")]
    kind: JobKind,
    /// The float model: `NAME` is the newest version, `NAME@2` that one.
    #[schema(value_type = String)]
    model: Wanted,
    /// The dataset that ranges are taken from; not needed where the model comes quantized, is not completed and there is
    /// an `evaluation`. Deleted when the job has ended, unless `keep` says otherwise or the request was at fault
    /// (`bad_recipe`, `bad_data`, `bad_model`, `unsupported_op`).
    #[schema(value_type = Option<String>)]
    calibration: Option<Wanted>,
    /// In place of `calibration`: an earlier job on the same version of the model. Its statistics are used, the data are
    /// not needed and the model does not run over them. Weights are rounded to the nearest code then.
    #[schema(value_type = Option<String>)]
    calibration_of: Option<JobId>,
    /// The dataset that float and INT8 are compared on; without it, `calibration`, or what the job of `calibration_of`
    /// was compared on.
    #[schema(value_type = Option<String>)]
    evaluation: Option<Wanted>,
    /// Whether the calibration data stay when the job has ended. One job that says so keeps them for all.
    #[serde(default)]
    keep: bool,
    /// How to quantize; without it, the defaults. `docs/QUANTIZATION.md` has the fields.
    #[serde(default)]
    recipe: Option<serde_json::Map<String, serde_json::Value>>,
    /// The endpoint under `/v2/models/` that serves the artifact on success.
    #[schema(value_type = Option<String>)]
    endpoint: Option<Name>,
    /// Who is told when the job has ended, whatever its state: a signed `POST`, at least once (`docs/API.md`). Needs the
    /// setting `webhooks.secret`.
    #[schema(example = "https://ci.example/hooks/octet")]
    webhook_url: Option<String>,
    /// At most so many attempts.
    attempts_max: Option<u32>,
    /// Only tell what the job would do: nodes, size, time and memory. No job is made; `calibration` is not needed.
    #[serde(default)]
    dry_run: bool,
}

/// One unit of queued work.
#[derive(Serialize, ToSchema)]
pub(crate) struct JobView {
    /// `job_…`.
    pub(crate) id: String,
    /// `quantize`.
    pub(crate) kind: &'static str,
    /// `queued`, `running`, `succeeded`, `gate_failed`, `failed` or `cancelled`.
    pub(crate) state: &'static str,
    /// `import`, `calibrate`, `quantize`, `evaluate`, `measure`, `export` or `store`; `null` until it has begun.
    pub(crate) phase: Option<String>,
    /// How far the phase is; `null` until it has begun.
    pub(crate) progress: Option<ProgressView>,
    /// Which attempt this is, from 1; 0 until it has begun.
    pub(crate) attempt: u32,
    /// After so many attempts that failed, the job fails.
    pub(crate) attempts_max: u32,
    /// Whether it was asked to stop.
    pub(crate) cancel_requested: bool,
    /// The float model, `NAME@VERSION`.
    pub(crate) model: String,
    /// The calibration data, `NAME@VERSION`; where there is a `calibration_of`, those that its statistics came from.
    pub(crate) calibration: String,
    /// The job whose statistics are used.
    pub(crate) calibration_of: Option<String>,
    /// The evaluation data, `NAME@VERSION`.
    pub(crate) evaluation: Option<String>,
    /// Whether the calibration data stay when the job has ended.
    pub(crate) keep: bool,
    /// Data of the job that are deleted, and when.
    pub(crate) deleted: Vec<DeletedView>,
    /// The recipe with every default filled in.
    pub(crate) recipe: serde_json::Value,
    /// The endpoint that serves the artifact on success.
    pub(crate) endpoint: Option<String>,
    /// How far the message to its `webhook_url` is. Where the job has none, in lists and in events: `null`.
    pub(crate) webhook: Option<WebhookView>,
    /// On success and gate failure.
    #[schema(value_type = Option<JobResult>)]
    pub(crate) result: Option<serde_json::Value>,
    /// Why it failed, or why its last attempt did.
    pub(crate) error: Option<JobErrorView>,
    /// When it was asked for, RFC 3339.
    pub(crate) created_at: String,
    /// When the last attempt began.
    pub(crate) started_at: Option<String>,
    /// When it came to its final state.
    pub(crate) finished_at: Option<String>,
    /// When it changed last.
    pub(crate) updated_at: String,
    /// Where to look, and what to do.
    pub(crate) links: JobLinks,
}

/// How far the message about the end of a job is.
#[derive(Serialize, ToSchema)]
pub(crate) struct WebhookView {
    /// Where it goes: scheme, host and port. Path and query are not shown, since they may be secrets.
    origin: String,
    /// `waiting` for the end of the job, `pending` (an attempt is due, or will be), `delivered` or `given_up`.
    state: &'static str,
    /// Attempts that were begun.
    attempts: u32,
    /// Status of the last answer; `null` where there was none.
    last_status: Option<u16>,
}

/// Data that are deleted.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeletedView {
    /// The dataset, `NAME@VERSION`.
    dataset: String,
    /// When, RFC 3339.
    deleted_at: String,
}

/// How far a phase is.
#[derive(Serialize, ToSchema)]
pub(crate) struct ProgressView {
    /// The phase.
    pub(crate) phase: String,
    /// Units done: samples or layers.
    pub(crate) done: u64,
    /// Of so many; 0 where not known.
    pub(crate) total: u64,
    /// `100 × done / total`; `null` where the total is not known.
    pub(crate) percent: Option<f64>,
}

/// What a job has made.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes to the OpenAPI document what the catalog keeps as JSON")]
pub(crate) struct JobResult {
    /// The INT8 product.
    artifact: ArtifactRef,
    /// Bytes of the artifact over bytes of the model.
    size_ratio: f64,
    /// Float against INT8 on the evaluation data.
    accuracy: AccuracyView,
    /// Float against INT8.
    latency: LatencyView,
    /// What serves it now, where that was asked for: `name` and `version`.
    endpoint: Option<serde_json::Value>,
}

/// Which artifact.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes to the OpenAPI document what the catalog keeps as JSON")]
pub(crate) struct ArtifactRef {
    /// `art_…`.
    id: String,
    /// Size of the QDQ ONNX file.
    bytes: u64,
    /// Of the file, 64 hexadecimal digits.
    sha256: String,
}

/// Why a job failed.
#[derive(Serialize, ToSchema)]
pub(crate) struct JobErrorView {
    /// For programs: `bad_model`, `unsupported_op`, `bad_data`, `bad_recipe`, `model_deleted`,
    /// `dataset_deleted`, `gate_failed`, `lease_lost`, `timeout`, `storage` or `internal`.
    code: &'static str,
    /// For people; names the node, tensor, field or sample.
    message: String,
    /// Whether the same job may succeed later without a change.
    retriable: bool,
}

/// Where to look, and what to do.
#[derive(Serialize, ToSchema)]
pub(crate) struct JobLinks {
    /// This job.
    #[serde(rename = "self")]
    own: String,
    /// Its progress as server-sent events.
    events: String,
    /// Stops it.
    cancel: String,
    /// Its artifact, once there is one.
    artifact: Option<String>,
    /// Its report as a page, once there is one.
    report_html: Option<String>,
}

impl From<&Job> for JobView {
    fn from(job: &Job) -> JobView {
        let own = format!("/v1/jobs/{}", job.id);
        let artifact = job.result.as_ref().and_then(|r| r.pointer("/artifact/id")?.as_str());
        let links = JobLinks {
            events: format!("{own}/events"),
            cancel: format!("{own}/cancel"),
            artifact: artifact.map(|id| format!("/v1/artifacts/{id}")),
            report_html: artifact.map(|id| format!("/v1/artifacts/{id}/report.html")),
            own,
        };
        let percent = |done: u64, total: u64| (total > 0).then(|| done as f64 / total as f64 * 100.0);
        let progress = job.progress.as_ref().map(|p| ProgressView {
            phase: p.phase.clone(),
            done: p.done,
            total: p.total,
            percent: percent(p.done, p.total),
        });
        let error = job.error.as_ref().map(|e| JobErrorView {
            code: e.code.as_str(),
            message: e.message.clone(),
            retriable: e.retriable,
        });
        let calibration = job.calibration_deleted_at.map(|at| (&job.calibration, at));
        let evaluation = job.evaluation.as_ref().zip(job.evaluation_deleted_at);
        let mut deleted: Vec<(&Pinned, Timestamp)> = calibration.into_iter().chain(evaluation).collect();
        deleted.dedup();
        let deleted = deleted
            .into_iter()
            .map(|(data, at)| DeletedView { dataset: data.to_string(), deleted_at: at.to_string() });
        JobView {
            id: job.id.to_string(),
            kind: job.kind.as_str(),
            state: job.state.as_str(),
            phase: job.progress.as_ref().map(|p| p.phase.clone()),
            progress,
            attempt: job.attempt,
            attempts_max: job.attempts_max,
            cancel_requested: job.cancel_requested,
            model: job.model.to_string(),
            calibration: job.calibration.to_string(),
            calibration_of: job.calibration_of.map(|id| id.to_string()),
            evaluation: job.evaluation.as_ref().map(ToString::to_string),
            keep: job.keep,
            deleted: deleted.collect(),
            recipe: job.recipe.clone(),
            endpoint: job.endpoint.as_ref().map(ToString::to_string),
            webhook: None,
            result: job.result.clone(),
            error,
            created_at: job.created_at.to_string(),
            started_at: job.started_at.map(|t| t.to_string()),
            finished_at: job.finished_at.map(|t| t.to_string()),
            updated_at: job.updated_at.to_string(),
            links,
        }
    }
}

/// Seconds after which to look at a job again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// Longest time that `Prefer: wait` and `?wait` hold a request.
const WAIT_MAX: Duration = Duration::from_secs(50);

/// A job, or with `dry_run` what it would do.
#[derive(ToSchema)]
#[schema(description = "A job, or with `dry_run` what it would do.")]
#[expect(dead_code, reason = "describes to the OpenAPI document which of the two come")]
#[serde(untagged)]
pub(crate) enum JobAnswer {
    Job(Box<JobView>),
    DryRun(Box<DryRunView>),
}

/// Asks for a job.
///
/// With `dry_run` nothing is queued: the answer says which nodes would become integer, and predicts the size of the
/// artifact, time and memory.
///
/// `Idempotency-Key` makes a repeated request harmless: the same key and body give the job of the first time.
/// `Prefer: wait=10` holds the answer until the job has ended, but at most so many seconds.
#[utoipa::path(post, path = "/v1/jobs", operation_id = "create_job", tag = "jobs",
    params(("Idempotency-Key" = Option<String>, Header, description = "At most 255 visible characters"),
        ("Prefer" = Option<String>, Header, description = "`wait=SECONDS`")),
    request_body(content = JobRequest,
        example = json!({"kind": "quantize", "model": "resnet8", "calibration": "calib", "evaluation": "eval"})),
    responses(
        (status = 202, description = "Queued; `Location` says where to look", body = JobView),
        (status = 200, description = "Ended within the time of `Prefer: wait`; or what a job would do (`dry_run`)",
            body = JobAnswer),
        (status = 404, description = "No such model, dataset or job", body = ProblemBody),
        (status = 409, description = "The job of `calibration_of` has not ended", body = ProblemBody),
        (status = 422, description = "Not a recipe, or no statistics of this model, or the key was used for another request", body = ProblemBody),
        (status = 429, description = "Too many jobs wait", body = ProblemBody)))]
pub(crate) async fn post(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let bytes = read_body(&headers, body, shared.limits.json_body_bytes).await?;
    let request: JobRequest = parse_json(&bytes, shared.limits.json_depth)?;
    let JobKind::Quantize = request.kind;
    let recipe = request.recipe.map_or(serde_json::Value::Null, serde_json::Value::Object);
    shared.queue.attempts_max(request.attempts_max)?;
    if request.dry_run {
        let data = [request.calibration.as_ref(), request.evaluation.as_ref()];
        return dry_run::answer(&shared, &request.model, data, recipe).await;
    }
    let calibration = match (request.calibration, request.calibration_of) {
        (Some(data), None) => Calibration::Data(data),
        (None, Some(job)) => Calibration::Of(job),
        (None, None) => Calibration::Model,
        (Some(_), Some(_)) => {
            return Err(Problem::bad_request("`calibration` and `calibration_of` exclude each other"));
        }
    };
    let spec = JobSpec {
        model: request.model,
        calibration,
        evaluation: request.evaluation,
        keep: request.keep,
        recipe,
        endpoint: request.endpoint,
        webhook_url: request.webhook_url,
        attempts_max: request.attempts_max,
    };
    let key = idempotency_key(&headers, &bytes)?;
    check_nodes(&shared, &spec, key.as_ref()).await?;
    let created = shared.queue.enqueue(spec, key).await?;
    let mut job = Arc::new(created.record);
    if created.new {
        tracing::info!(job.id = %job.id, model = %job.model, "Job {} is queued", job.id);
    }
    if let Some(wait) = preferred_wait(&headers) {
        job = wait_for_end(&shared, job.id, wait).await?;
    }
    let status = if job.state.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok(located(status, &format!("/v1/jobs/{}", job.id), one(&shared, &job).await?))
}

/// Checks that the nodes that a recipe names are in the model; what else may be wrong with a job the queue finds out.
async fn check_nodes(shared: &Shared, spec: &JobSpec, key: Option<&IdempotencyKey>) -> Result<(), Problem> {
    let names = |field: &str| spec.recipe[field].as_array().is_some_and(|names| !names.is_empty());
    if !names("keep_float") && !names("sixteen_bit") {
        return Ok(());
    }
    // A request that comes again is answered with the job of then, whatever became of the model.
    if let Some(key) = key
        && shared.catalog.job_of_key(key).await?.is_some()
    {
        return Ok(());
    }
    let file = shared.blobs.pin(shared.catalog.model(&spec.model).await?.sha256).await?;
    let recipe = spec.recipe.clone();
    uploads::blocking(move || pipeline::dry_run::check_nodes(file.path(), &recipe)).await
}

/// `Idempotency-Key`, bare or as a quoted string.
fn idempotency_key(headers: &HeaderMap, body: &[u8]) -> Result<Option<IdempotencyKey>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let key = text.trim().trim_matches('"');
    if key.is_empty() || key.len() > 255 || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Problem::bad_request("Idempotency-Key must be 1 to 255 visible ASCII characters"));
    }
    let mut hash = Sha256::new();
    hash.update(b"POST /v1/jobs\n");
    hash.update(body);
    Ok(Some(IdempotencyKey { key: key.to_owned(), fingerprint: Digest(hash.finalize().into()) }))
}

/// The time of `Prefer: wait=SECONDS` (RFC 7240).
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = header_text(headers, "prefer")?;
    let seconds = text.split([',', ';']).find_map(|p| p.trim().strip_prefix("wait=")?.parse::<u64>().ok())?;
    Some(Duration::from_secs(seconds).min(WAIT_MAX))
}

async fn wait_for_end(shared: &Shared, id: JobId, wait: Duration) -> Result<Arc<Job>, Problem> {
    let mut watched = shared.queue.watch(id).await?;
    let mut stopping = shared.stopping.clone();
    // Whatever comes first, the last state is the answer.
    tokio::select! {
        _ = watched.wait_for(|job| job.state.is_final()) => {}
        _ = stopping.wait_for(|stopping| *stopping) => {}
        () = tokio::time::sleep(wait) => {}
    }
    let job = Arc::clone(&watched.borrow());
    Ok(job)
}

async fn one(shared: &Shared, job: &Job) -> Result<Response, Problem> {
    let webhook = webhook(shared, job).await?;
    Ok(shown(job, tag(job, webhook.as_ref()), webhook))
}

fn shown(job: &Job, tag: HeaderValue, webhook: Option<WebhookView>) -> Response {
    let view = JobView { webhook, ..JobView::from(job) };
    let mut response = ([(header::ETAG, tag)], Json(view)).into_response();
    if !job.state.is_final() {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    response
}

async fn webhook(shared: &Shared, job: &Job) -> Result<Option<WebhookView>, Problem> {
    let Some(url) = &job.webhook_url else { return Ok(None) };
    let told = if job.state.is_final() { shared.queue.webhook(job.id).await? } else { None };
    Ok(Some(WebhookView {
        origin: webhooks::origin(url),
        state: told.map_or("waiting", |told| told.state.as_str()),
        attempts: told.map_or(0, |told| told.attempts),
        last_status: told.and_then(|told| told.last_status),
    }))
}

/// Changes with the job and with its webhook.
fn tag(job: &Job, webhook: Option<&WebhookView>) -> HeaderValue {
    match webhook {
        None => etag(job.seq),
        Some(webhook) => {
            let status = webhook.last_status.unwrap_or(0);
            etag(format_args!("{}-{}-{}-{status}", job.seq, webhook.state, webhook.attempts))
        }
    }
}

/// Which jobs.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobsQuery {
    /// In this state only.
    state: Option<String>,
    /// Of any version of this model only.
    model: Option<String>,
    /// At most so many, 1 to 200; without it 50.
    limit: Option<u32>,
    /// The `next_cursor` of the part before.
    cursor: Option<String>,
}

/// Lists jobs, newest first.
#[utoipa::path(get, path = "/v1/jobs", operation_id = "list_jobs", tag = "jobs", params(JobsQuery),
    responses((status = 200, description = "A part of the list", body = Listing<JobView>)))]
pub(crate) async fn list(
    State(shared): State<Shared>,
    Query(query): Query<JobsQuery>,
) -> Result<Response, Problem> {
    let page = page(query.limit, query.cursor.as_deref())?;
    let state: Option<JobState> = query.state.as_deref().map(str::parse).transpose()?;
    let model: Option<Name> = query.model.as_deref().map(str::parse).transpose()?;
    let slice = shared.queue.list(&JobFilter { state, model }, &page).await?;
    let asked = [("state", query.state.as_deref()), ("model", query.model.as_deref())];
    Ok(listing(slice, "/v1/jobs", &asked, page.limit, |job| JobView::from(&job)))
}

/// How long to hold the answer.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobQuery {
    /// Seconds to wait for the end of the job; at most 50.
    wait: Option<u64>,
}

/// Finds a job.
#[utoipa::path(get, path = "/v1/jobs/{id}", operation_id = "get_job", tag = "jobs", params(("id" = String, Path), JobQuery),
    responses((status = 200, description = "The job", body = JobView),
        (status = 304, description = "It is as the client knows it (`If-None-Match`)"),
        (status = 404, description = "No such job", body = ProblemBody)))]
pub(crate) async fn get(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<JobQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: JobId = id.parse()?;
    let job = match query.wait {
        Some(seconds) => wait_for_end(&shared, id, Duration::from_secs(seconds).min(WAIT_MAX)).await?,
        None => Arc::new(shared.queue.find(id).await?),
    };
    let webhook = webhook(&shared, &job).await?;
    let tag = tag(&job, webhook.as_ref());
    if crate::api::http::none_match(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    Ok(shown(&job, tag, webhook))
}

/// Stops a job: at once where it is queued, between two samples where it runs. Asking again is harmless.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", operation_id = "cancel_job", tag = "jobs", params(("id" = String, Path)),
    responses((status = 202, description = "Asked to stop", body = JobView),
        (status = 404, description = "No such job", body = ProblemBody),
        (status = 409, description = "It has ended otherwise", body = ProblemBody)))]
pub(crate) async fn cancel(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: JobId = id.parse()?;
    let job = shared.queue.cancel(id).await?;
    shared.discard(&job.freed).await;
    tracing::info!(job.id = %id, "Job {id} is asked to stop");
    Ok((StatusCode::ACCEPTED, one(&shared, &job).await?).into_response())
}

/// Deletes the record of a job that has ended. Its artifact stays.
#[utoipa::path(delete, path = "/v1/jobs/{id}", operation_id = "delete_job", tag = "jobs", params(("id" = String, Path)),
    responses((status = 204, description = "Deleted"),
        (status = 404, description = "No such job", body = ProblemBody),
        (status = 409, description = "It has not ended: cancel it first", body = ProblemBody)))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let id: JobId = id.parse()?;
    shared.queue.delete(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells the progress of a job as server-sent events.
///
/// Each event is the whole job: `event: progress` while its state stays, `event: state` when it changes. The
/// last is `event: state` with the final state; then the stream ends. A client that comes back with
/// `Last-Event-ID` gets what it has not seen.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", operation_id = "watch_job", tag = "jobs",
    params(("id" = String, Path), ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, description = "Events", body = String, content_type = "text/event-stream"),
        (status = 404, description = "No such job", body = ProblemBody)))]
pub(crate) async fn events(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    by: By,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: JobId = id.parse()?;
    let jobs = shared.queue.watch(id).await?;
    let seen = header_text(&headers, "last-event-id").and_then(|t| t.parse::<u64>().ok());
    let stopping = shared.stopping.clone();
    let admitted = move || still_admitted(&shared, &by, Scope::Read);
    let look = tokio::time::interval(LOOK_AT_KEY);
    let admitted = Box::new(admitted);
    let follower = Follower { jobs, stopping, admitted, look, seen, told: None, first: true, ended: false };
    let events = stream::unfold(follower, |mut follower| async move {
        follower.next().await.map(|event| (Ok::<_, Infallible>(event), follower))
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15)).text("keepalive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // nginx would hold events back until its buffer is full.
    let buffering = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(buffering, HeaderValue::from_static("no"));
    Ok(response)
}

/// How often a stream looks whether its key is still in force.
const LOOK_AT_KEY: Duration = Duration::from_secs(1);

/// Turns the states of a job into events.
struct Follower {
    jobs: watch::Receiver<Arc<Job>>,
    // A stopping server ends its streams: the client comes back with Last-Event-ID.
    stopping: watch::Receiver<bool>,
    // A key that has ended ends them too.
    admitted: Box<dyn Fn() -> bool + Send>,
    look: Interval,
    // What the client has seen before it came back.
    seen: Option<u64>,
    told: Option<JobState>,
    first: bool,
    ended: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.ended {
                return None;
            }
            let first = std::mem::take(&mut self.first);
            if !first {
                tokio::select! {
                    changed = self.jobs.changed() => changed.ok()?,
                    _ = self.stopping.wait_for(|stopping| *stopping) => return None,
                    _ = self.look.tick() => match (self.admitted)() {
                        true => continue,
                        false => return None,
                    },
                }
            }
            let job = Arc::clone(&self.jobs.borrow_and_update());
            self.ended = job.state.is_final();
            // The end is always told: that is what the client waits for.
            if self.seen == Some(job.seq) && !self.ended {
                self.told = Some(job.state);
                continue;
            }
            self.seen = Some(job.seq);
            let kind = if self.told == Some(job.state) { "progress" } else { "state" };
            self.told = Some(job.state);
            let event = Event::default().id(job.seq.to_string()).event(kind);
            let event = if first { event.retry(Duration::from_secs(2)) } else { event };
            return event.json_data(JobView::from(&*job)).ok();
        }
    }
}
