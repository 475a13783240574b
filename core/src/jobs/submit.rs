//! Submission: everything is checked at once, then the job is recorded, then its region's managers are woken.
//!
//! With an idempotency key the claim of the key and the job are one transaction, and a bulk's claim comes first and its
//! job ids are derived from it: dying anywhere and coming again makes the same jobs.

use futures::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use telecine_domain::id::{AccountId, JobId};
use telecine_domain::job::Job;
use telecine_domain::time::Timestamp;
use telecine_domain::trace::TraceId;

use super::catalog::{Catalog, LookupError};
use super::draft::{self, Draft};
use super::resolve::{Resolved, resolve};
use crate::backend::Backend;
use crate::idempotency::{self, Claim, IdempotencyError, IdempotencyKey};
use crate::job_row::{self, Recorded};
use crate::layout;
use crate::ports::table::{MAX_WRITES, Write};
use crate::problem::{self, Problem};
use crate::record::{self, RecordError};
use crate::update::{self, ChangeError, JobRecord};

/// Most jobs of one call.
pub const MAX_JOBS: usize = 1000;
/// Objects that are looked at at once.
const AT_ONCE: usize = 16;
/// Jobs of one transaction: two writes each.
const CHUNK: usize = MAX_WRITES / 2;
/// Bytes of one transaction's jobs, well below the table's limit.
const CHUNK_BYTES: usize = 2 * 1024 * 1024;

/// A job that was accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// The job, as it is now.
    pub job: Job,
    /// Whether an earlier call with the same idempotency key made it.
    pub replayed: bool,
}

/// Why one of several jobs was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// It is wrong.
    Invalid(Vec<Problem>),
    /// The records or a store did not answer; try this one again.
    Unavailable(String),
}

/// What came of several jobs, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct AcceptedMany {
    /// One result for each.
    pub results: Vec<Result<Job, Refusal>>,
    /// Whether an earlier call with the same idempotency key has given this answer.
    pub replayed: bool,
}

/// No job was accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The request is wrong.
    #[error("the job was refused: {}", problem::join(.0))]
    Invalid(Vec<Problem>),
    /// Too many at once.
    #[error("{0} jobs in one call; at most {MAX_JOBS} are allowed")]
    TooMany(usize),
    /// The idempotency key was used with another request.
    #[error("this idempotency key was used with another request; use a new key for a new request")]
    KeyReused,
    /// The job that the key made is not kept any more.
    #[error("the job {0}, which an earlier call with this idempotency key made, is not kept any more")]
    Gone(JobId),
    /// The job to be retried is not over, or there is none.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// What the request names could not be looked up; try again.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

impl From<RecordError> for SubmitError {
    fn from(error: RecordError) -> Self {
        Self::Lookup(error.into())
    }
}

impl From<IdempotencyError> for SubmitError {
    fn from(error: IdempotencyError) -> Self {
        match error {
            IdempotencyError::KeyReused => Self::KeyReused,
            IdempotencyError::Record(error) => error.into(),
        }
    }
}

/// Submits one job: `{service, composition}` or `{factory, input}`, and optionally `engine_version`, `region`,
/// `resources`, `priority`, `labels`, `retry`, `timeouts`, `hold`, `depends_on`. Stores are named by id or name.
///
/// # Errors
/// `Invalid` with everything that is wrong, `KeyReused`, `Gone`, `Lookup`.
pub async fn submit(
    backend: &Backend,
    account: AccountId,
    body: &Value,
    key: Option<&IdempotencyKey>,
    now: Timestamp,
) -> Result<Accepted, SubmitError> {
    submit_in(None, backend, account, body, key, now).await
}

/// Like [`submit`], for a call that came in a trace, which the job goes on with.
///
/// # Errors
/// As `submit`.
pub async fn submit_in(
    trace: Option<TraceId>,
    backend: &Backend,
    account: AccountId,
    body: &Value,
    key: Option<&IdempotencyKey>,
    now: Timestamp,
) -> Result<Accepted, SubmitError> {
    let print = idempotency::fingerprint("submit", body);
    if let Some(replayed) = replay(backend, account, key, &print).await? {
        return Ok(replayed);
    }
    let catalog = Catalog::new(backend, account, now).in_trace(trace);
    let mut problems = Vec::new();
    let draft = draft::read(&catalog, body, &mut problems).await?;
    accept(&catalog, draft, problems, key, &print).await
}

