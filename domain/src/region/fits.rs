//! Which shapes fit in what is free, as a set with a bit for each shape.
//!
//! For each resource the shapes stand in the order of their need, and for some needs (the marks) the set of all shapes
//! that need no more is kept. What fits is the intersection, over the resources, of the set at the last mark within
//! what is free and the few shapes between that mark and what is free. So a look at 500 shapes costs a few searches and
//! a few dozen words instead of 2,000 comparisons, and is exact.

use crate::instance::RuntimeKind;
use crate::placement::Request;
use crate::resources::{ResourceKind, Resources};

use super::room::Runtimes;

/// At most so many marks in each resource.
const MARKS: usize = 64;

/// A set of shapes, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ShapeSet {
    words: Vec<u64>,
}

impl ShapeSet {
    pub(super) fn insert(&mut self, shape: u32) {
        let word = (shape / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (shape % 64);
    }

    pub(super) fn remove(&mut self, shape: u32) {
        if let Some(word) = self.words.get_mut((shape / 64) as usize) {
            *word &= !(1 << (shape % 64));
        }
    }

    /// The bits of shapes 64 × `number` and following.
    pub(super) fn word(&self, number: u32) -> u64 {
        self.words.get(number as usize).copied().unwrap_or(0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    pub(super) fn clear(&mut self) {
        self.words.clear();
    }

    pub(super) fn add(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
    }

    fn intersect(&mut self, other: &Self) {
        self.words.truncate(other.words.len());
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= other);
    }

    fn become_copy_of(&mut self, other: &Self) {
        self.words.clear();
        self.words.extend_from_slice(&other.words);
    }
}

/// The shapes that are looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Fits {
    scales: [Scale; ResourceKind::ALL.len()],
    docker: ShapeSet,
    process: ShapeSet,
    /// What is between a mark and what is free, kept for its memory only.
    between: ShapeSet,
}

impl Fits {
    pub(super) fn insert(&mut self, shape: u32, request: &Request) {
        for (scale, kind) in self.scales.iter_mut().zip(ResourceKind::ALL) {
            scale.insert(request.resources.amount(kind), shape);
        }
        self.of_runtime(request.runtime).insert(shape);
    }

    pub(super) fn remove(&mut self, shape: u32, request: &Request) {
        for (scale, kind) in self.scales.iter_mut().zip(ResourceKind::ALL) {
            scale.remove(request.resources.amount(kind), shape);
        }
        self.of_runtime(request.runtime).remove(shape);
    }

    /// Makes `set` those of `wanted` that fit in `free` and run in one of these ways.
    pub(super) fn fitting(
        &mut self,
        wanted: &ShapeSet,
        free: &Resources,
        runtimes: Runtimes,
        set: &mut ShapeSet,
    ) {
        set.become_copy_of(wanted);
        match (runtimes.contain(RuntimeKind::Docker), runtimes.contain(RuntimeKind::Process)) {
            (true, true) => {}
            (true, false) => set.intersect(&self.docker),
            (false, true) => set.intersect(&self.process),
            (false, false) => set.clear(),
        }
        for (scale, kind) in self.scales.iter().zip(ResourceKind::ALL) {
            scale.narrow(free.amount(kind), set, &mut self.between);
        }
    }

    const fn of_runtime(&mut self, runtime: RuntimeKind) -> &mut ShapeSet {
        match runtime {
            RuntimeKind::Docker => &mut self.docker,
            RuntimeKind::Process => &mut self.process,
        }
    }
}

/// The shapes in the order of what they need of one resource.
#[derive(Clone, Debug, Default)]
struct Scale {
    /// Need and shape.
    order: Vec<(u64, u32)>,
    marks: Vec<Mark>,
    /// Shapes that came or went since the marks were set.
    changes: usize,
}

/// All shapes that need no more than so much.
#[derive(Clone, Debug)]
struct Mark {
    up_to: u64,
    /// How many there are.
    shapes: usize,
    set: ShapeSet,
}

impl Scale {
    fn insert(&mut self, need: u64, shape: u32) {
        let at = self.order.partition_point(|&other| other < (need, shape));
        self.order.insert(at, (need, shape));
        for mark in self.marks.iter_mut().filter(|mark| need <= mark.up_to) {
            mark.shapes += 1;
            mark.set.insert(shape);
        }
        self.changed();
    }

