//! Blobs in an object store that several processes share: S3, or what speaks like it. Knows digests and local files.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt as _, RetryConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Catalog, Digest, HoldId};

/// Bytes that go in one request: what is larger goes in parts, so that memory does not grow with a blob and a request
/// that failed is repeated in little time.
const PART: u64 = 8 << 20;
/// A request that failed is repeated for so long.
const RETRY_FOR: Duration = Duration::from_secs(20);
/// One request of at most [`PART`] bytes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the first byte of an upload to the commit of its row; after that a process is taken for dead.
const HOLD: Duration = Duration::from_secs(3600);
/// For the removal of one object; after that a process is taken for dead.
const REMOVAL: Duration = Duration::from_secs(300);
/// Wait for the end of a removal.
const AGAIN: Duration = Duration::from_millis(100);

/// Why the object store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings do not make a client.
    #[error("settings of the object store: {0}")]
    Settings(#[source] object_store::Error),
    /// A request failed, also when repeated.
    #[error("{tried} blob {digest} in the object store")]
    Request {
        /// What was tried.
        tried: &'static str,
        /// On what.
        digest: Digest,
        /// Why not.
        source: object_store::Error,
    },
    /// The list of objects was not given, or a probe failed.
    #[error("asking the object store")]
    List(#[source] object_store::Error),
    /// The local file could not be read or written.
    #[error("the local copy of blob {digest}")]
    Local {
        /// Of which blob.
        digest: Digest,
        /// Why not.
        source: std::io::Error,
    },
    /// The object is not what its name says.
    #[error("blob {digest} has other bytes in the object store")]
    Corrupt {
        /// Which blob.
        digest: Digest,
    },
    /// The catalog could not say who holds a blob.
    #[error(transparent)]
    Catalog(#[from] super::Error),
}

/// Where the bucket is, and who may use it.
#[derive(Clone)]
pub struct S3 {
    /// Name of the bucket.
    pub bucket: String,
    /// Begins every key, without a slash at the end; may be empty.
    pub prefix: String,
    /// URL of the server; empty is AWS.
    pub endpoint: String,
    /// Region that requests are signed for.
    pub region: String,
    /// Empty takes the credentials of the environment, as AWS's own tools do.
    pub access_key_id: String,
    /// Goes with it.
    pub secret_access_key: String,
}

/// The blobs of an object store. Object `PREFIX/blobs/ab/cdef…` has the bytes whose SHA-256 is `abcdef…`.
#[derive(Clone)]
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    catalog: Arc<dyn Catalog>,
}

impl Remote {
    /// Blobs in a bucket of S3.
    ///
    /// # Errors
    /// [`Error::Settings`].
    pub fn s3(settings: &S3, catalog: Arc<dyn Catalog>) -> Result<Remote, Error> {
        Ok(Remote::new(Arc::new(client(settings)?), &settings.prefix, catalog))
    }

    /// Writes, reads and removes an object, to see whether a server could.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn probe(settings: &S3) -> Result<(), Error> {
        let store = client(settings)?;
        let key = Key::from(format!("{}/probe-{}", settings.prefix, uuid::Uuid::now_v7().simple()));
        let tried = async {
            store.put(&key, Bytes::from_static(b"octet").into()).await?;
            store.get_range(&key, 0..5).await?;
            store.delete(&key).await
        };
        tried.await.map_err(Error::List)
    }

    /// Blobs in any object store.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str, catalog: Arc<dyn Catalog>) -> Remote {
        Remote { store, prefix: Key::from(format!("{prefix}/blobs")), catalog }
    }

    fn key(&self, digest: Digest) -> Key {
        let text = digest.to_string();
        Key::from(format!("{}/{}/{}", self.prefix, &text[..2], &text[2..]))
    }

    /// Holds a blob, after waiting for the end of its removal.
    pub(super) async fn hold(&self, digest: Digest) -> Result<HoldId, Error> {
        loop {
            match self.catalog.hold_blob(digest, HOLD).await? {
                Some(hold) => return Ok(hold),
                None => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Ends a hold.
    pub(super) async fn release(&self, hold: HoldId) -> Result<(), Error> {
        Ok(self.catalog.release_blob(hold).await?)
    }

    /// Size of a blob; `None` where it is not there.
    pub(super) async fn bytes(&self, digest: Digest) -> Result<Option<u64>, Error> {
        match self.store.head(&self.key(digest)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(Error::Request { tried: "looking for", digest, source }),
        }
    }

    /// Copies a local file there, unless it is there already. The caller holds the blob.
    pub(super) async fn upload(&self, digest: Digest, file: &Path, bytes: u64) -> Result<(), Error> {
        if self.bytes(digest).await? == Some(bytes) {
            return Ok(());
        }
        let failed = |source| Error::Request { tried: "writing", digest, source };
        let local = |source| Error::Local { digest, source };
        let key = self.key(digest);
        let mut file = tokio::fs::File::open(file).await.map_err(local)?;
        if bytes <= PART {
            let part = read_part(&mut file, bytes).await.map_err(local)?;
            self.store.put(&key, part.into()).await.map_err(failed)?;
            return Ok(());
        }
        let mut upload = self.store.put_multipart(&key).await.map_err(failed)?;
        let sent = async {
            let mut left = bytes;
            while left > 0 {
                let part = read_part(&mut file, left.min(PART)).await.map_err(local)?;
                left -= part.len() as u64;
                upload.put_part(part.into()).await.map_err(failed)?;
            }
            upload.complete().await.map_err(failed)
        };
        let sent = sent.await;
        if let Err(error) = sent {
            // What was sent would be paid for; a bucket can also be told to drop unfinished uploads by itself.
            if let Err(abort) = upload.abort().await {
                tracing::warn!(%digest, error = %abort, "An unfinished upload stays in the object store");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Copies a blob into an open local file; gives its size, `None` where it is not there. The caller compares the bytes
    /// with the digest.
    pub(super) async fn download(
        &self,
        digest: Digest,
        file: &mut tokio::fs::File,
        mut seen: impl FnMut(&[u8]),
    ) -> Result<Option<u64>, Error> {
        let Some(bytes) = self.bytes(digest).await? else { return Ok(None) };
        let local = |source| Error::Local { digest, source };
        let key = self.key(digest);
        let mut at = 0;
        while at < bytes {
            let end = (at + PART).min(bytes);
            let part = match self.store.get_range(&key, at..end).await {
                Ok(part) => part,
                // Removed meanwhile.
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(source) => return Err(Error::Request { tried: "reading", digest, source }),
            };
            if part.is_empty() {
                return Err(Error::Corrupt { digest });
            }
            seen(&part);
            file.write_all(&part).await.map_err(local)?;
            at += part.len() as u64;
        }
        Ok(Some(bytes))
    }

    /// Removes a blob that no row refers to and nobody holds; tells whether it did.
    pub(super) async fn remove(&self, digest: Digest) -> Result<bool, Error> {
        if !self.catalog.begin_removal(digest, REMOVAL).await? {
            return Ok(false);
        }
        let removed = match self.store.delete(&self.key(digest)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(true),
            Err(source) => Err(Error::Request { tried: "removing", digest, source }),
        };
        self.catalog.end_removal(digest).await?;
        removed
    }

    /// All blobs that are there.
    pub(super) async fn list(&self) -> Result<Vec<Digest>, Error> {
        let prefix_parts = self.prefix.parts().count();
        self.store
            .list(Some(&self.prefix))
            .try_filter_map(|found| {
                let text: String =
                    found.location.parts().skip(prefix_parts).map(|part| part.as_ref().to_owned()).collect();
                // What is no digest is not ours.
                std::future::ready(Ok(text.parse::<Digest>().ok()))
            })
            .try_collect()
            .await
            .map_err(Error::List)
    }
}

/// What speaks to a bucket.
fn client(settings: &S3) -> Result<AmazonS3, Error> {
    let options = ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT)
        .with_allow_http(settings.endpoint.starts_with("http://"));
    let retry = RetryConfig { retry_timeout: RETRY_FOR, ..RetryConfig::default() };
    let mut builder = if settings.access_key_id.is_empty() {
        AmazonS3Builder::from_env()
    } else {
        AmazonS3Builder::new()
            .with_access_key_id(&settings.access_key_id)
            .with_secret_access_key(&settings.secret_access_key)
    };
    builder = builder
        .with_bucket_name(&settings.bucket)
        .with_region(&settings.region)
        .with_client_options(options)
        .with_retry(retry);
    if !settings.endpoint.is_empty() {
        builder = builder.with_endpoint(&settings.endpoint);
    }
    builder.build().map_err(Error::Settings)
}

async fn read_part(file: &mut tokio::fs::File, bytes: u64) -> std::io::Result<Bytes> {
    let mut part = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    file.read_exact(&mut part).await?;
    Ok(part.into())
}
