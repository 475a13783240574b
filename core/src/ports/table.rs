//! The truth: rows with a version, written on conditions, in transactions.
//!
//! Modelled on DynamoDB: a row is found by partition and sort key, or through one of two sparse indexes. What the
//! indexes don't serve is a projection row written in the same transaction. docs/data-model.md lists every access
//! pattern.

use async_trait::async_trait;
use telecine_domain::time::Timestamp;
use tokio::sync::watch;

/// Most writes in one transaction.
pub const MAX_WRITES: usize = 100;
/// Most bytes of one row, keys and body together.
pub const MAX_ROW_BYTES: usize = 400 * 1024;
/// Most bytes of one transaction.
pub const MAX_TRANSACTION_BYTES: usize = 4 * 1024 * 1024;

/// Where a row is: partition and sort key, both non-empty, at most 1,024 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Which partition.
    pub partition: String,
    /// Where in it; rows of a partition are ordered by it, bytewise.
    pub sort: String,
}

impl Key {
    /// A key of these two parts.
    pub fn new(partition: impl Into<String>, sort: impl Into<String>) -> Self {
        Self { partition: partition.into(), sort: sort.into() }
    }
}

/// A row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where it is.
    pub key: Key,
    /// Number of the last change, from 1; the writer sets it.
    pub version: u64,
    /// Where the first index shows it, if it does.
    pub index1: Option<Key>,
    /// Where the second index shows it, if it does.
    pub index2: Option<Key>,
    /// After this time it may vanish (within days) and must be treated as absent.
    pub expires_at: Option<Timestamp>,
    /// Its content.
    pub body: serde_json::Value,
}

impl Row {
    /// A row in no index that never expires.
    pub fn new(key: Key, version: u64, body: serde_json::Value) -> Self {
        Self { key, version, index1: None, index2: None, expires_at: None, body }
    }
}

/// What must hold of the row as it is, for a write to happen. An expired row counts as absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Any,
    /// There is no row.
    Absent,
    /// There is a row with this version.
    Version(u64),
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Puts a row in place of what is there.
    Put {
        /// The row.
        row: Row,
        /// On this condition.
        condition: Condition,
    },
    /// Removes a row; without one, nothing happens.
    Delete {
        /// Which.
        key: Key,
        /// On this condition.
        condition: Condition,
    },
    /// Writes nothing but holds the transaction to a condition.
    Check {
        /// Of which row.
        key: Key,
        /// Which condition.
        condition: Condition,
    },
}

impl Write {
    /// The key it is about.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { row, .. } => &row.key,
            Self::Delete { key, .. } | Self::Check { key, .. } => key,
        }
    }
}

/// Which order of rows to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// By partition and sort key; sees every write that was acknowledged.
    Rows,
    /// The first index; may lag behind by seconds.
    Index1,
    /// The second index; may lag behind by seconds.
    Index2,
}

/// A range of sort keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SortRange {
    /// All.
    All,
    /// Those that begin with this.
    Prefix(String),
    /// From the first (included) to the second (left out).
    Between(String, String),
}

/// One page of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Which order.
    pub source: Source,
    /// Which partition (of the index, for an index).
    pub partition: String,
    /// Which rows of it.
    pub range: SortRange,
    /// From the end.
    pub descending: bool,
    /// Most rows in the page, 1 to 1,000.
    pub limit: usize,
    /// Where the page before ended.
    pub after: Option<PageToken>,
}

/// Where a page ended; opaque to callers, stable while rows come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken(pub String);

/// What a query found.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The rows, expired ones left out.
    pub rows: Vec<Row>,
    /// Where to go on; `None` at the end.
    pub next: Option<PageToken>,
}

/// Why the table did not do it.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A condition did not hold; nothing was written.
    #[error("condition on write {index} did not hold")]
    Condition {
        /// Which write of the transaction, from 0.
        index: usize,
    },
    /// The request itself is wrong: too large, an empty key, two writes to one row.
    #[error("the table refuses the request: {0}")]
    Invalid(String),
    /// Nobody knows whether it was done: read before trying again.
    #[error("the table did not answer: {0}")]
    Unknown(String),
    /// It was not done; trying again may help.
    #[error("the table is not available: {0}")]
    Unavailable(String),
}

/// The truth.
#[async_trait]
pub trait Table: Send + Sync {
    /// The row at `key`, as of every write acknowledged before; `None` when absent or expired.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn get(&self, key: &Key) -> Result<Option<Row>, TableError>;

    /// Does all of `writes` or none, durably: after `Ok` neither a crash nor a power cut takes them back. At most
    /// `MAX_WRITES`, one per key.
    ///
    /// # Errors
    /// `Condition` with the first that failed, `Invalid`, `Unavailable`, `Unknown`.
    async fn transact(&self, writes: Vec<Write>) -> Result<(), TableError>;

    /// One page of a partition.
    ///
    /// # Errors
    /// `Invalid` for a token of another query, `Unavailable`.
    async fn query(&self, query: Query) -> Result<Page, TableError>;

    /// Grows whenever something was written through this process, so that local pollers need not wait for a timer. A
    /// backend may also bump it on its own.
    fn revision(&self) -> watch::Receiver<u64>;
}
