//! The scheduler against a slow reference: flat lists, no timers, no shapes, everything worked out anew each time.
//!
//! Random events, true ones and stale ones, are told to both; they must propose the same. Beside that, the invariants
//! of `region.rs` are checked on the actions alone.

use proptest::prelude::*;

use super::*;
use crate::placement::could_take;

mod pass;
mod story;

use story::{event, step};

const LEASE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
struct Waiting {
    job: QueuedJob,
    paused_until: Option<Timestamp>,
    expires: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Flight {
    job: QueuedJob,
    from: Epoch,
    instance: InstanceId,
    resources: Resources,
    charge: Charge,
}

#[derive(Clone, Debug)]
struct Running {
    attempt: LiveAttempt,
    queued_as: Option<QueuedJob>,
    charge: Charge,
    heard: Timestamp,
    publisher: Option<InstanceId>,
    nobody_publishes: bool,
    begun: bool,
    refused: bool,
}

#[derive(Clone, Debug)]
struct Host {
    profile: InstanceProfile,
    draining: bool,
    left: Option<Timestamp>,
    lost: bool,
    unknown: Vec<AttemptId>,
    hello: Timestamp,
    withheld: Resources,
    withheld_until: Option<Timestamp>,
    refusals: u32,
    cordon: Option<u64>,
    notice: Notice,
}

/// What is reserved: for whom, where, and whether for being the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    job: JobId,
    instance: InstanceId,
    oldest: bool,
}

#[derive(Clone, Debug, Default)]
struct Reference {
    config: RegionConfig,
    usage: Usage,
    turn: u32,
    contenders: Vec<(JobId, Timestamp)>,
    waiting: Vec<Waiting>,
    flights: Vec<Flight>,
    running: Vec<Running>,
    hosts: Vec<Host>,
    totals: BTreeMap<JobId, Timestamp>,
    kept: Vec<Kept>,
    cordons: BTreeMap<InstanceId, u64>,
    notices: BTreeMap<InstanceId, Notice>,
}

impl Host {
    fn state(&self) -> InstanceState {
        match (self.lost, self.left, self.draining, self.profile.problems.is_empty()) {
            (true, ..) => InstanceState::Lost,
            (_, Some(_), ..) => InstanceState::Disconnected,
            (_, _, true, _) => InstanceState::Draining,
            (.., false) => InstanceState::Unhealthy,
            _ if self.cordon.is_some() || self.notice.terminate_at.is_some() => InstanceState::Cordoned,
            (.., true) => InstanceState::Ready,
        }
    }
}

impl Reference {
    fn allocated(&self, instance: InstanceId) -> Resources {
        let flights = self.flights.iter().map(|flight| (flight.instance, flight.resources));
        let running = self.running.iter().map(|live| (live.attempt.instance, live.attempt.resources));
        let here = flights.chain(running).filter(|(on, _)| *on == instance);
        here.fold(Resources::ZERO, |sum, (_, resources)| sum.saturating_add(&resources))
    }

