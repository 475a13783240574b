//! The world of one seed: what is in it, how it lives, and how it is looked at.

mod crowd;
mod drains;
mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use semver::Version;
use serde_json::json;
use telecine_agent::config::{AgentConfig, CapacityConfig};
use telecine_agent::coordinator::{self, CoordinatorError, CoordinatorParts, Shutdown};
use telecine_core::jobs::{JobFilter, SubmitError};
use telecine_core::memory::MemoryTable;
use telecine_core::stores::NewStore;
use telecine_core::{Backend, accounts, dispatch, engines, enrolment, jobs, stores};
use telecine_domain::engine::{EngineVersion, Launch, Lifecycle};
use telecine_domain::id::{AccountId, InstanceId, JobId, RegionName};
use telecine_domain::instance::RuntimeKind;
use telecine_domain::job::StateName;
use telecine_domain::resources::Resources;
use telecine_domain::store::Provider;
use telecine_domain::time::Timestamp;
use telecine_manager::{ManagerConfig, ManagerError};
use telecine_proto::clock::Clock;
use telecine_proto::identity::CertificateAuthority;
use telecine_proto::net::MemoryNetwork;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Mutant;
use super::backend::{ReachedTable, RoughQueue};
use super::checker::{Checker, Violation};
use super::host::{Host, InProcess, Stage};
use super::store::{Published, WatchedFolder};
use super::weather::{AgentNetwork, Weather};

const BEGIN: Timestamp = Timestamp::from_millis(1_795_359_845_000);
const MANAGERS: [&str; 2] = ["127.0.0.1:7001", "127.0.0.1:7002"];
const HOSTS: usize = 3;
const JOBS: usize = 10;
const LEASE: Duration = Duration::from_secs(15);
/// Faults come for so long.
const ROUGH: Duration = Duration::from_secs(75);
const TICK: Duration = Duration::from_millis(200);
/// Without faults every job is over within this: two leases, the longest pause between attempts, and the work itself.
const CALM: Duration = Duration::from_secs(300);
/// And what closed epochs have left is taken away: coordinators look for that every minute.
const TIDY: Duration = Duration::from_secs(200);

/// What happened in a world, to see that enough did.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) succeeded: u32,
    pub(super) canceled: u32,
    pub(super) failed: u32,
    pub(super) stalled: u32,
    pub(super) reassigned: u32,
    pub(super) terms: u32,
    pub(super) faults: u32,
    pub(super) cordoned: u32,
    pub(super) lifted: u32,
    pub(super) terminated: u32,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.succeeded += other.succeeded;
        self.canceled += other.canceled;
        self.failed += other.failed;
        self.stalled += other.stalled;
        self.reassigned += other.reassigned;
        self.terms += other.terms;
        self.faults += other.faults;
        self.cordoned += other.cordoned;
        self.lifted += other.lifted;
        self.terminated += other.terminated;
    }
}

/// An acknowledged job.
struct Promise {
    must_succeed: bool,
    canceled: bool,
    key: String,
}

struct Manager {
    config: ManagerConfig,
    table: Arc<ReachedTable>,
    backend: Backend,
    running: Option<(JoinHandle<Result<(), ManagerError>>, CancellationToken)>,
    back_at: Option<Instant>,
}

struct Instance {
    host: Arc<Host>,
    name: String,
    config: AgentConfig,
    network: AgentNetwork,
    running: Option<(JoinHandle<Result<(), CoordinatorError>>, Shutdown)>,
    back_at: Option<Instant>,
}

