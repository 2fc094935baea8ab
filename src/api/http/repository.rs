//! The model repository extension of the Open Inference Protocol: index, load, unload.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::api::error::Problem;
use crate::api::http::{ErrorBody, Shared, parse_json, read_body};
use crate::api::v2::repository::{self, IndexEntry};

/// What to list.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct IndexRequest {
    /// Only what answers requests.
    #[serde(default)]
    ready: bool,
}

/// Lists what there is to serve. The body may be empty.
#[utoipa::path(post, path = "/v2/repository/index", tag = "repository", request_body = Option<IndexRequest>,
    responses((status = 200, description = "All versions of all endpoints", body = Vec<IndexEntry>)))]
pub(crate) async fn index(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Vec<IndexEntry>>, Problem> {
    let bytes = read_body(&headers, body, shared.limits.json_body_bytes).await?;
    let request = match bytes.trim_ascii() {
        [] => IndexRequest::default(),
        bytes => parse_json(bytes, shared.limits.json_depth)?,
    };
    Ok(Json(repository::index(&shared, request.ready)))
}

/// Loads an endpoint that was unloaded, or tries one again that could not be loaded.
///
/// What an endpoint serves is set by `PUT /v1/endpoints/{name}`; models are not uploaded here.
#[utoipa::path(post, path = "/v2/repository/models/{name}/load", tag = "repository", params(("name" = String, Path)),
    responses((status = 200, description = "It answers requests"),
        (status = 404, description = "No such endpoint", body = ErrorBody),
        (status = 503, description = "It cannot be loaded", body = ErrorBody)))]
pub(crate) async fn load(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Problem> {
    let bytes = read_body(&headers, body, shared.limits.json_body_bytes).await?;
    if !bytes.trim_ascii().is_empty() {
        let request: serde_json::Value = parse_json(&bytes, shared.limits.json_depth)?;
        let parameters = request.get("parameters").and_then(serde_json::Value::as_object);
        if let Some(key) =
            parameters.and_then(|p| p.keys().find(|k| *k == "config" || k.starts_with("file:")))
        {
            return Err(Problem::bad_request(format!(
                "`{key}`: models are uploaded with PUT /v1/models/NAME and served with PUT /v1/endpoints/NAME"
            )));
        }
    }
    repository::reload(&shared, &name).await?;
    Ok(StatusCode::OK)
}

/// Takes an endpoint out of memory until it is loaded again. Requests under way are answered.
#[utoipa::path(post, path = "/v2/repository/models/{name}/unload", tag = "repository",
    params(("name" = String, Path)),
    responses((status = 200, description = "It is out of memory"),
        (status = 404, description = "No such endpoint", body = ErrorBody)))]
pub(crate) async fn unload(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    shared.registry.unload(&name)?;
    Ok(StatusCode::OK)
}