/// Makes a new job of the same work as one that is over, with the inputs as they are now.
///
/// # Errors
/// `Change` when there is no such job or it is not over; otherwise as `submit`.
pub async fn retry(
    backend: &Backend,
    account: AccountId,
    job: JobId,
    key: Option<&IdempotencyKey>,
    now: Timestamp,
) -> Result<Accepted, SubmitError> {
    let print = idempotency::fingerprint("retry", &json!(job));
    if let Some(replayed) = replay(backend, account, key, &print).await? {
        return Ok(replayed);
    }
    let original = job_row::find(backend, account, job).await?.ok_or(ChangeError::NotFound(job))?;
    let state = original.job.state.name();
    if !state.is_terminal() {
        return Err(ChangeError::Illegal { job, state }.into());
    }
    let catalog = Catalog::new(backend, account, now);
    let draft = Draft::retry(&original.job, original.factory);
    accept(&catalog, draft, Vec::new(), key, &print).await
}

/// Submits up to 1,000 jobs; each is accepted or refused on its own.
///
/// # Errors
/// `TooMany`, `KeyReused`, `Lookup`. Jobs that were accepted before an error are kept: come again with the same
/// idempotency key.
pub async fn submit_many(
    backend: &Backend,
    account: AccountId,
    bodies: &[Value],
    key: Option<&IdempotencyKey>,
    now: Timestamp,
) -> Result<AcceptedMany, SubmitError> {
    submit_many_in(None, backend, account, bodies, key, now).await
}

/// Like [`submit_many`], for a call that came in a trace, which the jobs go on with.
///
/// # Errors
/// As `submit_many`.
pub async fn submit_many_in(
    trace: Option<TraceId>,
    backend: &Backend,
    account: AccountId,
    bodies: &[Value],
    key: Option<&IdempotencyKey>,
    now: Timestamp,
) -> Result<AcceptedMany, SubmitError> {
    if bodies.len() > MAX_JOBS {
        return Err(SubmitError::TooMany(bodies.len()));
    }
    let claim = match key {
        Some(key) => {
            let print = idempotency::fingerprint("submit_many", &json!(bodies));
            Some(idempotency::begin(backend, account, key, &print, now).await?)
        }
        None => None,
    };
    if let Some(answer) = claim.as_ref().and_then(|claim| claim.answer.as_ref()) {
        return Ok(AcceptedMany { results: answered(backend, account, answer).await?, replayed: true });
    }
    let ids = ids_of(account, bodies.len(), key.zip(claim.as_ref()), now);
    let catalog = Catalog::new(backend, account, now).in_trace(trace);
    let came_back = claim.is_some_and(|claim| claim.first_seen != now);
    let mut prepared = Vec::with_capacity(bodies.len());
    for (id, body) in ids.into_iter().zip(bodies) {
        prepared.push(prepare(&catalog, id, body, came_back));
    }
    let prepared: Vec<Prepared> = stream::iter(prepared).buffered(AT_ONCE).collect().await;
    let results = record_all(backend, prepared).await;
    let complete = !results.iter().any(|result| matches!(result, Err(Refusal::Unavailable(_))));
    if let (Some(key), true) = (key, complete) {
        idempotency::complete(backend, account, key, &answer_of(&results)).await?;
    }
    Ok(AcceptedMany { results, replayed: false })
}

/// The job of an earlier call with the same key and request.
async fn replay(
    backend: &Backend,
    account: AccountId,
    key: Option<&IdempotencyKey>,
    print: &str,
) -> Result<Option<Accepted>, SubmitError> {
    let Some(key) = key else { return Ok(None) };
    let Some(claim) = idempotency::find(backend, account, key, print).await? else { return Ok(None) };
    let id = match claim.answer.map(serde_json::from_value::<JobId>) {
        Some(Ok(id)) => id,
        Some(Err(_)) | None => JobId::new(claim.first_seen, idempotency::derived(account, key, 0)),
    };
    let job = super::find(backend, account, id).await?.ok_or(SubmitError::Gone(id))?;
    Ok(Some(Accepted { job, replayed: true }))
}

