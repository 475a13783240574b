//! What live attempts report besides their state: progress and logs. Rows of their own, so that neither costs a change
//! of the job.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use telecine_domain::attempt::{AttemptId, Progress};
use telecine_domain::id::{AccountId, AttemptNumber, JobId};
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::{Condition, Query, SortRange, Source};
use crate::record::{self, RecordError, Versioned};
use crate::system_store::Reference;

/// How long a job counts as watched after somebody has read it.
pub const WATCH_LIFE: Duration = Duration::from_secs(30);
/// Most bytes of one log chunk.
pub const MAX_CHUNK_BYTES: usize = 256 * 1024;
/// Most bytes of an attempt's log that are kept: an engine that prints for ever may not fill the disk that the database
/// lies on.
pub const MAX_LOG_BYTES: u64 = 256 * 1024 * 1024;
/// The log's last line when more was written.
const FULL: &str =
    "\ntelecine: the log of this attempt has reached 256 MiB; what the engine wrote after this is not kept\n";
/// How much of a log's end is kept in a row.
pub const LOG_TAIL_BYTES: usize = 64 * 1024;

/// What became of a progress report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is recorded.
    Written,
    /// A later one was recorded before, or one of a later attempt; it was dropped.
    Older,
}

/// What became of a log chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is recorded.
    Written,
    /// It had been recorded before; nothing changed.
    Duplicate,
    /// Chunks before it are missing; nothing changed. Send from `expected` on.
    Gap {
        /// The next sequence number.
        expected: u64,
    },
}

/// A log chunk was not recorded, or could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The chunk is too large.
    #[error("a log chunk of {0} bytes is too large (at most {MAX_CHUNK_BYTES})")]
    TooLarge(usize),
    /// The records were out of reach.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A part of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPage {
    /// The bytes, as the engine wrote them (redacted).
    pub bytes: Bytes,
    /// The sequence number of the first chunk that is not in it: where to read on, now or when there is more.
    pub next: u64,
    /// Whether there is more already.
    pub more: bool,
}

/// The row of a log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogRecord {
    /// Sequence number of the next chunk.
    next: u64,
    /// Of the chunks that are kept.
    total_bytes: u64,
    /// Whether `MAX_LOG_BYTES` were reached: what comes now is counted and in the tail, and not kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    full: bool,
    tail: String,
    at: Timestamp,
}

/// The row of a chunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChunkRecord {
    object: Reference,
    at: Timestamp,
}

/// Records how far an attempt is. Inside an attempt neither the sequence nor the ratio nor the media time goes back.
///
/// # Errors
/// When the records are out of reach.
pub async fn put_progress(
    backend: &Backend,
    account: AccountId,
    progress: &Progress,
) -> Result<Recorded, RecordError> {
    let key = layout::progress(progress.attempt.job, account);
    let mut result = Recorded::Older;
    record::replace(backend.table.as_ref(), &key, |found: Option<&Versioned<Progress>>| {
        let known = found.map(|found| &found.value);
        let place = |progress: &Progress| (progress.attempt, progress.sequence);
        if result == Recorded::Written && known.is_some_and(|known| place(known) == place(progress)) {
            // Our own report after an unknown result.
            return Ok(None);
        }
        let Some(merged) = progress.clone().after(known) else {
            result = Recorded::Older;
            return Ok(None);
        };
        result = Recorded::Written;
        record::row(key.clone(), 1, &merged).map(Some)
    })
    .await?;
    Ok(result)
}

