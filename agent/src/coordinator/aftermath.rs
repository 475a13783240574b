//! After a worker's death: kill what it ran, free what hangs on its mount, unmount, clean, then report, in that order.
//! A report that came first would let the manager start the job elsewhere beside a container that still runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use telecine_domain::attempt::AttemptId;
use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::trace::TraceId;
use telecine_proto::coordinator::v1::{WorkerGone, from_coordinator, from_manager};

use super::assign::{RETRY, describe};
use super::desk::Desk;
use super::{journals_folder, supervisor};
use crate::failure;
use crate::folder::{
    Assignment, AttemptFolder, AttemptLock, AttemptResult, FolderError, Outcome, write_file,
};
use crate::launcher::last_words;
use crate::mounts;

/// How long the end of the instance is held up by a journal.
const JOURNALS_PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at the journals that wait.
const JOURNALS_PERIOD: Duration = Duration::from_secs(60);

/// Cleans up after the attempt's worker and tells the manager what the worker could not. `failure` is why there never
/// was a worker.
pub(super) async fn clean_up(
    desk: &Arc<Desk>,
    folder: &AttemptFolder,
    assignment: &Assignment,
    failure: Option<Failure>,
) {
    let attempt = assignment.attempt;
    // A worker that is only now starting finds the lock taken and leaves.
    let lock = dead(folder).await;
    remove_container(desk, folder, assignment).await;
    free_mounts(folder).await;
    let result = folder.result().unwrap_or_else(|error| {
        tracing::warn!(%attempt, error = %describe(&error), "the worker's result cannot be read");
        None
    });
    if result.is_none() {
        tracing::warn!(%attempt, last_words = %last_words(folder), "the worker died without a result");
    }
    let journal_kept = keep_journal(desk, folder, result.as_ref());
    desk.release(&attempt);
    let interrupted = result.as_ref().is_some_and(|it| matches!(it.outcome, Outcome::Interrupted(_)));
    if let Some(failure) = unsaid(result, failure) {
        let gone = WorkerGone { id: Some(attempt.into()), failure: Some(failure.into()), interrupted };
        report(desk, attempt, assignment.trace, gone).await;
    }
    if let Err(error) = journal_kept.and_then(|()| folder.remove()) {
        tracing::error!(%attempt, error = %describe(&error), "the attempt's folder stays behind");
    }
    drop(lock);
    desk.forget(&attempt);
}

async fn dead(folder: &AttemptFolder) -> Option<AttemptLock> {
    loop {
        match folder.try_lock() {
            Ok(Some(lock)) => return Some(lock),
            Ok(None) => tokio::time::sleep(RETRY / 20).await,
            Err(error) => {
                tracing::warn!(error = %describe(&error), "the attempt's lock cannot be taken");
                return None;
            }
        }
    }
}

/// Tries until the runtime confirms: a container that may still run must not be forgotten.
async fn remove_container(desk: &Desk, folder: &AttemptFolder, assignment: &Assignment) {
    let kind = assignment.spec.engine.launch.runtime();
    let Some(runtime) = desk.runtimes.get(&kind) else { return };
    let removed_by_worker = matches!(folder.result(), Ok(Some(_)));
    while let Err(error) = runtime.remove(&folder.name()).await {
        tracing::error!(container = %folder.name(), %error, "a container is not removed yet");
        if removed_by_worker {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Aborts first: whoever hangs in a request to the dead mount is set free, then the mount can go.
async fn free_mounts(folder: &AttemptFolder) {
    if let Err(error) = telecine_mount::abort_connection(&folder.mountpoint()) {
        tracing::debug!(%error, "no connection to abort");
    }
    while let Err(error) = mounts::unmount_all(&folder.engine_folder()) {
        tracing::error!(folder = %folder.path().display(), %error, "a mount is not gone yet");
        tokio::time::sleep(RETRY).await;
    }
}

/// Uploads of a dead attempt are listed in its journal, which waits for the manager to close the epoch.
fn keep_journal(
    desk: &Desk,
    folder: &AttemptFolder,
    result: Option<&AttemptResult>,
) -> Result<(), FolderError> {
    if result.is_some_and(|result| result.clean) {
        return Ok(());
    }
    // Copied: the attempts folder is a mount of its own, over whose edge nothing can be renamed.
    let (from, to) = (folder.journal(), journal_of(desk, &folder.name()));
    let kept = match std::fs::read(&from) {
        Ok(journal) => write_file(&to, &journal),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    kept.map_err(|source| FolderError::Io { action: "keep", path: from, source })
}

/// Where the journal of a dead attempt waits.
pub(super) fn journal_of(desk: &Desk, name: &str) -> PathBuf {
    journals_folder(&desk.config).join(name)
}

/// Asks again for the closing of epochs whose journals wait here: an attempt may have written after its epoch was closed,
/// and the manager that was to ask may be gone. Never ends.
pub(super) async fn settle_journals(desk: Arc<Desk>) {
    loop {
        tokio::time::sleep(JOURNALS_PERIOD).await;
        for attempt in waiting_journals(&desk) {
            if !desk.is_here(&attempt) {
                let failure = Some(failure::worker_died().into());
                let gone = WorkerGone { id: Some(attempt.into()), failure, interrupted: false };
                report(&desk, attempt, None, gone).await;
            }
        }
    }
}

/// Whether what a dead attempt has written here may still be taken away: its journal waits, and not for too long already.
/// Whoever ends this instance would leave it to the store's own rules.
pub(super) fn journals_wait(desk: &Desk) -> bool {
    waiting_journals(desk).iter().any(|attempt| {
        let journal = journal_of(desk, &AttemptFolder::name_of(attempt));
        let written = std::fs::metadata(journal).and_then(|found| found.modified());
        // One of the future is as good as new.
        written.is_ok_and(|at| at.elapsed().unwrap_or_default() < JOURNALS_PATIENCE)
    })
}

fn waiting_journals(desk: &Desk) -> Vec<AttemptId> {
    let entries = match std::fs::read_dir(journals_folder(&desk.config)) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(%error, "the journals of dead attempts cannot be listed");
            return Vec::new();
        }
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| AttemptFolder::attempt_of(&name)).collect()
}

/// What the manager has not heard from the worker itself.
fn unsaid(result: Option<AttemptResult>, launch_failure: Option<Failure>) -> Option<Failure> {
    let Some(result) = result else { return Some(launch_failure.unwrap_or_else(failure::worker_died)) };
    if result.acknowledged {
        return None;
    }
    Some(match result.outcome {
        Outcome::Failed(failure) | Outcome::Granted(failure) | Outcome::Interrupted(failure) => failure,
        Outcome::Published => {
            let message = "the outputs are published; the worker could not say so before its lease ended";
            failure::infrastructure("report_lost", message)
        }
        Outcome::Stopped => Failure::new(FailureClass::Policy, "stopped", "the attempt was stopped as asked"),
        Outcome::Fenced => {
            let message =
                "the worker's lease ended before the manager answered; it published nothing by itself";
            failure::infrastructure("lease_ended", message)
        }
    })
}

async fn report(desk: &Desk, attempt: AttemptId, trace: Option<TraceId>, gone: WorkerGone) {
    tracing::info!(%attempt, failure = ?gone.failure, "the manager is told what the worker could not say");
    match supervisor::call(desk, trace, from_coordinator::Body::WorkerGone(gone)).await {
        // Stale is as final as accepted.
        from_manager::Body::Accepted(_) | from_manager::Body::Refused(_) => {}
        other => tracing::warn!(%attempt, ?other, "an unexpected answer"),
    }
}
