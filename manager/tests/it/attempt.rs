//! One attempt after the other: the whole way, and every way off it.

use std::time::Duration;

use serde_json::json;
use telecine_core::{jobs, recorder};
use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::job::{JobState, StateName};
use telecine_domain::trace::TraceId;
use telecine_proto::coordinator::v1::from_manager as to_coordinator;
use telecine_proto::worker::v1::from_manager::Body;

use crate::agent::{Asked, Coordinator, Habit, Worker, instance, is_accepted, is_refused, manifest, profile};
use crate::world::{World, region};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_job_runs_seals_is_granted_and_published() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    assert_eq!((coordinator.term, coordinator.welcome.lease_millis), (1, 60_000));
    let job = world.submit("out.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    assert_eq!(attempt.job, job);
    let worker = Worker::start(&world, &coordinator, attempt).await;
    assert_eq!(worker.welcome.renew_millis, 5_000);
    world.wait_for(job, StateName::Starting, SOON).await;
    let stores =
        worker.call(telecine_proto::worker::v1::from_worker::Body::OpenStores(Default::default())).await;
    assert!(matches!(stores, Body::Stores(stores) if stores.stores.len() == 1));
    for phase in ["pulling", "mounting", "running", "running"] {
        assert!(is_accepted(&worker.enter(phase).await), "{phase}");
    }
    world.wait_for(job, StateName::Running, SOON).await;
    assert!(is_accepted(&worker.renew().await));
    let sealed = manifest(world.store, "out.mp4", attempt);
    for _ in 0..2 {
        let Body::Grant(grant) = worker.seal(sealed.clone()).await else { panic!("no grant") };
        assert_eq!(grant.manifest.unwrap().objects.len(), 1);
    }
    world.wait_for(job, StateName::Finalizing, SOON).await;
    // The answer was lost: it is given again.
    for _ in 0..2 {
        assert!(is_accepted(&worker.published().await));
    }
    let done = world.wait_for(job, StateName::Succeeded, SOON).await;
    assert!(matches!(done.state, JobState::Succeeded { manifest, .. } if manifest == sealed));
    assert!(is_refused(&worker.renew().await, "stale"));
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_because_of_a_job_carries_its_trace_on_both_streams() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let body = world.body("out.mp4", &json!({}));
    let caller: TraceId = "4bf92f3577b34da6a3ce929d0e0e4736".parse().unwrap();
    let submitted = jobs::submit_in(Some(caller), &world.backend, world.account, &body, None, world.now());
    submitted.await.unwrap();
    let attempt = coordinator.assigned().await;
    let worker = Worker::start(&world, &coordinator, attempt).await;
    assert_eq!(worker.trace, Some(caller));
    worker.die().await;
    coordinator.worker_gone(attempt).await;
    assert_eq!(coordinator.next().await, Asked::Close(attempt));
    assert_eq!(*coordinator.traces.lock().unwrap(), vec![Some(caller); 2], "the assignment and the closing");
    // A job that was submitted in no trace has its own.
    let own = world.submit("own.mp4", json!({"priority": 900})).await;
    assert_eq!(coordinator.assigned().await.job, own);
    assert_eq!(coordinator.traces.lock().unwrap().last(), Some(&Some(TraceId::of_job(own))));
}

#[tokio::test(start_paused = true)]
async fn another_manifest_than_the_granted_one_is_refused() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    world.submit("out.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    let worker = Worker::start(&world, &coordinator, attempt).await;
    assert!(is_refused(&worker.seal(manifest(world.store, "elsewhere.mp4", attempt)).await, "invalid"));
    let good = manifest(world.store, "out.mp4", attempt);
    assert!(matches!(worker.seal(good.clone()).await, Body::Grant(_)));
    let mut other = good;
    other.objects[0].sha256 = "1".repeat(64);
    assert!(is_refused(&worker.seal(other).await, "illegal"));
    let late = Failure::new(FailureClass::Engine, "engine_exit", "too late");
    assert!(is_refused(&worker.ended(Some(late), false).await, "illegal"), "a granted attempt cannot fail");
}

