//! Listings, page by page.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::names::{BadText, bad, serde_as_text};
use super::time::Timestamp;

/// Which page of a listing. Newest first.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Begin after this record.
    pub after: Option<Cursor>,
    /// At most so many records, 1 to [`Page::LIMIT_MAX`]; other numbers are moved into that range.
    pub limit: u32,
}

impl Page {
    /// At most so many records come at once.
    pub const LIMIT_MAX: u32 = 200;

    /// The first `limit` records.
    #[must_use]
    pub fn first(limit: u32) -> Page {
        Page { after: None, limit }
    }
}

/// A part of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice<T> {
    /// The records, newest first.
    pub items: Vec<T>,
    /// Where the next part begins; `None` at the end.
    pub next: Option<Cursor>,
}

/// A place in a listing. Opaque to clients: keep it and hand it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Of the last record seen.
    pub(in crate::service::store) created_at: Timestamp,
    /// Of the last record seen.
    pub(in crate::service::store) id: String,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(format!("{}/{}", self.created_at.0, self.id)))
    }
}

impl FromStr for Cursor {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Cursor, BadText> {
        let parse = || {
            let plain = String::from_utf8(hex::decode(text).ok()?).ok()?;
            let (created_at, id) = plain.split_once('/')?;
            Some(Cursor { created_at: Timestamp(created_at.parse().ok()?), id: id.to_owned() })
        };
        parse().ok_or_else(|| bad(text, "a cursor", "the `next_cursor` of an earlier answer, unchanged"))
    }
}
serde_as_text!(Cursor);
