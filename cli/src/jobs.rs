//! `telecine jobs`: submit, watch and steer jobs.

mod estimate;
mod list;
mod logs;
mod progress;
mod show;
mod steer;
mod submit;
mod watch;

use std::process::ExitCode;

use clap::Subcommand;

use crate::cli::Global;
use crate::connection;
use crate::failure::Failure;

/// What can be done with jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Submit a job
    Submit(submit::Arguments),
    /// Say what would become of a job before it is submitted
    Estimate(estimate::Arguments),
    /// Show one job with its attempts
    Get(show::Arguments),
    /// List jobs, newest first
    List(list::Arguments),
    /// Follow a job until it ends
    Watch(watch::Arguments),
    /// List a job's attempts, with the time of every phase and what they moved
    Attempts(show::Arguments),
    /// Print what the engine wrote
    Logs(logs::Arguments),
    /// Say why a job waits or failed, and what would help
    Explain(show::Arguments),
    /// Stop a job
    Cancel(steer::Arguments),
    /// Make a new job of one that ended
    Retry(steer::Arguments),
    /// Keep a queued job out of the queue
    Hold(steer::Arguments),
    /// Let a held job into the queue
    Release(steer::Arguments),
    /// Change priority or labels of a queued job
    Update(steer::UpdateArguments),
}

/// Does it.
///
/// # Errors
/// Why it was not done.
pub(crate) async fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    let client = connection::client(global)?;
    let format = global.output;
    match command {
        Command::Submit(arguments) => return submit::run(&client, format, arguments).await,
        Command::Watch(arguments) => return watch::run(&client, format, &arguments).await,
        Command::Estimate(arguments) => estimate::run(&client, format, &arguments).await?,
        Command::Get(arguments) => show::get(&client, format, &arguments).await?,
        Command::Attempts(arguments) => show::list_attempts(&client, format, &arguments).await?,
        Command::Explain(arguments) => show::explain(&client, format, &arguments).await?,
        Command::List(arguments) => list::run(&client, format, &arguments).await?,
        Command::Logs(arguments) => logs::run(&client, format, &arguments).await?,
        Command::Cancel(arguments) => steer::act(&client, format, "cancel", &arguments).await?,
        Command::Retry(arguments) => steer::act(&client, format, "retry", &arguments).await?,
        Command::Hold(arguments) => steer::act(&client, format, "hold", &arguments).await?,
        Command::Release(arguments) => steer::act(&client, format, "release", &arguments).await?,
        Command::Update(arguments) => steer::update(&client, format, arguments).await?,
    }
    Ok(ExitCode::SUCCESS)
}
