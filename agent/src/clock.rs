//! The clocks an agent reads: boot time for leases, wall time for what people see.
//!
//! A lease is counted on the boot-time clock, which goes on while the machine sleeps and never jumps with the wall
//! clock (SPEC 5.5). Tests and the simulation hand in clocks that follow tokio's time.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use telecine_domain::time::Timestamp;

/// Boot time and wall time.
#[derive(Clone)]
pub struct Clock {
    boot: Arc<dyn Fn() -> Duration + Send + Sync>,
    wall: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Clock {
    /// The machine's own clocks.
    pub fn system() -> Self {
        Self { boot: Arc::new(system_boot), wall: Arc::new(system_wall) }
    }

    /// Clocks that follow tokio's time, beginning at `start`; with paused time they are simulated.
    pub fn following_tokio(start: Timestamp) -> Self {
        let began = tokio::time::Instant::now();
        let elapsed = move || began.elapsed();
        Self { boot: Arc::new(elapsed), wall: Arc::new(move || start.after(elapsed())) }
    }

    /// Time since the machine booted, sleep included.
    pub fn boot(&self) -> Duration {
        (self.boot)()
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        (self.wall)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

fn system_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn system_wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn follows_simulated_time() {
        let clock = Clock::following_tokio(Timestamp::from_millis(1_000));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.now(), Timestamp::from_millis(6_000));
        assert_eq!(clock.boot(), Duration::from_secs(5));
    }

    #[test]
    fn boot_time_runs_forward() {
        let clock = Clock::system();
        let first = clock.boot();
        assert!(first > Duration::ZERO && clock.boot() >= first);
    }
}
