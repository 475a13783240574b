//! One run: read the request, look at the input, settle the plan, let ffmpeg work, look at the output.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use telecine_proto::engine::v1 as wire;
use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;
use wire::run_event::Event;

use crate::arguments;
use crate::diagnosis::{Exit, Transcript, unreadable};
use crate::failure::Failure;
use crate::plan::Plan;
use crate::probe::{self, Probe};
use crate::processing::{Container, Processing};
use crate::program::{DoesNotRun, Next, Program};
use crate::progress::Meter;

/// Most lines of ffmpeg's that go to the job's log; a broken input can make it write millions.
const LOG_LIMIT: usize = 5_000;
/// How long the last event may wait for a caller that does not read.
const LAST_EVENT_WAIT: Duration = Duration::from_secs(10);
/// How much shorter than expected an output may be, in microseconds, before damage in the input counts as its cause.
const SHORTFALL_MICROS: u64 = 500_000;

/// The way to whoever called `Run`.
pub(crate) struct Caller {
    pub(crate) events: Sender<Result<wire::RunEvent, tonic::Status>>,
    pub(crate) cancel: CancellationToken,
}

impl Caller {
    /// Tells an event. When the caller is gone the run is canceled: nobody could ever read its end.
    async fn tell(&self, event: Event) {
        let sent = self.events.send(Ok(wire::RunEvent { event: Some(event) }));
        tokio::select! {
            biased;
            sent = sent => if sent.is_err() { self.cancel.cancel() },
            () = self.cancel.cancelled() => {}
        }
    }

    async fn phase(&self, phase: &str) {
        self.tell(progress(None, None, phase)).await;
    }

    async fn log(&self, line: impl Into<String>) {
        self.tell(Event::LogLine(line.into())).await;
    }

    /// Tells the end, cancelled or not.
    pub(crate) async fn end(&self, result: Result<Value, Failure>) {
        let event = match result {
            Ok(summary) => Event::Done(wire::Done { summary_json: summary.to_string().into_bytes() }),
            Err(failure) => Event::Failed(failure.into()),
        };
        let event = Ok(wire::RunEvent { event: Some(event) });
        if self.events.send_timeout(event, LAST_EVENT_WAIT).await.is_err() {
            tracing::warn!("nobody read how the run ended");
        }
    }
}

fn progress(ratio_ppm: Option<u32>, media_millis: Option<u64>, phase: &str) -> Event {
    Event::Progress(wire::Progress { ratio_ppm, media_millis, phase: phase.to_owned() })
}

/// Does what `request` asks and returns a summary of the output.
///
/// # Errors
/// With the kind `Canceled` whenever `caller.cancel` fired before the output was complete.
pub(crate) async fn run(request: &wire::RunRequest, caller: &Caller) -> Result<Value, Failure> {
    let result = work(request, caller).await;
    if caller.cancel.is_cancelled() { Err(Failure::canceled()) } else { result }
}

async fn work(request: &wire::RunRequest, caller: &Caller) -> Result<Value, Failure> {
    let processing = Processing::parse(&request.processing_json)?;
    let input = only(&request.inputs, "input")?;
    let target = Target::choose(&processing, input, only(&request.outputs, "output")?)?;

    caller.phase("probing").await;
    let probe = probe_input(input, caller).await?;
    let plan = Plan::settle(&processing, target.container, &probe)?;

    caller.phase("encoding").await;
    let threads = request.cpu_milli.div_ceil(1000);
    let arguments = arguments::arguments(&plan, input, &target.path, threads);
    let transcript = encode(&plan, input, &arguments, caller).await?;

    caller.phase("verifying").await;
    let made = verify(&plan, &target.path, &transcript, caller).await?;
    Ok(made.summary(target.container.word()))
}

/// The one path of a map with one slot, whatever its name.
fn only<'r>(slots: &'r std::collections::HashMap<String, String>, kind: &str) -> Result<&'r str, Failure> {
    let mut paths = slots.values();
    match (paths.next(), paths.next()) {
        (Some(path), None) => Ok(path),
        _ => Err(Failure::input(
            "invalid_composition",
            format!("transform takes one {kind}, and the composition names {}", slots.len()),
        )),
    }
}

