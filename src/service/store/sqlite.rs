//! The catalog on SQLite: one writer, several readers. The only file that knows SQL.

use std::path::Path;

use super::{Clock, Error};

/// A catalog in one SQLite file.
pub struct Sqlite {}

impl Sqlite {
    /// Opens or makes the file and applies the migrations that it lacks.
    ///
    /// # Errors
    /// [`Error::Database`], also where the file was written by a newer program.
    pub async fn open(path: &Path, clock: Clock) -> Result<Sqlite, Error> {
        let _ = (path, clock);
        Err(Error::QueueFull { limit: 0 })
    }
}
