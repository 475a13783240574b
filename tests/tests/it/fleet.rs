//! What providers do to instances, end to end with local agents.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use telecine_tests::up::{Up, pause, text};

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

/// Decisions and looks at the queue once a second.
const QUICK: &str = "[autoscaling]\ntick_seconds = 1\n";

fn state_of(up: &Up, id: &str) -> Value {
    instance(up, id).map_or(Value::Null, |one| one["state"].clone())
}

#[test]
fn a_drain_that_is_revoked_takes_work_again() {
    let settings = [QUICK, &pool("only", "min = 1").replace("max = 2", "max = 1")].concat();
    let (up, _settings) = start(&settings);
    until_ready(&up, 1);
    publish_sleep(&up, 1);
    let only = text(&instances(&up)[0], "/id");
    up.cli(&["instances", "drain", &only]);
    up.until("it is cordoned", |up| state_of(up, &only) == "cordoned");
    let job = submit(&up);
    up.until("the job is seen to wait", |up| {
        let explained = up.try_cli(&["jobs", "explain", &job]);
        String::from_utf8_lossy(&explained.stdout).contains("cordoned")
    });
    pause(Duration::from_secs(3));
    assert_eq!(up.cli(&["jobs", "get", &job])["state"], "queued", "nothing new goes there");
    up.cli(&["instances", "undrain", &only]);
    assert_eq!(up.finished(&job)["state"], "succeeded");
    let attempts = attempts(&up, &job);
    assert_eq!((attempts.len(), text(&attempts[0], "/instance_id")), (1, only));
}

/// The pool of an instance, once the manager has written down that it is there.
fn pool_of(up: &Up, id: &str) -> String {
    let mut found = None;
    up.until("the instance is recorded", |up| {
        found = instance(up, id);
        found.is_some()
    });
    text(&found.expect("just found"), "/pool")
}

fn decided(up: &Up) -> String {
    up.cli(&["pools", "decisions", "-n", "200"]).to_string()
}

#[test]
fn a_pool_without_capacity_is_passed_over_for_the_next() {
    let cheap = pool("cheap", "capacity = 0").replace("0.04", "0.01");
    let (up, _settings) = start(&[QUICK, &cheap, &pool("dear", "")].concat());
    publish_sleep(&up, 6);
    let job = submit(&up);
    let on = until_running(&up, &job);
    assert_eq!(pool_of(&up, &on), "dear");
    assert_eq!(up.finished(&job)["state"], "succeeded");
    let decided = decided(&up);
    assert!(decided.contains("pool_refused"), "{decided}");
}

#[test]
fn an_image_that_does_not_boot_closes_its_pool_and_another_does_the_work() {
    let broken =
        pool("broken", "agent = \"/bin/false\"").replace("0.04", "0.01").replace("max = 2", "max = 9");
    let (up, _settings) = start(&[QUICK, &broken, &pool("whole", "")].concat());
    publish_sleep(&up, 6);
    let job = submit(&up);
    let on = until_running(&up, &job);
    assert_eq!(pool_of(&up, &on), "whole");
    assert_eq!(up.finished(&job)["state"], "succeeded");
    let decided = decided(&up);
    assert!(decided.contains("pool_broken"), "{decided}");
    up.until("nothing is left", |up| {
        std::fs::read_dir(up.data().join("agents")).expect("the folder of agents").next().is_none()
    });
}
