//! Takes files: streamed to disk while they are hashed, checked by the engine before anybody sees them.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::{Stream, StreamExt};
use tokio::sync::{Semaphore, mpsc};

use crate::api::Context;
use crate::api::error::Problem;
use crate::api::http::{broken_body, check_length, header_text, linger};
use crate::engine::pipeline;
use crate::service::store::Digest;
use crate::service::store::blobs::{BlobWriter, Pin};

/// What looks into a file before it is kept.
type Inspect = Box<dyn FnOnce(&Path) -> Result<serde_json::Value, pipeline::Error> + Send>;
/// What writes the one file that an archive makes, at most so long; gives `false` where the file is none.
type Unpack = fn(&Path, u64, &mut dyn Write) -> Result<bool, pipeline::Error>;
/// A part of what an archive is unpacked to, and how many of them may wait to be written.
const PART_BYTES: usize = 1 << 20;
const PARTS_MAX: usize = 4;

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
    if let Some(unpack) = unpack
        && let Some(whole) = unpacked(shared, writer.path().to_owned(), limit_bytes, unpack).await?
    {
        // The digest is that of what was sent.
        writer.expect(expected)?;
        return Ok((whole, None));
    }
    Ok((writer, expected))
}

/// What the archive at `path` makes; `None` where the file is none. Part by part: it may be far larger than the memory.
async fn unpacked(
    shared: &Context,
    path: PathBuf,
    limit_bytes: u64,
    unpack: Unpack,
) -> Result<Option<BlobWriter>, Problem> {
    let (sender, mut parts) = mpsc::channel(PARTS_MAX);
    let work = tokio::spawn(blocking(move || {
        let mut out = BufWriter::with_capacity(PART_BYTES, Parts(sender));
        let found = unpack(&path, limit_bytes, &mut out)?;
        let flushed = out.flush();
        flushed.map_err(|source| pipeline::Error::Io { path: path.display().to_string(), source })?;
        Ok(found)
    }));
    let mut whole = None;
    while let Some(part) = parts.recv().await {
        let writer = match &mut whole {
            Some(writer) => writer,
            None => whole.insert(shared.blobs.writer(limit_bytes).await?),
        };
        writer.write(&part).await?;
    }
    work.await.map_err(|panic| Problem::internal(format!("unpacking a file: {panic}")))??;
    if let Some(writer) = &mut whole {
        writer.flush().await?;
    }
    Ok(whole)
}

/// Hands what is written over to whoever receives it.
struct Parts(mpsc::Sender<Vec<u8>>);

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(PART_BYTES)];
        let sent = self.0.blocking_send(part.to_vec());
        sent.map(|()| part.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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

/// So many files are looked into at a time; others wait. Each holds a model in memory.
static AT_ONCE: Semaphore = Semaphore::const_new(2);

/// Looks into a file where it holds nobody up.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, pipeline::Error> + Send + 'static,
) -> Result<T, Problem> {
    let permit = AT_ONCE.acquire().await.map_err(Problem::internal)?;
    let work = move || {
        // Until it ends, also where the client hangs up.
        let _permit = permit;
        work()
    };
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
    let bytes =
        member.strip_prefix(':').and_then(|m| m.strip_suffix(':')).and_then(|text| BASE64.decode(text).ok());
    match bytes.and_then(|b| <[u8; 32]>::try_from(b).ok()) {
        Some(digest) => Ok(Some(Digest(digest))),
        None => Err(Problem::bad_request("Content-Digest: `sha-256` must be 32 bytes as `:BASE64:`")),
    }
}
