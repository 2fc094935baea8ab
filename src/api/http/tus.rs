//! Uploads in parts, by tus 1.0.0 (<https://tus.io/protocols/resumable-upload>): what was acknowledged is on the disk, and
//! the last part makes a model or a dataset as `PUT` does.

use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio_util::io::ReaderStream;

use crate::api::access::By;
use crate::api::error::{Code, Problem};
use crate::api::http::{
    ProblemBody, Shared, broken_body, check_length, datasets, header_text, linger, models, uploads,
};
use crate::service::store::partial::{Becomes, Partial, Plan, Writer};
use crate::service::store::{self, Name, Owner, UploadId};

const VERSION: HeaderValue = HeaderValue::from_static("1.0.0");
const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const TUS_VERSION: HeaderName = HeaderName::from_static("tus-version");
const TUS_EXTENSION: HeaderName = HeaderName::from_static("tus-extension");
const TUS_MAX_SIZE: HeaderName = HeaderName::from_static("tus-max-size");
const TUS_CHECKSUM: HeaderName = HeaderName::from_static("tus-checksum-algorithm");
pub(crate) const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const UPLOAD_EXPIRES: HeaderName = HeaderName::from_static("upload-expires");

/// Header fields that the protocol wants in refusals too.
pub(crate) const OF_REFUSALS: [HeaderName; 2] = [TUS_RESUMABLE, TUS_VERSION];

/// The media type of a part.
const PART: &str = "application/offset+octet-stream";
/// What was received is synced and acknowledged each time so many bytes have come.
const KEEP_BYTES: u64 = 16 << 20;
/// Longest `Upload-Metadata`.
const METADATA_BYTES_MAX: usize = 4096;

/// Refuses another version of the protocol, and says in each answer which is spoken.
pub(crate) async fn speak(request: Request, next: Next) -> Response {
    let ours = request.headers().get(&TUS_RESUMABLE).is_some_and(|version| version == VERSION);
    let mut response = if ours || request.method() == Method::OPTIONS {
        next.run(request).await
    } else {
        let text = "send `Tus-Resumable: 1.0.0`, the one version that is spoken";
        let mut response = Problem::new(Code::TusVersion, text).into_response();
        response.headers_mut().insert(TUS_VERSION, VERSION);
        response
    };
    response.headers_mut().insert(TUS_RESUMABLE, VERSION);
    response
}

/// What is spoken: versions, extensions, limits. Needs no `Tus-Resumable`.
#[utoipa::path(options, path = "/v1/uploads", operation_id = "describe_uploads", tag = "uploads",
    responses((status = 204, description = "In the header fields `Tus-…`")))]
pub(crate) async fn options(State(shared): State<Shared>) -> Response {
    let longest = shared.limits.model_bytes.max(shared.limits.dataset_bytes);
    let extensions = "creation,creation-with-upload,checksum,expiration,termination";
    let fields = [
        (TUS_VERSION, VERSION),
        (TUS_EXTENSION, HeaderValue::from_static(extensions)),
        (TUS_MAX_SIZE, HeaderValue::from(longest)),
        (TUS_CHECKSUM, HeaderValue::from_static("sha256,sha1")),
    ];
    (StatusCode::NO_CONTENT, fields).into_response()
}

/// Begins an upload in parts.
///
/// `Upload-Metadata` has `kind` (`model` or `dataset`) and `name`, each followed by its value as base64; other keys are
/// given back and mean nothing. A body of type `application/offset+octet-stream` is the first part.
#[utoipa::path(post, path = "/v1/uploads", operation_id = "create_upload", tag = "uploads",
    params(("Tus-Resumable" = String, Header, description = "`1.0.0`", example = "1.0.0"),
        ("Upload-Length" = u64, Header, description = "Bytes of the file", example = 1_000_000),
        ("Upload-Metadata" = String, Header, description = "`kind bW9kZWw=,name cmVzbmV0OA==`",
            example = "kind bW9kZWw=,name cmVzbmV0OA=="),
        ("Upload-Checksum" = Option<String>, Header, description = "Of the body: `sha256 BASE64` or `sha1 BASE64`")),
    responses(
        (status = 201, description = "Begun; `Location` is where the parts go. Where the body was the whole file, \
            `Content-Location` names the model or dataset"),
        (status = 400, description = "A header field is not what it must be", body = ProblemBody),
        (status = 412, description = "Another version of tus", body = ProblemBody),
        (status = 413, description = "Longer than the limit of its kind, or more than the quota of the key has room for",
            body = ProblemBody),
        (status = 422, description = "The whole file came, and is refused", body = ProblemBody),
        (status = 460, description = "The body is not what its checksum says", body = ProblemBody)))]
