//! What a manager reads and records: which jobs wait and live, who got them, how their attempts went.
//!
//! Everything about an attempt names its epoch. A message of an attempt that lost its right ends in
//! `ChangeError::Stale`, which is a normal outcome: the caller counts it and goes on. Repeating what was recorded is
//! answered like the first time where somebody waits for the answer (`grant`, `published`).

use std::collections::BTreeMap;
use std::time::Duration;

use telecine_domain::attempt::{Attempt, AttemptId, Counters, Ending, Phase};
use telecine_domain::composition::Composition;
use telecine_domain::failure::Failure;
use telecine_domain::id::{InstanceId, JobId, RegionName, SlotName, StoreId};
use telecine_domain::job::{Job, JobState};
use telecine_domain::learn;
use telecine_domain::location::Location;
use telecine_domain::manifest::{InvalidManifest, Manifest, SealedObject};
use telecine_domain::store::Store;
use telecine_domain::time::Timestamp;
use telecine_domain::transition::JobEvent;
use tracing::error;

use crate::backend::Backend;
use crate::job_row::{self, Recorded};
use crate::jobs;
use crate::layout;
use crate::ports::credentials::{CredentialsError, Grants, Minted};
use crate::ports::table::{Condition, PageToken, Source, TableError, Write};
use crate::produced;
use crate::record::{self, Listed, RecordError};
use crate::stores;
use crate::update::{self, Change, ChangeError, Step};

/// A job that was assigned, and the right that was handed out.
#[derive(Clone, Debug, PartialEq)]
pub struct AssignedAttempt {
    /// The job, in `assigned`.
    pub job: Job,
    /// The right.
    pub attempt: AttemptId,
}

/// A grant that was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Granted {
    /// The job: in `finalizing`, or past it when this was asked again.
    pub job: Job,
    /// How long the engine worked. `None` when this was granted before, so that a run is told of once; and when it was
    /// never recorded that the engine had begun.
    pub ran: Option<Duration>,
}

/// Why a manifest may not be granted: it is not what the composition declares.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// Something in it is not the job's to publish, or makes no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidManifest),
    /// A declared output is not in it.
    #[error("output `{slot}` is missing: the engine made nothing at {location}")]
    Missing {
        /// The output.
        slot: SlotName,
        /// Where it should be.
        location: Location,
    },
    /// It would replace an input.
    #[error("{0} is an input of the job and may not be replaced")]
    ReplacesInput(Location),
}

/// A grant that was not given.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// What was sealed is not what was asked for.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The attempt has no right to it.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// A store of a job, and the right to it.
#[derive(Clone, Debug)]
pub struct StoreAccess {
    /// The store.
    pub store: Store,
    /// What the job does there.
    pub grants: Grants,
    /// The right.
    pub minted: Minted,
}

/// No access for an attempt.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The attempt has no right any more.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// A store was removed.
    #[error("store {0} of the job does not exist any more")]
    StoreGone(StoreId),
    /// A store may not be opened by agents.
    #[error("store {store} of the job may not be used: {problem}")]
    Refused {
        /// Its name.
        store: String,
        /// Why, and what to do.
        problem: stores::OpenError,
    },
    /// No right could be made.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// Jobs that wait in a region, oldest first. The list may lag by seconds: `assign` decides. A job whose row cannot be
