//! The same ffmpeg in the same image: through the mount, and on local files bound into the container.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use telecine_tests::up::{Up, text};
use telecine_tests::{clip, image};

use crate::engine::Client;
use crate::figures::{Figures, median};
use crate::floor::{Docker, Limits};

const RUNS: usize = 9;
/// Of both sides.
const LIMITS: Limits = Limits { cpu_milli: 2000, memory_mebibytes: 1024 };

fn arguments(input: &str, output: &str) -> Vec<String> {
    let all = format!(
        "-nostdin -hide_banner -loglevel error -y -i {input} -c:v libx264 -preset veryfast -crf 23 -threads 2 -c:a aac -movflags +faststart -f mp4 {output}"
    );
    all.split(' ').map(ToOwned::to_owned).collect()
}

/// Interleaved; the attempt's `running` phase against the container's life on local files.
pub(crate) async fn measure(figures: &mut Figures) -> Result<()> {
    let image = image("TELECINE_FFMPEG_IMAGE").context("TELECINE_FFMPEG_IMAGE names no image")?;
    let up = Up::start(&[]);
    let client = Client::of(&up);
    let shelf = up.folder("shelf");
    let store = up.local_store("shelf", &shelf);
    clip::make(&shelf.join("clip.mov"), 240);
    let local = up.folder("local");
    fs::copy(shelf.join("clip.mov"), local.join("clip.mov"))?;
    std::os::unix::fs::chown(&local, Some(65534), Some(65534))?;
    let launch =
        json!({"kind": "plain", "image": image, "arguments": arguments("{input.source}", "{output.made}")});
    client.publish("ffmpeg", launch, LIMITS).await?;
    let mut docker = Docker::connect().await?;
    docker.pull(&image).await?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for run in 0..=RUNS {
        let start = Instant::now();
        let bind = format!("{}:/media", local.display());
        let code =
            docker.run(&image, LIMITS, &arguments("/media/clip.mov", "/media/out.mp4"), Some(&bind)).await?;
        ensure!(code == 0, "ffmpeg on local files exits with {code}");
        let bare = start.elapsed().as_secs_f64();
        let body = json!({"service": "ffmpeg", "composition": {
            "inputs": {"source": {"store": store, "key": "clip.mov"}},
            "outputs": {"made": {"store": store, "key": format!("out-{run}.mp4")}},
        }});
        let id = text(&client.post("/v1/jobs", &body).await?, "/id");
        ensure!(client.wait(&id).await? == "succeeded", "{id} succeeds");
        let attempts = client.read(&format!("/v1/jobs/{id}/attempts")).await?;
        if run > 0 {
            floor.push(bare);
            ours.push(running_seconds(&attempts)?);
        }
    }
    let ratio = median(ours.clone()) / median(floor.clone());
    figures.at_most(
        "transcode through the mount ÷ the same container on local files (medians of 9)",
        ratio,
        1.05,
        "×",
    );
    figures.note("… on local files, container create to removed", format!("{:.2} s", median(floor)));
    figures.note("… through the mount, the attempt's running phase", format!("{:.2} s", median(ours)));
    Ok(())
}

fn running_seconds(attempts: &Value) -> Result<f64> {
    let phases = attempts["data"][0]["phases"].as_array().context("an attempt has phases")?;
    let running = phases.iter().find(|phase| phase["phase"] == "running").context("it ran")?;
    let millis = running["duration_millis"].as_u64().context("it is over")?;
    Ok(millis as f64 / 1e3)
}
