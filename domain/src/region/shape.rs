//! The shapes of the queued jobs: equal requests are kept once and known by a number.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::placement::Request;
use crate::resources::Resources;

/// Number of a shape; given out again when no job has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ShapeId(u32);

#[derive(Clone, Debug)]
struct Shape {
    request: Arc<Request>,
    /// How many lines have it.
    lines: u32,
    /// Whether some instance could take it if nothing else ran there, and for which state of the fleet that holds.
    hope: Cell<(u64, bool)>,
}

/// What a shape needs, side by side with the others' for a quick look.
#[derive(Clone, Copy, Debug)]
struct Need {
    resources: Resources,
    shape: ShapeId,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Shapes {
    shapes: Vec<Option<Shape>>,
    vacant: Vec<ShapeId>,
    numbers: BTreeMap<Arc<Request>, ShapeId>,
    /// By the CPU they need.
    needs: Vec<Need>,
    /// For each shape the last look in which it fitted.
    fitted: Vec<u64>,
    looks: u64,
}

impl Shapes {
    pub(super) fn request(&self, id: ShapeId) -> &Arc<Request> {
        &self.shape(id).request
    }

    /// The number of this request's shape, a new one if nobody has it.
    pub(super) fn number(&mut self, request: &Arc<Request>) -> ShapeId {
        if let Some(shape) = self.numbers.get(request) {
            return *shape;
        }
        let shape = Shape { request: Arc::clone(request), lines: 0, hope: Cell::new((u64::MAX, true)) };
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.shapes.push(None);
            self.fitted.push(0);
            ShapeId(u32::try_from(self.shapes.len() - 1).expect("fewer shapes than jobs"))
        });
        self.shapes[id.0 as usize] = Some(shape);
        self.fitted[id.0 as usize] = 0;
        self.numbers.insert(Arc::clone(request), id);
        let need = Need { resources: request.resources, shape: id };
        let at = self.needs.partition_point(|other| other.resources.cpu_milli <= need.resources.cpu_milli);
        self.needs.insert(at, need);
        id
    }

    /// A line has this shape.
    pub(super) fn used(&mut self, id: ShapeId) {
        self.shape_mut(id).lines += 1;
    }

    /// A line that had this shape is gone.
    pub(super) fn released(&mut self, id: ShapeId) {
        let shape = self.shape_mut(id);
        shape.lines -= 1;
        if shape.lines == 0 {
            let shape = self.shapes[id.0 as usize].take().expect("changed above");
            self.numbers.remove(&shape.request);
            self.needs.retain(|need| need.shape != id);
            self.vacant.push(id);
        }
    }

    /// Begins a new look at what fits.
    pub(super) fn look(&mut self) {
        self.looks += 1;
    }

    /// Marks what fits in `free`; says whether anything does.
    pub(super) fn mark_fitting(&mut self, free: &Resources) -> bool {
        let mut any = false;
        for need in self.needs.iter().take_while(|need| need.resources.cpu_milli <= free.cpu_milli) {
            if need.resources.fits_in(free) {
                self.fitted[need.shape.0 as usize] = self.looks;
                any = true;
            }
        }
        any
    }

    /// Whether the shape was marked in this look.
    pub(super) fn fits(&self, id: ShapeId) -> bool {
        self.fitted[id.0 as usize] == self.looks
    }

    /// Whether some instance could take the shape if nothing else ran there; worked out once for a state of the fleet.
    pub(super) fn has_hope(&self, id: ShapeId, fleet: u64, could: impl FnOnce() -> bool) -> bool {
        let hope = &self.shape(id).hope;
        let (known_for, known) = hope.get();
        if known_for == fleet {
            return known;
        }
        let found = could();
        hope.set((fleet, found));
        found
    }

    fn shape(&self, id: ShapeId) -> &Shape {
        self.shapes[id.0 as usize].as_ref().expect("a shape lives as long as its lines")
    }

    fn shape_mut(&mut self, id: ShapeId) -> &mut Shape {
        self.shapes[id.0 as usize].as_mut().expect("a shape lives as long as its lines")
    }
}
