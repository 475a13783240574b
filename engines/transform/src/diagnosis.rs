//! What ffmpeg's words mean: its stderr lines and its exit, as "the input is broken", "the output could not be written" or
//! "ffmpeg is at fault".
//!
//! The exit code alone is not enough: ffmpeg 5.1 exits with 0 when closing the output fails, and when the input breaks off
//! half way. The fixtures of the tests are lines that ffmpeg 5.1 really wrote.

use crate::failure::Failure;

/// Longest reason that is kept, in characters.
const REASON_LIMIT: usize = 400;

/// What stderr has told so far.
#[derive(Debug)]
pub(crate) struct Transcript {
    input: String,
    /// The output could not be written.
    output_error: Option<String>,
    /// Reading the input failed, though not because of what is in it.
    read_error: Option<String>,
    /// The input holds something that is broken.
    damage: Option<String>,
    /// A track does not go into the container.
    incompatible: Option<String>,
    /// The last line of level error or worse.
    last_error: Option<String>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

impl Transcript {
    /// For a program that reads `input` (the path, as given to it behind `file:`).
    pub(crate) fn new(input: &str) -> Self {
        Self {
            input: one_line(&format!("file:{input}")),
            output_error: None,
            read_error: None,
            damage: None,
            incompatible: None,
            last_error: None,
        }
    }

    /// Takes a line of stderr, written with `-loglevel level+…`.
    pub(crate) fn read(&mut self, line: &str) {
        let Some((level, message)) = level_and_message(line) else { return };
        let bad = matches!(level, "error" | "fatal" | "panic");
        if !bad && level != "warning" {
            return;
        }
        let message = one_line(message);
        let reason = self.without_path(&message);
        if is_damage(&message) {
            self.damage.get_or_insert_with(|| reason.clone());
        }
        if !bad || message.is_empty() {
            return;
        }
        if is_output_error(&message) {
            self.output_error.get_or_insert_with(|| reason.clone());
        } else if is_incompatible(&message) {
            self.incompatible.get_or_insert_with(|| reason.clone());
        } else if is_read_error(&message) {
            self.read_error.get_or_insert_with(|| reason.clone());
        }
        self.last_error = Some(reason);
    }

    /// Whether something in the input was broken, in ffmpeg's words.
    pub(crate) fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// What the exit of ffmpeg's work means; `Ok` still has to be proved by looking at the output.
    pub(crate) fn judge(&self, exit: Exit) -> Result<(), Failure> {
        if let Some(reason) = &self.output_error {
            return Err(Failure::engine(
                "output_write_error",
                format!("the output cannot be written: {reason}"),
            ));
        }
        if let Some(reason) = &self.read_error {
            return Err(Failure::engine("input_read_error", format!("reading the input failed: {reason}")));
        }
        match exit {
            Exit::Code(0) => Ok(()),
            Exit::Signal(signal) => Err(killed("ffmpeg", signal)),
            Exit::Code(code) => Err(self.failed(code)),
        }
    }

    fn failed(&self, code: i32) -> Failure {
        if let Some(reason) = &self.incompatible {
            return Failure::input("incompatible_stream", reason);
        }
        if let Some(reason) = &self.damage {
            return unreadable(reason);
        }
        let reason = self.last_error.as_deref().unwrap_or("it gave no reason");
        Failure::engine("ffmpeg_failed", format!("ffmpeg ended with code {code}: {reason}"))
    }

    /// What it means that ffprobe did not report on the input.
    pub(crate) fn judge_probe(&self, exit: Exit) -> Failure {
        match (exit, &self.read_error) {
            (Exit::Signal(signal), _) => killed("ffprobe", signal),
            (_, Some(reason)) => {
                Failure::engine("input_read_error", format!("reading the input failed: {reason}"))
            }
            _ => {
                unreadable(self.damage.as_deref().or(self.last_error.as_deref()).unwrap_or("it is no media"))
            }
        }
    }

