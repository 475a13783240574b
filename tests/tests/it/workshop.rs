//! A system whose engine is a shell in a sandboxed container: jobs that do exactly what a test needs.

use std::fs;

use serde_json::{Value, json};
use telecine_test_support::wanted;
use telecine_tests::up::{Up, text};

use crate::spine::{path, write};

/// A system with a plain engine that runs a shell script, in which `$IN` and `$OUT` are an input and an output.
pub(crate) struct Workshop {
    pub(crate) up: Up,
    pub(crate) store: String,
}

/// Starts one, or says why it cannot.
pub(crate) fn workshop(arguments: &[&str]) -> Option<Workshop> {
    let image = wanted("TELECINE_PROBE_IMAGE", "scripts/build-test-images makes it")?;
    let up = Up::start(arguments);
    let store = up.local_store("shelf", &up.folder("shelf"));
    up.publish("shell", "64MiB", &["--plain", "--image", &image, "--argument", "sh", "--argument=-c"]);
    Some(Workshop { up, store })
}

impl Workshop {
    /// Submits a job that runs `script`, in which `{output.made}` is the path of its one output, `made/NAME`.
    pub(crate) fn submit(&self, name: &str, script: &str) -> String {
        self.submit_into(&self.store, name, script)
    }

    /// The same with the output in another store.
    pub(crate) fn submit_into(&self, store: &str, name: &str, script: &str) -> String {
        let composition = json!({
            "inputs": {},
            "processing": {"arguments": [script.replace("{output.made}", "\"$1\""), "sh", "{output.made}"]},
            "outputs": {"made": {"store": store, "key": format!("made/{name}")}},
        });
        write(&self.up, name, &composition);
        let file = path(&self.up, name);
        text(&self.up.cli(&["jobs", "submit", "--service", "shell", "--file", &file]), "/id")
    }

    /// Whether its engine works.
    pub(crate) fn is_running(&self, job: &str) -> bool {
        self.up.cli(&["jobs", "get", job])["state"] == "running"
    }

    /// Its attempts, first to last.
    pub(crate) fn attempts(&self, job: &str) -> Vec<Value> {
        self.up.cli(&["jobs", "attempts", job])["data"].as_array().cloned().unwrap_or_default()
    }

    /// What a job has published under `made/NAME`.
    pub(crate) fn made(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.up.folder("shelf").join("made").join(name)).ok()
    }
}
