//! Golden texts: what a person reads for each reason.

use super::*;
use crate::autoscale::{Cap, Market, Reason};
use crate::fixture::{at, cores, failure, instance, instance_id, job, manifest};
use crate::forecast::{self, Holds, Outlook, Within};
use crate::id::FactoryId;
use crate::instance::{HealthProblem, InstanceState, RuntimeKind};
use crate::job::Origin;
use crate::pool::Pool;
use crate::region::{LimitedBy, Limits};
use crate::transition::{JobEvent, Outcome, apply};

fn after(job: Job, events: impl IntoIterator<Item = JobEvent>) -> Job {
    events.into_iter().fold(job, |job, event| match apply(&job, event.clone(), at(1)) {
        Outcome::Applied(job) => *job,
        outcome => panic!("{event:?} gave {outcome:?}"),
    })
}

const NOTHING: Facts<'_> = Facts {
    instances: &[],
    pools: &[],
    position: Position { before: 0, perhaps_before: 0, is_partial: false, highest_priority: None },
    limit: None,
    start: Start::Unknown { because: UnknownStart::NothingTakesIt },
    dependencies: &[],
};

const fn behind(before: u64) -> Position {
    Position { before, highest_priority: Some(500), ..NOTHING.position }
}

#[track_caller]
fn reads(job: &Job, facts: &Facts<'_>, code: ReasonCode, text: &str) -> Explanation {
    let explanation = explain(job, facts, at(1));
    let said = explanation.to_string().replace(&job.id.to_string(), "JOB");
    let said =
        said.replace(&instance_id(1).to_string(), "INSTANCE").replace(&factory().to_string(), "FACTORY");
    assert_eq!(said, text, "\n--- read:\n{said}\n--- expected:\n{text}\n");
    assert_eq!(explanation.code, code);
    let json = serde_json::to_string(&explanation).unwrap();
    assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), explanation);
    explanation
}

fn factory() -> FactoryId {
    FactoryId::new(at(0), 1)
}

fn pool(name: &str, shape: Resources, running: u32) -> PoolNow {
    let pool = Pool {
        name: name.parse().unwrap(),
        region: "local".parse().unwrap(),
        shape,
        market: Market::OnDemand,
        price_micros_per_hour: 40_000,
        boot_seconds: 30,
        min: 0,
        max: 2,
    };
    PoolNow { pool, running, changing: 0, closed: None }
}

#[test]
fn no_instance_at_all() {
    let text = "\
JOB is queued: region local has no instance
  needs:     2 cores CPU, 4.00 GiB memory
  position:  first in the queue
  start:     unknown: nothing that is there, or may be launched, would take it
  next step: start an agent in the region, or submit the job to a region that has instances";
    reads(&job(1), &NOTHING, ReasonCode::NoInstance, text);
}

#[test]
fn more_memory_than_any_instance_has() {
    let mut large = job(1);
    large.spec.resources = cores(2, 64);
    let text = "\
JOB is queued: nothing is large enough: the job needs 64.00 GiB of memory, the nearest, host-2, has 16.00 GiB
  needs:     2 cores CPU, 64.00 GiB memory
  nearest:   host-2 (pool default) has 4 cores CPU, 16.00 GiB memory
  free:      4 cores CPU, 16.00 GiB memory
  pool:      small (2 cores CPU, 8.00 GiB memory): memory needed: 64.00 GiB, it has 8.00 GiB
  position:  3 jobs before it
  start:     unknown: nothing that is there, or may be launched, would take it
  next step: submit the job with 16.00 GiB of memory or less, or add an instance or a pool with at least 64.00 GiB \
of memory";
    let instances = [instance(1, cores(8, 8)), instance(2, cores(4, 16))];
    let pools = [pool("small", cores(2, 8), 0)];
    let facts = Facts { instances: &instances, pools: &pools, position: behind(3), ..NOTHING };
    let explanation = reads(&large, &facts, ReasonCode::TooLarge, text);
    let gib = 1 << 30;
    let blocking = Blocking { resource: ResourceKind::MemoryBytes, need: 64 * gib, there: 16 * gib };
    assert_eq!(explanation.blocking, Some(blocking));
    assert_eq!(explanation.refusals.len(), 2);
    let pools = [pool("small", cores(2, 8), 0), pool("large", cores(2, 32), 0)];
    let explanation = explain(&large, &Facts { pools: &pools, ..facts }, at(1));
    let blocking = Blocking { there: 32 * gib, ..blocking };
    assert_eq!(explanation.blocking, Some(blocking), "the pool is nearer");
    assert!(
        explanation.summary.ends_with("the nearest, pool large, has 32.00 GiB"),
        "{}",
        explanation.summary
    );
}

