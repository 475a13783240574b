//! What the engine of one attempt wrote: as plain text, byte by byte, or as a JSON object per line.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::Stream;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use serde_json::json;
use telecine_core::{jobs, recorder};
use telecine_domain::attempt::AttemptState;
use telecine_domain::id::{AccountId, AttemptNumber, JobId};
use tokio::sync::watch;

use super::named;
use crate::auth::Reader;
use crate::edge::accepts;
use crate::problem::Problem;
use crate::query::Params;
use crate::state::ApiState;

const TEXT: &str = "text/plain; charset=utf-8";
const LINES: &str = "application/x-ndjson";
/// Most bytes read from the records at once.
const MAX_PAGE_BYTES: usize = 1024 * 1024;
/// A line longer than this is cut into several.
const MAX_LINE_BYTES: usize = 64 * 1024;
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Read the log of an attempt.
#[utoipa::path(get, path = "/v1/jobs/{id}/logs", operation_id = "read_job_log", tag = "jobs",
    params(("id" = String, Path, description = "The job's id"),
           ("attempt" = Option<u32>, Query, description = "Which attempt; the last one unless given"),
           ("follow" = Option<bool>, Query, description = "Go on until the attempt ends")),
    responses((status = 200, content(("text/plain"), ("application/x-ndjson")),
        description = "The bytes the engine wrote, or `{attempt, text}` per line")))]
pub(crate) async fn logs(
    State(state): State<ApiState>,
    caller: Reader,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let job: JobId = named("job", &id)?;
    let asked = params.number("attempt", 1, u64::from(u32::MAX))?;
    let follow = params.flag("follow")?;
    let found = jobs::find(&state.backend, caller.account(), job).await?;
    let found = found.ok_or_else(|| Problem::not_found("job", &id))?;
    let last = found.attempts.0;
    let attempt = match asked.and_then(|number| u32::try_from(number).ok()) {
        Some(number) if number > last => {
            let detail = format!("{number} (it has had {last})");
            return Err(Problem::not_found(&format!("attempt of {job} with the number"), &detail));
        }
        Some(number) => Some(number),
        None => (last > 0).then_some(last),
    };
    let by_line = wants_lines(&headers);
    let reader = Reading::new(state, caller.account(), job, attempt, follow, by_line);
    let kind = if by_line { LINES } else { TEXT };
    Ok(([(CONTENT_TYPE, kind)], Body::from_stream(reader.stream())).into_response())
}

fn wants_lines(headers: &HeaderMap) -> bool {
    let values = || headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let named = |kind: &str| values().any(|value| value.to_ascii_lowercase().contains(kind));
    named(LINES) && values().any(|value| accepts(value, LINES)) && !named("text/plain")
}

/// Reads a log page by page.
struct Reading {
    state: ApiState,
    account: AccountId,
    job: JobId,
    /// `None`: no attempt has begun.
    attempt: Option<u32>,
    follow: bool,
    by_line: bool,
    next: u64,
    /// The begin of a line whose end has not come yet.
    rest: Vec<u8>,
    revision: watch::Receiver<u64>,
    ended: bool,
}

impl Reading {
    fn new(
        state: ApiState,
        account: AccountId,
        job: JobId,
        attempt: Option<u32>,
        follow: bool,
        by_line: bool,
    ) -> Self {
        let revision = state.backend.table.revision();
        Self {
            state,
            account,
            job,
            attempt,
            follow,
            by_line,
            next: 0,
            rest: Vec::new(),
            revision,
            ended: false,
        }
    }

    fn stream(self) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
        futures::stream::unfold(self, |mut reading| async move {
            let page = reading.next().await?;
            Some((page.map_err(|problem| std::io::Error::other(problem.detail)), reading))
        })
    }

    async fn next(&mut self) -> Option<Result<Bytes, Problem>> {
        while !self.ended {
            self.revision.borrow_and_update();
            match self.look().await {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Some(Ok(bytes)),
                Err(problem) => {
                    self.ended = true;
                    return Some(Err(problem));
                }
            }
            if !self.ended && !self.pause().await {
                return None;
            }
        }
        None
    }

    /// What is new; `ended` is set when nothing more can come.
    async fn look(&mut self) -> Result<Bytes, Problem> {
        // Asked before reading: what was written before the attempt ended is then surely read.
        let over = !self.follow || self.is_over().await?;
        let Some(attempt) = self.attempt else {
            self.ended = over;
            return Ok(Bytes::new());
        };
        let number = AttemptNumber(attempt);
        let page = recorder::read_log(
            &self.state.backend,
            self.account,
            self.job,
            number,
            self.next,
            MAX_PAGE_BYTES,
        )
        .await?;
        self.next = page.next;
        self.ended = over && !page.more;
        if !self.by_line {
            return Ok(page.bytes);
        }
        self.rest.extend_from_slice(&page.bytes);
        Ok(lines(&mut self.rest, attempt, self.ended))
    }

    async fn is_over(&mut self) -> Result<bool, Problem> {
        let (backend, account) = (&self.state.backend, self.account);
        let Some(job) = jobs::find(backend, account, self.job).await? else { return Ok(true) };
        if self.attempt.is_none() && job.attempts.0 > 0 {
            self.attempt = Some(job.attempts.0);
        }
        let Some(attempt) = self.attempt else { return Ok(job.state.name().is_terminal()) };
        let attempts = jobs::attempts(backend, account, self.job).await?;
        let record = attempts.iter().find(|record| record.id.attempt.0 == attempt);
        Ok(record.is_some_and(|record| matches!(record.state, AttemptState::Ended(_))))
    }

    async fn pause(&mut self) -> bool {
        let changed = async {
            tokio::time::sleep(SHORTEST_PAUSE).await;
            if self.revision.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.state.shutdown.cancelled() => false,
            _ = tokio::time::timeout(LONGEST_PAUSE, changed) => true,
        }
    }
}

/// Takes the whole lines off the front of `rest` (all of it at the end) as JSON objects.
fn lines(rest: &mut Vec<u8>, attempt: u32, all: bool) -> Bytes {
    let (mut written, mut start) = (Vec::new(), 0);
    loop {
        let open = &rest[start..];
        let newline = open.iter().take(MAX_LINE_BYTES + 1).position(|&byte| byte == b'\n');
        let (end, next) = match newline {
            Some(end) => (end, end + 1),
            None if open.len() > MAX_LINE_BYTES => (MAX_LINE_BYTES, MAX_LINE_BYTES),
            None if all && !open.is_empty() => (open.len(), open.len()),
            None => break,
        };
        let text = String::from_utf8_lossy(&open[..end]);
        written.extend_from_slice(json!({"attempt": attempt, "text": text}).to_string().as_bytes());
        written.push(b'\n');
        start += next;
    }
    rest.drain(..start);
    written.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_until_the_end() {
        let mut rest = b"one\ntwo\nthr".to_vec();
        assert_eq!(
            lines(&mut rest, 1, false),
            "{\"attempt\":1,\"text\":\"one\"}\n{\"attempt\":1,\"text\":\"two\"}\n"
        );
        assert_eq!(rest, b"thr");
        assert_eq!(lines(&mut rest, 1, true), "{\"attempt\":1,\"text\":\"thr\"}\n");
        let mut long = vec![b'x'; MAX_LINE_BYTES + 5];
        assert!(!lines(&mut long, 1, false).is_empty());
        assert_eq!(long.len(), 5);
    }
}
