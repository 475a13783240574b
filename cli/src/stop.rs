//! `telecine stop`: drains what `telecine up` started on a data folder, and ends it.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use telecine_embedded::{FolderLock, LockError};

use crate::cli::Global;
use crate::connection;
use crate::failure::{Exit, Failure};
use crate::output;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Arguments of `stop`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  telecine stop --data ./data\n  telecine stop --data ./data --now")]
pub(crate) struct Arguments {
    /// Ask running jobs to end with their agents' next chance instead of waiting for them
    #[arg(long)]
    now: bool,
    /// Longest wait for running jobs and for `up` itself
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    timeout: u64,
}

/// Ends `up` and its agents.
///
/// # Errors
/// When something still runs after the timeout.
pub(crate) async fn run(global: &Global, arguments: Arguments) -> Result<ExitCode, Failure> {
    let data = connection::data_folder(global.data.as_deref())?;
    if !data.exists() {
        output::note(&format!("{}: nothing runs there", data.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let data = data.canonicalize().map_err(anyhow::Error::from)?;
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
    end_up(&data, if arguments.now { Signal::TERM } else { Signal::USR1 }, deadline).await?;
    let limit = if arguments.now {
        Duration::from_secs(1)
    } else {
        deadline.saturating_duration_since(Instant::now())
    };
    let left = telecine_embedded::drain_agents(&data, limit).await.map_err(anyhow::Error::from)?;
    if left > 0 {
        let failure = Failure::new(Exit::TimedOut, format!("{left} agents still finish their jobs"));
        return Err(failure.advise("run the same command again, or cancel the jobs first"));
    }
    output::note(&format!("{}: nothing runs there any more", data.display()));
    Ok(ExitCode::SUCCESS)
}

/// Signals the holder of the folder's lock and waits until the lock is free.
async fn end_up(data: &Path, signal: Signal, deadline: Instant) -> Result<(), Failure> {
    let mut asked = false;
    loop {
        let holder = match FolderLock::take(data) {
            Ok(_free) => return Ok(()),
            Err(LockError::Held { holder, .. }) => holder,
            Err(problem) => return Err(Failure::new(Exit::Failed, problem.to_string())),
        };
        if !asked {
            asked = ask(&holder, signal)?;
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                Exit::TimedOut,
                format!("process {holder} still runs over {}", data.display()),
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Signals exactly the process that holds the lock now; false when it is only starting.
fn ask(holder: &str, signal: Signal) -> Result<bool, Failure> {
    let Some(pid) = holder.parse().ok().and_then(Pid::from_raw) else { return Ok(false) };
    let sent = pidfd_open(pid, PidfdFlags::empty()).and_then(|process| pidfd_send_signal(process, signal));
    match sent {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(problem) => {
            Err(Failure::new(Exit::Failed, format!("process {holder} cannot be signalled: {problem}"))
                .advise("run the command as the user who runs `telecine up`"))
        }
    }
}
