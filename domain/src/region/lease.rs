//! Leases and the comings and goings of instances: who runs what, until when, and what is done about silence.

use std::sync::Arc;

use super::fleet::{Connection, Signs};
use super::queue::Maybe;
use super::share::{Amount, Charge};
use super::{Action, InFlight, LiveAttempt, QueuedJob, Region, Timer};
use crate::attempt::AttemptId;
use crate::id::InstanceId;
use crate::instance::{InstanceProfile, InstanceState};
use crate::placement::Request;
use crate::time::Timestamp;

/// A live attempt with what the region remembers of it.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) attempt: LiveAttempt,
    /// What its job was in the queue, if it was assigned here.
    stay: Option<Stay>,
    charged: Amount,
    /// What its instance has made of it.
    pub(super) answer: Answer,
}

impl Live {
    fn charge(&self) -> Charge {
        let LiveAttempt { account, factory, .. } = self.attempt;
        Charge { account, factory, amount: self.charged }
    }

    /// The job as it was queued, known to have had this attempt.
    pub(super) fn queued_again(&self) -> Option<QueuedJob> {
        let LiveAttempt { id, account, factory, .. } = self.attempt;
        self.stay.as_ref().map(|stay| QueuedJob {
            id: id.job,
            account,
            factory,
            request: Arc::clone(&stay.request),
            priority: stay.priority,
            queued_at: stay.queued_at,
            not_before: stay.not_before.time(),
            queue_deadline: stay.queue_deadline.time(),
            total_deadline: stay.total_deadline.time(),
            epoch: id.epoch,
        })
    }
}

/// What a queued job is beside what its attempt says, closely packed.
#[derive(Clone, Debug)]
struct Stay {
    request: Arc<Request>,
    priority: u16,
    queued_at: Timestamp,
    not_before: Maybe,
    queue_deadline: Maybe,
    total_deadline: Maybe,
}

impl From<QueuedJob> for Stay {
    fn from(job: QueuedJob) -> Self {
        Self {
            request: job.request,
            priority: job.priority,
            queued_at: job.queued_at,
            not_before: Maybe::of(job.not_before),
            queue_deadline: Maybe::of(job.queue_deadline),
            total_deadline: Maybe::of(job.total_deadline),
        }
    }
}

/// What the instance of an attempt has said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing yet.
    None,
    /// Its worker was heard.
    Begun,
    /// It was not taken.
    Refused,
}

impl Region {
    pub(super) fn attempt_live(&mut self, attempt: LiveAttempt, now: Timestamp) {
        self.resolve(attempt.id);
        match self.live.of(attempt.id.job) {
            Some(known) if known == attempt.id => return self.update_live(attempt),
            Some(known) if known.epoch > attempt.id.epoch => return,
            Some(known) => self.attempt_over(known, now),
            None => {}
        }
        let (queued_as, charge) = match self.leave_for(&attempt, now) {
            Ok(left) => left,
            Err(Stale) => return,
        };
        let charge = charge.unwrap_or_else(|| {
            let whose = (attempt.account, attempt.factory);
            self.begin(attempt.instance, whose, &attempt.resources, now)
        });
        let total_deadline = attempt.total_deadline.filter(|_| !attempt.granted);
        self.timers.set_or_cancel(Timer::TotalDeadline(attempt.id.job), total_deadline);
        let stay = queued_as.map(Stay::from);
        let live = Live { attempt, stay, charged: charge.amount, answer: Answer::None };
        self.live.insert(live, now.after(self.config.lease));
    }

    /// Takes the job of a new attempt out of the queue or out of flight, unless newer news says it is queued again. What
    /// was charged for the flight stays charged if the attempt is what it was to become.
    fn leave_for(
        &mut self,
        attempt: &LiveAttempt,
        now: Timestamp,
    ) -> Result<(Option<QueuedJob>, Option<Charge>), Stale> {
        let job = attempt.id.job;
        let Some(flight) = self.in_flight.get(&job) else {
            if self.queue.epoch(job).is_some_and(|queued| queued >= attempt.id.epoch) {
                return Err(Stale);
            }
            return Ok((self.dequeue(job), None));
        };
        if flight.assigned_from >= attempt.id.epoch {
            return Err(Stale);
        }
        let InFlight { job: queued, instance, resources, charge, .. } =
            self.in_flight.remove(&job).expect("looked up above");
        let as_planned = instance == attempt.instance && resources == attempt.resources;
        if as_planned && queued.epoch < attempt.id.epoch {
            return Ok((Some(queued), Some(charge)));
        }
        self.end(instance, &resources, &charge, now);
        if queued.epoch >= attempt.id.epoch {
            self.enqueue(&queued, None, now);
            return Err(Stale);
        }
        Ok((Some(queued), None))
    }

    fn resolve(&mut self, attempt: AttemptId) {
        for instance in self.fleet.resolve_unknown(attempt) {
            self.timers.cancel(Timer::Unknown(instance));
            self.better(instance);
        }
    }

    fn update_live(&mut self, attempt: LiveAttempt) {
        let live = self.live.get_mut(attempt.id).expect("the caller found it");
        live.attempt.granted |= attempt.granted;
        live.attempt.total_deadline = attempt.total_deadline;
        if live.attempt.granted {
            self.timers.cancel(Timer::TotalDeadline(attempt.id.job));
        }
    }

