//! Hints in memory, on tokio's clock: for tests, for simulations, and for the embedded platform. They are gone with the
//! process: the sweep sends a hint again for every queued job when a manager starts and from time to time after, so
//! nothing is lost but a moment.
//!
//! A job has at most one hint per region, however often it is sent, so that sweeps do not let the queue grow. A hint that
//! is sent while it is in flight comes back once when that delivery is acknowledged: the receiver may have looked at the
//! job before the change that was hinted at.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use telecine_domain::id::{JobId, RegionName};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::ports::queue::{Depth, Queue, QueueError, Received};

/// `Queue` in this process.
#[derive(Default)]
pub struct MemoryQueue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    regions: BTreeMap<RegionName, BTreeMap<JobId, Hint>>,
    deliveries: u64,
}

#[derive(Default)]
struct Hint {
    /// The number of the delivery that holds it, and until when.
    held: Option<(u64, Instant)>,
    /// Sent again while it was held.
    again: bool,
}

impl Hint {
    fn is_visible(&self, now: Instant) -> bool {
        self.held.is_none_or(|(_, until)| until <= now)
    }
}

impl State {
    fn take(&mut self, region: &RegionName, most: usize, until: Instant, now: Instant) -> Vec<Received> {
        let Some(hints) = self.regions.get_mut(region) else { return Vec::new() };
        let visible = hints.iter_mut().filter(|(_, hint)| hint.is_visible(now)).take(most);
        let deliveries = &mut self.deliveries;
        visible
            .map(|(&job, hint)| {
                *deliveries += 1;
                *hint = Hint { held: Some((*deliveries, until)), again: false };
                Received { job, receipt: format!("{job}.{deliveries}") }
            })
            .collect()
    }

    /// The hint of a receipt that still stands.
    fn held(&mut self, region: &RegionName, receipt: &str) -> Option<(JobId, &mut Hint)> {
        let (job, delivery) = receipt.split_once('.')?;
        let (job, delivery) = (job.parse().ok()?, delivery.parse::<u64>().ok()?);
        let hint = self.regions.get_mut(region)?.get_mut(&job)?;
        hint.held.is_some_and(|(number, _)| number == delivery).then_some((job, hint))
    }

    fn next_visible(&self, region: &RegionName) -> Option<Instant> {
        self.regions.get(region)?.values().filter_map(|hint| Some(hint.held?.1)).min()
    }
}

impl MemoryQueue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn send(&self, region: &RegionName, jobs: &[JobId]) -> Result<(), QueueError> {
        let now = Instant::now();
        let mut state = self.state();
        let hints = state.regions.entry(region.clone()).or_default();
        for &job in jobs {
            let hint = hints.entry(job).or_default();
            hint.again = !hint.is_visible(now);
        }
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn receive(
        &self,
        region: &RegionName,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Received>, QueueError> {
        let deadline = Instant::now() + wait;
        loop {
            // Enabled before looking, so that what is sent between the look and the wait is not slept through.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = Instant::now();
            let (taken, next_visible) = {
                let mut state = self.state();
                (state.take(region, most, now + visibility, now), state.next_visible(region))
            };
            if !taken.is_empty() || now >= deadline {
                return Ok(taken);
            }
            let wake = next_visible.map_or(deadline, |visible| visible.min(deadline));
            let _ = timeout_at(wake, changed).await;
        }
    }

    async fn extend(
        &self,
        region: &RegionName,
        receipts: &[String],
        visibility: Duration,
    ) -> Result<(), QueueError> {
        let until = Instant::now() + visibility;
        let mut state = self.state();
        for receipt in receipts {
            if let Some((_, hint)) = state.held(region, receipt) {
                hint.held = hint.held.map(|(delivery, _)| (delivery, until));
            }
        }
        drop(state);
        // A shorter visibility may make a hint visible sooner than somebody waits for.
        self.changed.notify_waiters();
        Ok(())
    }

    async fn acknowledge(&self, region: &RegionName, receipts: &[String]) -> Result<(), QueueError> {
        let mut state = self.state();
        let mut came_back = false;
        for receipt in receipts {
            let Some((job, hint)) = state.held(region, receipt) else { continue };
            if hint.again {
                *hint = Hint::default();
                came_back = true;
            } else if let Some(hints) = state.regions.get_mut(region) {
                hints.remove(&job);
            }
        }
        drop(state);
        if came_back {
            self.changed.notify_waiters();
        }
        Ok(())
    }

    async fn depth(&self, region: &RegionName) -> Result<Depth, QueueError> {
        let now = Instant::now();
        let state = self.state();
        let hints = state.regions.get(region);
        let all = hints.map_or(0, BTreeMap::len) as u64;
        let visible =
            hints.map_or(0, |hints| hints.values().filter(|hint| hint.is_visible(now)).count()) as u64;
        Ok(Depth { visible, in_flight: all - visible })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use telecine_domain::time::Timestamp;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_contract_is_kept() {
        crate::contract::queue_contract(async || Arc::new(MemoryQueue::default()) as _).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_has_one_hint_however_often_it_is_sent() {
        let (queue, local) = (MemoryQueue::default(), "local".parse().unwrap());
        let job = JobId::new(Timestamp::from_millis(1), 1);
        let minute = Duration::from_secs(60);
        for _ in 0..3 {
            queue.send(&local, &[job, job]).await.unwrap();
        }
        assert_eq!(queue.depth(&local).await.unwrap(), Depth { visible: 1, in_flight: 0 });
        let first = queue.receive(&local, 9, Duration::ZERO, minute).await.unwrap();
        queue.send(&local, &[job]).await.unwrap();
        assert_eq!(queue.depth(&local).await.unwrap(), Depth { visible: 0, in_flight: 1 });
        queue.acknowledge(&local, &[first[0].receipt.clone()]).await.unwrap();
        assert_eq!(queue.depth(&local).await.unwrap().visible, 1, "it was sent after it was received");
        let second = queue.receive(&local, 9, Duration::ZERO, minute).await.unwrap();
        queue.acknowledge(&local, &[second[0].receipt.clone()]).await.unwrap();
        assert_eq!(queue.depth(&local).await.unwrap(), Depth::default());
    }
}
