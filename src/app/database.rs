//! The records of a server: SQLite in the data folder, or Postgres.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::Settings;
use crate::service::store::sql::open::Sql;
use crate::service::store::{Catalog, Clock, blobs};

use super::Error;
use super::process::clock;

/// The records of a server, which may run meanwhile: only the files have one owner. Makes them where there are none, as
/// the server does.
///
/// # Errors
/// [`Error`] where they cannot be opened.
pub async fn open_catalog(settings: &Settings) -> Result<Arc<dyn Catalog>, Error> {
    Ok(database(settings, clock()).await?)
}

/// The same for who has nothing to do where there are none: in a folder that was misspelt.
///
/// # Errors
/// [`Error::NoDatabase`], and as [`open_catalog`].
pub async fn open_existing_catalog(settings: &Settings) -> Result<Arc<dyn Catalog>, Error> {
    match missing_database(settings) {
        Some(path) => Err(Error::NoDatabase { path }),
        None => open_catalog(settings).await,
    }
}

/// The SQLite file that whoever opens the records would make; `None` where there is one, and where Postgres keeps them.
#[must_use]
pub fn missing_database(settings: &Settings) -> Option<PathBuf> {
    let path = settings.data_dir.join("octet.db");
    (settings.store.database_url.is_empty() && !path.exists()).then_some(path)
}

/// Brings the database to what this program knows. Gives the version, and the names of what was applied.
///
/// # Errors
/// [`Error::Store`], or [`Error::Blobs`] where the data folder cannot be used.
pub async fn migrate(settings: &Settings) -> Result<(i64, Vec<&'static str>), Error> {
    let sql = database(settings, clock()).await?;
    Ok((sql.schema_version(), sql.applied().to_vec()))
}

/// Opens what keeps the records.
pub(super) async fn database(settings: &Settings, clock: Clock) -> Result<Arc<Sql>, Error> {
    let url = settings.store.database_url.reveal();
    let sql = if url.is_empty() {
        let folder = &settings.data_dir;
        std::fs::create_dir_all(folder).map_err(|source| blobs::Error::Io {
            tried: "making folder",
            path: folder.clone(),
            source,
        })?;
        Sql::sqlite(&folder.join("octet.db"), clock).await?
    } else {
        Sql::postgres(url, clock).await?
    };
    Ok(Arc::new(sql))
}
