//! The queued jobs of a region: a compact entry for each, and one line for all jobs that are placed alike.
//!
//! Jobs of the same shape (equal requests), priority, account and factory stand in one line, the oldest first, and only
//! its head is ever tried: so a decision costs the same with a thousand jobs in line as with a million. A line that no
//! instance takes is tried again only where something has changed for the better. What a job shares with others (its
//! request, its account, its priority) is kept once per line; an entry takes 64 bytes, its place in line 4.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::QueuedJob;
use super::deadlines::Deadlines;
use super::index::Index;
use super::lane::Lane;
use super::order::{BundleId, Head, Order, Rank};
use super::shape::{ShapeId, Shapes};
use super::slab::Slab;
use crate::id::{AccountId, Epoch, FactoryId, JobId};
use crate::time::Timestamp;

/// Number of a line; given out again when the line is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LineId(u32);

/// What the jobs of a line have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LineKey {
    pub(super) priority: u16,
    pub(super) account: AccountId,
    pub(super) factory: Option<FactoryId>,
    pub(super) shape: ShapeId,
}

#[derive(Clone, Debug)]
struct Line {
    key: LineKey,
    bundle: BundleId,
    /// How many queued jobs have it, in line or not.
    members: u32,
    lane: Lane,
    head: Option<Head>,
}

/// A time that may be missing, in eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Maybe(u64);

impl Maybe {
    const NONE: u64 = u64::MAX;

    pub(super) fn of(time: Option<Timestamp>) -> Self {
        Self(time.map_or(Self::NONE, Timestamp::as_millis))
    }

    pub(super) fn time(self) -> Option<Timestamp> {
        (self.0 != Self::NONE).then(|| Timestamp::from_millis(self.0))
    }
}

/// One line of memory.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Entry {
    id: JobId,
    epoch: Epoch,
    queued_at: Timestamp,
    not_before: Maybe,
    queue_deadline: Maybe,
    total_deadline: Maybe,
    line: LineId,
    /// Whether it stands in its line; a pausing or expiring job does not.
    in_line: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    entries: Slab<Entry>,
    numbers: Index,
    lines: Slab<Line>,
    line_numbers: BTreeMap<LineKey, LineId>,
    pub(super) shapes: Shapes,
    pub(super) order: Order,
    /// When entries reach their queue deadline.
    expiries: Deadlines,
    /// Lines whose head is worth a try on every instance.
    opened: BTreeSet<LineId>,
}

impl Queue {
    pub(super) const fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(super) fn contains(&self, id: JobId) -> bool {
        self.number(id).is_some()
    }

    pub(super) fn job(&self, id: JobId) -> Option<QueuedJob> {
        self.entry(id).map(|entry| self.rebuilt(entry))
    }

    /// The last epoch of a queued job when it was read.
    pub(super) fn epoch(&self, id: JobId) -> Option<Epoch> {
        self.entry(id).map(|entry| entry.epoch)
    }

    /// In an order that means nothing.
    pub(super) fn ids(&self) -> impl Iterator<Item = JobId> {
        self.entries.iter().map(|entry| entry.id)
    }

    pub(super) fn key(&self, line: LineId) -> &LineKey {
        &self.line(line).key
    }

    /// Jobs that are in line before this one: more important ones, and older ones as important.
    pub(super) fn ahead_of(&self, job: &QueuedJob) -> usize {
        let place = (job.queued_at, job.id);
        let before = |line: &Line| match line.key.priority.cmp(&job.priority) {
            std::cmp::Ordering::Greater => line.lane.len(),
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => line.lane.before(&place, |number| seat(&self.entries, number)),
        };
        self.lines.iter().map(before).sum()
    }

    /// Adds a job that is not there, in line or not.
    pub(super) fn insert(&mut self, job: &QueuedJob, in_line: bool) {
        let line = self.line_of(job);
        let number = self.entries.insert(Entry {
            id: job.id,
            epoch: job.epoch,
            queued_at: job.queued_at,
            not_before: Maybe::of(job.not_before),
            queue_deadline: Maybe::of(job.queue_deadline),
            total_deadline: Maybe::of(job.total_deadline),
            line,
            in_line: false,
        });
        self.numbers.insert(job.id.bits(), number);
        if let Some(at) = job.queue_deadline {
            self.expiries.set(number, at);
        }
        self.stand(number, in_line);
    }

    /// Lets a job into its line, at its place.
    pub(super) fn enter_line(&mut self, id: JobId) {
        if let Some(number) = self.number(id) {
            self.stand(number, true);
        }
    }

    /// Takes a job out of its line; it stays queued.
    pub(super) fn leave_line(&mut self, id: JobId) {
        if let Some(number) = self.number(id) {
            self.stand(number, false);
        }
    }

    pub(super) fn remove(&mut self, id: JobId) -> Option<QueuedJob> {
        let entries = &self.entries;
        let number = self.numbers.remove(id.bits(), |number| entries[number].id.bits())?;
        self.stand(number, false);
        self.expiries.cancel(number);
        let entry = self.entries.remove(number);
        let job = self.rebuilt(&entry);
        self.forget_member(entry.line);
        Some(job)
    }

    /// Takes out the jobs whose queue deadline has come; each is told once.
    pub(super) fn take_expired(&mut self, now: Timestamp) -> Vec<(Timestamp, JobId)> {
        let expired = self.expiries.take_due(now).into_iter();
        expired.map(|(at, number)| (at, self.entries[number].id)).collect()
    }

    pub(super) fn first_expiry(&self) -> Option<Timestamp> {
        self.expiries.first()
    }

    pub(super) fn opened(&self) -> &BTreeSet<LineId> {
        &self.opened
    }

    pub(super) fn is_open(&self, line: LineId) -> bool {
        self.opened.contains(&line)
    }

