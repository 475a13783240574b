//! `telecine completions`: completions for shells.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output;

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  telecine completions bash > /etc/bash_completion.d/telecine\n  source <(telecine completions zsh)"
)]
pub(crate) struct Arguments {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the completions.
///
/// # Errors
/// When stdout is full.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "telecine", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}
