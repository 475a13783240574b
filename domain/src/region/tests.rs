//! The scheduler told one story at a time; `model` tells it thousands.

use super::*;
use crate::fixture::{at, cores, instance_id, job, job_id, profile};
use crate::id::AttemptNumber;

mod model;
mod observe;
mod order;

fn region() -> Region {
    Region::new(RegionConfig::default())
}

fn queued(number: u128) -> QueuedJob {
    QueuedJob { queue_deadline: None, ..QueuedJob::of(&job(number)).unwrap() }
}

fn attempt(number: u128, epoch: u64) -> AttemptId {
    AttemptId {
        job: job_id(number),
        attempt: AttemptNumber(u32::try_from(epoch).unwrap()),
        epoch: Epoch(epoch),
    }
}

fn live(number: u128, epoch: u64, instance: u128) -> LiveAttempt {
    LiveAttempt {
        id: attempt(number, epoch),
        account: queued(number).account,
        factory: None,
        instance: instance_id(instance),
        resources: cores(2, 4),
        total_deadline: None,
        granted: false,
    }
}

fn attach(region: &mut Region, number: u128, running: Vec<AttemptId>, seconds: u64) -> Vec<Action> {
    let profile = profile(number, cores(4, 8));
    region.handle(RegionEvent::InstanceAttached { profile, running }, at(seconds))
}

fn assign(job: u128, instance: u128) -> Action {
    Action::Assign { job: job_id(job), instance: instance_id(instance) }
}

#[test]
fn a_job_goes_where_it_fits_and_its_resources_come_back() {
    let mut region = region();
    assert_eq!(attach(&mut region, 1, vec![], 0), []);
    assert_eq!(region.handle(RegionEvent::JobQueued(queued(1)), at(1)), [assign(1, 1)]);
    assert_eq!(region.handle(RegionEvent::JobQueued(queued(2)), at(1)), [assign(2, 1)]);
    assert_eq!(region.handle(RegionEvent::JobQueued(queued(3)), at(1)), []);
    assert_eq!(region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(1)), []);
    assert_eq!(region.instance(instance_id(1)).unwrap().free, Resources::ZERO);
    assert_eq!(region.handle(RegionEvent::AttemptOver(attempt(1, 1)), at(2)), [assign(3, 1)]);
}

#[test]
fn priority_is_order_then_queue_time_then_id() {
    let mut region = region();
    for (number, priority, queued_at) in [(1, 500, 9), (2, 500, 5), (3, 900, 9), (4, 500, 5)] {
        let job = QueuedJob { priority, queued_at: at(queued_at), ..queued(number) };
        assert_eq!(region.handle(RegionEvent::JobQueued(job), at(10)), []);
    }
    assert_eq!(region.queued_ahead(job_id(1)), Some(3));
    assert_eq!(region.queued_ahead(job_id(3)), Some(0));
    let profile = profile(1, cores(6, 64));
    let actions = region.handle(RegionEvent::InstanceAttached { profile, running: vec![] }, at(10));
    assert_eq!(actions, [assign(3, 1), assign(2, 1), assign(4, 1)]);
    let raised = QueuedJob { priority: 1000, queued_at: at(9), ..queued(1) };
    assert_eq!(region.handle(RegionEvent::JobQueued(raised), at(11)), []);
    assert_eq!((region.queue_length(), region.queued_ahead(job_id(1))), (1, Some(0)));
}

fn cordon(number: u128, cordon: Option<u64>) -> RegionEvent {
    RegionEvent::Cordon { instance: instance_id(number), cordon }
}

