//! Pools of local instances: declared in the settings, each instance a slice of this machine.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use telecine_tests::up::{Up, text};

use crate::spine::{path, write};

const SETTINGS: &str = r#"
[[pools]]
name = "small"
cpu_milli = 300
memory_bytes = 67108864
price_usd_per_hour = 0.04
boot_seconds = 1
min = 2
max = 3

[[pools]]
name = "large"
cpu_milli = 500
memory_bytes = 134217728
market = "spot"
price_usd_per_hour = 0.0125
max = 1
"#;

fn pool<'a>(listed: &'a Value, name: &str) -> &'a Value {
    let pools = listed["data"].as_array().expect("a list");
    pools.iter().find(|pool| pool["id"] == name).unwrap_or_else(|| panic!("no pool {name} in {listed}"))
}

#[test]
fn declared_pools_begin_with_their_fewest_and_each_instance_claims_its_shape() {
    let settings = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(settings.path(), SETTINGS).expect("written");
    let up = Up::start(&["--config", settings.path().to_str().expect("UTF-8")]);
    up.until("both small instances are ready", |up| {
        let listed = up.cli(&["instances", "list"]);
        listed["data"].as_array().is_some_and(|all| all.iter().filter(|i| i["state"] == "ready").count() == 2)
    });
    let listed = up.cli(&["pools", "list"]);
    let (small, large) = (pool(&listed, "small"), pool(&listed, "large"));
    assert_eq!((&small["running"], &small["max"], &small["boot_seconds"]), (&json!(2), &json!(3), &json!(1)));
    assert_eq!((&large["running"], &large["market"]), (&json!(0), &json!("spot")));
    assert_eq!(large["price_micros_per_hour"], 12_500);
    let table = up.try_cli(&["pools", "list"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("0.0125"), "{table:?}");

    let instances = up.cli(&["instances", "list"])["data"].as_array().cloned().expect("a list");
    for instance in &instances {
        assert_eq!((&instance["pool"], &instance["capacity"]["cpu_milli"]), (&json!("small"), &json!(300)));
        assert_eq!(instance["capacity"]["memory_bytes"], 67_108_864);
    }
    let of_small: BTreeSet<String> = instances.iter().map(|instance| text(instance, "/id")).collect();
    up.publish("true", "16MiB", &["--program", "/bin/true"]);
    write(&up, "nothing", &json!({"inputs": {}, "outputs": {}}));
    let job = up.cli(&["jobs", "submit", "--service", "true", "--file", &path(&up, "nothing")]);
    let job = text(&job, "/id");
    assert_eq!(up.finished(&job)["state"], "succeeded");
    let attempts = up.cli(&["jobs", "attempts", &job]);
    assert!(of_small.contains(&text(&attempts, "/data/0/instance_id")), "{attempts}");
}
