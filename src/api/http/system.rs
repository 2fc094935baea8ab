//! The server about itself: live, ready, version, metrics, the OpenAPI document.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::error::Code;
use crate::api::http::Shared;
use crate::api::v2::describe;
use crate::service::metrics::Metrics;

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
#[utoipa::path(get, path = "/v2/health/live", tag = "health",
    responses((status = 200, description = "It does", body = Live)))]
pub(crate) async fn live() -> Json<Live> {
    Json(Live { live: true })
}

/// The server takes requests: endpoints of an earlier run are loaded, those that are required answer, and it is not
/// stopping.
#[utoipa::path(get, path = "/v2/health/ready", tag = "health",
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
#[utoipa::path(get, path = "/v2", tag = "health",
    responses((status = 200, description = "The server", body = ServerMetadata)))]
pub(crate) async fn metadata(State(shared): State<Shared>) -> Json<ServerMetadata> {
    Json(ServerMetadata {
        name: describe::NAME,
        version: describe::VERSION,
        extensions: describe::extensions(&shared),
    })
}

/// The figures, in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "health",
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

/// This document.
#[utoipa::path(get, path = "/openapi.yaml", tag = "health",
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

/// What we know of and do not do: shared memory.
pub(crate) async fn not_implemented() -> crate::api::error::Problem {
    crate::api::error::Problem::new(Code::NotImplemented, "shared memory is not part of this server")
}

/// `/v2/models` of the kserve SDK.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelNames {
    models: Vec<String>,
}

/// The names of all endpoints.
#[utoipa::path(get, path = "/v2/models", tag = "inference",
    responses((status = 200, description = "The names", body = ModelNames)))]
pub(crate) async fn model_names(State(shared): State<Shared>) -> (StatusCode, Json<ModelNames>) {
    let models = shared.registry.all().iter().map(|entry| entry.endpoint.name.to_string()).collect();
    (StatusCode::OK, Json(ModelNames { models }))
}
