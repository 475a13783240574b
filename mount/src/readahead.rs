//! Which readers of one object go forward, and how far ahead of each to fetch. Pure: offsets in, ranges out.
//!
//! Several streams are followed at once (audio and video of an interleaved file, several readers), so a jump to the index
//! at the end starts a stream of its own and the old one keeps its window. A stream's window starts at nothing, becomes
//! 256 KiB with its second read in order (its first at the head of the file) and grows fourfold each time it has been
//! consumed once.

use std::ops::Range;

/// Streams followed per object.
const STREAMS: usize = 8;
/// How far from its expected place a read still belongs to a stream: the kernel sends its requests out of order.
const SLACK: u64 = 1 << 20;
const FIRST_WINDOW: u64 = 256 << 10;
const GROWTH: u64 = 4;

/// The streams of one object.
#[derive(Debug)]
pub(crate) struct Streams {
    size: u64,
    longest_window: u64,
    /// Least recently read first.
    streams: Vec<Stream>,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// End of its furthest read.
    next: u64,
    /// End of what has been asked for on its behalf.
    asked: u64,
    window: u64,
    consumed: u64,
}

impl Streams {
    /// For an object of `size` bytes; windows grow up to `longest_window`.
    pub(crate) fn new(size: u64, longest_window: u64) -> Self {
        Self { size, longest_window, streams: Vec::with_capacity(STREAMS) }
    }

    /// Takes note of a read of `length` bytes at `offset` and says what to fetch beyond it, if anything.
    pub(crate) fn on_read(&mut self, offset: u64, length: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(length).min(self.size);
        let nearest = (0..self.streams.len())
            .filter(|&at| self.streams[at].next.abs_diff(offset) <= SLACK)
            .min_by_key(|&at| self.streams[at].next.abs_diff(offset));
        let stream = match nearest {
            Some(at) => self.streams.remove(at).after_read(end, self.longest_window),
            None => Stream {
                next: end,
                asked: end,
                window: if offset == 0 { FIRST_WINDOW.min(self.longest_window) } else { 0 },
                consumed: 0,
            },
        };
        if self.streams.len() == STREAMS {
            self.streams.remove(0);
        }
        self.streams.push(stream);
        self.streams.last_mut().and_then(|stream| stream.ask(self.size))
    }

    /// Says that what `on_read` last returned was not fetched (there was no room), so that it is offered again.
    pub(crate) fn not_fetched(&mut self, range: &Range<u64>) {
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.asked == range.end) {
            stream.asked = range.start;
        }
    }
}

impl Stream {
    fn after_read(mut self, end: u64, longest_window: u64) -> Self {
        if end <= self.next {
            return self;
        }
        self.consumed += end - self.next;
        self.next = end;
        if self.consumed >= self.window {
            let grown = if self.window == 0 { FIRST_WINDOW } else { self.window * GROWTH };
            self.window = grown.min(longest_window);
            self.consumed = 0;
        }
        self
    }

    /// Asks only when less than half of the window is left, so that requests stay large.
    fn ask(&mut self, size: u64) -> Option<Range<u64>> {
        let start = self.asked.max(self.next);
        if self.window == 0 || start >= size || start - self.next > self.window / 2 {
            return None;
        }
        // Large windows end on a multiple of their quarter, so that ranges do not fray.
        let grain = (self.window / 4).max(64 << 10);
        let end = (self.next + self.window).div_ceil(grain).saturating_mul(grain).min(size);
        self.asked = end.max(start);
        (end > start).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_sequential_reader_ramps_up_to_the_longest_window_and_never_past_the_end() {
        let size = 100 * MIB;
        let mut streams = Streams::new(size, 16 * MIB);
        let mut asked = 0;
        let mut farthest = 0;
        for offset in (0..size).step_by(128 << 10) {
            if let Some(range) = streams.on_read(offset, 128 << 10) {
                assert!(range.start >= asked, "never asks twice for the same bytes: {range:?} after {asked}");
                assert!(range.end <= size);
                asked = range.end;
            }
            farthest = farthest.max(asked.saturating_sub(offset));
        }
        assert_eq!(asked, size);
        assert!((16 * MIB..22 * MIB).contains(&farthest), "{farthest}");
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let mut streams = Streams::new(1 << 40, 16 * MIB);
        for n in 1..1000_u64 {
            assert_eq!(streams.on_read((n * 7919 % 1009) * 64 * MIB + 5, 256 << 10), None);
        }
    }

    #[test]
    fn a_look_at_the_index_does_not_end_the_stream() {
        let mut streams = Streams::new(1000 * MIB, 16 * MIB);
        let mut offset = 0;
        while offset < 40 * MIB {
            streams.on_read(offset, MIB);
            offset += MIB;
        }
        for n in 0..4 {
            streams.on_read(999 * MIB + n * 65536, 65536);
        }
        let ahead: u64 = (0..16)
            .filter_map(|n| streams.on_read(offset + n * MIB, MIB))
            .map(|range| range.end - range.start)
            .sum();
        assert!(ahead >= 8 * MIB, "the old stream keeps its window: {ahead}");
    }

    #[test]
    fn requests_out_of_order_belong_to_one_stream() {
        let mut streams = Streams::new(1000 * MIB, 16 * MIB);
        for n in 0..200_u64 {
            streams.on_read((n ^ 1) * (128 << 10), 128 << 10);
        }
        assert_eq!(streams.streams.len(), 1);
        assert_eq!(streams.streams[0].window, 16 * MIB);
    }

    #[test]
    fn what_found_no_room_is_offered_again() {
        let mut streams = Streams::new(1000 * MIB, 16 * MIB);
        let range = streams.on_read(0, 65536).unwrap();
        streams.not_fetched(&range);
        assert_eq!(streams.on_read(65536, 4096).unwrap().start, 65536 + 4096);
    }
}
