//! Cancel and timeouts: the stop reaches whoever can stop the engine.

use std::time::Duration;

use serde_json::json;
use telecine_core::jobs;
use telecine_domain::job::{JobState, StateName};
use telecine_proto::worker::v1::from_manager::Body;
use tokio::time::Instant;

use crate::agent::{Asked, Coordinator, Worker, instance, is_accepted, is_refused, manifest};
use crate::world::World;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_cancel_reaches_the_worker_within_a_second() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    let mut worker = Worker::start(&world, &coordinator, attempt).await;
    worker.enter("running").await;
    let began = Instant::now();
    jobs::cancel(&world.backend, world.account, job, world.now()).await.unwrap();
    let stop =
        tokio::time::timeout(Duration::from_secs(1), worker.told.recv()).await.expect("within a second");
    assert!(matches!(stop, Some(Body::Stop(stop)) if stop.grace_millis == 10_000), "{:?}", began.elapsed());
    assert!(is_accepted(&worker.renew().await), "a worker that is stopping keeps its lease");
    assert!(is_refused(&worker.seal(manifest(world.store, "out.mp4", attempt)).await, "illegal"));
    assert!(is_accepted(&worker.ended(None, false).await));
    world.wait_for(job, StateName::Canceled, SOON).await;
    assert!(coordinator.asked.try_recv().is_err(), "its coordinator need not be told");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_whose_hint_was_lost_is_found_by_the_poll() {
    let mut world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    let mut worker = Worker::start(&world, &coordinator, attempt).await;
    // Hints of this backend go nowhere.
    let (deaf, _) = telecine_core::Backend::memory(std::sync::Arc::new({
        let clock = world.clock;
        move || clock.now()
    }));
    let hearing = std::mem::replace(&mut world.backend.queue, deaf.queue);
    jobs::cancel(&world.backend, world.account, job, world.now()).await.unwrap();
    world.backend.queue = hearing;
    let stop = tokio::time::timeout(Duration::from_millis(1500), worker.told.recv()).await.expect("soon");
    assert!(matches!(stop, Some(Body::Stop(_))));
}

#[tokio::test(start_paused = true)]
async fn without_a_worker_the_coordinator_is_told() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    jobs::cancel(&world.backend, world.account, job, world.now()).await.unwrap();
    assert_eq!(coordinator.next().await, Asked::Stop(attempt));
    coordinator.worker_gone(attempt).await;
    world.wait_for(job, StateName::Canceled, SOON).await;
}

#[tokio::test(start_paused = true)]
async fn a_queued_job_is_canceled_at_once_and_never_assigned() {
    let world = World::new().await;
    let job = world.submit("out.mp4", json!({})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    jobs::cancel(&world.backend, world.account, job, world.now()).await.unwrap();
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(coordinator.asked.try_recv().is_err());
    assert!(matches!(world.job(job).await.state, JobState::Canceled));
}

#[tokio::test(start_paused = true)]
async fn the_total_timeout_stops_a_running_job_and_the_queue_timeout_a_waiting_one() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let long = world.submit("long.mp4", json!({"timeouts": {"total_seconds": 30}})).await;
    let attempt = coordinator.assigned().await;
    let mut worker = Worker::start(&world, &coordinator, attempt).await;
    let huge =
        json!({"timeouts": {"queue_seconds": 20}, "resources": {"cpu_milli": 64000, "memory_bytes": 1}});
    let waiting = world.submit("waiting.mp4", huge).await;
    world.wait_for(waiting, StateName::Expired, Duration::from_secs(25)).await;
    let stop = tokio::time::timeout(Duration::from_secs(15), worker.told.recv()).await.expect("in time");
    assert!(matches!(stop, Some(Body::Stop(_))));
    worker.ended(None, false).await;
    let failed = world.wait_for(long, StateName::Failed, SOON).await;
    assert!(matches!(failed.state, JobState::Failed { failure } if failure.code == "total_timeout"));
}
