//! The engine while it runs: its output becomes log and progress, its end a verdict, and a halt its death.

use std::sync::Arc;
use std::time::Duration;

use telecine_domain::failure::{Failure, FailureClass};
use telecine_proto::engine::v1 as proto;
use telecine_proto::engine::v1::run_event::Event;
use tokio::sync::mpsc;

use super::mount::Mounted;
use super::shared::{Halt, Shared};
use crate::engine_client::{Engine, EngineError};
use crate::failure;
use crate::folder::Assignment;
use crate::plain::{ProgressLines, ProgressReport};
use crate::runtime::{ContainerRuntime, EngineSignal, Exit, Output, RuntimeError};

/// How long a gRPC engine may take to serve.
const SERVE_PATIENCE: Duration = Duration::from_secs(60);
/// How long a gRPC engine may take to leave once it has said its last word.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the runtime may take to confirm a kill.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// How long output may trickle in after the end.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(1);

/// A running engine.
pub(crate) struct Running<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) assignment: &'a Assignment,
    pub(crate) runtime: &'a dyn ContainerRuntime,
    pub(crate) name: &'a str,
    pub(crate) mounted: Option<&'a dyn Mounted>,
}

/// What a gRPC engine is asked, and where.
pub(crate) struct Request {
    pub(crate) run_folder: std::path::PathBuf,
    pub(crate) run: proto::RunRequest,
}

impl Running<'_> {
    /// Watches the engine to its end. `Ok` is success; a halt ends it early and is found in `shared`.
    pub(crate) async fn watch(
        &self,
        output: mpsc::Receiver<Output>,
        request: Option<Request>,
    ) -> Result<(), Failure> {
        let reading = read_output(self.shared, output, request.is_none());
        let verdict = async {
            tokio::select! {
                verdict = self.verdict(request) => verdict,
                halt = self.limits() => { self.end(&halt).await; Ok(()) }
            }
        };
        tokio::pin!(reading, verdict);
        let mut read = false;
        let verdict = loop {
            tokio::select! {
                verdict = &mut verdict => break verdict,
                () = &mut reading, if !read => read = true,
            }
        };
        if !read {
            // The end of the output follows the end of the engine; one that escaped may hold it open.
            let _ = tokio::time::timeout(OUTPUT_PATIENCE, reading).await;
        }
        self.shared.finish_log();
        verdict.map_err(|failure| self.with_tail(failure))
    }

    fn with_tail(&self, failure: Failure) -> Failure {
        let log_tail = if failure.log_tail.is_empty() { self.shared.log_tail() } else { failure.log_tail };
        Failure { log_tail, ..failure }
    }

    async fn verdict(&self, request: Option<Request>) -> Result<(), Failure> {
        match request {
            None => {
                let exit = self.exit().await?;
                let failed =
                    failure::of_exit(exit, self.assignment.resources.memory_bytes, self.shared.log_tail());
                failed.map_or(Ok(()), Err)
            }
            Some(request) => self.converse(request).await,
        }
    }

    async fn exit(&self) -> Result<Exit, Failure> {
        let exit = self.runtime.wait(self.name).await;
        exit.map_err(|error| match error {
            RuntimeError::Refused { .. } => {
                failure::infrastructure("container_lost", format!("the engine's container is gone: {error}"))
            }
            other => failure::of_runtime(&other),
        })
    }

    /// The gRPC engine's own words decide; without a last word, its exit does.
    async fn converse(&self, request: Request) -> Result<(), Failure> {
        let Request { run_folder, run } = request;
        let user = self.assignment.surroundings.engine_user.0;
        let talking = async {
            let mut engine = Engine::connect(&run_folder, user, SERVE_PATIENCE).await?;
            let mut events = engine.run(run).await?;
            loop {
                match events.message().await {
                    Ok(Some(event)) => {
                        if let Some(last) = self.take(event) {
                            return Ok(Some(last));
                        }
                    }
                    Ok(None) | Err(_) => return Ok(None),
                }
            }
        };
        let exit = self.exit();
        tokio::pin!(exit);
        let said: Result<Option<Result<(), Failure>>, EngineError> = tokio::select! {
            biased;
            said = talking => said,
            exit = &mut exit => return Err(self.died(exit?)),
        };
        match said {
            Ok(Some(last)) => {
                self.dismiss(exit).await;
                last
            }
            Ok(None) => {
                let exit = tokio::time::timeout(LEAVE_PATIENCE, &mut exit).await;
                match exit {
                    Ok(exit) => Err(self.died(exit?)),
                    Err(_) => {
                        self.kill().await;
                        let message = "the engine stopped answering; it was killed";
                        Err(Failure::new(FailureClass::Engine, "engine_silent", message))
                    }
                }
            }
            Err(error) => {
                self.kill().await;
                Err(Failure::new(FailureClass::Engine, "engine_silent", error.to_string()))
            }
        }
    }

    fn died(&self, exit: Exit) -> Failure {
        let tail = self.shared.log_tail();
        failure::of_exit(exit, self.assignment.resources.memory_bytes, tail).unwrap_or_else(|| {
            let message = "the engine ended without saying whether it was done";
            Failure {
                exit_code: Some(exit.code),
                ..Failure::new(FailureClass::Engine, "engine_died", message)
            }
        })
    }

    /// After its last word an engine is asked to leave, so that all its files are closed before they are sealed.
    async fn dismiss(&self, exit: impl Future<Output = Result<Exit, Failure>>) {
        self.signal(EngineSignal::Terminate).await;
        if tokio::time::timeout(LEAVE_PATIENCE, exit).await.is_err() {
            self.kill().await;
        }
    }

    fn take(&self, event: proto::RunEvent) -> Option<Result<(), Failure>> {
        match event.event? {
            Event::Progress(progress) => {
                self.shared.progress(ProgressReport {
                    ratio_ppm: progress.ratio_ppm,
                    media_millis: progress.media_millis,
                    phase: Some(progress.phase),
                });
                None
            }
            Event::LogLine(line) => {
                self.shared.log(format!("{}\n", line.trim_end_matches('\n')).as_bytes());
                None
            }
            Event::Done(_) => Some(Ok(())),
            Event::Failed(failed) => Some(Err(of_engine(&failed))),
        }
    }

    /// Waits for a reason to stop: somebody's, the attempt's limit in time, or an engine that does not get on.
    async fn limits(&self) -> Halt {
        tokio::select! {
            halt = self.shared.until_halted() => halt,
            halt = self.no_progress() => { self.shared.halt(halt.clone()); halt }
        }
    }

    /// An engine that says how far it is must get on; one that never says so must at least read, write or print.
    async fn no_progress(&self) -> Halt {
        let Some(seconds) = self.assignment.spec.timeouts.no_progress_seconds else {
            return std::future::pending().await;
        };
        let limit = Duration::from_secs(seconds);
        self.shared.sign_of_life();
        let mut moved = 0;
        loop {
            tokio::time::sleep(LOOK.min(limit)).await;
            let now = self.mounted.map_or(0, |mounted| {
                let counters = mounted.counters();
                counters.bytes_read + counters.bytes_written
            });
            if now != moved && !self.shared.reports_progress() {
                self.shared.sign_of_life();
            }
            moved = now;
            if self.shared.silent_for() >= limit {
                return Halt::Failed(failure::no_progress(seconds));
            }
        }
    }

    /// SIGTERM, a pause, SIGKILL; a lost right leaves no time for manners. A stronger reason cuts the pause short.
    async fn end(&self, halt: &Halt) {
        let grace = match halt {
            Halt::Fenced(_) => Duration::ZERO,
            Halt::Asked { grace } => *grace,
            Halt::Interrupted { grace, .. } => {
                Duration::from_secs(self.assignment.spec.timeouts.cancel_grace_seconds).min(*grace)
            }
            Halt::Failed(_) => Duration::from_secs(self.assignment.spec.timeouts.cancel_grace_seconds),
        };
        if !grace.is_zero() {
            self.signal(EngineSignal::Terminate).await;
            let left = tokio::select! {
                _ = self.runtime.wait(self.name) => true,
                () = tokio::time::sleep(grace) => false,
                _ = self.shared.until_fenced() => false,
            };
            if left {
                return;
            }
        }
        self.kill().await;
    }

    async fn kill(&self) {
        self.signal(EngineSignal::Kill).await;
        if tokio::time::timeout(KILL_PATIENCE, self.runtime.wait(self.name)).await.is_err() {
            tracing::error!(container = self.name, "the engine does not die");
        }
    }

    async fn signal(&self, signal: EngineSignal) {
        if let Err(error) = self.runtime.signal(self.name, signal).await {
            tracing::warn!(container = self.name, ?signal, %error, "the engine was not signalled");
        }
    }
}

