//! Small values that several resources share.

use serde::{Deserialize, Serialize};
use telecine_domain::failure::FailureClass;
use telecine_domain::{failure, job, resources};
use utoipa::ToSchema;

/// An amount of compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Processor time, in thousandths of a core.
    pub cpu_milli: u64,
    /// Main memory, in bytes.
    pub memory_bytes: u64,
    /// Scratch space on the instance's disk, in bytes.
    pub scratch_bytes: u64,
    /// Whole GPUs.
    pub gpus: u64,
}

impl From<resources::Resources> for Resources {
    fn from(from: resources::Resources) -> Self {
        let resources::Resources { cpu_milli, memory_bytes, scratch_bytes, gpus } = from;
        Self { cpu_milli, memory_bytes, scratch_bytes, gpus }
    }
}

impl From<Resources> for resources::Resources {
    fn from(from: Resources) -> Self {
        let Resources { cpu_milli, memory_bytes, scratch_bytes, gpus } = from;
        Self { cpu_milli, memory_bytes, scratch_bytes, gpus }
    }
}

/// How often a job may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicy {
    /// Retries after failures of the user's work (an exit code, an engine error). 0 unless given.
    #[schema(maximum = 100)]
    pub user: u32,
    /// Retries after failures of the infrastructure (a lost instance, a failed pull). 5 unless given.
    #[schema(maximum = 100)]
    pub infrastructure: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        job::RetryPolicy::default().into()
    }
}

impl From<job::RetryPolicy> for RetryPolicy {
    fn from(job::RetryPolicy { user, infrastructure }: job::RetryPolicy) -> Self {
        Self { user, infrastructure }
    }
}

impl From<RetryPolicy> for job::RetryPolicy {
    fn from(RetryPolicy { user, infrastructure }: RetryPolicy) -> Self {
        Self { user, infrastructure }
    }
}

/// How long things may take, in seconds; null means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Longest wait in the queue before the job expires. A week unless given.
    pub queue_seconds: Option<u64>,
    /// Longest time of one attempt, from its lease. A day unless given.
    pub attempt_seconds: Option<u64>,
    /// Longest time from submission to the end. No limit unless given.
    pub total_seconds: Option<u64>,
    /// Longest time without progress while the engine runs. Half an hour unless given.
    pub no_progress_seconds: Option<u64>,
    /// Time between SIGTERM and SIGKILL. 10 unless given.
    pub cancel_grace_seconds: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        job::Timeouts::default().into()
    }
}

impl From<job::Timeouts> for Timeouts {
    fn from(from: job::Timeouts) -> Self {
        Self {
            queue_seconds: from.queue_seconds,
            attempt_seconds: from.attempt_seconds,
            total_seconds: from.total_seconds,
            no_progress_seconds: from.no_progress_seconds,
            cancel_grace_seconds: from.cancel_grace_seconds,
        }
    }
}

impl From<Timeouts> for job::Timeouts {
    fn from(from: Timeouts) -> Self {
        Self {
            queue_seconds: from.queue_seconds,
            attempt_seconds: from.attempt_seconds,
            total_seconds: from.total_seconds,
            no_progress_seconds: from.no_progress_seconds,
            cancel_grace_seconds: from.cancel_grace_seconds,
        }
    }
}

/// Why an attempt or a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// Whose matter it is: `input`, `engine`, `infrastructure`, `policy` or `internal`.
    #[schema(value_type = String)]
    pub class: FailureClass,
    /// Stable word for programs.
    pub code: String,
    /// What happened and what to do, for people.
    pub message: String,
    /// The engine's exit code, where it had one.
    pub exit_code: Option<i32>,
    /// The last lines of the engine's log.
    pub log_tail: String,
}

impl From<failure::Failure> for Failure {
    fn from(from: failure::Failure) -> Self {
        let failure::Failure { class, code, message, exit_code, log_tail } = from;
        Self { class, code, message, exit_code, log_tail }
    }
}
