//! The state machine of a job: one total function from a job and an event to the job after it.
//!
//! Every event about an attempt carries its epoch. An event of an epoch that no longer holds the right is `Stale`: that
//! is a normal outcome, since a partition or a long pause makes every agent speak out of turn one day.
//!
//! Invariant: a terminal state never changes. Invariant: the epoch never goes back. Invariant: a granted job (in
//! `finalizing`) goes to `succeeded`, or to `failed` when its sealed bytes are lost, and nowhere else.

use std::time::Duration;

use crate::failure::{Failure, FailureClass, RetryBudget};
use crate::id::{AttemptNumber, Epoch, InstanceId};
use crate::job::{HoldReason, Job, JobState, Run, StateName, StopCause};
use crate::manifest::Manifest;
use crate::time::Timestamp;

/// Something that happened to a job, or that somebody asks of it.
#[derive(Clone, Debug, PartialEq)]
pub enum JobEvent {
    /// Keep it out of the queue.
    Hold(HoldReason),
    /// Let it into the queue.
    Release,
    /// All jobs that it depends on have succeeded.
    DependenciesDone,
    /// A job that it depends on will not succeed.
    DependencyFailed {
        /// Which, and what to do.
        failure: Failure,
    },
    /// Give the right to run to an instance; the next attempt and epoch are handed out.
    Assign {
        /// The instance.
        instance: InstanceId,
    },
    /// The worker has connected.
    Started {
        /// Under which right.
        epoch: Epoch,
    },
    /// The engine works.
    EngineRunning {
        /// Under which right.
        epoch: Epoch,
    },
    /// The outputs are sealed: may they be published?
    Grant {
        /// Under which right.
        epoch: Epoch,
        /// What was sealed.
        manifest: Manifest,
    },
    /// The granted outputs are all in place.
    Published {
        /// Under which right.
        epoch: Epoch,
    },
    /// What was sealed and granted is on an instance that is gone: nobody can publish it any more.
    SealedBytesLost {
        /// Under which right.
        epoch: Epoch,
        /// Where the bytes were, and what to do.
        failure: Failure,
    },
    /// The attempt is over and was not granted: it failed, was interrupted, or was lost.
    AttemptFailed {
        /// Under which right.
        epoch: Epoch,
        /// Why.
        failure: Failure,
    },
    /// The attempt gave way to more important work, its instance is going away or had no room for it; no budget pays.
    Interrupted {
        /// Under which right.
        epoch: Epoch,
        /// Why, for `last_failure`.
        failure: Failure,
    },
    /// Somebody cancels the job.
    Cancel,
    /// The stopped attempt is gone.
    Stopped {
        /// Under which right.
        epoch: Epoch,
    },
    /// The queue timeout may have passed; `Stale` when it has not.
    QueueTimeout,
    /// The total timeout may have passed; `Stale` when it has not.
    TotalTimeout,
}

/// What an event did.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The job after the event (version one higher).
    Applied(Box<Job>),
    /// The event belongs to an epoch that has no right any more, or asks for what is already so. Nothing changes.
    Stale,
    /// The job's state does not allow it. Nothing changes.
    Illegal {
        /// The state it is in.
        state: StateName,
    },
}

/// Applies `event` to `job` at `now`.
pub fn apply(job: &Job, event: JobEvent, now: Timestamp) -> Outcome {
    match event {
        JobEvent::Hold(reason) => hold(job, reason, now),
        JobEvent::Release => release(job, now),
        JobEvent::DependenciesDone => dependencies_done(job, now),
        JobEvent::DependencyFailed { failure } => dependency_failed(job, failure, now),
        JobEvent::Assign { instance } => assign(job, instance, now),
        JobEvent::Started { epoch } => under(job, epoch, |run| started(job, run, now)),
        JobEvent::EngineRunning { epoch } => under(job, epoch, |run| engine_running(job, run, now)),
        JobEvent::Grant { epoch, manifest } => under(job, epoch, |run| grant(job, run, manifest, now)),
        JobEvent::Published { epoch } => under(job, epoch, |run| published(job, run.attempt, now)),
        JobEvent::SealedBytesLost { epoch, failure } => {
            under(job, epoch, |_| sealed_bytes_lost(job, failure, now))
        }
        JobEvent::AttemptFailed { epoch, failure } => {
            under(job, epoch, |_| attempt_failed(job, failure, now))
        }
        JobEvent::Interrupted { epoch, failure } => under(job, epoch, |_| interrupted(job, failure, now)),
        JobEvent::Cancel => cancel(job, StopCause::Requested, now),
        JobEvent::Stopped { epoch } => under(job, epoch, |_| stopped(job, now)),
        JobEvent::QueueTimeout => queue_timeout(job, now),
        JobEvent::TotalTimeout => total_timeout(job, now),
    }
}

