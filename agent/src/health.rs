//! Health gates: whether the instance may take work, and if not, what is wrong and what to do (SPEC 8.7).
//!
//! `look` gathers facts by trying: it mounts, writes to the data folder and asks Docker; `assess` judges them (pure). A way
//! to run engines that does not answer is not offered any more; only an instance that is left without any is unhealthy
//! for it. `telecine doctor` tries the same ([`try_mount`], [`try_disk`]).

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use telecine_domain::instance::{HealthProblem, RuntimeKind};
use telecine_domain::resources::display_bytes;
use telecine_domain::time::Timestamp;

use crate::clock::Clock;
use crate::config::AgentConfig;
use crate::inventory;
use crate::runtime::Runtimes;

/// A clock before this was never set: 2026-01-01.
const EARLIEST: Timestamp = Timestamp::from_millis(1_767_225_600_000);
/// Wall time that runs differently from boot time by more than this between two looks was set by somebody.
const LARGEST_JUMP: Duration = Duration::from_secs(30);
/// How long the disk may take for a few bytes before it counts as broken.
const DISK_PATIENCE: Duration = Duration::from_secs(10);
/// How long a mount may take that lasts a millisecond on a machine that is well.
const MOUNT_PATIENCE: Duration = Duration::from_secs(5);

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Free bytes in the data folder, or why it cannot be written.
    pub free_bytes: Result<u64, String>,
    /// Wall time.
    pub now: Timestamp,
    /// Boot time.
    pub boot: Duration,
    /// Why nothing can be mounted, and what to do.
    pub fuse: Result<(), String>,
    /// Each allowed runtime and why it does not answer.
    pub runtimes: Vec<(RuntimeKind, Result<(), String>)>,
    /// GPUs that the driver shows.
    pub gpus: usize,
}

/// What the facts are held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The least free space.
    pub minimum_free_bytes: u64,
    /// GPUs at the start.
    pub gpus: usize,
    /// The data folder, for messages.
    pub data_folder: String,
}

/// What follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Closed gates.
    pub problems: Vec<HealthProblem>,
    /// Ways to run engines that work now.
    pub runtimes: BTreeSet<RuntimeKind>,
}

/// Looks at the machine; `fuse` is whether attempts can be mounted.
pub async fn look(
    config: &AgentConfig,
    runtimes: &Runtimes,
    fuse: Result<(), String>,
    clock: &Clock,
) -> Facts {
    let mut answers = Vec::new();
    for (&kind, runtime) in runtimes {
        answers.push((kind, runtime.check().await.map_err(|error| error.to_string())));
    }
    for &kind in config.runtimes.iter().filter(|kind| !runtimes.contains_key(kind)) {
        answers.push((kind, Err("it did not answer when the agent looked for it".to_owned())));
    }
    Facts {
        free_bytes: try_disk(config.data_folder.clone()).await,
        now: clock.now(),
        boot: clock.boot(),
        fuse,
        runtimes: answers,
        gpus: inventory::gpu_ids().len(),
    }
}

/// Mounts a file system for a moment, unseen by others. `folder` is any folder that is there; it is not touched.
///
/// # Errors
/// Why it cannot be done and what to do, in words.
pub async fn try_mount(folder: PathBuf) -> Result<(), String> {
    let trial = tokio::task::spawn_blocking(move || telecine_mount::try_mount(&folder, MOUNT_PATIENCE));
    let tried = trial.await.map_err(|error| format!("the trial of a mount failed: {error}"))?;
    tried.map_err(|error| format!("{error}; {}", error.mend()))
}

/// Writes a few bytes to a file in `folder`, makes them durable and takes them away; answers how many bytes are free.
///
/// # Errors
/// What the disk answers, or that it does not.
pub async fn try_disk(folder: PathBuf) -> Result<u64, String> {
    // A wedged disk keeps its thread; the next look finds that out again.
    let trial = tokio::task::spawn_blocking(move || write_durably(&folder));
    match tokio::time::timeout(DISK_PATIENCE, trial).await {
        Ok(Ok(tried)) => tried.map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(format!("the trial failed: {error}")),
        Err(_) => Err(format!("a few bytes were not written within {} s", DISK_PATIENCE.as_secs())),
    }
}

/// A full disk is told by its free space, not as an error.
fn write_durably(folder: &Path) -> std::io::Result<u64> {
    let path = folder.join(format!(".health-{}", std::process::id()));
    let written = std::fs::File::create(&path)
        .and_then(|mut file| file.write_all(b"telecine").and_then(|()| file.sync_all()));
    let removed = std::fs::remove_file(&path);
    match written.and(removed) {
        Err(error) if error.kind() != std::io::ErrorKind::StorageFull => Err(error),
        _ => inventory::free_bytes(folder),
    }
}

/// Judges `facts`; `before` are the facts of the look before.
pub fn assess(facts: &Facts, before: Option<&Facts>, limits: &Limits) -> Verdict {
    let checks = [disk(facts, limits), clock(facts, before), fuse(facts), runtime(facts), gpu(facts, limits)];
    let working = facts.runtimes.iter().filter(|(_, answer)| answer.is_ok()).map(|(kind, _)| *kind);
    Verdict { problems: checks.into_iter().flatten().collect(), runtimes: working.collect() }
}

fn problem(gate: &str, message: String) -> Option<HealthProblem> {
    Some(HealthProblem { gate: gate.to_owned(), message })
}

