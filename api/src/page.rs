//! Lists: `?limit=` (1 to 200) and `?cursor=`, answered as `{data, next_cursor}`.
//!
//! A cursor is the table's page token bound to the list it came from (path and filters), so that it cannot be used for
//! another one. It is opaque, not secret: whatever it holds, the account's own rows are all it can reach, since the
//! account comes from the API key.

use http::Uri;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use telecine_core::ports::table::PageToken;

use crate::problem::{Code, Problem};
use crate::query::Params;

/// Most items in a page.
pub const MAX_LIMIT: usize = 200;
/// Items in a page when the caller does not say.
pub const DEFAULT_LIMIT: usize = 50;

/// One page of a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Listed<T> {
    /// The items.
    pub data: Vec<T>,
    /// Give it as `cursor` for the page after this one; null at the end.
    pub next_cursor: Option<String>,
}

/// Which page is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Most items.
    pub limit: usize,
    /// Where the page before ended.
    pub after: Option<PageToken>,
    list: String,
}

impl PageRequest {
    /// From the query of a list call.
    ///
    /// # Errors
    /// When `limit` is no number from 1 to 200, or `cursor` is not of this list.
    pub fn from_params(uri: &Uri, params: &Params) -> Result<Self, Problem> {
        let limit = params.number("limit", 1, MAX_LIMIT as u64)?.unwrap_or(DEFAULT_LIMIT as u64) as usize;
        let list = fingerprint(uri.path(), params);
        let after = params.text("cursor").map(|cursor| decode(cursor, &list)).transpose()?;
        Ok(Self { limit, after, list })
    }

    /// The answer for a page that ended at `next`.
    pub fn listed<T>(&self, data: Vec<T>, next: Option<PageToken>) -> Listed<T> {
        let next_cursor = next.map(|token| format!("{}{}", self.list, token.0));
        Listed { data, next_cursor }
    }
}

const FINGERPRINT_LENGTH: usize = 12;

/// The same for every page of a list: its path and its filters, in any order.
fn fingerprint(path: &str, params: &Params) -> String {
    let mut filters: Vec<_> =
        params.iter().filter(|(name, _)| *name != "limit" && *name != "cursor").collect();
    filters.sort_unstable();
    let mut hash = Sha256::new();
    hash.update(path);
    for (name, value) in filters {
        hash.update([0]);
        hash.update(name);
        hash.update([1]);
        hash.update(value);
    }
    hex::encode(hash.finalize())[..FINGERPRINT_LENGTH].to_owned()
}

fn decode(cursor: &str, list: &str) -> Result<PageToken, Problem> {
    match cursor.strip_prefix(list) {
        Some(token) if !token.is_empty() => Ok(PageToken(token.to_owned())),
        _ => Err(wrong_cursor()),
    }
}

/// The cursor belongs to another list, or to none.
pub(crate) fn wrong_cursor() -> Problem {
    let detail =
        "the cursor is not one of this list; use `next_cursor` of the page before, with the same filters";
    Problem::new(Code::InvalidCursor, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str) -> Result<PageRequest, Problem> {
        let uri: Uri = uri.parse().unwrap();
        PageRequest::from_params(&uri, &Params::parse(uri.query().unwrap_or("")))
    }

    #[test]
    fn a_cursor_leads_on_in_its_own_list_only() {
        let first = request("/v1/jobs?state=queued").unwrap();
        assert_eq!((first.limit, &first.after), (DEFAULT_LIMIT, &None));
        let token = PageToken("6a6f62".to_owned());
        let cursor = first.listed(vec![1], Some(token.clone())).next_cursor.unwrap();
        let next = request(&format!("/v1/jobs?cursor={cursor}&state=queued&limit=3")).unwrap();
        assert_eq!((next.limit, next.after), (3, Some(token)));
        for other in [
            format!("/v1/jobs?cursor={cursor}"),
            format!("/v1/factories?cursor={cursor}&state=queued"),
            "/v1/jobs?state=queued&cursor=".to_owned(),
            format!("/v1/jobs?state=queued&cursor=zz{cursor}"),
        ] {
            assert_eq!(request(&other).unwrap_err().code, Code::InvalidCursor, "{other}");
        }
    }

    #[test]
    fn limits_are_bounded() {
        for wrong in ["0", "201", "-1", "many", "", "99999999999999999999"] {
            let problem = request(&format!("/v1/jobs?limit={wrong}")).unwrap_err();
            assert_eq!(problem.code, Code::InvalidParameter, "{wrong}");
        }
        assert_eq!(request("/v1/jobs?limit=200").unwrap().limit, 200);
    }
}