async fn accept(
    catalog: &Catalog<'_>,
    draft: Draft,
    problems: Vec<Problem>,
    key: Option<&IdempotencyKey>,
    print: &str,
) -> Result<Accepted, SubmitError> {
    let (backend, account, now) = (catalog.backend, catalog.account, catalog.now);
    let resolved = resolve(catalog, draft, problems).await?.map_err(SubmitError::Invalid)?;
    let id = match key {
        Some(key) => JobId::new(now, idempotency::derived(account, key, 0)),
        None => JobId::new(now, rand::random()),
    };
    let recorded = recorded(account, id, resolved, now).in_trace(catalog.trace);
    let token = new_token();
    let mut writes = update::accepted(backend, &recorded, &token).await?.to_vec();
    if let Some(key) = key {
        writes.push(idempotency::claim(account, key, print, Some(json!(id)), now)?);
    }
    if settle(backend, writes, &recorded.job, &token).await? {
        tracing::info!(job = %id, %account, trace = %recorded.job.trace_id(), "a job was accepted");
        update::hint(backend, &[&recorded.job]).await;
        return Ok(Accepted { job: recorded.job, replayed: false });
    }
    // Somebody with the same key was faster.
    let contended = || RecordError::contended(&layout::job(id, account));
    Ok(replay(backend, account, key, print).await?.ok_or_else(contended)?)
}

/// A job of a bulk on its way.
enum Prepared {
    New(Box<Recorded>, usize),
    /// An earlier call has recorded it.
    There(Box<Job>),
    Refused(Refusal),
}

async fn prepare(catalog: &Catalog<'_>, id: JobId, body: &Value, came_back: bool) -> Prepared {
    match try_prepare(catalog, id, body, came_back).await {
        Ok(prepared) => prepared,
        Err(error) => Prepared::Refused(Refusal::Unavailable(error.to_string())),
    }
}

async fn try_prepare(
    catalog: &Catalog<'_>,
    id: JobId,
    body: &Value,
    came_back: bool,
) -> Result<Prepared, LookupError> {
    if came_back && let Some(job) = super::find(catalog.backend, catalog.account, id).await? {
        return Ok(Prepared::There(Box::new(job)));
    }
    let mut problems = Vec::new();
    let draft = draft::read(catalog, body, &mut problems).await?;
    Ok(match resolve(catalog, draft, problems).await? {
        Ok(resolved) => {
            let recorded = recorded(catalog.account, id, resolved, catalog.now).in_trace(catalog.trace);
            let bytes = serde_json::to_vec(&recorded.job.spec).map_or(CHUNK_BYTES, |bytes| bytes.len());
            Prepared::New(Box::new(recorded), bytes)
        }
        Err(problems) => Prepared::Refused(Refusal::Invalid(problems)),
    })
}

async fn record_all(backend: &Backend, prepared: Vec<Prepared>) -> Vec<Result<Job, Refusal>> {
    let mut results: Vec<Option<Result<Job, Refusal>>> = Vec::with_capacity(prepared.len());
    let (mut chunk, mut bytes) = (Vec::<(usize, Recorded)>::new(), 0);
    for (index, one) in prepared.into_iter().enumerate() {
        results.push(None);
        match one {
            Prepared::There(job) => results[index] = Some(Ok(*job)),
            Prepared::Refused(refusal) => results[index] = Some(Err(refusal)),
            Prepared::New(recorded, size) => {
                if chunk.len() == CHUNK || (bytes + size > CHUNK_BYTES && !chunk.is_empty()) {
                    record_chunk(backend, &mut chunk, &mut results).await;
                    bytes = 0;
                }
                chunk.push((index, *recorded));
                bytes += size;
            }
        }
    }
    record_chunk(backend, &mut chunk, &mut results).await;
    let missing = || Err(Refusal::Unavailable("it was not reached; try it again".to_owned()));
    results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
}