/// Longest pause before an attempt after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

fn under(job: &Job, epoch: Epoch, then: impl FnOnce(Run) -> Outcome) -> Outcome {
    match job.state.run() {
        Some(run) if run.epoch == epoch => then(*run),
        Some(_) | None => Outcome::Stale,
    }
}

fn moved(job: &Job, state: JobState, now: Timestamp) -> Job {
    Job { state, state_since: now, version: job.version + 1, ..job.clone() }
}

fn applied(job: Job) -> Outcome {
    Outcome::Applied(Box::new(job))
}

fn illegal(job: &Job) -> Outcome {
    Outcome::Illegal { state: job.state.name() }
}

fn hold(job: &Job, reason: HoldReason, now: Timestamp) -> Outcome {
    match &job.state {
        JobState::Queued { .. } => applied(moved(job, JobState::Held { reason }, now)),
        JobState::Held { reason: HoldReason::Manual } => Outcome::Stale,
        // It would be let go by its dependencies all the same.
        JobState::Held { reason: HoldReason::Dependencies }
        | JobState::Assigned(_)
        | JobState::Starting(_)
        | JobState::Running(_)
        | JobState::Finalizing { .. }
        | JobState::Canceling { .. }
        | JobState::Succeeded { .. }
        | JobState::Failed { .. }
        | JobState::Canceled
        | JobState::Expired => illegal(job),
    }
}

/// Whoever holds a queued job may let it go again: its dependencies have succeeded before it was queued.
fn release(job: &Job, now: Timestamp) -> Outcome {
    match &job.state {
        JobState::Held { reason: HoldReason::Manual } => applied(enqueued(job, now)),
        JobState::Queued { .. } => Outcome::Stale,
        JobState::Held { reason: HoldReason::Dependencies }
        | JobState::Assigned(_)
        | JobState::Starting(_)
        | JobState::Running(_)
        | JobState::Finalizing { .. }
        | JobState::Canceling { .. }
        | JobState::Succeeded { .. }
        | JobState::Failed { .. }
        | JobState::Canceled
        | JobState::Expired => illegal(job),
    }
}

fn enqueued(job: &Job, now: Timestamp) -> Job {
    let queued = JobState::Queued { not_before: None, last_failure: None };
    Job { queued_at: Some(job.queued_at.unwrap_or(now)), ..moved(job, queued, now) }
}

fn dependencies_done(job: &Job, now: Timestamp) -> Outcome {
    if waits_for_dependencies(job) { applied(enqueued(job, now)) } else { illegal(job) }
}

fn dependency_failed(job: &Job, failure: Failure, now: Timestamp) -> Outcome {
    if waits_for_dependencies(job) {
        applied(moved(job, JobState::Failed { failure }, now))
    } else {
        illegal(job)
    }
}

fn waits_for_dependencies(job: &Job) -> bool {
    matches!(job.state, JobState::Held { reason: HoldReason::Dependencies })
}

fn assign(job: &Job, instance: InstanceId, now: Timestamp) -> Outcome {
    match &job.state {
        JobState::Queued { not_before, .. } if not_before.is_none_or(|time| time <= now) => {
            let (attempt, epoch) = (job.attempts.next(), job.epoch.next());
            let run = Run { attempt, epoch, instance, since: now };
            applied(Job { attempts: attempt, epoch, ..moved(job, JobState::Assigned(run), now) })
        }
        JobState::Queued { .. }
        | JobState::Held { .. }
        | JobState::Assigned(_)
        | JobState::Starting(_)
        | JobState::Running(_)
        | JobState::Finalizing { .. }
        | JobState::Canceling { .. }
        | JobState::Succeeded { .. }
        | JobState::Failed { .. }
        | JobState::Canceled
        | JobState::Expired => illegal(job),
    }
}

fn started(job: &Job, run: Run, now: Timestamp) -> Outcome {
    match job.state.name() {
        StateName::Assigned => applied(moved(job, JobState::Starting(run), now)),
        StateName::Starting | StateName::Running | StateName::Finalizing => Outcome::Stale,
        StateName::Held
        | StateName::Queued
        | StateName::Canceling
        | StateName::Succeeded
        | StateName::Failed
        | StateName::Canceled
        | StateName::Expired => illegal(job),
    }
}

