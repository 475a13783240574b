//! What a container can see and do: each line of SPEC 9.2 proven from inside a real attempt, whose stores are opened with
//! real keys.

use std::path::Path;

use serde_json::json;
use telecine_test_support::s3::SECRET_KEY;
use telecine_tests::up::Up;

use crate::bucket::Bucket;
use crate::spine::{path, write};
use crate::workshop::{Workshop, workshop};

/// Runs a shell script inside an attempt's container, whose input and output are in `bucket`, and returns what it wrote
/// to its output. While it runs, `meanwhile` looks at the system.
fn inside(shop: &Workshop, bucket: &Bucket, script: &str, meanwhile: impl FnOnce(&Up)) -> String {
    let up = &shop.up;
    let store = bucket.store(up);
    bucket.service.insert("input.txt", b"input");
    let composition = json!({
        "inputs": {"text": {"store": store, "key": "input.txt"}},
        "processing": {"arguments": [format!("exec > {{output.facts}} 2>&1; {script}")]},
        "outputs": {"facts": {"store": store, "key": "facts.txt"}},
    });
    write(up, "composition.json", &composition);
    let job = up.cli(&["jobs", "submit", "--service", "shell", "--file", &path(up, "composition.json")]);
    let job = telecine_tests::up::text(&job, "/id");
    up.until("the engine runs", |_| shop.is_running(&job));
    meanwhile(up);
    let done = up.finished(&job);
    assert_eq!(done["state"], "succeeded", "{done:#}");
    let facts = bucket.service.object("facts.txt").expect("the facts were published");
    String::from_utf8_lossy(&facts).into_owned()
}

/// Whether a line of `facts` says `line`, whatever its blanks.
fn says(facts: &str, line: &str) -> bool {
    facts.lines().any(|l| l.split_whitespace().collect::<Vec<_>>().join(" ") == line)
}

#[test]
fn the_container_has_no_network_no_capabilities_and_no_writable_root() {
    let Some(shop) = workshop(&[]) else { return };
    let script = "\
        echo user=$(id -u):$(id -g); \
        grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; \
        echo interfaces=$(ls /sys/class/net | tr '\\n' ' '); \
        touch /escaped && echo root-writable; \
        touch /telecine/escaped && echo attempt-writable; \
        echo changed > {input.text} && echo input-writable; \
        ls /var/run/docker.sock /run/docker.sock /dev/fuse && echo device-visible; \
        wget -q -T 2 -O /dev/null http://169.254.169.254/ && echo metadata-reached; \
        echo read=$(cat {input.text}); \
        sleep 1; env; true";
    let facts = inside(&shop, &Bucket::start(), script, |_| ());
    assert!(says(&facts, "user=65534:65534") && says(&facts, "read=input"), "{facts}");
    for capability in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert!(says(&facts, &format!("{capability} 0000000000000000")), "{facts}");
    }
    assert!(says(&facts, "NoNewPrivs: 1") && says(&facts, "Seccomp: 2"), "{facts}");
    assert!(says(&facts, "interfaces=lo"), "{facts}");
    let escapes =
        ["root-writable", "attempt-writable", "input-writable", "device-visible", "metadata-reached"];
    for escape in escapes {
        assert!(!says(&facts, escape), "{escape}: {facts}");
    }
    for name in ["AWS_", "TELECINE_API_KEY", "TELECINE_DATA", "TELECINE_SECRET"] {
        assert!(!facts.contains(name), "{name}: {facts}");
    }
}

/// Says for each place in which the container sees a pattern `$1` where that is: environments and command lines of all
/// processes, and all files. Patterns are written so that they do not match themselves. `planted` proves that it finds
/// what is there; round brackets, because curly ones name places.
const SEARCH: &str = r#"
look() (
    for place in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do
        grep -qs "$2" "$place" && echo "$1 $place"
    done
    find / -path /proc -prune -o -path /sys -prune -o -type f -print 2>/dev/null | while read -r place; do
        grep -qs "$2" "$place" && echo "$1 $place"
    done
    true
)
A='s[e]cret/of+the=test'; B='A[K]IDTEST'; C='BEGIN.*PRIV[A]TE KEY'; D='tk[_][0-9a-z]*_[0-9a-f]\{64\}'
for pattern in "$A" "$B" "$C" "$D"; do look found "$pattern"; done
beginning=secret
folder=$(dirname {output.facts})
PLANTED="$beginning/of+the=test" sleep 60 &
echo "$beginning/of+the=test" > "$folder/planted-file"
look planted "$A"
kill $!
rm "$folder/planted-file"
ls /telecine
test -s /telecine/job.json && echo job-is-there
echo searched
"#;

#[test]
fn the_stores_keys_are_neither_in_the_container_nor_on_the_disk() {
    let Some(shop) = workshop(&[]) else { return };
    let bucket = Bucket::start();
    let facts = inside(&shop, &bucket, SEARCH, |up| nowhere_below(&up.data()));
    assert!(says(&facts, "searched") && says(&facts, "job-is-there"), "{facts}");
    assert!(
        facts.lines().any(|line| line.starts_with("planted /proc/") && line.ends_with("/environ")),
        "{facts}"
    );
    assert!(facts.lines().any(|line| line.starts_with("planted /telecine/")), "{facts}");
    assert!(!facts.lines().any(|line| line.starts_with("found ")), "{facts}");
    nowhere_below(&shop.up.data());
    assert!(!shop.up.log().contains(SECRET_KEY), "the log of `up`");
}

/// The key is in no file of the system: not in the database, not in an attempt's folder, not in a log.
fn nowhere_below(folder: &Path) {
    let mut folders = vec![folder.to_owned()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        // What the system takes away meanwhile is nowhere. A mount is looked into like a folder.
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("the kind of a directory entry");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let bytes = std::fs::read(entry.path()).unwrap_or_default();
                let found = bytes.windows(SECRET_KEY.len()).any(|window| window == SECRET_KEY.as_bytes());
                // The outputs' spill may hold what the engine itself has planted.
                assert!(!found || is_output(&entry.path()), "the store's key is in {:?}", entry.path());
                files += usize::from(!bytes.is_empty());
            }
        }
    }
    assert!(files > 3, "the data folder was looked through");
}

fn is_output(path: &Path) -> bool {
    path.components().any(|part| matches!(part.as_os_str().to_str(), Some("outputs" | "spill")))
}
