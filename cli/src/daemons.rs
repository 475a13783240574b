//! The processes of an instance: `telecine agent` and, started by it, `telecine worker`. Each sets up its own runtime.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use telecine_agent::config::AgentConfig;
use telecine_agent::entry::{self, EXIT_TAKEN, EntryError};

use crate::failure::{Exit, Failure};
use crate::process;

/// Arguments of `agent`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  telecine agent --config /etc/telecine/agent.toml\n\nSIGTERM drains: it finishes what runs, takes nothing new, and ends. A second one ends it at once and leaves the workers\nto the next agent. Every setting may also come from the environment as TELECINE_AGENT_<SETTING>."
)]
pub(crate) struct AgentArguments {
    /// Settings file [default: none, only defaults and environment]
    #[arg(long, env = "TELECINE_AGENT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Arguments of `worker`.
#[derive(Debug, Args)]
pub(crate) struct WorkerArguments {
    /// The attempt's folder
    #[arg(long, value_name = "DIR")]
    attempt_folder: PathBuf,
}

/// Runs a coordinator until it has drained.
///
/// # Errors
/// When its settings are wrong or it cannot begin.
pub(crate) fn agent(arguments: &AgentArguments) -> Result<ExitCode, Failure> {
    process::install_tls_provider();
    let config = AgentConfig::load(arguments.config.as_deref())
        .map_err(|problem| Failure::new(Exit::Usage, told(&problem)))?;
    entry::agent_main(config).map_err(|problem| Failure::new(Exit::Failed, told(&problem)))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs one attempt.
///
/// # Errors
/// When it cannot begin.
pub(crate) fn worker(arguments: &WorkerArguments) -> Result<ExitCode, Failure> {
    process::install_tls_provider();
    match entry::worker_main(&arguments.attempt_folder) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(EntryError::Taken(_)) => Ok(ExitCode::from(EXIT_TAKEN)),
        Err(problem) => Err(Failure::new(Exit::Failed, told(&problem))),
    }
}

/// An error with its causes.
fn told(problem: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(problem.source(), |cause| cause.source());
    causes.fold(problem.to_string(), |text, cause| format!("{text}: {cause}"))
}
