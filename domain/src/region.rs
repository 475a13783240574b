//! The scheduler of a region as a value: events in, actions out, and the time at which it wants to be asked again.
//!
//! It holds what a manager must remember between two looks at the table: the queue, the instances with their ledgers,
//! the leases. The table stays the truth: an action is a proposal that the manager carries out with a conditional
//! write, and every event may arrive twice, late, or about something that is not known here.
//!
//! Which job goes first, and how a decision stays cheap with a million jobs waiting, is told in `assign` and `queue`.
//!
//! Feed the live attempts of the table before the hellos of the instances, so that no capacity is given out twice.
//!
//! Invariant: what is allocated on an instance is the sum of what its live attempts and assignments in flight need, and
//! an assignment never takes more than is free. Invariant: a job with a live attempt or an assignment in flight is
//! never assigned. Invariant: an attempt is declared lost only when nothing was heard of it for a whole lease, counted
//! from when it was first seen here. Invariant: the same events at the same times give the same actions.

mod assign;
mod attempts;
mod deadlines;
mod fits;
mod fleet;
mod index;
mod lane;
mod lease;
mod limits;
mod observe;
mod order;
mod queue;
mod refusal;
mod room;
mod shape;
mod share;
mod slab;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::attempt::AttemptId;
use crate::id::{AccountId, Epoch, FactoryId, InstanceId, JobId};
use crate::instance::{Instance, InstanceProfile, InstanceState, Notice};
use crate::job::{Job, JobState};
use crate::placement::{Policy, Request, Unplaceable, place};
use crate::resources::Resources;
use crate::time::Timestamp;

use assign::Reservations;
use attempts::Attempts;
use fleet::{Fleet, Slot};
use limits::Running;
use queue::Queue;
use share::{Charge, Usage};
use timers::{Timer, Timers};

pub use assign::Aging;
pub use limits::{LimitReached, LimitedBy, Limits};
pub use share::FairShare;

/// What may be chosen about a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionConfig {
    /// How long an attempt may be silent before it is lost.
    pub lease: Duration,
    /// How placement chooses.
    pub policy: Policy,
    /// A job that has stood among the first for so long without fitting anywhere keeps one instance from being filled
    /// by later jobs.
    pub reserve_after: Duration,
    /// Pause before a job whose assignment failed is assigned again; also the first pause of an instance that refused
    /// for want of room, doubled with each refusal until it begins an attempt.
    pub refusal_pause: Duration,
    /// How accounts share what there is.
    pub fair_share: FairShare,
    /// How jobs that have waited long are kept from starving.
    pub aging: Aging,
    /// How many attempts there may be at the same time.
    pub limits: Limits,
    /// How long a job is expected to run.
    pub expected_run: Duration,
}

impl Default for RegionConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(60),
            policy: Policy::default(),
            reserve_after: Duration::from_secs(60),
            refusal_pause: Duration::from_secs(1),
            fair_share: FairShare::default(),
            aging: Aging::default(),
            limits: Limits::default(),
            expected_run: Duration::from_secs(300),
        }
    }
}

/// A queued job as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedJob {
    /// Which one.
    pub id: JobId,
    /// Whose it is.
    pub account: AccountId,
    /// The factory that made it.
    pub factory: Option<FactoryId>,
    /// What it asks for.
    pub request: Arc<Request>,
    /// 0 to 1000, higher first.
    pub priority: u16,
    /// When it first entered the queue.
    pub queued_at: Timestamp,
    /// Not before this time.
    pub not_before: Option<Timestamp>,
    /// When it expires if it is still queued.
    pub queue_deadline: Option<Timestamp>,
    /// When it must be over.
    pub total_deadline: Option<Timestamp>,
    /// Its last epoch when it was read: attempts up to this one are over, later ones make this news stale.
    pub epoch: Epoch,
}

