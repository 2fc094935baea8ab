//! Uploads that come in parts: their bytes so far and a record of each, in one folder. Knows no HTTP and no database.
//!
//! `uploads/ID.bin` holds the bytes, `uploads/ID.json` the record with the offset that was acknowledged: bytes are synced
//! before it is written. So an offset survives a kill, and bytes beyond it count for nothing. It comes to the length of
//! the file only when the upload has become a model or a dataset: a client of a server that died in between sends the end
//! again, which is harmless.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::sync::{OwnedMutexGuard, watch};

use super::{Clock, KeyId, Name, Timestamp, UploadId};

/// So many uploads are open at a time.
pub const OPEN_MAX: usize = 1_000;
/// How long a request waits for another one that works on the same upload and was asked to stop.
const TURN: Duration = Duration::from_secs(10);

/// Why an upload cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such upload.
    #[error(
        "no upload `{id}` in this server: it was deleted or refused, has expired, or another replica has it (an upload \
         belongs to the server that made it)"
    )]
    NotFound {
        /// As asked.
        id: UploadId,
    },
    /// The upload is somewhere else.
    #[error("upload `{id}` is at offset {want}, not {got}")]
    Offset {
        /// The upload.
        id: UploadId,
        /// Where it is.
        want: u64,
        /// As asked.
        got: u64,
    },
    /// Another request works on it, or has taken it over.
    #[error("another request works on upload `{id}`")]
    Busy {
        /// The upload.
        id: UploadId,
    },
    /// Too many uploads.
    #[error("{limit} uploads are open already")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// More bytes came than were announced.
    #[error("upload `{id}` was announced with {bytes} bytes, and more came")]
    TooLong {
        /// The upload.
        id: UploadId,
        /// As announced.
        bytes: u64,
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
}

/// What an upload becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Becomes {
    /// A version of a model.
    Model,
    /// A version of a dataset.
    Dataset,
}

/// What an upload is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What it becomes.
    pub becomes: Becomes,
    /// Under which name.
    pub name: Name,
    /// Bytes of the file.
    pub bytes: u64,
    /// What the client says of it, as it came.
    pub metadata: String,
    /// Whose key it counts for.
    pub key: Option<KeyId>,
    /// What the key may store, at the time.
    pub quota: Option<u64>,
}

/// An upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// Its id.
    pub id: UploadId,
    /// What it is to be.
    pub plan: Plan,
    /// Bytes that are kept.
    pub offset: u64,
    /// When it is given up, in milliseconds since 1970.
    expires_ms: i64,
    /// The path of what it has become.
    pub became: Option<String>,
}

impl Partial {
    /// When it is given up, unless it goes on.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        Timestamp(self.expires_ms)
    }
}

struct Slot {
    partial: Mutex<Partial>,
    turn: Arc<tokio::sync::Mutex<()>>,
    /// How many wait for their turn: who has it gives it up then.
    waiting: watch::Sender<usize>,
}

impl Slot {
    fn partial(&self) -> MutexGuard<'_, Partial> {
        self.partial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The uploads of one data folder.
pub struct Partials {
    folder: PathBuf,
    clock: Clock,
    lifetime: Duration,
    open: Mutex<HashMap<UploadId, Arc<Slot>>>,
}

impl Partials {
    /// Opens or makes the folder, and takes up what an earlier process has left. To be called once the folder is locked
    /// (`Blobs::open`). Blocks: for use at start.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(root: &Path, clock: Clock, lifetime: Duration) -> Result<Arc<Partials>, Error> {
        let folder = root.join("uploads");
        fs::create_dir_all(&folder).map_err(failed("making folder", &folder))?;
        let partials = Partials { folder, clock, lifetime, open: Mutex::default() };
        let mut found = HashMap::new();
        for entry in fs::read_dir(&partials.folder).map_err(failed("listing", &partials.folder))? {
            let path = entry.map_err(failed("listing", &partials.folder))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read(&path).map_err(failed("reading", &path))?;
            match serde_json::from_slice::<Partial>(&text) {
                Ok(partial) if partials.has_bytes(&partial)? => {
                    found.insert(partial.id, Arc::new(Slot::of(partial)));
                }
                Ok(partial) => {
                    tracing::error!(upload = %partial.id, "Upload {} has lost bytes and is given up", partial.id);
                }
                Err(error) => {
                    tracing::error!(%error, "`{}` is no record of an upload: {error}", path.display());
                }
            }
        }
        for entry in fs::read_dir(&partials.folder).map_err(failed("listing", &partials.folder))? {
            let path = entry.map_err(failed("listing", &partials.folder))?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            let half_written = path.extension().is_some_and(|extension| extension == "new");
            if half_written || id.is_none_or(|id| !found.contains_key(&id)) {
                fs::remove_file(&path).map_err(failed("removing leftover", &path))?;
            }
        }
        *partials.all() = found;
        Ok(Arc::new(partials))
    }

