//! Endpoints: what is served under which name, and in what numbers.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::access::By;
use crate::api::error::{Code, Problem};
use crate::api::http::fields::Query;
use crate::api::http::{
    Listing, PageQuery, ProblemBody, Shared, etag, header_text, listing, located, page, read_json,
};
use crate::service::infer::drift::Drift;
use crate::service::infer::registry::State as Loaded;
use crate::service::infer::shadow::Figures;
use crate::service::store::{
    self, ArtifactId, Batching, Endpoint, EndpointChange, EndpointRecord, EndpointSettings, Expect, Name,
    Rollback, Route, SettingsPatch, Shadow, Wanted,
};

/// What shall change of an endpoint. Every field may be left out, and what it says stays as it is; a setting that is
/// `null` is taken back. The first request must have `model` or `artifact`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndpointRequest {
    /// Adds a version: a model, served in float. `NAME` is the newest version, `NAME@2` that one.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    model: Option<Wanted>,
    /// Adds a version: an artifact, served in INT8, with its float model as a twin.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    artifact: Option<ArtifactId>,
    /// Percent of the requests for the version that is added, 0 to 100; without it 100. The other versions share the
    /// rest as before.
    #[serde(default)]
    weight: Option<u32>,
    /// All routes anew; the weights add up to 100.
    #[schema(value_type = Option<Vec<RouteBody>>)]
    #[serde(default)]
    routes: Option<Vec<Route>>,
    /// Runs a part of the requests in float as well, after they are answered, and compares.
    #[schema(value_type = Option<ShadowBody>)]
    #[serde(default, deserialize_with = "store::given")]
    shadow: Option<Option<Shadow>>,
    /// When a version loses its requests to another without anybody asking.
    #[schema(value_type = Option<RollbackBody>)]
    #[serde(default, deserialize_with = "store::given")]
    rollback: Option<Option<Rollback>>,
    /// How requests are run together; what is not given is as in the settings of the server.
    #[schema(value_type = Option<BatchingBody>)]
    #[serde(default, deserialize_with = "store::given")]
    batching: Option<Option<Batching>>,
    /// Requests that may wait at a version, 1 to 100000.
    #[schema(value_type = Option<u32>)]
    #[serde(default, deserialize_with = "store::given")]
    queue_limit: Option<Option<u32>>,
    /// Runs of a version at the same time, 1 to 1024.
    #[schema(value_type = Option<u32>)]
    #[serde(default, deserialize_with = "store::given")]
    concurrency: Option<Option<u32>>,
    /// Whether the server is ready only when this endpoint answers; without it not.
    #[schema(value_type = Option<bool>)]
    #[serde(default, deserialize_with = "store::given")]
    required: Option<Option<bool>>,
    /// Runs of made-up samples before a version is ready, 1 to 1000; without it 1.
    #[schema(value_type = Option<u32>)]
    #[serde(default, deserialize_with = "store::given")]
    warm_up: Option<Option<u32>>,
}

/// A share of the requests that name no version.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a type of the store to the OpenAPI document")]
pub(crate) struct RouteBody {
    /// A version of the endpoint.
    version: u32,
    /// Percent, 0 to 100.
    weight: u32,
}

/// How much is compared with float.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a type of the store to the OpenAPI document")]
pub(crate) struct ShadowBody {
    /// Part of the requests, 0 to 1.
    fraction: f64,
    /// Whether the compared requests also add to statistics (histograms, no samples) that a job can take ranges from.
    statistics: Option<bool>,
}

/// When a version loses its requests.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a type of the store to the OpenAPI document")]
pub(crate) struct RollbackBody {
    /// Least agreement with float over the recent comparisons, 0 to 1; needs `shadow`.
    min_agreement: Option<f64>,
    /// Largest part of the recent requests that may end in a fault of the server, 0 to 1.
    max_error_ratio: Option<f64>,
    /// So many comparisons or requests before either is judged; without it 50.
    min_requests: Option<u32>,
}

