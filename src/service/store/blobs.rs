//! Content-addressed bytes as local files: streamed aside while hashed, synced, renamed. Knows no records
//! but asks the catalog whether any of them still holds a blob.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;

use super::{Catalog, Digest};

/// Why bytes could not be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More bytes came than may.
    #[error("more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// What came is not what the sender says it sent.
    #[error("the bytes have SHA-256 {got}, expected {expected}")]
    DigestMismatch {
        /// As announced.
        expected: Digest,
        /// As received.
        got: Digest,
    },
    /// There is no such blob.
    #[error("no blob {digest}")]
    Missing {
        /// What was looked for.
        digest: Digest,
    },
    /// Another process works in this folder.
    #[error("`{path}` is used by another octet process")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The file system did not do it.
    #[error("{tried} `{path}`")]
    Io {
        /// What was tried.
        tried: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The catalog could not say whether a blob is needed.
    #[error(transparent)]
    Catalog(#[from] super::Error),
}

/// The blobs below one data folder. Cheap to clone.
///
/// `blobs/ab/cdef…` holds the bytes whose SHA-256 is `abcdef…`; `tmp/` what is being written. A file below
/// `blobs/` is always whole. `lock` is held while the process lives: one process a folder, so what lies in
/// `tmp/` at start is left over from one that died.
#[derive(Clone)]
pub struct Blobs {
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    /// How often each blob is pinned. Renaming into place and unlinking happen under `gate`.
    pins: Mutex<HashMap<Digest, usize>>,
    /// Blobs that no record refers to but that somebody reads: to be removed when they are not pinned any more.
    doomed: Mutex<HashSet<Digest>>,
    gate: tokio::sync::Mutex<()>,
    _lock: fs::File,
}

/// A blob that is not removed while this lives: hold it until the row that refers to the blob is committed,
/// or while the file is read by path.
pub struct Pin {
    shared: Arc<Shared>,
    digest: Digest,
    bytes: u64,
    path: PathBuf,
}

impl Pin {
    /// SHA-256 of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Number of bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file; there while this lives.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.shared.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}

impl Blobs {
    /// Opens or makes the folder, takes its lock, and removes what a process that died has left in `tmp/`.
    /// Blocks: for use at start.
    ///
    /// # Errors
    /// [`Error::Locked`] or [`Error::Io`].
    pub fn open(root: &Path) -> Result<Blobs, Error> {
        for folder in [root.to_owned(), root.join("blobs"), root.join("tmp")] {
            fs::create_dir_all(&folder).map_err(|source| failed("making folder", &folder, source))?;
        }
        let path = root.join("lock");
        let lock = fs::File::create(&path).map_err(|source| failed("opening", &path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::Locked { path }),
            Err(fs::TryLockError::Error(source)) => return Err(failed("locking", &path, source)),
        }
        let tmp = root.join("tmp");
        for entry in fs::read_dir(&tmp).map_err(|source| failed("listing", &tmp, source))? {
            let path = entry.map_err(|source| failed("listing", &tmp, source))?.path();
            fs::remove_file(&path).map_err(|source| failed("removing leftover", &path, source))?;
        }
        let shared = Shared {
            root: root.to_owned(),
            pins: Mutex::default(),
            doomed: Mutex::default(),
            gate: tokio::sync::Mutex::default(),
            _lock: lock,
        };
        Ok(Blobs { shared: Arc::new(shared) })
    }

    /// Begins a blob of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn writer(&self, bytes_max: u64) -> Result<BlobWriter, Error> {
        let path = self.shared.root.join("tmp").join(uuid::Uuid::now_v7().simple().to_string());
        // Guarded before the file exists, so that a caller who goes away in between leaves nothing.
        let aside = Aside { path: Some(path.clone()) };
        let file =
            tokio::fs::File::create_new(&path).await.map_err(|source| failed("making", &path, source))?;
        let shared = Arc::clone(&self.shared);
        Ok(BlobWriter { shared, file, aside, hash: Sha256::new(), bytes: 0, bytes_max })
    }

    /// Keeps bytes that are in memory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn put(&self, bytes: &[u8]) -> Result<Pin, Error> {
        let mut writer = self.writer(bytes.len() as u64).await?;
        writer.write(bytes).await?;
        writer.finish(None).await
    }

    /// Keeps a blob from being removed, so that its path can be read.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Io`].
    pub async fn pin(&self, digest: Digest) -> Result<Pin, Error> {
        let path = self.path(digest);
        let _gate = self.shared.gate.lock().await;
        let bytes = match tokio::fs::metadata(&path).await {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Missing { digest });
            }
            Err(source) => return Err(failed("looking at", &path, source)),
        };
        Ok(pin(&self.shared, digest, bytes, path))
    }

    /// Opens a blob for reading; gives its length too. An open file stays readable when the blob is removed.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Io`].
    pub async fn open_file(&self, digest: Digest) -> Result<(tokio::fs::File, u64), Error> {
        let pin = self.pin(digest).await?;
        let file = tokio::fs::File::open(pin.path())
            .await
            .map_err(|source| failed("opening", pin.path(), source))?;
        Ok((file, pin.bytes))
    }

    /// The bytes of a blob, in memory: for small ones, such as reports.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::TooLarge`] or [`Error::Io`].
    pub async fn read(&self, digest: Digest, bytes_max: u64) -> Result<Vec<u8>, Error> {
        let pin = self.pin(digest).await?;
        if pin.bytes > bytes_max {
            return Err(Error::TooLarge { limit: bytes_max });
        }
        tokio::fs::read(pin.path()).await.map_err(|source| failed("reading", pin.path(), source))
    }

    /// Where a blob lies, whether it is there or not. Reading it by path is safe only while it is pinned.
    #[must_use]
    pub fn path(&self, digest: Digest) -> PathBuf {
        let text = digest.to_string();
        self.shared.root.join("blobs").join(&text[..2]).join(&text[2..])
    }

    /// Whether a blob is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn holds(&self, digest: Digest) -> Result<bool, Error> {
        let path = self.path(digest);
        tokio::fs::try_exists(&path).await.map_err(|source| failed("looking at", &path, source))
    }

    /// Tries again to remove what was being read when it was discarded.
    ///
    /// # Errors
    /// As [`Blobs::discard`].
    pub async fn discard_doomed(&self, catalog: &dyn Catalog) -> Result<u64, Error> {
        let doomed = std::mem::take(&mut *self.doomed());
        self.discard(catalog, &doomed.into_iter().collect::<Vec<_>>()).await
    }

    fn doomed(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.shared.doomed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes those of `digests` that no record refers to. One that somebody has pinned goes later, with
    /// [`Blobs::discard_doomed`].
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Catalog`]; the rest stays and is found again at the next start.
    pub async fn discard(&self, catalog: &dyn Catalog, digests: &[Digest]) -> Result<u64, Error> {
        let mut removed = 0;
        for &digest in digests {
            // Under the gate nothing is renamed into place or pinned, so a blob without a pin and without
            // a row cannot get a row before it is gone: whoever makes a row holds a pin.
            let _gate = self.shared.gate.lock().await;
            if catalog.blob_referenced(digest).await? {
                continue;
            }
            if self.pinned(digest) {
                self.doomed().insert(digest);
                continue;
            }
            let path = self.path(digest);
            match tokio::fs::remove_file(&path).await {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(failed("removing", &path, source)),
            }
        }
        Ok(removed)
    }

    /// Removes every blob that no record refers to: those of uploads and jobs that were cut off between the
    /// file and the row. For use at start.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Catalog`].
    pub async fn sweep(&self, catalog: &dyn Catalog) -> Result<u64, Error> {
        let mut removed = 0;
        let blobs = self.shared.root.join("blobs");
        for folder in names(&blobs)? {
            let path = blobs.join(&folder);
            let digests: Vec<Digest> =
                names(&path)?.iter().filter_map(|rest| format!("{folder}{rest}").parse().ok()).collect();
            removed += self.discard(catalog, &digests).await?;
        }
        Ok(removed)
    }

    /// How many blobs are being written.
    #[must_use]
    pub fn incomplete(&self) -> u64 {
        names(&self.shared.root.join("tmp")).map_or(0, |names| names.len() as u64)
    }

    fn pinned(&self, digest: Digest) -> bool {
        self.shared.pins.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&digest)
    }
}

