//! What every part of a job has: what is asked, and whom to tell. Knows no order of things.

use super::{Error, Phase, Progress, Request};
use crate::engine::exec::Options;
use crate::engine::exec::session::Session;
use crate::engine::graph::Graph;

/// A job that runs.
pub(super) struct Job<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) progress: &'a dyn Progress,
}

impl Job<'_> {
    /// Tells of progress; an error where the caller wants to stop.
    pub(super) fn step(&self, phase: Phase, done: usize, total: usize) -> Result<(), Error> {
        self.progress.update(phase, done as u64, total as u64);
        if self.progress.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// The same for loops that ask whether to go on.
    pub(super) fn going(&self, phase: Phase, done: usize, total: usize) -> bool {
        self.step(phase, done, total).is_ok()
    }

    /// A model that is ready to run.
    pub(super) fn session(&self, graph: Graph) -> Result<Session, Error> {
        Session::new(graph, self.options()).map_err(|e| Error::Model(e.to_string()))
    }

    /// The same, where each value is to be seen as the file has it: nothing of a quantized model is fused.
    pub(super) fn unfused(&self, graph: Graph) -> Result<Session, Error> {
        let options = Options { integers: false, ..self.options() };
        Session::new(graph, options).map_err(|e| Error::Model(e.to_string()))
    }

    /// How it runs.
    pub(super) fn options(&self) -> Options {
        Options { threads: self.request.threads.max(1), ..Options::default() }
    }
}
