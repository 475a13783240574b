//! Finds the number of a thing by its id, while the things and their ids are kept elsewhere.
//!
//! An open hash table with linear probing that holds, for each thing, its number and 32 bits of a hash of its id: 8 bytes
//! in a table that is between a third and five eighths full. A look-up touches one line of memory here and the thing
//! itself. It cannot be walked, so nothing depends on the order in which things lie in it.

use std::hint::black_box;

/// No number.
const EMPTY: u64 = u64::MAX;
const SMALLEST: usize = 16;

/// Numbers by id; the id of a number is asked of `id_of`.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// A power of two of slots: the hash above, the number below.
    slots: Vec<u64>,
    len: usize,
}

impl Index {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn find(&self, id: u128, id_of: impl Fn(u32) -> u128) -> Option<u32> {
        self.position(id, id_of).map(|at| number(self.slots[at]))
    }

    /// Has the place of an id brought near, so that it is there when it is looked for a little later.
    pub(super) fn touch(&self, id: u128) {
        black_box(self.slots.get(self.home(hash(id))).copied());
    }

    /// The number that this id has or another of the same hash; good for bringing things near.
    pub(super) fn guess(&self, id: u128) -> Option<u32> {
        let slot = *self.slots.get(self.home(hash(id)))?;
        (slot != EMPTY).then(|| number(slot))
    }

    /// Notes a thing that is not there.
    pub(super) fn insert(&mut self, id: u128, number: u32) {
        if self.len * 8 >= self.slots.len() * 5 {
            self.grow();
        }
        self.len += 1;
        self.put(u64::from(hash(id)) << 32 | u64::from(number));
    }

    pub(super) fn remove(&mut self, id: u128, id_of: impl Fn(u32) -> u128) -> Option<u32> {
        let at = self.position(id, id_of)?;
        let found = number(self.slots[at]);
        self.len -= 1;
        self.close_gap(at);
        Some(found)
    }

    fn position(&self, id: u128, id_of: impl Fn(u32) -> u128) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let (hash, last) = (hash(id), self.slots.len() - 1);
        let mut at = self.home(hash);
        loop {
            let slot = self.slots[at];
            if slot == EMPTY {
                return None;
            }
            if slot >> 32 == u64::from(hash) && id_of(number(slot)) == id {
                return Some(at);
            }
            at = (at + 1) & last;
        }
    }

    /// Where a hash belongs: its highest bits.
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.slots.len() as u64) >> 32) as usize
    }

    fn put(&mut self, slot: u64) {
        let last = self.slots.len() - 1;
        let mut at = self.home(hash_of(slot));
        while self.slots[at] != EMPTY {
            at = (at + 1) & last;
        }
        self.slots[at] = slot;
    }

    /// Moves up what lies behind a gap, so that every slot is reached from its home without crossing an empty one.
    fn close_gap(&mut self, mut gap: usize) {
        let last = self.slots.len() - 1;
        let mut at = gap;
        loop {
            at = (at + 1) & last;
            let slot = self.slots[at];
            if slot == EMPTY {
                break;
            }
            let from_home = at.wrapping_sub(self.home(hash_of(slot))) & last;
            if from_home >= (at.wrapping_sub(gap) & last) {
                self.slots[gap] = slot;
                gap = at;
            }
        }
        self.slots[gap] = EMPTY;
    }

    fn grow(&mut self) {
        let larger = (self.slots.len() * 2).max(SMALLEST);
        let slots = std::mem::replace(&mut self.slots, vec![EMPTY; larger]);
        slots.into_iter().filter(|&slot| slot != EMPTY).for_each(|slot| self.put(slot));
    }
}

const fn number(slot: u64) -> u32 {
    (slot & 0xffff_ffff) as u32
}

const fn hash_of(slot: u64) -> u32 {
    (slot >> 32) as u32
}

/// Mixes an id, of which neighbours differ in few bits (the finalizer of SplitMix64).
const fn hash(id: u128) -> u32 {
    let (high, low) = ((id >> 64) as u64, id as u64);
    let mut mixed = low ^ high.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn finds_what_a_map_finds(steps in prop::collection::vec((any::<bool>(), 0..60u128), 0..400)) {
            let (mut index, mut ids, mut map) = (Index::default(), Vec::new(), BTreeMap::new());
            for (add, id) in steps {
                // Many ids of few bits, so that homes collide.
                let id = id << 3;
                let found = index.find(id, |number| ids[number as usize]);
                prop_assert_eq!(found, map.get(&id).copied());
                if add && found.is_none() {
                    let number = u32::try_from(ids.len()).unwrap();
                    ids.push(id);
                    index.insert(id, number);
                    map.insert(id, number);
                } else if !add {
                    prop_assert_eq!(index.remove(id, |number| ids[number as usize]), map.remove(&id));
                }
                prop_assert_eq!(index.len(), map.len());
            }
            for (&id, &number) in &map {
                prop_assert_eq!(index.find(id, |number| ids[number as usize]), Some(number));
            }
        }
    }

    #[test]
    fn neighbours_lie_apart() {
        let mut hashes: Vec<u32> = (0..100_000).map(hash).collect();
        hashes.sort_unstable();
        let widest = hashes.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(widest.is_some_and(|widest| widest < 20 * (u32::MAX / 100_000)), "{widest:?}");
    }
}