    fn has_bytes(&self, partial: &Partial) -> Result<bool, Error> {
        let path = self.path(partial.id, "bin");
        match fs::metadata(&path) {
            Ok(metadata) => Ok(partial.became.is_some() || metadata.len() >= partial.offset),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(partial.became.is_some()),
            Err(source) => Err(failed("looking at", &path)(source)),
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<Slot>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: UploadId, extension: &str) -> PathBuf {
        self.folder.join(format!("{id}.{extension}"))
    }

    fn expires(&self) -> i64 {
        (self.clock)().plus(self.lifetime).0
    }

    /// Begins an upload.
    ///
    /// # Errors
    /// [`Error::TooMany`] or [`Error::Io`].
    pub async fn create(&self, plan: Plan) -> Result<Partial, Error> {
        if self.all().len() >= OPEN_MAX {
            return Err(Error::TooMany { limit: OPEN_MAX });
        }
        let partial =
            Partial { id: UploadId::new(), plan, offset: 0, expires_ms: self.expires(), became: None };
        let path = self.path(partial.id, "bin");
        tokio::fs::File::create_new(&path).await.map_err(failed("making", &path))?;
        self.record(&partial).await?;
        self.all().insert(partial.id, Arc::new(Slot::of(partial.clone())));
        Ok(partial)
    }

    /// The upload.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn find(&self, id: UploadId) -> Result<Partial, Error> {
        Ok(self.slot(id)?.partial().clone())
    }

    /// Bytes of the uploads of a key that are not finished, as announced.
    #[must_use]
    pub fn announced_bytes(&self, key: KeyId) -> u64 {
        let slots: Vec<_> = self.all().values().cloned().collect();
        let open = slots.iter().map(|slot| slot.partial().clone());
        open.filter(|p| p.plan.key == Some(key) && p.became.is_none()).map(|p| p.plan.bytes).sum()
    }

    fn slot(&self, id: UploadId) -> Result<Arc<Slot>, Error> {
        let slot = self.all().get(&id).cloned().ok_or(Error::NotFound { id })?;
        if slot.partial().expires_at() <= (self.clock)() {
            return Err(Error::NotFound { id });
        }
        Ok(slot)
    }

    /// The turn of one request at an upload. Another one that has it is asked to give it up: its client has most likely
    /// gone away without a word.
    async fn turn(&self, id: UploadId) -> Result<(Arc<Slot>, OwnedMutexGuard<()>), Error> {
        let slot = self.slot(id)?;
        let guard = {
            let _waits = Waits::new(&slot.waiting);
            let turn = Arc::clone(&slot.turn).lock_owned();
            tokio::time::timeout(TURN, turn).await.map_err(|_| Error::Busy { id })?
        };
        // It may have ended meanwhile.
        Ok((self.slot(id)?, guard))
    }

