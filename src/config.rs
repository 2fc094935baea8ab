//! The settings: defaults, file, environment, flags. Read by `app` and `cli` only; every other part is
//! handed its own values.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Provider};
use serde::{Deserialize, Serialize};

/// The defaults, with every key commented: the reference of the settings.
const DEFAULT: &str = include_str!("../config/default.toml");

/// All settings. `config/default.toml` has the default of each, with its unit and range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address and port of HTTP.
    pub listen: SocketAddr,
    /// Address and port of gRPC.
    pub grpc_listen: Listen,
    /// Folder of the database and all files.
    pub data_dir: PathBuf,
    /// What this process does.
    pub role: Role,
    /// Instructions of the kernels: `auto` or one that the CPU has.
    pub isa: String,
    /// What counts more for packed weights.
    pub memory: Weights,
    /// Who may use it.
    pub auth: Auth,
    /// Encryption of both ports.
    pub tls: Tls,
    /// What a stranger may send.
    pub limits: Limits,
    /// Where things are kept.
    pub store: Store,
    /// Quantization.
    pub jobs: Jobs,
    /// Inference.
    pub serving: Serving,
    /// Log lines.
    pub log: Log,
    /// The record of changes.
    pub audit: Audit,
    /// Messages about jobs that have ended.
    pub webhooks: Webhooks,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Answers requests and does jobs.
    All,
    /// Answers requests.
    Api,
    /// Does jobs; answers for its health and metrics only.
    Worker,
}

/// Where things are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// URL of a Postgres database; empty is SQLite in the data folder.
    pub database_url: Secret,
    /// Name of a bucket; empty is files in the data folder.
    pub s3_bucket: String,
    /// Begins every key.
    pub s3_prefix: String,
    /// URL of the object store; empty is AWS.
    pub s3_endpoint: String,
    /// Region that requests are signed for.
    pub s3_region: String,
    /// Empty takes the credentials of the environment.
    pub s3_access_key_id: String,
    /// Goes with it.
    pub s3_secret_access_key: Secret,
    /// Bytes of local copies, 0 (no limit) to 1 TiB.
    pub cache_bytes: u64,
}

/// A text that is not shown where settings are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_empty() { "(none)" } else { "(hidden)" })
    }
}

/// An address and port, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen(pub Option<SocketAddr>);

impl TryFrom<String> for Listen {
    type Error = std::net::AddrParseError;

    fn try_from(text: String) -> Result<Listen, Self::Error> {
        match text.as_str() {
            "" | "off" => Ok(Listen(None)),
            address => Ok(Listen(Some(address.parse()?))),
        }
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> String {
        listen.0.map_or_else(|| "off".to_owned(), |address| address.to_string())
    }
}

/// Who may use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Whether requests need a key.
    pub mode: AuthMode,
    /// Whether an address that is not loopback is taken although nobody is asked for a key.
    pub allow_public: bool,
    /// Who signs the JSON Web Tokens that are taken beside keys; empty is nobody.
    pub jwt_issuer: String,
    /// Whom they must be for.
    pub jwt_audience: String,
    /// A URL or a file with the public keys; empty asks the issuer.
    pub jwt_keys: String,
    /// The claim that says what its holder may do.
    pub jwt_claim: String,
    /// What stands before the names of scopes in it.
    pub jwt_prefix: String,
}

/// Whether requests need a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMode {
    /// They do not: whoever reaches the port may do everything.
    Off,
    /// They need one of `octet key create`.
    Keys,
}

/// Encryption of both ports: files in PEM. Empty paths are none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate of the server, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of clients: then each must show a certificate.
    pub client_ca: PathBuf,
}