#[test]
fn an_image_and_no_docker_anywhere() {
    let mut without = [instance(1, cores(8, 8)), instance(2, cores(8, 8))];
    for instance in &mut without {
        instance.profile.runtimes = [RuntimeKind::Process].into();
    }
    let text = "\
JOB is queued: the engine is a container image, and Docker runs on none of 2 instances
  needs:     2 cores CPU, 4.00 GiB memory
  nearest:   host-1 (pool default) has 8 cores CPU, 8.00 GiB memory
  free:      8 cores CPU, 8.00 GiB memory
  position:  first in the queue
  start:     unknown: nothing that is there, or may be launched, would take it
  next step: install and start Docker on an instance, then start its agent again; or choose an engine version that \
is published as a command";
    reads(&job(1), &Facts { instances: &without, ..NOTHING }, ReasonCode::NoRuntime, text);
}

#[test]
fn all_busy_names_the_one_with_most_free() {
    let mut busy = [instance(1, cores(4, 8)), instance(2, cores(4, 8)), instance(3, cores(1, 1))];
    busy[0].allocated = cores(4, 8);
    busy[1].allocated = cores(3, 1);
    let text = "\
JOB is queued: no instance has enough CPU free: the job needs 2 cores, host-2 has 1 core free
  needs:     2 cores CPU, 4.00 GiB memory
  nearest:   host-2 (pool default) has 4 cores CPU, 8.00 GiB memory
  free:      1 core CPU, 7.00 GiB memory
  pool:      large (4 cores CPU, 8.00 GiB memory): has the 2 instances that it may have
  position:  1 job before it
  start:     about 2026-01-01T00:01:41.000Z, in nine of ten cases by 2026-01-01T00:05:01.000Z
  next step: wait until about 2026-01-01T00:01:41.000Z, or submit the job with 1 core of CPU or less, which host-2 has \
free, or raise `max` of pool large above 2";
    let left = Within { p50_ms: Some(100_000), p90_ms: Some(300_000) };
    let holds = [Holds { instance: instance_id(2), resources: cores(3, 1), left }];
    let outlook = Outlook { instances: &busy, holds: &holds, launchable: &[], before: &[] };
    let start = forecast::start(&Request::of(&job(1).spec), &outlook, at(1));
    let pools = [pool("large", cores(4, 8), 2)];
    let facts = Facts { instances: &busy, pools: &pools, position: behind(1), start, ..NOTHING };
    reads(&job(1), &facts, ReasonCode::AllBusy, text);
}

