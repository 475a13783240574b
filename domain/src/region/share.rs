//! Fair share: what each account has used lately, so that the one that has used least goes first.
//!
//! Use is the dominant share of the region's capacity (in thousandths) × milliseconds ÷ the account's weight, and its
//! memory halves with each half-life. Decay changes nobody's place, so instead of making old use smaller, new use is
//! made larger: an amount at time t counts amount × 2^((t − origin) ÷ half-life), in steps of a sixteenth. Integers only.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{AccountId, FactoryId};
use crate::time::Timestamp;

/// How the capacity is shared between accounts of the same priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FairShare {
    /// The time in which past use counts half.
    pub half_life: Duration,
    /// Weights of accounts; an account that is not named has [`Self::DEFAULT_WEIGHT`]. Zero counts as one.
    pub weights: BTreeMap<AccountId, u32>,
    /// What a job is taken to run when nothing is known of its kind; what it did not use is given back.
    pub assumed_run: Duration,
}

impl FairShare {
    /// Weight of an account without one of its own.
    pub const DEFAULT_WEIGHT: u32 = 100;

    fn weight(&self, account: AccountId) -> u32 {
        self.weights.get(&account).copied().unwrap_or(Self::DEFAULT_WEIGHT).max(1)
    }
}

impl Default for FairShare {
    fn default() -> Self {
        Self {
            half_life: Duration::from_secs(3600),
            weights: BTreeMap::new(),
            assumed_run: Duration::from_secs(60),
        }
    }
}

/// 2^(n/16) in 65,536ths.
const SIXTEENTHS: [u128; 16] = [
    65_536, 68_438, 71_468, 74_632, 77_936, 81_386, 84_990, 88_752, 92_682, 96_785, 101_070, 105_545,
    110_218, 115_098, 120_194, 125_515,
];
/// Half-lives after which the origin is moved: numbers stay far below 128 bits.
const REBASE: u64 = 40;

/// What accounts have used.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    origin: Timestamp,
    used: BTreeMap<AccountId, u128>,
}

/// What was charged for an attempt, to be put right when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Charge {
    pub(super) account: AccountId,
    pub(super) factory: Option<FactoryId>,
    pub(super) amount: Amount,
}

/// How much was charged, to whomever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amount {
    /// Dominant share of the region's capacity, in thousandths, at least 1.
    share: u32,
    at: Timestamp,
    time: Duration,
}

impl Amount {
    /// When it was charged.
    pub(super) const fn since(&self) -> Timestamp {
        self.at
    }
}

impl Usage {
    /// What an account has used; comparable between accounts only.
    pub(super) fn of(&self, account: AccountId) -> u128 {
        self.used.get(&account).copied().unwrap_or(0)
    }

    /// Charges what an attempt that begins now is taken to use.
    pub(super) fn charge(
        &mut self,
        (account, factory): (AccountId, Option<FactoryId>),
        share: u32,
        now: Timestamp,
        policy: &FairShare,
    ) -> Charge {
        let amount = Amount { share: share.clamp(1, 1000), at: now, time: policy.assumed_run };
        let charge = Charge { account, factory, amount };
        let amount = self.weighed(&charge, amount.time, now, policy);
        let used = self.used.entry(account).or_insert(0);
        *used = used.saturating_add(amount);
        charge
    }

    /// Puts a charge right when the attempt has ended.
    pub(super) fn settle(&mut self, charge: &Charge, now: Timestamp, policy: &FairShare) {
        let Amount { at, time, .. } = charge.amount;
        let took = now.since(at);
        let used = self.of(charge.account);
        let right = match took.checked_sub(time) {
            Some(more) => used.saturating_add(self.weighed(charge, more, now, policy)),
            None => used.saturating_sub(self.weighed(charge, time - took, at, policy)),
        };
        self.used.insert(charge.account, right);
    }

