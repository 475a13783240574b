//! Managers that stop, die and come back; agents that come back.

use std::time::Duration;

use serde_json::json;
use telecine_core::memory::Fault;
use telecine_domain::job::StateName;
use telecine_proto::worker::v1::from_manager::Body;

use crate::agent::{Asked, Coordinator, Worker, instance, is_accepted, is_refused, manifest};
use crate::world::World;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_restarted_manager_goes_on_with_what_runs() {
    for graceful in [true, false] {
        let mut world = World::new().await;
        let mut coordinator = Coordinator::attach(&world, instance(1)).await;
        let job = world.submit("out.mp4", json!({})).await;
        let attempt = coordinator.assigned().await;
        let worker = Worker::start(&world, &coordinator, attempt).await;
        worker.enter("running").await;
        let credential = worker.credential.clone();
        if graceful {
            world.stop().await;
            assert_eq!(coordinator.ended().await.code(), tonic::Code::Unavailable);
        } else {
            world.kill().await;
        }
        coordinator.die().await;
        worker.die().await;
        world.start().await;
        let mut coordinator = Coordinator::attach_running(&world, instance(1), &[attempt]).await;
        assert_eq!(coordinator.term, 2, "every leadership has its own term");
        assert!(coordinator.welcome.verdicts.iter().all(|verdict| verdict.keep));
        let worker = Worker::connect(&world, credential, attempt).await.unwrap().ok().unwrap();
        assert!(is_accepted(&worker.renew().await));
        assert!(matches!(worker.seal(manifest(world.store, "out.mp4", attempt)).await, Body::Grant(_)));
        assert!(is_accepted(&worker.published().await));
        let done = world.wait_for(job, StateName::Succeeded, SOON).await;
        assert_eq!(done.attempts.0, 1);
        assert!(coordinator.asked.try_recv().is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_before_a_full_lease_after_the_take_over() {
    let mut world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    let worker = Worker::start(&world, &coordinator, attempt).await;
    let credential = worker.credential.clone();
    world.kill().await;
    coordinator.die().await;
    worker.die().await;
    // Nobody leads for longer than a lease: that is not the worker's fault.
    tokio::time::sleep(Duration::from_secs(300)).await;
    world.start().await;
    tokio::time::sleep(Duration::from_secs(55)).await;
    assert_eq!(world.job(job).await.live_attempt(), Some(attempt));
    let worker = Worker::connect(&world, credential, attempt).await.unwrap().ok().unwrap();
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(is_accepted(&worker.renew().await));
    worker.die().await;
    world.wait_for(job, StateName::Queued, Duration::from_secs(62)).await;
}

#[tokio::test(start_paused = true)]
async fn a_standby_takes_over_within_ten_seconds_and_the_old_epoch_goes_on() {
    let mut world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let first = world.submit("1.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    let shutdown = tokio_util::sync::CancellationToken::new();
    let (ready, address) = tokio::sync::oneshot::channel();
    let config = telecine_manager::ManagerConfig { id: "standby".to_owned(), ..world.config.clone() };
    let standby = tokio::spawn(telecine_manager::run(
        config,
        world.backend.clone(),
        world.authority.clone(),
        world.network.clone(),
        ready,
        shutdown.clone(),
    ));
    let address = address.await.unwrap().to_string();
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.kill().await;
    coordinator.die().await;
    let died = tokio::time::Instant::now();
    let second = world.submit("2.mp4", json!({})).await;
    world.address = address;
    let mut coordinator = Coordinator::attach_running(&world, instance(1), &[attempt]).await;
    assert_eq!(coordinator.assigned().await.job, second);
    assert!(died.elapsed() <= Duration::from_secs(10), "{:?}", died.elapsed());
    assert_eq!(world.job(first).await.live_attempt(), Some(attempt), "no job runs twice");
    shutdown.cancel();
    standby.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_assignment_that_was_recorded_and_never_sent_is_given_out_again_at_once() {
    let mut world = World::new().await;
    let mut mute = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({})).await;
    let lost = mute.assigned().await;
    // The manager dies after recording; to the instance it never came.
    world.kill().await;
    mute.die().await;
    world.start().await;
    let began = tokio::time::Instant::now();
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let again = loop {
        match coordinator.next().await {
            Asked::Assign(attempt) => break attempt,
            Asked::Close(closed) => assert_eq!(closed, lost),
            other => panic!("{other:?}"),
        }
    };
    assert!(again.job == job && again.epoch > lost.epoch);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_without_a_right_is_stopped_by_the_hello() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    world.submit("out.mp4", json!({})).await;
    let first = coordinator.assigned().await;
    coordinator.worker_gone(first).await;
    let other = instance(2);
    let mut claims = Coordinator::attach_running(&world, other, &[first]).await;
    assert_eq!(claims.welcome.verdicts.len(), 1);
    assert!(!claims.welcome.verdicts[0].keep);
    claims.asked.close();
    let stranger = telecine_domain::attempt::AttemptId { epoch: telecine_domain::id::Epoch(77), ..first };
    let claims = Coordinator::attach_running(&world, other, &[stranger]).await;
    assert!(!claims.welcome.verdicts[0].keep);
}

#[tokio::test(start_paused = true)]
async fn a_newer_stream_takes_the_place_of_an_older_one() {
    let world = World::new().await;
    let mut old = Coordinator::attach(&world, instance(1)).await;
    let mut new = Coordinator::attach(&world, instance(1)).await;
    assert_eq!(old.ended().await.code(), tonic::Code::Aborted);
    let job = world.submit("out.mp4", json!({})).await;
    let attempt = new.assigned().await;
    assert_eq!(attempt.job, job);
    let mut first = Worker::start(&world, &new, attempt).await;
    let second = Worker::connect(&world, first.credential.clone(), attempt).await.unwrap().ok().unwrap();
    assert_eq!(first.status().await.code(), tonic::Code::Aborted);
    assert!(is_accepted(&second.renew().await));
}

#[tokio::test(start_paused = true)]
async fn a_silent_coordinator_is_detached_and_its_attempt_goes_on() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    let worker = Worker::start(&world, &coordinator, attempt).await;
    coordinator.die().await;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(is_accepted(&worker.renew().await), "a worker outlives its coordinator");
    }
    assert_eq!(world.job(job).await.live_attempt(), Some(attempt));
}

#[tokio::test(start_paused = true)]
async fn a_report_whose_record_is_unknown_is_recorded_once() {
    for fault in [Fault::Refused, Fault::LostBefore, Fault::LostAfter] {
        let world = World::new().await;
        let mut coordinator = Coordinator::attach(&world, instance(1)).await;
        let job = world.submit("out.mp4", json!({})).await;
        let attempt = coordinator.assigned().await;
        let worker = Worker::start(&world, &coordinator, attempt).await;
        world.table.fail_transaction(1, fault);
        assert!(matches!(worker.seal(manifest(world.store, "out.mp4", attempt)).await, Body::Grant(_)));
        world.table.fail_transaction(1, fault);
        assert!(is_accepted(&worker.published().await));
        let done = world.wait_for(job, StateName::Succeeded, SOON).await;
        assert_eq!(done.attempts.0, 1);
        assert!(is_refused(&worker.renew().await, "stale"));
    }
}
