//! What it costs to add a job to an instance, and whether the job should wait for something cheaper.
//!
//! An instance is paid for until the last of its work ends. So a job that ends before that costs nothing more, and one
//! that ends later costs the time by which it keeps the instance alive. That is compared with what the job would cost
//! on the cheapest instance of its own, boot included. The scheduler that places by these rules and the autoscaler that
//! buys by them agree about what is wanted.

use super::{Amounts, Policy};
use crate::time::Timestamp;

/// Price in millionths of a dollar per hour, times milliseconds.
pub type Cost = u128;

/// Longest time that is reckoned with: ten years, in milliseconds.
const LONGEST_MS: u64 = 315_360_000_000;

/// What is asked of an instance by one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// What it needs.
    pub need: Amounts,
    /// How long it is expected to run at speed 1000, in milliseconds.
    pub expected_ms: u64,
    /// Whether it may run where it can be interrupted.
    pub interruptible: bool,
    /// When it ought to have started.
    pub start_by: Timestamp,
}

impl Load {
    /// How long it runs at this speed.
    pub fn run_ms(&self, speed_milli: u32) -> u64 {
        let run = u128::from(self.expected_ms.min(LONGEST_MS)) * 1000 / u128::from(speed_milli.max(1));
        u64::try_from(run).unwrap_or(u64::MAX).min(LONGEST_MS)
    }
}

/// What an instance offers beside its capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Millionths of a dollar per hour.
    pub price: u64,
    /// How fast it works; 1000 is usual.
    pub speed_milli: u32,
    /// Whether it may be taken away.
    pub is_spot: bool,
}

/// An instance, or one to come, as a place for jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What it has.
    pub capacity: Amounts,
    /// What of that is free.
    pub free: Amounts,
    /// From when it takes work.
    pub from: Timestamp,
    /// When the work it has is expected to end.
    pub until: Timestamp,
    /// What else it offers.
    pub terms: Terms,
}

impl Room {
    /// What it costs to add the job, or `None` when it may not be added: it does not fit, it must not be interrupted,
    /// or it would stand in the way of jobs that need the GPUs.
    pub fn extension(&self, load: &Load, policy: &Policy) -> Option<Cost> {
        let allowed = load.interruptible || !self.terms.is_spot;
        if !allowed || !load.need.fits_in(&self.free) {
            return None;
        }
        let begin = self.from.as_millis();
        let end = begin.saturating_add(load.run_ms(self.terms.speed_milli));
        let until = self.until.as_millis().max(begin);
        let on_gpu_instance = load.need.gpu_milli == 0 && self.capacity.gpu_milli > 0;
        if on_gpu_instance && (until < end || !self.leaves_cpu_for_gpus(load, policy)) {
            return None;
        }
        Some(u128::from(self.terms.price) * u128::from(end.saturating_sub(until)))
    }

    fn leaves_cpu_for_gpus(&self, load: &Load, policy: &Policy) -> bool {
        let left = self.free.cpu_milli.saturating_sub(load.need.cpu_milli);
        let kept = u128::from(self.free.gpu_milli) * u128::from(policy.cpu_milli_per_free_gpu) / 1000;
        u128::from(left) >= kept
    }

    /// How well the job goes here, smaller is better, or `None` when it may not go here or does better to wait.
    /// `alone` is what it costs on the cheapest instance of its own.
    pub fn score(&self, load: &Load, alone: Option<Cost>, policy: &Policy, now: Timestamp) -> Option<Score> {
        let extension = self.extension(load, policy)?;
        let dear = alone.is_some_and(|alone| is_dear(extension, alone, policy));
        if dear && policy.patience.may_wait(load.start_by, now) {
            return None;
        }
        let left = self.free.minus(&load.need).shares_of(&self.capacity);
        Some(Score { extension, left, from: self.from })
    }

    /// Adds a job that was found to fit.
    pub fn add(&mut self, load: &Load) {
        self.free = self.free.minus(&load.need);
        let begin = self.from.as_millis();
        let end = Timestamp::from_millis(begin.saturating_add(load.run_ms(self.terms.speed_milli)));
        self.until = self.until.max(end);
    }
}

fn is_dear(extension: Cost, alone: Cost, policy: &Policy) -> bool {
    extension.saturating_mul(1000) > alone.saturating_mul(u128::from(policy.patience.extension_milli))
}

/// How well a job goes somewhere: the cheaper, then the tighter, then the sooner, the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// What it costs to add the job.
    pub extension: Cost,
    /// What stays free, as the sum of shares in thousandths.
    pub left: u64,
    /// When it could start.
    pub from: Timestamp,
}

/// Multiplies a price by the work that interruptions make it do again.
pub fn price_with_redo(price: u64, interruptions_per_1000_hours: u32, run_ms: u64, redo_milli: u32) -> u64 {
    let interrupted_milli = u128::from(interruptions_per_1000_hours) * u128::from(run_ms) / 3_600_000;
    let factor = 1000 + u128::from(redo_milli) * interrupted_milli / 1000;
    u64::try_from(u128::from(price) * factor / 1000).unwrap_or(u64::MAX)
}
