//! What waits and lives, from the table to the region: at the start everything, then by hints, and by a comparison with
//! the table now and then, which repairs whatever was missed.
//!
//! A hint is only a job id. Its job is read and the region told; as long as the job is queued the hint's receipt is
//! kept and extended, so that the number of hints is the number of queued jobs, and when the job leaves `queued` the
//! hint is acknowledged. A hint that comes twice costs one read.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use telecine_core::dispatch;
use telecine_core::ports::queue::Received;
use telecine_core::ports::table::PageToken;
use telecine_core::record::{Listed, RecordError};
use telecine_core::sweep;
use telecine_domain::id::JobId;
use telecine_domain::job::{Job, JobState};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::lead::{Lead, is_damaged};

/// Hints taken at once.
const BATCH: usize = 100;
/// Longest wait of one receive.
const WAIT: Duration = Duration::from_secs(20);
/// How long a hint is hidden after it was received or extended.
const VISIBILITY: Duration = Duration::from_secs(120);
/// Rows read at the same time.
const READS: usize = 16;
/// Rows of one page.
const PAGE: usize = 500;
/// Pause after the queue did not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// Shortest time between two comparisons with the table.
const COMPARE: Duration = Duration::from_secs(5);

/// The receipts of hints whose jobs are queued, and those that are to be acknowledged.
#[derive(Default)]
pub(crate) struct Receipts {
    state: Mutex<ReceiptState>,
    changed: Notify,
}

#[derive(Default)]
struct ReceiptState {
    held: BTreeMap<JobId, String>,
    done: Vec<String>,
}

impl Receipts {
    fn lock(&self) -> MutexGuard<'_, ReceiptState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the receipt of a queued job's hint; one that it had before is acknowledged.
    fn hold(&self, job: JobId, receipt: String) {
        let mut state = self.lock();
        if let Some(before) = state.held.insert(job, receipt) {
            state.done.push(before);
            self.changed.notify_one();
        }
    }

    /// The job is not queued any more.
    pub(crate) fn left(&self, job: JobId) {
        let mut state = self.lock();
        if let Some(receipt) = state.held.remove(&job) {
            state.done.push(receipt);
            self.changed.notify_one();
        }
    }

    fn acknowledge(&self, receipts: impl IntoIterator<Item = String>) {
        self.lock().done.extend(receipts);
        self.changed.notify_one();
    }

    fn take_done(&self) -> Vec<String> {
        let mut state = self.lock();
        let batch = state.done.len().min(BATCH);
        state.done.drain(..batch).collect()
    }

    fn held(&self) -> Vec<(JobId, String)> {
        self.lock().held.iter().map(|(job, receipt)| (*job, receipt.clone())).collect()
    }
}

