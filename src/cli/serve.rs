//! `octet serve` and `octet demo`: the server in this process.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use octet::app;
use octet::config::{Flags, LogFormat, Settings};
use tracing_subscriber::EnvFilter;

use crate::cli::{Error, demo};

/// Arguments of `octet serve`.
#[derive(clap::Args)]
pub(crate) struct Serve {
    /// Address and port of HTTP [default: 127.0.0.1:8000].
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
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
        let flags = Flags { listen: self.listen, data_dir: self.data_dir, set: self.set };
        let settings =
            Settings::load(self.config.as_deref(), &flags).map_err(|e| Error::Usage(e.to_string()))?;
        log(&settings)?;
        runtime()?.block_on(app::serve(&settings)).map_err(start_error)
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
        let flags =
            Flags { listen: Some(self.listen), data_dir: Some(folder.join("data")), set: quiet.to_vec() };
        let settings = Settings::load(None, &flags).map_err(|e| Error::Usage(e.to_string()))?;
        log(&settings)?;
        let runtime = runtime()?;
        let server = runtime.block_on(app::start(&settings)).map_err(start_error)?;
        let url = format!("http://{}", server.address());
        let shown = demo::show(&url, folder).map_err(|e| Error::Work(e.to_string()));
        if shown.is_ok() && !self.exit {
            println!("\nThe server stays until Ctrl-C.");
            runtime.block_on(app::asked_to_end());
        }
        runtime.block_on(server.stop());
        shown
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Error::Work(format!("starting the runtime: {error}")))
}

fn start_error(error: app::Error) -> Error {
    match error {
        app::Error::Isa { .. } => Error::Usage(error.to_string()),
        app::Error::Blobs(_) | app::Error::Store(_) | app::Error::Listen { .. } | app::Error::Threads(_) => {
            Error::Work(chain(&error))
        }
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Log lines go to standard error.
fn log(settings: &Settings) -> Result<(), Error> {
    let level = &settings.log.level;
    let filter = EnvFilter::try_new(level).map_err(|e| Error::Usage(format!("log.level `{level}`: {e}")))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}
