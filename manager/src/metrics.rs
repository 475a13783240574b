//! What is counted, under which names, for Prometheus.
//!
//! The recorder is the process's one: several managers in a process (a simulation) share it and are told apart by the
//! label `region`.

use std::sync::OnceLock;

use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use telecine_domain::id::RegionName;
use telecine_domain::instance::InstanceState;

/// The process's recorder, installed on first use. `None` when the program has installed another one.
pub(crate) fn recorder() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().install_recorder().ok()).as_ref()
}

/// Why something a peer asked for was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its epoch is closed.
    Stale,
    /// The job's state does not allow it.
    Illegal,
    /// The frame is not valid.
    Invalid,
    /// It spoke about somebody else's attempt or instance.
    NotYours,
    /// It showed no certificate, or one that ran out.
    Unauthenticated,
    /// Too much at once.
    Busy,
}

impl Refusal {
    /// The word in messages and labels.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Illegal => "illegal",
            Self::Invalid => "invalid",
            Self::NotYours => "not_yours",
            Self::Unauthenticated => "unauthenticated",
            Self::Busy => "busy",
        }
    }
}

/// The counters of one region.
#[derive(Clone, Debug)]
pub(crate) struct RegionMetrics {
    region: String,
}

impl RegionMetrics {
    pub(crate) fn new(region: &RegionName) -> Self {
        Self { region: region.to_string() }
    }

    fn label(&self) -> String {
        self.region.clone()
    }

    /// A message or a write was refused.
    pub(crate) fn refused(&self, refusal: Refusal) {
        counter!("telecine_refused_total", "region" => self.label(), "reason" => refusal.code()).increment(1);
    }

    /// An assignment was recorded and accepted, or came to nothing.
    pub(crate) fn assigned(&self, outcome: &'static str) {
        counter!("telecine_assignments_total", "region" => self.label(), "outcome" => outcome).increment(1);
    }

    /// Time from an assignment's decision to the coordinator's acceptance.
    pub(crate) fn assignment_took(&self, seconds: f64) {
        histogram!("telecine_assignment_seconds", "region" => self.label()).record(seconds);
    }

    /// An attempt was declared lost.
    pub(crate) fn lost(&self) {
        counter!("telecine_attempts_lost_total", "region" => self.label()).increment(1);
    }

    /// A hint was received.
    pub(crate) fn hints(&self, count: usize) {
        counter!("telecine_hints_total", "region" => self.label()).increment(count as u64);
    }

    /// A progress report was written.
    pub(crate) fn progress_written(&self) {
        counter!("telecine_progress_writes_total", "region" => self.label()).increment(1);
    }

    /// Bytes of engine output were stored.
    pub(crate) fn log_stored(&self, bytes: usize) {
        counter!("telecine_log_bytes_total", "region" => self.label()).increment(bytes as u64);
    }

    /// Whether this manager leads the region.
    pub(crate) fn leading(&self, leads: bool) {
        gauge!("telecine_leader", "region" => self.label()).set(if leads { 1.0 } else { 0.0 });
    }

    /// How long the queue is.
    pub(crate) fn queue_length(&self, jobs: usize) {
        gauge!("telecine_queue_length", "region" => self.label()).set(as_float(jobs));
    }

    /// How many attempts live.
    pub(crate) fn live(&self, attempts: usize) {
        gauge!("telecine_live_attempts", "region" => self.label()).set(as_float(attempts));
    }

    /// How many streams are open.
    pub(crate) fn sessions(&self, kind: &'static str, open: usize) {
        gauge!("telecine_sessions", "region" => self.label(), "kind" => kind).set(as_float(open));
    }

    /// How many instances are in a state.
    pub(crate) fn instances(&self, state: InstanceState, count: usize) {
        let state = match state {
            InstanceState::Ready => "ready",
            InstanceState::Unhealthy => "unhealthy",
            InstanceState::Draining => "draining",
            InstanceState::Cordoned => "cordoned",
            InstanceState::Disconnected => "disconnected",
            InstanceState::Lost => "lost",
        };
        gauge!("telecine_instances", "region" => self.label(), "state" => state).set(as_float(count));
    }

    /// A tick of the autoscaler came to an end.
    pub(crate) fn ticked(&self, outcome: &'static str) {
        counter!("telecine_autoscaling_ticks_total", "region" => self.label(), "outcome" => outcome)
            .increment(1);
    }

    /// Instances were asked for, and given or not.
    pub(crate) fn launches(&self, outcome: &'static str, instances: u32) {
        counter!("telecine_launches_total", "region" => self.label(), "outcome" => outcome)
            .increment(u64::from(instances));
    }

    /// Instances are gone for good.
    pub(crate) fn retirements(&self, instances: u32) {
        counter!("telecine_retirements_total", "region" => self.label()).increment(u64::from(instances));
    }

    /// Allocated of capacity, of the scarcest resource, in thousandths.
    pub(crate) fn occupancy(&self, thousandths: u32) {
        gauge!("telecine_occupancy_ratio", "region" => self.label()).set(f64::from(thousandths) / 1000.0);
    }
}

fn as_float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}
