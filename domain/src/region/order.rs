//! The order of the lines' heads: priority first; among accounts of the same priority the one that has used least;
//! inside an account the oldest first. Beside it the order of age alone, for the jobs that have waited too long.
//!
//! The heads of a priority and account are a **group**; those of them that have the same factory are a **bundle**, in
//! which each shape has one head at most. So the first head that fits somewhere is found with a set of shapes: group by
//! group in their order, and in a group by comparing the heads of the shapes that fit, without looking at the others.

mod bundle;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::iter::once_with;

use super::fits::ShapeSet;
use super::queue::{LineId, LineKey};
use super::shape::ShapeId;
use super::slab::Slab;
use crate::id::{AccountId, FactoryId, JobId};
use crate::time::Timestamp;
use bundle::Heads;

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

/// Number of a group.
type GroupId = u32;

/// Number of a bundle; given out again when it has no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BundleId(u32);

/// An account that has groups or has used something.
#[derive(Clone, Debug, Default)]
struct Account {
    /// As of its last change.
    used: u128,
    groups: Vec<GroupId>,
}

/// The heads of a priority and account.
#[derive(Clone, Debug)]
struct Group {
    priority: Reverse<u16>,
    account: AccountId,
    /// What the account has used, as it stands in the order.
    used: u128,
    bundles: Vec<u32>,
    heads: BTreeSet<Head>,
}

/// Those of them that have the same factory.
#[derive(Clone, Debug)]
struct Bundle {
    group: GroupId,
    factory: Option<FactoryId>,
    /// How many lines belong to it, with a head or without.
    lines: u32,
    heads: Heads,
}

type BundleKey = (Reverse<u16>, AccountId, Option<FactoryId>);

#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    /// The groups that have heads, by priority and use.
    bands: BTreeMap<Reverse<u16>, BTreeSet<(u128, AccountId, GroupId)>>,
    groups: Slab<Group>,
    bundles: Slab<Bundle>,
    numbers: BTreeMap<BundleKey, BundleId>,
    accounts: BTreeMap<AccountId, Account>,
    /// The first of each group, the oldest first.
    by_age: BTreeSet<(Head, GroupId)>,
    /// Bundles in which a limit keeps heads back.
    limited: BTreeSet<BundleId>,
    /// How often the order has changed, as far as that was looked at.
    changes: u64,
    /// The last head that was looked at, if all were of one group.
    last_seen: Option<(GroupId, Head)>,
}

impl Order {
    /// The bundle of a new line.
    pub(super) fn join(&mut self, key: &LineKey) -> BundleId {
        let key = (Reverse(key.priority), key.account, key.factory);
        let id = match self.numbers.get(&key) {
            Some(&id) => id,
            None => self.new_bundle(key),
        };
        self.bundles[id.0].lines += 1;
        id
    }

    /// A line of the bundle is gone; it had no head any more.
    pub(super) fn leave(&mut self, id: BundleId) {
        let bundle = &mut self.bundles[id.0];
        bundle.lines -= 1;
        if bundle.lines == 0 {
            let Bundle { group, factory, .. } = self.bundles.remove(id.0);
            self.limited.remove(&id);
            let members = &mut self.groups[group];
            self.numbers.remove(&(members.priority, members.account, factory));
            members.bundles.retain(|&other| other != id.0);
            if members.bundles.is_empty() {
                self.forget_group(group);
            }
        }
    }

    /// Every head, in the order in which they are served.
    pub(super) fn heads(&self) -> impl Iterator<Item = &Head> + Clone {
        self.in_order().flat_map(|group| group.heads.iter())
    }

