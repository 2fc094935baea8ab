//! Triton's system shared memory extension over REST: what is registered, register, unregister.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::error::{Code, Problem};
use crate::api::http::{ErrorBody, Shared, parse_json, read_body};
use crate::api::v2::shared_memory::regions;
use crate::service::infer::shared_memory::Region;

/// A part of an object in POSIX shared memory.
#[derive(Serialize, ToSchema)]
pub(crate) struct RegionView {
    /// What requests call it.
    name: String,
    /// Name of the object.
    key: String,
    /// Its first byte in the object.
    offset: u64,
    /// Its length.
    byte_size: u64,
}

impl RegionView {
    fn new(name: String, region: &Region) -> RegionView {
        RegionView { name, key: region.key.clone(), offset: region.offset, byte_size: region.byte_size }
    }
}

/// What to register.
#[derive(Deserialize, ToSchema)]
pub(crate) struct RegisterRequest {
    /// Name of an object of POSIX shared memory, with or without a slash before it.
    key: String,
    /// First byte in the object.
    #[serde(default)]
    offset: u64,
    /// Length.
    byte_size: u64,
}

/// Lists the regions of shared memory.
#[utoipa::path(get, path = "/v2/systemsharedmemory/status", operation_id = "all_shared_memory_status", tag = "shared memory",
    responses((status = 200, description = "All regions", body = Vec<RegionView>),
        (status = 501, description = "`serving.shared_memory` is off", body = ErrorBody)))]
pub(crate) async fn status_all(State(shared): State<Shared>) -> Result<Json<Vec<RegionView>>, Problem> {
    let all = regions(&shared)?.regions();
    Ok(Json(all.into_iter().map(|(name, region)| RegionView::new(name, &region)).collect()))
}

/// Shows a region of shared memory.
#[utoipa::path(get, path = "/v2/systemsharedmemory/region/{name}/status", operation_id = "shared_memory_status", tag = "shared memory",
    params(("name" = String, Path)),
    responses((status = 200, description = "The region, alone in a list", body = Vec<RegionView>),
        (status = 404, description = "No such region", body = ErrorBody),
        (status = 501, description = "`serving.shared_memory` is off", body = ErrorBody)))]
pub(crate) async fn status(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<Vec<RegionView>>, Problem> {
    let region = regions(&shared)?.region(&name)?;
    Ok(Json(vec![RegionView::new(name, &region)]))
}

/// Registers a part of an object in POSIX shared memory, for inputs and outputs.
#[utoipa::path(post, path = "/v2/systemsharedmemory/region/{name}/register", operation_id = "register_shared_memory", tag = "shared memory",
    params(("name" = String, Path)),
    request_body(content = RegisterRequest, example = json!({"key": "/NAME", "offset": 0, "byte_size": 4096})),
    responses((status = 200, description = "Requests may name it"),
        (status = 400, description = "No such object, or it is shorter", body = ErrorBody),
        (status = 409, description = "The name is taken", body = ErrorBody),
        (status = 501, description = "`serving.shared_memory` is off", body = ErrorBody)))]
pub(crate) async fn register(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Problem> {
    let regions = regions(&shared)?;
    let bytes = read_body(&headers, body, shared.limits.json_body_bytes).await?;
    let RegisterRequest { key, offset, byte_size } = parse_json(&bytes, shared.limits.json_depth)?;
    regions.register(&name, &key, offset, byte_size)?;
    Ok(StatusCode::OK)
}

/// Forgets a region of shared memory, where there is one.
#[utoipa::path(post, path = "/v2/systemsharedmemory/region/{name}/unregister", operation_id = "unregister_shared_memory", tag = "shared memory",
    params(("name" = String, Path)),
    responses((status = 200, description = "There is none of this name"),
        (status = 501, description = "`serving.shared_memory` is off", body = ErrorBody)))]
pub(crate) async fn unregister(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    regions(&shared)?.unregister(&name);
    Ok(StatusCode::OK)
}

/// Forgets all regions of shared memory.
#[utoipa::path(post, path = "/v2/systemsharedmemory/unregister", operation_id = "unregister_all_shared_memory", tag = "shared memory",
    responses((status = 200, description = "There are none"),
        (status = 501, description = "`serving.shared_memory` is off", body = ErrorBody)))]
pub(crate) async fn unregister_all(State(shared): State<Shared>) -> Result<StatusCode, Problem> {
    regions(&shared)?.unregister_all();
    Ok(StatusCode::OK)
}

/// Shared memory of devices that the server does not use.
pub(crate) async fn no_cuda() -> Problem {
    Problem::new(Code::NotImplemented, "CUDA shared memory is not part of this server")
}
