//! The catalog in a database: one SQL text for SQLite and Postgres. The only folder that knows SQL.
//!
//! Portable SQL throughout: `$1` for values, BIGINT for whole numbers and truth, text for ids, digests and JSON. Where
//! the two differ, [`Dialect`] has the words.

use std::fmt;
use std::future::Future;
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::{Answer, Error, Timestamp, Version};

mod audit;
mod catalog;
mod endpoints;
mod holds;
mod jobs;
mod keys;
mod migrations;
pub mod open;
mod rows;
#[cfg(test)]
pub(crate) mod tests;
mod transaction;
mod uploads;
mod webhooks;

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// That of a connection.
    fn of(connection: &AnyConnection) -> Dialect {
        if connection.backend_name() == "SQLite" { Dialect::Sqlite } else { Dialect::Postgres }
    }

    /// The type of whole numbers.
    fn whole(self) -> &'static str {
        match self {
            Dialect::Sqlite => "INTEGER",
            Dialect::Postgres => "BIGINT",
        }
    }

    /// Makes an array and an object of JSON.
    fn json(self) -> (&'static str, &'static str) {
        match self {
            Dialect::Sqlite => ("json_group_array", "json_object"),
            Dialect::Postgres => ("json_agg", "json_build_object"),
        }
    }

    /// Reads a text in the JSON object of a column; NULL where it is not there.
    fn json_text(self, column: &str, key: &str) -> String {
        match self {
            Dialect::Sqlite => format!("{column} ->> '{key}'"),
            Dialect::Postgres => format!("CAST({column} AS JSON) ->> '{key}'"),
        }
    }

    /// After a SELECT whose rows will be written: nobody else writes them until the transaction ends.
    fn for_update(self) -> &'static str {
        match self {
            // A writing transaction holds the lock of the file.
            Dialect::Sqlite => "",
            Dialect::Postgres => "FOR UPDATE",
        }
    }

    /// The same, leaving out rows that somebody else is about to write.
    fn skip_locked(self) -> &'static str {
        match self {
            Dialect::Sqlite => "",
            Dialect::Postgres => "FOR UPDATE SKIP LOCKED",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dialect::Sqlite => "SQLite",
            Dialect::Postgres => "Postgres",
        })
    }
}

/// What goes wrong in here: the database, or a refusal that is an answer.
enum Fault {
    Database(Box<dyn std::error::Error + Send + Sync>),
    Refused(Error),
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Fault {
        Fault::Database(Box::new(error))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Refused(error)
    }
}

type Work<T> = Result<T, Fault>;

fn answer<'a, T>(tried: impl Into<String>, work: impl Future<Output = Work<T>> + Send + 'a) -> Answer<'a, T> {
    let tried = tried.into();
    Box::pin(async move {
        work.await.map_err(|fault| match fault {
            Fault::Refused(error) => error,
            Fault::Database(source) => told(tried, source),
        })
    })
}

/// What a fault of the database means for the caller.
fn told(tried: String, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    use sqlx::Error as Sqlx;
    let code = match source.downcast_ref::<Sqlx>() {
        Some(Sqlx::Io(_) | Sqlx::PoolTimedOut | Sqlx::PoolClosed | Sqlx::Tls(_)) => {
            return Error::Unavailable { tried, source };
        }
        Some(Sqlx::Database(error)) => error.code().map(|code| code.into_owned()).unwrap_or_default(),
        _ => String::new(),
    };
    // https://sqlite.org/rescode.html: the lower byte is the primary code, 5 busy, 13 full. The codes of Postgres have
    // five characters: 53100 disk full, 53300 too many connections, class 08 connections, 57P01 to 57P03 shutting down
    // or starting up.
    let primary = code.parse::<u32>().ok().filter(|_| code.len() != 5).map(|code| code & 0xff);
    match (primary, code.as_str()) {
        (Some(13), _) | (_, "53100") => Error::Full { tried, source },
        (Some(5), _) | (_, "53300" | "57P01" | "57P02" | "57P03") => Error::Unavailable { tried, source },
        (_, code) if code.len() == 5 && code.starts_with("08") => Error::Unavailable { tried, source },
        _ => Error::Database { tried, source },
    }
}

fn parsed<T: FromStr>(value: &str) -> Work<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    value.parse().map_err(|error| Fault::Database(Box::new(error)))
}

fn text<T: FromStr>(row: &AnyRow, column: &str) -> Work<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    parsed(row.try_get::<&str, _>(column)?)
}

fn text_or_null<T: FromStr>(row: &AnyRow, column: &str) -> Work<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.try_get::<Option<&str>, _>(column)?.map(parsed).transpose()
}

fn json_of<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Work<T> {
    serde_json::from_str(row.try_get(column)?).map_err(|error| Fault::Database(Box::new(error)))
}

fn json_or_null<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Work<Option<T>> {
    let value: Option<&str> = row.try_get(column)?;
    value.map(serde_json::from_str).transpose().map_err(|error| Fault::Database(Box::new(error)))
}

fn to_json<T: Serialize>(value: &T) -> Work<String> {
    serde_json::to_string(value).map_err(|error| Fault::Database(Box::new(error)))
}

fn time_or_null(row: &AnyRow, column: &str) -> Work<Option<Timestamp>> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp))
}

fn time(row: &AnyRow, column: &str) -> Work<Timestamp> {
    Ok(Timestamp(row.try_get(column)?))
}

fn version(row: &AnyRow, column: &str) -> Work<Version> {
    Ok(Version(number(row, column)?))
}

fn number(row: &AnyRow, column: &str) -> Work<u32> {
    let value: i64 = row.try_get(column)?;
    u32::try_from(value).map_err(|error| Fault::Database(Box::new(error)))
}

fn flag(row: &AnyRow, column: &str) -> Work<bool> {
    Ok(row.try_get::<i64, _>(column)? != 0)
}

fn whole(row: &AnyRow, column: &str) -> Work<u64> {
    Ok(unsigned(row.try_get(column)?))
}

/// Databases count in i64; nothing here comes near its end.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
