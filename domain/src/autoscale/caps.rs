//! The caps' ledger: what is running and what is reserved, so that no cap is overshot however many decide at once.
//!
//! Whoever launches first writes the ledger with what it is about to launch, on the condition that nobody else wrote it
//! since it was read. Of two that read the same ledger one is refused, reads again and decides again. A reservation
//! ends when the launch has become instances, or has failed.

use serde::{Deserialize, Serialize};

use super::fit::Cost;
use super::policy::Caps;
use super::{Cap, PoolFacts};

const MS_PER_HOUR: u128 = 3_600_000;

/// What is taken of the caps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// Grows with each write; the condition of the next.
    pub version: u64,
    /// Instances that are there or asked for.
    pub instances: u32,
    /// What they cost in an hour, in millionths of a dollar.
    pub micros_per_hour: u64,
    /// What this month has cost, and what is expected until the work of what is there ends.
    pub micros_this_month: u64,
}

/// What a launch of one instance takes of the caps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its price.
    pub micros_per_hour: u64,
    /// What it is expected to cost until its work ends.
    pub micros: u64,
}

impl Claim {
    /// The claim of an instance of `pool` that lives for `life_ms`.
    pub fn of(pool: &PoolFacts, life_ms: u64) -> Self {
        let price = pool.price_micros_per_hour;
        Self { micros_per_hour: price, micros: money(u128::from(price) * u128::from(life_ms)) }
    }
}

/// Millionths of a dollar, rounded up.
pub fn money(cost: Cost) -> u64 {
    u64::try_from(cost.div_ceil(MS_PER_HOUR)).unwrap_or(u64::MAX)
}

impl Ledger {
    /// Adds what is there already.
    pub(super) fn count(&mut self, instances: u32, claim: Claim) {
        let times = |amount: u64| amount.saturating_mul(u64::from(instances));
        self.instances = self.instances.saturating_add(instances);
        self.micros_per_hour = self.micros_per_hour.saturating_add(times(claim.micros_per_hour));
        self.micros_this_month = self.micros_this_month.saturating_add(times(claim.micros));
    }

    /// How many of `wanted` the caps leave room for, and the cap that stops the rest.
    pub fn room(&self, wanted: u32, claim: Claim, caps: &Caps) -> (u32, Option<Cap>) {
        let limits = [
            (Cap::Instances, caps.instances.map(|cap| u64::from(cap.saturating_sub(self.instances)))),
            (Cap::MoneyPerHour, left(caps.micros_per_hour, self.micros_per_hour, claim.micros_per_hour)),
            (Cap::MoneyPerMonth, left(caps.micros_per_month, self.micros_this_month, claim.micros)),
        ];
        let tightest = limits.into_iter().filter_map(|(cap, limit)| Some((limit?, cap))).min();
        match tightest {
            Some((limit, cap)) if limit < u64::from(wanted) => {
                (u32::try_from(limit).expect("below a u32"), Some(cap))
            }
            _ => (wanted, None),
        }
    }

    /// Reserves a launch: the ledger to write on the condition that the stored one still has this one's version.
    ///
    /// # Errors
    /// The cap that it would overshoot.
    pub fn reserve(&self, count: u32, claim: Claim, caps: &Caps) -> Result<Self, Cap> {
        match self.room(count, claim, caps) {
            (_, Some(cap)) => Err(cap),
            (_, None) => {
                let mut next = Self { version: self.version.saturating_add(1), ..*self };
                next.count(count, claim);
                Ok(next)
            }
        }
    }
}

/// How many claims of this size are left below a cap.
fn left(cap: Option<u64>, taken: u64, claim: u64) -> Option<u64> {
    Some(cap?.saturating_sub(taken).checked_div(claim).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: Claim = Claim { micros_per_hour: 10, micros: 100 };

    #[test]
    fn the_tightest_cap_is_named() {
        let ledger = Ledger { version: 1, instances: 2, micros_per_hour: 20, micros_this_month: 200 };
        let caps = Caps { instances: Some(5), micros_per_hour: Some(45), micros_per_month: Some(1000) };
        assert_eq!(ledger.room(9, CLAIM, &caps), (2, Some(Cap::MoneyPerHour)));
        assert_eq!(ledger.room(2, CLAIM, &caps), (2, None));
        assert_eq!(ledger.reserve(3, CLAIM, &caps), Err(Cap::MoneyPerHour));
        let reserved = ledger.reserve(2, CLAIM, &caps).unwrap();
        assert_eq!(
            reserved,
            Ledger { version: 2, instances: 4, micros_per_hour: 40, micros_this_month: 400 }
        );
        assert_eq!(reserved.reserve(1, CLAIM, &caps), Err(Cap::MoneyPerHour));
    }

    #[test]
    fn an_overdrawn_ledger_has_no_room() {
        let ledger = Ledger { version: 1, instances: 9, ..Ledger::default() };
        let caps = Caps { instances: Some(5), ..Caps::default() };
        assert_eq!(ledger.room(1, CLAIM, &caps), (0, Some(Cap::Instances)));
    }
}
