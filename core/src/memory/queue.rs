//! A queue of hints in memory, on tokio's clock.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use telecine_domain::id::{JobId, RegionName};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::ports::queue::{Depth, Queue, QueueError, Received};

/// Hints per region.
#[derive(Default)]
pub struct MemoryQueue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// By number of arrival.
    hints: BTreeMap<RegionName, BTreeMap<u64, Hint>>,
    next: u64,
}

struct Hint {
    job: JobId,
    hidden_until: Option<Instant>,
    receipt: u64,
}

impl Hint {
    fn is_visible(&self, now: Instant) -> bool {
        self.hidden_until.is_none_or(|until| until <= now)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn take(
        &mut self,
        region: &RegionName,
        most: usize,
        visibility: Duration,
        now: Instant,
    ) -> Vec<Received> {
        let first = self.next + 1;
        let Some(hints) = self.hints.get_mut(region) else { return Vec::new() };
        let visible = hints.iter_mut().filter(|(_, hint)| hint.is_visible(now)).take(most);
        let taken: Vec<Received> = (first..)
            .zip(visible)
            .map(|(receipt, (number, hint))| {
                hint.hidden_until = Some(now + visibility);
                hint.receipt = receipt;
                Received { job: hint.job, receipt: format!("{number}.{receipt}") }
            })
            .collect();
        self.next += taken.len() as u64;
        taken
    }

    /// The hint of a receipt that still stands.
    fn held(&mut self, region: &RegionName, receipt: &str) -> Option<(u64, &mut Hint)> {
        let (number, receipt) = receipt.split_once('.')?;
        let (number, receipt): (u64, u64) = (number.parse().ok()?, receipt.parse().ok()?);
        let hint = self.hints.get_mut(region)?.get_mut(&number)?;
        (hint.receipt == receipt).then_some((number, hint))
    }

    fn next_visible(&self, region: &RegionName) -> Option<Instant> {
        self.hints.get(region)?.values().filter_map(|hint| hint.hidden_until).min()
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
        let mut state = self.state();
        for &job in jobs {
            let number = state.number();
            let hint = Hint { job, hidden_until: None, receipt: 0 };
            state.hints.entry(region.clone()).or_default().insert(number, hint);
        }
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
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = Instant::now();
            let (taken, next_visible) = {
                let mut state = self.state();
                (state.take(region, most, visibility, now), state.next_visible(region))
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
        let mut state = self.state();
        for receipt in receipts {
            if let Some((_, hint)) = state.held(region, receipt) {
                hint.hidden_until = Some(Instant::now() + visibility);
            }
        }
        // A shorter visibility may make a hint visible sooner than somebody waits for.
        self.changed.notify_waiters();
        Ok(())
    }

    async fn acknowledge(&self, region: &RegionName, receipts: &[String]) -> Result<(), QueueError> {
        let mut state = self.state();
        for receipt in receipts {
            let number = state.held(region, receipt).map(|(number, _)| number);
            if let (Some(number), Some(hints)) = (number, state.hints.get_mut(region)) {
                hints.remove(&number);
            }
        }
        Ok(())
    }

    async fn depth(&self, region: &RegionName) -> Result<Depth, QueueError> {
        let now = Instant::now();
        let state = self.state();
        let hints = state.hints.get(region).into_iter().flat_map(BTreeMap::values);
        Ok(hints.fold(Depth::default(), |depth, hint| {
            if hint.is_visible(now) {
                Depth { visible: depth.visible + 1, ..depth }
            } else {
                Depth { in_flight: depth.in_flight + 1, ..depth }
            }
        }))
    }
}
