//! Event streams and logs, while a job is run by hand.

use std::time::Duration;

use futures::StreamExt;
use http::Method;
use serde_json::{Value, json};
use telecine_core::{dispatch, jobs, recorder};
use telecine_domain::attempt::{AttemptId, Progress};
use telecine_domain::id::{InstanceId, JobId};

use crate::harness::Studio;

/// An event stream, read event by event.
struct Events(futures::stream::BoxStream<'static, Result<bytes::Bytes, axum::Error>>, String);

impl Events {
    async fn open(studio: &Studio, job: &JobId, last: Option<&str>) -> Self {
        let call = studio.app.call(Method::GET, &format!("/v1/jobs/{job}/events"));
        let call = if let Some(last) = last { call.header("last-event-id", last) } else { call };
        let response = call.header("accept", "text/event-stream").open().await;
        assert_eq!(response.status().as_u16(), 200);
        Self(response.into_body().into_data_stream().boxed(), String::new())
    }

    /// Name, id and data of the next event; `None` at the end.
    async fn next(&mut self) -> Option<(String, Option<String>, Value)> {
        loop {
            if let Some((block, rest)) = self.1.split_once("\n\n") {
                let field = |name: &str| {
                    block.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned())
                };
                let event = field("event:").map(|name| {
                    (name, field("id:"), serde_json::from_str(&field("data:").unwrap()).unwrap())
                });
                self.1 = rest.to_owned();
                if event.is_some() {
                    return event;
                }
                continue;
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.0.next())
                .await
                .expect("an event in time")?;
            self.1.push_str(&String::from_utf8_lossy(&chunk.unwrap()));
        }
    }

    async fn state(&mut self) -> String {
        let (name, _, data) = self.next().await.expect("another event");
        assert_eq!(name, "job.state");
        data["state"].as_str().unwrap().to_owned()
    }
}

async fn assigned(studio: &Studio, job: JobId) -> AttemptId {
    let instance: InstanceId = "ins_01k00000000000000000000000".parse().unwrap();
    let backend = &studio.app.backend;
    dispatch::assign(backend, job, instance, studio.app.now()).await.unwrap();
    let found = jobs::find(backend, studio.app.account.id, job).await.unwrap().unwrap();
    found.live_attempt().unwrap()
}

fn progress(attempt: AttemptId, sequence: u64, ratio_ppm: u32, studio: &Studio) -> Progress {
    let at = studio.app.now();
    Progress {
        attempt,
        sequence,
        ratio_ppm: Some(ratio_ppm),
        media_millis: None,
        phase: "encode".to_owned(),
        at,
    }
}

#[tokio::test]
async fn a_job_is_followed_to_its_end_and_resumed_without_a_gap() {
    let studio = Studio::new().await;
    let job: JobId = studio.submitted().await["id"].as_str().unwrap().parse().unwrap();
    let (backend, account) = (studio.app.backend.clone(), studio.app.account.id);
    let mut events = Events::open(&studio, &job, None).await;
    assert_eq!(events.state().await, "queued");
    let attempt = assigned(&studio, job).await;
    assert_eq!(events.state().await, "assigned");
    assert!(recorder::watched(&backend, account, job, studio.app.now()).await.unwrap());
    dispatch::started(&backend, attempt, studio.app.now()).await.unwrap();
    dispatch::engine_running(&backend, attempt, studio.app.now()).await.unwrap();
    assert_eq!((events.state().await, events.state().await), ("starting".to_owned(), "running".to_owned()));
    recorder::put_progress(&backend, account, &progress(attempt, 1, 250_000, &studio)).await.unwrap();
    let (name, id, data) = events.next().await.unwrap();
    assert_eq!((name.as_str(), id, &data["ratio_ppm"]), ("job.progress", None, &json!(250_000)));
    assert_eq!(
        studio.app.get(&format!("/v1/jobs/{job}")).await.expect(200)["progress"]["ratio_ppm"],
        250_000
    );
    jobs::cancel(&backend, account, job, studio.app.now()).await.unwrap();
    assert_eq!(events.state().await, "canceling");
    dispatch::stopped(&backend, attempt, None, studio.app.now()).await.unwrap();
    let (_, last, data) = events.next().await.unwrap();
    assert_eq!(data["state"], "canceled");
    assert_eq!(events.next().await, None);

    let mut resumed = Events::open(&studio, &job, Some("3")).await;
    let (_, id, _) = resumed.next().await.unwrap();
    assert_eq!(id.as_deref(), Some("4"));
    let mut nothing = Events::open(&studio, &job, last.as_deref()).await;
    while let Some((name, ..)) = nothing.next().await {
        assert_eq!(name, "job.progress", "no change comes twice");
    }
    let wrong = studio.app.call(Method::GET, &format!("/v1/jobs/{job}/events")).header("last-event-id", "x");
    wrong.send().await.problem(400, "invalid_header");
}

