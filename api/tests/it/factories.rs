//! Factories: made, changed on condition, removed; and what arrived.

use http::Method;
use serde_json::{Value, json};
use telecine_core::ingest;
use telecine_domain::factory::ArrivedObject;
use telecine_domain::location::{Location, ObjectVersion};

use crate::harness::Studio;

fn factory() -> Value {
    json!({
        "name": "renditions", "service": "transform", "engine_version": "1.0.0",
        "composition": {
            "inputs": {"source": {"store": "media", "key": "{input.key}"}},
            "processing": {},
            "outputs": {"rendition": {"store": "media", "key": "out/{input.stem}.mp4"}},
        },
        "watch": [{"store": "media", "prefix": "in/", "suffixes": [".mov"]}],
        "defaults": {"priority": 700},
    })
}

#[tokio::test]
async fn a_factory_is_made_changed_and_removed() {
    let studio = Studio::new().await;
    let app = &studio.app;
    let made = app.post("/v1/factories", &factory()).await;
    assert_eq!(made.header("etag"), Some("\"1\""));
    let made = made.expect(201);
    let id = made["id"].as_str().unwrap();
    assert_eq!(app.get("/v1/factories/renditions").await.expect(200), made);
    assert_eq!(app.get("/v1/factories").await.expect(200)["data"], json!([made]));
    let path = format!("/v1/factories/{id}");
    let patch =
        |etag: &str, body: &Value| app.call(Method::PATCH, &path).header("if-match", etag).json(body).send();
    let changed = patch("\"1\"", &json!({"enabled": false})).await.expect(200);
    assert_eq!((&changed["enabled"], &changed["version"]), (&json!(false), &json!(2)));
    assert_eq!(changed["watch"], made["watch"], "what it has seen is remembered");
    assert_eq!(changed["defaults"]["priority"], 700);
    patch("\"1\"", &json!({"enabled": true})).await.problem(412, "etag_mismatch");
    let problem = patch("*", &json!({"engine_version": "9.0.0"})).await.problem(422, "invalid_request");
    assert_eq!(problem["errors"][0]["pointer"], "/engine_version");
    app.call(Method::DELETE, "/v1/stores/media").send().await.problem(409, "in_use");
    let delete = |etag: &str| app.call(Method::DELETE, &path).header("if-match", etag).send();
    delete("\"1\"").await.problem(412, "etag_mismatch");
    assert_eq!(delete("\"2\"").await.status.as_u16(), 204);
    app.get(&path).await.problem(404, "not_found");
}

#[tokio::test]
async fn the_same_factory_is_made_once_even_when_its_answer_was_lost() {
    let studio = Studio::new().await;
    let app = &studio.app;
    let key = "lost".parse().unwrap();
    let print = telecine_core::idempotency::fingerprint("POST /v1/factories", &factory());
    let account = app.account.id;
    // The process died after the factory was made and before the answer was kept.
    let claim =
        telecine_core::idempotency::begin(&app.backend, account, &key, &print, app.now()).await.unwrap();
    let made =
        telecine_core::factories::create(&app.backend, account, &factory(), claim.first_seen).await.unwrap();
    app.pass(5000);
    let again = app
        .call(Method::POST, "/v1/factories")
        .header("idempotency-key", "lost")
        .json(&factory())
        .send()
        .await;
    assert_eq!(again.expect(201)["id"], made.id.to_string());
    let problem = app.post("/v1/factories", &factory()).await.problem(422, "invalid_request");
    assert_eq!(problem["errors"][0]["code"], "name_taken");
}

#[tokio::test]
async fn everything_wrong_with_a_factory_is_said_at_once() {
    let studio = Studio::new().await;
    let mut body = factory();
    body["watch"][0]["store"] = "nowhere".into();
    body["composition"]["outputs"]["rendition"]["key"] = "out/{input.size}.mp4".into();
    body["colour"] = "red".into();
    let problem = studio.app.post("/v1/factories", &body).await.problem(422, "invalid_request");
    let text = problem["errors"].to_string();
    for pointer in ["/watch/0/store", "/composition/outputs/rendition/key", "/colour"] {
        assert!(text.contains(pointer), "{pointer} in {text}");
    }
}

#[tokio::test]
async fn arrivals_are_listed_with_their_job_or_the_reasons() {
    let studio = Studio::new().await;
    let app = &studio.app;
    app.post("/v1/factories", &factory()).await.expect(201);
    let store = app.get("/v1/stores/media").await.expect(200)["id"].as_str().unwrap().parse().unwrap();
    for key in ["in/a.mov", "in/a.txt"] {
        let put = app
            .call(Method::PUT, &format!("/v1/stores/media/objects/{key}"))
            .body("bytes")
            .send()
            .await
            .expect(201);
        let version: ObjectVersion =
            serde_json::from_value(json!({"etag": put["etag"], "size_bytes": put["size_bytes"]})).unwrap();
        let arrived = ArrivedObject { location: Location { store, key: key.parse().unwrap() }, version };
        ingest::arrived(&app.backend, arrived, app.now()).await.unwrap();
    }
    let unmatched = app.get("/v1/ingest-events").await.expect(200);
    assert_eq!(unmatched["data"][0]["key"], "in/a.txt");
    assert!(unmatched["data"][0]["reasons"][0]["reason"].as_str().unwrap().contains(".mov"), "{unmatched}");
    let matched = app.get("/v1/ingest-events?matched=true").await.expect(200);
    let job = matched["data"][0]["job_id"].as_str().unwrap();
    let job = app.get(&format!("/v1/jobs/{job}")).await.expect(200);
    assert_eq!((&job["origin"], &job["priority"]), (&json!("arrival"), &json!(700)));
}
