//! The live attempts by job, at most one each, and when the lease of each ends.

use super::deadlines::Deadlines;
use super::index::Index;
use super::lease::Live;
use super::slab::Slab;
use crate::attempt::AttemptId;
use crate::id::JobId;
use crate::time::Timestamp;

#[derive(Clone, Debug, Default)]
pub(super) struct Attempts {
    lives: Slab<Live>,
    numbers: Index,
    /// When leases end; one that has ended is not there until it is renewed.
    leases: Deadlines,
}

impl Attempts {
    /// The live attempt of a job.
    pub(super) fn of(&self, job: JobId) -> Option<AttemptId> {
        self.number(job).map(|number| self.lives[number].attempt.id)
    }

    pub(super) fn get(&self, id: AttemptId) -> Option<&Live> {
        self.number_of(id).map(|number| &self.lives[number])
    }

    pub(super) fn get_mut(&mut self, id: AttemptId) -> Option<&mut Live> {
        self.number_of(id).map(|number| &mut self.lives[number])
    }

    /// In an order that means nothing.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Live> {
        self.lives.iter()
    }

    /// Has the place of a job brought near, of which there will soon be an attempt.
    pub(super) fn touch(&self, job: JobId) {
        self.numbers.touch(job.bits());
    }

    /// Adds an attempt of a job that has no live one.
    pub(super) fn insert(&mut self, live: Live, until: Timestamp) {
        let job = live.attempt.id.job;
        let number = self.lives.insert(live);
        self.numbers.insert(job.bits(), number);
        self.leases.set(number, until);
    }

    pub(super) fn remove(&mut self, id: AttemptId) -> Option<Live> {
        let number = self.number_of(id)?;
        let lives = &self.lives;
        self.numbers.remove(id.job.bits(), |number| lives[number].attempt.id.job.bits());
        self.leases.cancel(number);
        Some(self.lives.remove(number))
    }

    /// The lease of an attempt that is live ends at another time.
    pub(super) fn renew(&mut self, id: AttemptId, until: Timestamp) {
        if let Some(number) = self.number_of(id) {
            self.leases.set(number, until);
        }
    }

    pub(super) fn first_lease(&self) -> Option<Timestamp> {
        self.leases.first()
    }

    /// Takes out the leases that have ended; each is told once.
    pub(super) fn take_ended(&mut self, now: Timestamp) -> Vec<(Timestamp, AttemptId)> {
        let ended = self.leases.take_due(now).into_iter();
        ended.map(|(until, number)| (until, self.lives[number].attempt.id)).collect()
    }

    fn number(&self, job: JobId) -> Option<u32> {
        self.numbers.find(job.bits(), |number| self.lives[number].attempt.id.job.bits())
    }

    fn number_of(&self, id: AttemptId) -> Option<u32> {
        self.number(id.job).filter(|&number| self.lives[number].attempt.id == id)
    }
}