#[tokio::test(start_paused = true)]
async fn changes_of_the_job_are_told_without_a_pause() {
    let studio = Studio::new().await;
    let job: JobId = studio.submitted().await["id"].as_str().unwrap().parse().unwrap();
    let mut events = Events::open(&studio, &job, None).await;
    assert_eq!(events.state().await, "queued");
    let start = tokio::time::Instant::now();
    let attempt = assigned(&studio, job).await;
    assert_eq!(events.state().await, "assigned");
    dispatch::started(&studio.app.backend, attempt, studio.app.now()).await.unwrap();
    assert_eq!(events.state().await, "starting");
    dispatch::engine_running(&studio.app.backend, attempt, studio.app.now()).await.unwrap();
    assert_eq!(events.state().await, "running");
    assert!(start.elapsed() < Duration::from_millis(50), "took {:?}", start.elapsed());
}

#[tokio::test]
async fn a_log_is_read_followed_and_told_line_by_line() {
    let studio = Studio::new().await;
    let job: JobId = studio.submitted().await["id"].as_str().unwrap().parse().unwrap();
    let (backend, account) = (studio.app.backend.clone(), studio.app.account.id);
    let path = format!("/v1/jobs/{job}/logs");
    assert_eq!(studio.app.get(&path).await.text, "");
    studio.app.get(&format!("{path}?attempt=1")).await.problem(404, "not_found");
    let attempt = assigned(&studio, job).await;
    dispatch::started(&backend, attempt, studio.app.now()).await.unwrap();
    let now = studio.app.now();
    recorder::append_log(&backend, account, attempt, 0, b"one\ntw", now).await.unwrap();
    let answer = studio.app.get(&path).await;
    assert_eq!(
        (answer.text.as_str(), answer.header("content-type")),
        ("one\ntw", Some("text/plain; charset=utf-8"))
    );
    let follow =
        studio.app.call(Method::GET, &format!("{path}?follow=true")).header("accept", "application/x-ndjson");
    let response = follow.open().await;
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let ending = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        recorder::append_log(&backend, account, attempt, 1, b"o\nthree", now).await.unwrap();
        jobs::cancel(&backend, account, job, now).await.unwrap();
        dispatch::stopped(&backend, attempt, None, now).await.unwrap();
    };
    let (read, ()) = tokio::join!(axum::body::to_bytes(response.into_body(), usize::MAX), ending);
    let lines: Vec<Value> = String::from_utf8(read.unwrap().to_vec())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let texts: Vec<&str> = lines.iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["one", "two", "three"]);
    assert_eq!(studio.app.get(&format!("{path}?attempt=1")).await.text, "one\ntwo\nthree");
    studio.app.get(&format!("{path}?attempt=0")).await.problem(400, "invalid_parameter");
    studio
        .app
        .call(Method::GET, &path)
        .header("accept", "text/html")
        .send()
        .await
        .problem(406, "not_acceptable");
}
