//! Why a job waits or how it ended: gathers the facts for the domain's `explain` (SPEC 3.7).

use telecine_domain::explain::{self, Explanation};
use telecine_domain::id::{AccountId, JobId};
use telecine_domain::job::{Job, JobState};
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::record::{Listed, RecordError};
use crate::{dispatch, fleet, jobs};

/// Most queued jobs that are counted; beyond it the position is a lower bound.
const MAX_COUNTED: usize = 10_000;

/// Explains the account's job; `None` when there is none.
///
/// # Errors
/// When the records are out of reach.
pub async fn explain(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    now: Timestamp,
) -> Result<Option<Explanation>, RecordError> {
    let Some(job) = jobs::find(backend, account, job).await? else { return Ok(None) };
    let instances = fleet::instances(backend, &job.spec.region).await?;
    let ahead = match job.state {
        JobState::Queued { .. } => queued_ahead(backend, &job).await?,
        _ => 0,
    };
    Ok(Some(explain::explain(&job, &instances, ahead, now)))
}

/// Queued jobs of the region that are more important, or as important and older.
async fn queued_ahead(backend: &Backend, job: &Job) -> Result<u64, RecordError> {
    let before = |other: &Job| {
        let order = |job: &Job| (std::cmp::Reverse(job.spec.priority), job.queued_at, job.id);
        matches!(other.state, JobState::Queued { .. }) && order(other) < order(job)
    };
    let (mut ahead, mut counted, mut after) = (0, 0, None);
    loop {
        let Listed { items, next } = dispatch::queued(backend, &job.spec.region, 1000, after).await?;
        counted += items.len();
        ahead += items.iter().filter(|other| before(other)).count() as u64;
        match next {
            Some(next) if counted < MAX_COUNTED => after = Some(next),
            Some(_) | None => return Ok(ahead),
        }
    }
}
