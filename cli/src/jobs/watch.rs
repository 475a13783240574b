//! `telecine jobs watch`, and `jobs submit --wait`: follows a job's events until it ends.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderName};
use serde_json::Value;
use telecine_api::view::attempt::Attempt;
use telecine_api::view::job::Job;
use telecine_domain::job::StateName;
use telecine_domain::time::Timestamp;

use super::progress::Display;
use super::show;
use crate::client::{Call, Client};
use crate::events::{Event, Events};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::quantity::{self, display_millis};

/// Arguments of `jobs watch`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  telecine jobs watch job_01kaj...\n  telecine jobs watch job_01kaj... --timeout 10m -o json   (one event per line)"
)]
pub(crate) struct Arguments {
    /// Its id
    job: String,
    /// Give up watching (not the job) after this time, such as 10m
    #[arg(long, value_parser = quantity::duration, value_name = "TIME")]
    timeout: Option<Duration>,
}

/// Follows a job.
///
/// # Errors
/// When there is no such job, nobody answers, or it takes too long.
pub(crate) async fn run(client: &Client, format: Format, arguments: &Arguments) -> Result<ExitCode, Failure> {
    follow(client, format, &arguments.job, arguments.timeout).await
}

/// Follows a job until it ends; the code is 0 when it succeeded, else 1.
///
/// # Errors
/// When there is no such job, nobody answers, or it takes longer than `timeout`.
pub(crate) async fn follow(
    client: &Client,
    format: Format,
    job: &str,
    timeout: Option<Duration>,
) -> Result<ExitCode, Failure> {
    let ended = match timeout {
        Some(limit) => tokio::time::timeout(limit, follow_to_the_end(client, format, job)).await,
        None => Ok(follow_to_the_end(client, format, job).await),
    };
    let Ok(ended) = ended else {
        let limit = timeout.unwrap_or_default().as_millis();
        let waited = display_millis(u64::try_from(limit).unwrap_or(u64::MAX));
        return Err(Failure::new(Exit::TimedOut, format!("{job} has not ended within {waited}; it goes on"))
            .advise(format!(
                "`telecine jobs explain {job}` says where it is, `telecine jobs watch {job}` follows it"
            )));
    };
    let ended: Job = ended?;
    if format == Format::Table {
        output::line(&summary(&ended, &show::attempts(client, job).await?))?;
    }
    Ok(if ended.state == StateName::Succeeded {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Exit::Failed as u8)
    })
}

/// Longest time without an answer before giving up: a manager or API may be restarted meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

async fn follow_to_the_end(client: &Client, format: Format, job: &str) -> Result<Job, Failure> {
    let mut display = (format == Format::Table).then(Display::new);
    let mut last_event: Option<String> = None;
    let mut heard = tokio::time::Instant::now();
    loop {
        match stream(client, format, job, &mut last_event, &mut display).await {
            Ok(true) => break,
            Ok(false) => heard = tokio::time::Instant::now(),
            Err(failure) if failure.exit != Exit::TimedOut || heard.elapsed() > PATIENCE => {
                return Err(failure);
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    if let Some(display) = &display {
        display.finish();
    }
    client.get(Call::new(Method::GET, &["jobs", job])).await
}

/// One connection; `true` when the job has ended.
async fn stream(
    client: &Client,
    format: Format,
    job: &str,
    last_event: &mut Option<String>,
    display: &mut Option<Display>,
) -> Result<bool, Failure> {
    let call = Call::new(Method::GET, &["jobs", job, "events"])
        .header(ACCEPT, Some("text/event-stream"))?
        .header(HeaderName::from_static("last-event-id"), last_event.as_deref())?;
    let mut events = Events::of(client.send(call).await?);
    // A broken connection ends the stream like a clean one: the next one resumes after the last event.
    while let Some(event) = events.next().await {
        if let Some(id) = &event.id {
            *last_event = Some(id.clone());
        }
        if format == Format::Json {
            output::line(&event.data)?;
        }
        if show_event(&event, display) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Shows an event; `true` when it is the job's last.
fn show_event(event: &Event, display: &mut Option<Display>) -> bool {
    match event.name.as_str() {
        "job.state" => {
            let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
            let Ok(state) = serde_json::from_value::<StateName>(data["state"].clone()) else { return false };
            if let Some(display) = display {
                let attempt = data["attempt"].as_u64().unwrap_or(0);
                display.state(state, u32::try_from(attempt).unwrap_or(u32::MAX));
            }
            state.is_terminal()
        }
        "job.progress" => {
            if let (Some(display), Ok(progress)) = (display, serde_json::from_str(&event.data)) {
                display.progress(&progress);
            }
            false
        }
        _ => false,
    }
}

/// What became of it, and where the time went.
fn summary(job: &Job, attempts: &[Attempt]) -> String {
    let mut text = show::table(job, &[]);
    let between = |from: Option<Timestamp>, to: Option<Timestamp>| {
        Some(u64::try_from(to?.since(from?).as_millis()).unwrap_or(u64::MAX))
    };
    let last = attempts.last();
    let mut times: Vec<[String; 2]> = Vec::new();
    let first_lease = attempts.first().and_then(|attempt| attempt.started_at);
    if let Some(millis) = between(job.queued_at, first_lease) {
        times.push(["queued".to_owned(), display_millis(millis)]);
    }
    for phase in last.map(|attempt| attempt.phases.as_slice()).unwrap_or_default() {
        times.push([
            phase.phase.clone(),
            phase.duration_millis.map_or_else(|| "-".to_owned(), display_millis),
        ]);
    }
    if let Some(millis) = between(Some(job.created_at), job.finished_at) {
        times.push(["total".to_owned(), display_millis(millis)]);
    }
    text += "\n\n";
    text += &output::rows(["PHASE", "TIME"], times);
    if attempts.len() > 1 {
        text += "\n\n";
        text += &show::attempts_table(attempts);
    }
    text
}
