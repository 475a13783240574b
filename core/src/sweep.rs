//! What was forgotten or has waited too long: reads the world and converges, whatever was lost on the way.

use std::collections::BTreeMap;
use std::time::Duration;

use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::id::{AccountId, JobId, RegionName};
use telecine_domain::job::{HoldReason, Job, JobState, StateName};
use telecine_domain::time::Timestamp;
use tracing::warn;

use crate::backend::Backend;
use crate::ports::table::PageToken;
use crate::record::{Listed, RecordError};
use crate::update::{self, ChangeError};
use crate::{dispatch, jobs};

/// Rows of one page.
const PAGE: usize = 500;

/// Jobs that were ended because their time was up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overdue {
    /// Waited too long: `expired`.
    pub expired: Vec<JobId>,
    /// Took too long: failed, or being stopped.
    pub timed_out: Vec<JobId>,
}

/// Sends hints again for queued jobs of a region that nobody knows (`known` says no) although they have waited for
/// `patience`: their hint was lost.
///
/// # Errors
/// When the records are out of reach; what was found before has its hints.
pub async fn rehint(
    backend: &Backend,
    region: &RegionName,
    known: impl Fn(JobId) -> bool,
    patience: Duration,
    now: Timestamp,
) -> Result<Vec<JobId>, RecordError> {
    let forgotten = |job: &Job| is_queued(job) && now.since(job.state_since) >= patience && !known(job.id);
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let Listed { items, next } = dispatch::queued(backend, region, PAGE, after).await?;
        let lost: Vec<&Job> = items.iter().filter(|job| forgotten(job)).collect();
        update::hint(backend, &lost).await;
        found.extend(lost.iter().map(|job| job.id));
        match next {
            Some(next) => after = Some(next),
            None => return Ok(found),
        }
    }
}

/// Ends what is over its queue timeout or its total timeout in a region.
///
/// # Errors
/// When the records are out of reach; begin again.
pub async fn overdue(backend: &Backend, region: &RegionName, now: Timestamp) -> Result<Overdue, RecordError> {
    let mut overdue = Overdue::default();
    for section in [Section::Queued, Section::Held, Section::Live] {
        let mut after = None;
        loop {
            let Listed { items, next } = section.page(backend, region, after).await?;
            for job in items {
                end_if_overdue(backend, &job, now, &mut overdue).await?;
            }
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
    }
    Ok(overdue)
}

/// Jobs that waited for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// What they depend on has succeeded: they are queued.
    pub queued: Vec<JobId>,
    /// Something that they depend on will not succeed: they have failed.
    pub failed: Vec<JobId>,
}

/// What will become of a job that others depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Succeeded,
    /// Nobody knows yet.
    Open,
    /// It will not succeed.
    Lost,
}

pub(crate) const fn fate(state: StateName) -> Fate {
    match state {
        StateName::Succeeded => Fate::Succeeded,
        StateName::Failed | StateName::Canceled | StateName::Expired => Fate::Lost,
        StateName::Held
        | StateName::Queued
        | StateName::Assigned
        | StateName::Starting
        | StateName::Running
        | StateName::Finalizing
        | StateName::Canceling => Fate::Open,
    }
}

/// Queues the jobs of a region whose dependencies have all succeeded, and fails those of which one will not. Looks at
/// what is, not at what has happened: whatever was missed, and whoever died in between, the next sweep settles it.
///
/// # Errors
/// When the records are out of reach; begin again.
pub async fn dependencies(
    backend: &Backend,
    region: &RegionName,
    now: Timestamp,
) -> Result<Settled, RecordError> {
    let mut settled = Settled::default();
    let mut known = BTreeMap::new();
    let mut after = None;
    loop {
        let Listed { items, next } = dispatch::held(backend, region, PAGE, after).await?;
        for job in items.iter().filter(|job| waits_for_dependencies(job)) {
            match settle_one(backend, job, &mut known, now, &mut settled).await {
                // One row that cannot be read holds back nobody else's jobs.
                Err(error @ RecordError::Damaged { .. }) => {
                    warn!(job = %job.id, %error, "what a job depends on is not known");
                }
                settled => settled?,
            }
        }
        match next {
            Some(next) => after = Some(next),
            None => return Ok(settled),
        }
    }
}

fn waits_for_dependencies(job: &Job) -> bool {
    matches!(job.state, JobState::Held { reason: HoldReason::Dependencies })
}

/// States of jobs that others depend on, each read once in a sweep; `None` for one that is not kept any more.
type Known = BTreeMap<(AccountId, JobId), Option<StateName>>;

