//! `explain` names the resource, the need, the nearest instance and the next step.

use serde_json::json;
use telecine_tests::up::{Up, text};

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
    for named in ["memory", "4.00 TiB", &format!("nearest:   {host}"), "next step: lower the job's memory to"]
    {
        assert!(told.contains(named), "{named} is not in:\n{told}");
    }
}