/// Records a chunk of a log, numbered from 0 without gaps. The bytes are in the system store before the row names them.
/// Past `MAX_LOG_BYTES` one last line says so, and chunks are answered as if they were recorded but only seen in the
/// tail.
///
/// # Errors
/// `TooLarge`, or when the records are out of reach.
pub async fn append_log(
    backend: &Backend,
    account: AccountId,
    attempt: AttemptId,
    sequence: u64,
    bytes: &[u8],
    now: Timestamp,
) -> Result<Appended, LogError> {
    if bytes.len() > MAX_CHUNK_BYTES {
        return Err(LogError::TooLarge(bytes.len()));
    }
    let (table, AttemptId { job, attempt, .. }) = (backend.table.as_ref(), attempt);
    let key = layout::log(job, account, attempt);
    for tried in 0..record::TRIES {
        let log = record::get::<LogRecord>(table, &key).await?;
        let next = log.as_ref().map_or(0, |log| log.value.next);
        if sequence < next {
            // After an unknown result this may be our own write: recorded either way.
            return Ok(if tried == 0 { Appended::Duplicate } else { Appended::Written });
        }
        if sequence > next {
            return Ok(Appended::Gap { expected: next });
        }
        let (condition, version) = match &log {
            Some(log) => (Condition::Version(log.version), log.version + 1),
            None => (Condition::Absent, 1),
        };
        let log = log.map(|log| log.value);
        let kept = kept_of(log.as_ref(), bytes);
        let record = appended(log, bytes, kept, now);
        let mut writes = vec![record::put(record::row(key.clone(), version, &record)?, condition)];
        if let Some(kept) = kept {
            let object = backend.system.put(Bytes::copy_from_slice(kept)).await.map_err(RecordError::from)?;
            let chunk = ChunkRecord { object, at: now };
            writes.push(record::put_new(layout::log_chunk(job, account, attempt, sequence), &chunk)?);
        }
        match table.transact(writes).await {
            Ok(()) => return Ok(Appended::Written),
            Err(error @ crate::ports::table::TableError::Invalid(_)) => {
                return Err(RecordError::from(error).into());
            }
            Err(_) => record::pause(tried).await,
        }
    }
    Err(RecordError::contended(&key).into())
}

/// The log of an attempt from chunk `from` on: whole chunks, at most `max_bytes` but at least one if there is one.
///
/// # Errors
/// When the records are out of reach.
pub async fn read_log(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    attempt: AttemptNumber,
    from: u64,
    max_bytes: usize,
) -> Result<LogPage, RecordError> {
    let prefix = layout::log_chunks_prefix(account, attempt);
    let range = SortRange::Between(format!("{prefix}{from:010}"), format!("{prefix}:"));
    let query = Query { range, ..record::page_of(Source::Rows, layout::job_partition(job), 1000, None) };
    let page = backend.table.query(query).await?;
    let (mut bytes, mut next) = (BytesMut::new(), from);
    for row in &page.rows {
        let chunk: ChunkRecord = record::value(row)?;
        let size = usize::try_from(chunk.object.size_bytes).unwrap_or(usize::MAX);
        if next > from && bytes.len().saturating_add(size) > max_bytes {
            return Ok(LogPage { bytes: bytes.freeze(), next, more: true });
        }
        bytes.extend_from_slice(&backend.system.read(&chunk.object).await?);
        next += 1;
    }
    Ok(LogPage { bytes: bytes.freeze(), next, more: page.next.is_some() })
}

/// The last 64 KiB of an attempt's log as text, without control characters; `None` when nothing was written.
///
/// # Errors
/// When the records are out of reach.
pub async fn log_tail(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    attempt: AttemptNumber,
) -> Result<Option<String>, RecordError> {
    let key = layout::log(job, account, attempt);
    let found = record::get::<LogRecord>(backend.table.as_ref(), &key).await?;
    Ok(found.map(|found| found.value.tail))
}

/// Somebody reads the job: its progress is recorded often for a while. Writes only when the mark is half spent.
///
/// # Errors
/// When the records are out of reach.
pub async fn mark_watched(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    now: Timestamp,
) -> Result<(), RecordError> {
    let key = layout::watch(job, account);
    let found = backend.table.get(&key).await?;
    let half = now.after(WATCH_LIFE / 2);
    if found.and_then(|row| row.expires_at).is_some_and(|at| at > half) {
        return Ok(());
    }
    let mut row = record::row(key, 1, &now)?;
    row.expires_at = Some(now.after(WATCH_LIFE));
    // Any of several readers may have the last word: they all say the same.
    Ok(backend.table.transact(vec![record::put(row, Condition::Any)]).await?)
}

/// Whether somebody reads the job.
///
/// # Errors
/// When the records are out of reach.
pub async fn watched(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    now: Timestamp,
) -> Result<bool, RecordError> {
    let found = backend.table.get(&layout::watch(job, account)).await?;
    Ok(found.and_then(|row| row.expires_at).is_some_and(|at| at > now))
}

/// What is kept of a chunk: itself, or the line that says that the log is full, or nothing after that.
fn kept_of<'a>(log: Option<&LogRecord>, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (total, full) = log.map_or((0, false), |log| (log.total_bytes, log.full));
    let fits = total + bytes.len() as u64 <= MAX_LOG_BYTES;
    (!full).then_some(if fits { bytes } else { FULL.as_bytes() })
}

