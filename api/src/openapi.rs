//! The OpenAPI 3.1 document: generated from the handlers, then completed with what is true of every operation.
//!
//! Handlers document their successes and what is special about them; that they want a key, refuse unknown parameters,
//! and answer problems with which status, follows from their shape and is added here, so that no handler can forget it.

use serde_json::{Map, Value, json};

use crate::problem::{PROBLEM_JSON, ProblemBody};

/// Operations that need no key.
const OPEN: [&str; 3] = ["/v1/health", "/v1/version", "/openapi.json"];

/// Completes the generated document. Its paths stay axum routes (see `published`).
pub(crate) fn complete(mut document: Value) -> Value {
    document["openapi"] = "3.1.0".into();
    document["info"] = json!({
        "title": "Telecine",
        "version": env!("CARGO_PKG_VERSION"),
        "description": "A job platform for media engines. Errors are RFC 9457 problems with a stable `code`.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    });
    document["components"]["securitySchemes"]["api_key"] = json!({
        "type": "http", "scheme": "bearer", "description": "An API key: `Authorization: Bearer tk_…`",
    });
    document["components"]["schemas"]["Problem"] = schema::<ProblemBody>();
    document["components"]["schemas"]["FieldProblem"] = schema::<crate::problem::FieldProblem>();
    document["components"]["responses"]["Problem"] = json!({
        "description": "Not a success: `code` and `errors` say why.",
        "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    });
    for (path, item) in document["paths"].as_object_mut().into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            complete_operation(path, method, operation);
        }
    }
    document
}

/// The document as it is served: wildcards of routes (`{*key}`) written as plain parameters.
pub(crate) fn published(mut document: Value) -> Value {
    let paths = document["paths"].as_object_mut().map(std::mem::take).unwrap_or_default();
    let renamed: Map<_, _> = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    document["paths"] = renamed.into();
    document
}

fn schema<T: utoipa::PartialSchema>() -> Value {
    serde_json::to_value(T::schema()).unwrap_or_default()
}

fn complete_operation(path: &str, method: &str, operation: &mut Value) {
    let open = OPEN.contains(&path);
    if !open {
        operation["security"] = json!([{"api_key": []}]);
    }
    if method == "post" {
        add_idempotency_key(operation);
    }
    let has_body = operation["requestBody"].is_object();
    for status in statuses(path, method, open, has_body) {
        let responses = &mut operation["responses"];
        if responses[status].is_null() {
            responses[status] = json!({"$ref": "#/components/responses/Problem"});
        }
    }
}

/// Which problems an operation of this shape can answer with.
fn statuses(path: &str, method: &str, open: bool, has_body: bool) -> Vec<&'static str> {
    let mut statuses = vec!["400", "405", "406", "500", "503"];
    if !open {
        statuses.extend(["401", "403"]);
    }
    if path.contains('{') {
        statuses.push("404");
    }
    if method == "post" {
        statuses.extend(["400", "409", "413", "415", "422"]);
    }
    if has_body && method != "post" {
        statuses.extend(["413", "415", "422"]);
    }
    if matches!(method, "patch" | "delete") {
        statuses.extend(["409", "412", "422"]);
    }
    if path.contains("/objects")
        || path.ends_with("/validate")
        || path == "/v1/jobs"
        || path == "/v1/jobs/batch"
        || path == "/v1/jobs/estimate"
    {
        statuses.extend(["404", "422", "502", "507"]);
    }
    statuses
}

fn add_idempotency_key(operation: &mut Value) {
    let parameter = json!({
        "name": "Idempotency-Key",
        "in": "header",
        "required": false,
        "description": "Names this request: sent again within seven days with the same body, it gives the first answer \
                        again, with `Idempotency-Replayed: true`.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    });
    match operation["parameters"].as_array_mut() {
        Some(parameters) => parameters.push(parameter),
        None => operation["parameters"] = json!([parameter]),
    }
}