/// Records the jobs of a chunk in one transaction; when one of them is there already, one by one.
async fn record_chunk(
    backend: &Backend,
    chunk: &mut Vec<(usize, Recorded)>,
    results: &mut [Option<Result<Job, Refusal>>],
) {
    let chunk = std::mem::take(chunk);
    if chunk.is_empty() {
        return;
    }
    let jobs: Vec<&Recorded> = chunk.iter().map(|(_, recorded)| recorded).collect();
    match record_together(backend, &jobs).await {
        Ok(true) => {
            for (index, recorded) in chunk {
                results[index] = Some(Ok(recorded.job));
            }
        }
        Ok(false) | Err(_) => {
            for (index, recorded) in chunk {
                results[index] = Some(record_alone(backend, recorded).await);
            }
        }
    }
}

async fn record_alone(backend: &Backend, recorded: Recorded) -> Result<Job, Refusal> {
    let unavailable = |error: RecordError| Refusal::Unavailable(error.to_string());
    if record_together(backend, &[&recorded]).await.map_err(unavailable)? {
        return Ok(recorded.job);
    }
    // The id is derived from the key: whoever recorded it did so for the same request.
    let Job { id, account, .. } = recorded.job;
    let contended = || unavailable(RecordError::contended(&layout::job(id, account)));
    super::find(backend, account, id).await.map_err(unavailable)?.ok_or_else(contended)
}

async fn record_together(backend: &Backend, jobs: &[&Recorded]) -> Result<bool, RecordError> {
    let token = new_token();
    let mut writes = Vec::with_capacity(jobs.len() * 2);
    for recorded in jobs {
        writes.extend(update::accepted(backend, recorded, &token).await?);
    }
    let written = settle(backend, writes, &jobs[0].job, &token).await?;
    if written {
        let jobs: Vec<&Job> = jobs.iter().map(|recorded| &recorded.job).collect();
        update::hint(backend, &jobs).await;
    }
    Ok(written)
}

/// Writes; a job's first history row tells whether an unknown result was ours.
pub(crate) async fn settle(
    backend: &Backend,
    writes: Vec<Write>,
    job: &Job,
    token: &str,
) -> Result<bool, RecordError> {
    let table = backend.table.as_ref();
    let ours = || async {
        let first = record::get::<JobRecord>(table, &layout::history(job.id, job.account, 1)).await?;
        Ok(first.is_some_and(|first| first.value.token == token))
    };
    record::settle(table, writes, ours).await
}

pub(crate) fn recorded(account: AccountId, id: JobId, resolved: Resolved, now: Timestamp) -> Recorded {
    let job = Job::accepted(id, account, resolved.spec, resolved.hold, now);
    Recorded { job, factory: resolved.factory }
}

pub(crate) fn new_token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn ids_of(
    account: AccountId,
    count: usize,
    claimed: Option<(&IdempotencyKey, &Claim)>,
    now: Timestamp,
) -> Vec<JobId> {
    let id = |index| match claimed {
        Some((key, claim)) => JobId::new(claim.first_seen, idempotency::derived(account, key, index)),
        None => JobId::new(now, rand::random()),
    };
    (0..count).map(id).collect()
}

/// A result as it is kept for replays.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kept {
    Job(JobId),
    Refused(Refusal),
}

fn answer_of(results: &[Result<Job, Refusal>]) -> Value {
    let kept = results.iter().map(|result| match result {
        Ok(job) => Kept::Job(job.id),
        Err(refusal) => Kept::Refused(refusal.clone()),
    });
    json!(kept.collect::<Vec<_>>())
}

async fn answered(
    backend: &Backend,
    account: AccountId,
    answer: &Value,
) -> Result<Vec<Result<Job, Refusal>>, SubmitError> {
    let damaged = |error| RecordError::damaged(&layout::idempotency(account, "…"), error);
    let kept: Vec<Kept> = Vec::deserialize(answer).map_err(damaged)?;
    let mut results = Vec::with_capacity(kept.len());
    for one in kept {
        results.push(match one {
            Kept::Job(id) => Ok(super::find(backend, account, id).await?.ok_or(SubmitError::Gone(id))?),
            Kept::Refused(refusal) => Err(refusal),
        });
    }
    Ok(results)
}
