//! Limits of concurrency: how many attempts an account or a factory may have at the same time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, FactoryId};

/// How many attempts may be live at the same time; none where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Of each account that has no limit of its own.
    pub every_account: Option<u32>,
    /// Of an account.
    pub accounts: BTreeMap<AccountId, u32>,
    /// Of a factory.
    pub factories: BTreeMap<FactoryId, u32>,
}

impl Limits {
    pub(super) fn are_none(&self) -> bool {
        self.every_account.is_none() && self.accounts.is_empty() && self.factories.is_empty()
    }
}

/// What a limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitedBy {
    /// The account's attempts.
    Account,
    /// The factory's attempts.
    Factory,
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitReached {
    /// Whose.
    pub by: LimitedBy,
    /// How many attempts it allows.
    pub limit: u32,
}

impl Limits {
    fn of_account(&self, account: AccountId) -> Option<u32> {
        self.accounts.get(&account).copied().or(self.every_account)
    }

    fn of_factory(&self, factory: Option<FactoryId>) -> Option<u32> {
        factory.and_then(|factory| self.factories.get(&factory).copied())
    }
}

/// How many attempts there are now, assignments in flight included.
#[derive(Clone, Debug, Default)]
pub(super) struct Running {
    accounts: BTreeMap<AccountId, u32>,
    factories: BTreeMap<FactoryId, u32>,
    /// How often this has changed.
    changes: u64,
}

impl Running {
    /// How often this has changed.
    pub(super) const fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn begun(&mut self, account: AccountId, factory: Option<FactoryId>) {
        self.changes += 1;
        *self.accounts.entry(account).or_insert(0) += 1;
        if let Some(factory) = factory {
            *self.factories.entry(factory).or_insert(0) += 1;
        }
    }

    pub(super) fn ended(&mut self, account: AccountId, factory: Option<FactoryId>) {
        self.changes += 1;
        less(&mut self.accounts, &account);
        if let Some(factory) = factory {
            less(&mut self.factories, &factory);
        }
    }

    /// The limit that keeps one more attempt from beginning.
    pub(super) fn reached(
        &self,
        limits: &Limits,
        account: AccountId,
        factory: Option<FactoryId>,
    ) -> Option<LimitReached> {
        if limits.are_none() {
            return None;
        }
        let by_account = limits.of_account(account).filter(|&limit| self.of_account(account) >= limit);
        let factory = limits.of_factory(factory).filter(|&limit| self.of_factory(factory) >= limit);
        let by_factory = factory.map(|limit| LimitReached { by: LimitedBy::Factory, limit });
        by_factory.or(by_account.map(|limit| LimitReached { by: LimitedBy::Account, limit }))
    }

    /// Lets as many of `wanted` attempts begin as the limits allow; says how many those are.
    pub(super) fn begin_within(
        &mut self,
        limits: &Limits,
        account: AccountId,
        factory: Option<FactoryId>,
        wanted: u32,
    ) -> u32 {
        let by_account =
            limits.of_account(account).map(|limit| limit.saturating_sub(self.of_account(account)));
        let by_factory =
            limits.of_factory(factory).map(|limit| limit.saturating_sub(self.of_factory(factory)));
        let count = [by_account, by_factory].into_iter().flatten().fold(wanted, u32::min);
        *self.accounts.entry(account).or_insert(0) += count;
        if let Some(factory) = factory {
            *self.factories.entry(factory).or_insert(0) += count;
        }
        count
    }

    fn of_account(&self, account: AccountId) -> u32 {
        self.accounts.get(&account).copied().unwrap_or(0)
    }

    fn of_factory(&self, factory: Option<FactoryId>) -> u32 {
        factory.and_then(|factory| self.factories.get(&factory).copied()).unwrap_or(0)
    }
}

fn less<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