    fn candidate<'a>(&self, host: &'a Host) -> crate::placement::Candidate<'a> {
        let profile = &host.profile;
        let free = profile.capacity.saturating_sub(&self.allocated(profile.id));
        let free = free.saturating_sub(&host.withheld);
        crate::placement::Candidate {
            id: profile.id,
            pool: &profile.pool,
            host: &profile.host,
            capacity: profile.capacity,
            free: if host.unknown.is_empty() { free } else { Resources::ZERO },
            runtimes: &profile.runtimes,
            cached_images: &profile.cached_images,
            state: host.state(),
            problems: &profile.problems,
        }
    }

    fn handle(&mut self, event: RegionEvent, now: Timestamp) -> Vec<Action> {
        let mut actions = self.told(event, now);
        actions.extend(self.due(now));
        actions.sort_unstable();
        actions.extend(self.pass(now));
        actions
    }

    fn told(&mut self, event: RegionEvent, now: Timestamp) -> Vec<Action> {
        match event {
            RegionEvent::JobQueued(job) => self.queued(job, now),
            RegionEvent::JobLeft(job) => self.left(job),
            RegionEvent::AttemptLive(attempt) => self.live(attempt, now),
            RegionEvent::AttemptOver(attempt) => self.over(attempt, now),
            RegionEvent::AssignmentFailed { job, instance, requeue } => {
                self.failed(job, instance, requeue, now)
            }
            RegionEvent::InstanceRefused { instance, attempt, free } => {
                self.refused(instance, attempt, free, now);
            }
            RegionEvent::InstanceAttached { profile, running } => return self.hello(profile, running, now),
            RegionEvent::ProfileChanged { profile, draining } => {
                for host in self.hosts.iter_mut().filter(|host| host.profile.id == profile.id) {
                    (host.profile, host.draining) = (profile.clone(), draining);
                    (host.withheld, host.withheld_until) = (Resources::ZERO, None);
                }
            }
            RegionEvent::Cordon { instance, cordon } => {
                match cordon {
                    Some(number) => self.cordons.insert(instance, number),
                    None => self.cordons.remove(&instance),
                };
                self.hosts
                    .iter_mut()
                    .filter(|host| host.profile.id == instance)
                    .for_each(|host| host.cordon = cordon);
            }
            RegionEvent::Noticed { instance, notice } => {
                self.notices.insert(instance, notice);
                self.hosts
                    .iter_mut()
                    .filter(|host| host.profile.id == instance)
                    .for_each(|host| host.notice = notice);
            }
            RegionEvent::InstanceDetached(instance) => {
                for host in
                    self.hosts.iter_mut().filter(|host| host.profile.id == instance && host.left.is_none())
                {
                    host.left = Some(now);
                }
            }
            RegionEvent::Renewed(attempt) => self.heard(attempt, now),
            RegionEvent::Tick => {}
        }
        Vec::new()
    }

    fn heard(&mut self, attempt: AttemptId, now: Timestamp) {
        for live in self.running.iter_mut().filter(|live| live.attempt.id == attempt) {
            (live.heard, live.nobody_publishes) = (now, false);
            if !std::mem::replace(&mut live.begun, true) {
                let host = self.hosts.iter_mut().find(|host| host.profile.id == live.attempt.instance);
                host.into_iter().for_each(|host| host.refusals = 0);
            }
        }
    }

    fn refused(&mut self, instance: InstanceId, attempt: AttemptId, free: Resources, now: Timestamp) {
        let others = self.allocated(instance);
        let Some(live) = self.running.iter_mut().find(|live| live.attempt.id == attempt) else { return };
        if live.attempt.instance != instance || live.begun || live.refused || live.attempt.granted {
            return;
        }
        live.refused = true;
        let asked = live.attempt.resources;
        let Some(host) = self.hosts.iter_mut().find(|host| host.profile.id == instance) else { return };
        let believed = host.profile.capacity.saturating_sub(&others.saturating_sub(&asked));
        let left = Resources {
            cpu_milli: free.cpu_milli.min(believed.cpu_milli),
            memory_bytes: free.memory_bytes.min(believed.memory_bytes),
            ..Resources::ZERO
        };
        let left = if asked.fits_in(&left) { Resources::ZERO } else { left };
        host.withheld = believed.saturating_sub(&left);
        if host.left.is_none() {
            let seconds = [1, 2, 4, 8, 16].get(host.refusals as usize).copied().unwrap_or(30);
            host.withheld_until = Some(now.after(Duration::from_secs(seconds)));
        }
        host.refusals += 1;
    }

    fn queued(&mut self, job: QueuedJob, now: Timestamp) {
        if let Some(live) = self.running.iter().find(|live| live.attempt.id.job == job.id) {
            if live.attempt.id.epoch > job.epoch {
                return;
            }
            self.over(live.attempt.id, now);
        }
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.job.id == job.id) {
            if flight.job.epoch <= job.epoch {
                flight.job = job;
            }
            return;
        }
        match self.waiting.iter().find(|waiting| waiting.job.id == job.id) {
            Some(known) if known.job == job || known.job.epoch > job.epoch => {}
            Some(_) | None => {
                self.left(job.id);
                self.enter(job, None, now);
            }
        }
    }

    fn enter(&mut self, job: QueuedJob, pause: Option<Timestamp>, now: Timestamp) {
        match job.total_deadline {
            Some(at) => self.totals.insert(job.id, at),
            None => self.totals.remove(&job.id),
        };
        let paused_until = pause.max(job.not_before).filter(|&time| time > now);
        self.waiting.push(Waiting { paused_until, expires: job.queue_deadline, job });
    }

    fn left(&mut self, job: JobId) {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.job.id != job);
        if self.waiting.len() < before {
            self.totals.remove(&job);
            self.unreserve(job);
        }
    }

    fn unreserve(&mut self, job: JobId) {
        self.kept.retain(|kept| kept.job != job);
    }

    fn live(&mut self, attempt: LiveAttempt, now: Timestamp) {
        let job = attempt.id.job;
        self.resolve(attempt.id);
        if let Some(live) = self.running.iter_mut().find(|live| live.attempt.id.job == job) {
            if live.attempt.id == attempt.id {
                live.attempt.granted |= attempt.granted;
                live.attempt.total_deadline = attempt.total_deadline;
                if live.attempt.granted {
                    self.totals.remove(&job);
                }
                return;
            }
            if live.attempt.id.epoch > attempt.id.epoch {
                return;
            }
            let old = live.attempt.id;
            self.over(old, now);
        }
        if self.waiting.iter().any(|waiting| waiting.job.id == job && waiting.job.epoch >= attempt.id.epoch)
            || self.flights.iter().any(|flight| flight.job.id == job && flight.from >= attempt.id.epoch)
        {
            return;
        }
        let mut queued_as = self.waiting.iter().find(|waiting| waiting.job.id == job).map(|w| w.job.clone());
        self.waiting.retain(|waiting| waiting.job.id != job);
        self.unreserve(job);
        let mut charge = None;
        if let Some(index) = self.flights.iter().position(|flight| flight.job.id == job) {
            let flight = self.flights.remove(index);
            let current = flight.job.epoch < attempt.id.epoch;
            if current && flight.instance == attempt.instance && flight.resources == attempt.resources {
                charge = Some(flight.charge);
            } else {
                self.usage.settle(&flight.charge, now, &self.config.fair_share);
                self.forget(flight.instance);
            }
            if !current {
                return self.enter(flight.job, None, now);
            }
            queued_as = Some(flight.job);
        }
        let whose = (attempt.account, attempt.factory);
        let charge = charge.unwrap_or_else(|| self.charge(whose, &attempt.resources, now));
        match attempt.total_deadline.filter(|_| !attempt.granted) {
            Some(at) => self.totals.insert(job, at),
            None => self.totals.remove(&job),
        };
        let (publisher, nobody_publishes, begun, refused) = (None, false, false, false);
        let heard = now;
        self.running.push(Running {
            attempt,
            queued_as,
            charge,
            heard,
            publisher,
            nobody_publishes,
            begun,
            refused,
        });
    }

    fn charge(
        &mut self,
        whose: (AccountId, Option<FactoryId>),
        resources: &Resources,
        now: Timestamp,
    ) -> Charge {
        let connected = self.hosts.iter().filter(|host| host.left.is_none() && !host.lost);
        let capacity =
            connected.fold(Resources::ZERO, |sum, host| sum.saturating_add(&host.profile.capacity));
        self.usage.rebase(now, &self.config.fair_share);
        self.usage.charge(whose, resources.dominant_share(&capacity), now, &self.config.fair_share)
    }

    fn over(&mut self, attempt: AttemptId, now: Timestamp) {
        self.resolve(attempt);
        if let Some(index) = self.running.iter().position(|live| live.attempt.id == attempt) {
            let live = self.running.remove(index);
            self.totals.remove(&attempt.job);
            self.usage.settle(&live.charge, now, &self.config.fair_share);
            self.forget(live.attempt.instance);
        }
    }

    fn resolve(&mut self, attempt: AttemptId) {
        for host in &mut self.hosts {
            host.unknown.retain(|unknown| *unknown != attempt);
        }
    }

    fn forget(&mut self, instance: InstanceId) {
        if self.allocated(instance) == Resources::ZERO {
            let before = self.hosts.len();
            self.hosts.retain(|host| !(host.lost && host.profile.id == instance));
            if self.hosts.len() < before {
                self.cordons.remove(&instance);
                self.notices.remove(&instance);
            }
        }
    }

    fn failed(&mut self, job: JobId, instance: InstanceId, requeue: bool, now: Timestamp) {
        let mut again = None;
        let flight =
            self.flights.iter().position(|flight| flight.job.id == job && flight.instance == instance);
        let live =
            self.running.iter().position(|l| l.attempt.id.job == job && l.attempt.instance == instance);
        if let Some(index) = flight {
            let flight = self.flights.remove(index);
            self.usage.settle(&flight.charge, now, &self.config.fair_share);
            self.forget(instance);
            again = Some(flight.job.clone()).filter(|_| requeue || flight.job.epoch > flight.from);
        } else if let Some(index) = live {
            let (id, queued) = (self.running[index].attempt.id, self.running[index].queued_as.clone());
            self.over(id, now);
            again = queued.filter(|_| requeue).map(|queued| QueuedJob { epoch: id.epoch, ..queued });
        }
        if let Some(job) = again {
            self.enter(job, Some(now.after(Duration::from_secs(1))), now);
        } else if flight.is_some() {
            self.totals.remove(&job);
        }
    }

    fn hello(&mut self, profile: InstanceProfile, running: Vec<AttemptId>, now: Timestamp) -> Vec<Action> {
        let instance = profile.id;
        let mut actions = Vec::new();
        let mut unknown = Vec::new();
        for attempt in running {
            let here = |live: &Running| live.attempt.id == attempt && live.attempt.instance == instance;
            if self.running.iter().any(here) {
                self.heard(attempt, now);
            } else {
                unknown.push(attempt);
                actions.push(Action::Resolve { attempt, instance });
            }
        }
        self.hosts.retain(|host| host.profile.id != instance);
        self.hosts.push(Host {
            profile,
            draining: false,
            left: None,
            lost: false,
            unknown,
            hello: now,
            withheld: Resources::ZERO,
            withheld_until: None,
            refusals: 0,
            cordon: self.cordons.get(&instance).copied(),
            notice: self.notices.get(&instance).copied().unwrap_or_default(),
        });
        self.hosts.sort_by_key(|host| host.profile.id);
        for index in 0..self.running.len() {
            if self.running[index].nobody_publishes {
                actions.extend(self.publish(index, now));
            }
        }
        actions
    }

    fn publish(&mut self, index: usize, now: Timestamp) -> Option<Action> {
        let attached: Vec<InstanceId> = self
            .hosts
            .iter()
            .filter(|host| host.left.is_none() && !host.lost)
            .map(|host| host.profile.id)
            .collect();
        let live = &mut self.running[index];
        let own = live.attempt.instance;
        let chosen = match live.publisher {
            None => attached.iter().find(|id| **id == own).or(attached.first()),
            Some(last) => attached.iter().find(|id| **id > last).or(attached.first()),
        };
        live.heard = now;
        live.nobody_publishes = chosen.is_none();
        live.publisher = chosen.copied().or(live.publisher);
        chosen.map(|&instance| Action::PublishElsewhere { attempt: live.attempt.id, instance })
    }

    fn due(&mut self, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        for waiting in &mut self.waiting {
            if waiting.expires.is_some_and(|at| at <= now) {
                waiting.expires = Some(now.after(LEASE));
                actions.push(Action::ExpireQueued(waiting.job.id));
            }
        }
        for (job, at) in &mut self.totals {
            if *at <= now {
                *at = now.after(LEASE);
                actions.push(Action::TotalTimeout(*job));
            }
        }
        for index in 0..self.running.len() {
            let live = &mut self.running[index];
            if now.since(live.heard) >= LEASE && live.attempt.granted {
                actions.extend(self.publish(index, now));
            } else if now.since(live.heard) >= LEASE {
                live.heard = now;
                actions.push(Action::DeclareLost(live.attempt.id));
            }
        }
        let mut lost = Vec::new();
        for host in &mut self.hosts {
            if now.since(host.hello) >= LEASE {
                host.unknown.clear();
            }
            if host.withheld_until.is_some_and(|until| until <= now) {
                (host.withheld, host.withheld_until) = (Resources::ZERO, None);
            }
            if host.left.is_some_and(|left| now.since(left) >= LEASE) && !host.lost {
                (host.lost, host.withheld_until) = (true, None);
                lost.push(host.profile.id);
            }
        }
        for instance in lost {
            self.forget(instance);
            actions.push(Action::InstanceLost(instance));
        }
        actions
    }

    fn may_run(waiting: &Waiting, now: Timestamp) -> bool {
        let passed = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        waiting.paused_until.is_none_or(|until| until <= now)
            && !passed(waiting.job.queue_deadline)
            && !passed(waiting.job.total_deadline)
    }

    /// The next time at which `handle(Tick)` has an effect.
    fn next_deadline(&self, now: Timestamp) -> Option<Timestamp> {
        let mut times: Vec<Timestamp> = self.totals.values().copied().collect();
        for waiting in &self.waiting {
            times.extend(waiting.expires);
            times.extend(waiting.paused_until.filter(|&until| until > now));
        }
        times.extend(self.running.iter().map(|live| live.heard.after(LEASE)));
        for host in self.hosts.iter().filter(|host| !host.lost) {
            times.extend(host.left.map(|left| left.after(LEASE)));
            times.extend(host.withheld_until);
            times.extend((!host.unknown.is_empty()).then(|| host.hello.after(LEASE)));
        }
        times.into_iter().min()
    }
}