#[test]
fn a_cordoned_instance_takes_nothing_until_the_cordon_is_lifted() {
    let mut region = region();
    assert_eq!(region.handle(cordon(1, Some(3)), at(0)), [], "told before the instance is there");
    attach(&mut region, 1, vec![], 0);
    assert_eq!(region.handle(RegionEvent::JobQueued(queued(1)), at(1)), []);
    let view = region.instance(instance_id(1)).unwrap();
    assert_eq!((view.state, view.cordon), (InstanceState::Cordoned, Some(3)));
    assert_eq!(region.occupancy().capacity, cores(4, 8), "it is there all the same");
    assert_eq!(
        region.unplaceable(job_id(1)).unwrap().nearest().unwrap().reason.to_string(),
        "it is cordoned and takes no new work"
    );
    assert_eq!(region.handle(cordon(1, Some(3)), at(2)), []);
    attach(&mut region, 1, vec![], 3);
    assert_eq!(region.instance(instance_id(1)).unwrap().cordon, Some(3), "a new stream lifts nothing");
    assert!(region.is_idle(instance_id(1)));
    assert_eq!(region.handle(cordon(1, None), at(4)), [assign(1, 1)]);
    assert!(!region.is_idle(instance_id(1)), "an assignment in flight is work");
    assert_eq!(region.handle(cordon(1, Some(4)), at(5)), []);
    region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(6));
    assert!(!region.is_idle(instance_id(1)));
    region.handle(RegionEvent::AttemptOver(attempt(1, 1)), at(7));
    assert!(region.is_idle(instance_id(1)));
    attach(&mut region, 1, vec![attempt(2, 1)], 8);
    assert!(!region.is_idle(instance_id(1)), "what its hello names may run");
}

#[test]
fn an_announced_end_keeps_new_work_away_and_a_hint_does_not() {
    let mut region = region();
    let noticed = |terminate_at: Option<Timestamp>, rebalance| RegionEvent::Noticed {
        instance: instance_id(1),
        notice: Notice { terminate_at, rebalance },
    };
    attach(&mut region, 1, vec![], 0);
    region.handle(noticed(None, true), at(1));
    assert_eq!(region.handle(RegionEvent::JobQueued(queued(1)), at(1)), [assign(1, 1)]);
    region.handle(noticed(Some(at(120)), true), at(2));
    assert_eq!(region.handle(RegionEvent::JobQueued(queued(2)), at(2)), []);
    let record = region.instance(instance_id(1)).unwrap().to_record();
    let told = (record.state, record.notice, record.rebalance);
    assert_eq!(told, (InstanceState::Cordoned, Some(at(120)), true));
    assert_eq!(region.handle(noticed(None, false), at(3)), [assign(2, 1)], "it was taken back");
}

#[test]
fn a_reservation_on_an_instance_that_is_cordoned_goes_elsewhere() {
    let mut region = region();
    for number in 1..=2 {
        attach(&mut region, number, vec![], 0);
        region.handle(now_live(number, 1, number, cores(3, 4)), at(0));
        region.handle(RegionEvent::Renewed(attempt(number, 1)), at(50));
    }
    region.handle(needing(10, cores(4, 8), 0), at(0));
    region.handle(needing(20, cores(1, 1), 59), at(59));
    region.handle(needing(21, cores(1, 1), 60), at(60));
    let reserved = |region: &Region| region.reservations.all().map(|held| held.instance).collect::<Vec<_>>();
    assert_eq!(reserved(&region), [instance_id(2)]);
    region.handle(cordon(2, Some(1)), at(61));
    assert_eq!(reserved(&region), [], "given up");
    assert_eq!(region.handle(RegionEvent::AttemptOver(attempt(1, 1)), at(62)), []);
    assert_eq!(reserved(&region), [instance_id(1)], "and kept elsewhere, before a later job is placed");
    region.handle(now_live(20, 1, 1, cores(1, 1)), at(63));
    assert_eq!(region.handle(RegionEvent::AttemptOver(attempt(20, 1)), at(64)), [assign(10, 1)]);
}

#[test]
fn what_cannot_be_placed_is_skipped_and_says_why() {
    let mut region = region();
    let mut large = queued(1);
    Arc::make_mut(&mut large.request).resources = cores(64, 4);
    assert_eq!(attach(&mut region, 1, vec![], 0), []);
    assert_eq!(region.handle(RegionEvent::JobQueued(large), at(1)), []);
    assert_eq!(region.handle(RegionEvent::JobQueued(queued(2)), at(500)), [assign(2, 1)]);
    let refused = region.unplaceable(job_id(1)).unwrap();
    assert!(matches!(refused.nearest().unwrap().reason, crate::placement::RefusalReason::TooSmall { .. }));
    assert_eq!(region.unplaceable(job_id(2)), None);
}

