//! Artifacts: list, find, download, reports, delete. Also how any file is downloaded: whole, in parts, not at all.

use std::io::SeekFrom;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;
use utoipa::{IntoParams, ToSchema};

use crate::api::error::{Code, Problem};
use crate::api::http::fields::Query;
use crate::api::http::{
    Listing, ProblemBody, Shared, etag, header_text, listing, names_tag, none_match, page,
};
use crate::engine::pipeline::compare;
use crate::service::store::{
    AccuracySummary, Artifact, ArtifactFilter, ArtifactId, Digest, LatencySummary, Name,
};

const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// Longest report that is read to be compared.
const REPORT_BYTES_MAX: u64 = 256 << 20;

/// The INT8 product of a job: a QDQ ONNX file. Never changes.
#[derive(Serialize, ToSchema)]
pub(crate) struct ArtifactView {
    /// `art_…`.
    id: String,
    /// The job that made it.
    job: String,
    /// The float model it was made from, `NAME@VERSION`.
    model: String,
    /// Of the file, 64 hexadecimal digits.
    sha256: String,
    /// Size of the file.
    bytes: u64,
    /// `bytes` over the bytes of the float model.
    size_ratio: f64,
    /// Float against INT8 on the evaluation data.
    accuracy: AccuracyView,
    /// Float against INT8.
    latency: LatencyView,
    /// Why the gate of the recipe is not kept; `null` where it is.
    gate_failure: Option<String>,
    /// Digests of what went in, the recipe in full, versions.
    manifest: serde_json::Value,
    /// Where to get the rest.
    links: ArtifactLinks,
    /// When it was committed, RFC 3339.
    created_at: String,
}

/// Where to get the files of an artifact.
#[derive(Serialize, ToSchema)]
pub(crate) struct ArtifactLinks {
    /// The QDQ ONNX file.
    download: String,
    /// The report as JSON.
    report: String,
    /// The report as a page.
    report_html: String,
    /// The statistics of the calibration, for `octet quantize --statistics`; `null` where none were kept.
    statistics: Option<String>,
}

/// Float against INT8 on the evaluation data.
#[derive(Serialize, ToSchema)]
pub(crate) struct AccuracyView {
    /// `top1` where there are labels, else `agreement`.
    metric: String,
    /// The float model's figure, 0 to 1.
    float: f64,
    /// The INT8 model's figure, 0 to 1.
    int8: f64,
    /// `int8 − float`.
    delta: f64,
    /// Share of samples on which both choose the same class.
    agreement: f64,
    /// Signal to quantization noise of the first output, in dB.
    sqnr_db: f64,
    /// Number of samples.
    samples: u64,
}

/// Median time of one run at batch 1.
#[derive(Serialize, ToSchema)]
pub(crate) struct LatencyView {
    /// The float model, milliseconds.
    float_ms: f64,
    /// The INT8 model, milliseconds.
    int8_ms: f64,
}

impl From<AccuracySummary> for AccuracyView {
    fn from(summary: AccuracySummary) -> AccuracyView {
        let AccuracySummary { metric, float, int8, delta, agreement, sqnr_db, samples } = summary;
        AccuracyView { metric, float, int8, delta, agreement, sqnr_db, samples }
    }
}

impl From<LatencySummary> for LatencyView {
    fn from(summary: LatencySummary) -> LatencyView {
        LatencyView { float_ms: summary.float_ms, int8_ms: summary.int8_ms }
    }
}

impl From<Artifact> for ArtifactView {
    fn from(artifact: Artifact) -> ArtifactView {
        let base = format!("/v1/artifacts/{}", artifact.id);
        ArtifactView {
            id: artifact.id.to_string(),
            job: artifact.job.to_string(),
            model: artifact.model.to_string(),
            sha256: artifact.sha256.to_string(),
            bytes: artifact.bytes,
            size_ratio: artifact.size_ratio,
            accuracy: artifact.accuracy.into(),
            latency: artifact.latency.into(),
            gate_failure: artifact.gate_failure,
            manifest: artifact.manifest,
            links: ArtifactLinks {
                download: format!("{base}/download"),
                report: format!("{base}/report"),
                report_html: format!("{base}/report.html"),
                statistics: artifact.statistics.map(|_| format!("{base}/statistics")),
            },
            created_at: artifact.created_at.to_string(),
        }
    }
}

