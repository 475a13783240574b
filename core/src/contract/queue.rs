//! The contract of `Queue`. Uses tokio time: a backend on real time sleeps a few seconds here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use telecine_domain::id::{JobId, RegionName};
use telecine_domain::time::Timestamp;
use tokio::time::{Instant, sleep};

use crate::ports::queue::{Queue, Received};

const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(1);

/// At least once, hidden while in flight, back when not acknowledged, one queue per region.
pub async fn queue_contract(make: impl AsyncFn() -> Arc<dyn Queue>) {
    everything_sent_is_received(make().await.as_ref()).await;
    unacknowledged_hints_come_back(make().await.as_ref()).await;
    lapsed_receipts_do_nothing(make().await.as_ref()).await;
    extended_hints_stay_hidden(make().await.as_ref()).await;
    receive_waits_for_the_first(make().await).await;
    regions_are_apart(make().await.as_ref()).await;
}

fn region(name: &str) -> RegionName {
    name.parse().expect("a region name")
}

fn job(n: u64) -> JobId {
    JobId::new(Timestamp::from_millis(n), u128::from(n))
}

/// Receives until `count` jobs were seen or 20 s have passed, acknowledging each.
async fn drain(queue: &dyn Queue, region: &RegionName, count: usize) -> BTreeSet<JobId> {
    let end = Instant::now() + Duration::from_secs(20);
    let mut seen = BTreeSet::new();
    while seen.len() < count && Instant::now() < end {
        let received = queue.receive(region, 10, SHORT, LONG).await.expect("receives");
        let receipts: Vec<String> = received.iter().map(|one| one.receipt.clone()).collect();
        seen.extend(received.iter().map(|one| one.job));
        queue.acknowledge(region, &receipts).await.expect("acknowledges");
    }
    seen
}

async fn one(queue: &dyn Queue, region: &RegionName, visibility: Duration) -> Received {
    let received = queue.receive(region, 1, Duration::from_secs(10), visibility).await.expect("receives");
    received.into_iter().next().expect("a hint within ten seconds")
}

async fn everything_sent_is_received(queue: &dyn Queue) {
    let local = region("local");
    let jobs: Vec<JobId> = (1..=25).map(job).collect();
    queue.send(&local, &[]).await.expect("sends nothing");
    queue.send(&local, &jobs).await.expect("sends");
    assert_eq!(queue.depth(&local).await.expect("depth").visible, 25);
    assert_eq!(drain(queue, &local, 25).await, jobs.into_iter().collect());
    let depth = queue.depth(&local).await.expect("depth");
    assert_eq!((depth.visible, depth.in_flight), (0, 0), "acknowledged hints are gone");
    assert!(queue.receive(&local, 10, NO_WAIT, LONG).await.expect("receives").is_empty());
}

async fn unacknowledged_hints_come_back(queue: &dyn Queue) {
    let local = region("local");
    queue.send(&local, &[job(1)]).await.expect("sends");
    let first = one(queue, &local, SHORT).await;
    let depth = queue.depth(&local).await.expect("depth");
    assert_eq!((depth.visible, depth.in_flight), (0, 1));
    assert!(
        queue.receive(&local, 1, NO_WAIT, LONG).await.expect("receives").is_empty(),
        "a hint in flight was given to somebody else"
    );
    let second = one(queue, &local, LONG).await;
    assert_eq!((first.job, second.job), (job(1), job(1)));
    queue.acknowledge(&local, &[second.receipt]).await.expect("acknowledges");
}

async fn lapsed_receipts_do_nothing(queue: &dyn Queue) {
    let local = region("local");
    queue.send(&local, &[job(1)]).await.expect("sends");
    let first = one(queue, &local, SHORT).await;
    let second = one(queue, &local, LONG).await;
    let junk = vec![first.receipt, "no receipt at all".to_owned(), String::new()];
    queue.acknowledge(&local, &junk).await.expect("skips them");
    queue.extend(&local, &junk, NO_WAIT).await.expect("skips them");
    assert_eq!(queue.depth(&local).await.expect("depth").in_flight, 1, "a lapsed receipt still worked");
    queue.acknowledge(&local, std::slice::from_ref(&second.receipt)).await.expect("acknowledges");
    queue.acknowledge(&local, &[second.receipt]).await.expect("twice is no error");
    assert_eq!(queue.depth(&local).await.expect("depth").in_flight, 0);
}

async fn extended_hints_stay_hidden(queue: &dyn Queue) {
    let local = region("local");
    queue.send(&local, &[job(1)]).await.expect("sends");
    let held = one(queue, &local, SHORT).await;
    queue.extend(&local, std::slice::from_ref(&held.receipt), LONG).await.expect("extends");
    sleep(SHORT * 2).await;
    assert!(queue.receive(&local, 1, NO_WAIT, LONG).await.expect("receives").is_empty());
    queue.extend(&local, &[held.receipt], NO_WAIT).await.expect("gives it back");
    assert_eq!(one(queue, &local, LONG).await.job, job(1));
}

async fn receive_waits_for_the_first(queue: Arc<dyn Queue>) {
    let local = region("local");
    let sender = {
        let (queue, local) = (queue.clone(), local.clone());
        async move {
            sleep(SHORT).await;
            queue.send(&local, &[job(1)]).await.expect("sends");
        }
    };
    let (received, ()) = tokio::join!(one(queue.as_ref(), &local, LONG), sender);
    assert_eq!(received.job, job(1));
    let before = Instant::now();
    assert!(queue.receive(&local, 1, SHORT, LONG).await.expect("receives").is_empty());
    assert!(before.elapsed() >= SHORT / 2, "an empty receive did not wait");
}

async fn regions_are_apart(queue: &dyn Queue) {
    let (one, two) = (region("one"), region("two"));
    queue.send(&one, &[job(1)]).await.expect("sends");
    assert!(queue.receive(&two, 10, NO_WAIT, LONG).await.expect("receives").is_empty());
    assert_eq!(queue.depth(&two).await.expect("depth").visible, 0);
    assert_eq!(drain(queue, &one, 1).await.len(), 1);
}
