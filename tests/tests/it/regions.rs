//! A job is queued and run in the region of its data: two regions, each with its manager and instance, in one `up`.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use telecine_tests::up::{Up, text};

use crate::spine::{path, write};

const REGIONS: [&str; 2] = ["south", "north"];

fn instance_of(up: &Up, region: &str) -> Option<String> {
    let listed = up.cli(&["instances", "list"]);
    let found = listed["data"].as_array()?.iter().find(|i| i["region"] == region && i["state"] == "ready")?;
    Some(text(found, "/id"))
}

/// Id and address of a region's manager, once it leads.
fn manager_of(up: &Up, region: &str) -> Option<(String, String)> {
    let listed = up.cli(&["regions", "list"]);
    let found = listed["data"].as_array()?.iter().find(|found| found["id"] == region)?["manager"].clone();
    Some((found["id"].as_str()?.to_owned(), found["addresses"][0].as_str()?.to_owned()))
}

fn managers(up: &Up) -> Vec<(String, String)> {
    let mut found = Vec::new();
    up.until("both regions have a manager", |up| {
        found = REGIONS.iter().filter_map(|region| manager_of(up, region)).collect();
        found.len() == REGIONS.len()
    });
    found
}

fn submitted(up: &Up, store: &str, name: &str, more: &[&str]) -> String {
    let composition = json!({
        "inputs": {"source": {"store": store, "key": "a.txt"}},
        "outputs": {"copy": {"store": store, "key": name}},
    });
    write(up, name, &composition);
    let file = path(up, name);
    let arguments: Vec<&str> = ["jobs", "submit", "--service", "copy", "--file", &file]
        .into_iter()
        .chain(more.iter().copied())
        .collect();
    text(&up.cli(&arguments), "/id")
}

fn submit(up: &Up, store: &str, name: &str, more: &[&str]) -> Value {
    up.finished(&submitted(up, store, name, more))
}

/// Everything that the agent of an instance was told and wrote down.
fn written_by(up: &Up, instance: &str) -> String {
    let folder = up.data().join("agents").join(instance);
    ["agent.log", "agent.toml"]
        .map(|name| std::fs::read_to_string(folder.join(name)).unwrap_or_default())
        .concat()
}

/// A store in each region, with an input in it, and a service that copies it.
fn prepared(up: &Up) -> Vec<String> {
    let arguments = ["--program", "/bin/cp", "--argument={input.source}", "--argument={output.copy}"];
    up.publish("copy", "16MiB", &arguments);
    let register = |region: &&str| {
        let folder = up.folder(region);
        std::fs::write(folder.join("a.txt"), region).expect("the input is written");
        let folder = folder.to_str().expect("UTF-8").to_owned();
        let store =
            text(&up.cli(&["stores", "create", region, "--folder", &folder, "--region", region]), "/id");
        up.cli(&["stores", "validate", &store]);
        store
    };
    let stores = REGIONS.iter().map(register).collect();
    up.until("both regions have an instance", |up| {
        REGIONS.iter().all(|region| instance_of(up, region).is_some())
    });
    stores
}

#[test]
fn a_job_runs_where_its_data_is_through_its_regions_own_manager() {
    let mut up = Up::start(&["--region", "south", "--region", "north"]);
    let stores = prepared(&up);
    let before = managers(&up);
    let ids: BTreeSet<&String> = before.iter().map(|(id, _)| id).collect();
    let addresses: BTreeSet<&String> = before.iter().map(|(_, address)| address).collect();
    assert_eq!(
        (ids.len(), addresses.len()),
        (2, 2),
        "two managers with an id and an address each: {before:?}"
    );
    let instances = REGIONS.map(|region| instance_of(&up, region).expect("it was there"));
    for ((store, region), own) in stores.iter().zip(REGIONS).zip(&instances) {
        let done = submit(&up, store, "copy.txt", &[]);
        assert_eq!((&done["state"], &done["region"]), (&json!("succeeded"), &json!(region)), "{done:#}");
        let job = text(&done, "/id");
        let attempts = up.cli(&["jobs", "attempts", &job]);
        assert_eq!(&text(&attempts, "/data/0/instance_id"), own);
        let copy = std::fs::read_to_string(up.folder(region).join("copy.txt")).expect("the copy");
        assert_eq!(copy, region);
        for instance in &instances {
            assert_eq!(written_by(&up, instance).contains(&job), instance == own, "{job} on {instance}");
        }
    }
    for (instance, (_, address)) in instances.iter().zip(&before) {
        let config = written_by(&up, instance);
        assert!(config.contains(&format!("managers = [\"{address}\"]")), "{instance}: {config}");
    }
    let explicit = submit(&up, &stores[0], "elsewhere.txt", &["--region", "north"]);
    assert_eq!(
        (&explicit["state"], &explicit["region"]),
        (&json!("succeeded"), &json!("north")),
        "{explicit:#}"
    );

    up.kill();
    up.restart();
    assert_eq!(managers(&up), before, "agents that outlived `up` find each manager where it was");
    let after = submit(&up, &stores[1], "after.txt", &[]);
    assert_eq!((&after["state"], &after["region"]), (&json!("succeeded"), &json!("north")), "{after:#}");
}

#[test]
fn a_region_that_nobody_runs_is_refused_by_name() {
    let up = Up::start(&["--region", "south", "--region", "north", "--instances", "0"]);
    let folder = up.folder("west");
    let folder = folder.to_str().expect("UTF-8");
    let refused = up.try_cli(&["stores", "create", "west", "--folder", folder, "--region", "west"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{told}");
    for named in ["/region", "`west`", "south, north"] {
        assert!(told.contains(named), "{named} is not named in: {told}");
    }
    assert_eq!(up.cli(&["stores", "list"])["data"], json!([]));
}
