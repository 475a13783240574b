//! Problems: every answer that is not a success, as RFC 9457 `application/problem+json`.
//!
//! A handler returns `Problem`; `edge` renders it, since only there the request's id and path are known. Invariant: no
//! answer of status 400 or above leaves the router in another shape. `Code` is the whole list of stable codes.

use std::fmt;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of problems.
pub const PROBLEM_JSON: &str = "application/problem+json";

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:ident, $title:literal;)*) => {
        /// Stable word for programs; each belongs to one status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word itself.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The status it is sent with.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// The short text for people that is the same at each occurrence.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// A query parameter is unknown or has a value that cannot be.
    InvalidParameter = "invalid_parameter", BAD_REQUEST, "A query parameter is wrong";
    /// A header has a value that cannot be.
    InvalidHeader = "invalid_header", BAD_REQUEST, "A header is wrong";
    /// The cursor is not one of this list.
    InvalidCursor = "invalid_cursor", BAD_REQUEST, "The cursor is not one of this list";
    /// The body is not JSON.
    MalformedJson = "malformed_json", BAD_REQUEST, "The body is not JSON";
    /// The body ended or failed before it was complete.
    IncompleteBody = "incomplete_body", BAD_REQUEST, "The body did not arrive whole";
    /// No key, or one that is not (or no longer) valid.
    Unauthorized = "unauthorized", UNAUTHORIZED, "A valid API key is needed";
    /// The key's scopes do not allow it.
    Forbidden = "forbidden", FORBIDDEN, "The API key may not do this";
    /// There is nothing of that name in this account.
    NotFound = "not_found", NOT_FOUND, "There is no such thing";
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "The path does not take this method";
    /// No representation of the answer is acceptable to the caller.
    NotAcceptable = "not_acceptable", NOT_ACCEPTABLE, "The answer has no acceptable form";
    /// The thing is in a state that does not allow it.
    IllegalState = "illegal_state", CONFLICT, "The state does not allow it";
    /// There is one already.
    AlreadyExists = "already_exists", CONFLICT, "It exists already";
    /// Something else needs the thing that should go.
    InUse = "in_use", CONFLICT, "It is in use";
    /// The first request with this key is not answered yet.
    IdempotencyInFlight = "idempotency_in_flight", CONFLICT, "The first request with this key is still being worked on";
    /// Somebody else changed it at the same moment, again and again.
    Contended = "contended", CONFLICT, "Too many changes at once";
    /// It was changed since the caller read it.
    EtagMismatch = "etag_mismatch", PRECONDITION_FAILED, "It was changed since it was read";
    /// The body is longer than is taken.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "The body is too large";
    /// The body is not of a type that is taken.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "The body has the wrong media type";
    /// The body is JSON and asks for something that cannot be; `errors` says what.
    InvalidRequest = "invalid_request", UNPROCESSABLE_ENTITY, "The request is not valid";
    /// The same key came with another body.
    IdempotencyKeyReused = "idempotency_key_reused", UNPROCESSABLE_ENTITY, "The key was used for another request";
    /// A defect of Telecine.
    Internal = "internal", INTERNAL_SERVER_ERROR, "Telecine made a mistake";
    /// A store did not answer as it should.
    StoreUnreachable = "store_unreachable", BAD_GATEWAY, "The store did not do it";
    /// Trying again later may help.
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "Telecine cannot do it just now";
    /// The disk of this machine, or the store, is full.
    InsufficientStorage = "insufficient_storage", INSUFFICIENT_STORAGE, "There is no space left";
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldProblem {
    /// JSON pointer into the body; absent when it is not about the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// Name of the query parameter or header; absent when it is about the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// Stable word for programs, such as `unknown_field`.
    pub code: String,
    /// What is wrong and what to do, for people.
    pub detail: String,
}

impl FieldProblem {
    /// Something wrong in the body, at a JSON pointer.
    pub fn at(pointer: impl Into<String>, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: Some(pointer.into()), parameter: None, code: code.into(), detail: detail.into() }
    }

    /// Something wrong with a query parameter or header.
    pub fn parameter(name: impl Into<String>, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: None, parameter: Some(name.into()), code: code.into(), detail: detail.into() }
    }
}

/// The body of an answer that is not a success (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// A URI that names the kind of problem: `urn:telecine:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same short text at each occurrence.
    pub title: String,
    /// The status, once more.
    pub status: u16,
    /// What happened here and what to do.
    pub detail: String,
    /// The path that was asked for.
    pub instance: String,
    /// Stable word for programs.
    pub code: String,
    /// Names this request in the logs.
    pub request_id: String,
    /// Everything that is wrong, at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldProblem>,
    /// After how many seconds trying again makes sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

