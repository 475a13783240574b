//! A job: what was asked for, and where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::attempt::AttemptId;
use crate::composition::Composition;
use crate::engine::Launch;
use crate::failure::Failure;
use crate::id::{
    AccountId, AttemptNumber, Epoch, FactoryId, InstanceId, JobId, RegionName, ServiceName, SlotName,
    WatchRuleId,
};
use crate::location::{Location, ObjectVersion};
use crate::manifest::Manifest;
use crate::resources::Resources;
use crate::time::Timestamp;
use crate::trace::TraceId;

/// The highest priority; 0 is the lowest and 500 the default.
pub const MAX_PRIORITY: u16 = 1000;
/// Most bytes of a specification as JSON when a job is accepted. What is accepted can be handed to a worker: messages
/// allow more than this (see `proto::convert::MAX_DOCUMENT_BYTES`), since labels may be changed later.
pub const MAX_SPEC_BYTES: usize = 400 * 1024;

/// Most jobs that a job may depend on.
pub const MAX_DEPENDENCIES: usize = 100;

/// Everything that was decided when the job was accepted; never changes but for priority and labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// The kind of work.
    pub service: ServiceName,
    /// The exact engine version.
    pub engine: PinnedEngine,
    /// The inflated document.
    pub composition: Composition,
    /// The version of each input seen at submission (SPEC 2.7).
    pub inputs: BTreeMap<SlotName, PinnedInput>,
    /// Where it is queued and run.
    pub region: RegionName,
    /// What it needs on an instance.
    pub resources: Resources,
    /// 0 to 1000, higher first.
    pub priority: u16,
    /// For people and filters, at most 32.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How often it may be tried again.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// How long it may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Where it came from.
    pub origin: Origin,
    /// Jobs of its account that must have succeeded before it is queued, at most [`MAX_DEPENDENCIES`]. They were there
    /// before it, so that there is no cycle.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub depends_on: BTreeSet<JobId>,
}

/// The engine version a job was pinned to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedEngine {
    /// Its version.
    pub version: Version,
    /// How it is started, as published.
    pub launch: Launch,
}

/// An input as it was at submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedInput {
    /// The object.
    pub location: Location,
    /// The version that will be read; another one fails the job.
    pub version: ObjectVersion,
}

/// Who or what asked for a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Origin {
    /// A call of the API.
    Api,
    /// A call that named a factory.
    Factory(FactoryId),
    /// An object that arrived.
    Arrival {
        /// The factory.
        factory: FactoryId,
        /// The rule that matched.
        rule: WatchRuleId,
    },
    /// `retry` of another job.
    Retry(JobId),
}

impl Origin {
    /// The factory that made the job.
    pub fn factory(&self) -> Option<FactoryId> {
        match self {
            Self::Factory(factory) | Self::Arrival { factory, .. } => Some(*factory),
            Self::Api | Self::Retry(_) => None,
        }
    }
}

/// How often a job may be tried again after a failure, by budget (SPEC 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicy {
    /// Retries after failures of the user's work.
    pub user: u32,
    /// Retries after failures of the infrastructure.
    pub infrastructure: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { user: 0, infrastructure: 5 }
    }
}

/// How long things may take, in seconds. `None` means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Longest wait in the queue before the job expires; a new stay in the queue counts anew.
    pub queue_seconds: Option<u64>,
    /// Longest time of one attempt, from its lease.
    pub attempt_seconds: Option<u64>,
    /// Longest time from submission to the end.
    pub total_seconds: Option<u64>,
    /// Longest time without progress while the engine runs.
    pub no_progress_seconds: Option<u64>,
    /// Time between SIGTERM and SIGKILL.
    pub cancel_grace_seconds: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            queue_seconds: Some(7 * 24 * 3600),
            attempt_seconds: Some(24 * 3600),
            total_seconds: None,
            no_progress_seconds: Some(30 * 60),
            cancel_grace_seconds: 10,
        }
    }
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Whose it is.
    pub account: AccountId,
    /// Number of the last change, from 1; the sequence number of its history.
    pub version: u64,
    /// What was asked for.
    pub spec: JobSpec,
    /// Where it is.
    pub state: JobState,
    /// Since when it is there; a change of priority or labels leaves it as it is.
    pub state_since: Timestamp,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it first entered the queue; kept over retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<Timestamp>,
    /// The last attempt's number; 0 before the first.
    pub attempts: AttemptNumber,
    /// The last epoch handed out or closed; 0 before the first.
    pub epoch: Epoch,
    /// Retries taken from the user's budget.
    pub user_retries: u32,
    /// Retries taken from the infrastructure's budget.
    pub infrastructure_retries: u32,
    /// The trace of the call that submitted it, where that came in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceId>,
}

/// Why a job is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldReason {
    /// Somebody asked for it.
    Manual,
    /// Not all jobs that it depends on have succeeded yet.
    Dependencies,
}

/// The attempt that has the right to run a job, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The attempt.
    pub attempt: AttemptNumber,
    /// Its right.
    pub epoch: Epoch,
    /// The instance.
    pub instance: InstanceId,
    /// When it was assigned.
    pub since: Timestamp,
}

