//! Endpoints: what is served under which name, and in what numbers.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::error::Problem;
use crate::api::http::{
    Listing, PageQuery, ProblemBody, Shared, etag, header_text, listing, page, read_json,
};
use crate::service::infer::registry::State as Loaded;
use crate::service::store::{ArtifactId, Endpoint, Expect, Name, Wanted};

/// What an endpoint shall serve: one of the two.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndpointRequest {
    /// A model, served in float: `NAME` is the newest version, `NAME@2` that one.
    #[schema(value_type = Option<String>)]
    model: Option<Wanted>,
    /// An artifact, served in INT8, with its float model as a twin.
    #[schema(value_type = Option<String>)]
    artifact: Option<ArtifactId>,
}

/// A name under `/v2/models/`.
#[derive(Serialize, ToSchema)]
pub(crate) struct EndpointView {
    /// The name.
    name: String,
    /// Which version answers when the client names none.
    default_version: u32,
    /// What is served.
    versions: Vec<EndpointVersionView>,
    /// Whether the default version answers: `READY`, `LOADING` or `UNAVAILABLE`.
    state: &'static str,
    /// Goes up with every change: the ETag.
    revision: u64,
    /// Where to send requests.
    infer: String,
    /// When it was made, RFC 3339.
    created_at: String,
    /// When it changed last.
    updated_at: String,
}

/// One version of an endpoint.
#[derive(Serialize, ToSchema)]
pub(crate) struct EndpointVersionView {
    /// Its number in the endpoint; not the version of the model.
    version: u32,
    /// `int8` or `fp32`.
    precision: &'static str,
    /// The artifact that is served; `null` where it is the float model.
    artifact: Option<String>,
    /// The float model: what is served, or the twin of the artifact. `NAME@VERSION`.
    model: String,
    /// `READY`, `LOADING` or `UNAVAILABLE`.
    state: &'static str,
    /// Why it does not answer; empty where it does.
    reason: String,
    /// Bytes of packed weights in memory, twin included; 0 where it is not loaded.
    weight_bytes: u64,
}

fn view(shared: &Shared, endpoint: Endpoint) -> EndpointView {
    let loaded = shared.registry.entry(endpoint.name.as_str(), None).ok().map(|(entry, _)| entry);
    let state_of = |version: u32| loaded.as_ref().and_then(|entry| entry.versions.get(&version));
    let versions = endpoint.versions.iter().map(|v| {
        let state = state_of(v.version.0);
        EndpointVersionView {
            version: v.version.0,
            precision: v.precision().as_str(),
            artifact: v.artifact.map(|id| id.to_string()),
            model: v.model.to_string(),
            state: state.map_or("LOADING", Loaded::name),
            reason: state.map_or_else(String::new, Loaded::reason),
            weight_bytes: match state {
                Some(Loaded::Ready(served)) => served.weight_bytes,
                _ => 0,
            },
        }
    });
    EndpointView {
        versions: versions.collect(),
        default_version: endpoint.default_version.0,
        state: state_of(endpoint.default_version.0).map_or("LOADING", Loaded::name),
        revision: endpoint.revision,
        infer: format!("/v2/models/{}/infer", endpoint.name),
        created_at: endpoint.created_at.to_string(),
        updated_at: endpoint.updated_at.to_string(),
        name: endpoint.name.to_string(),
    }
}

fn one(shared: &Shared, endpoint: Endpoint) -> Response {
    let tag = etag(endpoint.revision);
    ([(header::ETAG, tag)], Json(view(shared, endpoint))).into_response()
}

/// Lists endpoints.
#[utoipa::path(get, path = "/v1/endpoints", tag = "endpoints", params(PageQuery),
    responses((status = 200, description = "A part of the list", body = Listing<EndpointView>)))]
pub(crate) async fn list(
    State(shared): State<Shared>,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    let page = page(query.limit, query.cursor.as_deref())?;
    let slice = shared.catalog.endpoints(&page).await?;
    Ok(listing(slice, "/v1/endpoints", page.limit, |endpoint| view(&shared, endpoint)))
}

