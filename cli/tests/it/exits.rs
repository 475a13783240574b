//! Exit codes, and what people are told.

use telecine_core::access::Scope;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::{Ran, Server, telecine};

async fn run(command: &mut tokio::process::Command) -> Ran {
    command.output().await.unwrap().into()
}

#[tokio::test]
async fn no_known_api_is_usage_and_says_how_to_start_one() {
    let ran = run(&mut telecine(&["jobs", "list"])).await.expect(2);
    assert!(ran.err.contains("telecine up --data"), "{ran:?}");
}

#[tokio::test]
async fn an_api_that_does_not_answer_is_5() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let ran = run(&mut telecine(&["--url", &url, "--api-key", "tk_x", "jobs", "list"])).await.expect(5);
    assert!(ran.err.contains(&url) && ran.err.contains("does not answer"), "{ran:?}");
}

#[tokio::test]
async fn a_wrong_key_or_too_small_a_scope_is_3() {
    let server = Server::start().await;
    let ran = run(server.command(&["jobs", "list"]).env("TELECINE_API_KEY", "tk_wrong")).await.expect(3);
    assert!(ran.err.contains("do: give a key"), "{ran:?}");
    let reader = server.make_key(Scope::Read).await;
    let ran = run(server.command(&["keys", "create", "--name", "x"]).env("TELECINE_API_KEY", &reader))
        .await
        .expect(3);
    assert!(ran.err.contains("`admin`"), "{ran:?}");
    assert!(!ran.err.contains(&reader), "{ran:?}");
}

#[tokio::test]
async fn what_is_not_there_is_4() {
    let server = Server::start().await;
    for arguments in [&["jobs", "get", "job_x"][..], &["stores", "get", "x"], &["instances", "get", "ins_x"]]
    {
        server.run(arguments).await.expect(4);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_document_is_2_and_named_by_pointer() {
    let server = Server::start().await;
    server.furnish().await;
    let file = server.folder.path().join("wrong.json");
    std::fs::write(&file, r#"{"inputs":{"source":{"store":"nowhere","key":"a"}},"outputs":{},"x":1}"#)
        .unwrap();
    let submit = ["jobs", "submit", "--service", "transform", "--file", file.to_str().unwrap()];
    let ran = server.run(&submit).await.expect(2);
    assert!(
        ran.err.contains("/composition/inputs/source/store") && ran.err.contains("/composition/x"),
        "{ran:?}"
    );
    std::fs::write(&file, "{").unwrap();
    let ran = server.run(&submit).await.expect(2);
    assert!(ran.err.contains("wrong.json"), "{ran:?}");
    let ran = server
        .run(&["jobs", "submit", "--service", "transform", "--file", "/nonexistent.json"])
        .await
        .expect(2);
    assert!(ran.err.contains("/nonexistent.json"), "{ran:?}");
}

#[tokio::test]
async fn a_job_that_does_not_end_in_time_is_5_and_goes_on() {
    let server = Server::start().await;
    let file = server.furnish().await;
    let submit = ["jobs", "submit", "--service", "transform", "--file", &file, "--wait", "--timeout", "1s"];
    let ran = server.run(&submit).await.expect(5);
    assert!(ran.err.contains("queued") && ran.err.contains("telecine jobs explain job_"), "{ran:?}");
    let jobs = server.run(&["jobs", "list", "--state", "queued", "-o", "json"]).await.expect(0).json();
    assert_eq!(jobs["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_job_that_ends_otherwise_than_well_is_1() {
    let server = Server::start().await;
    let file = server.furnish().await;
    let job = server
        .run(&["jobs", "submit", "--service", "transform", "--file", &file, "-o", "json"])
        .await
        .expect(0);
    let id = job.json()["id"].as_str().unwrap().to_owned();
    let arguments = ["jobs", "watch", &id];
    let mut command = server.command(&arguments);
    let (ran, canceled) = tokio::join!(run(&mut command), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        server.run(&["jobs", "cancel", &id]).await
    });
    canceled.expect(0);
    let ran = ran.expect(1);
    assert!(ran.out.contains("canceled") && ran.out.contains("total"), "{ran:?}");
    server.run(&["jobs", "hold", &id]).await.expect(1);
}

/// An answer that is no problem of Telecine's: a proxy's page.
#[tokio::test]
async fn a_foreign_answer_is_shown_as_such() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await.unwrap();
        let page = "HTTP/1.1 418 Teapot\r\ncontent-length: 11\r\nconnection: close\r\n\r\n<h1>no</h1>";
        stream.write_all(page.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let ran = run(&mut telecine(&["--url", &url, "--api-key", "tk_x", "jobs", "list"])).await.expect(1);
    assert!(ran.err.contains("not from Telecine") && ran.err.contains("<h1>no</h1>"), "{ran:?}");
    answering.await.unwrap();
}
