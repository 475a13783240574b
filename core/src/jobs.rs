//! Jobs as their account sees them: found, listed, followed, canceled, held, edited.
//!
//! Everything here takes the account and finds nothing of another one: the account is part of every key.

mod catalog;
pub(crate) mod draft;
mod estimate;
mod resolve;
mod submit;

use std::collections::BTreeMap;

use telecine_domain::attempt::{Attempt, Progress};
use telecine_domain::id::{AccountId, FactoryId, JobId};
use telecine_domain::job::{HoldReason, Job, MAX_PRIORITY, StateName};
use telecine_domain::time::Timestamp;
use telecine_domain::transition::JobEvent;

use crate::backend::Backend;
use crate::job_row::{self, Recorded};
use crate::layout;
use crate::ports::table::{PageToken, Query, SortRange, Source};
use crate::problem::{self, Problem};
use crate::record::{self, Listed, RecordError};
use crate::update::{self, ChangeError, Step};

pub use self::catalog::LookupError;
pub(crate) use self::catalog::{Catalog, Found};
pub use self::estimate::{Estimate, estimate};
pub(crate) use self::resolve::resolve;
pub use self::submit::{
    Accepted, AcceptedMany, MAX_JOBS, Refusal, SubmitError, retry, submit, submit_in, submit_many,
    submit_many_in,
};
pub(crate) use self::submit::{new_token, recorded, settle};
pub use crate::update::{Happened, JobRecord};

/// Which jobs to list; all of what is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// In this state.
    pub state: Option<StateName>,
    /// Made by this factory (or a retry of such a job).
    pub factory: Option<FactoryId>,
    /// With this label and value.
    pub label: Option<(String, String)>,
}

impl JobFilter {
    fn accepts(&self, recorded: &Recorded) -> bool {
        let job = &recorded.job;
        self.state.is_none_or(|state| job.state.name() == state)
            && self.factory.is_none_or(|factory| recorded.factory == Some(factory))
            && self.label.as_ref().is_none_or(|(name, value)| job.spec.labels.get(name) == Some(value))
    }
}

/// What may be changed of a job that is held or queued (labels: of every job that is not over).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobEdit {
    /// Another priority, 0 to 1000.
    pub priority: Option<u16>,
    /// Other labels, in place of all there are.
    pub labels: Option<BTreeMap<String, String>>,
}

/// A job was not edited.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The request is wrong.
    #[error("the change was refused: {}", problem::join(.0))]
    Invalid(Vec<Problem>),
    /// The job does not allow it, or was changed meanwhile.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// Most labels of a job.
pub const MAX_LABELS: usize = 32;
/// Most rows that are looked through for one page of a filtered list.
const MAX_SCANNED: usize = 2000;

/// The account's job.
///
/// # Errors
/// When the records are out of reach.
pub async fn find(backend: &Backend, account: AccountId, job: JobId) -> Result<Option<Job>, RecordError> {
    Ok(job_row::find(backend, account, job).await?.map(|recorded| recorded.job))
}