/// What the region said, with everything but assignments in a fixed order.
fn ordered(mut actions: Vec<Action>) -> Vec<Action> {
    let assigns: Vec<Action> =
        actions.iter().copied().filter(|action| matches!(action, Action::Assign { .. })).collect();
    actions.retain(|action| !matches!(action, Action::Assign { .. }));
    actions.sort_unstable();
    actions.extend(assigns);
    actions
}

/// Holds whatever the reference says.
fn check(region: &Region, before: &Region, actions: &[Action], now: Timestamp) {
    for view in region.instances() {
        let flights = region.in_flight.values().map(|flight| (flight.instance, flight.resources));
        let running = region.attempts().map(|live| (live.instance, live.resources));
        let sum = flights
            .chain(running)
            .filter(|(on, _)| *on == view.profile.id)
            .fold(Resources::ZERO, |sum, (_, resources)| sum.saturating_add(&resources));
        assert_eq!(sum, view.allocated, "the ledger of {}", view.profile.host);
        let newly = actions
            .iter()
            .any(|action| matches!(action, Action::Assign { instance, .. } if *instance == view.profile.id));
        assert!(!newly || view.allocated.fits_in(&view.profile.capacity), "more given out than there is");
        assert!(!newly || view.state == InstanceState::Ready);
        assert!(
            !newly || view.cordon.is_none() && view.notice.terminate_at.is_none(),
            "given to a cordoned one"
        );
        let holds = region.in_flight.values().any(|flight| flight.instance == view.profile.id)
            || region.attempts().any(|live| live.instance == view.profile.id)
            || view.unknown_attempts > 0;
        assert_eq!(region.is_idle(view.profile.id), !holds, "{} is idle, or not", view.profile.host);
        let reserved = region.reservations.all().any(|held| held.instance == view.profile.id);
        assert!(!reserved || view.state == InstanceState::Ready, "reserved where nothing new may go");
    }
    for action in actions {
        match action {
            Action::Assign { job, .. } => {
                assert!(
                    !before.in_flight.contains_key(job) || region.attempts().all(|live| live.id.job != *job)
                );
                assert_eq!(actions.iter().filter(|other| *other == action).count(), 1);
                assert!(region.attempts().all(|live| live.id.job != *job), "assigned while live");
            }
            Action::DeclareLost(id) => assert!(region.attempts().any(|live| live.id == *id && !live.granted)),
            Action::PublishElsewhere { attempt, .. } => {
                assert!(region.attempts().any(|live| live.id == *attempt && live.granted));
            }
            Action::Resolve { .. }
            | Action::ExpireQueued(_)
            | Action::TotalTimeout(_)
            | Action::InstanceLost(_) => {}
        }
    }
    assert!(region.next_deadline().is_none_or(|next| next > now), "something due was not done");
    nothing_idles_while_something_waits(region, now);
}

