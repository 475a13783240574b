//! Why a job waits, or how it ended: one reason, what blocks it, the nearest instance and pools, its position, when it is
//! expected to start, and the cheapest thing that would help.
//!
//! Pure: the caller brings the job and the facts. What is told of the queue is what rows can tell exactly: which jobs
//! surely go first, and how many more may, by the fair share between accounts, which only the manager knows.

mod blocked;
mod limit;
mod pools;
mod text;

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureClass};
use crate::forecast::{Start, UnknownStart};
use crate::id::{InstanceId, JobId, PoolName};
use crate::instance::Instance;
use crate::job::{HoldReason, Job, JobState, MAX_PRIORITY, StateName};
use crate::placement::{Candidate, Policy, Refusal, Request, place};
use crate::resources::{ResourceKind, Resources};
use crate::time::Timestamp;

pub use limit::{Counts, ReachedLimit};
pub use pools::{AskedPool, Closed, NeverFits, PoolAnswer, PoolNow, launchable};

/// The one reason, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// It is held until somebody releases it.
    Held,
    /// It is held until the jobs that it depends on have succeeded.
    WaitsForJobs,
    /// It pauses after a failure.
    PausedAfterFailure,
    /// As many attempts of its factory or account run as may.
    LimitReached,
    /// The region has no instance.
    NoInstance,
    /// No instance can run such engines.
    NoRuntime,
    /// It needs more than any instance or pool has.
    TooLarge,
    /// An instance that would take it is starting.
    InstanceStarting,
    /// A pool would launch an instance that takes it.
    InstanceWanted,
    /// Every pool that would take it is full, closed, or at a cap.
    PoolsClosed,
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

/// The instance that would take the job now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taker {
    /// Which one.
    pub instance: InstanceId,
    /// Its pool.
    pub pool: PoolName,
    /// Its host, for people.
    pub host: String,
}

/// Where a job stands among those that wait and may run now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Jobs that go before it for certain: more important ones, and older ones of its account that are as important.
    pub before: u64,
    /// Jobs of other accounts that are as important: each account's fair share decides.
    pub perhaps_before: u64,
    /// Whether there are more than were counted.
    pub is_partial: bool,
    /// The highest priority of those before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_priority: Option<u16>,
}

/// A job that another depends on, and that has not succeeded yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dependency {
    /// Which one.
    pub job: JobId,
    /// Where it is; absent when it is not kept any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateName>,
}

/// What is known beside the job.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The instances of its region.
    pub instances: &'a [Instance],
    /// The pools of its region.
    pub pools: &'a [PoolNow],
    /// Where it stands.
    pub position: Position,
    /// The limit that keeps it back, if one does.
    pub limit: Option<ReachedLimit>,
    /// When it is expected to start, if nothing but capacity keeps it.
    pub start: Start,
    /// Those of its dependencies that have not succeeded.
    pub dependencies: &'a [Dependency],
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
    /// The limit that keeps it from running, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<ReachedLimit>,
    /// The jobs that it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<Dependency>,
    /// The instance that comes nearest, where one was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
    /// The instance that would take it, where one would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taker: Option<Taker>,
    /// Every refusal, the nearest first, at most [`MAX_REFUSALS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// The pools of its region, the nearest first, at most [`MAX_REFUSALS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<AskedPool>,
    /// Where it stands, while it is queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// When it is expected to start, while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
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

/// Most dependencies that are named in a summary.
const MAX_NAMED: usize = 3;
/// Most refusals that are told one by one.
pub const MAX_REFUSALS: usize = 20;

/// Explains where `job` is.
pub fn explain(job: &Job, facts: &Facts<'_>, now: Timestamp) -> Explanation {
    let (code, summary, next_step) = told(job, now);
    let mut explanation = Explanation {
        job: job.id,
        state: job.state.name(),
        code,
        summary,
        need: job.spec.resources,
        blocking: None,
        limit: None,
        dependencies: Vec::new(),
        nearest: None,
        taker: None,
        refusals: Vec::new(),
        pools: Vec::new(),
        position: None,
        start: None,
        not_before: None,
        failure: None,
        next_step,
    };
    match &job.state {
        JobState::Queued { not_before, last_failure } => {
            explanation.position = Some(facts.position);
            explanation.start = Some(facts.start);
            explanation.not_before = not_before.filter(|&time| time > now);
            explanation.failure.clone_from(last_failure);
            explain_queued(&mut explanation, job, facts);
        }
        JobState::Held { reason } => {
            explanation.start = Some(Start::Unknown { because: UnknownStart::NoTime });
            if *reason == HoldReason::Dependencies {
                explain_dependencies(&mut explanation, facts.dependencies);
            }
        }
        JobState::Failed { failure } => explanation.failure = Some(failure.clone()),
        JobState::Assigned(_)
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
        JobState::Held { reason: HoldReason::Manual } => say(
            ReasonCode::Held,
            "the job is held and does not stand in the queue".to_owned(),
            "release the job to let it into the queue",
        ),
        JobState::Held { reason: HoldReason::Dependencies } => say(
            ReasonCode::WaitsForJobs,
            "the jobs that it depends on have just succeeded".to_owned(),
            "wait until the manager has seen it, which takes seconds",
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

/// Names the jobs that are waited for, the first of them.
fn explain_dependencies(explanation: &mut Explanation, dependencies: &[Dependency]) {
    let Some(first) = dependencies.first() else { return };
    let named = dependencies.iter().take(MAX_NAMED).map(|dependency| match dependency.state {
        Some(state) => format!("{} ({state})", dependency.job),
        None => format!("{} (not kept any more)", dependency.job),
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let more = match dependencies.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    explanation.summary = format!("it depends on jobs that have not succeeded yet: {named}{more}");
    explanation.next_step =
        format!("wait, or see what keeps the first: `telecine jobs explain {}`", first.job);
    explanation.dependencies = dependencies.to_vec();
}

/// What keeps a queued job from running: a pause, then a limit, then want of room, then its turn.
fn explain_queued(explanation: &mut Explanation, job: &Job, facts: &Facts<'_>) {
    let request = Request::of(&job.spec);
    let placed = place(&request, facts.instances.iter().map(Candidate::from), &Policy::default());
    explanation.pools = pools::ask(&request, facts.pools, facts.instances);
    explanation.pools.truncate(MAX_REFUSALS);
    let found = |id| facts.instances.iter().find(|instance| instance.profile.id == id);
    if let Some(instance) = placed.as_ref().ok().and_then(|id| found(*id)) {
        let (instance, pool, host) =
            (instance.profile.id, instance.profile.pool.clone(), instance.profile.host.clone());
        explanation.taker = Some(Taker { instance, pool, host });
    }
    if explanation.not_before.is_some() {
        return;
    }
    if let Some(limit) = facts.limit {
        explanation.limit = Some(limit);
        explanation.start = Some(Start::Unknown { because: UnknownStart::NoTime });
        return limit::explain(explanation, limit);
    }
    match placed {
        Ok(_) => explanation.next_step = its_turn(&facts.position),
        Err(unplaceable) => blocked::explain(explanation, &request, job, facts, unplaceable),
    }
}

/// What would let it go first, if anything.
fn its_turn(position: &Position) -> String {
    match position.highest_priority {
        Some(highest) if position.before > 0 && highest < MAX_PRIORITY => {
            format!("raise the job's priority above {highest} to let it go first")
        }
        Some(_) | None => String::new(),
    }
}

fn plural(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

#[cfg(test)]
mod tests;