/// Which artifacts.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ArtifactsQuery {
    /// Made from any version of this model only.
    model: Option<String>,
    /// Made by this job only.
    job: Option<String>,
    /// At most so many, 1 to 200; without it 50.
    limit: Option<u32>,
    /// The `next_cursor` of the part before.
    cursor: Option<String>,
}

/// Lists artifacts, newest first.
#[utoipa::path(get, path = "/v1/artifacts", operation_id = "list_artifacts", tag = "artifacts", params(ArtifactsQuery),
    responses((status = 200, description = "A part of the list", body = Listing<ArtifactView>)))]
pub(crate) async fn list(
    State(shared): State<Shared>,
    Query(query): Query<ArtifactsQuery>,
) -> Result<Response, Problem> {
    let page = page(query.limit, query.cursor.as_deref())?;
    let model: Option<Name> = query.model.as_deref().map(str::parse).transpose()?;
    let job = query.job.as_deref().map(str::parse).transpose()?;
    let filter = ArtifactFilter { model, job };
    let slice = shared.catalog.artifacts(&filter, &page).await?;
    let asked = [("model", query.model.as_deref()), ("job", query.job.as_deref())];
    Ok(listing(slice, "/v1/artifacts", &asked, page.limit, ArtifactView::from))
}

/// Finds an artifact.
#[utoipa::path(get, path = "/v1/artifacts/{id}", operation_id = "get_artifact", tag = "artifacts", params(("id" = String, Path)),
    responses((status = 200, description = "The artifact", body = ArtifactView),
        (status = 404, description = "No such artifact", body = ProblemBody)))]
pub(crate) async fn get(State(shared): State<Shared>, Path(id): Path<String>) -> Result<Response, Problem> {
    let artifact = find(&shared, &id).await?;
    let tag = etag(artifact.sha256);
    Ok(([(header::ETAG, tag)], Json(ArtifactView::from(artifact))).into_response())
}

/// Downloads the QDQ ONNX file. Parts are given for `Range`.
#[utoipa::path(get, path = "/v1/artifacts/{id}/download", operation_id = "download_artifact", tag = "artifacts", params(("id" = String, Path)),
    responses((status = 200, description = "The file", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, description = "The asked part of the file"),
        (status = 304, description = "The client has it (`If-None-Match`)"),
        (status = 404, description = "No such artifact", body = ProblemBody),
        (status = 412, description = "Not the file of `If-Match`", body = ProblemBody),
        (status = 416, description = "A range outside of the file", body = ProblemBody)))]
pub(crate) async fn file(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let artifact = find(&shared, &id).await?;
    let numbers = artifact.precision().as_str();
    let file_name = format!("{}-{}.{numbers}.onnx", artifact.model.name, artifact.model.version);
    download(&shared, &headers, Download { digest: artifact.sha256, file_name }).await
}

/// The report as JSON: float against INT8, overall and for each layer.
#[utoipa::path(get, path = "/v1/artifacts/{id}/report", operation_id = "get_report", tag = "artifacts", params(("id" = String, Path)),
    responses((status = 200, description = "The report", body = serde_json::Value),
        (status = 404, description = "No such artifact", body = ProblemBody)))]
pub(crate) async fn report(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let artifact = find(&shared, &id).await?;
    document(&shared, &headers, artifact.report, "application/json").await
}

/// The report as one self-contained page.
#[utoipa::path(get, path = "/v1/artifacts/{id}/report.html", operation_id = "get_report_html", tag = "artifacts", params(("id" = String, Path)),
    responses((status = 200, description = "The report", body = String, content_type = "text/html"),
        (status = 404, description = "No such artifact", body = ProblemBody)))]
pub(crate) async fn report_html(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let artifact = find(&shared, &id).await?;
    let mut response = document(&shared, &headers, artifact.report_html, "text/html; charset=utf-8").await?;
    response.headers_mut().extend(report_fields());
    Ok(response)
}