/// How requests are run together.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a type of the store to the OpenAPI document")]
pub(crate) struct BatchingBody {
    /// Samples that run together at most, 1 to 1024; 1 is no batching.
    max: Option<u32>,
    /// Microseconds that a sample waits for others, 0 to 1000000.
    delay_us: Option<u32>,
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
    /// How it serves; only what was set.
    #[schema(value_type = Object)]
    settings: EndpointSettings,
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
    /// `int8`, `fp16` or `fp32`.
    precision: &'static str,
    /// The artifact that is served; `null` where it is the float model.
    artifact: Option<String>,
    /// The float model: what is served, or the twin of the artifact. `NAME@VERSION`.
    model: String,
    /// Percent of the requests that name no version.
    weight: u32,
    /// `READY`, `LOADING` or `UNAVAILABLE`.
    state: &'static str,
    /// Why it does not answer; empty where it does.
    reason: String,
    /// Bytes of packed weights in memory, twin included; 0 where it is not loaded.
    weight_bytes: u64,
    /// The comparison with float since it was loaded; `null` without a twin.
    shadow: Option<ShadowView>,
    /// The share of recent input values outside of what calibration saw, by input.
    out_of_range: BTreeMap<String, f64>,
}

/// What the comparison with float has found.
#[derive(Serialize, ToSchema)]
pub(crate) struct ShadowView {
    /// Samples that were compared since the version was loaded.
    compared: u64,
    /// Of them, those on which INT8 and float agree.
    agreed: u64,
    /// Share of the last 1000 compared samples that agree; `null` before the first.
    agreement: Option<f64>,
    /// Mean cosine of their outputs; `null` before the first.
    cosine: Option<f64>,
    /// Largest difference of two values of their outputs; `null` before the first.
    max_abs_error: Option<f64>,
}

impl From<Figures> for ShadowView {
    fn from(figures: Figures) -> ShadowView {
        let Figures { compared, agreed, recent, agreement, cosine, max_abs_error } = figures;
        let known = |x: f64| (recent > 0).then_some(x);
        ShadowView {
            compared,
            agreed,
            agreement: known(agreement),
            cosine: known(cosine),
            max_abs_error: known(max_abs_error),
        }
    }
}

fn view(shared: &Shared, endpoint: Endpoint) -> EndpointView {
    let loaded = shared.registry.entry(endpoint.name.as_str(), None).ok().map(|(entry, _)| entry);
    let state_of = |version: u32| loaded.as_ref().and_then(|entry| entry.versions.get(&version));
    let versions = endpoint.versions.iter().map(|v| {
        let state = state_of(v.version.0);
        let served = match state {
            Some(Loaded::Ready(served)) => Some(served),
            _ => None,
        };
        let drift = served.and_then(|served| served.drift.as_ref());
        let shares = drift.into_iter().flat_map(Drift::shares);
        EndpointVersionView {
            version: v.version.0,
            precision: v.precision().as_str(),
            artifact: v.artifact.map(|id| id.to_string()),
            model: v.model.to_string(),
            weight: endpoint.weight(v.version),
            state: state.map_or("LOADING", Loaded::name),
            reason: state.map_or_else(String::new, Loaded::reason),
            weight_bytes: served.map_or(0, |served| served.weight_bytes),
            shadow: served.and_then(|s| s.comparer.as_ref()).map(|c| c.figures().into()),
            out_of_range: shares.filter_map(|(input, share)| Some((input.to_owned(), share?))).collect(),
        }
    });
    EndpointView {
        versions: versions.collect(),
        settings: endpoint.settings,
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
#[utoipa::path(get, path = "/v1/endpoints", operation_id = "list_endpoints", tag = "endpoints", params(PageQuery),
    responses((status = 200, description = "A part of the list", body = Listing<EndpointView>)))]
pub(crate) async fn list(
    State(shared): State<Shared>,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    let page = page(query.limit, query.cursor.as_deref())?;
    let slice = shared.catalog.endpoints(&page).await?;
    Ok(listing(slice, "/v1/endpoints", &[], page.limit, |endpoint| view(&shared, endpoint)))
}

