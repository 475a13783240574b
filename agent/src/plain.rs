//! Plain engines: programs that know nothing of Telecine. Their arguments name inputs and outputs by placeholder, their
//! stdout may carry progress, their exit code is the verdict.

use std::collections::BTreeMap;

use serde_json::Value;

/// Longest line that is looked at for progress; longer ones pass as log.
const LONGEST_LINE: usize = 4096;

/// Where the inputs and outputs of an attempt are, as the engine sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnginePaths {
    /// A file, or a folder with a trailing slash, by input name.
    pub inputs: BTreeMap<String, String>,
    /// The same by output name.
    pub outputs: BTreeMap<String, String>,
}

/// Why a plain engine's arguments cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgumentError {
    /// A placeholder names nothing of this job.
    #[error(
        "argument {argument:?}: the composition has no {{{placeholder}}}; known are {known}. Correct the arguments of the engine version or of the composition"
    )]
    UnknownPlaceholder {
        /// The whole argument.
        argument: String,
        /// What stands between the braces.
        placeholder: String,
        /// What may stand there.
        known: String,
    },
    /// `/processing/arguments` is not a list of strings.
    #[error("composition /processing/arguments{pointer}: a list of strings is expected")]
    NotStrings {
        /// Where below `arguments`, as a JSON pointer.
        pointer: String,
    },
}

/// The arguments of a plain engine: those of the engine version, then those of the composition.
///
/// # Errors
/// When a placeholder is unknown or the composition's arguments are not strings.
pub fn arguments(
    published: &[String],
    processing: &Value,
    paths: &EnginePaths,
) -> Result<Vec<String>, ArgumentError> {
    let asked = composition_arguments(processing)?;
    published.iter().chain(&asked).map(|argument| fill(argument, paths)).collect()
}

fn composition_arguments(processing: &Value) -> Result<Vec<String>, ArgumentError> {
    let items = match processing.get("arguments") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(ArgumentError::NotStrings { pointer: String::new() }),
    };
    let text = |(i, item): (usize, &Value)| {
        item.as_str().map(str::to_owned).ok_or(ArgumentError::NotStrings { pointer: format!("/{i}") })
    };
    items.iter().enumerate().map(text).collect()
}

/// Replaces `{input.NAME}` and `{output.NAME}`; other braces are left alone, since programs use them too.
fn fill(argument: &str, paths: &EnginePaths) -> Result<String, ArgumentError> {
    let mut filled = String::with_capacity(argument.len());
    let mut rest = argument;
    while let Some(open) = rest.find('{') {
        filled.push_str(&rest[..open]);
        let after = &rest[open + 1..];
        let place = after.split_once('}').filter(|(name, _)| is_placeholder(name));
        match place {
            Some((name, behind)) => {
                filled.push_str(path(name, paths).ok_or_else(|| unknown(argument, name, paths))?);
                rest = behind;
            }
            None => {
                filled.push('{');
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    Ok(filled)
}

fn is_placeholder(name: &str) -> bool {
    name.starts_with("input.") || name.starts_with("output.")
}

fn path<'p>(name: &str, paths: &'p EnginePaths) -> Option<&'p str> {
    match name.split_once('.') {
        Some(("input", slot)) => paths.inputs.get(slot).map(String::as_str),
        Some(("output", slot)) => paths.outputs.get(slot).map(String::as_str),
        _ => None,
    }
}

fn unknown(argument: &str, name: &str, paths: &EnginePaths) -> ArgumentError {
    let inputs = paths.inputs.keys().map(|slot| format!("{{input.{slot}}}"));
    let outputs = paths.outputs.keys().map(|slot| format!("{{output.{slot}}}"));
    let known: Vec<String> = inputs.chain(outputs).collect();
    ArgumentError::UnknownPlaceholder {
        argument: argument.chars().take(200).collect(),
        placeholder: name.chars().take(80).collect(),
        known: if known.is_empty() { "none".to_owned() } else { known.join(", ") },
    }
}

/// What an engine said about how far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressReport {
    /// Parts per million done.
    pub ratio_ppm: Option<u32>,
    /// Milliseconds of media done.
    pub media_millis: Option<u64>,
    /// What it is doing.
    pub phase: Option<String>,
}

/// Splits the stdout of a plain engine into progress and log.
///
/// `telecine-progress: <ppm> [media_ms]` and the key=value lines of ffmpeg's `-progress` are taken out; everything else
/// is log, byte for byte.
#[derive(Debug, Default)]
pub struct ProgressLines {
    partial: Vec<u8>,
    /// The line in `partial` is too long to be progress and its beginning has been passed on.
    passing: bool,
}

/// What came out of a piece of stdout.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Bytes for the log.
    pub log: Vec<u8>,
    /// Reports, oldest first.
    pub reports: Vec<ProgressReport>,
}

impl ProgressLines {
    /// Takes a piece of stdout.
    pub fn push(&mut self, data: &[u8]) -> Split {
        let mut split = Split::default();
        for piece in data.split_inclusive(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(piece);
            let ended = piece.ends_with(b"\n");
            if ended || self.passing || self.partial.len() > LONGEST_LINE {
                let line = std::mem::take(&mut self.partial);
                self.sort(line, !self.passing && ended, &mut split);
                self.passing = !ended;
            }
        }
        split
    }

    /// Takes the end of stdout.
    pub fn finish(&mut self) -> Split {
        let mut split = Split::default();
        let line = std::mem::take(&mut self.partial);
        self.sort(line, !self.passing, &mut split);
        split
    }

    fn sort(&self, line: Vec<u8>, whole: bool, split: &mut Split) {
        match std::str::from_utf8(&line).ok().filter(|_| whole).and_then(|text| parse(text.trim_end())) {
            Some(Some(report)) => split.reports.push(report),
            Some(None) => {}
            None => split.log.extend(line),
        }
    }
}

