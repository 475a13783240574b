//! The file's layout and its migrations.
//!
//! `user_version` is the number of migrations done. Each runs in a transaction of its own with the new number, so that
//! a crash leaves the file before or after it, never between.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::configure;

/// Marks the file as ours (`application_id`): "Tele".
const APPLICATION: i32 = 0x5465_6c65;

/// One step each, in order; never change one that was released, add another.
const MIGRATIONS: [&str; 1] = [
    // 1: rows of the port's shape. The indexes hold the rows that are in them and no others.
    "CREATE TABLE rows (
        id INTEGER PRIMARY KEY,
        partition TEXT NOT NULL,
        sort TEXT NOT NULL,
        version INTEGER NOT NULL,
        i1p TEXT,
        i1s TEXT,
        i2p TEXT,
        i2s TEXT,
        expires_at INTEGER,
        body TEXT NOT NULL,
        UNIQUE (partition, sort)
    ) STRICT;
    CREATE INDEX rows_index1 ON rows (i1p, i1s, partition, sort) WHERE i1p IS NOT NULL;
    CREATE INDEX rows_index2 ON rows (i2p, i2s, partition, sort) WHERE i2p IS NOT NULL;
    CREATE INDEX rows_expiring ON rows (expires_at) WHERE expires_at IS NOT NULL;",
];

/// The database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// SQLite refused.
    #[error("the database {file:?} cannot be opened: {source}")]
    Sqlite {
        /// Which file.
        file: PathBuf,
        /// Its words.
        source: rusqlite::Error,
    },
    /// Another program's database.
    #[error("{file:?} is a database of another program: move it away or choose another data folder")]
    Foreign {
        /// Which file.
        file: PathBuf,
    },
    /// A newer version has been here.
    #[error(
        "the database {file:?} has layout {found}, and this version of Telecine knows up to {known}: run the newer version, or restore a backup made by this one"
    )]
    Newer {
        /// Which file.
        file: PathBuf,
        /// Its layout.
        found: usize,
        /// The newest we know.
        known: usize,
    },
    /// The file system does not support the write-ahead log.
    #[error(
        "the database {file:?} cannot use a write-ahead log on this file system (journal mode {mode:?}): put the data folder on a local disk"
    )]
    NoWriteAheadLog {
        /// Which file.
        file: PathBuf,
        /// The mode that SQLite offers.
        mode: String,
    },
    /// The writer could not be started.
    #[error("the thread that writes the database cannot be started: {problem}")]
    Thread {
        /// The system's words.
        problem: String,
    },
}

/// Opens the file for its one writer, making or migrating it first.
pub(super) fn open_for_writing(file: &Path) -> Result<Connection, SchemaError> {
    let failed = |source| SchemaError::Sqlite { file: file.to_owned(), source };
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(file, flags).map_err(failed)?;
    check_owner(file, &connection)?;
    let mode: String =
        connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        return Err(SchemaError::NoWriteAheadLog { file: file.to_owned(), mode });
    }
    configure(&connection).map_err(failed)?;
    connection.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024).map_err(failed)?;
    migrate(file, &mut connection)?;
    Ok(connection)
}

pub(super) fn open_for_reading(file: &Path) -> Result<Connection, SchemaError> {
    let failed = |source| SchemaError::Sqlite { file: file.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(failed)?;
    configure(&connection).map_err(failed)?;
    Ok(connection)
}

fn check_owner(file: &Path, connection: &Connection) -> Result<(), SchemaError> {
    let failed = |source| SchemaError::Sqlite { file: file.to_owned(), source };
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i32>(0)).map_err(failed);
    let empty = number("SELECT count(*) FROM sqlite_schema")? == 0;
    match number("PRAGMA application_id")? {
        APPLICATION => Ok(()),
        0 if empty => Ok(()),
        _ => Err(SchemaError::Foreign { file: file.to_owned() }),
    }
}

fn migrate(file: &Path, connection: &mut Connection) -> Result<(), SchemaError> {
    let failed = |source| SchemaError::Sqlite { file: file.to_owned(), source };
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    let found = found as usize;
    if found > MIGRATIONS.len() {
        return Err(SchemaError::Newer { file: file.to_owned(), found, known: MIGRATIONS.len() });
    }
    for (done, migration) in MIGRATIONS.iter().enumerate().skip(found) {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(migration).map_err(failed)?;
        transaction.pragma_update(None, "user_version", (done + 1) as u32).map_err(failed)?;
        transaction.pragma_update(None, "application_id", APPLICATION).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_others_or_of_a_newer_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("foreign.db");
        Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE songs (name TEXT)").unwrap();
        assert!(matches!(open_for_writing(&foreign), Err(SchemaError::Foreign { .. })));
        let text = folder.path().join("text.db");
        std::fs::write(&text, "this is no database, and it is long enough to be looked at as one".repeat(20))
            .unwrap();
        assert!(matches!(open_for_writing(&text), Err(SchemaError::Sqlite { .. })));
        let newer = folder.path().join("newer.db");
        open_for_writing(&newer).unwrap().pragma_update(None, "user_version", 7).unwrap();
        let error = open_for_writing(&newer).unwrap_err().to_string();
        assert!(error.contains("layout 7") && error.contains("newer.db"), "{error}");
    }

    #[test]
    fn opening_again_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.db");
        for _ in 0..2 {
            let connection = open_for_writing(&file).unwrap();
            let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
            assert_eq!(version as usize, MIGRATIONS.len());
            let mode: i32 = connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
            assert_eq!(mode, 2, "FULL");
        }
    }
}
