//! What is true of every call: problems, request ids, methods, media types, sizes, unknown parameters and fields.

use http::Method;
use serde_json::json;

use crate::harness::App;

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let app = App::new().await;
    let problem = app.get("/v1/nothing").await.problem(404, "not_found");
    assert_eq!(problem["instance"], "/v1/nothing");
    let answer = app.call(Method::DELETE, "/v1/jobs").send().await;
    answer.problem(405, "method_not_allowed");
    let allowed = answer.header("allow").unwrap();
    assert!(allowed.contains("GET"), "{allowed}");
}

#[tokio::test]
async fn a_callers_request_id_is_taken_over_and_others_are_made() {
    let app = App::new().await;
    let named = app.call(Method::GET, "/v1/version").header("x-request-id", "build-7").send().await;
    assert_eq!(named.header("x-request-id"), Some("build-7"));
    let odd = app.call(Method::GET, "/v1/version").header("x-request-id", "a b").send().await;
    assert!(odd.header("x-request-id").unwrap().starts_with("req_"));
}

#[tokio::test]
async fn unknown_query_parameters_are_named_with_the_known_ones() {
    let app = App::new().await;
    let problem = app.get("/v1/jobs?limt=3").await.problem(400, "invalid_parameter");
    assert_eq!(problem["errors"][0]["parameter"], "limt");
    assert!(problem["detail"].as_str().unwrap().contains("limit"), "{problem}");
    app.get("/v1/jobs?limit=3&limit=4").await.problem(400, "invalid_parameter");
    app.get("/v1/version?x").await.problem(400, "invalid_parameter");
    app.get("/v1/jobs?limit=0").await.problem(400, "invalid_parameter");
    app.get("/v1/jobs?cursor=abc").await.problem(400, "invalid_cursor");
    app.get("/v1/jobs?state=asleep").await.problem(400, "invalid_parameter");
    app.get("/v1/jobs?limit=200&state=queued").await.expect(200);
}

#[tokio::test]
async fn bodies_must_be_json_of_the_right_type_and_size() {
    let app = App::new().await;
    let post = |body: &str| app.call(Method::POST, "/v1/api-keys").body(body.to_owned());
    post("{}").send().await.problem(415, "unsupported_media_type");
    post("a=b")
        .header("content-type", "application/x-www-form-urlencoded")
        .send()
        .await
        .problem(415, "unsupported_media_type");
    let json = |body: &str| post(body).header("content-type", "application/json; charset=utf-8");
    let problem = json("{\n \"name\": oops}").send().await.problem(400, "malformed_json");
    assert!(problem["detail"].as_str().unwrap().contains("line 2"), "{problem}");
    let problem = json("{\"name\":\"x\",\"nmae\":1}").send().await.problem(422, "invalid_request");
    assert_eq!(problem["errors"][0]["pointer"], "/nmae");
    assert_eq!(problem["errors"][0]["code"], "unknown_field");
    let problem = json("{}").send().await.problem(422, "invalid_request");
    assert_eq!(
        (&problem["errors"][0]["pointer"], &problem["errors"][0]["code"]),
        (&json!("/name"), &json!("missing_field"))
    );
    json(&format!("{{\"name\":\"{}\"}}", "x".repeat(1 << 20))).send().await.problem(413, "body_too_large");
    let said = json("{}").header("content-length", "99999999999").send().await;
    said.problem(413, "body_too_large");
}

#[tokio::test]
async fn answers_nobody_accepts_are_not_made() {
    let app = App::new().await;
    let accept = |value: &str| app.call(Method::GET, "/v1/version").header("accept", value);
    accept("text/html").send().await.problem(406, "not_acceptable");
    accept("text/html, */*;q=0.1").send().await.expect(200);
    accept("application/json").send().await.expect(200);
}

#[tokio::test]
async fn actions_take_no_body_or_an_empty_object() {
    let app = App::new().await;
    let path = "/v1/jobs/job_00000000000000000000000000/cancel";
    app.call(Method::POST, path).send().await.problem(404, "not_found");
    app.post(path, &json!({})).await.problem(404, "not_found");
    app.post(path, &json!({"force": true})).await.problem(422, "invalid_request");
}

#[tokio::test]
async fn the_api_says_what_it_is() {
    let app = App::new().await;
    for path in ["/v1/health", "/v1/version", "/openapi.json"] {
        app.call(Method::GET, path).without("authorization").send().await.expect(200);
    }
    let head = app.call(Method::HEAD, "/v1/version").send().await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
}