#[tokio::test(start_paused = true)]
async fn a_silent_worker_is_lost_and_may_not_publish_the_next_attempt_does() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({})).await;
    let first = coordinator.assigned().await;
    let silent = Worker::start(&world, &coordinator, first).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(is_accepted(&silent.renew().await));
    // Silent for less than a lease since then: it keeps its right.
    tokio::time::sleep(Duration::from_secs(55)).await;
    assert_eq!(world.job(job).await.live_attempt(), Some(first));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(coordinator.next().await, Asked::Close(first));
    let second = coordinator.assigned().await;
    assert_eq!((second.attempt.0, second.epoch.0), (2, 2));
    assert!(is_refused(&silent.renew().await, "stale"));
    assert!(is_refused(&silent.seal(manifest(world.store, "out.mp4", first)).await, "stale"));
    assert!(is_refused(&silent.ended(None, false).await, "stale"));
    let refused = coordinator.sign(first).await.unwrap_err();
    assert_eq!(refused.code, "stale");
    let worker = Worker::start(&world, &coordinator, second).await;
    worker.seal(manifest(world.store, "out.mp4", second)).await;
    worker.published().await;
    let done = world.wait_for(job, StateName::Succeeded, SOON).await;
    assert_eq!((done.attempts.0, done.infrastructure_retries, done.user_retries), (2, 1, 0));
    let credential = silent.credential.clone();
    silent.die().await;
    let refused = Worker::connect(&world, credential, first).await.unwrap().err().expect("refused");
    assert_eq!(refused.code, "stale");
}

