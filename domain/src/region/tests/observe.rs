//! What the autoscaler is told of the queue and of instances.

use super::*;
use crate::autoscale::Amounts;

fn waiting(region: &Region) -> Vec<(u64, u32, Timestamp)> {
    region.waiting().iter().map(|line| (line.need.cpu_milli, line.count, line.oldest)).collect()
}

#[test]
fn alike_jobs_are_one_line_whatever_their_priority() {
    let mut region = region();
    for (number, priority, queued_at) in [(1, 500, 9), (2, 900, 5), (3, 500, 7)] {
        let job = QueuedJob { priority, queued_at: at(queued_at), ..queued(number) };
        region.handle(RegionEvent::JobQueued(job), at(10));
    }
    region.handle(needing(4, cores(8, 16), 6), at(10));
    assert_eq!(waiting(&region), [(2000, 3, at(5)), (8000, 1, at(6))]);
    let line = &region.waiting()[0];
    assert_eq!(line.need, Amounts::needed(&queued(1).request.resources));
    assert_eq!((line.expected_ms, line.start_by, line.interruptible), (300_000, None, true));
    region.handle(RegionEvent::JobLeft(job_id(2)), at(11));
    assert_eq!(waiting(&region)[0], (2000, 2, at(7)));
}

#[test]
fn a_deadline_says_when_a_line_ought_to_start() {
    let mut region = region();
    let total = QueuedJob { total_deadline: Some(at(1000)), ..queued(1) };
    region.handle(RegionEvent::JobQueued(total), at(0));
    assert_eq!(region.waiting()[0].start_by, Some(at(700)), "its run is expected to take 300 s");
    let queue = QueuedJob { queue_deadline: Some(at(500)), priority: 900, ..queued(2) };
    region.handle(RegionEvent::JobQueued(queue), at(0));
    assert_eq!(region.waiting()[0].start_by, Some(at(500)));
}

#[test]
fn what_may_not_begin_now_is_not_told() {
    let limits = Limits { every_account: Some(3), ..Limits::default() };
    let mut region = Region::new(RegionConfig { limits, ..RegionConfig::default() });
    let paused = QueuedJob { not_before: Some(at(60)), ..queued(1) };
    region.handle(RegionEvent::JobQueued(paused), at(0));
    assert_eq!(waiting(&region), []);
    for number in 2..9 {
        let job = QueuedJob { priority: u16::try_from(number).unwrap(), ..queued(number) };
        region.handle(RegionEvent::JobQueued(job), at(0));
    }
    assert_eq!(waiting(&region).iter().map(|line| line.1).sum::<u32>(), 3, "the account's limit");
    region.handle(RegionEvent::AttemptLive(live(20, 1, 1)), at(1));
    region.handle(RegionEvent::AttemptLive(live(21, 1, 1)), at(1));
    assert_eq!(waiting(&region)[0].1, 1, "two of the account run");
    region.handle(RegionEvent::AttemptLive(live(22, 1, 1)), at(1));
    assert_eq!(waiting(&region), []);
    region.handle(RegionEvent::AttemptOver(attempt(22, 1)), at(2));
    assert_eq!(waiting(&region)[0].1, 1);
}

#[test]
fn an_instance_tells_its_leases_since_when_it_has_none_and_until_when_it_works() {
    let mut region = region();
    attach(&mut region, 1, vec![], 5);
    let seen = |region: &Region| {
        let record = region.instance(instance_id(1)).unwrap().to_record();
        (record.leases, record.idle_since, record.expected_end)
    };
    assert_eq!(seen(&region), (0, at(5), None));
    region.handle(RegionEvent::JobQueued(queued(1)), at(10));
    assert_eq!(seen(&region), (1, at(5), Some(at(310))), "in flight counts");
    region.handle(RegionEvent::AttemptLive(live(1, 1, 1)), at(11));
    region.handle(RegionEvent::JobQueued(queued(2)), at(20));
    assert_eq!(seen(&region), (2, at(5), Some(at(320))));
    region.handle(RegionEvent::AttemptOver(attempt(1, 1)), at(30));
    assert_eq!(seen(&region).0, 1);
    region.handle(
        RegionEvent::AssignmentFailed { job: job_id(2), instance: instance_id(1), requeue: false },
        at(40),
    );
    assert_eq!(seen(&region), (0, at(40), None));
    region.handle(RegionEvent::InstanceDetached(instance_id(1)), at(41));
    attach(&mut region, 1, vec![attempt(9, 1)], 42);
    assert_eq!(seen(&region), (1, at(40), None), "what nobody has vouched for counts; idle goes on");
}
