//! The queue: hints that come often, late or never, and two regions side by side.

use std::time::Duration;

use serde_json::json;
use telecine_core::jobs;
use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::id::RegionName;
use telecine_domain::job::{JobState, StateName};
use telecine_manager::ManagerConfig;

use crate::agent::{Coordinator, Habit, Worker, coordinator_identity, hello, instance, manifest};
use crate::world::{World, region};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn two_hundred_hints_for_one_job_are_one_assignment() {
    let world = World::new().await;
    let job = world.submit("out.mp4", json!({})).await;
    world.backend.queue.send(&region(), &[job; 200]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let depth = world.backend.queue.depth(&region()).await.unwrap();
    assert_eq!((depth.visible, depth.in_flight), (0, 1), "one hint per queued job is kept");
    // Held for longer than a hint stays hidden: it is extended.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let depth = world.backend.queue.depth(&region()).await.unwrap();
    assert_eq!((depth.visible, depth.in_flight), (0, 1));
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let attempt = coordinator.assigned().await;
    world.backend.queue.send(&region(), &[job; 200]).await.unwrap();
    let worker = Worker::start(&world, &coordinator, attempt).await;
    worker.seal(manifest(world.store, "out.mp4", attempt)).await;
    worker.published().await;
    let done = world.wait_for(job, StateName::Succeeded, SOON).await;
    assert_eq!(done.attempts.0, 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(coordinator.asked.try_recv().is_err());
    let depth = world.backend.queue.depth(&region()).await.unwrap();
    assert_eq!((depth.visible, depth.in_flight), (0, 0), "acknowledged when the job left the queue");
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_hint_was_lost_is_found() {
    let mut world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let clock = world.clock;
    let (deaf, _) = telecine_core::Backend::memory(std::sync::Arc::new(move || clock.now()));
    let hearing = std::mem::replace(&mut world.backend.queue, deaf.queue);
    let job = world.submit("out.mp4", json!({})).await;
    world.backend.queue = hearing;
    assert_eq!(coordinator.assigned().await.job, job);
}

#[tokio::test(start_paused = true)]
async fn priority_is_order_and_can_be_changed_while_waiting() {
    let world = World::new().await;
    let whole = json!({"cpu_milli": 4000, "memory_bytes": 1});
    let first = world.submit("1.mp4", json!({"resources": whole})).await;
    let second = world.submit("2.mp4", json!({"resources": whole})).await;
    let third = world.submit("3.mp4", json!({"resources": whole})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let edit = jobs::JobEdit { priority: Some(900), ..Default::default() };
    jobs::edit(&world.backend, world.account, third, edit, None, world.now()).await.unwrap();
    jobs::hold(&world.backend, world.account, first, world.now()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(12)).await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    for expected in [third, second] {
        let attempt = coordinator.assigned().await;
        assert_eq!(attempt.job, expected);
        let worker = Worker::start(&world, &coordinator, attempt).await;
        let key = if expected == third { "3.mp4" } else { "2.mp4" };
        worker.seal(manifest(world.store, key, attempt)).await;
        worker.published().await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(coordinator.asked.try_recv().is_err(), "a held job is not assigned");
    jobs::release(&world.backend, world.account, first, world.now()).await.unwrap();
    assert_eq!(coordinator.assigned().await.job, first);
}

#[tokio::test(start_paused = true)]
async fn capacity_is_never_given_out_twice() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    for number in 0..10 {
        world
            .submit(&format!("{number}.mp4"), json!({"resources": {"cpu_milli": 1500, "memory_bytes": 1}}))
            .await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut running = Vec::new();
    while let Ok(crate::agent::Asked::Assign(attempt)) = coordinator.asked.try_recv() {
        running.push(attempt);
    }
    assert_eq!(running.len(), 2, "two times 1.5 of 4 cores");
}

#[tokio::test(start_paused = true)]
async fn two_regions_share_a_manager_and_nothing_else() {
    let other: RegionName = "other".parse().unwrap();
    let config = ManagerConfig {
        listen: "127.0.0.1:0".to_owned(),
        regions: vec![region(), other.clone()],
        ..Default::default()
    };
    let world = World::of(config).await;
    let mut here = Coordinator::attach(&world, instance(1)).await;
    let identity = coordinator_identity(&world, instance(2), &other);
    let greeting = hello(instance(2), other.clone(), &[]);
    let mut there = Coordinator::try_attach(&world, identity, greeting, Habit::Willing).await.unwrap();
    let job_there = world.submit("there.mp4", json!({"region": "other"})).await;
    let job_here = world.submit("here.mp4", json!({})).await;
    assert_eq!(there.assigned().await.job, job_there);
    assert_eq!(here.assigned().await.job, job_here);
    // A coordinator of one region gets nothing signed of the other.
    let foreign = world.job(job_there).await.live_attempt().unwrap();
    assert_eq!(here.sign(foreign).await.unwrap_err().code, "stale");
}

#[tokio::test(start_paused = true)]
async fn a_job_follows_what_it_depends_on_although_the_manager_dies_in_between() {
    let mut world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let first = world.submit("first.mp4", json!({})).await;
    let second = world.submit("second.mp4", json!({"depends_on": [first]})).await;
    let third = world.submit("third.mp4", json!({"depends_on": [first, second]})).await;
    let attempt = coordinator.assigned().await;
    assert_eq!(attempt.job, first);
    let worker = Worker::start(&world, &coordinator, attempt).await;
    worker.enter("running").await;
    tokio::time::sleep(SOON).await;
    assert_eq!(world.job(second).await.state.name(), StateName::Held);
    worker.seal(manifest(world.store, "first.mp4", attempt)).await;
    worker.published().await;
    // It dies at once, most likely before it has looked at who waited for that.
    world.kill().await;
    coordinator.die().await;
    world.start().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let attempt = coordinator.assigned().await;
    assert_eq!(attempt.job, second);
    let worker = Worker::start(&world, &coordinator, attempt).await;
    let input = Failure::new(FailureClass::Input, "bad_input", "made to fail");
    worker.ended(Some(input), false).await;
    let failed = world.wait_for(third, StateName::Failed, SOON).await;
    let JobState::Failed { failure } = failed.state else { panic!("{failed:?}") };
    assert_eq!((failure.class, failure.code.as_str()), (FailureClass::Policy, "dependency_failed"));
}
