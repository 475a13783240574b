//! The one writer: takes what waits, checks and writes it in one transaction, commits, answers.
//!
//! Each request's conditions are checked before anything of it is written, against what the requests before it in the
//! same transaction have written. Nobody is answered before the commit, because also a refusal may rest on a write that
//! the commit decides about.

use std::collections::BTreeSet;
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension};
use telecine_core::ports::Clock;
use telecine_core::ports::table::{
    Condition, Key, MAX_ROW_BYTES, MAX_TRANSACTION_BYTES, MAX_WRITES, Row, TableError, Write,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::read::millis;
use super::unavailable;
use crate::lock::FolderLock;

/// Requests that share a commit, at most.
const MOST_IN_COMMIT: usize = 512;
/// Longest part of a key, in bytes.
const MAX_KEY_BYTES: usize = 1024;

/// What the writer is asked.
pub(super) enum Request {
    Transact { writes: Vec<Encoded>, answer: oneshot::Sender<Result<(), TableError>> },
    Sweep { most: usize, answer: oneshot::Sender<Result<usize, TableError>> },
}

/// A write whose body is text already: the callers' threads do that work, not the writer's.
pub(super) enum Encoded {
    Put { row: Row, body: String, condition: Condition },
    Delete { key: Key, condition: Condition },
    Check { key: Key, condition: Condition },
}

impl Encoded {
    fn target(&self) -> (&Key, Condition) {
        match self {
            Self::Put { row, condition, .. } => (&row.key, *condition),
            Self::Delete { key, condition } | Self::Check { key, condition } => (key, *condition),
        }
    }
}

/// Checks a transaction against the port's limits and makes its bodies text.
pub(super) fn encode(writes: Vec<Write>) -> Result<Vec<Encoded>, TableError> {
    if writes.is_empty() || writes.len() > MAX_WRITES {
        let problem = format!("a transaction has 1 to {MAX_WRITES} writes, not {}", writes.len());
        return Err(TableError::Invalid(problem));
    }
    let mut keys = BTreeSet::new();
    if let Some(twice) = writes.iter().find(|write| !keys.insert(write.key())) {
        return Err(TableError::Invalid(format!("two writes to row {}", shown(twice.key()))));
    }
    let mut total = 0;
    writes
        .into_iter()
        .map(|write| {
            let (encoded, size) = encode_one(write)?;
            total += size;
            if total > MAX_TRANSACTION_BYTES {
                let problem = format!("a transaction has at most {MAX_TRANSACTION_BYTES} bytes");
                return Err(TableError::Invalid(problem));
            }
            Ok(encoded)
        })
        .collect()
}

fn encode_one(write: Write) -> Result<(Encoded, usize), TableError> {
    let mut size = check_key(write.key())?;
    let encoded = match write {
        Write::Put { mut row, condition } => {
            for index in [&row.index1, &row.index2].into_iter().flatten() {
                size += check_key(index)?;
            }
            let body =
                serde_json::to_string(&row.body).map_err(|error| TableError::Invalid(error.to_string()))?;
            row.body = serde_json::Value::Null;
            size += body.len();
            if size > MAX_ROW_BYTES {
                let problem =
                    format!("row {} has {size} bytes, and a row may have {MAX_ROW_BYTES}", shown(&row.key));
                return Err(TableError::Invalid(problem));
            }
            Encoded::Put { row, body, condition }
        }
        Write::Delete { key, condition } => Encoded::Delete { key, condition },
        Write::Check { key, condition } => Encoded::Check { key, condition },
    };
    Ok((encoded, size))
}

fn check_key(key: &Key) -> Result<usize, TableError> {
    let usable = |part: &str| (1..=MAX_KEY_BYTES).contains(&part.len());
    if usable(&key.partition) && usable(&key.sort) {
        Ok(key.partition.len() + key.sort.len())
    } else {
        Err(TableError::Invalid(format!(
            "the parts of key {} must have 1 to {MAX_KEY_BYTES} bytes",
            shown(key)
        )))
    }
}

fn shown(key: &Key) -> String {
    format!("({:.80?}, {:.80?})", key.partition, key.sort)
}

/// What became of one request inside the transaction; told after the commit.
enum Outcome {
    Transacted(oneshot::Sender<Result<(), TableError>>, Result<bool, TableError>),
    Swept(oneshot::Sender<Result<usize, TableError>>, usize),
}

impl Outcome {
    fn wrote(&self) -> bool {
        match self {
            Self::Transacted(_, result) => matches!(result, Ok(true)),
            Self::Swept(_, removed) => *removed > 0,
        }
    }

    /// A caller that has stopped waiting is no error: what was written stays written.
    fn tell(self) {
        match self {
            Self::Transacted(answer, result) => drop(answer.send(result.map(drop))),
            Self::Swept(answer, removed) => drop(answer.send(Ok(removed))),
        }
    }
}

fn refuse(request: Request, error: impl FnOnce() -> TableError) {
    match request {
        Request::Transact { answer, .. } => drop(answer.send(Err(error()))),
        Request::Sweep { answer, .. } => drop(answer.send(Err(error()))),
    }
}

/// The thread's state.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) clock: Clock,
    pub(super) revision: watch::Sender<u64>,
    pub(super) commits: watch::Sender<u64>,
    pub(super) file: PathBuf,
    /// Set when the disk failed to keep what it was given: nothing more is promised until the file is opened again.
    pub(super) broken: Option<String>,
    /// Let go when the writer ends and not before.
    pub(super) _lock: Option<FolderLock>,
}

