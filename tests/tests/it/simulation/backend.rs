//! Faults of the backend, over core's own in memory: a table that is out of reach for one manager or forgets whether it
//! wrote, and a queue that loses and doubles hints.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use telecine_core::memory::{MemoryQueue, MemoryTable};
use telecine_core::ports::queue::{Depth, Queue, QueueError, Received};
use telecine_core::ports::table::{Key, Page, Query, Row, Table, TableError, Write};
use telecine_domain::id::{JobId, RegionName};
use tokio::sync::watch;
use tokio::time::Instant;

/// The table as one program reaches it.
pub(super) struct ReachedTable {
    inner: Arc<MemoryTable>,
    away_until: Mutex<Option<Instant>>,
    /// A planted defect: what has this word in it is acknowledged and not written.
    forgets: Option<&'static str>,
}

impl ReachedTable {
    pub(super) fn new(inner: Arc<MemoryTable>, forgets: Option<&'static str>) -> Self {
        Self { inner, away_until: Mutex::new(None), forgets }
    }

    pub(super) fn away_for(&self, time: Duration) {
        *self.away_until.lock().unwrap() = Some(Instant::now() + time);
    }

    fn reach(&self) -> Result<(), TableError> {
        match *self.away_until.lock().unwrap() {
            Some(until) if until > Instant::now() => Err(TableError::Unavailable("cut off".to_owned())),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Table for ReachedTable {
    async fn get(&self, key: &Key) -> Result<Option<Row>, TableError> {
        self.reach()?;
        self.inner.get(key).await
    }

    async fn transact(&self, writes: Vec<Write>) -> Result<(), TableError> {
        self.reach()?;
        let named = |word: &str| {
            writes
                .iter()
                .any(|write| matches!(write, Write::Put { row, .. } if row.body.to_string().contains(word)))
        };
        if self.forgets.is_some_and(named) {
            return Ok(());
        }
        self.inner.transact(writes).await
    }

    async fn query(&self, query: Query) -> Result<Page, TableError> {
        self.reach()?;
        self.inner.query(query).await
    }

    fn revision(&self) -> watch::Receiver<u64> {
        self.inner.revision()
    }
}

/// A queue that loses and doubles hints while `rough`.
pub(super) struct RoughQueue {
    inner: MemoryQueue,
    random: Mutex<SmallRng>,
    pub(super) rough: AtomicBool,
}

impl RoughQueue {
    pub(super) fn new(seed: u64) -> Self {
        let random = Mutex::new(SmallRng::seed_from_u64(seed));
        Self { inner: MemoryQueue::default(), random, rough: AtomicBool::new(true) }
    }
}

#[async_trait]
impl Queue for RoughQueue {
    async fn send(&self, region: &RegionName, jobs: &[JobId]) -> Result<(), QueueError> {
        if !self.rough.load(Ordering::Relaxed) {
            return self.inner.send(region, jobs).await;
        }
        for job in jobs {
            let copies = [1, 1, 0, 2, 3][self.random.lock().unwrap().random_range(0..5)];
            self.inner.send(region, &vec![*job; copies]).await?;
        }
        Ok(())
    }

    async fn receive(
        &self,
        region: &RegionName,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Received>, QueueError> {
        self.inner.receive(region, most, wait, visibility).await
    }

    async fn extend(
        &self,
        region: &RegionName,
        receipts: &[String],
        visibility: Duration,
    ) -> Result<(), QueueError> {
        self.inner.extend(region, receipts, visibility).await
    }

    async fn acknowledge(&self, region: &RegionName, receipts: &[String]) -> Result<(), QueueError> {
        self.inner.acknowledge(region, receipts).await
    }

    async fn depth(&self, region: &RegionName) -> Result<Depth, QueueError> {
        self.inner.depth(region).await
    }
}
