//! API keys: shown once, kept as a hash, scoped, expiring, revocable (SPEC 11).
//!
//! A token is `tk_<26 characters of the key's id>_<secret>`; the secret has 256 random bits. The row that a presented
//! token is checked against is found by the hash of the whole token, so that nothing is compared byte by byte.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use telecine_domain::id::{AccountId, ApiKeyId};
use telecine_domain::time::Timestamp;
use zeroize::Zeroizing;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::Source;
use crate::problem::{self, Problem};
use crate::record::{self, RecordError};

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Read everything but secrets.
    Read,
    /// Submit and act on jobs, and read.
    Write,
    /// Everything, stores, engine versions and keys included.
    Admin,
}

/// A key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Whose it is.
    pub account: AccountId,
    /// A name for people.
    pub name: String,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// A key that was just made: the only time its token is known.
pub struct NewApiKey {
    /// The key.
    pub key: ApiKey,
    /// What its owner presents.
    pub token: Zeroizing<String>,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The account.
    pub account: AccountId,
    /// The key.
    pub key: ApiKeyId,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
}

impl Principal {
    /// Whether the key may do what `scope` stands for; a wider scope includes the narrower ones.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|&granted| granted >= scope)
    }
}

/// Who calls is not known, or a key could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The token is no token of ours, or its key was revoked.
    #[error("the API key is not known: it was mistyped or revoked")]
    Unknown,
    /// The key has ended.
    #[error("the API key expired at {0}; create a new one")]
    Expired(Timestamp),
    /// The request for a key is wrong.
    #[error("the API key was refused: {}", problem::join(.0))]
    Invalid(Vec<Problem>),
    /// The account has no such key.
    #[error("there is no API key {0}")]
    NotFound(ApiKeyId),
    /// The records were out of reach.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The row of a key under its account: what is needed to revoke it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyRecord {
    key: ApiKey,
    /// Partition of the row that tokens are checked against.
    secret_row: String,
}