impl QueuedJob {
    /// The job, if it is queued.
    pub fn of(job: &Job) -> Option<Self> {
        let JobState::Queued { not_before, .. } = &job.state else { return None };
        Some(Self {
            id: job.id,
            account: job.account,
            factory: job.spec.origin.factory(),
            request: Arc::new(Request::of(&job.spec)),
            priority: job.spec.priority,
            queued_at: job.queued_at.unwrap_or(job.created_at),
            not_before: *not_before,
            queue_deadline: job.queue_deadline(),
            total_deadline: job.total_deadline(),
            epoch: job.epoch,
        })
    }
}

/// An attempt that has the right to run, as recorded in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveAttempt {
    /// Which one.
    pub id: AttemptId,
    /// Whose job it runs.
    pub account: AccountId,
    /// The factory that made its job.
    pub factory: Option<FactoryId>,
    /// Where it runs.
    pub instance: InstanceId,
    /// What it holds there.
    pub resources: Resources,
    /// When its job must be over.
    pub total_deadline: Option<Timestamp>,
    /// Whether its outputs were granted.
    pub granted: bool,
}

impl LiveAttempt {
    /// The job's live attempt, if it has one.
    pub fn of(job: &Job) -> Option<Self> {
        let (id, run) = (job.live_attempt()?, job.state.run()?);
        Some(Self {
            id,
            account: job.account,
            factory: job.spec.origin.factory(),
            instance: run.instance,
            resources: job.spec.resources,
            total_deadline: job.total_deadline(),
            granted: matches!(job.state, JobState::Finalizing { .. }),
        })
    }
}

/// Something the region is told. Telling it twice changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionEvent {
    /// The job is queued, or something about a queued job has changed (its priority).
    JobQueued(QueuedJob),
    /// The job is not queued any more: canceled, held, expired or done. Says nothing about its attempts.
    JobLeft(JobId),
    /// An assignment was recorded, an attempt was found in the table, or its grant was recorded.
    AttemptLive(LiveAttempt),
    /// The attempt is over, or was never recorded: its resources are free.
    AttemptOver(AttemptId),
    /// An assignment came to nothing: the conditional write was stale, or the coordinator refused or is gone.
    AssignmentFailed {
        /// The job.
        job: JobId,
        /// Where it was to run.
        instance: InstanceId,
        /// Whether the job is still (or again) queued.
        requeue: bool,
    },
    /// The instance did not take the attempt, for want of room: less is free there than is known here. Told before the
    /// attempt is over, so that its job does not come back to the same instance at once.
    InstanceRefused {
        /// Who refused.
        instance: InstanceId,
        /// What it was offered.
        attempt: AttemptId,
        /// What it said is free.
        free: Resources,
    },
    /// A coordinator has said hello.
    InstanceAttached {
        /// What it is.
        profile: InstanceProfile,
        /// The attempts that run there.
        running: Vec<AttemptId>,
    },
    /// An instance has changed: its capacity, images or health, or it drains.
    ProfileChanged {
        /// What it is now.
        profile: InstanceProfile,
        /// Whether it takes no more work.
        draining: bool,
    },
    /// The cordon that stands for an instance, told before it attaches; with one it takes no new work.
    Cordon {
        /// Which instance.
        instance: InstanceId,
        /// The number of the cordon; `None` when it was lifted.
        cordon: Option<u64>,
    },
    /// What the provider has announced about an instance, told before it attaches; once its end is announced it takes no
    /// new work.
    Noticed {
        /// Which instance.
        instance: InstanceId,
        /// What.
        notice: Notice,
    },
    /// The coordinator's stream has ended.
    InstanceDetached(InstanceId),
    /// The attempt's worker was heard.
    Renewed(AttemptId),
    /// Time has passed.
    Tick,
}

