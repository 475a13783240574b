//! What would become of a job, as callers see it.

use serde::{Deserialize, Serialize};
use telecine_core::jobs;
use telecine_domain::estimate as domain;
use telecine_domain::explain::ReasonCode;
use telecine_domain::learn::{Basis, Expected};
use utoipa::ToSchema;

use super::explanation::{PoolAnswer, Start};
use super::values::Resources;

/// What would become of a job if it were submitted now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Estimate {
    /// The kind of work.
    pub service: String,
    /// The exact engine version.
    pub engine_version: String,
    /// The image it runs, by digest; null for a program of the instance.
    pub engine_image: Option<String>,
    /// Where it would be queued and run.
    pub region: String,
    /// What it needs on an instance.
    pub resources: Resources,
    /// 0 to 1000, higher first.
    pub priority: u16,
    /// Bytes of its inputs together.
    pub input_bytes: u64,
    /// How long its engine is expected to work.
    pub duration: ExpectedDuration,
    /// What that costs; null where no pool that would run it has a price.
    pub cost: Option<Cost>,
    /// When it would start.
    pub start: Option<Start>,
    /// Jobs that would go before it for certain.
    pub queued_ahead: Option<u64>,
    /// Jobs of other accounts of which fair shares decide which go before it.
    pub queued_perhaps_ahead: Option<u64>,
    /// What it would wait for, for programs: the `code` of an explanation.
    #[schema(value_type = String)]
    pub code: ReasonCode,
    /// What it would wait for, for people.
    pub summary: String,
    /// What would help; empty when nothing needs to be done.
    pub next_step: String,
    /// The pools of its region, the nearest to giving it an instance first.
    pub pools: Vec<PoolAnswer>,
}

/// How long a job's engine is expected to work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExpectedDuration {
    /// Half of the runs take at most this.
    pub p50_ms: u64,
    /// Nine of ten runs take at most this.
    pub p90_ms: u64,
    /// How many runs say so; 0 when nothing is known and a default is told.
    pub samples: u32,
    /// Which runs: `factory` (of the same factory, engine version and length of inputs), `length` (of the same engine
    /// version and length of inputs), `version` (of the same engine version), or `default`.
    #[schema(value_type = String)]
    pub basis: Basis,
}

/// What a job costs on an instance of its own, of the cheapest pool that would run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cost {
    /// The pool.
    pub pool: String,
    /// The price of one of its instances and hour, in millionths of a US dollar.
    pub price_micros_per_hour: u64,
    /// For a run that half of the runs keep within, in millionths of a US dollar.
    pub p50_micros: u64,
    /// For one that nine of ten keep within.
    pub p90_micros: u64,
}

impl From<jobs::Estimate> for Estimate {
    fn from(from: jobs::Estimate) -> Self {
        let jobs::Estimate { spec, expected, cost, explanation } = from;
        let bytes = spec.inputs.values().map(|input| input.version.size_bytes);
        Self {
            service: spec.service.to_string(),
            engine_version: spec.engine.version.to_string(),
            engine_image: spec.engine.launch.image().map(ToString::to_string),
            region: spec.region.to_string(),
            resources: spec.resources.into(),
            priority: spec.priority,
            input_bytes: bytes.fold(0, u64::saturating_add),
            duration: expected.into(),
            cost: cost.map(Cost::from),
            start: explanation.start.map(Start::from),
            queued_ahead: explanation.position.map(|position| position.before),
            queued_perhaps_ahead: explanation.position.map(|position| position.perhaps_before),
            code: explanation.code,
            summary: explanation.summary,
            next_step: explanation.next_step,
            pools: explanation.pools.into_iter().map(PoolAnswer::from).collect(),
        }
    }
}

impl From<Expected> for ExpectedDuration {
    fn from(Expected { p50_ms, p90_ms, samples, basis }: Expected) -> Self {
        Self { p50_ms, p90_ms, samples, basis }
    }
}

impl From<domain::Cost> for Cost {
    fn from(from: domain::Cost) -> Self {
        let domain::Cost { pool, price_micros_per_hour, p50_micros, p90_micros } = from;
        Self { pool: pool.to_string(), price_micros_per_hour, p50_micros, p90_micros }
    }
}
