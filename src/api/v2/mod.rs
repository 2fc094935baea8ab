//! What the Open Inference Protocol says over REST and over gRPC alike: how a request is run and counted, what models
//! look like, the repository, the settings, shared memory. `http` and `grpc` only put it into their own form.

pub(crate) mod describe;
pub(crate) mod infer;
pub(crate) mod repository;
pub(crate) mod settings;
pub(crate) mod shared_memory;
