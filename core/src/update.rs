//! The one loop that changes jobs: read, decide, write on the version that was read, again when somebody was faster.
//!
//! Each change writes the job, its history and, where the attempt is touched, the attempt in one transaction. Every try
//! of one call carries the same token in the history row, so that after an unknown result the reader can tell its own
//! change from one that looks the same.
//!
//! Invariant: history is gap-free: version n of a job has the history row n. Invariant: record first, then hint.

use serde::{Deserialize, Serialize};
use telecine_domain::attempt::{Attempt, AttemptId, Counters, Ending, Phase};
use telecine_domain::failure::Failure;
use telecine_domain::id::{AccountId, AttemptNumber, Epoch, InstanceId, JobId};
use telecine_domain::job::{Job, JobState, StateName};
use telecine_domain::time::Timestamp;
use telecine_domain::transition::{JobEvent, Outcome, apply};

use crate::backend::Backend;
use crate::job_row::{self, Recorded};
use crate::layout;
use crate::ports::table::{Condition, TableError, Write};
use crate::record::{self, RecordError};

/// What happened to a job, for its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the variants of JobEvent say what each means")]
pub enum Happened {
    Accepted,
    Held,
    Released,
    DependenciesDone,
    DependencyFailed,
    Assigned,
    Started,
    EngineRunning,
    Granted,
    Published,
    SealedBytesLost,
    AttemptFailed,
    Interrupted,
    CancelRequested,
    Stopped,
    QueueTimeout,
    TotalTimeout,
    Edited,
}

/// One change of a job, as its history keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRecord {
    /// The job's version after the change.
    pub version: u64,
    /// When.
    pub at: Timestamp,
    /// What happened.
    pub event: Happened,
    /// The state after it.
    pub state: StateName,
    /// The job's last attempt, 0 before the first.
    pub attempt: AttemptNumber,
    /// The job's last epoch, 0 before the first.
    pub epoch: Epoch,
    /// Where that attempt runs, while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// What went wrong, when something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Tells the call that made the change from all others; means nothing to people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
}

/// What is done to the record of the attempt along with the job.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptStep {
    /// Nothing.
    Keep,
    /// A new one begins.
    Lease,
    /// It enters a phase.
    Enter(Phase),
    /// It is over.
    End(Ending),
}

/// What is asked for: an event, and what it means for the attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What happened.
    pub event: JobEvent,
    /// What becomes of the attempt.
    pub attempt: AttemptStep,
    /// What its worker counted, where it said so.
    pub counters: Option<Counters>,
    /// What else belongs in the transaction.
    pub(crate) writes: Vec<Write>,
}

impl From<JobEvent> for Step {
    fn from(event: JobEvent) -> Self {
        let attempt = match &event {
            JobEvent::Assign { .. } => AttemptStep::Lease,
            JobEvent::EngineRunning { .. } => AttemptStep::Enter(Phase::Running),
            JobEvent::Grant { .. } => AttemptStep::Enter(Phase::Flushing),
            JobEvent::Published { .. } => AttemptStep::End(Ending::Succeeded),
            JobEvent::SealedBytesLost { failure, .. } | JobEvent::AttemptFailed { failure, .. } => {
                AttemptStep::End(Ending::Failed(failure.clone()))
            }
            JobEvent::Interrupted { failure, .. } => AttemptStep::End(Ending::Interrupted(failure.clone())),
            JobEvent::Stopped { .. } => AttemptStep::End(Ending::Canceled),
            JobEvent::Hold(_)
            | JobEvent::Release
            | JobEvent::DependenciesDone
            | JobEvent::DependencyFailed { .. }
            | JobEvent::Started { .. }
            | JobEvent::Cancel
            | JobEvent::QueueTimeout
            | JobEvent::TotalTimeout => AttemptStep::Keep,
        };
        Self { event, attempt, counters: None, writes: Vec::new() }
    }
}

impl Step {
    /// The same, with the attempt ending in this way.
    #[must_use]
    pub fn ending(self, ending: Ending) -> Self {
        Self { attempt: AttemptStep::End(ending), ..self }
    }

