//! The shapes of the queued jobs: equal requests are kept once and known by a number.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::fits::{Fits, ShapeSet};
use super::room::Runtimes;
use super::slab::Slab;
use crate::placement::Request;
use crate::resources::Resources;

/// So many shapes that no job has are remembered: with a short queue the same ones come and go all the time.
const UNUSED: usize = 512;

/// Number of a shape; given out again when no job has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ShapeId(u32);

impl ShapeId {
    /// Its number in a [`ShapeSet`].
    pub(super) const fn number(self) -> u32 {
        self.0
    }
}

#[derive(Clone, Debug)]
struct Shape {
    request: Arc<Request>,
    /// How many lines have it.
    lines: u32,
    /// How many of them have a head.
    heads: u32,
    /// Whether some instance could take it if nothing else ran there, and for which state of the fleet that holds.
    hope: Cell<(u64, bool)>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Shapes {
    shapes: Slab<Shape>,
    numbers: BTreeMap<Arc<Request>, ShapeId>,
    /// Shapes whose last line has gone, the oldest first; some have lines again.
    unused: VecDeque<ShapeId>,
    fits: Fits,
    /// Those that have a head.
    waiting: ShapeSet,
    /// Of those, what fitted in this look.
    fitting: ShapeSet,
    /// What fits in one place, kept for its memory only.
    here: ShapeSet,
}

impl Shapes {
    pub(super) fn request(&self, id: ShapeId) -> &Arc<Request> {
        &self.shapes[id.0].request
    }

    /// The number of this request's shape, a new one if nobody has it.
    pub(super) fn number(&mut self, request: &Arc<Request>) -> ShapeId {
        if let Some(shape) = self.numbers.get(request) {
            return *shape;
        }
        let hope = Cell::new((u64::MAX, true));
        let id = self.shapes.insert(Shape { request: Arc::clone(request), lines: 0, heads: 0, hope });
        self.numbers.insert(Arc::clone(request), ShapeId(id));
        self.fits.insert(id, request);
        ShapeId(id)
    }

    /// A line has this shape.
    pub(super) fn used(&mut self, id: ShapeId) {
        self.shapes[id.0].lines += 1;
    }

    /// A line that had this shape is gone.
    pub(super) fn released(&mut self, id: ShapeId) {
        let shape = &mut self.shapes[id.0];
        shape.lines -= 1;
        if shape.lines == 0 {
            self.unused.push_back(id);
        }
        if self.unused.len() > UNUSED
            && let Some(oldest) = self.unused.pop_front()
        {
            self.forget(oldest);
        }
    }

    /// Forgets a shape, unless it has been used again or is forgotten already.
    fn forget(&mut self, id: ShapeId) {
        if self.shapes.get(id.0).is_some_and(|shape| shape.lines == 0) {
            let shape = self.shapes.remove(id.0);
            self.numbers.remove(&shape.request);
            self.fits.remove(id.0, &shape.request);
        }
    }

    /// A line of this shape has got its first head.
    pub(super) fn waits(&mut self, id: ShapeId) {
        self.shapes[id.0].heads += 1;
        self.waiting.insert(id.0);
    }

    /// A line of this shape has lost its last head.
    pub(super) fn rests(&mut self, id: ShapeId) {
        let shape = &mut self.shapes[id.0];
        shape.heads -= 1;
        if shape.heads == 0 {
            self.waiting.remove(id.0);
        }
    }

    /// Begins a new look at what fits.
    pub(super) fn look(&mut self) {
        self.fitting.clear();
    }

    /// Adds to the look what waits and fits in `free` there.
    pub(super) fn mark_fitting(&mut self, free: &Resources, runtimes: Runtimes) {
        self.fits.fitting(&self.waiting, free, runtimes, &mut self.here);
        self.fitting.add(&self.here);
    }

    /// What fitted in this look.
    pub(super) const fn fitting(&self) -> &ShapeSet {
        &self.fitting
    }

    /// Whether some instance could take the shape if nothing else ran there; worked out once for a state of the fleet.
    pub(super) fn has_hope(&self, id: ShapeId, fleet: u64, could: impl FnOnce() -> bool) -> bool {
        let hope = &self.shapes[id.0].hope;
        let (known_for, known) = hope.get();
        if known_for == fleet {
            return known;
        }
        let found = could();
        hope.set((fleet, found));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::spec;

    #[test]
    fn unused_shapes_are_remembered_for_a_while_only() {
        let mut shapes = Shapes::default();
        let shape = |cpu_milli| {
            let resources = Resources { cpu_milli, ..Resources::ZERO };
            Arc::new(Request { resources, ..Request::of(&spec()) })
        };
        let kept = shapes.number(&shape(0));
        shapes.used(kept);
        for round in 0..3 {
            for cpu_milli in 1..2_000 {
                let id = shapes.number(&shape(cpu_milli + round));
                shapes.used(id);
                shapes.waits(id);
                shapes.look();
                shapes.mark_fitting(
                    &Resources { cpu_milli: u64::MAX, ..Resources::ZERO },
                    Runtimes::of(&all()),
                );
                assert!(shapes.fitting().word(id.number() / 64) & 1 << (id.number() % 64) != 0);
                shapes.rests(id);
                shapes.released(id);
            }
        }
        assert!(shapes.numbers.len() <= UNUSED + 1, "{}", shapes.numbers.len());
        assert_eq!(shapes.number(&shape(0)), kept);
        assert_eq!(shapes.shapes.iter().count(), shapes.numbers.len());
    }

    fn all() -> std::collections::BTreeSet<crate::instance::RuntimeKind> {
        [crate::instance::RuntimeKind::Docker, crate::instance::RuntimeKind::Process].into()
    }
}