pub(crate) async fn post(
    State(shared): State<Shared>,
    by: By,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let plan = plan(&shared, &headers, by.owner());
    let plan = match plan {
        Ok(plan) => match has_room(&shared, &plan).await {
            Ok(()) => plan,
            Err(problem) => return refuse(&headers, body, problem),
        },
        Err(problem) => return refuse(&headers, body, problem),
    };
    let created = shared.partials.create(plan).await?;
    let id = created.id;
    let location = HeaderValue::try_from(format!("/v1/uploads/{id}")).map_err(Problem::internal)?;
    let mut partial = created;
    if is_part(&headers) {
        partial = part(shared, id, 0, headers, body).await?;
    }
    let mut response = answer(StatusCode::CREATED, &partial);
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// How far an upload is.
#[utoipa::path(head, path = "/v1/uploads/{id}", operation_id = "get_upload_offset", tag = "uploads", params(("id" = String, Path)),
    responses((status = 200, description = "In `Upload-Offset`, `Upload-Length`, `Upload-Expires`; what it has become in \
            `Content-Location`"),
        (status = 404, description = "No such upload in this server")))]
pub(crate) async fn head(State(shared): State<Shared>, Path(id): Path<String>) -> Result<Response, Problem> {
    let partial = shared.partials.find(id.parse()?)?;
    let mut response = answer(StatusCode::OK, &partial);
    let fields = response.headers_mut();
    fields.insert(UPLOAD_LENGTH, HeaderValue::from(partial.plan.bytes));
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(metadata) = HeaderValue::try_from(&partial.plan.metadata) {
        fields.insert(UPLOAD_METADATA, metadata);
    }
    Ok(response)
}

/// Adds a part to an upload. The last one makes the model or dataset.
#[utoipa::path(patch, path = "/v1/uploads/{id}", operation_id = "append_upload", tag = "uploads",
    params(("id" = String, Path), ("Upload-Offset" = u64, Header, description = "Where the part begins", example = 0),
        ("Upload-Checksum" = Option<String>, Header, description = "Of the part: `sha256 BASE64` or `sha1 BASE64`")),
    request_body(content = Vec<u8>, content_type = "application/offset+octet-stream"),
    responses(
        (status = 204, description = "Kept up to `Upload-Offset`; after the last part `Content-Location` names the model \
            or dataset"),
        (status = 404, description = "No such upload in this server", body = ProblemBody),
        (status = 409, description = "The upload is at another offset", body = ProblemBody),
        (status = 413, description = "More bytes than were announced, or than the quota of the key has room for", body = ProblemBody),
        (status = 415, description = "Another `Content-Type`", body = ProblemBody),
        (status = 422, description = "The file is whole, and refused: the upload is gone", body = ProblemBody),
        (status = 423, description = "Another request works on the upload", body = ProblemBody),
        (status = 460, description = "The part is not what its checksum says, and was not kept", body = ProblemBody)))]
pub(crate) async fn patch(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id: UploadId = id.parse()?;
    if !is_part(&headers) {
        let problem = Problem::new(Code::UnsupportedMedia, format!("send a part as `Content-Type: {PART}`"));
        return refuse(&headers, body, problem);
    }
    let offset = match number(&headers, &UPLOAD_OFFSET) {
        Ok(offset) => offset,
        Err(problem) => return refuse(&headers, body, problem),
    };
    let partial = part(shared, id, offset, headers, body).await?;
    Ok(answer(StatusCode::NO_CONTENT, &partial))
}

/// Gives an upload up.
#[utoipa::path(delete, path = "/v1/uploads/{id}", operation_id = "delete_upload", tag = "uploads", params(("id" = String, Path)),
    responses((status = 204, description = "Gone; a model or dataset that it has become stays"),
        (status = 404, description = "No such upload in this server", body = ProblemBody)))]
