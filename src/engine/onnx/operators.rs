//! Which operators there are, for documents.

use crate::engine::ops::registry;

use super::lift;

/// How an operator is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// A variant of `Op`: shapes, kernels and passes know it.
    Kernel,
    /// One object that implements `Operator`.
    Object,
}

/// Domain (empty for ONNX's own), name, and how it is computed, of every operator that the importer takes; by domain
/// and name.
pub fn all() -> Vec<(&'static str, &'static str, Runs)> {
    let mut all: Vec<_> = lift::supported().into_iter().map(|name| ("", name, Runs::Kernel)).collect();
    let objects =
        registry::names().filter(|(domain, name)| !(domain.is_empty() && lift::supported().contains(name)));
    all.extend(objects.map(|(domain, name)| (domain, name, Runs::Object)));
    all.sort_by_key(|(domain, name, _)| (*domain, *name));
    all.dedup();
    all
}