/// Writes one blob. Dropped before [`BlobWriter::finish`], it leaves nothing behind.
pub struct BlobWriter {
    shared: Arc<Shared>,
    file: tokio::fs::File,
    aside: Aside,
    hash: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl BlobWriter {
    /// Adds bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`] before anything beyond the limit is written, or [`Error::Io`].
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() as u64 > self.bytes_max - self.bytes {
            return Err(Error::TooLarge { limit: self.bytes_max });
        }
        self.file.write_all(bytes).await.map_err(|source| failed("writing", self.aside.path(), source))?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Number of bytes so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the bytes are being written, complete only after [`BlobWriter::flush`]: to look into an upload
    /// before it is kept.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.aside.path()
    }

    /// Brings all bytes to the file, so that [`BlobWriter::path`] can be read.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.file.flush().await.map_err(|source| failed("writing", self.aside.path(), source))
    }

    /// Compares what was written so far with what the sender says it sent.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`].
    pub fn expect(&self, expected: Option<Digest>) -> Result<(), Error> {
        let got = Digest(self.hash.clone().finalize().into());
        match expected.filter(|expected| *expected != got) {
            Some(expected) => Err(Error::DigestMismatch { expected, got }),
            None => Ok(()),
        }
    }

    /// Syncs the file, moves it into its place and syncs the folder; after that it survives a power cut.
    /// The row that refers to it must be committed while the pin lives.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] where the bytes are not the `expected` ones, or [`Error::Io`].
    pub async fn finish(mut self, expected: Option<Digest>) -> Result<Pin, Error> {
        let digest = Digest(self.hash.finalize().into());
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(Error::DigestMismatch { expected, got: digest });
        }
        let from = self.aside.path().to_owned();
        self.file.flush().await.map_err(|source| failed("writing", &from, source))?;
        self.file.sync_all().await.map_err(|source| failed("syncing", &from, source))?;
        let text = digest.to_string();
        let blobs = self.shared.root.join("blobs");
        let folder = blobs.join(&text[..2]);
        let path = folder.join(&text[2..]);
        let _gate = self.shared.gate.lock().await;
        if !folder.exists() {
            tokio::fs::create_dir_all(&folder)
                .await
                .map_err(|source| failed("making folder", &folder, source))?;
            sync_folder(&blobs).await?;
        }
        // Over a blob that is there already: the bytes are the same, and a rename cannot be half done.
        tokio::fs::rename(&from, &path).await.map_err(|source| failed("renaming to", &path, source))?;
        self.aside.path = None;
        sync_folder(&folder).await?;
        Ok(pin(&self.shared, digest, self.bytes, path))
    }
}