#[test]
fn an_image_waits_for_docker() {
    let mut region = region();
    let mut without = profile(1, cores(4, 8));
    without.runtimes = [crate::instance::RuntimeKind::Process].into();
    region.handle(RegionEvent::InstanceAttached { profile: without, running: vec![] }, at(0));
    assert_eq!(region.handle(RegionEvent::JobQueued(queued(1)), at(0)), []);
    let reason = region.unplaceable(job_id(1)).unwrap().nearest().unwrap().reason.clone();
    assert_eq!(reason.to_string(), "it has no Docker");
    let with_docker = profile(1, cores(4, 8));
    let changed = RegionEvent::ProfileChanged { profile: with_docker, draining: false };
    assert_eq!(region.handle(changed, at(1)), [assign(1, 1)]);
}

fn needing(number: u128, resources: Resources, seconds: u64) -> RegionEvent {
    let mut job = QueuedJob { queued_at: at(seconds), ..queued(number) };
    Arc::make_mut(&mut job.request).resources = resources;
    RegionEvent::JobQueued(job)
}

fn now_live(number: u128, epoch: u64, instance: u128, resources: Resources) -> RegionEvent {
    RegionEvent::AttemptLive(LiveAttempt { resources, ..live(number, epoch, instance) })
}

#[test]
fn a_large_job_is_not_starved_by_small_ones() {
    let mut region = region();
    for number in 1..=2 {
        attach(&mut region, number, vec![], 0);
        region.handle(now_live(number, 1, number, cores(3, 4)), at(0));
        region.handle(RegionEvent::Renewed(attempt(number, 1)), at(50));
    }
    assert_eq!(region.handle(needing(10, cores(4, 8), 0), at(0)), []);
    assert_eq!(
        region.handle(needing(20, cores(1, 1), 59), at(59)),
        [assign(20, 1)],
        "before the wait is over"
    );
    assert_eq!(region.handle(needing(21, cores(1, 1), 60), at(60)), [], "instance 2 is kept, 1 is full");
    region.handle(now_live(20, 1, 1, cores(1, 1)), at(60));
    assert_eq!(region.handle(RegionEvent::AttemptOver(attempt(20, 1)), at(61)), [assign(21, 1)]);
    let mut first = needing(30, cores(1, 1), 62);
    if let RegionEvent::JobQueued(job) = &mut first {
        job.priority = 501;
    }
    assert_eq!(region.handle(first, at(62)), [assign(30, 2)], "what ranks before it is not kept out");
    region.handle(now_live(30, 1, 2, cores(1, 1)), at(62));
    assert_eq!(region.handle(RegionEvent::AttemptOver(attempt(30, 1)), at(63)), []);
    assert_eq!(region.handle(RegionEvent::AttemptOver(attempt(2, 1)), at(64)), [assign(10, 2)]);
}

#[test]
fn a_job_that_ranks_before_a_reservation_may_use_it_though_its_shape_waits() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    region.handle(now_live(1, 1, 1, cores(2, 4)), at(30));
    assert_eq!(region.handle(needing(10, cores(4, 8), 0), at(0)), []);
    assert_eq!(region.handle(needing(20, cores(1, 1), 60), at(60)), [], "kept for job 10");
    let RegionEvent::JobQueued(urgent) = needing(21, cores(1, 1), 61) else { unreachable!() };
    let urgent = QueuedJob { priority: 900, ..urgent };
    assert_eq!(region.handle(RegionEvent::JobQueued(urgent), at(61)), [assign(21, 1)]);
}

