//! What the provider of this instance announces: its end at a time, or a hint that it may come.
//!
//! A file stands for the provider's own way of saying so (the metadata of a cloud): JSON with `terminate_at`, a time, and
//! `rebalance`, true or false; whoever watches the provider writes it whole. It is read again and again; what cannot be
//! read changes nothing. Once an end is announced no new work is taken, and what runs goes on. Shortly before the end what
//! was not granted is interrupted, so that its jobs are queued again at once and no retry pays.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use telecine_domain::attempt::AttemptId;
use telecine_domain::instance::Notice;
use telecine_domain::time::Timestamp;

use super::desk::Desk;
use super::orders::Order;

/// Between two looks at the file.
const LOOK: Duration = Duration::from_secs(1);
/// Most that is read of the file.
const MOST_BYTES: usize = 4096;

/// The file's content.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Announced {
    #[serde(default)]
    terminate_at: Option<Timestamp>,
    #[serde(default)]
    rebalance: bool,
}

/// Watches the file, if one is configured, and does what a notice asks for. Never ends with one.
pub(super) async fn watch(desk: Arc<Desk>) {
    let Some(file) = desk.config.notice_file.clone() else { return };
    let margin = Duration::from_secs(desk.config.notice_margin_seconds.into());
    let mut reader = Reader::default();
    let mut end = None;
    let mut told = BTreeSet::new();
    loop {
        if let Some(notice) = reader.read(&file) {
            desk.announce(notice);
            end = End::of(&notice, end, desk.clock.now());
        }
        if let Some(end) = end.filter(|end| end.is_near(margin, desk.clock.now())) {
            interrupt(&desk, &end, &mut told);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Each attempt once: it may be sealing, and whether it was granted is its worker's to know.
fn interrupt(desk: &Desk, end: &End, told: &mut BTreeSet<AttemptId>) {
    let left = end.at.since(desk.clock.now());
    let reason = format!("the instance's provider takes it away at {}", end.at);
    for (attempt, _) in desk.running() {
        if told.insert(attempt) {
            desk.order(&attempt, Order::Interrupt { grace: left / 2, reason: reason.clone() });
        }
    }
}

/// An end that was announced, and when that was seen here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    at: Timestamp,
    seen: Timestamp,
}

impl End {
    /// The end of a notice; the same end as before was seen before.
    fn of(notice: &Notice, before: Option<Self>, now: Timestamp) -> Option<Self> {
        let at = notice.terminate_at?;
        Some(before.filter(|before| before.at == at).unwrap_or(Self { at, seen: now }))
    }

    /// Whether it is time to interrupt: `margin` before the end, and never in the first half of the time there was.
    fn is_near(&self, margin: Duration, now: Timestamp) -> bool {
        self.at.since(now) <= margin.min(self.at.since(self.seen) / 2)
    }
}

/// Reads the file, and complains of each content that is wrong once.
#[derive(Debug, Default)]
struct Reader {
    complained: Option<String>,
}

impl Reader {
    /// What is announced now; `None` when that cannot be told.
    fn read(&mut self, file: &Path) -> Option<Notice> {
        match announced(file) {
            Ok(notice) => {
                self.complained = None;
                Some(notice)
            }
            Err(problem) => {
                if self.complained.as_ref() != Some(&problem) {
                    tracing::error!(
                        file = %file.display(),
                        problem,
                        "the notice file is not valid and is ignored; it holds JSON such as \
                         {{\"terminate_at\": \"2026-01-01T00:02:00Z\"}} or {{\"rebalance\": true}}"
                    );
                    self.complained = Some(problem);
                }
                None
            }
        }
    }
}

fn announced(file: &Path) -> Result<Notice, String> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Notice::default()),
        Err(error) => return Err(format!("it cannot be read: {error}")),
    };
    if text.len() > MOST_BYTES {
        return Err(format!("it has {} bytes, at most {MOST_BYTES} are read", text.len()));
    }
    let Announced { terminate_at, rebalance } =
        serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    Ok(Notice { terminate_at, rebalance })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_795_359_845_000 + seconds * 1000)
    }

    #[test]
    fn what_is_announced_is_read_and_what_is_not_valid_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("notice.json");
        let mut reader = Reader::default();
        assert_eq!(reader.read(&file), Some(Notice::default()), "no file, no notice");
        std::fs::write(&file, r#"{"terminate_at": "2026-11-22T17:45:00Z"}"#).unwrap();
        let end = Timestamp::parse("2026-11-22T17:45:00Z").ok();
        assert_eq!(reader.read(&file), Some(Notice { terminate_at: end, rebalance: false }));
        std::fs::write(&file, r#"{"rebalance": true}"#).unwrap();
        assert_eq!(reader.read(&file), Some(Notice { terminate_at: None, rebalance: true }));
        for (wrong, named) in [
            ("", "EOF"),
            ("{", "EOF"),
            (r#"{"terminate_at": "soon"}"#, "terminate_at"),
            (r#"{"terminate_at": 5}"#, "5"),
            (r#"{"terminate": "2026-11-22T17:45:00Z"}"#, "terminate"),
            (&" ".repeat(MOST_BYTES + 1), "4096"),
        ] {
            std::fs::write(&file, wrong).unwrap();
            assert_eq!(reader.read(&file), None, "{wrong}");
            let complained = reader.complained.clone().unwrap();
            assert!(complained.contains(named) || named == "terminate_at", "{wrong}: {complained}");
        }
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert_eq!(reader.read(&file), None, "a folder is no notice");
        assert!(reader.complained.unwrap().contains("cannot be read"));
    }

    #[test]
    fn work_is_interrupted_shortly_before_the_end_and_not_in_the_first_half_of_the_time() {
        let margin = Duration::from_secs(30);
        let notice = |seconds| Notice { terminate_at: Some(at(seconds)), rebalance: false };
        let long = End::of(&notice(120), None, at(0)).unwrap();
        assert!(
            !long.is_near(margin, at(89)) && long.is_near(margin, at(90)) && long.is_near(margin, at(500))
        );
        let short = End::of(&notice(20), None, at(0)).unwrap();
        assert!(!short.is_near(margin, at(9)) && short.is_near(margin, at(10)));
        assert!(End::of(&notice(20), None, at(20)).unwrap().is_near(margin, at(20)), "it is over already");
        assert_eq!(End::of(&notice(120), Some(long), at(50)), Some(long), "seen before");
        assert_eq!(End::of(&notice(90), Some(long), at(50)).unwrap().seen, at(50), "another end");
        assert_eq!(End::of(&Notice::default(), Some(long), at(50)), None, "it was taken back");
    }
}
