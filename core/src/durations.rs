//! What a region has learned about how long work runs: one row per kind, told by its managers, read by whoever expects
//! something.
//!
//! A manager adds what it has learned since its last write. Rows are merged on the version that was read, so that two
//! managers lose nothing of each other; a batch says its number, so that one that is written again after an unknown
//! result is counted once, unless another manager wrote the same row in between: then these runs weigh double, which
//! is the worst that happens. What was not written when a manager dies is not known; it is learned again.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use telecine_domain::id::{RegionName, Term};
use telecine_domain::learn::{Kind, Learned, Lesson, Work};
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::Source;
use crate::record::{self, RecordError, Versioned};

/// What nobody has learned again for so long is forgotten.
const LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// Kinds from which on all of them are read in pages rather than each alone.
const MANY: usize = 50;

/// Names what a manager has learned since its last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// The term in which it was learned.
    pub term: Term,
    /// Which one of that term, from 1.
    pub number: u64,
}

/// The row of a kind.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KindRecord {
    kind: Kind,
    lesson: Lesson,
    /// The batch that was added last.
    batch: Batch,
}

/// Adds what was learned to the rows. Again with the same batch, it changes nothing where it was done.
///
/// # Errors
/// When the records are out of reach; some rows may be written: come again with the same batch.
pub async fn add(
    backend: &Backend,
    region: &RegionName,
    batch: Batch,
    learned: &Learned,
    now: Timestamp,
) -> Result<(), RecordError> {
    for (kind, lesson) in learned.lessons() {
        match add_one(backend, region, batch, (kind, lesson), now).await {
            // The others can still be learned.
            Err(error @ RecordError::Damaged { .. }) => {
                tracing::error!(%error, "a row of durations cannot be read")
            }
            result => result?,
        }
    }
    Ok(())
}

async fn add_one(
    backend: &Backend,
    region: &RegionName,
    batch: Batch,
    (kind, lesson): (&Kind, &Lesson),
    now: Timestamp,
) -> Result<(), RecordError> {
    let key = layout::duration(region, kind);
    record::replace(backend.table.as_ref(), &key, |found: Option<&Versioned<KindRecord>>| {
        if found.is_some_and(|found| found.value.batch == batch) {
            return Ok(None);
        }
        let mut whole = found.map(|found| found.value.lesson.clone()).unwrap_or_default();
        whole.merge(lesson);
        let value = KindRecord { kind: kind.clone(), lesson: whole, batch };
        let mut row = record::row(key.clone(), 1, &value)?;
        row.expires_at = Some(now.after(LIFE));
        Ok(Some(row))
    })
    .await
}

/// All that a region has learned; rows that cannot be read are left out, and said in the log.
///
/// # Errors
/// When the records are out of reach.
pub async fn all(backend: &Backend, region: &RegionName) -> Result<Learned, RecordError> {
    let partition = layout::durations_of(region);
    let query = record::page_of(Source::Rows, partition, 1000, None);
    let mut learned = Learned::default();
    for row in record::all_rows(backend.table.as_ref(), query).await? {
        match record::value::<KindRecord>(&row) {
            Ok(KindRecord { kind, lesson, .. }) => learned.merge(kind, &lesson),
            Err(error) => tracing::error!(%error, "a row of durations cannot be read"),
        }
    }
    Ok(learned)
}

/// What a region has learned about these kinds of work.
///
/// # Errors
/// When the records are out of reach.
pub async fn about<'a>(
    backend: &Backend,
    region: &RegionName,
    works: impl IntoIterator<Item = &'a Work>,
) -> Result<Learned, RecordError> {
    let kinds: BTreeSet<Kind> =
        works.into_iter().flat_map(|work| work.kinds().map(|(_, kind)| kind).collect::<Vec<_>>()).collect();
    if kinds.len() > MANY {
        return all(backend, region).await;
    }
    let mut learned = Learned::default();
    for kind in kinds {
        let key = layout::duration(region, &kind);
        if let Some(found) = record::get::<KindRecord>(backend.table.as_ref(), &key).await? {
            learned.merge(kind, &found.value.lesson);
        }
    }
    Ok(learned)
}