#[test]
fn none_ready_says_why() {
    let mut away = [instance(1, cores(4, 8)), instance(2, cores(4, 8))];
    away[0].state = InstanceState::Disconnected;
    away[1].state = InstanceState::Unhealthy;
    away[1].profile.problems =
        vec![HealthProblem { gate: "disk".to_owned(), message: "the disk is full".to_owned() }];
    let text = "\
JOB is queued: no instance that is large enough takes work now: of host-2, it is unhealthy (disk)
  needs:     2 cores CPU, 4.00 GiB memory
  nearest:   host-2 (pool default) has 4 cores CPU, 8.00 GiB memory
  free:      4 cores CPU, 8.00 GiB memory
  position:  first in the queue
  start:     unknown: nothing that is there, or may be launched, would take it
  next step: run `telecine doctor` on host-2 and mend what it names, or add an instance";
    let facts = Facts { instances: &away, ..NOTHING };
    reads(&job(1), &facts, ReasonCode::NoneReady, text);
    let explanation = explain(&job(1), &Facts { instances: &away[..1], ..NOTHING }, at(1));
    assert_eq!(explanation.code, ReasonCode::NoneReady);
    assert!(explanation.next_step.starts_with("start the agent on host-1"), "{}", explanation.next_step);
    let pools = [pool("large", cores(4, 8), 1)];
    let explanation = explain(&job(1), &Facts { pools: &pools, ..facts }, at(1));
    assert_eq!(explanation.code, ReasonCode::NoneReady, "what is ill is named, whatever else helps");
    assert!(explanation.next_step.ends_with("or wait for pool large, which gives another instance"));
    away[0].state = InstanceState::Cordoned;
    let cordoned = |pools| explain(&job(1), &Facts { instances: &away[..1], pools, ..NOTHING }, at(1));
    assert_eq!(cordoned(&pools).code, ReasonCode::InstanceWanted, "another one comes");
    let full = [PoolNow { running: pools[0].pool.max, ..pools[0].clone() }];
    let explanation = cordoned(&full);
    assert!(
        explanation.summary.ends_with("of host-1, it is cordoned and takes no new work"),
        "{}",
        explanation.summary
    );
    assert!(
        explanation.next_step.starts_with("take the cordon of host-1 back with `telecine instances undrain`")
    );
    away[0].state = InstanceState::Lost;
    let gone = Facts { instances: &away[..1], pools: &pools, ..NOTHING };
    assert_eq!(explain(&job(1), &gone, at(1)).code, ReasonCode::InstanceWanted, "what is gone is no way");
}

#[test]
fn it_fits_and_waits_for_its_turn() {
    let text = "\
JOB is queued: the job fits free capacity and waits for its turn
  needs:     2 cores CPU, 4.00 GiB memory
  room:      on host-1 (pool default)
  position:  2 jobs before it, and 3 of other accounts, of which some may be
  start:     about 2026-01-01T00:00:01.000Z, or much later
  next step: raise the job's priority above 500 to let it go first";
    let position = Position { perhaps_before: 3, ..behind(2) };
    let start = Start::Expected { p50: at(1), p90: None };
    let facts = Facts { instances: &[instance(1, cores(4, 8))], position, start, ..NOTHING };
    reads(&job(1), &facts, ReasonCode::WaitsForTurn, text);
    let highest = Position { highest_priority: Some(MAX_PRIORITY), ..position };
    assert_eq!(explain(&job(1), &Facts { position: highest, ..facts }, at(1)).next_step, "");
    let many = Position { is_partial: true, ..behind(0) };
    assert_eq!(many.to_string(), "at least 0 jobs before it");
}

#[test]
fn the_limit_of_a_factory_then_that_of_the_account() {
    let mut limited = job(1);
    limited.spec.origin = Origin::Factory(factory());
    let limits = Limits { every_account: Some(3), factories: [(factory(), 2)].into(), ..Limits::default() };
    let reached = |account, of_factory| {
        let there = Counts { account, factory: of_factory };
        ReachedLimit::of(&limits, limited.account, limited.spec.origin.factory(), there)
    };
    let text = "\
JOB is queued: factory FACTORY may have 2 attempts at the same time, and has 2
  needs:     2 cores CPU, 4.00 GiB memory
  room:      on host-1 (pool default)
  position:  first in the queue
  start:     unknown: it waits for something that has no time
  next step: wait until one of them ends, or raise `scheduling.factory_limits` of FACTORY in the manager's settings";
    let instances = [instance(1, cores(4, 8))];
    let facts = Facts { instances: &instances, limit: reached(2, 2), ..NOTHING };
    let explanation = reads(&limited, &facts, ReasonCode::LimitReached, text);
    assert_eq!(explanation.limit.map(|limit| (limit.limit, limit.running)), Some((2, 2)));
    let of_account = reached(3, 1).unwrap();
    assert_eq!((of_account.by, of_account.factory), (LimitedBy::Account, None));
    assert_eq!(reached(2, 1), None);
    assert_eq!(ReachedLimit::of(&limits, limited.account, None, Counts { account: 2, factory: 9 }), None);
}