async fn read_output(shared: &Shared, mut output: mpsc::Receiver<Output>, plain: bool) {
    let mut lines = ProgressLines::default();
    while let Some(piece) = output.recv().await {
        if !shared.reports_progress() {
            shared.sign_of_life();
        }
        if plain && piece.stdout {
            let split = lines.push(&piece.data);
            split.reports.into_iter().for_each(|report| shared.progress(report));
            shared.log(&split.log);
        } else {
            shared.log(&piece.data);
        }
    }
    let rest = lines.finish();
    rest.reports.into_iter().for_each(|report| shared.progress(report));
    shared.log(&rest.log);
}

fn of_engine(failed: &proto::Failed) -> Failure {
    let class = match failed.kind() {
        proto::FailureKind::Input => FailureClass::Input,
        proto::FailureKind::Engine | proto::FailureKind::Canceled | proto::FailureKind::Unspecified => {
            FailureClass::Engine
        }
    };
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let plain = !failed.code.is_empty() && failed.code.len() <= 64 && failed.code.chars().all(word);
    let code = if plain { failed.code.as_str() } else { "engine_failed" };
    let message: String = failed.message.chars().take(1000).collect();
    Failure::new(
        class,
        code,
        if message.is_empty() { "the engine failed and did not say why".to_owned() } else { message },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_may_blame_the_media() {
        let failed = |kind: proto::FailureKind, code: &str, message: &str| {
            of_engine(&proto::Failed { kind: kind.into(), code: code.into(), message: message.into() })
        };
        let input = failed(proto::FailureKind::Input, "unreadable_input", "no moov atom");
        assert_eq!((input.class, input.code.as_str()), (FailureClass::Input, "unreadable_input"));
        let odd = failed(proto::FailureKind::Engine, "Not A Word", "");
        assert_eq!((odd.class, odd.code.as_str()), (FailureClass::Engine, "engine_failed"));
        assert!(!odd.message.is_empty());
    }
}
