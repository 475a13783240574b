//! Why a job waits or how it ended: gathers the facts for the domain's `explain` (SPEC 3.7), and for a forecast of its
//! start.

use std::cmp::Reverse;

use telecine_domain::explain::{
    self, Closed, Counts, Dependency, Explanation, Facts, PoolNow, Position, ReachedLimit, launchable,
};
use telecine_domain::forecast::{self, Before, Holds, MAX_BEFORE, Outlook, Start, UnknownStart, Within};
use telecine_domain::id::{AccountId, JobId, RegionName};
use telecine_domain::instance::Instance;
use telecine_domain::job::{HoldReason, Job, JobState, StateName};
use telecine_domain::learn::{Learned, Quantile, Work};
use telecine_domain::placement::Request;
use telecine_domain::time::Timestamp;
use tracing::warn;

use crate::backend::Backend;
use crate::record::{Listed, RecordError};
use crate::{autoscale, dispatch, durations, fleet, jobs, limits, pools};

/// Most queued, and most live, jobs that are looked at; beyond it a position is a lower bound.
const MAX_COUNTED: usize = 10_000;
/// Jobs of one page.
const PAGE: usize = 1000;

/// Explains the account's job; `None` when there is none.
///
/// # Errors
/// When the records are out of reach.
pub async fn explain(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    now: Timestamp,
) -> Result<Option<Explanation>, RecordError> {
    match jobs::find(backend, account, job).await? {
        Some(job) => Ok(Some(of(backend, &job, now).await?)),
        None => Ok(None),
    }
}

/// Explains a job, which need not be recorded.
pub(crate) async fn of(backend: &Backend, job: &Job, now: Timestamp) -> Result<Explanation, RecordError> {
    match &job.state {
        JobState::Queued { .. } => queued(backend, job, now).await,
        JobState::Held { reason: HoldReason::Dependencies } => {
            let dependencies = unfinished(backend, job).await?;
            Ok(explain::explain(job, &Facts { dependencies: &dependencies, ..NOTHING }, now))
        }
        JobState::Held { reason: HoldReason::Manual }
        | JobState::Assigned(_)
        | JobState::Starting(_)
        | JobState::Running(_)
        | JobState::Finalizing { .. }
        | JobState::Canceling { .. }
        | JobState::Succeeded { .. }
        | JobState::Failed { .. }
        | JobState::Canceled
        | JobState::Expired => Ok(explain::explain(job, &NOTHING, now)),
    }
}

/// What matters of a job that does not wait.
const NOTHING: Facts<'_> = Facts {
    instances: &[],
    pools: &[],
    position: Position { before: 0, perhaps_before: 0, is_partial: false, highest_priority: None },
    limit: None,
    start: Start::Unknown { because: UnknownStart::NoTime },
    dependencies: &[],
};

/// The dependencies of a job that have not succeeded.
async fn unfinished(backend: &Backend, job: &Job) -> Result<Vec<Dependency>, RecordError> {
    let mut found = Vec::new();
    for &id in &job.spec.depends_on {
        let state = jobs::find(backend, job.account, id).await?.map(|other| other.state.name());
        if state != Some(StateName::Succeeded) {
            found.push(Dependency { job: id, state });
        }
    }
    Ok(found)
}

async fn queued(backend: &Backend, job: &Job, now: Timestamp) -> Result<Explanation, RecordError> {
    let region = &job.spec.region;
    let instances = fleet::instances(backend, region).await?;
    let pools = pools_of(backend, region, now).await?;
    let limits = limits::of(backend, region).await?;
    let live = Live::of(backend, job).await?;
    let ahead = Ahead::of(backend, job, now).await?;
    let works = live.held.iter().map(|held| &held.work).chain(ahead.jobs.iter().map(|other| &other.work));
    let learned = durations::about(backend, region, works).await?;
    let facts = Facts {
        instances: &instances,
        pools: &pools,
        position: ahead.position,
        limit: ReachedLimit::of(&limits, job.account, job.spec.origin.factory(), live.counts),
        start: start(job, (&instances, &pools), &live, &ahead, &learned, now),
        dependencies: &[],
    };
    Ok(explain::explain(job, &facts, now))
}

