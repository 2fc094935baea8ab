//! Datasets: upload, list, find, download, delete.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::Context;
use crate::api::access::By;
use crate::api::error::Problem;
use crate::api::http::artifacts::{Download, download};
use crate::api::http::fields::Query;
use crate::api::http::{Listing, ProblemBody, Shared, etag, listing, located, page, uploads};
use crate::engine::pipeline;
use crate::service::store::blobs::Pin;
use crate::service::store::{Created, Dataset, Digest, Name, NewDataset, Owner, Wanted};

/// So many holders of the same bytes are named.
const HOLDERS_MAX: u32 = 20;

/// Calibration or evaluation inputs as uploaded. Never changes.
#[derive(Serialize, ToSchema)]
pub(crate) struct DatasetView {
    /// `data_…`.
    id: String,
    /// The name it was uploaded under.
    name: String,
    /// Which upload under the name: 1, 2, ….
    version: u32,
    /// Of the file, 64 hexadecimal digits.
    sha256: String,
    /// Size of the file.
    bytes: u64,
    /// How many samples it holds.
    samples: u64,
    /// What was found in it: arrays with types and shapes.
    info: serde_json::Value,
    /// When it was uploaded first, RFC 3339.
    created_at: String,
}

impl From<Dataset> for DatasetView {
    fn from(dataset: Dataset) -> DatasetView {
        DatasetView {
            id: dataset.id.to_string(),
            name: dataset.name.to_string(),
            version: dataset.version.0,
            sha256: dataset.sha256.to_string(),
            bytes: dataset.bytes,
            samples: dataset.samples,
            info: dataset.info,
            created_at: dataset.created_at.to_string(),
        }
    }
}

/// Uploads a dataset.
///
/// The body is an `.npz` file with one array for each input of the model, named as the input, the samples along
/// the first dimension; or an `.npy` file for a model with one input. Labels are an array `labels` of integers.
#[utoipa::path(put, path = "/v1/datasets/{name}", operation_id = "upload_dataset", tag = "datasets",
    params(("name" = String, Path, description = "1 to 128 of A-Z a-z 0-9 . _ -")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "A new version", body = DatasetView),
        (status = 200, description = "The version that holds these bytes already", body = DatasetView),
        (status = 413, description = "Longer than `limits.dataset_bytes`, or more than the quota of the key has room for",
            body = ProblemBody),
        (status = 422, description = "Not a dataset", body = ProblemBody)))]
pub(crate) async fn put(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    by: By,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let name: Name = name.parse()?;
    let (pin, info) = uploads::receive(&shared, &headers, body, kind(&shared)).await?;
    let Created { record, new } = create(&shared, name, &pin, info, by.owner()).await?;
    drop(pin);
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    let path = format!("/v1/datasets/{}", record.pinned());
    Ok(located(status, &path, one(record)))
}

/// What a file must be to become a dataset.
pub(crate) fn kind(shared: &Context) -> uploads::Kind {
    let limit_bytes = shared.limits.dataset_bytes;
    uploads::Kind {
        limit_bytes,
        unpack: None,
        inspect: Box::new(move |path| pipeline::inspect::inspect_dataset(path, limit_bytes)),
    }
}

/// Makes the row while the pin keeps the file.
pub(crate) async fn create(
    shared: &Context,
    name: Name,
    pin: &Pin,
    info: serde_json::Value,
    owner: Option<Owner>,
) -> Result<Created<Dataset>, Problem> {
    let samples = info.get("samples").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let new = NewDataset { name, sha256: pin.digest(), bytes: pin.bytes(), samples, info, owner };
    let created = shared.catalog.create_dataset(new).await?;
    if created.new {
        let (dataset, bytes) = (created.record.pinned(), created.record.bytes);
        tracing::info!(%dataset, bytes, "Dataset {dataset} is kept");
    }
    Ok(created)
}

fn one(record: Dataset) -> Response {
    let tag = etag(record.sha256);
    ([(header::ETAG, tag)], Json(DatasetView::from(record))).into_response()
}

/// Which datasets.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatasetsQuery {
    /// All versions of this name only.
    name: Option<String>,
    /// At most so many, 1 to 200; without it 50.
    limit: Option<u32>,
    /// The `next_cursor` of the part before.
    cursor: Option<String>,
}

/// Lists datasets, all versions, newest first.
#[utoipa::path(get, path = "/v1/datasets", operation_id = "list_datasets", tag = "datasets", params(DatasetsQuery),
    responses((status = 200, description = "A part of the list", body = Listing<DatasetView>)))]
