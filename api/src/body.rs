//! JSON bodies: at most 1 MiB, of the right media type, without unknown fields, and refused with the place of what is
//! wrong.

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};

use crate::problem::{Code, FieldProblem, Problem};

/// Longest JSON body taken.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// A JSON body: what it says, and its bytes (by which a repeated request is known).
#[derive(Debug)]
pub(crate) struct Json<T> {
    /// What it says.
    pub value: T,
    /// The bytes as they came.
    pub bytes: Bytes,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        expect_json(&request)?;
        let bytes = read(request.into_body()).await?;
        Ok(Self { value: parse(&bytes)?, bytes })
    }
}

/// The body of an action that takes no argument: nothing, or `{}`.
#[derive(Debug)]
pub(crate) struct NoBody {
    /// The bytes as they came.
    pub bytes: Bytes,
}

impl<S: Send + Sync> FromRequest<S> for NoBody {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        expect_length(&request)?;
        let has_type = request.headers().contains_key(CONTENT_TYPE);
        if has_type {
            expect_json(&request)?;
        }
        let bytes = read(request.into_body()).await?;
        if !bytes.is_empty() {
            parse::<Nothing>(&bytes)?;
        }
        Ok(Self { bytes })
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// An answer of this status with a JSON body.
pub(crate) fn answer<T: Serialize>(status: StatusCode, value: &T) -> Result<Response, Problem> {
    let body = serde_json::to_vec(value).map_err(|error| Problem::internal(&error))?;
    Ok((status, [(CONTENT_TYPE, "application/json")], body).into_response())
}

fn expect_json(request: &Request) -> Result<(), Problem> {
    expect_length(request)?;
    let given = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = given.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    let shown: String = given.chars().take(80).collect();
    Err(Problem::new(
        Code::UnsupportedMediaType,
        format!("send `Content-Type: application/json`; this request has `{shown}`"),
    ))
}

fn expect_length(request: &Request) -> Result<(), Problem> {
    let length =
        request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match length {
        Some(length) if length > MAX_BODY_BYTES as u64 => Err(too_large()),
        _ => Ok(()),
    }
}

fn too_large() -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        format!(
            "a JSON body may have at most {MAX_BODY_BYTES} bytes; put large documents into a store or split a batch"
        ),
    )
}

async fn read(body: Body) -> Result<Bytes, Problem> {
    to_bytes(body, MAX_BODY_BYTES).await.map_err(|error| {
        let limited = std::error::Error::source(&error)
            .is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
        if limited {
            too_large()
        } else {
            Problem::new(Code::IncompleteBody, format!("the body did not arrive whole: {error}"))
        }
    })
}

/// Reads JSON; syntax errors name line and column, others the JSON pointer.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let pointer = pointer(error.path());
        refuse(&error.into_inner(), pointer)
    })?;
    reader.end().map_err(|error| refuse(&error, String::new()))?;
    Ok(value)
}

fn refuse(error: &serde_json::Error, pointer: String) -> Problem {
    if error.classify() != serde_json::error::Category::Data {
        let detail = format!("{error}"); // serde_json ends its message with "at line L column C"
        return Problem::new(Code::MalformedJson, detail);
    }
    let message = error.to_string();
    let (code, missing) = classify(&message);
    let pointer = match (code, missing) {
        ("missing_field" | "unknown_field", Some(field))
            if !pointer.ends_with(&format!("/{}", escape(field))) =>
        {
            format!("{pointer}/{}", escape(field))
        }
        _ => pointer,
    };
    Problem::invalid(vec![FieldProblem::at(pointer, code, message)])
}

fn classify(message: &str) -> (&'static str, Option<&str>) {
    let quoted = message.split('`').nth(1);
    if message.starts_with("unknown field") {
        ("unknown_field", quoted)
    } else if message.starts_with("missing field") {
        ("missing_field", quoted)
    } else if message.starts_with("duplicate field") {
        ("duplicate_field", quoted)
    } else if message.starts_with("invalid type") {
        ("invalid_type", None)
    } else {
        ("invalid_value", None)
    }
}

fn pointer(path: &Path) -> String {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(format!("/{index}")),
            Segment::Map { key } => Some(format!("/{}", escape(key))),
            Segment::Enum { variant } => Some(format!("/{}", escape(variant))),
            Segment::Unknown => None,
        })
        .collect()
}

/// One segment of a JSON pointer (RFC 6901).
pub(crate) fn escape(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only how it is refused matters")]
    struct Sample {
        name: String,
        #[serde(default)]
        counts: BTreeMap<String, Vec<u8>>,
    }

    fn refused(text: &[u8]) -> Problem {
        parse::<Sample>(text).unwrap_err()
    }

    #[test]
    fn syntax_errors_name_line_and_column() {
        let problem = refused(b"{\n  \"name\": ,\n}");
        assert_eq!(problem.code, Code::MalformedJson);
        assert!(problem.detail.contains("line 2 column 11"), "{}", problem.detail);
        assert_eq!(refused(b"{\"name\":\"x\"} more").code, Code::MalformedJson);
        assert_eq!(refused(b"{\"name\":\"\xff\xfe\"}").code, Code::MalformedJson);
        assert_eq!(refused(&b"[".repeat(100_000)).code, Code::InvalidRequest);
        let deep = [b"{\"name\":\"x\",\"counts\":".to_vec(), b"{\"a\":".repeat(100_000)].concat();
        assert!(matches!(refused(&deep).code, Code::MalformedJson | Code::InvalidRequest));
    }

    #[test]
    fn wrong_places_are_named_by_pointer() {
        let place = |text: &str| {
            let problem = refused(text.as_bytes());
            assert_eq!(problem.code, Code::InvalidRequest);
            (problem.errors[0].pointer.clone().unwrap(), problem.errors[0].code.clone())
        };
        assert_eq!(place("{}"), ("/name".into(), "missing_field".into()));
        assert_eq!(place("{\"name\":1}"), ("/name".into(), "invalid_type".into()));
        assert_eq!(place("{\"name\":\"x\",\"a/b\":1}"), ("/a~1b".into(), "unknown_field".into()));
        assert_eq!(
            place("{\"name\":\"x\",\"counts\":{\"q/r\":[1,300]}}"),
            ("/counts/q~1r/1".into(), "invalid_value".into())
        );
    }
}
