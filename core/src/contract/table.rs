//! The contract of `Table`.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use telecine_domain::time::Timestamp;

use super::HandClock;
use crate::ports::Clock;
use crate::ports::table::{
    Condition, Key, MAX_ROW_BYTES, MAX_WRITES, Page, PageToken, Query, Row, SortRange, Source, Table,
    TableError, Write,
};

/// Conditional writes, atomic transactions, ordered and paged queries, sparse indexes, expiry, revision. `make` gives
/// an empty table that tells expiry by the clock it is given.
pub async fn table_contract(make: impl AsyncFn(Clock) -> Arc<dyn Table>) {
    let clock = HandClock::at(Timestamp::from_millis(1_795_359_845_120));
    let fresh = async || make(clock.clock()).await;
    rows_are_kept_whole(fresh().await.as_ref()).await;
    conditions_hold(fresh().await.as_ref()).await;
    transactions_are_all_or_nothing(fresh().await.as_ref()).await;
    limits_are_kept(fresh().await.as_ref()).await;
    rows_are_ordered_bytewise(fresh().await.as_ref()).await;
    ranges_are_exact(fresh().await.as_ref()).await;
    pages_go_both_ways(fresh().await.as_ref()).await;
    pages_are_stable_under_change(fresh().await.as_ref()).await;
    tokens_belong_to_their_query(fresh().await.as_ref()).await;
    indexes_are_sparse_and_follow(fresh().await.as_ref()).await;
    index_ties_are_all_found(fresh().await.as_ref()).await;
    expired_rows_are_absent(fresh().await.as_ref(), &clock).await;
    the_revision_grows(fresh().await.as_ref()).await;
    exactly_one_writer_wins(fresh().await).await;
}

fn row(partition: &str, sort: &str, version: u64) -> Row {
    Row::new(Key::new(partition, sort), version, json!({ "sort": sort, "version": version }))
}

fn put(row: Row, condition: Condition) -> Write {
    Write::Put { row, condition }
}

async fn fill(table: &dyn Table, partition: &str, sorts: &[&str]) {
    for sort in sorts {
        table.transact(vec![put(row(partition, sort, 1), Condition::Absent)]).await.expect("puts");
    }
}

fn query(source: Source, partition: &str) -> Query {
    Query {
        source,
        partition: partition.to_owned(),
        range: SortRange::All,
        descending: false,
        limit: 100,
        after: None,
    }
}

fn sorts(page: &Page) -> Vec<&str> {
    page.rows.iter().map(|row| row.key.sort.as_str()).collect()
}

/// Follows a query to its end, page by page.
async fn pages(table: &dyn Table, mut query: Query) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    loop {
        let page = table.query(query.clone()).await.expect("queries");
        assert!(page.rows.len() <= query.limit);
        found.push(sorts(&page).into_iter().map(str::to_owned).collect());
        match page.next {
            Some(next) => query.after = Some(next),
            None => return found,
        }
    }
}

