//! Bad input, always: a clear error that names the thing and what to do, the right code, nothing lost.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::json;
use telecine_tests::binary;
use telecine_tests::up::{Up, text};

use crate::spine::{jobs_of, path, studio, write};
use crate::workshop::workshop;

fn refusal(up: &Up, arguments: &[&str]) -> (i32, String) {
    let output = up.try_cli(arguments);
    assert!(!output.status.success(), "telecine {} should fail", arguments.join(" "));
    (output.status.code().expect("it exits by itself"), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_composition_with_mistakes_is_refused_with_each_of_them_and_makes_no_job() {
    let Some(shop) = workshop(&[]) else { return };
    let composition = json!({
        "inputs": {"source": {"store": "nowhere", "key": "a.mov"}, "other": {"store": shop.store, "key": 7}},
        "procesing": {},
        "outputs": {"made": {"store": shop.store, "key": "../escape"}},
    });
    write(&shop.up, "mistakes", &composition);
    let (code, told) =
        refusal(&shop.up, &["jobs", "submit", "--service", "shell", "--file", &path(&shop.up, "mistakes")]);
    assert_eq!(code, 2, "{told}");
    for named in [
        "/composition/inputs/source/store",
        "nowhere",
        "/composition/inputs/other/key",
        "procesing",
        "/composition/outputs/made/key",
    ] {
        assert!(told.contains(named), "{named} is not named in: {told}");
    }
    assert_eq!(shop.up.cli(&["jobs", "list"])["data"], json!([]));
}

#[test]
fn a_store_folder_that_is_missing_is_named() {
    let up = Up::start(&[]);
    let missing = up.folder("shelves").join("not-there");
    let store = up.cli(&["stores", "create", "gone", "--folder", missing.to_str().expect("UTF-8")]);
    let output = up.try_cli(&["stores", "validate", &text(&store, "/id")]);
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("not-there"), "{told}");
}

#[test]
fn what_is_not_media_fails_with_class_input_and_the_reason() {
    let Some(studio) = studio() else { return };
    let inbox = studio.up.folder("inbox");
    fs::write(inbox.join("letter.mov"), "Dear Sir or Madam,\n".repeat(100)).expect("written");
    studio.up.until("a job appears", |up| !jobs_of(up, &studio.factory).is_empty());
    let job = text(&jobs_of(&studio.up, &studio.factory)[0], "/id");
    let done = studio.up.finished(&job);
    assert_eq!((&done["state"], &done["failure"]["class"]), (&json!("failed"), &json!("input")), "{done:#}");
    assert!(
        done["failure"]["message"]
            .as_str()
            .is_some_and(|m| m.contains("cannot be read as media: moov atom not found")),
        "{done:#}"
    );
    assert!(!studio.up.folder("outbox").join("renditions/letter.mp4").exists());
}

#[test]
fn an_image_that_is_not_in_the_registry_fails_the_job_by_name() {
    let Some(shop) = workshop(&[]) else { return };
    let image = telecine_tests::image("TELECINE_PROBE_IMAGE").expect("the workshop has it");
    let missing = format!("{}@sha256:{}", image.split('@').next().unwrap_or_default(), "0".repeat(64));
    shop.up.publish("missing", "64MiB", &["--plain", "--image", &missing]);
    write(&shop.up, "composition", &json!({"inputs": {}, "outputs": {}}));
    let job =
        shop.up.cli(&["jobs", "submit", "--service", "missing", "--file", &path(&shop.up, "composition")]);
    let done = shop.up.finished(&text(&job, "/id"));
    assert_eq!(
        (&done["state"], &done["failure"]["code"]),
        (&json!("failed"), &json!("image_not_found")),
        "{done:#}"
    );
    assert!(done["failure"]["message"].as_str().is_some_and(|m| m.contains(&"0".repeat(64))), "{done:#}");
}

#[test]
fn an_engine_that_eats_memory_forks_or_ignores_sigterm_harms_only_itself() {
    let Some(shop) = workshop(&[]) else { return };
    let hungry = shop.submit("hungry", "head -c 500m /dev/zero | tail -c 400m > /dev/null; tail /dev/zero");
    let forking = shop.submit("forking", "f() { f | f & }; f; sleep 600");
    let stubborn = shop.submit("stubborn", "trap '' TERM; sleep 600");
    shop.up.until("the stubborn one runs", |_| shop.is_running(&stubborn));
    let told = shop.up.try_cli(&["jobs", "cancel", &stubborn]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert_eq!(shop.up.finished(&stubborn)["state"], "canceled");
    let done = shop.up.finished(&hungry);
    assert_eq!(done["failure"]["code"], "out_of_memory", "{done:#}");
    // Five hundred processes share a tenth of a core: it ends by itself only when its shell can fork no more.
    let told = shop.up.try_cli(&["jobs", "cancel", &forking]);
    let done = shop.up.finished(&forking);
    if told.status.success() {
        assert_eq!(done["state"], "canceled", "{done:#}");
    } else {
        assert_eq!(
            (&done["state"], &done["failure"]["class"]),
            (&json!("failed"), &json!("engine")),
            "{done:#}"
        );
    }
    let after = shop.submit("after", "echo fine > {output.made}");
    assert_eq!(shop.up.finished(&after)["state"], "succeeded", "the instance still works");
}

#[test]
fn hostile_names_are_ordinary_names() {
    let Some(shop) = workshop(&[]) else { return };
    let names = ["a b", "it's \"quoted\"", "new\nline", "100%2e%2e%2f", "-rf", "漢字 é", &"x".repeat(200)];
    let jobs: Vec<String> = names.iter().map(|name| shop.submit(name, "echo made > {output.made}")).collect();
    for (name, job) in names.iter().zip(&jobs) {
        let done = shop.up.finished(job);
        assert_eq!(done["state"], "succeeded", "{name:?}: {done:#}");
        assert_eq!(shop.made(name).as_deref(), Some("made\n"), "{name:?}");
    }
}

#[test]
fn a_key_of_1024_bytes_is_an_ordinary_key_and_a_longer_one_is_refused() {
    let Some(shop) = workshop(&[]) else { return };
    // `made/` and four folders.
    let longest = format!("{}/{}", vec!["d".repeat(200); 4].join("/"), "e".repeat(1024 - 5 - 4 * 201));
    assert_eq!(format!("made/{longest}").len(), 1024);
    let composition = |key: &str| {
        json!({
            "inputs": {},
            "processing": {"arguments": ["echo made > \"$1\"", "sh", "{output.made}"]},
            "outputs": {"made": {"store": shop.store, "key": key}},
        })
    };
    write(&shop.up, "longest", &composition(&format!("made/{longest}")));
    let job = shop.up.cli(&["jobs", "submit", "--service", "shell", "--file", &path(&shop.up, "longest")]);
    let done = shop.up.finished(&text(&job, "/id"));
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(shop.made(&longest).as_deref(), Some("made\n"));
    write(&shop.up, "longer", &composition(&format!("made/{longest}e")));
    let (code, told) =
        refusal(&shop.up, &["jobs", "submit", "--service", "shell", "--file", &path(&shop.up, "longer")]);
    assert!(code == 2 && told.contains("/composition/outputs/made/key"), "{code} {told}");
}

#[test]
fn a_store_folder_that_may_not_be_written_is_named_and_takes_no_job() {
    let Some(shop) = workshop(&[]) else { return };
    let folder = shop.up.folder("sealed");
    let _sealed = ReadOnly::mount(&folder);
    let store = shop.up.cli(&["stores", "create", "sealed", "--folder", folder.to_str().expect("UTF-8")]);
    let output = shop.up.try_cli(&["stores", "validate", &text(&store, "/id"), "-o", "json"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("sealed") && told.contains("Read-only file system"), "{told}");
    let composition = json!({"inputs": {}, "outputs": {"made": {"store": "sealed", "key": "a"}}});
    write(&shop.up, "unwritable", &composition);
    let (code, told) =
        refusal(&shop.up, &["jobs", "submit", "--service", "shell", "--file", &path(&shop.up, "unwritable")]);
    assert!(
        code == 2 && told.contains("/composition/outputs/made/store") && told.contains("sealed"),
        "{told}"
    );
}

/// A folder that nobody may write, root neither, until it is dropped.
struct ReadOnly(std::path::PathBuf);

impl ReadOnly {
    fn mount(folder: &std::path::Path) -> Self {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "none"]).arg(folder).status();
        assert!(mounted.expect("mount runs").success(), "tests of mounts run as root");
        Self(folder.to_owned())
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // Lazily: the agent may look at it just now.
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_second_up_on_one_folder_and_a_port_in_use_are_refused() {
    let up = Up::start(&[]);
    let refused = |data: &std::path::Path, arguments: &[&str]| {
        let output = Command::new(binary("telecine"))
            .args(["up", "--data"])
            .arg(data)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the binary runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        told
    };
    let any = "127.0.0.1:0";
    let told = refused(&up.data(), &["--listen", any, "--manager-listen", any]);
    let process = up.process().pid.to_string();
    assert!(told.contains(up.data().to_str().expect("UTF-8")) && told.contains(&process), "{told}");

    let (api, manager) = (format!("127.0.0.1:{}", up.api_port()), format!("127.0.0.1:{}", up.manager_port()));
    for (flags, setting, taken) in [
        (["--listen", &api, "--manager-listen", any], "listen", &api),
        (["--listen", any, "--manager-listen", &manager], "manager_listen", &manager),
    ] {
        let other = up.folder("other");
        let told = refused(&other, &flags);
        let flag = format!("--{}", setting.replace('_', "-"));
        for named in [taken.as_str(), &format!("`{setting}`"), &flag] {
            assert!(told.contains(named), "{named} is not named in: {told}");
        }
        assert_eq!(fs::read_dir(&other).expect("it is there").count(), 0, "nothing is begun");
    }
    let told = refused(&up.folder("other"), &["--listen", any, "--manager-listen", any, "--observe", &api]);
    assert!(told.contains("`observe`") && told.contains(&api), "{told}");
    assert!(up.try_cli(&["jobs", "list"]).status.success(), "the first one never noticed");
}

#[test]
fn garbage_on_the_ports_is_shrugged_off() {
    let up = Up::start(&[]);
    for port in [up.api_port(), up.manager_port()] {
        for garbage in [
            &b"GET /v1/jobs?\xff\x00 HTTP/9.9\r\nContent-Length: -1\r\n\r\n"[..],
            &b"\x16\x03\x01\xff\xff garbage"[..],
            &[0xff; 70_000],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff",
        ] {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port answers");
            // The other side may hang up in the middle, which is its right.
            stream.write_all(garbage).ok();
        }
    }
    assert!(up.try_cli(&["jobs", "list"]).status.success());
    up.until("the instance is still there", |up| {
        up.cli(&["instances", "list"])["data"]
            .as_array()
            .is_some_and(|all| all.iter().any(|i| i["state"] == "ready"))
    });
}
