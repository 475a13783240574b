//! Jobs: read, listed, steered. How they are submitted is in `jobs/submit`, how they are followed in `watch` and `logs`.

pub(crate) mod submit;

use std::str::FromStr;

use axum::extract::{Path, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use telecine_core::backend::Backend;
use telecine_core::jobs::{self, JobEdit, JobFilter};
use telecine_core::update::ChangeError;
use telecine_core::{explain, recorder};
use telecine_domain::id::{AccountId, FactoryId, JobId};
use telecine_domain::job::{self as domain, StateName};
use telecine_domain::time::Timestamp;

use super::{named, paged};
use crate::auth::{Reader, Writer};
use crate::body::{self, Json, NoBody};
use crate::etag::{self, IfMatch};
use crate::idempotent::{Answer, Keyed, once};
use crate::page::{Listed, PageRequest};
use crate::problem::Problem;
use crate::query::Params;
use crate::state::ApiState;
use crate::view::attempt::{Attempt, Progress};
use crate::view::explanation::Explanation;
use crate::view::job::{Document, Job, UpdateJob};

/// List the jobs of the account, newest first.
#[utoipa::path(get, path = "/v1/jobs", operation_id = "list_jobs", tag = "jobs",
    params(("state" = Option<String>, Query, description = "Only jobs in this state"),
           ("factory_id" = Option<String>, Query, description = "Only jobs of this factory"),
           ("label" = Option<String>, Query, description = "Only jobs with this label, `key=value`"),
           ("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<Job>)))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Reader,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let page = PageRequest::from_params(&uri, &params)?;
    let filter = JobFilter {
        state: params.parsed::<StateParameter>("state")?.map(|state| state.0),
        factory: params.parsed::<FactoryId>("factory_id")?,
        label: params.text("label").map(label).transpose()?,
    };
    let found = jobs::list(&state.backend, caller.account(), &filter, page.limit, page.after.clone()).await?;
    let found_jobs = found.items.into_iter().map(Job::from).collect();
    body::answer(StatusCode::OK, &page.listed(found_jobs, found.next))
}

/// Show one job. Reading a job that has not ended marks it as watched: its progress is then recorded within a second.
#[utoipa::path(get, path = "/v1/jobs/{id}", operation_id = "get_job", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, body = Job)))]
pub(crate) async fn get(
    State(state): State<ApiState>,
    caller: Reader,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let (id, found) = find(&state, caller.account(), &id).await?;
    if found.state.run().is_some() {
        recorder::mark_watched(&state.backend, caller.account(), id, state.now()).await?;
    }
    let attempt = found.attempts.0;
    let progress = jobs::progress(&state.backend, caller.account(), id).await?;
    let progress = progress.map(Progress::from).filter(|progress| progress.attempt == attempt);
    let job = Job { progress, ..Job::from(found) };
    Ok(etag::tagged(body::answer(StatusCode::OK, &job)?, job.version))
}

/// Change priority or labels.
#[utoipa::path(patch, path = "/v1/jobs/{id}", operation_id = "update_job", tag = "jobs",
    params(("id" = String, Path, description = "The job's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag that was read")),
    request_body = UpdateJob, responses((status = 200, body = Job)))]
pub(crate) async fn update(
    State(state): State<ApiState>,
    caller: Writer,
    Path(id): Path<String>,
    if_match: IfMatch,
    Json { value, .. }: Json<UpdateJob>,
) -> Result<Response, Problem> {
    let (id, found) = find(&state, caller.account(), &id).await?;
    let version = if_match.check(found.version)?;
    let edit = JobEdit { priority: value.priority, labels: value.labels };
    let changed = jobs::edit(&state.backend, caller.account(), id, edit, version, state.now()).await?;
    let job = Job::from(changed);
    Ok(etag::tagged(body::answer(StatusCode::OK, &job)?, job.version))
}

/// Stop a job. The engine gets SIGTERM within a second, and SIGKILL after the job's grace period.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", operation_id = "cancel_job", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")), responses((status = 200, body = Job)))]
pub(crate) async fn cancel(call: Call) -> Result<Response, Problem> {
    act(call, jobs::cancel).await
}

