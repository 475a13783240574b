//! The clocks an agent reads: boot time for leases, wall time for what people see.
//!
//! A lease is counted on the boot-time clock, which goes on while the machine sleeps and never jumps with the wall
//! clock (SPEC 5.5). Under simulated time both follow tokio's clock.

use std::time::Duration;

use telecine_domain::time::Timestamp;

/// Wall time and boot time from one source.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock(telecine_proto::clock::Clock);

impl From<telecine_proto::clock::Clock> for Clock {
    fn from(wall: telecine_proto::clock::Clock) -> Self {
        Self(wall)
    }
}

impl Clock {
    /// The wall clock, for those who need only that.
    pub fn wall(&self) -> telecine_proto::clock::Clock {
        self.0
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// Time since the machine booted, sleep included; simulated, since the simulation began.
    pub fn boot(&self) -> Duration {
        match &self.0 {
            telecine_proto::clock::Clock::System => system_boot(),
            telecine_proto::clock::Clock::Simulated { since, .. } => since.elapsed(),
        }
    }
}

fn system_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn follows_simulated_time() {
        let clock = Clock::from(telecine_proto::clock::Clock::simulated(Timestamp::from_millis(1_000)));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.now(), Timestamp::from_millis(6_000));
        assert_eq!(clock.boot(), Duration::from_secs(5));
    }

    #[test]
    fn boot_time_runs_forward() {
        let clock = Clock::default();
        let first = clock.boot();
        assert!(first > Duration::ZERO && clock.boot() >= first);
    }
}
