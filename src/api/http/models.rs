//! Models: upload, list, find, download, delete.

use axum::Json;
use axum::body::Body;
use axum::extract::{Multipart, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::access::By;
use crate::api::error::Problem;
use crate::api::http::artifacts::{Download, download};
use crate::api::http::fields::Query;
use crate::api::http::{Listing, ProblemBody, Shared, etag, listing, located, page, uploads};
use crate::api::{Context, Limits};
use crate::engine::pipeline;
use crate::service::store::blobs::Pin;
use crate::service::store::{Created, Model, Name, NewModel, Owner, Wanted};

/// A float model as uploaded. Never changes.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelView {
    /// `model_…`.
    id: String,
    /// The name it was uploaded under.
    name: String,
    /// Which upload under the name: 1, 2, ….
    version: u32,
    /// Of the file, 64 hexadecimal digits.
    sha256: String,
    /// Size of the file.
    bytes: u64,
    /// What was found in it: inputs, outputs, operators.
    info: serde_json::Value,
    /// When it was uploaded first, RFC 3339.
    created_at: String,
}

impl From<Model> for ModelView {
    fn from(model: Model) -> ModelView {
        ModelView {
            id: model.id.to_string(),
            name: model.name.to_string(),
            version: model.version.0,
            sha256: model.sha256.to_string(),
            bytes: model.bytes,
            info: model.info,
            created_at: model.created_at.to_string(),
        }
    }
}

/// Uploads a model.
///
/// The body is the ONNX file, of any `Content-Type`; or, where the model has its data in other files, a zip or tar
/// file with the ONNX file (`….onnx`) and those: what is kept is one ONNX file with all data in it. It makes
/// version 1, 2, … of the name; bytes that the name already has make none and give the version that holds them (200
/// instead of 201).
#[utoipa::path(put, path = "/v1/models/{name}", operation_id = "upload_model", tag = "models",
    params(("name" = String, Path, description = "1 to 128 of A-Z a-z 0-9 . _ -")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "A new version", body = ModelView),
        (status = 200, description = "The version that holds these bytes already", body = ModelView),
        (status = 413, description = "Longer than `limits.model_bytes`, or more than the quota of the key has room for",
            body = ProblemBody),
        (status = 422, description = "Not a model that can be run", body = ProblemBody)))]
pub(crate) async fn put(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    by: By,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let name: Name = name.parse()?;
    let (pin, info) = uploads::receive(&shared, &headers, body, kind(&shared)).await?;
    keep(&shared, name, &pin, info, &by).await
}

/// What a file must be to become a model.
pub(crate) fn kind(shared: &Context) -> uploads::Kind {
    let Limits { model_bytes, model_memory_bytes, .. } = shared.limits;
    uploads::Kind {
        limit_bytes: model_bytes,
        unpack: Some(pipeline::files::unpacked),
        inspect: Box::new(move |path| pipeline::inspect::inspect(path, model_memory_bytes)),
    }
}

/// A form with an ONNX file.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the form to the OpenAPI document only")]
pub(crate) struct ModelForm {
    /// The name; it must come before the file.
    name: String,
    /// The ONNX file, or a zip or tar file with it and its data.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Uploads a model as a form: `curl -F name=NAME -F file=@model.onnx`.
#[utoipa::path(post, path = "/v1/models", operation_id = "upload_model_form", tag = "models",
    request_body(content = ModelForm, content_type = "multipart/form-data"),
    responses(
        (status = 201, description = "A new version", body = ModelView),
        (status = 200, description = "The version that holds these bytes already", body = ModelView),
        (status = 422, description = "Not a model that can be run", body = ProblemBody)))]
pub(crate) async fn post(
    State(shared): State<Shared>,
    by: By,
    mut form: Multipart,
) -> Result<Response, Problem> {
    let broken = |e: axum::extract::multipart::MultipartError| Problem::bad_request(e.body_text());
    let mut name: Option<Name> = None;
    while let Some(field) = form.next_field().await.map_err(broken)? {
        match field.name() {
            Some("name") => {
                let text = short_text(field).await?;
                name = Some(text.parse()?);
            }
            Some("file") => {
                let Some(name) = name else {
                    return Err(Problem::bad_request("the field `name` must come before `file`"));
                };
                let received = uploads::receive_stream(&shared, field, None, kind(&shared)).await;
                let (pin, info) = received?;
                return keep(&shared, name, &pin, info, &by).await;
            }
            other => {
                let other = other
                    .map_or("a field without a name".to_owned(), |name| format!("unknown field `{name}`"));
                return Err(Problem::bad_request(format!("{other}; send `name`, then `file`")));
            }
        }
    }
    Err(Problem::bad_request("the form has no field `file`"))
}

