//! The truth on one SQLite file: rows of the port's shape, written by one thread, read by a few connections.
//!
//! Invariants: an answered write is on the disk (WAL, `synchronous=FULL`); a read sees every write that was answered
//! before it began; writes that arrive together share one commit.

mod read;
mod schema;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode};
use telecine_core::ports::Clock;
use telecine_core::ports::table::{Key, Page, Query, Row, Table, TableError, Write};
use tokio::sync::{mpsc, oneshot, watch};

use crate::lock::FolderLock;

pub use schema::SchemaError;
use write::Request;

/// Requests that wait for the writer, at most; more callers wait before they are queued.
const QUEUED_REQUESTS: usize = 4096;
/// Rows that one sweep of expired rows removes at a time, so that writers wait for milliseconds only.
const SWEEP_BATCH: usize = 500;

/// A `Table` on an SQLite file. Cloning is not needed: share it in an `Arc`. Dropping it ends the writer after what
/// is queued.
pub struct SqliteTable {
    /// `None` only while it is dropped.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<std::thread::JoinHandle<()>>,
    readers: Arc<read::Readers>,
    clock: Clock,
    revision: watch::Receiver<u64>,
    commits: watch::Receiver<u64>,
    file: PathBuf,
}

impl SqliteTable {
    /// Opens the file, makes or migrates its schema and starts the writer. One process at a time: give the folder's
    /// lock, which is held until the writer has ended.
    ///
    /// # Errors
    /// When the file cannot be opened, is no such database, or was written by a newer version.
    pub fn open(file: &Path, clock: Clock, lock: Option<FolderLock>) -> Result<Self, SchemaError> {
        let connection = schema::open_for_writing(file)?;
        let readers = Arc::new(read::Readers::open(file)?);
        let (requests, inbox) = mpsc::channel(QUEUED_REQUESTS);
        let (revision, seen_revision) = watch::channel(0);
        let (commits, seen_commits) = watch::channel(0);
        let writer = write::Writer {
            connection,
            clock: Arc::clone(&clock),
            revision,
            commits,
            file: file.to_owned(),
            broken: None,
            _lock: lock,
        };
        let writer = std::thread::Builder::new()
            .name("telecine-table".to_owned())
            .spawn(move || writer.run(inbox))
            .map_err(|error| SchemaError::Thread { problem: error.to_string() })?;
        Ok(Self {
            requests: Some(requests),
            writer: Some(writer),
            readers,
            clock,
            revision: seen_revision,
            commits: seen_commits,
            file: file.to_owned(),
        })
    }

    /// How many commits there were; fewer than transactions when callers come together.
    pub fn commits(&self) -> u64 {
        *self.commits.borrow()
    }

    /// Removes rows that have expired, a batch at a time; says how many.
    ///
    /// # Errors
    /// `Unavailable`; what was removed stays removed.
    pub async fn sweep_expired(&self) -> Result<usize, TableError> {
        let mut removed = 0;
        loop {
            let (answer, answered) = oneshot::channel();
            self.send(Request::Sweep { most: SWEEP_BATCH, answer }).await?;
            let batch = answered.await.map_err(|_| self.writer_ended())??;
            removed += batch;
            if batch < SWEEP_BATCH {
                return Ok(removed);
            }
        }
    }

    /// Writes a consistent copy of the whole database to `file`, which must not exist, while work goes on.
    ///
    /// # Errors
    /// `Invalid` when there is such a file, `Unavailable` when it cannot be written.
    pub async fn back_up(&self, file: &Path) -> Result<(), TableError> {
        self.readers.back_up(file.to_owned()).await
    }

    async fn send(&self, request: Request) -> Result<(), TableError> {
        // Nothing was written: the request never reached the writer.
        let requests = self.requests.as_ref().expect("present until it is dropped");
        requests
            .send(request)
            .await
            .map_err(|_| TableError::Unavailable(format!("the writer of {} has ended", self.file.display())))
    }

    fn writer_ended(&self) -> TableError {
        TableError::Unknown(format!("the writer of {} ended before it answered", self.file.display()))
    }
}

impl Drop for SqliteTable {
    /// Waits for the writer, which answers what is queued: a commit or two.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(file = %self.file.display(), "the writer of the database died");
        }
    }
}

#[async_trait]
impl Table for SqliteTable {
    async fn get(&self, key: &Key) -> Result<Option<Row>, TableError> {
        let (key, now) = (key.clone(), (self.clock)());
        self.readers.with(move |connection| read::get(connection, &key, now)).await
    }

    async fn transact(&self, writes: Vec<Write>) -> Result<(), TableError> {
        let writes = write::encode(writes)?;
        let (answer, answered) = oneshot::channel();
        self.send(Request::Transact { writes, answer }).await?;
        answered.await.map_err(|_| self.writer_ended())?
    }

    async fn query(&self, query: Query) -> Result<Page, TableError> {
        let now = (self.clock)();
        self.readers.with(move |connection| read::query(connection, &query, now)).await
    }

    fn revision(&self) -> watch::Receiver<u64> {
        self.revision.clone()
    }
}

/// What an error of SQLite means to a caller whose work was not done.
fn unavailable(file: &Path, error: &rusqlite::Error) -> TableError {
    if is_out_of_space(error) {
        let folder = file.parent().unwrap_or(file).display();
        return TableError::Unavailable(format!(
            "there is no space left for {} ({error}): free space on the file system of {folder}",
            file.display()
        ));
    }
    TableError::Unavailable(format!("{}: {error}", file.display()))
}

fn is_out_of_space(error: &rusqlite::Error) -> bool {
    let failure = error.sqlite_error();
    let code = failure.map(|failure| failure.code);
    let extended = failure.map(|failure| failure.extended_code);
    code == Some(ErrorCode::DiskFull) || extended == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
}

/// Settings of every connection. A reader never waits for the writer in WAL mode; the timeout covers recovery.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "cache_size", -16_384)
}
