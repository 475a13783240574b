//! A table in memory: rows of the port's shape, two indexes, and faults on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::ports::Clock;
use crate::ports::paging::{self, Position};
use crate::ports::table::{
    Condition, Key, MAX_ROW_BYTES, MAX_TRANSACTION_BYTES, MAX_WRITES, Page, Query, Row, SortRange, Source,
    Table, TableError, Write,
};

/// Longest key part in bytes.
const MAX_KEY_BYTES: usize = 1024;

/// How a transaction is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is written and the caller is told so (`Unavailable`).
    Refused,
    /// Nothing is written and the caller is not told (`Unknown`).
    LostBefore,
    /// Everything is written and the caller is not told (`Unknown`).
    LostAfter,
}

/// The truth, until the process ends.
pub struct MemoryTable {
    clock: Clock,
    state: Mutex<State>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<Key, Row>,
    /// Index partition, position in it.
    index1: BTreeSet<(String, Position)>,
    index2: BTreeSet<(String, Position)>,
    transactions: u64,
    faults: BTreeMap<u64, Fault>,
}

impl MemoryTable {
    /// An empty table; rows expire by `clock`.
    pub fn new(clock: Clock) -> Self {
        Self { clock, state: Mutex::default(), revision: watch::Sender::new(0) }
    }

    /// Makes the `nth` transaction from now (1 is the next) fail.
    pub fn fail_transaction(&self, nth: u64, fault: Fault) {
        let mut state = self.state();
        let number = state.transactions + nth;
        state.faults.insert(number, fault);
    }

    /// Takes back every fault that has not happened yet.
    pub fn mend(&self) {
        self.state().faults.clear();
    }

    /// How many transactions were asked for.
    pub fn transactions(&self) -> u64 {
        self.state().transactions
    }

