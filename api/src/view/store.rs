//! A store as callers see it, and what they send to register one. Secrets go in and never come out.

use std::fmt;

use serde::{Deserialize, Serialize};
use telecine_domain::id::{AccountId, StoreId};
use telecine_domain::store as domain;
use telecine_domain::time::Timestamp;
use utoipa::ToSchema;

/// A registered store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Store {
    /// Its id.
    #[schema(value_type = String)]
    pub id: StoreId,
    /// Whose it is.
    #[schema(value_type = String)]
    pub account_id: AccountId,
    /// A name, unique in the account, for people and compositions.
    pub name: String,
    /// `local` or `s3`.
    pub provider: String,
    /// Absolute path of the folder; local stores only.
    pub folder: Option<String>,
    /// Bucket name; S3 only.
    pub bucket: Option<String>,
    /// Keys start below this; S3 only.
    pub prefix: Option<String>,
    /// Base URL of a compatible service; AWS when null.
    pub endpoint: Option<String>,
    /// The region used for signing; S3 only.
    pub signing_region: Option<String>,
    /// `static_keys` or `anonymous`; S3 only.
    pub authentication: Option<String>,
    /// The region whose compute is near the data.
    pub region: String,
    /// What `validate` found last.
    pub validation: Option<Validation>,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// What `validate` found: each permission was tried for real.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Validation {
    /// When it was tried.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Whether every permission works.
    pub ok: bool,
    /// What came of each permission.
    pub checks: Vec<PermissionCheck>,
    /// Things to know that are not failures.
    pub notes: Vec<String>,
}

/// One permission tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PermissionCheck {
    /// `list`, `read`, `write` or `delete`.
    #[schema(value_type = String)]
    pub permission: domain::Permission,
    /// Null when it works, else what the store answered and what to do.
    pub problem: Option<String>,
}

impl From<domain::Validation> for Validation {
    fn from(from: domain::Validation) -> Self {
        let checks = from.checks.into_iter();
        let checks: Vec<_> = checks
            .map(|check| PermissionCheck { permission: check.permission, problem: check.problem })
            .collect();
        Self {
            at: from.at,
            ok: checks.iter().all(|check| check.problem.is_none()),
            checks,
            notes: from.notes,
        }
    }
}

impl From<domain::Store> for Store {
    fn from(from: domain::Store) -> Self {
        let empty = Self {
            id: from.id,
            account_id: from.account,
            name: from.name,
            provider: String::new(),
            folder: None,
            bucket: None,
            prefix: None,
            endpoint: None,
            signing_region: None,
            authentication: None,
            region: from.region.to_string(),
            validation: from.validation.map(Validation::from),
            created_at: from.created_at,
        };
        match from.provider {
            domain::Provider::Local { folder } => {
                Self { provider: "local".to_owned(), folder: Some(folder), ..empty }
            }
            domain::Provider::S3 { bucket, prefix, endpoint, signing_region, authentication, .. } => Self {
                provider: "s3".to_owned(),
                bucket: Some(bucket),
                prefix: Some(prefix),
                endpoint,
                signing_region: Some(signing_region),
                authentication: Some(match authentication {
                    domain::S3Authentication::StaticKeys => "static_keys".to_owned(),
                    domain::S3Authentication::Anonymous => "anonymous".to_owned(),
                }),
                ..empty
            },
        }
    }
}

/// A new store: the fields of its provider and no others.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateStore {
    /// A name, unique in the account: 1 to 40 characters of a-z, 0-9, `-` and `_`.
    pub name: String,
    /// `local` or `s3`.
    pub provider: String,
    /// Absolute path of the folder (local).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Bucket name (s3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Keys start below this: empty, or ends with `/` (s3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Base URL of a compatible service; AWS unless given (s3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The bucket's AWS region, used for signing; `us-east-1` unless given (s3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_region: Option<String>,
    /// Whether an `http://` endpoint is meant so (s3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_http: Option<bool>,
    /// `static_keys` (unless given) or `anonymous` (s3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<String>,
    /// Access key id, with `static_keys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Secret key, with `static_keys`; sealed and never shown again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub secret_access_key: Option<String>,
    /// Token of temporary keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub session_token: Option<String>,
    /// The region whose compute is near the data; the default region unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

impl fmt::Debug for CreateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateStore")
            .field("name", &self.name)
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}

/// An object in a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ObjectEntry {
    /// Its key.
    pub key: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// The store's etag.
    pub etag: String,
    /// The store's version id, where it keeps versions.
    pub version_id: Option<String>,
    /// When it was last written, where the store says.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub modified_at: Option<Timestamp>,
}
