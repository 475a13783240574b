//! What becomes due when: at most one time per subject, in order.

use std::collections::{BTreeMap, BTreeSet};

use crate::attempt::AttemptId;
use crate::id::{InstanceId, JobId};
use crate::time::Timestamp;

/// What becomes due. The order decides among those due at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A pause after a failure is over.
    Pause(JobId),
    /// A queued job has waited as long as it may.
    QueueDeadline(JobId),
    /// A job has taken as long as it may.
    TotalDeadline(JobId),
    /// Nothing was heard of an attempt for a lease.
    Lease(AttemptId),
    /// Attempts that a hello named and nobody vouched for have had their lease.
    Unknown(InstanceId),
    /// The pause after an instance's refusal is over.
    Refusal(InstanceId),
    /// An instance has been away for a lease.
    Away(InstanceId),
}

impl Timer {
    /// A number for each kind.
    const fn kind(&self) -> usize {
        match self {
            Self::Pause(_) => 0,
            Self::QueueDeadline(_) => 1,
            Self::TotalDeadline(_) => 2,
            Self::Lease(_) => 3,
            Self::Unknown(_) => 4,
            Self::Refusal(_) => 5,
            Self::Away(_) => 6,
        }
    }
}

const KINDS: usize = 7;

#[derive(Clone, Debug, Default)]
pub(super) struct Timers {
    /// Apart by kind: most jobs have no timer but their lease, and to find that out should cost nothing.
    due: [BTreeMap<Timer, Timestamp>; KINDS],
    order: BTreeSet<(Timestamp, Timer)>,
}

impl Timers {
    /// Sets or moves a timer.
    pub(super) fn set(&mut self, timer: Timer, at: Timestamp) {
        self.cancel(timer);
        self.due[timer.kind()].insert(timer, at);
        self.order.insert((at, timer));
    }

    /// Sets a timer, or takes it away when there is no such time.
    pub(super) fn set_or_cancel(&mut self, timer: Timer, at: Option<Timestamp>) {
        match at {
            Some(at) => self.set(timer, at),
            None => self.cancel(timer),
        }
    }

    pub(super) fn cancel(&mut self, timer: Timer) {
        if let Some(at) = self.due[timer.kind()].remove(&timer) {
            self.order.remove(&(at, timer));
        }
    }

    /// Takes out every timer that is due, the earliest first. Those set again meanwhile wait for the next time, even
    /// if they are due at once: that always ends.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Vec<(Timestamp, Timer)> {
        let due: Vec<(Timestamp, Timer)> =
            self.order.iter().take_while(|(at, _)| *at <= now).copied().collect();
        due.iter().for_each(|&(_, timer)| self.cancel(timer));
        due
    }

    pub(super) fn first(&self) -> Option<Timestamp> {
        self.order.first().map(|&(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subject_has_one_time() {
        let at = Timestamp::from_millis;
        let job = |n| JobId::new(at(1), n);
        let mut timers = Timers::default();
        timers.set(Timer::Pause(job(1)), at(30));
        timers.set(Timer::Pause(job(2)), at(20));
        timers.set(Timer::Pause(job(1)), at(10));
        assert_eq!(timers.first(), Some(at(10)));
        assert_eq!(timers.take_due(at(9)), []);
        assert_eq!(timers.take_due(at(25)), [(at(10), Timer::Pause(job(1))), (at(20), Timer::Pause(job(2)))]);
        assert_eq!(timers.take_due(at(25)), []);
        timers.set(Timer::Pause(job(1)), at(30));
        timers.set_or_cancel(Timer::Pause(job(1)), None);
        assert_eq!(timers.first(), None);
    }
}
