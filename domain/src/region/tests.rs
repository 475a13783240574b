//! The scheduler told one story at a time; `model` tells it thousands.

use super::*;
use crate::fixture::{at, cores, instance_id, job, job_id, profile};
use crate::id::AttemptNumber;

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
