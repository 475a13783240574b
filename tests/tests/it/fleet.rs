//! What providers do to instances, end to end with local agents.

use std::path::Path;

use serde_json::{Value, json};
use telecine_tests::up::{Up, text};

use crate::spine::{path, write};

fn start(settings: &str) -> (Up, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), settings).expect("written");
    let up = Up::start(&["--config", file.path().to_str().expect("UTF-8")]);
    (up, file)
}

fn pool(name: &str, more: &str) -> String {
    format!(
        "[[pools]]\nname = \"{name}\"\ncpu_milli = 300\nmemory_bytes = 67108864\nprice_usd_per_hour = 0.04\nmax = 2\n{more}\n"
    )
}

fn instances(up: &Up) -> Vec<Value> {
    up.cli(&["instances", "list"])["data"].as_array().cloned().expect("a list")
}

fn instance(up: &Up, id: &str) -> Option<Value> {
    instances(up).into_iter().find(|instance| instance["id"] == id)
}

fn until_ready(up: &Up, count: usize) {
    up.until(&format!("{count} instances are ready"), |up| {
        instances(up).iter().filter(|instance| instance["state"] == "ready").count() == count
    });
}

/// An engine that sleeps for so long.
fn publish_sleep(up: &Up, seconds: u32) {
    let argument = format!("--argument={seconds}");
    up.publish("sleep", "16MiB", &["--program", "/bin/sleep", &argument]);
}

fn submit(up: &Up) -> String {
    write(up, "nothing", &json!({"inputs": {}, "outputs": {}}));
    let job = up.cli(&["jobs", "submit", "--service", "sleep", "--file", &path(up, "nothing")]);
    text(&job, "/id")
}

fn attempts(up: &Up, job: &str) -> Vec<Value> {
    up.cli(&["jobs", "attempts", job])["data"].as_array().cloned().expect("a list")
}

fn until_running(up: &Up, job: &str) -> String {
    up.until("the job runs", |up| up.cli(&["jobs", "get", job])["state"] == "running");
    text(attempts(up, job).last().expect("an attempt"), "/instance_id")
}

/// Processes with the instance's folder in their command line or their environment.
fn processes_of(folder: &Path) -> Vec<String> {
    let needle = folder.to_str().expect("test folders are UTF-8").as_bytes();
    let mentions = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let entries = std::fs::read_dir("/proc").expect("/proc is there").flatten();
    let found = entries.filter(|entry| {
        ["cmdline", "environ"]
            .iter()
            .any(|file| std::fs::read(entry.path().join(file)).is_ok_and(|bytes| mentions(&bytes)))
    });
    found.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[test]
fn a_spot_notice_interrupts_what_does_not_fit_without_costing_a_retry_and_leaves_nothing() {
    let settings = [pool("first", "market = \"spot\"\nmin = 1"), pool("second", "min = 1")].concat();
    let (up, _settings) = start(&settings);
    until_ready(&up, 2);
    publish_sleep(&up, 14);
    let job = submit(&up);
    let taken = until_running(&up, &job);
    let folder = up.data().join("agents").join(&taken);
    assert!(!processes_of(&folder).is_empty(), "an agent, a worker and an engine");
    up.cli(&["instances", "interrupt", &taken, "--in", "12"]);
    up.until("the notice is seen", |up| instance(up, &taken).is_some_and(|one| one["notice"].is_string()));
    assert_eq!(instance(&up, &taken).expect("there")["state"], "cordoned");
    assert_eq!(up.cli(&["jobs", "get", &job])["state"], "running", "it goes on as long as it can");
    let done = up.finished(&job);
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!((&done["user_retries"], &done["infrastructure_retries"]), (&json!(0), &json!(0)), "{done}");
    let attempts = attempts(&up, &job);
    let of = |nth: usize| (attempts[nth]["state"].clone(), text(&attempts[nth], "/instance_id"));
    assert_eq!((attempts.len(), of(0)), (2, (json!("interrupted"), taken.clone())), "{attempts:?}");
    assert_ne!(of(1).1, taken);
    up.until("nothing of the instance is left", |_| !folder.exists());
    assert_eq!(processes_of(&folder), Vec::<String>::new());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("the kernel's table");
    assert!(!mounts.contains(folder.to_str().expect("UTF-8")), "a mount is left");
    let late = up.try_cli(&["instances", "interrupt", &taken, "--in", "1"]);
    assert!(!late.status.success(), "it is gone");
}