fn appended(log: Option<LogRecord>, bytes: &[u8], kept: Option<&[u8]>, now: Timestamp) -> LogRecord {
    let nothing = LogRecord { next: 0, total_bytes: 0, full: false, tail: String::new(), at: now };
    let log = log.unwrap_or(nothing);
    let full = kept != Some(bytes);
    let total_bytes = log.total_bytes + kept.map_or(0, |kept| kept.len() as u64);
    let mut tail = log.tail;
    // A row's text may not grow sixfold by escapes: control characters are replaced.
    tail.extend(String::from_utf8_lossy(bytes).chars().map(|letter| match letter {
        '\n' | '\t' => letter,
        _ if letter.is_control() => '\u{FFFD}',
        _ => letter,
    }));
    let mut cut = tail.len().saturating_sub(LOG_TAIL_BYTES);
    while !tail.is_char_boundary(cut) {
        cut += 1;
    }
    tail.drain(..cut);
    LogRecord { next: log.next + 1, total_bytes, full, tail, at: now }
}

#[cfg(test)]
mod tests {
    use telecine_domain::id::Epoch;

    use super::*;
    use crate::contract::HandClock;
    use crate::memory::Fault;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);
    const ACCOUNT: AccountId = AccountId::PLATFORM;

    fn attempt(number: u32) -> AttemptId {
        AttemptId { job: JobId::new(NOW, 1), attempt: AttemptNumber(number), epoch: Epoch(u64::from(number)) }
    }

    fn progress(number: u32, sequence: u64, ratio_ppm: Option<u32>) -> Progress {
        Progress {
            attempt: attempt(number),
            sequence,
            ratio_ppm,
            media_millis: None,
            phase: String::new(),
            at: NOW,
        }
    }

    #[tokio::test]
    async fn progress_never_goes_back_inside_an_attempt() {
        let (backend, table) = Backend::memory(HandClock::at(NOW).clock());
        let put = async |report: Progress| put_progress(&backend, ACCOUNT, &report).await.unwrap();
        let ratio = async || {
            let key = layout::progress(attempt(1).job, ACCOUNT);
            record::get::<Progress>(backend.table.as_ref(), &key).await.unwrap().unwrap().value.ratio_ppm
        };
        assert_eq!(put(progress(1, 2, Some(500))).await, Recorded::Written);
        assert_eq!(put(progress(1, 1, Some(900))).await, Recorded::Older, "out of order");
        assert_eq!(put(progress(1, 2, Some(900))).await, Recorded::Older, "twice");
        assert_eq!(put(progress(1, 3, Some(400))).await, Recorded::Written);
        assert_eq!(ratio().await, Some(500));
        assert_eq!(put(progress(1, 4, None)).await, Recorded::Written);
        assert_eq!(ratio().await, Some(500), "unknown does not take back what was known");
        assert_eq!(put(progress(2, 1, Some(10))).await, Recorded::Written, "another attempt begins anew");
        assert_eq!(ratio().await, Some(10));
        assert_eq!(put(progress(1, 9, Some(999))).await, Recorded::Older, "a stale attempt");
        table.fail_transaction(1, Fault::LostAfter);
        assert_eq!(put(progress(2, 2, Some(20))).await, Recorded::Written, "an unknown result is settled");
    }

    #[tokio::test]
    async fn log_chunks_are_kept_once_and_in_order() {
        let (backend, table) = Backend::memory(HandClock::at(NOW).clock());
        let append = async |sequence, bytes: &[u8]| {
            append_log(&backend, ACCOUNT, attempt(1), sequence, bytes, NOW).await.unwrap()
        };
        assert_eq!(append(1, b"late").await, Appended::Gap { expected: 0 });
        assert_eq!(append(0, b"one\n").await, Appended::Written);
        assert_eq!(append(0, b"one\n").await, Appended::Duplicate);
        table.fail_transaction(1, Fault::LostAfter);
        assert_eq!(append(1, b"two\x1b[0m\n").await, Appended::Written);
        table.fail_transaction(1, Fault::LostBefore);
        assert_eq!(append(2, b"three\n").await, Appended::Written);
        let read = async |from, most| {
            read_log(&backend, ACCOUNT, attempt(1).job, AttemptNumber(1), from, most).await.unwrap()
        };
        let all = read(0, 1 << 20).await;
        assert_eq!((&all.bytes[..], all.next, all.more), (&b"one\ntwo\x1b[0m\nthree\n"[..], 3, false));
        let first = read(0, 5).await;
        assert_eq!((&first.bytes[..], first.next, first.more), (&b"one\n"[..], 1, true));
        assert_eq!(read(3, 5).await, LogPage { bytes: Bytes::new(), next: 3, more: false });
        let tail = log_tail(&backend, ACCOUNT, attempt(1).job, AttemptNumber(1)).await.unwrap().unwrap();
        assert_eq!(tail, "one\ntwo\u{FFFD}[0m\nthree\n");
    }

    #[tokio::test]
    async fn an_engine_that_prints_for_ever_fills_no_disk() {
        let (backend, table) = Backend::memory(HandClock::at(NOW).clock());
        let append = async |sequence, bytes: &[u8]| {
            append_log(&backend, ACCOUNT, attempt(1), sequence, bytes, NOW).await.unwrap()
        };
        assert_eq!(append(0, b"first\n").await, Appended::Written);
        // As if 256 MiB less ten bytes had been written.
        let key = layout::log(attempt(1).job, ACCOUNT, AttemptNumber(1));
        let log = record::get::<LogRecord>(backend.table.as_ref(), &key).await.unwrap().unwrap();
        let nearly = LogRecord { total_bytes: MAX_LOG_BYTES - 10, ..log.value };
        let row = record::row(key.clone(), log.version, &nearly).unwrap();
        backend.table.transact(vec![record::put(row, Condition::Any)]).await.unwrap();

        assert_eq!(append(1, b"0123456789").await, Appended::Written, "the last bytes that fit");
        table.fail_transaction(1, Fault::LostAfter);
        assert_eq!(append(2, b"too much").await, Appended::Written);
        let rows = table.rows().len();
        for sequence in 3..50 {
            assert_eq!(append(sequence, b"x").await, Appended::Written, "acknowledged all the same");
        }
        assert_eq!(append(7, b"x").await, Appended::Duplicate);
        assert_eq!(append(60, b"x").await, Appended::Gap { expected: 50 });
        assert_eq!(append(50, b"the last words").await, Appended::Written);
        assert_eq!(table.rows().len(), rows, "nothing more is kept");

        let page = read_log(&backend, ACCOUNT, attempt(1).job, AttemptNumber(1), 0, 1 << 20).await.unwrap();
        assert_eq!(page.bytes, format!("first\n0123456789{FULL}"));
        assert_eq!((page.next, page.more), (3, false));
        let tail = log_tail(&backend, ACCOUNT, attempt(1).job, AttemptNumber(1)).await.unwrap().unwrap();
        assert!(tail.ends_with("the last words"), "{tail}");
        let other = append_log(&backend, ACCOUNT, attempt(2), 0, b"anew", NOW).await.unwrap();
        assert_eq!(other, Appended::Written);
        let page = read_log(&backend, ACCOUNT, attempt(1).job, AttemptNumber(2), 0, 1 << 20).await.unwrap();
        assert_eq!(page.bytes, "anew", "each attempt has its own");
    }

    #[tokio::test]
    async fn the_tail_of_a_long_hostile_log_fits_a_row() {
        let (backend, _) = Backend::memory(HandClock::at(NOW).clock());
        for (sequence, byte) in [b'\0', b'"', b'\\', 0xFF].into_iter().enumerate() {
            let bytes = vec![byte; MAX_CHUNK_BYTES];
            let done = append_log(&backend, ACCOUNT, attempt(1), sequence as u64, &bytes, NOW).await;
            assert_eq!(done.unwrap(), Appended::Written);
        }
        let too_large = vec![0; MAX_CHUNK_BYTES + 1];
        let refused = append_log(&backend, ACCOUNT, attempt(1), 4, &too_large, NOW).await;
        assert!(matches!(refused, Err(LogError::TooLarge(_))));
    }

    #[tokio::test]
    async fn watching_costs_few_writes_and_ends() {
        let clock = HandClock::at(NOW);
        let (backend, table) = Backend::memory(clock.clock());
        let job = attempt(1).job;
        for _ in 0..10 {
            mark_watched(&backend, ACCOUNT, job, clock.now()).await.unwrap();
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(table.transactions(), 1);
        assert!(watched(&backend, ACCOUNT, job, clock.now()).await.unwrap());
        clock.advance(WATCH_LIFE);
        assert!(!watched(&backend, ACCOUNT, job, clock.now()).await.unwrap());
    }
}
