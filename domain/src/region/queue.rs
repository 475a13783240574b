//! The queued jobs of a region: a compact entry for each, and one line for all jobs that are placed alike.
//!
//! Jobs of the same shape (equal requests), priority, account and factory stand in one line, the oldest first, and only
//! its head is ever tried: so a decision costs the same with a thousand jobs in line as with a million. A line that no
//! instance takes is tried again only where something has changed for the better. What a job shares with others (its
//! request, its account, its priority) is kept once per line; an entry takes 64 bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::QueuedJob;
use super::order::{Head, Order};
use super::shape::{ShapeId, Shapes};
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

/// A job's place in its line. The id is kept in halves, so that a seat takes 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seat {
    queued_at: Timestamp,
    id: (u64, u64),
    entry: u32,
}

#[derive(Clone, Debug)]
struct Line {
    key: LineKey,
    /// How many queued jobs have it, in line or not.
    members: u32,
    seats: BTreeSet<Seat>,
}

/// A time that may be missing, in eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Maybe(u64);

impl Maybe {
    const NONE: u64 = u64::MAX;

    fn of(time: Option<Timestamp>) -> Self {
        Self(time.map_or(Self::NONE, Timestamp::as_millis))
    }

    fn time(self) -> Option<Timestamp> {
        (self.0 != Self::NONE).then(|| Timestamp::from_millis(self.0))
    }
}

