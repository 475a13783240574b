//! The dispatch loop: one task per region that owns the scheduler and carries out what it says.
//!
//! Events come in as commands, one after the other; actions go out as effects, each a task of its own that writes to the
//! table, calls a coordinator and tells the loop what came of it. The loop itself never waits for either.
//!
//! Invariant: an attempt that was declared lost is never renewed, although its loss may not be recorded yet. So a worker
//! whose renewal is answered holds a right that nobody is about to take away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use telecine_domain::attempt::AttemptId;
use telecine_domain::id::InstanceId;
use telecine_domain::instance::{InstanceProfile, Notice};
use telecine_domain::region::{Action, Region, RegionConfig, RegionEvent};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use crate::lead::{Command, Lead, Survey};
use crate::publish;
use crate::registry::{CoordinatorCaller, Open};

mod cordons;
mod effects;
mod fleet;

use cordons::Cordons;
pub(crate) use cordons::message as cordon_message;
pub(crate) use effects::{EndedBy, end_with_leftovers};
use fleet::FleetRecords;

/// How often instances' records and gauges are brought up to date.
const BOOKKEEPING: Duration = Duration::from_secs(1);

/// Runs until the leadership is over.
pub(crate) async fn run(lead: Arc<Lead>, commands: mpsc::Receiver<Command>) {
    let config = RegionConfig {
        expected_run: lead.config.autoscaling.expected_run(),
        ..lead.config.scheduling.region(lead.config.lease)
    };
    let dispatcher = Dispatcher {
        region: Region::new(config),
        condemned: BTreeSet::new(),
        attached: BTreeMap::new(),
        cordons: Cordons::new(),
        fleet: FleetRecords::new(lead.clone()),
        lead,
    };
    dispatcher.run(commands).await;
}

struct Dispatcher {
    lead: Arc<Lead>,
    region: Region,
    /// Attempts that are being declared lost.
    condemned: BTreeSet<AttemptId>,
    /// The newest stream of each attached instance.
    attached: BTreeMap<InstanceId, u64>,
    cordons: Cordons,
    fleet: FleetRecords,
}

impl Dispatcher {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut bookkeeping = tokio::time::interval(BOOKKEEPING);
        bookkeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.until_due();
            tokio::select! {
                biased;
                () = self.lead.over.cancelled() => return,
                command = commands.recv() => match command {
                    Some(command) => self.take(command),
                    None => return,
                },
                () = tokio::time::sleep(due) => self.handle(RegionEvent::Tick),
                _ = bookkeeping.tick() => self.keep_books(),
            }
        }
    }

    /// Time until the region wants to be asked again.
    fn until_due(&self) -> Duration {
        let far = Duration::from_secs(3600);
        self.region.next_deadline().map_or(far, |at| at.since(self.lead.now()).min(far))
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Event(event) => {
                match &event {
                    RegionEvent::AttemptOver(attempt) => drop(self.condemned.remove(attempt)),
                    // Granted at the last moment: it may go on publishing.
                    RegionEvent::AttemptLive(live) if live.granted => drop(self.condemned.remove(&live.id)),
                    _ => {}
                }
                self.handle(event);
            }
            Command::Attach { profile, running, cordon, notice, stream } => {
                if let Some((instance, generation)) = self.open(profile.id, stream) {
                    self.cordon_of_new(instance, generation, cordon);
                    self.attach(*profile, notice, running);
                    // What was due first may have made the region forget the instance, and its cordon with it.
                    self.tell_region(instance);
                }
            }
            Command::Detach { instance, generation } => self.detach(instance, generation),
            Command::Cordons(rows) => self.cordons_seen(rows),
            Command::IdleAt { instance, generation, number } => self.idle_at(instance, generation, number),
            Command::Renew { attempt, answer } => {
                let live = self.region.attempt(attempt).is_some() && !self.condemned.contains(&attempt);
                if live {
                    self.handle(RegionEvent::Renewed(attempt));
                }
                // A session that ended meanwhile needs no answer.
                let _ended = answer.send(live);
            }
            Command::Waiting(answer) => {
                let _ended = answer.send(self.region.waiting());
            }
            Command::Survey(answer) => {
                let queued = self.region.queued().collect();
                let live = self.region.attempts().map(|attempt| attempt.id).collect();
                let _ended = answer.send(Survey { queued, live });
            }
        }
    }

    /// Registers a coordinator's stream, unless there is a newer one.
    fn open(&mut self, instance: InstanceId, stream: Open<CoordinatorCaller>) -> Option<(InstanceId, u64)> {
        let generation = stream.generation;
        if !self.lead.registry.coordinators.insert(instance, stream) {
            return None;
        }
        self.attached.insert(instance, generation);
        Some((instance, generation))
    }

    fn attach(&mut self, profile: InstanceProfile, notice: Notice, running: Vec<AttemptId>) {
        let instance = profile.id;
        info!(%instance, region = %self.lead.region, host = profile.host, running = running.len(), "an instance attached");
        self.find_undelivered(instance, &running);
        self.handle(RegionEvent::Noticed { instance, notice });
        self.handle(RegionEvent::InstanceAttached { profile, running });
    }

    /// Attempts that are recorded for an instance and missing in its hello, with no worker connected: if they were
    /// never started, their assignment never arrived.
    fn find_undelivered(&self, instance: InstanceId, running: &[AttemptId]) {
        let missing = self.region.attempts().filter(|attempt| {
            attempt.instance == instance
                && !running.contains(&attempt.id)
                && !self.lead.is_sending(attempt.id)
                && self.lead.registry.workers.caller(attempt.id).is_none()
        });
        for attempt in missing {
            let (lead, id) = (self.lead.clone(), attempt.id);
            self.lead.spawn(effects::undelivered(lead, id));
        }
    }

    fn detach(&mut self, instance: InstanceId, generation: u64) {
        self.lead.registry.coordinators.remove(instance, generation);
        if self.attached.get(&instance) == Some(&generation) {
            self.attached.remove(&instance);
            self.cordon_of_gone(instance, generation);
            info!(%instance, region = %self.lead.region, "an instance's stream ended");
            self.handle(RegionEvent::InstanceDetached(instance));
        }
    }

    fn handle(&mut self, event: RegionEvent) {
        for action in self.region.handle(event, self.lead.now()) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        let lead = self.lead.clone();
        match action {
            Action::Assign { job, instance } => self.lead.spawn(effects::assign(lead, job, instance)),
            Action::DeclareLost(attempt) => {
                if self.condemned.insert(attempt) {
                    warn!(%attempt, "nothing was heard of an attempt for a lease; it is lost");
                    self.lead.spawn(effects::lost(lead, attempt));
                }
            }
            Action::PublishElsewhere { attempt, instance } => {
                self.lead.spawn(publish::elsewhere(lead, attempt, instance));
            }
            Action::Resolve { attempt, instance } => {
                self.lead.spawn(effects::resolve(lead, attempt, instance));
            }
            Action::ExpireQueued(job) => self.lead.spawn(effects::expire(lead, job)),
            Action::TotalTimeout(job) => self.lead.spawn(effects::total_timeout(lead, job)),
            Action::InstanceLost(instance) => {
                debug!(%instance, "an instance has been away for a lease");
                self.fleet.lost(instance);
            }
        }
    }

    fn keep_books(&mut self) {
        // What is no longer live needs no memory of its loss.
        self.condemned.retain(|attempt| self.region.attempt(*attempt).is_some());
        self.fleet.update(&self.region);
    }
}
