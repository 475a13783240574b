//! `telecine jobs cancel|retry|hold|release|update`.

use clap::Args;
use reqwest::Method;
use reqwest::header::IF_MATCH;
use serde_json::{Map, Value, json};
use telecine_api::view::job::Job;

use super::show;
use crate::client::{Call, Client};
use crate::failure::Failure;
use crate::output::Format;
use crate::quantity;

/// Names one job.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  telecine jobs cancel job_01kaj...\n  telecine jobs retry job_01kaj... -o json"
)]
pub(crate) struct Arguments {
    /// Its id
    job: String,
}

/// Arguments of `jobs update`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  telecine jobs update job_01kaj... --priority 900\n  telecine jobs update job_01kaj... --label team=sport --if-version 3"
)]
pub(crate) struct UpdateArguments {
    /// Its id
    job: String,
    /// 0 to 1000, higher first
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..=1000))]
    priority: Option<u16>,
    /// All labels it shall have; may be given several times
    #[arg(long = "label", value_parser = quantity::label, value_name = "KEY=VALUE")]
    labels: Vec<(String, String)>,
    /// Only if nothing has changed since this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

/// Does `action` to a job.
///
/// # Errors
/// When its state does not allow it.
pub(crate) async fn act(
    client: &Client,
    format: Format,
    action: &str,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let job: Job = client.json(Call::new(Method::POST, &["jobs", &arguments.job, action])).await?;
    format.print(&job, |job| show::table(job, &[]))
}

/// Changes priority or labels.
///
/// # Errors
/// When nothing is asked for, or the job's state does not allow it.
pub(crate) async fn update(
    client: &Client,
    format: Format,
    arguments: UpdateArguments,
) -> Result<(), Failure> {
    let mut body = Map::new();
    body.extend(arguments.priority.map(|priority| ("priority".to_owned(), json!(priority))));
    if !arguments.labels.is_empty() {
        let labels: Map<_, _> =
            arguments.labels.into_iter().map(|(key, value)| (key, Value::from(value))).collect();
        body.insert("labels".to_owned(), labels.into());
    }
    if body.is_empty() {
        return Err(Failure::usage("nothing to change: give --priority or --label"));
    }
    let etag = arguments.if_version.map(|version| format!("\"{version}\""));
    let call = Call::new(Method::PATCH, &["jobs", &arguments.job]).json(&body)?;
    let job: Job = client.json(call.header(IF_MATCH, etag.as_deref())?).await?;
    format.print(&job, |job| show::table(job, &[]))
}
