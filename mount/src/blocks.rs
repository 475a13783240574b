//! The block map: every range of every object that is in memory or on its way, once, for all readers of the mount.
//!
//! A range never overlaps another of the same object and never crosses a block boundary. Ranges on their way count
//! against the bound like those that have come, so memory is bounded whatever readers do. A demanded range may push out
//! anything that is not on its way; a range fetched ahead pushes out only what somebody has read already.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::object::{FetchError, Object};

/// Ranges begin and end on multiples of this, or at the object's end.
pub(crate) const GRAIN: u64 = 64 << 10;

/// What a fetch came to, shared by everybody who waits for it.
type Outcome = Result<Bytes, Arc<FetchError>>;

/// The ranges of all objects of one mount.
#[derive(Debug)]
pub(crate) struct BlockMap {
    state: Mutex<State>,
    /// Rung when a fetch ends: room may have come.
    room: Notify,
    limit: u64,
    block: u64,
    runtime: Handle,
    tasks: TaskTracker,
    closing: CancellationToken,
    demanded: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    objects: Vec<BTreeMap<u64, Extent>>,
    /// Ranges that have come, by the time they were last used.
    recency: BTreeMap<u64, (usize, u64)>,
    clock: u64,
    used: u64,
}

#[derive(Debug)]
struct Extent {
    length: u64,
    used_at: u64,
    was_read: bool,
    slot: Slot,
}

#[derive(Debug)]
enum Slot {
    Here(Bytes),
    Coming(watch::Receiver<Option<Outcome>>),
}

/// Why a range is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Demanded,
    Ahead,
}

enum Found {
    Here { start: u64, bytes: Bytes },
    Coming { start: u64, outcome: watch::Receiver<Option<Outcome>> },
    Missing,
}

impl BlockMap {
    /// An empty map for `objects` objects that holds at most `limit` bytes (at least four blocks).
    pub(crate) fn new(objects: usize, limit: u64, block: u64, parallel: usize, runtime: Handle) -> Self {
        let block = block.next_power_of_two().clamp(GRAIN, 64 << 20);
        let state = State { objects: (0..objects).map(|_| BTreeMap::new()).collect(), ..State::default() };
        Self {
            state: Mutex::new(state),
            room: Notify::new(),
            limit: limit.max(4 * block),
            block,
            runtime,
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            demanded: Arc::new(Semaphore::new(parallel.max(1))),
            ahead: Arc::new(Semaphore::new(parallel.max(1))),
        }
    }

    /// The bytes of `range` when all of them are in memory. Notes the read and starts fetching ahead of it.
    pub(crate) fn try_read(self: &Arc<Self>, object: &Arc<Object>, range: Range<u64>) -> Option<Bytes> {
        self.fetch_ahead(object, &range);
        let mut joined = BytesMut::new();
        let mut position = range.start;
        while position < range.end {
            let Found::Here { start, bytes } = self.find(object, position) else { return None };
            let piece = slice_from(&bytes, start, position..range.end);
            position += piece.len() as u64;
            if joined.is_empty() && position == range.end {
                return Some(piece);
            }
            joined.extend_from_slice(&piece);
        }
        Some(joined.freeze())
    }

    /// The bytes of `range`, fetching what is missing.
    pub(crate) async fn read(self: &Arc<Self>, object: &Arc<Object>, range: Range<u64>) -> Outcome {
        let mut joined = BytesMut::with_capacity((range.end - range.start) as usize);
        let mut position = range.start;
        while position < range.end {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            let (start, bytes) = match self.find(object, position) {
                Found::Here { start, bytes } => (start, bytes),
                Found::Coming { start, outcome } => (start, self.outcome(outcome).await?),
                Found::Missing => {
                    if !self.request(object, position..range.end, Purpose::Demanded) {
                        self.or_closing(room).await?;
                    }
                    continue;
                }
            };
            let piece = slice_from(&bytes, start, position..range.end);
            position += piece.len() as u64;
            joined.extend_from_slice(&piece);
        }
        Ok(joined.freeze())
    }