/// What a stranger may send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes of a model, 1 KiB to 1 TiB.
    pub model_bytes: u64,
    /// Bytes of memory that the weights of a model and one run of it may take, 1 MiB to 1 TiB.
    pub model_memory_bytes: u64,
    /// Bytes of a dataset, as sent and as unpacked, 1 KiB to 1 TiB.
    pub dataset_bytes: u64,
    /// Bytes of the body of an inference request, decompressed, 1 KiB to 4 GiB.
    pub infer_body_bytes: u64,
    /// Bytes of any other body that is JSON, 1 KiB to 64 MiB.
    pub json_body_bytes: u64,
    /// Levels of JSON inside each other, but for inference, 4 to 128.
    pub json_depth: u64,
    /// Milliseconds for a request that is not an upload or a download, 100 to 3,600,000.
    pub request_timeout_ms: u64,
    /// Requests being answered at a time, 1 to 1,000,000.
    pub requests_in_flight: u64,
    /// Connections to each port at a time, 16 to 1,000,000.
    pub connections: u64,
    /// Milliseconds for the head of a request, 100 to 600,000.
    pub head_timeout_ms: u64,
    /// Seconds after which an upload in parts that nobody goes on with is given up, 60 to 2,592,000.
    pub upload_expires_s: u64,
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
    /// Seconds that one attempt may take, 0 (no limit) to 2,592,000.
    pub timeout_seconds: u64,
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
    /// Threads of a run that begins while there is no other, 0 (as many as `threads`, at most 16) to 1,024.
    pub run_threads: u64,
    /// Requests that may wait at one endpoint, 1 to 100,000.
    pub queue_limit: u64,
    /// Samples that run together at most, 1 to 1,024.
    pub batch_max: u64,
    /// Microseconds that a sample waits for others, 0 to 1,000,000.
    pub batch_delay_us: u64,
    /// Bytes of loaded models, 0 (no limit) to 1 TiB.
    pub memory_bytes: u64,
    /// Bytes from which on an answer is compressed for clients that ask, 0 (never) to 1 TiB.
    pub compress_bytes: u64,
    /// Whether clients on this machine may hand over tensors in POSIX shared memory.
    pub shared_memory: bool,
    /// Milliseconds that a stopping server still answers, 0 to 600,000.
    pub drain_delay_ms: u64,
    /// Milliseconds that a stopping server waits for requests it has taken, 0 to 3,600,000.
    pub drain_timeout_ms: u64,
}

/// The record of changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Days that it goes back, 1 to 3,650.
    pub keep_days: u64,
}

/// Messages about jobs that have ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhooks {
    /// Secrets that they are signed with, with commas between them; empty sends none.
    pub secret: Secret,
    /// Whether they are also sent to this machine and into private networks.
    pub allow_private: bool,
    /// Milliseconds before the second attempt, 10 to 3,600,000.
    pub retry_wait_ms: u64,
}

/// Log lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// A level, or a filter of `tracing-subscriber` that has one in each part.
    pub level: String,
    /// Collector of OpenTelemetry, `http://HOST:PORT`; empty for none.
    pub otlp_endpoint: String,
    /// Which requests have a line.
    pub requests: LogRequests,
    /// Part of the traces that is kept, 0 to 1.
    pub trace_ratio: Ratio,
}

/// Which requests have a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogRequests {
    /// None.
    Off,
    /// Those with 5xx and 429.
    Errors,
    /// All.
    All,
}

/// A part of something, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Ratio(f64);

// It is never NaN.
impl Eq for Ratio {}

impl TryFrom<f64> for Ratio {
    type Error = String;

    fn try_from(part: f64) -> Result<Ratio, String> {
        if (0.0..=1.0).contains(&part) { Ok(Ratio(part)) } else { Err(format!("{part} is not 0 to 1")) }
    }
}