/// Where the output goes and in which container.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    path: String,
    container: Container,
}

impl Target {
    /// The container is the one that `processing` names, else that of the file's extension. Into a folder goes a file named
    /// as the input.
    fn choose(processing: &Processing, input: &str, output: &str) -> Result<Self, Failure> {
        if output.ends_with('/') {
            let container = processing.container.unwrap_or(Container::Mp4);
            let stem = Path::new(input).file_stem().and_then(|stem| stem.to_str()).unwrap_or("output");
            let path = format!("{}/{stem}.{}", output.trim_end_matches('/'), container.word());
            return Ok(Self { path, container });
        }
        let name = output.rsplit('/').next().unwrap_or(output);
        let container = processing.container.or_else(|| Container::of_file_name(name)).ok_or_else(|| {
            Failure::input(
                "invalid_processing",
                format!("processing/container: the output `{name}` has no extension that tells it, so it must be set"),
            )
        })?;
        Ok(Self { path: output.to_owned(), container })
    }
}

async fn probe_input(input: &str, caller: &Caller) -> Result<Probe, Failure> {
    // Said plainly, since ffmpeg only misses some index.
    if tokio::fs::metadata(input).await.is_ok_and(|file| file.len() == 0) {
        return Err(unreadable("it is empty"));
    }
    let (exit, report, transcript) = ffprobe(input, caller).await?;
    if exit != Exit::Code(0) {
        return Err(transcript.judge_probe(exit));
    }
    let probe = Probe::parse(&report).map_err(|error| unreadable(&format!("ffprobe's report: {error}")))?;
    match probe.refused_format() {
        Some(format) => Err(unreadable(&format!("`{format}` is no format this engine reads"))),
        None => Ok(probe),
    }
}

async fn ffprobe(path: &str, caller: &Caller) -> Result<(Exit, Vec<u8>, Transcript), Failure> {
    let (mut report, mut transcript) = (Vec::new(), Transcript::new(path));
    let mut program = Program::start("ffprobe", &probe::arguments(path), &caller.cancel)?;
    loop {
        match program.next().await? {
            Next::Out(line) => report.extend_from_slice(line.as_bytes()),
            Next::Error(line) => {
                transcript.read(&line);
                caller.log(line).await;
            }
            Next::Ended(exit) => return Ok((exit, report, transcript)),
        }
    }
}

impl From<DoesNotRun> for Failure {
    fn from(error: DoesNotRun) -> Self {
        Self::engine("ffmpeg_missing", error)
    }
}

/// Lets ffmpeg work; what it said is for judging the output.
async fn encode(
    plan: &Plan,
    input: &str,
    arguments: &[String],
    caller: &Caller,
) -> Result<Transcript, Failure> {
    caller.log(format!("ffmpeg {}", arguments.join(" "))).await;
    let (mut meter, mut transcript) = (Meter::new(plan.expected_micros), Transcript::new(input));
    let (mut phase, mut lines) = ("encoding", 0);
    let mut program = Program::start("ffmpeg", arguments, &caller.cancel)?;
    let exit = loop {
        match program.next().await? {
            Next::Out(line) => {
                if let Some(report) = meter.read(&line) {
                    caller.tell(progress(report.ratio_ppm, Some(report.media_millis), phase)).await;
                }
            }
            Next::Error(line) => {
                transcript.read(&line);
                if line.contains("Starting second pass") {
                    phase = "moving the index to the front";
                }
                lines += 1;
                log_within_limit(line, lines, caller).await;
            }
            Next::Ended(exit) => break exit,
        }
    };
    transcript.judge(exit)?;
    Ok(transcript)
}

async fn log_within_limit(line: String, count: usize, caller: &Caller) {
    if count <= LOG_LIMIT {
        caller.log(line).await;
    } else if count == LOG_LIMIT + 1 {
        caller.log(format!("telecine-transform: more than {LOG_LIMIT} lines; the rest is left out")).await;
    }
}

