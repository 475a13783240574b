//! `telecine jobs get` and `jobs explain`.

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};
use telecine_api::page::Listed;
use telecine_api::view::attempt::Attempt;
use telecine_api::view::explanation::Explanation;
use telecine_api::view::job::Job;
use telecine_domain::resources::display_bytes;

use crate::client::{Call, Client};
use crate::failure::Failure;
use crate::output::{self, Format, fields, time};
use crate::quantity::display_millis;

/// Names one job.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  telecine jobs get job_01kaj...\n  telecine jobs explain job_01kaj... -o json"
)]
pub(crate) struct Arguments {
    /// Its id
    job: String,
}

/// Shows a job with its attempts.
///
/// # Errors
/// When there is no such job.
pub(crate) async fn get(client: &Client, format: Format, arguments: &Arguments) -> Result<(), Failure> {
    match format {
        Format::Json => {
            let job: Value = client.get(Call::new(Method::GET, &["jobs", &arguments.job])).await?;
            format.print(&job, |_| String::new())
        }
        Format::Table => {
            let job: Job = client.get(Call::new(Method::GET, &["jobs", &arguments.job])).await?;
            output::line(&table(&job, &attempts(client, &arguments.job).await?))
        }
    }
}

/// Says why a job waits or failed.
///
/// # Errors
/// When there is no such job.
pub(crate) async fn explain(client: &Client, format: Format, arguments: &Arguments) -> Result<(), Failure> {
    let call = Call::new(Method::GET, &["jobs", &arguments.job, "explain"]);
    let explanation: Explanation = client.get(call).await?;
    format.print(&explanation, |explanation| output::printable(&explanation.text))
}

/// Shows a job's attempts, with what they moved.
///
/// # Errors
/// When there is no such job.
pub(crate) async fn list_attempts(
    client: &Client,
    format: Format,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let call = Call::new(Method::GET, &["jobs", &arguments.job, "attempts"]).query("limit", Some(200));
    let listed: Listed<Attempt> = client.get(call).await?;
    format.print(&listed, |listed| {
        format!("{}\n\n{}", attempts_table(&listed.data), counters_table(&listed.data))
    })
}

fn counters_table(attempts: &[Attempt]) -> String {
    let counted = attempts.iter().filter_map(|attempt| Some((attempt.attempt, attempt.counters?)));
    output::rows(
        ["ATTEMPT", "READ BY ENGINE", "WRITTEN BY ENGINE", "REQUESTS", "FETCHED", "SENT", "STORE REQUESTS"],
        counted.map(|(attempt, counters)| {
            [
                attempt.to_string(),
                display_bytes(counters.mount_bytes_read),
                display_bytes(counters.mount_bytes_written),
                counters.mount_requests.to_string(),
                display_bytes(counters.store_bytes_read),
                display_bytes(counters.store_bytes_written),
                counters.store_requests.to_string(),
            ]
        }),
    )
}

/// The attempts of a job.
///
/// # Errors
/// When there is no such job.
pub(crate) async fn attempts(client: &Client, job: &str) -> Result<Vec<Attempt>, Failure> {
    let call = Call::new(Method::GET, &["jobs", job, "attempts"]).query("limit", Some(200));
    Ok(client.get::<Listed<Attempt>>(call).await?.data)
}

/// A job and its attempts for people.
pub(crate) fn table(job: &Job, attempts: &[Attempt]) -> String {
    let mut text = fields([
        ("id", job.id.to_string()),
        ("state", format!("{} since {}", job.state, time(job.state_since))),
        ("reason", job.state_reason.as_ref().map(|reason| reason.message.clone()).unwrap_or_default()),
        ("service", format!("{} {}", job.service, job.engine_version)),
        ("region", job.region.clone()),
        ("priority", job.priority.to_string()),
        ("needs", telecine_domain::resources::Resources::from(job.resources).to_string()),
        (
            "labels",
            job.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", "),
        ),
        ("waits for", job.depends_on.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        ("origin", origin(job)),
        ("created", time(job.created_at)),
        ("finished", job.finished_at.map(time).unwrap_or_default()),
        ("progress", progress(job)),
        ("failure", job.failure.as_ref().map(failure).unwrap_or_default()),
    ]);
    for (name, input) in &job.inputs {
        text += &format!(
            "\ninput   {name}: {}/{}, {}",
            input.store_id,
            output::printable(&input.key),
            display_bytes(input.size_bytes)
        );
    }
    for (name, place) in &job.outputs {
        text += &format!("\noutput  {name}: {}/{}", place.store_id, output::printable(&place.key));
    }
    for object in &job.published {
        text +=
            &format!("\nmade    {}, {}", output::printable(&object.key), display_bytes(object.size_bytes));
    }
    if !attempts.is_empty() {
        text += "\n\n";
        text += &attempts_table(attempts);
    }
    text
}

/// How far a job is that has not ended: the last word of an engine says nothing about the end.
fn progress(job: &Job) -> String {
    let progress = job.progress.as_ref().filter(|_| !job.state.is_terminal());
    progress.map(super::progress::text).unwrap_or_default()
}

/// The attempts with the time of each phase.
pub(crate) fn attempts_table(attempts: &[Attempt]) -> String {
    output::rows(
        ["ATTEMPT", "STATE", "INSTANCE", "TIMES", "FAILURE"],
        attempts.iter().map(|attempt| {
            [
                attempt.attempt.to_string(),
                attempt.state.clone(),
                attempt.instance_id.to_string(),
                phases(attempt),
                attempt.failure.as_ref().map(|failure| failure.code.clone()).unwrap_or_default(),
            ]
        }),
    )
}

fn phases(attempt: &Attempt) -> String {
    let lasted = |millis: Option<u64>| millis.map_or_else(|| "…".to_owned(), display_millis);
    let phases =
        attempt.phases.iter().map(|phase| format!("{} {}", phase.phase, lasted(phase.duration_millis)));
    phases.collect::<Vec<_>>().join(", ")
}

fn failure(failure: &telecine_api::view::values::Failure) -> String {
    let exit = failure.exit_code.map(|code| format!(", exit code {code}")).unwrap_or_default();
    format!(
        "{} ({}, {}{exit})",
        failure.message,
        json!(failure.class).as_str().unwrap_or_default(),
        failure.code
    )
}

fn origin(job: &Job) -> String {
    match (&job.factory_id, &job.retry_of) {
        (Some(factory), _) => format!("{} of {factory}", job.origin),
        (None, Some(retried)) => format!("retry of {retried}"),
        (None, None) => job.origin.clone(),
    }
}
