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
        "inputs": {"source": {"store": "nowhere", "key": "a.mov"}, "other": {"store": shop.store, "key": "not there.mov"}},
        "procesing": {},
        "outputs": {"made": {"store": shop.store, "key": "../escape"}},
    });
    write(&shop.up, "mistakes", &composition);
    let (code, told) =
        refusal(&shop.up, &["jobs", "submit", "--service", "shell", "--file", &path(&shop.up, "mistakes")]);
    assert_eq!(code, 2, "{told}");
    for named in ["/composition/inputs/source/store", "nowhere", "procesing", "/composition/outputs/made/key"]
    {
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
    let forking = shop.submit("forking", "f() { f | f & }; f; sleep 2; echo survived > {output.made}");
    let stubborn = shop.submit("stubborn", "trap '' TERM; sleep 600");
    shop.up.until("the stubborn one runs", |_| shop.is_running(&stubborn));
    let told = shop.up.try_cli(&["jobs", "cancel", &stubborn]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert_eq!(shop.up.finished(&stubborn)["state"], "canceled");
    let done = shop.up.finished(&hungry);
    assert_eq!(done["failure"]["code"], "out_of_memory", "{done:#}");
    let state = shop.up.finished(&forking);
    assert!(state["state"] == "succeeded" || state["state"] == "failed", "{state:#}");
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
fn a_second_up_on_one_folder_and_a_port_in_use_are_refused() {
    let up = Up::start(&[]);
    let run = |data: &std::path::Path, listen: &str| {
        let output = Command::new(binary("telecine"))
            .args(["up", "--listen", listen, "--manager-listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .output()
            .expect("the binary runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, told) = run(&up.data(), "127.0.0.1:0");
    assert!(
        code.is_some_and(|code| code != 0) && told.contains(up.data().to_str().expect("UTF-8")),
        "{code:?} {told}"
    );
    let address = up.url().replace("http://", "");
    let (code, told) = run(&up.folder("other"), &address);
    assert!(code.is_some_and(|code| code != 0) && told.contains(&address), "{code:?} {told}");
}

#[test]
fn garbage_on_the_ports_is_shrugged_off() {
    let up = Up::start(&[]);
    for port in [up.api_port(), up.manager_port()] {
        for garbage in [
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
