//! The autoscaler of a real `up`: from nothing to work and back to nothing, with local agents.

use serde_json::{Value, json};
use telecine_tests::up::{Up, text};

use crate::spine::{path, write};

const SETTINGS: &str = r#"
[autoscaling]
tick_seconds = 1
expected_run_seconds = 5

[[pools]]
name = "small"
cpu_milli = 300
memory_bytes = 67108864
price_usd_per_hour = 0.04
boot_seconds = 1
min = 0
max = 2
"#;

struct Scaled {
    up: Up,
    _settings: tempfile::NamedTempFile,
}

impl Scaled {
    /// An `up` whose pool is empty, with an engine that sleeps for a while.
    fn start() -> Self {
        let settings = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(settings.path(), SETTINGS).expect("written");
        let up = Up::start(&["--config", settings.path().to_str().expect("UTF-8")]);
        up.publish("sleep", "16MiB", &["--program", "/bin/sleep", "--argument", "2"]);
        write(&up, "nothing", &json!({"inputs": {}, "outputs": {}}));
        Self { up, _settings: settings }
    }

    fn submit(&self) -> String {
        let job =
            self.up.cli(&["jobs", "submit", "--service", "sleep", "--file", &path(&self.up, "nothing")]);
        text(&job, "/id")
    }

    fn instances(&self) -> Vec<Value> {
        self.up.cli(&["instances", "list"])["data"].as_array().cloned().expect("a list")
    }

    /// Instances that the provider has, whatever they do.
    fn provided(&self) -> u64 {
        let listed = self.up.cli(&["pools", "list"]);
        ["running", "changing"].iter().filter_map(|count| listed["data"][0][count].as_u64()).sum()
    }

    /// Every action so far, the oldest first: what was done, and the word for why.
    fn actions(&self) -> Vec<(String, String)> {
        let mut decisions =
            self.up.cli(&["pools", "decisions", "-n", "200"])["data"].as_array().cloned().expect("a list");
        decisions.reverse();
        let actions =
            decisions.iter().flat_map(|decision| decision["actions"].as_array().cloned().expect("a list"));
        actions.map(|action| (text(&action, "/action"), text(&action, "/code"))).collect()
    }
}

#[test]
fn a_pool_goes_from_nothing_to_work_and_back_to_nothing() {
    let scaled = Scaled::start();
    let up = &scaled.up;
    assert_eq!((scaled.provided(), scaled.instances().len()), (0, 0));
    let job = scaled.submit();
    assert_eq!(up.finished(&job)["state"], "succeeded");
    let first = text(&up.cli(&["jobs", "attempts", &job]), "/data/0/instance_id");
    up.until("nothing is left", |_| scaled.provided() == 0 && scaled.instances().is_empty());
    let done: Vec<(String, String)> = scaled.actions();
    let done: Vec<(&str, &str)> =
        done.iter().map(|(action, code)| (action.as_str(), code.as_str())).collect();
    assert_eq!(done, [("launch", "demand"), ("cordon", "idle"), ("terminate", "acknowledged")]);

    let listed = up.cli(&["pools", "decisions", "-n", "200"]);
    for decision in listed["data"].as_array().expect("a list") {
        let number = decision["number"].to_string();
        let replay = up.cli(&["pools", "decisions", "replay", &number]);
        assert_eq!(replay["same"], true, "{replay}");
    }
    let table = up.try_cli(&["pools", "decisions"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("1 of small") && table.contains("for 1 job"), "{table}");

    let again = scaled.submit();
    assert_eq!(up.finished(&again)["state"], "succeeded");
    let second = text(&up.cli(&["jobs", "attempts", &again]), "/data/0/instance_id");
    assert_ne!(second, first, "the first one is gone for good");
}

#[test]
fn an_instance_that_a_person_drains_takes_nothing_and_stays() {
    let scaled = Scaled::start();
    let up = &scaled.up;
    let job = scaled.submit();
    up.until("the job runs", |up| up.cli(&["jobs", "get", &job])["state"] == "running");
    let instance = text(&up.cli(&["jobs", "attempts", &job]), "/data/0/instance_id");
    let drained = up.cli(&["instances", "drain", &instance]);
    assert_eq!((&drained["cause"], &drained["number"]), (&json!("operator"), &json!(1)));
    assert_eq!(up.finished(&job)["state"], "succeeded", "what it has goes on");
    let next = scaled.submit();
    assert_eq!(up.finished(&next)["state"], "succeeded");
    let elsewhere = text(&up.cli(&["jobs", "attempts", &next]), "/data/0/instance_id");
    assert_ne!(elsewhere, instance, "it takes nothing new");
    up.until("the other one is gone", |_| scaled.provided() == 1);
    assert_eq!(text(&scaled.instances()[0], "/id"), instance, "a person's cordon is left alone");
    up.cli(&["instances", "undrain", &instance]);
    up.until("it is idle, and goes, too", |_| scaled.provided() == 0);
    let late = up.try_cli(&["instances", "drain", &instance]);
    assert!(!late.status.success(), "{late:?}");
}