/// See the module.
pub(super) struct World {
    random: SmallRng,
    /// For drains alone, so that the faults of a seed stay what they are.
    drains: SmallRng,
    seed: u64,
    began: Instant,
    clock: Clock,
    stage: Arc<Stage>,
    memory: Arc<MemoryTable>,
    /// Sees everything, fails never.
    plain: Backend,
    /// What clients have.
    client: Backend,
    queue: Arc<RoughQueue>,
    network: MemoryNetwork,
    weather: Arc<Weather>,
    authority: Arc<CertificateAuthority>,
    account: AccountId,
    store: WatchedFolder,
    managers: Vec<Manager>,
    instances: Vec<Instance>,
    /// How many instances there ever were.
    launched: u64,
    promises: BTreeMap<JobId, Promise>,
    checker: Checker,
    /// The table's revision at the last look.
    looked_at: u64,
    tally: Tally,
    events: Vec<String>,
    data: tempfile::TempDir,
}

fn region() -> RegionName {
    "local".parse().unwrap()
}

impl World {
    pub(super) async fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let clock = Clock::simulated(BEGIN);
        let (plain, memory) = Backend::memory(Arc::new(move || clock.now()));
        let queue = Arc::new(RoughQueue::new(seed));
        let plain = Backend { queue: queue.clone(), ..plain };
        let account = accounts::ensure_default(&plain, &region(), clock.now()).await.unwrap().id;
        let forgets = (mutant == Some(Mutant::ForgetsJobs)).then_some("\"accepted\"");
        let client = Arc::new(ReachedTable::new(memory.clone(), forgets));
        let client = Backend { table: client, ..plain.clone() };
        let store = WatchedFolder::new();
        let new = NewStore {
            name: "media".to_owned(),
            provider: Provider::Local { folder: store.path().to_str().unwrap().to_owned() },
            region: region(),
            secret: Default::default(),
        };
        stores::create(&plain, account, new, clock.now()).await.unwrap();
        publish_engine(&plain, account).await;
        let stage = Stage {
            clock,
            mutant,
            rough: AtomicBool::new(true),
            clean_up: Default::default(),
            engine_failures: Default::default(),
            stalled: Default::default(),
        };
        let mut world = Self {
            random: SmallRng::seed_from_u64(seed),
            drains: SmallRng::seed_from_u64(!seed),
            seed,
            began: Instant::now(),
            clock,
            stage: Arc::new(stage),
            memory,
            plain,
            client,
            queue,
            network: MemoryNetwork::default(),
            weather: Arc::default(),
            authority: Arc::new(CertificateAuthority::in_memory(clock.now()).unwrap()),
            account,
            store,
            managers: Vec::new(),
            instances: Vec::new(),
            launched: 0,
            promises: BTreeMap::new(),
            checker: Checker::default(),
            looked_at: 0,
            tally: Tally::default(),
            events: Vec::new(),
            data: super::scratch(),
        };
        for address in MANAGERS {
            world.add_manager(address, (mutant == Some(Mutant::ForgetsGrants)).then_some("\"finalizing\""));
        }
        for _ in 0..HOSTS {
            let instance = world.launch().await;
            world.instances.push(instance);
        }
        world
    }

    fn add_manager(&mut self, address: &str, forgets: Option<&'static str>) {
        let table = Arc::new(ReachedTable::new(self.memory.clone(), forgets));
        let config = ManagerConfig {
            id: format!("manager-{}", self.managers.len()),
            listen: address.to_owned(),
            advertise: MANAGERS.map(str::to_owned).to_vec(),
            lease: LEASE,
            heartbeat: Duration::from_secs(2),
            clock: self.clock,
            ..ManagerConfig::default()
        };
        let backend = Backend { table: table.clone(), ..self.plain.clone() };
        self.managers.push(Manager { config, table, backend, running: None, back_at: Some(Instant::now()) });
    }

    /// A new instance, which starts as soon as it can.
    async fn launch(&mut self) -> Instance {
        self.launched += 1;
        let number = self.launched;
        let name = format!("instance-{number}");
        let data = self.data.path().join(&name);
        std::fs::create_dir(&data).unwrap();
        let instance = InstanceId::new(BEGIN, u128::from(number));
        let token = self.join_token(instance).await;
        let write = |name: &str, text: &str| {
            let path = data.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let config = AgentConfig {
            data_folder: data.join("agent"),
            instance_id: Some(instance),
            managers: MANAGERS.map(str::to_owned).to_vec(),
            ca_file: write("ca.pem", self.authority.certificate_pem()),
            join_token_file: write("token", &token),
            capacity: CapacityConfig { cpu_milli: Some(1000), ..CapacityConfig::default() },
            runtimes: [RuntimeKind::Process].into(),
            minimum_free_bytes: 1,
            ..AgentConfig::default()
        };
        let network = AgentNetwork {
            inner: self.network.clone(),
            weather: self.weather.clone(),
            places: vec![name.clone()],
        };
        let host = Host::new(self.stage.clone(), network.clone(), self.seed.wrapping_mul(31) + number);
        Instance { host, name, config, network, running: None, back_at: Some(Instant::now()) }
    }

    async fn join_token(&self, instance: InstanceId) -> String {
        loop {
            let binding = enrolment::Binding { instance, pool: "default".parse().unwrap(), region: region() };
            match enrolment::create(&self.plain, binding, self.clock.now()).await {
                Ok(token) => return token.to_string(),
                Err(_) => enrolment::withdraw(&self.plain, instance).await.unwrap_or_default(),
            }
        }
    }

    fn note(&mut self, event: impl std::fmt::Display) {
        self.events.push(format!("{:>7.1} s  {event}", self.began.elapsed().as_secs_f64()));
    }

    /// What happened, and where each job is.
    pub(super) fn report(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.events);
        lines.extend(self.promises.iter().map(|(job, promise)| {
            format!("{job} {}: {:?}, canceled: {}", promise.key, self.checker.state(*job), promise.canceled)
        }));
        lines
    }

    /// Rough times, then calm ones, then the end.
    pub(super) async fn live(&mut self) -> Result<Tally, Violation> {
        let mut next_job = Instant::now() + Duration::from_secs(2);
        let mut next_fault = Instant::now() + Duration::from_secs(4);
        let mut next_drain = Instant::now() + Duration::from_secs(6);
        while self.began.elapsed() < ROUGH {
            self.revive().await?;
            let now = Instant::now();
            if now >= next_job && self.promises.len() < JOBS {
                next_job = now + self.millis(100..8_000);
                self.submit().await?;
            }
            if now >= next_fault {
                next_fault = now + self.millis(100..4_000);
                self.something_fails().await;
            }
            if now >= next_drain && self.seed.is_multiple_of(2) {
                next_drain = now + Duration::from_millis(self.drains.random_range(500..6_000));
                self.drain_somewhere().await?;
            }
            self.look().await?;
            tokio::time::sleep(TICK).await;
        }
        self.calm_down();
        self.lift_all().await;
        self.until(CALM, |world| world.all_over()).await?;
        self.until(TIDY, |world| world.store.hidden().is_empty()).await?;
        self.judge().await
    }

    /// Goes on, without faults, until `reached` or the end of `limit`; the verdict is the judge's.
    async fn until(&mut self, limit: Duration, reached: impl Fn(&Self) -> bool) -> Result<(), Violation> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline && !reached(self) {
            self.revive().await?;
            self.look().await?;
            tokio::time::sleep(TICK).await;
        }
        self.look().await
    }

    fn all_over(&self) -> bool {
        let over = |job: &JobId| self.checker.state(*job).is_some_and(StateName::is_terminal);
        self.promises.keys().all(over)
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }

    /// A client that submits until it gets an answer.
    async fn submit(&mut self) -> Result<(), Violation> {
        let number = self.promises.len();
        let seconds = self.random.random_range(1..20);
        let (failures, retries) =
            ([0, 0, 0, 1, 2][self.random.random_range(0..5)], self.random.random_range(0..3));
        let key = format!("{seconds}s-{failures}f-{number}");
        let body = json!({
            "service": "stub",
            "composition": {
                "inputs": {},
                "processing": {},
                "outputs": {"result": {"store": "media", "key": key}},
            },
            "retry": {"user": retries, "infrastructure": 100},
            "timeouts": {"cancel_grace_seconds": 3},
        });
        let idempotency = format!("client-{number}").parse().unwrap();
        let accepted = loop {
            match jobs::submit(&self.client, self.account, &body, Some(&idempotency), self.clock.now()).await
            {
                Ok(accepted) => break accepted.job.id,
                Err(SubmitError::Lookup(_)) => tokio::time::sleep(TICK).await,
                Err(error) => return Err(Violation(format!("a job was refused: {error}"))),
            }
        };
        let must_succeed = failures <= retries;
        self.promises.insert(accepted, Promise { must_succeed, canceled: false, key: key.clone() });
        self.note(format!("{accepted} accepted: {key}, {retries} retries"));
        Ok(())
    }

    /// Starts again what is due, and sees that what runs still runs.
    async fn revive(&mut self) -> Result<(), Violation> {
        for nth in 0..self.managers.len() {
            self.revive_manager(nth).await?;
        }
        for nth in 0..self.instances.len() {
            self.revive_instance(nth).await?;
        }
        Ok(())
    }

    async fn revive_manager(&mut self, nth: usize) -> Result<(), Violation> {
        let (network, authority) = (self.network.clone(), self.authority.clone());
        let manager = &mut self.managers[nth];
        if let Some((task, shutdown)) = manager.running.take_if(|(task, _)| task.is_finished()) {
            let ended = task.await;
            if !shutdown.is_cancelled() || !matches!(ended, Ok(Ok(()))) {
                return Err(Violation(format!("manager {nth} ended by itself: {ended:?}")));
            }
        }
        let due = manager.back_at.is_some_and(|at| at <= Instant::now());
        if manager.running.is_some() || !due {
            return Ok(());
        }
        let (ready, _address) = oneshot::channel();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(telecine_manager::run(
            manager.config.clone(),
            manager.backend.clone(),
            authority,
            Arc::new(network),
            ready,
            shutdown.clone(),
        ));
        (manager.running, manager.back_at) = (Some((task, shutdown)), None);
        self.note(format!("manager {nth} starts"));
        Ok(())
    }

    async fn revive_instance(&mut self, nth: usize) -> Result<(), Violation> {
        let clock = self.clock;
        let instance = &mut self.instances[nth];
        if let Some((task, _)) = instance.running.take_if(|(task, _)| task.is_finished()) {
            return Err(Violation(format!("coordinator {nth} ended by itself: {:?}", task.await)));
        }
        let due = instance.back_at.is_some_and(|at| at <= Instant::now());
        if !due {
            return Ok(());
        }
        let parts = CoordinatorParts {
            network: Arc::new(instance.network.clone()),
            runtimes: instance.host.runtimes(),
            docker_version: None,
            launcher: Arc::new(InProcess(instance.host.clone())),
            clock: clock.into(),
        };
        let shutdown = Shutdown::default();
        let task = tokio::spawn(coordinator::run(instance.config.clone(), parts, shutdown.clone()));
        (instance.running, instance.back_at) = (Some((task, shutdown)), None);
        self.note(format!("coordinator {nth} starts"));
        Ok(())
    }

    // Looking.

    /// Follows every job and every publishing.
    async fn look(&mut self) -> Result<(), Violation> {
        // Before the histories: whatever was published by now was granted by now.
        let published = self.store.published();
        let revision = *self.plain.table.revision().borrow();
        if revision == self.looked_at && published.is_empty() {
            return Ok(());
        }
        self.looked_at = revision;
        for job in self.promises.keys().copied().collect::<Vec<_>>() {
            self.follow(job).await?;
        }
        for Published { attempt, key } in published {
            let foreign = attempt.filter(|attempt| !self.promises.contains_key(&attempt.job));
            if let Some(foreign) = foreign {
                self.follow(foreign.job).await?;
            }
            self.checker.published(&Published { attempt, key })?;
        }
        Ok(())
    }

    async fn follow(&mut self, job: JobId) -> Result<(), Violation> {
        let found = dispatch::load(&self.plain, job).await.expect("the plain table answers");
        let Some(found) = found else { return Err(Violation(format!("{job} was acknowledged and is lost"))) };
        let known = self.checker.version(job);
        let news = jobs::history(&self.plain, self.account, job, known, 1000).await;
        for record in news.expect("the plain table answers") {
            let failures: BTreeSet<_> = self.stage.engine_failures.lock().unwrap().clone();
            let event =
                format!("{job} v{} {:?} -> {} @{}", record.version, record.event, record.state, record.epoch);
            let failure = record.failure.as_ref().map(|failure| format!(": {failure}")).unwrap_or_default();
            self.note(event + &failure);
            self.checker.follow(job, &record, &failures)?;
        }
        self.checker.row(&found)
    }

    /// The end: every promise was kept, nothing else happened, nothing is left lying about.
    async fn judge(&mut self) -> Result<Tally, Violation> {
        for (job, promise) in &self.promises {
            self.checker.over(*job, promise.must_succeed, promise.canceled)?;
            let made = std::fs::read_to_string(self.store.path().join(&promise.key)).ok();
            let granted = self.checker.granted(*job).map(|epoch| format!("-{epoch}"));
            let whole = match (&made, &granted) {
                (Some(made), Some(granted)) => made.contains(&job.to_string()) && made.ends_with(granted),
                (made, granted) => made.is_none() && granted.is_none(),
            };
            if !whole {
                return Err(Violation(format!(
                    "{job}: {} is {made:?}, granted was {granted:?}",
                    promise.key
                )));
            }
            match self.checker.state(*job) {
                Some(StateName::Succeeded) => self.tally.succeeded += 1,
                Some(StateName::Canceled) => self.tally.canceled += 1,
                _ => self.tally.failed += 1,
            }
        }
        let listed = jobs::list(&self.plain, self.account, &JobFilter::default(), 1000, None).await;
        let listed: BTreeSet<JobId> =
            listed.expect("the plain table answers").items.iter().map(|job| job.id).collect();
        if !listed.iter().eq(self.promises.keys()) {
            return Err(Violation(format!(
                "{} jobs were acknowledged, there are {listed:?}",
                self.promises.len()
            )));
        }
        let left = self.store.hidden();
        if !left.is_empty() {
            return Err(Violation(format!("nobody took away {left:?}")));
        }
        self.tally.stalled = *self.stage.stalled.lock().unwrap();
        let jobs = u32::try_from(self.promises.len()).unwrap();
        self.tally.reassigned = self.checker.assignments().saturating_sub(jobs);
        self.tally.terms = self.terms().await;
        Ok(self.tally.clone())
    }

    /// How many leaderships there were.
    async fn terms(&self) -> u32 {
        let leader = telecine_core::leader::current(&self.plain, &region()).await;
        leader.ok().flatten().map_or(0, |leader| u32::try_from(leader.term.0).unwrap_or(u32::MAX))
    }
}

async fn publish_engine(backend: &Backend, account: AccountId) {
    let engine = EngineVersion {
        service: "stub".parse().unwrap(),
        version: Version::new(1, 0, 0),
        launch: Launch::Command {
            program: "/bin/true".to_owned(),
            arguments: vec!["{output.result}".to_owned()],
        },
        resources: Resources { cpu_milli: 300, memory_bytes: 1 << 20, ..Resources::ZERO },
        processing_schema: json!(true),
        lifecycle: Lifecycle::Stable,
        expires_at: None,
        changelog: String::new(),
    };
    engines::publish(backend, account, engine).await.unwrap();
}
