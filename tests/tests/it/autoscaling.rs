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

/// Cheaper than `small`, and not to be had.
const SCARCE: &str = r#"
[[pools]]
name = "scarce"
cpu_milli = 300
memory_bytes = 67108864
price_usd_per_hour = 0.01
max = 2
capacity = 0
"#;

/// Cheaper than `small`, with an image that does not come up.
const BROKEN: &str = r#"
[[pools]]
name = "broken"
cpu_milli = 300
memory_bytes = 67108864
price_usd_per_hour = 0.01
max = 4
agent = "/bin/false"
"#;

struct Scaled {
    up: Up,
    _settings: tempfile::NamedTempFile,
}

impl Scaled {
    /// An `up` whose pool is empty, with an engine that sleeps for a while.
    fn start() -> Self {
        Self::start_beside("")
    }

    /// The same with another pool.
    fn start_beside(pool: &str) -> Self {
        let settings = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(settings.path(), format!("{SETTINGS}{pool}")).expect("written");
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
        let pools = listed["data"].as_array().expect("a list");
        pools.iter().flat_map(|pool| [&pool["running"], &pool["changing"]]).filter_map(Value::as_u64).sum()
    }

    /// Every decision so far, the oldest first.
    fn decisions(&self) -> Vec<Value> {
        let listed = self.up.cli(&["pools", "decisions", "-n", "200"]);
        listed["data"].as_array().expect("a list").iter().rev().cloned().collect()
    }

    /// The pools of all launches so far.
    fn launched(&self) -> Vec<String> {
        let decisions = self.decisions();
        let actions = decisions.iter().filter_map(|decision| decision["actions"].as_array()).flatten();
        actions.filter(|action| action["action"] == "launch").map(|action| text(action, "/pool")).collect()
    }

    /// Whether a reason of this code was ever given about a pool.
    fn was_told(&self, code: &str, pool: &str) -> bool {
        let is_it = |reason: &Value| reason["code"] == code && reason["pool"] == pool;
        self.decisions()
            .iter()
            .any(|decision| decision["reasons"].as_array().is_some_and(|all| all.iter().any(is_it)))
    }

    /// Every action so far, the oldest first: what was done, and the word for why.
    fn actions(&self) -> Vec<(String, String)> {
        let told = |action: &Value| (text(action, "/action"), text(action, "/code"));
        self.decisions()
            .iter()
            .filter_map(|decision| decision["actions"].as_array())
            .flatten()
            .map(told)
            .collect()
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
    up.until("the instance is recorded", |_| !scaled.instances().is_empty());
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

/// What is drained at the end is not replaced, although work comes meanwhile.
#[test]
fn nothing_is_launched_while_everything_is_stopped() {
    let scaled = Scaled::start();
    let up = &scaled.up;
    up.publish("nap", "16MiB", &["--program", "/bin/sleep", "--argument", "6"]);
    let nap = up.cli(&["jobs", "submit", "--service", "nap", "--file", &path(up, "nothing")]);
    let nap = text(&nap, "/id");
    up.until("work has begun", |up| up.cli(&["jobs", "get", &nap])["state"] == "running");
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| up.try_cli(&["stop"]));
        let agents = up.processes("agent");
        up.until("the instance drains", |up| {
            up.cli(&["instances", "list"])["data"][0]["state"] == "draining"
        });
        scaled.submit();
        up.until("it has ended", |_| !agents.iter().any(telecine_tests::up::Process::is_alive));
        let stopped = stop.join().expect("no panic");
        assert!(stopped.status.success(), "{stopped:?}");
    });
    assert_eq!(up.processes("agent"), [], "{}", up.log());
    let scalings =
        up.log().lines().filter(|line| line.contains("scaling") && line.contains("Launch")).count();
    assert_eq!(scalings, 1, "{}", up.log());
}

#[test]
fn a_pool_without_capacity_is_passed_over() {
    let scaled = Scaled::start_beside(SCARCE);
    let job = scaled.submit();
    assert_eq!(scaled.up.finished(&job)["state"], "succeeded");
    assert_eq!(scaled.launched(), ["scarce", "small"]);
    assert!(scaled.was_told("pool_refused", "scarce"));
    let again = scaled.submit();
    assert_eq!(scaled.up.finished(&again)["state"], "succeeded");
    assert!(
        !scaled.launched()[2..].contains(&"scarce".to_owned()),
        "it is remembered: {:?}",
        scaled.launched()
    );
}

#[test]
fn instances_that_do_not_boot_are_ended_and_after_three_their_pool_is_closed() {
    let scaled = Scaled::start_beside(BROKEN);
    let job = scaled.submit();
    assert_eq!(scaled.up.finished(&job)["state"], "succeeded", "on another pool");
    assert_eq!(scaled.launched(), ["broken", "broken", "broken", "small"]);
    assert!(scaled.was_told("pool_broken", "broken"));
    scaled.up.until("none of them is left", |_| scaled.provided() == 0);
    assert!(scaled.up.log().contains("does not boot"), "{}", scaled.up.log());
}
