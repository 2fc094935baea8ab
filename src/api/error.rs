//! What goes wrong, told to a client: one closed list of codes and the only table of status codes.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::api::wire;
use crate::engine::pipeline;
use crate::service::keys::Refused;
use crate::service::store::{self, BadText, blobs, chain, panic_text, partial, remote};
use crate::service::{infer, jobs::queue};

/// What went wrong: part of the API, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// A header, parameter, field or body is not what it must be.
    BadRequest,
    /// The body is not JSON.
    MalformedJson,
    /// The tensors do not fit each other, the body or the model.
    BadInput,
    /// The bytes are not what their digest says.
    DigestMismatch,
    /// No key was given, or none that is taken.
    Unauthenticated,
    /// The key may do other things.
    Forbidden,
    /// The key is used too often.
    RateLimited,
    /// No such route.
    NoRoute,
    /// No such record.
    NotFound,
    /// Another method than the route has.
    MethodNotAllowed,
    /// The record is needed by another.
    InUse,
    /// The job has ended otherwise.
    AlreadyFinished,
    /// The job has not ended.
    NotFinished,
    /// The endpoint is not as `If-Match` or `If-None-Match` expects.
    RevisionMismatch,
    /// The key has stored as much as it may.
    QuotaExceeded,
    /// The upload has not got as far as the request says.
    UploadOffset,
    /// Another request works on the upload.
    UploadBusy,
    /// The part of an upload is not what its checksum says.
    ChecksumMismatch,
    /// A version of tus that is not spoken.
    TusVersion,
    /// The body is longer than allowed.
    TooLarge,
    /// A `Content-Encoding` or `Content-Type` that is not taken.
    UnsupportedMedia,
    /// A `Range` outside of the file.
    BadRange,
    /// The file is not a model that can be read or run.
    BadModel,
    /// The file is not a dataset, or does not fit the model.
    BadData,
    /// The recipe is not one.
    BadRecipe,
    /// The idempotency key was used for another request.
    KeyReused,
    /// Too many requests or jobs wait.
    QueueFull,
    /// Too many requests are being answered.
    Overloaded,
    /// The endpoint is being loaded, was unloaded or cannot be loaded.
    NotReady,
    /// It took too long.
    Deadline,
    /// The disk, or the database, has no room left.
    StorageFull,
    /// The database or the object store does not answer.
    StorageUnavailable,
    /// Not part of this server.
    NotImplemented,
    /// A fault of ours.
    Internal,
}

impl Code {
    /// Every code.
    #[cfg(test)]
    pub(crate) const ALL: [Code; 34] = [
        Code::BadRequest,
        Code::MalformedJson,
        Code::BadInput,
        Code::DigestMismatch,
        Code::Unauthenticated,
        Code::Forbidden,
        Code::RateLimited,
        Code::NoRoute,
        Code::NotFound,
        Code::MethodNotAllowed,
        Code::InUse,
        Code::AlreadyFinished,
        Code::NotFinished,
        Code::RevisionMismatch,
        Code::QuotaExceeded,
        Code::UploadOffset,
        Code::UploadBusy,
        Code::ChecksumMismatch,
        Code::TusVersion,
        Code::TooLarge,
        Code::UnsupportedMedia,
        Code::BadRange,
        Code::BadModel,
        Code::BadData,
        Code::BadRecipe,
        Code::KeyReused,
        Code::QueueFull,
        Code::Overloaded,
        Code::NotReady,
        Code::Deadline,
        Code::StorageFull,
        Code::StorageUnavailable,
        Code::NotImplemented,
        Code::Internal,
    ];

