//! A factory as callers see it, and what they send to make or change one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use telecine_domain::factory as domain;
use telecine_domain::id::{AccountId, FactoryId, StoreId, WatchRuleId};
use telecine_domain::time::Timestamp;
use utoipa::ToSchema;

use super::values::{Resources, RetryPolicy, Timeouts};

/// A factory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Factory {
    /// Its id.
    #[schema(value_type = String)]
    pub id: FactoryId,
    /// Whose it is.
    #[schema(value_type = String)]
    pub account_id: AccountId,
    /// A name for people.
    pub name: String,
    /// The kind of work.
    pub service: String,
    /// The production version: what its jobs run until it is changed.
    pub engine_version: String,
    /// The document of its jobs, with `{input.…}` placeholders.
    pub composition: Value,
    /// Which arriving objects make a job.
    pub watch: Vec<WatchRule>,
    /// What its jobs get unless the call says otherwise.
    pub defaults: JobDefaults,
    /// Where its jobs run; follows the data when null.
    pub region: Option<String>,
    /// Whether it makes jobs.
    pub enabled: bool,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Number of the last change, from 1; the ETag.
    pub version: u64,
}

/// Which arriving objects make a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchRule {
    /// Its id, under which it remembers what it has seen.
    #[schema(value_type = String)]
    pub id: WatchRuleId,
    /// The store it watches.
    #[schema(value_type = String)]
    pub store_id: StoreId,
    /// Keys must begin with this; any if empty.
    pub prefix: String,
    /// Keys must end with one of these, in any case; any if empty.
    pub suffixes: Vec<String>,
    /// Whether it is on.
    pub enabled: bool,
}

/// What a factory's jobs get unless the call says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JobDefaults {
    /// 0 to 1000, higher first. 500 unless given.
    #[schema(maximum = 1000)]
    pub priority: u16,
    /// What a job needs; the engine version's resources when null.
    pub resources: Option<Resources>,
    /// How often a job may be tried again.
    pub retry: RetryPolicy,
    /// How long a job may take.
    pub timeouts: Timeouts,
    /// Labels of every job, at most 32.
    pub labels: BTreeMap<String, String>,
}

impl Default for JobDefaults {
    fn default() -> Self {
        domain::JobDefaults::default().into()
    }
}

impl From<domain::JobDefaults> for JobDefaults {
    fn from(from: domain::JobDefaults) -> Self {
        Self {
            priority: from.priority,
            resources: from.resources.map(Resources::from),
            retry: from.retry.into(),
            timeouts: from.timeouts.into(),
            labels: from.labels,
        }
    }
}

impl From<JobDefaults> for domain::JobDefaults {
    fn from(from: JobDefaults) -> Self {
        Self {
            priority: from.priority,
            resources: from.resources.map(Into::into),
            retry: from.retry.into(),
            timeouts: from.timeouts.into(),
            labels: from.labels,
        }
    }
}

impl From<domain::WatchRule> for WatchRule {
    fn from(from: domain::WatchRule) -> Self {
        let domain::WatchRule { id, store, prefix, suffixes, enabled } = from;
        Self { id, store_id: store, prefix, suffixes, enabled }
    }
}

impl From<domain::Factory> for Factory {
    fn from(from: domain::Factory) -> Self {
        Self {
            id: from.id,
            account_id: from.account,
            name: from.name,
            service: from.service.to_string(),
            engine_version: from.engine_version.to_string(),
            composition: from.composition,
            watch: from.watch.into_iter().map(WatchRule::from).collect(),
            defaults: from.defaults.into(),
            region: from.region.map(|region| region.to_string()),
            enabled: from.enabled,
            created_at: from.created_at,
            version: from.version,
        }
    }
}

/// A new factory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateFactory {
    /// A name for people, unique in the account.
    pub name: String,
    /// The kind of work, such as `transform`.
    pub service: String,
    /// The engine version that its jobs run.
    pub engine_version: String,
    /// The document of its jobs: `inputs`, `processing`, `outputs`, with `{input.…}` placeholders in any text.
    pub composition: Value,
    /// Which arriving objects make a job; none unless given.
    #[serde(default)]
    pub watch: Vec<WatchRuleInput>,
    /// What its jobs get unless the call says otherwise.
    #[serde(default)]
    pub defaults: JobDefaults,
    /// Where its jobs run; follows the data unless given.
    #[serde(default)]
    pub region: Option<String>,
    /// Whether it makes jobs; true unless given.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// A watch rule to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WatchRuleInput {
    /// The rule's id when it exists already: it then remembers what it has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The store it watches, by id or name.
    pub store: String,
    /// Keys must begin with this; any if empty.
    #[serde(default)]
    pub prefix: String,
    /// Keys must end with one of these, in any case; any if empty.
    #[serde(default)]
    pub suffixes: Vec<String>,
    /// Whether it is on; true unless given.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// What changes of a factory; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateFactory {
    /// Another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Another production version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// Another document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub composition: Option<Value>,
    /// All watch rules; give the `id` of those that stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<Vec<WatchRuleInput>>,
    /// Other defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defaults: Option<JobDefaults>,
    /// Another region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// On or off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

fn yes() -> bool {
    true
}