#[test]
fn a_long_queue_of_one_shape_is_tried_once() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    for number in 1..=5_000u64 {
        region.handle(needing(number.into(), cores(2, 4), number), at(0));
    }
    assert_eq!((region.queue_length(), region.in_flight.len()), (4_998, 2));
    region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(0));
    for number in 3..=2_000 {
        assert_eq!(
            region.handle(RegionEvent::AttemptOver(attempt(number - 2, 1)), at(1)),
            [assign(number, 1)]
        );
        region.handle(RegionEvent::AttemptLive(live(number - 1, 1, 1)), at(1));
    }
}

#[test]
fn a_reservation_ends_with_its_job_or_its_instance() {
    let fill = |region: &mut Region| {
        attach(region, 1, vec![], 0);
        region.handle(now_live(1, 1, 1, cores(2, 4)), at(30));
        assert_eq!(region.handle(needing(10, cores(4, 8), 0), at(0)), []);
        assert_eq!(region.handle(needing(20, cores(1, 1), 60), at(60)), [], "kept");
    };
    let mut gone = region();
    fill(&mut gone);
    assert_eq!(gone.handle(RegionEvent::JobLeft(job_id(10)), at(61)), [assign(20, 1)]);
    let mut shrunk = region();
    fill(&mut shrunk);
    let changed = RegionEvent::ProfileChanged { profile: profile(1, cores(3, 8)), draining: false };
    assert_eq!(shrunk.handle(changed, at(61)), [assign(20, 1)], "it would not fit there any more");
}

#[test]
fn an_attempt_is_lost_after_a_whole_lease_of_silence_and_not_before() {
    let mut region = region();
    region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(100));
    assert_eq!(region.next_deadline(), Some(at(160)));
    attach(&mut region, 1, vec![attempt(1, 1)], 110);
    assert_eq!(region.next_deadline(), Some(at(170)), "a hello that names it renews it");
    region.handle(RegionEvent::Renewed(attempt(1, 1)), at(120));
    region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(150));
    assert_eq!(region.next_deadline(), Some(at(180)), "reading it again in the table does not");
    assert_eq!(region.handle(RegionEvent::Tick, at(179)), []);
    let lost = Action::DeclareLost(attempt(1, 1));
    assert_eq!(region.handle(RegionEvent::Tick, at(180)), [lost]);
    assert_eq!(region.instance(instance_id(1)).unwrap().allocated, cores(2, 4), "held until it is over");
    assert_eq!(region.next_deadline(), Some(at(240)));
    assert_eq!(region.handle(RegionEvent::Tick, at(240)), [lost], "and said again");
    assert_eq!(region.handle(RegionEvent::AttemptOver(attempt(1, 1)), at(241)), []);
    assert_eq!((region.next_deadline(), region.attempts().count()), (None, 0));
}

#[test]
fn a_renewal_that_arrives_with_the_deadline_counts() {
    let mut region = region();
    region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(0));
    assert_eq!(region.handle(RegionEvent::Renewed(attempt(1, 1)), at(60)), []);
    assert_eq!(region.next_deadline(), Some(at(120)));
}

#[test]
fn after_a_take_over_capacity_in_use_is_not_given_out_twice() {
    let mut region = region();
    region.handle(now_live(1, 3, 1, cores(3, 4)), at(0));
    region.handle(RegionEvent::JobQueued(queued(2)), at(0));
    assert_eq!(attach(&mut region, 1, vec![attempt(1, 3)], 1), []);
    assert_eq!(attach(&mut region, 2, vec![], 1), [assign(2, 2)], "free capacity is used at once");
}

#[test]
fn unknown_attempts_keep_an_instance_from_work_until_they_are_resolved() {
    let resolve = Action::Resolve { attempt: attempt(7, 1), instance: instance_id(1) };
    let hello = |region: &mut Region| {
        region.handle(RegionEvent::JobQueued(queued(2)), at(0));
        assert_eq!(attach(region, 1, vec![attempt(7, 1)], 1), [resolve]);
        assert_eq!(region.instance(instance_id(1)).unwrap().unknown_attempts, 1);
    };
    let mut is_live = region();
    hello(&mut is_live);
    assert_eq!(is_live.handle(now_live(7, 1, 1, cores(2, 4)), at(2)), [assign(2, 1)]);
    let mut is_over = region();
    hello(&mut is_over);
    assert_eq!(is_over.handle(RegionEvent::AttemptOver(attempt(7, 1)), at(2)), [assign(2, 1)]);
    assert_eq!(is_over.next_deadline(), None);
    let mut is_silent = region();
    hello(&mut is_silent);
    assert_eq!(is_silent.next_deadline(), Some(at(61)));
    assert_eq!(is_silent.handle(RegionEvent::Tick, at(61)), [assign(2, 1)], "its lease is over");
}

