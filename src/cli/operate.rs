//! `octet doctor`, `octet migrate`, `octet backup` and `octet restore`: for whoever runs a server.

use std::path::PathBuf;

use octet::app::{backup, database, doctor};

use crate::cli::serve::{Where, runtime, start_error, tell_of_new_database};
use crate::cli::{Error, print};

/// Arguments of `octet doctor`.
#[derive(clap::Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    place: Where,
}

impl Doctor {
    /// Looks at everything; not done where something is bad.
    pub(crate) fn run(self) -> Result<(), Error> {
        let settings = self.place.settings()?;
        let findings = runtime()?.block_on(doctor::examine(&settings));
        let lines: Vec<_> = findings.iter().map(ToString::to_string).collect();
        print(&format!("{}\n", lines.join("\n")))?;
        let bad = findings.iter().filter(|finding| finding.state == doctor::State::Bad).count();
        if bad > 0 { Err(Error::Work(format!("{bad} of {} are bad", findings.len()))) } else { Ok(()) }
    }
}

/// Arguments of `octet migrate`.
#[derive(clap::Args)]
pub(crate) struct Migrate {
    #[command(flatten)]
    place: Where,
}

impl Migrate {
    /// Brings the database to what this program knows. A server does the same when it starts.
    pub(crate) fn run(self) -> Result<(), Error> {
        let settings = self.place.settings()?;
        let missing = database::missing_database(&settings);
        let (version, applied) = runtime()?.block_on(database::migrate(&settings)).map_err(start_error)?;
        tell_of_new_database(missing);
        print(&match applied.as_slice() {
            [] => format!("schema version {version}: nothing to do\n"),
            applied => format!("schema version {version}, applied: {}\n", applied.join(", ")),
        })
    }
}

/// Arguments of `octet backup`.
#[derive(clap::Args)]
pub(crate) struct Backup {
    /// The folder to make.
    to: PathBuf,
    #[command(flatten)]
    place: Where,
}

impl Backup {
    /// Copies records and files, beside a server that runs or without one.
    pub(crate) fn run(self) -> Result<(), Error> {
        let settings = self.place.settings()?;
        let copied = runtime()?.block_on(backup::back_up(&settings, &self.to));
        let copied = copied.map_err(|error| Error::Work(error.to_string()))?;
        print(&format!("{} files, {} bytes: all that the records refer to\n", copied.files, copied.bytes))
    }
}

/// Arguments of `octet restore`.
#[derive(clap::Args)]
pub(crate) struct Restore {
    /// The folder that `octet backup` has made.
    from: PathBuf,
    /// The data folder to make.
    #[arg(long, value_name = "DIR", default_value = "octet-data")]
    data_dir: PathBuf,
}

impl Restore {
    /// Puts a backup into a new data folder, after comparing every file with its digest.
    pub(crate) fn run(self) -> Result<(), Error> {
        let copied = runtime()?.block_on(backup::restore(&self.from, &self.data_dir));
        let copied = copied.map_err(|error| Error::Work(error.to_string()))?;
        print(&format!("{} files, {} bytes are back\n", copied.files, copied.bytes))
    }
}