/// Progress: no instance stands idle while a job waits that fits there and that nothing else keeps back.
fn nothing_idles_while_something_waits(region: &Region, now: Timestamp) {
    let waiting = region.queued().filter_map(|id| region.queued_job(id)).filter(|job| {
        let passed = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        region.limit_of(job.id).is_none() && !passed(job.queue_deadline) && !passed(job.total_deadline)
    });
    let waiting: Vec<QueuedJob> =
        waiting.filter(|job| region.queue.head_if_first(job.id).is_some()).collect();
    for slot in region.fleet.slots().filter(|slot| slot.free() == slot.profile.capacity) {
        let fits = waiting.iter().find(|job| could_take(&job.request, &slot.candidate()));
        assert!(fits.is_none(), "{} is idle while {} waits", slot.profile.host, fits.unwrap().id);
    }
}

/// Everything that may keep a job back, at times that stories reach.
fn strict_config() -> RegionConfig {
    let limits = Limits {
        every_account: Some(3),
        accounts: BTreeMap::from([(account(2), 2)]),
        factories: BTreeMap::from([(FactoryId::new(at(0), 0), 1)]),
    };
    let fair_share = FairShare { weights: BTreeMap::from([(account(1), 300)]), ..FairShare::default() };
    let aging = Aging { after: Duration::from_secs(90), every: 3 };
    let reserve_after = Duration::from_secs(20);
    RegionConfig { limits, fair_share, aging, reserve_after, ..RegionConfig::default() }
}

