//! `ETag` and `If-Match`: the number of a thing's last change, quoted.

use axum::extract::FromRequestParts;
use axum::response::Response;
use http::header::{ETAG, HeaderValue, IF_MATCH};
use http::request::Parts;

use crate::problem::{Code, Problem};

/// What the caller has read before it changes a thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IfMatch {
    /// No header, or `*`: whatever it is now.
    Any,
    /// One of these versions.
    Versions(Vec<u64>),
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let mut versions = Vec::new();
        let mut values = parts.headers.get_all(IF_MATCH).iter().peekable();
        if values.peek().is_none() {
            return Ok(Self::Any);
        }
        for value in values {
            let text = value.to_str().map_err(|_| malformed())?;
            for tag in text.split(',').map(str::trim) {
                if tag == "*" {
                    return Ok(Self::Any);
                }
                versions.push(version(tag).ok_or_else(malformed)?);
            }
        }
        Ok(Self::Versions(versions))
    }
}

impl IfMatch {
    /// The version that a conditional write must find, given the one that is there now.
    ///
    /// # Errors
    /// When what is there is not what the caller has read.
    pub(crate) fn check(&self, current: u64) -> Result<Option<u64>, Problem> {
        match self {
            Self::Any => Ok(None),
            Self::Versions(versions) if versions.contains(&current) => Ok(Some(current)),
            Self::Versions(_) => Err(mismatch(current)),
        }
    }
}

/// It was changed since the caller read it.
pub(crate) fn mismatch(current: u64) -> Problem {
    let detail = format!("it was changed since it was read: its ETag is now \"{current}\"; read it again");
    Problem::new(Code::EtagMismatch, detail)
}

/// The answer with its ETag.
pub(crate) fn tagged(mut response: Response, version: u64) -> Response {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(ETAG, value);
    }
    response
}

/// Weak tags (`W/"3"`) never match (RFC 9110, 13.1.1), so they are refused with everything else that is no tag of ours.
fn version(tag: &str) -> Option<u64> {
    tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

fn malformed() -> Problem {
    Problem::header("If-Match", "must be an ETag as the API gave it, such as \"3\", or *")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(value: Option<&'static str>) -> Result<IfMatch, Problem> {
        let mut request = http::Request::new(());
        if let Some(value) = value {
            request.headers_mut().insert(IF_MATCH, HeaderValue::from_static(value));
        }
        IfMatch::from_request_parts(&mut request.into_parts().0, &()).await
    }

    #[tokio::test]
    async fn only_strong_tags_of_ours_are_taken() {
        assert_eq!(read(None).await, Ok(IfMatch::Any));
        assert_eq!(read(Some("*")).await, Ok(IfMatch::Any));
        assert_eq!(read(Some("\"3\", \"4\"")).await, Ok(IfMatch::Versions(vec![3, 4])));
        for wrong in ["3", "W/\"3\"", "\"x\"", "", "\"-1\""] {
            assert_eq!(read(Some(wrong)).await.unwrap_err().code, Code::InvalidHeader, "{wrong}");
        }
        assert_eq!(IfMatch::Versions(vec![3]).check(3), Ok(Some(3)));
        assert_eq!(IfMatch::Versions(vec![3]).check(4).unwrap_err().code, Code::EtagMismatch);
    }
}
