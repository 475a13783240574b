//! How jobs are submitted: one, many, the same again, or only on trial. Core checks the document and says everything that is wrong.

use axum::extract::{Path, State};
use axum::response::Response;
use http::header::{HeaderValue, LOCATION};
use http::{HeaderMap, StatusCode};
use serde_json::Value;
use telecine_core::jobs::{self, Accepted, Refusal, SubmitError};
use telecine_domain::id::JobId;
use telecine_domain::trace::{TraceContext, TraceId};

use crate::auth::Writer;
use crate::body::{self, Json, NoBody};
use crate::errors;
use crate::etag;
use crate::idempotent::{Keyed, REPLAYED};
use crate::problem::{Code, Problem};
use crate::routes::named;
use crate::state::ApiState;
use crate::view::estimate::Estimate;
use crate::view::job::{BatchItem, BatchRefusal, Job, SubmitBatch, SubmitJob, SubmittedBatch};

/// Submit a job. Its inputs are pinned to the versions seen now.
#[utoipa::path(post, path = "/v1/jobs", operation_id = "submit_job", tag = "jobs", request_body = SubmitJob,
    responses((status = 201, body = Job)))]
pub(crate) async fn submit(
    State(state): State<ApiState>,
    caller: Writer,
    keyed: Keyed,
    headers: HeaderMap,
    Json { value, .. }: Json<Value>,
) -> Result<Response, Problem> {
    let _working = keyed.enter(&state, caller.account())?;
    let (trace, account, key) = (trace_of(&headers), caller.account(), keyed.key.as_ref());
    let accepted = jobs::submit_in(trace, &state.backend, account, &value, key, state.now()).await?;
    created(accepted)
}

/// Submit up to 1,000 jobs; each is accepted or refused on its own.
#[utoipa::path(post, path = "/v1/jobs/batch", operation_id = "submit_jobs", tag = "jobs", request_body = SubmitBatch,
    responses((status = 200, body = SubmittedBatch)))]
pub(crate) async fn batch(
    State(state): State<ApiState>,
    caller: Writer,
    keyed: Keyed,
    headers: HeaderMap,
    Json { value, .. }: Json<Batch>,
) -> Result<Response, Problem> {
    let _working = keyed.enter(&state, caller.account())?;
    let (trace, account, key) = (trace_of(&headers), caller.account(), keyed.key.as_ref());
    let many = jobs::submit_many_in(trace, &state.backend, account, &value.jobs, key, state.now()).await?;
    let data = many.results.into_iter().map(item).collect();
    Ok(marked(body::answer(StatusCode::OK, &SubmittedBatch { data })?, many.replayed))
}

/// Say what would become of a job before it is submitted: the resolved engine and region, how long it runs, what that
/// costs, and when it would start; or everything that is wrong. Nothing is written, so a repeated request is estimated
/// anew.
#[utoipa::path(post, path = "/v1/jobs/estimate", operation_id = "estimate_job", tag = "jobs",
    request_body = SubmitJob, responses((status = 200, body = Estimate)))]
pub(crate) async fn estimate(
    State(state): State<ApiState>,
    caller: Writer,
    _keyed: Keyed,
    Json { value, .. }: Json<Value>,
) -> Result<Response, Problem> {
    let estimated = jobs::estimate(&state.backend, caller.account(), &value, state.now()).await?;
    body::answer(StatusCode::OK, &Estimate::from(estimated))
}

/// Make a new job of one that ended, with the inputs as they are now.
#[utoipa::path(post, path = "/v1/jobs/{id}/retry", operation_id = "retry_job", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")), responses((status = 201, body = Job)))]
pub(crate) async fn retry(
    State(state): State<ApiState>,
    caller: Writer,
    Path(id): Path<String>,
    keyed: Keyed,
    NoBody { .. }: NoBody,
) -> Result<Response, Problem> {
    let job: JobId = named("job", &id)?;
    let _working = keyed.enter(&state, caller.account())?;
    let accepted =
        jobs::retry(&state.backend, caller.account(), job, keyed.key.as_ref(), state.now()).await?;
    created(accepted)
}

/// `SubmitBatch` before core has looked into the jobs.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Batch {
    jobs: Vec<Value>,
}

/// The trace that the caller is in; a header that is no `traceparent` is as good as none, as W3C Trace Context asks.
fn trace_of(headers: &HeaderMap) -> Option<TraceId> {
    let context = headers.get("traceparent")?.to_str().ok()?.parse::<TraceContext>().ok()?;
    Some(context.trace)
}

fn created(accepted: Accepted) -> Result<Response, Problem> {
    let job = Job::from(accepted.job);
    let mut response = etag::tagged(body::answer(StatusCode::CREATED, &job)?, job.version);
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/jobs/{}", job.id)) {
        response.headers_mut().insert(LOCATION, place);
    }
    Ok(marked(response, accepted.replayed))
}

fn marked(mut response: Response, replayed: bool) -> Response {
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

fn item(result: Result<telecine_domain::job::Job, Refusal>) -> BatchItem {
    match result {
        Ok(job) => BatchItem { job: Some(job.into()), refusal: None },
        Err(Refusal::Invalid(findings)) => {
            BatchItem { job: None, refusal: Some(refusal(&errors::invalid(findings))) }
        }
        Err(Refusal::Unavailable(detail)) => {
            BatchItem { job: None, refusal: Some(refusal(&Problem::unavailable(detail))) }
        }
    }
}

fn refusal(problem: &Problem) -> BatchRefusal {
    BatchRefusal {
        code: problem.code.as_str().to_owned(),
        detail: problem.detail.clone(),
        errors: problem.errors.clone(),
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Invalid(findings) => errors::invalid(findings),
            SubmitError::TooMany(_) => Self::invalid_at("/jobs", "too_many", error.to_string()),
            SubmitError::KeyReused => Self::new(Code::IdempotencyKeyReused, error.to_string()),
            SubmitError::Gone(_) => Self::new(Code::NotFound, error.to_string()),
            SubmitError::Change(error) => error.into(),
            SubmitError::Lookup(error) => error.into(),
        }
    }
}
