//! The right to go on, as the worker counts it: from *sending* the last acknowledged renewal (SPEC 5.5).
//!
//! Counting from the answer would let a worker believe longer than its manager does. Invariant: the end never moves
//! back, so an old acknowledgement that arrives late takes nothing away.

use std::time::Duration;

/// When the right ends, on the boot-time clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    ends_at: Option<Duration>,
}

impl Lease {
    /// A right that was never proven.
    pub const fn unproven() -> Self {
        Self { ends_at: None }
    }

    /// A right that holds for `length` from `sent_at`.
    pub fn proven(sent_at: Duration, length: Duration) -> Self {
        Self { ends_at: Some(sent_at.saturating_add(length)) }
    }

    /// Takes the acknowledgement of a renewal that was sent at `sent_at`.
    pub fn renewed(&mut self, sent_at: Duration, length: Duration) {
        let ends_at = sent_at.saturating_add(length);
        self.ends_at = Some(self.ends_at.map_or(ends_at, |end| end.max(ends_at)));
    }

    /// How long it still holds at `now`; zero when it is over or was never proven.
    pub fn remaining(&self, now: Duration) -> Duration {
        self.ends_at.map_or(Duration::ZERO, |end| end.saturating_sub(now))
    }

    /// Whether it holds at `now`.
    pub fn holds(&self, now: Duration) -> bool {
        !self.remaining(now).is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn counts_from_the_sending() {
        let mut lease = Lease::unproven();
        assert!(!lease.holds(SECOND));
        lease.renewed(10 * SECOND, 60 * SECOND);
        assert!(lease.holds(69 * SECOND));
        assert!(!lease.holds(70 * SECOND), "the lease ends at its end, not after it");
        assert_eq!(lease.remaining(65 * SECOND), 5 * SECOND);
    }

    #[test]
    fn a_late_acknowledgement_takes_nothing_away() {
        let mut lease = Lease::unproven();
        lease.renewed(20 * SECOND, 60 * SECOND);
        lease.renewed(10 * SECOND, 60 * SECOND);
        assert_eq!(lease.remaining(Duration::ZERO), 80 * SECOND);
    }

    #[test]
    fn never_overflows() {
        let mut lease = Lease::unproven();
        lease.renewed(Duration::MAX, Duration::MAX);
        assert!(lease.holds(SECOND));
    }
}