    /// The table: status, the code as text, its title.
    fn row(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Code::BadRequest => (StatusCode::BAD_REQUEST, "bad_request", "The request is not understood"),
            Code::MalformedJson => (StatusCode::BAD_REQUEST, "malformed_json", "The body is not JSON"),
            Code::BadInput => (StatusCode::BAD_REQUEST, "bad_input", "The tensors do not fit"),
            Code::DigestMismatch => {
                (StatusCode::BAD_REQUEST, "digest_mismatch", "The bytes are not what their digest says")
            }
            Code::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated", "A key is needed"),
            Code::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "The key does not allow it"),
            Code::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rate_limited", "The key is used too often"),
            Code::NoRoute => (StatusCode::NOT_FOUND, "no_route", "No such route"),
            Code::NotFound => (StatusCode::NOT_FOUND, "not_found", "Not found"),
            Code::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "The route has no such method")
            }
            Code::InUse => (StatusCode::CONFLICT, "in_use", "Something else needs it"),
            Code::AlreadyFinished => (StatusCode::CONFLICT, "already_finished", "The job has ended"),
            Code::NotFinished => (StatusCode::CONFLICT, "not_finished", "The job has not ended"),
            Code::RevisionMismatch => {
                (StatusCode::PRECONDITION_FAILED, "revision_mismatch", "It was changed in the meantime")
            }
            Code::QuotaExceeded => {
                (StatusCode::PAYLOAD_TOO_LARGE, "quota_exceeded", "The key has stored as much as it may")
            }
            Code::UploadOffset => (StatusCode::CONFLICT, "upload_offset", "The upload is at another offset"),
            Code::UploadBusy => (StatusCode::LOCKED, "upload_busy", "Another request works on the upload"),
            Code::ChecksumMismatch => {
                // Of the checksum extension of tus.
                let status = StatusCode::from_u16(460).unwrap_or(StatusCode::BAD_REQUEST);
                (status, "checksum_mismatch", "The part is not what its checksum says")
            }
            Code::TusVersion => {
                (StatusCode::PRECONDITION_FAILED, "tus_version", "A version of tus that is not spoken")
            }
            Code::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The body is too large"),
            Code::UnsupportedMedia => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media",
                "The body comes in a form not taken",
            ),
            Code::BadRange => {
                (StatusCode::RANGE_NOT_SATISFIABLE, "bad_range", "The range is outside of the file")
            }
            Code::BadModel => (StatusCode::UNPROCESSABLE_ENTITY, "bad_model", "Not a model that can be run"),
            Code::BadData => (StatusCode::UNPROCESSABLE_ENTITY, "bad_data", "Not data that can be used"),
            Code::BadRecipe => (StatusCode::UNPROCESSABLE_ENTITY, "bad_recipe", "Not a recipe"),
            Code::KeyReused => {
                (StatusCode::UNPROCESSABLE_ENTITY, "key_reused", "The idempotency key was used before")
            }
            Code::QueueFull => (StatusCode::TOO_MANY_REQUESTS, "queue_full", "The queue is full"),
            Code::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many requests"),
            Code::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "not_ready", "Not ready"),
            Code::Deadline => (StatusCode::GATEWAY_TIMEOUT, "deadline", "It took too long"),
            Code::StorageFull => {
                (StatusCode::INSUFFICIENT_STORAGE, "storage_full", "The server has no room left")
            }
            Code::StorageUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "storage_unavailable",
                "The server cannot reach what it keeps things in",
            ),
            Code::NotImplemented => {
                (StatusCode::NOT_IMPLEMENTED, "not_implemented", "Not part of this server")
            }
            Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "A fault of the server"),
        }
    }

    /// For HTTP.
    pub(crate) fn status(self) -> StatusCode {
        self.row().0
    }

    /// For programs.
    pub(crate) fn text(self) -> &'static str {
        self.row().1
    }

    /// For people.
    pub(crate) fn title(self) -> &'static str {
        self.row().2
    }

    /// For gRPC.
    pub(crate) fn grpc(self) -> tonic::Code {
        match self {
            Code::BadRequest
            | Code::MalformedJson
            | Code::BadInput
            | Code::DigestMismatch
            | Code::ChecksumMismatch
            | Code::TusVersion
            | Code::BadModel
            | Code::BadData
            | Code::BadRecipe
            | Code::KeyReused => tonic::Code::InvalidArgument,
            Code::Unauthenticated => tonic::Code::Unauthenticated,
            Code::Forbidden => tonic::Code::PermissionDenied,
            Code::NotFound => tonic::Code::NotFound,
            Code::InUse
            | Code::AlreadyFinished
            | Code::NotFinished
            | Code::RevisionMismatch
            | Code::UploadOffset
            | Code::UploadBusy => tonic::Code::FailedPrecondition,
            Code::BadRange => tonic::Code::OutOfRange,
            Code::TooLarge
            | Code::QuotaExceeded
            | Code::QueueFull
            | Code::RateLimited
            | Code::StorageFull => tonic::Code::ResourceExhausted,
            Code::Overloaded | Code::NotReady | Code::StorageUnavailable => tonic::Code::Unavailable,
            Code::Deadline => tonic::Code::DeadlineExceeded,
            Code::NoRoute | Code::MethodNotAllowed | Code::UnsupportedMedia | Code::NotImplemented => {
                tonic::Code::Unimplemented
            }
            Code::Internal => tonic::Code::Internal,
        }
    }

    /// What an answer of axum or tower itself means, by its status.
    pub(crate) fn of_status(status: StatusCode) -> Code {
        let specific = [
            Code::NoRoute,
            Code::MethodNotAllowed,
            Code::TooLarge,
            Code::UnsupportedMedia,
            Code::BadRange,
            Code::NotReady,
            Code::Deadline,
        ];
        let found = specific.into_iter().find(|code| code.status() == status);
        found.unwrap_or(if status.is_server_error() { Code::Internal } else { Code::BadRequest })
    }
}

