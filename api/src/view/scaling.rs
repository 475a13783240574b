//! Decisions of the autoscaler and cordons, as callers see them.

use serde::{Deserialize, Serialize};
use telecine_core::autoscale::{Decided, Replayed};
use telecine_core::cordon::{CordonState, Cordoned};
use telecine_domain::autoscale::{CordonCause, Planned, Reason, ScaleAction, ScaleDecision};
use telecine_domain::id::{InstanceId, PoolName, RegionName};
use telecine_domain::time::Timestamp;
use utoipa::ToSchema;

/// What was decided about a region at one moment, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Decision {
    /// Where.
    pub region: String,
    /// Its number in the region, from 1.
    pub number: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What was to be done, in this order.
    pub actions: Vec<DecisionAction>,
    /// Why the rest was left.
    pub reasons: Vec<DecisionReason>,
    /// SHA-256 of what it was decided on; the system store has that.
    pub input_sha256: String,
}

/// Something that was to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DecisionAction {
    /// `launch`, `cordon`, `uncordon` or `terminate`.
    pub action: String,
    /// Of which pool something is launched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// How many are launched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Which instance it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub instance_id: Option<InstanceId>,
    /// The number of the cordon it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordon: Option<u64>,
    /// Stable word for the reason, such as `demand`.
    pub code: String,
    /// The reason, for people.
    pub reason: String,
}

/// Why something was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DecisionReason {
    /// Stable word, such as `expected`.
    pub code: String,
    /// Which pool it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Which instance it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub instance_id: Option<InstanceId>,
    /// For people.
    pub reason: String,
}

/// A decision that was taken again on what it was taken on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Replay {
    /// Whether it is the same.
    pub same: bool,
    /// As it was recorded.
    pub recorded: Decision,
    /// As it is now.
    pub again: Decision,
}

/// The cordon of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cordon {
    /// Of which instance.
    #[schema(value_type = String)]
    pub instance_id: InstanceId,
    /// Where that is.
    pub region: String,
    /// Its number; 0 when the instance never had one.
    pub number: u64,
    /// `standing`, `acknowledged` (nothing runs there), `lifted`, `terminating`, or `none`.
    pub state: String,
    /// Why it was placed: `idle`, `consolidation`, `rebalance`, `notice` or `operator`.
    #[schema(value_type = Option<String>)]
    pub cause: Option<CordonCause>,
    /// When it was placed.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
}

impl Decision {
    fn of(region: &RegionName, number: u64, decision: &ScaleDecision, input_sha256: &str) -> Self {
        Self {
            region: region.to_string(),
            number,
            at: decision.at,
            actions: decision.actions.iter().map(DecisionAction::of).collect(),
            reasons: decision.reasons.iter().map(DecisionReason::of).collect(),
            input_sha256: input_sha256.to_owned(),
        }
    }
}

impl From<&Decided> for Decision {
    fn from(from: &Decided) -> Self {
        Self::of(&from.region, from.number, &from.decision, &from.input.sha256)
    }
}

impl From<&Replayed> for Replay {
    fn from(from: &Replayed) -> Self {
        let Decided { region, number, decision, input } = &from.recorded;
        Self {
            same: from.again == *decision,
            recorded: Decision::from(&from.recorded),
            again: Decision::of(region, *number, &from.again, &input.sha256),
        }
    }
}

impl DecisionAction {
    fn of(Planned { action, because }: &Planned) -> Self {
        let about = |instance: InstanceId, cordon: u64| (None, None, Some(instance), Some(cordon));
        let (pool, count, instance_id, cordon) = match action {
            ScaleAction::Launch { pool, count, .. } => (Some(pool.to_string()), Some(*count), None, None),
            ScaleAction::Cordon { instance, cordon, .. }
            | ScaleAction::Uncordon { instance, cordon }
            | ScaleAction::Terminate { instance, cordon } => about(*instance, *cordon),
        };
        let (action, code) = (action.code().to_owned(), because.code().to_owned());
        Self { action, pool, count, instance_id, cordon, code, reason: because.to_string() }
    }
}

impl DecisionReason {
    fn of(reason: &Reason) -> Self {
        let pool = |pool: &PoolName| (Some(pool.to_string()), None);
        let (pool, instance_id) = match reason {
            Reason::PoolRefused { pool: name, .. }
            | Reason::PoolBroken { pool: name, .. }
            | Reason::PoolInvalid { pool: name, .. } => pool(name),
            Reason::Kept { instance, .. } | Reason::Replaces { instance } => (None, Some(*instance)),
            Reason::Demand { .. }
            | Reason::Minimum { .. }
            | Reason::Headroom
            | Reason::AboveHighMark { .. }
            | Reason::Idle { .. }
            | Reason::Consolidation { .. }
            | Reason::Rebalance
            | Reason::Notice { .. }
            | Reason::Acknowledged
            | Reason::WantedAgain
            | Reason::Stale { .. }
            | Reason::Expected { .. }
            | Reason::Settling { .. }
            | Reason::NothingFits { .. }
            | Reason::NoPoolOpen { .. }
            | Reason::CapReached { .. } => (None, None),
        };
        Self { code: reason.code().to_owned(), pool, instance_id, reason: reason.to_string() }
    }
}

impl From<Cordoned> for Cordon {
    fn from(from: Cordoned) -> Self {
        let state = match from.state {
            CordonState::Standing { acknowledged_at: None } => "standing",
            CordonState::Standing { acknowledged_at: Some(_) } => "acknowledged",
            CordonState::Lifted => "lifted",
            CordonState::Terminating { .. } => "terminating",
        };
        Self {
            instance_id: from.instance,
            region: from.region.to_string(),
            number: from.number,
            state: state.to_owned(),
            cause: Some(from.cause),
            at: Some(from.at),
        }
    }
}

impl Cordon {
    /// Of an instance that never had one.
    pub fn none(instance_id: InstanceId, region: &RegionName) -> Self {
        let (region, state) = (region.to_string(), "none".to_owned());
        Self { instance_id, region, number: 0, state, cause: None, at: None }
    }
}
