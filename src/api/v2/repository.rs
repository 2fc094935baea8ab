//! The model repository extension: index, load, unload.

use serde::Serialize;
use utoipa::ToSchema;

use crate::api::Context;
use crate::api::error::Problem;
use crate::service::infer::registry::State as Loaded;

/// One version of one endpoint.
#[derive(Serialize, ToSchema)]
pub(crate) struct IndexEntry {
    /// The endpoint.
    pub(crate) name: String,
    /// The version, as text.
    pub(crate) version: String,
    /// `READY`, `LOADING` or `UNAVAILABLE`.
    pub(crate) state: &'static str,
    /// Why it does not answer; empty where it does.
    pub(crate) reason: String,
}

/// All versions of all endpoints, or only those that answer requests.
pub(crate) fn index(shared: &Context, ready_only: bool) -> Vec<IndexEntry> {
    let mut entries = Vec::new();
    for entry in shared.registry.all() {
        for (version, state) in &entry.versions {
            if ready_only && !matches!(state, Loaded::Ready(_)) {
                continue;
            }
            entries.push(IndexEntry {
                name: entry.endpoint.name.to_string(),
                version: version.to_string(),
                state: state.name(),
                reason: state.reason(),
            });
        }
    }
    entries
}

/// Loads an endpoint that was unloaded, or tries one again that could not be loaded.
///
/// # Errors
/// 404 where there is none, 503 where it cannot be loaded.
pub(crate) async fn reload(shared: &Context, name: &str) -> Result<(), Problem> {
    shared.registry.reload(name).await.map_err(Problem::internal)?;
    shared.registry.find(name, None)?;
    Ok(())
}
