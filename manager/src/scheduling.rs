//! What an operator may choose about scheduling; docs/scheduling.md says what each setting does.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use telecine_domain::id::{AccountId, FactoryId};
use telecine_domain::region::{Aging, FairShare, Limits, RegionConfig};

/// Settings of the scheduler, the `[scheduling]` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scheduling {
    /// After this time among the first, a job that fits nowhere has an instance kept for it.
    pub reserve_after_seconds: u64,
    /// A job that has waited so long gets a turn whatever its priority.
    pub aging_after_seconds: u64,
    /// Every so many assignments is such a turn, while such a job waits: 2 to 1,000.
    pub aging_every: u32,
    /// The time in which an account's past use counts half: 60 seconds to 30 days.
    pub fair_share_half_life_seconds: u64,
    /// Weights of accounts between which capacity is shared: 1 to 10,000; those not named have 100.
    pub account_weights: BTreeMap<AccountId, u32>,
    /// Most live attempts of an account that is not named in `account_limits`; none when absent.
    pub account_limit: Option<u32>,
    /// Most live attempts of accounts.
    pub account_limits: BTreeMap<AccountId, u32>,
    /// Most live attempts of factories.
    pub factory_limits: BTreeMap<FactoryId, u32>,
}

impl Default for Scheduling {
    fn default() -> Self {
        let region = RegionConfig::default();
        Self {
            reserve_after_seconds: region.reserve_after.as_secs(),
            aging_after_seconds: region.aging.after.as_secs(),
            aging_every: region.aging.every,
            fair_share_half_life_seconds: region.fair_share.half_life.as_secs(),
            account_weights: BTreeMap::new(),
            account_limit: None,
            account_limits: BTreeMap::new(),
            factory_limits: BTreeMap::new(),
        }
    }
}

impl Scheduling {
    /// The first setting that cannot be, and what would be right.
    pub(crate) fn problem(&self) -> Option<(&'static str, &'static str)> {
        let month = 30 * 24 * 3600;
        if !(2..=1000).contains(&self.aging_every) {
            return Some((
                "scheduling.aging_every",
                "2 to 1000; 2 gives every other assignment to the oldest job",
            ));
        }
        if !(60..=month).contains(&self.fair_share_half_life_seconds) {
            return Some(("scheduling.fair_share_half_life_seconds", "60 to 2592000 (30 days)"));
        }
        if self.aging_after_seconds > month || self.reserve_after_seconds > month {
            return Some((
                "scheduling.aging_after_seconds, scheduling.reserve_after_seconds",
                "at most 30 days",
            ));
        }
        if self.account_weights.values().any(|weight| !(1..=10_000).contains(weight)) {
            return Some(("scheduling.account_weights", "each weight is 1 to 10000"));
        }
        None
    }

    /// The settings of a region.
    pub(crate) fn region(&self, lease: Duration) -> RegionConfig {
        let aging = Aging { after: Duration::from_secs(self.aging_after_seconds), every: self.aging_every };
        let fair_share = FairShare {
            half_life: Duration::from_secs(self.fair_share_half_life_seconds),
            weights: self.account_weights.clone(),
            ..FairShare::default()
        };
        let reserve_after = Duration::from_secs(self.reserve_after_seconds);
        RegionConfig {
            lease,
            reserve_after,
            aging,
            fair_share,
            limits: self.limits(),
            ..RegionConfig::default()
        }
    }

    /// The limits of concurrency of a region.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            every_account: self.account_limit,
            accounts: self.account_limits.clone(),
            factories: self.factory_limits.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_region_and_valid() {
        let lease = Duration::from_secs(7);
        assert_eq!(Scheduling::default().region(lease), RegionConfig { lease, ..RegionConfig::default() });
        assert_eq!(Scheduling::default().problem(), None);
    }

    #[test]
    fn settings_reach_the_region_and_nonsense_is_named() {
        let text = r#"{"aging_every": 4, "account_limit": 3,
            "account_weights": {"acc_01kdvdna000000000000000001": 300},
            "factory_limits": {"fac_01kdvdna000000000000000001": 1}}"#;
        let scheduling: Scheduling = serde_json::from_str(text).unwrap();
        let region = scheduling.region(Duration::from_secs(60));
        assert_eq!((region.aging.every, region.limits.every_account), (4, Some(3)));
        assert_eq!((region.limits.factories.len(), region.fair_share.weights.len()), (1, 1));
        for (text, named) in [
            (r#"{"aging_every": 1}"#, "aging_every"),
            (r#"{"fair_share_half_life_seconds": 0}"#, "half_life"),
            (r#"{"account_weights": {"acc_01kdvdna000000000000000001": 0}}"#, "account_weights"),
            (r#"{"reserve_after_seconds": 99999999999}"#, "reserve_after"),
        ] {
            let scheduling: Scheduling = serde_json::from_str(text).unwrap();
            assert!(scheduling.problem().is_some_and(|(setting, _)| setting.contains(named)), "{text}");
        }
        assert!(serde_json::from_str::<Scheduling>(r#"{"account_limits": {"somebody": 1}}"#).is_err());
        assert!(serde_json::from_str::<Scheduling>(r#"{"colour": 1}"#).is_err());
    }
}
