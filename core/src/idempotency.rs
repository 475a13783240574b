//! Idempotency keys (SPEC 2.2): the same key and body get the first answer again, the same key with another body is
//! refused, for seven days.
//!
//! The claim of a key is written in the transaction of what was asked for, or before it where that takes several; the
//! answer is added when it is complete. Ids are derived from the moment of the claim and from account, key and index,
//! so that a replay after a crash in between makes the same things and not others.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use telecine_domain::id::AccountId;
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::{Condition, Write};
use crate::record::{self, RecordError, Versioned};
use crate::system_store::{MAX_BODY_IN_ROW, Reference};

/// How long a key is remembered.
pub const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A key that a caller chose: 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdempotencyKey(String);

/// A text is no idempotency key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an idempotency key has 1 to 255 visible ASCII characters")]
pub struct InvalidKey;

impl std::str::FromStr for IdempotencyKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if visible && (1..=255).contains(&text.len()) { Ok(Self(text.to_owned())) } else { Err(InvalidKey) }
    }
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// When the key was first seen: the time of everything that is made under it.
    pub first_seen: Timestamp,
    /// The complete answer, once there is one.
    pub answer: Option<Value>,
}

/// A key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdempotencyError {
    /// It was used with another request.
    #[error("this idempotency key was used with another request; use a new key for a new request")]
    KeyReused,
    /// The records were out of reach.
    #[error(transparent)]
    Record(#[from] RecordError),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimRecord {
    /// SHA-256 of the request.
    fingerprint: String,
    first_seen: Timestamp,
    answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    NotYet,
    Here(Value),
    Stored(Reference),
}

/// What tells one request from another: its kind (such as `POST /v1/jobs`) and its body, whatever order its fields have.
pub fn fingerprint(kind: &str, body: &Value) -> String {
    let mut hash = Sha256::new();
    hash.update(kind.as_bytes());
    hash.update([0]);
    hash.update(canonical(body).as_bytes());
    hex::encode(hash.finalize())
}

/// The random part of the id of the `index`th thing made under `key`.
pub fn derived(account: AccountId, key: &IdempotencyKey, index: usize) -> u128 {
    let parts = format!("{account}\0{}\0{index}", key.0);
    let digest = Sha256::digest(parts.as_bytes());
    let bytes: [u8; 16] = digest[..16].try_into().expect("a digest has 32 bytes");
    u128::from_be_bytes(bytes)
}

/// What is known of `key`, if it was used before with the same request.
///
/// # Errors
/// `KeyReused` when the request was another one.
pub async fn find(
    backend: &Backend,
    account: AccountId,
    key: &IdempotencyKey,
    fingerprint: &str,
) -> Result<Option<Claim>, IdempotencyError> {
    let Some(found) = read(backend, account, key).await? else { return Ok(None) };
    if found.value.fingerprint != fingerprint {
        return Err(IdempotencyError::KeyReused);
    }
    let answer = match found.value.answer {
        Answer::NotYet => None,
        Answer::Here(value) => Some(value),
        Answer::Stored(reference) => {
            let bytes = backend.system.read(&reference).await.map_err(RecordError::from)?;
            let row = layout::idempotency(account, &key.0);
            Some(serde_json::from_slice(&bytes).map_err(|error| RecordError::damaged(&row, error))?)
        }
    };
    Ok(Some(Claim { first_seen: found.value.first_seen, answer }))
}

/// The write that claims a key that nobody has used, for the transaction of what is asked for. With `answer`, the claim
/// is complete.
pub(crate) fn claim(
    account: AccountId,
    key: &IdempotencyKey,
    fingerprint: &str,
    answer: Option<Value>,
    now: Timestamp,
) -> Result<Write, RecordError> {
    let answer = answer.map_or(Answer::NotYet, Answer::Here);
    let record = ClaimRecord { fingerprint: fingerprint.to_owned(), first_seen: now, answer };
    let mut row = record::row(layout::idempotency(account, &key.0), 1, &record)?;
    row.expires_at = Some(now.after(LIFE));
    Ok(record::put(row, Condition::Absent))
}

/// Claims `key` for a request, or finds who did: for what takes more than one transaction. Follow it with `complete`.
///
/// # Errors
/// `KeyReused` when the request was another one.
pub async fn begin(
    backend: &Backend,
    account: AccountId,
    key: &IdempotencyKey,
    fingerprint: &str,
    now: Timestamp,
) -> Result<Claim, IdempotencyError> {
    if let Some(found) = find(backend, account, key, fingerprint).await? {
        return Ok(found);
    }
    let write = claim(account, key, fingerprint, None, now)?;
    // Whoever claimed it first, the claim that stands counts.
    let ours = || async { Ok(read(backend, account, key).await?.is_some()) };
    record::settle(backend.table.as_ref(), vec![write], ours).await?;
    let vanished = || RecordError::contended(&layout::idempotency(account, &key.0));
    Ok(find(backend, account, key, fingerprint).await?.ok_or_else(vanished)?)
}

