//! `telecine`: the one binary. Runs the platform (`up`, `manager`, `agent`) and speaks to it (every other verb).
//!
//! Each noun has a module with its arguments and what they do. Failures carry their exit code; see `failure`.

mod cli;
mod client;
mod completions;
mod connection;
mod doctor;
mod document;
mod engines;
mod events;
mod factories;
mod failure;
mod instances;
mod jobs;
mod keys;
mod output;
mod pages;
mod process;
mod quantity;
mod regions;
mod stores;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    match process::run(cli::dispatch(arguments)) {
        Ok(code) => code,
        Err(failure) => {
            output::note(&failure.to_string());
            failure.exit_code()
        }
    }
}