#[test]
fn an_attempt_that_another_instance_claims_is_resolved() {
    let mut region = region();
    region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(0));
    let resolve = Action::Resolve { attempt: attempt(1, 1), instance: instance_id(2) };
    assert_eq!(attach(&mut region, 2, vec![attempt(1, 1)], 1), [resolve]);
    assert_eq!(region.next_deadline(), Some(at(60)), "and not renewed by it");
}

#[test]
fn an_instance_is_lost_a_lease_after_it_left_but_its_workers_may_live_on() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(0));
    region.handle(RegionEvent::InstanceDetached(instance_id(1)), at(10));
    region.handle(RegionEvent::InstanceDetached(instance_id(1)), at(20));
    assert_eq!(region.handle(RegionEvent::JobQueued(queued(2)), at(10)), [], "takes no work");
    region.handle(RegionEvent::Renewed(attempt(1, 1)), at(60));
    assert_eq!(region.handle(RegionEvent::Tick, at(69)), []);
    assert_eq!(region.handle(RegionEvent::Tick, at(70)), [Action::InstanceLost(instance_id(1))]);
    assert_eq!(region.instance(instance_id(1)).unwrap().state, InstanceState::Lost);
    assert_eq!(region.handle(RegionEvent::AttemptOver(attempt(1, 1)), at(80)), []);
    assert!(region.instance(instance_id(1)).is_none(), "forgotten when nothing runs there");
    assert_eq!(attach(&mut region, 1, vec![], 90), [assign(2, 1)]);
}

#[test]
fn an_instance_that_comes_back_is_not_lost() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    region.handle(RegionEvent::InstanceDetached(instance_id(1)), at(10));
    attach(&mut region, 1, vec![], 69);
    assert_eq!((region.next_deadline(), region.handle(RegionEvent::Tick, at(500))), (None, vec![]));
}

#[test]
fn draining_and_unhealthy_instances_take_no_work() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    let draining = RegionEvent::ProfileChanged { profile: profile(1, cores(4, 8)), draining: true };
    region.handle(draining, at(5));
    assert_eq!(region.handle(RegionEvent::JobQueued(queued(1)), at(6)), []);
    let view = region.instance(instance_id(1)).unwrap();
    assert_eq!((view.state, view.state_since), (InstanceState::Draining, at(5)));
    let mut sick = profile(1, cores(4, 8));
    sick.problems = vec![crate::instance::HealthProblem { gate: "disk".into(), message: "full".into() }];
    region.handle(RegionEvent::ProfileChanged { profile: sick, draining: false }, at(7));
    assert_eq!(region.instance(instance_id(1)).unwrap().to_record().state, InstanceState::Unhealthy);
    let well = RegionEvent::ProfileChanged { profile: profile(1, cores(4, 8)), draining: false };
    assert_eq!(region.handle(well, at(8)), [assign(1, 1)]);
}

#[test]
fn a_granted_attempt_is_published_by_somebody_and_never_lost() {
    let mut region = region();
    let publish =
        |instance| Action::PublishElsewhere { attempt: attempt(1, 1), instance: instance_id(instance) };
    region.handle(RegionEvent::AttemptLive(LiveAttempt { granted: true, ..live(1, 1, 1) }), at(0));
    assert_eq!(region.handle(RegionEvent::Tick, at(60)), [], "nobody is there");
    assert_eq!(attach(&mut region, 2, vec![], 70), [publish(2)], "the first who comes");
    assert_eq!(region.next_deadline(), Some(at(130)));
    attach(&mut region, 1, vec![], 80);
    assert_eq!(region.handle(RegionEvent::Tick, at(130)), [publish(1)], "the next one");
    region.handle(RegionEvent::Renewed(attempt(1, 1)), at(140));
    assert_eq!(region.handle(RegionEvent::Tick, at(190)), []);
    assert_eq!(region.handle(RegionEvent::Tick, at(200)), [publish(2)]);
    region.handle(RegionEvent::AttemptOver(attempt(1, 1)), at(201));
    assert_eq!(region.next_deadline(), None);
}