#[tokio::test(start_paused = true)]
async fn a_dead_worker_is_replaced_at_once_and_once() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({})).await;
    let first = coordinator.assigned().await;
    Worker::start(&world, &coordinator, first).await.die().await;
    assert!(matches!(coordinator.worker_gone(first).await, to_coordinator::Body::Accepted(_)));
    // Said again after a lost answer.
    let again = coordinator.worker_gone(first).await;
    assert!(matches!(again, to_coordinator::Body::Refused(refused) if refused.code == "stale"));
    assert_eq!(coordinator.next().await, Asked::Close(first));
    assert_eq!(coordinator.next().await, Asked::Close(first), "whoever says it again has leftovers still");
    let second = coordinator.assigned().await;
    assert_eq!((second.job, second.attempt.0), (job, 2));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(coordinator.asked.try_recv().is_err(), "one retry, one assignment");
    assert_eq!(world.job(job).await.infrastructure_retries, 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_worker_was_granted_is_published_by_an_instance() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    for is_reported in [true, false] {
        let key = format!("out-{is_reported}.mp4");
        let job = world.submit(&key, json!({})).await;
        let attempt = coordinator.assigned().await;
        let worker = Worker::start(&world, &coordinator, attempt).await;
        let sealed = manifest(world.store, &key, attempt);
        assert!(matches!(worker.seal(sealed.clone()).await, Body::Grant(_)));
        worker.die().await;
        if is_reported {
            assert!(matches!(coordinator.worker_gone(attempt).await, to_coordinator::Body::Accepted(_)));
        }
        assert_eq!(coordinator.next().await, Asked::Publish(attempt, sealed));
        let done = world.wait_for(job, StateName::Succeeded, SOON).await;
        assert_eq!(done.attempts.0, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn granted_bytes_that_are_gone_where_the_attempt_ran_were_published_and_elsewhere_say_nothing() {
    let world = World::new().await;
    let mut own = Coordinator::with_habit(&world, instance(1), Habit::Bereft).await;
    let mut job = None;
    for key in ["away.mp4", "here.mp4"] {
        let id = world.submit(key, json!({})).await;
        let attempt = own.assigned().await;
        let worker = Worker::start(&world, &own, attempt).await;
        let sealed = manifest(world.store, key, attempt);
        assert!(matches!(worker.seal(sealed.clone()).await, Body::Grant(_)));
        worker.die().await;
        if key == "away.mp4" {
            own.die().await;
            let mut other = Coordinator::with_habit(&world, instance(2), Habit::Bereft).await;
            assert_eq!(other.next().await, Asked::Publish(attempt, sealed));
            tokio::time::sleep(SOON).await;
            assert_eq!(world.job(id).await.state.name(), StateName::Finalizing, "its folder may be another");
            other.die().await;
            own = Coordinator::with_habit(&world, instance(1), Habit::Bereft).await;
            job = Some(id);
        } else {
            world.wait_for(id, StateName::Succeeded, SOON * 12).await;
        }
    }
    world.wait_for(job.unwrap(), StateName::Succeeded, SOON * 30).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_assignment_goes_elsewhere_without_waiting_for_a_lease() {
    let world = World::new().await;
    let mut refusing = Coordinator::with_habit(&world, instance(1), Habit::Failing).await;
    let job = world.submit("out.mp4", json!({})).await;
    let first = refusing.assigned().await;
    let mut willing = Coordinator::attach(&world, instance(2)).await;
    refusing.die().await;
    let second = willing.assigned().await;
    assert!(second.job == job && second.epoch > first.epoch);
    let before = world.job(job).await;
    assert!(before.infrastructure_retries >= 1 && before.user_retries == 0);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_want_of_room_costs_nothing_and_is_asked_again_when_there_is_room() {
    let world = World::new().await;
    let mut full = Coordinator::with_habit(&world, instance(1), Habit::Refusing).await;
    let job = world.submit("out.mp4", json!({"retry": {"user": 0, "infrastructure": 0}})).await;
    let queued_at = world.job(job).await.queued_at;
    full.assigned().await;
    let refused = world.wait_for(job, StateName::Queued, SOON).await;
    assert_eq!((refused.infrastructure_retries, refused.user_retries, refused.queued_at), (0, 0, queued_at));
    tokio::time::sleep(Duration::from_secs(120)).await;
    let mut asked = 0;
    while full.asked.try_recv().is_ok() {
        asked += 1;
    }
    assert!((2..=8).contains(&asked), "asked {asked} times in two minutes");
    let profile_json = telecine_proto::convert::json(&profile(instance(1), region()));
    let changed = telecine_proto::coordinator::v1::ProfileChanged { profile_json, ..Default::default() };
    full.notify(telecine_proto::coordinator::v1::from_coordinator::Body::ProfileChanged(changed)).await;
    let again = tokio::time::timeout(Duration::from_millis(500), full.assigned()).await;
    assert_eq!(again.expect("at once").job, job);
    let found = world.wait_for(job, StateName::Queued, SOON).await;
    assert_eq!((found.infrastructure_retries, found.queued_at), (0, queued_at));
}

#[tokio::test(start_paused = true)]
async fn a_granted_job_whose_bytes_were_on_an_instance_that_never_returns_fails_after_an_hour() {
    for somebody_else in [true, false] {
        let world = World::new().await;
        let mut own = Coordinator::attach(&world, instance(1)).await;
        let job = world.submit("out.mp4", json!({})).await;
        let attempt = own.assigned().await;
        let worker = Worker::start(&world, &own, attempt).await;
        assert!(matches!(worker.seal(manifest(world.store, "out.mp4", attempt)).await, Body::Grant(_)));
        worker.die().await;
        own.die().await;
        let _other = if somebody_else {
            Some(Coordinator::with_habit(&world, instance(2), Habit::Bereft).await)
        } else {
            None
        };
        tokio::time::sleep(Duration::from_secs(3_550)).await;
        assert_eq!(world.job(job).await.state.name(), StateName::Finalizing, "it may come back");
        let failed = world.wait_for(job, StateName::Failed, Duration::from_secs(300)).await;
        let JobState::Failed { failure } = failed.state else { panic!("{:?}", failed.state) };
        assert_eq!((failure.class, &*failure.code), (FailureClass::Infrastructure, "sealed_bytes_lost"));
        assert!(failure.message.contains(&instance(1).to_string()), "{}", failure.message);
        assert_eq!(failed.attempts.0, 1, "no other attempt: its outputs may be visible in part");
    }
}

#[tokio::test(start_paused = true)]
async fn a_granted_job_waits_for_its_instance_after_hours_without_a_manager() {
    let mut world = World::new().await;
    let mut own = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({})).await;
    let attempt = own.assigned().await;
    let worker = Worker::start(&world, &own, attempt).await;
    assert!(matches!(worker.seal(manifest(world.store, "out.mp4", attempt)).await, Body::Grant(_)));
    worker.die().await;
    own.die().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.stop().await;
    tokio::time::sleep(Duration::from_secs(8 * 3600)).await;
    world.start().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.job(job).await.state.name(), StateName::Finalizing, "it may come back");
    let _own = Coordinator::attach_running(&world, instance(1), &[]).await;
    world.wait_for(job, StateName::Succeeded, Duration::from_secs(300)).await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_vanishes_during_an_assignment_costs_seconds() {
    let world = World::new().await;
    let mut mute = Coordinator::with_habit(&world, instance(1), Habit::Mute).await;
    let began = tokio::time::Instant::now();
    let job = world.submit("out.mp4", json!({})).await;
    mute.assigned().await;
    mute.die().await;
    let mut other = Coordinator::attach(&world, instance(2)).await;
    loop {
        match other.next().await {
            Asked::Assign(attempt) => {
                assert_eq!((attempt.job, attempt.attempt.0), (job, 2));
                break;
            }
            Asked::Close(_) => {}
            unexpected => panic!("{unexpected:?}"),
        }
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn failures_and_interruptions_take_the_right_budget() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({"retry": {"user": 1, "infrastructure": 5}})).await;
    let run = async |coordinator: &mut Coordinator| {
        let attempt = coordinator.assigned().await;
        Worker::start(&world, coordinator, attempt).await
    };
    let worker = run(&mut coordinator).await;
    assert!(is_accepted(&worker.ended(None, true).await));
    let worker = run(&mut coordinator).await;
    assert!(is_accepted(&worker.ended(None, false).await), "stopped although nobody asked: infrastructure");
    let exit =
        || Failure { exit_code: Some(3), ..Failure::new(FailureClass::Engine, "engine_exit", "exit 3") };
    let worker = run(&mut coordinator).await;
    assert!(is_accepted(&worker.ended(Some(exit()), false).await));
    let worker = run(&mut coordinator).await;
    assert!(is_accepted(&worker.ended(Some(exit()), false).await));
    // The answer was lost: a worker that says it again hears that its epoch is closed.
    assert!(is_refused(&worker.ended(Some(exit()), false).await, "stale"));
    let done = world.wait_for(job, StateName::Failed, SOON).await;
    assert_eq!((done.user_retries, done.infrastructure_retries, done.attempts.0), (1, 1, 4));
    assert!(matches!(done.state, JobState::Failed { failure } if failure.exit_code == Some(3)));
}

#[tokio::test(start_paused = true)]
async fn a_log_is_stored_in_order_and_once() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    let worker = Worker::start(&world, &coordinator, attempt).await;
    let stored = |body: Body| match body {
        Body::Accepted(accepted) => accepted.log_sequence,
        other => panic!("{other:?}"),
    };
    assert_eq!(stored(worker.log(1, b"one\n").await), 1);
    assert_eq!(stored(worker.log(3, b"three\n").await), 1, "a gap is answered by what is stored");
    assert_eq!(stored(worker.log(2, b"two\n").await), 2);
    assert_eq!(stored(worker.log(2, b"two\n").await), 2, "a repeated chunk is stored once");
    // A new stream of the same worker goes on.
    let credential = worker.credential.clone();
    worker.die().await;
    let worker = Worker::connect(&world, credential, attempt).await.unwrap().ok().unwrap();
    assert_eq!(stored(worker.log(3, b"three\n").await), 3);
    let log = recorder::read_log(&world.backend, world.account, job, attempt.attempt, 0, 1 << 20).await;
    assert_eq!(&log.unwrap().bytes[..], b"one\ntwo\nthree\n");
}

#[tokio::test(start_paused = true)]
async fn unwatched_progress_costs_no_writes_and_watched_arrives_within_a_second() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    let mut worker = Worker::start(&world, &coordinator, attempt).await;
    let progress = async || jobs::progress(&world.backend, world.account, job).await.unwrap();
    let mut sequence = 0;
    let before = world.table.transactions();
    for _ in 0..200 {
        sequence += 1;
        worker.progress(sequence, 1000).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        worker.renew().await;
    }
    assert_eq!(progress().await, None);
    // The leadership is renewed meanwhile; progress is not written.
    assert!(world.table.transactions() - before < 20, "{}", world.table.transactions() - before);
    recorder::mark_watched(&world.backend, world.account, job, world.now()).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(1), worker.told.recv()).await.unwrap();
    assert!(matches!(told, Some(Body::Watch(watch)) if watch.watched));
    for ratio in 1..=20 {
        sequence += 1;
        worker.progress(sequence, ratio * 1000).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(progress().await.unwrap().ratio_ppm, Some(20_000));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(matches!(worker.told.recv().await, Some(Body::Watch(watch)) if !watch.watched));
}
