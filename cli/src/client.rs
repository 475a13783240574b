//! The HTTP client behind every verb: finds the API and the key, sends an `Idempotency-Key` on every POST, tries again
//! where that is safe, and turns problems into failures.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use telecine_api::problem::ProblemBody;

use crate::failure::{Exit, Failure};

/// How often a call is tried when the connection fails or the API says "not now".
const TRIES: u32 = 4;
/// Longest wait for the head of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// An API key; its `Debug` shows nothing of the secret.
#[derive(Clone)]
pub(crate) struct ApiKey(String);

impl ApiKey {
    /// A key as text, trimmed.
    pub(crate) fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The text.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// A connection to the API.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    idempotency_key: Option<String>,
}

/// One call, before it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    method: Method,
    segments: Vec<String>,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Option<Bytes>,
}

impl Call {
    /// A call of `/v1/` and these path segments; each is percent-encoded.
    pub(crate) fn new(method: Method, segments: &[&str]) -> Self {
        let segments = segments.iter().map(|&segment| segment.to_owned()).collect();
        Self { method, segments, query: Vec::new(), headers: HeaderMap::new(), body: None }
    }

    /// With a query parameter, when there is a value.
    #[must_use]
    pub(crate) fn query(mut self, name: &str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name.to_owned(), value.to_string())));
        self
    }

    /// With a JSON body.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub(crate) fn json(mut self, body: &impl Serialize) -> Result<Self, Failure> {
        let text = serde_json::to_vec(body).map_err(|error| Failure::usage(format!("not JSON: {error}")))?;
        self.body = Some(text.into());
        Ok(self)
    }

    /// With a header, when there is a value.
    ///
    /// # Errors
    /// When the value cannot be a header.
    pub(crate) fn header(mut self, name: HeaderName, value: Option<&str>) -> Result<Self, Failure> {
        if let Some(value) = value {
            let wrong = |_| Failure::usage(format!("`{value}` cannot be sent in a header"));
            let value = HeaderValue::from_str(value).map_err(wrong)?;
            self.headers.insert(name, value);
        }
        Ok(self)
    }
}

impl Client {
    /// A client of the API at `base`; `idempotency_key` is used for its POSTs in place of a fresh one each.
    ///
    /// # Errors
    /// When `base` is not an http(s) URL, or the key holds characters no header takes.
    pub(crate) fn new(
        base: &str,
        key: Option<&ApiKey>,
        idempotency_key: Option<String>,
    ) -> Result<Self, Failure> {
        let wrong = || {
            Failure::usage(format!("`{base}` is not the URL of an API"))
                .advise("give something like --url http://127.0.0.1:8080")
        };
        let base = Url::parse(base).map_err(|_| wrong())?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(wrong());
        }
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            let value = HeaderValue::from_str(&format!("Bearer {}", key.expose()));
            let mut value = value
                .map_err(|_| Failure::new(Exit::Access, "the API key holds characters that no key has"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(concat!("telecine/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(5))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| Failure::new(Exit::Failed, format!("no HTTP client: {error}")))?;
        Ok(Self { http, base, idempotency_key })
    }

    /// Reads one thing.
    ///
    /// # Errors
    /// What the API answered, or that nobody answers.
    pub(crate) async fn get<T: DeserializeOwned>(&self, call: Call) -> Result<T, Failure> {
        self.json(call).await
    }

    /// Sends a call and reads the JSON of its answer.
    ///
    /// # Errors
    /// What the API answered, or that nobody answers.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, Failure> {
        let response = self.send(call).await?;
        let body = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body).map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("the answer of {} is not what this version expects: {error}", self.base),
            )
            .advise("use a `telecine` of the same version as the API")
        })
    }

    /// Sends a call; answers that are not a success become failures.
    ///
    /// # Errors
    /// What the API answered, or that nobody answers.
    pub(crate) async fn send(&self, call: Call) -> Result<Response, Failure> {
        let call = self.with_key(call)?;
        let mut pause = Duration::from_millis(100);
        for remaining in (0..TRIES).rev() {
            let last = remaining == 0;
            match self.attempt(&call).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => match problem_of(response).await {
                    problem if last || !worth_retrying(&problem) => {
                        return Err(Failure::from_problem(&problem));
                    }
                    problem => {
                        pause =
                            pause.max(Duration::from_secs(problem.retry_after_seconds.unwrap_or(0).min(5)))
                    }
                },
                Err(error) if last || !(error.is_connect() || error.is_request()) => {
                    return Err(self.unreachable(&error));
                }
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause *= 3;
        }
        unreachable!("the last try returns")
    }

    /// Sends a body that cannot be repeated, once.
    ///
    /// # Errors
    /// What the API answered, or that nobody answers.
    pub(crate) async fn upload(&self, call: &Call, body: reqwest::Body) -> Result<Response, Failure> {
        let response =
            self.request(call).body(body).send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(Failure::from_problem(&problem_of(response).await))
    }

    fn with_key(&self, call: Call) -> Result<Call, Failure> {
        if call.method != Method::POST {
            return Ok(call);
        }
        let key =
            self.idempotency_key.clone().unwrap_or_else(|| format!("cli-{:032x}", rand::random::<u128>()));
        call.header(HeaderName::from_static("idempotency-key"), Some(&key))
    }

    async fn attempt(&self, call: &Call) -> Result<Response, reqwest::Error> {
        let request = self.request(call);
        let request = match &call.body {
            Some(body) => request.header(CONTENT_TYPE, "application/json").body(body.clone()),
            None => request,
        };
        let streams = call.headers.contains_key(ACCEPT);
        let request = if streams { request } else { request.timeout(ANSWER_TIMEOUT) };
        request.send().await
    }

    fn request(&self, call: &Call) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1").extend(&call.segments);
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        self.http.request(call.method.clone(), url).headers(call.headers.clone())
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        Failure::new(Exit::TimedOut, format!("the API at {} does not answer", self.base))
            .detail(cause.to_string())
            .advise("is `telecine up` running, and is --url (or TELECINE_URL) right?")
    }
}

fn worth_retrying(problem: &ProblemBody) -> bool {
    matches!(problem.status, 503 | 504) || problem.code == "idempotency_in_flight"
}

/// The problem of an answer; one that is none (a proxy's page) is made into one.
async fn problem_of(response: Response) -> ProblemBody {
    let (status, path) = (response.status(), response.url().path().to_owned());
    let body = response.bytes().await.unwrap_or_default();
    serde_json::from_slice(&body).unwrap_or_else(|_| foreign_problem(status, path, &body))
}

fn foreign_problem(status: StatusCode, path: String, body: &[u8]) -> ProblemBody {
    let excerpt: String = String::from_utf8_lossy(body).chars().take(200).collect();
    ProblemBody {
        kind: "about:blank".to_owned(),
        title: format!("The answer was {status}, and not from Telecine"),
        status: status.as_u16(),
        detail: if excerpt.is_empty() { "without a body".to_owned() } else { excerpt },
        instance: path,
        code: "foreign_answer".to_owned(),
        request_id: "none".to_owned(),
        errors: Vec::new(),
        retry_after_seconds: None,
    }
}
