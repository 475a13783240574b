//! The command line: what there is to say, and who does it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::failure::Failure;
use crate::output::Format;
use crate::{
    completions, daemons, doctor, engines, factories, instances, jobs, keys, pools, regions, simulate, stop,
    stores, up,
};

const EXAMPLES: &str = "\
Examples:
  Start everything on this machine and keep its data in ./data:
      telecine up --data ./data
  Register a folder, publish an engine, and run a job while watching it:
      telecine stores create media --folder /srv/media
      telecine engines publish transform --file engine.json
      telecine jobs submit --service transform --file composition.json --wait
  See why a job waits or failed:
      telecine jobs explain job_01kaj...

Exit codes:
  0  done          1  the job failed, or the request was refused
  2  usage         3  no access (API key)
  4  not found     5  timed out, or nobody answers

`telecine COMMAND --help` shows the examples of a command.";

/// A job platform for media engines: jobs over your object storage, on no more compute than the work needs.
#[derive(Debug, Parser)]
#[command(name = "telecine", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    /// How to reach the API.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command that speaks to the API.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// URL of the API; else the one that `telecine up` wrote into its data folder
    #[arg(
        long,
        env = "TELECINE_URL",
        global = true,
        value_name = "URL",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub url: Option<String>,
    /// API key; else the one that `telecine up` wrote into its data folder
    #[arg(
        long,
        env = "TELECINE_API_KEY",
        global = true,
        value_name = "KEY",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub api_key: Option<String>,
    /// Data folder of `telecine up`, where `client.toml` is [default: $XDG_DATA_HOME/telecine or ~/.local/share/telecine]
    #[arg(
        long,
        env = "TELECINE_DATA",
        global = true,
        value_name = "DIR",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub data: Option<PathBuf>,
    /// Tables for people or JSON for programs
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub output: Format,
    /// Names the request for retries by hand: the same key and request give the same answer
    #[arg(long, global = true, value_name = "KEY", help_heading = "Global options")]
    pub idempotency_key: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything on this machine: API, manager, watchers and local instances
    Up(up::Arguments),
    /// Run only the manager over a data folder: recorded jobs are scheduled, nothing new is accepted
    Manager(up::Arguments),
    /// Drain and end what `up` started on a data folder
    Stop(stop::Arguments),
    /// Run the agent of an instance
    Agent(daemons::AgentArguments),
    /// Run one attempt; started by the agent
    #[command(hide = true)]
    Worker(daemons::WorkerArguments),
    /// Submit, watch and steer jobs
    #[command(subcommand)]
    Jobs(Box<jobs::Command>),
    /// Make jobs of arriving objects
    #[command(subcommand)]
    Factories(factories::Command),
    /// Register the buckets and folders that jobs read and write
    #[command(subcommand)]
    Stores(stores::Command),
    /// Publish and retire engine versions
    #[command(subcommand)]
    Engines(engines::Command),
    /// See the instances and what they hold
    #[command(subcommand)]
    Instances(instances::Command),
    /// See the pools: what instances there can be, what they cost, and how many there are
    #[command(subcommand)]
    Pools(pools::Command),
    /// See the regions, their managers and their load
    #[command(subcommand)]
    Regions(regions::Command),
    /// Make, list and revoke API keys
    #[command(subcommand)]
    Keys(keys::Command),
    /// See what a scaling policy would cost on a workload
    Simulate(simulate::Arguments),
    /// Check this machine and say how to mend what is wrong
    Doctor(doctor::Arguments),
    /// Print the completions of a shell
    Completions(completions::Arguments),
}

/// Does what was asked.
///
/// # Errors
/// Why it was not done.
pub(crate) async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let Cli { global, command } = cli;
    match command {
        Command::Up(arguments) => up::run(&global, arguments, up::Parts::Everything).await,
        Command::Manager(arguments) => up::run(&global, arguments, up::Parts::Manager).await,
        Command::Stop(arguments) => stop::run(&global, arguments).await,
        Command::Agent(arguments) => daemons::agent(&arguments),
        Command::Worker(arguments) => daemons::worker(&arguments),
        Command::Jobs(command) => jobs::run(&global, *command).await,
        Command::Factories(command) => done(factories::run(&global, command).await),
        Command::Stores(command) => stores::run(&global, command).await,
        Command::Engines(command) => done(engines::run(&global, command).await),
        Command::Instances(command) => done(instances::run(&global, command).await),
        Command::Pools(command) => done(pools::run(&global, command).await),
        Command::Regions(command) => done(regions::run(&global, command).await),
        Command::Keys(command) => done(keys::run(&global, command).await),
        Command::Simulate(arguments) => simulate::run(&global, &arguments),
        Command::Doctor(arguments) => doctor::run(&global, arguments).await,
        Command::Completions(arguments) => done(completions::run(&arguments)),
    }
}

fn done(result: Result<(), Failure>) -> Result<ExitCode, Failure> {
    result.map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
