//! One pass over the queue: who goes where now.
//!
//! Heads of lines are taken in their order (see [`super::order`]). A head that no instance takes is passed over, and its
//! line is not looked at again until something changes for the better: room on an instance (then only that instance is
//! looked at), a limit that is no longer reached, or a new head that stands before the old one. So the cost of a
//! decision does not grow with the queue.
//!
//! Nothing starves: while a job waits that has waited for [`Aging::after`], at least every [`Aging::every`]th assignment
//! goes to the oldest such job that fits, whatever its priority and its account's use. And room is reserved for what
//! does not fit. A head that has stood among the first for `reserve_after` is not overtaken any more without an instance
//! being kept for it: jobs that come after it in priority and age are not placed there, so that it drains towards the
//! job. The oldest job of all has a reservation of its own, made when its turn comes and it does not fit. Reservations go
//! by priority and age alone, so that they do not change hands as use changes, and one holder never keeps out another.

use std::cell::RefCell;
use std::cmp::{Ordering, Reverse};
use std::iter::Peekable;
use std::time::Duration;

use super::order::{BundleId, Head};
use super::queue::LineId;
use super::room::Place;
use super::{Action, InFlight, Region};
use crate::id::{AccountId, FactoryId, InstanceId, JobId};
use crate::placement::{Candidate, Preference, Request, could_take, share_sum};
use crate::time::Timestamp;

/// How jobs that have waited long are kept from starving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aging {
    /// A job that has waited so long has waited too long.
    pub after: Duration,
    /// While there is one, every so many assignments one goes to the oldest; at least 2 leaves priority any meaning.
    pub every: u32,
}

impl Default for Aging {
    fn default() -> Self {
        Self { after: Duration::from_secs(3600), every: 8 }
    }
}

/// Heads that may get a reservation: so many of the first.
const CONTENDERS: usize = 8;

/// Keeps an instance from being filled by jobs that come after the one that waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reservation {
    pub(super) job: JobId,
    pub(super) instance: InstanceId,
    place: Standing,
}

/// What counts between the holder of a reservation and another job: priority and age; for the oldest job of all, age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Ranked(Reverse<u16>, Timestamp, JobId),
    Oldest(Timestamp, JobId),
}

impl Standing {
    /// Whether a job may not use what is reserved for this one.
    fn is_before(&self, priority: u16, head: &Head) -> bool {
        match *self {
            Self::Ranked(rank, queued_at, job) => {
                (rank, queued_at, job) < (Reverse(priority), head.queued_at, head.job)
            }
            Self::Oldest(queued_at, job) => (queued_at, job) < (head.queued_at, head.job),
        }
    }
}

/// The reservations of a region: one for the first in order, one for the oldest.
#[derive(Clone, Debug, Default)]
pub(super) struct Reservations {
    ranked: Option<Reservation>,
    oldest: Option<Reservation>,
    /// The first heads that do not fit, and since when each is among them.
    contenders: Vec<(JobId, Timestamp)>,
    /// How often what makes contenders had changed when they were noted.
    seen: Option<(u64, u64, u64)>,
}

impl Reservations {
    pub(super) fn all(&self) -> impl Iterator<Item = &Reservation> {
        self.ranked.iter().chain(&self.oldest)
    }

    /// Gives up what `keep` does not keep; names the instances.
    fn retain(&mut self, keep: impl Fn(&Reservation) -> bool) -> Vec<InstanceId> {
        let mut dropped = Vec::new();
        for held in [&mut self.ranked, &mut self.oldest] {
            if let Some(reservation) = held.take_if(|reservation| !keep(reservation)) {
                dropped.push(reservation.instance);
            }
        }
        dropped
    }
}

/// Why a head is not placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// A limit is reached.
    Limited,
    /// No instance takes it, or those that would are kept for others.
    NoRoom,
}

/// Why a head is tried next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It is the first in order.
    Ranked,
    /// It has waited too long.
    Oldest,
}

/// Heads that were not placed on the way to one that is.
#[derive(Debug, Default)]
struct TurnedDown {
    lines: Vec<(LineId, Verdict)>,
    /// Bundles that a limit keeps back, found while their heads were looked for.
    limited: RefCell<Vec<BundleId>>,
}

impl Region {
    pub(super) fn assign(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        while let Some((head, turn, instance)) = self.next_placement(now) {
            // With a new reservation the head may have to go elsewhere.
            if !self.reserve_before(&head, turn, now) {
                self.take_turn(&head, now);
                actions.push(self.assign_to(&head, instance, now));
            }
        }
        self.freed.clear();
        self.note_contenders(now);
    }