fn start(
    job: &Job,
    (instances, pools): (&[Instance], &[PoolNow]),
    live: &Live,
    ahead: &Ahead,
    learned: &Learned,
    now: Timestamp,
) -> Start {
    if ahead.position.is_partial || live.is_partial {
        return Start::Unknown { because: UnknownStart::TooManyBefore };
    }
    let holds: Vec<Holds> = live.held.iter().map(|held| held.left(learned, now)).collect();
    let before: Vec<Before> = ahead.jobs.iter().map(|other| other.before(learned)).collect();
    let launchable = launchable(pools, instances);
    let outlook = Outlook { instances, holds: &holds, launchable: &launchable, before: &before };
    forecast::start(&Request::of(&job.spec), &outlook, not_before(job).unwrap_or(now).max(now))
}

fn not_before(job: &Job) -> Option<Timestamp> {
    if let JobState::Queued { not_before, .. } = &job.state { *not_before } else { None }
}

/// The pools of a region as they are now, with what keeps each from being launched by the reasons of the last decision:
/// one is recorded whenever they change. A pool of which the provider says nothing is left out: an explanation without
/// it is better than none.
pub(crate) async fn pools_of(
    backend: &Backend,
    region: &RegionName,
    now: Timestamp,
) -> Result<Vec<PoolNow>, RecordError> {
    let last = autoscale::list(backend, Some(region), 1, None).await?.items.pop();
    let reasons = last.map(|decided| decided.decision.reasons).unwrap_or_default();
    let mut found = Vec::new();
    for pool in pools::list(backend).await?.into_iter().filter(|pool| pool.region == *region) {
        match pools::now(backend, pool).await {
            Ok(pools::PoolNow { pool, status }) => {
                let running = status.instances.iter().filter(|instance| instance.running).count();
                let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
                let changing = count(status.instances.len() - running).saturating_add(status.pending);
                let closed = Closed::by(&reasons, &pool.name, now);
                found.push(PoolNow { pool, running: count(running), changing, closed });
            }
            Err(error) => warn!(%region, %error, "a pool is left out of an explanation"),
        }
    }
    Ok(found)
}

/// The attempts of a region.
#[derive(Default)]
struct Live {
    held: Vec<Held>,
    counts: Counts,
    is_partial: bool,
}

/// An attempt.
struct Held {
    holds: Holds,
    work: Work,
    state: JobState,
    since: Timestamp,
}

impl Live {
    async fn of(backend: &Backend, job: &Job) -> Result<Self, RecordError> {
        let mut live = Self::default();
        let mut after = None;
        loop {
            let Listed { items, next } = dispatch::live(backend, &job.spec.region, PAGE, after).await?;
            items.into_iter().for_each(|other| live.add(job, other));
            match next {
                Some(next) if live.held.len() < MAX_COUNTED => after = Some(next),
                next => {
                    live.is_partial = next.is_some();
                    return Ok(live);
                }
            }
        }
    }

    fn add(&mut self, job: &Job, other: Job) {
        let Some(run) = other.state.run() else { return };
        let factory = job.spec.origin.factory();
        self.counts.account += u32::from(other.account == job.account);
        self.counts.factory += u32::from(factory.is_some() && other.spec.origin.factory() == factory);
        let (resources, left) = (other.spec.resources, Within::default());
        let holds = Holds { instance: run.instance, resources, left };
        self.held.push(Held { holds, work: Work::of(&other), since: other.state_since, state: other.state });
    }
}

impl Held {
    /// How much longer it holds what it holds.
    fn left(&self, learned: &Learned, now: Timestamp) -> Holds {
        let left = match &self.state {
            JobState::Running(_) => {
                let ran = now.since(self.since);
                let left = |part| learned.remaining(&self.work, part, ran);
                Within { p50_ms: left(Quantile::P50), p90_ms: left(Quantile::P90) }
            }
            JobState::Assigned(_) | JobState::Starting(_) => runs(learned, &self.work),
            // It ends any moment.
            JobState::Finalizing { .. } | JobState::Canceling { .. } => {
                Within { p50_ms: Some(0), p90_ms: Some(0) }
            }
            JobState::Held { .. }
            | JobState::Queued { .. }
            | JobState::Succeeded { .. }
            | JobState::Failed { .. }
            | JobState::Canceled
            | JobState::Expired => Within::default(),
        };
        Holds { left, ..self.holds }
    }
}