    /// Every row that has not expired, in order: what a test compares.
    pub fn rows(&self) -> Vec<Row> {
        let now = (self.clock)();
        self.state().rows.values().filter(|row| !is_expired(row, now)).cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Table for MemoryTable {
    async fn get(&self, key: &Key) -> Result<Option<Row>, TableError> {
        // Lets concurrent callers interleave as they would with a real table between them.
        tokio::task::yield_now().await;
        let now = (self.clock)();
        Ok(self.state().rows.get(key).filter(|row| !is_expired(row, now)).cloned())
    }

    async fn transact(&self, writes: Vec<Write>) -> Result<(), TableError> {
        tokio::task::yield_now().await;
        check_size(&writes)?;
        let now = (self.clock)();
        let mut state = self.state();
        state.transactions += 1;
        let number = state.transactions;
        let fault = state.faults.remove(&number);
        match fault {
            Some(Fault::Refused) => return Err(TableError::Unavailable("made to fail".to_owned())),
            Some(Fault::LostBefore) => return Err(TableError::Unknown("made to fail".to_owned())),
            Some(Fault::LostAfter) | None => {}
        }
        let holds = |write: &Write| match write {
            Write::Put { row, condition } => state.holds(&row.key, *condition, now),
            Write::Delete { key, condition } | Write::Check { key, condition } => {
                state.holds(key, *condition, now)
            }
        };
        if let Some(index) = writes.iter().position(|write| !holds(write)) {
            return Err(TableError::Condition { index });
        }
        for write in writes {
            match write {
                Write::Put { row, .. } => state.put(row),
                Write::Delete { key, .. } => state.delete(&key),
                Write::Check { .. } => {}
            }
        }
        drop(state);
        self.revision.send_modify(|revision| *revision += 1);
        match fault {
            Some(_) => Err(TableError::Unknown("made to fail".to_owned())),
            None => Ok(()),
        }
    }

    async fn query(&self, query: Query) -> Result<Page, TableError> {
        tokio::task::yield_now().await;
        if !(1..=1000).contains(&query.limit) {
            return Err(TableError::Invalid(format!("a page of {} rows (1 to 1,000 are)", query.limit)));
        }
        let after = paging::position(&query)?;
        let now = (self.clock)();
        let state = self.state();
        let mut positions = state.positions(query.source, &query.partition);
        positions.retain(|position| in_range(&query.range, &position.sort));
        if query.descending {
            positions.reverse();
        }
        let beyond = |position: &Position| match &after {
            None => true,
            Some(after) if query.descending => position < after,
            Some(after) => position > after,
        };
        let row = |position: &Position| state.rows.get(&position.key).filter(|row| !is_expired(row, now));
        let mut found = positions
            .iter()
            .filter(|position| beyond(position))
            .filter_map(|position| row(position).map(|row| (position, row)))
            .peekable();
        let (mut rows, mut last) = (Vec::new(), None);
        while rows.len() < query.limit
            && let Some((position, row)) = found.next()
        {
            rows.push(row.clone());
            last = Some(position);
        }
        let next = last.filter(|_| found.peek().is_some()).map(|position| paging::token(&query, position));
        Ok(Page { rows, next })
    }

    fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

impl State {
    fn holds(&self, key: &Key, condition: Condition, now: telecine_domain::time::Timestamp) -> bool {
        let row = self.rows.get(key).filter(|row| !is_expired(row, now));
        match condition {
            Condition::Any => true,
            Condition::Absent => row.is_none(),
            Condition::Version(version) => row.is_some_and(|row| row.version == version),
        }
    }

    fn put(&mut self, row: Row) {
        self.delete(&row.key);
        if let Some(index) = &row.index1 {
            self.index1.insert(entry(index, &row.key));
        }
        if let Some(index) = &row.index2 {
            self.index2.insert(entry(index, &row.key));
        }
        self.rows.insert(row.key.clone(), row);
    }

    fn delete(&mut self, key: &Key) {
        let Some(row) = self.rows.remove(key) else { return };
        if let Some(index) = &row.index1 {
            self.index1.remove(&entry(index, key));
        }
        if let Some(index) = &row.index2 {
            self.index2.remove(&entry(index, key));
        }
    }

    fn positions(&self, source: Source, partition: &str) -> Vec<Position> {
        let index = match source {
            Source::Index1 => &self.index1,
            Source::Index2 => &self.index2,
            Source::Rows => {
                let first = Key::new(partition, "");
                let rows = self.rows.range(first..).take_while(|(key, _)| key.partition == partition);
                return rows.map(|(key, _)| Position { sort: key.sort.clone(), key: key.clone() }).collect();
            }
        };
        let first = (partition.to_owned(), Position { sort: String::new(), key: Key::new("", "") });
        let entries = index.range(first..).take_while(|(of, _)| of == partition);
        entries.map(|(_, position)| position.clone()).collect()
    }
}

fn entry(index: &Key, key: &Key) -> (String, Position) {
    (index.partition.clone(), Position { sort: index.sort.clone(), key: key.clone() })
}

fn is_expired(row: &Row, now: telecine_domain::time::Timestamp) -> bool {
    row.expires_at.is_some_and(|at| at <= now)
}

fn in_range(range: &SortRange, sort: &str) -> bool {
    match range {
        SortRange::All => true,
        SortRange::Prefix(prefix) => sort.starts_with(prefix),
        SortRange::Between(from, to) => from.as_str() <= sort && sort < to.as_str(),
    }
}

fn check_size(writes: &[Write]) -> Result<(), TableError> {
    let invalid = |problem: String| Err(TableError::Invalid(problem));
    if writes.is_empty() || writes.len() > MAX_WRITES {
        return invalid(format!("a transaction of {} writes (1 to {MAX_WRITES} are)", writes.len()));
    }
    let mut keys = BTreeSet::new();
    let mut total = 0;
    for write in writes {
        let key = write.key();
        check_key(key)?;
        if !keys.insert(key) {
            return invalid(format!("two writes to {}/{}", key.partition, key.sort));
        }
        if let Write::Put { row, .. } = write {
            row.index1.iter().chain(&row.index2).try_for_each(check_key)?;
            let bytes = row_bytes(row);
            if bytes > MAX_ROW_BYTES {
                return invalid(format!("a row of {bytes} bytes at {}/{}", key.partition, key.sort));
            }
            total += bytes;
        }
    }
    if total > MAX_TRANSACTION_BYTES {
        return invalid(format!("a transaction of {total} bytes"));
    }
    Ok(())
}

fn check_key(key: &Key) -> Result<(), TableError> {
    let fits = |part: &str| (1..=MAX_KEY_BYTES).contains(&part.len());
    if fits(&key.partition) && fits(&key.sort) {
        Ok(())
    } else {
        let excerpt: String = key.partition.chars().take(80).collect();
        Err(TableError::Invalid(format!("a key part in {excerpt} is empty or over {MAX_KEY_BYTES} bytes")))
    }
}

/// Bytes of a row as the limits count them: keys and body together.
fn row_bytes(row: &Row) -> usize {
    let keys = std::iter::once(&row.key).chain(&row.index1).chain(&row.index2);
    let keys: usize = keys.map(|key| key.partition.len() + key.sort.len()).sum();
    keys + row.body.to_string().len()
}