    /// The next head that can be placed, and where. Lines on the way to it that cannot are closed.
    fn next_placement(&mut self, now: Timestamp) -> Option<(Head, Turn, InstanceId)> {
        self.queue.shapes.look();
        for &row in &self.freed {
            if let Some(place) = self.fleet.room().place(row) {
                self.queue.shapes.mark_fitting(&place.free, place.runtimes);
            }
        }
        if self.queue.shapes.fitting().is_empty() && self.queue.opened().is_empty() {
            return None;
        }
        let mut turned_down = TurnedDown::default();
        let found = self.first_placeable(now, &mut turned_down);
        for (line, verdict) in turned_down.lines {
            match verdict {
                Verdict::Limited => self.queue.limit(line),
                Verdict::NoRoom => self.queue.close(line),
            }
        }
        turned_down.limited.into_inner().into_iter().for_each(|bundle| self.queue.limit_fitting(bundle));
        found
    }

    /// Tries the heads that are worth it: those of open lines, and those that fit in what has become free.
    fn first_placeable(
        &self,
        now: Timestamp,
        turned_down: &mut TurnedDown,
    ) -> Option<(Head, Turn, InstanceId)> {
        let TurnedDown { lines, limited } = turned_down;
        let mut placed = |head: Head, turn: Turn| match self.consider(&head) {
            Ok(instance) => Some((head, turn, instance)),
            Err(verdict) => {
                lines.push((head.line, verdict));
                None
            }
        };
        let passes = |bundle: BundleId, account: AccountId, factory: Option<FactoryId>| {
            let passes = self.running.reached(&self.config.limits, account, factory).is_none();
            if !passes {
                limited.borrow_mut().push(bundle);
            }
            passes
        };
        let (order, fitting) = (&self.queue.order, self.queue.shapes.fitting());
        if let Some(since) = self.old_since(now).filter(|_| self.is_turn_of_the_oldest()) {
            let open = self.open_heads().filter(|head| head.queued_at <= since);
            let oldest = order.oldest_fitting(fitting, since, &passes);
            let mut oldest = Merged::new(sorted(open), oldest, |head| *head);
            if let Some(found) = oldest.find_map(|head| placed(head, Turn::Oldest)) {
                return Some(found);
            }
        }
        let open = sorted(self.open_heads().map(|head| self.queue.rank(&head)));
        let open = open.into_iter().map(|(.., head)| head).collect();
        let mut ranked = Merged::new(open, order.fitting(fitting, &passes), |head| self.queue.rank(head));
        ranked.find_map(|head| placed(head, Turn::Ranked))
    }

    fn open_heads(&self) -> impl Iterator<Item = Head> {
        self.queue.opened().iter().filter_map(|&line| self.queue.head(line))
    }

    fn is_turn_of_the_oldest(&self) -> bool {
        self.turn.saturating_add(1) >= self.config.aging.every
    }