    /// No instance takes the line's head now.
    pub(super) fn close(&mut self, line: LineId) {
        self.opened.remove(&line);
    }

    /// A limit keeps the line's head back.
    pub(super) fn limit(&mut self, id: LineId) {
        self.opened.remove(&id);
        let line = &self.lines[id.0];
        if line.head.is_some() {
            self.order.limit_one(line.bundle, line.key.shape);
        }
    }

    /// A limit keeps back every head of the bundle that fits somewhere in this look.
    pub(super) fn limit_fitting(&mut self, bundle: BundleId) {
        self.order.limit(bundle, self.shapes.fitting());
    }

    /// A job of this account and factory has ended: what their limits kept back is worth a try.
    pub(super) fn lift_limits(&mut self, account: AccountId, factory: Option<FactoryId>) {
        self.opened.extend(self.order.lift_limits(account, factory));
    }

    /// The head of a line that has one.
    pub(super) fn head(&self, line: LineId) -> Option<Head> {
        self.line(line).head
    }

    /// How many jobs stand in a line; those in a pause do not.
    pub(super) fn in_line(&self, line: LineId) -> usize {
        self.line(line).lane.len()
    }

    /// The job's line, if the job is its head.
    pub(super) fn head_if_first(&self, id: JobId) -> Option<Head> {
        self.head(self.entry(id)?.line).filter(|head| head.job == id)
    }

    /// The first in order were looked at, up to this last one if there are more.
    pub(super) fn looked_at(&mut self, last: Option<Head>) {
        let last = last.map(|head| (self.line(head.line).bundle, head));
        self.order.looked_at(last);
    }

    /// The place in the order of a line with this head.
    pub(super) fn rank(&self, head: &Head) -> Rank {
        self.order.rank(self.line(head.line).bundle, *head)
    }

    /// Has what is needed to take out a head brought near.
    pub(super) fn touch(&self, head: &Head) {
        let lane = &self.line(head.line).lane;
        self.numbers.touch(head.job.bits());
        for number in lane.first().into_iter().chain(lane.second()) {
            self.entries.touch(number);
            self.expiries.touch(number);
        }
    }

    fn number(&self, id: JobId) -> Option<u32> {
        self.numbers.find(id.bits(), |number| self.entries[number].id.bits())
    }

    fn entry(&self, id: JobId) -> Option<&Entry> {
        self.number(id).map(|number| &self.entries[number])
    }

    fn line(&self, id: LineId) -> &Line {
        &self.lines[id.0]
    }

    fn rebuilt(&self, entry: &Entry) -> QueuedJob {
        let key = &self.line(entry.line).key;
        QueuedJob {
            id: entry.id,
            account: key.account,
            factory: key.factory,
            request: Arc::clone(self.shapes.request(key.shape)),
            priority: key.priority,
            queued_at: entry.queued_at,
            not_before: entry.not_before.time(),
            queue_deadline: entry.queue_deadline.time(),
            total_deadline: entry.total_deadline.time(),
            epoch: entry.epoch,
        }
    }

    fn line_of(&mut self, job: &QueuedJob) -> LineId {
        let shape = self.shapes.number(&job.request);
        let key = LineKey { priority: job.priority, account: job.account, factory: job.factory, shape };
        let line = match self.line_numbers.get(&key) {
            Some(&line) => line,
            None => self.new_line(key),
        };
        self.lines[line.0].members += 1;
        line
    }

    fn new_line(&mut self, key: LineKey) -> LineId {
        let bundle = self.order.join(&key);
        let id =
            LineId(self.lines.insert(Line { key, bundle, members: 0, lane: Lane::default(), head: None }));
        self.shapes.used(key.shape);
        self.line_numbers.insert(key, id);
        id
    }

    fn forget_member(&mut self, id: LineId) {
        let line = &mut self.lines[id.0];
        line.members -= 1;
        if line.members == 0 {
            let Line { key, bundle, .. } = self.lines.remove(id.0);
            self.line_numbers.remove(&key);
            self.order.leave(bundle);
            self.shapes.released(key.shape);
            self.opened.remove(&id);
        }
    }

    fn stand(&mut self, number: u32, in_line: bool) {
        let entry = &mut self.entries[number];
        if entry.in_line == in_line {
            return;
        }
        entry.in_line = in_line;
        let id = entry.line;
        let (line, entries) = (&mut self.lines[id.0], &self.entries);
        let seat = |number: u32| seat(entries, number);
        if in_line {
            line.lane.insert(number, seat)
        } else {
            line.lane.remove(number, seat)
        };
        let head = |number: u32| {
            let (queued_at, job) = seat(number);
            Head { queued_at, job, line: id, shape: line.key.shape }
        };
        let after = line.lane.first().map(head);
        let before = std::mem::replace(&mut line.head, after);
        if before != after {
            self.order.change(line.bundle, before, after);
            self.head_changed(id, before, after);
        }
    }

    fn head_changed(&mut self, line: LineId, before: Option<Head>, after: Option<Head>) {
        let shape = self.lines[line.0].key.shape;
        match (before, after) {
            (None, Some(_)) => self.shapes.waits(shape),
            (Some(_), None) => self.shapes.rests(shape),
            (Some(_), Some(_)) | (None, None) => {}
        }
        if after.is_none() {
            self.opened.remove(&line);
        } else if before.is_none() || after < before {
            // A new first job may do what the one before could not: stand before a reservation.
            self.opened.insert(line);
        }
    }
}

/// What decides a job's place in its line.
fn seat(entries: &Slab<Entry>, number: u32) -> (Timestamp, JobId) {
    let entry = &entries[number];
    (entry.queued_at, entry.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queued_job_stays_small() {
        assert_eq!(size_of::<Option<Entry>>(), 64);
    }
}
