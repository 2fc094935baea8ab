//! The server about itself: live, ready, version, metrics, the OpenAPI document.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::error::{Code, Problem};
use crate::api::http::Shared;
use crate::api::v2::describe;
use crate::service::infer::registry;
use crate::service::metrics::process::Metrics;
use crate::service::store::JobState;

/// Whether the process answers.
#[derive(Serialize, ToSchema)]
pub(crate) struct Live {
    live: bool,
}

/// Whether the server takes requests.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ready {
    ready: bool,
}

/// The process answers.
#[utoipa::path(get, path = "/v2/health/live", operation_id = "server_live", tag = "health",
    responses((status = 200, description = "It does", body = Live)))]
pub(crate) async fn live() -> Json<Live> {
    Json(Live { live: true })
}

/// The server takes requests: endpoints of an earlier run are loaded, those that are required answer, and it is not
/// stopping.
#[utoipa::path(get, path = "/v2/health/ready", operation_id = "server_ready", tag = "health",
    responses((status = 200, description = "It does", body = Ready),
        (status = 503, description = "Not yet, or not any more", body = crate::api::http::ErrorBody)))]
pub(crate) async fn ready(State(shared): State<Shared>) -> Response {
    match shared.unready() {
        None => Json(Ready { ready: true }).into_response(),
        Some(reason) => crate::api::error::Problem::new(Code::NotReady, reason).into_response(),
    }
}

/// The server, as the Open Inference Protocol asks for it.
#[derive(Serialize, ToSchema)]
pub(crate) struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: Vec<&'static str>,
}

/// What this server is and which extensions of the protocol it speaks.
#[utoipa::path(get, path = "/v2", operation_id = "server_metadata", tag = "health",
    responses((status = 200, description = "The server", body = ServerMetadata)))]
pub(crate) async fn metadata(State(shared): State<Shared>) -> Json<ServerMetadata> {
    Json(ServerMetadata {
        name: describe::NAME,
        version: describe::VERSION,
        extensions: describe::extensions(&shared),
    })
}

/// The figures, in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", operation_id = "get_metrics", tag = "health",
    responses((status = 200, description = "The figures", body = String, content_type = "text/plain")))]
pub(crate) async fn metrics(State(shared): State<Shared>) -> Response {
    for entry in shared.registry.all() {
        for state in entry.versions.values() {
            if let crate::service::infer::registry::State::Ready(served) = state {
                served.show();
            }
        }
    }
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], shared.metrics.render()).into_response()
}

/// What a server is made of, and what it is doing.
#[derive(Serialize, ToSchema)]
pub(crate) struct System {
    version: &'static str,
    /// `all`, `api` or `worker`.
    role: &'static str,
    started_at: String,
    uptime_s: f64,
    ready: bool,
    cpu: Cpu,
    store: Kept,
    serving: Serving,
    jobs: Jobs,
    /// Requests being answered at a time, at most.
    requests_in_flight_max: usize,
    /// Whether requests need a key.
    auth: bool,
    tls: bool,
}

/// What the kernels run on.
#[derive(Serialize, ToSchema)]
pub(crate) struct Cpu {
    cores: usize,
    /// Instructions in use.
    isa: &'static str,
    /// Those that the CPU has.
    available: Vec<&'static str>,
}

/// Where things are kept.
#[derive(Serialize, ToSchema)]
pub(crate) struct Kept {
    /// `sqlite` or `postgres`.
    database: &'static str,
    schema_version: i64,
    /// `local` or `s3`.
    files: &'static str,
    float_bytes: u64,
    int8_bytes: u64,
    dataset_bytes: u64,
}

/// Endpoints of this process.
#[derive(Serialize, ToSchema)]
pub(crate) struct Serving {
    threads: usize,
    endpoints: usize,
    versions_ready: usize,
    versions_failed: usize,
    /// Packed weights in memory.
    weight_bytes: u64,
}

/// The queue, of all processes that share it.
#[derive(Serialize, ToSchema)]
pub(crate) struct Jobs {
    /// Of this process.
    workers: usize,
    /// Number of jobs by state.
    #[schema(value_type = std::collections::BTreeMap<String, u64>)]
    states: std::collections::BTreeMap<&'static str, u64>,
    oldest_queued_s: f64,
}

/// What this server is made of and what it is doing.
#[utoipa::path(get, path = "/v1/system", operation_id = "get_system", tag = "health",
    responses((status = 200, description = "The server", body = System)))]
pub(crate) async fn system(State(shared): State<Shared>) -> Result<Json<System>, Problem> {
    let census = shared.catalog.census().await?;
    let about = &shared.about;
    let entries = shared.registry.all();
    let states = || entries.iter().flat_map(|entry| entry.versions.values());
    let ready =
        || states().filter_map(|s| if let registry::State::Ready(served) = s { Some(served) } else { None });
    Ok(Json(System {
        version: describe::VERSION,
        role: about.role,
        started_at: about.started_at.to_string(),
        uptime_s: (shared.clock)().seconds_since(about.started_at),
        ready: shared.unready().is_none(),
        cpu: Cpu { cores: about.cores, isa: about.isa, available: about.isas.clone() },
        store: Kept {
            database: about.database,
            schema_version: about.schema_version,
            files: about.files,
            float_bytes: census.float_bytes,
            int8_bytes: census.int8_bytes,
            dataset_bytes: census.dataset_bytes,
        },
        serving: Serving {
            threads: about.serving_threads,
            endpoints: entries.len(),
            versions_ready: ready().count(),
            versions_failed: states().filter(|s| matches!(s, registry::State::Failed(..))).count(),
            weight_bytes: ready().map(|served| served.weight_bytes).sum(),
        },
        jobs: Jobs {
            workers: about.job_workers,
            states: JobState::ALL.into_iter().map(JobState::as_str).zip(census.jobs).collect(),
            oldest_queued_s: census.oldest_queued_s,
        },
        requests_in_flight_max: shared.in_flight.max(),
        auth: shared.keys.is_some(),
        tls: shared.tls,
    }))
}

/// This document.
#[utoipa::path(get, path = "/openapi.yaml", operation_id = "get_openapi", tag = "health",
    responses((status = 200, description = "The document", body = serde_json::Value, content_type = "application/yaml")))]
pub(crate) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/yaml")], crate::api::http::OPENAPI).into_response()
}

/// The answer to a path that is no route.
pub(crate) async fn no_route(uri: axum::http::Uri) -> crate::api::error::Problem {
    crate::api::error::Problem::new(Code::NoRoute, format!("no route `{}`", uri.path()))
}

/// The answer of a process that only does jobs.
pub(crate) async fn not_of_a_worker(uri: axum::http::Uri) -> crate::api::error::Problem {
    let detail = format!(
        "no route `{}`: this process has the role `worker`, ask one that has the role `api`",
        uri.path()
    );
    crate::api::error::Problem::new(Code::NoRoute, detail)
}

/// `/v2/models` of the kserve SDK.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelNames {
    models: Vec<String>,
}

/// The names of all endpoints.
#[utoipa::path(get, path = "/v2/models", operation_id = "list_served_models", tag = "inference",
    responses((status = 200, description = "The names", body = ModelNames)))]
pub(crate) async fn model_names(State(shared): State<Shared>) -> (StatusCode, Json<ModelNames>) {
    let models = shared.registry.all().iter().map(|entry| entry.endpoint.name.to_string()).collect();
    (StatusCode::OK, Json(ModelNames { models }))
}
