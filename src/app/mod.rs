//! The only place that builds things: settings to stores, pools, queue, endpoints, server; and the graceful stop.

pub mod backup;
pub mod database;
pub mod doctor;
mod parts;
pub mod process;
pub mod server;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::api::{Logs, Traces, tls};
use crate::service::jobs::webhooks;
use crate::service::store::{self, blobs, partial};
use crate::service::tokens;

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data folder cannot be used.
    #[error(transparent)]
    Blobs(#[from] blobs::Error),
    /// The folder of uploads cannot be used.
    #[error(transparent)]
    Partials(#[from] partial::Error),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The address cannot be used.
    #[error("listening on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// There is nothing to work on.
    #[error(
        "there is no database `{path}`: name the folder of the server with --data-dir, or its settings with --config"
    )]
    NoDatabase {
        /// The file.
        path: PathBuf,
    },
    /// Strangers could reach a server that asks nobody.
    #[error(
        "{address} can be reached from other machines, and nobody is asked for a key: make keys with \
         `octet key create` and set auth.mode = \"keys\", or set auth.allow_public = true where something else keeps \
         strangers away"
    )]
    Public {
        /// The address.
        address: SocketAddr,
    },
    /// The files of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// Tokens cannot be taken as the settings say.
    #[error("tokens: {0}")]
    Tokens(#[from] tokens::Error),
    /// The kernels cannot run as the settings say.
    #[error("isa `{asked}`: this CPU has {available:?}")]
    Isa {
        /// As asked.
        asked: String,
        /// What there is.
        available: Vec<&'static str>,
    },
    /// Ends of jobs cannot be told.
    #[error(transparent)]
    Webhooks(#[from] webhooks::Error),
    /// Threads cannot be made.
    #[error("making threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// What the process has and a server makes use of.
#[derive(Default)]
pub struct Outside {
    /// Changes the level of the log while the server runs.
    pub logs: Option<Arc<dyn Logs>>,
    /// Takes what traces are made of.
    pub traces: Option<Arc<dyn Traces>>,
}
