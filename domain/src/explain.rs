//! Why a job waits, or how it ended: one reason, what blocks it, the nearest instance and the next step.
//!
//! Pure: the caller brings the job, the instances' records and how many jobs stand before it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureClass};
use crate::id::JobId;
use crate::instance::{Instance, RuntimeKind};
use crate::job::{Job, JobState, StateName};
use crate::placement::{Candidate, Policy, Refusal, RefusalReason, Request, place};
use crate::resources::{ResourceKind, Resources};
use crate::time::Timestamp;

/// The one reason, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// It is held until somebody releases it.
    Held,
    /// It pauses after a failure.
    PausedAfterFailure,
    /// The region has no instance.
    NoInstance,
    /// No instance can run such engines.
    NoRuntime,
    /// It needs more than any instance has.
    TooLarge,
    /// Every instance that is large enough is away, unhealthy or draining.
    NoneReady,
    /// Every instance that is large enough is used by other jobs.
    AllBusy,
    /// It would fit and waits for its turn.
    WaitsForTurn,
    /// An instance has it; the engine does not work yet.
    Starting,
    /// The engine works.
    Running,
    /// The outputs are being published.
    Finalizing,
    /// It is being stopped.
    Canceling,
    /// It is done.
    Succeeded,
    /// It failed.
    Failed,
    /// Somebody canceled it.
    Canceled,
    /// It waited longer than it may.
    Expired,
}

/// The resource that keeps a job from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blocking {
    /// Which one.
    pub resource: ResourceKind,
    /// What the job needs of it, in the resource's unit.
    pub need: u64,
    /// What the nearest instance has of it (`too_large`) or has free of it (`all_busy`).
    pub there: u64,
}

/// The instance that comes nearest to taking the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nearest {
    /// Which one, and why it does not.
    pub refusal: Refusal,
    /// What it has.
    pub capacity: Resources,
    /// What of that is free.
    pub free: Resources,
}

/// The answer to "why".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    /// The job.
    pub job: JobId,
    /// The state it is in.
    pub state: StateName,
    /// The reason, for programs.
    pub code: ReasonCode,
    /// The reason, for people: one sentence.
    pub summary: String,
    /// What it needs.
    pub need: Resources,
    /// The resource that keeps it from running, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocking: Option<Blocking>,
    /// The instance that comes nearest, where one was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
    /// Every refusal, the nearest first, at most [`MAX_REFUSALS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// Jobs before it in the queue, while it is queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_ahead: Option<u64>,
    /// Not before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// What failed: the job, or its last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What would help, for people; empty when nothing needs to be done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next_step: String,
}

/// Most refusals that are told one by one.
pub const MAX_REFUSALS: usize = 20;

/// Explains where `job` is. `instances` are those of its region; `queued_ahead` counts the jobs before it.
pub fn explain(job: &Job, instances: &[Instance], queued_ahead: u64, now: Timestamp) -> Explanation {
    let (code, summary, next_step) = told(job, now);
    let mut explanation = Explanation {
        job: job.id,
        state: job.state.name(),
        code,
        summary,
        need: job.spec.resources,
        blocking: None,
        nearest: None,
        refusals: Vec::new(),
        queued_ahead: None,
        not_before: None,
        failure: None,
        next_step,
    };
    match &job.state {
        JobState::Queued { not_before, last_failure } => {
            explanation.queued_ahead = Some(queued_ahead);
            explanation.not_before = not_before.filter(|&time| time > now);
            explanation.failure.clone_from(last_failure);
            if explanation.not_before.is_none() {
                explain_queued(&mut explanation, job, instances);
            }
        }
        JobState::Failed { failure } => explanation.failure = Some(failure.clone()),
        JobState::Held { .. }
        | JobState::Assigned(_)
        | JobState::Starting(_)
        | JobState::Running(_)
        | JobState::Finalizing { .. }
        | JobState::Canceling { .. }
        | JobState::Succeeded { .. }
        | JobState::Canceled
        | JobState::Expired => {}
    }
    explanation
}