#[test]
fn an_instance_that_would_take_it_is_starting_or_would_be_launched() {
    let small = [instance(1, cores(1, 1))];
    let mut large = pool("large", cores(4, 8), 0);
    let start = |pools: &[PoolNow]| {
        let launchable = launchable(pools, &small);
        let outlook = Outlook { instances: &small, holds: &[], launchable: &launchable, before: &[] };
        forecast::start(&Request::of(&job(1).spec), &outlook, at(1))
    };
    let text = "\
JOB is queued: no instance takes the job yet; one of pool large would be launched, which takes about 30 s
  needs:     2 cores CPU, 4.00 GiB memory
  nearest:   host-1 (pool default) has 1 core CPU, 1.00 GiB memory
  free:      1 core CPU, 1.00 GiB memory
  pool:      large (4 cores CPU, 8.00 GiB memory): would be launched, which takes about 30 s
  position:  first in the queue
  start:     about 2026-01-01T00:00:31.000Z, in nine of ten cases by 2026-01-01T00:01:01.000Z
  next step: wait for the autoscaler, whose reasons `telecine pools decisions` tells";
    let pools = [large.clone()];
    let facts = Facts { instances: &small, pools: &pools, start: start(&pools), ..NOTHING };
    reads(&job(1), &facts, ReasonCode::InstanceWanted, text);
    large.changing = 1;
    let text = "\
JOB is queued: no instance takes the job yet; in pool large an instance is starting, which takes about 30 s
  needs:     2 cores CPU, 4.00 GiB memory
  pool:      large (4 cores CPU, 8.00 GiB memory): an instance is starting, which takes about 30 s
  position:  first in the queue
  start:     about 2026-01-01T00:00:31.000Z, in nine of ten cases by 2026-01-01T00:01:01.000Z
  next step: wait until it is ready";
    let pools = [large];
    let facts = Facts { pools: &pools, start: start(&pools), ..NOTHING };
    reads(&job(1), &facts, ReasonCode::InstanceStarting, text);
}

#[test]
fn pools_that_would_take_it_are_closed() {
    let until = at(600);
    let closed = |closed, price| {
        let mut now = pool("spot", cores(4, 8), 0);
        (now.closed, now.pool.price_micros_per_hour) = (Some(closed), price);
        now
    };
    let mut broken = closed(Closed::BootsFail { until }, 1);
    broken.pool.name = "cheap".parse().unwrap();
    let pools = [broken.clone(), closed(Closed::NoCapacity { until }, 9), pool("small", cores(1, 1), 0)];
    let text = "\
JOB is queued: no instance takes the job, and of the pools that would take it, the nearest, spot, gives none: the \
provider has no capacity; it is asked again at 2026-01-01T00:10:00.000Z
  needs:     2 cores CPU, 4.00 GiB memory
  pool:      spot (4 cores CPU, 8.00 GiB memory): the provider has no capacity; it is asked again at \
2026-01-01T00:10:00.000Z
  pool:      cheap (4 cores CPU, 8.00 GiB memory): its instances do not boot; it is tried again at \
2026-01-01T00:10:00.000Z
  pool:      small (1 core CPU, 1.00 GiB memory): CPU needed: 2 cores, it has 1 core
  position:  first in the queue
  start:     unknown: nothing that is there, or may be launched, would take it
  next step: wait until the provider is asked again, or add a pool of another shape or market";
    reads(&job(1), &Facts { pools: &pools, ..NOTHING }, ReasonCode::PoolsClosed, text);
    for (pool, said, step) in [
        (broken, "its instances do not boot", "look at the log of an instance of pool cheap"),
        (closed(Closed::Cap(Cap::MoneyPerHour), 1), "the cap on money per hour", "raise the region's cap"),
        (pool("large", cores(4, 8), 2), "has the 2 instances", "raise `max` of pool large above 2"),
    ] {
        let explanation = explain(&job(1), &Facts { pools: &[pool], ..NOTHING }, at(1));
        assert_eq!(explanation.code, ReasonCode::PoolsClosed);
        assert!(explanation.summary.contains("the pool that would take it"), "{}", explanation.summary);
        assert!(explanation.summary.contains(said), "{}", explanation.summary);
        assert!(explanation.next_step.starts_with(step), "{}", explanation.next_step);
    }
}