/// What an index shows; an index may lag, so it is asked again for up to ten seconds.
async fn index_shows(table: &dyn Table, source: Source, partition: &str, expected: &[&str]) {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let page = table.query(query(source, partition)).await.expect("queries");
        if sorts(&page) == expected {
            return;
        }
        assert!(
            tokio::time::Instant::now() < end,
            "{source:?} of {partition} shows {:?}, not {expected:?}",
            sorts(&page)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn rows_are_kept_whole(table: &dyn Table) {
    let key = Key::new("p#é\n\"'%", "s 漢 #/\\");
    let body = json!({
        "text": "quotes \" ' \\ and \u{1F3AC} and \u{0} and \r\n", "empty": "", "null": null, "list": [1, [], {}],
        "integer": 9_007_199_254_740_993u64, "negative": -3, "ratio": 0.5, "yes": true, "": "an empty name",
    });
    let whole = Row {
        key: key.clone(),
        version: 7,
        index1: Some(Key::new("i1", "a")),
        index2: Some(Key::new("i2", "b")),
        expires_at: Some(Timestamp::from_millis(4_000_000_000_000)),
        body,
    };
    table.transact(vec![put(whole.clone(), Condition::Absent)]).await.expect("puts");
    assert_eq!(table.get(&key).await.expect("gets").as_ref(), Some(&whole));
    let page = table.query(query(Source::Rows, "p#é\n\"'%")).await.expect("queries");
    assert_eq!(page.rows, vec![whole]);
    assert_eq!(table.get(&Key::new("p", "s")).await.expect("gets"), None);
}

async fn conditions_hold(table: &dyn Table) {
    let key = Key::new("p", "s");
    let failed = |result: Result<(), TableError>| matches!(result, Err(TableError::Condition { index: 0 }));
    let write = async |version, condition| table.transact(vec![put(row("p", "s", version), condition)]).await;
    assert!(failed(write(1, Condition::Version(0)).await), "a version of a row that is absent");
    write(1, Condition::Absent).await.expect("absent holds");
    assert!(failed(write(2, Condition::Absent).await), "absent of a row that is there");
    assert!(failed(write(2, Condition::Version(2)).await), "another version");
    write(2, Condition::Version(1)).await.expect("the version holds");
    write(9, Condition::Any).await.expect("any holds");
    assert_eq!(table.get(&key).await.expect("gets").map(|row| row.version), Some(9));

    let check = |condition| vec![Write::Check { key: key.clone(), condition }];
    table.transact(check(Condition::Version(9))).await.expect("a check alone");
    assert!(failed(table.transact(check(Condition::Absent)).await));
    let delete = |condition| vec![Write::Delete { key: key.clone(), condition }];
    assert!(failed(table.transact(delete(Condition::Version(1))).await));
    table.transact(delete(Condition::Version(9))).await.expect("deletes");
    table.transact(delete(Condition::Any)).await.expect("deleting nothing is no error");
    assert!(failed(table.transact(delete(Condition::Version(9))).await));
    assert_eq!(table.get(&key).await.expect("gets"), None);
}

async fn transactions_are_all_or_nothing(table: &dyn Table) {
    fill(table, "p", &["there"]).await;
    let attempt = table
        .transact(vec![
            put(row("p", "new", 1), Condition::Absent),
            put(row("q", "new", 1), Condition::Absent),
            Write::Delete { key: Key::new("p", "there"), condition: Condition::Version(1) },
            Write::Check { key: Key::new("p", "missing"), condition: Condition::Version(1) },
            put(row("p", "late", 1), Condition::Version(5)),
        ])
        .await;
    assert!(matches!(attempt, Err(TableError::Condition { index: 3 })), "the first that failed: {attempt:?}");
    assert_eq!(pages(table, query(Source::Rows, "p")).await, vec![vec!["there"]]);
    assert_eq!(table.get(&Key::new("q", "new")).await.expect("gets"), None);
    table
        .transact(vec![
            put(row("p", "new", 1), Condition::Absent),
            Write::Check { key: Key::new("p", "missing"), condition: Condition::Absent },
            Write::Delete { key: Key::new("p", "there"), condition: Condition::Version(1) },
        ])
        .await
        .expect("all conditions hold");
    assert_eq!(pages(table, query(Source::Rows, "p")).await, vec![vec!["new"]]);
}

async fn limits_are_kept(table: &dyn Table) {
    let invalid = |result: Result<(), TableError>| matches!(result, Err(TableError::Invalid(_)));
    let many = |count: usize| (0..count).map(|n| put(row("p", &format!("{n:04}"), 1), Condition::Absent));
    table.transact(many(MAX_WRITES).collect()).await.expect("the most writes");
    assert!(invalid(table.transact(many(MAX_WRITES + 1).collect()).await), "too many writes");
    assert!(invalid(table.transact(Vec::new()).await), "no writes");
    let twice = vec![put(row("p", "x", 1), Condition::Any), put(row("p", "x", 2), Condition::Any)];
    assert!(invalid(table.transact(twice).await), "two writes to one row");
    for (partition, sort) in [("", "s"), ("p", "")] {
        let write = vec![put(row(partition, sort, 1), Condition::Any)];
        assert!(invalid(table.transact(write).await), "an empty key");
    }
    let sized =
        |bytes: usize| vec![put(Row::new(Key::new("p", "big"), 1, json!("x".repeat(bytes))), Condition::Any)];
    table.transact(sized(MAX_ROW_BYTES - 1024)).await.expect("a row just below the limit");
    assert!(invalid(table.transact(sized(MAX_ROW_BYTES + 1)).await), "a row too large");
    let heavy = (0..12).map(|n| {
        let key = Key::new("heavy", n.to_string());
        put(Row::new(key, 1, json!("x".repeat(390 * 1024))), Condition::Any)
    });
    assert!(invalid(table.transact(heavy.collect()).await), "a transaction too large");
    for limit in [0, 1001] {
        let asked = Query { limit, ..query(Source::Rows, "p") };
        assert!(matches!(table.query(asked).await, Err(TableError::Invalid(_))), "a page of {limit}");
    }
}

async fn rows_are_ordered_bytewise(table: &dyn Table) {
    fill(table, "p", &["b", "a", "B", "é", "10", "9", "a#1", "a!", "z", "漢", "\u{1F3AC}", "\u{FFFD}"]).await;
    fill(table, "p2", &["other"]).await;
    let ordered = ["10", "9", "B", "a", "a!", "a#1", "b", "z", "é", "漢", "\u{FFFD}", "\u{1F3AC}"];
    let page = table.query(query(Source::Rows, "p")).await.expect("queries");
    assert_eq!(sorts(&page), ordered);
    let page = table.query(Query { descending: true, ..query(Source::Rows, "p") }).await.expect("queries");
    assert!(sorts(&page).into_iter().eq(ordered.into_iter().rev()));
}

async fn ranges_are_exact(table: &dyn Table) {
    fill(table, "p", &["a", "a#1", "a#2", "a%", "a_b", "ab", "b", "c", "\u{10FFFF}x"]).await;
    let range = async |range, descending| {
        let page =
            table.query(Query { range, descending, ..query(Source::Rows, "p") }).await.expect("queries");
        page.rows.into_iter().map(|row| row.key.sort).collect::<Vec<_>>()
    };
    let prefix = |text: &str| SortRange::Prefix(text.to_owned());
    let between = |from: &str, to: &str| SortRange::Between(from.to_owned(), to.to_owned());
    assert_eq!(range(prefix("a#"), false).await, ["a#1", "a#2"]);
    assert_eq!(range(prefix("a#"), true).await, ["a#2", "a#1"]);
    assert_eq!(range(prefix("a%"), false).await, ["a%"], "a prefix is no pattern");
    assert_eq!(range(prefix("a_"), false).await, ["a_b"], "a prefix is no pattern");
    assert_eq!(range(prefix("\u{10FFFF}"), false).await, ["\u{10FFFF}x"]);
    assert_eq!(range(prefix("x"), false).await, [""; 0]);
    assert_eq!(range(between("a#2", "b"), false).await, ["a#2", "a%", "a_b", "ab"], "to is left out");
    assert_eq!(range(between("a#2", "b"), true).await, ["ab", "a_b", "a%", "a#2"]);
    assert_eq!(range(between("b", "a"), false).await, [""; 0], "an empty range");
}

async fn pages_go_both_ways(table: &dyn Table) {
    fill(table, "p", &["a", "b", "c", "d", "e"]).await;
    for descending in [false, true] {
        let asked = Query { limit: 2, descending, ..query(Source::Rows, "p") };
        let found: Vec<String> = pages(table, asked).await.concat();
        let mut expected = ["a", "b", "c", "d", "e"];
        if descending {
            expected.reverse();
        }
        assert_eq!(found, expected);
    }
    let exact = Query { limit: 5, ..query(Source::Rows, "p") };
    assert_eq!(pages(table, exact).await.concat().len(), 5);
    assert_eq!(pages(table, query(Source::Rows, "nothing")).await, vec![Vec::<String>::new()]);
}

async fn pages_are_stable_under_change(table: &dyn Table) {
    for descending in [false, true] {
        let partition = if descending { "down" } else { "up" };
        fill(table, partition, &["b", "d", "f", "h"]).await;
        let asked = Query { limit: 2, descending, ..query(Source::Rows, partition) };
        let first = table.query(asked.clone()).await.expect("queries");
        let last = first.rows.last().expect("two rows").key.clone();
        // Before, after and in the place of where the page ended.
        fill(table, partition, &["a", "e", "z"]).await;
        table.transact(vec![Write::Delete { key: last, condition: Condition::Any }]).await.expect("deletes");
        let rest = pages(table, Query { after: first.next, ..asked }).await.concat();
        let expected: &[&str] = if descending { &["e", "d", "b", "a"] } else { &["e", "f", "h", "z"] };
        assert_eq!(rest, expected, "no row twice, none left out");
    }
}

async fn tokens_belong_to_their_query(table: &dyn Table) {
    fill(table, "p", &["a", "b", "c"]).await;
    let asked = Query { limit: 1, ..query(Source::Rows, "p") };
    let token = table.query(asked.clone()).await.expect("queries").next.expect("more");
    let refused = async |query: Query| matches!(table.query(query).await, Err(TableError::Invalid(_)));
    let after = Some(token);
    assert!(refused(Query { partition: "q".to_owned(), after: after.clone(), ..asked.clone() }).await);
    assert!(refused(Query { source: Source::Index1, after: after.clone(), ..asked.clone() }).await);
    let other_range =
        Query { range: SortRange::Prefix("a".to_owned()), after: after.clone(), ..asked.clone() };
    assert!(refused(other_range).await);
    for junk in ["", "zz", "é", "[]"] {
        let after = Some(PageToken(junk.to_owned()));
        assert!(refused(Query { after, ..asked.clone() }).await, "{junk:?}");
    }
    let page =
        table.query(Query { limit: 5, after, ..asked }).await.expect("another limit is no other query");
    assert_eq!(sorts(&page), ["b", "c"]);
}

async fn indexes_are_sparse_and_follow(table: &dyn Table) {
    let indexed = |version, index1: Option<&str>, index2: Option<&str>| Row {
        index1: index1.map(|sort| Key::new("one", sort)),
        index2: index2.map(|sort| Key::new("two", sort)),
        ..row("p", "r", version)
    };
    fill(table, "p", &["in no index"]).await;
    let steps = [
        (indexed(1, Some("a"), None), true, false),
        (indexed(2, Some("b"), Some("x")), true, true),
        (indexed(3, None, Some("x")), false, true),
        (indexed(4, None, None), false, false),
        (indexed(5, Some("a"), Some("a")), true, true),
    ];
    for (row, first, second) in steps {
        table.transact(vec![put(row.clone(), Condition::Any)]).await.expect("puts");
        index_shows(table, Source::Index1, "one", if first { &["r"] } else { &[] }).await;
        index_shows(table, Source::Index2, "two", if second { &["r"] } else { &[] }).await;
        index_shows(table, Source::Index1, "two", &[]).await;
        if first {
            let page = table.query(query(Source::Index1, "one")).await.expect("queries");
            assert_eq!(page.rows, vec![row], "an index shows whole rows, as they are now");
        }
    }
    let moved = Row { index1: Some(Key::new("elsewhere", "a")), ..row("p", "r", 6) };
    table.transact(vec![put(moved, Condition::Version(5))]).await.expect("puts");
    index_shows(table, Source::Index1, "one", &[]).await;
    index_shows(table, Source::Index1, "elsewhere", &["r"]).await;
    index_shows(table, Source::Index2, "two", &[]).await;
    let delete = Write::Delete { key: Key::new("p", "r"), condition: Condition::Any };
    table.transact(vec![delete]).await.expect("deletes");
    index_shows(table, Source::Index1, "elsewhere", &[]).await;
}

async fn index_ties_are_all_found(table: &dyn Table) {
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    for name in names {
        let row = Row { index1: Some(Key::new("one", "same")), ..row("p", name, 1) };
        table.transact(vec![put(row, Condition::Absent)]).await.expect("puts");
    }
    for descending in [false, true] {
        index_shows(table, Source::Index1, "one", &names).await;
        let asked = Query { limit: 2, descending, ..query(Source::Index1, "one") };
        let mut found = pages(table, asked).await.concat();
        found.sort();
        assert_eq!(found, names, "rows under one index key, paged");
    }
}

async fn expired_rows_are_absent(table: &dyn Table, clock: &HandClock) {
    let second = Duration::from_secs(1);
    let expiring = |version| Row {
        expires_at: Some(clock.now().after(second * 10)),
        index1: Some(Key::new("one", "a")),
        ..row("p", "r", version)
    };
    table.transact(vec![put(expiring(1), Condition::Absent)]).await.expect("puts");
    fill(table, "p", &["stays"]).await;
    clock.advance(second * 9);
    assert!(table.get(&Key::new("p", "r")).await.expect("gets").is_some(), "gone too early");
    clock.advance(second);
    assert_eq!(table.get(&Key::new("p", "r")).await.expect("gets"), None, "there at its time");
    assert_eq!(pages(table, query(Source::Rows, "p")).await, vec![vec!["stays"]]);
    index_shows(table, Source::Index1, "one", &[]).await;
    let on = async |condition| {
        table.transact(vec![Write::Check { key: Key::new("p", "r"), condition }]).await.is_ok()
    };
    assert!(on(Condition::Absent).await && !on(Condition::Version(1)).await, "an expired row counts");
    table.transact(vec![put(expiring(2), Condition::Absent)]).await.expect("takes its place");
    assert_eq!(table.get(&Key::new("p", "r")).await.expect("gets").map(|row| row.version), Some(2));
}

async fn the_revision_grows(table: &dyn Table) {
    let mut revision = table.revision();
    revision.mark_unchanged();
    let before = *revision.borrow();
    fill(table, "p", &["a"]).await;
    tokio::time::timeout(Duration::from_secs(5), revision.changed())
        .await
        .expect("a write wakes those who wait")
        .expect("the table is there");
    assert!(*revision.borrow() > before);
}

async fn exactly_one_writer_wins(table: Arc<dyn Table>) {
    let wins = async |condition, version: u64| {
        let writers = (0..20).map(|n| {
            let table = table.clone();
            let row = Row { body: json!({ "writer": n }), ..row("p", "contested", version) };
            async move { table.transact(vec![put(row, condition)]).await }
        });
        let results = join_all(writers).await;
        for result in &results {
            assert!(matches!(result, Ok(()) | Err(TableError::Condition { index: 0 })), "{result:?}");
        }
        let winners: Vec<usize> = (0..20).filter(|&n| results[n].is_ok()).collect();
        assert_eq!(winners.len(), 1, "writers that won on {condition:?}");
        let row = table.get(&Key::new("p", "contested")).await.expect("gets").expect("is there");
        assert_eq!(row.body, json!({ "writer": winners[0] }), "the row is the winner's");
    };
    wins(Condition::Absent, 1).await;
    for version in 1..10 {
        wins(Condition::Version(version), version + 1).await;
    }
}
