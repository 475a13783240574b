//! The processes of an instance: `telecine agent` and, started by it, `telecine worker`. Each sets up its own runtime.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use telecine_agent::config::{AgentConfig, CapacityConfig};
use telecine_agent::entry::{self, EXIT_TAKEN, EntryError};

use crate::failure::{Exit, Failure};
use crate::process;
use crate::quantity;

/// Arguments of `agent`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  telecine agent --config /etc/telecine/agent.toml\n  telecine agent --config /etc/telecine/agent.toml --cpu 2 --memory 4GiB\n\nSIGTERM drains: it finishes what runs, takes nothing new, and ends. A second one ends it at once and leaves the workers\nto the next agent. Every setting may also come from the environment as TELECINE_AGENT_<SETTING>."
)]
pub(crate) struct AgentArguments {
    /// Settings file [default: none, only defaults and environment]
    #[arg(long, env = "TELECINE_AGENT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The cores that jobs may use, such as 0.5; wins over the settings [default: all]
    #[arg(long, value_name = "CORES", value_parser = quantity::cores)]
    cpu: Option<u64>,
    /// The memory that jobs may use, such as 2GiB; wins over the settings [default: all]
    #[arg(long, value_name = "SIZE", value_parser = quantity::size)]
    memory: Option<u64>,
}

impl AgentArguments {
    /// The settings with the claims of the command line over them.
    fn laid_over(&self, config: AgentConfig) -> AgentConfig {
        let capacity = CapacityConfig {
            cpu_milli: self.cpu.or(config.capacity.cpu_milli),
            memory_bytes: self.memory.or(config.capacity.memory_bytes),
            ..config.capacity
        };
        AgentConfig { capacity, ..config }
    }
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
    entry::agent_main(arguments.laid_over(config))
        .map_err(|problem| Failure::new(Exit::Failed, told(&problem)))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_line_claims_wins_over_the_settings() {
        let arguments = AgentArguments { config: None, cpu: Some(500), memory: None };
        let capacity = CapacityConfig { memory_bytes: Some(7), gpus: Some(1), ..CapacityConfig::default() };
        let config = arguments.laid_over(AgentConfig { capacity, ..AgentConfig::default() });
        assert_eq!(config.capacity, CapacityConfig { cpu_milli: Some(500), ..capacity });
    }
}