/// Something the manager should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Record the assignment, then send it. Its resources are kept until `AttemptLive` or `AssignmentFailed`.
    Assign {
        /// The job.
        job: JobId,
        /// Where it runs.
        instance: InstanceId,
    },
    /// Nothing was heard of the attempt for a lease: take its right away. Repeated each lease until `AttemptOver`.
    DeclareLost(AttemptId),
    /// A granted attempt was silent for a lease: have this instance publish it. Repeated each lease, with another
    /// instance where there is one, until `AttemptOver`.
    PublishElsewhere {
        /// The attempt.
        attempt: AttemptId,
        /// Who publishes.
        instance: InstanceId,
    },
    /// A hello named an attempt that is not known here: read its job, then say `AttemptLive`, or stop it there and say
    /// `AttemptOver`. The instance gets no work until then, at most a lease.
    Resolve {
        /// The attempt.
        attempt: AttemptId,
        /// Where it runs.
        instance: InstanceId,
    },
    /// The job has waited as long as it may. Repeated each lease until `JobLeft`.
    ExpireQueued(JobId),
    /// The job has taken as long as it may. Repeated each lease until it is gone.
    TotalTimeout(JobId),
    /// The instance has been away for a lease.
    InstanceLost(InstanceId),
}

/// An instance as the region sees it.
#[derive(Clone, Copy, Debug)]
pub struct InstanceView<'a> {
    /// What it said of itself last.
    pub profile: &'a InstanceProfile,
    /// Where it is in its life.
    pub state: InstanceState,
    /// Since when.
    pub state_since: Timestamp,
    /// What live attempts and assignments in flight hold.
    pub allocated: Resources,
    /// What may be given out now.
    pub free: Resources,
    /// How many attempts its hello named that nobody has vouched for yet.
    pub unknown_attempts: usize,
    /// How many attempts it holds, assignments in flight and those unknown ones included.
    pub leases: u32,
    /// Since when it holds none; meaningless while it holds some.
    pub idle_since: Timestamp,
    /// When the last of what it holds is expected to end.
    pub expected_end: Option<Timestamp>,
    /// The number of the cordon that stands for it.
    pub cordon: Option<u64>,
    /// What its provider has announced.
    pub notice: Notice,
}

impl InstanceView<'_> {
    /// The record of the instance, for the table.
    pub fn to_record(&self) -> Instance {
        Instance {
            profile: self.profile.clone(),
            state: self.state,
            allocated: self.allocated,
            state_since: self.state_since,
            leases: self.leases,
            idle_since: self.idle_since,
            expected_end: self.expected_end,
            notice: self.notice.terminate_at,
            rebalance: self.notice.rebalance,
        }
    }
}

/// How full the connected instances are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Occupancy {
    /// Sum of what they have.
    pub capacity: Resources,
    /// Sum of what is allocated on them.
    pub allocated: Resources,
}

impl Occupancy {
    /// Allocated ÷ capacity of the scarcest resource, in thousandths; `None` without capacity.
    pub fn thousandths(&self) -> Option<u32> {
        (self.capacity != Resources::ZERO).then(|| self.allocated.dominant_share(&self.capacity))
    }
}

#[derive(Clone, Debug)]
struct InFlight {
    job: QueuedJob,
    instance: InstanceId,
    /// The epoch under which it was queued when it was assigned.
    assigned_from: Epoch,
    /// What the ledger holds for it (the job's request may change meanwhile).
    resources: Resources,
    charge: Charge,
}

/// The scheduler of one region.
#[derive(Clone, Debug)]
pub struct Region {
    config: RegionConfig,
    queue: Queue,
    in_flight: BTreeMap<JobId, InFlight>,
    live: Attempts,
    fleet: Fleet,
    timers: Timers,
    running: Running,
    usage: Usage,
    reservations: Reservations,
    /// Rows of the fleet in which something has changed for the better since the last pass.
    freed: Vec<u32>,
    /// Grows with every change of what instances are (not of what is free on them).
    fleet_version: u64,
    /// Assignments since one went to a job that has waited too long, while such a job waits.
    turn: u32,
    /// Granted attempts whose worker is silent and for which no instance was there.
    unpublished: BTreeSet<AttemptId>,
    /// Who was last asked to publish a granted attempt whose worker is silent.
    publishers: BTreeMap<AttemptId, InstanceId>,
}

