//! A job is queued and run in the region of its data: two regions, each with its manager and instance, in one `up`.

use serde_json::{Value, json};
use telecine_tests::up::{Up, text};

use crate::spine::{path, write};

fn instance_of(up: &Up, region: &str) -> Option<String> {
    let listed = up.cli(&["instances", "list"]);
    let found = listed["data"].as_array()?.iter().find(|i| i["region"] == region && i["state"] == "ready")?;
    Some(text(found, "/id"))
}

fn submit(up: &Up, store: &str, name: &str, more: &[&str]) -> Value {
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
    let job = text(&up.cli(&arguments), "/id");
    up.finished(&job)
}

#[test]
fn a_job_runs_where_its_data_is() {
    let up = Up::start(&["--region", "south", "--region", "north"]);
    let arguments = ["--program", "/bin/cp", "--argument={input.source}", "--argument={output.copy}"];
    up.publish("copy", "16MiB", &arguments);
    let mut stores = Vec::new();
    for region in ["south", "north"] {
        let folder = up.folder(region);
        std::fs::write(folder.join("a.txt"), region).expect("the input is written");
        let folder = folder.to_str().expect("UTF-8").to_owned();
        let store =
            text(&up.cli(&["stores", "create", region, "--folder", &folder, "--region", region]), "/id");
        up.cli(&["stores", "validate", &store]);
        stores.push(store);
    }
    up.until("both regions have an instance", |up| {
        instance_of(up, "south").is_some() && instance_of(up, "north").is_some()
    });
    for (store, region) in stores.iter().zip(["south", "north"]) {
        let done = submit(&up, store, "copy.txt", &[]);
        assert_eq!((&done["state"], &done["region"]), (&json!("succeeded"), &json!(region)), "{done:#}");
        let attempts = up.cli(&["jobs", "attempts", &text(&done, "/id")]);
        assert_eq!(Some(text(&attempts, "/data/0/instance_id")), instance_of(&up, region));
        let copy = std::fs::read_to_string(up.folder(region).join("copy.txt")).expect("the copy");
        assert_eq!(copy, region);
    }
    let explicit = submit(&up, &stores[0], "elsewhere.txt", &["--region", "north"]);
    assert_eq!(
        (&explicit["state"], &explicit["region"]),
        (&json!("succeeded"), &json!("north")),
        "{explicit:#}"
    );
}
