//! What the tasks of a worker share: its right to go on, its phase, its log and its progress.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use telecine_domain::attempt::{AttemptId, Phase};
use telecine_domain::failure::Failure;
use telecine_domain::time::Timestamp;
use telecine_domain::trace::{TraceContext, TraceId};
use telecine_proto::calls::Caller;
use telecine_proto::trace;
use telecine_proto::worker::v1::{FromManager, FromWorker};
use tokio::sync::{Notify, watch};

use crate::clock::Clock;
use crate::lease::Lease;
use crate::log::LogSpool;
use crate::plain::{Furthest, ProgressReport};
use crate::redact::Redactor;

/// Why an attempt must stop before its engine ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Halt {
    /// A limit was reached or the worker cannot go on: this failure is to be reported.
    Failed(Failure),
    /// The instance is taken away: SIGTERM, at most this pause, SIGKILL, and the job runs elsewhere.
    Interrupted {
        /// The pause at most.
        grace: Duration,
        /// What is to be reported.
        failure: Failure,
    },
    /// Somebody asked: SIGTERM, this pause, SIGKILL.
    Asked {
        /// The pause.
        grace: Duration,
    },
    /// The right is gone: kill, publish nothing, report nothing.
    Fenced(String),
}

impl Halt {
    /// A later reason replaces an earlier one only when it is stronger.
    fn strength(&self) -> u8 {
        match self {
            // The first of the two: a limit that was reached is not undone by what comes after it.
            Self::Failed(_) | Self::Interrupted { .. } => 0,
            Self::Asked { .. } => 1,
            Self::Fenced(_) => 2,
        }
    }
}

pub(crate) type ManagerCaller = Caller<FromWorker, FromManager>;

/// See the module.
pub(crate) struct Shared {
    pub(crate) attempt: AttemptId,
    pub(crate) clock: Clock,
    /// The trace of its job.
    pub(crate) trace: Option<TraceContext>,
    halt: watch::Sender<Option<Halt>>,
    /// The present connection to the manager.
    pub(crate) caller: watch::Sender<Option<ManagerCaller>>,
    pub(crate) watched: watch::Sender<bool>,
    /// Rings when there may be something to send.
    pub(crate) news: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lease: Lease,
    phase: Option<Phase>,
    phases: VecDeque<(Phase, Timestamp)>,
    log: LogSpool,
    redactor: Redactor,
    furthest: Furthest,
    progress_sequence: u64,
    progress_at: Timestamp,
    /// Boot time of the last sign of life of the engine.
    last_sign: Duration,
}