fn engine_running(job: &Job, run: Run, now: Timestamp) -> Outcome {
    match job.state.name() {
        StateName::Assigned | StateName::Starting => applied(moved(job, JobState::Running(run), now)),
        StateName::Running | StateName::Finalizing => Outcome::Stale,
        StateName::Held
        | StateName::Queued
        | StateName::Canceling
        | StateName::Succeeded
        | StateName::Failed
        | StateName::Canceled
        | StateName::Expired => illegal(job),
    }
}

/// The commit point: from here the job is never assigned again. Asking twice with the same manifest is `Stale`, which
/// the caller answers like the first time.
fn grant(job: &Job, run: Run, manifest: Manifest, now: Timestamp) -> Outcome {
    match &job.state {
        JobState::Assigned(_) | JobState::Starting(_) | JobState::Running(_) => {
            applied(moved(job, JobState::Finalizing { run, manifest }, now))
        }
        JobState::Finalizing { manifest: granted, .. } if *granted == manifest => Outcome::Stale,
        JobState::Finalizing { .. }
        | JobState::Held { .. }
        | JobState::Queued { .. }
        | JobState::Canceling { .. }
        | JobState::Succeeded { .. }
        | JobState::Failed { .. }
        | JobState::Canceled
        | JobState::Expired => illegal(job),
    }
}

fn published(job: &Job, attempt: AttemptNumber, now: Timestamp) -> Outcome {
    end_granted(job, now, |manifest| JobState::Succeeded { attempt, manifest: manifest.clone() })
}

/// No other attempt: outputs that were elsewhere may be visible already, and a second attempt would make them twice.
fn sealed_bytes_lost(job: &Job, failure: Failure, now: Timestamp) -> Outcome {
    end_granted(job, now, |_| JobState::Failed { failure })
}

/// Ends a granted job; one that is not granted is not ended so.
fn end_granted(job: &Job, now: Timestamp, end: impl FnOnce(&Manifest) -> JobState) -> Outcome {
    match &job.state {
        JobState::Finalizing { manifest, .. } => applied(moved(job, end(manifest), now)),
        JobState::Assigned(_)
        | JobState::Starting(_)
        | JobState::Running(_)
        | JobState::Held { .. }
        | JobState::Queued { .. }
        | JobState::Canceling { .. }
        | JobState::Succeeded { .. }
        | JobState::Failed { .. }
        | JobState::Canceled
        | JobState::Expired => illegal(job),
    }
}

fn attempt_failed(job: &Job, failure: Failure, now: Timestamp) -> Outcome {
    match &job.state {
        JobState::Assigned(_) | JobState::Starting(_) | JobState::Running(_) => {
            applied(retried(job, failure, now))
        }
        JobState::Canceling { cause, .. } => applied(moved(job, after_stop(cause), now)),
        // A granted attempt cannot fail any more: somebody else publishes what it sealed.
        JobState::Finalizing { .. }
        | JobState::Held { .. }
        | JobState::Queued { .. }
        | JobState::Succeeded { .. }
        | JobState::Failed { .. }
        | JobState::Canceled
        | JobState::Expired => illegal(job),
    }
}

fn retried(job: &Job, failure: Failure, now: Timestamp) -> Job {
    let (user, infrastructure) = (job.user_retries, job.infrastructure_retries);
    let requeued = |taken: u32| {
        let not_before = Some(now.after(pause(taken)));
        moved(job, JobState::Queued { not_before, last_failure: Some(failure.clone()) }, now)
    };
    match failure.class.retry_budget() {
        RetryBudget::User if user < job.spec.retry.user => Job { user_retries: user + 1, ..requeued(user) },
        RetryBudget::Infrastructure if infrastructure < job.spec.retry.infrastructure => {
            Job { infrastructure_retries: infrastructure + 1, ..requeued(infrastructure) }
        }
        RetryBudget::User | RetryBudget::Infrastructure | RetryBudget::None => {
            moved(job, JobState::Failed { failure }, now)
        }
    }
}

/// Pause before the next attempt: 1 s, doubled with each retry taken before from the same budget, at most a minute.
fn pause(retries_taken: u32) -> Duration {
    Duration::from_secs(1 << retries_taken.min(6)).min(LONGEST_PAUSE)
}

