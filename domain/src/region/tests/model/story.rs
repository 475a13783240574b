//! Random stories for the scheduler and its reference: what may be told of the world as it is, true or stale.

use proptest::prelude::*;

use super::*;

/// One step of a story; numbers choose among what there is at that time.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Queue { job: u128, shape: usize, priority: u16, news: i8, limits: u8 },
    Leave(u128),
    Record { flight: usize, granted: bool },
    Refuse { flight: usize, requeue: bool },
    RefuseRecorded { live: usize, requeue: bool },
    RefuseForRoom { live: usize, free: Resources },
    Grant(usize),
    End { live: usize, requeue: bool },
    Renew(usize),
    FoundLive { job: u128, epoch: u64, instance: u128, limited: bool },
    FoundOver { job: u128, epoch: u64 },
    Hello { instance: u128, forget: bool, stranger: Option<u128>, small: bool },
    Change { instance: u128, draining: bool, small: bool, sick: bool },
    Cordon { instance: u128, number: Option<u64> },
    Notice { instance: u128, terminate: bool, rebalance: bool },
    Detach(u128),
    Wait,
}

pub(super) fn step() -> impl Strategy<Value = (Step, u64)> {
    let (job, instance, pick) = (|| 1..7u128, || 1..4u128, || 0..8usize);
    let step = prop_oneof![
        8 => (job(), 0..4usize, prop_oneof![Just(500), Just(900)], -1..2i8, 0..8u8)
            .prop_map(|(job, shape, priority, news, limits)| Step::Queue { job, shape, priority, news, limits }),
        1 => job().prop_map(Step::Leave),
        8 => (pick(), prop::bool::weighted(0.1)).prop_map(|(flight, granted)| Step::Record { flight, granted }),
        2 => (pick(), any::<bool>()).prop_map(|(flight, requeue)| Step::Refuse { flight, requeue }),
        1 => (pick(), any::<bool>()).prop_map(|(live, requeue)| Step::RefuseRecorded { live, requeue }),
        3 => (pick(), prop::sample::select(vec![cores(0, 0), cores(1, 1), cores(2, 2), cores(8, 8)]))
            .prop_map(|(live, free)| Step::RefuseForRoom { live, free }),
        2 => pick().prop_map(Step::Grant),
        5 => (pick(), any::<bool>()).prop_map(|(live, requeue)| Step::End { live, requeue }),
        5 => pick().prop_map(Step::Renew),
        1 => (job(), 1..5u64, instance(), any::<bool>())
            .prop_map(|(job, epoch, instance, limited)| Step::FoundLive { job, epoch, instance, limited }),
        1 => (job(), 1..5u64).prop_map(|(job, epoch)| Step::FoundOver { job, epoch }),
        5 => (instance(), prop::bool::weighted(0.2), prop::option::weighted(0.2, job()), prop::bool::weighted(0.2))
            .prop_map(|(instance, forget, stranger, small)| Step::Hello { instance, forget, stranger, small }),
        2 => (instance(), prop::bool::weighted(0.3), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(instance, draining, small, sick)| Step::Change { instance, draining, small, sick }),
        2 => (instance(), prop::option::of(1..3u64))
            .prop_map(|(instance, number)| Step::Cordon { instance, number }),
        1 => (instance(), prop::bool::weighted(0.3), any::<bool>())
            .prop_map(|(instance, terminate, rebalance)| Step::Notice { instance, terminate, rebalance }),
        1 => instance().prop_map(Step::Detach),
        3 => Just(Step::Wait),
    ];
    (step, prop_oneof![6 => 0..3_000u64, 2 => 10_000..40_000u64, 1 => 60_000..70_000u64])
}

fn capacity(small: bool) -> Resources {
    if small { cores(3, 6) } else { cores(4, 8) }
}

fn told_profile(instance: u128, small: bool) -> InstanceProfile {
    profile(instance, capacity(small))
}

fn picked<T>(items: &[T], pick: usize) -> Option<&T> {
    items.get(pick % items.len().max(1))
}

