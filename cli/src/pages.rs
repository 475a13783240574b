//! Lists on the command line: as many pages as it takes for `--limit` items.

use clap::Args;
use serde::de::DeserializeOwned;
use telecine_api::page::{Listed, MAX_LIMIT};

use crate::client::{Call, Client};
use crate::failure::Failure;

/// Which part of a list.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Arguments {
    /// Most items
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Go on where a list before ended (its `next_cursor`)
    #[arg(long)]
    cursor: Option<String>,
}

/// Reads the list of `call`, page by page.
///
/// # Errors
/// What the API answered.
pub(crate) async fn read<T: DeserializeOwned>(
    client: &Client,
    call: Call,
    arguments: &Arguments,
) -> Result<Listed<T>, Failure> {
    let mut listed = Listed { data: Vec::new(), next_cursor: arguments.cursor.clone() };
    loop {
        let missing = arguments.limit - listed.data.len() as u64;
        let page = call.clone().query("limit", Some(missing.min(MAX_LIMIT as u64)));
        let page: Listed<T> = client.get(page.query("cursor", listed.next_cursor.as_ref())).await?;
        listed.data.extend(page.data);
        listed.next_cursor = page.next_cursor;
        if listed.next_cursor.is_none() || listed.data.len() as u64 >= arguments.limit {
            return Ok(listed);
        }
    }
}

/// The table, with a word when there is more or nothing.
pub(crate) fn table<T>(listed: &Listed<T>, table: String) -> String {
    match &listed.next_cursor {
        _ if listed.data.is_empty() => "nothing".to_owned(),
        Some(cursor) => format!("{table}\nthere is more: --cursor {cursor}"),
        None => table,
    }
}