/// An answer that is not a success, before it is rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which.
    pub code: Code,
    /// What happened here and what to do.
    pub detail: String,
    /// Everything that is wrong.
    pub errors: Vec<FieldProblem>,
    /// After how many seconds to try again.
    pub retry_after_seconds: Option<u64>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem of this code; `detail` says what happened here and what to do.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after_seconds: None,
            headers: Vec::new(),
        }
    }

    /// A body that asks for something that cannot be; says everything at once.
    pub fn invalid(errors: Vec<FieldProblem>) -> Self {
        let detail = match errors.as_slice() {
            [] => "the request is not valid".to_owned(),
            [only] => format!("{}: {}", only.pointer.as_deref().unwrap_or_default(), only.detail),
            several => format!("{} things are wrong; `errors` names each", several.len()),
        };
        Self { errors, ..Self::new(Code::InvalidRequest, detail) }
    }

    /// One wrong place in the body.
    pub fn invalid_at(pointer: &str, code: &str, detail: impl Into<String>) -> Self {
        Self::invalid(vec![FieldProblem::at(pointer, code, detail)])
    }

    /// A wrong query parameter.
    pub fn parameter(name: &str, code: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let errors = vec![FieldProblem::parameter(name, code, detail.clone())];
        Self { errors, ..Self::new(Code::InvalidParameter, format!("{name}: {detail}")) }
    }

    /// A wrong header.
    pub fn header(name: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let errors = vec![FieldProblem::parameter(name, "invalid_value", detail.clone())];
        Self { errors, ..Self::new(Code::InvalidHeader, format!("{name}: {detail}")) }
    }

    /// There is no such thing in this account.
    pub fn not_found(kind: &str, name: &str) -> Self {
        let shown: String = name.chars().take(120).collect();
        Self::new(Code::NotFound, format!("there is no {kind} `{shown}` in this account"))
    }

    /// A defect: the cause goes to the log, never to the caller.
    pub fn internal(cause: &dyn fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed inside Telecine");
        Self::new(
            Code::Internal,
            "the request failed inside Telecine; the log has the cause under the request id",
        )
    }

    /// Trying again may help.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, detail).worth_retrying()
    }

    /// The same, saying that trying again in a second makes sense.
    #[must_use]
    pub fn worth_retrying(self) -> Self {
        Self { retry_after_seconds: Some(1), ..self }
    }

    /// No valid key; tells how to authenticate (RFC 9110, 11.6.1).
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        let challenge = HeaderValue::from_static("Bearer realm=\"telecine\"");
        let headers = vec![(WWW_AUTHENTICATE, challenge)];
        Self { headers, ..Self::new(Code::Unauthorized, detail) }
    }

    /// The method is not among `allowed`, a comma-separated list.
    pub(crate) fn method_not_allowed(method: &http::Method, allowed: Option<HeaderValue>) -> Self {
        let known = allowed.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("none").to_owned();
        let headers = allowed.into_iter().map(|value| (ALLOW, value)).collect();
        let detail = format!("this path does not take {method}; it takes {known}");
        Self { headers, ..Self::new(Code::MethodNotAllowed, detail) }
    }

    /// The body to send, for the request named.
    pub(crate) fn body(&self, path: &str, request_id: &str) -> ProblemBody {
        ProblemBody {
            kind: format!("urn:telecine:problem:{}", self.code.as_str()),
            title: self.code.title().to_owned(),
            status: self.code.status().as_u16(),
            detail: self.detail.clone(),
            instance: path.to_owned(),
            code: self.code.as_str().to_owned(),
            request_id: request_id.to_owned(),
            errors: self.errors.clone(),
            retry_after_seconds: self.retry_after_seconds,
        }
    }
}

/// Marks a response whose body `edge` has to write.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        for (name, value) in &self.headers {
            response.headers_mut().insert(name, value.clone());
        }
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_stable_words_with_an_error_status() {
        for code in Code::ALL {
            assert!(code.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{code:?}");
            assert!(code.status().as_u16() >= 400, "{code:?}");
        }
    }

    #[test]
    fn one_wrong_place_is_named_in_the_detail_and_several_are_counted() {
        let one = Problem::invalid_at("/priority", "out_of_range", "at most 1000");
        assert_eq!(one.detail, "/priority: at most 1000");
        let two = Problem::invalid(vec![FieldProblem::at("/a", "x", "y"), FieldProblem::at("/b", "x", "y")]);
        assert!(two.detail.starts_with("2 things"), "{}", two.detail);
    }
}