/// Makes a key.
///
/// # Errors
/// `Invalid`.
pub async fn create(
    backend: &Backend,
    account: AccountId,
    name: &str,
    scopes: BTreeSet<Scope>,
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> Result<NewApiKey, AccessError> {
    let problems = problems_of(name, &scopes, expires_at, now);
    if !problems.is_empty() {
        return Err(AccessError::Invalid(problems));
    }
    let token = new_token(now);
    let id = id_of(&token).expect("it was made of an id");
    let key = ApiKey { id, account, name: name.to_owned(), scopes, created_at: now, expires_at };
    if record_key(backend, &key, &token).await? {
        Ok(NewApiKey { key, token })
    } else {
        Err(RecordError::contended(&layout::api_key_secret(&token)).into())
    }
}

/// Makes a key of a token (see `new_token`) that its owner has in safe hands already, so that a death in between leaves
/// no key that nobody knows. Once made, making it again changes nothing.
///
/// # Errors
/// `Unknown` when it is no token, `Invalid`.
pub async fn create_from(
    backend: &Backend,
    account: AccountId,
    token: &str,
    name: &str,
    scopes: BTreeSet<Scope>,
    now: Timestamp,
) -> Result<(), AccessError> {
    let id = id_of(token).ok_or(AccessError::Unknown)?;
    let problems = problems_of(name, &scopes, None, now);
    if !problems.is_empty() {
        return Err(AccessError::Invalid(problems));
    }
    let key = ApiKey { id, account, name: name.to_owned(), scopes, created_at: now, expires_at: None };
    record_key(backend, &key, token).await?;
    Ok(())
}

/// Records a key by the hash of its token; `false` when one is there.
async fn record_key(backend: &Backend, key: &ApiKey, token: &str) -> Result<bool, RecordError> {
    let secret_row = layout::api_key_secret(token);
    let record = KeyRecord { key: key.clone(), secret_row: secret_row.partition.clone() };
    let writes = vec![
        record::put_new(secret_row.clone(), key)?,
        record::put_new(layout::api_key(key.account, key.id), &record)?,
    ];
    let there = || async {
        let found = record::get::<ApiKey>(backend.table.as_ref(), &secret_row).await?;
        Ok(found.is_some_and(|found| found.value == *key))
    };
    record::settle(backend.table.as_ref(), writes, there).await
}

/// Who presents `token`.
///
/// # Errors
/// `Unknown`, `Expired`.
pub async fn authenticate(backend: &Backend, token: &str, now: Timestamp) -> Result<Principal, AccessError> {
    if !token.starts_with("tk_") || token.len() > 200 {
        return Err(AccessError::Unknown);
    }
    let found = record::get::<ApiKey>(backend.table.as_ref(), &layout::api_key_secret(token)).await?;
    let key = found.ok_or(AccessError::Unknown)?.value;
    match key.expires_at {
        Some(at) if at <= now => Err(AccessError::Expired(at)),
        _ => Ok(Principal { account: key.account, key: key.id, scopes: key.scopes }),
    }
}

/// The account's keys, oldest first.
///
/// # Errors
/// When the records are out of reach.
pub async fn list(backend: &Backend, account: AccountId) -> Result<Vec<ApiKey>, RecordError> {
    let found: Vec<KeyRecord> =
        record::all(backend.table.as_ref(), Source::Rows, layout::api_keys_of(account)).await?;
    Ok(found.into_iter().map(|record| record.key).collect())
}

/// Ends a key at once.
///
/// # Errors
/// `NotFound`.
pub async fn revoke(backend: &Backend, account: AccountId, key: ApiKeyId) -> Result<(), AccessError> {
    let place = layout::api_key(account, key);
    let found = record::get::<KeyRecord>(backend.table.as_ref(), &place).await?;
    let record = found.ok_or(AccessError::NotFound(key))?.value;
    let secret_row = crate::ports::table::Key::new(record.secret_row, "key");
    let writes = vec![record::delete(place.clone()), record::delete(secret_row)];
    let gone = || async { Ok(backend.table.get(&place).await?.is_none()) };
    record::settle(backend.table.as_ref(), writes, gone).await?;
    Ok(())
}

/// A token for a key to be; it is worth nothing before `create_from`.
pub fn new_token(now: Timestamp) -> Zeroizing<String> {
    let id = ApiKeyId::new(now, rand::random()).to_string();
    let body = id.split_once('_').map_or("", |(_, body)| body);
    Zeroizing::new(format!("tk_{body}_{}", hex::encode(rand::random::<[u8; 32]>())))
}

/// The key that a token is of, if it has the form of one.
fn id_of(token: &str) -> Option<ApiKeyId> {
    let (body, secret) = token.strip_prefix("tk_")?.split_once('_')?;
    let whole = secret.len() == 64 && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    format!("{}_{body}", ApiKeyId::PREFIX).parse().ok().filter(|_| whole)
}

fn problems_of(
    name: &str,
    scopes: &BTreeSet<Scope>,
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !(1..=100).contains(&name.len()) || name.chars().any(char::is_control) {
        let message = "a name has 1 to 100 bytes, without control characters";
        problems.push(Problem::new("/name", "invalid_value", message));
    }
    if scopes.is_empty() {
        let message = "a key needs a scope: `read`, `write` or `admin`";
        problems.push(Problem::new("/scopes", "missing", message));
    }
    if expires_at.is_some_and(|at| at <= now) {
        problems.push(Problem::new("/expires_at", "out_of_range", "this time has passed"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::contract::HandClock;

    #[tokio::test]
    async fn a_key_is_shown_once_and_works_until_it_ends() {
        let clock = HandClock::at(Timestamp::from_millis(1_000_000));
        let (backend, table) = Backend::memory(clock.clock());
        let account = AccountId::new(clock.now(), 1);
        let ends = clock.now().after(Duration::from_secs(60));
        let scopes = BTreeSet::from([Scope::Write]);
        let made = create(&backend, account, "ci", scopes, Some(ends), clock.now()).await.unwrap();
        let rows = format!("{:?}", table.rows());
        assert!(!rows.contains(made.token.rsplit('_').next().unwrap()), "a row holds the secret");
        let principal = authenticate(&backend, &made.token, clock.now()).await.unwrap();
        assert_eq!((principal.account, principal.key), (account, made.key.id));
        assert!(principal.may(Scope::Read) && principal.may(Scope::Write) && !principal.may(Scope::Admin));
        for wrong in ["", "tk_", &made.token[..made.token.len() - 1], &made.token.to_uppercase()] {
            assert!(matches!(authenticate(&backend, wrong, clock.now()).await, Err(AccessError::Unknown)));
        }
        clock.advance(Duration::from_secs(60));
        let late = authenticate(&backend, &made.token, clock.now()).await;
        assert!(matches!(late, Err(AccessError::Expired(_))));
    }

    #[tokio::test]
    async fn a_key_of_a_known_token_is_made_once_and_stays_revoked_rows_or_not() {
        let clock = HandClock::at(Timestamp::from_millis(1_000_000));
        let (backend, table) = Backend::memory(clock.clock());
        let account = AccountId::new(clock.now(), 1);
        let make = async |token: &str| {
            create_from(&backend, account, token, "first", BTreeSet::from([Scope::Admin]), clock.now()).await
        };
        let token = new_token(clock.now());
        assert!(matches!(authenticate(&backend, &token, clock.now()).await, Err(AccessError::Unknown)));
        for fault in crate::fixture::FAULTS {
            table.fail_transaction(1, fault);
            make(&token).await.unwrap();
            make(&token).await.unwrap();
            clock.advance(Duration::from_secs(1));
        }
        assert!(authenticate(&backend, &token, clock.now()).await.unwrap().may(Scope::Admin));
        assert_eq!(list(&backend, account).await.unwrap().len(), 1);
        for wrong in ["tk_x_y", "first", &token[..token.len() - 1], &token.replace("tk_", "tk_i")] {
            assert!(matches!(make(wrong).await, Err(AccessError::Unknown)), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_revoked_key_is_unknown_and_other_accounts_cannot_revoke() {
        let clock = HandClock::at(Timestamp::from_millis(1_000_000));
        let (backend, _) = Backend::memory(clock.clock());
        let (mine, other) = (AccountId::new(clock.now(), 1), AccountId::new(clock.now(), 2));
        let scopes = BTreeSet::from([Scope::Admin]);
        let made = create(&backend, mine, "ci", scopes, None, clock.now()).await.unwrap();
        assert!(matches!(revoke(&backend, other, made.key.id).await, Err(AccessError::NotFound(_))));
        assert_eq!(list(&backend, mine).await.unwrap(), vec![made.key.clone()]);
        revoke(&backend, mine, made.key.id).await.unwrap();
        assert!(matches!(authenticate(&backend, &made.token, clock.now()).await, Err(AccessError::Unknown)));
        assert!(list(&backend, mine).await.unwrap().is_empty());
    }
}