async fn settle_one(
    backend: &Backend,
    job: &Job,
    known: &mut Known,
    now: Timestamp,
    settled: &mut Settled,
) -> Result<(), RecordError> {
    let mut open = false;
    for &id in &job.spec.depends_on {
        let state = match known.get(&(job.account, id)) {
            Some(state) => *state,
            None => jobs::find(backend, job.account, id).await?.map(|found| found.state.name()),
        };
        known.insert((job.account, id), state);
        match state.map_or(Fate::Lost, fate) {
            Fate::Succeeded => {}
            Fate::Open => open = true,
            Fate::Lost => {
                let failed = dispatch::dependency_failed(backend, job.id, lost(id, state), now).await;
                settled.failed.extend(changed(failed)?);
                return Ok(());
            }
        }
    }
    if !open {
        let queued = dispatch::dependencies_done(backend, job.id, now).await;
        settled.queued.extend(changed(queued)?);
    }
    Ok(())
}

fn lost(id: JobId, state: Option<StateName>) -> Failure {
    let what = match state {
        Some(state) => format!("{id}, which the job depends on, is {state}"),
        None => format!("{id}, which the job depends on, is not kept any more"),
    };
    let message = format!("{what}; mend or retry it, then submit this job anew with the id of that job");
    Failure::new(FailureClass::Policy, "dependency_failed", message)
}

/// The job, if it was changed; a list that lags, or somebody who was faster, is no error.
fn changed(result: Result<Job, ChangeError>) -> Result<Option<JobId>, RecordError> {
    match result {
        Ok(job) => Ok(Some(job.id)),
        Err(
            ChangeError::Stale { .. }
            | ChangeError::Illegal { .. }
            | ChangeError::Outdated { .. }
            | ChangeError::NotFound(_),
        ) => Ok(None),
        Err(ChangeError::Record(error)) => Err(error),
    }
}

/// Granted jobs of a region that have been published for longer than `patience`: somebody must finish them.
///
/// # Errors
/// When the records are out of reach.
pub async fn unpublished(
    backend: &Backend,
    region: &RegionName,
    patience: Duration,
    now: Timestamp,
) -> Result<Vec<Job>, RecordError> {
    let waits = |job: &Job| {
        matches!(job.state, JobState::Finalizing { .. }) && now.since(job.state_since) >= patience
    };
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let Listed { items, next } = dispatch::live(backend, region, PAGE, after).await?;
        found.extend(items.into_iter().filter(waits));
        match next {
            Some(next) => after = Some(next),
            None => return Ok(found),
        }
    }
}

enum Section {
    Queued,
    Held,
    Live,
}

impl Section {
    async fn page(
        &self,
        backend: &Backend,
        region: &RegionName,
        after: Option<PageToken>,
    ) -> Result<Listed<Job>, RecordError> {
        match self {
            Self::Queued => dispatch::queued(backend, region, PAGE, after).await,
            Self::Held => dispatch::held(backend, region, PAGE, after).await,
            Self::Live => dispatch::live(backend, region, PAGE, after).await,
        }
    }
}

async fn end_if_overdue(
    backend: &Backend,
    job: &Job,
    now: Timestamp,
    overdue: &mut Overdue,
) -> Result<(), RecordError> {
    let passed = |deadline: Option<Timestamp>| deadline.is_some_and(|at| at <= now);
    let ended = if passed(job.total_deadline()) {
        (dispatch::total_timeout(backend, job.id, now).await, &mut overdue.timed_out)
    } else if is_queued(job) && passed(job.queue_deadline()) {
        (dispatch::expire(backend, job.id, now).await, &mut overdue.expired)
    } else {
        return Ok(());
    };
    let (result, list) = ended;
    list.extend(changed(result)?);
    Ok(())
}

