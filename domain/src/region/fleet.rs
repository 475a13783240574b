//! The instances of a region and the ledger of what is allocated on each.
//!
//! The ledger knows every holding by its job, also on instances that have not said hello yet; what is allocated is the
//! sum of the holdings. Every change of an instance is brought into [`Room`], where placement looks.

use std::collections::{BTreeMap, BTreeSet};

use super::room::{Images, Place, Room, Runtimes};
use crate::attempt::AttemptId;
use crate::id::{InstanceId, JobId};
use crate::instance::{InstanceProfile, InstanceState, Notice};
use crate::placement::Candidate;
use crate::resources::Resources;
use crate::time::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    Attached,
    Away,
    Lost,
}

/// What keeps new work from an instance although it is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signs {
    /// The cordon that stands.
    pub(super) cordon: Option<u64>,
    pub(super) notice: Notice,
}

impl Signs {
    const fn take_no_work(&self) -> bool {
        self.cordon.is_some() || self.notice.is_final()
    }
}

/// What a job holds on an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holding {
    pub(super) job: JobId,
    pub(super) resources: Resources,
    /// When it is expected to end.
    pub(super) until: Timestamp,
}

/// An instance with its ledger.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) profile: InstanceProfile,
    pub(super) connection: Connection,
    pub(super) draining: bool,
    pub(super) signs: Signs,
    runtimes: Runtimes,
    images: Images,
    held: Vec<Holding>,
    /// Sum of what is held.
    pub(super) allocated: Resources,
    /// Attempts that its hello named and nobody has vouched for; what they use is not known.
    pub(super) unknown: BTreeSet<AttemptId>,
    /// What it said it has not, although nothing that is known here holds it; until its next profile or for a pause.
    pub(super) withheld: Resources,
    /// Refusals since it last began an attempt: each makes the next pause longer.
    pub(super) refusals: u32,
    pub(super) state_since: Timestamp,
    /// Since when nothing is held; meaningless while something is.
    pub(super) idle_since: Timestamp,
}

impl Slot {
    /// What runs there or is about to, known and unknown.
    pub(super) fn leases(&self) -> u32 {
        u32::try_from(self.held.len() + self.unknown.len()).unwrap_or(u32::MAX)
    }

    /// When the last of what is held is expected to end.
    pub(super) fn expected_end(&self) -> Option<Timestamp> {
        self.held.iter().map(|holding| holding.until).max()
    }

    pub(super) fn state(&self) -> InstanceState {
        match self.connection {
            Connection::Lost => InstanceState::Lost,
            Connection::Away => InstanceState::Disconnected,
            Connection::Attached if self.draining => InstanceState::Draining,
            Connection::Attached if !self.profile.problems.is_empty() => InstanceState::Unhealthy,
            Connection::Attached if self.signs.take_no_work() => InstanceState::Cordoned,
            Connection::Attached => InstanceState::Ready,
        }
    }

    /// Nothing is free as long as it is not known what the unknown attempts use.
    pub(super) fn free(&self) -> Resources {
        if self.unknown.is_empty() {
            self.profile.capacity.saturating_sub(&self.allocated).saturating_sub(&self.withheld)
        } else {
            Resources::ZERO
        }
    }

    pub(super) fn candidate(&self) -> Candidate<'_> {
        Candidate {
            id: self.profile.id,
            pool: &self.profile.pool,
            host: &self.profile.host,
            capacity: self.profile.capacity,
            free: self.free(),
            runtimes: &self.profile.runtimes,
            cached_images: &self.profile.cached_images,
            state: self.state(),
            problems: &self.profile.problems,
        }
    }

    fn is_connected(&self) -> bool {
        self.connection == Connection::Attached
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Fleet {
    rows: BTreeMap<InstanceId, u32>,
    slots: Vec<Option<Slot>>,
    vacant: Vec<u32>,
    /// On which instances each attempt is one that nobody has vouched for.
    unknown: BTreeMap<AttemptId, BTreeSet<InstanceId>>,
    /// Of known instances and of those about to attach; what is not there is nothing.
    signs: BTreeMap<InstanceId, Signs>,
    /// What jobs hold on instances that are not known (yet).
    elsewhere: BTreeMap<InstanceId, Vec<Holding>>,
    room: Room,
    /// Numbers of the images that instances have or had.
    image_numbers: BTreeMap<String, u32>,
    /// Sums over the connected instances, wide enough for any numbers.
    capacity: Sum,
    allocated: Sum,
}

/// A sum that can be taken back exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    parts: [u128; 4],
}

impl Sum {
    fn change(&mut self, resources: &Resources, combine: impl Fn(u128, u128) -> u128) {
        let Resources { cpu_milli, memory_bytes, scratch_bytes, gpus } = *resources;
        for (part, amount) in self.parts.iter_mut().zip([cpu_milli, memory_bytes, scratch_bytes, gpus]) {
            *part = combine(*part, u128::from(amount));
        }
    }

