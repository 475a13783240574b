//! The order of the lines' heads: priority first; among accounts of the same priority the one that has used least;
//! inside an account the oldest first. Beside it the order of age alone, for the jobs that have waited too long.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::queue::{LineId, LineKey};
use super::shape::ShapeId;
use crate::id::{AccountId, JobId};
use crate::time::Timestamp;

/// The first job of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Head {
    pub(super) queued_at: Timestamp,
    pub(super) job: JobId,
    pub(super) line: LineId,
    pub(super) shape: ShapeId,
}

/// Comes first when less.
pub(super) type Rank = (Reverse<u16>, u128, AccountId, Head);

/// The heads of one priority.
#[derive(Clone, Debug, Default)]
struct Band {
    accounts: BTreeSet<(u128, AccountId)>,
    heads: BTreeMap<AccountId, (u128, BTreeSet<Head>)>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    bands: BTreeMap<Reverse<u16>, Band>,
    oldest: BTreeSet<Head>,
    /// What each account has used, as of its last change; an account that is not here has used nothing.
    used: BTreeMap<AccountId, u128>,
    /// In how many bands each account has heads.
    presence: BTreeMap<AccountId, BTreeSet<Reverse<u16>>>,
}

impl Order {
    /// Every head, in the order in which they are served.
    pub(super) fn heads(&self) -> impl Iterator<Item = &Head> {
        self.bands
            .values()
            .flat_map(|band| band.accounts.iter().flat_map(|(_, account)| band.heads[account].1.iter()))
    }

    /// Every head, the oldest first.
    pub(super) fn by_age(&self) -> impl Iterator<Item = &Head> {
        self.oldest.iter()
    }

    pub(super) fn rank(&self, key: &LineKey, head: Head) -> Rank {
        let used = self.used.get(&key.account).copied().unwrap_or(0);
        (Reverse(key.priority), used, key.account, head)
    }

    /// The head of a line with this key has changed.
    pub(super) fn change(&mut self, key: &LineKey, before: Option<Head>, after: Option<Head>) {
        if let Some(before) = before {
            self.oldest.remove(&before);
        }
        self.oldest.extend(after);
        let priority = Reverse(key.priority);
        let band = self.bands.entry(priority).or_default();
        let heads = match band.heads.get_mut(&key.account) {
            Some((_, heads)) => heads,
            None => {
                let used = self.used.get(&key.account).copied().unwrap_or(0);
                band.accounts.insert((used, key.account));
                self.presence.entry(key.account).or_default().insert(priority);
                &mut band.heads.entry(key.account).or_insert((used, BTreeSet::new())).1
            }
        };
        if let Some(before) = before {
            heads.remove(&before);
        }
        heads.extend(after);
        if heads.is_empty() {
            self.leave(priority, key.account);
        }
    }

    fn leave(&mut self, priority: Reverse<u16>, account: AccountId) {
        let Some(band) = self.bands.get_mut(&priority) else { return };
        if let Some((used, _)) = band.heads.remove(&account) {
            band.accounts.remove(&(used, account));
        }
        if band.heads.is_empty() {
            self.bands.remove(&priority);
        }
        if let Some(presence) = self.presence.get_mut(&account) {
            presence.remove(&priority);
            if presence.is_empty() {
                self.presence.remove(&account);
            }
        }
    }

    /// Everybody's use is counted anew.
    pub(super) fn restate(&mut self, of: impl Fn(AccountId) -> u128) {
        let known: BTreeSet<AccountId> = self.used.keys().chain(self.presence.keys()).copied().collect();
        known.into_iter().for_each(|account| self.set_used(account, of(account)));
    }

    /// An account has used more or less than before.
    pub(super) fn set_used(&mut self, account: AccountId, used: u128) {
        if used == 0 {
            self.used.remove(&account);
        } else {
            self.used.insert(account, used);
        }
        for priority in self.presence.get(&account).into_iter().flatten() {
            let band =
                self.bands.get_mut(priority).expect("an account is present only in bands that are there");
            let (known, _) = band.heads.get_mut(&account).expect("the account is present in it");
            band.accounts.remove(&(*known, account));
            *known = used;
            band.accounts.insert((used, account));
        }
    }
}
