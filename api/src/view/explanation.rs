//! Why a job waits or failed, as callers see it.

use serde::{Deserialize, Serialize};
use telecine_domain::explain as domain;
use telecine_domain::id::{InstanceId, JobId};
use telecine_domain::job::StateName;
use telecine_domain::placement::Refusal as PlacementRefusal;
use telecine_domain::resources::ResourceKind;
use telecine_domain::time::Timestamp;
use utoipa::ToSchema;

use super::values::{Failure, Resources};

/// Why a job is where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The job.
    #[schema(value_type = String)]
    pub job_id: JobId,
    /// The state it is in.
    #[schema(value_type = String)]
    pub state: StateName,
    /// The reason, for programs: `held`, `paused_after_failure`, `no_instance`, `no_runtime`, `too_large`, `none_ready`,
    /// `all_busy`, `waits_for_turn`, or the state.
    #[schema(value_type = String)]
    pub code: domain::ReasonCode,
    /// The reason, for people.
    pub summary: String,
    /// What would help; empty when nothing needs to be done.
    pub next_step: String,
    /// What it needs.
    pub need: Resources,
    /// The resource that keeps it from running.
    pub blocking: Option<Blocking>,
    /// The instances that do not take it, the nearest first.
    pub refusals: Vec<Refusal>,
    /// Jobs before it in the queue.
    pub queued_ahead: Option<u64>,
    /// Not tried before this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub not_before: Option<Timestamp>,
    /// What failed: the job, or its last attempt.
    pub failure: Option<Failure>,
    /// All of it in words.
    pub text: String,
}

/// The resource that keeps a job from running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Blocking {
    /// Which one.
    #[schema(value_type = String)]
    pub resource: ResourceKind,
    /// What the job needs of it.
    pub need: u64,
    /// What the nearest instance has, or has free.
    pub there: u64,
}

/// An instance that does not take a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// The instance.
    #[schema(value_type = String)]
    pub instance_id: InstanceId,
    /// Its pool.
    pub pool: String,
    /// Its host.
    pub host: String,
    /// Why, for people.
    pub reason: String,
}

impl From<domain::Explanation> for Explanation {
    fn from(from: domain::Explanation) -> Self {
        let text = from.to_string();
        Self {
            job_id: from.job,
            state: from.state,
            code: from.code,
            summary: from.summary,
            next_step: from.next_step,
            need: from.need.into(),
            blocking: from.blocking.map(|blocking| Blocking {
                resource: blocking.resource,
                need: blocking.need,
                there: blocking.there,
            }),
            refusals: from.refusals.into_iter().map(Refusal::from).collect(),
            queued_ahead: from.queued_ahead,
            not_before: from.not_before,
            failure: from.failure.map(Failure::from),
            text,
        }
    }
}

impl From<PlacementRefusal> for Refusal {
    fn from(from: PlacementRefusal) -> Self {
        let reason = from.reason.to_string();
        Self { instance_id: from.instance, pool: from.pool.to_string(), host: from.host, reason }
    }
}
