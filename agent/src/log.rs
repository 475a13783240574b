//! Cuts an engine's output into numbered chunks, and keeps its last lines for the failure message.
//!
//! A chunk leaves when it holds 256 KiB or has waited 5 s, 500 ms while somebody watches (SPEC 15). Chunks are numbered
//! from 1 without gaps and are kept until the manager is known to have them, so that a new connection can go on where
//! the old one broke. What an unreachable manager makes pile up is bounded: the oldest unsent bytes give way, and the
//! log says how many.

use std::collections::VecDeque;
use std::time::Duration;

/// Most bytes in a chunk.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Most bytes of a log in a failure.
pub const TAIL_BYTES: usize = 4 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_WATCHED: Duration = Duration::from_millis(500);
/// Most chunks waiting for a manager: 16 MiB.
const SPOOL_CHUNKS: usize = 64;

/// A piece of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// From 1, without gaps.
    pub sequence: u64,
    /// At most 256 KiB.
    pub data: Vec<u8>,
}

/// Output on its way to the manager.
#[derive(Debug, Default)]
pub struct LogSpool {
    open: Vec<u8>,
    open_since: Option<Duration>,
    sequence: u64,
    stored: u64,
    waiting: VecDeque<Chunk>,
    dropped: u64,
    tail: VecDeque<u8>,
}

impl LogSpool {
    /// Adds output; `now` is any clock that runs forward.
    pub fn push(&mut self, data: &[u8], now: Duration) {
        self.remember(data);
        for piece in data.chunks(CHUNK_BYTES) {
            let room = CHUNK_BYTES - self.open.len();
            let (fits, rest) = piece.split_at(piece.len().min(room));
            self.append(fits, now);
            if self.open.len() == CHUNK_BYTES {
                self.close();
            }
            self.append(rest, now);
        }
    }

    fn append(&mut self, data: &[u8], now: Duration) {
        if !data.is_empty() {
            self.open.extend_from_slice(data);
            self.open_since.get_or_insert(now);
        }
    }

    fn remember(&mut self, data: &[u8]) {
        let newest = &data[data.len().saturating_sub(TAIL_BYTES)..];
        let excess = (self.tail.len() + newest.len()).saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        self.tail.extend(newest);
    }

    /// When the open chunk must leave; `None` while it is empty.
    pub fn deadline(&self, watched: bool) -> Option<Duration> {
        let patience = if watched { PATIENCE_WATCHED } else { PATIENCE };
        self.open_since.map(|since| since + patience)
    }

    /// Closes the open chunk when its time has come.
    pub fn close_if_due(&mut self, now: Duration, watched: bool) {
        if self.deadline(watched).is_some_and(|deadline| deadline <= now) {
            self.close();
        }
    }

    /// Closes the open chunk, if there is anything in it.
    pub fn close(&mut self) {
        self.open_since = None;
        if self.open.is_empty() {
            return;
        }
        let mut data = std::mem::take(&mut self.open);
        if self.waiting.len() >= SPOOL_CHUNKS {
            // The numbers of waiting chunks may be on their way already: the new chunk gives way, not they.
            self.dropped += data.len() as u64;
            return;
        }
        if self.dropped > 0 {
            let note = format!("[{} bytes of log were dropped: the manager was away]\n", self.dropped);
            let room = CHUNK_BYTES.saturating_sub(note.len());
            data.truncate(room);
            data.splice(0..0, note.into_bytes());
            self.dropped = 0;
        }
        self.sequence += 1;
        self.waiting.push_back(Chunk { sequence: self.sequence, data });
    }

    /// The first chunk after number `sent`, when it is there.
    pub fn after(&self, sent: u64) -> Option<&Chunk> {
        self.waiting.iter().find(|chunk| chunk.sequence > sent)
    }

    /// Forgets chunks up to number `stored`: the manager has them.
    pub fn acknowledge(&mut self, stored: u64) {
        self.stored = self.stored.max(stored);
        while self.waiting.front().is_some_and(|chunk| chunk.sequence <= stored) {
            self.waiting.pop_front();
        }
    }