/// A refusal. Which body it becomes, `http::observe` decides by the route.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    /// For programs.
    pub(crate) code: Code,
    /// What the caller can change.
    pub(crate) detail: String,
    /// For the log only.
    pub(crate) cause: Option<String>,
    /// Seconds after which to try again.
    pub(crate) retry_after_s: Option<u64>,
}

impl Problem {
    /// A refusal with its sentence.
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Problem {
        Problem { code, detail: detail.into(), cause: None, retry_after_s: None }
    }

    /// The sentence for a header, parameter or field that is wrong.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Problem {
        Problem::new(Code::BadRequest, detail)
    }

    /// A fault of ours: the caller gets none of its inner life.
    pub(crate) fn internal(cause: impl ToString) -> Problem {
        let detail = "a fault of the server; its log has the cause under this request id";
        Problem { cause: Some(cause.to_string()), ..Problem::new(Code::Internal, detail) }
    }

    /// More requests than `max` at a time.
    pub(crate) fn overloaded(max: usize) -> Problem {
        Problem::new(Code::Overloaded, format!("{max} requests are being answered already")).retry_after(1)
    }

    /// A panic in a handler.
    pub(crate) fn of_panic(panic: &(dyn std::any::Any + Send)) -> Problem {
        Problem::internal(format!("panic: {}", panic_text(panic)))
    }

    /// A body that is longer than allowed.
    pub(crate) fn too_large(limit_bytes: u64) -> Problem {
        Problem::new(Code::TooLarge, format!("the body is longer than the limit of {limit_bytes} bytes"))
    }

    /// No room is left.
    fn storage_full(cause: impl ToString) -> Problem {
        let detail = "the server has no room left on its disk or in its database; nothing was kept";
        Problem { cause: Some(cause.to_string()), ..Problem::new(Code::StorageFull, detail) }
    }

    /// The database or the object store does not answer.
    fn storage_unavailable(cause: impl ToString) -> Problem {
        let detail = "the database or the object store does not answer; try again";
        let problem = Problem::new(Code::StorageUnavailable, detail).retry_after(5);
        Problem { cause: Some(cause.to_string()), ..problem }
    }

    fn retry_after(self, seconds: u64) -> Problem {
        Problem { retry_after_s: Some(seconds), ..self }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<BadText> for Problem {
    fn from(error: BadText) -> Problem {
        Problem::bad_request(error.to_string())
    }
}

impl From<wire::Error> for Problem {
    fn from(error: wire::Error) -> Problem {
        let detail = error.to_string();
        match error {
            wire::Error::Json { .. } => Problem::new(Code::MalformedJson, detail),
            wire::Error::Field(_)
            | wire::Error::Input { .. }
            | wire::Error::Framing(_)
            | wire::Error::Output { .. } => Problem::new(Code::BadInput, detail),
        }
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Problem {
        let detail = error.to_string();
        match error {
            store::Error::NotFound { .. } => Problem::new(Code::NotFound, detail),
            store::Error::InUse { .. } => Problem::new(Code::InUse, detail),
            store::Error::RevisionMismatch { .. } => Problem::new(Code::RevisionMismatch, detail),
            store::Error::BadEndpoint { .. } => Problem::bad_request(detail),
            store::Error::AlreadyFinished { .. } => Problem::new(Code::AlreadyFinished, detail),
            store::Error::NotFinished { .. } => Problem::new(Code::NotFinished, detail),
            store::Error::KeyReused { .. } => Problem::new(Code::KeyReused, detail),
            store::Error::QuotaExceeded { .. } => Problem::new(Code::QuotaExceeded, detail),
            store::Error::QueueFull { .. } => Problem::new(Code::QueueFull, detail).retry_after(10),
            // Only a worker holds leases: a handler that meets this is wrong.
            store::Error::LeaseLost { .. } => Problem::internal(detail),
            store::Error::Full { source, .. } => Problem::storage_full(format!("{detail}: {source}")),
            store::Error::Unavailable { source, .. } => {
                Problem::storage_unavailable(format!("{detail}: {source}"))
            }
            store::Error::Database { source, .. } => Problem::internal(format!("{detail}: {source}")),
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        let detail = refused.to_string();
        match refused {
            Refused::Missing
            | Refused::Unknown
            | Refused::Token(_)
            | Refused::Expired { .. }
            | Refused::Revoked { .. } => Problem::new(Code::Unauthenticated, detail),
            Refused::Scope { .. } | Refused::Origin => Problem::new(Code::Forbidden, detail),
            // A rate is one a second or more.
            Refused::Rate { .. } => Problem::new(Code::RateLimited, detail).retry_after(1),
        }
    }
}

impl From<blobs::Error> for Problem {
    fn from(error: blobs::Error) -> Problem {
        let detail = error.to_string();
        match error {
            blobs::Error::TooLarge { limit } => Problem::too_large(limit),
            blobs::Error::DigestMismatch { .. } => Problem::new(Code::DigestMismatch, detail),
            blobs::Error::Missing { .. } => Problem::internal(detail),
            blobs::Error::Locked { .. } | blobs::Error::Damaged { .. } => Problem::internal(detail),
            blobs::Error::Io { source, .. } => of_io(&detail, &source),
            blobs::Error::Catalog(error) | blobs::Error::Remote(remote::Error::Catalog(error)) => {
                error.into()
            }
            blobs::Error::Remote(remote::Error::Local { source, .. }) => of_io(&detail, &source),
            blobs::Error::Remote(remote::Error::Corrupt { .. }) => Problem::internal(detail),
            blobs::Error::Remote(error) => Problem::storage_unavailable(chain(&error)),
        }
    }
}

impl From<partial::Error> for Problem {
    fn from(error: partial::Error) -> Problem {
        let detail = error.to_string();
        match error {
            partial::Error::NotFound { .. } => Problem::new(Code::NotFound, detail),
            partial::Error::Offset { .. } => Problem::new(Code::UploadOffset, detail),
            partial::Error::Busy { .. } => Problem::new(Code::UploadBusy, detail).retry_after(1),
            partial::Error::TooMany { .. } => Problem::new(Code::QueueFull, detail).retry_after(60),
            partial::Error::TooLong { .. } => Problem::new(Code::TooLarge, detail),
            partial::Error::Io { source, .. } => of_io(&detail, &source),
        }
    }
}

/// A file that could not be read or written.
fn of_io(detail: &str, source: &std::io::Error) -> Problem {
    let cause = format!("{detail}: {source}");
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Problem::storage_full(cause),
        _ => Problem::internal(cause),
    }
}

impl From<queue::Error> for Problem {
    fn from(error: queue::Error) -> Problem {
        let detail = error.to_string();
        match error {
            queue::Error::BadRecipe(_) => Problem::new(Code::BadRecipe, detail),
            queue::Error::BadAttempts { .. } | queue::Error::BadWebhook(_) | queue::Error::NoCalibration => {
                Problem::bad_request(detail)
            }
            queue::Error::BadStatistics(_) => Problem::new(Code::BadData, detail),
            queue::Error::TooManyWatched { .. } => Problem::new(Code::QueueFull, detail).retry_after(10),
            queue::Error::Store(error) => error.into(),
        }
    }
}

impl From<infer::Error> for Problem {
    fn from(error: infer::Error) -> Problem {
        let detail = error.to_string();
        match error {
            infer::Error::UnknownEndpoint { .. } | infer::Error::UnknownVersion { .. } => {
                Problem::new(Code::NotFound, detail)
            }
            infer::Error::Starting | infer::Error::NotReady { .. } => {
                Problem::new(Code::NotReady, detail).retry_after(2)
            }
            infer::Error::UnknownPrecision { .. } => Problem::bad_request(detail),
            // In the words of the protocol that the caller speaks.
            infer::Error::InputType { name, got, want } => {
                let (got, want) = (wire::datatype_name(got), wire::datatype_name(want));
                Problem::new(
                    Code::BadInput,
                    format!("input `{name}` has datatype {got}, the model needs {want}"),
                )
            }
            infer::Error::BadInput(_) | infer::Error::TooLarge(_) => Problem::new(Code::BadInput, detail),
            infer::Error::QueueFull { .. } => Problem::new(Code::QueueFull, detail).retry_after(1),
            infer::Error::Deadline => Problem::new(Code::Deadline, detail),
            infer::Error::Internal(_) => Problem::internal(detail),
        }
    }
}

impl From<pipeline::Error> for Problem {
    fn from(error: pipeline::Error) -> Problem {
        let detail = error.to_string();
        match error {
            pipeline::Error::Model(_) => Problem::new(Code::BadModel, detail),
            pipeline::Error::Data { .. } => Problem::new(Code::BadData, detail),
            pipeline::Error::TooLong(_) => Problem::new(Code::TooLarge, detail),
            pipeline::Error::Recipe(_) => Problem::new(Code::BadRecipe, detail),
            pipeline::Error::Cancelled => Problem::internal(detail),
            pipeline::Error::Io { source, .. } => of_io(&detail, &source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_has_its_own_text_and_a_status_that_is_an_error() {
        let texts: HashSet<_> = Code::ALL.iter().map(|code| code.text()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{code:?}");
        }
    }
}
