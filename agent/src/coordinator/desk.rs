//! What the tasks of a coordinator share: who it is, what is promised, which attempts there are, and its health.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use telecine_domain::attempt::AttemptId;
use telecine_domain::failure::Failure;
use telecine_domain::id::{InstanceId, Term};
use telecine_domain::instance::{InstanceProfile, Notice};
use telecine_domain::resources::Resources;
use telecine_proto::calls::Caller;
use telecine_proto::coordinator::v1::{FromCoordinator, FromManager};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::cordon::Cordons;
use super::orders::{Order, Orders, OrdersTaken, orders};
use super::{CoordinatorError, CoordinatorParts, data_error, enrol, pulls_folder};
use crate::clock::Clock;
use crate::config::{AgentConfig, LogFormat};
use crate::failure::infrastructure;
use crate::folder::{Assignment, Surroundings, write_file};
use crate::health::{self, Facts, Limits, Verdict};
use crate::inventory::{self, Inventory};
use crate::launcher::WorkerLauncher;
use crate::ledger::{Holding, Ledger, Shortage};
use crate::runtime::Runtimes;

pub(super) type ManagerCaller = Caller<FromCoordinator, FromManager>;

/// An attempt that is here.
struct Entry {
    resources: Resources,
    orders: Orders,
}

struct State {
    ledger: Ledger,
    attempts: BTreeMap<AttemptId, Entry>,
    /// Assignments that wait for room, each with what gives it up.
    expected: BTreeMap<(AttemptId, u64), CancellationToken>,
    next_expected: u64,
    /// Somebody was told what is free: what becomes free now is told, too.
    refused: bool,
    facts: Option<Facts>,
    verdict: Verdict,
    images: BTreeSet<String>,
    draining: bool,
    cordons: Cordons,
    notice: Notice,
    term: Term,
    managers: Vec<String>,
}

/// Why an attempt is not entered now.
pub(super) enum NotNow {
    /// The instance takes no new work.
    Closed(Failure),
    /// Too little is free.
    Short(Shortage),
}

/// See the module.
pub(super) struct Desk {
    pub(super) config: AgentConfig,
    pub(super) instance: InstanceId,
    pub(super) clock: Clock,
    pub(super) runtimes: Runtimes,
    pub(super) launcher: Arc<dyn WorkerLauncher>,
    /// The present connection to the manager.
    pub(super) caller: watch::Sender<Option<ManagerCaller>>,
    /// Rings when the profile has changed.
    pub(super) profile_news: Notify,
    host: String,
    limits: Limits,
    ca_pem: String,
    docker_version: Option<(usize, usize)>,
    changed: watch::Sender<u64>,
    state: Mutex<State>,
}

impl Desk {
    pub(super) async fn open(
        config: AgentConfig,
        parts: CoordinatorParts,
        instance: InstanceId,
    ) -> Result<Arc<Self>, CoordinatorError> {
        let Inventory { host, capacity, gpus } = inventory::measure(&config.data_folder, &config.capacity)?;
        let limits = Limits {
            minimum_free_bytes: config.minimum_free_bytes,
            gpus: gpus.len(),
            data_folder: config.data_folder.display().to_string(),
        };
        let ca_pem = enrol::read("ca_file", &config.ca_file)?;
        let term = read_term(&config)?;
        let state = State {
            ledger: Ledger::new(capacity, gpus),
            attempts: BTreeMap::new(),
            expected: BTreeMap::new(),
            next_expected: 0,
            refused: false,
            facts: None,
            verdict: Verdict::default(),
            images: BTreeSet::new(),
            draining: false,
            cordons: Cordons::default(),
            notice: Notice::default(),
            term,
            managers: config.managers.clone(),
        };
        let desk = Arc::new(Self {
            instance,
            clock: parts.clock,
            runtimes: parts.runtimes,
            launcher: parts.launcher,
            caller: watch::Sender::new(None),
            profile_news: Notify::new(),
            host,
            limits,
            ca_pem,
            docker_version: parts.docker_version,
            changed: watch::Sender::new(0),
            state: Mutex::new(state),
            config,
        });
        desk.look().await;
        Ok(desk)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn capacity(&self) -> Resources {
        self.state().ledger.capacity()
    }

    // Attempts.

    /// Enters an attempt that was assigned now; `None` when it is here already. In one step with the answer to
    /// [`Self::idle_at`]: whoever was told that nothing is held at a cordon finds nothing entered as long as it stands.
    pub(super) fn accept(
        &self,
        attempt: AttemptId,
        resources: Resources,
    ) -> Result<Option<(Holding, OrdersTaken)>, NotNow> {
        let mut state = self.state();
        if state.attempts.contains_key(&attempt) {
            return Ok(None);
        }
        if let Some(closed) = closed(&state) {
            return Err(NotNow::Closed(closed));
        }
        let holding = state.ledger.grant(attempt, resources).map_err(NotNow::Short)?;
        let (orders, taken) = orders();
        state.attempts.insert(attempt, Entry { resources, orders });
        metrics::gauge!("telecine_agent_attempts").set(count(&state));
        drop(state);
        self.changed.send_modify(|count| *count += 1);
        Ok(Some((holding, taken)))
    }

    /// Enters an attempt of a former coordinator.
    pub(super) fn restore(&self, assignment: &Assignment) -> OrdersTaken {
        let (orders, taken) = orders();
        let mut state = self.state();
        let holding = Holding { resources: assignment.resources, gpus: assignment.gpus.clone() };
        state.ledger.restore(assignment.attempt, holding);
        state.attempts.insert(assignment.attempt, Entry { resources: assignment.resources, orders });
        taken
    }

    /// An assignment begins to wait for room, until what this gives is dropped.
    pub(super) fn expect(&self, attempt: AttemptId) -> Expected<'_> {
        let given_up = CancellationToken::new();
        let mut state = self.state();
        state.next_expected += 1;
        let key = (attempt, state.next_expected);
        state.expected.insert(key, given_up.clone());
        drop(state);
        Expected { desk: self, key, given_up }
    }