    /// Goes on with an upload at `offset`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn write(self: &Arc<Self>, id: UploadId, offset: u64) -> Result<Writer, Error> {
        let (slot, turn) = self.turn(id).await?;
        let partial = slot.partial().clone();
        if partial.offset != offset {
            return Err(Error::Offset { id, want: partial.offset, got: offset });
        }
        let path = self.path(id, "bin");
        let mut file = tokio::fs::OpenOptions::new()
            .write(true)
            .create(partial.became.is_some())
            .truncate(false)
            .open(&path)
            .await
            .map_err(failed("opening", &path))?;
        if partial.became.is_none() {
            // What came after the offset was not acknowledged.
            file.set_len(offset).await.map_err(failed("cutting", &path))?;
            file.seek(io::SeekFrom::Start(offset)).await.map_err(failed("seeking in", &path))?;
        }
        Ok(Writer {
            partials: Arc::clone(self),
            waiting: slot.waiting.subscribe(),
            slot,
            file,
            path,
            written: offset,
            _turn: turn,
        })
    }

    /// Gives an upload up.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Busy`] or [`Error::Io`].
    pub async fn delete(&self, id: UploadId) -> Result<(), Error> {
        let (_slot, _turn) = self.turn(id).await?;
        self.remove(id).await
    }

    /// Removes uploads whose time is over; gives how many.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn expire(&self) -> Result<usize, Error> {
        let now = (self.clock)();
        let slots: Vec<_> = self.all().values().cloned().collect();
        let mut removed = 0;
        for slot in slots {
            let Ok(_turn) = slot.turn.try_lock() else { continue };
            let (id, over) = {
                let partial = slot.partial();
                (partial.id, partial.expires_at() <= now)
            };
            if over {
                self.remove(id).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Record first: bytes without one are leftovers.
    async fn remove(&self, id: UploadId) -> Result<(), Error> {
        self.all().remove(&id);
        for extension in ["json", "bin"] {
            self.unlink(&self.path(id, extension)).await?;
        }
        Ok(())
    }

    async fn unlink(&self, path: &Path) -> Result<(), Error> {
        match tokio::fs::remove_file(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
            _ => Ok(()),
        }
    }

    /// Writes a record so that a power cut leaves the one before or this one.
    async fn record(&self, partial: &Partial) -> Result<(), Error> {
        let (path, aside) = (self.path(partial.id, "json"), self.path(partial.id, "new"));
        let text = serde_json::to_vec(partial).expect("a record has only strings and numbers");
        let mut file = tokio::fs::File::create(&aside).await.map_err(failed("making", &aside))?;
        file.write_all(&text).await.map_err(failed("writing", &aside))?;
        file.flush().await.map_err(failed("writing", &aside))?;
        file.sync_all().await.map_err(failed("syncing", &aside))?;
        tokio::fs::rename(&aside, &path).await.map_err(failed("renaming to", &path))?;
        let folder = tokio::fs::File::open(&self.folder).await.map_err(failed("opening", &self.folder))?;
        folder.sync_all().await.map_err(failed("syncing", &self.folder))
    }
}

impl Slot {
    fn of(partial: Partial) -> Slot {
        Slot { partial: Mutex::new(partial), turn: Arc::default(), waiting: watch::Sender::new(0) }
    }
}

/// Counted as one that waits, until dropped.
struct Waits<'a>(&'a watch::Sender<usize>);

impl<'a> Waits<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Waits<'a> {
        waiting.send_modify(|count| *count += 1);
        Waits(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Goes on with one upload; nobody else does meanwhile. Bytes count once they are kept.
pub struct Writer {
    partials: Arc<Partials>,
    slot: Arc<Slot>,
    waiting: watch::Receiver<usize>,
    file: tokio::fs::File,
    path: PathBuf,
    written: u64,
    _turn: OwnedMutexGuard<()>,
}

impl Writer {
    /// The upload, as kept.
    #[must_use]
    pub fn partial(&self) -> Partial {
        self.slot.partial().clone()
    }

    /// Returns when somebody else wants to go on with the upload.
    pub async fn is_wanted(&mut self) {
        if self.waiting.wait_for(|count| *count > 0).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// [`Error::TooLong`] before anything beyond the length is written, or [`Error::Io`].
    pub async fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let (id, length) = {
            let partial = self.slot.partial();
            (partial.id, partial.plan.bytes)
        };
        if bytes.len() as u64 > length - self.written {
            return Err(Error::TooLong { id, bytes: length });
        }
        self.file.write_all(bytes).await.map_err(failed("writing", &self.path))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Bytes that are written and not kept yet.
    #[must_use]
    pub fn unkept(&self) -> u64 {
        self.written - self.slot.partial().offset
    }

    /// Whether all bytes are there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.written == self.slot.partial().plan.bytes
    }

    /// Where the bytes are: all that were added, after [`Writer::keep`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs what was added and acknowledges it; the last byte is not acknowledged before [`Writer::became`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn keep(&mut self) -> Result<(), Error> {
        self.file.flush().await.map_err(failed("writing", &self.path))?;
        self.file.sync_data().await.map_err(failed("syncing", &self.path))?;
        if !self.is_whole() {
            let next =
                Partial { offset: self.written, expires_ms: self.partials.expires(), ..self.partial() };
            self.partials.record(&next).await?;
            *self.slot.partial() = next;
        }
        Ok(())
    }

    /// Notes what the upload has become, and removes its bytes. The record stays until it expires, for a client that has
    /// not heard of it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn became(self, path: String) -> Result<Partial, Error> {
        let offset = self.partial().plan.bytes;
        let expires_ms = self.partials.expires();
        let next = Partial { offset, expires_ms, became: Some(path), ..self.partial() };
        self.partials.record(&next).await?;
        *self.slot.partial() = next.clone();
        self.partials.unlink(&self.path).await?;
        Ok(next)
    }

