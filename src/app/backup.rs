//! Copies of everything that a lonely server keeps: made beside it while it runs, and put back.

use std::io;
use std::path::{Path, PathBuf};

use super::database::{database, missing_database};
use super::process::clock;
use crate::config::Settings;
use crate::service::store::blobs::hashed;
use crate::service::store::sql::open::Sql;
use crate::service::store::{self, Digest};

/// Why there is no backup, or nothing was put back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Records are in Postgres or files in an object store.
    #[error(
        "records are in Postgres or files in an object store, which have backups of their own: take that of the database \
         first, then that of the bucket (docs/DEPLOYMENT.md)"
    )]
    Shared,
    /// The folder is not empty.
    #[error("`{path}` is there already and is not empty")]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// A file that a record refers to is missing, or has other bytes.
    #[error("the file of blob {digest} is {what} in `{path}`")]
    Damaged {
        /// Which blob.
        digest: Digest,
        /// What is wrong with it.
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{tried} `{path}`: {source}")]
    Io {
        /// What was tried.
        tried: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database could not be read or copied.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The data folder cannot be used.
    #[error("{0}")]
    Folder(String),
}

/// What was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Copies the records and the files that they refer to into a new folder, while a server may run.
///
/// # Errors
/// [`Error`]; then what was copied so far stays, and is no backup.
pub async fn back_up(settings: &Settings, to: &Path) -> Result<Copied, Error> {
    if !settings.store.database_url.is_empty() || !settings.store.s3_bucket.is_empty() {
        return Err(Error::Shared);
    }
    if let Some(path) = missing_database(settings) {
        return Err(Error::Folder(super::Error::NoDatabase { path }.to_string()));
    }
    empty(to)?;
    let from = &settings.data_dir;
    // Files first, so that those which are removed meanwhile are there; then the records as they are at one moment; then
    // the files that came meanwhile.
    copy_new(from, to)?;
    let sql = database(settings, clock()).await.map_err(|error| Error::Folder(error.to_string()))?;
    let copy = to.join("octet.db");
    sql.copy_to(&copy).await?;
    sql.close().await;
    copy_new(from, to)?;
    checked(to).await
}

/// Puts a backup into a data folder that is not there yet.
///
/// # Errors
/// [`Error`]; a backup that is not whole is not put back.
pub async fn restore(from: &Path, data_dir: &Path) -> Result<Copied, Error> {
    let copied = checked(from).await?;
    empty(data_dir)?;
    copy_new(from, data_dir)?;
    // Last: a folder without records is one that was not restored.
    copy(&from.join("octet.db"), &data_dir.join("octet.db"))?;
    Ok(copied)
}

/// Compares every file that a record refers to with its digest.
async fn checked(folder: &Path) -> Result<Copied, Error> {
    let database = folder.join("octet.db");
    if !database.exists() {
        let source = io::ErrorKind::NotFound.into();
        return Err(Error::Io { tried: "opening", path: database, source });
    }
    let sql = Sql::sqlite(&database, clock()).await?;
    let digests = sql.blobs().await?;
    sql.close().await;
    let mut copied = Copied { files: 0, bytes: 0 };
    for digest in digests {
        let path = folder.join("blobs").join(place(digest));
        let damaged = |what| Error::Damaged { digest, what, path: path.clone() };
        let mut file = std::fs::File::open(&path).map_err(|_| damaged("missing"))?;
        let (got, bytes) = hashed(&mut file).map_err(|source| failed("reading", &path, source))?;
        copied.bytes += bytes;
        copied.files += 1;
        if got != digest {
            return Err(damaged("not what its name says"));
        }
    }
    Ok(copied)
}

fn place(digest: Digest) -> PathBuf {
    let text = digest.to_string();
    Path::new(&text[..2]).join(&text[2..])
}

fn empty(folder: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|source| failed("making", folder, source))?;
    let mut entries = std::fs::read_dir(folder).map_err(|source| failed("listing", folder, source))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Error::Occupied { path: folder.to_owned() }),
    }
}

/// Copies the blobs that are not there yet.
fn copy_new(from: &Path, to: &Path) -> Result<(), Error> {
    let blobs = from.join("blobs");
    let listed = |path: &Path| match std::fs::read_dir(path) {
        Ok(entries) => {
            entries.collect::<Result<Vec<_>, _>>().map_err(|source| failed("listing", path, source))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(failed("listing", path, source)),
    };
    for folder in listed(&blobs)? {
        let target = to.join("blobs").join(folder.file_name());
        std::fs::create_dir_all(&target).map_err(|source| failed("making", &target, source))?;
        for file in listed(&folder.path())? {
            let target = target.join(file.file_name());
            if !target.exists() {
                copy(&file.path(), &target)?;
            }
        }
    }
    Ok(())
}

/// Copies a file and syncs it. One that was removed meanwhile is no fault: what needs it is found afterwards.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    match std::fs::copy(from, to) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed("copying to", to, source)),
    }
    let synced = std::fs::File::open(to).and_then(|file| file.sync_all());
    synced.map_err(|source| failed("syncing", to, source))
}

fn failed(tried: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { tried, path: path.to_owned(), source }
}
