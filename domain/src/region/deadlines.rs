//! When numbered things become due: at most one time for each, cheap to set and to take back.
//!
//! Deadlines are mostly set in the order in which they come: each is the time now and a fixed span. So they are kept in a
//! few queues, each in order; what fits behind none of them goes into a heap. A time that was taken back stays where it
//! is until it comes first or until such remains are the larger part. Invariant: the first of each queue still counts.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::hint::black_box;

use crate::time::Timestamp;

/// At most so many queues.
const QUEUES: usize = 8;
/// Fewer remains than this are left alone.
const FEW: usize = 1024;
/// Stands for no deadline.
const NONE: u32 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Timestamp,
    number: u32,
    /// What this deadline was given when it was set.
    stamp: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Deadlines {
    queues: Vec<VecDeque<Due>>,
    others: BinaryHeap<Reverse<Due>>,
    /// The stamp of each thing's deadline.
    stamps: Vec<u32>,
    last_stamp: u32,
    /// How many deadlines count.
    len: usize,
    /// How many there are, remains included.
    kept: usize,
}

impl Deadlines {
    /// Sets or moves the deadline of a thing.
    pub(super) fn set(&mut self, number: u32, at: Timestamp) {
        if self.last_stamp == u32::MAX {
            self.clear_remains();
        }
        let index = number as usize;
        if index >= self.stamps.len() {
            self.stamps.resize(index + 1, NONE);
        }
        self.last_stamp += 1;
        self.len += usize::from(self.stamps[index] == NONE);
        self.kept += 1;
        self.stamps[index] = self.last_stamp;
        self.put(Due { at, number, stamp: self.last_stamp });
        self.settle();
    }

    /// Takes the deadline of a thing back, if it has one.
    pub(super) fn cancel(&mut self, number: u32) {
        let Some(stamp) = self.stamps.get_mut(number as usize).filter(|stamp| **stamp != NONE) else {
            return;
        };
        *stamp = NONE;
        self.len -= 1;
        self.settle();
    }

    /// Has what is known of a thing brought near, so that it is there when it is used a little later.
    pub(super) fn touch(&self, number: u32) {
        black_box(self.stamps.get(number as usize).copied());
    }

    pub(super) fn first(&self) -> Option<Timestamp> {
        self.peek().map(|due| due.at)
    }

    /// Takes out what is due, the earliest first.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Vec<(Timestamp, u32)> {
        let mut taken = Vec::new();
        while let Some(&Due { at, number, .. }) = self.peek().filter(|due| due.at <= now) {
            self.cancel(number);
            taken.push((at, number));
        }
        taken
    }

    fn peek(&self) -> Option<&Due> {
        let queues = self.queues.iter().filter_map(VecDeque::front);
        queues.chain(self.others.peek().map(|Reverse(due)| due)).min()
    }

    fn put(&mut self, due: Due) {
        let behind = |queue: &&mut VecDeque<Due>| queue.back().is_none_or(|last| last.at <= due.at);
        if let Some(queue) = self.queues.iter_mut().find(behind) {
            queue.push_back(due);
        } else if self.queues.len() < QUEUES {
            self.queues.push(VecDeque::from([due]));
        } else {
            self.others.push(Reverse(due));
        }
    }

    /// Takes away the remains that come first, and all when they are the larger part.
    fn settle(&mut self) {
        let stamps = &self.stamps;
        let remains = |due: &Due| stamps[due.number as usize] != due.stamp;
        for queue in &mut self.queues {
            while queue.front().is_some_and(remains) {
                queue.pop_front();
                self.kept -= 1;
            }
        }
        while self.others.peek().is_some_and(|Reverse(due)| remains(due)) {
            self.others.pop();
            self.kept -= 1;
        }
        if self.kept > 2 * self.len + FEW {
            self.clear_remains();
        }
    }

    /// Keeps what counts only, with new stamps.
    fn clear_remains(&mut self) {
        let stamps = &self.stamps;
        let counts = |due: &Due| stamps[due.number as usize] == due.stamp;
        self.queues.iter_mut().for_each(|queue| queue.retain(counts));
        let mut others = std::mem::take(&mut self.others).into_vec();
        others.retain(|Reverse(due)| counts(due));
        (self.last_stamp, self.kept) = (0, self.len);
        let others_too = others.iter_mut().map(|Reverse(due)| due);
        for due in self.queues.iter_mut().flatten().chain(others_too) {
            self.last_stamp += 1;
            due.stamp = self.last_stamp;
            self.stamps[due.number as usize] = self.last_stamp;
        }
        self.others = others.into();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Cancel(u32),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..40u32, prop_oneof![Just(100), Just(60), 0..200u64]).prop_map(|(n, span)| Step::Set(n, span)),
            2 => (0..40u32).prop_map(Step::Cancel),
            1 => (0..50u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn tells_what_a_map_tells(steps in prop::collection::vec(step(), 0..300), clears in 1..20usize) {
            let (mut deadlines, mut map, mut now) = (Deadlines::default(), BTreeMap::new(), 0);
            for (count, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Set(number, span) => {
                        deadlines.set(number, at(now + span));
                        map.insert(number, at(now + span));
                    }
                    Step::Cancel(number) => {
                        deadlines.cancel(number);
                        map.remove(&number);
                    }
                    Step::Pass(time) => {
                        now += time;
                        let mut due: Vec<(Timestamp, u32)> =
                            map.iter().map(|(&number, &at)| (at, number)).filter(|due| due.0 <= at(now)).collect();
                        due.sort_unstable();
                        map.retain(|_, due| *due > at(now));
                        let mut told = deadlines.take_due(at(now));
                        prop_assert!(told.is_sorted_by_key(|&(at, _)| at));
                        told.sort_unstable();
                        prop_assert_eq!(told, due);
                    }
                }
                if count % clears == 0 {
                    deadlines.clear_remains();
                    prop_assert_eq!(deadlines.kept, map.len());
                }
                prop_assert_eq!(deadlines.first(), map.values().min().copied());
            }
        }
    }

    #[test]
    fn remains_never_outgrow_what_counts() {
        let mut deadlines = Deadlines::default();
        // One that never comes stands before all the others.
        deadlines.set(0, at(0));
        for round in 1..100_000u32 {
            deadlines.set(1 + round % 100, at(round.into()));
        }
        assert!(deadlines.kept <= 2 * 101 + FEW, "{}", deadlines.kept);
        let others: usize = deadlines.queues.iter().map(VecDeque::len).sum();
        assert_eq!(others + deadlines.others.len(), deadlines.kept);
    }
}