/// What keeps a report to itself, whatever names of strangers are in it: it has its style, runs nothing, loads nothing.
fn report_fields() -> [(header::HeaderName, HeaderValue); 2] {
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; base-uri 'none'; form-action 'none'; \
                          frame-ancestors 'none'";
    [
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ]
}

/// The statistics of the calibration: counts and extremes of the values of the model, no sample.
#[utoipa::path(get, path = "/v1/artifacts/{id}/statistics", operation_id = "get_artifact_statistics", tag = "artifacts", params(("id" = String, Path)),
    responses((status = 200, description = "The file", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "No such artifact, or none were kept", body = ProblemBody)))]
pub(crate) async fn statistics(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let artifact = find(&shared, &id).await?;
    let digest = artifact.statistics.ok_or_else(|| {
        Problem::new(Code::NotFound, format!("artifact `{id}` was made before statistics were kept"))
    })?;
    let file_name = format!("{}-{}.statistics.bin", artifact.model.name, artifact.model.version);
    download(&shared, &headers, Download { digest, file_name }).await
}

/// Compares two artifacts by their reports: recipes, figures, and the layers that changed, the most changed first. As
/// JSON, or as a page for `Accept: text/html`.
#[utoipa::path(get, path = "/v1/artifacts/{id}/diff/{other}", operation_id = "diff_artifacts", tag = "artifacts",
    params(("id" = String, Path, description = "The one before"), ("other" = String, Path, description = "The one after")),
    responses((status = 200, description = "What is different", body = serde_json::Value),
        (status = 404, description = "No such artifact", body = ProblemBody)))]
pub(crate) async fn diff(
    State(shared): State<Shared>,
    Path((id, other)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let before = report_value(&shared, &id).await?;
    let after = report_value(&shared, &other).await?;
    let (found, page) = compare::compare(&before, &after, [&id, &other]);
    // The media type of a page first or alone: what a browser asks for.
    let html =
        header_text(&headers, "accept").is_some_and(|accept| accept.trim_start().starts_with("text/html"));
    let vary = (header::VARY, HeaderValue::from_static("accept"));
    Ok(if html {
        (report_fields(), [vary], Html(page)).into_response()
    } else {
        ([vary], Json(found)).into_response()
    })
}

/// The report of an artifact.
async fn report_value(shared: &Shared, id: &str) -> Result<serde_json::Value, Problem> {
    let artifact = find(shared, id).await?;
    let bytes = shared.blobs.read(artifact.report, REPORT_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).map_err(Problem::internal)
}

/// Deletes an artifact. One that an endpoint serves is not deleted.
#[utoipa::path(delete, path = "/v1/artifacts/{id}", operation_id = "delete_artifact", tag = "artifacts", params(("id" = String, Path)),
    responses((status = 204, description = "Deleted"),
        (status = 404, description = "No such artifact", body = ProblemBody),
        (status = 409, description = "An endpoint serves it", body = ProblemBody)))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let id: ArtifactId = id.parse()?;
    let freed = shared.catalog.delete_artifact(id).await?;
    shared.discard(&freed).await;
    tracing::info!(artifact = %id, "Artifact {id} is deleted");
    Ok(StatusCode::NO_CONTENT)
}

async fn find(shared: &Shared, id: &str) -> Result<Artifact, Problem> {
    let id: ArtifactId = id.parse()?;
    Ok(shared.catalog.artifact(id).await?)
}

/// A file to hand out.
pub(crate) struct Download {
    /// Which blob.
    pub(crate) digest: Digest,
    /// What the client may call it: a name of ours, safe in a header.
    pub(crate) file_name: String,
}

