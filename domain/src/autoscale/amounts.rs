//! Amounts of compute as the autoscaler counts them: coarser than [`Resources`], and with shares of GPUs.
//!
//! Needs are rounded up and capacities down, so that what fits here fits there. GPU shares are pooled per instance:
//! how shares lie on single cards is the scheduler's matter.

use serde::{Deserialize, Serialize};

use crate::resources::Resources;

const MIB: u64 = 1 << 20;

/// An amount of each resource. Unset fields are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Amounts {
    /// Processor time, in thousandths of a core.
    pub cpu_milli: u64,
    /// Main memory, in MiB.
    pub memory_mib: u64,
    /// Scratch space, in MiB.
    pub scratch_mib: u64,
    /// GPUs, in thousandths of a card.
    pub gpu_milli: u64,
}

impl Amounts {
    /// Nothing.
    pub const ZERO: Self = Self { cpu_milli: 0, memory_mib: 0, scratch_mib: 0, gpu_milli: 0 };

    /// What a job needs, rounded up.
    pub fn needed(resources: &Resources) -> Self {
        Self::converted(resources, |bytes| bytes.div_ceil(MIB))
    }

    /// What an instance has, rounded down.
    pub fn offered(resources: &Resources) -> Self {
        Self::converted(resources, |bytes| bytes / MIB)
    }

    fn converted(resources: &Resources, mib: impl Fn(u64) -> u64) -> Self {
        Self {
            cpu_milli: resources.cpu_milli,
            memory_mib: mib(resources.memory_bytes),
            scratch_mib: mib(resources.scratch_bytes),
            gpu_milli: resources.gpus.saturating_mul(1000),
        }
    }

    const fn parts(&self) -> [u64; 4] {
        [self.cpu_milli, self.memory_mib, self.scratch_mib, self.gpu_milli]
    }

    fn zip(&self, other: &Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            cpu_milli: combine(self.cpu_milli, other.cpu_milli),
            memory_mib: combine(self.memory_mib, other.memory_mib),
            scratch_mib: combine(self.scratch_mib, other.scratch_mib),
            gpu_milli: combine(self.gpu_milli, other.gpu_milli),
        }
    }

    /// Whether all of `self` is within `free`.
    pub const fn fits_in(&self, free: &Self) -> bool {
        self.cpu_milli <= free.cpu_milli
            && self.memory_mib <= free.memory_mib
            && self.scratch_mib <= free.scratch_mib
            && self.gpu_milli <= free.gpu_milli
    }

    /// `self + other`, held at the largest number.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// `self - other`, held at zero.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    /// `self`, `count` times.
    #[must_use]
    pub fn times(&self, count: u64) -> Self {
        self.zip(self, |part, _| part.saturating_mul(count))
    }

    /// How many times `need` fits into `self`; `u64::MAX` when it needs nothing.
    pub fn holds(&self, need: &Self) -> u64 {
        let fitting = |(have, need): (u64, u64)| have.checked_div(need).unwrap_or(u64::MAX);
        self.parts().into_iter().zip(need.parts()).map(fitting).min().unwrap_or(u64::MAX)
    }

    /// The largest share of `capacity` that `self` takes in any resource, in thousandths rounded up. What `capacity`
    /// lacks and `self` needs counts as `u64::MAX`.
    pub fn share_of(&self, capacity: &Self) -> u64 {
        let share = |(part, whole): (u64, u64)| match (part, whole) {
            (0, _) => 0,
            (_, 0) => u64::MAX,
            _ => u64::try_from((u128::from(part) * 1000).div_ceil(u128::from(whole))).unwrap_or(u64::MAX),
        };
        self.parts().into_iter().zip(capacity.parts()).map(share).max().unwrap_or(0)
    }

    /// The sum over the resources of what `self` is of `capacity`, in thousandths: the larger, the emptier.
    pub fn shares_of(&self, capacity: &Self) -> u64 {
        let share =
            |(part, whole): (u64, u64)| (u128::from(part) * 1000).checked_div(u128::from(whole)).unwrap_or(0);
        let sum: u128 = self.parts().into_iter().zip(capacity.parts()).map(share).sum();
        u64::try_from(sum).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_here_fits_there() {
        let resources =
            Resources { cpu_milli: 10, memory_bytes: MIB + 1, scratch_bytes: 0, ..Resources::ZERO };
        assert_eq!(Amounts::needed(&resources).memory_mib, 2);
        assert_eq!(Amounts::offered(&resources).memory_mib, 1);
    }

    #[test]
    fn holds_counts_the_scarcest() {
        let have = Amounts { cpu_milli: 4000, memory_mib: 100, ..Amounts::ZERO };
        let need = Amounts { cpu_milli: 1000, memory_mib: 40, ..Amounts::ZERO };
        assert_eq!(have.holds(&need), 2);
        assert_eq!(have.holds(&Amounts { gpu_milli: 1, ..Amounts::ZERO }), 0);
        assert_eq!(have.holds(&Amounts::ZERO), u64::MAX);
        assert_eq!(need.share_of(&have), 400);
        assert_eq!(Amounts { gpu_milli: 1, ..Amounts::ZERO }.share_of(&have), u64::MAX);
    }

    #[test]
    fn enormous_amounts_do_not_overflow() {
        let all = Amounts { cpu_milli: u64::MAX, memory_mib: u64::MAX, ..Amounts::ZERO };
        assert_eq!(all.plus(&all).times(3).cpu_milli, u64::MAX);
        assert_eq!(Amounts::ZERO.minus(&all), Amounts::ZERO);
        assert_eq!(all.shares_of(&Amounts { cpu_milli: 1, ..Amounts::ZERO }), u64::MAX);
    }
}