impl From<Ratio> for f64 {
    fn from(ratio: Ratio) -> f64 {
        ratio.0
    }
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
    /// `--grpc-listen`.
    pub grpc_listen: Option<String>,
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

/// Variables that begin with `OCTET_` and are no settings: the flag `--config`, and what Kubernetes sets in
/// every pod of a namespace that has a service called `octet` (`OCTET_SERVICE_HOST`, `OCTET_PORT_8000_TCP` …).
fn is_foreign(variable: &str) -> bool {
    variable == "CONFIG"
        || variable.starts_with("SERVICE_")
        || variable == "PORT"
        || variable.starts_with("PORT_")
}

/// Whole numbers: key, value, smallest, largest.
type Range = (&'static str, fn(&Settings) -> u64, u64, u64);

/// The levels of the log.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

const TIB: u64 = 1 << 40;
const RANGES: &[Range] = &[
    ("limits.model_bytes", |s| s.limits.model_bytes, 1024, TIB),
    ("limits.model_memory_bytes", |s| s.limits.model_memory_bytes, 1 << 20, TIB),
    ("limits.dataset_bytes", |s| s.limits.dataset_bytes, 1024, TIB),
    ("limits.infer_body_bytes", |s| s.limits.infer_body_bytes, 1024, 1 << 32),
    ("limits.json_body_bytes", |s| s.limits.json_body_bytes, 1024, 1 << 26),
    ("limits.json_depth", |s| s.limits.json_depth, 4, 128),
    ("limits.request_timeout_ms", |s| s.limits.request_timeout_ms, 100, 3_600_000),
    ("limits.requests_in_flight", |s| s.limits.requests_in_flight, 1, 1_000_000),
    ("limits.connections", |s| s.limits.connections, 16, 1_000_000),
    ("limits.head_timeout_ms", |s| s.limits.head_timeout_ms, 100, 600_000),
    ("limits.upload_expires_s", |s| s.limits.upload_expires_s, 60, 2_592_000),
    ("store.cache_bytes", |s| s.store.cache_bytes, 0, TIB),
    ("jobs.workers", |s| s.jobs.workers, 0, 64),
    ("jobs.threads", |s| s.jobs.threads, 0, 1024),
    ("jobs.attempts_max", |s| s.jobs.attempts_max, 1, 100),
    ("jobs.queued_max", |s| s.jobs.queued_max, 1, 1_000_000),
    ("jobs.lease_seconds", |s| s.jobs.lease_seconds, 5, 3600),
    ("jobs.timeout_seconds", |s| s.jobs.timeout_seconds, 0, 2_592_000),
    ("jobs.retry_wait_ms", |s| s.jobs.retry_wait_ms, 0, 3_600_000),
    ("jobs.poll_ms", |s| s.jobs.poll_ms, 10, 60_000),
    ("serving.threads", |s| s.serving.threads, 0, 1024),
    ("serving.run_threads", |s| s.serving.run_threads, 0, 1024),
    ("serving.queue_limit", |s| s.serving.queue_limit, 1, 100_000),
    ("serving.batch_max", |s| s.serving.batch_max, 1, 1024),
    ("serving.batch_delay_us", |s| s.serving.batch_delay_us, 0, 1_000_000),
    ("serving.memory_bytes", |s| s.serving.memory_bytes, 0, TIB),
    ("serving.compress_bytes", |s| s.serving.compress_bytes, 0, TIB),
    ("serving.drain_delay_ms", |s| s.serving.drain_delay_ms, 0, 600_000),
    ("serving.drain_timeout_ms", |s| s.serving.drain_timeout_ms, 0, 3_600_000),
    ("audit.keep_days", |s| s.audit.keep_days, 1, 3650),
    ("webhooks.retry_wait_ms", |s| s.webhooks.retry_wait_ms, 10, 3_600_000),
];

impl Settings {
    /// Defaults, then the file, the environment of this process, the flags.
    ///
    /// # Errors
    /// [`Error`] with all faults.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Settings, Error> {
        let file = match file {
            None => None,
            Some(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Error { faults: vec![format!("reading `{name}`: {error}")] })?;
                Some((name, text))
            }
        };
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Settings::assemble(file, env, flags)
    }

