//! The queued jobs of a region, grouped by shape: jobs with equal requests wait in one line, so that a request that
//! no instance takes is tried once and not once per job.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::QueuedJob;
use crate::id::JobId;
use crate::placement::Request;
use crate::time::Timestamp;

/// A job's place in the order: priority (higher first), then queue time, then id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    priority: Reverse<u16>,
    queued_at: Timestamp,
    pub(super) job: JobId,
}

impl Rank {
    pub(super) fn of(job: &QueuedJob) -> Self {
        Self { priority: Reverse(job.priority), queued_at: job.queued_at, job: job.id }
    }
}

/// Number of a shape, in the order in which they were first seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ShapeId(u64);

#[derive(Clone, Debug)]
struct Shape {
    request: Request,
    /// How many queued jobs have it, in line or not.
    members: usize,
    line: BTreeSet<Rank>,
    trial: Trial,
}

/// What is known of a shape since something last changed for the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    /// Its first job is worth a try.
    Open,
    /// No instance takes its first job now.
    Blocked,
    /// No instance would take it even if nothing else ran there.
    Hopeless,
}

#[derive(Clone, Debug)]
struct Entry {
    job: QueuedJob,
    shape: ShapeId,
    /// Whether it stands in its shape's line; a pausing or expiring job does not.
    in_line: bool,
}

/// The first job of a shape's line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) rank: Rank,
    pub(super) shape: ShapeId,
    pub(super) trial: Trial,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    jobs: BTreeMap<JobId, Entry>,
    shapes: BTreeMap<ShapeId, Shape>,
    numbers: BTreeMap<Request, ShapeId>,
    heads: BTreeSet<(Rank, ShapeId)>,
    next_shape: u64,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(super) fn job(&self, id: JobId) -> Option<&QueuedJob> {
        self.jobs.get(&id).map(|entry| &entry.job)
    }

    /// Rank of a job that may be placed now.
    pub(super) fn rank_in_line(&self, id: JobId) -> Option<Rank> {
        self.jobs.get(&id).filter(|entry| entry.in_line).map(|entry| Rank::of(&entry.job))
    }

    /// Jobs that are in line before this one.
    pub(super) fn ahead_of(&self, job: &QueuedJob) -> usize {
        let rank = Rank::of(job);
        self.shapes.values().map(|shape| shape.line.range(..rank).count()).sum()
    }

    pub(super) fn jobs(&self) -> impl Iterator<Item = &QueuedJob> {
        self.jobs.values().map(|entry| &entry.job)
    }

    /// Adds a job that is not there, in line or not.
    pub(super) fn insert(&mut self, job: QueuedJob, in_line: bool) {
        let (id, shape) = (job.id, self.shape_of(&job.request));
        self.shapes.get_mut(&shape).expect("found or made above").members += 1;
        self.jobs.insert(id, Entry { job, shape, in_line: false });
        if in_line {
            self.enter_line(id);
        }
    }

    /// Lets a job into its line, at its rank.
    pub(super) fn enter_line(&mut self, id: JobId) {
        let Some(entry) = self.jobs.get_mut(&id).filter(|entry| !entry.in_line) else { return };
        entry.in_line = true;
        let (rank, shape) = (Rank::of(&entry.job), entry.shape);
        self.change_line(shape, |line| line.insert(rank));
    }

    /// Takes a job out of its line; it stays queued.
    pub(super) fn leave_line(&mut self, id: JobId) {
        let Some(entry) = self.jobs.get_mut(&id).filter(|entry| entry.in_line) else { return };
        entry.in_line = false;
        let (rank, shape) = (Rank::of(&entry.job), entry.shape);
        self.change_line(shape, |line| line.remove(&rank));
    }

    pub(super) fn remove(&mut self, id: JobId) -> Option<QueuedJob> {
        self.leave_line(id);
        let entry = self.jobs.remove(&id)?;
        self.forget_member(entry.shape);
        Some(entry.job)
    }

    /// The first head after `previous` in the order of ranks.
    pub(super) fn head_after(&self, previous: Option<Head>) -> Option<Head> {
        let after = previous.map_or(Bound::Unbounded, |head| Bound::Excluded((head.rank, head.shape)));
        let &(rank, shape) = self.heads.range((after, Bound::Unbounded)).next()?;
        let trial = self.shapes.get(&shape).map_or(Trial::Open, |shape| shape.trial);
        Some(Head { rank, shape, trial })
    }

    pub(super) fn tried(&mut self, shape: ShapeId, trial: Trial) {
        if let Some(shape) = self.shapes.get_mut(&shape) {
            shape.trial = trial;
        }
    }

    /// Something changed for the better: every shape is worth a try again.
    pub(super) fn unblock(&mut self) {
        for shape in self.shapes.values_mut() {
            shape.trial = Trial::Open;
        }
    }

    fn shape_of(&mut self, request: &Request) -> ShapeId {
        if let Some(shape) = self.numbers.get(request) {
            return *shape;
        }
        let shape = ShapeId(self.next_shape);
        self.next_shape += 1;
        self.numbers.insert(request.clone(), shape);
        let request = request.clone();
        self.shapes.insert(shape, Shape { request, members: 0, line: BTreeSet::new(), trial: Trial::Open });
        shape
    }

    fn forget_member(&mut self, id: ShapeId) {
        let shape = self.shapes.get_mut(&id).expect("a queued job's shape is there");
        shape.members -= 1;
        if shape.members == 0 {
            self.numbers.remove(&shape.request);
            self.shapes.remove(&id);
        }
    }

    fn change_line(&mut self, id: ShapeId, change: impl FnOnce(&mut BTreeSet<Rank>) -> bool) {
        let shape = self.shapes.get_mut(&id).expect("a queued job's shape is there");
        let before = shape.line.first().copied();
        change(&mut shape.line);
        let after = shape.line.first().copied();
        if before != after {
            // A new first job may do what the one before could not: stand before a reservation.
            if before.is_none() || after < before {
                shape.trial = Trial::Open;
            }
            if let Some(rank) = before {
                self.heads.remove(&(rank, id));
            }
            if let Some(rank) = after {
                self.heads.insert((rank, id));
            }
        }
    }
}
