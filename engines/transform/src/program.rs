//! Runs ffmpeg and ffprobe so that they never outlive the engine: killed with it, and ended at once when told.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::diagnosis::Exit;
use crate::lines::Lines;

/// How long a program may take to end after SIGTERM. Short: nothing of a canceled run is published, so what ffmpeg would
/// still encode of its queue (seconds of work with a slow preset) is work for nothing.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// What a program does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It wrote a line to stdout.
    Out(String),
    /// It wrote a line to stderr.
    Error(String),
    /// It ended, and everything it wrote was told.
    Ended(Exit),
}

/// A program does not start, or cannot be waited for.
#[derive(Debug, thiserror::Error)]
#[error("{program} does not run: {source}")]
pub(crate) struct DoesNotRun {
    program: &'static str,
    source: io::Error,
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Program {
    name: &'static str,
    child: Child,
    out: Lines<ChildStdout>,
    error: Lines<ChildStderr>,
    out_open: bool,
    error_open: bool,
    exit: Option<Exit>,
    cancel: CancellationToken,
    end: End,
}

/// How far the program was made to end.
#[derive(Debug)]
enum End {
    Free,
    /// It got SIGTERM, and gets SIGKILL then.
    Terminated(Instant),
    Killed,
}

impl Program {
    /// Starts it. When `cancel` fires it gets SIGTERM, and SIGKILL after `GRACE`.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(
        name: &'static str,
        arguments: &[String],
        cancel: &CancellationToken,
    ) -> Result<Self, DoesNotRun> {
        let failed = |source| DoesNotRun { program: name, source };
        let mut child = spawn(name, arguments).map_err(failed)?;
        let (Some(out), Some(error)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        Ok(Self {
            name,
            child,
            out: Lines::new(out),
            error: Lines::new(error),
            out_open: true,
            error_open: true,
            exit: None,
            cancel: cancel.clone(),
            end: End::Free,
        })
    }

    /// Waits for what it does next; must not be asked again after `Ended`.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(crate) async fn next(&mut self) -> Result<Next, DoesNotRun> {
        loop {
            if let (Some(exit), false, false) = (self.exit, self.out_open, self.error_open) {
                return Ok(Next::Ended(exit));
            }
            tokio::select! {
                line = self.out.next(), if self.out_open => match line {
                    Some(line) => return Ok(Next::Out(line)),
                    None => self.out_open = false,
                },
                line = self.error.next(), if self.error_open => match line {
                    Some(line) => return Ok(Next::Error(line)),
                    None => self.error_open = false,
                },
                ended = self.child.wait(), if self.exit.is_none() => {
                    self.exit = Some(exit(ended.map_err(|source| DoesNotRun { program: self.name, source })?));
                }
                () = due(&self.end, &self.cancel), if self.exit.is_none() => self.end = self.end_harder(),
            }
        }
    }

    fn end_harder(&mut self) -> End {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let (signal, end) = match self.end {
            End::Free => (Signal::TERM, End::Terminated(Instant::now() + GRACE)),
            End::Terminated(_) | End::Killed => (Signal::KILL, End::Killed),
        };
        // An id is given only while the child is not reaped, so the signal reaches no other process.
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, signal)) {
            tracing::warn!(%error, program = self.name, ?signal, "the signal does not reach it");
        }
        end
    }
}

/// Waits until the next signal is due.
async fn due(end: &End, cancel: &CancellationToken) {
    match end {
        End::Free => cancel.cancelled().await,
        End::Terminated(kill_at) => tokio::time::sleep_until(*kill_at).await,
        End::Killed => std::future::pending().await,
    }
}

fn spawn(program: &str, arguments: &[String]) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    // SAFETY: prctl is async-signal-safe and touches no memory. The signal comes when the thread that spawned ends; the
    // engine spawns from its main thread only (its runtime has no other).
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    command.spawn()
}

fn exit(status: ExitStatus) -> Exit {
    status.code().map_or_else(|| Exit::Signal(status.signal().unwrap_or(0)), Exit::Code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a script, and cancels once it says `ready`.
    async fn shell(script: &str) -> (Exit, Vec<String>) {
        let (mut lines, cancel) = (Vec::new(), CancellationToken::new());
        let mut program = Program::start("sh", &["-c".to_owned(), script.to_owned()], &cancel).unwrap();
        loop {
            match program.next().await.unwrap() {
                Next::Out(line) if line == "ready" => cancel.cancel(),
                Next::Out(line) | Next::Error(line) => lines.push(line),
                Next::Ended(exit) => return (exit, lines),
            }
        }
    }

    #[tokio::test]
    async fn lines_and_exit_are_told() {
        let (exit, mut lines) = shell("echo a; echo b >&2; exit 3").await;
        lines.sort();
        assert_eq!((exit, lines), (Exit::Code(3), vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(shell("kill -9 $$").await.0, Exit::Signal(9));
        let nothing = Program::start("/no/such/program", &[], &CancellationToken::new());
        assert!(nothing.unwrap_err().to_string().starts_with("/no/such/program does not run: "));
    }

    #[tokio::test]
    async fn cancel_terminates_and_what_is_said_last_is_heard() {
        let script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done";
        assert_eq!(shell(script).await, (Exit::Code(7), vec!["bye".to_owned()]));
    }

    #[tokio::test]
    async fn what_ignores_sigterm_is_killed() {
        let began = Instant::now();
        // exec: a child of the shell would keep the pipes open after the shell was killed.
        let (exit, _) = shell("trap '' TERM; echo ready; exec sleep 60").await;
        assert_eq!(exit, Exit::Signal(9));
        assert!((GRACE..GRACE * 5).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}