    /// There is no room for an assignment: gives what is free. When more is, a profile tells.
    pub(super) fn refuse(&self) -> Resources {
        let mut state = self.state();
        state.refused = true;
        let takes_work = closed(&state).is_none() && state.verdict.problems.is_empty();
        if takes_work { state.ledger.free() } else { Resources::ZERO }
    }

    /// Nothing of the attempt runs any more: what it held is free again.
    pub(super) fn release(&self, attempt: &AttemptId) {
        let mut state = self.state();
        state.ledger.release(attempt);
        let is_news = std::mem::take(&mut state.refused);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
        if is_news {
            self.profile_news.notify_one();
        }
    }

    /// The attempt is over and the manager knows how.
    pub(super) fn forget(&self, attempt: &AttemptId) {
        let mut state = self.state();
        state.attempts.remove(attempt);
        metrics::gauge!("telecine_agent_attempts").set(count(&state));
        drop(state);
        self.release(attempt);
    }

    pub(super) fn running(&self) -> Vec<(AttemptId, Resources)> {
        self.state().attempts.iter().map(|(id, entry)| (*id, entry.resources)).collect()
    }

    pub(super) fn is_here(&self, attempt: &AttemptId) -> bool {
        self.state().attempts.contains_key(attempt)
    }

    /// Gives an order to an attempt, also to one that still waits for room; nothing happens when it is neither.
    pub(super) fn order(&self, attempt: &AttemptId, order: Order) {
        let state = self.state();
        if let Some(entry) = state.attempts.get(attempt) {
            entry.orders.give(order);
        }
        let waiting = state.expected.range((*attempt, 0)..=(*attempt, u64::MAX));
        waiting.for_each(|(_, given_up)| given_up.cancel());
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Attempts of the same job under older epochs, here or waiting for room.
    pub(super) fn older(&self, attempt: &AttemptId) -> Vec<AttemptId> {
        let state = self.state();
        let known = state.attempts.keys().chain(state.expected.keys().map(|(id, _)| id));
        known.filter(|id| id.job == attempt.job && id.epoch < attempt.epoch).copied().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().attempts.is_empty()
    }

    pub(super) async fn until_empty(&self) {
        self.until(Self::is_empty).await;
    }

    /// Waits until the attempt is over and cleaned up here; at once when it never was here.
    pub(super) async fn until_gone(&self, attempt: &AttemptId) {
        self.until(|desk| !desk.is_here(attempt)).await;
    }

    /// Rings when an attempt came or went, or was told something.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    async fn until(&self, reached: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        while !reached(self) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    // What the instance is.

    pub(super) fn profile(&self) -> InstanceProfile {
        let state = self.state();
        InstanceProfile {
            id: self.instance,
            region: self.config.region.clone(),
            pool: self.config.pool.clone(),
            host: self.host.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: state.ledger.capacity(),
            runtimes: state.verdict.runtimes.clone(),
            cached_images: state.images.clone(),
            problems: state.verdict.problems.clone(),
        }
    }

    pub(super) fn surroundings(&self) -> Surroundings {
        Surroundings {
            instance: self.instance,
            region: self.config.region.clone(),
            managers: self.managers(),
            ca_pem: self.ca_pem.clone(),
            docker_socket: self.config.docker_socket.clone(),
            docker_version: self.docker_version,
            engine_user: (self.config.engine_uid, self.config.engine_gid),
            pids_limit: self.config.pids_limit,
            cache_bytes: self.config.mount_cache_bytes,
            spill_bytes: self.config.mount_spill_bytes,
            pulls_folder: pulls_folder(&self.config),
            json_logs: self.config.log_format == LogFormat::Json,
        }
    }

    /// The configured managers, behind those the region's manager has named.
    pub(super) fn managers(&self) -> Vec<String> {
        self.state().managers.clone()
    }

    pub(super) fn learn_managers(&self, named: Vec<String>) {
        if named.is_empty() {
            return;
        }
        let mut managers = named;
        for configured in &self.config.managers {
            if !managers.contains(configured) {
                managers.push(configured.clone());
            }
        }
        self.state().managers = managers;
    }

    pub(super) fn drain(&self) {
        self.state().draining = true;
        self.changed.send_modify(|count| *count += 1);
        self.profile_news.notify_one();
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state().draining
    }

    /// The manager tells the instance's cordon.
    pub(super) fn cordon(&self, number: u64, lifted: bool) {
        let mut state = self.state();
        if !state.cordons.told(number, lifted) {
            return;
        }
        tracing::info!(number, lifted, "the manager tells a cordon");
        // Whoever was refused for it may come again.
        let is_news = lifted && std::mem::take(&mut state.refused);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
        if is_news {
            self.profile_news.notify_one();
        }
    }

    /// The cordon that stands, when no attempt is here, be it in the course of being cleaned up after.
    pub(super) fn idle_at(&self) -> Option<u64> {
        let state = self.state();
        state.cordons.standing().filter(|_| state.attempts.is_empty())
    }

    /// What the instance's provider has announced.
    pub(super) fn notice(&self) -> Notice {
        self.state().notice
    }

    /// The provider announces this now; a change is told to the manager.
    pub(super) fn announce(&self, notice: Notice) {
        let mut state = self.state();
        if state.notice == notice {
            return;
        }
        state.notice = notice;
        drop(state);
        let terminate_at = notice.terminate_at.map(tracing::field::display);
        tracing::warn!(
            terminate_at,
            rebalance = notice.rebalance,
            "the provider of this instance gives notice"
        );
        self.changed.send_modify(|count| *count += 1);
        self.profile_news.notify_one();
    }

    pub(super) fn problems(&self) -> Verdict {
        self.state().verdict.clone()
    }

    /// Looks at the machine; a change is told to the manager.
    pub(super) async fn look(&self) {
        let fuse = self.launcher.can_mount().await;
        let facts = health::look(&self.config, &self.runtimes, fuse, &self.clock).await;
        let mut images = BTreeSet::new();
        for runtime in self.runtimes.values() {
            images.extend(runtime.images().await.unwrap_or_default());
        }
        let mut state = self.state();
        let verdict = health::assess(&facts, state.facts.as_ref(), &self.limits);
        let changed = state.verdict != verdict || state.images != images;
        if state.verdict.problems != verdict.problems {
            for problem in &verdict.problems {
                tracing::warn!(gate = %problem.gate, message = %problem.message, "a health gate is closed");
            }
        }
        (state.verdict, state.images, state.facts) = (verdict, images, Some(facts));
        drop(state);
        if changed {
            self.profile_news.notify_one();
        }
    }

    // Terms.

    pub(super) fn term(&self) -> Term {
        self.state().term
    }

    /// Whether a message of this term is to be obeyed. A new term is written down first.
    pub(super) fn obeys(&self, term: Term) -> bool {
        let mut state = self.state();
        if term > state.term {
            if let Err(error) = write_file(&term_file(&self.config), term.to_string().as_bytes()) {
                tracing::error!(%error, %term, "a new term cannot be written down; it is not obeyed");
                return false;
            }
            state.term = term;
        }
        term == state.term
    }
}

/// An assignment that waits for room.
pub(super) struct Expected<'a> {
    desk: &'a Desk,
    key: (AttemptId, u64),
    given_up: CancellationToken,
}

