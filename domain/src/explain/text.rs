//! An explanation in words: several lines, each `name: what`, without a newline at the end.

use std::fmt;

use super::{AskedPool, Explanation, Position, ReasonCode, plural};
use crate::job::StateName;
use crate::placement::Refusal;

/// Most pools that are told in words.
const MAX_POOLS: usize = 3;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.job, self.state, self.summary)?;
        if self.state == StateName::Queued {
            self.places(f)?;
        }
        if let Some(position) = &self.position {
            write!(f, "\n  position:  {position}")?;
        }
        if let Some(start) = &self.start {
            write!(f, "\n  start:     {start}")?;
        }
        if let (StateName::Queued, Some(failure)) = (self.state, &self.failure) {
            write!(f, "\n  last time: {failure}")?;
        }
        if !self.next_step.is_empty() {
            write!(f, "\n  next step: {}", self.next_step)?;
        }
        Ok(())
    }
}

impl Explanation {
    /// What it needs, and what is there.
    fn places(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n  needs:     {}", self.need)?;
        if let Some(nearest) = &self.nearest {
            let Refusal { host, pool, .. } = &nearest.refusal;
            write!(f, "\n  nearest:   {host} (pool {pool}) has {}", nearest.capacity)?;
            write!(f, "\n  free:      {}", nearest.free)?;
        }
        if let Some(taker) = &self.taker {
            write!(f, "\n  room:      on {} (pool {})", taker.host, taker.pool)?;
        }
        // Of a job that has room, what could be launched is no news.
        let told = if self.code == ReasonCode::WaitsForTurn { 0 } else { MAX_POOLS };
        for pool in self.pools.iter().take(told) {
            let AskedPool { pool: name, shape, .. } = pool;
            write!(f, "\n  pool:      {name} ({shape}): {pool}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let jobs = |count: u64| plural(usize::try_from(count).unwrap_or(usize::MAX), "job");
        let at_least = if self.is_partial { "at least " } else { "" };
        match (self.before, self.perhaps_before) {
            (0, 0) if !self.is_partial => f.write_str("first in the queue"),
            (before, 0) => write!(f, "{at_least}{} before it", jobs(before)),
            (before, perhaps) => {
                write!(
                    f,
                    "{at_least}{} before it, and {perhaps} of other accounts, of which some may be",
                    jobs(before)
                )
            }
        }
    }
}