/// What can be said from the job alone.
fn told(job: &Job, now: Timestamp) -> (ReasonCode, String, String) {
    let say = |code, summary: String, next: &str| (code, summary, next.to_owned());
    match &job.state {
        JobState::Held { .. } => say(
            ReasonCode::Held,
            "the job is held and does not stand in the queue".to_owned(),
            "release the job to let it into the queue",
        ),
        JobState::Queued { not_before, .. } => {
            let summary = match not_before.filter(|&time| time > now) {
                Some(time) => format!("the last attempt failed; the next one starts at {time} or later"),
                None => "the job fits free capacity and waits for its turn".to_owned(),
            };
            let paused = not_before.is_some_and(|time| time > now);
            say(if paused { ReasonCode::PausedAfterFailure } else { ReasonCode::WaitsForTurn }, summary, "")
        }
        JobState::Assigned(run) | JobState::Starting(run) => {
            let summary = format!("attempt {} is being prepared on {}", run.attempt, run.instance);
            say(ReasonCode::Starting, summary, "")
        }
        JobState::Running(run) => {
            let summary = format!("attempt {} runs on {} since {}", run.attempt, run.instance, run.since);
            say(ReasonCode::Running, summary, "")
        }
        JobState::Finalizing { run, manifest } => {
            let objects = plural(manifest.objects.len(), "output");
            let summary = format!("attempt {} has made {objects}, which are being published", run.attempt);
            say(ReasonCode::Finalizing, summary, "")
        }
        JobState::Canceling { run, .. } => {
            let summary = format!("attempt {} on {} is being stopped", run.attempt, run.instance);
            say(ReasonCode::Canceling, summary, "")
        }
        JobState::Succeeded { attempt, manifest } => {
            let objects = plural(manifest.objects.len(), "output");
            say(ReasonCode::Succeeded, format!("attempt {attempt} succeeded and published {objects}"), "")
        }
        JobState::Failed { failure } => {
            let attempts = plural(job.attempts.0 as usize, "attempt");
            let summary = format!("the job failed after {attempts}: {failure}");
            say(ReasonCode::Failed, summary, next_step_after(failure))
        }
        JobState::Canceled => say(
            ReasonCode::Canceled,
            format!("the job was canceled at {}", job.state_since),
            "retry the job to run it after all",
        ),
        JobState::Expired => say(
            ReasonCode::Expired,
            format!("the job waited longer than its queue timeout and expired at {}", job.state_since),
            "retry the job with a longer `timeouts.queue_seconds`, or add capacity",
        ),
    }
}

fn next_step_after(failure: &Failure) -> &'static str {
    match failure.class {
        FailureClass::Input => "mend the input or the composition, then submit a new job",
        FailureClass::Engine => {
            "read the engine's log, then retry the job, with another engine version if the engine is at fault"
        }
        FailureClass::Infrastructure => "retry the job; if it fails again, look at the instance it ran on",
        FailureClass::Policy => "raise the limit that is named, then retry the job",
        FailureClass::Internal => "retry the job and report the failure: it is a defect of Telecine",
    }
}

/// What keeps a queued job, that may run now, from running.
fn explain_queued(explanation: &mut Explanation, job: &Job, instances: &[Instance]) {
    let request = Request::of(&job.spec);
    let Err(unplaceable) = place(&request, instances.iter().map(Candidate::from), &Policy::default()) else {
        explanation.next_step = match explanation.queued_ahead {
            Some(0) | None => String::new(),
            Some(_) => "raise the job's priority to let it go first".to_owned(),
        };
        return;
    };
    explanation.nearest = unplaceable.nearest().and_then(|refusal| {
        let instance = instances.iter().find(|instance| instance.profile.id == refusal.instance)?;
        let capacity = instance.profile.capacity;
        let free = capacity.saturating_sub(&instance.allocated);
        Some(Nearest { refusal: refusal.clone(), capacity, free })
    });
    let said = match &explanation.nearest {
        Some(nearest) => refused(&request, nearest, instances.len()),
        None => Said {
            code: ReasonCode::NoInstance,
            blocking: None,
            summary: format!("region {} has no instance", job.spec.region),
            next_step: "start an agent in the region, or submit the job to a region that has instances"
                .to_owned(),
        },
    };
    explanation.code = said.code;
    explanation.blocking = said.blocking;
    explanation.summary = said.summary;
    explanation.next_step = said.next_step;
    explanation.refusals = unplaceable.refusals;
    explanation.refusals.truncate(MAX_REFUSALS);
}

struct Said {
    code: ReasonCode,
    blocking: Option<Blocking>,
    summary: String,
    next_step: String,
}