impl Shared {
    /// Begins now with a lease of `length`, which must be proven before an engine starts.
    pub(crate) fn new(attempt: AttemptId, trace: Option<TraceId>, clock: Clock, length: Duration) -> Self {
        let lease = Lease::proven(clock.boot(), length);
        Self {
            attempt,
            clock,
            trace: trace.map(trace::begin),
            halt: watch::Sender::new(None),
            caller: watch::Sender::new(None),
            watched: watch::Sender::new(false),
            news: Notify::new(),
            state: Mutex::new(State { lease, ..State::default() }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // The right to go on.

    pub(crate) fn renewed(&self, sent_at: Duration, length: Duration) {
        self.state().lease.renewed(sent_at, length);
    }

    pub(crate) fn lease_remaining(&self) -> Duration {
        self.state().lease.remaining(self.clock.boot())
    }

    pub(crate) fn halt(&self, halt: Halt) {
        self.halt.send_if_modified(|now| {
            let stronger = now.as_ref().is_none_or(|now| now.strength() < halt.strength());
            if stronger {
                tracing::info!(?halt, "the attempt stops");
                *now = Some(halt);
            }
            stronger
        });
    }

    pub(crate) fn halted(&self) -> Option<Halt> {
        self.halt.borrow().clone()
    }

    pub(crate) fn is_fenced(&self) -> bool {
        matches!(*self.halt.borrow(), Some(Halt::Fenced(_)))
    }

    /// Waits until the attempt must stop, for whatever reason.
    pub(crate) async fn until_halted(&self) -> Halt {
        self.until(|_| true).await
    }

    /// Waits until the right is gone.
    pub(crate) async fn until_fenced(&self) -> Halt {
        self.until(|halt| matches!(halt, Halt::Fenced(_))).await
    }

    async fn until(&self, wanted: impl Fn(&Halt) -> bool) -> Halt {
        let mut halt = self.halt.subscribe();
        let found = halt.wait_for(|halt| halt.as_ref().is_some_and(&wanted)).await;
        match found.ok().and_then(|halt| halt.clone()) {
            Some(halt) => halt,
            None => std::future::pending().await,
        }
    }

    // Phases.

    pub(crate) fn enter(&self, phase: Phase) {
        let at = self.clock.now();
        let mut state = self.state();
        if state.phase.is_none_or(|current| current < phase) {
            state.phase = Some(phase);
            state.phases.push_back((phase, at));
        }
        drop(state);
        self.news.notify_waiters();
    }

    pub(crate) fn phase(&self) -> Phase {
        self.state().phase.unwrap_or(Phase::Leased)
    }

    pub(crate) fn next_phase(&self) -> Option<(Phase, Timestamp)> {
        self.state().phases.front().copied()
    }

    pub(crate) fn phase_told(&self, told: Phase) {
        self.state().phases.retain(|(phase, _)| *phase > told);
        self.news.notify_waiters();
    }

    // The log.

    pub(crate) fn learn_secret(&self, secret: &str) {
        self.state().redactor.learn(secret);
    }

    pub(crate) fn redact(&self, text: &str) -> String {
        self.state().redactor.redact(text)
    }

    pub(crate) fn log(&self, data: &[u8]) {
        let now = self.clock.boot();
        let mut state = self.state();
        let clean = state.redactor.push(data);
        state.log.push(&clean, now);
        drop(state);
        self.news.notify_waiters();
    }

    /// The engine has ended: what was held back goes out too.
    pub(crate) fn finish_log(&self) {
        let now = self.clock.boot();
        let mut state = self.state();
        let rest = state.redactor.finish();
        state.log.push(&rest, now);
        state.log.close();
        drop(state);
        self.news.notify_waiters();
    }

    pub(crate) fn log_tail(&self) -> String {
        self.state().log.tail()
    }

    pub(crate) fn with_log<T>(&self, then: impl FnOnce(&mut LogSpool) -> T) -> T {
        then(&mut self.state().log)
    }

    // Progress.

    pub(crate) fn progress(&self, report: ProgressReport) {
        let (now, boot) = (self.clock.now(), self.clock.boot());
        let mut state = self.state();
        if state.furthest.take(report) {
            state.progress_sequence += 1;
            state.progress_at = now;
            state.last_sign = boot;
            drop(state);
            self.news.notify_waiters();
        }
    }

    /// The newest progress with its number and time, when it is newer than number `sent`.
    pub(crate) fn progress_after(&self, sent: u64) -> Option<(u64, Furthest, Timestamp)> {
        let state = self.state();
        (state.progress_sequence > sent)
            .then(|| (state.progress_sequence, state.furthest.clone(), state.progress_at))
    }

    /// Whether the engine ever said how far it is.
    pub(crate) fn reports_progress(&self) -> bool {
        let state = self.state();
        state.furthest.ratio_ppm.is_some() || state.furthest.media_millis.is_some()
    }

    /// The engine does something, for those that never say how far they are.
    pub(crate) fn sign_of_life(&self) {
        self.state().last_sign = self.clock.boot();
    }

    pub(crate) fn silent_for(&self) -> Duration {
        self.clock.boot().saturating_sub(self.state().last_sign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::tests::assignment;

    fn shared() -> Shared {
        Shared::new(assignment().attempt, None, Clock::default(), Duration::from_secs(60))
    }

    #[tokio::test]
    async fn a_weaker_reason_to_stop_never_replaces_a_stronger() {
        let shared = shared();
        let timeout = Halt::Failed(crate::failure::attempt_timeout(5));
        shared.halt(timeout.clone());
        assert_eq!(shared.until_halted().await, timeout);
        let asked = Halt::Asked { grace: Duration::ZERO };
        shared.halt(asked.clone());
        shared.halt(timeout);
        assert_eq!(shared.halted(), Some(asked));
        shared.halt(Halt::Fenced("stale".into()));
        assert!(shared.is_fenced());
        shared.until_fenced().await;
    }

    #[test]
    fn phases_go_forward_and_are_told_in_order() {
        let shared = shared();
        shared.enter(Phase::Mounting);
        shared.enter(Phase::Pulling);
        shared.enter(Phase::Running);
        assert_eq!(shared.phase(), Phase::Running);
        assert_eq!(shared.next_phase().unwrap().0, Phase::Mounting);
        shared.phase_told(Phase::Mounting);
        assert_eq!(shared.next_phase().unwrap().0, Phase::Running);
        shared.phase_told(Phase::Running);
        assert_eq!(shared.next_phase(), None);
    }

    #[test]
    fn progress_is_numbered_by_what_is_new() {
        let shared = shared();
        assert_eq!(shared.progress_after(0), None);
        shared.progress(ProgressReport { ratio_ppm: Some(10), ..Default::default() });
        let (first, ..) = shared.progress_after(0).unwrap();
        shared.progress(ProgressReport { ratio_ppm: Some(5), ..Default::default() });
        assert_eq!(shared.progress_after(first), None);
        assert!(shared.reports_progress());
    }
}