/// `None`: not progress. `Some(None)`: part of ffmpeg's progress that says nothing we use.
fn parse(line: &str) -> Option<Option<ProgressReport>> {
    if let Some(rest) = line.strip_prefix("telecine-progress:") {
        let mut words = rest.split_whitespace();
        let ratio_ppm = words.next()?.parse::<u32>().ok()?.min(1_000_000);
        let media_millis = words.next().and_then(|word| word.parse().ok());
        return Some(Some(ProgressReport { ratio_ppm: Some(ratio_ppm), media_millis, phase: None }));
    }
    let (key, value) = line.split_once('=')?;
    match key {
        "out_time_us" => {
            let millis =
                value.trim().parse::<i64>().ok().and_then(|micros| u64::try_from(micros / 1000).ok());
            Some(millis.map(|millis| ProgressReport { media_millis: Some(millis), ..Default::default() }))
        }
        "frame" | "fps" | "bitrate" | "total_size" | "out_time_ms" | "out_time" | "dup_frames"
        | "drop_frames" | "speed" | "progress" => Some(None),
        _ if key.starts_with("stream_") && key.ends_with("_q") => Some(None),
        _ => None,
    }
}

/// Progress that never runs back inside an attempt (SPEC 3.6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Furthest {
    /// Parts per million done, when known.
    pub ratio_ppm: Option<u32>,
    /// Milliseconds of media done, when known.
    pub media_millis: Option<u64>,
    /// What the engine is doing.
    pub phase: String,
}

impl Furthest {
    /// Takes a report; answers whether it went on.
    pub fn take(&mut self, report: ProgressReport) -> bool {
        let before = self.clone();
        let ratio = report.ratio_ppm.map(|ratio| ratio.min(1_000_000));
        self.ratio_ppm = self.ratio_ppm.max(ratio);
        self.media_millis = self.media_millis.max(report.media_millis);
        if let Some(phase) = report.phase {
            self.phase = phase.chars().filter(|c| !c.is_control()).take(80).collect();
        }
        *self != before
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths() -> EnginePaths {
        EnginePaths {
            inputs: [("source".to_owned(), "/telecine/data/inputs/source/{output.x}.mov".to_owned())].into(),
            outputs: [("result".to_owned(), "/telecine/data/outputs/result/out.mp4".to_owned())].into(),
        }
    }

    #[test]
    fn placeholders_become_paths_and_paths_bring_none() {
        let published = ["-i".to_owned(), "{input.source}".to_owned()];
        let processing = json!({"arguments": ["-vf", "scale={w}:-1", "file:{output.result}"]});
        assert_eq!(
            arguments(&published, &processing, &paths()).unwrap(),
            [
                "-i",
                "/telecine/data/inputs/source/{output.x}.mov",
                "-vf",
                "scale={w}:-1",
                "file:/telecine/data/outputs/result/out.mp4"
            ]
        );
        assert_eq!(arguments(&[], &json!(null), &paths()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_unknown_is_named() {
        let error = arguments(&["{input.sorce}".to_owned()], &json!({}), &paths()).unwrap_err();
        assert!(error.to_string().contains("{input.sorce}; known are {input.source}, {output.result}"));
        let error = arguments(&[], &json!({"arguments": ["a", 2]}), &paths()).unwrap_err();
        assert_eq!(error, ArgumentError::NotStrings { pointer: "/1".into() });
        assert!(arguments(&[], &json!({"arguments": "a"}), &paths()).is_err());
    }

    #[test]
    fn progress_is_taken_out_of_stdout_however_it_is_split() {
        let text =
            b"hello\ntelecine-progress: 250000 1500\nframe=12\nout_time_us=2000000\nprogress=end\nk=v\nend";
        for cut in 0..text.len() {
            let mut lines = ProgressLines::default();
            let (a, b, c) = (lines.push(&text[..cut]), lines.push(&text[cut..]), lines.finish());
            let log = [a.log, b.log, c.log].concat();
            assert_eq!(String::from_utf8(log).unwrap(), "hello\nk=v\nend");
            let reports: Vec<_> = [a.reports, b.reports, c.reports].concat();
            assert_eq!((reports[0].ratio_ppm, reports[0].media_millis), (Some(250_000), Some(1500)));
            assert_eq!(reports[1].media_millis, Some(2000));
            assert_eq!(reports.len(), 2);
        }
    }

    #[test]
    fn long_and_broken_lines_are_log() {
        let mut lines = ProgressLines::default();
        let long = vec![b'a'; LONGEST_LINE * 3];
        let mut log = Vec::new();
        for piece in long.chunks(1000) {
            log.extend(lines.push(piece).log);
        }
        log.extend(lines.push(b"\ntelecine-progress: x\nout_time_us=N/A\n").log);
        log.extend(lines.push(b"telecine-progress: 9000000\n\xff\xfe\n").log);
        assert_eq!(log, [long, b"\ntelecine-progress: x\n\xff\xfe\n".to_vec()].concat());
    }

    #[test]
    fn progress_never_runs_back() {
        let mut furthest = Furthest::default();
        let report = |ratio, media| ProgressReport { ratio_ppm: ratio, media_millis: media, phase: None };
        assert!(furthest.take(report(Some(500_000), Some(10))));
        assert!(!furthest.take(report(Some(400_000), Some(5))));
        assert!(furthest.take(report(None, Some(20))));
        assert!(furthest.take(report(Some(7_000_000), None)));
        assert_eq!((furthest.ratio_ppm, furthest.media_millis), (Some(1_000_000), Some(20)));
    }
}
