//! Jobs that do nothing: what Telecine itself costs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use telecine_tests::image;
use telecine_tests::up::Up;

use crate::engine::{Client, nothing};
use crate::figures::{Figures, median, percentile};
use crate::floor::{Docker, Limits};
use crate::ready::processor_seconds;

const RUNS: usize = 30;
const JOBS: usize = 1000;
const LIMITS: Limits = Limits { cpu_milli: 100, memory_mebibytes: 16 };

/// One container at a time on an idle, warm system, interleaved with the floor.
pub(crate) async fn one_container_at_a_time(figures: &mut Figures) -> Result<()> {
    let image = image("TELECINE_NOOP_IMAGE").context("TELECINE_NOOP_IMAGE names no image")?;
    let up = Up::start(&[]);
    let client = Client::of(&up);
    client.publish("noop", json!({"kind": "plain", "image": image}), LIMITS).await?;
    let mut docker = Docker::connect().await?;
    docker.pull(&image).await?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for run in 0..RUNS + 3 {
        let start = Instant::now();
        ensure!(docker.run(&image, LIMITS, &[], None).await? == 0, "the image does nothing");
        let bare = start.elapsed();
        let start = Instant::now();
        let job = client.post("/v1/jobs", &nothing("noop")).await?;
        let id = job["id"].as_str().context("a job has an id")?.to_owned();
        ensure!(client.wait(&id).await? == "succeeded", "{id} succeeds");
        let whole = start.elapsed();
        if run >= 3 {
            floor.push(bare.as_secs_f64() * 1e3);
            ours.push(whole.as_secs_f64() * 1e3);
        }
    }
    let ratio = median(ours.clone()) / median(floor.clone());
    figures.at_most(
        "no-op container job, submit to succeeded ÷ Docker alone (medians of 30)",
        ratio,
        1.3,
        "×",
    );
    figures.note("… Docker alone: create, start, wait, remove (p50 / p95)", spread(&floor));
    figures.note("… through Telecine (p50 / p95)", spread(&ours));
    Ok(())
}

fn spread(series: &[f64]) -> String {
    format!("{:.0} / {:.0} ms", median(series.to_vec()), percentile(series.to_vec(), 95))
}

/// A thousand at once on the plain-process runtime.
pub(crate) async fn a_thousand_processes(figures: &mut Figures) -> Result<()> {
    let up = Up::start(&[]);
    let client = Client::of(&up);
    client.publish("true", json!({"kind": "command", "program": "/bin/true"}), LIMITS).await?;
    let before = processor_seconds(&up);
    let start = Instant::now();
    let batch = json!({"jobs": vec![nothing("true"); JOBS]});
    client.post("/v1/jobs/batch", &batch).await?;
    let accepted = start.elapsed();
    let mut done = 0;
    while done < JOBS {
        ensure!(start.elapsed() < Duration::from_secs(300), "{done} of {JOBS} jobs after 300 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
        done = count(&client, "succeeded").await?;
    }
    let whole = start.elapsed().as_secs_f64();
    let spent = processor_seconds(&up) - before;
    figures.note("1,000 no-op process jobs: accepted in", format!("{:.0} ms", accepted.as_secs_f64() * 1e3));
    figures.note("… jobs per second, submit to the last succeeded", format!("{:.0}", JOBS as f64 / whole));
    figures.note("… CPU per job, all processes", format!("{:.1} ms", spent * 1e3 / JOBS as f64));
    Ok(())
}

async fn count(client: &Client, state: &str) -> Result<usize> {
    let (mut found, mut cursor) = (0, String::new());
    loop {
        let page = client.read(&format!("/v1/jobs?state={state}&limit=200{cursor}")).await?;
        found += page["data"].as_array().map_or(0, Vec::len);
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(found),
        }
    }
}
