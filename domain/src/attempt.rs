//! An attempt: one execution of a job on one instance, and the states it passes.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::id::{AttemptNumber, Epoch, InstanceId, JobId};
use crate::time::Timestamp;

/// Names one attempt of one job under one epoch; travels in every message about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptId {
    /// The job.
    pub job: JobId,
    /// Which attempt of it.
    pub attempt: AttemptNumber,
    /// The right under which it runs.
    pub epoch: Epoch,
}

impl std::fmt::Display for AttemptId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}@{}", self.job, self.attempt, self.epoch)
    }
}

/// Where a live attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Assigned; the instance has not begun.
    Leased,
    /// The image is being fetched.
    Pulling,
    /// Inputs and outputs are being mounted.
    Mounting,
    /// The engine works.
    Running,
    /// Outputs are being sealed, then published.
    Flushing,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ending {
    /// Its outputs are published.
    Succeeded,
    /// The work or the infrastructure failed.
    Failed(Failure),
    /// The instance was taken away (spot notice, drain).
    Interrupted(Failure),
    /// It gave way to more important work.
    Preempted,
    /// Nothing was heard for a whole lease.
    Lost(Failure),
    /// Somebody canceled the job.
    Canceled,
}

/// State of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AttemptState {
    /// Alive, in this phase.
    Live(Phase),
    /// Over.
    Ended(Ending),
}

/// The record of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// Which one.
    pub id: AttemptId,
    /// Where it runs.
    pub instance: InstanceId,
    /// Its state.
    pub state: AttemptState,
    /// When each phase began, in order; the first is `leased`.
    pub phases: Vec<PhaseStart>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// What the worker counted, once it has reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
}

/// When a phase began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseStart {
    /// The phase.
    pub phase: Phase,
    /// When.
    pub at: Timestamp,
}

/// What an attempt moved, counted by its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Counters {
    /// Bytes the engine read through the mount.
    pub mount_bytes_read: u64,
    /// Bytes the engine wrote through the mount.
    pub mount_bytes_written: u64,
    /// Requests the kernel made to the mount.
    pub mount_requests: u64,
    /// Bytes fetched from stores.
    pub store_bytes_read: u64,
    /// Bytes sent to stores.
    pub store_bytes_written: u64,
    /// Requests made to stores.
    pub store_requests: u64,
}

/// How far an attempt is, as its engine says it; never goes back inside an attempt (SPEC 3.6).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The attempt it belongs to.
    pub attempt: AttemptId,
    /// Grows with each report of the attempt; an older report is dropped.
    pub sequence: u64,
    /// Parts per million done, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_ppm: Option<u32>,
    /// Milliseconds of media done, when the engine works along media time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_millis: Option<u64>,
    /// The engine's own name for what it is doing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// When the worker heard it.
    pub at: Timestamp,
}

impl Attempt {
    /// A fresh attempt on `instance`.
    pub fn leased(id: AttemptId, instance: InstanceId, now: Timestamp) -> Self {
        let phases = vec![PhaseStart { phase: Phase::Leased, at: now }];
        Self {
            id,
            instance,
            state: AttemptState::Live(Phase::Leased),
            phases,
            ended_at: None,
            counters: None,
        }
    }

    /// Moves a live attempt on to a later phase; anything else (over, or not later) changes nothing and says so.
    #[must_use = "a phase that is not later is refused"]
    pub fn enter(&mut self, phase: Phase, now: Timestamp) -> bool {
        match self.state {
            AttemptState::Live(current) if phase > current => {
                self.state = AttemptState::Live(phase);
                self.phases.push(PhaseStart { phase, at: now });
                true
            }
            AttemptState::Live(_) | AttemptState::Ended(_) => false,
        }
    }

    /// Ends a live attempt; one that is over stays as it is and says so.
    #[must_use = "an attempt ends once"]
    pub fn end(&mut self, ending: Ending, now: Timestamp) -> bool {
        match self.state {
            AttemptState::Live(_) => {
                self.state = AttemptState::Ended(ending);
                self.ended_at = Some(now);
                true
            }
            AttemptState::Ended(_) => false,
        }
    }
}