/// How long work runs, where that was learned.
fn runs(learned: &Learned, work: &Work) -> Within {
    let expected = Some(learned.expected(work)).filter(|expected| expected.is_learned());
    Within { p50_ms: expected.map(|it| it.p50_ms), p90_ms: expected.map(|it| it.p90_ms) }
}

/// Who goes before a job.
#[derive(Default)]
struct Ahead {
    position: Position,
    /// In their order; of more than a forecast takes, only some.
    jobs: Vec<Other>,
}

/// A job that goes, or may go, first.
struct Other {
    order: Order,
    request: Request,
    work: Work,
    surely: bool,
}

type Order = (Reverse<u16>, Timestamp, JobId);

fn order(job: &Job) -> Order {
    (Reverse(job.spec.priority), job.queued_at.unwrap_or(job.created_at), job.id)
}

impl Ahead {
    async fn of(backend: &Backend, job: &Job, now: Timestamp) -> Result<Self, RecordError> {
        let mut ahead = Self::default();
        let (mut counted, mut after) = (0, None);
        loop {
            let Listed { items, next } = dispatch::queued(backend, &job.spec.region, PAGE, after).await?;
            counted += items.len();
            items.iter().for_each(|other| ahead.add(job, other, now));
            match next {
                Some(next) if counted < MAX_COUNTED => after = Some(next),
                next => {
                    ahead.position.is_partial = next.is_some();
                    ahead.jobs.sort_by_key(|other| other.order);
                    return Ok(ahead);
                }
            }
        }
    }

    fn add(&mut self, job: &Job, other: &Job, now: Timestamp) {
        let waits =
            matches!(other.state, JobState::Queued { .. }) && not_before(other).is_none_or(|at| at <= now);
        if !waits || other.id == job.id {
            return;
        }
        let (priority, own) = (other.spec.priority, other.account == job.account);
        let surely = order(other) < order(job) && (priority > job.spec.priority || own);
        let perhaps = priority == job.spec.priority && !own;
        if !surely && !perhaps {
            return;
        }
        self.position.before += u64::from(surely);
        self.position.perhaps_before += u64::from(!surely);
        if surely {
            self.position.highest_priority = self.position.highest_priority.max(Some(priority));
        }
        if self.jobs.len() <= MAX_BEFORE {
            let (request, work) = (Request::of(&other.spec), Work::of(other));
            self.jobs.push(Other { order: order(other), request, work, surely });
        }
    }
}