    /// Gives the upload up.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn remove(self) -> Result<(), Error> {
        let id = self.slot.partial().id;
        self.partials.remove(id).await
    }
}

fn failed(tried: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { tried, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};

    fn open(root: &Path, now: &Arc<AtomicI64>) -> Arc<Partials> {
        let now = Arc::clone(now);
        let clock: Clock = Arc::new(move || Timestamp(now.load(Ordering::Relaxed)));
        Partials::open(root, clock, Duration::from_secs(60)).unwrap()
    }

    fn plan(bytes: u64) -> Plan {
        let name = "m".parse().unwrap();
        let key = Some(KeyId([7; 8]));
        Plan { becomes: Becomes::Model, name, bytes, metadata: "name bQ==".to_owned(), key, quota: None }
    }

    #[tokio::test]
    async fn what_was_kept_survives_and_what_was_not_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicI64::new(0));
        let partials = open(folder.path(), &now);
        let id = partials.create(plan(10)).await.unwrap().id;
        let mut writer = partials.write(id, 0).await.unwrap();
        writer.append(b"abcd").await.unwrap();
        writer.keep().await.unwrap();
        writer.append(b"xyz").await.unwrap();
        assert!(matches!(writer.append(b"1234").await, Err(Error::TooLong { bytes: 10, .. })));
        writer.file.flush().await.unwrap();
        // As after a kill, with a record that was being written and bytes without one.
        drop(writer);
        fs::write(partials.path(id, "new"), b"{").unwrap();
        fs::write(partials.path(UploadId::new(), "bin"), b"x").unwrap();
        drop(partials);
        let partials = open(folder.path(), &now);
        assert_eq!(fs::read_dir(&partials.folder).unwrap().count(), 2);
        assert_eq!(partials.find(id).unwrap().offset, 4);
        assert_eq!(partials.announced_bytes(KeyId([7; 8])), 10);
        let wrong = partials.write(id, 7).await.err();
        assert!(matches!(wrong, Some(Error::Offset { want: 4, got: 7, .. })), "{wrong:?}");
        let mut writer = partials.write(id, 4).await.unwrap();
        writer.append(b"efghij").await.unwrap();
        assert!(writer.is_whole());
        writer.keep().await.unwrap();
        assert_eq!(fs::read(writer.path()).unwrap(), b"abcdefghij");
        assert_eq!(writer.partial().offset, 4, "not before it has become something");
        writer.became("/v1/models/m@1".to_owned()).await.unwrap();
        let partials = open(folder.path(), &now);
        let partial = partials.find(id).unwrap();
        assert_eq!((partial.offset, partial.became.as_deref()), (10, Some("/v1/models/m@1")));
        assert_eq!(partials.announced_bytes(KeyId([7; 8])), 0);
        assert!(!partials.path(id, "bin").exists());
    }

    #[tokio::test]
    async fn lost_bytes_end_an_upload_and_time_does_too() {
        let folder = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicI64::new(0));
        let partials = open(folder.path(), &now);
        let ids = [partials.create(plan(10)).await.unwrap().id, partials.create(plan(10)).await.unwrap().id];
        for id in ids {
            let mut writer = partials.write(id, 0).await.unwrap();
            writer.append(b"abcd").await.unwrap();
            writer.keep().await.unwrap();
        }
        fs::write(partials.path(ids[0], "bin"), b"abc").unwrap();
        let partials = open(folder.path(), &now);
        assert!(matches!(partials.find(ids[0]), Err(Error::NotFound { .. })));
        now.store(59_999, Ordering::Relaxed);
        assert_eq!(partials.expire().await.unwrap(), 0);
        now.store(60_000, Ordering::Relaxed);
        assert!(matches!(partials.find(ids[1]), Err(Error::NotFound { .. })));
        assert_eq!(partials.expire().await.unwrap(), 1);
        assert_eq!(fs::read_dir(&partials.folder).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn who_comes_later_gets_the_turn_from_a_request_that_gives_it_up() {
        let folder = tempfile::tempdir().unwrap();
        let partials = open(folder.path(), &Arc::new(AtomicI64::new(0)));
        let id = partials.create(plan(10)).await.unwrap().id;
        let mut first = partials.write(id, 0).await.unwrap();
        let holder = tokio::spawn(async move { first.is_wanted().await });
        partials.write(id, 0).await.unwrap();
        holder.await.unwrap();
        partials.delete(id).await.unwrap();
        assert!(matches!(partials.write(id, 0).await, Err(Error::NotFound { .. })));
    }
}