/// A field that is a name and no file.
async fn short_text(mut field: axum::extract::multipart::Field<'_>) -> Result<String, Problem> {
    const BYTES_MAX: usize = 1024;
    let mut text = Vec::new();
    while let Some(part) = field.chunk().await.map_err(|e| Problem::bad_request(e.body_text()))? {
        text.extend_from_slice(&part);
        if text.len() > BYTES_MAX {
            return Err(Problem::bad_request(format!("the field `name` is longer than {BYTES_MAX} bytes")));
        }
    }
    String::from_utf8(text).map_err(|_| Problem::bad_request("the field `name` is not UTF-8"))
}

/// Makes the row while the pin keeps the file.
pub(crate) async fn create(
    shared: &Context,
    name: Name,
    pin: &Pin,
    info: serde_json::Value,
    owner: Option<Owner>,
) -> Result<Created<Model>, Problem> {
    let new = NewModel { name, sha256: pin.digest(), bytes: pin.bytes(), info, owner };
    let created = shared.catalog.create_model(new).await?;
    if created.new {
        let (model, bytes) = (created.record.pinned(), created.record.bytes);
        tracing::info!(%model, bytes, "Model {model} is kept");
    }
    Ok(created)
}

async fn keep(
    shared: &Shared,
    name: Name,
    pin: &Pin,
    info: serde_json::Value,
    by: &By,
) -> Result<Response, Problem> {
    let Created { record, new } = create(shared, name, pin, info, by.owner()).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    let path = format!("/v1/models/{}", record.pinned());
    Ok(located(status, &path, one(record)))
}

fn one(record: Model) -> Response {
    let tag = etag(record.sha256);
    ([(header::ETAG, tag)], Json(ModelView::from(record))).into_response()
}

/// Which models.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelsQuery {
    /// All versions of this name only.
    name: Option<String>,
    /// At most so many, 1 to 200; without it 50.
    limit: Option<u32>,
    /// The `next_cursor` of the part before.
    cursor: Option<String>,
}

/// Lists models, all versions, newest first.
#[utoipa::path(get, path = "/v1/models", operation_id = "list_models", tag = "models", params(ModelsQuery),
    responses((status = 200, description = "A part of the list", body = Listing<ModelView>)))]
pub(crate) async fn list(
    State(shared): State<Shared>,
    Query(query): Query<ModelsQuery>,
) -> Result<Response, Problem> {
    let page = page(query.limit, query.cursor.as_deref())?;
    let name: Option<Name> = query.name.as_deref().map(str::parse).transpose()?;
    let slice = shared.catalog.models(name.as_ref(), &page).await?;
    let asked = [("name", query.name.as_deref())];
    Ok(listing(slice, "/v1/models", &asked, page.limit, ModelView::from))
}

/// Finds a model.
#[utoipa::path(get, path = "/v1/models/{name}", operation_id = "get_model", tag = "models",
    params(("name" = String, Path, description = "`NAME` is the newest version, `NAME@2` that one")),
    responses((status = 200, description = "The model", body = ModelView),
        (status = 404, description = "No such model", body = ProblemBody)))]
pub(crate) async fn get(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    let wanted: Wanted = name.parse()?;
    Ok(one(shared.catalog.model(&wanted).await?))
}

/// Downloads the ONNX file of a model.
#[utoipa::path(get, path = "/v1/models/{name}/download", operation_id = "download_model", tag = "models",
    params(("name" = String, Path, description = "`NAME` is the newest version, `NAME@2` that one")),
    responses((status = 200, description = "The file", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, description = "The asked part of the file"),
        (status = 304, description = "The client has it (`If-None-Match`)"),
        (status = 404, description = "No such model", body = ProblemBody),
        (status = 412, description = "Not the file of `If-Match`", body = ProblemBody),
        (status = 416, description = "A range outside of the file", body = ProblemBody)))]
pub(crate) async fn file(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wanted: Wanted = name.parse()?;
    let model = shared.catalog.model(&wanted).await?;
    let file_name = format!("{}-{}.onnx", model.name, model.version);
    download(&shared, &headers, Download { digest: model.sha256, file_name }).await
}

/// Deletes a version of a model, or all of them.
///
/// Jobs that need it end as failed with `model_deleted`. A model that an endpoint serves is not deleted.
#[utoipa::path(delete, path = "/v1/models/{name}", operation_id = "delete_model", tag = "models",
    params(("name" = String, Path, description = "`NAME` is all versions, `NAME@2` that one")),
    responses((status = 204, description = "Deleted"),
        (status = 404, description = "No such model", body = ProblemBody),
        (status = 409, description = "An endpoint serves it", body = ProblemBody)))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let wanted: Wanted = name.parse()?;
    let freed = shared.catalog.delete_model(&wanted.name, wanted.version).await?;
    shared.discard(&freed).await;
    tracing::info!(model = %wanted, "Model {wanted} is deleted");
    Ok(StatusCode::NO_CONTENT)
}
