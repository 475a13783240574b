//! `telecine`: the one binary. Runs the platform (`up`, `manager`, `agent`) and speaks to it (every other verb).
//!
//! Each noun has a module with its arguments and what they do. Failures carry their exit code; see `failure`.

mod cli;
mod client;
mod completions;
mod connection;
mod daemons;
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
mod pools;
mod process;
mod quantity;
mod regions;
mod simulate;
mod stop;
mod stores;
mod up;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    let result = match arguments.command {
        // These set up their own runtimes.
        cli::Command::Agent(ref agent) => daemons::agent(agent),
        cli::Command::Worker(ref worker) => daemons::worker(worker),
        _ => process::run(cli::dispatch(arguments)),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            output::note(&failure.to_string());
            failure.exit_code()
        }
    }
}
