//! What an instance's refusal for want of room teaches: there is less free than the ledger says, for a while.
//!
//! The ledger gives an attempt's room back when the attempt is over; the instance does when the container, the mount
//! and the scratch of it are gone, and one that drains or is unhealthy may say so a moment later. A refusal costs the job
//! nothing. Invariant: after a refusal nothing that was refused fits there until the instance has said what it is, or a
//! pause is over that doubles with each refusal.

use std::time::Duration;

use super::lease::Answer;
use super::{Region, Timer};
use crate::attempt::AttemptId;
use crate::id::InstanceId;
use crate::resources::Resources;
use crate::time::Timestamp;

/// Longest pause of an instance that refuses again and again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Region {
    pub(super) fn instance_refused(
        &mut self,
        instance: InstanceId,
        attempt: AttemptId,
        free: &Resources,
        now: Timestamp,
    ) {
        let refused = self.live.get_mut(attempt).filter(|live| {
            live.attempt.instance == instance && live.answer == Answer::None && !live.attempt.granted
        });
        let Some(live) = refused else { return };
        live.answer = Answer::Refused;
        let (asked, first) = (live.attempt.resources, self.config.refusal_pause);
        let mut until = now;
        self.fleet.change(instance, now, |slot| {
            let others = slot.allocated.saturating_sub(&asked);
            let believed = slot.profile.capacity.saturating_sub(&others);
            slot.withheld = withheld(&believed, free, &asked);
            until = now.after(pause(first, slot.refusals));
            slot.refusals = slot.refusals.saturating_add(1);
        });
        if self.fleet.slot(instance).is_some_and(super::lease::is_attached) {
            self.timers.set(Timer::Refusal(instance), until);
        }
    }

    pub(super) fn refusal_over(&mut self, instance: InstanceId, now: Timestamp) {
        self.fleet.change(instance, now, |slot| slot.withheld = Resources::ZERO);
        self.better(instance);
    }
}

/// What is not free although it is `believed` to be. When what was refused would fit all the same, the instance knows
/// better: nothing is.
fn withheld(believed: &Resources, free: &Resources, asked: &Resources) -> Resources {
    let said = believed.saturating_sub(free);
    let left = believed.saturating_sub(&said);
    if asked.fits_in(&left) { *believed } else { said }
}

/// Doubled with each refusal before.
fn pause(first: Duration, refusals: u32) -> Duration {
    first.saturating_mul(1 << refusals.min(5)).min(LONGEST_PAUSE)
}
