//! An API with an account and a key, and calls that look at what comes back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::{Body, to_bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use serde_json::Value;
use telecine_api::ApiState;
use telecine_core::access::{self, Scope};
use telecine_core::accounts::{self, Account};
use telecine_core::backend::Backend;
use telecine_domain::id::RegionName;
use telecine_domain::time::Timestamp;
use tower::ServiceExt;

/// 2026-11-22T12:00:00Z.
pub(crate) const START: u64 = 1_795_348_800_000;

/// An API of its own, with a clock that the test moves.
pub(crate) struct App {
    pub backend: Backend,
    pub account: Account,
    pub token: String,
    pub router: Router,
    clock: Arc<AtomicU64>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The body, when the status is as expected.
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        if self.text.is_empty() { Value::Null } else { self.json() }
    }

    /// The problem, when it is one of this status and code.
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.text);
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"));
        problem
    }
}

/// A request to be.
pub(crate) struct Call<'a> {
    app: &'a App,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Body,
}

impl App {
    pub(crate) async fn new() -> Self {
        let clock = Arc::new(AtomicU64::new(START));
        let told = Arc::clone(&clock);
        let now: telecine_core::ports::Clock =
            Arc::new(move || Timestamp::from_millis(told.load(Ordering::Relaxed)));
        let (backend, _) = Backend::memory(Arc::clone(&now));
        let region: RegionName = "local".parse().unwrap();
        let account = accounts::ensure_default(&backend, &region, now()).await.unwrap();
        let token = key(&backend, &account, Scope::Admin, now()).await;
        let state = ApiState::new(backend.clone(), now, vec![region.clone()], region);
        let router = telecine_api::router(state);
        Self { backend, account, token, router, clock }
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.load(Ordering::Relaxed))
    }

    pub(crate) fn pass(&self, millis: u64) {
        self.clock.fetch_add(millis, Ordering::Relaxed);
    }

    pub(crate) async fn key(&self, scope: Scope) -> String {
        key(&self.backend, &self.account, scope, self.now()).await
    }

    pub(crate) fn call(&self, method: Method, path: &str) -> Call<'_> {
        let call =
            Call { app: self, method, path: path.to_owned(), headers: HeaderMap::new(), body: Body::empty() };
        call.header("authorization", &format!("Bearer {}", self.token))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path).send().await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path).json(body).send().await
    }
}

async fn key(backend: &Backend, account: &Account, scope: Scope, now: Timestamp) -> String {
    let made = access::create(backend, account.id, "test", BTreeSet::from([scope]), None, now).await.unwrap();
    made.token.to_string()
}

impl Call<'_> {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.headers.insert(name, HeaderValue::from_str(value).unwrap());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        let text = body.to_string();
        self.header("content-type", "application/json").body(text)
    }

    pub(crate) fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) async fn open(self) -> http::Response<Body> {
        let mut request = Request::builder().method(self.method).uri(&self.path).body(self.body).unwrap();
        *request.headers_mut() = self.headers;
        self.app.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn send(self) -> Answer {
        let (parts, body) = self.open().await.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }
}

/// An API with a folder as store `media` (proven), an object in it, and an engine version of `transform`.
pub(crate) struct Studio {
    pub(crate) app: App,
    pub(crate) folder: tempfile::TempDir,
}

impl Studio {
    pub(crate) async fn new() -> Self {
        let (app, folder) = (App::new().await, tempfile::tempdir().unwrap());
        std::fs::write(folder.path().join("clip.mov"), b"not really media").unwrap();
        let store = serde_json::json!({"name": "media", "provider": "local", "folder": folder.path()});
        app.post("/v1/stores", &store).await.expect(201);
        let validation = app.post("/v1/stores/media/validate", &serde_json::json!({})).await.expect(200);
        assert_eq!(validation["ok"], true, "{validation}");
        let engine = serde_json::json!({
            "version": "1.0.0",
            "launch": {"kind": "command", "program": "/bin/true"},
            "resources": {"cpu_milli": 1000, "memory_bytes": 1 << 20},
            "processing_schema": {"type": "object", "properties": {"speed": {"type": "integer"}}, "additionalProperties": false},
            "lifecycle": "stable",
        });
        app.post("/v1/services/transform/engine-versions", &engine).await.expect(201);
        Self { app, folder }
    }

    /// A request for a job of `clip.mov`.
    pub(crate) fn request(&self) -> Value {
        serde_json::json!({
            "service": "transform",
            "composition": {
                "inputs": {"source": {"store": "media", "key": "clip.mov"}},
                "processing": {"speed": 2},
                "outputs": {"rendition": {"store": "media", "key": "out/clip.mp4"}},
            },
        })
    }

    /// A job of `clip.mov`, accepted.
    pub(crate) async fn submitted(&self) -> Value {
        self.app.post("/v1/jobs", &self.request()).await.expect(201)
    }
}