    /// The same, with what the worker counted.
    #[must_use]
    pub fn counting(self, counters: Option<Counters>) -> Self {
        Self { counters, ..self }
    }
}

/// A change that is recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The job before.
    pub before: Job,
    /// The job after.
    pub after: Job,
}

/// A change that is not recorded.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It belongs to an epoch that has no right any more, or asks for what is already so. Normal; counted by callers.
    #[error("the change of {job} is stale: it is {state} already, or another attempt has the right to it")]
    Stale {
        /// The job.
        job: JobId,
        /// The state it is in.
        state: StateName,
    },
    /// The job's state does not allow it. Normal; counted by callers.
    #[error("{job} is {state}: that cannot be done any more or not yet")]
    Illegal {
        /// The job.
        job: JobId,
        /// The state it is in.
        state: StateName,
    },
    /// The job was changed since the caller read it.
    #[error("{job} was changed since you read it: it has version {version} now")]
    Outdated {
        /// The job.
        job: JobId,
        /// Its version now.
        version: u64,
    },
    /// There is no such job.
    #[error("there is no job {0}")]
    NotFound(JobId),
    /// The records were out of reach; nobody knows more than the records say.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Applies to the job what `decide` asks for, until it is recorded or cannot be. `decide` is asked again with the job
/// as it is each time somebody was faster.
///
/// # Errors
/// `Stale`, `Illegal`, `NotFound`, `Record`.
pub async fn change<S: Into<Step>>(
    backend: &Backend,
    job: JobId,
    now: Timestamp,
    mut decide: impl FnMut(&Job) -> S,
) -> Result<Change, ChangeError> {
    let decide = |recorded: &Recorded| {
        let before = &recorded.job;
        let step: Step = decide(before).into();
        let event = happened(&step.event);
        let failure = failure_of(&step.event);
        match apply(before, step.event, now) {
            Outcome::Applied(after) => {
                let (attempt, counters, writes) = (step.attempt, step.counters, step.writes);
                Ok(Next { after: *after, event, failure, attempt, counters, writes })
            }
            Outcome::Stale => Err(ChangeError::Stale { job, state: before.state.name() }),
            Outcome::Illegal { state } => Err(ChangeError::Illegal { job, state }),
        }
    };
    transition(backend, job, now, decide).await
}

/// Changes what people may change of a job that waits. `edit` gives the job after it (its version is set here), or why
/// not.
pub(crate) async fn edit(
    backend: &Backend,
    job: JobId,
    now: Timestamp,
    mut edit: impl FnMut(&Job) -> Result<Job, ChangeError>,
) -> Result<Change, ChangeError> {
    let decide = |recorded: &Recorded| {
        let after = Job { version: recorded.job.version + 1, ..edit(&recorded.job)? };
        Ok(Next {
            after,
            event: Happened::Edited,
            failure: None,
            attempt: AttemptStep::Keep,
            counters: None,
            writes: Vec::new(),
        })
    };
    transition(backend, job, now, decide).await
}

/// The writes of a job that is accepted: itself and the beginning of its history.
pub(crate) async fn accepted(
    backend: &Backend,
    recorded: &Recorded,
    token: &str,
) -> Result<[Write; 2], RecordError> {
    let job = &recorded.job;
    let history = record_of(job, Happened::Accepted, None, token, job.created_at);
    Ok([
        record::put(job_row::write(&backend.system, recorded).await?, Condition::Absent),
        record::put_new(layout::history(job.id, job.account, 1), &history)?,
    ])
}

/// Wakes the managers of the jobs' region. A hint that is lost costs a sweep, so this never fails.
pub(crate) async fn hint(backend: &Backend, jobs: &[&Job]) {
    let mut by_region = std::collections::BTreeMap::<_, Vec<JobId>>::new();
    for job in jobs {
        by_region.entry(&job.spec.region).or_default().push(job.id);
    }
    for (region, ids) in by_region {
        if let Err(error) = backend.queue.send(region, &ids).await {
            tracing::warn!(%region, jobs = ids.len(), %error, "hints were not sent; the sweep will find the jobs");
        }
    }
}

