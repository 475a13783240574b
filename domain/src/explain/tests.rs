//! Golden texts: what a person reads for each reason.

use super::*;
use crate::failure::FailureClass;
use crate::fixture::{at, cores, failure, instance, instance_id, job, manifest};
use crate::instance::{HealthProblem, InstanceState};
use crate::job::HoldReason;
use crate::transition::{JobEvent, Outcome, apply};

fn after(job: Job, events: impl IntoIterator<Item = JobEvent>) -> Job {
    events.into_iter().fold(job, |job, event| match apply(&job, event.clone(), at(1)) {
        Outcome::Applied(job) => *job,
        outcome => panic!("{event:?} gave {outcome:?}"),
    })
}

#[track_caller]
fn reads(job: &Job, instances: &[Instance], ahead: u64, code: ReasonCode, text: &str) -> Explanation {
    let explanation = explain(job, instances, ahead, at(1));
    let said = explanation.to_string().replace(&job.id.to_string(), "JOB");
    let said = said.replace(&instance_id(1).to_string(), "INSTANCE");
    assert_eq!(said, text, "\n--- read:\n{said}\n--- expected:\n{text}\n");
    assert_eq!(explanation.code, code);
    let json = serde_json::to_string(&explanation).unwrap();
    assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), explanation);
    explanation
}

#[test]
fn no_instance_at_all() {
    let text = "\
JOB is queued: region local has no instance
  needs:     2 cores CPU, 4.00 GiB memory
  position:  first in the queue
  next step: start an agent in the region, or submit the job to a region that has instances";
    reads(&job(1), &[], 0, ReasonCode::NoInstance, text);
}

#[test]
fn more_memory_than_any_instance_has() {
    let mut large = job(1);
    large.spec.resources = cores(2, 64);
    let text = "\
JOB is queued: no instance is large enough: the job needs 64.00 GiB of memory, the nearest, host-2, has 16.00 GiB
  needs:     2 cores CPU, 64.00 GiB memory
  nearest:   host-2 (pool default) has 4 cores CPU, 16.00 GiB memory
  free:      4 cores CPU, 16.00 GiB memory
  position:  3 jobs before it
  next step: lower the job's memory to 16.00 GiB or less, or add an instance with at least 64.00 GiB of memory";
    let instances = [instance(1, cores(8, 8)), instance(2, cores(4, 16))];
    let explanation = reads(&large, &instances, 3, ReasonCode::TooLarge, text);
    let gib = 1 << 30;
    let blocking = Blocking { resource: ResourceKind::MemoryBytes, need: 64 * gib, there: 16 * gib };
    assert_eq!(explanation.blocking, Some(blocking));
    assert_eq!(explanation.refusals.len(), 2);
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
  next step: install and start Docker on an instance, then start its agent again; or choose an engine version that \
is published as a command";
    reads(&job(1), &without, 0, ReasonCode::NoRuntime, text);
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
  position:  1 job before it
  next step: wait until running jobs end, add an instance, or lower the job's CPU";
    reads(&job(1), &busy, 1, ReasonCode::AllBusy, text);
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
  next step: run `telecine doctor` on host-2 and mend what it names, or add an instance";
    reads(&job(1), &away, 0, ReasonCode::NoneReady, text);
    let explanation = explain(&job(1), &away[..1], 0, at(1));
    assert_eq!(explanation.code, ReasonCode::NoneReady);
    assert!(explanation.next_step.starts_with("start the agent on host-1"), "{}", explanation.next_step);
}

#[test]
fn it_fits_and_waits_for_its_turn() {
    let text = "\
JOB is queued: the job fits free capacity and waits for its turn
  needs:     2 cores CPU, 4.00 GiB memory
  position:  2 jobs before it
  next step: raise the job's priority to let it go first";
    reads(&job(1), &[instance(1, cores(4, 8))], 2, ReasonCode::WaitsForTurn, text);
}

#[test]
fn held() {
    let held = after(job(1), [JobEvent::Hold(HoldReason::Manual)]);
    let text = "\
JOB is held: the job is held and does not stand in the queue
  next step: release the job to let it into the queue";
    reads(&held, &[], 0, ReasonCode::Held, text);
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
  position:  first in the queue
  last time: something went wrong (infrastructure, test_failure)";
    let paused = run_until_failed(FailureClass::Infrastructure);
    reads(&paused, &[instance(1, cores(4, 8))], 0, ReasonCode::PausedAfterFailure, text);
    let over = explain(&paused, &[instance(1, cores(4, 8))], 0, at(2));
    assert_eq!((over.code, over.not_before), (ReasonCode::WaitsForTurn, None));
}

#[test]
fn running_and_what_is_around_it() {
    let epoch = crate::id::Epoch(1);
    let assigned = after(job(1), [JobEvent::Assign { instance: instance_id(1) }]);
    reads(
        &assigned,
        &[],
        0,
        ReasonCode::Starting,
        "JOB is assigned: attempt 1 is being prepared on INSTANCE",
    );
    let running = after(assigned, [JobEvent::EngineRunning { epoch }]);
    let text = "JOB is running: attempt 1 runs on INSTANCE since 2026-01-01T00:00:01.000Z";
    reads(&running, &[], 0, ReasonCode::Running, text);
    let canceling = after(running.clone(), [JobEvent::Cancel]);
    reads(
        &canceling,
        &[],
        0,
        ReasonCode::Canceling,
        "JOB is canceling: attempt 1 on INSTANCE is being stopped",
    );
    let granted = after(running, [JobEvent::Grant { epoch, manifest: manifest() }]);
    let text = "JOB is finalizing: attempt 1 has made 1 output, which are being published";
    reads(&granted, &[], 0, ReasonCode::Finalizing, text);
    let done = after(granted, [JobEvent::Published { epoch }]);
    let text = "JOB is succeeded: attempt 1 succeeded and published 1 output";
    reads(&done, &[], 0, ReasonCode::Succeeded, text);
}

#[test]
fn failed_names_the_failure_and_the_next_step() {
    let text = "\
JOB is failed: the job failed after 1 attempt: something went wrong (engine, test_failure)
  next step: read the engine's log, then retry the job, with another engine version if the engine is at fault";
    let failed = run_until_failed(FailureClass::Engine);
    let explanation = reads(&failed, &[], 0, ReasonCode::Failed, text);
    assert_eq!(explanation.failure, Some(failure(FailureClass::Engine)));
}

#[test]
fn canceled_and_expired() {
    let canceled = after(job(1), [JobEvent::Cancel]);
    let text = "\
JOB is canceled: the job was canceled at 2026-01-01T00:00:01.000Z
  next step: retry the job to run it after all";
    reads(&canceled, &[], 0, ReasonCode::Canceled, text);
    let mut waited = job(1);
    waited.spec.timeouts.queue_seconds = Some(1);
    let expired = after(waited, [JobEvent::QueueTimeout]);
    let text = "\
JOB is expired: the job waited longer than its queue timeout and expired at 2026-01-01T00:00:01.000Z
  next step: retry the job with a longer `timeouts.queue_seconds`, or add capacity";
    reads(&expired, &[], 0, ReasonCode::Expired, text);
}
