//! Why a job waits or failed, as callers see it.

use serde::{Deserialize, Serialize};
use telecine_domain::explain as domain;
use telecine_domain::forecast::{Start as DomainStart, UnknownStart};
use telecine_domain::id::{FactoryId, InstanceId, JobId};
use telecine_domain::job::StateName;
use telecine_domain::placement::Refusal as PlacementRefusal;
use telecine_domain::region::LimitedBy;
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
    /// The reason, for programs: `held`, `waits_for_jobs`, `paused_after_failure`, `limit_reached`, `no_instance`, `no_runtime`, `too_large`,
    /// `instance_starting`, `instance_wanted`, `pools_closed`, `none_ready`, `all_busy`, `waits_for_turn`, or the state.
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
    /// The limit of attempts at the same time that keeps it from running.
    pub limit: Option<Limit>,
    /// The jobs that it waits for: those of its dependencies that have not succeeded.
    pub dependencies: Vec<Dependency>,
    /// The instances that do not take it, the nearest first.
    pub refusals: Vec<Refusal>,
    /// The instance that would take it now.
    pub taker: Option<Taker>,
    /// The pools of its region, the nearest to giving it an instance first.
    pub pools: Vec<PoolAnswer>,
    /// Jobs that go before it for certain: more important ones, and older ones of its account.
    pub queued_ahead: Option<u64>,
    /// Jobs of other accounts that are as important: fair shares decide which of them go before it.
    pub queued_perhaps_ahead: Option<u64>,
    /// Whether there are more jobs than were counted.
    pub position_is_partial: bool,
    /// When it is expected to start.
    pub start: Option<Start>,
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

/// A limit of attempts at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Limit {
    /// `factory` or `account`.
    #[schema(value_type = String)]
    pub by: LimitedBy,
    /// The factory, where it is one's.
    #[schema(value_type = Option<String>)]
    pub factory_id: Option<FactoryId>,
    /// How many attempts it allows.
    pub limit: u32,
    /// How many there are.
    pub running: u32,
}

/// A job that another depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dependency {
    /// The job.
    #[schema(value_type = String)]
    pub job_id: JobId,
    /// The state it is in; null when it is not kept any more.
    #[schema(value_type = Option<String>)]
    pub state: Option<StateName>,
}

/// An instance that would take a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Taker {
    /// The instance.
    #[schema(value_type = String)]
    pub instance_id: InstanceId,
    /// Its pool.
    pub pool: String,
    /// Its host.
    pub host: String,
}

/// What a pool answers to a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolAnswer {
    /// The pool.
    pub pool: String,
    /// `starting`, `may_launch`, `full`, `no_capacity`, `boots_fail`, `cap` or `never_fits`.
    pub code: String,
    /// The answer, for people.
    pub answer: String,
    /// What jobs may use of one instance.
    pub shape: Resources,
    /// The price of one instance and hour, in millionths of a US dollar; 0 when it is not known.
    pub price_micros_per_hour: u64,
    /// Usual time from asking for an instance to having it.
    pub boot_seconds: u32,
}

/// When a job is expected to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Start {
    /// As likely before as after this time; null when it is unknown.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expected_at: Option<Timestamp>,
    /// In nine of ten cases by this time; null when it is unknown.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub likely_by: Option<Timestamp>,
    /// Why it is unknown: `nothing_takes_it`, `not_learned`, `no_time` or `too_many_before`.
    #[schema(value_type = Option<String>)]
    pub unknown: Option<UnknownStart>,
    /// The same in words.
    pub text: String,
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
            limit: from.limit.map(|limit| Limit {
                by: limit.by,
                factory_id: limit.factory,
                limit: limit.limit,
                running: limit.running,
            }),
            dependencies: from
                .dependencies
                .into_iter()
                .map(|one| Dependency { job_id: one.job, state: one.state })
                .collect(),
            refusals: from.refusals.into_iter().map(Refusal::from).collect(),
            taker: from.taker.map(|taker| Taker {
                instance_id: taker.instance,
                pool: taker.pool.to_string(),
                host: taker.host,
            }),
            pools: from.pools.into_iter().map(PoolAnswer::from).collect(),
            queued_ahead: from.position.map(|position| position.before),
            queued_perhaps_ahead: from.position.map(|position| position.perhaps_before),
            position_is_partial: from.position.is_some_and(|position| position.is_partial),
            start: from.start.map(Start::from),
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

impl From<domain::AskedPool> for PoolAnswer {
    fn from(from: domain::AskedPool) -> Self {
        let code = match &from.answer {
            domain::PoolAnswer::Starting { .. } => "starting",
            domain::PoolAnswer::MayLaunch => "may_launch",
            domain::PoolAnswer::Full { .. } => "full",
            domain::PoolAnswer::NoCapacity { .. } => "no_capacity",
            domain::PoolAnswer::BootsFail { .. } => "boots_fail",
            domain::PoolAnswer::Cap(_) => "cap",
            domain::PoolAnswer::Refuses(_) => "never_fits",
        };
        Self {
            code: code.to_owned(),
            answer: from.to_string(),
            pool: from.pool.to_string(),
            shape: from.shape.into(),
            price_micros_per_hour: from.price_micros_per_hour,
            boot_seconds: from.boot_seconds,
        }
    }
}

impl From<DomainStart> for Start {
    fn from(from: DomainStart) -> Self {
        let (expected_at, likely_by, unknown) = match from {
            DomainStart::Expected { p50, p90 } => (Some(p50), p90, None),
            DomainStart::Unknown { because } => (None, None, Some(because)),
        };
        Self { expected_at, likely_by, unknown, text: from.to_string() }
    }
}
