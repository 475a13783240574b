//! Hostile requests at every operation: no answer is a 5xx, every refusal is a documented problem.

use std::collections::BTreeMap;

use axum::body::Body;
use http::Method;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::document::{filled, operations};
use crate::harness::App;

fn bodies() -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"text\"".to_vec(),
        b"1e999".to_vec(),
        b"-0".to_vec(),
        b"99999999999999999999999999999999999999".to_vec(),
        b"{\"name\":\"\xff\xfe\"}".to_vec(),
        b"\xef\xbb\xbf{}".to_vec(),
        b"{\"a\":1,\"a\":2}".to_vec(),
        b"{\"name\":\"\\ud800\"}".to_vec(),
        b"[".repeat(200_000),
        b"{\"a\":".repeat(200_000),
        vec![b' '; 1 << 20],
        vec![b'9'; 1 << 20],
    ];
    let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    bodies.push(format!("{{\"composition\":{}}}", deep(100)).into_bytes());
    bodies.push(format!("{{\"processing_schema\":{}}}", deep(120)).into_bytes());
    bodies
}

const SEGMENTS: [&str; 7] = [
    "x",
    "job_00000000000000000000000000",
    "..%2f..%2fetc%2fpasswd",
    "%00",
    "%ff%fe",
    "%F0%9F%8E%AC",
    "1.0.0%0d%0aSet-Cookie:%20a=b",
];

async fn check(
    app: &App,
    method: &Method,
    path: &str,
    operation: &Value,
    body: Vec<u8>,
    seen: &mut BTreeMap<u16, usize>,
) {
    let excerpt: String = String::from_utf8_lossy(&body).chars().take(200).collect();
    let call =
        app.call(method.clone(), path).header("content-type", "application/json").body(Body::from(body));
    let response = call.open().await;
    let status = response.status().as_u16();
    *seen.entry(status).or_default() += 1;
    assert!(status < 500, "{method} {path} {excerpt}: {status}");
    let documented = operation["responses"].as_object().unwrap();
    assert!(
        documented.contains_key(&status.to_string()),
        "{method} {path} does not document {status}: {excerpt}"
    );
    if status >= 400 {
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert_eq!(kind, "application/problem+json", "{method} {path} {excerpt}");
    }
}

#[tokio::test]
async fn hostile_bodies_and_paths_are_refused_with_documented_problems() {
    let app = App::new().await;
    let mut seen = BTreeMap::new();
    for (method, path, operation) in operations() {
        for segment in SEGMENTS {
            check(&app, &method, &filled(&path, segment), &operation, b"{}".to_vec(), &mut seen).await;
        }
        for body in bodies() {
            check(&app, &method, &filled(&path, "x"), &operation, body, &mut seen).await;
        }
    }
    for status in [400, 404, 422] {
        assert!(seen.contains_key(&status), "no {status} among {seen:?}");
    }
}

/// Values for the fields that requests have, and for some that they have not.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        "\\PC{0,12}".prop_map(Value::from),
        prop_oneof![
            "transform",
            "1\\.0\\.0",
            "local",
            "s3",
            "/tmp/[a-z]{3}",
            "\\{input\\.[a-z]+\\}",
            "sto_[0-9a-z]{26}"
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(field(), inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn field() -> impl Strategy<Value = String> {
    const NAMES: [&str; 34] = [
        "name",
        "service",
        "factory",
        "engine_version",
        "composition",
        "input",
        "inputs",
        "outputs",
        "processing",
        "store",
        "key",
        "region",
        "resources",
        "cpu_milli",
        "priority",
        "labels",
        "retry",
        "timeouts",
        "hold",
        "watch",
        "prefix",
        "suffixes",
        "provider",
        "folder",
        "bucket",
        "endpoint",
        "version",
        "launch",
        "kind",
        "image",
        "program",
        "arguments",
        "jobs",
        "scopes",
    ];
    prop_oneof![4 => prop::sample::select(&NAMES[..]).prop_map(str::to_owned), 1 => "\\PC{0,8}"]
}

#[tokio::test]
async fn random_documents_never_break_anything() {
    let app = App::new().await;
    let mut runner = TestRunner::deterministic();
    let documents = prop::collection::btree_map(field(), value(), 0..8);
    let mut seen = BTreeMap::new();
    for (method, path, operation) in operations() {
        if operation["requestBody"].is_null() {
            continue;
        }
        for _ in 0..150 {
            let document = documents.new_tree(&mut runner).unwrap().current();
            let body = serde_json::to_vec(&document).unwrap();
            check(&app, &method, &filled(&path, "x"), &operation, body, &mut seen).await;
        }
    }
    assert!(seen.contains_key(&422), "{seen:?}");
}
