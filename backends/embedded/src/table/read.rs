//! Reads: a few read-only connections, used on threads where blocking is allowed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension};
use telecine_core::ports::paging::{self, Position};
use telecine_core::ports::table::{Key, Page, Query, Row, SortRange, Source, TableError};
use telecine_domain::time::Timestamp;
use tokio::sync::Semaphore;

use super::schema::{self, SchemaError};
use super::unavailable;

/// Reads at a time.
const CONNECTIONS: usize = 4;
const COLUMNS: &str = "partition, sort, version, i1p, i1s, i2p, i2s, expires_at, body";

/// The connections that are free, and as many permits.
pub(super) struct Readers {
    free: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    file: PathBuf,
}

/// Why a read gave nothing.
pub(super) enum ReadError {
    Sqlite(rusqlite::Error),
    Table(TableError),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<TableError> for ReadError {
    fn from(error: TableError) -> Self {
        Self::Table(error)
    }
}

impl Readers {
    pub(super) fn open(file: &Path) -> Result<Self, SchemaError> {
        let free = (0..CONNECTIONS).map(|_| schema::open_for_reading(file)).collect::<Result<_, _>>()?;
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        Ok(Self { free: Mutex::new(free), permits, file: file.to_owned() })
    }

    pub(super) async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, TableError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        let readers = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            // The permit goes with the connection: a caller that stops waiting does not free it early.
            let _permit = permit;
            let connection = readers.take()?;
            let result = read(&connection);
            readers.free.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            result.map_err(|error| match error {
                ReadError::Sqlite(error) => unavailable(&readers.file, &error),
                ReadError::Table(error) => error,
            })
        });
        done.await
            .unwrap_or_else(|stopped| Err(TableError::Unavailable(format!("a read was stopped: {stopped}"))))
    }

    /// A free connection; one that a panic took along is replaced.
    fn take(&self) -> Result<Connection, TableError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match free {
            Some(connection) => Ok(connection),
            None => schema::open_for_reading(&self.file)
                .map_err(|error| TableError::Unavailable(error.to_string())),
        }
    }

    pub(super) async fn back_up(self: &Arc<Self>, file: PathBuf) -> Result<(), TableError> {
        if file.exists() {
            return Err(TableError::Invalid(format!("{} exists already", file.display())));
        }
        let name = file.to_str().map(str::to_owned);
        let name =
            name.ok_or_else(|| TableError::Invalid("the path of a backup must be UTF-8".to_owned()))?;
        self.with(move |connection| Ok(connection.execute("VACUUM INTO ?1", [name]).map(drop)?)).await
    }
}

pub(super) fn get(connection: &Connection, key: &Key, now: Timestamp) -> Result<Option<Row>, ReadError> {
    let mut statement = connection.prepare_cached(
        "SELECT partition, sort, version, i1p, i1s, i2p, i2s, expires_at, body FROM rows
         WHERE partition = ?1 AND sort = ?2 AND (expires_at IS NULL OR expires_at > ?3)",
    )?;
    let found = statement.query_row((&key.partition, &key.sort, millis(now)), row_of);
    Ok(found.optional()?)
}

pub(super) fn query(connection: &Connection, query: &Query, now: Timestamp) -> Result<Page, ReadError> {
    if !(1..=1000).contains(&query.limit) {
        return Err(TableError::Invalid(format!("a page has 1 to 1000 rows, not {}", query.limit)).into());
    }
    let after = paging::position(query)?;
    let search = Search::new(query, after.as_ref(), now);
    let mut statement = connection.prepare_cached(&search.sql)?;
    let found = statement.query_map(rusqlite::params_from_iter(&search.values), row_of)?;
    let mut rows = found.collect::<rusqlite::Result<Vec<Row>>>()?;
    let more = rows.len() > query.limit;
    rows.truncate(query.limit);
    let last = rows.last().filter(|_| more);
    let next = last.map(|row| paging::token(query, &position_of(query.source, row)));
    Ok(Page { rows, next })
}

fn position_of(source: Source, row: &Row) -> Position {
    let index = match source {
        Source::Rows => None,
        Source::Index1 => row.index1.as_ref(),
        Source::Index2 => row.index2.as_ref(),
    };
    let sort = index.map_or(&row.key.sort, |key| &key.sort).clone();
    Position { sort, key: row.key.clone() }
}

