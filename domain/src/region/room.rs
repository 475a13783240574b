//! What is free on each instance, packed closely, so that a look over ten thousand instances touches little memory.
//!
//! Busy instances are looked at in blocks; a block whose most generous instance in each resource is too small for a
//! request is passed over at once. Idle instances that are alike are looked at as one.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;

use crate::id::InstanceId;
use crate::instance::RuntimeKind;
use crate::resources::{ResourceKind, Resources};

const BLOCK: usize = 16;
/// How many of a group of idle instances are looked at: two may be reserved.
const OF_A_GROUP: usize = 3;

/// An instance that takes work, as placement looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) id: InstanceId,
    pub(super) free: Resources,
    pub(super) capacity: Resources,
    pub(super) runtimes: Runtimes,
    pub(super) images: Images,
    /// Nothing is held there.
    pub(super) idle: bool,
}

/// A set of ways to run engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Runtimes(u8);

impl Runtimes {
    pub(super) fn of(runtimes: &BTreeSet<RuntimeKind>) -> Self {
        Self(runtimes.iter().fold(0, |set, &runtime| set | Self::bit(runtime)))
    }

    pub(super) fn contain(self, runtime: RuntimeKind) -> bool {
        self.0 & Self::bit(runtime) != 0
    }

    const fn bit(runtime: RuntimeKind) -> u8 {
        match runtime {
            RuntimeKind::Docker => 1,
            RuntimeKind::Process => 2,
        }
    }
}

/// Numbers of the images that an instance has, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Images {
    /// Which of the first 64 images are there.
    first: u64,
    others: Vec<u32>,
}

impl Images {
    pub(super) fn of(numbers: impl Iterator<Item = u32>) -> Self {
        let mut images = Self::default();
        for number in numbers {
            if number < 64 {
                images.first |= 1 << number;
            } else {
                images.others.push(number);
            }
        }
        images.others.sort_unstable();
        images
    }

    pub(super) fn contain(&self, number: u32) -> bool {
        if number < 64 { self.first & (1 << number) != 0 } else { self.others.binary_search(&number).is_ok() }
    }
}

/// What idle instances must have in common to be looked at as one.
type Kind = (Resources, Resources, Runtimes, Images);

#[derive(Clone, Debug, Default)]
pub(super) struct Room {
    rows: Vec<Option<Place>>,
    /// What is free on busy instances, side by side; nothing for the others.
    busy: Vec<Resources>,
    /// In each resource the most that is free on a busy instance of the block.
    most: Vec<Resources>,
    idle: BTreeMap<Kind, BTreeSet<(InstanceId, u32)>>,
}

impl Room {
    /// What there is in `row`; `None` when it takes no work.
    pub(super) fn set(&mut self, row: u32, place: Option<Place>) {
        let index = row as usize;
        if index >= self.rows.len() {
            self.rows.resize(index + 1, None);
            self.busy.resize(index + 1, Resources::ZERO);
            self.most.resize(self.rows.len().div_ceil(BLOCK), Resources::ZERO);
        }
        if let Some(idle) = self.rows[index].take().filter(|before| before.idle) {
            self.leave_group(&idle, row);
        }
        let mut busy = Resources::ZERO;
        match &place {
            Some(idle) if idle.idle => drop(self.idle.entry(kind(idle)).or_default().insert((idle.id, row))),
            Some(place) => busy = place.free,
            None => {}
        }
        self.rows[index] = place;
        self.set_busy(index, &busy);
    }

    /// What is free in `row` has changed, and nothing else.
    pub(super) fn set_free(&mut self, row: u32, free: &Resources, idle: bool) {
        let Some(place) = self.rows.get_mut(row as usize).and_then(Option::as_mut) else { return };
        if place.idle || idle {
            let place = Place { free: *free, idle, ..place.clone() };
            return self.set(row, Some(place));
        }
        place.free = *free;
        self.set_busy(row as usize, free);
    }

    fn set_busy(&mut self, index: usize, free: &Resources) {
        let before = std::mem::replace(&mut self.busy[index], *free);
        let block = index / BLOCK;
        let most = &mut self.most[block];
        let had_the_most = ResourceKind::ALL
            .into_iter()
            .any(|kind| free.amount(kind) < before.amount(kind) && before.amount(kind) == most.amount(kind));
        *most = if had_the_most {
            let rows = &self.busy[block * BLOCK..self.busy.len().min((block + 1) * BLOCK)];
            rows.iter().fold(Resources::ZERO, |most, free| most.max_each(free))
        } else {
            most.max_each(free)
        };
    }

    fn leave_group(&mut self, idle: &Place, row: u32) {
        let kind = kind(idle);
        if let Some(group) = self.idle.get_mut(&kind) {
            group.remove(&(idle.id, row));
            if group.is_empty() {
                self.idle.remove(&kind);
            }
        }
    }

    /// Has what there is in `row` brought near, so that it is there when it is used a little later.
    pub(super) fn touch(&self, row: u32) {
        let row = row as usize;
        black_box((
            self.rows.get(row).is_some_and(Option::is_some),
            self.busy.get(row).map(|busy| busy.cpu_milli),
        ));
    }

    /// What there is in `row`, if it takes work.
    pub(super) fn place(&self, row: u32) -> Option<&Place> {
        self.rows.get(row as usize)?.as_ref()
    }

    /// The places in which `need` is free; of idle instances that are alike, the first few.
    pub(super) fn fitting<'a>(&'a self, need: &'a Resources) -> impl Iterator<Item = &'a Place> + 'a {
        let blocks = self.most.iter().enumerate().filter(|(_, most)| need.fits_in(most));
        let busy = blocks.flat_map(move |(block, _)| {
            let first = block * BLOCK;
            let free = self.busy[first..self.busy.len().min(first + BLOCK)].iter().enumerate();
            let fitting = free.filter(|(_, free)| need.fits_in(free));
            // What needs nothing fits in the nothing of those that are not busy, too.
            fitting.filter_map(move |(at, _)| self.rows[first + at].as_ref().filter(|place| !place.idle))
        });
        let groups = self.idle.iter().filter(move |((free, ..), _)| need.fits_in(free));
        let idle = groups.flat_map(|(_, group)| group.iter().take(OF_A_GROUP));
        busy.chain(idle.filter_map(|&(_, row)| self.place(row)))
    }
}

fn kind(place: &Place) -> Kind {
    (place.free, place.capacity, place.runtimes, place.images.clone())
}
