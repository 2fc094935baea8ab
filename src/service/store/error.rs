//! Why the catalog could not do what was asked.

use std::fmt;

use super::records::{Expect, JobId, JobState, KeyId, Name};

/// Why the catalog could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such record, or it was deleted.
    #[error("no {kind} `{id}`")]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// Its name or id.
        id: String,
    },
    /// The record cannot be deleted.
    #[error("{kind} `{id}` is served by endpoint `{endpoint}`")]
    InUse {
        /// What was to be deleted.
        kind: Kind,
        /// Its name or id.
        id: String,
        /// What needs it.
        endpoint: Name,
    },
    /// The endpoint is not as the caller expected.
    #[error("endpoint `{name}`: expected {expected}, {}", revision_text(*.got))]
    RevisionMismatch {
        /// The endpoint.
        name: Name,
        /// What the caller expected.
        expected: Expect,
        /// What it has; `None` where it does not exist.
        got: Option<u64>,
    },
    /// The versions given for an endpoint cannot be served.
    #[error("endpoint `{name}`: {reason}")]
    BadEndpoint {
        /// The endpoint.
        name: Name,
        /// What does not fit.
        reason: String,
    },
    /// The worker does not hold the attempt any more: it must stop and throw away what it made.
    #[error("attempt {attempt} of job `{job}` has lost its lease")]
    LeaseLost {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: u32,
    },
    /// The job has ended otherwise.
    #[error("job `{job}` is {state} already")]
    AlreadyFinished {
        /// The job.
        job: JobId,
        /// How it ended.
        state: JobState,
    },
    /// The job has not ended, so it cannot be deleted.
    #[error("job `{job}` is {state}: cancel it, and delete it when it has ended")]
    NotFinished {
        /// The job.
        job: JobId,
        /// Where it stands.
        state: JobState,
    },
    /// The key was used before for another request.
    #[error("idempotency key `{key}` was used for another request")]
    KeyReused {
        /// The key.
        key: String,
    },
    /// The key has stored as much as it may.
    #[error(
        "key `{key}` may store {quota} bytes; {used} are used, and this takes {asked}: delete what is not needed"
    )]
    QuotaExceeded {
        /// The key.
        key: KeyId,
        /// Bytes that it may have stored.
        quota: u64,
        /// Bytes of its models and datasets that are not deleted, and of its uploads that are not finished.
        used: u64,
        /// Bytes of what shall come to them.
        asked: u64,
    },
    /// Too many jobs wait.
    #[error("{limit} jobs are queued already")]
    QueueFull {
        /// The limit.
        limit: u64,
    },
    /// The database has no room left.
    #[error("database: {tried}")]
    Full {
        /// What was tried.
        tried: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database does not answer, for now.
    #[error("database: {tried}")]
    Unavailable {
        /// What was tried.
        tried: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database did not do it.
    #[error("database: {tried}")]
    Database {
        /// What was tried.
        tried: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn revision_text(got: Option<u64>) -> String {
    got.map_or_else(|| "there is none".to_owned(), |revision| format!("it has revision {revision}"))
}

/// What kind of record an error speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`Model`](super::records::Model).
    Model,
    /// A [`Dataset`](super::records::Dataset).
    Dataset,
    /// A [`Job`](super::records::Job).
    Job,
    /// An [`Artifact`](super::records::Artifact).
    Artifact,
    /// An [`Endpoint`](super::records::Endpoint).
    Endpoint,
    /// A [`Key`](super::records::Key).
    Key,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Model => "model",
            Kind::Dataset => "dataset",
            Kind::Job => "job",
            Kind::Artifact => "artifact",
            Kind::Endpoint => "endpoint",
            Kind::Key => "key",
        })
    }
}

/// An error and what caused it, in one line: for the log, and for whoever runs the server. A cause that the text before
/// it ends with already is not said again.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// What a caught panic said: for the log.
#[must_use]
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "no text",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_each_cause_once() {
        fn because(tried: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
            Error::Database { tried: tried.to_owned(), source: source.into() }
        }
        for (error, want) in [
            (because("a", because("b", "no room")), "database: a: database: b: no room"),
            (because("a: no room", "no room"), "database: a: no room"),
            (because("a: no room", because("a: no room", "no room")), "database: a: no room"),
        ] {
            assert_eq!(chain(&error), want);
        }
    }
}