    fn remove(&mut self, need: u64, shape: u32) {
        let at = self.order.partition_point(|&other| other < (need, shape));
        self.order.remove(at);
        for mark in self.marks.iter_mut().filter(|mark| need <= mark.up_to) {
            mark.shapes -= 1;
            mark.set.remove(shape);
        }
        self.changed();
    }

    fn changed(&mut self) {
        self.changes += 1;
        if self.changes * 4 > self.order.len() {
            self.set_marks();
        }
    }

    /// A mark after every so many shapes; shapes of equal need are never parted.
    fn set_marks(&mut self) {
        let apart = self.order.len() / MARKS;
        (self.changes, self.marks) = (0, Vec::new());
        let (mut set, mut since) = (ShapeSet::default(), 0);
        for (at, &(need, shape)) in self.order.iter().enumerate() {
            set.insert(shape);
            since += 1;
            let last_of_its_need = self.order.get(at + 1).is_none_or(|&(next, _)| next > need);
            if last_of_its_need && since > apart {
                self.marks.push(Mark { up_to: need, shapes: at + 1, set: set.clone() });
                since = 0;
            }
        }
    }

    /// Leaves in `set` what needs no more than `free`.
    fn narrow(&self, free: u64, set: &mut ShapeSet, between: &mut ShapeSet) {
        if self.order.last().is_none_or(|&(need, _)| need <= free) {
            return;
        }
        let mark = self.marks.partition_point(|mark| mark.up_to <= free).checked_sub(1);
        let mark = mark.map(|mark| &self.marks[mark]);
        let rest = self.order[mark.map_or(0, |mark| mark.shapes)..].iter();
        let mut rest = rest.take_while(|&&(need, _)| need <= free).map(|&(_, shape)| shape).peekable();
        match (mark, rest.peek()) {
            (None, None) => set.clear(),
            (Some(mark), None) => set.intersect(&mark.set),
            (_, Some(_)) => {
                between.clear();
                mark.into_iter().for_each(|mark| between.become_copy_of(&mark.set));
                rest.for_each(|shape| between.insert(shape));
                set.intersect(between);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn request((cpu_milli, memory_bytes, gpus, docker): (u64, u64, u64, bool)) -> Request {
        let resources = Resources { cpu_milli, memory_bytes, gpus, ..Resources::ZERO };
        let runtime = if docker { RuntimeKind::Docker } else { RuntimeKind::Process };
        Request { resources, runtime, image: None }
    }

    proptest! {
        #[test]
        fn says_of_each_shape_what_comparing_says(
            steps in prop::collection::vec((0..150u32, (0..40u64, 0..9_000u64, 0..3u64, any::<bool>())), 1..400),
            looks in prop::collection::vec(((0..45u64, 0..9_500u64, 0..4u64), 1..4u8), 1..20),
        ) {
            let (mut fits, mut shapes) = (Fits::default(), BTreeMap::new());
            for (shape, needs) in steps {
                if let Some(gone) = shapes.remove(&shape) {
                    fits.remove(shape, &request(gone));
                } else {
                    shapes.insert(shape, needs);
                    fits.insert(shape, &request(needs));
                }
            }
            let mut wanted = ShapeSet::default();
            shapes.keys().filter(|shape| **shape % 5 != 0).for_each(|&shape| wanted.insert(shape));
            for ((cpu_milli, memory_bytes, gpus), ways) in looks {
                let free = Resources { cpu_milli, memory_bytes, gpus, ..Resources::ZERO };
                let kinds = [(1, RuntimeKind::Docker), (2, RuntimeKind::Process)];
                let kinds: BTreeSet<RuntimeKind> =
                    kinds.into_iter().filter(|(bit, _)| ways & bit != 0).map(|(_, kind)| kind).collect();
                let mut set = ShapeSet::default();
                fits.fitting(&wanted, &free, Runtimes::of(&kinds), &mut set);
                for shape in 0..150 {
                    let expected = shape % 5 != 0 && shapes.get(&shape).is_some_and(|&needs| {
                        let request = request(needs);
                        request.resources.fits_in(&free) && kinds.contains(&request.runtime)
                    });
                    prop_assert_eq!(set.word(shape / 64) & 1 << (shape % 64) != 0, expected, "shape {}", shape);
                }
            }
        }
    }
}
