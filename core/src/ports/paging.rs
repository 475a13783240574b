//! Page tokens: where a page ended, bound to the query that made it. Backends whose rows have our shape share this.

use sha2::{Digest, Sha256};

use super::table::{Key, PageToken, Query, SortRange, Source, TableError};

/// The last row of a page: its sort key in the order that was read, and its own key (which breaks ties in an index).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Sort key in that order.
    pub sort: String,
    /// Key of the row.
    pub key: Key,
}

/// The token that continues `query` after `position`.
pub fn token(query: &Query, position: &Position) -> PageToken {
    let parts = [&fingerprint(query), &position.sort, &position.key.partition, &position.key.sort];
    PageToken(hex::encode(serde_json::to_vec(&parts).expect("strings are JSON")))
}

/// Where the page before `query` ended, if it continues one.
///
/// # Errors
/// `Invalid` when the token is no token, or one of another query.
pub fn position(query: &Query) -> Result<Option<Position>, TableError> {
    let Some(token) = &query.after else { return Ok(None) };
    let invalid = || TableError::Invalid("the page token is not one of this query".to_owned());
    let bytes = hex::decode(&token.0).map_err(|_| invalid())?;
    let [print, sort, partition, row_sort]: [String; 4] =
        serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    if print != fingerprint(query) {
        return Err(invalid());
    }
    Ok(Some(Position { sort, key: Key { partition, sort: row_sort } }))
}

fn fingerprint(query: &Query) -> String {
    let source = match query.source {
        Source::Rows => "rows",
        Source::Index1 => "index1",
        Source::Index2 => "index2",
    };
    let range = match &query.range {
        SortRange::All => ["all", "", ""],
        SortRange::Prefix(prefix) => ["prefix", prefix, ""],
        SortRange::Between(from, to) => ["between", from, to],
    };
    let direction = if query.descending { "descending" } else { "ascending" };
    let parts = [source, &query.partition, range[0], range[1], range[2], direction];
    let bytes = serde_json::to_vec(&parts).expect("strings are JSON");
    hex::encode(&Sha256::digest(bytes)[..12])
}
