//! The jobs of a line in their order, as numbers of their entries: four bytes a job.
//!
//! Mostly the first leaves and a new one comes last. What comes or leaves in between moves at most half a chunk. The
//! keys by which the numbers are ordered stay with the entries and are asked for.

use std::collections::VecDeque;

/// Longest chunk.
const CHUNK: usize = 512;

#[derive(Clone, Debug, Default)]
pub(super) struct Lane {
    /// None is empty.
    chunks: VecDeque<VecDeque<u32>>,
    len: usize,
}

impl Lane {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn first(&self) -> Option<u32> {
        self.chunks.front()?.front().copied()
    }

    /// The one behind the first, if both are in the same chunk.
    pub(super) fn second(&self) -> Option<u32> {
        self.chunks.front()?.get(1).copied()
    }

    /// How many keys are less than this one.
    pub(super) fn before<K: Ord>(&self, wanted: &K, key: impl Fn(u32) -> K) -> usize {
        let Some(chunk) = self.chunk_of(wanted, &key) else { return 0 };
        let whole: usize = self.chunks.iter().take(chunk).map(VecDeque::len).sum();
        whole + position(&self.chunks[chunk], wanted, &key)
    }

    /// Lets in a number whose key is not there.
    pub(super) fn insert<K: Ord>(&mut self, number: u32, key: impl Fn(u32) -> K) {
        let wanted = key(number);
        self.len += 1;
        let last = self.chunks.back().and_then(VecDeque::back);
        match last.is_some_and(|&last| wanted < key(last)) {
            false => self.append(number),
            true => self.insert_before_the_last(number, &wanted, &key),
        }
    }

    /// Takes out a number that is there.
    pub(super) fn remove<K: Ord>(&mut self, number: u32, key: impl Fn(u32) -> K) {
        self.len -= 1;
        let (mut chunk, mut at) = (0, 0);
        if self.first() != Some(number) {
            let wanted = key(number);
            chunk = self.chunk_of(&wanted, &key).expect("the number is there");
            at = position(&self.chunks[chunk], &wanted, &key);
        }
        let removed = self.chunks[chunk].remove(at);
        debug_assert_eq!(removed, Some(number), "found by its key");
        if self.chunks[chunk].is_empty() {
            self.chunks.remove(chunk);
        }
    }

    fn append(&mut self, number: u32) {
        match self.chunks.back_mut().filter(|chunk| chunk.len() < CHUNK) {
            Some(chunk) => chunk.push_back(number),
            None => self.chunks.push_back(VecDeque::from([number])),
        }
    }

    fn insert_before_the_last<K: Ord>(&mut self, number: u32, wanted: &K, key: &impl Fn(u32) -> K) {
        let index = self.chunk_of(wanted, key).unwrap_or(0);
        let chunk = &mut self.chunks[index];
        chunk.insert(position(chunk, wanted, key), number);
        if chunk.len() > CHUNK {
            let rest = chunk.split_off(CHUNK / 2);
            self.chunks.insert(index + 1, rest);
        }
    }

    /// The last chunk that begins with a key not above this one.
    fn chunk_of<K: Ord>(&self, wanted: &K, key: &impl Fn(u32) -> K) -> Option<usize> {
        self.chunks.partition_point(|chunk| key(chunk[0]) <= *wanted).checked_sub(1)
    }
}

/// How many keys of the chunk are less than this one.
fn position<K: Ord>(chunk: &VecDeque<u32>, wanted: &K, key: &impl Fn(u32) -> K) -> usize {
    chunk.partition_point(|&number| key(number) < *wanted)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keeps_the_order_of_a_set(steps in prop::collection::vec((any::<bool>(), 0..3_000u32), 0..6_000)) {
            let (mut lane, mut set) = (Lane::default(), BTreeSet::new());
            // The order of the keys is not that of the numbers.
            let key = |number: u32| number.wrapping_mul(0x9e37_79b9);
            for (add, number) in steps {
                if add && set.insert((key(number), number)) {
                    lane.insert(number, key);
                } else if !add && set.remove(&(key(number), number)) {
                    lane.remove(number, key);
                }
                prop_assert_eq!(lane.first(), set.first().map(|&(_, number)| number));
                prop_assert_eq!(lane.len(), set.len());
            }
            for (place, (wanted, _)) in set.iter().enumerate() {
                prop_assert_eq!(lane.before(wanted, key), place);
                prop_assert_eq!(lane.before(&(wanted + 1), key), place + 1);
            }
        }
    }

    #[test]
    fn a_long_lane_is_served_from_the_front_and_cut_anywhere() {
        let mut lane = Lane::default();
        (0..10_000).for_each(|number| lane.insert(number, |number| number));
        (0..10_000).filter(|number| number % 3 == 0).for_each(|number| lane.remove(number, |number| number));
        let served = std::iter::from_fn(|| {
            let first = lane.first()?;
            lane.remove(first, |number| number);
            Some(first)
        });
        let expected: Vec<u32> = (0..10_000).filter(|number| number % 3 != 0).collect();
        assert_eq!(served.collect::<Vec<_>>(), expected);
        assert!(lane.chunks.is_empty());
    }
}
