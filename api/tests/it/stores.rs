//! Stores and objects.

use http::Method;
use serde_json::{Value, json};

use crate::harness::{App, Studio};

#[tokio::test]
async fn objects_are_put_whole_and_listed() {
    let studio = Studio::new().await;
    let app = &studio.app;
    let put = |key: &str, bytes: Vec<u8>| {
        app.call(Method::PUT, &format!("/v1/stores/media/objects/{key}")).body(bytes)
    };
    let large = vec![7u8; 3 << 20];
    let entry = put("in/a%20%231.mov", large.clone()).send().await.expect(201);
    assert_eq!((&entry["key"], &entry["size_bytes"]), (&json!("in/a #1.mov"), &json!(3 << 20)));
    assert_eq!(std::fs::read(studio.folder.path().join("in/a #1.mov")).unwrap(), large);
    put("..%2f..%2fetc/x", vec![1]).send().await.problem(400, "invalid_parameter");
    put("a//b", vec![1]).send().await.problem(400, "invalid_parameter");
    put(&"x".repeat(1025), vec![1]).send().await.problem(400, "invalid_parameter");
    put("in/b.mov", vec![1]).send().await.expect(201);
    let first = app.get("/v1/stores/media/objects?limit=1&prefix=in/").await.expect(200);
    assert_eq!(first["data"][0]["key"], "in/a #1.mov");
    let cursor = first["next_cursor"].as_str().unwrap().replace('#', "%23").replace(' ', "%20");
    let second =
        app.get(&format!("/v1/stores/media/objects?limit=1&prefix=in/&cursor={cursor}")).await.expect(200);
    assert_eq!((&second["data"][0]["key"], &second["next_cursor"]), (&json!("in/b.mov"), &Value::Null));
    app.get("/v1/stores/nowhere/objects").await.problem(404, "not_found");
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let studio = Studio::new().await;
    let chunks = [Ok(bytes::Bytes::from_static(b"half")), Err(std::io::Error::other("gone"))];
    let body = axum::body::Body::from_stream(futures::stream::iter(chunks));
    let answer = studio.app.call(Method::PUT, "/v1/stores/media/objects/half.mov").body(body).send().await;
    assert!(answer.status.as_u16() >= 400, "{}", answer.text);
    assert!(!studio.folder.path().join("half.mov").exists());
}

#[tokio::test]
async fn a_secret_goes_in_and_never_comes_out() {
    let app = App::new().await;
    let body = json!({
        "name": "bucket", "provider": "s3", "bucket": "masters", "endpoint": "https://objects.example.com",
        "access_key_id": "AKIAEXAMPLE", "secret_access_key": "very-secret-words",
    });
    let created = app.post("/v1/stores", &body).await;
    assert_eq!(created.expect(201)["authentication"], "static_keys");
    for answer in [created, app.get("/v1/stores").await, app.get("/v1/stores/bucket").await] {
        assert!(
            !answer.text.contains("very-secret-words") && !answer.text.contains("AKIAEXAMPLE"),
            "{}",
            answer.text
        );
    }
}

#[tokio::test]
async fn everything_wrong_with_a_store_is_named_where_it_was_said() {
    let app = App::new().await;
    let refused = async |body: Value| {
        let problem = app.post("/v1/stores", &body).await.problem(422, "invalid_request");
        let errors = problem["errors"].as_array().unwrap().clone();
        errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(refused(json!({"name": "a", "provider": "ftp"})).await, ["/provider"]);
    assert_eq!(
        refused(json!({"name": "a", "provider": "local", "bucket": "b"})).await,
        ["/bucket", "/folder"]
    );
    assert_eq!(
        refused(json!({"name": "a b", "provider": "local", "folder": "relative"})).await,
        ["/name", "/folder"]
    );
    let body = json!({"name": "a", "provider": "s3", "bucket": "B", "endpoint": "http://x", "prefix": "p"});
    assert_eq!(refused(body).await, ["/bucket", "/prefix", "/endpoint", "/secret_access_key"]);
    app.post("/v1/stores", &json!({"name": "a", "provider": "local", "folder": "/tmp"})).await.expect(201);
    assert_eq!(refused(json!({"name": "a", "provider": "local", "folder": "/tmp"})).await, ["/name"]);
}

#[tokio::test]
async fn a_store_that_is_not_there_validates_as_such_and_is_removed() {
    let app = App::new().await;
    let body = json!({"name": "lost", "provider": "local", "folder": "/nonexistent/telecine"});
    app.post("/v1/stores", &body).await.expect(201);
    let validation = app.post("/v1/stores/lost/validate", &json!({})).await.expect(200);
    assert_eq!(validation["ok"], false);
    assert!(
        validation["checks"][0]["problem"].as_str().unwrap().contains("/nonexistent/telecine"),
        "{validation}"
    );
    let deleted = app.call(Method::DELETE, "/v1/stores/lost").send().await;
    assert_eq!((deleted.status.as_u16(), deleted.text.as_str()), (204, ""));
    app.get("/v1/stores/lost").await.problem(404, "not_found");
}
