//! A store: a bucket, a prefix of one, or a local folder, and how to authenticate to it.
//!
//! Secrets are not part of this value: they are sealed beside it and handed out by the `Credentials` port.

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, RegionName, StoreId};
use crate::time::Timestamp;

/// Where the objects are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "provider")]
pub enum Provider {
    /// A folder of the machine (or of a file system that all instances of the region share).
    Local {
        /// Absolute path.
        folder: String,
    },
    /// S3 or anything that speaks it.
    S3 {
        /// Bucket name.
        bucket: String,
        /// Keys start below this (empty, or ends with `/`).
        #[serde(default)]
        prefix: String,
        /// Base URL of a compatible service; AWS when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        /// The bucket's AWS region, used for signing.
        #[serde(default = "default_signing_region")]
        signing_region: String,
        /// `http://` endpoints are refused unless this says otherwise.
        #[serde(default)]
        allow_http: bool,
        /// How to authenticate.
        #[serde(default)]
        authentication: S3Authentication,
    },
}

fn default_signing_region() -> String {
    "us-east-1".to_owned()
}

/// How requests to S3 are signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum S3Authentication {
    /// An access key and a secret key, given when the store is created and sealed since.
    #[default]
    StaticKeys,
    /// Unsigned requests.
    Anonymous,
}

/// A registered store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Its id.
    pub id: StoreId,
    /// The account it belongs to.
    pub account: AccountId,
    /// A name, unique in the account, for people and for compositions.
    pub name: String,
    /// Where the objects are.
    pub provider: Provider,
    /// The region whose compute is near the data.
    pub region: RegionName,
    /// What `validate` found last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// What may be done in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// See which objects there are.
    List,
    /// Read objects.
    Read,
    /// Make objects.
    Write,
    /// Remove objects.
    Delete,
}

/// What `validate` found: each permission was tried for real.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// When it was tried.
    pub at: Timestamp,
    /// What came of each permission, in the order of `Permission`.
    pub checks: Vec<PermissionCheck>,
    /// Things to know that are not failures, such as credentials that cannot be narrowed.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One permission tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PermissionCheck {
    /// Which one.
    pub permission: Permission,
    /// `None` when it works, else what the store answered and what to do.
    pub problem: Option<String>,
}

impl Validation {
    /// Whether this permission was proven.
    pub fn allows(&self, permission: Permission) -> bool {
        self.checks.iter().any(|check| check.permission == permission && check.problem.is_none())
    }
}