/// Finds an endpoint.
#[utoipa::path(get, path = "/v1/endpoints/{name}", operation_id = "get_endpoint", tag = "endpoints", params(("name" = String, Path)),
    responses((status = 200, description = "The endpoint", body = EndpointView),
        (status = 404, description = "No such endpoint", body = ProblemBody)))]
pub(crate) async fn get(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    let name: Name = name.parse()?;
    Ok(one(&shared, shared.catalog.endpoint(&name).await?))
}

/// Characters of the reason of a change.
const REASON_CHARS_MAX: usize = 500;

/// Makes or changes an endpoint: adds a version, routes requests, sets how it serves.
///
/// A version that is added gets all requests, or `weight` percent of them. What answered before goes on answering until
/// the new version is loaded. A version without requests stays loaded as the way back. The answer comes once loading
/// has ended, well or not: see `state`.
#[utoipa::path(put, path = "/v1/endpoints/{name}", operation_id = "put_endpoint", tag = "endpoints",
    params(("name" = String, Path, description = "1 to 128 of A-Z a-z 0-9 . _ -"),
        ("If-Match" = Option<String>, Header, description = "The ETag that the endpoint must have; `*`: it must exist"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: the endpoint must not exist"),
        ("Octet-Reason" = Option<String>, Header, description = "Why: kept with the change. UTF-8, at most 500 characters")),
    request_body(content = EndpointRequest, example = json!({"model": "resnet8"})),
    responses((status = 201, description = "A new endpoint", body = EndpointView),
        (status = 200, description = "A new version of the endpoint", body = EndpointView),
        (status = 404, description = "No such model or artifact", body = ProblemBody),
        (status = 412, description = "It is not as the headers expect", body = ProblemBody)))]
pub(crate) async fn put(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    by: By,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let name: Name = name.parse()?;
    let expect = expectation(&headers)?;
    let request: EndpointRequest = read_json(&shared, &headers, body).await?;
    let add = match (request.model, request.artifact) {
        (Some(model), None) => Some((None, shared.catalog.model(&model).await?.pinned())),
        (None, Some(id)) => Some((Some(id), shared.catalog.artifact(id).await?.model)),
        (None, None) => None,
        (Some(_), Some(_)) => return Err(Problem::bad_request("give either `model` or `artifact`")),
    };
    let settings = SettingsPatch {
        shadow: request.shadow,
        rollback: request.rollback,
        batching: request.batching,
        queue_limit: request.queue_limit,
        concurrency: request.concurrency,
        required: request.required,
        warm_up: request.warm_up,
    };
    if add.is_none() && request.routes.is_none() && settings == SettingsPatch::default() {
        return Err(Problem::bad_request(
            "nothing is to be changed: give `model` or `artifact`, `routes`, or settings",
        ));
    }
    let change = EndpointChange {
        add,
        weight: request.weight,
        routes: request.routes,
        settings,
        by: by.text(),
        reason: reason(&headers)?,
    };
    let endpoint = shared.catalog.change_endpoint(&name, change, expect).await?;
    let new = endpoint.created_at == endpoint.updated_at;
    shared.registry.follow().await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    tracing::info!(endpoint = %name, revision = endpoint.revision, "Endpoint {name} has changed");
    Ok(located(status, &format!("/v1/endpoints/{name}"), one(&shared, endpoint)))
}

/// One change of an endpoint.
#[derive(Serialize, ToSchema)]
pub(crate) struct EndpointRecordView {
    /// The revision that it made.
    revision: u64,
    /// When, RFC 3339.
    at: String,
    /// `api`, `job` or `rollback`; `key NAME (ID)` where a key was asked for.
    by: String,
    /// What was changed, and the routes that came of it.
    change: Value,
    /// Why, where it was said.
    reason: Option<String>,
}