/// What the step says in the world as it is.
pub(super) fn event(step: &Step, world: &Reference, now: Timestamp) -> RegionEvent {
    let told = match *step {
        Step::Queue { job, shape, priority, news, limits } => {
            Some(queue_event(world, job, shape, priority, news, limits, now))
        }
        Step::Leave(job) => Some(RegionEvent::JobLeft(job_id(job))),
        Step::Record { flight, granted } => picked(&world.flights, flight).map(|flight| {
            let epoch = flight.from.next();
            let id = AttemptId {
                job: flight.job.id,
                attempt: AttemptNumber(u32::try_from(epoch.0).unwrap()),
                epoch,
            };
            let (instance, resources) = (flight.instance, flight.resources);
            let total_deadline = flight.job.total_deadline;
            let (account, factory) = (flight.job.account, flight.job.factory);
            let live = LiveAttempt { id, account, factory, instance, resources, total_deadline, granted };
            RegionEvent::AttemptLive(live)
        }),
        Step::Refuse { flight, requeue } => picked(&world.flights, flight).map(|flight| {
            RegionEvent::AssignmentFailed { job: flight.job.id, instance: flight.instance, requeue }
        }),
        Step::RefuseRecorded { live, requeue } => {
            picked(&world.running, live).map(|live| RegionEvent::AssignmentFailed {
                job: live.attempt.id.job,
                instance: live.attempt.instance,
                requeue,
            })
        }
        Step::RefuseForRoom { live, free } => picked(&world.running, live).map(|live| {
            RegionEvent::InstanceRefused { instance: live.attempt.instance, attempt: live.attempt.id, free }
        }),
        Step::Grant(live) => picked(&world.running, live)
            .map(|live| RegionEvent::AttemptLive(LiveAttempt { granted: true, ..live.attempt })),
        Step::End { live, requeue } => picked(&world.running, live).map(|live| match &live.queued_as {
            Some(job) if requeue => {
                RegionEvent::JobQueued(QueuedJob { epoch: live.attempt.id.epoch, ..job.clone() })
            }
            Some(_) | None => RegionEvent::AttemptOver(live.attempt.id),
        }),
        Step::Renew(live) => picked(&world.running, live).map(|live| RegionEvent::Renewed(live.attempt.id)),
        Step::FoundLive { job, epoch, instance, limited } => {
            let total_deadline = limited.then(|| now.after(Duration::from_secs(90)));
            let (account, factory) = whose(job);
            let found = LiveAttempt { account, factory, total_deadline, ..live(job, epoch, instance) };
            Some(RegionEvent::AttemptLive(found))
        }
        Step::FoundOver { job, epoch } => Some(RegionEvent::AttemptOver(attempt(job, epoch))),
        Step::Hello { instance, forget, stranger, small } => {
            Some(hello_event(world, instance, forget, stranger, small))
        }
        Step::Change { instance, draining, small, sick } => {
            let mut profile = told_profile(instance, small);
            if sick {
                profile.problems =
                    vec![crate::instance::HealthProblem { gate: "disk".into(), message: "full".into() }];
            }
            Some(RegionEvent::ProfileChanged { profile, draining })
        }
        Step::Cordon { instance, number } => {
            Some(RegionEvent::Cordon { instance: instance_id(instance), cordon: number })
        }
        Step::Notice { instance, terminate, rebalance } => {
            let terminate_at = terminate.then(|| now.after(Duration::from_secs(120)));
            let notice = Notice { terminate_at, rebalance };
            Some(RegionEvent::Noticed { instance: instance_id(instance), notice })
        }
        Step::Detach(instance) => Some(RegionEvent::InstanceDetached(instance_id(instance))),
        Step::Wait => None,
    };
    told.unwrap_or(RegionEvent::Tick)
}

/// Three accounts, one of them with a factory.
fn whose(job: u128) -> (AccountId, Option<FactoryId>) {
    (account(job % 3 + 1), (job.is_multiple_of(3)).then(|| FactoryId::new(at(0), job % 2)))
}

fn queue_event(
    world: &Reference,
    job: u128,
    shape: usize,
    priority: u16,
    news: i8,
    limits: u8,
    now: Timestamp,
) -> RegionEvent {
    let shapes = [cores(1, 1), cores(2, 4), cores(4, 8), cores(5, 1)];
    let id = job_id(job);
    let live =
        world.running.iter().find(|live| live.attempt.id.job == id).map(|live| live.attempt.id.epoch.0);
    let flying = world.flights.iter().find(|flight| flight.job.id == id).map(|flight| flight.job.epoch.0);
    let epoch = live.or(flying).unwrap_or(0).saturating_add_signed(i64::from(news));
    let after = |bit: u8, seconds| (limits & bit != 0).then(|| now.after(Duration::from_secs(seconds)));
    let (account, factory) = whose(job);
    let mut told = QueuedJob {
        account,
        factory,
        priority,
        queued_at: Timestamp::from_millis(now.as_millis() / 100_000 * 100_000),
        not_before: after(1, 2),
        queue_deadline: after(2, 80),
        total_deadline: after(4, 100),
        epoch: Epoch(epoch),
        ..queued(job)
    };
    Arc::make_mut(&mut told.request).resources = shapes[shape];
    RegionEvent::JobQueued(told)
}

fn hello_event(
    world: &Reference,
    instance: u128,
    forget: bool,
    stranger: Option<u128>,
    small: bool,
) -> RegionEvent {
    let here = |live: &&Running| !forget && live.attempt.instance == instance_id(instance);
    let mut running: Vec<AttemptId> = world.running.iter().filter(here).map(|live| live.attempt.id).collect();
    running.extend(stranger.map(|job| attempt(job, 9)));
    RegionEvent::InstanceAttached { profile: told_profile(instance, small), running }
}
