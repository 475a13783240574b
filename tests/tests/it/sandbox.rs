//! What a container can see and do: each line of SPEC 9.2 proven from inside a real attempt.

use serde_json::json;
use telecine_tests::up::{Up, text};
use telecine_tests::{image, skip};

use crate::spine::{path, write};

/// Runs a shell script inside an attempt's container and returns what it wrote to its output.
fn inside(script: &str) -> Option<String> {
    let Some(image) = image("TELECINE_PROBE_IMAGE") else {
        skip("TELECINE_PROBE_IMAGE names no image (scripts/build-test-images)");
        return None;
    };
    let up = Up::start(&[]);
    let folder = up.folder("shelf");
    let store = up.local_store("shelf", &folder);
    std::fs::write(folder.join("input.txt"), "input").expect("the input is written");
    up.publish("shell", "64MiB", &["--plain", "--image", &image, "--argument", "sh", "--argument=-c"]);
    let composition = json!({
        "inputs": {"text": {"store": store, "key": "input.txt"}},
        "processing": {"arguments": [format!("exec > {{output.facts}} 2>&1; {script}")]},
        "outputs": {"facts": {"store": store, "key": "facts.txt"}},
    });
    write(&up, "composition.json", &composition);
    let job = up.cli(&["jobs", "submit", "--service", "shell", "--file", &path(&up, "composition.json")]);
    let done = up.finished(&text(&job, "/id"));
    assert_eq!(done["state"], "succeeded", "{done:#}");
    Some(std::fs::read_to_string(folder.join("facts.txt")).expect("the facts were published"))
}

#[test]
fn the_container_has_no_network_no_capabilities_no_writable_root_and_no_credentials() {
    let script = "\
        echo user=$(id -u):$(id -g); \
        grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; \
        echo interfaces=$(ls /sys/class/net | tr '\\n' ' '); \
        touch /escaped && echo root-writable; \
        touch /telecine/escaped && echo attempt-writable; \
        echo changed > {input.text} && echo input-writable; \
        ls /var/run/docker.sock /run/docker.sock /dev/fuse && echo device-visible; \
        echo processes=$(ls -d /proc/[0-9]* | wc -l); \
        env; grep -rsiE 'secre[t]|toke[n]|passwor[d]|PRIVATE KE[Y]' /telecine/job.json /telecine/run && echo key-visible; true";
    let Some(facts) = inside(script) else { return };
    let has = |line: &str| facts.lines().any(|l| l.split_whitespace().collect::<Vec<_>>().join(" ") == line);
    assert!(has("user=65534:65534"), "{facts}");
    for capability in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert!(has(&format!("{capability} 0000000000000000")), "{facts}");
    }
    assert!(has("NoNewPrivs: 1") && has("Seccomp: 2"), "{facts}");
    assert!(has("interfaces=lo"), "{facts}");
    for escape in ["root-writable", "attempt-writable", "input-writable", "device-visible", "key-visible"] {
        assert!(!has(escape), "{escape}: {facts}");
    }
    for name in ["AWS_", "TELECINE_API_KEY", "TELECINE_DATA"] {
        assert!(!facts.contains(name), "{name}: {facts}");
    }
}