    /// Runs `work` among the map's own tasks, so that closing ends it.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(work, &self.runtime);
    }

    /// Fails every reader that waits and ends every fetch.
    pub(crate) fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
    }

    fn fetch_ahead(self: &Arc<Self>, object: &Arc<Object>, range: &Range<u64>) {
        let mut streams = object.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ahead) = streams.on_read(range.start, range.end - range.start)
            && !self.request(object, ahead.clone(), Purpose::Ahead)
        {
            streams.not_fetched(&ahead);
        }
    }

    fn find(&self, object: &Object, position: u64) -> Found {
        let mut state = self.lock();
        let State { objects, recency, clock, .. } = &mut *state;
        let Some((&start, extent)) = objects[object.index].range_mut(..=position).next_back() else {
            return Found::Missing;
        };
        if position >= start + extent.length {
            return Found::Missing;
        }
        extent.was_read = true;
        match &extent.slot {
            Slot::Coming(outcome) => Found::Coming { start, outcome: outcome.clone() },
            Slot::Here(bytes) => {
                let found = Found::Here { start, bytes: bytes.clone() };
                recency.remove(&extent.used_at);
                *clock += 1;
                extent.used_at = *clock;
                recency.insert(*clock, (object.index, start));
                found
            }
        }
    }

    /// Starts fetching what is missing of `range`; false when there was no room for some of it.
    fn request(self: &Arc<Self>, object: &Arc<Object>, range: Range<u64>, purpose: Purpose) -> bool {
        let wanted = range.start / GRAIN * GRAIN..range.end.next_multiple_of(GRAIN).min(object.size);
        let mut state = self.lock();
        for missing in state.missing(object.index, &wanted, self.block) {
            let length = missing.end - missing.start;
            if !state.make_room(length, self.limit, purpose) {
                return false;
            }
            let (sender, receiver) = watch::channel(None);
            let was_read = purpose == Purpose::Demanded;
            let extent = Extent { length, used_at: 0, was_read, slot: Slot::Coming(receiver) };
            state.objects[object.index].insert(missing.start, extent);
            state.used += length;
            self.spawn(self.clone().fetch(object.clone(), missing, purpose, sender));
        }
        true
    }

    async fn fetch(
        self: Arc<Self>,
        object: Arc<Object>,
        range: Range<u64>,
        purpose: Purpose,
        waiting: watch::Sender<Option<Outcome>>,
    ) {
        let permits = if purpose == Purpose::Demanded { &self.demanded } else { &self.ahead };
        let work = async {
            let _permit = permits.acquire().await.map_err(|_| FetchError::Closing)?;
            object.fetch(range.clone()).await
        };
        let outcome = match self.closing.run_until_cancelled(work).await {
            None => Err(Arc::new(FetchError::Closing)),
            Some(result) => result.map_err(Arc::new),
        };
        self.lock().arrived(object.index, &range, outcome.as_ref().ok());
        waiting.send_replace(Some(outcome));
        self.room.notify_waiters();
    }

    async fn outcome(&self, mut coming: watch::Receiver<Option<Outcome>>) -> Outcome {
        match coming.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(Arc::new(FetchError::Closing))),
            Err(_) => Err(Arc::new(FetchError::Closing)),
        }
    }

    async fn or_closing(&self, room: impl Future<Output = ()>) -> Result<(), Arc<FetchError>> {
        self.closing.run_until_cancelled(room).await.ok_or_else(|| Arc::new(FetchError::Closing))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The parts of `wanted` that are neither here nor coming, cut at block boundaries.
    fn missing(&self, object: usize, wanted: &Range<u64>, block: u64) -> Vec<Range<u64>> {
        let extents = &self.objects[object];
        let before = extents.range(..wanted.start).next_back();
        let mut position = before.map_or(0, |(start, extent)| start + extent.length).max(wanted.start);
        let mut missing = Vec::new();
        let mut cut = |from: u64, to: u64| {
            let mut from = from;
            while from < to {
                let end = (from / block + 1).saturating_mul(block).min(to);
                missing.push(from..end);
                from = end;
            }
        };
        for (start, extent) in extents.range(wanted.clone()) {
            cut(position, *start);
            position = position.max(start + extent.length);
        }
        cut(position, wanted.end);
        missing
    }

    fn make_room(&mut self, length: u64, limit: u64, purpose: Purpose) -> bool {
        while self.used + length > limit {
            let victim = match purpose {
                Purpose::Demanded => self.recency.first_key_value(),
                Purpose::Ahead => self.recency.iter().find(|(_, (object, start))| {
                    self.objects[*object].get(start).is_some_and(|e| e.was_read)
                }),
            };
            let Some((&used_at, &(object, start))) = victim else { return false };
            self.recency.remove(&used_at);
            if let Some(extent) = self.objects[object].remove(&start) {
                self.used -= extent.length;
            }
        }
        true
    }

    fn arrived(&mut self, object: usize, range: &Range<u64>, bytes: Option<&Bytes>) {
        let State { objects, recency, clock, used } = self;
        match (bytes, objects[object].get_mut(&range.start)) {
            (Some(bytes), Some(extent)) => {
                *clock += 1;
                extent.used_at = *clock;
                extent.slot = Slot::Here(bytes.clone());
                recency.insert(*clock, (object, range.start));
            }
            (None, Some(extent)) => {
                *used -= extent.length;
                objects[object].remove(&range.start);
            }
            (_, None) => {}
        }
    }
}