/// A batch that did not come to a commit, and whether that is certain.
struct NotCommitted {
    certain: bool,
    error: rusqlite::Error,
}

impl Writer {
    /// Until every sender is gone.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        while let Some(first) = inbox.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < MOST_IN_COMMIT
                && let Ok(next) = inbox.try_recv()
            {
                batch.push(next);
            }
            self.handle(batch);
        }
    }

    fn handle(&mut self, batch: Vec<Request>) {
        if let Some(problem) = &self.broken {
            batch
                .into_iter()
                .for_each(|request| refuse(request, || TableError::Unavailable(problem.clone())));
            return;
        }
        let (done, result) = self.write_all(batch);
        match result {
            Ok(()) => {
                let wrote = done.iter().any(Outcome::wrote);
                self.commits.send_modify(|commits| *commits += 1);
                done.into_iter().for_each(Outcome::tell);
                if wrote {
                    self.revision.send_modify(|revision| *revision += 1);
                }
            }
            Err(failure) => self.fail(done, &failure),
        }
    }

    /// Everything in one transaction. What was done before a failure comes back with it, to be told of it.
    fn write_all(&mut self, batch: Vec<Request>) -> (Vec<Outcome>, Result<(), NotCommitted>) {
        let now = millis((self.clock)());
        let before_commit = |error| NotCommitted { certain: true, error };
        let begun = self.connection.execute_batch("BEGIN IMMEDIATE");
        let mut failed = begun.err().map(before_commit);
        let mut done = Vec::with_capacity(batch.len());
        for request in batch {
            let (outcome, error) = match request {
                // Nothing more is tried after a failure; the rest is only answered.
                Request::Transact { answer, .. } if failed.is_some() => {
                    (Outcome::Transacted(answer, Ok(false)), None)
                }
                Request::Sweep { answer, .. } if failed.is_some() => (Outcome::Swept(answer, 0), None),
                Request::Transact { writes, answer } => match transact(&self.connection, &writes, now) {
                    Ok(result) => (Outcome::Transacted(answer, result), None),
                    Err(error) => (Outcome::Transacted(answer, Ok(false)), Some(error)),
                },
                Request::Sweep { most, answer } => match sweep(&self.connection, most, now) {
                    Ok(removed) => (Outcome::Swept(answer, removed), None),
                    Err(error) => (Outcome::Swept(answer, 0), Some(error)),
                },
            };
            done.push(outcome);
            failed = failed.or(error.map(before_commit));
        }
        let result = match failed {
            Some(failure) => Err(failure),
            None => self
                .connection
                .execute_batch("COMMIT")
                .map_err(|error| NotCommitted { certain: super::is_out_of_space(&error), error }),
        };
        (done, result)
    }

    fn fail(&mut self, done: Vec<Outcome>, failure: &NotCommitted) {
        // SQLite has rolled back by itself after some errors; then there is nothing left to roll back.
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            self.broken =
                Some(format!("{} could not be rolled back ({error}): start again", self.file.display()));
        }
        let lost_by_disk = [rusqlite::ffi::SQLITE_IOERR_FSYNC, rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC];
        let extended = failure.error.sqlite_error().map(|error| error.extended_code);
        if extended.is_some_and(|code| lost_by_disk.contains(&code)) {
            let file = self.file.display();
            self.broken =
                Some(format!("the disk failed to keep {file} ({}): check it and start again", failure.error));
        }
        tracing::error!(file = %self.file.display(), error = %failure.error, "a write was not committed");
        let error = || match failure.certain {
            true => unavailable(&self.file, &failure.error),
            false => TableError::Unknown(format!("{}: {}", self.file.display(), failure.error)),
        };
        for outcome in done {
            match outcome {
                Outcome::Transacted(answer, _) => drop(answer.send(Err(error()))),
                Outcome::Swept(answer, _) => drop(answer.send(Err(error()))),
            }
        }
    }
}

