//! What verbs do, as tables for people and JSON for programs.

use std::process::Stdio;

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::server::{Ran, Server};

#[tokio::test]
async fn a_job_is_submitted_listed_shown_and_explained() {
    let server = Server::start().await;
    let file = server.furnish().await;
    let submit = [
        "jobs",
        "submit",
        "--service",
        "transform",
        "--file",
        &file,
        "--label",
        "team=news",
        "--priority",
        "900",
        "--cpu",
        "2",
        "--memory",
        "1.5GiB",
        "--queue-timeout",
        "2h",
        "-o",
        "json",
    ];
    let job = server.run(&submit).await.expect(0).json();
    assert_eq!((&job["priority"], &job["labels"]), (&json!(900), &json!({"team": "news"})));
    assert_eq!(job["resources"]["cpu_milli"], 2000);
    assert_eq!(job["resources"]["memory_bytes"], 3u64 << 29);
    assert_eq!(job["timeouts"]["queue_seconds"], 7200);
    assert_eq!(job["timeouts"]["attempt_seconds"], 86400, "what is not given stays as it is");
    let id = job["id"].as_str().unwrap();
    let list = server.run(&["jobs", "list", "--label", "team=news"]).await.expect(0).out;
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 2, "{list}");
    assert!(lines[0].starts_with("ID") && lines[1].contains(id) && lines[1].contains("clip.mov"), "{list}");
    assert_eq!(server.run(&["jobs", "list", "--label", "team=sport"]).await.expect(0).out, "nothing\n");
    let shown = server.run(&["jobs", "get", id]).await.expect(0).out;
    assert!(shown.contains("2 cores CPU, 1.50 GiB memory") && shown.contains("output  rendition"), "{shown}");
    let explained = server.run(&["jobs", "explain", id]).await.expect(0).out;
    assert!(explained.contains("instance"), "{explained}");
    let updated =
        server.run(&["jobs", "update", id, "--priority", "1", "--if-version", "1", "-o", "json"]).await;
    assert_eq!(updated.expect(0).json()["priority"], 1);
    server.run(&["jobs", "update", id, "--priority", "2", "--if-version", "1"]).await.expect(1);
}

#[tokio::test]
async fn a_job_is_estimated_with_the_flags_of_its_submission_and_not_submitted() {
    let server = Server::start().await;
    let file = server.furnish().await;
    let flags = ["--service", "transform", "--file", &file, "--cpu", "2"];
    let told = server.run(&[&["jobs", "estimate"][..], &flags].concat()).await.expect(0).out;
    for named in [
        "service    transform 1.0.0",
        "needs      2 cores CPU",
        "runs       1 m 00 s, by default",
        "costs      unknown: no pool has a price",
        "starts     unknown: nothing that is there",
        "waits for  region local has no instance",
    ] {
        assert!(told.contains(named), "{named} is not in:\n{told}");
    }
    let told = server.run(&[&["jobs", "estimate", "-o", "json"][..], &flags].concat()).await.expect(0).json();
    assert_eq!((&told["duration"]["basis"], &told["cost"]), (&json!("default"), &json!(null)));
    let wrong = [&["jobs", "estimate"][..], &flags, &["--region", "Nowhere"]].concat();
    let refused = server.run(&wrong).await.expect(2).err;
    assert!(refused.contains("/region"), "{refused}");
    assert_eq!(server.run(&["jobs", "list"]).await.expect(0).out, "nothing\n", "nothing was submitted");
}

