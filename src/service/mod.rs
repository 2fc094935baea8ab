//! The service: keeps models, datasets and artifacts, schedules jobs, serves endpoints, counts.
//! It calls the engine and knows no HTTP.

pub mod infer;
pub mod jobs;
pub mod keys;
pub mod metrics;
pub mod store;
pub mod tokens;