    /// What has been queued then or before has waited too long.
    fn old_since(&self, now: Timestamp) -> Option<Timestamp> {
        let after = self.config.aging.after;
        match u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX) {
            0 => Some(Timestamp::from_millis(u64::MAX)),
            after => now.as_millis().checked_sub(after).map(Timestamp::from_millis),
        }
    }

    /// Counts the assignments that passed over a job that has waited too long.
    fn take_turn(&mut self, head: &Head, now: Timestamp) {
        let old = |head: &Head| now.since(head.queued_at) >= self.config.aging.after;
        self.turn = match self.queue.order.oldest().filter(|oldest| old(oldest)) {
            None => 0,
            Some(_) if old(head) => 0,
            Some(_) => self.turn.saturating_add(1).min(self.config.aging.every),
        };
    }

    /// Where the head goes, or why nowhere.
    fn consider(&self, head: &Head) -> Result<InstanceId, Verdict> {
        let key = self.queue.key(head.line);
        if self.running.reached(&self.config.limits, key.account, key.factory).is_some() {
            return Err(Verdict::Limited);
        }
        let request = self.queue.shapes.request(head.shape);
        let best = if self.queue.is_open(head.line) {
            self.best(request, head, key.priority, self.fleet.room().fitting(&request.resources))
        } else {
            let rows = self.freed.iter().filter_map(|&row| self.fleet.room().place(row));
            self.best(request, head, key.priority, rows)
        };
        best.ok_or(Verdict::NoRoom)
    }

    /// The best of these places for the head.
    fn best<'a>(
        &self,
        request: &Request,
        head: &Head,
        priority: u16,
        places: impl Iterator<Item = &'a Place>,
    ) -> Option<InstanceId> {
        let kept = |instance: InstanceId| {
            let here = || self.reservations.all().filter(|held| held.instance == instance);
            here().all(|held| held.job != head.job) && here().any(|held| held.place.is_before(priority, head))
        };
        let need = &request.resources;
        let takes = |place: &&Place| need.fits_in(&place.free) && place.runtimes.contain(request.runtime);
        let mut places = places.filter(takes).filter(|place| !kept(place.id));
        let first = places.next()?;
        let Some(second) = places.next() else { return Some(first.id) };
        let image = request.image.as_ref().map(|image| self.fleet.image_number(image));
        let has_image = |place: &Place| {
            image.is_none_or(|number| number.is_some_and(|number| place.images.contain(number)))
        };
        let all = [first, second].into_iter().chain(places);
        let best = all.min_by_key(|place| {
            let has = has_image(place);
            Preference::of(need, &place.free, &place.capacity, has, place.id, &self.config.policy)
        });
        best.map(|place| place.id)
    }

    fn assign_to(&mut self, head: &Head, instance: InstanceId, now: Timestamp) -> Action {
        // With a long queue each of these lies far away: they are fetched together, behind other work.
        self.queue.touch(head);
        self.live.touch(head.job);
        let key = self.queue.key(head.line);
        let (whose, resources) =
            ((key.account, key.factory), self.queue.shapes.request(head.shape).resources);
        let charge = self.begin(instance, whose, &resources, now);
        let job = self.dequeue(head.job).expect("a head is queued");
        let assigned_from = job.epoch;
        self.in_flight.insert(head.job, InFlight { job, instance, assigned_from, resources, charge });
        Action::Assign { job: head.job, instance }
    }

    /// A job has left its line: what was reserved for it is free for others.
    pub(super) fn drop_reservations_of(&mut self, job: JobId) {
        let dropped = self.reservations.retain(|held| held.job != job);
        dropped.into_iter().for_each(|instance| self.better(instance));
    }

    /// An instance has changed: a reservation on it that can no longer be met is given up.
    pub(super) fn check_reservations_on(&mut self, instance: InstanceId) {
        let (fleet, queue) = (&self.fleet, &self.queue);
        let dropped = self.reservations.retain(|held| {
            held.instance != instance
                || queue
                    .job(held.job)
                    .zip(fleet.slot(instance))
                    .is_some_and(|(job, slot)| could_take(&job.request, &slot.candidate()))
        });
        dropped.into_iter().for_each(|instance| self.better(instance));
    }

    /// Before `head` is placed: whom it would overtake gets a reservation, if it has waited for one long enough. Says
    /// whether there is a new one.
    fn reserve_before(&mut self, head: &Head, turn: Turn, now: Timestamp) -> bool {
        let oldest = self.overtaken_by_age(head, now).filter(|_| self.reservations.oldest.is_none());
        if let Some(oldest) = oldest {
            let place = Standing::Oldest(oldest.queued_at, oldest.job);
            self.reservations.oldest = self.reservation(&oldest, place);
            return self.reservations.oldest.is_some();
        }
        if turn == Turn::Oldest || self.reservations.ranked.is_some() {
            return false;
        }
        let Some(first) = self.overtaken_in_rank(head, now) else { return false };
        let place =
            Standing::Ranked(Reverse(self.queue.key(first.line).priority), first.queued_at, first.job);
        self.reservations.ranked = self.reservation(&first, place);
        self.reservations.ranked.is_some()
    }

    /// The oldest job that has waited too long, when it is its turn and `head` goes instead.
    fn overtaken_by_age(&self, head: &Head, now: Timestamp) -> Option<Head> {
        let since = self.old_since(now).filter(|_| self.is_turn_of_the_oldest())?;
        let oldest = self.queue.order.oldest_of(since, |head| self.contends(head));
        oldest.filter(|oldest| oldest.job != head.job)
    }

    /// The first of those that have stood before `head` for long.
    fn overtaken_in_rank(&self, head: &Head, now: Timestamp) -> Option<Head> {
        let rank = self.queue.rank(head);
        let contenders = self.reservations.contenders.iter();
        let long = contenders.filter(|(_, since)| now.since(*since) >= self.config.reserve_after);
        let heads = long.filter_map(|&(job, _)| self.queue.head_if_first(job));
        let before = heads.filter(|head| self.contends(head)).map(|head| self.queue.rank(&head));
        before.filter(|other| *other < rank).min().map(|(.., head)| head)
    }

    /// Remembers who stands among the first after a pass, and since when.
    fn note_contenders(&mut self, now: Timestamp) {
        let limits = if self.config.limits.are_none() { 0 } else { self.running.changes() };
        let seen = (self.queue.order.changes(), self.fleet_version, limits);
        if self.reservations.ranked.is_some() || self.reservations.seen == Some(seen) {
            return;
        }
        self.reservations.seen = Some(seen);
        let first = self.queue.order.heads().filter(|head| self.contends(head)).take(CONTENDERS);
        let last = first.clone().nth(CONTENDERS - 1).copied();
        let first = first.map(|head| head.job);
        let known = &self.reservations.contenders;
        let since =
            |job: JobId| known.iter().find(|(known, _)| *known == job).map_or(now, |&(_, since)| since);
        let contenders = first.map(|job| (job, since(job))).collect();
        self.reservations.contenders = contenders;
        self.queue.looked_at(last);
    }

    /// Who would be noted as a contender if it were worked out anew.
    #[cfg(test)]
    pub(super) fn contenders_anew(&self) -> (Vec<JobId>, Vec<JobId>) {
        let first = self.queue.order.heads().filter(|head| self.contends(head)).take(CONTENDERS);
        let noted = self.reservations.contenders.iter().map(|&(job, _)| job);
        (first.map(|head| head.job).collect(), noted.collect())
    }

    /// Whether nothing but want of room keeps the head back, and some instance could take it.
    fn contends(&self, head: &Head) -> bool {
        let key = self.queue.key(head.line);
        self.running.reached(&self.config.limits, key.account, key.factory).is_none()
            && self.some_instance_could_take(head)
    }

    fn some_instance_could_take(&self, head: &Head) -> bool {
        let request = self.queue.shapes.request(head.shape);
        let could = || self.fleet.candidates().any(|candidate| could_take(request, &candidate));
        self.queue.shapes.has_hope(head.shape, self.fleet_version, could)
    }

    fn reservation(&self, head: &Head, place: Standing) -> Option<Reservation> {
        let request = self.queue.shapes.request(head.shape);
        let others =
            |candidate: &Candidate<'_>| self.reservations.all().all(|held| held.instance != candidate.id);
        let nearest = self
            .fleet
            .candidates()
            .filter(|candidate| could_take(request, candidate))
            .min_by_key(|candidate| (!others(candidate), shortage(request, candidate), candidate.id));
        nearest.map(|nearest| Reservation { job: head.job, instance: nearest.id, place })
    }
}

