//! What time it is, for the shells: manager and agent. The domain and core take `now` as an argument instead.
//!
//! Under simulated time (tokio's paused clock) a program must not mix tokio's time with the machine's, or leases and
//! certificates would live in different times. So every shell asks a `Clock`, and a test hands it a simulated one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use telecine_domain::time::Timestamp;
use tokio::time::Instant;

/// Tells the time.
#[derive(Clone, Copy, Debug, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// A given time, moved on by tokio's clock, which a test may pause.
    Simulated {
        /// The time at `since`.
        start: Timestamp,
        /// When the simulation began.
        since: Instant,
    },
}

impl Clock {
    /// A clock that stands at `start` now and follows tokio's time.
    pub fn simulated(start: Timestamp) -> Self {
        Self::Simulated { start, since: Instant::now() }
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => {
                let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                Timestamp::default().after(since_epoch)
            }
            Self::Simulated { start, since } => start.after(since.elapsed()),
        }
    }
}

/// Certificates are checked against the same clock.
impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.now().as_millis())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn simulated_time_follows_tokio() {
        let clock = Clock::simulated(Timestamp::from_millis(1_000));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(clock.now(), Timestamp::from_millis(61_000));
        assert!(Clock::System.now() > Timestamp::from_millis(1_700_000_000_000));
    }
}
