//! What every request and answer passes: a request id, a log line, protection from panics, refusal of unknown query
//! parameters and unacceptable media types, and the rendering of problems.
//!
//! Invariant: an answer of status 400 or above is `application/problem+json`, whoever made it: a handler, axum itself
//! (404, 405) or a panic.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, StatusCode};
use tracing::Instrument;

use crate::operations::{Operation, Operations};
use crate::problem::{Code, PROBLEM_JSON, Problem};
use crate::query::Params;

/// The header that names a request; a caller may choose it.
pub const REQUEST_ID: &str = "x-request-id";

/// Outermost: names the request, logs it, catches panics, renders problems.
pub(crate) async fn finish(request: Request, next: Next) -> Response {
    let id = chosen_id(request.headers()).unwrap_or_else(fresh_id);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("request", %method, %path, request_id = %id);
    let started = Instant::now();
    async {
        let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        let response = answered.unwrap_or_else(|panic| panicked(panic.as_ref()).into_response());
        let mut response = render(response, &method, &path, &id);
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        let millis = started.elapsed().as_millis();
        tracing::debug!(status = response.status().as_u16(), millis, "answered");
        response
    }
    .instrument(span)
    .await
}

/// On every route: refuses query parameters that the operation does not take, and callers that accept nothing it makes.
pub(crate) async fn conform(
    State(operations): State<Arc<Operations>>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let operation = matched.and_then(|path| operations.find(request.method(), path.as_str()));
    let refused = operation.and_then(|operation| {
        check_query(operation, request.uri().query().unwrap_or(""))
            .and_then(|()| check_accept(operation, request.headers()))
            .err()
    });
    match refused {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    }
}

fn chosen_id(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(REQUEST_ID)?.to_str().ok()?;
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    (plain && (1..=64).contains(&text.len())).then(|| text.to_owned())
}

fn fresh_id() -> String {
    format!("req_{:032x}", rand::random::<u128>())
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Problem {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    Problem::internal(&format!("panic: {}", text.as_deref().unwrap_or("without a message")))
}

fn render(mut response: Response, method: &http::Method, path: &str, id: &str) -> Response {
    let is_error = response.status().as_u16() >= 400;
    let problem = response.extensions_mut().remove::<Problem>();
    let problem = match problem {
        Some(problem) => problem,
        None if is_error => foreign(&response, method, path),
        None => return response,
    };
    let body = match serde_json::to_vec(&problem.body(path, id)) {
        Ok(body) => body,
        Err(error) => return Problem::internal(&error).into_response(),
    };
    let mut rendered = problem.into_response();
    rendered.extensions_mut().remove::<Problem>();
    rendered.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    *rendered.body_mut() = body.into();
    rendered
}

/// The problem for an error that axum made itself.
fn foreign(response: &Response, method: &http::Method, path: &str) -> Problem {
    match response.status() {
        StatusCode::NOT_FOUND => {
            let shown: String = path.chars().take(120).collect();
            Problem::new(
                Code::NotFound,
                format!("there is nothing at {shown}; /openapi.json lists every path"),
            )
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            Problem::method_not_allowed(method, response.headers().get(ALLOW).cloned())
        }
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(Code::BodyTooLarge, "the body is too large"),
        status if status.is_client_error() => Problem::new(
            Code::InvalidParameter,
            "the path or a header of the request cannot be read (not UTF-8?)",
        ),
        status => Problem::internal(&format!("an answer of status {status} without a problem")),
    }
}

fn check_query(operation: &Operation, query: &str) -> Result<(), Problem> {
    let params = Params::parse(query);
    let mut seen = Vec::new();
    for (name, _) in params.iter() {
        if !operation.parameters.contains(name) {
            let shown: String = name.chars().take(60).collect();
            let known = operation.parameters.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none".to_owned() } else { known };
            let detail = format!("unknown query parameter; this operation takes: {known}");
            return Err(Problem::parameter(&shown, "unknown_parameter", detail));
        }
        if seen.contains(&name) && !operation.repeatable.contains(name) {
            return Err(Problem::parameter(name, "duplicate_parameter", "may be given once only"));
        }
        seen.push(name);
    }
    Ok(())
}

fn check_accept(operation: &Operation, headers: &HeaderMap) -> Result<(), Problem> {
    let ranges: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    if ranges.is_empty() || operation.produces.is_empty() {
        return Ok(());
    }
    let accepted = |produced: &String| ranges.iter().any(|value| accepts(value, produced));
    if operation.produces.iter().any(accepted) {
        return Ok(());
    }
    let made = operation.produces.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    Err(Problem::new(Code::NotAcceptable, format!("this operation answers with {made}; accept one of them")))
}

/// Whether an `Accept` value takes `produced` (RFC 9110, 12.5.1; a range with `q=0` does not).
pub(crate) fn accepts(value: &str, produced: &str) -> bool {
    value.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or("").to_ascii_lowercase();
        let refused = parts.any(|part| {
            part.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|quality| quality <= 0.0))
        });
        let family = produced.split('/').next().unwrap_or("");
        !refused && (kind == "*/*" || kind == produced || kind == format!("{family}/*"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_ranges_follow_the_rfc() {
        assert!(accepts("text/html, */*;q=0.1", "application/json"));
        assert!(accepts("application/*", "application/json"));
        assert!(accepts("APPLICATION/JSON; charset=utf-8", "application/json"));
        assert!(!accepts("application/json;q=0", "application/json"));
        assert!(!accepts("text/html", "application/json"));
    }

    #[test]
    fn only_plain_request_ids_are_taken_over() {
        let chosen = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_static(text));
            chosen_id(&headers)
        };
        assert_eq!(chosen("build-7.2_x"), Some("build-7.2_x".to_owned()));
        assert_eq!(chosen("a b"), None);
        assert_eq!(chosen("{\"x\":1}"), None);
    }
}
