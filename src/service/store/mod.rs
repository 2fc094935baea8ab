//! What is kept, and the [`Catalog`] that keeps it: records, errors and questions are given out here, under one name
//! each. The files behind are in `blobs`, the database in `sql`.

pub mod blobs;
mod catalog;
mod endpoint;
mod error;
pub mod partial;
mod records;
pub mod remote;
mod removal;
pub mod reserve;
pub mod sql;

pub use catalog::*;
pub use error::*;
pub use records::*;