fn interrupted(job: &Job, failure: Failure, now: Timestamp) -> Outcome {
    match &job.state {
        JobState::Assigned(_) | JobState::Starting(_) | JobState::Running(_) => {
            let queued = JobState::Queued { not_before: None, last_failure: Some(failure) };
            applied(moved(job, queued, now))
        }
        JobState::Canceling { cause, .. } => applied(moved(job, after_stop(cause), now)),
        JobState::Finalizing { .. }
        | JobState::Held { .. }
        | JobState::Queued { .. }
        | JobState::Succeeded { .. }
        | JobState::Failed { .. }
        | JobState::Canceled
        | JobState::Expired => illegal(job),
    }
}

fn cancel(job: &Job, cause: StopCause, now: Timestamp) -> Outcome {
    match &job.state {
        JobState::Held { .. } | JobState::Queued { .. } => applied(moved(job, after_stop(&cause), now)),
        JobState::Assigned(run) | JobState::Starting(run) | JobState::Running(run) => {
            applied(moved(job, JobState::Canceling { run: *run, cause }, now))
        }
        JobState::Canceling { .. } | JobState::Canceled => Outcome::Stale,
        JobState::Finalizing { .. }
        | JobState::Succeeded { .. }
        | JobState::Failed { .. }
        | JobState::Expired => illegal(job),
    }
}

fn stopped(job: &Job, now: Timestamp) -> Outcome {
    match &job.state {
        JobState::Canceling { cause, .. } => applied(moved(job, after_stop(cause), now)),
        JobState::Assigned(_)
        | JobState::Starting(_)
        | JobState::Running(_)
        | JobState::Finalizing { .. }
        | JobState::Held { .. }
        | JobState::Queued { .. }
        | JobState::Succeeded { .. }
        | JobState::Failed { .. }
        | JobState::Canceled
        | JobState::Expired => illegal(job),
    }
}

fn after_stop(cause: &StopCause) -> JobState {
    match cause {
        StopCause::Requested => JobState::Canceled,
        StopCause::TotalTimeout => {
            let message = "the job took longer than its total timeout; raise `timeouts.total_seconds` or give it more capacity";
            JobState::Failed { failure: Failure::new(FailureClass::Policy, "total_timeout", message) }
        }
    }
}

/// A timer set for an earlier stay in the queue may fire in a later one: the deadline decides, not the message.
fn queue_timeout(job: &Job, now: Timestamp) -> Outcome {
    match job.state.name() {
        StateName::Queued if has_passed(job.queue_deadline(), now) => {
            applied(moved(job, JobState::Expired, now))
        }
        StateName::Queued | StateName::Expired => Outcome::Stale,
        StateName::Held
        | StateName::Assigned
        | StateName::Starting
        | StateName::Running
        | StateName::Finalizing
        | StateName::Canceling
        | StateName::Succeeded
        | StateName::Failed
        | StateName::Canceled => illegal(job),
    }
}

fn total_timeout(job: &Job, now: Timestamp) -> Outcome {
    if has_passed(job.total_deadline(), now) {
        cancel(job, StopCause::TotalTimeout, now)
    } else if job.state.name().is_terminal() || job.state.name() == StateName::Finalizing {
        illegal(job)
    } else {
        Outcome::Stale
    }
}

fn has_passed(deadline: Option<Timestamp>, now: Timestamp) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}

/// Whether a change from one state to the other is drawn in SPEC 3; for tests and for readers.
pub fn is_drawn(from: StateName, to: StateName) -> bool {
    use StateName as S;
    match from {
        S::Held => matches!(to, S::Queued | S::Canceled | S::Failed),
        S::Queued => matches!(to, S::Held | S::Assigned | S::Canceled | S::Expired | S::Failed),
        S::Assigned => {
            matches!(to, S::Starting | S::Running | S::Finalizing | S::Queued | S::Canceling | S::Failed)
        }
        S::Starting => matches!(to, S::Running | S::Finalizing | S::Queued | S::Canceling | S::Failed),
        S::Running => matches!(to, S::Finalizing | S::Queued | S::Canceling | S::Failed),
        S::Finalizing => matches!(to, S::Succeeded | S::Failed),
        S::Canceling => matches!(to, S::Canceled | S::Failed),
        S::Succeeded | S::Failed | S::Canceled | S::Expired => false,
    }
}

/// The number an attempt would get if the job were assigned now.
pub fn next_attempt(job: &Job) -> AttemptNumber {
    job.attempts.next()
}

#[cfg(test)]
mod tests;
