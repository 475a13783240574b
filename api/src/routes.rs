//! The routes, one module per noun, and what they share.

pub(crate) mod arrivals;
pub(crate) mod engines;
pub(crate) mod factories;

pub(crate) mod fleet;
pub(crate) mod jobs;
pub(crate) mod keys;
pub(crate) mod logs;
pub(crate) mod meta;
pub(crate) mod pools;
pub(crate) mod scaling;
pub(crate) mod stores;

pub(crate) mod watch;

use std::str::FromStr;

use telecine_core::ports::table::PageToken;

use crate::page::{Listed, PageRequest};
use crate::problem::Problem;

/// Reads an id or name from the path; what cannot be one names nothing, so it is not found.
pub(crate) fn named<T: FromStr>(kind: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| Problem::not_found(kind, text))
}

/// One page of a list that core gives whole, ordered by `key`, which names each item.
pub(crate) fn paged<T>(page: &PageRequest, items: Vec<T>, key: impl Fn(&T) -> String) -> Listed<T> {
    let start = match &page.after {
        Some(PageToken(after)) => {
            items.iter().position(|item| key(item) == *after).map_or(items.len(), |at| at + 1)
        }
        None => 0,
    };
    let more = items.len() > start + page.limit;
    let data: Vec<T> = items.into_iter().skip(start).take(page.limit).collect();
    let next = data.last().filter(|_| more).map(|last| PageToken(key(last)));
    page.listed(data, next)
}
