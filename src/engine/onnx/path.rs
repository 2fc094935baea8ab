//! Places of data that strangers wrote, in archives and in models: paths that are relative, lead downwards and are
//! nothing that some system reads otherwise; and ranges of bytes that are there.

use std::ops::Range;

use bytes::Bytes;

/// Where data may be read from.
pub(super) trait Source {
    /// Bytes of the file at `location`, a path that [`checked`] takes; all that is left where `length` is `None`.
    ///
    /// # Errors
    /// A sentence without the location.
    fn read(&mut self, location: &str, offset: u64, length: Option<u64>) -> Result<Bytes, String>;
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