#[derive(Clone, Debug)]
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
    /// Whether its queue deadline is among those to come.
    expires: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    numbers: BTreeMap<JobId, u32>,
    entries: Vec<Option<Entry>>,
    vacant: Vec<u32>,
    lines: Vec<Option<Line>>,
    vacant_lines: Vec<LineId>,
    line_numbers: BTreeMap<LineKey, LineId>,
    pub(super) shapes: Shapes,
    pub(super) order: Order,
    /// When entries reach their queue deadline.
    expiries: BTreeSet<(Timestamp, u32)>,
    /// Lines whose head is worth a try on every instance.
    opened: BTreeSet<LineId>,
    /// Lines whose head is kept back by a limit.
    limited: BTreeSet<LineId>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(super) fn contains(&self, id: JobId) -> bool {
        self.numbers.contains_key(&id)
    }

    pub(super) fn job(&self, id: JobId) -> Option<QueuedJob> {
        self.entry(id).map(|(_, entry)| self.rebuilt(entry))
    }

    /// The last epoch of a queued job when it was read.
    pub(super) fn epoch(&self, id: JobId) -> Option<Epoch> {
        self.entry(id).map(|(_, entry)| entry.epoch)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = JobId> {
        self.numbers.keys().copied()
    }

    pub(super) fn key(&self, line: LineId) -> &LineKey {
        &self.line(line).key
    }

    /// Jobs that are in line before this one: more important ones, and older ones as important.
    pub(super) fn ahead_of(&self, job: &QueuedJob) -> usize {
        let place = (job.queued_at, halves(job.id));
        let before = |line: &Line| match line.key.priority.cmp(&job.priority) {
            std::cmp::Ordering::Greater => line.seats.len(),
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => {
                line.seats.iter().take_while(|seat| (seat.queued_at, seat.id) < place).count()
            }
        };
        self.lines.iter().flatten().map(before).sum()
    }

    /// Adds a job that is not there, in line or not.
    pub(super) fn insert(&mut self, job: &QueuedJob, in_line: bool) {
        let line = self.line_of(job);
        let entry = Entry {
            id: job.id,
            epoch: job.epoch,
            queued_at: job.queued_at,
            not_before: Maybe::of(job.not_before),
            queue_deadline: Maybe::of(job.queue_deadline),
            total_deadline: Maybe::of(job.total_deadline),
            line,
            in_line: false,
            expires: job.queue_deadline.is_some(),
        };
        let number = self.seat_for(entry);
        self.numbers.insert(job.id, number);
        self.expiries.extend(job.queue_deadline.map(|at| (at, number)));
        if in_line {
            self.enter_line(job.id);
        }
    }

    /// Lets a job into its line, at its place.
    pub(super) fn enter_line(&mut self, id: JobId) {
        self.stand(id, true);
    }

    /// Takes a job out of its line; it stays queued.
    pub(super) fn leave_line(&mut self, id: JobId) {
        self.stand(id, false);
    }

    pub(super) fn remove(&mut self, id: JobId) -> Option<QueuedJob> {
        let number = *self.numbers.get(&id)?;
        self.leave_line(id);
        self.numbers.remove(&id);
        let entry = self.entries[number as usize].take().expect("a numbered entry is there");
        self.vacant.push(number);
        if let (true, Some(at)) = (entry.expires, entry.queue_deadline.time()) {
            self.expiries.remove(&(at, number));
        }
        let job = self.rebuilt(&entry);
        self.forget_member(entry.line);
        Some(job)
    }

    /// Takes out the jobs whose queue deadline has come; each is told once.
    pub(super) fn take_expired(&mut self, now: Timestamp) -> Vec<(Timestamp, JobId)> {
        let mut expired = Vec::new();
        while let Some(&(at, number)) = self.expiries.first().filter(|(at, _)| *at <= now) {
            self.expiries.pop_first();
            let entry = self.entries[number as usize].as_mut().expect("what expires is queued");
            entry.expires = false;
            expired.push((at, entry.id));
        }
        expired
    }

    pub(super) fn first_expiry(&self) -> Option<Timestamp> {
        self.expiries.first().map(|&(at, _)| at)
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
    pub(super) fn limit(&mut self, line: LineId) {
        self.opened.remove(&line);
        self.limited.insert(line);
    }

    /// A job of this account and factory has ended: what their limits kept back is worth a try.
    pub(super) fn lift_limits(&mut self, account: AccountId, factory: Option<FactoryId>) {
        if self.limited.is_empty() {
            return;
        }
        let lifted: Vec<LineId> = self
            .limited
            .iter()
            .copied()
            .filter(|&line| {
                let key = self.key(line);
                key.account == account || (factory.is_some() && key.factory == factory)
            })
            .collect();
        for line in lifted {
            self.limited.remove(&line);
            self.opened.insert(line);
        }
    }

    /// The head of a line that has one.
    pub(super) fn head(&self, line: LineId) -> Option<Head> {
        let Line { key, seats, .. } = self.line(line);
        seats.first().map(|seat| head_of(line, key.shape, seat))
    }

    /// How many jobs stand in a line; those in a pause do not.
    pub(super) fn in_line(&self, line: LineId) -> usize {
        self.line(line).seats.len()
    }

    /// The job's line, if the job is its head.
    pub(super) fn head_if_first(&self, id: JobId) -> Option<Head> {
        let (_, entry) = self.entry(id)?;
        self.head(entry.line).filter(|head| head.job == id)
    }

    fn entry(&self, id: JobId) -> Option<(u32, &Entry)> {
        let &number = self.numbers.get(&id)?;
        Some((number, self.entries[number as usize].as_ref().expect("a numbered entry is there")))
    }

    fn line(&self, id: LineId) -> &Line {
        self.lines[id.0 as usize].as_ref().expect("a line lives as long as its members")
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

    fn seat_for(&mut self, entry: Entry) -> u32 {
        if let Some(number) = self.vacant.pop() {
            self.entries[number as usize] = Some(entry);
            return number;
        }
        let number = u32::try_from(self.entries.len()).expect("fewer than four thousand million jobs");
        self.entries.push(Some(entry));
        number
    }

    fn line_of(&mut self, job: &QueuedJob) -> LineId {
        let shape = self.shapes.number(&job.request);
        let key = LineKey { priority: job.priority, account: job.account, factory: job.factory, shape };
        let line = match self.line_numbers.get(&key) {
            Some(&line) => line,
            None => self.new_line(key),
        };
        self.lines[line.0 as usize].as_mut().expect("found or made above").members += 1;
        line
    }

    fn new_line(&mut self, key: LineKey) -> LineId {
        let line = Line { key, members: 0, seats: BTreeSet::new() };
        let id = match self.vacant_lines.pop() {
            Some(id) => {
                self.lines[id.0 as usize] = Some(line);
                id
            }
            None => {
                self.lines.push(Some(line));
                LineId(u32::try_from(self.lines.len() - 1).expect("fewer lines than jobs"))
            }
        };
        self.shapes.used(key.shape);
        self.line_numbers.insert(key, id);
        id
    }

    fn forget_member(&mut self, id: LineId) {
        let line = self.lines[id.0 as usize].as_mut().expect("a line lives as long as its members");
        line.members -= 1;
        if line.members == 0 {
            let key = line.key;
            self.lines[id.0 as usize] = None;
            self.vacant_lines.push(id);
            self.line_numbers.remove(&key);
            self.shapes.released(key.shape);
            self.opened.remove(&id);
            self.limited.remove(&id);
        }
    }

    fn stand(&mut self, id: JobId, in_line: bool) {
        let Some(&number) = self.numbers.get(&id) else { return };
        let entry = self.entries[number as usize].as_mut().expect("a numbered entry is there");
        if entry.in_line == in_line {
            return;
        }
        entry.in_line = in_line;
        let seat = Seat { queued_at: entry.queued_at, id: halves(id), entry: number };
        let id = entry.line;
        let line = self.lines[id.0 as usize].as_mut().expect("a line lives as long as its members");
        let before = line.seats.first().copied();
        if in_line {
            line.seats.insert(seat)
        } else {
            line.seats.remove(&seat)
        };
        let after = line.seats.first().copied();
        if before != after {
            let key = line.key;
            let head = |seat: Seat| head_of(id, key.shape, &seat);
            self.order.change(&key, before.map(head), after.map(head));
            self.head_changed(id, before, after);
        }
    }

    fn head_changed(&mut self, line: LineId, before: Option<Seat>, after: Option<Seat>) {
        if after.is_none() {
            self.opened.remove(&line);
            self.limited.remove(&line);
        } else if before.is_none() || after < before {
            // A new first job may do what the one before could not: stand before a reservation.
            self.limited.remove(&line);
            self.opened.insert(line);
        }
    }
}

fn halves(id: JobId) -> (u64, u64) {
    let bits = id.bits();
    let low = bits & u128::from(u64::MAX);
    let half = |bits: u128| u64::try_from(bits).expect("64 bits");
    (half(bits >> 64), half(low))
}

fn head_of(line: LineId, shape: ShapeId, seat: &Seat) -> Head {
    let job = JobId::from_bits(u128::from(seat.id.0) << 64 | u128::from(seat.id.1));
    Head { queued_at: seat.queued_at, job, line, shape }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queued_job_stays_small() {
        assert_eq!((size_of::<Option<Entry>>(), size_of::<Seat>()), (64, 32));
    }
}
