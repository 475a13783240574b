//! What managers learn about how long work runs.

use std::time::Duration;

use serde_json::json;
use telecine_core::durations;
use telecine_core::memory::Fault;
use telecine_domain::job::StateName;
use telecine_domain::learn::{Expected, Work};
use telecine_proto::worker::v1::from_manager::Body;

use crate::agent::{Coordinator, Worker, instance, is_accepted, manifest};
use crate::world::{World, region};

/// Runs a job whose engine works for so long, and publishes it.
async fn run(world: &World, coordinator: &mut Coordinator, key: &str, seconds: u64) -> Work {
    let job = world.submit(key, json!({})).await;
    let attempt = coordinator.assigned().await;
    let worker = Worker::start(world, coordinator, attempt).await;
    assert!(is_accepted(&worker.enter("running").await));
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    // Asked twice, as after a lost answer: it is one run.
    for _ in 0..2 {
        let sealed = manifest(world.store, key, attempt);
        assert!(matches!(worker.seal(sealed).await, Body::Grant(_)));
    }
    assert!(is_accepted(&worker.published().await));
    let done = world.wait_for(job, StateName::Succeeded, Duration::from_secs(10)).await;
    worker.die().await;
    Work::of(&done)
}

async fn recorded(world: &World, work: &Work) -> Expected {
    durations::about(&world.backend, &region(), [work]).await.unwrap().expected(work)
}

#[tokio::test(start_paused = true)]
async fn runs_are_recorded_within_a_minute_and_survive_managers_that_stop_and_die() {
    let mut world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let work = run(&world, &mut coordinator, "1.mp4", 40).await;
    world.stop().await;
    coordinator.die().await;
    let first = recorded(&world, &work).await;
    assert_eq!(first.samples, 1, "what stops says what it has learned");
    assert!(first.p50_ms.abs_diff(40_000) <= 40_000 / 32, "{first:?}");

    world.start().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    run(&world, &mut coordinator, "2.mp4", 30).await;
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(recorded(&world, &work).await.samples, 2);
    run(&world, &mut coordinator, "3.mp4", 1).await;
    // Nothing more is recorded, as when the machine dies.
    (1..=1000).for_each(|nth| world.table.fail_transaction(nth, Fault::Refused));
    world.kill().await;
    coordinator.die().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.table.mend();
    assert_eq!(recorded(&world, &work).await.samples, 2, "a lost minute is harmless");
    world.start().await;
    tokio::time::sleep(Duration::from_secs(130)).await;
    assert_eq!(recorded(&world, &work).await.samples, 2, "nothing is added by reading it");
}