fn disk(facts: &Facts, limits: &Limits) -> Option<HealthProblem> {
    let folder = &limits.data_folder;
    match &facts.free_bytes {
        Ok(free) if *free >= limits.minimum_free_bytes => None,
        Ok(free) => {
            let (free, least) = (display_bytes(*free), display_bytes(limits.minimum_free_bytes));
            problem(
                "disk",
                format!(
                    "{folder} has {free} free, at least {least} are needed; make room or lower minimum_free_bytes"
                ),
            )
        }
        Err(error) => {
            problem("disk", format!("{folder} cannot be written: {error}; check the disk and its mount"))
        }
    }
}

fn clock(facts: &Facts, before: Option<&Facts>) -> Option<HealthProblem> {
    if facts.now < EARLIEST {
        return problem(
            "clock",
            format!("the clock says {}; set it and start time synchronisation", facts.now),
        );
    }
    let before = before?;
    let wall = i128::from(facts.now.as_millis()) - i128::from(before.now.as_millis());
    let boot =
        i128::from(u64::try_from(facts.boot.saturating_sub(before.boot).as_millis()).unwrap_or(u64::MAX));
    let jump = wall - boot;
    let jumped = jump.unsigned_abs() > LARGEST_JUMP.as_millis();
    jumped
        .then(|| {
            problem("clock", format!("the clock jumped by {} s; check time synchronisation", jump / 1000))
        })
        .flatten()
}

fn fuse(facts: &Facts) -> Option<HealthProblem> {
    let error = facts.fuse.as_ref().err()?;
    problem("fuse", format!("attempts cannot be mounted: {error}"))
}

fn runtime(facts: &Facts) -> Option<HealthProblem> {
    if facts.runtimes.iter().any(|(_, answer)| answer.is_ok()) {
        return None;
    }
    let errors = facts.runtimes.iter().filter_map(|(_, answer)| answer.as_ref().err().cloned());
    let errors = errors.collect::<Vec<_>>().join("; ");
    problem(
        "docker",
        format!("no container runtime answers: {errors}; start Docker or allow the agent its socket"),
    )
}

fn gpu(facts: &Facts, limits: &Limits) -> Option<HealthProblem> {
    let (found, expected) = (facts.gpus, limits.gpus);
    (found < expected)
        .then(|| {
            problem(
                "gpu",
                format!("{found} of {expected} GPUs answer; check the driver, then restart the agent"),
            )
        })
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Facts {
        Facts {
            free_bytes: Ok(10 << 30),
            now: EARLIEST.after(Duration::from_secs(100)),
            boot: Duration::from_secs(100),
            fuse: Ok(()),
            runtimes: vec![(RuntimeKind::Docker, Ok(())), (RuntimeKind::Process, Ok(()))],
            gpus: 1,
        }
    }

    fn gates(facts: &Facts, before: Option<&Facts>) -> Vec<String> {
        let limits = Limits { minimum_free_bytes: 1 << 30, gpus: 1, data_folder: "/data".into() };
        assess(facts, before, &limits).problems.into_iter().map(|problem| problem.gate).collect()
    }

    #[test]
    fn each_gate_closes_on_its_own() {
        assert!(gates(&well(), Some(&well())).is_empty());
        for (facts, gate) in [
            (Facts { free_bytes: Ok(1), ..well() }, "disk"),
            (Facts { free_bytes: Err("EIO".into()), ..well() }, "disk"),
            (Facts { now: Timestamp::from_millis(1), ..well() }, "clock"),
            (Facts { fuse: Err("EACCES".into()), ..well() }, "fuse"),
            (Facts { runtimes: vec![(RuntimeKind::Docker, Err("refused".into()))], ..well() }, "docker"),
            (Facts { gpus: 0, ..well() }, "gpu"),
        ] {
            assert_eq!(gates(&facts, None), [gate]);
        }
    }

    #[tokio::test]
    async fn a_disk_is_tried_by_writing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(try_disk(folder.path().to_owned()).await.unwrap() > 0);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing stays");
        // Read-only for root too.
        let error = try_disk("/proc/sys".into()).await.unwrap_err();
        assert!(!error.is_empty());
        let facts = Facts { free_bytes: Err(error), ..well() };
        assert_eq!(gates(&facts, None), ["disk"]);
    }

    #[test]
    fn a_clock_that_jumps_is_seen_in_both_directions() {
        let before = well();
        let minute = Duration::from_secs(60);
        let on = Facts { now: before.now.after(minute), boot: before.boot + minute, ..well() };
        assert!(gates(&on, Some(&before)).is_empty());
        let ahead = Facts { now: before.now.after(10 * minute), boot: before.boot + minute, ..well() };
        assert_eq!(gates(&ahead, Some(&before)), ["clock"]);
        let back = Facts { boot: before.boot + minute, ..well() };
        assert_eq!(gates(&back, Some(&before)), ["clock"]);
    }

    #[test]
    fn a_runtime_that_is_silent_is_not_offered() {
        let mut facts = well();
        facts.runtimes[0].1 = Err("refused".into());
        let limits = Limits { minimum_free_bytes: 0, gpus: 0, data_folder: String::new() };
        let verdict = assess(&facts, None, &limits);
        assert!(verdict.problems.is_empty());
        assert_eq!(verdict.runtimes, [RuntimeKind::Process].into());
    }
}
