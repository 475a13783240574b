//! The scheduler against a slow reference: flat lists, no timers, no shapes, everything worked out anew each time.
//!
//! Random events, true ones and stale ones, are told to both; they must propose the same. Beside that, the invariants
//! of `region.rs` are checked on the actions alone.

use proptest::prelude::*;

use super::*;
use crate::placement::{choose, could_take, share_sum};

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
}

#[derive(Clone, Debug)]
struct Running {
    attempt: LiveAttempt,
    queued_as: Option<QueuedJob>,
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
}

#[derive(Clone, Debug, Default)]
struct Reference {
    waiting: Vec<Waiting>,
    flights: Vec<Flight>,
    running: Vec<Running>,
    hosts: Vec<Host>,
    totals: BTreeMap<JobId, Timestamp>,
    reservation: Option<(JobId, InstanceId)>,
}

impl Host {
    fn state(&self) -> InstanceState {
        match (self.lost, self.left, self.draining, self.profile.problems.is_empty()) {
            (true, ..) => InstanceState::Lost,
            (_, Some(_), ..) => InstanceState::Disconnected,
            (_, _, true, _) => InstanceState::Draining,
            (.., false) => InstanceState::Unhealthy,
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
            RegionEvent::AttemptOver(attempt) => self.over(attempt),
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
            self.over(live.attempt.id);
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
        self.reservation = self.reservation.filter(|(holder, _)| *holder != job);
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
            self.over(old);
        }
        if self.waiting.iter().any(|waiting| waiting.job.id == job && waiting.job.epoch >= attempt.id.epoch)
            || self.flights.iter().any(|flight| flight.job.id == job && flight.from >= attempt.id.epoch)
        {
            return;
        }
        let mut queued_as = self.waiting.iter().find(|waiting| waiting.job.id == job).map(|w| w.job.clone());
        self.waiting.retain(|waiting| waiting.job.id != job);
        self.unreserve(job);
        if let Some(index) = self.flights.iter().position(|flight| flight.job.id == job) {
            let flight = self.flights.remove(index);
            self.forget(flight.instance);
            if flight.job.epoch >= attempt.id.epoch {
                return self.enter(flight.job, None, now);
            }
            queued_as = Some(flight.job);
        }
        match attempt.total_deadline.filter(|_| !attempt.granted) {
            Some(at) => self.totals.insert(job, at),
            None => self.totals.remove(&job),
        };
        let (publisher, nobody_publishes, begun, refused) = (None, false, false, false);
        let heard = now;
        self.running.push(Running { attempt, queued_as, heard, publisher, nobody_publishes, begun, refused });
    }

    fn over(&mut self, attempt: AttemptId) {
        self.resolve(attempt);
        if let Some(index) = self.running.iter().position(|live| live.attempt.id == attempt) {
            let live = self.running.remove(index);
            self.totals.remove(&attempt.job);
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
            self.hosts.retain(|host| !(host.lost && host.profile.id == instance));
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
            self.forget(instance);
            again = Some(flight.job.clone()).filter(|_| requeue || flight.job.epoch > flight.from);
        } else if let Some(index) = live {
            let (id, queued) = (self.running[index].attempt.id, self.running[index].queued_as.clone());
            self.over(id);
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

    fn rank(job: &QueuedJob) -> (std::cmp::Reverse<u16>, Timestamp, JobId) {
        (std::cmp::Reverse(job.priority), job.queued_at, job.id)
    }

    fn pass(&mut self, now: Timestamp) -> Vec<Action> {
        let mut jobs: Vec<QueuedJob> = Vec::new();
        jobs.extend(self.waiting.iter().filter(|waiting| Self::may_run(waiting, now)).map(|w| w.job.clone()));
        jobs.sort_by_key(Self::rank);
        if let Some((holder, instance)) = self.reservation {
            let job = jobs.iter().find(|job| job.id == holder);
            let host = self.hosts.iter().find(|host| host.profile.id == instance);
            let stands =
                job.zip(host).is_some_and(|(job, host)| could_take(&job.request, &self.candidate(host)));
            self.reservation = self.reservation.filter(|_| stands);
        }
        let mut actions = Vec::new();
        let mut failed: Vec<Request> = Vec::new();
        for job in &jobs {
            let kept = self.reservation.and_then(|(holder, instance)| {
                let holder = jobs.iter().find(|job| job.id == holder)?;
                (Self::rank(job) > Self::rank(holder)).then_some(instance)
            });
            let candidates = self.hosts.iter().map(|host| self.candidate(host));
            let candidates = candidates.filter(|candidate| Some(candidate.id) != kept);
            match choose(&job.request, candidates, &Policy::default()) {
                Some(instance) => {
                    assert!(!failed.contains(&job.request), "a shape that failed would have fitted");
                    actions.push(self.assign(job, instance));
                }
                None if !failed.contains(&job.request) => {
                    failed.push(job.request.clone());
                    self.reserve(job, now);
                }
                None => {}
            }
        }
        actions
    }

    fn assign(&mut self, job: &QueuedJob, instance: InstanceId) -> Action {
        self.waiting.retain(|waiting| waiting.job.id != job.id);
        self.unreserve(job.id);
        let (from, resources) = (job.epoch, job.request.resources);
        self.flights.push(Flight { job: job.clone(), from, instance, resources });
        Action::Assign { job: job.id, instance }
    }

    fn reserve(&mut self, job: &QueuedJob, now: Timestamp) {
        let since = job.queued_at.max(job.not_before.unwrap_or(job.queued_at));
        if self.reservation.is_some() || now.since(since) < Duration::from_secs(60) {
            return;
        }
        let mut best = None;
        for host in &self.hosts {
            let candidate = self.candidate(host);
            let missing = job.request.resources.saturating_sub(&candidate.free);
            let capacity = candidate.capacity;
            let score = (missing.dominant_share(&capacity), share_sum(&missing, &capacity), candidate.id);
            if could_take(&job.request, &candidate) && best.is_none_or(|best| score < best) {
                best = Some(score);
            }
        }
        self.reservation = best.map(|(.., instance)| (job.id, instance));
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
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn proposes_what_the_reference_proposes(steps in prop::collection::vec(step(), 1..150)) {
        let (mut region, mut reference) = (region(), Reference::default());
        let mut last_heard: BTreeMap<AttemptId, Timestamp> = BTreeMap::new();
        let mut now = at(0);
        for (step, passed) in steps {
            let early = Timestamp::from_millis(now.as_millis() + passed);
            // Whatever becomes due on the way is due exactly when the region said, and not a millisecond before.
            while let Some(deadline) = region.next_deadline().filter(|&deadline| deadline <= early) {
                let before = Timestamp::from_millis(deadline.as_millis() - 1).max(now);
                prop_assert_eq!(region.handle(RegionEvent::Tick, before), vec![]);
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
