//! The Open Inference Protocol over gRPC: messages and refusals. The calls stand in `grpc/service.rs`.

pub(crate) mod access;
pub(crate) mod describe;
pub(crate) mod health;
pub(crate) mod infer;
pub(crate) mod repository;
pub mod router;
pub(crate) mod service;
pub(crate) mod settings;
pub(crate) mod shared_memory;

use std::sync::Arc;

use tonic::Status;

use crate::api::error::Problem;

/// The messages of `proto/`.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub(crate) mod proto {
    tonic::include_proto!("inference");
}

/// The name of the service that infers.
pub(crate) const INFERENCE: &str = "inference.GRPCInferenceService";

/// What reflection tells of the messages.
pub(crate) const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));

/// Why a call failed: for the log, which `grpc::router` writes because it knows the id of the request.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Cause(pub(crate) String);

impl From<Problem> for Status {
    fn from(problem: Problem) -> Status {
        let mut status = Status::new(problem.code.grpc(), problem.detail);
        if let Some(cause) = problem.cause {
            status.set_source(Arc::new(Cause(cause)));
        }
        status
    }
}

/// A field that may be left out: the empty text of protobuf.
pub(crate) fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}