    /// The same from values: `file` is a name and a text, `env` all variables.
    ///
    /// # Errors
    /// [`Error`] with all faults.
    fn assemble(
        file: Option<(String, String)>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: &Flags,
    ) -> Result<Settings, Error> {
        let mut faults = Vec::new();
        let mut figment = Figment::from(Toml::string(DEFAULT));
        let known: Vec<String> = leaves(&Toml::string(DEFAULT))
            .expect("the defaults are TOML; a test reads them")
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        let mut given = Vec::new();
        if let Some((name, text)) = file {
            match leaves(&Toml::string(&text)) {
                Ok(leaves) => given.extend(
                    leaves.into_iter().map(|(key, value)| (format!("{name}: `{key}`"), key, vec![value])),
                ),
                Err(error) => faults.push(format!("{name}: {error}")),
            }
        }
        for (variable, text) in env {
            let Some(name) = variable.strip_prefix("OCTET_") else { continue };
            if !is_foreign(name) {
                let key = name.to_ascii_lowercase().replace("__", ".");
                given.push((format!("environment: `{variable}`"), key, readings(&text)));
            }
        }
        if let Some(listen) = &flags.listen {
            given.push(("`--listen`".to_owned(), "listen".to_owned(), readings(listen)));
        }
        if let Some(listen) = &flags.grpc_listen {
            let value = Value::from(listen.clone());
            given.push(("`--grpc-listen`".to_owned(), "grpc_listen".to_owned(), vec![value]));
        }
        if let Some(data_dir) = &flags.data_dir {
            let value = Value::from(data_dir.to_string_lossy().into_owned());
            given.push(("`--data-dir`".to_owned(), "data_dir".to_owned(), vec![value]));
        }
        for (key, text) in &flags.set {
            given.push((format!("`--set {key}`"), key.clone(), readings(text)));
        }
        // Each by itself over the defaults: so each fault is found, and its place is known.
        let defaults = figment.clone();
        for (source, key, readings) in given {
            if !known.contains(&key) {
                faults.push(format!("{source}: no such setting"));
                continue;
            }
            let mut fault = None;
            let fitting = readings.into_iter().find(|value| {
                match defaults.clone().merge((&key, value)).extract::<Settings>() {
                    Ok(_) => true,
                    Err(error) => {
                        fault.get_or_insert(error.kind.to_string());
                        false
                    }
                }
            });
            match (fitting, fault) {
                (Some(value), _) => figment = figment.merge((key, value)),
                (None, fault) => faults.push(format!("{source}: {}", fault.unwrap_or_default())),
            }
        }
        match figment.extract::<Settings>() {
            Ok(settings) => {
                faults.extend(settings.range_faults());
                if faults.is_empty() { Ok(settings) } else { Err(Error { faults }) }
            }
            Err(error) => {
                faults.extend(error.into_iter().map(|error| error.to_string()));
                Err(Error { faults })
            }
        }
    }

    fn range_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for &(key, value, min, max) in RANGES {
            let value = value(self);
            if !(min..=max).contains(&value) {
                faults.push(format!("`{key}` is {value}, it must be {min} to {max}"));
            }
        }
        let texts = [("data_dir", self.data_dir.as_os_str().is_empty()), ("isa", self.isa.is_empty())];
        faults.extend(level_fault(&self.log.level));
        let given = |path: &Path| !path.as_os_str().is_empty();
        let tls = &self.tls;
        if given(&tls.certificate) != given(&tls.key) {
            faults.push("`tls.certificate` and `tls.key` must be given together".to_owned());
        }
        if given(&tls.client_ca) && !given(&tls.certificate) {
            faults.push("`tls.client_ca` needs `tls.certificate` and `tls.key`".to_owned());
        }
        let url = self.store.database_url.reveal();
        if !url.is_empty() && !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            faults
                .push("`store.database_url` must begin with `postgres://` (or be empty: SQLite)".to_owned());
        }
        if self.store.s3_access_key_id.is_empty() != self.store.s3_secret_access_key.is_empty() {
            faults.push(
                "`store.s3_access_key_id` and `store.s3_secret_access_key` go together: give both or none"
                    .to_owned(),
            );
        }
        let endpoint = &self.store.s3_endpoint;
        if !endpoint.is_empty() && !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            faults.push(
                "`store.s3_endpoint` must begin with `http://` or `https://` (or be empty: AWS)".to_owned(),
            );
        }
        if self.role != Role::All && url.is_empty() {
            faults.push(
                "`role` is not \"all\", so `store.database_url` must name the Postgres database that the processes share"
                    .to_owned(),
            );
        }
        faults.extend(
            texts.iter().filter(|(_, empty)| *empty).map(|(key, _)| format!("`{key}` must not be empty")),
        );
        faults
    }
}

/// What is wrong with `log.level`.
fn level_fault(text: &str) -> Option<String> {
    // tracing-subscriber takes a word that is no level for the name of a module, and writes the lines of that module only:
    // none at all.
    let level =
        |part: &str| part.rsplit_once('=').map_or(part, |(_, level)| level).trim().to_ascii_lowercase();
    let wrong = text.split(',').find(|part| !LEVELS.contains(&level(part).as_str()))?;
    let known = LEVELS.join(", ");
    Some(format!(
        "`log.level`: `{}` is no level: give one of {known}, or a filter of them such as \"info,octet::service=debug\"",
        wrong.trim()
    ))
}

/// What counts more for packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// Speed.
    Fast,
    /// Memory.
    Small,
}

/// What a text of the environment or a flag may mean: a number or a truth value, else the text itself
/// (a folder may be called `7`).
fn readings(text: &str) -> Vec<Value> {
    let parsed: Value = match text.parse() {
        Ok(value) => value,
        Err(never) => match never {},
    };
    vec![parsed, Value::from(text)]
}

