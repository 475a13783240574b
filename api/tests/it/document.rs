//! The OpenAPI document and the router say the same.

use http::Method;
use serde_json::Value;

use crate::harness::App;

/// Every operation of the document: method, path, and what it says.
pub(crate) fn operations() -> Vec<(Method, String, Value)> {
    let document = telecine_api::openapi();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).unwrap();
            operations.push((method, path.clone(), operation.clone()));
        }
    }
    operations
}

/// A path of the document with something in the place of each parameter.
pub(crate) fn filled(path: &str, value: &str) -> String {
    let segments = path.split('/').map(|segment| if segment.starts_with('{') { value } else { segment });
    segments.collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn every_documented_operation_is_routed_and_wants_a_key() {
    let app = App::new().await;
    for (method, path, operation) in operations() {
        let answer = app.call(method.clone(), &filled(&path, "x")).without("authorization").send().await;
        let open = operation["security"].is_null();
        let expected = if open { 200 } else { 401 };
        assert_eq!(answer.status.as_u16(), expected, "{method} {path}: {}", answer.text);
    }
}

#[test]
fn every_operation_is_named_described_and_documents_its_problems() {
    let mut names = std::collections::BTreeSet::new();
    for (method, path, operation) in operations() {
        let name = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path} has no name"));
        assert!(names.insert(name.to_owned()), "{name} twice");
        assert!(operation["summary"].is_string(), "{name} has no summary");
        assert!(operation["tags"].is_array(), "{name} has no tag");
        let responses = operation["responses"].as_object().unwrap();
        for status in ["400", "405", "406", "500"] {
            assert!(responses.contains_key(status), "{name} does not document {status}");
        }
        assert!(responses.keys().any(|status| status.starts_with('2')), "{name} has no success");
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        for part in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            let told =
                parameters.iter().any(|parameter| parameter["name"] == part && parameter["in"] == "path");
            assert!(told, "{name} does not describe {part}");
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = telecine_api::openapi();
    assert_eq!(document["openapi"], "3.1.0");
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 50);
    for reference in references {
        let pointer = reference.strip_prefix('#').expect("references are local");
        assert!(document.pointer(pointer).is_some_and(|found| !found.is_null()), "{reference}");
    }
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            references.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| collect(value, references));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}
