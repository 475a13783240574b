//! Engine versions: published once, moved through their life.

use serde_json::{Value, json};

use crate::harness::App;

const PATH: &str = "/v1/services/transform/engine-versions";

fn engine(version: &str) -> Value {
    json!({
        "version": version,
        "launch": {"kind": "plain", "image": format!("registry.example.com/ffmpeg@sha256:{}", "a".repeat(64)), "arguments": ["-i", "{input.source}"]},
        "resources": {"cpu_milli": 2000, "memory_bytes": 1 << 30},
        "lifecycle": "stable",
    })
}

#[tokio::test]
async fn a_version_is_published_found_and_withdrawn() {
    let app = App::new().await;
    let published = app.post(PATH, &engine("1.0.0")).await.expect(201);
    assert_eq!(published["processing_schema"], true);
    app.post(PATH, &engine("1.0.0")).await.expect(201);
    let mut other = engine("1.0.0");
    other["changelog"] = "other".into();
    app.post(PATH, &other).await.problem(409, "already_exists");
    app.post(PATH, &engine("1.10.0")).await.expect(201);
    app.post(PATH, &engine("1.9.0")).await.expect(201);
    let first = app.get(&format!("{PATH}?limit=2")).await.expect(200);
    assert_eq!(first["data"][1]["version"], "1.9.0");
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = app.get(&format!("{PATH}?limit=2&cursor={cursor}")).await.expect(200);
    assert_eq!((&second["data"][0]["version"], &second["next_cursor"]), (&json!("1.10.0"), &Value::Null));
    assert_eq!(
        app.post(&format!("{PATH}/1.0.0/withdraw"), &json!({})).await.expect(200)["lifecycle"],
        "withdrawn"
    );
    assert_eq!(app.get(&format!("{PATH}/1.0.0")).await.expect(200)["lifecycle"], "withdrawn");
    app.get(&format!("{PATH}/3.0.0")).await.problem(404, "not_found");
    app.post(&format!("{PATH}/3.0.0/deprecate"), &json!({})).await.problem(404, "not_found");
    assert_eq!(app.get("/v1/services").await.expect(200)["data"], json!([{"id": "transform"}]));
}

#[tokio::test]
async fn everything_wrong_is_said_at_once() {
    let app = App::new().await;
    let body = json!({
        "version": "one", "lifecycle": "withdrawn", "resources": {},
        "launch": {"kind": "docker", "image": "ffmpeg:latest"},
    });
    let problem = app.post(PATH, &body).await.problem(422, "invalid_request");
    let pointers: Vec<&str> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["pointer"].as_str().unwrap())
        .collect();
    assert_eq!(pointers, ["/version", "/lifecycle", "/launch/image", "/launch/kind"]);
    let body = json!({"version": "1.0.0", "resources": {}, "launch": {"kind": "command", "program": "true"}});
    let problem = app.post(PATH, &body).await.problem(422, "invalid_request");
    assert_eq!(problem["errors"][0]["pointer"], "/launch/program");
    let mut schema = engine("1.0.0");
    schema["processing_schema"] = json!({"type": 3});
    let problem = app.post(PATH, &schema).await.problem(422, "invalid_request");
    assert_eq!(problem["errors"][0]["pointer"], "/processing_schema");
}
