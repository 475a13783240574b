//! The table port on SQLite.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use telecine_core::contract::{HandClock, table_contract};
use telecine_core::ports::table::{Condition, Key, Query, Row, SortRange, Source, Table, TableError, Write};
use telecine_domain::time::Timestamp;
use telecine_embedded::SqliteTable;

use crate::{clock, new_row};

fn all(partition: &str) -> Query {
    Query {
        source: Source::Rows,
        partition: partition.to_owned(),
        range: SortRange::All,
        descending: false,
        limit: 1000,
        after: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let count = AtomicU64::new(0);
    table_contract(async |clock| {
        let file = folder.path().join(format!("{}.db", count.fetch_add(1, Ordering::Relaxed)));
        Arc::new(SqliteTable::open(&file, clock, None).unwrap()) as Arc<dyn Table>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_come_together_share_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let table = Arc::new(SqliteTable::open(&folder.path().join("t.db"), clock(), None).unwrap());
    let writers = (0..64).map(|writer| {
        let table = Arc::clone(&table);
        tokio::spawn(async move {
            for n in 0..20 {
                table.transact(new_row("p", &format!("{writer}-{n}"), "x")).await.unwrap();
            }
        })
    });
    join_all(writers).await.into_iter().for_each(Result::unwrap);
    let commits = table.commits();
    assert!(commits < 64 * 20 / 2, "{commits} commits for {} writes", 64 * 20);
    let first = table.query(all("p")).await.unwrap();
    let rest = table.query(Query { after: first.next, ..all("p") }).await.unwrap();
    assert_eq!(first.rows.len() + rest.rows.len(), 64 * 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_refusal_does_not_touch_the_others_of_its_commit() {
    let folder = tempfile::tempdir().unwrap();
    let table = Arc::new(SqliteTable::open(&folder.path().join("t.db"), clock(), None).unwrap());
    table.transact(new_row("p", "taken", "first")).await.unwrap();
    let half_refused = (0..100).map(|n| {
        let mut writes = new_row("p", &format!("{n:03}"), "x");
        if n % 2 == 1 {
            writes.extend(new_row("p", "taken", "second"));
        }
        let table = Arc::clone(&table);
        async move { table.transact(writes).await }
    });
    for (n, result) in join_all(half_refused).await.into_iter().enumerate() {
        match result {
            Ok(()) => assert_eq!(n % 2, 0),
            Err(TableError::Condition { index: 1 }) => assert_eq!(n % 2, 1),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(table.query(all("p")).await.unwrap().rows.len(), 51);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_rows_give_their_space_back() {
    let folder = tempfile::tempdir().unwrap();
    let hand = HandClock::at(Timestamp::from_millis(1_000_000));
    let file = folder.path().join("t.db");
    let table = SqliteTable::open(&file, hand.clock(), None).unwrap();
    for part in 0..15 {
        let writes = (0..100).map(|n| {
            let mut row = Row::new(Key::new("p", format!("{part}-{n}")), 1, serde_json::json!("x"));
            row.expires_at = (n != 0).then(|| hand.now().after(Duration::from_secs(10)));
            Write::Put { row, condition: Condition::Absent }
        });
        table.transact(writes.collect()).await.unwrap();
    }
    assert_eq!(table.sweep_expired().await.unwrap(), 0);
    hand.advance(Duration::from_secs(10));
    assert_eq!(table.sweep_expired().await.unwrap(), 15 * 99, "more than two batches");
    assert_eq!(table.query(all("p")).await.unwrap().rows.len(), 15);
    assert_eq!(table.sweep_expired().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_a_whole_database() {
    let folder = tempfile::tempdir().unwrap();
    let table = SqliteTable::open(&folder.path().join("t.db"), clock(), None).unwrap();
    table.transact(new_row("p", "a", "x")).await.unwrap();
    let copy = folder.path().join("copy.db");
    table.back_up(&copy).await.unwrap();
    assert!(matches!(table.back_up(&copy).await, Err(TableError::Invalid(_))));
    let restored = SqliteTable::open(&copy, clock(), None).unwrap();
    assert_eq!(restored.query(all("p")).await.unwrap(), table.query(all("p")).await.unwrap());
    restored.transact(new_row("p", "b", "x")).await.unwrap();
}