/// Adds the answer to a claim; the first answer stands.
///
/// # Errors
/// When the records are out of reach. The claim stands without an answer then, and a replay makes the same again.
pub async fn complete(
    backend: &Backend,
    account: AccountId,
    key: &IdempotencyKey,
    answer: &Value,
) -> Result<(), RecordError> {
    let place = layout::idempotency(account, &key.0);
    let bytes = serde_json::to_vec(answer).map_err(|error| RecordError::damaged(&place, error))?;
    let answer = if bytes.len() > MAX_BODY_IN_ROW {
        Answer::Stored(backend.system.put(bytes.into()).await?)
    } else {
        Answer::Here(answer.clone())
    };
    record::replace(backend.table.as_ref(), &place, |found: Option<&Versioned<ClaimRecord>>| {
        let Some(found) = found.filter(|found| found.value.answer == Answer::NotYet) else { return Ok(None) };
        let record = ClaimRecord { answer: answer.clone(), ..found.value.clone() };
        let mut row = record::row(place.clone(), 1, &record)?;
        row.expires_at = Some(record.first_seen.after(LIFE));
        Ok(Some(row))
    })
    .await
}

/// Gives up a claim that has no answer, because the request was refused before anything was made: the key is free for
/// the mended request.
///
/// # Errors
/// When the records are out of reach. The claim stands then.
pub async fn abandon(backend: &Backend, account: AccountId, key: &IdempotencyKey) -> Result<(), RecordError> {
    let found = read(backend, account, key).await?;
    let Some(found) = found.filter(|found| found.value.answer == Answer::NotYet) else { return Ok(()) };
    let place = layout::idempotency(account, &key.0);
    let write = Write::Delete { key: place, condition: Condition::Version(found.version) };
    // Gone, or answered by somebody else meanwhile: either way it is not ours to give up any more.
    record::settle(backend.table.as_ref(), vec![write], || async { Ok(true) }).await?;
    Ok(())
}

async fn read(
    backend: &Backend,
    account: AccountId,
    key: &IdempotencyKey,
) -> Result<Option<Versioned<ClaimRecord>>, RecordError> {
    record::get(backend.table.as_ref(), &layout::idempotency(account, &key.0)).await
}

/// JSON with the fields of every object in order, whatever map `serde_json` was built with.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let sorted: std::collections::BTreeMap<_, _> = fields.iter().collect();
            let fields: Vec<String> = sorted
                .into_iter()
                .map(|(name, value)| format!("{}:{}", Value::from(name.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::contract::HandClock;

    const ACCOUNT: AccountId = AccountId::PLATFORM;

    #[test]
    fn keys_are_visible_ascii() {
        assert!("0b9c-4".parse::<IdempotencyKey>().is_ok());
        for text in ["", "a b", "é", "a\n", &"x".repeat(256)] {
            assert!(text.parse::<IdempotencyKey>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn requests_are_told_apart_by_meaning() {
        let one = serde_json::from_str(r#"{"a": 1, "b": [1, 2]}"#).unwrap();
        let same = serde_json::from_str(r#"{"b":[1,2],"a":1}"#).unwrap();
        assert_eq!(fingerprint("x", &one), fingerprint("x", &same));
        assert_ne!(fingerprint("x", &one), fingerprint("y", &one));
        assert_ne!(fingerprint("x", &one), fingerprint("x", &json!({"a": 1, "b": [2, 1]})));
    }

    #[tokio::test]
    async fn the_first_answer_stands_for_seven_days() {
        let clock = HandClock::at(Timestamp::from_millis(1_000_000));
        let (backend, _) = Backend::memory(clock.clock());
        let key: IdempotencyKey = "key".parse().unwrap();
        let first = begin(&backend, ACCOUNT, &key, "print", clock.now()).await.unwrap();
        clock.advance(Duration::from_secs(5));
        let again = begin(&backend, ACCOUNT, &key, "print", clock.now()).await.unwrap();
        assert_eq!((first.first_seen, &again), (again.first_seen, &first));
        let long = json!("x".repeat(100_000));
        complete(&backend, ACCOUNT, &key, &long).await.unwrap();
        complete(&backend, ACCOUNT, &key, &json!("late")).await.unwrap();
        let found = find(&backend, ACCOUNT, &key, "print").await.unwrap().unwrap();
        assert_eq!(found.answer, Some(long));
        abandon(&backend, ACCOUNT, &key).await.unwrap();
        let other = find(&backend, ACCOUNT, &key, "another").await;
        assert!(matches!(other, Err(IdempotencyError::KeyReused)));
        clock.advance(LIFE);
        assert_eq!(find(&backend, ACCOUNT, &key, "another").await.unwrap(), None);
        begin(&backend, ACCOUNT, &key, "refused", clock.now()).await.unwrap();
        abandon(&backend, ACCOUNT, &key).await.unwrap();
        let mended = begin(&backend, ACCOUNT, &key, "mended", clock.now()).await.unwrap();
        assert_eq!(mended.answer, None, "a key that was given up is free");
    }
}
