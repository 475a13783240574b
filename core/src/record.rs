//! Rows as values: typed reads and writes over `Table`, and what can go wrong with any of them.

use std::future::Future;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ports::table::{
    Condition, Key, Page, PageToken, Query, Row, SortRange, Source, Table, TableError, Write,
};
use crate::system_store::SystemStoreError;

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The table did not do it.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The part of a record that lies in the system store could not be read or written.
    #[error(transparent)]
    SystemStore(#[from] SystemStoreError),
    /// A row does not hold what belongs there.
    #[error("the row {partition}/{sort} is damaged: {problem}")]
    Damaged {
        /// Its partition.
        partition: String,
        /// Its sort key.
        sort: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Others were faster every time it was tried.
    #[error("the row {partition}/{sort} is being changed by too many at once; try again")]
    Contended {
        /// Its partition.
        partition: String,
        /// Its sort key.
        sort: String,
    },
}

impl RecordError {
    /// A row that does not hold what belongs there.
    #[expect(clippy::needless_pass_by_value, reason = "errors and texts are handed over where they arise")]
    pub(crate) fn damaged(key: &Key, problem: impl ToString) -> Self {
        Self::Damaged {
            partition: key.partition.clone(),
            sort: key.sort.clone(),
            problem: problem.to_string(),
        }
    }

    pub(crate) fn contended(key: &Key) -> Self {
        Self::Contended { partition: key.partition.clone(), sort: key.sort.clone() }
    }

    /// Whether doing the same again may help: the truth was out of reach, or others were faster.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Table(TableError::Unknown(_) | TableError::Unavailable(_)) | Self::Contended { .. } => true,
            Self::Table(TableError::Condition { .. } | TableError::Invalid(_)) | Self::Damaged { .. } => {
                false
            }
            Self::SystemStore(error) => error.is_transient(),
        }
    }
}

/// A value and the number of its last change, for conditional writes (`ETag`, `If-Match`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// Number of the last change, from 1.
    pub version: u64,
}

/// A page of values.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed<T> {
    /// The values.
    pub items: Vec<T>,
    /// Where to go on; `None` at the end.
    pub next: Option<PageToken>,
}

/// Times that a conditional write is tried again when others were faster or the table was out of reach.
pub(crate) const TRIES: u32 = 12;

/// Waits before the next try: 5 ms, doubled each time, at most 320 ms.
pub(crate) async fn pause(tried: u32) {
    tokio::time::sleep(Duration::from_millis(5 << tried.min(6))).await;
}

/// Reads `row`'s body.
pub(crate) fn value<T: DeserializeOwned>(row: &Row) -> Result<T, RecordError> {
    T::deserialize(&row.body).map_err(|error| RecordError::damaged(&row.key, error))
}

/// A row with `value` as its body.
pub(crate) fn row<T: Serialize>(key: Key, version: u64, value: &T) -> Result<Row, RecordError> {
    match serde_json::to_value(value) {
        Ok(body) => Ok(Row::new(key, version, body)),
        Err(error) => Err(RecordError::damaged(&key, error)),
    }
}

pub(crate) fn put(row: Row, condition: Condition) -> Write {
    Write::Put { row, condition }
}

/// A row that must not be there yet.
pub(crate) fn put_new<T: Serialize>(key: Key, value: &T) -> Result<Write, RecordError> {
    Ok(put(row(key, 1, value)?, Condition::Absent))
}

pub(crate) fn delete(key: Key) -> Write {
    Write::Delete { key, condition: Condition::Any }
}

/// The value at `key`.
pub(crate) async fn get<T: DeserializeOwned>(
    table: &dyn Table,
    key: &Key,
) -> Result<Option<Versioned<T>>, RecordError> {
    let Some(row) = table.get(key).await? else { return Ok(None) };
    Ok(Some(Versioned { value: value(&row)?, version: row.version }))
}

/// One page of `partition`.
pub(crate) fn page_of(
    source: Source,
    partition: impl Into<String>,
    limit: usize,
    after: Option<PageToken>,
) -> Query {
    Query {
        source,
        partition: partition.into(),
        range: SortRange::All,
        descending: false,
        limit: limit.clamp(1, 1000),
        after,
    }
}

/// Every row of a query, page by page; for partitions that are small by nature.
pub(crate) async fn all_rows(table: &dyn Table, mut query: Query) -> Result<Vec<Row>, RecordError> {
    let mut found = Vec::new();
    loop {
        let Page { rows, next } = table.query(query.clone()).await?;
        found.extend(rows);
        match next {
            Some(next) => query.after = Some(next),
            None => return Ok(found),
        }
    }
}

/// Every value of a partition that is small by nature.
pub(crate) async fn all<T: DeserializeOwned>(
    table: &dyn Table,
    source: Source,
    partition: impl Into<String>,
) -> Result<Vec<T>, RecordError> {
    let rows = all_rows(table, page_of(source, partition, 1000, None)).await?;
    rows.iter().map(value).collect()
}

/// A transaction whose writes can be told from anybody else's by reading `ours`: `Ok(true)` when they are in place,
/// `Ok(false)` when a condition did not hold. `Unknown` is settled by reading, `Unavailable` is tried again.
pub(crate) async fn settle<F>(
    table: &dyn Table,
    writes: Vec<Write>,
    ours: impl Fn() -> F,
) -> Result<bool, RecordError>
where
    F: Future<Output = Result<bool, RecordError>>,
{
    let mut uncertain = false;
    let mut last = None;
    for tried in 0..TRIES {
        match table.transact(writes.clone()).await {
            Ok(()) => return Ok(true),
            // After an unknown result, a condition that does not hold may be our own first try.
            Err(TableError::Condition { .. }) => return if uncertain { ours().await } else { Ok(false) },
            Err(error @ TableError::Invalid(_)) => return Err(error.into()),
            Err(error @ TableError::Unknown(_)) => {
                uncertain = true;
                last = Some(error);
                if ours().await? {
                    return Ok(true);
                }
            }
            Err(error @ TableError::Unavailable(_)) => last = Some(error),
        }
        pause(tried).await;
    }
    Err(last.expect("tried at least once").into())
}

/// Reads the row at `key`, lets `decide` say what takes its place, writes it on the version that was read, and tries
/// again when somebody was faster. `None` from `decide` leaves it as it is. `decide` must give the same for the same
/// row, since after an unknown result the row is read again.
pub(crate) async fn replace<T, E>(
    table: &dyn Table,
    key: &Key,
    mut decide: impl FnMut(Option<&Versioned<T>>) -> Result<Option<Row>, E>,
) -> Result<(), E>
where
    T: DeserializeOwned,
    E: From<RecordError>,
{
    for tried in 0..TRIES {
        let current = get(table, key).await?;
        let Some(mut row) = decide(current.as_ref())? else { return Ok(()) };
        let condition = match &current {
            Some(current) => Condition::Version(current.version),
            None => Condition::Absent,
        };
        row.version = current.map_or(1, |current| current.version + 1);
        match table.transact(vec![put(row.clone(), condition)]).await {
            Ok(()) => return Ok(()),
            Err(TableError::Unknown(_)) => {
                let now = table.get(key).await.map_err(RecordError::from)?;
                if now.is_some_and(|now| now.version == row.version && now.body == row.body) {
                    return Ok(());
                }
            }
            Err(TableError::Condition { .. } | TableError::Unavailable(_)) => {}
            Err(error @ TableError::Invalid(_)) => return Err(RecordError::from(error).into()),
        }
        pause(tried).await;
    }
    Err(RecordError::contended(key).into())
}