/// Finds an endpoint.
#[utoipa::path(get, path = "/v1/endpoints/{name}", tag = "endpoints", params(("name" = String, Path)),
    responses((status = 200, description = "The endpoint", body = EndpointView),
        (status = 404, description = "No such endpoint", body = ProblemBody)))]
pub(crate) async fn get(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    let name: Name = name.parse()?;
    Ok(one(&shared, shared.catalog.endpoint(&name).await?))
}

/// Serves a model in float, or an artifact in INT8, under a name.
///
/// It becomes a new version of the endpoint and its default; the version before goes on answering until the new
/// one is loaded, and stays beside it. The answer comes once loading has ended, well or not: see `state`.
#[utoipa::path(put, path = "/v1/endpoints/{name}", tag = "endpoints",
    params(("name" = String, Path, description = "1 to 128 of A-Z a-z 0-9 . _ -"),
        ("If-Match" = Option<String>, Header, description = "The ETag that the endpoint must have"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: the endpoint must not exist")),
    request_body = EndpointRequest,
    responses((status = 201, description = "A new endpoint", body = EndpointView),
        (status = 200, description = "A new version of the endpoint", body = EndpointView),
        (status = 404, description = "No such model or artifact", body = ProblemBody),
        (status = 412, description = "It is not as the headers expect", body = ProblemBody)))]
pub(crate) async fn put(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let name: Name = name.parse()?;
    let expect = expectation(&headers)?;
    let request: EndpointRequest = read_json(&shared, &headers, body).await?;
    let (artifact, model) = match (request.model, request.artifact) {
        (Some(model), None) => (None, shared.catalog.model(&model).await?.pinned()),
        (None, Some(id)) => (Some(id), shared.catalog.artifact(id).await?.model),
        (Some(_), Some(_)) | (None, None) => {
            return Err(Problem::bad_request("give either `model` or `artifact`"));
        }
    };
    let endpoint = shared.catalog.promote(&name, artifact, model, expect).await?;
    let new = endpoint.created_at == endpoint.updated_at;
    shared.registry.follow().await.map_err(Problem::internal)?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    tracing::info!(endpoint = %name, revision = endpoint.revision, "Endpoint {name} has changed");
    let mut response = (status, one(&shared, endpoint)).into_response();
    if let Ok(location) = HeaderValue::try_from(format!("/v1/endpoints/{name}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Takes an endpoint out of service. The model and the artifact stay.
#[utoipa::path(delete, path = "/v1/endpoints/{name}", tag = "endpoints",
    params(("name" = String, Path),
        ("If-Match" = Option<String>, Header, description = "The ETag that the endpoint must have")),
    responses((status = 204, description = "Deleted"),
        (status = 404, description = "No such endpoint", body = ProblemBody),
        (status = 412, description = "It is not as the headers expect", body = ProblemBody)))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let name: Name = name.parse()?;
    let expect = expectation(&headers)?;
    shared.catalog.delete_endpoint(&name, expect).await?;
    shared.registry.follow().await.map_err(Problem::internal)?;
    tracing::info!(endpoint = %name, "Endpoint {name} is deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// What `If-Match` and `If-None-Match` say.
fn expectation(headers: &HeaderMap) -> Result<Expect, Problem> {
    if let Some(text) = header_text(headers, "if-match") {
        if text.trim() == "*" {
            return Err(Problem::bad_request("If-Match must be one ETag of the endpoint"));
        }
        let revision = text.trim().trim_matches('"').parse::<u64>();
        // A tag that was never ours cannot match: revisions begin at 1.
        return Ok(Expect::Revision(revision.unwrap_or(0)));
    }
    match header_text(headers, "if-none-match").map(str::trim) {
        None => Ok(Expect::Any),
        Some("*") => Ok(Expect::Absent),
        Some(_) => Err(Problem::bad_request("If-None-Match must be `*` here")),
    }
}