/// Removes a file aside unless it was moved into place.
struct Aside {
    path: Option<PathBuf>,
}

impl Aside {
    fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // A failure leaves a file that the next start removes.
            let _ = fs::remove_file(path);
        }
    }
}

/// To be called under the gate.
fn pin(shared: &Arc<Shared>, digest: Digest, bytes: u64, path: PathBuf) -> Pin {
    *shared.pins.lock().unwrap_or_else(PoisonError::into_inner).entry(digest).or_default() += 1;
    Pin { shared: Arc::clone(shared), digest, bytes, path }
}

fn failed(tried: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { tried, path: path.to_owned(), source }
}

/// A rename is durable only once its folder is.
async fn sync_folder(folder: &Path) -> Result<(), Error> {
    let file =
        tokio::fs::File::open(folder).await.map_err(|source| failed("opening folder", folder, source))?;
    file.sync_all().await.map_err(|source| failed("syncing folder", folder, source))
}

fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(folder).map_err(|source| failed("listing", folder, source))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| failed("listing", folder, source))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::super::sql::tests::{Scratch, new_model};
    use super::*;

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
        }
        found
    }

    fn kept(root: &Path) -> usize {
        files(&root.join("blobs")).len() + files(&root.join("tmp")).len()
    }

    #[tokio::test]
    async fn bytes_come_back_under_their_digest() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let mut writer = blobs.writer(10).await.unwrap();
        writer.write(b"hello ").await.unwrap();
        writer.write(b"you").await.unwrap();
        assert_eq!(blobs.incomplete(), 1);
        let pin = writer.finish(None).await.unwrap();
        let expected = Digest(Sha256::digest(b"hello you").into());
        assert_eq!((pin.digest(), pin.bytes()), (expected, 9));
        assert_eq!(blobs.read(expected, 9).await.unwrap(), b"hello you");
        assert!(matches!(blobs.read(expected, 8).await, Err(Error::TooLarge { limit: 8 })));
        assert_eq!(fs::read(pin.path()).unwrap(), b"hello you");
        assert_eq!(blobs.open_file(expected).await.unwrap().1, 9);
        assert_eq!(blobs.incomplete(), 0);
        // The same again, and nothing.
        assert_eq!(blobs.put(b"hello you").await.unwrap().digest(), expected);
        assert_eq!(blobs.put(b"").await.unwrap().bytes(), 0);
        assert_eq!(kept(folder.path()), 2);
    }

    #[tokio::test]
    async fn what_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let mut dropped = blobs.writer(100).await.unwrap();
        dropped.write(b"half").await.unwrap();
        drop(dropped);
        let mut large = blobs.writer(4).await.unwrap();
        large.write(b"1234").await.unwrap();
        assert!(matches!(large.write(b"5").await, Err(Error::TooLarge { limit: 4 })));
        drop(large);
        let mut wrong = blobs.writer(4).await.unwrap();
        wrong.write(b"1234").await.unwrap();
        assert!(matches!(wrong.finish(Some(Digest([0; 32]))).await, Err(Error::DigestMismatch { .. })));
        assert_eq!(kept(folder.path()), 0);
    }

    #[tokio::test]
    async fn leftovers_go_at_start_and_one_process_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let pin = blobs.put(b"kept").await.unwrap();
        fs::write(folder.path().join("tmp/left"), b"half").unwrap();
        assert!(matches!(Blobs::open(folder.path()), Err(Error::Locked { .. })));
        drop((blobs, pin));
        let blobs = Blobs::open(folder.path()).unwrap();
        assert_eq!((blobs.incomplete(), kept(folder.path())), (0, 1));
    }

    #[tokio::test]
    async fn only_what_nobody_needs_is_removed() {
        let scratch = Scratch::new().await;
        let catalog = &*scratch.catalog;
        let blobs = Blobs::open(scratch.folder.path()).unwrap();
        let pin = blobs.put(b"model").await.unwrap();
        let digest = pin.digest();
        assert_eq!(blobs.discard(catalog, &[digest]).await.unwrap(), 0, "it is pinned");
        catalog.create_model(new_model("m", digest)).await.unwrap();
        drop(pin);
        assert_eq!(blobs.sweep(catalog).await.unwrap(), 0, "it has a row");
        let orphan = blobs.put(b"orphan").await.unwrap().digest();
        assert_eq!(blobs.sweep(catalog).await.unwrap(), 1);
        assert!(matches!(blobs.pin(orphan).await, Err(Error::Missing { .. })));
        let digests = catalog.delete_model(&"m".parse().unwrap(), None).await.unwrap();
        assert_eq!(blobs.discard(catalog, &digests).await.unwrap(), 1);
        assert_eq!(kept(scratch.folder.path()), 0);
        assert_eq!(blobs.discard(catalog, &digests).await.unwrap(), 0, "again does no harm");
    }
}