/// The account's jobs, newest first. A filter may leave a page short, even empty, with more to come: the list is over
/// when `next` is `None`.
///
/// # Errors
/// When the records are out of reach, or the token is not one of this list.
pub async fn list(
    backend: &Backend,
    account: AccountId,
    filter: &JobFilter,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Job>, RecordError> {
    let limit = limit.clamp(1, 1000);
    let mut listed = Listed { items: Vec::new(), next: after };
    let mut scanned = 0;
    loop {
        let most = limit - listed.items.len();
        let query = record::page_of(Source::Index1, layout::jobs_of(account), most, listed.next.take());
        let page = backend.table.query(Query { descending: true, ..query }).await?;
        scanned += page.rows.len();
        for row in &page.rows {
            let recorded = job_row::read(&backend.system, row).await?;
            if filter.accepts(&recorded) {
                listed.items.push(recorded.job);
            }
        }
        listed.next = page.next;
        if listed.next.is_none() || listed.items.len() == limit || scanned >= MAX_SCANNED {
            return Ok(listed);
        }
    }
}

/// The attempts of a job, first to last.
///
/// # Errors
/// When the records are out of reach.
pub async fn attempts(
    backend: &Backend,
    account: AccountId,
    job: JobId,
) -> Result<Vec<Attempt>, RecordError> {
    let query = in_job(job, SortRange::Prefix(layout::attempts_prefix(account)), 1000);
    let rows = record::all_rows(backend.table.as_ref(), query).await?;
    rows.iter().map(record::value).collect()
}

/// The changes of a job after version `after_version` (0: from the beginning), at most `limit`, in order, without gaps.
///
/// # Errors
/// When the records are out of reach.
pub async fn history(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    after_version: u64,
    limit: usize,
) -> Result<Vec<JobRecord>, RecordError> {
    let from = layout::history(job, account, after_version.saturating_add(1)).sort;
    // Digits end before `:`.
    let to = format!("{}:", layout::history_prefix(account));
    let page = backend.table.query(in_job(job, SortRange::Between(from, to), limit)).await?;
    page.rows.iter().map(record::value).collect()
}

/// How far the job's last attempt is, as last reported.
///
/// # Errors
/// When the records are out of reach.
pub async fn progress(
    backend: &Backend,
    account: AccountId,
    job: JobId,
) -> Result<Option<Progress>, RecordError> {
    let found = record::get(backend.table.as_ref(), &layout::progress(job, account)).await?;
    Ok(found.map(|found| found.value))
}

/// Cancels the job: at once while it waits, else it is `canceling` until its attempt has stopped. One that is canceled
/// or being canceled already stays as it is.
///
/// # Errors
/// `Illegal` when its outputs were granted or it is over.
pub async fn cancel(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    now: Timestamp,
) -> Result<Job, ChangeError> {
    act(backend, account, job, now, || JobEvent::Cancel).await
}

/// Keeps a queued job out of the queue; one that is held stays as it is.
///
/// # Errors
/// `Illegal` when it does not wait any more.
pub async fn hold(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    now: Timestamp,
) -> Result<Job, ChangeError> {
    act(backend, account, job, now, || JobEvent::Hold(HoldReason::Manual)).await
}

/// Lets a held job into the queue; one that is queued stays as it is.
///
/// # Errors
/// `Illegal` when it does not wait any more.
pub async fn release(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    now: Timestamp,
) -> Result<Job, ChangeError> {
    act(backend, account, job, now, || JobEvent::Release).await
}

/// Changes priority and labels; with `if_match`, only of that version of the job.
///
/// # Errors
/// `Invalid`, `Change`.
pub async fn edit(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    edit: JobEdit,
    if_match: Option<u64>,
    now: Timestamp,
) -> Result<Job, EditError> {
    let mut problems = Vec::new();
    if let Some(priority) = edit.priority {
        check_priority(priority, "/priority", &mut problems);
    }
    if let Some(labels) = &edit.labels {
        check_labels(labels, "/labels", &mut problems);
    }
    if !problems.is_empty() {
        return Err(EditError::Invalid(problems));
    }
    let owned = find(backend, account, job).await.map_err(ChangeError::from)?;
    owned.ok_or(ChangeError::NotFound(job))?;
    let change = update::edit(backend, job, now, |job| edited(job, &edit, if_match)).await?;
    Ok(change.after)
}

pub(crate) fn check_priority(priority: u16, pointer: &str, problems: &mut Vec<Problem>) {
    if priority > MAX_PRIORITY {
        let message = format!("{priority} is no priority; 0 to {MAX_PRIORITY} are, higher first");
        problems.push(Problem::new(pointer, "out_of_range", message));
    }
}

pub(crate) fn check_labels(labels: &BTreeMap<String, String>, pointer: &str, problems: &mut Vec<Problem>) {
    if labels.len() > MAX_LABELS {
        let message = format!("{} labels; at most {MAX_LABELS} are allowed", labels.len());
        problems.push(Problem::new(pointer, "too_many", message));
    }
    for (name, value) in labels {
        let plain = |text: &str| !text.chars().any(char::is_control);
        if !(1..=63).contains(&name.len()) || value.len() > 255 || !plain(name) || !plain(value) {
            let message =
                "a label has a name of 1 to 63 bytes and a value of at most 255, without control characters";
            problems.push(Problem::new(problem::child(pointer, name), "invalid_value", message));
        }
    }
}

fn edited(job: &Job, edit: &JobEdit, if_match: Option<u64>) -> Result<Job, ChangeError> {
    if if_match.is_some_and(|version| version != job.version) {
        return Err(ChangeError::Outdated { job: job.id, version: job.version });
    }
    let state = job.state.name();
    let waits = matches!(state, StateName::Held | StateName::Queued);
    if state.is_terminal() || (edit.priority.is_some() && !waits) {
        return Err(ChangeError::Illegal { job: job.id, state });
    }
    let mut job = job.clone();
    job.spec.priority = edit.priority.unwrap_or(job.spec.priority);
    if let Some(labels) = &edit.labels {
        job.spec.labels.clone_from(labels);
    }
    Ok(job)
}

/// An action of a person: what is already so is no error.
async fn act(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    now: Timestamp,
    event: impl Fn() -> JobEvent,
) -> Result<Job, ChangeError> {
    find(backend, account, job).await?.ok_or(ChangeError::NotFound(job))?;
    match update::change(backend, job, now, |_| Step::from(event())).await {
        Ok(change) => Ok(change.after),
        Err(ChangeError::Stale { .. }) => {
            find(backend, account, job).await?.ok_or(ChangeError::NotFound(job))
        }
        Err(error) => Err(error),
    }
}

fn in_job(job: JobId, range: SortRange, limit: usize) -> Query {
    Query { range, ..record::page_of(Source::Rows, layout::job_partition(job), limit, None) }
}

#[cfg(test)]
mod tests;