    fn without_path(&self, message: &str) -> String {
        message.strip_prefix(&self.input).map_or(message, |rest| rest.trim_start_matches(": ")).to_owned()
    }
}

/// The input is not media, or broken.
pub(crate) fn unreadable(reason: &str) -> Failure {
    Failure::input("unreadable_input", format!("the input cannot be read as media: {reason}"))
}

fn killed(program: &str, signal: i32) -> Failure {
    let hint = if signal == 9 { " (perhaps it needed more memory than the job has)" } else { "" };
    Failure::engine("ffmpeg_killed", format!("{program} was killed by signal {signal}{hint}"))
}

/// `[context @ 0x…] [error] message` or `[error] message`.
fn level_and_message(line: &str) -> Option<(&str, &str)> {
    const LEVELS: [&str; 8] = ["panic", "fatal", "error", "warning", "info", "verbose", "debug", "trace"];
    let mut rest = line;
    for _ in 0..3 {
        let (bracketed, after) = rest.trim_start().strip_prefix('[')?.split_once(']')?;
        if LEVELS.contains(&bracketed) {
            return Some((bracketed, after.trim()));
        }
        rest = after;
    }
    None
}

fn is_output_error(message: &str) -> bool {
    const STARTS: [&str; 5] = [
        "av_interleaved_write_frame()",
        "Error writing trailer of ",
        "Error closing file ",
        "Unable to re-open ",
        "Error submitting a packet to the muxer",
    ];
    STARTS.iter().any(|start| message.starts_with(start))
}

fn is_incompatible(message: &str) -> bool {
    const PARTS: [&str; 5] = [
        // The encoder takes neither this size nor this rate: trying again gives the same.
        "Error while opening encoder for output stream",
        "codec not currently supported in container",
        "are supported for WebM",
        "only supports",
        "Could not find tag for codec",
    ];
    PARTS.iter().any(|part| message.contains(part))
}

/// Errors of the file system below the input, never of its content.
fn is_read_error(message: &str) -> bool {
    const ENDS: [&str; 6] = [
        ": Input/output error",
        ": Stale file handle",
        ": Transport endpoint is not connected",
        ": Permission denied",
        ": Connection timed out",
        ": No such file or directory",
    ];
    ENDS.iter().any(|end| message.ends_with(end))
}

fn is_damage(message: &str) -> bool {
    const PARTS: [&str; 8] = [
        "moov atom not found",
        "partial file",
        "File ended prematurely",
        "Invalid data found",
        "corrupt",
        "truncated",
        "could not find codec parameters",
        "Could not find codec parameters",
    ];
    PARTS.iter().any(|part| message.contains(part))
}

/// The text without control characters, cut to a length that fits a message.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    fn transcript(text: &str) -> Transcript {
        let mut transcript = Transcript::new("/in/clip.mov");
        text.lines().for_each(|line| transcript.read(line));
        transcript
    }

    fn judge(text: &str, exit: Exit) -> (Kind, &'static str, String) {
        let failure = transcript(text).judge(exit).unwrap_err();
        (failure.kind, failure.code, failure.message)
    }

    #[test]
    fn an_unreadable_input_is_told_in_ffprobes_own_words() {
        let table = [
            (
                "[mov,mp4,m4a,3gp,3g2,mj2 @ 0x55a2423d9240] [error] moov atom not found\n\
                 [error] file:/in/clip.mov: Invalid data found when processing input",
                "moov atom not found",
            ),
            (
                "[error] file:/in/clip.mov: Invalid data found when processing input",
                "Invalid data found when processing input",
            ),
            ("", "it is no media"),
        ];
        for (text, reason) in table {
            let failure = transcript(text).judge_probe(Exit::Code(1));
            assert_eq!((failure.kind, failure.code), (Kind::Input, "unreadable_input"));
            assert_eq!(failure.message, format!("the input cannot be read as media: {reason}"));
        }
        let failure = transcript("[error] file:/in/clip.mov: Input/output error").judge_probe(Exit::Code(1));
        assert_eq!((failure.kind, failure.code), (Kind::Engine, "input_read_error"));
        assert_eq!(failure.message, "reading the input failed: Input/output error");
        assert_eq!(transcript("").judge_probe(Exit::Signal(9)).code, "ffmpeg_killed");
    }

    #[test]
    fn a_full_disk_is_seen_though_ffmpeg_exits_with_0() {
        let text = "[error] Error writing trailer of file:full/o.mp4: No space left on device\n\
            [error] Error closing file file:full/o.mp4: No space left on device";
        let (kind, code, message) = judge(text, Exit::Code(0));
        assert_eq!((kind, code), (Kind::Engine, "output_write_error"));
        assert!(message.ends_with("No space left on device"), "{message}");
        let text = "[error] av_interleaved_write_frame(): No space left on device";
        assert_eq!(judge(text, Exit::Code(1)).1, "output_write_error");
    }

    #[test]
    fn a_stream_that_does_not_fit_is_the_inputs_matter() {
        let text = "[webm @ 0x55b49092c040] [error] Only VP8 or VP9 or AV1 video and Vorbis or Opus audio and WebVTT \
            subtitles are supported for WebM.\n[error] Could not write header for output file #0 (incorrect codec \
            parameters ?): Invalid argument\n[error] Error initializing output stream 0:1 -- \n[error] \n";
        let (kind, code, message) = judge(text, Exit::Code(1));
        assert_eq!((kind, code), (Kind::Input, "incompatible_stream"));
        assert!(message.starts_with("Only VP8"), "{message}");
    }

    #[test]
    fn damage_is_remembered_and_decides_only_when_the_work_failed() {
        let text = "[mov,mp4,m4a,3gp,3g2,mj2 @ 0x56049c160340] [warning] Packet corrupt (stream = 1, dts = 90112).\n\
            [mov,mp4,m4a,3gp,3g2,mj2 @ 0x56049c160340] [error] stream 1, offset 0x8228: partial file";
        let transcript = transcript(text);
        assert!(transcript.judge(Exit::Code(0)).is_ok());
        assert_eq!(transcript.damage(), Some("Packet corrupt (stream = 1, dts = 90112)."));
        assert_eq!(judge(text, Exit::Code(1)).1, "unreadable_input");
        let early = "[matroska,webm @ 0x558ccfca7200] [error] File ended prematurely";
        assert_eq!(judge(early, Exit::Code(1)).0, Kind::Input);
    }

    #[test]
    fn what_is_not_understood_is_ffmpegs_matter() {
        assert_eq!(judge("", Exit::Code(1)).2, "ffmpeg ended with code 1: it gave no reason");
        let (kind, code, message) = judge("[libx265 @ 0x1] [error] no such preset\nnoise", Exit::Code(187));
        assert_eq!((kind, code), (Kind::Engine, "ffmpeg_failed"));
        assert_eq!(message, "ffmpeg ended with code 187: no such preset");
        let (kind, code, _) = judge("[info] fine", Exit::Signal(9));
        assert_eq!((kind, code), (Kind::Engine, "ffmpeg_killed"));
        assert_eq!(
            judge("[error] file:/in/clip.mov: Stale file handle", Exit::Code(0)).1,
            "input_read_error"
        );
    }

    #[test]
    fn hostile_lines_do_no_harm() {
        let mut transcript = Transcript::new("/in/a\nb.mov");
        for line in ["[", "]", "[error]", "[[[[error]", "", "[error] \u{1b}[31m\0", "[a][b][c][d][error] x"] {
            transcript.read(line);
        }
        transcript.read(&format!("[error] {}", "x".repeat(100_000)));
        let failure = transcript.judge(Exit::Code(1)).unwrap_err();
        assert!(failure.message.len() < 500 && !failure.message.contains('\u{1b}'));
    }
}