/// Looks at what was made: ffmpeg's exit code alone proves nothing.
async fn verify(
    plan: &Plan,
    output: &str,
    transcript: &Transcript,
    caller: &Caller,
) -> Result<Probe, Failure> {
    let (exit, report, _) = ffprobe(output, caller).await?;
    let made = (exit == Exit::Code(0)).then(|| Probe::parse(&report).ok()).flatten();
    let fault = match &made {
        None => Some("it cannot be read back as media".to_owned()),
        Some(made) => missing(plan, made),
    };
    match (fault, made) {
        (None, Some(made)) => check_length(plan, &made, transcript, caller).await.map(|()| made),
        (fault, _) => Err(unusable(plan, transcript, &fault.unwrap_or_default())),
    }
}

/// What the output lacks.
fn missing(plan: &Plan, made: &Probe) -> Option<String> {
    if plan.video.is_some() && made.video().is_none() {
        return Some("it has no video".to_owned());
    }
    if plan.audio.is_some() && made.audio().is_none() {
        return Some("it has no audio".to_owned());
    }
    // A still picture has a length too once it is in a container.
    made.duration_micros([]).is_none().then(|| "it lasts 0 s".to_owned())
}

fn unusable(plan: &Plan, transcript: &Transcript, fault: &str) -> Failure {
    if let Some(damage) = transcript.damage() {
        return unreadable(damage);
    }
    if plan.start_micros.is_some() && plan.expected_micros.is_none_or(|_| plan.length_micros.is_some()) {
        return Failure::input(
            "trim_out_of_range",
            format!("nothing of the input lies in the trim: {fault}"),
        );
    }
    Failure::engine("output_unusable", format!("ffmpeg made an output that is unusable: {fault}"))
}

/// An output that is too short is the fault of an input that breaks off, when ffmpeg saw damage; else only worth a line,
/// since some containers merely guess how long they are.
async fn check_length(
    plan: &Plan,
    made: &Probe,
    transcript: &Transcript,
    caller: &Caller,
) -> Result<(), Failure> {
    let lasts = made.duration_micros([]);
    let (Some(expected), Some(lasts)) = (plan.expected_micros, lasts) else { return Ok(()) };
    let tolerance = SHORTFALL_MICROS.max(expected / 50).min(expected / 2);
    if lasts + tolerance >= expected {
        return Ok(());
    }
    let seconds = |micros: u64| format!("{}.{:03} s", micros / 1_000_000, micros / 1000 % 1000);
    let shortfall = format!("{} of {} could be made", seconds(lasts), seconds(expected));
    match transcript.damage() {
        Some(damage) => Err(unreadable(&format!("{damage} (it breaks off: {shortfall})"))),
        None => {
            caller.log(format!("telecine-transform: the input lasts less than it says: {shortfall}")).await;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(processing: &str, input: &str, output: &str) -> Result<Target, Failure> {
        Target::choose(&Processing::parse(processing.as_bytes()).unwrap(), input, output)
    }

    #[test]
    fn the_container_is_named_or_told_by_the_file() {
        let target = |path: &str, container| Target { path: path.to_owned(), container };
        assert_eq!(choose("{}", "/i/a.mov", "/o/x/b.MKV").unwrap(), target("/o/x/b.MKV", Container::Mkv));
        let named = choose(r#"{"container":"ts"}"#, "/i/a.mov", "/o/x/b.bin").unwrap();
        assert_eq!(named, target("/o/x/b.bin", Container::Ts));
        assert_eq!(choose("{}", "/i/a.b.mov", "/o/x/").unwrap(), target("/o/x/a.b.mp4", Container::Mp4));
        assert_eq!(choose("{}", "/i/.mov", "/o/").unwrap(), target("/o/.mov.mp4", Container::Mp4));
        let failure = choose("{}", "/i/a.mov", "/o/x.y/b").unwrap_err();
        assert_eq!(failure.code, "invalid_processing");
        assert!(failure.message.starts_with("processing/container"), "{}", failure.message);
    }

    #[test]
    fn one_input_and_one_output() {
        let slots =
            |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), format!("/{name}"))).collect();
        assert_eq!(only(&slots(&["source"]), "input").unwrap(), "/source");
        assert_eq!(only(&slots(&[]), "input").unwrap_err().code, "invalid_composition");
        let failure = only(&slots(&["a", "b"]), "output").unwrap_err();
        assert_eq!(failure.message, "transform takes one output, and the composition names 2");
    }
}