#[test]
fn what_closes_a_pool_is_read_from_the_last_decision() {
    let (name, other): (PoolName, PoolName) = ("a".parse().unwrap(), "b".parse().unwrap());
    let reasons = [
        Reason::Headroom,
        Reason::PoolRefused { pool: name.clone(), until: at(9) },
        Reason::PoolBroken { pool: other.clone(), until: at(9) },
    ];
    assert_eq!(Closed::by(&reasons, &name, at(1)), Some(Closed::NoCapacity { until: at(9) }));
    assert_eq!(Closed::by(&reasons, &other, at(1)), Some(Closed::BootsFail { until: at(9) }));
    assert_eq!(Closed::by(&reasons, &name, at(9)), None, "it is asked again");
    let cap = |cap| [Reason::CapReached { cap, jobs: 1 }];
    assert_eq!(Closed::by(&cap(Cap::Instances), &name, at(1)), Some(Closed::Cap(Cap::Instances)));
    assert_eq!(Closed::by(&cap(Cap::LaunchesAtOnce), &name, at(1)), None, "more are launched next time");
}

#[test]
fn a_pool_whose_instances_have_no_docker_gives_none_that_would_take_it() {
    let mut without = [instance(1, cores(1, 1))];
    without[0].profile.runtimes = [RuntimeKind::Process].into();
    without[0].profile.pool = "large".parse().unwrap();
    let pools = [pool("large", cores(4, 8), 1)];
    let facts = Facts { instances: &without, pools: &pools, ..NOTHING };
    let explanation = explain(&job(1), &facts, at(1));
    assert_eq!(explanation.code, ReasonCode::NoRuntime);
    assert!(
        explanation.to_string().contains("pool:      large (4 cores CPU, 8.00 GiB memory): it has no Docker")
    );
    let nobody = explain(&job(1), &Facts { instances: &[], ..facts }, at(1));
    assert_eq!(nobody.code, ReasonCode::InstanceWanted, "of whom nothing is known, nothing bad is thought");
}

#[test]
fn held() {
    let held = after(job(1), [JobEvent::Hold(HoldReason::Manual)]);
    let text = "\
JOB is held: the job is held and does not stand in the queue
  start:     unknown: it waits for something that has no time
  next step: release the job to let it into the queue";
    reads(&held, &NOTHING, ReasonCode::Held, text);
}

#[test]
fn held_until_other_jobs_have_succeeded() {
    let mut waiting = job(1);
    waiting.state = JobState::Held { reason: HoldReason::Dependencies };
    let on = |number, state| Dependency { job: crate::fixture::job_id(number), state };
    let states = [Some(StateName::Running), Some(StateName::Queued), None, Some(StateName::Held)];
    let dependencies: Vec<Dependency> = (2..).zip(states).map(|(number, state)| on(number, state)).collect();
    let [a, b, c] = [2, 3, 4].map(|number| crate::fixture::job_id(number).to_string());
    let text = format!(
        "\
JOB is held: it depends on jobs that have not succeeded yet: {a} (running), {b} (queued), {c} (not kept any more) and 1 more
  start:     unknown: it waits for something that has no time
  next step: wait, or see what keeps the first: `telecine jobs explain {a}`"
    );
    let facts = Facts { dependencies: &dependencies, ..NOTHING };
    let explanation = reads(&waiting, &facts, ReasonCode::WaitsForJobs, &text);
    assert_eq!(explanation.dependencies, dependencies);
    assert_eq!(explain(&waiting, &NOTHING, at(1)).code, ReasonCode::WaitsForJobs, "they have just succeeded");
}

