//! The end of an attempt: seal, grant, publish and report, or take everything away and report that.
//!
//! Invariant: without a grant nothing is published. Invariant: once the question for the grant is on its way and has no
//! answer, nothing is taken away either, since the answer may have been yes; the manager then publishes or closes the
//! epoch through the coordinator. Invariant: after the grant the only way is forward, with or without a lease.

use std::time::Duration;

use prost::Message as _;
use telecine_domain::attempt::{Counters, Phase};
use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::manifest::Manifest;
use telecine_mount::{SealError, SealedFile};
use telecine_proto::MAX_MESSAGE_BYTES;
use telecine_proto::convert::MAX_OBJECTS;
use telecine_proto::worker::v1::{self as wire, from_manager, from_worker};

use super::WorkerError;
use super::attempt::Attempt;
use super::mount::{self, Mounted};
use super::session::{self, NoAnswer};
use super::shared::Halt;
use crate::failure;
use crate::folder::{AttemptResult, Outcome};

/// What a message may have around the seal or the grant: names of the attempt and the call, and the trace.
const ENVELOPE_BYTES: usize = 16 * 1024;
const LOG_PATIENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long the worker itself goes on trying to publish before it leaves that to others.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(600);

/// How the engine's part ended.
pub(super) enum Ended {
    /// It succeeded.
    Well,
    /// It, or its preparation, failed.
    Failed(Failure),
    /// It was stopped; `shared` knows why.
    Halted,
}

/// What the attempt came to.
struct Verdict {
    outcome: Outcome,
    acknowledged: bool,
    /// Whether sealed or half-written outputs must be left for others to judge.
    undecided: bool,
}

pub(super) async fn finish(attempt: &mut Attempt, ended: Ended) -> Result<Outcome, WorkerError> {
    let removal = attempt.remove_container();
    attempt.shared.finish_log();
    let verdict = match ended {
        Ended::Well => publish(attempt).await,
        Ended::Failed(failure) => Err(Halt::Failed(failure)),
        Ended::Halted => Err(attempt.shared.halted().unwrap_or(Halt::Fenced(String::new()))),
    };
    let verdict = match verdict {
        Ok(verdict) => verdict,
        // The engine must be gone before its mount is.
        Err(halt) => {
            let _ = removal.await;
            let verdict = give_up(attempt, halt).await;
            return record(attempt, verdict).await;
        }
    };
    let recorded = record(attempt, verdict).await;
    let _ = removal.await;
    recorded
}

/// Seals, asks, publishes and says so. `Err` is why there will be no grant.
async fn publish(attempt: &Attempt) -> Result<Verdict, Halt> {
    let shared = &attempt.shared;
    let manifest = tokio::select! {
        biased;
        halt = shared.until_halted() => return Err(halt),
        sealed = seal(attempt) => sealed.map_err(Halt::Failed)?,
    };
    let body = wire::Seal { manifest: Some(manifest.into()), counters: Some(counters(attempt).into()) };
    within_limits(&body).map_err(Halt::Failed)?;
    // From here on only an answer decides.
    let answer = tokio::select! {
        answer = session::call(shared, from_worker::Body::Seal(body)) => answer,
        _ = shared.until_fenced() => {
            return Ok(Verdict { outcome: Outcome::Fenced, acknowledged: false, undecided: true });
        }
    };
    let granted = match answer {
        Ok(from_manager::Body::Grant(grant)) => granted(grant),
        Ok(other) => Err(Halt::Failed(odd_answer(&format!("{other:?}")))),
        Err(NoAnswer::Fenced) => Err(Halt::Fenced("the grant was refused: the epoch is closed".to_owned())),
        Err(NoAnswer::Refused { code, message }) => Err(refused(attempt, &code, &message)),
    };
    Ok(complete(attempt, &granted?).await)
}

/// What the manager could not take or answer would be asked again and again: it is not asked.
fn within_limits(seal: &wire::Seal) -> Result<(), Failure> {
    let objects = seal.manifest.as_ref().map_or(0, |manifest| manifest.objects.len());
    let (bytes, most_bytes) = (seal.encoded_len(), MAX_MESSAGE_BYTES - ENVELOPE_BYTES);
    if objects <= MAX_OBJECTS && bytes <= most_bytes {
        return Ok(());
    }
    Err(failure::too_many_outputs(objects, MAX_OBJECTS, bytes, most_bytes))
}

