//! A server on a free port with a folder of its own, requests to it, and tiny models.

pub(crate) mod app;
pub(crate) mod files;
pub(crate) mod memory;
