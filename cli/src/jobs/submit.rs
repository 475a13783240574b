//! `telecine jobs submit`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use reqwest::Method;
use serde_json::{Map, Value, json};
use telecine_api::view::job::Job;

use super::{show, watch};
use crate::client::{Call, Client};
use crate::document;
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::quantity;

const EXAMPLES: &str = r#"Examples:
  A composition from a file, followed to its end (the exit code is the job's):
      telecine jobs submit --service transform --file composition.json --wait
  From standard input, with more CPU than the engine version asks for:
      telecine jobs submit --service transform --file - --cpu 4 --memory 8GiB < composition.json
  What a factory does, for one object:
      telecine jobs submit --factory fac_01kaj... --input incoming/clip.mov --label team=news
  What begins when another job has succeeded:
      telecine jobs submit --service qualify --file check.json --depends-on job_01kaj...

A composition names inputs, processing and outputs; a store by id or name:
      {"inputs": {"source": {"store": "media", "key": "clip.mov"}},
       "processing": {"container": "mp4", "video": {"codec": "h264"}},
       "outputs": {"rendition": {"store": "media", "key": "out/clip.mp4"}}}"#;

/// Arguments of `jobs submit`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    request: Request,
    /// Accept it but keep it out of the queue until `jobs release`
    #[arg(long)]
    hold: bool,
    /// Follow the job until it ends; the exit code is the job's
    #[arg(long, conflicts_with = "hold")]
    wait: bool,
    /// With --wait: give up waiting (not the job) after this time, such as 10m
    #[arg(long, requires = "wait", value_parser = quantity::duration, value_name = "TIME")]
    timeout: Option<Duration>,
}

/// What is asked for.
#[derive(Debug, Args)]
pub(super) struct Request {
    /// The kind of work, such as `transform`
    #[arg(long, required_unless_present = "factory", requires = "file")]
    service: Option<String>,
    /// Engine version; the newest stable one when left out
    #[arg(long, value_name = "VERSION")]
    engine_version: Option<String>,
    /// File with the composition, or `-` for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "input")]
    file: Option<PathBuf>,
    /// Factory (id or name) whose work is done
    #[arg(long, conflicts_with = "service", value_name = "FACTORY")]
    factory: Option<String>,
    /// Key of the object that the factory works on
    #[arg(long, requires = "factory", value_name = "KEY")]
    input: Option<String>,
    /// Region; follows the data when left out
    #[arg(long)]
    region: Option<String>,
    /// A label, `key=value`; may be given several times
    #[arg(long = "label", value_parser = quantity::label, value_name = "KEY=VALUE")]
    labels: Vec<(String, String)>,
    /// 0 to 1000, higher first [default: 500]
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..=1000))]
    priority: Option<u16>,
    /// Cores, such as 2 or 0.5
    #[arg(long, value_parser = quantity::cores, value_name = "CORES", help_heading = "What the job needs")]
    cpu: Option<u64>,
    /// Memory, such as 4GiB
    #[arg(long, value_parser = quantity::size, value_name = "SIZE", help_heading = "What the job needs")]
    memory: Option<u64>,
    /// Scratch space, such as 20GiB
    #[arg(long, value_parser = quantity::size, value_name = "SIZE", help_heading = "What the job needs")]
    scratch: Option<u64>,
    /// GPUs
    #[arg(long, value_name = "COUNT", help_heading = "What the job needs")]
    gpus: Option<u64>,
    /// A job that must have succeeded before this one is queued; may be given several times
    #[arg(long, value_name = "JOB")]
    depends_on: Vec<String>,
    /// Retries after failures of the engine [default: 0]
    #[arg(long, value_name = "COUNT", help_heading = "Limits")]
    retries: Option<u32>,
    /// Retries after failures of the infrastructure [default: 5]
    #[arg(long, value_name = "COUNT", help_heading = "Limits")]
    infrastructure_retries: Option<u32>,
    /// Longest wait in the queue, such as 2h
    #[arg(long, value_parser = quantity::duration, value_name = "TIME", help_heading = "Limits")]
    queue_timeout: Option<Duration>,
    /// Longest time of one attempt, such as 30m
    #[arg(long, value_parser = quantity::duration, value_name = "TIME", help_heading = "Limits")]
    attempt_timeout: Option<Duration>,
    /// Longest time from submission to the end, such as 1d
    #[arg(long, value_parser = quantity::duration, value_name = "TIME", help_heading = "Limits")]
    total_timeout: Option<Duration>,
}

/// Submits a job and, if asked to, follows it.
///
/// # Errors
/// When it is refused.
pub(crate) async fn run(client: &Client, format: Format, arguments: Arguments) -> Result<ExitCode, Failure> {
    let mut body = arguments.request.body().await?;
    if arguments.hold {
        body.insert("hold".to_owned(), Value::Bool(true));
    }
    let call = Call::new(Method::POST, &["jobs"]).json(&body)?;
    let job: Job = client.json(call).await?;
    if arguments.wait {
        output::note(&format!("submitted {}", job.id));
        return watch::follow(client, format, &job.id.to_string(), arguments.timeout).await;
    }
    format.print(&job, |job| show::table(job, &[]))?;
    Ok(ExitCode::SUCCESS)
}

impl Request {
    /// The body of the request.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) async fn body(&self) -> Result<Map<String, Value>, Failure> {
        let mut body = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            body.extend(value.map(|value| (name.to_owned(), value)));
        };
        set("service", self.service.clone().map(Value::from));
        set("factory", self.factory.clone().map(Value::from));
        set("engine_version", self.engine_version.clone().map(Value::from));
        set("input", self.input.clone().map(Value::from));
        set("region", self.region.clone().map(Value::from));
        set("priority", self.priority.map(Value::from));
        set("resources", self.resources());
        set("retry", self.retry());
        set("timeouts", self.timeouts());
        if !self.labels.is_empty() {
            let labels: Map<_, _> =
                self.labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
            set("labels", Some(labels.into()));
        }
        if !self.depends_on.is_empty() {
            set("depends_on", Some(json!(self.depends_on)));
        }
        if let Some(file) = &self.file {
            set("composition", Some(document::read(file).await?));
        }
        Ok(body)
    }

    fn resources(&self) -> Option<Value> {
        object([
            ("cpu_milli", self.cpu),
            ("memory_bytes", self.memory),
            ("scratch_bytes", self.scratch),
            ("gpus", self.gpus),
        ])
    }

    fn retry(&self) -> Option<Value> {
        object([
            ("user", self.retries.map(u64::from)),
            ("infrastructure", self.infrastructure_retries.map(u64::from)),
        ])
    }

    fn timeouts(&self) -> Option<Value> {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs().max(1));
        object([
            ("queue_seconds", seconds(self.queue_timeout)),
            ("attempt_seconds", seconds(self.attempt_timeout)),
            ("total_seconds", seconds(self.total_timeout)),
        ])
    }
}

/// An object of the numbers that are there, if any is.
fn object<const N: usize>(numbers: [(&str, Option<u64>); N]) -> Option<Value> {
    let given =
        numbers.into_iter().filter_map(|(name, number)| Some((name.to_owned(), Value::from(number?))));
    let given: Map<_, _> = given.collect();
    (!given.is_empty()).then_some(Value::Object(given))
}