/// A refusal while somebody stops the job is the stop.
fn refused(attempt: &Attempt, code: &str, message: &str) -> Halt {
    let asked = attempt.shared.halted().filter(|halt| matches!(halt, Halt::Asked { .. }));
    asked.unwrap_or_else(|| Halt::Failed(odd_answer(&format!("{code}: {message}"))))
}

fn odd_answer(answer: &str) -> Failure {
    let answer: String = answer.chars().take(300).collect();
    Failure::new(
        FailureClass::Internal,
        "grant_refused",
        format!("the manager did not grant the outputs: {answer}"),
    )
}

fn granted(grant: wire::Grant) -> Result<Manifest, Halt> {
    let manifest = grant.manifest.unwrap_or_default().try_into();
    manifest.map_err(|error| Halt::Failed(odd_answer(&format!("the grant cannot be read: {error}"))))
}

/// Makes all outputs whole in their stores, still unseen.
async fn seal(attempt: &Attempt) -> Result<Manifest, Failure> {
    let Some(mounted) = &attempt.mounted else { return Ok(Manifest::default()) };
    if let Some(failure) = mount::trouble(mounted.as_ref()) {
        return Err(with_tail(attempt, failure));
    }
    attempt.shared.enter(Phase::Flushing);
    let sealed = mounted.seal().await.map_err(|error| not_sealed(attempt, mounted.as_ref(), &error))?;
    for file in &sealed.left_out {
        tracing::info!(output = %file.output, path = %file.path, "a file besides the asked one is not published");
    }
    let manifest = mount::manifest(&attempt.assignment, sealed)?;
    match mount::missing(&attempt.assignment, &manifest, attempt.shared.log_tail()) {
        Some(failure) => Err(failure),
        None => Ok(manifest),
    }
}

fn not_sealed(attempt: &Attempt, mounted: &dyn Mounted, error: &SealError) -> Failure {
    let words = attempt.shared.redact(&error.to_string());
    if let SealError::Missing { output, .. } = error {
        let locations = &attempt.assignment.spec.composition.outputs;
        let location = output.parse().ok().and_then(|slot| locations.get(&slot));
        let key = location.map(|location| location.key.to_string()).unwrap_or_default();
        return failure::output_missing(output, &key, attempt.shared.log_tail());
    }
    let told = format!("the outputs were not written: {words}");
    mount::trouble(mounted).unwrap_or_else(|| failure::infrastructure("output_write_failed", told))
}

fn with_tail(attempt: &Attempt, failure: Failure) -> Failure {
    Failure { log_tail: attempt.shared.log_tail(), ..failure }
}

/// Publishes what was granted, in order, then says so.
async fn complete(attempt: &Attempt, manifest: &Manifest) -> Verdict {
    let completing = complete_all(attempt, manifest);
    match tokio::time::timeout(PUBLISH_PATIENCE, completing).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => {
            return Verdict { outcome: Outcome::Granted(failure), acknowledged: false, undecided: true };
        }
        Err(_) => {
            let message =
                "the granted outputs could not be published in time; the manager has it done elsewhere";
            let failure = failure::infrastructure("publish_failed", message);
            return Verdict { outcome: Outcome::Granted(failure), acknowledged: false, undecided: true };
        }
    }
    session::drained(&attempt.shared, LOG_PATIENCE.min(attempt.shared.lease_remaining())).await;
    let body = from_worker::Body::Published(wire::Published { counters: Some(counters(attempt).into()) });
    let acknowledged = tell(attempt, body).await;
    Verdict { outcome: Outcome::Published, acknowledged, undecided: false }
}