    pub(super) fn attempt_over(&mut self, id: AttemptId, now: Timestamp) {
        self.resolve(id);
        let Some(instance) = self.live.get(id).map(|live| live.attempt.instance) else { return };
        self.fleet.touch(instance);
        let live = self.live.remove(id).expect("found above");
        self.timers.cancel(Timer::TotalDeadline(id.job));
        self.unpublished.remove(&id);
        self.publishers.remove(&id);
        self.end(live.attempt.instance, &live.attempt.resources, &live.charge(), now);
    }

    pub(super) fn renewed(&mut self, id: AttemptId, now: Timestamp) {
        self.live.renew(id, now.after(self.config.lease));
        let Some(live) = self.live.get_mut(id) else { return };
        self.unpublished.remove(&id);
        if live.answer != Answer::Begun {
            live.answer = Answer::Begun;
            let instance = live.attempt.instance;
            self.fleet.change(instance, now, |slot| slot.refusals = 0);
        }
    }

    pub(super) fn lease_over(&mut self, id: AttemptId, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(live) = self.live.get(id) else { return };
        if live.attempt.granted {
            self.publish_elsewhere(id, now, actions);
        } else {
            self.live.renew(id, now.after(self.config.lease));
            actions.push(Action::DeclareLost(id));
        }
    }

    fn publish_elsewhere(&mut self, id: AttemptId, now: Timestamp, actions: &mut Vec<Action>) {
        self.live.renew(id, now.after(self.config.lease));
        let publisher = self.choose_publisher(id);
        match publisher {
            Some(instance) => {
                self.unpublished.remove(&id);
                self.publishers.insert(id, instance);
                actions.push(Action::PublishElsewhere { attempt: id, instance });
            }
            None => {
                self.unpublished.insert(id);
            }
        }
    }

    /// First the attempt's own instance, whose folders may be its alone; then each other in turn.
    fn choose_publisher(&self, id: AttemptId) -> Option<InstanceId> {
        let live = self.live.get(id)?;
        let own = live.attempt.instance;
        let reachable = |instance: &InstanceId| self.fleet.slot(*instance).is_some_and(is_attached);
        let Some(&last) = self.publishers.get(&id) else {
            return Some(own).filter(reachable).or_else(|| self.attached_instances().next());
        };
        let mut others = self.attached_instances();
        others.find(|&other| other > last).or_else(|| self.attached_instances().next())
    }

    fn attached_instances(&self) -> impl Iterator<Item = InstanceId> {
        self.fleet.slots().filter(|slot| is_attached(slot)).map(|slot| slot.profile.id)
    }

    pub(super) fn attached(
        &mut self,
        profile: InstanceProfile,
        running: &[AttemptId],
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let instance = profile.id;
        self.fleet.attach(profile, now);
        self.timers.cancel(Timer::Away(instance));
        self.timers.cancel(Timer::Unknown(instance));
        self.timers.cancel(Timer::Refusal(instance));
        self.profile_is_new(instance);
        for &attempt in running {
            if self.live.get(attempt).is_some_and(|live| live.attempt.instance == instance) {
                self.renewed(attempt, now);
            } else {
                self.fleet.add_unknown(instance, attempt);
                self.timers.set(Timer::Unknown(instance), now.after(self.config.lease));
                actions.push(Action::Resolve { attempt, instance });
            }
        }
        for attempt in std::mem::take(&mut self.unpublished) {
            self.publish_elsewhere(attempt, now, actions);
        }
    }

    fn profile_is_new(&mut self, instance: InstanceId) {
        self.fleet_version += 1;
        self.check_reservations_on(instance);
        self.better(instance);
    }

    pub(super) fn profile_changed(&mut self, profile: InstanceProfile, draining: bool, now: Timestamp) {
        let instance = profile.id;
        self.timers.cancel(Timer::Refusal(instance));
        self.fleet.set_profile(profile, draining, now);
        self.profile_is_new(instance);
    }

    /// A cordon or a notice came or went: with one, what was reserved there is given up.
    pub(super) fn signs_changed(
        &mut self,
        instance: InstanceId,
        now: Timestamp,
        change: impl FnOnce(&mut Signs),
    ) {
        if self.fleet.change_signs(instance, now, change) {
            self.profile_is_new(instance);
        }
    }

    pub(super) fn detached(&mut self, instance: InstanceId, now: Timestamp) {
        if self.fleet.slot(instance).is_some_and(is_attached) {
            self.fleet.change(instance, now, |slot| slot.connection = Connection::Away);
            self.profile_is_new(instance);
            self.timers.set(Timer::Away(instance), now.after(self.config.lease));
        }
    }

    pub(super) fn instance_lost(&mut self, instance: InstanceId, now: Timestamp, actions: &mut Vec<Action>) {
        self.fleet.change(instance, now, |slot| slot.connection = Connection::Lost);
        self.timers.cancel(Timer::Unknown(instance));
        self.timers.cancel(Timer::Refusal(instance));
        actions.push(Action::InstanceLost(instance));
        self.forget_if_lost(instance);
    }

    /// A lost instance stays as long as something runs there: a worker can outlive its coordinator.
    pub(super) fn forget_if_lost(&mut self, instance: InstanceId) {
        let lost = self.fleet.slot(instance).is_some_and(|slot| slot.state() == InstanceState::Lost);
        if lost && self.fleet.is_idle(instance) {
            self.fleet.remove(instance);
        }
    }
}

/// News that newer news has overtaken.
struct Stale;

pub(super) fn is_attached(slot: &super::Slot) -> bool {
    slot.connection == Connection::Attached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_attempt_stays_small() {
        assert!(size_of::<Option<Live>>() <= 256, "{}", size_of::<Option<Live>>());
    }
}
