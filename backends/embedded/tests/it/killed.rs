//! What was acknowledged is there after a kill at any moment, and after the log lost its end.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use telecine_core::ports::table::{Key, Query, SortRange, Source, Table};
use telecine_embedded::SqliteTable;

use crate::{clock, new_row};

const FILE: &str = "TELECINE_TEST_KILLED_FILE";
const ROUNDS: u32 = 30;
const WRITERS: u64 = 8;

/// Rows of one writer, in order.
async fn rows_of(table: &SqliteTable, writer: u64) -> Vec<u64> {
    let mut found = Vec::new();
    let mut query = Query {
        source: Source::Rows,
        partition: format!("writer {writer}"),
        range: SortRange::All,
        descending: false,
        limit: 1000,
        after: None,
    };
    loop {
        let page = table.query(query.clone()).await.unwrap();
        found.extend(page.rows.iter().map(|row| row.key.sort.parse::<u64>().unwrap()));
        query.after = page.next;
        if query.after.is_none() {
            return found;
        }
    }
}

/// Not a test by itself: the process that is killed. It says each number after the table has acknowledged it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_that_is_killed() {
    let Ok(file) = std::env::var(FILE) else { return };
    let table = std::sync::Arc::new(SqliteTable::open(Path::new(&file), clock(), None).unwrap());
    let writers = (0..WRITERS).map(|writer| {
        let table = std::sync::Arc::clone(&table);
        tokio::spawn(async move {
            let first = rows_of(&table, writer).await.len() as u64;
            for number in first.. {
                table
                    .transact(new_row(&format!("writer {writer}"), &format!("{number:08}"), "x"))
                    .await
                    .unwrap();
                let line = format!("\nacknowledged {writer} {number}\n");
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        })
    });
    futures::future::join_all(writers).await;
}

fn acknowledged(line: &str) -> Option<(u64, u64)> {
    let (writer, number) = line.strip_prefix("acknowledged ")?.split_once(' ')?;
    Some((writer.parse().ok()?, number.parse().ok()?))
}

/// Runs the process above, kills it `after` its first acknowledgement, and gives what it acknowledged.
fn run_and_kill(file: &Path, after: Duration) -> Vec<(u64, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["killed::the_process_that_is_killed", "--exact", "--nocapture", "--test-threads=1"])
        .env(FILE, file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut said = Vec::new();
    let mut kill_at = None;
    let mut line = String::new();
    while kill_at.is_none_or(|at| Instant::now() < at) {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the process ended by itself");
        if let Some(one) = acknowledged(line.trim_end()) {
            said.push(one);
            kill_at = kill_at.or(Some(Instant::now() + after));
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    // A line that the kill cut in two was not said.
    let whole = rest.rfind('\n').map_or("", |end| &rest[..end]);
    said.extend(whole.lines().filter_map(acknowledged));
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.db");
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    let mut total = 0;
    for round in 0..ROUNDS {
        // Spread over the commit, the checkpoint and the moments between; also at once after the first.
        let after = Duration::from_micros(u64::from(round) * 3_137 % 60_000);
        let (at, said) = {
            let file = file.clone();
            let run = tokio::task::spawn_blocking(move || run_and_kill(&file, after));
            (round, run.await.unwrap())
        };
        total += said.len();
        for (writer, number) in said {
            let highest = last.entry(writer).or_default();
            *highest = number.max(*highest);
        }
        let table = SqliteTable::open(&file, clock(), None).unwrap();
        for (&writer, &number) in &last {
            let rows = rows_of(&table, writer).await;
            assert!(rows.iter().copied().eq(0..rows.len() as u64), "round {at}: a hole in writer {writer}");
            assert!(
                rows.len() as u64 > number,
                "round {at}: writer {writer} was told {number} of {}",
                rows.len()
            );
        }
    }
    assert!(total > ROUNDS as usize * 10, "only {total} writes were acknowledged: this proves little");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_its_end_gives_whole_transactions() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.db");
    let table = SqliteTable::open(&file, clock(), None).unwrap();
    for n in 0..40 {
        let mut writes = new_row("a", &format!("{n:04}"), &"x".repeat(3000));
        writes.extend(new_row("b", &format!("{n:04}"), "y"));
        table.transact(writes).await.unwrap();
    }
    let log = std::fs::read(folder.path().join("t.db-wal")).unwrap();
    let database = std::fs::read(&file).unwrap();
    let mut seen = Vec::new();
    for step in 0..25 {
        let copy = folder.path().join(format!("copy{step}.db"));
        std::fs::write(&copy, &database).unwrap();
        let mut torn = log[..log.len() * step / 24].to_vec();
        if step % 2 == 1 {
            // Half a frame of rubbish, as a power cut leaves it.
            torn.extend(std::iter::repeat_n(0xa5, 2500));
        }
        std::fs::write(copy.with_extension("db-wal"), torn).unwrap();
        let table = SqliteTable::open(&copy, clock(), None).unwrap();
        let mut rows = 0;
        while table.get(&Key::new("a", format!("{rows:04}"))).await.unwrap().is_some() {
            assert!(
                table.get(&Key::new("b", format!("{rows:04}"))).await.unwrap().is_some(),
                "half a transaction"
            );
            rows += 1;
        }
        assert!(
            table.get(&Key::new("b", format!("{rows:04}"))).await.unwrap().is_none(),
            "half a transaction"
        );
        table.transact(new_row("after", "recovery", "x")).await.unwrap();
        seen.push(rows);
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert_eq!(seen.last(), Some(&40), "the whole log gives everything");
    assert!(seen[5] < 40, "{seen:?}");
}