/// Keep a queued job out of the queue.
#[utoipa::path(post, path = "/v1/jobs/{id}/hold", operation_id = "hold_job", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")), responses((status = 200, body = Job)))]
pub(crate) async fn hold(call: Call) -> Result<Response, Problem> {
    act(call, jobs::hold).await
}

/// Let a held job into the queue.
#[utoipa::path(post, path = "/v1/jobs/{id}/release", operation_id = "release_job", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")), responses((status = 200, body = Job)))]
pub(crate) async fn release(call: Call) -> Result<Response, Problem> {
    act(call, jobs::release).await
}

/// List the attempts of a job, first to last.
#[utoipa::path(get, path = "/v1/jobs/{id}/attempts", operation_id = "list_attempts", tag = "jobs",
    params(("id" = String, Path, description = "The job's id"),
           ("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<Attempt>)))]
pub(crate) async fn attempts(
    State(state): State<ApiState>,
    caller: Reader,
    Path(id): Path<String>,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let page = PageRequest::from_params(&uri, &params)?;
    let (id, _) = find(&state, caller.account(), &id).await?;
    let found = jobs::attempts(&state.backend, caller.account(), id).await?;
    let found = found.into_iter().map(Attempt::from).collect();
    body::answer(StatusCode::OK, &paged(&page, found, |attempt: &Attempt| attempt.attempt.to_string()))
}

/// Say why a job waits or failed: what blocks it, the nearest instances and pools and why each does not take it, its
/// position, when it is expected to start, and what would help.
#[utoipa::path(get, path = "/v1/jobs/{id}/explain", operation_id = "explain_job", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, body = Explanation)))]
pub(crate) async fn explain(
    State(state): State<ApiState>,
    caller: Reader,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let (id, _) = find(&state, caller.account(), &id).await?;
    let explained = explain::explain(&state.backend, caller.account(), id, state.now()).await?;
    let explained = explained.ok_or_else(|| Problem::not_found("job", &id.to_string()))?;
    body::answer(StatusCode::OK, &Explanation::from(explained))
}

/// Show the document that the engine works on, as it was inflated at submission.
#[utoipa::path(get, path = "/v1/jobs/{id}/document", operation_id = "get_job_document", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, body = Document)))]
pub(crate) async fn document(
    State(state): State<ApiState>,
    caller: Reader,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let (_, found) = find(&state, caller.account(), &id).await?;
    body::answer(StatusCode::OK, &Document::from(found))
}

async fn find(state: &ApiState, account: AccountId, id: &str) -> Result<(JobId, domain::Job), Problem> {
    let job: JobId = named("job", id)?;
    let found = jobs::find(&state.backend, account, job).await?;
    Ok((job, found.ok_or_else(|| Problem::not_found("job", id))?))
}

/// What an action on one job is called with.
type Call = (State<ApiState>, Writer, Path<String>, Keyed, NoBody);

async fn act(
    (State(state), caller, Path(id), keyed, NoBody { bytes }): Call,
    action: impl AsyncFnOnce(&Backend, AccountId, JobId, Timestamp) -> Result<domain::Job, ChangeError>,
) -> Result<Response, Problem> {
    let job: JobId = named("job", &id)?;
    let account = caller.account();
    once(&state, account, &keyed, &bytes, async |_| {
        let job = Job::from(action(&state.backend, account, job, state.now()).await?);
        Answer::new(StatusCode::OK, Some(job.version), &job)
    })
    .await
}

/// A state in a query.
struct StateParameter(StateName);

impl FromStr for StateParameter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || StateName::ALL.map(StateName::as_str).join(", ");
        let found = StateName::ALL.into_iter().find(|state| state.as_str() == text);
        found.map(Self).ok_or_else(|| format!("must be one of {}", known()))
    }
}

fn label(text: &str) -> Result<(String, String), Problem> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Problem::parameter("label", "invalid_value", "must be `key=value`")),
    }
}
