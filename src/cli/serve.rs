//! `octet serve` and `octet demo`: the server in this process.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use octet::api::{LogLevel, Logs, Traces};
use octet::app::{self, Outside, process, server};
use octet::config::{Flags, LogFormat, Settings};
use octet::service::store::chain;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

#[cfg(feature = "otel")]
use crate::cli::otel::Exporter;
use crate::cli::{Error, demo};

/// Arguments of `octet serve`.
#[derive(clap::Args)]
pub(crate) struct Serve {
    /// Address and port of HTTP [default: 127.0.0.1:8000].
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Address and port of gRPC, or `off` [default: 127.0.0.1:8001].
    #[arg(long, value_name = "ADDR")]
    grpc_listen: Option<String>,
    /// Folder of the database and all files [default: octet-data].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Settings in TOML; `config/default.toml` of the sources tells all of them.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any other setting, such as `jobs.workers=2`; may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

/// Where the server's settings are.
#[derive(clap::Args)]
pub(crate) struct Where {
    /// Folder of the database and all files [default: octet-data].
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Settings in TOML: those of the server.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Any other setting; may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, global = true)]
    set: Vec<(String, String)>,
}

impl Where {
    /// The settings of the server, for a command beside it.
    pub(crate) fn settings(self) -> Result<Settings, Error> {
        let flags = Flags { data_dir: self.data_dir, set: self.set, ..Flags::default() };
        Settings::load(self.config.as_deref(), &flags).map_err(|e| Error::Usage(e.to_string()))
    }
}

/// Says that a database was made where `missing` is the file that was not there: who has misspelt the folder learns it here.
pub(crate) fn tell_of_new_database(missing: Option<PathBuf>) {
    if let Some(path) = missing {
        eprintln!("A new database was made, there was none: `{}`", path.display());
    }
}

/// Arguments of `octet demo`.
#[derive(clap::Args)]
pub(crate) struct Demo {
    /// Address and port of HTTP; a free port without it.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: String,
    /// End after the demo instead of serving until Ctrl-C.
    #[arg(long)]
    exit: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl Serve {
    /// Serves until SIGTERM or Ctrl-C.
    pub(crate) fn run(self) -> Result<(), Error> {
        let Serve { listen, grpc_listen, data_dir, set, .. } = self;
        let flags = Flags { listen, grpc_listen, data_dir, set };
        let settings =
            Settings::load(self.config.as_deref(), &flags).map_err(|e| Error::Usage(e.to_string()))?;
        let logs = Some(log(&settings)?);
        with_traces(&settings, |traces| {
            runtime()?.block_on(server::serve(&settings, Outside { logs, traces })).map_err(start_error)
        })
    }
}

impl Demo {
    /// Starts a server with an empty folder of its own and shows the whole path on it.
    pub(crate) fn run(self) -> Result<(), Error> {
        let folder = std::env::temp_dir().join(format!("octet-demo-{}", std::process::id()));
        let result = self.run_in(&folder);
        // What the demo leaves behind is of no use; that it cannot be removed is no reason to fail.
        let _ = std::fs::remove_dir_all(&folder);
        result
    }

    fn run_in(self, folder: &std::path::Path) -> Result<(), Error> {
        let made = std::fs::create_dir_all(folder);
        made.map_err(|source| Error::File { tried: "making", path: folder.to_owned(), source })?;
        let quiet = [("log.level".to_owned(), "warn".to_owned())];
        let flags = Flags {
            listen: Some(self.listen),
            grpc_listen: Some("off".to_owned()),
            data_dir: Some(folder.join("data")),
            set: quiet.to_vec(),
        };
        let settings = Settings::load(None, &flags).map_err(|e| Error::Usage(e.to_string()))?;
        log(&settings)?;
        let runtime = runtime()?;
        let server = runtime.block_on(server::start(&settings)).map_err(start_error)?;
        let url = format!("http://{}", server.address());
        let shown = demo::show(&url, folder).map_err(|e| Error::Work(e.to_string()));
        if shown.is_ok() && !self.exit {
            println!("\nThe server stays until Ctrl-C.");
            runtime.block_on(process::asked_to_end());
        }
        runtime.block_on(server.stop());
        shown
    }
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Error::Work(format!("starting the runtime: {error}")))
}

pub(crate) fn start_error(error: app::Error) -> Error {
    match error {
        app::Error::Isa { .. }
        | app::Error::NoDatabase { .. }
        | app::Error::Public { .. }
        | app::Error::Webhooks(_) => Error::Usage(chain(&error)),
        app::Error::Blobs(_)
        | app::Error::Partials(_)
        | app::Error::Store(_)
        | app::Error::Listen { .. }
        | app::Error::Tls(_)
        | app::Error::Tokens(_)
        | app::Error::Threads(_) => Error::Work(chain(&error)),
    }
}

/// Serves, with what takes the traces; when it has ended, sends what is left of them.
#[cfg(feature = "otel")]
fn with_traces(
    settings: &Settings,
    serve: impl FnOnce(Option<Arc<dyn Traces>>) -> Result<(), Error>,
) -> Result<(), Error> {
    let endpoint = settings.log.otlp_endpoint.as_str();
    if endpoint.is_empty() {
        return serve(None);
    }
    let wrong = |what: &str| Error::Usage(format!("log.otlp_endpoint `{endpoint}`: {what}"));
    if !endpoint.starts_with("http://") {
        return Err(wrong("it must begin with http://"));
    }
    let exporter = Exporter::start(endpoint, settings.log.trace_ratio.into()).map_err(|e| wrong(&e))?;
    let served = serve(Some(exporter.traces()));
    exporter.end();
    served
}

/// The same in a program that cannot trace.
#[cfg(not(feature = "otel"))]
fn with_traces(
    settings: &Settings,
    serve: impl FnOnce(Option<Arc<dyn Traces>>) -> Result<(), Error>,
) -> Result<(), Error> {
    if settings.log.otlp_endpoint.is_empty() {
        return serve(None);
    }
    let built = "this program cannot send traces: build it with `cargo build --release --features otel`";
    Err(Error::Usage(format!("log.otlp_endpoint: {built}")))
}

/// Log lines go to standard error. Gives what changes their level.
fn log(settings: &Settings) -> Result<Arc<dyn Logs>, Error> {
    let level = &settings.log.level;
    let filter = EnvFilter::try_new(level).map_err(|e| Error::Usage(format!("log.level `{level}`: {e}")))?;
    let shown = Mutex::new(shown(&filter));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match settings.log.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    Ok(Arc::new(Filter { shown, handle }))
}

/// The filter of the log lines.
struct Filter {
    shown: Mutex<LogLevel>,
    handle: reload::Handle<EnvFilter, Registry>,
}

impl Logs for Filter {
    fn level(&self) -> LogLevel {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_level(&self, level: LogLevel) -> Result<(), String> {
        let filter = match level {
            // Lines of the libraries below would bury ours.
            LogLevel::Debug | LogLevel::Trace => EnvFilter::new(format!("info,octet={}", level.name())),
            _ => EnvFilter::new(level.name()),
        };
        self.handle.reload(filter).map_err(|error| error.to_string())?;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = level;
        Ok(())
    }
}

/// The least important lines that a filter may let through.
fn shown(filter: &EnvFilter) -> LogLevel {
    let hint = filter.max_level_hint().map(|hint| hint.to_string());
    let named = |level: &LogLevel| hint.as_deref() == Some(level.name());
    LogLevel::ALL.into_iter().find(named).unwrap_or(LogLevel::Trace)
}