pub(crate) async fn delete(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    shared.partials.delete(id.parse()?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `PATCH` or `DELETE` for clients that can only send `POST`: `X-HTTP-Method-Override` has the method.
#[utoipa::path(post, path = "/v1/uploads/{id}", operation_id = "override_upload_method", tag = "uploads",
    params(("id" = String, Path), ("X-HTTP-Method-Override" = String, Header, description = "`PATCH` or `DELETE`", example = "DELETE")),
    responses((status = 204, description = "As that method"),
        (status = 400, description = "Another method, or none", body = ProblemBody)))]
pub(crate) async fn post_override(
    shared: State<Shared>,
    id: Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    match header_text(&headers, "x-http-method-override") {
        Some("PATCH") => patch(shared, id, headers, body).await,
        Some("DELETE") => delete(shared, id).await.map(IntoResponse::into_response),
        _ => Err(Problem::bad_request("send PATCH, or `X-HTTP-Method-Override: PATCH` or `DELETE`")),
    }
}

/// Refuses, and lets a client that is still sending hear of it.
fn refuse(headers: &HeaderMap, body: Body, problem: Problem) -> Result<Response, Problem> {
    linger(headers, body);
    Err(problem)
}

fn is_part(headers: &HeaderMap) -> bool {
    header_text(headers, "content-type").is_some_and(|kind| kind.trim().eq_ignore_ascii_case(PART))
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Result<u64, Problem> {
    let text = header_text(headers, name.as_str());
    let value = text.filter(|text| text.bytes().all(|b| b.is_ascii_digit())).and_then(|t| t.parse().ok());
    value.ok_or_else(|| Problem::bad_request(format!("`{name}` must be a whole number of bytes")))
}

/// What `Upload-Length` and `Upload-Metadata` ask for.
fn plan(shared: &Shared, headers: &HeaderMap, owner: Option<Owner>) -> Result<Plan, Problem> {
    if headers.contains_key("upload-defer-length") {
        return Err(Problem::bad_request("`Upload-Defer-Length` is not supported: send `Upload-Length`"));
    }
    let bytes = number(headers, &UPLOAD_LENGTH)?;
    let metadata = header_text(headers, UPLOAD_METADATA.as_str()).unwrap_or_default();
    if metadata.len() > METADATA_BYTES_MAX {
        let text = format!("`Upload-Metadata` is longer than {METADATA_BYTES_MAX} bytes");
        return Err(Problem::bad_request(text));
    }
    let (becomes, limit) = match value(metadata, "kind")?.as_str() {
        "model" => (Becomes::Model, shared.limits.model_bytes),
        "dataset" => (Becomes::Dataset, shared.limits.dataset_bytes),
        other => {
            let text = format!("`Upload-Metadata`: `kind` is `{other}`, it must be `model` or `dataset`");
            return Err(Problem::bad_request(text));
        }
    };
    let name: Name = value(metadata, "name")?.parse()?;
    if bytes == 0 {
        return Err(Problem::bad_request("`Upload-Length` is 0: an empty file is no model and no dataset"));
    }
    if bytes > limit {
        return Err(Problem::too_large(limit));
    }
    let (key, quota) = (owner.map(|owner| owner.key), owner.and_then(|owner| owner.quota));
    Ok(Plan { becomes, name, bytes, metadata: metadata.to_owned(), key, quota })
}

/// The value of a key of `Upload-Metadata`: `key BASE64,key BASE64`.
fn value(metadata: &str, key: &str) -> Result<String, Problem> {
    let pairs = metadata.split(',').map(|pair| pair.trim().split_once(' ').unwrap_or((pair.trim(), "")));
    let found = pairs.into_iter().find(|(name, _)| *name == key);
    let Some((_, text)) = found else {
        return Err(Problem::bad_request(format!("`Upload-Metadata` has no `{key}`: send `{key} BASE64`")));
    };
    let bytes = BASE64.decode(text.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    bytes.ok_or_else(|| {
        Problem::bad_request(format!("`Upload-Metadata`: the value of `{key}` is not text as base64"))
    })
}

/// Refuses at the start what would be refused at the end for want of room.
async fn has_room(shared: &Shared, plan: &Plan) -> Result<(), Problem> {
    let (Some(key), Some(quota)) = (plan.key, plan.quota) else { return Ok(()) };
    let used = shared.catalog.stored_bytes(key).await? + shared.partials.announced_bytes(key);
    if used.saturating_add(plan.bytes) > quota {
        return Err(store::Error::QuotaExceeded { key, quota, used, asked: plan.bytes }.into());
    }
    Ok(())
}

fn answer(status: StatusCode, partial: &Partial) -> Response {
    let mut response = status.into_response();
    let fields = response.headers_mut();
    fields.insert(UPLOAD_OFFSET, HeaderValue::from(partial.offset));
    let milliseconds = u64::try_from(partial.expires_at().0).unwrap_or(0);
    let expires = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(milliseconds));
    if let Ok(expires) = HeaderValue::try_from(expires) {
        fields.insert(UPLOAD_EXPIRES, expires);
    }
    if let Some(Ok(path)) = partial.became.as_ref().map(HeaderValue::try_from) {
        fields.insert(header::CONTENT_LOCATION, path);
    }
    response
}

/// Takes a part in a task of its own: what has come is kept even when the client goes away and nobody waits any more.
async fn part(
    shared: Shared,
    id: UploadId,
    offset: u64,
    headers: HeaderMap,
    body: Body,
) -> Result<Partial, Problem> {
    let task = tokio::spawn(async move { take(&shared, id, offset, &headers, body).await });
    task.await.map_err(|panic| Problem::internal(format!("taking a part: {panic}")))?
}

async fn take(
    shared: &Shared,
    id: UploadId,
    offset: u64,
    headers: &HeaderMap,
    body: Body,
) -> Result<Partial, Problem> {
    let begun = async {
        let checksum = Checksum::of(headers)?;
        let left = shared.partials.find(id)?.plan.bytes.saturating_sub(offset);
        let writer = shared.partials.write(id, offset).await?;
        check_length(headers, left)?;
        Ok((checksum, writer))
    };
    let (checksum, mut writer) = match begun.await {
        Ok(begun) => begun,
        Err(problem) => {
            linger(headers, body);
            return Err(problem);
        }
    };
    if writer.partial().became.is_some() {
        return Ok(writer.partial());
    }
    let mut stream = body.into_data_stream();
    if let Err(problem) = receive(shared, &mut writer, &mut stream, checksum).await {
        drop(writer);
        linger(headers, Body::from_stream(stream));
        return Err(problem);
    }
    if !writer.is_whole() {
        return Ok(writer.partial());
    }
    finish(shared, writer).await
}

/// Writes and keeps a part. With a checksum nothing of it is kept before all has come; without one, what has come is kept
/// when the body breaks off.
async fn receive(
    shared: &Shared,
    writer: &mut Writer,
    stream: &mut axum::body::BodyDataStream,
    mut checksum: Option<Checksum>,
) -> Result<(), Problem> {
    let id = writer.partial().id;
    loop {
        let next = tokio::select! {
            biased;
            () = writer.is_wanted() => return Err(store::partial::Error::Busy { id }.into()),
            next = uploads::next_part(stream, shared.limits.request_timeout) => next,
        };
        let broken = match next {
            Ok(Some(Ok(bytes))) => {
                writer.append(&bytes).await?;
                match &mut checksum {
                    Some(checksum) => checksum.update(&bytes),
                    None if writer.unkept() >= KEEP_BYTES => writer.keep().await?,
                    None => {}
                }
                continue;
            }
            Ok(None) => break,
            Ok(Some(Err(error))) => broken_body(&error),
            Err(problem) => problem,
        };
        if checksum.is_none() {
            writer.keep().await?;
        }
        return Err(broken);
    }
    if let Some(checksum) = checksum {
        checksum.check()?;
    }
    Ok(writer.keep().await?)
}

/// Makes a model or dataset of an upload that is whole, as `PUT` does.
async fn finish(shared: &Shared, writer: Writer) -> Result<Partial, Problem> {
    let made = make(shared, &writer).await;
    match made {
        Ok(path) => Ok(writer.became(path).await?),
        Err(problem) => {
            // Sent again, these bytes would be refused again. In every other case the client may come back.
            if matches!(problem.code, Code::BadModel | Code::BadData | Code::TooLarge) {
                writer.remove().await?;
            }
            Err(problem)
        }
    }
}

async fn make(shared: &Shared, writer: &Writer) -> Result<String, Problem> {
    let Plan { becomes, name, key, quota, .. } = writer.partial().plan;
    let owner = key.map(|key| Owner { key, quota });
    let file = tokio::fs::File::open(writer.path()).await.map_err(Problem::internal)?;
    let bytes = ReaderStream::with_capacity(file, 256 << 10);
    match becomes {
        Becomes::Model => {
            let (pin, info) = uploads::receive_stream(shared, bytes, None, models::kind(shared)).await?;
            let created = models::create(shared, name, &pin, info, owner).await?;
            Ok(format!("/v1/models/{}", created.record.pinned()))
        }
        Becomes::Dataset => {
            let (pin, info) = uploads::receive_stream(shared, bytes, None, datasets::kind(shared)).await?;
            let created = datasets::create(shared, name, &pin, info, owner).await?;
            Ok(format!("/v1/datasets/{}", created.record.pinned()))
        }
    }
}

/// The checksum of a part, as announced and as it comes.
struct Checksum {
    expected: Vec<u8>,
    hash: Hash,
}

enum Hash {
    Sha256(Sha256),
    Sha1(Sha1),
}

impl Checksum {
    /// `Upload-Checksum: ALGORITHM BASE64`, where given.
    fn of(headers: &HeaderMap) -> Result<Option<Checksum>, Problem> {
        let Some(text) = headers.get("upload-checksum") else { return Ok(None) };
        let rule = || Problem::bad_request("`Upload-Checksum` must be `sha256 BASE64` or `sha1 BASE64`");
        let (algorithm, expected) =
            text.to_str().ok().and_then(|text| text.trim().split_once(' ')).ok_or_else(rule)?;
        let expected = BASE64.decode(expected.trim()).map_err(|_| rule())?;
        let (hash, length) = match algorithm {
            "sha256" => (Hash::Sha256(Sha256::new()), 32),
            "sha1" => (Hash::Sha1(Sha1::new()), 20),
            _ => return Err(rule()),
        };
        if expected.len() != length {
            return Err(rule());
        }
        Ok(Some(Checksum { expected, hash }))
    }

    fn update(&mut self, bytes: &[u8]) {
        match &mut self.hash {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Sha1(hash) => hash.update(bytes),
        }
    }

    fn check(self) -> Result<(), Problem> {
        let got = match self.hash {
            Hash::Sha256(hash) => hash.finalize().to_vec(),
            Hash::Sha1(hash) => hash.finalize().to_vec(),
        };
        if got == self.expected {
            return Ok(());
        }
        let text = "the part is not what `Upload-Checksum` says; it was not kept: send it again";
        Err(Problem::new(Code::ChecksumMismatch, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_are_keys_and_base64() {
        let metadata = "kind bW9kZWw=, name cmVzbmV0OA==,empty,odd ####,bytes /w==";
        let text = |key| value(metadata, key).map_err(|problem| problem.detail);
        assert_eq!(text("kind").unwrap(), "model");
        assert_eq!(text("name").unwrap(), "resnet8");
        assert_eq!(text("empty").unwrap(), "");
        for (key, want) in [("odd", "not text"), ("bytes", "not text"), ("nam", "no `nam`")] {
            assert!(text(key).unwrap_err().contains(want), "{key}");
        }
    }

    #[test]
    fn checksums_are_named_and_whole() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("upload-checksum", HeaderValue::from_static(text));
            Checksum::of(&headers)
        };
        // Of "abc": FIPS 180-4, examples.
        for text in
            ["sha1 qZk+NkcGgWq6PiVxeFDCbJzQ2J0=", "sha256 ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="]
        {
            let mut checksum = of(text).unwrap().unwrap();
            checksum.update(b"ab");
            checksum.update(b"c");
            checksum.check().unwrap();
            let problem = of(text).unwrap().unwrap().check().unwrap_err();
            assert_eq!(problem.code.status().as_u16(), 460);
        }
        for text in
            ["sha1", "md5 qZk+NkcGgWq6PiVxeFDCbJzQ2J0=", "sha256 qZk+NkcGgWq6PiVxeFDCbJzQ2J0=", "sha1 #"]
        {
            assert!(of(text).is_err(), "{text}");
        }
    }
}
