//! What this process has cost so far.

use std::fs;

/// CPU time in nanoseconds, of the only thread there is.
///
/// # Panics
/// Where /proc has no `schedstat`: then nothing can be measured.
pub(crate) fn cpu_nanos() -> u64 {
    let text = fs::read_to_string("/proc/self/schedstat").expect("Linux with schedstat");
    text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("nanoseconds come first")
}

/// What it costs to ask for the CPU time: the least of a few tries, in nanoseconds.
pub(crate) fn cost_of_asking() -> u64 {
    let try_once = |_| {
        let before = cpu_nanos();
        cpu_nanos() - before
    };
    (0..32).map(try_once).min().unwrap_or(0)
}

/// Memory that is resident, in bytes.
///
/// # Panics
/// Where /proc has no `statm`: then nothing can be measured.
pub(crate) fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = text
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("resident pages come second");
    pages * 4096
}
