//! The events of one job, as they happen (server-sent events).
//!
//! `job.state` carries one change of the job; its id is the job's version, so `Last-Event-ID` resumes without a gap.
//! `job.progress` has no id: what was missed is older than what comes. The stream ends after the terminal state.
//! It wakes when something was written through this process and looks once a second besides, for what other processes
//! write. What concerns the job is told at once; while others' writes wake it, it looks at most ten times a second.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use http::HeaderMap;
use serde::Serialize;
use telecine_core::{jobs, recorder};
use telecine_domain::attempt::Progress;
use telecine_domain::id::{AccountId, JobId};
use tokio::sync::watch;

use super::named;
use crate::auth::Reader;
use crate::problem::Problem;
use crate::state::ApiState;
use crate::view::attempt;
use crate::view::job::StateEvent;

/// Time between two looks at the records after one that found something.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
/// What the time between two looks grows to, twofold with each that found nothing, while others' writes wake it.
const LONGEST_REST: Duration = Duration::from_millis(100);
/// Longest time between two looks at the records.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Time between two comments on a stream where nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Most changes read at once.
const MAX_CHANGES: usize = 100;

/// Follow a job: its changes and its progress as server-sent events, until it ends.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", operation_id = "watch_job", tag = "jobs",
    params(("id" = String, Path, description = "The job's id"),
           ("Last-Event-ID" = Option<u64>, Header, description = "The last version seen; only changes after it are sent")),
    responses((status = 200, body = StateEvent, content_type = "text/event-stream",
        description = "`job.state` (a StateEvent, id = version) and `job.progress` (a Progress)")))]
pub(crate) async fn events(
    State(state): State<ApiState>,
    caller: Reader,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let job: JobId = named("job", &id)?;
    let after = last_event(&headers)?;
    let found = jobs::find(&state.backend, caller.account(), job).await?;
    let found = found.ok_or_else(|| Problem::not_found("job", &id))?;
    let follower = Follower {
        live: !found.state.name().is_terminal(),
        ..Follower::new(state, caller.account(), job, after)
    };
    let stream =
        Sse::new(follower.stream()).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("still here"));
    let mut response = stream.into_response();
    // Proxies that collect answers would hold the events back.
    response.headers_mut().insert("x-accel-buffering", http::HeaderValue::from_static("no"));
    Ok(response)
}

fn last_event(headers: &HeaderMap) -> Result<u64, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(0) };
    let text = value.to_str().unwrap_or("?");
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        Problem::header("Last-Event-ID", "must be the id of an event of this stream: a job version")
    })
}

/// Reads a job again and again, and hands out what is new.
struct Follower {
    state: ApiState,
    account: AccountId,
    job: JobId,
    seen_version: u64,
    seen_progress: Option<(u64, u64)>,
    revision: watch::Receiver<u64>,
    ready: VecDeque<Event>,
    /// Whether it had not ended when the stream began: only then is it worth a mark.
    live: bool,
    ended: bool,
    /// Time until the next look, however soon something is written.
    rest: Duration,
}

impl Follower {
    fn new(state: ApiState, account: AccountId, job: JobId, seen_version: u64) -> Self {
        let revision = state.backend.table.revision();
        let ready = VecDeque::new();
        Self {
            state,
            account,
            job,
            seen_version,
            seen_progress: None,
            revision,
            ready,
            live: true,
            ended: false,
            rest: SHORTEST_PAUSE,
        }
    }

    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        futures::stream::unfold(self, |mut follower| async move {
            follower.next().await.map(|event| (Ok(event), follower))
        })
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            self.revision.borrow_and_update();
            if let Err(problem) = self.look().await {
                // The caller resumes after the last event it has.
                tracing::warn!(detail = problem.detail, job = %self.job, "an event stream ends early");
                return None;
            }
            if !self.ready.is_empty() {
                self.rest = SHORTEST_PAUSE;
            } else if !self.ended {
                if !self.pause().await {
                    return None;
                }
                self.rest = (self.rest * 2).min(LONGEST_REST);
            }
        }
    }

    /// Waits until there may be something new; `false` when the process is about to end.
    async fn pause(&mut self) -> bool {
        let changed = async {
            tokio::time::sleep(self.rest).await;
            // A table that is gone wakes nobody: the timer is left.
            if self.revision.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.state.shutdown.cancelled() => false,
            _ = tokio::time::timeout(LONGEST_PAUSE, changed) => true,
        }
    }

    async fn look(&mut self) -> Result<(), Problem> {
        let (backend, account, job) = (&self.state.backend, self.account, self.job);
        if self.live {
            recorder::mark_watched(backend, account, job, self.state.now()).await?;
        }
        // Progress is read first: what it belongs to is then surely in the history that is read after it.
        let progress = jobs::progress(backend, account, job).await?;
        let changes = jobs::history(backend, account, job, self.seen_version, MAX_CHANGES).await?;
        let (before, last): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|change| !change.state.is_terminal());
        for change in before {
            self.push_change(change)?;
        }
        if let Some(progress) = progress {
            self.push_progress(progress)?;
        }
        for change in last {
            self.push_change(change)?;
            self.ended = true;
        }
        if !self.ended && self.ready.is_empty() {
            // Resumed after its end: there is nothing to come.
            let found = jobs::find(&self.state.backend, account, job).await?;
            self.ended = found
                .is_none_or(|found| found.state.name().is_terminal() && found.version <= self.seen_version);
        }
        Ok(())
    }

    fn push_change(&mut self, change: jobs::JobRecord) -> Result<(), Problem> {
        self.seen_version = change.version;
        let id = change.version.to_string();
        let event = event("job.state", &StateEvent::of(self.job, change))?;
        self.ready.push_back(event.id(id));
        Ok(())
    }

    fn push_progress(&mut self, progress: Progress) -> Result<(), Problem> {
        let place = (progress.attempt.epoch.0, progress.sequence);
        if self.seen_progress.is_none_or(|seen| place > seen) {
            self.seen_progress = Some(place);
            self.ready.push_back(event("job.progress", &attempt::Progress::from(progress))?);
        }
        Ok(())
    }
}

fn event(name: &str, data: &impl Serialize) -> Result<Event, Problem> {
    Event::default().event(name).json_data(data).map_err(|error| Problem::internal(&error))
}
