//! `telecine jobs list`.

use clap::Args;
use reqwest::Method;
use telecine_api::view::job::Job;

use crate::client::{Call, Client};
use crate::failure::Failure;
use crate::output::{self, Format, time};
use crate::pages;

/// Arguments of `jobs list`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  telecine jobs list --state failed --limit 20\n  telecine jobs list --factory fac_01kaj... -o json"
)]
pub(crate) struct Arguments {
    /// Only jobs in this state, such as running
    #[arg(long)]
    state: Option<String>,
    /// Only jobs of this factory (id)
    #[arg(long)]
    factory: Option<String>,
    /// Only jobs with this label
    #[arg(long, value_name = "KEY=VALUE", value_parser = crate::quantity::label)]
    label: Option<(String, String)>,
    /// Which page
    #[command(flatten)]
    page: pages::Arguments,
}

/// Lists jobs.
///
/// # Errors
/// When a filter is wrong.
pub(crate) async fn run(client: &Client, format: Format, arguments: &Arguments) -> Result<(), Failure> {
    let label = arguments.label.as_ref().map(|(key, value)| format!("{key}={value}"));
    let call = Call::new(Method::GET, &["jobs"])
        .query("state", arguments.state.as_ref())
        .query("factory_id", arguments.factory.as_ref())
        .query("label", label);
    let jobs = pages::read::<Job>(client, call, &arguments.page).await?;
    format.print(&jobs, |jobs| pages::table(jobs, table(&jobs.data)))
}

fn table(jobs: &[Job]) -> String {
    output::rows(
        ["ID", "STATE", "SERVICE", "REGION", "PRIORITY", "CREATED", "INPUT"],
        jobs.iter().map(|job| {
            [
                job.id.to_string(),
                job.state.to_string(),
                format!("{} {}", job.service, job.engine_version),
                job.region.clone(),
                job.priority.to_string(),
                time(job.created_at),
                job.inputs.values().next().map(|input| input.key.clone()).unwrap_or_default(),
            ]
        }),
    )
}