/// The nearest instance speaks for all: the others are further away.
fn refused(request: &Request, nearest: &Nearest, instances: usize) -> Said {
    let host = &nearest.refusal.host;
    let (code, blocking, summary, next_step) = match &nearest.refusal.reason {
        RefusalReason::Busy { resource, need, free } => (
            ReasonCode::AllBusy,
            Some(Blocking { resource: *resource, need: *need, there: *free }),
            format!(
                "no instance has enough {} free: the job needs {}, {host} has {} free",
                resource.name(),
                resource.display(*need),
                resource.display(*free)
            ),
            format!("wait until running jobs end, add an instance, or lower the job's {}", resource.name()),
        ),
        RefusalReason::TooSmall { resource, need, capacity } => (
            ReasonCode::TooLarge,
            Some(Blocking { resource: *resource, need: *need, there: *capacity }),
            format!(
                "no instance is large enough: the job needs {} of {}, the nearest, {host}, has {}",
                resource.display(*need),
                resource.name(),
                resource.display(*capacity)
            ),
            format!(
                "lower the job's {0} to {1} or less, or add an instance with at least {2} of {0}",
                resource.name(),
                resource.display(*capacity),
                resource.display(*need)
            ),
        ),
        RefusalReason::RuntimeMissing { .. } => {
            let (summary, next_step) = runtime_missing(request.runtime, instances);
            (ReasonCode::NoRuntime, None, summary, next_step)
        }
        reason @ (RefusalReason::NotReady { .. }
        | RefusalReason::Draining
        | RefusalReason::Cordoned
        | RefusalReason::Unhealthy { .. }) => (
            ReasonCode::NoneReady,
            None,
            format!("no instance that is large enough takes work now: of {host}, {reason}"),
            none_ready_step(reason, host),
        ),
    };
    Said { code, blocking, summary, next_step }
}

fn runtime_missing(runtime: RuntimeKind, instances: usize) -> (String, String) {
    let instances = plural(instances, "instance");
    match runtime {
        RuntimeKind::Docker => (
            format!("the engine is a container image, and Docker runs on none of {instances}"),
            "install and start Docker on an instance, then start its agent again; or choose an engine version \
             that is published as a command"
                .to_owned(),
        ),
        RuntimeKind::Process => (
            format!("the engine is a command of the machine, and none of {instances} runs such commands"),
            "allow the process runtime in an agent's configuration, or choose an engine version that is \
             published as an image"
                .to_owned(),
        ),
    }
}

fn none_ready_step(reason: &RefusalReason, host: &str) -> String {
    match reason {
        RefusalReason::Unhealthy { .. } => {
            format!("run `telecine doctor` on {host} and mend what it names, or add an instance")
        }
        RefusalReason::NotReady { .. } => {
            format!("start the agent on {host}, or mend its connection to the manager, or add an instance")
        }
        RefusalReason::Draining
        | RefusalReason::Cordoned
        | RefusalReason::RuntimeMissing { .. }
        | RefusalReason::TooSmall { .. }
        | RefusalReason::Busy { .. } => "add an instance".to_owned(),
    }
}

fn plural(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

/// Several lines, each `name: what`, without a newline at the end.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.job, self.state, self.summary)?;
        if self.state == StateName::Queued {
            write!(f, "\n  needs:     {}", self.need)?;
        }
        if let Some(nearest) = &self.nearest {
            let Refusal { host, pool, .. } = &nearest.refusal;
            write!(f, "\n  nearest:   {host} (pool {pool}) has {}", nearest.capacity)?;
            write!(f, "\n  free:      {}", nearest.free)?;
        }
        match self.queued_ahead {
            Some(0) => f.write_str("\n  position:  first in the queue")?,
            Some(ahead) => write!(f, "\n  position:  {} before it", plural_jobs(ahead))?,
            None => {}
        }
        if let (StateName::Queued, Some(failure)) = (self.state, &self.failure) {
            write!(f, "\n  last time: {failure}")?;
        }
        if !self.next_step.is_empty() {
            write!(f, "\n  next step: {}", self.next_step)?;
        }
        Ok(())
    }
}

fn plural_jobs(count: u64) -> String {
    plural(usize::try_from(count).unwrap_or(usize::MAX), "job")
}

#[cfg(test)]
mod tests;