impl Region {
    /// A region about which nothing is known yet.
    pub fn new(config: RegionConfig) -> Self {
        Self {
            config,
            queue: Queue::default(),
            in_flight: BTreeMap::new(),
            live: Attempts::default(),
            fleet: Fleet::default(),
            timers: Timers::default(),
            running: Running::default(),
            usage: Usage::default(),
            reservations: Reservations::default(),
            freed: Vec::new(),
            fleet_version: 0,
            turn: 0,
            unpublished: BTreeSet::new(),
            publishers: BTreeMap::new(),
        }
    }

    /// Takes in one event and says what to do now. `now` may not go back; if it does, nothing becomes due early.
    pub fn handle(&mut self, event: RegionEvent, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            RegionEvent::JobQueued(job) => self.job_queued(job, now),
            RegionEvent::JobLeft(job) => self.job_left(job),
            RegionEvent::AttemptLive(attempt) => self.attempt_live(attempt, now),
            RegionEvent::AttemptOver(attempt) => self.attempt_over(attempt, now),
            RegionEvent::AssignmentFailed { job, instance, requeue } => {
                self.assignment_failed(job, instance, requeue, now);
            }
            RegionEvent::InstanceRefused { instance, attempt, free } => {
                self.instance_refused(instance, attempt, &free, now);
            }
            RegionEvent::InstanceAttached { profile, running } => {
                self.attached(profile, &running, now, &mut actions);
            }
            RegionEvent::ProfileChanged { profile, draining } => self.profile_changed(profile, draining, now),
            RegionEvent::Cordon { instance, cordon } => {
                self.signs_changed(instance, now, |signs| signs.cordon = cordon);
            }
            RegionEvent::Noticed { instance, notice } => {
                self.signs_changed(instance, now, |signs| signs.notice = notice);
            }
            RegionEvent::InstanceDetached(instance) => self.detached(instance, now),
            RegionEvent::Renewed(attempt) => self.renewed(attempt, now),
            RegionEvent::Tick => {}
        }
        for timer in self.take_due(now) {
            self.fire(timer, now, &mut actions);
        }
        self.assign(now, &mut actions);
        actions
    }

    /// When [`Self::handle`] has something to do next although nothing happens.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let times = [self.timers.first(), self.queue.first_expiry(), self.live.first_lease()];
        times.into_iter().flatten().min()
    }

    /// Every known instance, by id.
    pub fn instances(&self) -> impl Iterator<Item = InstanceView<'_>> {
        self.fleet.slots().map(Slot::view)
    }

    /// One instance.
    pub fn instance(&self, id: InstanceId) -> Option<InstanceView<'_>> {
        self.fleet.slot(id).map(Slot::view)
    }

    /// Whether nothing runs or is about to run on an instance, as far as is known here: no live attempt, no assignment
    /// in flight, nothing in its hello that nobody has vouched for.
    pub fn is_idle(&self, id: InstanceId) -> bool {
        self.fleet.is_idle(id) && self.fleet.slot(id).is_none_or(|slot| slot.unknown.is_empty())
    }

    /// The live attempts, in an order that means nothing.
    pub fn attempts(&self) -> impl Iterator<Item = &LiveAttempt> {
        self.live.iter().map(|live| &live.attempt)
    }

    /// One live attempt.
    pub fn attempt(&self, id: AttemptId) -> Option<&LiveAttempt> {
        self.live.get(id).map(|live| &live.attempt)
    }

    /// How full the connected instances are.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy { capacity: self.fleet.capacity(), allocated: self.fleet.allocated() }
    }

    /// How many jobs wait, those in a pause included and assignments in flight not.
    pub fn queue_length(&self) -> usize {
        self.queue.len()
    }

    /// The waiting jobs, in an order that means nothing.
    pub fn queued(&self) -> impl Iterator<Item = JobId> {
        self.queue.ids()
    }

    /// What a waiting job is.
    pub fn queued_job(&self, job: JobId) -> Option<QueuedJob> {
        self.queue.job(job)
    }

    /// How many jobs stand before this one; `None` when it does not wait.
    pub fn queued_ahead(&self, job: JobId) -> Option<usize> {
        self.queue.job(job).map(|job| self.queue.ahead_of(&job))
    }

    /// Why a waiting job is not placed; `None` when it does not wait, or waits for its turn only.
    pub fn unplaceable(&self, job: JobId) -> Option<Unplaceable> {
        let job = self.queue.job(job)?;
        place(&job.request, self.fleet.candidates(), &self.config.policy).err()
    }

    /// A job whose assignment is in flight.
    pub fn assigned(&self, job: JobId) -> Option<&QueuedJob> {
        self.in_flight.get(&job).map(|flight| &flight.job)
    }

    /// The limit that keeps a waiting job back, if one does.
    pub fn limit_of(&self, job: JobId) -> Option<LimitReached> {
        let job = self.queue.job(job)?;
        self.running.reached(&self.config.limits, job.account, job.factory)
    }

    fn job_queued(&mut self, job: QueuedJob, now: Timestamp) {
        if let Some(live) = self.live.of(job.id) {
            if live.epoch > job.epoch {
                return;
            }
            self.attempt_over(live, now);
        }
        if let Some(in_flight) = self.in_flight.get_mut(&job.id) {
            if job.epoch >= in_flight.job.epoch {
                in_flight.job = job;
            }
            return;
        }
        if self.queue.job(job.id).is_some_and(|known| known.epoch > job.epoch || known == job) {
            return;
        }
        self.job_left(job.id);
        self.enqueue(&job, None, now);
    }

    /// Adds a job to the queue; it is not placed before `not_before`, nor before its own time.
    fn enqueue(&mut self, job: &QueuedJob, not_before: Option<Timestamp>, now: Timestamp) {
        let pause = job.not_before.max(not_before).filter(|&time| time > now);
        let expired = [job.queue_deadline, job.total_deadline].into_iter().flatten().any(|at| at <= now);
        if let Some(until) = pause {
            self.timers.set(Timer::Pause(job.id), until);
        }
        self.timers.set_or_cancel(Timer::TotalDeadline(job.id), job.total_deadline);
        self.queue.insert(job, pause.is_none() && !expired);
    }

    fn job_left(&mut self, job: JobId) {
        if self.dequeue(job).is_some() {
            self.timers.cancel(Timer::TotalDeadline(job));
        }
    }

    /// Takes a job out of the queue; its total deadline goes on.
    fn dequeue(&mut self, job: JobId) -> Option<QueuedJob> {
        let left = self.queue.remove(job)?;
        self.timers.cancel(Timer::Pause(job));
        self.timers.cancel(Timer::QueueDeadline(job));
        self.drop_reservations_of(job);
        Some(left)
    }

    /// Takes out what is due, the earliest first.
    fn take_due(&mut self, now: Timestamp) -> Vec<Timer> {
        if self.next_deadline().is_none_or(|next| next > now) {
            return Vec::new();
        }
        let mut due = self.timers.take_due(now);
        let expired = self.queue.take_expired(now);
        due.extend(expired.into_iter().map(|(at, job)| (at, Timer::QueueDeadline(job))));
        due.extend(self.live.take_ended(now).into_iter().map(|(at, attempt)| (at, Timer::Lease(attempt))));
        due.sort_unstable();
        due.into_iter().map(|(_, timer)| timer).collect()
    }

    fn assignment_failed(&mut self, job: JobId, instance: InstanceId, requeue: bool, now: Timestamp) {
        let again = if self.in_flight.get(&job).is_some_and(|flight| flight.instance == instance) {
            let flight = self.in_flight.remove(&job).expect("looked up above");
            self.end(flight.instance, &flight.resources, &flight.charge, now);
            let newer = flight.job.epoch > flight.assigned_from;
            (requeue || newer).then_some(flight.job)
        } else {
            self.recorded_assignment_failed(job, instance, requeue, now)
        };
        match again {
            Some(queued) => {
                self.enqueue(&queued, Some(now.after(self.config.refusal_pause)), now);
            }
            None if !self.knows(job) => self.timers.cancel(Timer::TotalDeadline(job)),
            None => {}
        }
    }

    /// The coordinator refused after the assignment was recorded.
    fn recorded_assignment_failed(
        &mut self,
        job: JobId,
        instance: InstanceId,
        requeue: bool,
        now: Timestamp,
    ) -> Option<QueuedJob> {
        let attempt = self.live.of(job)?;
        let live = self.live.get(attempt).filter(|live| live.attempt.instance == instance)?;
        let queued = live.queued_again();
        self.attempt_over(attempt, now);
        queued.filter(|_| requeue)
    }

    fn fire(&mut self, timer: Timer, now: Timestamp, actions: &mut Vec<Action>) {
        let again = now.after(self.config.lease);
        match timer {
            Timer::Pause(job) => {
                if !self.is_expiring(job, now) {
                    self.queue.enter_line(job);
                }
            }
            Timer::QueueDeadline(job) => {
                self.queue.leave_line(job);
                self.drop_reservations_of(job);
                self.timers.set(timer, again);
                actions.push(Action::ExpireQueued(job));
            }
            Timer::TotalDeadline(job) => {
                self.queue.leave_line(job);
                self.drop_reservations_of(job);
                self.timers.set(timer, again);
                actions.push(Action::TotalTimeout(job));
            }
            Timer::Lease(attempt) => self.lease_over(attempt, now, actions),
            Timer::Unknown(instance) => {
                self.fleet.forget_unknown(instance);
                self.better(instance);
            }
            Timer::Refusal(instance) => self.refusal_over(instance, now),
            Timer::Away(instance) => self.instance_lost(instance, now, actions),
        }
    }

    fn is_expiring(&self, job: JobId, now: Timestamp) -> bool {
        self.queue.job(job).is_some_and(|job| {
            [job.queue_deadline, job.total_deadline].into_iter().flatten().any(|at| at <= now)
        })
    }

    /// An attempt or assignment begins: notes what it holds and charges its account.
    fn begin(
        &mut self,
        instance: InstanceId,
        (account, factory): (AccountId, Option<FactoryId>),
        resources: &Resources,
        now: Timestamp,
    ) -> Charge {
        let share = resources.dominant_share(&self.fleet.capacity());
        self.fleet.allocate(instance, resources, now.after(self.config.expected_run));
        self.running.begun(account, factory);
        if self.usage.rebase(now, &self.config.fair_share) {
            self.queue.order.restate(|account| self.usage.of(account));
        }
        let charge = self.usage.charge((account, factory), share, now, &self.config.fair_share);
        self.queue.order.set_used(account, self.usage.of(account));
        charge
    }

    /// Takes back what an attempt or assignment held, and puts its charge right.
    fn end(&mut self, instance: InstanceId, resources: &Resources, charge: &Charge, now: Timestamp) {
        let until = charge.amount.since().after(self.config.expected_run);
        let row = self.fleet.release(instance, resources, until, now);
        self.running.ended(charge.account, charge.factory);
        self.usage.settle(charge, now, &self.config.fair_share);
        self.queue.order.set_used(charge.account, self.usage.of(charge.account));
        self.queue.lift_limits(charge.account, charge.factory);
        if let Some(row) = row {
            self.better_row(row);
            if self.fleet.in_row(row).state() == InstanceState::Lost {
                self.forget_if_lost(instance);
            }
        }
    }

    /// Something has changed for the better on an instance: it is looked at in the next pass.
    fn better(&mut self, instance: InstanceId) {
        if let Some(row) = self.fleet.row(instance) {
            self.better_row(row);
        }
    }

    fn better_row(&mut self, row: u32) {
        if self.freed.last() != Some(&row) {
            self.freed.push(row);
        }
    }

    fn knows(&self, job: JobId) -> bool {
        self.live.of(job).is_some() || self.in_flight.contains_key(&job) || self.queue.contains(job)
    }
}