/// Every value of a provider with its key: `jobs.workers`. An empty section has none.
fn leaves(provider: &impl Provider) -> Result<Vec<(String, Value)>, String> {
    fn walk(prefix: &str, dict: Dict, out: &mut Vec<(String, Value)>) {
        for (key, value) in dict {
            let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
            match value {
                Value::Dict(_, dict) => walk(&key, dict, out),
                value => out.push((key, value)),
            }
        }
    }
    let mut out = Vec::new();
    for (_, dict) in provider.data().map_err(|error| error.to_string())? {
        walk("", dict, &mut out);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assemble(file: &str, env: &[(&str, &str)], flags: &Flags) -> Result<Settings, Error> {
        let env = env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        Settings::assemble(Some(("octet.toml".to_owned(), file.to_owned())), env, flags)
    }

    fn defaults() -> Settings {
        assemble("", &[], &Flags::default()).unwrap()
    }

    #[test]
    fn the_defaults_are_valid_and_hold_every_key() {
        let settings = defaults();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:8000");
        assert_eq!(settings.grpc_listen, Listen(Some("127.0.0.1:8001".parse().unwrap())));
        assert_eq!(settings.range_faults(), Vec::<String>::new());
        // `Settings` has no serde default, so that a key missing in the file would not have been read; and
        // what it writes has no key more.
        let written = leaves(&figment::providers::Serialized::defaults(&settings)).unwrap();
        let read = leaves(&Toml::string(DEFAULT)).unwrap();
        let keys = |leaves: &[(String, Value)]| leaves.iter().map(|leaf| leaf.0.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&written), keys(&read));
    }

    #[test]
    fn every_number_has_its_range_in_the_comment_above_it() {
        let numbers = leaves(&Toml::string(DEFAULT)).unwrap();
        let numbers = numbers.iter().filter(|(_, value)| value.to_i128().is_some());
        assert_eq!(numbers.count(), RANGES.len());
        for (key, _, min, max) in RANGES {
            let (section, name) = key.split_once('.').unwrap();
            let (_, section) = DEFAULT.split_once(&format!("\n[{section}]\n")).unwrap();
            let (above, _) = section.split_once(&format!("\n{name} = ")).unwrap();
            let comment = &above[above.rfind(" = ").unwrap_or(0)..];
            assert!(comment.contains(&format!("{min} to {max}")), "{key}: {min} to {max} in {comment}");
        }
    }

    #[test]
    fn a_later_layer_wins() {
        let none = Flags::default();
        let file = "listen = \"0.0.0.0:1\"\n[jobs]\nworkers = 2";
        let env = [("OCTET_LISTEN", "0.0.0.0:2"), ("OCTET_JOBS__WORKERS", "3"), ("HOME", "/root")];
        let flags = Flags {
            listen: Some("0.0.0.0:4".to_owned()),
            grpc_listen: Some("off".to_owned()),
            data_dir: Some("/data".into()),
            set: vec![("jobs.workers".to_owned(), "5".to_owned())],
        };
        let seen = |settings: Settings| (settings.listen.port(), settings.jobs.workers);
        assert_eq!(seen(assemble(file, &[], &none).unwrap()), (1, 2));
        assert_eq!(seen(assemble(file, &env, &none).unwrap()), (2, 3));
        assert_eq!(seen(assemble(file, &env, &flags).unwrap()), (4, 5));
        assert_eq!(assemble(file, &env, &flags).unwrap().data_dir, PathBuf::from("/data"));
        assert_eq!(assemble(file, &env, &flags).unwrap().grpc_listen, Listen(None));
    }

    #[test]
    fn the_environment_reaches_every_key() {
        for (key, value) in leaves(&Toml::string(DEFAULT)).unwrap() {
            let variable = format!("OCTET_{}", key.to_uppercase().replace('.', "__"));
            let text = match (value.as_str(), value.to_bool(), value.to_i128()) {
                (Some(text), ..) => text.to_owned(),
                (None, Some(flag), _) => flag.to_string(),
                (None, None, Some(number)) => number.to_string(),
                (None, None, None) => value.to_f64().unwrap().to_string(),
            };
            let settings = assemble("", &[(&variable, &text)], &Flags::default());
            assert_eq!(settings, Ok(defaults()), "{variable}={text}");
        }
    }

    #[test]
    fn grpc_is_switched_off_by_a_word_or_by_nothing() {
        for text in ["off", ""] {
            let settings = assemble("", &[("OCTET_GRPC_LISTEN", text)], &Flags::default()).unwrap();
            assert_eq!(settings.grpc_listen, Listen(None), "{text}");
        }
        assert!(assemble("grpc_listen = \"here\"", &[], &Flags::default()).is_err());
    }

    #[test]
    fn a_ratio_is_0_to_1() {
        let ratio = |text: &str| {
            assemble("", &[("OCTET_LOG__TRACE_RATIO", text)], &Flags::default())
                .map(|s| f64::from(s.log.trace_ratio))
        };
        assert_eq!([ratio("0"), ratio("0.25"), ratio("1")], [Ok(0.0), Ok(0.25), Ok(1.0)]);
        for text in ["-0.1", "1.5", "NaN", "all"] {
            assert!(ratio(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_folder_may_have_a_number_for_a_name() {
        let settings = assemble("", &[("OCTET_DATA_DIR", "7")], &Flags::default()).unwrap();
        assert_eq!(settings.data_dir, PathBuf::from("7"));
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let file = "listen = \"here\"\njobs = 3\n[serving]\nbatch_maxi = 1\nbatch_max = 0\n";
        let env = [
            ("OCTET_JOBS__WORKERS", "many"),
            ("OCTET_NOTHING", "1"),
            ("OCTET_SERVICE_HOST", "10.0.0.1"),
            ("OCTET_LOG__FORMAT", "xml"),
        ];
        let error = assemble(file, &env, &Flags::default()).unwrap_err();
        let expected = [
            "octet.toml: `jobs`: no such setting",
            "octet.toml: `listen`: invalid socket address syntax",
            "octet.toml: `serving.batch_maxi`: no such setting",
            "environment: `OCTET_JOBS__WORKERS`: invalid type: found string \"many\", expected u64",
            "environment: `OCTET_NOTHING`: no such setting",
            "environment: `OCTET_LOG__FORMAT`: unknown variant: found `xml`, expected ``text` or `json``",
            "`serving.batch_max` is 0, it must be 1 to 1024",
        ];
        assert_eq!(error.faults, expected, "{error}");
    }

    #[test]
    fn the_example_for_production_is_valid() {
        let text = include_str!("../config/production.example.toml");
        assemble(text, &[], &Flags::default()).unwrap();
    }

    #[test]
    fn a_word_that_is_no_level_of_the_log_is_refused() {
        let level = |text: &str| assemble("", &[("OCTET_LOG__LEVEL", text)], &Flags::default());
        for text in
            ["error", "warn", "INFO", "debug", "trace", "off", "info,octet::service=debug", "warn, octet=off"]
        {
            assert_eq!(level(text).unwrap().log.level, text);
        }
        for (text, wrong) in [
            ("warning", "`warning`"),
            ("", "``"),
            ("2", "`2`"),
            ("octet", "`octet`"),
            ("info,octet=verbose", "`octet=verbose`"),
            ("info,", "``"),
        ] {
            let error = level(text).unwrap_err();
            assert_eq!(error.faults.len(), 1, "{error}");
            let fault = &error.faults[0];
            assert!(
                fault.starts_with(&format!("`log.level`: {wrong} is no level: give one of off, error,")),
                "{fault}"
            );
        }
    }

    #[test]
    fn a_certificate_and_its_key_belong_together() {
        for (file, want) in [
            ("[tls]\ncertificate = \"c\"", "together"),
            ("[tls]\nkey = \"k\"", "together"),
            ("[tls]\nclient_ca = \"a\"", "`tls.client_ca` needs"),
        ] {
            let error = assemble(file, &[], &Flags::default()).unwrap_err();
            assert!(error.faults.len() == 1 && error.faults[0].contains(want), "{error}");
        }
        assemble("[tls]\ncertificate = \"c\"\nkey = \"7\"", &[], &Flags::default()).unwrap();
    }

    #[test]
    fn a_file_that_is_no_toml_is_a_fault() {
        let error = assemble("listen = ", &[], &Flags::default()).unwrap_err();
        assert_eq!(error.faults.len(), 1);
        assert!(error.faults[0].starts_with("octet.toml: "), "{error}");
    }
}
