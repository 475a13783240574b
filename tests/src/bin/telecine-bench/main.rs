//! `make bench`: what Telecine adds, as ratios against floors measured in the same run.
//!
//! Prints a table for docs/benchmarks.md. Arguments name the parts to run (`ready`, `container`, `process`, `transcode`);
//! without any, all. Needs Docker, the test images (`scripts/build-test-images`) and release binaries beside it. Takes some
//! minutes, during which nothing else should run.

mod engine;
mod figures;
mod floor;
mod noop;
mod ready;
mod transcode;

use std::io::Write;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let only: Vec<String> = std::env::args().skip(1).collect();
    let chosen = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut figures = figures::Figures::default();
    if chosen("ready") {
        ready::measure(&mut figures)?;
    }
    if chosen("container") {
        runtime.block_on(noop::one_container_at_a_time(&mut figures)).context("container")?;
    }
    if chosen("process") {
        runtime.block_on(noop::a_thousand_processes(&mut figures)).context("process")?;
    }
    if chosen("transcode") {
        runtime.block_on(transcode::measure(&mut figures)).context("transcode")?;
    }
    std::io::stdout().write_all(figures.table().as_bytes())?;
    Ok(())
}