impl Other {
    fn before(&self, learned: &Learned) -> Before {
        Before { request: self.request.clone(), runs: runs(learned, &self.work), surely: self.surely }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use telecine_domain::explain::ReasonCode;
    use telecine_domain::region::{LimitedBy, Limits};

    use super::*;
    use crate::durations::Batch;
    use crate::fixture::{World, instance, region};

    const MINUTE: Duration = Duration::from_secs(60);

    /// A job without inputs of some account, more or less important.
    async fn submitted(world: &World, account: AccountId, priority: u16) -> Job {
        let body = json!({
            "service": "transform", "region": "local", "priority": priority,
            "composition": {"inputs": {}, "outputs": {}},
        });
        jobs::submit(&world.backend, account, &body, None, world.now()).await.unwrap().job
    }

    async fn explained(world: &World, job: &Job) -> Explanation {
        super::explain(&world.backend, job.account, job.id, world.now()).await.unwrap().unwrap()
    }

    /// Records an instance with room for one job, which is taken.
    async fn one_busy_instance(world: &World) {
        let room = json!({"cpu_milli": 500});
        let record = json!({
            "profile": {
                "id": instance(1), "region": "local", "pool": "default", "host": "host-1", "agent_version": "0.1.0",
                "capacity": room, "runtimes": ["process"],
            },
            "state": "ready", "allocated": room, "state_since": world.now(),
        });
        fleet::put_instance(&world.backend, &serde_json::from_value(record).unwrap()).await.unwrap();
    }

    /// Lets a job run, of whose kind six runs of a minute are known, and gives another that waits for it.
    async fn one_behind_another(world: &World) -> Job {
        let running = submitted(world, world.account, 500).await;
        let attempt = world.assigned(running.id).await.attempt;
        dispatch::engine_running(&world.backend, attempt, world.now()).await.unwrap();
        one_busy_instance(world).await;
        let mut learned = Learned::default();
        (0..6).for_each(|_| learned.learn(&Work::of(&running), MINUTE, world.now()));
        let batch = Batch { term: Default::default(), number: 1 };
        durations::add(&world.backend, &region(), batch, &learned, world.now()).await.unwrap();
        world.clock.advance(MINUTE / 2);
        submitted(world, world.account, 500).await
    }

    #[tokio::test]
    async fn a_job_starts_when_what_runs_is_expected_to_end() {
        let world = World::new().await;
        let job = one_behind_another(&world).await;
        let told = explained(&world, &job).await;
        assert_eq!(told.code, ReasonCode::AllBusy, "{told}");
        let Some(Start::Expected { p50, p90: Some(p90) }) = told.start else { panic!("{told}") };
        let left = p50.since(world.now());
        assert!(left.abs_diff(MINUTE / 2) <= MINUTE / 32 && p50 <= p90, "{left:?}");
        // Longer than any run that is known: nobody can tell.
        world.clock.advance(MINUTE);
        let unknown = Start::Unknown { because: UnknownStart::NotLearned };
        assert_eq!(explained(&world, &job).await.start, Some(unknown));
    }

    #[tokio::test]
    async fn what_surely_goes_first_is_told_from_what_only_may() {
        let world = World::new().await;
        let other = AccountId::new(world.now(), 2);
        let job = one_behind_another(&world).await;
        world.clock.advance(MINUTE);
        let positions = async |job: &Job| {
            let position = explained(&world, job).await.position.unwrap();
            (position.before, position.perhaps_before, position.highest_priority)
        };
        assert_eq!(positions(&job).await, (0, 0, None));
        let of_other = submitted(&world, other, 500).await;
        assert_eq!(positions(&job).await, (0, 1, None), "fair shares decide, not age");
        assert_eq!(positions(&of_other).await, (0, 1, None));
        let urgent = submitted(&world, other, 501).await;
        assert_eq!(positions(&job).await, (1, 1, Some(501)));
        let younger = submitted(&world, world.account, 500).await;
        assert_eq!(positions(&younger).await, (2, 1, Some(501)));
        jobs::hold(&world.backend, other, urgent.id, world.now()).await.unwrap();
        assert_eq!(positions(&younger).await, (1, 1, Some(500)), "what is held stands in nobody's way");
    }

    #[tokio::test]
    async fn the_limits_of_the_region_are_told_with_what_runs() {
        let world = World::new().await;
        let job = one_behind_another(&world).await;
        let limits = Limits { accounts: [(world.account, 1)].into(), ..Limits::default() };
        limits::declare(&world.backend, &region(), &limits).await.unwrap();
        let told = explained(&world, &job).await;
        let limit = told.limit.map(|limit| (limit.by, limit.limit, limit.running));
        assert_eq!((told.code, limit), (ReasonCode::LimitReached, Some((LimitedBy::Account, 1, 1))));
        let other = submitted(&world, AccountId::new(world.now(), 2), 500).await;
        assert_eq!(explained(&world, &other).await.code, ReasonCode::AllBusy, "it is not theirs");
    }

    #[tokio::test]
    async fn a_job_that_does_not_wait_needs_no_facts() {
        let world = World::new().await;
        let job = one_behind_another(&world).await;
        jobs::hold(&world.backend, job.account, job.id, world.now()).await.unwrap();
        let told = explained(&world, &job).await;
        assert_eq!((told.state, told.code, told.position), (StateName::Held, ReasonCode::Held, None));
        assert_eq!(told.start, Some(Start::Unknown { because: UnknownStart::NoTime }));
    }
}
