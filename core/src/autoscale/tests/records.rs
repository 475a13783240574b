//! Decision records: what is written, listed, taken again and forgotten.

use telecine_domain::autoscale::ScaleDecision;

use super::super::{find, list, replay};
use super::*;

#[tokio::test]
async fn what_is_decided_is_recorded_once_and_replays() {
    let mut sky = Sky::new().await;
    sky.wait(2).await;
    let first = sky.tick().await;
    let second = sky.tick().await;
    assert_eq!((first.recorded, second.recorded), (Some(1), Some(2)), "an action, then a new reason");
    assert_eq!(sky.tick().await.recorded, None, "nothing new to tell");
    let listed = list(&sky.backend, Some(&region()), 1, None).await.unwrap();
    assert_eq!((listed.items[0].number, listed.items[0].decision.clone()), (2, second.decision.clone()));
    let next = list(&sky.backend, Some(&region()), 1, listed.next).await.unwrap();
    assert_eq!((next.items[0].number, next.items[0].decision.clone()), (1, first.decision));
    let everywhere = list(&sky.backend, None, 10, None).await.unwrap();
    let numbers: Vec<u64> = everywhere.items.iter().map(|decided| decided.number).collect();
    assert_eq!(numbers, [2, 1]);
    for number in [1, 2] {
        let replayed = replay(&sky.backend, &region(), number).await.unwrap().unwrap();
        assert_eq!(replayed.again, replayed.recorded.decision, "decision {number}");
    }
    assert_eq!(replay(&sky.backend, &region(), 3).await.unwrap(), None);
}

#[tokio::test]
async fn a_decision_that_is_too_long_for_a_row_is_listed_all_the_same() {
    let mut sky = Sky::new().await;
    let pools: Vec<Pool> = (0..1200).map(|n| declared(&format!("pool-{n}"), 0, 1, 1)).collect();
    let cloud = cloud::Cloud::new(&[]);
    pools.iter().for_each(|pool| cloud.add(&pool.name));
    sky.backend.instances = Arc::new(cloud);
    pools::declare(&sky.backend, &pools).await.unwrap();
    let ticked = sky.tick().await;
    assert_eq!(ticked.decision.reasons.len(), 1200, "each is invalid, for want of CPU");
    let decided = find(&sky.backend, &region(), 1).await.unwrap().unwrap();
    assert_eq!(decided.decision, ticked.decision);
    let row = sky.table.rows().into_iter().find(|row| row.key.partition.ends_with("#decisions")).unwrap();
    assert!(row.body.to_string().len() < 1000, "it lies in the system store");
}

#[tokio::test]
async fn decisions_are_kept_for_thirty_days() {
    let mut sky = Sky::new().await;
    sky.wait(1).await;
    sky.ticks(2).await;
    let old = find(&sky.backend, &region(), 1).await.unwrap().unwrap();
    sky.clock.advance(Duration::from_secs(31 * 24 * 3600));
    sky.all_ready().await;
    sky.wait(3).await;
    sky.tick().await;
    let left = list(&sky.backend, Some(&region()), 10, None).await.unwrap().items;
    assert_eq!(left.iter().map(|decided| decided.number).collect::<Vec<_>>(), [3]);
    assert!(sky.backend.system.read(&old.input).await.is_err(), "what it was decided on, too");
}

#[tokio::test]
async fn the_last_look_counts_and_a_long_one_is_never_mixed_with_another() {
    let sky = Sky::new().await;
    let look = |term: u64, sequence: u64, lines: u32| {
        let line = |n: u32| Waiting {
            need: Amounts { cpu_milli: u64::from(n), ..Amounts::ZERO },
            interruptible: true,
            count: u32::try_from(sequence).unwrap(),
            expected_ms: 1,
            oldest: sky.now(),
            start_by: None,
        };
        Observation { term, sequence, observed_at: sky.now(), lines: (0..lines).map(line).collect() }
    };
    for fault in crate::fixture::FAULTS {
        let sky = Sky::new().await;
        let write =
            async |observation: &Observation| observe(&sky.backend, &region(), observation).await.unwrap();
        let read = async || super::super::observed(&sky.backend, &region()).await.unwrap();
        assert_eq!(read().await, None);
        let (long, short) = (look(1, 1, 12_345), look(1, 2, 1));
        sky.table.fail_transaction(1, fault);
        sky.table.fail_transaction(3, fault);
        assert!(write(&long).await);
        assert_eq!(read().await.as_ref(), Some(&long), "{fault:?}");
        assert!(write(&short).await);
        assert_eq!(read().await.as_ref(), Some(&short));
        assert!(!write(&long).await, "an older one comes too late");
        assert!(write(&short).await, "the same again");
        let newer = look(2, 1, 2000);
        let (written, _) = tokio::join!(write(&newer), read());
        assert!(written, "a new term counts from the beginning");
        assert!(!write(&look(1, 9, 1)).await, "of a manager that was replaced");
        assert_eq!(read().await.as_ref(), Some(&newer));
        sky.clock.advance(Duration::from_secs(700));
        assert_eq!(read().await, None, "its chunks are gone, and it is far too old");
    }
}

#[test]
fn what_says_the_same_has_the_same_digest_whenever_it_was_said() {
    let decision =
        |at: u64| ScaleDecision { at: Timestamp::from_millis(at), actions: Vec::new(), reasons: Vec::new() };
    let digest = super::super::commit::digest;
    assert_eq!(digest(&decision(1)), digest(&decision(2)));
}