fn account(number: u128) -> AccountId {
    AccountId::new(at(0), number)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn proposes_what_the_reference_proposes(strict in any::<bool>(), steps in prop::collection::vec(step(), 1..150)) {
        let config = if strict { strict_config() } else { RegionConfig::default() };
        let mut region = Region::new(config.clone());
        let mut reference = Reference { config, ..Reference::default() };
        let mut last_heard: BTreeMap<AttemptId, Timestamp> = BTreeMap::new();
        let mut now = at(0);
        for (step, passed) in steps {
            let early = Timestamp::from_millis(now.as_millis() + passed);
            // Whatever becomes due on the way is due exactly when the region said, and not a millisecond before.
            while let Some(deadline) = region.next_deadline().filter(|&deadline| deadline <= early) {
                let before = Timestamp::from_millis(deadline.as_millis() - 1).max(now);
                prop_assert_eq!(region.handle(RegionEvent::Tick, before), vec![]);
                prop_assert_eq!(reference.handle(RegionEvent::Tick, before), vec![]);
                now = deadline;
                let actions = region.clone().handle(RegionEvent::Tick, now);
                prop_assert_eq!(&actions, &region.handle(RegionEvent::Tick, now), "same events, other actions");
                for lost in actions.iter().filter_map(|action| if let Action::DeclareLost(id) = action { Some(id) } else { None }) {
                    prop_assert!(now.since(last_heard[lost]) >= LEASE, "lost too early");
                }
                prop_assert_eq!(ordered(actions), reference.handle(RegionEvent::Tick, now));
            }
            now = early;
            let event = event(&step, &reference, now);
            match &event {
                RegionEvent::AttemptLive(live) => { last_heard.entry(live.id).or_insert(now); }
                RegionEvent::Renewed(id) => { last_heard.insert(*id, now); }
                RegionEvent::AttemptOver(id) => { last_heard.remove(id); }
                _ => {}
            }
            let before = region.clone();
            let actions = region.handle(event.clone(), now);
            check(&region, &before, &actions, now);
            prop_assert_eq!(ordered(actions), reference.handle(event.clone(), now), "{:?} at {}", event, now);
            prop_assert_eq!(region.next_deadline(), reference.next_deadline(now), "after {:?} at {}", event, now);
            prop_assert_eq!(region.queue_length(), reference.waiting.len());
        }
    }
}