#[test]
fn the_attempts_own_instance_publishes_first() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    attach(&mut region, 2, vec![], 0);
    region.handle(RegionEvent::AttemptLive(live(1, 1, 2)), at(0));
    region.handle(RegionEvent::AttemptLive(LiveAttempt { granted: true, ..live(1, 1, 2) }), at(30));
    let publish = Action::PublishElsewhere { attempt: attempt(1, 1), instance: instance_id(2) };
    assert_eq!(region.handle(RegionEvent::Tick, at(60)), [publish]);
}

#[test]
fn a_failed_assignment_gives_its_room_back_and_pauses_the_job() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    region.handle(RegionEvent::JobQueued(queued(1)), at(0));
    let failed =
        |requeue| RegionEvent::AssignmentFailed { job: job_id(1), instance: instance_id(1), requeue };
    assert_eq!(region.handle(failed(true), at(5)), []);
    assert_eq!(region.instance(instance_id(1)).unwrap().allocated, Resources::ZERO);
    assert_eq!(region.next_deadline(), Some(at(6)));
    assert_eq!(region.handle(RegionEvent::JobQueued(queued(1)), at(5)), [], "told again: the pause stays");
    assert_eq!(region.handle(RegionEvent::Tick, at(6)), [assign(1, 1)]);
    assert_eq!(region.handle(failed(false), at(7)), []);
    assert_eq!((region.queue_length(), region.next_deadline()), (0, None));
    assert_eq!(region.handle(failed(true), at(8)), [], "told twice");
    assert_eq!(region.queue_length(), 0);
}

#[test]
fn a_refusal_after_the_assignment_was_recorded_frees_and_requeues() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    region.handle(RegionEvent::JobQueued(queued(1)), at(0));
    region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(0));
    let failed = RegionEvent::AssignmentFailed { job: job_id(1), instance: instance_id(1), requeue: true };
    assert_eq!(region.handle(failed, at(5)), []);
    assert_eq!((region.queue_length(), region.attempts().count()), (1, 0));
    assert_eq!(region.handle(RegionEvent::Tick, at(6)), [assign(1, 1)]);
    region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(6));
    assert_eq!(region.attempts().count(), 0, "the refused attempt is known to be over");
    region.handle(RegionEvent::AttemptLive(live(1, 2, 1)), at(6));
    assert_eq!(region.attempts().count(), 1);
}

#[test]
fn stale_news_changes_nothing() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    region.handle(RegionEvent::AttemptLive(live(1, 2, 1)), at(0));
    let old = QueuedJob { epoch: Epoch(1), ..queued(1) };
    assert_eq!(region.handle(RegionEvent::JobQueued(old), at(1)), [], "read before it was assigned");
    assert_eq!(region.queue_length(), 0);
    region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(1));
    region.handle(RegionEvent::AttemptOver(attempt(1, 1)), at(1));
    region.handle(RegionEvent::Renewed(attempt(1, 1)), at(1));
    region.handle(RegionEvent::JobLeft(job_id(1)), at(1));
    assert_eq!(region.attempts().map(|live| live.id).collect::<Vec<_>>(), [attempt(1, 2)]);
    let requeued = QueuedJob { epoch: Epoch(2), ..queued(1) };
    let actions = region.handle(RegionEvent::JobQueued(requeued), at(2));
    assert_eq!(actions, [assign(1, 1)], "queued again means that attempt 2 is over");
    assert_eq!(region.instance(instance_id(1)).unwrap().allocated, cores(2, 4));
}