/// The changes of an endpoint.
#[derive(Serialize, ToSchema)]
pub(crate) struct EndpointRecords {
    /// Newest first, at most 200. They stay when the endpoint is deleted.
    items: Vec<EndpointRecordView>,
}

/// The changes that an endpoint has seen: when, by whom, why.
#[utoipa::path(get, path = "/v1/endpoints/{name}/changes", operation_id = "list_endpoint_changes", tag = "endpoints", params(("name" = String, Path)),
    responses((status = 200, description = "The changes", body = EndpointRecords),
        (status = 404, description = "There never was such an endpoint", body = ProblemBody)))]
pub(crate) async fn changes(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<EndpointRecords>, Problem> {
    let name: Name = name.parse()?;
    let records = shared.catalog.endpoint_records(&name).await?;
    if records.is_empty() {
        return Err(store::Error::NotFound { kind: store::Kind::Endpoint, id: name.to_string() }.into());
    }
    let view = |record: EndpointRecord| EndpointRecordView {
        revision: record.revision,
        at: record.at.to_string(),
        by: record.by,
        change: record.change,
        reason: record.reason,
    };
    Ok(Json(EndpointRecords { items: records.into_iter().map(view).collect() }))
}

/// Statistics of the requests that were compared with float: histograms of all values, nothing of a sample.
///
/// The endpoint collects them where `shadow.statistics` is set, from then until it is loaded anew. As a dataset they are
/// calibration data for a job of the same model.
#[utoipa::path(get, path = "/v1/endpoints/{name}/statistics", operation_id = "get_endpoint_statistics", tag = "endpoints", params(("name" = String, Path)),
    responses((status = 200, description = "The file", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "No such endpoint, or it has collected none", body = ProblemBody)))]
pub(crate) async fn statistics(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let served = shared.registry.find(&name, None)?;
    let none = "it has collected no statistics: set `shadow` with `fraction` above 0 and `statistics`: true";
    let none = || Problem::new(Code::NotFound, format!("endpoint `{name}`: {none}"));
    let live = served.live.clone().ok_or_else(none)?;
    let encoded = tokio::task::spawn_blocking(move || {
        let live = live.lock().unwrap_or_else(PoisonError::into_inner);
        (live.samples() > 0).then(|| live.statistics().encode())
    });
    let bytes = encoded.await.map_err(Problem::internal)?.ok_or_else(none)?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

/// Takes an endpoint out of service. The model and the artifact stay.
#[utoipa::path(delete, path = "/v1/endpoints/{name}", operation_id = "delete_endpoint", tag = "endpoints",
    params(("name" = String, Path),
        ("If-Match" = Option<String>, Header, description = "The ETag that the endpoint must have; `*`: it must exist")),
    responses((status = 204, description = "Deleted"),
        (status = 404, description = "No such endpoint", body = ProblemBody),
        (status = 412, description = "It is not as the headers expect", body = ProblemBody)))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    by: By,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let name: Name = name.parse()?;
    let expect = expectation(&headers)?;
    shared.catalog.delete_endpoint(&name, expect, &by.text()).await?;
    shared.registry.follow().await?;
    tracing::info!(endpoint = %name, "Endpoint {name} is deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// What `Octet-Reason` says.
fn reason(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("octet-reason") else { return Ok(None) };
    // As curl sends what is typed. `HeaderValue::to_str` knows ASCII only.
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| Problem::bad_request("`Octet-Reason` is not UTF-8"))?;
    let length = text.chars().count();
    if length > REASON_CHARS_MAX {
        return Err(Problem::bad_request(format!(
            "`Octet-Reason` has {length} characters, it may have {REASON_CHARS_MAX}"
        )));
    }
    Ok(Some(text.to_owned()))
}

/// What `If-Match` and `If-None-Match` say.
fn expectation(headers: &HeaderMap) -> Result<Expect, Problem> {
    if let Some(text) = header_text(headers, "if-match") {
        if text.trim() == "*" {
            return Ok(Expect::Present);
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