async fn complete_all(attempt: &Attempt, manifest: &Manifest) -> Result<(), Failure> {
    for object in &manifest.objects {
        let Some(backing) = attempt.backings.get(&object.store) else {
            let message = format!("the grant names store {}, which was not opened", object.store);
            return Err(Failure::new(FailureClass::Internal, "store_not_opened", message));
        };
        let file: SealedFile = mount::sealed_file(object);
        let mut pause = FIRST_PAUSE;
        while let Err(error) = telecine_mount::complete(backing, &file).await {
            let error = attempt.shared.redact(&error.to_string());
            tracing::warn!(key = %object.key, %error, "a granted output is not published yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
    Ok(())
}

/// Takes everything away and reports why; a fenced attempt has nothing to report.
async fn give_up(attempt: &Attempt, halt: Halt) -> Verdict {
    let interrupted = matches!(halt, Halt::Interrupted { .. });
    let (outcome, report) = match halt {
        Halt::Fenced(_) => (Outcome::Fenced, None),
        Halt::Asked { .. } => (Outcome::Stopped, Some(None)),
        Halt::Interrupted { failure, .. } => {
            let failure = with_tail(attempt, failure);
            (Outcome::Interrupted(failure.clone()), Some(Some(failure)))
        }
        Halt::Failed(failure) => {
            let trouble = attempt.mounted.as_ref().and_then(|mounted| mount::trouble(mounted.as_ref()));
            let failure = trouble.map_or(failure, |trouble| with_tail(attempt, trouble));
            let message = attempt.shared.redact(&failure.message);
            let failure = Failure { message, ..failure };
            (Outcome::Failed(failure.clone()), Some(Some(failure)))
        }
    };
    let Some(failure) = report else {
        return Verdict { outcome, acknowledged: true, undecided: false };
    };
    session::drained(&attempt.shared, LOG_PATIENCE.min(attempt.shared.lease_remaining())).await;
    let body = wire::Ended {
        failure: failure.map(Into::into),
        interrupted,
        counters: Some(counters(attempt).into()),
    };
    let acknowledged = tell(attempt, from_worker::Body::Ended(body)).await;
    Verdict { outcome, acknowledged, undecided: false }
}

/// Whether the manager knows. That it knew before is as good.
async fn tell(attempt: &Attempt, body: from_worker::Body) -> bool {
    tokio::select! {
        answer = session::call(&attempt.shared, body) => match answer {
            Ok(_) | Err(NoAnswer::Fenced) => true,
            Err(NoAnswer::Refused { code, message }) => {
                tracing::warn!(%code, %message, "the manager refused the last report");
                false
            }
        },
        _ = attempt.shared.until_fenced() => false,
    }
}

/// Ends the mount, takes away what may go, and writes down how it ended.
async fn record(attempt: &mut Attempt, verdict: Verdict) -> Result<Outcome, WorkerError> {
    let counters = counters(attempt);
    if let Some(mounted) = attempt.mounted.take() {
        mounted.close();
    }
    let clean = !verdict.undecided && abort_unpublished(attempt).await;
    let result = AttemptResult {
        outcome: verdict.outcome.clone(),
        counters,
        acknowledged: verdict.acknowledged,
        clean,
        at: attempt.shared.clock.now(),
    };
    attempt.folder.write_result(&result)?;
    tracing::info!(outcome = ?verdict.outcome, acknowledged = verdict.acknowledged, clean, "the attempt is over");
    Ok(verdict.outcome)
}

/// What was begun and not published is in the journal; what was published is not touched by an abort.
async fn abort_unpublished(attempt: &Attempt) -> bool {
    if !attempt.assignment.mounted {
        return true;
    }
    let outputs = &attempt.assignment.spec.composition.outputs;
    let backing_of = |slot: &str| {
        let location = slot.parse().ok().and_then(|slot| outputs.get(&slot))?;
        attempt.backings.get(&location.store).cloned()
    };
    let aborted = telecine_mount::abort_journal(&attempt.folder.journal(), backing_of).await;
    aborted
        .inspect_err(|error| tracing::warn!(%error, "uploads are left for the closing of the epoch"))
        .is_ok()
}

fn counters(attempt: &Attempt) -> Counters {
    attempt.mounted.as_ref().map(|mounted| mount::counters(mounted.counters())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use telecine_proto::types::v1 as types;

    use super::*;

    fn seal(objects: usize, key: &str) -> wire::Seal {
        let object = types::SealedObject { key: key.to_owned(), ..Default::default() };
        let manifest = types::Manifest { objects: vec![object; objects] };
        wire::Seal { manifest: Some(manifest), counters: None }
    }

    #[test]
    fn more_outputs_than_a_grant_can_carry_are_a_limit_and_no_accident() {
        assert_eq!(within_limits(&seal(MAX_OBJECTS, "out/segment.ts")), Ok(()));
        let many = within_limits(&seal(MAX_OBJECTS + 1, "out/segment.ts")).unwrap_err();
        assert_eq!((many.class, many.code.as_str()), (FailureClass::Policy, "too_many_outputs"));
        assert!(many.message.contains("5001") && many.message.contains("5000"), "{}", many.message);
        let long = within_limits(&seal(4_500, &"k".repeat(1000))).unwrap_err();
        assert_eq!((long.class, long.code.as_str()), (FailureClass::Policy, "too_many_outputs"));
        assert!(long.message.contains(&(MAX_MESSAGE_BYTES - ENVELOPE_BYTES).to_string()), "{}", long.message);
    }
}
