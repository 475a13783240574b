//! `telecine regions`: the regions, their managers and their load.

use clap::Subcommand;
use reqwest::Method;
use telecine_api::view::place::Region;
use telecine_domain::resources::Resources;

use crate::cli::Global;
use crate::client::Call;
use crate::connection;
use crate::failure::Failure;
use crate::output::{self, or_dash};
use crate::pages;

/// What can be seen of regions.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the regions
    #[command(after_help = "Examples:\n  telecine regions list\n  telecine regions list -o json")]
    List(pages::Arguments),
}

/// Does it.
///
/// # Errors
/// Why it was not done.
pub(crate) async fn run(global: &Global, command: Command) -> Result<(), Failure> {
    let Command::List(page) = command;
    let client = connection::client(global)?;
    let regions = pages::read::<Region>(&client, Call::new(Method::GET, &["regions"]), &page).await?;
    global.output.print(&regions, |regions| pages::table(regions, table(&regions.data)))
}

fn table(regions: &[Region]) -> String {
    output::rows(
        ["REGION", "MANAGER", "TERM", "QUEUED", "INSTANCES", "OCCUPANCY", "CAPACITY"],
        regions.iter().map(|region| {
            [
                format!("{}{}", region.id, if region.is_default { " (default)" } else { "" }),
                or_dash(region.manager.as_ref().map(|manager| &manager.id)),
                or_dash(region.manager.as_ref().map(|manager| manager.term)),
                region.queued_jobs.to_string(),
                region.instances.to_string(),
                format!("{} %", region.occupancy_thousandths / 10),
                Resources::from(region.capacity).to_string(),
            ]
        }),
    )
}
