//! Start-up, idle cost and memory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use telecine_tests::up::{Up, pause};

use crate::figures::{Figures, median};

const TICKS_PER_SECOND: f64 = 100.0;

/// Start to ready, then a quiet minute.
pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let mut starts = Vec::new();
    let mut up = None;
    for _ in 0..5 {
        drop(up.take());
        let start = Instant::now();
        let fresh = Up::start(&[]);
        fresh.until("an instance is ready", |up| {
            up.cli(&["instances", "list"])["data"]
                .as_array()
                .is_some_and(|all| all.iter().any(|i| i["state"] == "ready"))
        });
        starts.push(start.elapsed().as_secs_f64());
        up = Some(fresh);
    }
    let Some(up) = up else { return Ok(()) };
    figures.at_most(
        "`up` over an empty folder: start to an instance ready (median of 5)",
        median(starts),
        2.0,
        " s",
    );
    pause(Duration::from_secs(5));
    let (before, start) = (processor_seconds(&up), Instant::now());
    pause(Duration::from_secs(30));
    let share = (processor_seconds(&up) - before) / start.elapsed().as_secs_f64() * 100.0;
    figures.at_most("idle CPU of `up` and agent, of one core", share, 1.0, " %");
    figures.at_most("resident memory of `up` and agent", resident_mebibytes(&up), 120.0, " MiB");
    Ok(())
}

fn pids(up: &Up) -> Vec<i32> {
    let mut all: Vec<i32> =
        up.processes("agent").iter().chain(&up.processes("worker")).map(|p| p.pid).collect();
    all.push(up.process().pid);
    all
}

/// Processor time of `up`, its agents, their workers and what they have waited for.
pub(crate) fn processor_seconds(up: &Up) -> f64 {
    pids(up).into_iter().map(ticks).sum::<u64>() as f64 / TICKS_PER_SECOND
}

fn ticks(pid: i32) -> u64 {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<u64> = line
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(|f| f.parse().unwrap_or(0))
        .collect();
    // After the name: utime, stime, cutime and cstime are fields 12 to 15 (proc(5) counts them 14 to 17).
    fields.get(11..15).map_or(0, |times| times.iter().sum())
}

fn resident_mebibytes(up: &Up) -> f64 {
    let kib = |pid: i32| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
    };
    pids(up).into_iter().map(kib).sum::<u64>() as f64 / 1024.0
}