/// State of a job (SPEC 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum JobState {
    /// Accepted, not to be run yet.
    Held {
        /// Why.
        reason: HoldReason,
    },
    /// Waits for capacity.
    Queued {
        /// Not before this time (a pause after a failure).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_before: Option<Timestamp>,
        /// What ended the attempt before, if there was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last_failure: Option<Failure>,
    },
    /// An instance was chosen.
    Assigned(Run),
    /// The worker prepares.
    Starting(Run),
    /// The engine works.
    Running(Run),
    /// The outputs were granted and are being published; can no longer be stopped.
    Finalizing {
        /// The attempt that was granted.
        run: Run,
        /// What is being published.
        manifest: Manifest,
    },
    /// A live attempt is being stopped.
    Canceling {
        /// The attempt.
        run: Run,
        /// What the job becomes when it has stopped.
        cause: StopCause,
    },
    /// The outputs are published.
    Succeeded {
        /// The attempt that made them.
        attempt: AttemptNumber,
        /// What was published.
        manifest: Manifest,
    },
    /// It will not be tried again.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// Somebody canceled it.
    Canceled,
    /// It waited longer than it may.
    Expired,
}

/// Why a live attempt is being stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StopCause {
    /// Somebody canceled the job.
    Requested,
    /// The job took longer than it may.
    TotalTimeout,
}

/// The name of a state, for lists, filters and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the variants of JobState say what each means")]
pub enum StateName {
    Held,
    Queued,
    Assigned,
    Starting,
    Running,
    Finalizing,
    Canceling,
    Succeeded,
    Failed,
    Canceled,
    Expired,
}

impl StateName {
    /// Every state, in the order of a job's life.
    pub const ALL: [Self; 11] = [
        Self::Held,
        Self::Queued,
        Self::Assigned,
        Self::Starting,
        Self::Running,
        Self::Finalizing,
        Self::Canceling,
        Self::Succeeded,
        Self::Failed,
        Self::Canceled,
        Self::Expired,
    ];

    /// The name as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Queued => "queued",
            Self::Assigned => "assigned",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Finalizing => "finalizing",
            Self::Canceling => "canceling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
        }
    }

    /// Whether the state never changes again.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled | Self::Expired)
    }
}

impl std::fmt::Display for StateName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl JobState {
    /// The state's name.
    pub const fn name(&self) -> StateName {
        match self {
            Self::Held { .. } => StateName::Held,
            Self::Queued { .. } => StateName::Queued,
            Self::Assigned(_) => StateName::Assigned,
            Self::Starting(_) => StateName::Starting,
            Self::Running(_) => StateName::Running,
            Self::Finalizing { .. } => StateName::Finalizing,
            Self::Canceling { .. } => StateName::Canceling,
            Self::Succeeded { .. } => StateName::Succeeded,
            Self::Failed { .. } => StateName::Failed,
            Self::Canceled => StateName::Canceled,
            Self::Expired => StateName::Expired,
        }
    }

    /// The attempt that holds the right to run the job.
    pub const fn run(&self) -> Option<&Run> {
        match self {
            Self::Assigned(run)
            | Self::Starting(run)
            | Self::Running(run)
            | Self::Finalizing { run, .. }
            | Self::Canceling { run, .. } => Some(run),
            Self::Held { .. }
            | Self::Queued { .. }
            | Self::Succeeded { .. }
            | Self::Failed { .. }
            | Self::Canceled
            | Self::Expired => None,
        }
    }
}

impl Job {
    /// A job as accepted: held or queued.
    pub fn accepted(
        id: JobId,
        account: AccountId,
        spec: JobSpec,
        hold: Option<HoldReason>,
        now: Timestamp,
    ) -> Self {
        let (state, queued_at) = match hold {
            Some(reason) => (JobState::Held { reason }, None),
            None => (JobState::Queued { not_before: None, last_failure: None }, Some(now)),
        };
        Self {
            id,
            account,
            version: 1,
            spec,
            state,
            state_since: now,
            created_at: now,
            queued_at,
            attempts: AttemptNumber(0),
            epoch: Epoch(0),
            user_retries: 0,
            infrastructure_retries: 0,
            trace: None,
        }
    }

    /// The trace that everything done for it belongs to.
    pub fn trace_id(&self) -> TraceId {
        self.trace.unwrap_or_else(|| TraceId::of_job(self.id))
    }

    /// The attempt that holds the right to run the job, named in full.
    pub fn live_attempt(&self) -> Option<AttemptId> {
        self.state.run().map(|run| AttemptId { job: self.id, attempt: run.attempt, epoch: run.epoch })
    }

    /// When the job must be over, whatever it does.
    pub fn total_deadline(&self) -> Option<Timestamp> {
        self.spec.timeouts.total_seconds.map(|seconds| self.created_at.after(Duration::from_secs(seconds)))
    }

    /// When a queued job expires. Counts this stay in the queue only: a job that was interrupted after days of work
    /// keeps its place in the order (`queued_at`) and is not expired for having worked.
    pub fn queue_deadline(&self) -> Option<Timestamp> {
        match self.state.name() {
            StateName::Queued => {
                let limit = self.spec.timeouts.queue_seconds?;
                Some(self.state_since.after(Duration::from_secs(limit)))
            }
            StateName::Held
            | StateName::Assigned
            | StateName::Starting
            | StateName::Running
            | StateName::Finalizing
            | StateName::Canceling
            | StateName::Succeeded
            | StateName::Failed
            | StateName::Canceled
            | StateName::Expired => None,
        }
    }
}
