//! Objects that arrived in watched stores.

use axum::extract::State;
use axum::response::Response;
use http::{StatusCode, Uri};
use telecine_core::ingest;

use crate::auth::Reader;
use crate::body;
use crate::page::{Listed, PageRequest};
use crate::problem::Problem;
use crate::query::Params;
use crate::state::ApiState;
use crate::view::place::IngestEvent;

/// List objects that arrived, newest first: those that made no job, with the reasons, or those that made one.
#[utoipa::path(get, path = "/v1/ingest-events", operation_id = "list_ingest_events", tag = "factories",
    params(("matched" = Option<bool>, Query, description = "Those that made a job; false unless given"),
           ("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<IngestEvent>)))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Reader,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let page = PageRequest::from_params(&uri, &params)?;
    let (backend, account, after) = (&state.backend, caller.account(), page.after.clone());
    let found = if params.flag("matched")? {
        ingest::matched(backend, account, page.limit, after).await?
    } else {
        ingest::unmatched(backend, account, page.limit, after).await?
    };
    let items = found.items.into_iter().map(IngestEvent::from).collect();
    body::answer(StatusCode::OK, &page.listed(items, found.next))
}