    /// The heads of these shapes, in the order in which they are served, but for bundles that `passes` does not let pass.
    pub(super) fn fitting<'a>(
        &'a self,
        shapes: &'a ShapeSet,
        passes: &'a impl Fn(BundleId, AccountId, Option<FactoryId>) -> bool,
    ) -> impl Iterator<Item = Head> + 'a {
        self.in_order().flat_map(move |group| {
            // The first is nearly always taken: only if it is not, the others are put in order.
            let first = self.first_fitting(group, shapes, passes);
            let others = once_with(move || self.all_fitting(group, shapes, passes));
            let others = first.map(|_| others.flatten().skip(1)).into_iter().flatten();
            first.into_iter().chain(others)
        })
    }

    /// The heads of these shapes that have been queued at `since` or before, the oldest first.
    pub(super) fn oldest_fitting<'a>(
        &'a self,
        shapes: &'a ShapeSet,
        since: Timestamp,
        passes: &'a impl Fn(BundleId, AccountId, Option<FactoryId>) -> bool,
    ) -> impl Iterator<Item = Head> + 'a {
        let old = move |head: &Head| head.queued_at <= since;
        let of_group = |group: &Group| self.first_fitting(group, shapes, passes).filter(old);
        let first = self.least(since, of_group);
        let others = once_with(move || {
            let groups = self.by_age.iter().take_while(|(first, _)| old(first));
            let all = groups.flat_map(|&(_, group)| self.all_fitting(&self.groups[group], shapes, passes));
            let mut all: Vec<Head> = all.filter(old).collect();
            all.sort_unstable();
            all
        });
        let others = first.map(|_| others.flatten().skip(1)).into_iter().flatten();
        first.into_iter().chain(others)
    }

    /// The oldest head.
    pub(super) fn oldest(&self) -> Option<&Head> {
        self.by_age.first().map(|(head, _)| head)
    }

    /// The oldest head that is `wanted` and has been queued at `since` or before.
    pub(super) fn oldest_of(&self, since: Timestamp, wanted: impl Fn(&Head) -> bool) -> Option<Head> {
        let old = |head: &&Head| head.queued_at <= since;
        self.least(since, |group| group.heads.iter().take_while(old).find(|head| wanted(head)).copied())
    }

    /// The oldest of what the groups offer, of those that have a head as old as `since`.
    fn least(&self, since: Timestamp, offer: impl Fn(&Group) -> Option<Head>) -> Option<Head> {
        let mut best: Option<Head> = None;
        for &(first, group) in &self.by_age {
            if first.queued_at > since || best.is_some_and(|best| best < first) {
                break;
            }
            let offered = offer(&self.groups[group]);
            best = best.into_iter().chain(offered).min();
        }
        best
    }

    pub(super) fn rank(&self, bundle: BundleId, head: Head) -> Rank {
        let group = &self.groups[self.bundles[bundle.0].group];
        (group.priority, group.used, group.account, head)
    }

    /// How often the order has changed, but for changes that cannot have touched the heads of the last look.
    pub(super) const fn changes(&self) -> u64 {
        self.changes
    }

    /// The first in order were looked at, up to this last one if there are more: what changes behind it changes nothing
    /// about them as long as its group is the first.
    pub(super) fn looked_at(&mut self, last: Option<(BundleId, Head)>) {
        let first = self.in_order().next().map(|group| (group.priority, group.account));
        self.last_seen = last.and_then(|(bundle, head)| {
            let number = self.bundles[bundle.0].group;
            let group = &self.groups[number];
            (first == Some((group.priority, group.account))).then_some((number, head))
        });
    }

    /// The head of a line of this bundle has changed.
    pub(super) fn change(&mut self, id: BundleId, before: Option<Head>, after: Option<Head>) {
        let bundle = &mut self.bundles[id.0];
        bundle.heads.change(before, after);
        let number = bundle.group;
        let behind = |head: Option<Head>| head.is_none_or(|head| self.last_seen < Some((number, head)));
        let unseen =
            self.last_seen.is_some_and(|(group, _)| group == number) && behind(before) && behind(after);
        self.changes += u64::from(!unseen);
        let group = &mut self.groups[number];
        let first = group.heads.first().copied();
        if let Some(before) = before {
            group.heads.remove(&before);
        }
        group.heads.extend(after);
        let now_first = group.heads.first().copied();
        if first != now_first {
            self.first_changed(number, first, now_first);
        }
    }

    fn first_changed(&mut self, number: GroupId, before: Option<Head>, after: Option<Head>) {
        if let Some(before) = before {
            self.by_age.remove(&(before, number));
        }
        self.by_age.extend(after.map(|after| (after, number)));
        let group = &self.groups[number];
        let place = (group.used, group.account, number);
        match (before, after) {
            (None, Some(_)) => drop(self.bands.entry(group.priority).or_default().insert(place)),
            (Some(_), None) => self.leave_band(group.priority, &place),
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    fn leave_band(&mut self, priority: Reverse<u16>, place: &(u128, AccountId, GroupId)) {
        let band = self.bands.get_mut(&priority).expect("a group with heads stands in its band");
        band.remove(place);
        if band.is_empty() {
            self.bands.remove(&priority);
        }
    }

    /// A limit keeps back the heads of these shapes.
    pub(super) fn limit(&mut self, id: BundleId, shapes: &ShapeSet) {
        if self.bundles[id.0].heads.limit(shapes) {
            self.limited.insert(id);
        }
    }

    /// A limit keeps back a head.
    pub(super) fn limit_one(&mut self, id: BundleId, shape: ShapeId) {
        self.bundles[id.0].heads.limit_one(shape);
        self.limited.insert(id);
    }

    /// The lines whose heads were kept back by a limit of this account or factory; they are no more.
    pub(super) fn lift_limits(&mut self, account: AccountId, factory: Option<FactoryId>) -> Vec<LineId> {
        let mut lifted = Vec::new();
        if self.limited.is_empty() {
            return lifted;
        }
        let (groups, bundles) = (&self.groups, &mut self.bundles);
        self.limited.retain(|id| {
            let bundle = &mut bundles[id.0];
            let met =
                groups[bundle.group].account == account || (factory.is_some() && bundle.factory == factory);
            if met {
                lifted.extend(bundle.heads.lift());
            }
            !met
        });
        lifted.sort_unstable();
        lifted
    }

    /// Everybody's use is counted anew.
    pub(super) fn restate(&mut self, of: impl Fn(AccountId) -> u128) {
        let known: Vec<AccountId> = self.accounts.keys().copied().collect();
        known.into_iter().for_each(|account| self.set_used(account, of(account)));
    }

    /// An account has used more or less than before.
    pub(super) fn set_used(&mut self, account: AccountId, used: u128) {
        let known = self.accounts.entry(account).or_default();
        known.used = used;
        for &number in &known.groups {
            let group = &mut self.groups[number];
            let before = std::mem::replace(&mut group.used, used);
            if before != used && !group.heads.is_empty() {
                let band =
                    self.bands.get_mut(&group.priority).expect("a group with heads stands in its band");
                band.remove(&(before, account, number));
                band.insert((used, account, number));
                self.changes += u64::from(band.len() > 1);
            }
        }
        if used == 0 && known.groups.is_empty() {
            self.accounts.remove(&account);
        }
    }

    fn in_order(&self) -> impl Iterator<Item = &Group> + Clone {
        self.bands.values().flat_map(move |band| band.iter().map(move |&(.., group)| &self.groups[group]))
    }

    fn first_fitting(
        &self,
        group: &Group,
        shapes: &ShapeSet,
        passes: &impl Fn(BundleId, AccountId, Option<FactoryId>) -> bool,
    ) -> Option<Head> {
        let bundles = group.bundles.iter().map(|&id| (id, &self.bundles[id]));
        let first = bundles.filter_map(|(id, bundle)| {
            let first = bundle.heads.first(shapes)?;
            passes(BundleId(id), group.account, bundle.factory).then_some(first)
        });
        first.min()
    }

    fn all_fitting(
        &self,
        group: &Group,
        shapes: &ShapeSet,
        passes: &impl Fn(BundleId, AccountId, Option<FactoryId>) -> bool,
    ) -> Vec<Head> {
        let bundles = group.bundles.iter().map(|&id| (id, &self.bundles[id]));
        let passing = bundles.filter(|(id, bundle)| passes(BundleId(*id), group.account, bundle.factory));
        let mut all: Vec<Head> = passing.flat_map(|(_, bundle)| bundle.heads.all(shapes)).collect();
        all.sort_unstable();
        all
    }

    fn new_bundle(&mut self, key: BundleKey) -> BundleId {
        let (priority, account, factory) = key;
        let group = self.group_of(priority, account);
        let id = self.bundles.insert(Bundle { group, factory, lines: 0, heads: Heads::default() });
        self.groups[group].bundles.push(id);
        self.numbers.insert(key, BundleId(id));
        BundleId(id)
    }

    fn group_of(&mut self, priority: Reverse<u16>, account: AccountId) -> GroupId {
        let Account { used, groups } = self.accounts.entry(account).or_default();
        if let Some(&known) = groups.iter().find(|&&group| self.groups[group].priority == priority) {
            return known;
        }
        let group = Group { priority, account, used: *used, bundles: Vec::new(), heads: BTreeSet::new() };
        let number = self.groups.insert(group);
        groups.push(number);
        number
    }

    fn forget_group(&mut self, number: GroupId) {
        let group = self.groups.remove(number);
        if let Some(account) = self.accounts.get_mut(&group.account) {
            account.groups.retain(|&other| other != number);
            if account.groups.is_empty() && account.used == 0 {
                self.accounts.remove(&group.account);
            }
        }
    }
}