impl Expected<'_> {
    /// Whether its attempt was told to stop meanwhile.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.is_cancelled()
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.desk.state().expected.remove(&self.key);
    }
}

/// Why no new work is taken, whatever is free.
fn closed(state: &State) -> Option<Failure> {
    if state.draining {
        return Some(infrastructure("draining", "the instance finishes what it has and takes no more"));
    }
    if let Some(number) = state.cordons.standing() {
        let message = format!("the instance is cordoned (number {number}) and takes no new work");
        return Some(infrastructure("cordoned", message));
    }
    let at = state.notice.terminate_at?;
    let message = format!("the instance's provider takes it away at {at}; it takes no new work");
    Some(infrastructure("going_away", message))
}

fn count(state: &State) -> f64 {
    u32::try_from(state.attempts.len()).map_or(f64::INFINITY, f64::from)
}

fn term_file(config: &AgentConfig) -> PathBuf {
    config.data_folder.join("term")
}

fn read_term(config: &AgentConfig) -> Result<Term, CoordinatorError> {
    let path = term_file(config);
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map(Term).map_err(|_| CoordinatorError::File {
            field: "highest term",
            path,
            problem: format!(
                "{:?} is no manager's term; remove the file once no former manager of the region runs any more",
                text.trim()
            ),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Term(0)),
        Err(error) => Err(data_error("read", &path)(error)),
    }
}
