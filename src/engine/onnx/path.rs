//! Places of data that strangers wrote, in archives and in models: paths that are relative, lead downwards and are
//! nothing that some system reads otherwise; and ranges of bytes that are there.

use std::fs::File;
use std::io;
use std::ops::Range;

use super::outline::Place;

/// Where data may be read from.
pub(super) trait Source {
    /// The file at `location`, a path that [`checked`] takes.
    ///
    /// # Errors
    /// A sentence without the location.
    fn find(&mut self, location: &str) -> Result<Place, Error>;

    /// A file that places are in. It is read from one place at a time.
    ///
    /// # Errors
    /// Whatever the system says.
    fn file(&self, number: usize) -> io::Result<File>;
}

/// Why a model is not put together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is wrong with the files.
    #[error("{0}")]
    Wrong(String),
    /// More bytes than are taken.
    #[error("{0}")]
    TooLong(String),
    /// A file of ours cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<String> for Error {
    fn from(text: String) -> Error {
        Error::Wrong(text)
    }
}

impl From<&str> for Error {
    fn from(text: &str) -> Error {
        Error::Wrong(text.to_owned())
    }
}

impl Error {
    /// Says where.
    pub(super) fn at(self, place: &str) -> Error {
        match self {
            Error::Wrong(text) => Error::Wrong(format!("{place}: {text}")),
            Error::TooLong(text) => Error::TooLong(format!("{place}: {text}")),
            io @ Error::Io(_) => io,
        }
    }
}

/// The bytes of a file that are asked for, or that they are not there.
pub(super) fn range(file_bytes: u64, offset: u64, length: Option<u64>) -> Result<Range<u64>, String> {
    let end = match length {
        Some(length) => offset.checked_add(length).filter(|&end| end <= file_bytes),
        None => Some(file_bytes),
    };
    match end.filter(|&end| offset <= end) {
        Some(end) => Ok(offset..end),
        None => {
            let length = length.map_or_else(|| "the rest".to_owned(), |n| format!("{n} bytes"));
            Err(format!("it has {file_bytes} bytes, {length} from {offset} on are asked for"))
        }
    }
}

/// The path without `.` in it.
///
/// # Errors
/// A sentence where it could lead anywhere but down.
pub(super) fn checked(path: &str) -> Result<String, String> {
    let wrong = |why: &str| Err(format!("path `{}` {why}", path.escape_debug()));
    if path.starts_with('/') {
        return wrong("is absolute");
    }
    if path.contains(['\\', ':', '\0']) {
        return wrong("has a backslash, a colon or a NUL");
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return wrong("leads out of the folder");
    }
    if parts.is_empty() {
        return wrong("names no file");
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_lead_down_are_taken() {
        for (path, want) in [("w.bin", "w.bin"), ("./a//b/./w", "a/b/w"), ("a.b/..c", "a.b/..c")] {
            assert_eq!(checked(path).as_deref(), Ok(want));
        }
        for path in ["", ".", "/etc/passwd", "../w", "a/../../w", "C:w", "a\\..\\w", "w\0", "//w"] {
            assert!(checked(path).is_err(), "{path}");
        }
    }
}