/// `Ok(Ok(true))` when it wrote rows, `Ok(Err(…))` when a condition did not hold (then nothing was written).
fn transact(
    connection: &Connection,
    writes: &[Encoded],
    now: i64,
) -> rusqlite::Result<Result<bool, TableError>> {
    for (index, write) in writes.iter().enumerate() {
        let (key, condition) = write.target();
        if !holds(connection, key, condition, now)? {
            return Ok(Err(TableError::Condition { index }));
        }
    }
    let mut wrote = false;
    for write in writes {
        match write {
            Encoded::Put { row, body, .. } => put(connection, row, body)?,
            Encoded::Delete { key, .. } => delete(connection, key)?,
            Encoded::Check { .. } => continue,
        }
        wrote = true;
    }
    Ok(Ok(wrote))
}

fn holds(connection: &Connection, key: &Key, condition: Condition, now: i64) -> rusqlite::Result<bool> {
    let expected = match condition {
        Condition::Any => return Ok(true),
        Condition::Absent => None,
        Condition::Version(version) => Some(version.cast_signed()),
    };
    let mut statement = connection.prepare_cached(
        "SELECT version FROM rows
         WHERE partition = ?1 AND sort = ?2 AND (expires_at IS NULL OR expires_at > ?3)",
    )?;
    let found: Option<i64> =
        statement.query_row((&key.partition, &key.sort, now), |row| row.get(0)).optional()?;
    Ok(found == expected)
}

fn put(connection: &Connection, row: &Row, body: &str) -> rusqlite::Result<()> {
    let part = |key: &Option<Key>| key.as_ref().map(|key| (key.partition.clone(), key.sort.clone())).unzip();
    let (i1p, i1s): (Option<String>, Option<String>) = part(&row.index1);
    let (i2p, i2s): (Option<String>, Option<String>) = part(&row.index2);
    let mut statement = connection.prepare_cached(
        "INSERT INTO rows (partition, sort, version, i1p, i1s, i2p, i2s, expires_at, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT (partition, sort) DO UPDATE SET version = excluded.version, i1p = excluded.i1p,
            i1s = excluded.i1s, i2p = excluded.i2p, i2s = excluded.i2s, expires_at = excluded.expires_at,
            body = excluded.body",
    )?;
    let expires_at = row.expires_at.map(millis);
    let version = row.version.cast_signed();
    statement.execute((&row.key.partition, &row.key.sort, version, i1p, i1s, i2p, i2s, expires_at, body))?;
    Ok(())
}

fn delete(connection: &Connection, key: &Key) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("DELETE FROM rows WHERE partition = ?1 AND sort = ?2")?;
    statement.execute((&key.partition, &key.sort)).map(drop)
}

fn sweep(connection: &Connection, most: usize, now: i64) -> rusqlite::Result<usize> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM rows WHERE id IN
            (SELECT id FROM rows WHERE expires_at IS NOT NULL AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2)",
    )?;
    statement.execute((now, most as i64))
}