    fn resources(&self) -> Resources {
        let [cpu_milli, memory_bytes, scratch_bytes, gpus] =
            self.parts.map(|part| u64::try_from(part).unwrap_or(u64::MAX));
        Resources { cpu_milli, memory_bytes, scratch_bytes, gpus }
    }
}

impl Fleet {
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.rows.values().map(|&row| self.in_row(row))
    }

    pub(super) fn slot(&self, id: InstanceId) -> Option<&Slot> {
        self.rows.get(&id).map(|&row| self.in_row(row))
    }

    pub(super) fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> + Clone {
        self.rows.values().map(|&row| self.in_row(row).candidate())
    }

    pub(super) fn row(&self, id: InstanceId) -> Option<u32> {
        self.rows.get(&id).copied()
    }

    pub(super) fn in_row(&self, row: u32) -> &Slot {
        self.slots[row as usize].as_ref().expect("rows of known instances are taken")
    }

    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// What the connected instances have.
    pub(super) fn capacity(&self) -> Resources {
        self.capacity.resources()
    }

    /// What is allocated on the connected instances.
    pub(super) fn allocated(&self) -> Resources {
        self.allocated.resources()
    }

    /// Whether nothing is held on an instance, known or not.
    pub(super) fn is_idle(&self, id: InstanceId) -> bool {
        self.slot(id).is_none_or(|slot| slot.held.is_empty()) && !self.elsewhere.contains_key(&id)
    }

    /// An instance has connected.
    pub(super) fn attach(&mut self, profile: InstanceProfile, now: Timestamp) {
        let id = profile.id;
        self.forget_unknown(id);
        let held = match self.row(id) {
            Some(row) => std::mem::take(&mut self.slot_mut(row).held),
            None => self.elsewhere.remove(&id).unwrap_or_default(),
        };
        let mut slot = Slot {
            signs: self.signs.get(&id).copied().unwrap_or_default(),
            runtimes: Runtimes::of(&profile.runtimes),
            images: self.numbered(&profile.cached_images),
            profile,
            connection: Connection::Attached,
            draining: false,
            allocated: sum(&held),
            held,
            unknown: BTreeSet::new(),
            withheld: Resources::ZERO,
            refusals: 0,
            state_since: now,
            idle_since: now,
        };
        match self.row(id) {
            Some(row) => {
                self.uncount(row);
                if self.in_row(row).state() == slot.state() {
                    slot.state_since = self.in_row(row).state_since;
                }
                slot.idle_since = self.in_row(row).idle_since;
                *self.slot_mut(row) = slot;
                self.count(row);
            }
            None => self.add(slot),
        }
    }

    fn add(&mut self, slot: Slot) {
        let id = slot.profile.id;
        let row = match self.vacant.pop() {
            Some(row) => {
                self.slots[row as usize] = Some(slot);
                row
            }
            None => {
                self.slots.push(Some(slot));
                u32::try_from(self.slots.len() - 1).expect("instances are counted in 32 bits")
            }
        };
        self.rows.insert(id, row);
        self.count(row);
    }

    /// An instance is not what it was.
    pub(super) fn set_profile(&mut self, profile: InstanceProfile, draining: bool, now: Timestamp) {
        let (runtimes, images) = (Runtimes::of(&profile.runtimes), self.numbered(&profile.cached_images));
        self.change(profile.id, now, |slot| {
            (slot.runtimes, slot.images) = (runtimes, images);
            (slot.profile, slot.draining, slot.withheld) = (profile, draining, Resources::ZERO);
        });
    }

    fn numbered(&mut self, images: &BTreeSet<String>) -> Images {
        let numbers = &mut self.image_numbers;
        Images::of(images.iter().map(|image| match numbers.get(image) {
            Some(&number) => number,
            None => {
                let next = u32::try_from(numbers.len()).expect("images are counted in 32 bits");
                numbers.insert(image.clone(), next);
                next
            }
        }))
    }

    /// The number of an image, if an instance has or had it.
    pub(super) fn image_number(&self, image: &str) -> Option<u32> {
        self.image_numbers.get(image).copied()
    }

    /// Changes an instance that is there, and keeps the time of its last change of state.
    pub(super) fn change(&mut self, id: InstanceId, now: Timestamp, change: impl FnOnce(&mut Slot)) -> bool {
        let Some(row) = self.row(id) else { return false };
        self.uncount(row);
        let slot = self.slot_mut(row);
        let before = slot.state();
        change(slot);
        if slot.state() != before {
            slot.state_since = now;
        }
        self.count(row);
        true
    }

    /// What is known of an instance's cordon and notice becomes another. Says whether it did.
    pub(super) fn change_signs(
        &mut self,
        id: InstanceId,
        now: Timestamp,
        change: impl FnOnce(&mut Signs),
    ) -> bool {
        let before = self.signs.get(&id).copied().unwrap_or_default();
        let mut signs = before;
        change(&mut signs);
        if signs == Signs::default() {
            self.signs.remove(&id);
        } else {
            self.signs.insert(id, signs);
        }
        self.change(id, now, |slot| slot.signs = signs);
        signs != before
    }

    /// Forgets an instance on which nothing is held.
    pub(super) fn remove(&mut self, id: InstanceId) {
        self.forget_unknown(id);
        self.signs.remove(&id);
        if let Some(row) = self.rows.remove(&id) {
            self.uncount(row);
            self.slots[row as usize] = None;
            self.room.set(row, None);
            self.vacant.push(row);
        }
    }

    pub(super) fn allocate(&mut self, id: InstanceId, holding: Holding) {
        match self.row(id) {
            Some(row) => self.change_held(row, |held| held.push(holding)),
            None => self.elsewhere.entry(id).or_default().push(holding),
        }
    }

    /// Takes back what a job held.
    pub(super) fn release(&mut self, id: InstanceId, job: JobId, now: Timestamp) {
        if let Some(row) = self.row(id) {
            self.change_held(row, |held| give_back(held, job));
            self.slot_mut(row).idle_since = now;
        } else if let Some(held) = self.elsewhere.get_mut(&id) {
            give_back(held, job);
            if held.is_empty() {
                self.elsewhere.remove(&id);
            }
        }
    }

    /// A hello named an attempt that nobody has vouched for.
    pub(super) fn add_unknown(&mut self, id: InstanceId, attempt: AttemptId) {
        let Some(row) = self.row(id) else { return };
        self.slot_mut(row).unknown.insert(attempt);
        self.unknown.entry(attempt).or_default().insert(id);
        self.refresh(row);
    }

    /// What an instance named and nobody vouched for is taken to be over.
    pub(super) fn forget_unknown(&mut self, id: InstanceId) {
        let Some(row) = self.row(id) else { return };
        for attempt in std::mem::take(&mut self.slot_mut(row).unknown) {
            if let Some(instances) = self.unknown.get_mut(&attempt) {
                instances.remove(&id);
                if instances.is_empty() {
                    self.unknown.remove(&attempt);
                }
            }
        }
        self.refresh(row);
    }

    /// The attempt is known, or over: it is no unknown one any more. Names the instances of which it was the last.
    pub(super) fn resolve_unknown(&mut self, attempt: AttemptId) -> Vec<InstanceId> {
        let mut resolved = Vec::new();
        for id in self.unknown.remove(&attempt).into_iter().flatten() {
            let Some(row) = self.row(id) else { continue };
            let slot = self.slot_mut(row);
            slot.unknown.remove(&attempt);
            if slot.unknown.is_empty() {
                resolved.push(id);
            }
            self.refresh(row);
        }
        resolved
    }

    fn slot_mut(&mut self, row: u32) -> &mut Slot {
        self.slots[row as usize].as_mut().expect("rows of known instances are taken")
    }

    fn change_held(&mut self, row: u32, change: impl FnOnce(&mut Vec<Holding>)) {
        self.uncount(row);
        let slot = self.slot_mut(row);
        change(&mut slot.held);
        slot.allocated = sum(&slot.held);
        self.count(row);
    }

    fn uncount(&mut self, row: u32) {
        let slot = self.slots[row as usize].as_ref().expect("rows of known instances are taken");
        if slot.is_connected() {
            self.capacity.change(&slot.profile.capacity, |sum, part| sum - part);
            self.allocated.change(&slot.allocated, |sum, part| sum - part);
        }
    }

    fn count(&mut self, row: u32) {
        let slot = self.slots[row as usize].as_ref().expect("rows of known instances are taken");
        if slot.is_connected() {
            self.capacity.change(&slot.profile.capacity, |sum, part| sum + part);
            self.allocated.change(&slot.allocated, |sum, part| sum + part);
        }
        self.refresh(row);
    }

    fn refresh(&mut self, row: u32) {
        let slot = self.slots[row as usize].as_ref().expect("rows of known instances are taken");
        let place = (slot.state() == InstanceState::Ready).then(|| Place {
            id: slot.profile.id,
            free: slot.free(),
            capacity: slot.profile.capacity,
            runtimes: slot.runtimes,
            images: slot.images.clone(),
            idle: slot.held.is_empty(),
        });
        self.room.set(row, place);
    }
}

fn sum(held: &[Holding]) -> Resources {
    held.iter().fold(Resources::ZERO, |sum, holding| sum.saturating_add(&holding.resources))
}

fn give_back(held: &mut Vec<Holding>, job: JobId) {
    if let Some(index) = held.iter().position(|holding| holding.job == job) {
        held.swap_remove(index);
    }
}
