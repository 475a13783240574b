//! One real clip through the whole system: a file arrives, becomes a job, is scheduled, runs in a container that sees
//! its stores through FUSE, and the rendition appears.

use serde_json::{Value, json};
use telecine_test_support::wanted;
use telecine_tests::clip;
use telecine_tests::up::{Up, text};

/// A running system with the transform engine, an inbox, an outbox and a factory between them.
pub(crate) struct Studio {
    pub(crate) up: Up,
    pub(crate) factory: String,
}

/// Starts one, or says why it cannot.
pub(crate) fn studio() -> Option<Studio> {
    let image = wanted("TELECINE_TRANSFORM_IMAGE", "scripts/build-transform-image makes it")?;
    let up = Up::start(&[]);
    let inbox = up.local_store("inbox", &up.folder("inbox"));
    let outbox = up.local_store("outbox", &up.folder("outbox"));
    up.publish("transform", "512MiB", &["--image", &image]);
    let factory = json!({
        "name": "renditions", "service": "transform", "engine_version": "1.0.0",
        "composition": {
            "inputs": {"source": {"store": inbox, "key": "{input.key}"}},
            "processing": {"video": {"codec": "h264", "height": 90, "preset": "ultrafast"}, "audio": {"codec": "aac"}, "container": "mp4", "fast_start": true},
            "outputs": {"rendition": {"store": outbox, "key": "renditions/{input.stem}.mp4"}},
        },
        "watch": [{"store": inbox, "suffixes": [".mov"]}],
    });
    write(&up, "factory.json", &factory);
    let factory = text(&up.cli(&["factories", "create", "--document", &path(&up, "factory.json")]), "/id");
    Some(Studio { up, factory })
}

/// Writes a JSON document beside the data folder.
pub(crate) fn write(up: &Up, name: &str, document: &Value) {
    std::fs::write(up.folder("documents").join(name), document.to_string()).expect("the document is written");
}

/// The path of such a document.
pub(crate) fn path(up: &Up, name: &str) -> String {
    up.folder("documents").join(name).to_str().expect("test folders are UTF-8").to_owned()
}

/// Jobs of a factory, newest first.
pub(crate) fn jobs_of(up: &Up, factory: &str) -> Vec<Value> {
    let page = up.cli(&["jobs", "list", "--factory", factory, "--limit", "200"]);
    page["data"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_clip_that_arrives_becomes_a_rendition() {
    let Some(studio) = studio() else { return };
    let up = &studio.up;
    let ready = up.folder("elsewhere").join("clip.mov");
    clip::make(&ready, 2);
    std::fs::rename(&ready, up.folder("inbox").join("a clip.mov")).expect("same file system");

    up.until("a job appears", |up| !jobs_of(up, &studio.factory).is_empty());
    let job = text(&jobs_of(up, &studio.factory)[0], "/id");
    let done = up.finished(&job);
    assert_eq!(done["state"], "succeeded", "{done:#}");

    let rendition = up.folder("outbox").join("renditions/a clip.mp4");
    let probe = clip::probe(&rendition);
    let streams = probe["streams"].as_array().expect("streams");
    assert!(streams.iter().any(|s| s["codec_name"] == "h264" && s["height"] == 90), "{probe:#}");
    assert!(streams.iter().any(|s| s["codec_name"] == "aac"), "{probe:#}");

    let attempts = up.cli(&["jobs", "attempts", &job]);
    let counters = &attempts["data"][0]["counters"];
    let size = std::fs::metadata(up.folder("inbox").join("a clip.mov")).expect("the input").len();
    assert!(
        counters["mount_bytes_read"].as_u64().is_some_and(|read| read >= size),
        "read through FUSE: {counters}"
    );
    assert!(counters["mount_bytes_written"].as_u64().is_some_and(|written| written > 0), "{counters}");
    assert!(counters["mount_requests"].as_u64().is_some_and(|requests| requests > 0), "{counters}");
}