pub(crate) async fn list(
    State(shared): State<Shared>,
    Query(query): Query<DatasetsQuery>,
) -> Result<Response, Problem> {
    let page = page(query.limit, query.cursor.as_deref())?;
    let name: Option<Name> = query.name.as_deref().map(str::parse).transpose()?;
    let slice = shared.catalog.datasets(name.as_ref(), &page).await?;
    let asked = [("name", query.name.as_deref())];
    Ok(listing(slice, "/v1/datasets", &asked, page.limit, DatasetView::from))
}

/// Finds a dataset.
#[utoipa::path(get, path = "/v1/datasets/{name}", operation_id = "get_dataset", tag = "datasets",
    params(("name" = String, Path, description = "`NAME` is the newest version, `NAME@2` that one")),
    responses((status = 200, description = "The dataset", body = DatasetView),
        (status = 404, description = "No such dataset", body = ProblemBody)))]
pub(crate) async fn get(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    let wanted: Wanted = name.parse()?;
    Ok(one(shared.catalog.dataset(&wanted).await?))
}

/// Downloads the file of a dataset.
#[utoipa::path(get, path = "/v1/datasets/{name}/download", operation_id = "download_dataset", tag = "datasets",
    params(("name" = String, Path, description = "`NAME` is the newest version, `NAME@2` that one")),
    responses((status = 200, description = "The file", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, description = "The asked part of the file"),
        (status = 304, description = "The client has it (`If-None-Match`)"),
        (status = 404, description = "No such dataset", body = ProblemBody),
        (status = 412, description = "Not the file of `If-Match`", body = ProblemBody),
        (status = 416, description = "A range outside of the file", body = ProblemBody)))]
pub(crate) async fn file(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wanted: Wanted = name.parse()?;
    let dataset = shared.catalog.dataset(&wanted).await?;
    let file_name = format!("{}-{}.npz", dataset.name, dataset.version);
    download(&shared, &headers, Download { digest: dataset.sha256, file_name }).await
}

/// What is left of datasets that were deleted: the proof.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeletionView {
    /// The datasets, `NAME@VERSION`.
    deleted: Vec<String>,
    /// When, RFC 3339.
    deleted_at: String,
    /// Their files.
    blobs: Vec<BlobView>,
}

/// A file of datasets that were deleted.
#[derive(Serialize, ToSchema)]
pub(crate) struct BlobView {
    /// Of the file, 64 hexadecimal digits.
    sha256: String,
    /// Size of the file.
    bytes: u64,
    /// Whether the store looked for the file after the deletion and it was not there.
    gone: bool,
    /// What else holds the same bytes, in words (`dataset other@1`); at most 20. Where this is empty and the file is not
    /// gone, a job or a download reads it, and it goes when that ends.
    referred_to_by: Vec<String>,
}

/// Deletes a version of a dataset, or all of them, and tells what is left of them. Queued jobs that need it fail with
/// `dataset_deleted`.
#[utoipa::path(delete, path = "/v1/datasets/{name}", operation_id = "delete_dataset", tag = "datasets",
    params(("name" = String, Path, description = "`NAME` is all versions, `NAME@2` that one")),
    responses((status = 200, description = "Deleted; which files are gone", body = DeletionView),
        (status = 404, description = "No such dataset", body = ProblemBody)))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<DeletionView>, Problem> {
    let wanted: Wanted = name.parse()?;
    let deleted = shared.catalog.delete_dataset(&wanted.name, wanted.version).await?;
    let deleted_at = (shared.clock)().to_string();
    let freed: Vec<Digest> = deleted.iter().map(|dataset| dataset.sha256).collect();
    shared.discard(&freed).await;
    tracing::info!(dataset = %wanted, "Dataset {wanted} is deleted");
    let mut blobs: Vec<BlobView> = Vec::new();
    for dataset in &deleted {
        blobs.push(BlobView {
            sha256: dataset.sha256.to_string(),
            bytes: dataset.bytes,
            gone: !shared.blobs.holds(dataset.sha256).await?,
            referred_to_by: shared.catalog.blob_holders(dataset.sha256, HOLDERS_MAX).await?,
        });
    }
    let deleted = deleted.iter().map(|dataset| dataset.pinned().to_string()).collect();
    Ok(Json(DeletionView { deleted, deleted_at, blobs }))
}