/// The part of an extent that begins at `start` which lies in `range`.
fn slice_from(bytes: &Bytes, start: u64, range: Range<u64>) -> Bytes {
    let from = (range.start - start) as usize;
    let to = ((range.end - start) as usize).min(bytes.len());
    bytes.slice(from..to)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt};

    use super::*;
    use crate::counters::CounterCells;
    use crate::readahead::Streams;

    const SIZE: usize = 3_000_001;

    fn byte(at: usize) -> u8 {
        (at.wrapping_mul(2_654_435_761) >> 13) as u8
    }

    async fn object(longest_window: u64) -> Arc<Object> {
        let store = Arc::new(InMemory::new());
        let path = Path::from("a");
        let content: Vec<u8> = (0..SIZE).map(byte).collect();
        let etag = store.put(&path, content.into()).await.unwrap().e_tag.unwrap();
        Arc::new(Object {
            index: 0,
            key: "a".into(),
            etag,
            size: SIZE as u64,
            store: store as Arc<dyn ObjectStore>,
            path,
            counters: Arc::new(CounterCells::default()),
            retry_budget: Duration::from_secs(1),
            stall: Duration::from_secs(1),
            streams: Mutex::new(Streams::new(SIZE as u64, longest_window)),
        })
    }

    fn map(limit: u64) -> Arc<BlockMap> {
        Arc::new(BlockMap::new(1, limit, GRAIN, 4, Handle::current()))
    }

    async fn read(map: &Arc<BlockMap>, object: &Arc<Object>, range: Range<u64>) -> Bytes {
        match map.try_read(object, range.clone()) {
            Some(bytes) => bytes,
            None => map.read(object, range).await.unwrap(),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_readers_get_the_right_bytes_within_the_bound() {
        let object = object(4 * GRAIN).await;
        let map = map(0);
        let limit = map.limit;
        let readers = (0..16_u64).map(|reader| {
            let (map, object) = (map.clone(), object.clone());
            tokio::spawn(async move {
                for step in 0..60_u64 {
                    let random = (reader * 1_000_003 + step * 7_919_999) % SIZE as u64;
                    let from = if reader % 2 == 0 { random } else { step * 50_000 % SIZE as u64 };
                    let to = (from + 1 + random % 200_000).min(SIZE as u64);
                    let bytes = read(&map, &object, from..to).await;
                    let expected = from as usize..to as usize;
                    assert!(bytes.iter().copied().eq(expected.map(byte)), "{from}..{to}");
                    let used = map.lock().used;
                    assert!(used <= limit, "{used} bytes in use, {limit} allowed");
                }
            })
        });
        for reader in futures::future::join_all(readers).await {
            reader.unwrap();
        }
    }

    #[tokio::test]
    async fn readers_of_the_same_bytes_share_one_request() {
        let object = object(0).await;
        let map = map(64 * GRAIN);
        let readers = (0..10).map(|_| read(&map, &object, 190_000..220_000));
        futures::future::join_all(readers).await;
        assert_eq!(object.counters.snapshot().store_requests, 2, "30,000 bytes across one block boundary");
        assert_eq!(object.counters.snapshot().store_bytes_read, 2 * GRAIN);
    }

    #[tokio::test]
    async fn closing_fails_waiting_and_later_readers_at_once() {
        let object = object(0).await;
        let map = map(0);
        map.close();
        let error = map.read(&object, 0..10).await.unwrap_err();
        assert!(matches!(*error, FetchError::Closing));
        assert_eq!(map.lock().used, 0, "what failed leaves no room taken");
    }

    #[test]
    fn what_is_missing_is_cut_at_blocks_and_around_what_is_there() {
        let mut state = State { objects: vec![BTreeMap::new()], ..State::default() };
        let here =
            |length: u64| Extent { length, used_at: 0, was_read: true, slot: Slot::Here(Bytes::new()) };
        state.objects[0].insert(10, here(10));
        state.objects[0].insert(30, here(5));
        let missing = |range: Range<u64>| state.missing(0, &range, 32);
        assert_eq!(missing(0..70), [0..10, 20..30, 35..64, 64..70]);
        assert_eq!(missing(12..18), []);
        assert_eq!(missing(15..22), vec![20..22]);
        assert_eq!(missing(40..50), vec![40..50]);
    }
}
