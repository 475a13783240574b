//! `telecine jobs logs`.

use std::io::Write;

use clap::Args;
use futures::StreamExt;
use reqwest::Method;
use reqwest::header::ACCEPT;

use crate::client::{Call, Client};
use crate::failure::{Exit, Failure};
use crate::output::Format;

/// Arguments of `jobs logs`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  telecine jobs logs job_01kaj...\n  telecine jobs logs job_01kaj... --attempt 1\n  telecine jobs logs job_01kaj... --follow"
)]
pub(crate) struct Arguments {
    /// Its id
    job: String,
    /// Which attempt; the last one when left out
    #[arg(long)]
    attempt: Option<u32>,
    /// Go on until the attempt ends
    #[arg(short, long)]
    follow: bool,
}

/// Prints the log of an attempt, byte by byte as the engine wrote it (with `-o json`: a JSON object per chunk).
///
/// # Errors
/// When there is no such job or attempt.
pub(crate) async fn run(client: &Client, format: Format, arguments: &Arguments) -> Result<(), Failure> {
    let accept = if format == Format::Json { "application/x-ndjson" } else { "text/plain" };
    let call = Call::new(Method::GET, &["jobs", &arguments.job, "logs"])
        .query("attempt", arguments.attempt)
        .query("follow", arguments.follow.then_some(true))
        .header(ACCEPT, Some(accept))?;
    let mut chunks = client.send(call).await?.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk =
            chunk.map_err(|error| Failure::new(Exit::TimedOut, format!("the log broke off: {error}")))?;
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(&chunk).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Failure::new(Exit::Failed, format!("cannot write to stdout: {error}"))),
            Ok(()) => {}
        }
    }
    Ok(())
}