/// Hands out a blob: whole, in part (RFC 9110, section 14), or not at all where the client has it.
pub(crate) async fn download(
    shared: &Shared,
    headers: &HeaderMap,
    wanted: Download,
) -> Result<Response, Problem> {
    let Download { digest, file_name } = wanted;
    let mut response = blob(shared, headers, digest).await?;
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Ok(value) = HeaderValue::try_from(format!("attachment; filename=\"{file_name}\"")) {
        fields.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// Hands out a report.
async fn document(
    shared: &Shared,
    headers: &HeaderMap,
    digest: Digest,
    content_type: &'static str,
) -> Result<Response, Problem> {
    let mut response = blob(shared, headers, digest).await?;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

async fn blob(shared: &Shared, headers: &HeaderMap, digest: Digest) -> Result<Response, Problem> {
    let tag = etag(digest);
    let common = [
        (header::ETAG, tag.clone()),
        // Of the whole file, so that what was put together of parts can be checked (RFC 9530).
        (
            REPR_DIGEST,
            HeaderValue::try_from(format!("sha-256=:{}:", BASE64.encode(digest.0)))
                .map_err(Problem::internal)?,
        ),
        (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        // The bytes under a digest never change.
        (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable")),
    ];
    if header_text(headers, "if-match").is_some_and(|text| !names_tag(text, &tag)) {
        let text = format!("`If-Match` does not name the ETag of the file, \"{digest}\"");
        return Ok(Problem::new(Code::RevisionMismatch, text).into_response());
    }
    if none_match(headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    let (mut file, length) = shared.blobs.open_file(digest).await?;
    // A stale If-Range asks for the whole file.
    let fresh = header_text(headers, "if-range").is_none_or(|t| t == tag);
    let range = header_text(headers, "range").filter(|_| fresh).and_then(|text| parse_range(text, length));
    match range {
        None => {
            let body = Body::from_stream(ReaderStream::with_capacity(file, 64 << 10));
            Ok((common, [(header::CONTENT_LENGTH, HeaderValue::from(length))], body).into_response())
        }
        Some(Err(())) => {
            let problem = Problem::new(Code::BadRange, format!("the file has {length} bytes"));
            let mut response = problem.into_response();
            if let Ok(value) = HeaderValue::try_from(format!("bytes */{length}")) {
                response.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            Ok(response)
        }
        Some(Ok((first, last))) => {
            file.seek(SeekFrom::Start(first)).await.map_err(Problem::internal)?;
            let count = last - first + 1;
            let body = Body::from_stream(ReaderStream::with_capacity(file.take(count), 64 << 10));
            let part = format!("bytes {first}-{last}/{length}");
            let part = HeaderValue::try_from(part).map_err(Problem::internal)?;
            let fields = [(header::CONTENT_LENGTH, HeaderValue::from(count)), (header::CONTENT_RANGE, part)];
            Ok((StatusCode::PARTIAL_CONTENT, common, fields, body).into_response())
        }
    }
}

/// First and last byte of a single range. `None` where the header is not one we take: then it is ignored, as
/// RFC 9110 allows (14.2). `Err` where it is, and lies outside.
fn parse_range(text: &str, length: u64) -> Option<Result<(u64, u64), ()>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let number =
        |text: &str| if text.is_empty() { Some(None) } else { text.trim().parse::<u64>().ok().map(Some) };
    let (first, last) = match (number(first)?, number(last)?) {
        (Some(first), last) => (first, last.unwrap_or(u64::MAX)),
        (None, Some(count)) => match length.checked_sub(count) {
            _ if count == 0 => return Some(Err(())),
            first => (first.unwrap_or(0), u64::MAX),
        },
        (None, None) => return None,
    };
    if last < first {
        return None;
    }
    Some(if first < length { Ok((first, last.min(length - 1))) } else { Err(()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_as_rfc_9110_has_them() {
        for (text, want) in [
            ("bytes=0-4", Some(Ok((0, 4)))),
            ("bytes=4-", Some(Ok((4, 9)))),
            ("bytes=-3", Some(Ok((7, 9)))),
            ("bytes=-30", Some(Ok((0, 9)))),
            ("bytes=9-99", Some(Ok((9, 9)))),
            ("bytes=10-", Some(Err(()))),
            ("bytes=-0", Some(Err(()))),
            ("bytes=5-4", None),
            ("bytes=0-1,3-4", None),
            ("bytes=-", None),
            ("items=0-1", None),
            ("bytes=a-b", None),
            ("bytes=99999999999999999999-", None),
        ] {
            assert_eq!(parse_range(text, 10), want, "{text}");
        }
    }
}