/// What a change consists of.
struct Next {
    after: Job,
    event: Happened,
    failure: Option<Failure>,
    attempt: AttemptStep,
    counters: Option<Counters>,
    writes: Vec<Write>,
}

/// Whose a version of a job is.
enum Author {
    Ours,
    Theirs,
    /// The version is not there (yet).
    Nobody,
}

async fn transition(
    backend: &Backend,
    job: JobId,
    now: Timestamp,
    mut decide: impl FnMut(&Recorded) -> Result<Next, ChangeError>,
) -> Result<Change, ChangeError> {
    let token = format!("{:032x}", rand::random::<u128>());
    let mut doubtful: Option<Change> = None;
    let mut last = None;
    for tried in 0..record::TRIES {
        let recorded = job_row::load(backend, job).await?.ok_or(ChangeError::NotFound(job))?;
        if let Some(change) = doubtful.take() {
            match author(backend, &change.after, &token).await? {
                Author::Ours => return Ok(announce(backend, change).await),
                Author::Theirs => {}
                Author::Nobody => doubtful = Some(change),
            }
        }
        let next = decide(&recorded)?;
        let change = Change { before: recorded.job.clone(), after: next.after.clone() };
        let writes = writes_of(backend, &recorded, next, &token, now).await?;
        match backend.table.transact(writes).await {
            Ok(()) => return Ok(announce(backend, change).await),
            Err(error @ TableError::Unknown(_)) => {
                doubtful = Some(change);
                last = Some(error);
            }
            Err(error @ TableError::Invalid(_)) => return Err(RecordError::from(error).into()),
            Err(error @ (TableError::Unavailable(_) | TableError::Condition { .. })) => last = Some(error),
        }
        record::pause(tried).await;
    }
    match last.expect("tried at least once") {
        TableError::Condition { .. } => {
            let contended = RecordError::Contended {
                partition: layout::job_partition(job),
                sort: layout::JOB.to_owned(),
            };
            Err(contended.into())
        }
        error => Err(RecordError::from(error).into()),
    }
}

async fn author(backend: &Backend, after: &Job, token: &str) -> Result<Author, RecordError> {
    let key = layout::history(after.id, after.account, after.version);
    let found = record::get::<JobRecord>(backend.table.as_ref(), &key).await?;
    Ok(match found {
        Some(found) if found.value.token == token => Author::Ours,
        Some(_) => Author::Theirs,
        None => Author::Nobody,
    })
}

async fn writes_of(
    backend: &Backend,
    recorded: &Recorded,
    next: Next,
    token: &str,
    now: Timestamp,
) -> Result<Vec<Write>, RecordError> {
    let (before, after) = (&recorded.job, &next.after);
    let history = record_of(after, next.event, next.failure.clone(), token, now);
    let attempt = attempt_write(backend, before, &next, now).await?;
    let row = Recorded { job: after.clone(), factory: recorded.factory };
    let mut writes = vec![
        record::put(job_row::write(&backend.system, &row).await?, Condition::Version(before.version)),
        record::put_new(layout::history(after.id, after.account, after.version), &history)?,
    ];
    writes.extend(attempt);
    writes.extend(next.writes);
    Ok(writes)
}

async fn attempt_write(
    backend: &Backend,
    before: &Job,
    next: &Next,
    now: Timestamp,
) -> Result<Option<Write>, RecordError> {
    if let (AttemptStep::Lease, Some(id), Some(run)) =
        (&next.attempt, next.after.live_attempt(), next.after.state.run())
    {
        let key = layout::attempt(id.job, before.account, id.attempt);
        return Ok(Some(record::put_new(key, &Attempt::leased(id, run.instance, now))?));
    }
    let Some(id) = before.live_attempt() else { return Ok(None) };
    if next.attempt == AttemptStep::Keep && next.counters.is_none() {
        return Ok(None);
    }
    let Some((mut attempt, version)) = find_attempt(backend, before.account, id).await? else {
        return Ok(None);
    };
    let moved = match next.attempt.clone() {
        AttemptStep::Keep | AttemptStep::Lease => false,
        AttemptStep::Enter(phase) => attempt.enter(phase, now),
        AttemptStep::End(ending) => attempt.end(ending, now),
    };
    if next.counters.is_some() {
        attempt.counters = next.counters;
    }
    let changed = moved || next.counters.is_some();
    changed.then(|| attempt_put(before.account, &attempt, version)).transpose()
}

