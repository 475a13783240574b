//! `Idempotency-Key`: the same key and request give the first answer again.
//!
//! Core keeps the claim and the answer; here the header is read, the answer is kept in a shape that can be sent again,
//! and a second request is refused while this process still works on the first. (Another process that works on the same
//! claim makes the same things, since ids are derived from it.) Answers are sealed before they are kept, since some
//! hold a secret that is shown once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::FromRequestParts;
use axum::response::Response;
use http::header::HeaderValue;
use http::request::Parts;
use http::{HeaderName, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use telecine_core::idempotency::{self, IdempotencyKey};
use telecine_core::ports::keys::KeysError;
use telecine_domain::id::AccountId;
use telecine_domain::time::Timestamp;

use crate::body;
use crate::etag;
use crate::problem::{Code, Problem};
use crate::state::ApiState;

/// The header that names a request.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The header that says that an answer was given before.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The key of a request, if it has one, and what the request is: method and path.
#[derive(Clone, Debug)]
pub(crate) struct Keyed {
    pub(crate) key: Option<IdempotencyKey>,
    kind: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Keyed {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let wrong =
            || Problem::header("Idempotency-Key", "must have 1 to 255 visible ASCII characters, once");
        let mut values = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        let key = match (values.next(), values.next()) {
            (None, _) => None,
            (Some(value), None) => Some(value.to_str().map_err(|_| wrong())?.parse().map_err(|_| wrong())?),
            (Some(_), Some(_)) => return Err(wrong()),
        };
        Ok(Self { key, kind: format!("{} {}", parts.method, parts.uri.path()) })
    }
}

impl Keyed {
    /// Marks the key, if there is one, as being worked on: for what core itself does once.
    ///
    /// # Errors
    /// When another request with it is being worked on.
    pub(crate) fn enter(&self, state: &ApiState, account: AccountId) -> Result<Option<Working>, Problem> {
        self.key.as_ref().map(|key| state.in_flight.enter(account, key)).transpose()
    }
}

/// A successful answer that can be kept and sent again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    status: u16,
    version: Option<u64>,
    body: Value,
}

impl Answer {
    /// An answer with a body; `version` becomes its ETag.
    pub(crate) fn new(
        status: StatusCode,
        version: Option<u64>,
        body: &impl Serialize,
    ) -> Result<Self, Problem> {
        let body = serde_json::to_value(body).map_err(|error| Problem::internal(&error))?;
        Ok(Self { status: status.as_u16(), version, body })
    }

    /// The answer as a response.
    pub(crate) fn respond(&self, replayed: bool) -> Result<Response, Problem> {
        let status = StatusCode::from_u16(self.status).map_err(|error| Problem::internal(&error))?;
        let mut response = body::answer(status, &self.body)?;
        if let Some(version) = self.version {
            response = etag::tagged(response, version);
        }
        if replayed {
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        }
        Ok(response)
    }
}

/// Keys whose request this process is working on.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight(Arc<Mutex<BTreeSet<(AccountId, IdempotencyKey)>>>);

/// Ends the claim on a key in this process when dropped, whatever became of the request.
pub(crate) struct Working {
    keys: InFlight,
    key: (AccountId, IdempotencyKey),
}

impl InFlight {
    /// Marks a key.
    ///
    /// # Errors
    /// When another request with it is being worked on.
    pub(crate) fn enter(&self, account: AccountId, key: &IdempotencyKey) -> Result<Working, Problem> {
        let key = (account, key.clone());
        if !self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            let detail = "the first request with this key is still being worked on; try again in a moment";
            return Err(Problem::new(Code::IdempotencyInFlight, detail).worth_retrying());
        }
        Ok(Working { keys: self.clone(), key })
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.keys.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// One try to do what a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Try {
    /// When the request was first seen: the time of everything it makes.
    pub(crate) at: Timestamp,
    /// Whether there was a try before that has left no answer: it may have done everything but answer.
    pub(crate) again: bool,
}

/// Does `run` once for a key and request: a repetition gets the first answer. Only successes are kept: what was refused changed
/// nothing and may be tried again.
pub(crate) async fn once(
    state: &ApiState,
    account: AccountId,
    keyed: &Keyed,
    request: &[u8],
    run: impl AsyncFnOnce(Try) -> Result<Answer, Problem>,
) -> Result<Response, Problem> {
    let now = state.now();
    let Some(key) = &keyed.key else { return run(Try { at: now, again: false }).await?.respond(false) };
    let _working = keyed.enter(state, account)?;
    let request = serde_json::from_slice(request).unwrap_or(Value::Null);
    let fingerprint = idempotency::fingerprint(&keyed.kind, &request);
    let before = idempotency::find(&state.backend, account, key, &fingerprint).await?;
    let again = before.is_some();
    let claim = match before {
        Some(claim) => claim,
        None => idempotency::begin(&state.backend, account, key, &fingerprint, now).await?,
    };
    let context = format!("answer:{account}:{fingerprint}");
    if let Some(kept) = &claim.answer {
        return open(state, &context, kept).await?.respond(true);
    }
    let answer = match run(Try { at: claim.first_seen, again }).await {
        Ok(answer) => answer,
        Err(problem) => {
            // What was refused made nothing: the key is free for the mended request. What failed may have made
            // something, so its claim stands.
            if problem.code.status().is_client_error() && !again {
                idempotency::abandon(&state.backend, account, key).await?;
            }
            return Err(problem);
        }
    };
    let sealed = seal(state, &context, &answer).await?;
    idempotency::complete(&state.backend, account, key, &sealed).await?;
    answer.respond(false)
}

async fn seal(state: &ApiState, context: &str, answer: &Answer) -> Result<Value, Problem> {
    let plain = serde_json::to_vec(answer).map_err(|error| Problem::internal(&error))?;
    Ok(Value::String(hex::encode(state.backend.keys.seal(context, &plain).await?)))
}

async fn open(state: &ApiState, context: &str, kept: &Value) -> Result<Answer, Problem> {
    let sealed = kept.as_str().and_then(|text| hex::decode(text).ok()).ok_or(KeysError::DoesNotOpen)?;
    let plain = state.backend.keys.open(context, &sealed).await?;
    serde_json::from_slice(&plain).map_err(|error| Problem::internal(&error))
}