    /// Number of the last chunk that the manager is known to have; 0 for none.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// Whether everything was stored.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.waiting.is_empty()
    }

    /// The last lines, at most 4 KiB, beginning at a line where one begins.
    pub fn tail(&self) -> String {
        let bytes: Vec<u8> = self.tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let cut = if bytes.len() < TAIL_BYTES { None } else { text.find('\n') };
        let mut lines = cut.map_or(&*text, |newline| &text[newline + 1..]).to_owned();
        while lines.len() > TAIL_BYTES {
            lines.remove(0);
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn drain(spool: &mut LogSpool) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        while let Some(chunk) = spool.after(chunks.last().map_or(0, |chunk: &Chunk| chunk.sequence)) {
            chunks.push(chunk.clone());
        }
        chunks
    }

    #[test]
    fn chunks_are_full_numbered_and_lose_nothing() {
        let mut spool = LogSpool::default();
        let data: Vec<u8> = (0..CHUNK_BYTES * 2 + 17).map(|i| (i % 251) as u8).collect();
        for piece in data.chunks(100_003) {
            spool.push(piece, SECOND);
        }
        spool.close();
        let chunks = drain(&mut spool);
        assert_eq!(chunks.iter().map(|c| c.sequence).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(chunks.iter().all(|c| c.data.len() <= CHUNK_BYTES));
        assert_eq!(chunks.into_iter().flat_map(|c| c.data).collect::<Vec<_>>(), data);
    }

    #[test]
    fn a_chunk_leaves_sooner_while_watched() {
        let mut spool = LogSpool::default();
        assert_eq!(spool.deadline(true), None);
        spool.push(b"line\n", SECOND);
        spool.push(b"more\n", 2 * SECOND);
        assert_eq!(spool.deadline(false), Some(6 * SECOND));
        spool.close_if_due(SECOND * 3 / 2, false);
        assert!(spool.after(0).is_none());
        spool.close_if_due(SECOND * 3 / 2, true);
        assert_eq!(spool.after(0).unwrap().data, b"line\nmore\n");
        assert_eq!(spool.deadline(true), None);
    }

    #[test]
    fn what_was_not_stored_is_sent_again_and_what_was_is_not() {
        let mut spool = LogSpool::default();
        for line in [b"a", b"b", b"c"] {
            spool.push(line, SECOND);
            spool.close();
        }
        spool.acknowledge(1);
        assert_eq!(spool.after(0).unwrap().sequence, 2);
        assert_eq!(spool.after(2).unwrap().data, b"c");
        spool.acknowledge(3);
        assert!(spool.is_empty());
    }

    #[test]
    fn a_flood_without_a_manager_is_bounded_and_said() {
        let mut spool = LogSpool::default();
        let block = vec![b'x'; CHUNK_BYTES];
        for _ in 0..SPOOL_CHUNKS + 2 {
            spool.push(&block, SECOND);
        }
        assert_eq!(spool.waiting.len(), SPOOL_CHUNKS);
        spool.acknowledge(2);
        spool.push(b"back\n", SECOND);
        spool.close();
        let last = spool.waiting.back().unwrap();
        assert_eq!(last.sequence as usize, SPOOL_CHUNKS + 1, "no gap in the numbers");
        assert!(String::from_utf8_lossy(&last.data).contains("524288 bytes of log were dropped"));
    }

    #[test]
    fn the_tail_begins_with_a_line() {
        let mut spool = LogSpool::default();
        spool.push(b"only\n", SECOND);
        assert_eq!(spool.tail(), "only\n");
        for i in 0..2000 {
            spool.push(format!("line {i}\n").as_bytes(), SECOND);
        }
        let tail = spool.tail();
        assert!(tail.len() <= TAIL_BYTES && tail.starts_with("line ") && tail.ends_with("line 1999\n"));
        let mut binary = LogSpool::default();
        binary.push(&[0xff; 9000], SECOND);
        assert!(binary.tail().len() <= TAIL_BYTES);
    }
}