#[cfg(test)]
mod tests {
    use telecine_domain::learn::{Basis, Length};

    use super::*;
    use crate::contract::HandClock;
    use crate::fixture::{FAULTS, region};

    fn work() -> Work {
        Work {
            account: telecine_domain::id::AccountId::new(Timestamp::from_millis(1), 1),
            service: "transform".parse().unwrap(),
            version: semver::Version::new(1, 2, 0),
            factory: None,
            length: Length::of_bytes(1 << 30),
        }
    }

    fn learned(runs: u64, now: Timestamp) -> Learned {
        let mut learned = Learned::default();
        (0..runs).for_each(|_| learned.learn(&work(), Duration::from_secs(100), now));
        learned
    }

    fn batch(term: u64, number: u64) -> Batch {
        Batch { term: Term(term), number }
    }

    #[tokio::test]
    async fn a_batch_counts_once_whatever_fails() {
        for fault in FAULTS {
            for failing in 1..=2 {
                let clock = HandClock::at(Timestamp::from_millis(1_000_000));
                let (backend, table) = Backend::memory(clock.clock());
                table.fail_transaction(failing, fault);
                let some = learned(7, clock.now());
                add(&backend, &region(), batch(1, 1), &some, clock.now()).await.unwrap();
                add(&backend, &region(), batch(1, 1), &some, clock.now()).await.unwrap();
                assert_eq!(all(&backend, &region()).await.unwrap(), some, "{fault:?}");
                assert_eq!(about(&backend, &region(), [&work()]).await.unwrap(), some);
            }
        }
    }

    #[tokio::test]
    async fn what_two_managers_learn_is_added_up_and_survives_both() {
        let clock = HandClock::at(Timestamp::from_millis(1_000_000));
        let (backend, _) = Backend::memory(clock.clock());
        let (one, other) = (learned(3, clock.now()), learned(4, clock.now()));
        let local = region();
        let (first, second) = tokio::join!(
            add(&backend, &local, batch(1, 9), &one, clock.now()),
            add(&backend, &local, batch(2, 1), &other, clock.now()),
        );
        first.and(second).unwrap();
        let expected = all(&backend, &region()).await.unwrap().expected(&work());
        assert_eq!((expected.samples, expected.basis), (7, Basis::Length));
        let elsewhere = all(&backend, &"elsewhere".parse().unwrap()).await.unwrap();
        assert!(elsewhere.is_empty(), "regions learn on their own: their instances differ");
    }

    #[tokio::test]
    async fn a_damaged_row_keeps_nothing_else_from_being_learned() {
        let clock = HandClock::at(Timestamp::from_millis(1_000_000));
        let (backend, _) = Backend::memory(clock.clock());
        let (_, exact) = work().kinds().next().unwrap();
        let row = record::row(layout::duration(&region(), &exact), 1, &"nonsense").unwrap();
        let put = record::put(row, crate::ports::table::Condition::Absent);
        backend.table.transact(vec![put]).await.unwrap();
        add(&backend, &region(), batch(1, 1), &learned(9, clock.now()), clock.now()).await.unwrap();
        assert_eq!(all(&backend, &region()).await.unwrap().expected(&work()).basis, Basis::Version);
    }

    #[tokio::test]
    async fn what_nobody_learns_again_is_forgotten() {
        let clock = HandClock::at(Timestamp::from_millis(1_000_000));
        let (backend, _) = Backend::memory(clock.clock());
        add(&backend, &region(), batch(1, 1), &learned(1, clock.now()), clock.now()).await.unwrap();
        clock.advance(LIFE);
        assert!(all(&backend, &region()).await.unwrap().is_empty());
    }
}
