//! What was forgotten or has waited too long: reads the world and converges, whatever was lost on the way.

use std::time::Duration;

use telecine_domain::id::{JobId, RegionName};
use telecine_domain::job::{Job, JobState};
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::dispatch;
use crate::ports::table::PageToken;
use crate::record::{Listed, RecordError};
use crate::update::{self, ChangeError};

/// Rows of one page.
const PAGE: usize = 500;

/// Jobs that were ended because their time was up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overdue {
    /// Waited too long: `expired`.
    pub expired: Vec<JobId>,
    /// Took too long: failed, or being stopped.
    pub timed_out: Vec<JobId>,
}

/// Sends hints again for queued jobs of a region that nobody knows (`known` says no) although they have waited for
/// `patience`: their hint was lost.
///
/// # Errors
/// When the records are out of reach; what was found before has its hints.
pub async fn rehint(
    backend: &Backend,
    region: &RegionName,
    known: impl Fn(JobId) -> bool,
    patience: Duration,
    now: Timestamp,
) -> Result<Vec<JobId>, RecordError> {
    let forgotten = |job: &Job| is_queued(job) && now.since(job.state_since) >= patience && !known(job.id);
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let Listed { items, next } = dispatch::queued(backend, region, PAGE, after).await?;
        let lost: Vec<&Job> = items.iter().filter(|job| forgotten(job)).collect();
        update::hint(backend, &lost).await;
        found.extend(lost.iter().map(|job| job.id));
        match next {
            Some(next) => after = Some(next),
            None => return Ok(found),
        }
    }
}

/// Ends what is over its queue timeout or its total timeout in a region.
///
/// # Errors
/// When the records are out of reach; begin again.
pub async fn overdue(backend: &Backend, region: &RegionName, now: Timestamp) -> Result<Overdue, RecordError> {
    let mut overdue = Overdue::default();
    for section in [Section::Queued, Section::Held, Section::Live] {
        let mut after = None;
        loop {
            let Listed { items, next } = section.page(backend, region, after).await?;
            for job in items {
                end_if_overdue(backend, &job, now, &mut overdue).await?;
            }
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
    }
    Ok(overdue)
}

/// Granted jobs of a region that have been published for longer than `patience`: somebody must finish them.
///
/// # Errors
/// When the records are out of reach.
pub async fn unpublished(
    backend: &Backend,
    region: &RegionName,
    patience: Duration,
    now: Timestamp,
) -> Result<Vec<Job>, RecordError> {
    let waits = |job: &Job| {
        matches!(job.state, JobState::Finalizing { .. }) && now.since(job.state_since) >= patience
    };
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let Listed { items, next } = dispatch::live(backend, region, PAGE, after).await?;
        found.extend(items.into_iter().filter(waits));
        match next {
            Some(next) => after = Some(next),
            None => return Ok(found),
        }
    }
}

enum Section {
    Queued,
    Held,
    Live,
}

impl Section {
    async fn page(
        &self,
        backend: &Backend,
        region: &RegionName,
        after: Option<PageToken>,
    ) -> Result<Listed<Job>, RecordError> {
        match self {
            Self::Queued => dispatch::queued(backend, region, PAGE, after).await,
            Self::Held => dispatch::held(backend, region, PAGE, after).await,
            Self::Live => dispatch::live(backend, region, PAGE, after).await,
        }
    }
}

async fn end_if_overdue(
    backend: &Backend,
    job: &Job,
    now: Timestamp,
    overdue: &mut Overdue,
) -> Result<(), RecordError> {
    let passed = |deadline: Option<Timestamp>| deadline.is_some_and(|at| at <= now);
    let ended = if passed(job.total_deadline()) {
        (dispatch::total_timeout(backend, job.id, now).await, &mut overdue.timed_out)
    } else if is_queued(job) && passed(job.queue_deadline()) {
        (dispatch::expire(backend, job.id, now).await, &mut overdue.expired)
    } else {
        return Ok(());
    };
    match ended {
        (Ok(_), list) => {
            list.push(job.id);
            Ok(())
        }
        // The list lags, or somebody was faster: the job is where it should be.
        (
            Err(
                ChangeError::Stale { .. }
                | ChangeError::Illegal { .. }
                | ChangeError::Outdated { .. }
                | ChangeError::NotFound(_),
            ),
            _,
        ) => Ok(()),
        (Err(ChangeError::Record(error)), _) => Err(error),
    }
}

fn is_queued(job: &Job) -> bool {
    matches!(job.state, JobState::Queued { .. })
}
