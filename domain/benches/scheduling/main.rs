//! `make bench-scheduling`: what a decision of the scheduler costs, what a queued job weighs, and how well GPUs are packed.
//!
//! Prints rows for docs/benchmarks.md. Arguments name the parts to run (`decisions`, `packing`); without any, all. The
//! packing part reads the Alibaba 2023 GPU trace below the folder that `TRACES` names, and says so when it is not there.
//! CPU time is what counts: it hardly depends on what else the machine does.

mod decisions;
mod machine;
mod packing;
mod random;

use std::io::Write;

fn main() -> std::io::Result<()> {
    // `cargo bench` adds `--bench`.
    let only: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let chosen = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    let mut out = std::io::stdout().lock();
    if chosen("decisions") {
        decisions::measure(&mut out)?;
    }
    if chosen("packing") {
        packing::measure(&mut out)?;
    }
    out.flush()
}
