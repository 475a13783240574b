//! An attempt as callers see it.

use serde::{Deserialize, Serialize};
use telecine_domain::attempt as domain;
use telecine_domain::id::{InstanceId, JobId};
use telecine_domain::time::Timestamp;
use utoipa::ToSchema;

use super::values::Failure;

/// One execution of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// The job.
    #[schema(value_type = String)]
    pub job_id: JobId,
    /// Number inside the job, from 1.
    pub attempt: u32,
    /// Number of the right under which it runs.
    pub epoch: u64,
    /// Where it runs.
    #[schema(value_type = String)]
    pub instance_id: InstanceId,
    /// `leased`, `pulling`, `mounting`, `running`, `flushing`, then `succeeded`, `failed`, `interrupted`, `preempted`,
    /// `lost` or `canceled`.
    pub state: String,
    /// Why it did not succeed.
    pub failure: Option<Failure>,
    /// Each phase with its begin and end.
    pub phases: Vec<Phase>,
    /// When it was leased.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// What it moved, once reported.
    pub counters: Option<Counters>,
}

/// One phase of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Phase {
    /// Its name.
    pub phase: String,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// How long it took; null while it lasts.
    pub duration_millis: Option<u64>,
}

/// What an attempt moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// How far an attempt is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// The attempt it belongs to.
    pub attempt: u32,
    /// Parts per million done; null when the engine does not know.
    pub ratio_ppm: Option<u32>,
    /// Milliseconds of media done, for engines that work along media time.
    pub media_millis: Option<u64>,
    /// The engine's own name for what it is doing.
    pub phase: String,
    /// When the worker heard it.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

impl From<domain::Progress> for Progress {
    fn from(from: domain::Progress) -> Self {
        let domain::Progress { attempt, ratio_ppm, media_millis, phase, at, .. } = from;
        Self { attempt: attempt.attempt.0, ratio_ppm, media_millis, phase, at }
    }
}

impl From<domain::Attempt> for Attempt {
    fn from(from: domain::Attempt) -> Self {
        let phases = phases(&from);
        let (state, failure) = state(from.state);
        Self {
            job_id: from.id.job,
            attempt: from.id.attempt.0,
            epoch: from.id.epoch.0,
            instance_id: from.instance,
            state: state.to_owned(),
            failure,
            started_at: phases.first().map(|phase| phase.started_at),
            phases,
            ended_at: from.ended_at,
            counters: from.counters.map(Counters::from),
        }
    }
}

impl From<domain::Counters> for Counters {
    fn from(from: domain::Counters) -> Self {
        Self {
            mount_bytes_read: from.mount_bytes_read,
            mount_bytes_written: from.mount_bytes_written,
            mount_requests: from.mount_requests,
            store_bytes_read: from.store_bytes_read,
            store_bytes_written: from.store_bytes_written,
            store_requests: from.store_requests,
        }
    }
}

fn phases(attempt: &domain::Attempt) -> Vec<Phase> {
    let starts = &attempt.phases;
    let ends = starts.iter().skip(1).map(|next| Some(next.at)).chain([attempt.ended_at]);
    let millis =
        |start: Timestamp, end: Timestamp| u64::try_from(end.since(start).as_millis()).unwrap_or(u64::MAX);
    starts
        .iter()
        .zip(ends)
        .map(|(start, end)| Phase {
            phase: phase_name(start.phase).to_owned(),
            started_at: start.at,
            duration_millis: end.map(|end| millis(start.at, end)),
        })
        .collect()
}

fn state(state: domain::AttemptState) -> (&'static str, Option<Failure>) {
    match state {
        domain::AttemptState::Live(phase) => (phase_name(phase), None),
        domain::AttemptState::Ended(ending) => match ending {
            domain::Ending::Succeeded => ("succeeded", None),
            domain::Ending::Failed(failure) => ("failed", Some(failure.into())),
            domain::Ending::Interrupted(failure) => ("interrupted", Some(failure.into())),
            domain::Ending::Preempted => ("preempted", None),
            domain::Ending::Lost(failure) => ("lost", Some(failure.into())),
            domain::Ending::Canceled => ("canceled", None),
        },
    }
}

fn phase_name(phase: domain::Phase) -> &'static str {
    match phase {
        domain::Phase::Leased => "leased",
        domain::Phase::Pulling => "pulling",
        domain::Phase::Mounting => "mounting",
        domain::Phase::Running => "running",
        domain::Phase::Flushing => "flushing",
    }
}
