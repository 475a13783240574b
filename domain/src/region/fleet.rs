//! The instances of a region and the ledger of what is allocated on each.
//!
//! The ledger counts what is held, also on instances that have not said hello yet: what was allocated is given back as
//! the same amount. Every change of an instance is brought into [`Room`], where placement looks.

use std::collections::{BTreeMap, BTreeSet};

use super::InstanceView;
use super::index::Index;
use super::room::{Images, Place, Room, Runtimes};
use super::slab::Slab;
use crate::attempt::AttemptId;
use crate::id::InstanceId;
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

/// What jobs hold on an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    sum: Sum,
    /// When each is expected to end, in no order.
    ends: Vec<Timestamp>,
}

impl Held {
    const fn is_nothing(&self) -> bool {
        self.ends.is_empty()
    }

    fn add(&mut self, resources: &Resources, until: Timestamp) {
        self.sum.add(resources);
        self.ends.push(until);
    }

    fn take_back(&mut self, resources: &Resources, until: Timestamp) {
        self.sum.take_back(resources);
        let at = self.ends.iter().position(|&end| end == until).expect("what is taken back was added");
        self.ends.swap_remove(at);
    }
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
    held: Held,
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
        u32::try_from(self.held.ends.len() + self.unknown.len()).unwrap_or(u32::MAX)
    }

    /// When the last of what is held is expected to end.
    pub(super) fn expected_end(&self) -> Option<Timestamp> {
        self.held.ends.iter().max().copied()
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

    pub(super) fn view(&self) -> InstanceView<'_> {
        InstanceView {
            profile: &self.profile,
            state: self.state(),
            state_since: self.state_since,
            allocated: self.allocated,
            free: self.free(),
            unknown_attempts: self.unknown.len(),
            leases: self.leases(),
            idle_since: self.idle_since,
            expected_end: self.expected_end(),
            cordon: self.signs.cordon,
            notice: self.signs.notice,
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
    /// The same, for a quick look.
    numbers: Index,
    slots: Slab<Slot>,
    /// On which instances each attempt is one that nobody has vouched for.
    unknown: BTreeMap<AttemptId, BTreeSet<InstanceId>>,
    /// Of known instances and of those about to attach; what is not there is nothing.
    signs: BTreeMap<InstanceId, Signs>,
    /// What jobs hold on instances that are not known (yet).
    elsewhere: BTreeMap<InstanceId, Held>,
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
    fn of(resources: &Resources) -> Self {
        let Resources { cpu_milli, memory_bytes, scratch_bytes, gpus } = *resources;
        Self { parts: [cpu_milli, memory_bytes, scratch_bytes, gpus].map(u128::from) }
    }

    fn add(&mut self, resources: &Resources) {
        self.combine(&Self::of(resources), |sum, part| sum + part);
    }

    fn take_back(&mut self, resources: &Resources) {
        self.combine(&Self::of(resources), |sum, part| sum - part);
    }

    fn combine(&mut self, other: &Self, combine: impl Fn(u128, u128) -> u128) {
        self.parts.iter_mut().zip(other.parts).for_each(|(part, other)| *part = combine(*part, other));
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
        self.row(id).map(|row| self.in_row(row))
    }

    pub(super) fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> + Clone {
        self.rows.values().map(|&row| self.in_row(row).candidate())
    }

    pub(super) fn row(&self, id: InstanceId) -> Option<u32> {
        self.numbers.find(id.bits(), |row| self.slots[row].profile.id.bits())
    }

    pub(super) fn in_row(&self, row: u32) -> &Slot {
        &self.slots[row]
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
        self.slot(id).is_none_or(|slot| slot.held.is_nothing()) && !self.elsewhere.contains_key(&id)
    }

    /// An instance has connected.
    pub(super) fn attach(&mut self, profile: InstanceProfile, now: Timestamp) {
        let id = profile.id;
        self.forget_unknown(id);
        let held = match self.row(id) {
            Some(row) => self.in_row(row).held.clone(),
            None => self.elsewhere.remove(&id).unwrap_or_default(),
        };
        let mut slot = Slot {
            signs: self.signs.get(&id).copied().unwrap_or_default(),
            runtimes: Runtimes::of(&profile.runtimes),
            images: self.numbered(&profile.cached_images),
            profile,
            connection: Connection::Attached,
            draining: false,
            allocated: held.sum.resources(),
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
                self.slots[row] = slot;
                self.count(row);
            }
            None => self.add(slot),
        }
    }

    fn add(&mut self, slot: Slot) {
        let id = slot.profile.id;
        let row = self.slots.insert(slot);
        self.rows.insert(id, row);
        self.numbers.insert(id.bits(), row);
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
        let slot = &mut self.slots[row];
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
        let slots = &self.slots;
        if let Some(row) = self.numbers.remove(id.bits(), |row| slots[row].profile.id.bits()) {
            self.rows.remove(&id);
            self.uncount(row);
            self.slots.remove(row);
            self.room.set(row, None);
        }
    }

    pub(super) fn allocate(&mut self, id: InstanceId, resources: &Resources, until: Timestamp) {
        match self.row(id) {
            Some(row) => {
                self.slots[row].held.add(resources, until);
                self.held_changed(row, |allocated| allocated.add(resources));
            }
            None => self.elsewhere.entry(id).or_default().add(resources, until),
        }
    }

    /// Has what is needed to release something brought near.
    pub(super) fn touch(&self, id: InstanceId) {
        if let Some(row) = self.numbers.guess(id.bits()) {
            self.slots.touch(row);
            self.room.touch(row);
        }
    }

    /// Takes back what was allocated until then; names the instance's row, if it is known.
    pub(super) fn release(
        &mut self,
        id: InstanceId,
        resources: &Resources,
        until: Timestamp,
        now: Timestamp,
    ) -> Option<u32> {
        let row = self.row(id);
        if let Some(row) = row {
            let slot = &mut self.slots[row];
            slot.held.take_back(resources, until);
            slot.idle_since = now;
            self.held_changed(row, |allocated| allocated.take_back(resources));
        } else if let Some(held) = self.elsewhere.get_mut(&id) {
            held.take_back(resources, until);
            if held.is_nothing() {
                self.elsewhere.remove(&id);
            }
        }
        row
    }

    /// A hello named an attempt that nobody has vouched for.
    pub(super) fn add_unknown(&mut self, id: InstanceId, attempt: AttemptId) {
        let Some(row) = self.row(id) else { return };
        self.slots[row].unknown.insert(attempt);
        self.unknown.entry(attempt).or_default().insert(id);
        self.refresh(row);
    }

    /// What an instance named and nobody vouched for is taken to be over.
    pub(super) fn forget_unknown(&mut self, id: InstanceId) {
        let Some(row) = self.row(id) else { return };
        for attempt in std::mem::take(&mut self.slots[row].unknown) {
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
            let slot = &mut self.slots[row];
            slot.unknown.remove(&attempt);
            if slot.unknown.is_empty() {
                resolved.push(id);
            }
            self.refresh(row);
        }
        resolved
    }

    fn held_changed(&mut self, row: u32, change: impl FnOnce(&mut Sum)) {
        let slot = &mut self.slots[row];
        slot.allocated = slot.held.sum.resources();
        if slot.is_connected() {
            change(&mut self.allocated);
        }
        self.room.set_free(row, &slot.free(), slot.held.is_nothing());
    }

    fn uncount(&mut self, row: u32) {
        let slot = &self.slots[row];
        if slot.is_connected() {
            self.capacity.take_back(&slot.profile.capacity);
            self.allocated.combine(&slot.held.sum, |sum, part| sum - part);
        }
    }

    fn count(&mut self, row: u32) {
        let slot = &self.slots[row];
        if slot.is_connected() {
            self.capacity.add(&slot.profile.capacity);
            self.allocated.combine(&slot.held.sum, |sum, part| sum + part);
        }
        self.refresh(row);
    }

    fn refresh(&mut self, row: u32) {
        let slot = &self.slots[row];
        let place = (slot.state() == InstanceState::Ready).then(|| Place {
            id: slot.profile.id,
            free: slot.free(),
            capacity: slot.profile.capacity,
            runtimes: slot.runtimes,
            images: slot.images.clone(),
            idle: slot.held.is_nothing(),
        });
        self.room.set(row, place);
    }
}