/// A statement and its values. The text depends on the form of the query alone, so that it is prepared once.
struct Search {
    sql: String,
    values: Vec<Box<dyn ToSql>>,
}

impl Search {
    fn new(query: &Query, after: Option<&Position>, now: Timestamp) -> Self {
        let (partition, sort) = match query.source {
            Source::Rows => ("partition", "sort"),
            Source::Index1 => ("i1p", "i1s"),
            Source::Index2 => ("i2p", "i2s"),
        };
        let mut search = Self {
            sql: format!(
                "SELECT {COLUMNS} FROM rows WHERE {partition} = ? AND (expires_at IS NULL OR expires_at > ?)"
            ),
            values: vec![Box::new(query.partition.clone()), Box::new(millis(now))],
        };
        match &query.range {
            SortRange::All => {}
            SortRange::Prefix(prefix) => search.prefix(sort, prefix),
            SortRange::Between(from, to) => {
                search.add(&format!("{sort} >= ?"), from.clone());
                search.add(&format!("{sort} < ?"), to.clone());
            }
        }
        let (beyond, direction) = if query.descending { ("<", "DESC") } else { (">", "ASC") };
        match (query.source, after) {
            (_, None) => {}
            (Source::Rows, Some(position)) => {
                search.add(&format!("{sort} {beyond} ?"), position.sort.clone())
            }
            (Source::Index1 | Source::Index2, Some(position)) => {
                search.sql += &format!(" AND ({sort}, partition, sort) {beyond} (?, ?, ?)");
                let Position { sort, key } = position.clone();
                search
                    .values
                    .extend([sort, key.partition, key.sort].map(|part| Box::new(part) as Box<dyn ToSql>));
            }
        }
        search.sql += &match query.source {
            Source::Rows => format!(" ORDER BY sort {direction} LIMIT ?"),
            Source::Index1 | Source::Index2 => {
                format!(" ORDER BY {sort} {direction}, partition {direction}, sort {direction} LIMIT ?")
            }
        };
        // One more than asked for tells whether there is a next page.
        search.values.push(Box::new(i64::try_from(query.limit + 1).expect("at most 1001")));
        search
    }

    fn add(&mut self, condition: &str, value: impl ToSql + 'static) {
        self.sql += &format!(" AND {condition}");
        self.values.push(Box::new(value));
    }

    /// From the prefix to the first text that does not begin with it. That end is the prefix with its last byte
    /// increased, which need not be UTF-8; SQLite compares texts byte by byte and a cast only renames the bytes.
    fn prefix(&mut self, sort: &str, prefix: &str) {
        let mut end = prefix.as_bytes().to_vec();
        let Some(last) = end.last_mut() else { return };
        *last += 1; // No byte of UTF-8 is 0xff.
        self.add(&format!("{sort} >= ?"), prefix.to_owned());
        self.add(&format!("{sort} < CAST(? AS TEXT)"), end);
    }
}

fn row_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let index = |partition: &str, sort: &str| -> rusqlite::Result<Option<Key>> {
        let parts: (Option<String>, Option<String>) = (row.get(partition)?, row.get(sort)?);
        Ok(parts.0.zip(parts.1).map(|(partition, sort)| Key { partition, sort }))
    };
    let expires_at: Option<i64> = row.get("expires_at")?;
    let body = row.get_ref("body")?.as_bytes()?;
    let damaged =
        |error| rusqlite::Error::FromSqlConversionFailure(8, rusqlite::types::Type::Text, Box::new(error));
    Ok(Row {
        key: Key { partition: row.get("partition")?, sort: row.get("sort")? },
        version: row.get::<_, i64>("version")?.cast_unsigned(),
        index1: index("i1p", "i1s")?,
        index2: index("i2p", "i2s")?,
        expires_at: expires_at.map(|millis| Timestamp::from_millis(millis.cast_unsigned())),
        body: serde_json::from_slice(body).map_err(damaged)?,
    })
}

/// As SQLite holds it; `Timestamp` ends in the year 9999.
pub(super) fn millis(time: Timestamp) -> i64 {
    i64::try_from(time.as_millis()).expect("a timestamp ends in the year 9999")
}