#[test]
fn newer_news_during_an_assignment_is_not_lost() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    region.handle(RegionEvent::JobQueued(queued(1)), at(0));
    let requeued = QueuedJob { epoch: Epoch(1), ..queued(1) };
    assert_eq!(region.handle(RegionEvent::JobQueued(requeued), at(1)), [], "in flight");
    assert_eq!(region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(2)), [assign(1, 1)]);
}

#[test]
fn pauses_and_deadlines_are_kept_to_the_millisecond() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    let job = QueuedJob {
        not_before: Some(at(10)),
        queue_deadline: Some(at(20)),
        total_deadline: Some(at(30)),
        ..queued(1)
    };
    assert_eq!(region.handle(RegionEvent::JobQueued(job.clone()), at(0)), []);
    assert_eq!(region.next_deadline(), Some(at(10)));
    let mut assigned = region.clone();
    assert_eq!(assigned.handle(RegionEvent::Tick, at(10)), [assign(1, 1)]);
    assert_eq!(assigned.next_deadline(), Some(at(30)), "a job that was assigned does not expire");
    assert_eq!(assigned.handle(RegionEvent::Tick, at(30)), [Action::TotalTimeout(job_id(1))]);
    region.handle(RegionEvent::InstanceDetached(instance_id(1)), at(1));
    assert_eq!(region.handle(RegionEvent::Tick, at(20)), [Action::ExpireQueued(job_id(1))]);
    assert_eq!(attach(&mut region, 1, vec![], 21), [], "a job that expires is not assigned");
    assert_eq!(region.handle(RegionEvent::JobQueued(job), at(22)), [], "told again");
    assert_eq!(region.handle(RegionEvent::Tick, at(30)), [Action::TotalTimeout(job_id(1))]);
    assert_eq!(region.handle(RegionEvent::Tick, at(80)), [Action::ExpireQueued(job_id(1))]);
    region.handle(RegionEvent::JobLeft(job_id(1)), at(81));
    assert_eq!(region.next_deadline(), None);
}

#[test]
fn a_granted_attempt_has_no_total_timeout() {
    let mut region = region();
    let total_deadline = Some(at(30));
    region.handle(RegionEvent::AttemptLive(LiveAttempt { total_deadline, ..live(1, 1, 1) }), at(0));
    assert_eq!(region.next_deadline(), Some(at(30)));
    let granted = LiveAttempt { total_deadline, granted: true, ..live(1, 1, 1) };
    region.handle(RegionEvent::AttemptLive(granted), at(1));
    assert_eq!(region.next_deadline(), Some(at(60)));
}

#[test]
fn occupancy_is_that_of_the_scarcest_resource_of_connected_instances() {
    let mut region = region();
    assert_eq!(region.occupancy().thousandths(), None);
    attach(&mut region, 1, vec![], 0);
    attach(&mut region, 2, vec![], 0);
    region.handle(now_live(1, 1, 1, cores(1, 8)), at(0));
    assert_eq!(region.occupancy().thousandths(), Some(500));
    region.handle(RegionEvent::InstanceDetached(instance_id(1)), at(1));
    assert_eq!(region.occupancy().thousandths(), Some(0));
}

#[test]
fn a_job_tells_the_region_what_it_needs_to_know() {
    let mut value = job(1);
    value.spec.timeouts.total_seconds = Some(100);
    let told = QueuedJob::of(&value).unwrap();
    assert_eq!((told.queued_at, told.total_deadline, told.epoch), (at(0), Some(at(100)), Epoch(0)));
    assert_eq!(LiveAttempt::of(&value), None);
    let event = crate::transition::JobEvent::Assign { instance: instance_id(3) };
    let crate::transition::Outcome::Applied(assigned) = crate::transition::apply(&value, event, at(1)) else {
        panic!("refused")
    };
    assert_eq!(QueuedJob::of(&assigned), None);
    let expected = LiveAttempt { total_deadline: Some(at(100)), ..live(1, 1, 3) };
    assert_eq!(LiveAttempt::of(&assigned), Some(expected));
}

