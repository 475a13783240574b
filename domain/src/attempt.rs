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

/// All of it, in parts per million.
pub const WHOLE_PPM: u32 = 1_000_000;

impl Progress {
    /// What is known after this report, when `known` was known before; `None` when the report is older than that, or
    /// of an attempt that is over. Inside an attempt nothing goes back and nothing that was known becomes unknown.
    pub fn after(self, known: Option<&Self>) -> Option<Self> {
        let ratio_ppm = self.ratio_ppm.map(|ratio| ratio.min(WHOLE_PPM));
        let Some(known) = known.filter(|known| known.attempt == self.attempt) else {
            let newer = known.is_none_or(|known| known.attempt.epoch < self.attempt.epoch);
            return newer.then_some(Self { ratio_ppm, ..self });
        };
        let (ratio_ppm, media_millis) =
            (ratio_ppm.max(known.ratio_ppm), self.media_millis.max(known.media_millis));
        (self.sequence > known.sequence).then_some(Self { ratio_ppm, media_millis, ..self })
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureClass;
    use crate::fixture::{at, failure, instance_id, job_id};

    fn attempt() -> Attempt {
        let id = AttemptId { job: job_id(1), attempt: AttemptNumber(2), epoch: Epoch(3) };
        Attempt::leased(id, instance_id(1), at(0))
    }

    #[test]
    fn phases_only_go_forward_and_may_be_skipped() {
        let mut attempt = attempt();
        assert!(attempt.enter(Phase::Mounting, at(1)));
        assert!(!attempt.enter(Phase::Mounting, at(2)), "told twice");
        assert!(!attempt.enter(Phase::Pulling, at(2)), "told late");
        assert!(attempt.enter(Phase::Running, at(3)));
        let phases: Vec<_> = attempt.phases.iter().map(|start| (start.phase, start.at)).collect();
        assert_eq!(phases, [(Phase::Leased, at(0)), (Phase::Mounting, at(1)), (Phase::Running, at(3))]);
    }

    #[test]
    fn an_attempt_ends_once() {
        let endings = [
            Ending::Succeeded,
            Ending::Failed(failure(FailureClass::Engine)),
            Ending::Interrupted(failure(FailureClass::Infrastructure)),
            Ending::Preempted,
            Ending::Lost(failure(FailureClass::Infrastructure)),
            Ending::Canceled,
        ];
        for first in &endings {
            let mut attempt = attempt();
            assert!(attempt.end(first.clone(), at(5)));
            let ended = attempt.clone();
            for later in &endings {
                assert!(!attempt.end(later.clone(), at(6)));
            }
            assert!(!attempt.enter(Phase::Flushing, at(6)));
            assert_eq!(attempt, ended);
            assert_eq!(attempt.ended_at, Some(at(5)));
        }
    }

    #[test]
    fn records_survive_json_and_ids_are_readable() {
        let mut attempt = attempt();
        assert!(attempt.end(Ending::Failed(failure(FailureClass::Engine)), at(5)));
        let text = serde_json::to_string(&attempt).unwrap();
        assert_eq!(serde_json::from_str::<Attempt>(&text).unwrap(), attempt);
        assert_eq!(attempt.id.to_string(), format!("{}/2@3", job_id(1)));
    }

    fn progress(sequence: u64, ratio_ppm: Option<u32>, media_millis: Option<u64>) -> Progress {
        let (phase, at) = ("encode".to_owned(), at(sequence));
        Progress { attempt: attempt().id, sequence, ratio_ppm, media_millis, phase, at }
    }

    #[test]
    fn progress_never_goes_back_inside_an_attempt() {
        let first = progress(1, Some(400_000), Some(9_000));
        assert_eq!(first.clone().after(None), Some(first.clone()));
        let back = progress(2, Some(300_000), Some(10_000)).after(Some(&first)).unwrap();
        assert_eq!((back.ratio_ppm, back.media_millis, back.sequence), (Some(400_000), Some(10_000), 2));
        let unknown = progress(3, None, None).after(Some(&back)).unwrap();
        assert_eq!((unknown.ratio_ppm, unknown.media_millis), (Some(400_000), Some(10_000)));
        assert_eq!(progress(3, Some(500_000), None).after(Some(&unknown)), None, "told twice");
        assert_eq!(progress(2, Some(500_000), None).after(Some(&unknown)), None, "told late");
        let over = progress(4, Some(2_000_000), None).after(Some(&unknown)).unwrap();
        assert_eq!(over.ratio_ppm, Some(WHOLE_PPM));
    }

    #[test]
    fn a_new_attempt_starts_anew_and_an_old_one_is_not_heard() {
        let old = progress(9, Some(900_000), Some(9_000));
        let mut new = progress(1, Some(1), None);
        new.attempt = AttemptId { attempt: AttemptNumber(3), epoch: Epoch(4), ..new.attempt };
        assert_eq!(new.clone().after(Some(&old)), Some(new.clone()));
        assert_eq!(old.after(Some(&new)), None);
    }
}
