//! An instance as its coordinator describes it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id::{InstanceId, PoolName, RegionName};
use crate::resources::Resources;
use crate::time::Timestamp;

/// A way to run engines that an instance offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeKind {
    /// Containers, through Docker.
    Docker,
    /// Programs of the instance itself, for engine versions published as a command.
    Process,
}

/// What an instance is and has; told by its coordinator in the hello and again when it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceProfile {
    /// Its id.
    pub id: InstanceId,
    /// Its region.
    pub region: RegionName,
    /// Its pool.
    pub pool: PoolName,
    /// Name of the host, for people.
    pub host: String,
    /// Version of the agent on it.
    pub agent_version: String,
    /// What jobs may use.
    pub capacity: Resources,
    /// The ways to run engines.
    pub runtimes: BTreeSet<RuntimeKind>,
    /// Digests of images that are there already.
    #[serde(default)]
    pub cached_images: BTreeSet<String>,
    /// Why it takes no work; empty when healthy.
    #[serde(default)]
    pub problems: Vec<HealthProblem>,
}

/// A health gate that is closed (SPEC 8.7).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthProblem {
    /// Which gate: `disk`, `clock`, `fuse`, `docker` or `gpu`.
    pub gate: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Where an instance is in its life, as the manager sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Takes work.
    Ready,
    /// Takes no work because of its own health.
    Unhealthy,
    /// Finishes what it has and takes no more.
    Draining,
    /// Connected and healthy, and takes no new work: it is cordoned, or its end was announced.
    Cordoned,
    /// Not connected; its leases still run.
    Disconnected,
    /// Not connected for longer than a lease.
    Lost,
}

/// What the provider of an instance has announced about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notice {
    /// When the provider takes the instance away, whatever runs there.
    #[serde(default)]
    pub terminate_at: Option<Timestamp>,
    /// The provider hints that it may soon do so.
    #[serde(default)]
    pub rebalance: bool,
}

impl Notice {
    /// Whether the instance takes no new work. A hint alone is for the autoscaler to act on.
    pub const fn is_final(&self) -> bool {
        self.terminate_at.is_some()
    }
}

/// The record of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// What it is.
    pub profile: InstanceProfile,
    /// Where it is.
    pub state: InstanceState,
    /// What its attempts hold.
    pub allocated: Resources,
    /// Since when it is in that state.
    pub state_since: Timestamp,
    /// How many attempts it holds, assignments in flight included.
    #[serde(default)]
    pub leases: u32,
    /// Since when it holds none; meaningless while it holds some.
    #[serde(default)]
    pub idle_since: Timestamp,
    /// When the last of what it holds is expected to end; `None` when it holds nothing.
    #[serde(default)]
    pub expected_end: Option<Timestamp>,
    /// When its provider takes it away, if that was announced.
    #[serde(default)]
    pub notice: Option<Timestamp>,
    /// Whether its provider hints that it may soon be taken away.
    #[serde(default)]
    pub rebalance: bool,
}
