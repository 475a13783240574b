//! How long work runs, learned from every attempt that is granted, and recorded at most once a minute.
//!
//! What the region knew is read when the leadership begins; what is learned since the last write is added to the rows
//! and tried again until it is there. A manager that dies loses at most a minute of it: it is learned again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use telecine_core::durations::{self, Batch};
use telecine_core::limits;
use telecine_core::record::RecordError;
use telecine_domain::job::Job;
use telecine_domain::learn::{Learned, Work};
use telecine_domain::time::Timestamp;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::lead::Lead;

/// Shortest time between two writes.
const EVERY: Duration = Duration::from_secs(60);
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Longest time for the last write of a leadership.
const LAST: Duration = Duration::from_secs(2);

/// What a leadership knows of durations.
#[derive(Default)]
pub(crate) struct Learning {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// All that is known.
    known: Learned,
    /// What of it was learned here and is in no batch yet.
    fresh: Learned,
    /// What is being written, and its number.
    batch: Learned,
    number: u64,
}

impl Learning {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt of this job was granted after its engine had worked for so long.
    pub(crate) fn learn(&self, job: &Job, ran: Duration, now: Timestamp) {
        let work = Work::of(job);
        let mut state = self.lock();
        let expected = state.known.expected(&work);
        state.known.learn(&work, ran, now);
        state.fresh.learn(&work, ran, now);
        drop(state);
        let ran_ms = u64::try_from(ran.as_millis()).unwrap_or(u64::MAX);
        let (expected_ms, samples) = (expected.p50_ms, expected.samples);
        debug!(job = %job.id, ran_ms, expected_ms, samples, "a run was learned");
    }

    fn recall(&self, before: &Learned) {
        let mut state = self.lock();
        for (kind, lesson) in before.lessons() {
            state.known.merge(kind.clone(), lesson);
        }
    }

    /// The batch that is to be written: the one that was not written yet, else what is fresh; `None` when there is none.
    fn batch(&self) -> Option<(u64, Learned)> {
        let mut state = self.lock();
        if state.batch.is_empty() {
            state.batch = std::mem::take(&mut state.fresh);
            state.number += 1;
        }
        (!state.batch.is_empty()).then(|| (state.number, state.batch.clone()))
    }

    fn written(&self) {
        self.lock().batch = Learned::default();
    }
}

/// Reads what the region knows and records what it learns, until the leadership is over.
pub(crate) async fn run(lead: Arc<Lead>) {
    while let Err(error) = begin(&lead).await {
        warn!(region = %lead.region, %error, "what was learned of durations was not read; it is tried again");
        lead.pause(RETRY).await;
        if lead.over.is_cancelled() {
            break;
        }
    }
    while !lead.over.is_cancelled() {
        lead.pause(EVERY).await;
        if let Err(error) = write(&lead).await {
            warn!(region = %lead.region, %error, "what was learned of durations was not recorded; it is tried again");
        }
    }
    // With the last breath; without it a minute is lost, which is learned again.
    let _late = timeout(LAST, write(&lead)).await;
}

async fn begin(lead: &Lead) -> Result<(), RecordError> {
    limits::declare(&lead.backend, &lead.region, &lead.config.scheduling.limits()).await?;
    lead.learning.recall(&durations::all(&lead.backend, &lead.region).await?);
    Ok(())
}

async fn write(lead: &Lead) -> Result<(), RecordError> {
    let Some((number, learned)) = lead.learning.batch() else { return Ok(()) };
    let batch = Batch { term: lead.term, number };
    durations::add(&lead.backend, &lead.region, batch, &learned, lead.now()).await?;
    lead.learning.written();
    Ok(())
}