/// How much of the instance must become free before the request fits: the largest share, then the sum of shares.
fn shortage(request: &Request, candidate: &Candidate<'_>) -> (u32, u64) {
    let missing = request.resources.saturating_sub(&candidate.free);
    (missing.dominant_share(&candidate.capacity), share_sum(&missing, &candidate.capacity))
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut sorted: Vec<T> = items.collect();
    sorted.sort_unstable();
    sorted
}

/// The heads of two sequences in order, in the same order; a head of both comes once.
struct Merged<I: Iterator<Item = Head>, F> {
    open: Peekable<std::vec::IntoIter<Head>>,
    fitting: Peekable<I>,
    place: F,
}

impl<K: Ord, I: Iterator<Item = Head>, F: Fn(&Head) -> K> Merged<I, F> {
    fn new(open: Vec<Head>, fitting: I, place: F) -> Self {
        Self { open: open.into_iter().peekable(), fitting: fitting.peekable(), place }
    }
}

impl<K: Ord, I: Iterator<Item = Head>, F: Fn(&Head) -> K> Iterator for Merged<I, F> {
    type Item = Head;

    fn next(&mut self) -> Option<Head> {
        let Some(open) = self.open.peek() else { return self.fitting.next() };
        let Some(fitting) = self.fitting.peek() else { return self.open.next() };
        match (self.place)(open).cmp(&(self.place)(fitting)) {
            Ordering::Less => self.open.next(),
            Ordering::Greater => self.fitting.next(),
            Ordering::Equal => {
                self.open.next();
                self.fitting.next()
            }
        }
    }
}