/// The record of an attempt and its version.
pub(crate) async fn find_attempt(
    backend: &Backend,
    account: AccountId,
    id: AttemptId,
) -> Result<Option<(Attempt, u64)>, RecordError> {
    let key = layout::attempt(id.job, account, id.attempt);
    let found = record::get::<Attempt>(backend.table.as_ref(), &key).await?;
    Ok(found.map(|found| (found.value, found.version)))
}

/// The write that puts `attempt` in place of its version `version`.
pub(crate) fn attempt_put(account: AccountId, attempt: &Attempt, version: u64) -> Result<Write, RecordError> {
    let key = layout::attempt(attempt.id.job, account, attempt.id.attempt);
    Ok(record::put(record::row(key, version + 1, attempt)?, Condition::Version(version)))
}

/// Those who wait for a job or stop it look at it at once; an assignment is the manager's own and wakes nobody.
async fn announce(backend: &Backend, change: Change) -> Change {
    let concerns_manager = match (&change.before.state, &change.after.state) {
        (_, JobState::Queued { .. } | JobState::Canceling { .. }) => true,
        (JobState::Queued { .. }, after) => !matches!(after, JobState::Assigned(_)),
        _ => false,
    };
    if concerns_manager {
        hint(backend, &[&change.after]).await;
    }
    change
}

fn record_of(job: &Job, event: Happened, failure: Option<Failure>, token: &str, at: Timestamp) -> JobRecord {
    JobRecord {
        version: job.version,
        at,
        event,
        state: job.state.name(),
        attempt: job.attempts,
        epoch: job.epoch,
        instance: job.state.run().map(|run| run.instance),
        failure,
        token: token.to_owned(),
    }
}

fn happened(event: &JobEvent) -> Happened {
    match event {
        JobEvent::Hold(_) => Happened::Held,
        JobEvent::Release => Happened::Released,
        JobEvent::DependenciesDone => Happened::DependenciesDone,
        JobEvent::DependencyFailed { .. } => Happened::DependencyFailed,
        JobEvent::Assign { .. } => Happened::Assigned,
        JobEvent::Started { .. } => Happened::Started,
        JobEvent::EngineRunning { .. } => Happened::EngineRunning,
        JobEvent::Grant { .. } => Happened::Granted,
        JobEvent::Published { .. } => Happened::Published,
        JobEvent::SealedBytesLost { .. } => Happened::SealedBytesLost,
        JobEvent::AttemptFailed { .. } => Happened::AttemptFailed,
        JobEvent::Interrupted { .. } => Happened::Interrupted,
        JobEvent::Cancel => Happened::CancelRequested,
        JobEvent::Stopped { .. } => Happened::Stopped,
        JobEvent::QueueTimeout => Happened::QueueTimeout,
        JobEvent::TotalTimeout => Happened::TotalTimeout,
    }
}

fn failure_of(event: &JobEvent) -> Option<Failure> {
    match event {
        JobEvent::SealedBytesLost { failure, .. }
        | JobEvent::AttemptFailed { failure, .. }
        | JobEvent::DependencyFailed { failure }
        | JobEvent::Interrupted { failure, .. } => Some(failure.clone()),
        JobEvent::Hold(_)
        | JobEvent::Release
        | JobEvent::DependenciesDone
        | JobEvent::Assign { .. }
        | JobEvent::Started { .. }
        | JobEvent::EngineRunning { .. }
        | JobEvent::Grant { .. }
        | JobEvent::Published { .. }
        | JobEvent::Cancel
        | JobEvent::Stopped { .. }
        | JobEvent::QueueTimeout
        | JobEvent::TotalTimeout => None,
    }
}