#[tokio::test]
async fn a_composition_comes_from_standard_input_and_a_repeated_key_makes_one_job() {
    let server = Server::start().await;
    let file = server.furnish().await;
    let arguments =
        ["jobs", "submit", "--service", "transform", "--file", "-", "--idempotency-key", "one", "-o", "json"];
    let mut ids = Vec::new();
    for _ in 0..2 {
        let mut command = server.command(&arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&std::fs::read(&file).unwrap()).await.unwrap();
        let ran: Ran = child.wait_with_output().await.unwrap().into();
        ids.push(ran.expect(0).json()["id"].clone());
    }
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn stores_take_files_and_list_them() {
    let server = Server::start().await;
    server.furnish().await;
    let file = server.folder.path().join("composition.json");
    let file = file.to_str().unwrap();
    server.run(&["stores", "put", "media", file, "in/a b#?.json"]).await.expect(0);
    let listed = server.run(&["stores", "ls", "media", "--prefix", "in/"]).await.expect(0).out;
    assert!(listed.contains("in/a b#?.json"), "{listed}");
    assert!(server.folder.path().join("in/a b#?.json").exists());
    server.run(&["stores", "put", "media", "/nonexistent", "x"]).await.expect(2);
    let table = server.run(&["stores", "list"]).await.expect(0).out;
    assert!(table.contains("media") && table.contains("works"), "{table}");
    server.run(&["stores", "delete", "media"]).await.expect(0);
    server.run(&["stores", "get", "media"]).await.expect(4);
}

#[tokio::test]
async fn a_factory_is_made_by_options_and_changed() {
    let server = Server::start().await;
    server.furnish().await;
    let template = server.folder.path().join("template.json");
    let composition = json!({
        "inputs": {"source": {"store": "media", "key": "{input.key}"}},
        "outputs": {"rendition": {"store": "media", "key": "out/{input.stem}.mp4"}},
    });
    std::fs::write(&template, composition.to_string()).unwrap();
    let create = [
        "factories",
        "create",
        "--name",
        "renditions",
        "--service",
        "transform",
        "--engine-version",
        "1.0.0",
        "--file",
        template.to_str().unwrap(),
        "--watch",
        "media:in/",
        "--suffix",
        ".mov",
        "-o",
        "json",
    ];
    let made = server.run(&create).await.expect(0).json();
    assert_eq!(
        (&made["watch"][0]["prefix"], &made["watch"][0]["suffixes"]),
        (&json!("in/"), &json!([".mov"]))
    );
    let changed =
        server.run(&["factories", "update", "renditions", "--enabled", "false"]).await.expect(0).out;
    assert!(changed.contains("enabled   false"), "{changed}");
    let job =
        server.run(&["jobs", "submit", "--factory", "renditions", "--input", "clip.mov", "-o", "json"]).await;
    assert_eq!((job.code, job.code == 0 && job.json()["origin"] == "factory"), (job.code, job.code == 0));
    server.run(&["factories", "delete", "renditions"]).await.expect(0);
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked() {
    let server = Server::start().await;
    let secret = server.run(&["keys", "create", "--name", "build", "--scope", "read"]).await.expect(0).out;
    assert!(secret.starts_with("tk_"), "{secret}");
    let listed = server.run(&["keys", "list", "-o", "json"]).await.expect(0).json();
    let key = listed["data"].as_array().unwrap().iter().find(|key| key["name"] == "build").unwrap().clone();
    server.run(&["keys", "revoke", key["id"].as_str().unwrap()]).await.expect(0);
    assert!(!server.run(&["keys", "list"]).await.expect(0).out.contains("build"));
}

#[tokio::test]
async fn engines_regions_and_instances_are_told() {
    let server = Server::start().await;
    server.furnish().await;
    let versions = server.run(&["engines", "list", "transform"]).await.expect(0).out;
    assert!(versions.contains("1.0.0") && versions.contains("stable"), "{versions}");
    let withdrawn =
        server.run(&["engines", "withdraw", "transform", "1.0.0", "-o", "json"]).await.expect(0).json();
    assert_eq!(withdrawn["lifecycle"], "withdrawn");
    let regions = server.run(&["regions", "list"]).await.expect(0).out;
    assert!(regions.contains("local (default)"), "{regions}");
    assert_eq!(server.run(&["instances", "list"]).await.expect(0).out, "nothing\n");
}