/// Everything that `list` gives, page by page.
pub(crate) async fn pages<T, F>(
    list: impl Fn(Option<PageToken>) -> F,
    mut take: impl FnMut(T),
) -> Result<(), RecordError>
where
    F: Future<Output = Result<Listed<T>, RecordError>>,
{
    let mut after = None;
    loop {
        let Listed { items, next } = list(after).await?;
        items.into_iter().for_each(&mut take);
        match next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

/// Tells the region all that the table has: the live attempts first, so that no capacity is given out twice.
///
/// # Errors
/// When the table is out of reach: then this manager cannot lead yet.
pub(crate) async fn load_all(lead: &Arc<Lead>) -> Result<(), RecordError> {
    let (mut live, mut queued) = (Vec::new(), Vec::new());
    pages(|after| dispatch::live(&lead.backend, &lead.region, PAGE, after), |job: Job| live.push(job))
        .await?;
    pages(|after| dispatch::queued(&lead.backend, &lead.region, PAGE, after), |job: Job| queued.push(job))
        .await?;
    for job in live.iter().chain(&queued) {
        lead.tell_job(job).await;
    }
    Ok(())
}

/// Takes hints until the leadership is over.
pub(crate) async fn receive(lead: Arc<Lead>) {
    while !lead.over.is_cancelled() {
        let received = lead.backend.queue.receive(&lead.region, BATCH, WAIT, VISIBILITY);
        let hints = tokio::select! {
            hints = received => hints,
            () = lead.over.cancelled() => return,
        };
        match hints {
            Ok(hints) => take(&lead, hints).await,
            Err(error) => {
                warn!(region = %lead.region, %error, "hints were not received; it is tried again");
                lead.pause(PAUSE).await;
            }
        }
    }
}

async fn take(lead: &Arc<Lead>, hints: Vec<Received>) {
    lead.metrics.hints(hints.len());
    let mut by_job = BTreeMap::<JobId, Vec<String>>::new();
    for hint in hints {
        by_job.entry(hint.job).or_default().push(hint.receipt);
    }
    futures::stream::iter(by_job)
        .for_each_concurrent(READS, |(job, receipts)| async move { look_at(lead, job, receipts).await })
        .await;
}

/// Reads a hint's job. When that fails, the hint shows up again after its time.
async fn look_at(lead: &Arc<Lead>, job: JobId, mut receipts: Vec<String>) {
    match dispatch::load(&lead.backend, job).await {
        Ok(Some(found)) if found.spec.region == lead.region => {
            if matches!(found.state, JobState::Queued { .. })
                && let Some(receipt) = receipts.pop()
            {
                lead.receipts.hold(job, receipt);
            }
            lead.receipts.acknowledge(receipts);
            lead.tell_job(&found).await;
        }
        Ok(elsewhere) => {
            debug!(%job, known = elsewhere.is_some(), "a hint names no job of this region");
            lead.receipts.left(job);
            lead.receipts.acknowledge(receipts);
        }
        Err(error) if is_damaged(&error) => {
            // Once its row is mended, the sweep sends the hint again.
            warn!(%job, %error, "a hint's job cannot be read; it is left alone");
            lead.receipts.left(job);
            lead.receipts.acknowledge(receipts);
        }
        Err(error) => warn!(%job, %error, "a hint's job was not read"),
    }
}

/// Acknowledges what is done and extends what is held, until the leadership is over.
pub(crate) async fn keep_receipts(lead: Arc<Lead>) {
    let mut extend_at = Instant::now() + VISIBILITY / 2;
    while !lead.over.is_cancelled() {
        tokio::select! {
            () = lead.receipts.changed.notified() => acknowledge(&lead).await,
            () = tokio::time::sleep_until(extend_at) => {
                extend(&lead).await;
                extend_at = Instant::now() + VISIBILITY / 2;
            }
            () = lead.over.cancelled() => {}
        }
    }
    // What is known to be done is acknowledged with the last breath; what is not comes again and costs one read.
    let _late = timeout(PAUSE, acknowledge(&lead)).await;
}

async fn acknowledge(lead: &Lead) {
    loop {
        let batch = lead.receipts.take_done();
        if batch.is_empty() {
            return;
        }
        if let Err(error) = lead.backend.queue.acknowledge(&lead.region, &batch).await {
            warn!(region = %lead.region, %error, "hints were not acknowledged; it is tried again");
            lead.receipts.acknowledge(batch);
            return lead.pause(PAUSE).await;
        }
    }
}

async fn extend(lead: &Lead) {
    let receipts: Vec<String> = lead.receipts.held().into_iter().map(|(_, receipt)| receipt).collect();
    for batch in receipts.chunks(BATCH) {
        if let Err(error) = lead.backend.queue.extend(&lead.region, batch, VISIBILITY).await {
            warn!(region = %lead.region, %error, "hints were not extended; their jobs are known all the same");
        }
    }
}

/// Compares the region with the table whenever something was written, and every sweep interval, until the leadership
/// is over.
pub(crate) async fn reconcile(lead: Arc<Lead>) {
    let mut revision = lead.backend.table.revision();
    let mut sweep_at = Instant::now() + lead.config.sweep;
    while !lead.over.is_cancelled() {
        lead.pause(COMPARE.min(lead.config.sweep)).await;
        let rest = lead.config.sweep.saturating_sub(COMPARE);
        tokio::select! {
            changed = timeout(rest, revision.changed()) => {
                if matches!(changed, Ok(Err(_))) {
                    // The table's side is gone; the interval is what remains.
                    lead.pause(rest).await;
                }
            }
            () = lead.over.cancelled() => return,
        }
        revision.borrow_and_update();
        if let Err(error) = compare(&lead).await {
            warn!(region = %lead.region, %error, "the queue was not compared with the table; it is tried again");
        }
        if let Err(error) = sweep::dependencies(&lead.backend, &lead.region, lead.now()).await {
            warn!(region = %lead.region, %error, "jobs that wait for others were not looked at; it is tried again");
        }
        if Instant::now() >= sweep_at {
            sweep_at = Instant::now() + lead.config.sweep;
            if let Err(error) = sweep_up(&lead).await {
                warn!(region = %lead.region, %error, "the sweep was not finished; it is tried again");
            }
        }
    }
}

async fn compare(lead: &Arc<Lead>) -> Result<(), RecordError> {
    let (mut queued, mut live) = (Vec::new(), Vec::new());
    pages(|after| dispatch::queued(&lead.backend, &lead.region, PAGE, after), |job: Job| queued.push(job))
        .await?;
    pages(|after| dispatch::live(&lead.backend, &lead.region, PAGE, after), |job: Job| live.push(job))
        .await?;
    let Some(known) = lead.survey().await else { return Ok(()) };
    // A queued job may be told from the list: if it is stale, the assignment is refused and puts it right. A live one
    // may not: an attempt that has just ended would hold its resources again.
    for job in &queued {
        lead.tell_job(job).await;
    }
    let known_live: BTreeSet<JobId> = known.live.iter().map(|attempt| attempt.job).collect();
    let unknown = live.iter().map(|job| job.id).filter(|job| !known_live.contains(job));
    let listed: BTreeSet<JobId> = queued.iter().chain(&live).map(|job| job.id).collect();
    // What is known here, or whose hint is held, and is in no list, has left.
    let held = lead.receipts.held().into_iter().map(|(job, _)| job);
    let gone = known.queued.iter().copied().chain(known_live.iter().copied()).chain(held);
    let gone = gone.filter(|job| !listed.contains(job));
    for job in unknown.chain(gone).collect::<BTreeSet<_>>() {
        match dispatch::load(&lead.backend, job).await {
            Ok(Some(job)) => lead.tell_job(&job).await,
            Ok(None) => {}
            Err(error) if is_damaged(&error) => warn!(%job, %error, "a job cannot be read; it is left alone"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends lost hints again, so that their number stays the number of queued jobs, and ends what is overdue and not the
/// region's to watch (held jobs).
async fn sweep_up(lead: &Lead) -> Result<(), RecordError> {
    let held: BTreeSet<JobId> = lead.receipts.held().into_iter().map(|(job, _)| job).collect();
    let (backend, region, patience) = (&lead.backend, &lead.region, lead.config.sweep);
    sweep::rehint(backend, region, |job| held.contains(&job), patience, lead.now()).await?;
    sweep::overdue(backend, region, lead.now()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use telecine_domain::time::Timestamp;

    use super::*;

    #[test]
    fn one_receipt_is_held_per_queued_job() {
        let job = JobId::new(Timestamp::from_millis(1), 1);
        let receipts = Receipts::default();
        receipts.hold(job, "a".to_owned());
        receipts.hold(job, "b".to_owned());
        assert_eq!(receipts.held(), [(job, "b".to_owned())]);
        receipts.left(job);
        receipts.left(job);
        assert_eq!(receipts.take_done(), ["a", "b"]);
        assert!(receipts.held().is_empty() && receipts.take_done().is_empty());
    }
}
