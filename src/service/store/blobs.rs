//! Content-addressed bytes as local files: streamed aside while hashed, synced, renamed; with a store that several
//! processes share behind them, the local files are copies. Knows no records; how blobs go is in `removal`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;

use super::remote::{self, Remote};
use super::reserve::Reserve;
use super::{Digest, HoldId};

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
    /// A file is not what it was when it was kept.
    #[error(
        "file {digest} is damaged: its SHA-256 is another now; upload the same file again, or restore a backup"
    )]
    Damaged {
        /// What it was.
        digest: Digest,
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
    /// The shared store did not do it.
    #[error(transparent)]
    Remote(#[from] remote::Error),
}

/// The blobs below one data folder. Cheap to clone.
///
/// `blobs/ab/cdef…` holds the bytes whose SHA-256 is `abcdef…`; `tmp/` what is being written. A file below
/// `blobs/` is always whole. `lock` is held while the process lives: one process a folder, so what lies in
/// `tmp/` at start is left over from one that died.
///
/// With a [`Remote`], a blob is in there before it counts as kept, and `blobs/` has copies of what was written or read
/// here; what is removed is removed in both.
#[derive(Clone)]
pub struct Blobs {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) root: PathBuf,
    /// How often each blob is pinned. Renaming into place and unlinking happen under `gate`.
    pub(super) pins: Mutex<HashMap<Digest, usize>>,
    /// Blobs that perhaps no record refers to: to be removed, where that is so, when they are not pinned any more.
    pub(super) doomed: Mutex<HashSet<Digest>>,
    pub(super) gate: tokio::sync::Mutex<()>,
    _lock: fs::File,
    pub(super) remote: Option<Remote>,
    /// Bytes of the local copies of what is in `remote`; 0 is no limit.
    pub(super) cache_bytes: u64,
    /// Counts pins; the last of each copy.
    pub(super) uses: Mutex<(u64, HashMap<Digest, u64>)>,
    /// One copy of a blob is made at a time.
    turns: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// A blob that is not removed while this lives: hold it until the row that refers to the blob is committed,
/// or while the file is read by path.
pub struct Pin {
    shared: Arc<Shared>,
    digest: Digest,
    bytes: u64,
    path: PathBuf,
    /// Whether it was written for a row that may never come.
    written: bool,
    /// Keeps other processes from removing a blob that was written here.
    _held: Option<Held>,
}

/// Released when dropped.
struct Held {
    remote: Remote,
    hold: HoldId,
    runtime: tokio::runtime::Handle,
}

impl Drop for Held {
    fn drop(&mut self) {
        let (remote, hold) = (self.remote.clone(), self.hold);
        self.runtime.spawn(async move {
            if let Err(error) = remote.release(hold).await {
                tracing::warn!(%error, "A blob is held until its time is over: {error}");
            }
        });
    }
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

    /// Reads the file and compares it with its digest. Blocks.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Io`].
    pub fn check(&self) -> Result<(), Error> {
        let mut file = fs::File::open(&self.path).map_err(|source| failed("opening", &self.path, source))?;
        let (found, _) = hashed(&mut file).map_err(|source| failed("reading", &self.path, source))?;
        if found == self.digest { Ok(()) } else { Err(Error::Damaged { digest: self.digest }) }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.written {
            // Where the row was refused, or whoever wrote it went away, nobody else knows of the blob.
            self.shared.doomed.lock().unwrap_or_else(PoisonError::into_inner).insert(self.digest);
        }
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
        Blobs::open_with(root, None, 0)
    }

    /// The same, with a store behind it that several processes share. Local copies take at most `cache_bytes` beside what
    /// is in use; 0 is no limit.
    ///
    /// # Errors
    /// [`Error::Locked`] or [`Error::Io`].
    pub fn open_with(root: &Path, remote: Option<Remote>, cache_bytes: u64) -> Result<Blobs, Error> {
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
            remote,
            cache_bytes,
            uses: Mutex::default(),
            turns: Mutex::default(),
        };
        Ok(Blobs { shared: Arc::new(shared) })
    }

    /// The room that is put by for what makes room; `None` where the records are kept elsewhere.
    #[must_use]
    pub fn reserve(&self) -> Option<Reserve> {
        (!self.is_shared()).then(|| Reserve::of(&self.shared.root))
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

    /// Keeps a blob from being removed, so that its path can be read. Makes a local copy first where there is none.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Io`] or [`Error::Remote`].
    pub async fn pin(&self, digest: Digest) -> Result<Pin, Error> {
        if let Some(pin) = self.pin_local(digest).await? {
            return Ok(pin);
        }
        let Some(remote) = &self.shared.remote else { return Err(Error::Missing { digest }) };
        let turn = {
            let mut turns = self.shared.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(digest).or_default())
        };
        let _turn = turn.lock().await;
        if let Some(pin) = self.pin_local(digest).await? {
            return Ok(pin);
        }
        let mut copy = self.writer(u64::MAX).await?;
        let BlobWriter { file, hash, .. } = &mut copy;
        let bytes = remote.download(digest, file, |part| hash.update(part)).await?;
        copy.bytes = bytes.ok_or(Error::Missing { digest })?;
        if copy.digest() != digest {
            return Err(remote::Error::Corrupt { digest }.into());
        }
        copy.place(digest, None).await
    }

    async fn pin_local(&self, digest: Digest) -> Result<Option<Pin>, Error> {
        let path = self.path(digest);
        let _gate = self.shared.gate.lock().await;
        match tokio::fs::metadata(&path).await {
            Ok(metadata) => Ok(Some(pin(&self.shared, digest, metadata.len(), path, None))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("looking at", &path, source)),
        }
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

    /// Whether a blob is there, here or in the shared store.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Remote`].
    pub async fn holds(&self, digest: Digest) -> Result<bool, Error> {
        let path = self.path(digest);
        let here =
            tokio::fs::try_exists(&path).await.map_err(|source| failed("looking at", &path, source))?;
        match &self.shared.remote {
            Some(remote) if !here => Ok(remote.bytes(digest).await?.is_some()),
            _ => Ok(here),
        }
    }

    /// Whether several processes share the blobs.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared.remote.is_some()
    }

    /// How many blobs are being written.
    #[must_use]
    pub fn incomplete(&self) -> u64 {
        names(&self.shared.root.join("tmp")).map_or(0, |names| names.len() as u64)
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

    /// Of the bytes so far.
    fn digest(&self) -> Digest {
        Digest(self.hash.clone().finalize().into())
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
        let got = self.digest();
        match expected.filter(|expected| *expected != got) {
            Some(expected) => Err(Error::DigestMismatch { expected, got }),
            None => Ok(()),
        }
    }

    /// Syncs the file, moves it into its place and syncs the folder; after that it survives a power cut. With a shared
    /// store, copies it there. The row that refers to it must be committed while the pin lives.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] where the bytes are not the `expected` ones, [`Error::Io`] or [`Error::Remote`].
    pub async fn finish(self, expected: Option<Digest>) -> Result<Pin, Error> {
        self.expect(expected)?;
        let digest = self.digest();
        let Some(remote) = self.shared.remote.clone() else {
            let mut pin = self.place(digest, None).await?;
            pin.written = true;
            return Ok(pin);
        };
        let hold = remote.hold(digest).await?;
        let held = Held { remote: remote.clone(), hold, runtime: tokio::runtime::Handle::current() };
        let mut pin = self.place(digest, Some(held)).await?;
        pin.written = true;
        remote.upload(digest, &pin.path, pin.bytes).await?;
        Ok(pin)
    }

    /// Moves the file to where blob `digest` lies.
    async fn place(mut self, digest: Digest, held: Option<Held>) -> Result<Pin, Error> {
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
        Ok(pin(&self.shared, digest, self.bytes, path, held))
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
fn pin(shared: &Arc<Shared>, digest: Digest, bytes: u64, path: PathBuf, held: Option<Held>) -> Pin {
    *shared.pins.lock().unwrap_or_else(PoisonError::into_inner).entry(digest).or_default() += 1;
    if shared.remote.is_some() {
        let mut uses = shared.uses.lock().unwrap_or_else(PoisonError::into_inner);
        uses.0 += 1;
        let number = uses.0;
        uses.1.insert(digest, number);
    }
    Pin { shared: Arc::clone(shared), digest, bytes, path, written: false, _held: held }
}

/// SHA-256 of what is left to read, and how many bytes that is. Blocks.
///
/// # Errors
/// Where it cannot be read.
pub fn hashed(file: &mut impl io::Read) -> io::Result<(Digest, u64)> {
    let (mut hash, mut part, mut bytes) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut part)? {
            0 => return Ok((Digest(hash.finalize().into()), bytes)),
            n => {
                hash.update(&part[..n]);
                bytes += n as u64;
            }
        }
    }
}

pub(super) fn failed(tried: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { tried, path: path.to_owned(), source }
}

/// A rename is durable only once its folder is.
async fn sync_folder(folder: &Path) -> Result<(), Error> {
    let file =
        tokio::fs::File::open(folder).await.map_err(|source| failed("opening folder", folder, source))?;
    file.sync_all().await.map_err(|source| failed("syncing folder", folder, source))
}

/// The names of what lies in a folder.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(folder).map_err(|source| failed("listing", folder, source))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| failed("listing", folder, source))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Catalog;
    use super::super::sql::tests::Scratch;
    use super::*;

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
        }
        found
    }

    pub(crate) fn kept(root: &Path) -> usize {
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
    async fn a_damaged_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let pin = blobs.put(b"model").await.unwrap();
        pin.check().unwrap();
        fs::write(pin.path(), b"mqdel").unwrap();
        assert!(matches!(pin.check(), Err(Error::Damaged { digest }) if digest == pin.digest()));
    }

    /// Two processes that share a store: each with a folder of its own.
    pub(crate) async fn two(scratch: &Scratch, cache_bytes: u64) -> (Blobs, Blobs) {
        let store = Arc::new(object_store::memory::InMemory::new());
        let open = |name: &str| {
            let catalog: Arc<dyn Catalog> = Arc::clone(&scratch.catalog) as _;
            let remote = Remote::new(Arc::clone(&store) as _, "here", catalog);
            Blobs::open_with(&scratch.folder.path().join(name), Some(remote), cache_bytes).unwrap()
        };
        (open("a"), open("b"))
    }

    #[tokio::test]
    async fn what_one_process_keeps_another_reads() {
        let scratch = Scratch::new().await;
        let (a, b) = two(&scratch, 0).await;
        // Small, empty, and larger than a part.
        for bytes in [b"small".to_vec(), Vec::new(), (0..20_000_000u32).map(|i| (i / 7) as u8).collect()] {
            let pin = a.put(&bytes).await.unwrap();
            assert!(b.holds(pin.digest()).await.unwrap());
            // Many at once make one copy.
            let read = || b.read(pin.digest(), u64::MAX);
            let (one, two, three) = tokio::join!(read(), read(), read());
            assert!(one.unwrap() == bytes && two.unwrap() == bytes && three.unwrap() == bytes);
        }
        assert!(matches!(b.pin(Digest([3; 32])).await, Err(Error::Missing { .. })));
        assert_eq!(b.incomplete(), 0);
    }

    #[tokio::test]
    async fn a_blob_that_is_being_removed_is_written_after_that() {
        let scratch = Scratch::new().await;
        let catalog = &*scratch.catalog;
        let (a, _) = two(&scratch, 0).await;
        let digest = Digest(Sha256::digest(b"again").into());
        assert!(catalog.begin_removal(digest, std::time::Duration::from_secs(9)).await.unwrap());
        let mut writing = Box::pin(a.put(b"again"));
        let soon = tokio::time::timeout(std::time::Duration::from_millis(150), &mut writing).await;
        assert!(soon.is_err(), "it waits");
        catalog.end_removal(digest).await.unwrap();
        assert_eq!(writing.await.unwrap().digest(), digest);
    }
}
