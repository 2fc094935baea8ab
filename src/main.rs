//! The command line: what the program can be asked, and how it ends.
//!
//! Exit codes: 0 done; 1 not done, the reason stands on standard error; 2 the command line or the settings are
//! wrong; 3 the artifact was made but does not keep the gate of its recipe.

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Takes a float ONNX model and calibration data, quantizes the model to INT8, serves it, and tells what was
/// gained and what was lost.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 done; 1 not done; 2 wrong command line or settings; 3 gate not kept."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the server.
    Serve(cli::serve::Serve),
    /// Makes, lists and revokes API keys, also while a server runs.
    Key(cli::key::Key),
    /// Shows the whole path on bundled data: upload, quantize, report, serve, infer.
    Demo(cli::serve::Demo),
    /// Looks at the machine and the settings, and tells what to do before a server starts.
    Doctor(cli::operate::Doctor),
    /// Brings the database to what this program knows, without a server.
    Migrate(cli::operate::Migrate),
    /// Copies the records and files of a server into a new folder, while it runs.
    Backup(cli::operate::Backup),
    /// Puts a backup into a new data folder.
    Restore(cli::operate::Restore),
    /// Quantizes a model without a server.
    Quantize(cli::quantize::Quantize),
    /// Runs a model, float or INT8, over arrays.
    Run(cli::run::Run),
    /// Times a model, float or INT8.
    Bench(cli::bench::Bench),
    /// Tells what a model takes, gives and is made of.
    Inspect(cli::inspect::Inspect),
    /// Tells what other runtimes make of an INT8 model.
    Lint(cli::lint::Lint),
    /// Writes a model anew, as one ONNX file.
    Convert(cli::convert::Convert),
    /// Tells what is different between two reports, manifests or artifacts.
    Diff(cli::diff::Diff),
    /// Runs cases of the ONNX backend tests: for those who work on the engine.
    #[command(hide = true)]
    Conformance(cli::conformance::Conformance),
    /// Prints the OpenAPI document.
    Openapi,
}

fn main() -> ExitCode {
    // What TLS computes with, before anything makes a client.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match Arguments::parse().command {
        Command::Serve(command) => command.run(),
        Command::Key(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Migrate(command) => command.run(),
        Command::Backup(command) => command.run(),
        Command::Restore(command) => command.run(),
        Command::Quantize(command) => command.run(),
        Command::Run(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Lint(command) => command.run(),
        Command::Convert(command) => command.run(),
        Command::Diff(command) => command.run(),
        Command::Conformance(command) => command.run(),
        Command::Openapi => cli::print(&octet::api::http::router::openapi()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("octet: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_does_not_contradict_itself() {
        Arguments::command().debug_assert();
    }
}
