//! The settings: defaults, file, environment, flags. Read by `app` and `main` only; every other part is
//! handed its own values.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The defaults, with every key commented: the reference of the settings.
pub const DEFAULT: &str = include_str!("../config/default.toml");

/// All settings. `config/default.toml` has the default of each, with its unit and range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address and port of HTTP.
    pub listen: SocketAddr,
    /// Folder of the database and all files.
    pub data_dir: PathBuf,
    /// Instructions of the kernels: `auto` or one that the CPU has.
    pub isa: String,
    /// What a stranger may send.
    pub limits: Limits,
    /// Quantization.
    pub jobs: Jobs,
    /// Inference.
    pub serving: Serving,
    /// Log lines.
    pub log: Log,
}

/// What a stranger may send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes of a model, 1 KiB to 1 TiB.
    pub model_bytes: u64,
    /// Bytes of a dataset as sent, 1 KiB to 1 TiB.
    pub dataset_bytes: u64,
    /// Bytes of the body of an inference request, decompressed, 1 KiB to 4 GiB.
    pub infer_body_bytes: u64,
    /// Bytes of any other body that is JSON, 1 KiB to 64 MiB.
    pub json_body_bytes: u64,
    /// Levels of JSON inside each other, 4 to 128.
    pub json_depth: u64,
    /// Milliseconds for a request that is not an upload or a download, 100 to 3,600,000.
    pub request_timeout_ms: u64,
    /// Requests being answered at a time, 1 to 1,000,000.
    pub requests_in_flight: u64,
}

/// Quantization.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jobs {
    /// Jobs that run side by side, 0 to 64.
    pub workers: u64,
    /// Threads that one job may use, 0 (one for each core) to 1,024.
    pub threads: u64,
    /// Attempts until a job fails for good, 1 to 100.
    pub attempts_max: u64,
    /// Jobs that may wait, 1 to 1,000,000.
    pub queued_max: u64,
    /// Seconds until the lease of a silent worker runs out, 5 to 3,600.
    pub lease_seconds: u64,
    /// Milliseconds before the second attempt, 0 to 3,600,000; doubles with each further one, up to 32 times.
    pub retry_wait_ms: u64,
    /// Milliseconds after which an idle worker looks at the queue, 10 to 60,000.
    pub poll_ms: u64,
}

/// Inference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serving {
    /// Threads that compute, 0 (one for each core) to 1,024.
    pub threads: u64,
    /// Requests that may wait at one endpoint, 1 to 100,000.
    pub queue_limit: u64,
    /// Samples that run together at most, 1 to 1,024.
    pub batch_max: u64,
    /// Microseconds that a sample waits for others, 0 to 1,000,000.
    pub batch_delay_us: u64,
    /// Bytes of loaded models, 0 (no limit) to 1 TiB.
    pub memory_bytes: u64,
    /// Milliseconds that a stopping server still answers, 0 to 600,000.
    pub drain_delay_ms: u64,
    /// Milliseconds that a stopping server waits for requests it has taken, 0 to 3,600,000.
    pub drain_timeout_ms: u64,
}

/// Log lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// A level, or a filter of `tracing-subscriber`.
    pub level: String,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--listen`.
    pub listen: Option<String>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--set KEY=VALUE`, in order: any other key, with dots.
    pub set: Vec<(String, String)>,
}

/// Everything that is wrong with the settings.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{} fault(s) in the settings:\n  {}", faults.len(), faults.join("\n  "))]
pub struct Error {
    /// One sentence each: where it stands, what it is, what it should be.
    pub faults: Vec<String>,
}

impl Settings {
    /// Defaults, then the file, the environment of this process, the flags.
    ///
    /// # Errors
    /// [`Error`] with all faults.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Settings, Error> {
        let _ = (file, flags);
        Err(Error { faults: Vec::new() })
    }
}
