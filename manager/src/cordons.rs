//! The cordons of the region, from the table to the dispatch loop: everything, about once a second.
//!
//! Level-triggered: whoever places or lifts a cordon tells nobody. What a look has missed, the next one sees.

use std::sync::Arc;
use std::time::Duration;

use telecine_core::cordon;
use tracing::warn;

use crate::lead::{Command, Lead};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Looks until the leadership is over.
pub(crate) async fn watch(lead: Arc<Lead>) {
    while !lead.over.is_cancelled() {
        match cordon::of_region(&lead.backend, &lead.region).await {
            Ok(rows) if rows.is_empty() => {}
            Ok(rows) => lead.command(Command::Cordons(rows)).await,
            Err(error) => {
                warn!(region = %lead.region, %error, "the cordons were not read; it is tried again")
            }
        }
        lead.pause(LOOK).await;
    }
}