#[test]
fn absurd_numbers_neither_stop_nor_stall_the_scheduler() {
    let mut region = Region::new(RegionConfig { lease: Duration::ZERO, ..RegionConfig::default() });
    let everything = Resources { cpu_milli: u64::MAX, memory_bytes: u64::MAX, ..Resources::ZERO };
    let profile = profile(1, everything);
    region.handle(RegionEvent::InstanceAttached { profile, running: vec![] }, at(0));
    for number in 1..=3 {
        region.handle(now_live(number, 1, 1, everything), at(0));
    }
    for number in 1..=3 {
        assert_eq!(region.instance(instance_id(1)).unwrap().free, Resources::ZERO);
        region.handle(RegionEvent::AttemptOver(attempt(number, 1)), at(1));
    }
    assert_eq!(region.instance(instance_id(1)).unwrap().allocated, Resources::ZERO);
}

#[test]
fn a_refusal_for_want_of_room_is_believed_until_the_next_profile() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    region.handle(RegionEvent::JobQueued(queued(1)), at(0));
    region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(0));
    let refused =
        RegionEvent::InstanceRefused { instance: instance_id(1), attempt: attempt(1, 1), free: cores(1, 1) };
    assert_eq!(region.handle(refused.clone(), at(1)), []);
    assert_eq!(region.handle(refused, at(1)), [], "told twice");
    region.handle(RegionEvent::AttemptOver(attempt(1, 1)), at(1));
    let again = QueuedJob { epoch: Epoch(1), ..queued(1) };
    assert_eq!(region.handle(RegionEvent::JobQueued(again), at(1)), [], "it would be refused again");
    assert_eq!(region.instance(instance_id(1)).unwrap().free, cores(1, 1));
    let mut small = queued(2);
    Arc::make_mut(&mut small.request).resources = cores(1, 1);
    assert_eq!(region.handle(RegionEvent::JobQueued(small), at(1)), [assign(2, 1)], "it said that this fits");
    let profile = profile(1, cores(4, 8));
    let freed = RegionEvent::ProfileChanged { profile, draining: false };
    assert_eq!(region.handle(freed, at(1)), [assign(1, 1)]);
    assert_eq!(region.next_deadline(), None);
}

#[test]
fn an_instance_that_refuses_again_and_again_is_asked_ever_more_rarely() {
    let mut region = region();
    attach(&mut region, 1, vec![], 0);
    let mut now = at(0);
    let mut pauses = Vec::new();
    region.handle(RegionEvent::JobQueued(queued(1)), now);
    for epoch in 1..=8 {
        region.handle(RegionEvent::AttemptLive(live(1, epoch, 1)), now);
        // It says that all is free and refuses all the same.
        let (instance, attempt) = (instance_id(1), attempt(1, epoch));
        region.handle(RegionEvent::InstanceRefused { instance, attempt, free: cores(4, 8) }, now);
        region.handle(RegionEvent::AttemptOver(attempt), now);
        let again = QueuedJob { epoch: Epoch(epoch), ..queued(1) };
        assert_eq!(region.handle(RegionEvent::JobQueued(again), now), []);
        let next = region.next_deadline().unwrap();
        pauses.push(next.since(now).as_secs());
        now = next;
        assert_eq!(region.handle(RegionEvent::Tick, now), [assign(1, 1)]);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    region.handle(RegionEvent::AttemptLive(live(1, 9, 1)), now);
    region.handle(RegionEvent::Renewed(attempt(1, 9)), now);
    region.handle(RegionEvent::JobQueued(QueuedJob { epoch: Epoch(9), ..queued(1) }), now);
    region.handle(RegionEvent::AttemptLive(live(1, 10, 1)), now);
    let (instance, attempt) = (instance_id(1), attempt(1, 10));
    region.handle(RegionEvent::InstanceRefused { instance, attempt, free: cores(0, 0) }, now);
    assert_eq!(region.next_deadline(), Some(now.after(Duration::from_secs(1))), "it has begun one meanwhile");
}
