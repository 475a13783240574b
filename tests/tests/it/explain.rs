//! `explain` names the resource, the need, the nearest instance and the next step.

use serde_json::json;
use telecine_tests::up::{Up, pause, text};

use crate::spine::{path, write};

#[test]
fn a_job_that_is_too_large_is_explained() {
    let up = Up::start(&[]);
    up.publish("nothing", "4096GiB", &["--program", "/bin/true"]);
    write(&up, "composition", &json!({"inputs": {}, "outputs": {}}));
    let job = text(
        &up.cli(&["jobs", "submit", "--service", "nothing", "--file", &path(&up, "composition")]),
        "/id",
    );
    up.until("an instance is ready", |up| {
        up.cli(&["instances", "list"])["data"]
            .as_array()
            .is_some_and(|all| all.iter().any(|i| i["state"] == "ready"))
    });
    let host = text(&up.cli(&["instances", "list"]), "/data/0/host");
    let told = String::from_utf8_lossy(&up.try_cli(&["jobs", "explain", &job]).stdout).into_owned();
    for named in ["memory", "4.00 TiB", &format!("nearest:   {host}"), "next step: submit the job with"] {
        assert!(told.contains(named), "{named} is not in:\n{told}");
    }
}

/// Starts with these settings.
fn with_settings(settings: &str) -> (Up, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), settings).expect("written");
    (Up::start(&["--config", file.path().to_str().expect("UTF-8")]), file)
}

fn submit(up: &Up, service: &str, more: &[&str]) -> String {
    write(up, "composition", &json!({"inputs": {}, "outputs": {}}));
    let file = path(up, "composition");
    let submit = [&["jobs", "submit", "--service", service, "--file", &file], more].concat();
    text(&up.cli(&submit), "/id")
}

#[track_caller]
fn tells(up: &Up, job: &str, code: &str, expected: &[&str]) {
    up.until(&format!("{job} waits because of {code}"), |up| {
        up.cli(&["jobs", "explain", job])["code"] == code
    });
    let told = String::from_utf8_lossy(&up.try_cli(&["jobs", "explain", job]).stdout).into_owned();
    for named in expected {
        assert!(told.contains(named), "{named} is not in:\n{told}");
    }
}

const ONE: &str = r#"
[[pools]]
name = "small"
cpu_milli = 300
memory_bytes = 134217728
price_usd_per_hour = 0.04
boot_seconds = 1
min = 1
max = 1
"#;

#[test]
fn jobs_that_wait_for_others_or_are_held_are_explained() {
    let (up, _settings) = with_settings(ONE);
    up.publish("sleeper", "100MiB", &["--program", "/bin/sleep", "--argument", "300"]);
    let first = submit(&up, "sleeper", &[]);
    up.until("the first runs", |up| up.cli(&["jobs", "get", &first])["state"] == "running");
    let (second, third) = (submit(&up, "sleeper", &[]), submit(&up, "sleeper", &[]));
    let busy = [
        "no instance has enough memory free: the job needs 100.00 MiB",
        "pool:      small (0.300 cores CPU, 128.00 MiB memory): has the one instance that it may have",
        "start:     unknown: how long the work runs that it waits for was not learned yet",
        "raise `max` of pool small above 1",
    ];
    tells(&up, &second, "all_busy", &[&busy[..], &["position:  first in the queue"]].concat());
    tells(&up, &third, "all_busy", &[&busy[..], &["position:  1 job before it"]].concat());
    up.cli(&["jobs", "hold", &second]);
    tells(&up, &second, "held", &["next step: release the job"]);
    tells(&up, &third, "all_busy", &["position:  first in the queue"]);
    up.cli(&["jobs", "cancel", &first]);
    up.finished(&first);
}

#[test]
fn a_job_that_a_limit_keeps_back_is_explained() {
    let (up, _settings) = with_settings("[scheduling]\naccount_limit = 0\n");
    up.publish("nothing", "16MiB", &["--program", "/bin/true"]);
    let job = submit(&up, "nothing", &[]);
    let expected =
        ["may have 0 attempts at the same time, and has 0", "raise `scheduling.account_limits` of acc_"];
    tells(&up, &job, "limit_reached", &expected);
}

#[test]
fn an_estimate_tells_the_price_at_first_and_what_was_learned_after_a_restart() {
    let (mut up, _settings) = with_settings(ONE);
    up.publish("second", "16MiB", &["--program", "/bin/sleep", "--argument", "1"]);
    let job = submit(&up, "second", &[]);
    let file = path(&up, "composition");
    let estimate = ["jobs", "estimate", "--service", "second", "--file", &file];
    let before = up.cli(&estimate);
    assert_eq!((&before["duration"]["basis"], &before["cost"]["pool"]), (&json!("default"), &json!("small")));
    assert_eq!(up.finished(&job)["state"], "succeeded");
    up.process().signal(rustix::process::Signal::TERM);
    let ending = up.process();
    up.until("`up` has ended", |_| !ending.is_alive());
    pause(std::time::Duration::from_millis(100));
    up.kill();
    up.restart();
    let after = up.cli(&estimate);
    assert_eq!((&after["duration"]["basis"], &after["duration"]["samples"]), (&json!("version"), &json!(1)));
    let took = after["duration"]["p50_ms"].as_u64().expect("a number");
    assert!((900..20_000).contains(&took), "{after}");
}

#[test]
fn a_job_that_depends_on_another_is_explained_and_follows_it() {
    let (up, _settings) = with_settings(ONE);
    up.publish("second", "16MiB", &["--program", "/bin/sleep", "--argument", "6"]);
    let first = submit(&up, "second", &[]);
    let then = submit(&up, "second", &["--depends-on", &first]);
    tells(
        &up,
        &then,
        "waits_for_jobs",
        &[&format!("{first} ("), "next step: wait, or see what keeps the first"],
    );
    assert_eq!(up.finished(&first)["state"], "succeeded");
    assert_eq!(up.finished(&then)["state"], "succeeded");
}
