//! A server on a free port with a folder of its own, requests to it, and tiny models.

pub(crate) mod app;
pub(crate) mod files;
pub(crate) mod memory;

/// A job that nobody watches.
pub(crate) struct Silent;

impl octet::engine::pipeline::Progress for Silent {
    fn update(&self, _: octet::engine::pipeline::Phase, _: u64, _: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
    fn seconds(&self) -> f64 {
        0.0
    }
}
