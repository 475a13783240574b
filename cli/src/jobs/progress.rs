//! Progress for people: a text, and a bar on a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use telecine_api::view::attempt::Progress;
use telecine_domain::job::StateName;

use crate::output;

/// How far it is, in words: `43.2 %, 12.3 s of media, encoding`.
pub(crate) fn text(progress: &Progress) -> String {
    let ratio = progress.ratio_ppm.map(|ppm| format!("{}.{} %", ppm / 10_000, ppm % 10_000 / 1000));
    let media =
        progress.media_millis.map(|millis| format!("{} of media", crate::quantity::display_millis(millis)));
    let phase = Some(output::printable(&progress.phase)).filter(|phase| !phase.is_empty());
    let parts: Vec<String> = [ratio, media, phase].into_iter().flatten().collect();
    if parts.is_empty() { "unknown".to_owned() } else { parts.join(", ") }
}

/// Shows a job's life: a bar on a terminal, else a line per change.
pub(crate) struct Display {
    bar: Option<ProgressBar>,
    printed_ppm: Option<u32>,
    state: Option<StateName>,
}

/// Without a terminal, progress is printed each time it has grown by this many parts per million.
const LINE_STEP_PPM: u32 = 100_000;

impl Display {
    /// A bar when a person watches stderr, else lines on stderr.
    pub(crate) fn new() -> Self {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        Self { bar: terminal.then(bar), printed_ppm: None, state: None }
    }

    /// The job is in this state now.
    pub(crate) fn state(&mut self, state: StateName, attempts: u32) {
        if self.state.replace(state) == Some(state) {
            return;
        }
        let text = if attempts > 1 { format!("{state} (attempt {attempts})") } else { state.to_string() };
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None => output::note(&text),
        }
    }

    /// It is this far.
    pub(crate) fn progress(&mut self, progress: &Progress) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(u64::from(progress.ratio_ppm.unwrap_or(0)));
                bar.set_prefix(text(progress));
            }
            None => self.progress_line(progress),
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn progress_line(&mut self, progress: &Progress) {
        let ppm = progress.ratio_ppm.unwrap_or(0);
        let due = self.printed_ppm.is_none_or(|printed| {
            ppm < printed || ppm - printed >= LINE_STEP_PPM || (ppm == 1_000_000 && printed < ppm)
        });
        if due {
            self.printed_ppm = Some(ppm);
            output::note(&text(progress));
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(1_000_000);
    let style = ProgressStyle::with_template("{spinner} {msg:12} [{bar:40}] {prefix} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use telecine_domain::time::Timestamp;

    use super::*;

    #[test]
    fn progress_reads_well() {
        let mut progress = Progress {
            attempt: 1,
            ratio_ppm: Some(432_100),
            media_millis: Some(12_345),
            phase: "encode".to_owned(),
            at: Timestamp::default(),
        };
        assert_eq!(text(&progress), "43.2 %, 12.3 s of media, encode");
        progress = Progress { ratio_ppm: None, media_millis: None, phase: String::new(), ..progress };
        assert_eq!(text(&progress), "unknown");
    }
}
