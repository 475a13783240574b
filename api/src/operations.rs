//! What the OpenAPI document says of each operation, as `edge` needs it: the document is the one place where the
//! parameters and media types of an operation are written down.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use serde_json::Value;

/// One operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Operation {
    /// Query parameters it takes.
    pub(crate) parameters: BTreeSet<String>,
    /// Those that may be given several times.
    pub(crate) repeatable: BTreeSet<String>,
    /// Media types of its successful answers.
    pub(crate) produces: BTreeSet<String>,
}

/// Every operation, by method and route.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operations(BTreeMap<(String, String), Operation>);

impl Operations {
    /// From a document whose paths are still written as axum routes.
    pub(crate) fn from_document(document: &Value) -> Self {
        let mut operations = BTreeMap::new();
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in item.as_object().into_iter().flatten() {
                operations.insert((method.to_ascii_uppercase(), path.clone()), read(operation));
            }
        }
        Self(operations)
    }

    /// The operation that answers `method` at the route `path`; `HEAD` is answered by `GET`.
    pub(crate) fn find(&self, method: &Method, path: &str) -> Option<&Operation> {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.0.get(&(method.as_str().to_owned(), path.to_owned()))
    }
}

fn read(operation: &Value) -> Operation {
    let mut read = Operation::default();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let Some(name) = parameter["name"].as_str().filter(|_| parameter["in"] == "query") else { continue };
        read.parameters.insert(name.to_owned());
        if is_array(&parameter["schema"]["type"]) {
            read.repeatable.insert(name.to_owned());
        }
    }
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        if status.starts_with('2') {
            read.produces
                .extend(response["content"].as_object().into_iter().flat_map(|types| types.keys().cloned()));
        }
    }
    read
}

fn is_array(kind: &Value) -> bool {
    kind == "array" || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "array"))
}