    /// Moves the origin when numbers have grown large; says whether it did. Then everybody's use is another number.
    pub(super) fn rebase(&mut self, now: Timestamp, policy: &FairShare) -> bool {
        let half_life = millis(policy.half_life).max(16);
        let passed = millis(now.since(self.origin)) / half_life;
        if passed < REBASE {
            return false;
        }
        let shift = u32::try_from(passed).unwrap_or(u32::MAX);
        self.origin = self.origin.after(Duration::from_millis(passed * half_life));
        for used in self.used.values_mut() {
            *used = used.checked_shr(shift).unwrap_or(0);
        }
        self.used.retain(|_, used| *used > 0);
        true
    }

    fn weighed(&self, charge: &Charge, time: Duration, at: Timestamp, policy: &FairShare) -> u128 {
        let half_life = millis(policy.half_life).max(16);
        let sixteenth = half_life / 16;
        let used = u128::from(charge.amount.share) * time.as_millis() * 100;
        let weighed = used / u128::from(policy.weight(charge.account));
        if at >= self.origin {
            let steps = millis(at.since(self.origin)) / sixteenth;
            let doublings = u32::try_from(steps / 16).unwrap_or(u32::MAX).min(64);
            weighed.saturating_mul(SIXTEENTHS[(steps % 16) as usize] << doublings)
        } else {
            let steps = millis(self.origin.since(at)) / sixteenth;
            let halvings = u32::try_from(steps / 16).unwrap_or(u32::MAX);
            weighed.saturating_mul(65_536).checked_shr(halvings).unwrap_or(0)
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::at;

    fn account(number: u128) -> AccountId {
        AccountId::new(at(0), number)
    }

    #[test]
    fn what_is_old_counts_half_after_a_half_life() {
        let (mut usage, policy) = (Usage { origin: at(0), ..Usage::default() }, FairShare::default());
        usage.charge((account(1), None), 100, at(0), &policy);
        usage.charge((account(2), None), 50, at(3600), &policy);
        assert_eq!(usage.of(account(1)), usage.of(account(2)));
        usage.charge((account(3), None), 51, at(3600), &policy);
        assert!(usage.of(account(3)) > usage.of(account(1)));
    }

    #[test]
    fn a_charge_is_put_right_at_the_end() {
        let (mut usage, policy) = (Usage { origin: at(0), ..Usage::default() }, FairShare::default());
        let short = usage.charge((account(1), None), 100, at(0), &policy);
        let exact = usage.charge((account(2), None), 100, at(0), &policy);
        let long = usage.charge((account(3), None), 100, at(0), &policy);
        let used = usage.of(account(2));
        usage.settle(&short, at(15), &policy);
        usage.settle(&exact, at(60), &policy);
        usage.settle(&long, at(120), &policy);
        assert_eq!(
            (usage.of(account(1)), usage.of(account(2)), usage.of(account(3))),
            (used / 4, used, 2 * used)
        );
    }

    #[test]
    fn weights_divide_and_the_origin_moves_without_changing_the_order() {
        let weights = BTreeMap::from([(account(1), 300)]);
        let policy = FairShare { weights, ..FairShare::default() };
        let mut usage = Usage { origin: at(0), ..Usage::default() };
        for number in 1..=3 {
            usage.charge((account(number), None), 100, at(39 * 3600), &policy);
        }
        let charge = usage.charge((account(3), None), 100, at(39 * 3600), &policy);
        assert_eq!(usage.of(account(1)) * 3, usage.of(account(2)));
        assert!(!usage.rebase(at(39 * 3600), &policy));
        assert!(usage.rebase(at(41 * 3600), &policy));
        assert!(usage.of(account(1)) < usage.of(account(2)) && usage.of(account(2)) < usage.of(account(3)));
        usage.settle(&charge, at(41 * 3600), &policy);
        assert!(usage.of(account(3)) > usage.of(account(2)));
        assert!(usage.rebase(at(4_000 * 3600), &policy));
        assert_eq!(usage.used.len(), 0, "what is forgotten takes no memory");
    }
}
