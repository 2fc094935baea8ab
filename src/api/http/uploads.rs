//! Takes files: streamed to disk while they are hashed, checked by the engine before anybody sees them.

use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use futures::{Stream, StreamExt};

use crate::api::Context;
use crate::api::error::Problem;
use crate::api::http::{broken_body, check_length, header_text, linger};
use crate::engine::pipeline;
use crate::service::store::Digest;
use crate::service::store::blobs::{BlobWriter, Pin};

/// What looks into a file before it is kept.
type Inspect = Box<dyn FnOnce(&Path) -> Result<serde_json::Value, pipeline::Error> + Send>;
/// What makes one file of an archive that is at most so long; `None` where the file is none.
type Unpack = fn(&Path, u64) -> Result<Option<Vec<u8>>, pipeline::Error>;

/// What kind of file is taken.
pub(crate) struct Kind {
    /// Most bytes, as sent and as kept.
    pub(crate) limit_bytes: u64,
    /// Where the file may be an archive: what is kept instead.
    pub(crate) unpack: Option<Unpack>,
    /// What looks into the file that will be kept.
    pub(crate) inspect: Inspect,
}

/// Keeps a body as a blob; gives what `inspect` found in it.
///
/// # Errors
/// 413 beyond `limit_bytes`, 400 where the body breaks off or is not what its digest says, 422 by `inspect`.
pub(crate) async fn receive(
    shared: &Context,
    headers: &HeaderMap,
    body: Body,
    kind: Kind,
) -> Result<(Pin, serde_json::Value), Problem> {
    let expected = content_digest(headers)?;
    if let Err(problem) = check_length(headers, kind.limit_bytes) {
        linger(headers, body);
        return Err(problem);
    }
    let mut stream = body.into_data_stream();
    let received = receive_stream(shared, &mut stream, expected, kind).await;
    if received.is_err() {
        linger(headers, Body::from_stream(stream));
    }
    received
}

/// Keeps a stream of bytes as a blob.
///
/// # Errors
/// As [`receive`].
pub(crate) async fn receive_stream<E: std::error::Error>(
    shared: &Context,
    mut stream: impl Stream<Item = Result<bytes::Bytes, E>> + Unpin,
    expected: Option<Digest>,
    kind: Kind,
) -> Result<(Pin, serde_json::Value), Problem> {
    let Kind { limit_bytes, unpack, inspect } = kind;
    let (writer, expected) = written(shared, &mut stream, expected, limit_bytes, unpack).await?;
    inspected(shared, writer, expected, inspect).await
}

/// Looks into a stream of bytes, and keeps none of them.
///
/// # Errors
/// As [`receive`].
pub(crate) async fn look_into<E: std::error::Error>(
    shared: &Context,
    mut stream: impl Stream<Item = Result<bytes::Bytes, E>> + Unpin,
    kind: Kind,
) -> Result<serde_json::Value, Problem> {
    let Kind { limit_bytes, unpack, inspect } = kind;
    let (writer, _) = written(shared, &mut stream, None, limit_bytes, unpack).await?;
    let path = writer.path().to_owned();
    let found = blocking(move || inspect(&path)).await;
    drop(writer);
    shared.metrics.set_uploads_incomplete(shared.blobs.incomplete());
    found
}

/// Writes a stream aside: the bytes as sent, or the file that an archive makes. Gives the digest that is still to be
/// checked.
async fn written<E: std::error::Error>(
    shared: &Context,
    stream: &mut (impl Stream<Item = Result<bytes::Bytes, E>> + Unpin),
    expected: Option<Digest>,
    limit_bytes: u64,
    unpack: Option<Unpack>,
) -> Result<(BlobWriter, Option<Digest>), Problem> {
    let mut writer = shared.blobs.writer(limit_bytes).await?;
    shared.metrics.set_uploads_incomplete(shared.blobs.incomplete());
    while let Some(part) = next_part(stream, shared.limits.request_timeout).await? {
        let part = part.map_err(|error| broken_body(&error))?;
        shared.metrics.upload_bytes(part.len() as u64);
        writer.write(&part).await?;
    }
    if writer.bytes() == 0 {
        return Err(Problem::bad_request("the body is empty: send the bytes of the file"));
    }
    writer.flush().await?;
    if let Some(unpack) = unpack {
        let path = writer.path().to_owned();
        if let Some(whole) = blocking(move || unpack(&path, limit_bytes)).await? {
            // The digest is that of what was sent.
            writer.expect(expected)?;
            writer = shared.blobs.writer(limit_bytes).await?;
            writer.write(&whole).await?;
            writer.flush().await?;
            return Ok((writer, None));
        }
    }
    Ok((writer, expected))
}

/// Keeps what was written if `inspect` takes it.
async fn inspected(
    shared: &Context,
    writer: BlobWriter,
    expected: Option<Digest>,
    inspect: Inspect,
) -> Result<(Pin, serde_json::Value), Problem> {
    let path = writer.path().to_owned();
    let info = blocking(move || inspect(&path)).await?;
    let pin = writer.finish(expected).await?;
    shared.metrics.set_uploads_incomplete(shared.blobs.incomplete());
    Ok((pin, info))
}

/// Does work that blocks where it holds nobody up.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, pipeline::Error> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|panic| Problem::internal(format!("looking into a file: {panic}")))??)
}

/// The next part of a body; `None` at its end.
///
/// # Errors
/// 400 where none comes for so long.
pub(crate) async fn next_part<T>(
    stream: &mut (impl Stream<Item = T> + Unpin),
    patience: Duration,
) -> Result<Option<T>, Problem> {
    tokio::time::timeout(patience, stream.next())
        .await
        .map_err(|_| Problem::bad_request(format!("no bytes came for {} s", patience.as_secs_f64())))
}

/// The SHA-256 of `Content-Digest: sha-256=:BASE64:` (RFC 9530), where given.
fn content_digest(headers: &HeaderMap) -> Result<Option<Digest>, Problem> {
    let Some(text) = header_text(headers, "content-digest") else { return Ok(None) };
    let member = text.split(',').find_map(|m| m.trim().strip_prefix("sha-256="));
    // Other algorithms may be ignored (RFC 9530, section 2).
    let Some(member) = member else { return Ok(None) };
    let bytes = member.strip_prefix(':').and_then(|m| m.strip_suffix(':')).and_then(base64);
    match bytes.and_then(|b| <[u8; 32]>::try_from(b).ok()) {
        Some(digest) => Ok(Some(Digest(digest))),
        None => Err(Problem::bad_request("Content-Digest: `sha-256` must be 32 bytes as `:BASE64:`")),
    }
}

/// Bytes of base64 with padding (RFC 4648, section 4).
fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let plain = text.trim_end_matches('=');
    if text.len() - plain.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(plain.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for c in plain.bytes() {
        bits = bits << 6 | u32::from(digit(c)?);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_reads_what_it_should() {
        // RFC 4648, section 10.
        for (text, want) in [
            ("", Some("")),
            ("Zg==", Some("f")),
            ("Zm8=", Some("fo")),
            ("Zm9v", Some("foo")),
            ("Zm9vYmFy", Some("foobar")),
            ("Zm9", None),
            ("Zm9*", None),
            ("Z===", None),
        ] {
            assert_eq!(base64(text).as_deref(), want.map(str::as_bytes), "{text}");
        }
    }
}
