//! Keys, scopes, and the same request sent twice.

use http::Method;
use serde_json::json;
use telecine_core::access::Scope;

use crate::harness::App;

#[tokio::test]
async fn without_a_valid_key_nothing_is_told() {
    let app = App::new().await;
    let without = app.call(Method::GET, "/v1/jobs").without("authorization").send().await;
    without.problem(401, "unauthorized");
    assert!(without.header("www-authenticate").unwrap().starts_with("Bearer"));
    for value in ["Bearer nonsense", "Bearer tk_x_y", "Basic dXNlcg==", "tk_x", "Bearer "] {
        app.call(Method::GET, "/v1/jobs")
            .header("authorization", value)
            .send()
            .await
            .problem(401, "unauthorized");
    }
    // The key is asked for before the body is looked at.
    app.call(Method::POST, "/v1/api-keys")
        .without("authorization")
        .body("{")
        .send()
        .await
        .problem(401, "unauthorized");
}

#[tokio::test]
async fn a_key_may_do_what_its_scope_says() {
    let app = App::new().await;
    let reader = format!("Bearer {}", app.key(Scope::Read).await);
    let writer = format!("Bearer {}", app.key(Scope::Write).await);
    let call = |method, path, key: &str| app.call(method, path).header("authorization", key);
    call(Method::GET, "/v1/jobs", &reader).send().await.expect(200);
    let cancel = "/v1/jobs/job_00000000000000000000000000/cancel";
    let problem = call(Method::POST, cancel, &reader).send().await.problem(403, "forbidden");
    assert!(problem["detail"].as_str().unwrap().contains("`write`"));
    call(Method::POST, cancel, &writer).send().await.problem(404, "not_found");
    call(Method::POST, "/v1/api-keys", &writer)
        .json(&json!({"name": "x"}))
        .send()
        .await
        .problem(403, "forbidden");
}

#[tokio::test]
async fn a_key_is_shown_once_listed_without_secret_and_revoked() {
    let app = App::new().await;
    let created = app.post("/v1/api-keys", &json!({"name": "build", "scopes": ["read"]})).await.expect(201);
    let (secret, id) = (created["secret"].as_str().unwrap(), created["api_key"]["id"].as_str().unwrap());
    let listed = app.get("/v1/api-keys").await;
    assert!(listed.text.contains(id) && !listed.text.contains(secret));
    let bearer = format!("Bearer {secret}");
    let read = || app.call(Method::GET, "/v1/jobs").header("authorization", &bearer).send();
    read().await.expect(200);
    app.post(&format!("/v1/api-keys/{id}/revoke"), &json!({})).await.expect(200);
    read().await.problem(401, "unauthorized");
    app.post(&format!("/v1/api-keys/{id}/revoke"), &json!({})).await.problem(404, "not_found");
    app.post("/v1/api-keys/x/revoke", &json!({})).await.problem(404, "not_found");
}

#[tokio::test]
async fn wrong_scopes_and_times_are_named() {
    let app = App::new().await;
    let body = json!({"name": "x", "scopes": ["read", "root"]});
    let problem = app.post("/v1/api-keys", &body).await.problem(422, "invalid_request");
    assert_eq!(problem["errors"][0]["pointer"], "/scopes/1");
    let body = json!({"name": "", "expires_at": "2020-01-01T00:00:00Z"});
    let problem = app.post("/v1/api-keys", &body).await.problem(422, "invalid_request");
    assert_eq!(problem["errors"].as_array().unwrap().len(), 2, "{problem}");
}

#[tokio::test]
async fn an_expired_key_says_so() {
    let app = App::new().await;
    let created = app
        .post("/v1/api-keys", &json!({"name": "short", "expires_at": "2026-11-22T13:00:00Z"}))
        .await
        .expect(201);
    let bearer = format!("Bearer {}", created["secret"].as_str().unwrap());
    app.pass(2 * 3600 * 1000);
    let answer = app.call(Method::GET, "/v1/jobs").header("authorization", &bearer).send().await;
    assert!(answer.problem(401, "unauthorized")["detail"].as_str().unwrap().contains("expired"));
}

#[tokio::test]
async fn the_same_request_twice_gives_the_first_answer() {
    let app = App::new().await;
    let post = |body: &serde_json::Value| {
        app.call(Method::POST, "/v1/api-keys").header("idempotency-key", "k-1").json(body)
    };
    let first = post(&json!({"name": "a", "scopes": ["read"]})).send().await;
    let second = post(&json!({"scopes": ["read"], "name": "a"})).send().await;
    assert_eq!(first.expect(201), second.expect(201));
    assert_eq!(first.header("idempotency-replayed"), None);
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    post(&json!({"name": "b"})).send().await.problem(422, "idempotency_key_reused");
    let other =
        app.call(Method::POST, "/v1/services/transform/engine-versions").header("idempotency-key", "k-1");
    let engine =
        json!({"version": "1.0.0", "launch": {"kind": "command", "program": "/bin/true"}, "resources": {}});
    other.json(&engine).send().await.problem(422, "idempotency_key_reused");
    let listed = app.get("/v1/api-keys").await.expect(200);
    assert_eq!(listed["data"].as_array().unwrap().len(), 2, "the test's own key and one more");
    app.call(Method::POST, "/v1/api-keys")
        .header("idempotency-key", "a b")
        .json(&json!({"name": "a"}))
        .send()
        .await
        .problem(400, "invalid_header");
}

#[tokio::test]
async fn a_refused_request_leaves_its_key_to_the_mended_one() {
    let app = App::new().await;
    let post = |name: &str| {
        app.call(Method::POST, "/v1/api-keys")
            .header("idempotency-key", "k-3")
            .json(&json!({"name": name}))
            .send()
    };
    post("").await.problem(422, "invalid_request");
    post("mended").await.expect(201);
    post("other").await.problem(422, "idempotency_key_reused");
}

#[tokio::test]
async fn a_kept_answer_is_sealed() {
    let app = App::new().await;
    let call =
        app.call(Method::POST, "/v1/api-keys").header("idempotency-key", "k-2").json(&json!({"name": "a"}));
    let secret = call.send().await.expect(201)["secret"].as_str().unwrap().to_owned();
    let key = "k-2".parse().unwrap();
    let print = telecine_core::idempotency::fingerprint("POST /v1/api-keys", &json!({"name": "a"}));
    let claim =
        telecine_core::idempotency::find(&app.backend, app.account.id, &key, &print).await.unwrap().unwrap();
    let kept = claim.answer.unwrap().to_string();
    assert!(!kept.contains(&secret) && !kept.contains(&hex_of(&secret)));
}

fn hex_of(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}
