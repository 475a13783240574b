//! Hints: job ids that wake a manager. Losing one costs a sweep, a second one costs nothing.

use std::time::Duration;

use async_trait::async_trait;
use telecine_domain::id::{JobId, RegionName};

/// A hint that was received and not yet acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The job.
    pub job: JobId,
    /// Names this delivery, for `extend` and `acknowledge`.
    pub receipt: String,
}

/// How many hints there are; approximate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Waiting.
    pub visible: u64,
    /// Received and not acknowledged.
    pub in_flight: u64,
}

/// The queue did not do it; trying again may help.
#[derive(Debug, thiserror::Error)]
#[error("the queue is not available: {0}")]
pub struct QueueError(pub String);

/// One queue of hints per region, at least once, in no order.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Adds hints. A failure may have added some of them.
    async fn send(&self, region: &RegionName, jobs: &[JobId]) -> Result<(), QueueError>;

    /// Up to `most` hints, hidden from others for `visibility`; waits up to `wait` for the first.
    async fn receive(
        &self,
        region: &RegionName,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Received>, QueueError>;

    /// Hides deliveries for `visibility` from now. Receipts that have lapsed are skipped.
    async fn extend(
        &self,
        region: &RegionName,
        receipts: &[String],
        visibility: Duration,
    ) -> Result<(), QueueError>;

    /// Removes deliveries. Receipts that have lapsed are skipped.
    async fn acknowledge(&self, region: &RegionName, receipts: &[String]) -> Result<(), QueueError>;

    /// How many there are.
    async fn depth(&self, region: &RegionName) -> Result<Depth, QueueError>;
}
