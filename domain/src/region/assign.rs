//! One pass over the queue: who goes where now.
//!
//! Jobs are taken in the order of their ranks. What no instance takes is skipped, and with it everything of the same
//! shape. The first skipped job that has waited long enough reserves an instance on which it would fit: jobs that rank
//! after it are not placed there, so that it drains towards the job.

use super::queue::{Head, Trial};
use super::{Action, InFlight, Rank, Region, Reservation};
use crate::id::InstanceId;
use crate::placement::{Candidate, Request, choose, could_take, share_sum};
use crate::time::Timestamp;

impl Region {
    pub(super) fn assign(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        self.check_reservation();
        let mut previous = None;
        while let Some(head) = self.queue.head_after(previous) {
            match self.try_head(head) {
                Some(instance) => actions.push(self.assign_to(head, instance)),
                None => self.skip(head, now),
            }
            previous = Some(head);
        }
    }

    fn try_head(&self, head: Head) -> Option<InstanceId> {
        if head.trial != Trial::Open {
            return None;
        }
        let request = &self.queue.job(head.rank.job)?.request;
        let kept = self.kept_from(head.rank);
        let candidates = self.fleet.candidates().filter(|candidate| Some(candidate.id) != kept);
        choose(request, candidates, &self.config.policy)
    }

    fn assign_to(&mut self, head: Head, instance: InstanceId) -> Action {
        let job = self.dequeue(head.rank.job).expect("a head is queued");
        let (assigned_from, resources) = (job.epoch, job.request.resources);
        self.fleet.allocate(instance, &resources);
        let id = job.id;
        self.in_flight.insert(id, InFlight { job, instance, assigned_from, resources });
        Action::Assign { job: id, instance }
    }

    /// The instance that a job of this rank may not use.
    fn kept_from(&self, rank: Rank) -> Option<InstanceId> {
        let reservation = self.reservation?;
        let holder = self.queue.rank_in_line(reservation.job)?;
        (rank > holder).then_some(reservation.instance)
    }

    /// Gives up a reservation whose job is gone or whose instance can no longer serve it.
    fn check_reservation(&mut self) {
        let Some(reservation) = self.reservation else { return };
        let stands = self.queue.rank_in_line(reservation.job).is_some()
            && self.queue.job(reservation.job).is_some_and(|job| {
                let slot = self.fleet.slot(reservation.instance);
                slot.is_some_and(|slot| could_take(&job.request, &slot.candidate()))
            });
        if !stands {
            self.reservation = None;
            self.queue.unblock();
        }
    }

    fn skip(&mut self, head: Head, now: Timestamp) {
        if head.trial == Trial::Open {
            self.queue.tried(head.shape, Trial::Blocked);
        }
        if head.trial != Trial::Hopeless && self.reservation.is_none() {
            self.reserve(head, now);
        }
    }

    fn reserve(&mut self, head: Head, now: Timestamp) {
        let Some(job) = self.queue.job(head.rank.job) else { return };
        let since = job.not_before.map_or(job.queued_at, |time| time.max(job.queued_at));
        if now.since(since) < self.config.reserve_after {
            return;
        }
        let nearest = self
            .fleet
            .candidates()
            .filter(|candidate| could_take(&job.request, candidate))
            .min_by_key(|candidate| (shortage(&job.request, candidate), candidate.id));
        match nearest {
            Some(nearest) => {
                self.reservation = Some(Reservation { job: job.id, instance: nearest.id });
            }
            None => self.queue.tried(head.shape, Trial::Hopeless),
        }
    }
}

/// How much of the instance must become free before the request fits: the largest share, then the sum of shares.
fn shortage(request: &Request, candidate: &Candidate<'_>) -> (u32, u64) {
    let missing = request.resources.saturating_sub(&candidate.free);
    (missing.dominant_share(&candidate.capacity), share_sum(&missing, &candidate.capacity))
}
