//! The instances of a region and the ledger of what is allocated on each.

use std::collections::{BTreeMap, BTreeSet};

use crate::attempt::AttemptId;
use crate::id::InstanceId;
use crate::instance::{InstanceProfile, InstanceState};
use crate::placement::Candidate;
use crate::resources::{ResourceKind, Resources};
use crate::time::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    Attached,
    Away,
    Lost,
}

/// An instance with its ledger.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) profile: InstanceProfile,
    pub(super) connection: Connection,
    pub(super) draining: bool,
    pub(super) allocated: Resources,
    /// Attempts that its hello named and nobody has vouched for; what they use is not known.
    pub(super) unknown: BTreeSet<AttemptId>,
    /// What it said it has not, although nothing that is known here holds it; until its next profile or for a pause.
    pub(super) withheld: Resources,
    /// Refusals since it last began an attempt: each makes the next pause longer.
    pub(super) refusals: u32,
    pub(super) state_since: Timestamp,
}

impl Slot {
    pub(super) fn state(&self) -> InstanceState {
        match self.connection {
            Connection::Lost => InstanceState::Lost,
            Connection::Away => InstanceState::Disconnected,
            Connection::Attached if self.draining => InstanceState::Draining,
            Connection::Attached if !self.profile.problems.is_empty() => InstanceState::Unhealthy,
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
}

#[derive(Clone, Debug, Default)]
pub(super) struct Fleet {
    slots: BTreeMap<InstanceId, Slot>,
}

impl Fleet {
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    pub(super) fn slot(&self, id: InstanceId) -> Option<&Slot> {
        self.slots.get(&id)
    }

    pub(super) fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> + Clone {
        self.slots.values().map(Slot::candidate)
    }

    /// An instance has connected; `allocated` is what the region knows to run there.
    pub(super) fn attach(&mut self, profile: InstanceProfile, allocated: Resources, now: Timestamp) {
        let (connection, draining, unknown) = (Connection::Attached, false, BTreeSet::new());
        let withheld = Resources::ZERO;
        let mut slot = Slot {
            profile,
            connection,
            draining,
            allocated,
            unknown,
            withheld,
            refusals: 0,
            state_since: now,
        };
        if let Some(before) = self.slots.get(&slot.profile.id).filter(|before| before.state() == slot.state())
        {
            slot.state_since = before.state_since;
        }
        self.slots.insert(slot.profile.id, slot);
    }

    /// Changes an instance that is there, and keeps the time of its last change of state.
    pub(super) fn change(&mut self, id: InstanceId, now: Timestamp, change: impl FnOnce(&mut Slot)) -> bool {
        let Some(slot) = self.slots.get_mut(&id) else { return false };
        let before = slot.state();
        change(slot);
        if slot.state() != before {
            slot.state_since = now;
        }
        true
    }

    pub(super) fn remove(&mut self, id: InstanceId) {
        self.slots.remove(&id);
    }

    pub(super) fn allocate(&mut self, id: InstanceId, resources: &Resources) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.allocated = slot.allocated.saturating_add(resources);
        }
    }

    pub(super) fn allocate_exactly(&mut self, id: InstanceId, allocated: Resources) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.allocated = allocated;
        }
    }

    /// Takes back what was allocated; `false` when the ledger cannot tell, since it stands at the largest number.
    pub(super) fn release(&mut self, id: InstanceId, resources: &Resources) -> bool {
        let Some(slot) = self.slots.get_mut(&id) else { return true };
        let is_full = ResourceKind::ALL.iter().any(|&kind| slot.allocated.amount(kind) == u64::MAX);
        let left = slot.allocated.checked_sub(resources).filter(|_| !is_full);
        slot.allocated = left.unwrap_or(slot.allocated);
        left.is_some()
    }

    /// The attempt is known, or over: it is no unknown one any more. Names the instances of which it was the last.
    pub(super) fn resolve_unknown(&mut self, attempt: AttemptId) -> Vec<InstanceId> {
        let resolved = self.slots.values_mut().filter_map(|slot| {
            (slot.unknown.remove(&attempt) && slot.unknown.is_empty()).then_some(slot.profile.id)
        });
        resolved.collect()
    }
}