fn is_queued(job: &Job) -> bool {
    matches!(job.state, JobState::Queued { .. })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::{FAULTS, World, counters, manifest, region};
    use crate::jobs::{Estimate, SubmitError};

    fn request(depends_on: &[JobId]) -> Value {
        json!({
            "service": "transform", "region": "local", "composition": {"inputs": {}, "outputs": {}},
            "depends_on": depends_on,
        })
    }

    async fn submitted(world: &World, depends_on: &[JobId]) -> Job {
        let body = request(depends_on);
        jobs::submit(&world.backend, world.account, &body, None, world.now()).await.unwrap().job
    }

    async fn refused(world: &World, body: &Value) -> Vec<(String, String)> {
        let result = jobs::submit(&world.backend, world.account, body, None, world.now()).await;
        let Err(SubmitError::Invalid(problems)) = result else { panic!("{result:?}") };
        problems.into_iter().map(|problem| (problem.pointer, problem.code)).collect()
    }

    async fn succeeds(world: &World, job: &Job) {
        let attempt = world.assigned(job.id).await.attempt;
        let (backend, now) = (&world.backend, world.now());
        dispatch::grant(backend, attempt, manifest(job), counters(), now).await.unwrap();
        dispatch::published(backend, attempt, None, now).await.unwrap();
    }

    async fn swept(world: &World) -> Settled {
        dependencies(&world.backend, &region(), world.now()).await.unwrap()
    }

    #[tokio::test]
    async fn a_job_is_queued_once_all_that_it_depends_on_have_succeeded() {
        let world = World::new().await;
        let (one, other) = (submitted(&world, &[]).await, submitted(&world, &[]).await);
        let job = submitted(&world, &[one.id, other.id, one.id]).await;
        assert_eq!(job.state, JobState::Held { reason: HoldReason::Dependencies });
        assert_eq!(swept(&world).await, Settled::default());
        succeeds(&world, &one).await;
        assert_eq!(swept(&world).await, Settled::default());
        let released = jobs::release(&world.backend, world.account, job.id, world.now()).await;
        assert!(
            matches!(released, Err(ChangeError::Illegal { .. })),
            "nobody lets it go before: {released:?}"
        );
        succeeds(&world, &other).await;
        assert_eq!(swept(&world).await, Settled { queued: vec![job.id], failed: vec![] });
        assert_eq!(swept(&world).await, Settled::default());
        assert!(is_queued(&world.job(job.id).await));
        let late = submitted(&world, &[one.id, other.id]).await;
        assert!(is_queued(&late), "they have succeeded already");
        world.check_histories().await;
    }

    #[tokio::test]
    async fn a_job_fails_by_policy_when_what_it_depends_on_will_not_succeed_and_so_on_down_the_line() {
        let world = World::new().await;
        let first = submitted(&world, &[]).await;
        let second = submitted(&world, &[first.id]).await;
        let third = submitted(&world, &[second.id]).await;
        jobs::cancel(&world.backend, world.account, first.id, world.now()).await.unwrap();
        let (mut failed, mut sweeps) = (Vec::new(), 0);
        while failed.len() < 2 {
            failed.extend(swept(&world).await.failed);
            sweeps += 1;
            assert!(sweeps <= 2, "{failed:?}");
        }
        assert_eq!(failed, [second.id, third.id]);
        let JobState::Failed { failure } = world.job(third.id).await.state else { panic!("it did not fail") };
        assert_eq!((failure.class, failure.code.as_str()), (FailureClass::Policy, "dependency_failed"));
        assert!(failure.message.contains(&second.id.to_string()), "{failure}");
        let pointers = refused(&world, &request(&[second.id])).await;
        assert_eq!(pointers, [("/depends_on/0".to_owned(), "dependency_failed".to_owned())]);
        world.check_histories().await;
    }

    #[tokio::test]
    async fn whatever_fails_the_next_sweep_settles_it_once() {
        for fault in FAULTS {
            let world = World::new().await;
            let first = submitted(&world, &[]).await;
            let job = submitted(&world, &[first.id]).await;
            succeeds(&world, &first).await;
            world.table.fail_transaction(1, fault);
            swept(&world).await;
            swept(&world).await;
            assert!(is_queued(&world.job(job.id).await), "{fault:?}");
            assert_eq!(world.job(job.id).await.version, 2, "{fault:?}");
            world.check_histories().await;
        }
    }

    #[tokio::test]
    async fn what_cannot_be_depended_on_is_named_and_no_cycle_can_be_made() {
        let world = World::new().await;
        let key = "one".parse().unwrap();
        let own = JobId::new(world.now(), crate::idempotency::derived(world.account, &key, 0));
        let body = request(&[own]);
        let itself = jobs::submit(&world.backend, world.account, &body, Some(&key), world.now()).await;
        assert!(matches!(itself, Err(SubmitError::Invalid(_))), "it is not there before it is: {itself:?}");
        let known = submitted(&world, &[]).await;
        let mut body = request(&[known.id, own]);
        body["depends_on"].as_array_mut().unwrap().push(json!("job_x"));
        body["hold"] = json!(true);
        let problems = refused(&world, &body).await;
        let expected =
            [("/depends_on/2", "invalid_value"), ("/hold", "conflict"), ("/depends_on/1", "unknown_job")];
        assert_eq!(problems, expected.map(|(at, code)| (at.to_owned(), code.to_owned())));
        let many = request(&[known.id; 101]);
        assert_eq!(refused(&world, &many).await, [("/depends_on".to_owned(), "too_many".to_owned())]);
        let most = request(&[known.id; 100]);
        let Estimate { spec, .. } =
            jobs::estimate(&world.backend, world.account, &most, world.now()).await.unwrap();
        assert_eq!(spec.depends_on, [known.id].into());
        let explained = submitted(&world, &[known.id]).await;
        let told = crate::explain::explain(&world.backend, world.account, explained.id, world.now()).await;
        let told = told.unwrap().unwrap();
        assert_eq!(told.dependencies.iter().map(|one| one.job).collect::<Vec<_>>(), [known.id], "{told}");
    }
}