/// read is left out of this list and of those below, and said in the log.
///
/// # Errors
/// When the table is out of reach.
pub async fn queued(
    backend: &Backend,
    region: &RegionName,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Job>, RecordError> {
    section(backend, layout::queued_jobs(region), limit, after).await
}

/// Jobs with a live attempt in a region, oldest first.
///
/// # Errors
/// When the table is out of reach.
pub async fn live(
    backend: &Backend,
    region: &RegionName,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Job>, RecordError> {
    section(backend, layout::live_jobs(region), limit, after).await
}

/// Jobs that are held in a region, oldest first.
///
/// # Errors
/// When the table is out of reach.
pub async fn held(
    backend: &Backend,
    region: &RegionName,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Job>, RecordError> {
    section(backend, layout::held_jobs(region), limit, after).await
}

/// A job as it is now.
///
/// # Errors
/// When the records are out of reach.
pub async fn load(backend: &Backend, job: JobId) -> Result<Option<Job>, RecordError> {
    Ok(job_row::load(backend, job).await?.map(|recorded| recorded.job))
}

/// Gives the job to an instance. Persist first, then tell the instance.
///
/// # Errors
/// `Illegal` when it is not queued (any more), or not yet to be tried again.
pub async fn assign(
    backend: &Backend,
    job: JobId,
    instance: InstanceId,
    now: Timestamp,
) -> Result<AssignedAttempt, ChangeError> {
    let change = update::change(backend, job, now, |_| JobEvent::Assign { instance }).await?;
    let attempt = change.after.live_attempt().expect("an assigned job has a live attempt");
    Ok(AssignedAttempt { job: change.after, attempt })
}

/// The worker of the attempt has connected.
///
/// # Errors
/// `Stale` when that is known already or the attempt has no right any more.
pub async fn started(backend: &Backend, attempt: AttemptId, now: Timestamp) -> Result<Job, ChangeError> {
    step(backend, attempt, now, || JobEvent::Started { epoch: attempt.epoch }.into()).await
}

/// The engine works.
///
/// # Errors
/// `Stale` when that is known already or the attempt has no right any more.
pub async fn engine_running(
    backend: &Backend,
    attempt: AttemptId,
    now: Timestamp,
) -> Result<Job, ChangeError> {
    step(backend, attempt, now, || JobEvent::EngineRunning { epoch: attempt.epoch }.into()).await
}

/// The attempt prepares: records a phase of the attempt that is no state of the job.
///
/// # Errors
/// `Stale` when the attempt has no right any more, is over, or is past that phase.
pub async fn enter_phase(
    backend: &Backend,
    attempt: AttemptId,
    phase: Phase,
    now: Timestamp,
) -> Result<Attempt, ChangeError> {
    for tried in 0..record::TRIES {
        let job = live_job(backend, attempt).await?.job;
        let stale = || ChangeError::Stale { job: attempt.job, state: job.state.name() };
        let found = update::find_attempt(backend, job.account, attempt).await?;
        let (mut record, version) = found.ok_or_else(stale)?;
        if !record.enter(phase, now) {
            // Our own write after an unknown result looks like this, too: the phase is entered, at this moment.
            let entered = record.phases.iter().any(|start| start.phase == phase && start.at == now);
            return if tried > 0 && entered { Ok(record) } else { Err(stale()) };
        }
        let fence = Write::Check {
            key: layout::job(job.id, job.account),
            condition: Condition::Version(job.version),
        };
        let writes = vec![fence, update::attempt_put(job.account, &record, version)?];
        match backend.table.transact(writes).await {
            Ok(()) => return Ok(record),
            Err(error @ TableError::Invalid(_)) => return Err(RecordError::from(error).into()),
            Err(_) => record::pause(tried).await,
        }
    }
    Err(RecordError::Contended {
        partition: layout::job_partition(attempt.job),
        sort: format!("attempt {}", attempt.attempt),
    }
    .into())
}

/// The commit point (SPEC 3.9): the right to publish what was sealed. The manifest must hold every declared output and
/// nothing else. Asking again with the same manifest gives the same answer.
///
/// # Errors
/// `Manifest`, or `Change` when the attempt has no right to it.
pub async fn grant(
    backend: &Backend,
    attempt: AttemptId,
    manifest: Manifest,
    counters: Counters,
    now: Timestamp,
) -> Result<Granted, GrantError> {
    let recorded = live_or_done(backend, attempt).await?;
    let manifest = manifest.in_publishing_order();
    verify(&recorded.job.spec.composition, &manifest)?;
    let writes = produced::writes(&recorded, &manifest, now).map_err(ChangeError::from)?;
    let event = JobEvent::Grant { epoch: attempt.epoch, manifest: manifest.clone() };
    let asked = Step { writes, ..Step::from(event).counting(Some(counters)) };
    match update::change(backend, attempt.job, now, |_| asked.clone()).await {
        Ok(change) => Ok(Granted { ran: learn::ran(&change.before, &change.after), job: change.after }),
        Err(ChangeError::Stale { job, state }) => {
            let recorded = live_or_done(backend, attempt).await?;
            match &recorded.job.state {
                JobState::Finalizing { manifest: granted, .. }
                | JobState::Succeeded { manifest: granted, .. }
                    if *granted == manifest =>
                {
                    Ok(Granted { job: recorded.job, ran: None })
                }
                _ => Err(ChangeError::Stale { job, state }.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Everything that was granted is in place. Saying so again is answered like the first time.
///
/// # Errors
/// `Stale` when another attempt has the right.
pub async fn published(
    backend: &Backend,
    attempt: AttemptId,
    counters: Option<Counters>,
    now: Timestamp,
) -> Result<Job, ChangeError> {
    let event = || Step::from(JobEvent::Published { epoch: attempt.epoch }).counting(counters);
    match step(backend, attempt, now, event).await {
        Err(ChangeError::Stale { job, state }) => {
            let found = load(backend, attempt.job).await?;
            let done = |job: &Job| {
                job.epoch == attempt.epoch
                    && matches!(&job.state, JobState::Succeeded { attempt: number, .. } if *number == attempt.attempt)
            };
            found.filter(done).ok_or(ChangeError::Stale { job, state })
        }
        result => result,
    }
}

/// The attempt failed; the job is tried again or fails, as its budgets say.
///
/// # Errors
/// `Stale`; `Illegal` when it was granted.
pub async fn failed(
    backend: &Backend,
    attempt: AttemptId,
    failure: Failure,
    counters: Option<Counters>,
    now: Timestamp,
) -> Result<Job, ChangeError> {
    let event = || JobEvent::AttemptFailed { epoch: attempt.epoch, failure: failure.clone() };
    step(backend, attempt, now, || Step::from(event()).counting(counters)).await
}

/// What the attempt sealed is on an instance that is gone: the job fails.
///
/// # Errors
/// `Stale`; `Illegal` when it was not granted.
pub async fn sealed_bytes_lost(
    backend: &Backend,
    attempt: AttemptId,
    failure: Failure,
    now: Timestamp,
) -> Result<Job, ChangeError> {
    let event = || JobEvent::SealedBytesLost { epoch: attempt.epoch, failure: failure.clone() };
    step(backend, attempt, now, || event().into()).await
}

/// The attempt was interrupted (spot notice, drain) or not taken by its instance for want of room; no budget pays.
///
/// # Errors
/// `Stale`; `Illegal` when it was granted.
pub async fn interrupted(
    backend: &Backend,
    attempt: AttemptId,
    failure: Failure,
    counters: Option<Counters>,
    now: Timestamp,
) -> Result<Job, ChangeError> {
    let event = || JobEvent::Interrupted { epoch: attempt.epoch, failure: failure.clone() };
    step(backend, attempt, now, || Step::from(event()).counting(counters)).await
}

/// Nothing was heard of the attempt for a whole lease.
///
/// # Errors
/// `Stale`; `Illegal` when it was granted: then somebody else publishes.
pub async fn lost(
    backend: &Backend,
    attempt: AttemptId,
    failure: Failure,
    now: Timestamp,
) -> Result<Job, ChangeError> {
    let event = || JobEvent::AttemptFailed { epoch: attempt.epoch, failure: failure.clone() };
    step(backend, attempt, now, || Step::from(event()).ending(Ending::Lost(failure.clone()))).await
}

/// The attempt that was to be stopped is gone.
///
/// # Errors
/// `Stale`; `Illegal` when nobody asked for it.
pub async fn stopped(
    backend: &Backend,
    attempt: AttemptId,
    counters: Option<Counters>,
    now: Timestamp,
) -> Result<Job, ChangeError> {
    let event = || Step::from(JobEvent::Stopped { epoch: attempt.epoch }).counting(counters);
    step(backend, attempt, now, event).await
}

/// All jobs that it depends on have succeeded: it is queued.
///
/// # Errors
/// `Illegal` when it does not wait for them any more.
pub async fn dependencies_done(backend: &Backend, job: JobId, now: Timestamp) -> Result<Job, ChangeError> {
    Ok(update::change(backend, job, now, |_| JobEvent::DependenciesDone).await?.after)
}

/// A job that it depends on will not succeed: it fails.
///
/// # Errors
/// `Illegal` when it does not wait for them any more.
pub async fn dependency_failed(
    backend: &Backend,
    job: JobId,
    failure: Failure,
    now: Timestamp,
) -> Result<Job, ChangeError> {
    let event = || JobEvent::DependencyFailed { failure: failure.clone() };
    Ok(update::change(backend, job, now, |_| event()).await?.after)
}

/// The job waited longer than it may.
///
/// # Errors
/// `Illegal` when it does not wait any more.
pub async fn expire(backend: &Backend, job: JobId, now: Timestamp) -> Result<Job, ChangeError> {
    Ok(update::change(backend, job, now, |_| JobEvent::QueueTimeout).await?.after)
}

/// The job took longer than it may.
///
/// # Errors
/// `Illegal` when it was granted or is over, `Stale` when it is being stopped already.
pub async fn total_timeout(backend: &Backend, job: JobId, now: Timestamp) -> Result<Job, ChangeError> {
    Ok(update::change(backend, job, now, |_| JobEvent::TotalTimeout).await?.after)
}

/// The rights of an attempt to the stores of its job, each limited to the job's locations where the provider can.
/// Holds while the epoch stands, publishing included.
///
/// # Errors
/// `Change` when the attempt has no right any more, `StoreGone`, `Refused`, `Credentials`.
pub async fn store_access(
    backend: &Backend,
    attempt: AttemptId,
    life: Duration,
    now: Timestamp,
) -> Result<Vec<StoreAccess>, AccessError> {
    let job = live_job(backend, attempt).await?.job;
    access_to(backend, &job, life, now).await
}

/// The job of an attempt whose epoch is closed, and the rights with which `instance`, on which it ran, takes away what it
/// has left in the job's stores.
///
/// # Errors
/// `Change` while the attempt has the right, and when it never ran there; `StoreGone`, `Credentials`.
pub async fn closing_access(
    backend: &Backend,
    attempt: AttemptId,
    instance: InstanceId,
    life: Duration,
    now: Timestamp,
) -> Result<(Job, Vec<StoreAccess>), AccessError> {
    let unknown = || ChangeError::NotFound(attempt.job);
    let job = job_row::load(backend, attempt.job).await.map_err(ChangeError::from)?.ok_or_else(unknown)?.job;
    if job.live_attempt() == Some(attempt) {
        return Err(ChangeError::Illegal { job: job.id, state: job.state.name() }.into());
    }
    let attempts = jobs::attempts(backend, job.account, job.id).await.map_err(ChangeError::from)?;
    if !attempts.iter().any(|ran| ran.id == attempt && ran.instance == instance) {
        return Err(unknown().into());
    }
    let access = access_to(backend, &job, life, now).await?;
    Ok((job, access))
}

async fn access_to(
    backend: &Backend,
    job: &Job,
    life: Duration,
    now: Timestamp,
) -> Result<Vec<StoreAccess>, AccessError> {
    let mut access = Vec::new();
    for (id, grants) in grants_of(&job.spec.composition) {
        let store = stores::find(backend, job.account, &id.to_string()).await.map_err(ChangeError::from)?;
        let store = store.ok_or(AccessError::StoreGone(id))?.value;
        stores::check_folder(&store.provider, &backend.forbidden_folders)
            .map_err(|problem| AccessError::Refused { store: store.name.clone(), problem })?;
        let minted = backend.credentials.mint(&store, &grants, life, now).await?;
        access.push(StoreAccess { store, grants, minted });
    }
    Ok(access)
}

async fn section(
    backend: &Backend,
    partition: String,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Job>, RecordError> {
    let page = backend.table.query(record::page_of(Source::Index2, partition.as_str(), limit, after)).await?;
    let (mut items, mut unreadable) = (Vec::with_capacity(page.rows.len()), 0);
    for row in &page.rows {
        match job_row::read(&backend.system, row).await {
            Ok(recorded) => items.push(recorded.job),
            Err(error) if error.is_transient() => return Err(error),
            // One row that nobody can read may not stop the jobs beside it.
            Err(error) => {
                unreadable += 1;
                let job = row.key.partition.trim_start_matches("job#");
                error!(job, %error, "a job cannot be read and is left out; mend its row or restore it");
            }
        }
    }
    if unreadable > 0 {
        error!(partition, unreadable, read = items.len(), "jobs were left out of a list");
    }
    Ok(Listed { items, next: page.next })
}

async fn step(
    backend: &Backend,
    attempt: AttemptId,
    now: Timestamp,
    asked: impl Fn() -> Step,
) -> Result<Job, ChangeError> {
    let Change { after, .. } = update::change(backend, attempt.job, now, |_| asked()).await?;
    Ok(after)
}

/// The job, if this attempt has the right to it.
async fn live_job(backend: &Backend, attempt: AttemptId) -> Result<Recorded, ChangeError> {
    let recorded = job_row::load(backend, attempt.job).await?.ok_or(ChangeError::NotFound(attempt.job))?;
    if recorded.job.live_attempt() == Some(attempt) {
        Ok(recorded)
    } else {
        Err(ChangeError::Stale { job: attempt.job, state: recorded.job.state.name() })
    }
}

/// The job, if this attempt has or had the last right to it.
async fn live_or_done(backend: &Backend, attempt: AttemptId) -> Result<Recorded, ChangeError> {
    let recorded = job_row::load(backend, attempt.job).await?.ok_or(ChangeError::NotFound(attempt.job))?;
    let job = &recorded.job;
    if (job.attempts, job.epoch) == (attempt.attempt, attempt.epoch) {
        Ok(recorded)
    } else {
        Err(ChangeError::Stale { job: attempt.job, state: job.state.name() })
    }
}

/// The manifest holds every declared output, and nothing that was not declared.
fn verify(composition: &Composition, manifest: &Manifest) -> Result<(), ManifestError> {
    manifest.check(&composition.outputs)?;
    let location = |object: &SealedObject| Location { store: object.store, key: object.key.clone() };
    let is_input = |made: &Location| composition.inputs.values().any(|input| input == made);
    if let Some(input) = manifest.objects.iter().map(location).find(is_input) {
        return Err(ManifestError::ReplacesInput(input));
    }
    let made = |slot: &SlotName| manifest.objects.iter().any(|object| object.slot == *slot);
    match composition.outputs.iter().find(|(slot, _)| !made(slot)) {
        Some((slot, location)) => {
            Err(ManifestError::Missing { slot: slot.clone(), location: location.clone() })
        }
        None => Ok(()),
    }
}

fn grants_of(composition: &Composition) -> BTreeMap<StoreId, Grants> {
    let mut stores = BTreeMap::<StoreId, Grants>::new();
    let nothing = || Grants { read: Vec::new(), write: Vec::new() };
    for input in composition.inputs.values() {
        stores.entry(input.store).or_insert_with(nothing).read.push(input.clone());
    }
    for output in composition.outputs.values() {
        stores.entry(output.store).or_insert_with(nothing).write.push(output.clone());
    }
    stores
}

#[cfg(test)]
mod tests;