fn run_until_failed(class: FailureClass) -> Job {
    let epoch = crate::id::Epoch(1);
    let failed = JobEvent::AttemptFailed { epoch, failure: failure(class) };
    after(job(1), [JobEvent::Assign { instance: instance_id(1) }, failed])
}

#[test]
fn paused_after_a_failure() {
    let text = "\
JOB is queued: the last attempt failed; the next one starts at 2026-01-01T00:00:02.000Z or later
  needs:     2 cores CPU, 4.00 GiB memory
  room:      on host-1 (pool default)
  position:  first in the queue
  start:     about 2026-01-01T00:00:02.000Z, in nine of ten cases by 2026-01-01T00:00:02.000Z
  last time: something went wrong (infrastructure, test_failure)";
    let paused = run_until_failed(FailureClass::Infrastructure);
    let start = Start::Expected { p50: at(2), p90: Some(at(2)) };
    let facts = Facts { instances: &[instance(1, cores(4, 8))], start, ..NOTHING };
    reads(&paused, &facts, ReasonCode::PausedAfterFailure, text);
    let over = explain(&paused, &facts, at(2));
    assert_eq!((over.code, over.not_before), (ReasonCode::WaitsForTurn, None));
}

#[test]
fn running_and_what_is_around_it() {
    let epoch = crate::id::Epoch(1);
    let assigned = after(job(1), [JobEvent::Assign { instance: instance_id(1) }]);
    reads(
        &assigned,
        &NOTHING,
        ReasonCode::Starting,
        "JOB is assigned: attempt 1 is being prepared on INSTANCE",
    );
    let running = after(assigned, [JobEvent::EngineRunning { epoch }]);
    let text = "JOB is running: attempt 1 runs on INSTANCE since 2026-01-01T00:00:01.000Z";
    reads(&running, &NOTHING, ReasonCode::Running, text);
    let canceling = after(running.clone(), [JobEvent::Cancel]);
    reads(
        &canceling,
        &NOTHING,
        ReasonCode::Canceling,
        "JOB is canceling: attempt 1 on INSTANCE is being stopped",
    );
    let granted = after(running, [JobEvent::Grant { epoch, manifest: manifest() }]);
    let text = "JOB is finalizing: attempt 1 has made 1 output, which are being published";
    reads(&granted, &NOTHING, ReasonCode::Finalizing, text);
    let done = after(granted, [JobEvent::Published { epoch }]);
    let text = "JOB is succeeded: attempt 1 succeeded and published 1 output";
    reads(&done, &NOTHING, ReasonCode::Succeeded, text);
}

#[test]
fn failed_names_the_failure_and_the_next_step() {
    let text = "\
JOB is failed: the job failed after 1 attempt: something went wrong (engine, test_failure)
  next step: read the engine's log, then retry the job, with another engine version if the engine is at fault";
    let failed = run_until_failed(FailureClass::Engine);
    let explanation = reads(&failed, &NOTHING, ReasonCode::Failed, text);
    assert_eq!(explanation.failure, Some(failure(FailureClass::Engine)));
}

#[test]
fn canceled_and_expired() {
    let canceled = after(job(1), [JobEvent::Cancel]);
    let text = "\
JOB is canceled: the job was canceled at 2026-01-01T00:00:01.000Z
  next step: retry the job to run it after all";
    reads(&canceled, &NOTHING, ReasonCode::Canceled, text);
    let mut waited = job(1);
    waited.spec.timeouts.queue_seconds = Some(1);
    let expired = after(waited, [JobEvent::QueueTimeout]);
    let text = "\
JOB is expired: the job waited longer than its queue timeout and expired at 2026-01-01T00:00:01.000Z
  next step: retry the job with a longer `timeouts.queue_seconds`, or add capacity";
    reads(&expired, &NOTHING, ReasonCode::Expired, text);
}
