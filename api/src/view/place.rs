//! Regions, instances, objects that arrived, and the API itself, as callers see them.

use serde::{Deserialize, Serialize};
use telecine_core::ingest;
use telecine_domain::id::{FactoryId, InstanceId, JobId, StoreId, WatchRuleId};
use telecine_domain::instance as domain;
use telecine_domain::time::Timestamp;
use utoipa::ToSchema;

use super::values::Resources;

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Its id.
    #[schema(value_type = String)]
    pub id: InstanceId,
    /// Its region.
    pub region: String,
    /// Its pool.
    pub pool: String,
    /// Name of the host.
    pub host: String,
    /// Version of the agent on it.
    pub agent_version: String,
    /// `ready`, `unhealthy`, `draining`, `cordoned`, `disconnected` or `lost`.
    #[schema(value_type = String)]
    pub state: domain::InstanceState,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub state_since: Timestamp,
    /// What jobs may use.
    pub capacity: Resources,
    /// What its attempts hold.
    pub allocated: Resources,
    /// The ways to run engines: `docker`, `process`.
    #[schema(value_type = Vec<String>)]
    pub runtimes: Vec<domain::RuntimeKind>,
    /// Digests of images that are there already.
    pub cached_images: Vec<String>,
    /// Why it takes no work; empty when healthy.
    pub problems: Vec<HealthProblem>,
    /// When its provider takes it away, if that was announced.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub notice: Option<Timestamp>,
    /// Whether its provider hints that it may soon be taken away.
    #[serde(default)]
    pub rebalance: bool,
}

/// How an instance is to be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InterruptInstance {
    /// Seconds from now: 0 to 86,400. A spot market gives about 120.
    pub in_seconds: u32,
}

/// A health gate that is closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthProblem {
    /// Which gate.
    pub gate: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl From<domain::Instance> for Instance {
    fn from(from: domain::Instance) -> Self {
        let profile = from.profile;
        let problems = profile.problems.into_iter();
        Self {
            id: profile.id,
            region: profile.region.to_string(),
            pool: profile.pool.to_string(),
            host: profile.host,
            agent_version: profile.agent_version,
            state: from.state,
            state_since: from.state_since,
            capacity: profile.capacity.into(),
            allocated: from.allocated.into(),
            runtimes: profile.runtimes.into_iter().collect(),
            cached_images: profile.cached_images.into_iter().collect(),
            problems: problems
                .map(|problem| HealthProblem { gate: problem.gate, message: problem.message })
                .collect(),
            notice: from.notice,
            rebalance: from.rebalance,
        }
    }
}

/// A region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Region {
    /// Its name.
    pub id: String,
    /// Whether jobs go there when nothing else decides.
    pub is_default: bool,
    /// Its manager, while one leads.
    pub manager: Option<RegionManager>,
    /// Hints that wait or are in the manager's hands: about the number of queued jobs.
    pub queued_jobs: u64,
    /// Number of its instances that are connected.
    pub instances: u64,
    /// What its instances have in all.
    pub capacity: Resources,
    /// What attempts hold of it.
    pub allocated: Resources,
    /// Allocated by capacity of the scarcest resource, in thousandths.
    pub occupancy_thousandths: u32,
}

/// The manager that leads a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegionManager {
    /// Its id.
    pub id: String,
    /// Number of its leadership.
    pub term: u64,
    /// Where agents reach it.
    pub addresses: Vec<String>,
}

/// An object that arrived in a watched store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IngestEvent {
    /// The store.
    #[schema(value_type = String)]
    pub store_id: StoreId,
    /// The key in it.
    pub key: String,
    /// The version seen.
    pub etag: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// When it was first seen.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The job it made.
    #[schema(value_type = Option<String>)]
    pub job_id: Option<JobId>,
    /// The factory that made it.
    #[schema(value_type = Option<String>)]
    pub factory_id: Option<FactoryId>,
    /// Why it made none, per watch rule; empty when no factory watches the store.
    pub reasons: Vec<IngestReason>,
}

/// Why an object made no job under one watch rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IngestReason {
    /// The factory.
    #[schema(value_type = String)]
    pub factory_id: FactoryId,
    /// Its rule.
    #[schema(value_type = String)]
    pub watch_rule_id: WatchRuleId,
    /// Why, for people.
    pub reason: String,
}

impl From<ingest::Arrival> for IngestEvent {
    fn from(from: ingest::Arrival) -> Self {
        let reasons = from.reasons.into_iter();
        Self {
            store_id: from.location.store,
            key: from.location.key.to_string(),
            etag: from.version.etag,
            size_bytes: from.version.size_bytes,
            at: from.at,
            job_id: from.job,
            factory_id: from.factory,
            reasons: reasons
                .map(|reason| IngestReason {
                    factory_id: reason.factory,
                    watch_rule_id: reason.rule,
                    reason: reason.message,
                })
                .collect(),
        }
    }
}

/// Whether the API works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// Which version answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Version of Telecine.
    pub version: String,
    /// Version of the API: the first segment of its paths.
    pub api: String,
}
