//! Instances on this machine: each is an agent, a process of this machine in a session of its own.
//!
//! Level-triggered: what should be is a record on disk for each instance (written before its process is started), what
//! is are the processes; `supervise` brings the second to the first. An agent that dies is started again in its own
//! folder, where it finds its workers. An agent outlives the process that started it and is adopted by the next one,
//! known by process id, start time and boot. An adopted agent whose configuration would be another one now (the
//! manager listens elsewhere) is asked to leave its workers to the next agent, which is then started in its place. Those
//! workers keep the managers of their own assignment.
//!
//! An instance that is over leaves nothing: first its agent ends, then whatever that has left (workers, engines, mounts) is
//! taken away, then its record and its folder.

mod ending;
mod process;
mod record;

pub use ending::NOTICE_FILE;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use telecine_core::ports::instances::{Instances, InstancesError, PoolStatus, ProvidedInstance};
use telecine_domain::id::{InstanceId, PoolName};
use telecine_domain::time::Timestamp;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use process::Process;
use record::{Record, Wanted};

/// How often processes are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Longest wait between two starts of an agent that keeps dying.
const MOST_BACKOFF: Duration = Duration::from_secs(60);
/// An agent that ran this long before it died is started again at once.
const SETTLED_AFTER: Duration = Duration::from_secs(60);
/// Starts in a row that came to nothing, after which an instance counts as failed.
const FAILED_AFTER: u32 = 3;

/// A pool of agents on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPool {
    /// Its name.
    pub name: PoolName,
    /// Most instances at a time.
    pub most: u32,
    /// How many there are to be had: a provider may have fewer than are wanted.
    pub capacity: u32,
    /// How long an instance is made to take to boot: real machines do, and what waits for them must bear it.
    pub boot: Duration,
    /// The program that is started as an instance, as a machine's image is; the common one when absent.
    pub program: Option<PathBuf>,
}

/// How an agent is started: `program arguments… <path of its configuration>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentCommand {
    /// The program, usually this one.
    pub program: PathBuf,
    /// What comes before the path, such as `agent --config`.
    pub arguments: Vec<String>,
}

/// An agent about to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAgent {
    /// Its instance id; the same whenever it is started again.
    pub instance: InstanceId,
    /// Its pool.
    pub pool: PoolName,
    /// Its own folder, where it may keep what it likes.
    pub folder: PathBuf,
}

/// Gives an agent what it needs to join: called before each start.
#[async_trait]
pub trait Provisioner: Send + Sync {
    /// Writes files into the agent's folder (tokens, certificates) and gives the text of its configuration file.
    ///
    /// # Errors
    /// What went wrong, for people; the start is tried again later.
    async fn provision(&self, agent: &NewAgent) -> Result<String, String>;

    /// Ends what the agent, which is gone for good, has left outside of its folder: workers, engines, mounts. Called before
    /// its folder is removed; done before, it is done already.
    ///
    /// # Errors
    /// What is still there, for people; it is tried again later.
    async fn clear(&self, agent: &NewAgent) -> Result<(), String>;
}

/// For folders whose agents are only ended.
struct NothingStarts;

#[async_trait]
impl Provisioner for NothingStarts {
    async fn provision(&self, agent: &NewAgent) -> Result<String, String> {
        Err(format!("instance {} is being ended and is not started", agent.instance))
    }

    async fn clear(&self, agent: &NewAgent) -> Result<(), String> {
        Err(format!("what instance {} has left is taken away at the next start", agent.instance))
    }
}

/// The agents' folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the folder of agents {folder:?} cannot be used: {source}")]
pub struct LocalInstancesError {
    /// Which.
    pub folder: PathBuf,
    /// The system's words.
    pub source: std::io::Error,
}

/// `Instances` as processes of this machine.
pub struct LocalInstances {
    folder: PathBuf,
    pools: BTreeMap<PoolName, LocalPool>,
    command: AgentCommand,
    provisioner: Arc<dyn Provisioner>,
    drain_limit: Duration,
    leave_limit: Duration,
    agents: Mutex<BTreeMap<InstanceId, Agent>>,
    /// Where the next instance id gets its random bits.
    seed: std::hash::RandomState,
}

/// One instance, as this process knows it.
struct Agent {
    record: Record,
    process: Option<Process>,
    /// Starts since it last ran for long.
    failures: u32,
    /// How its process ended last.
    last_end: Option<String>,
    started: Option<Instant>,
    not_before: Instant,
    kill_at: Option<Instant>,
    /// Adopted, and its configuration not compared since with what it would be now.
    unchecked: bool,
}

impl LocalInstances {
    /// Reads the records and adopts the agents that still run; the others are started by `supervise`.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) async fn open(
        folder: PathBuf,
        pools: Vec<LocalPool>,
        command: AgentCommand,
        provisioner: Arc<dyn Provisioner>,
        (drain_limit, leave_limit): (Duration, Duration),
    ) -> Result<Self, LocalInstancesError> {
        let failed = |source| LocalInstancesError { folder: folder.clone(), source };
        let records = record::read_all(&folder).map_err(failed)?;
        let now = Instant::now();
        let known: BTreeMap<PoolName, Duration> =
            pools.iter().map(|pool| (pool.name.clone(), pool.boot)).collect();
        let agents = records.into_iter().map(|mut record| {
            let config = config_path(&folder, record.instance);
            let process = match &record.started {
                Some(started) => Process::adopt(started),
                // The process before may have died between the start and the record of it.
                None => Process::find(&config),
            };
            let instance = record.instance;
            tracing::info!(%instance, pool = %record.pool, adopted = process.is_some(), "instance found again");
            if !known.contains_key(&record.pool) && record.wanted == Wanted::Running {
                tracing::warn!(%instance, pool = %record.pool, "there is no such pool any more; its instance is retired");
                record.wanted = Wanted::Retired;
            }
            let unchecked = process.is_some();
            let boot = known.get(&record.pool).copied().unwrap_or_default();
            let not_before = now + still_booting(&record, boot, system_millis());
            (instance, Agent { process, not_before, unchecked, ..Agent::new(record) })
        });
        let agents = Mutex::new(agents.collect());
        let pools = pools.into_iter().map(|pool| (pool.name.clone(), pool)).collect();
        let seed = std::hash::RandomState::new();
        Ok(Self {
            folder: folder.clone(),
            pools,
            command,
            provisioner,
            drain_limit,
            leave_limit,
            agents,
            seed,
        })
    }

    /// The agents that a process before has left, to be ended: nothing is started here.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) async fn found_in(folder: PathBuf) -> Result<Self, LocalInstancesError> {
        let failed = |source| LocalInstancesError { folder: folder.clone(), source };
        let pools: BTreeSet<PoolName> =
            record::read_all(&folder).map_err(failed)?.into_iter().map(|record| record.pool).collect();
        let none = |name| LocalPool { name, most: 0, capacity: 0, boot: Duration::ZERO, program: None };
        let pools = pools.into_iter().map(none).collect();
        let command = AgentCommand { program: PathBuf::new(), arguments: Vec::new() };
        Self::open(folder, pools, command, Arc::new(NothingStarts), (Duration::ZERO, Duration::ZERO)).await
    }

    /// Starts what should run and does not, ends what should not, until `ending`. Agents go on after that.
    pub(crate) async fn supervise(self: Arc<Self>, ending: CancellationToken) {
        loop {
            // Giving it up is safe: what it waits for is a lock, and a provisioner that writes whole files.
            tokio::select! {
                () = ending.cancelled() => return,
                () = async {
                    self.check_adopted().await;
                    self.look().await;
                    self.remove_ended().await;
                } => {}
            }
            tokio::select! {
                () = ending.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Asks every agent to finish and end, waits up to `limit`, and says how many still run. Their records stay: the
    /// next process starts them again. For the end of a machine's work, after `supervise` has ended.
    pub async fn drain_all(&self, limit: Duration) -> usize {
        let deadline = Instant::now() + limit;
        for agent in self.agents.lock().await.values() {
            ask_to_end(agent);
        }
        loop {
            let mut agents = self.agents.lock().await;
            let running = agents.values_mut().map(is_running).filter(|&running| running).count();
            drop(agents);
            if running == 0 || Instant::now() >= deadline {
                return running;
            }
            tokio::time::sleep(LOOK_EVERY / 5).await;
        }
    }

    /// Compares the configuration of each adopted agent with what it would be now. The new text reaches the disk only
    /// when the next agent is started: whoever dies in between finds the difference again.
    async fn check_adopted(&self) {
        let unchecked = |agent: &Agent| {
            agent.unchecked && agent.record.wanted == Wanted::Running && agent.not_before <= Instant::now()
        };
        let adopted: Vec<NewAgent> = self
            .agents
            .lock()
            .await
            .values()
            .filter(|agent| unchecked(agent))
            .map(|a| self.new_agent(a))
            .collect();
        for new in adopted {
            let instance = new.instance;
            // Without the lock: the provisioner may wait until a manager listens.
            let provisioned = self.provisioner.provision(&new).await;
            let mut agents = self.agents.lock().await;
            let Some(agent) = agents.get_mut(&instance).filter(|agent| unchecked(agent)) else { continue };
            let fresh = match provisioned {
                Ok(fresh) => fresh,
                Err(problem) => {
                    agent.failures += 1;
                    agent.not_before = Instant::now() + backoff(agent.failures);
                    tracing::warn!(%instance, %problem, "the configuration of an adopted agent could not be compared; it is tried again");
                    continue;
                }
            };
            agent.unchecked = false;
            agent.failures = 0;
            let config = std::fs::read(config_path(&self.folder, instance));
            if config.is_ok_and(|config| config == fresh.as_bytes()) {
                continue;
            }
            if let Some(process) = &agent.process {
                tracing::info!(%instance, "an adopted agent has another configuration than it would have now; it is replaced, and its workers go on");
                process.ask_to_leave();
                agent.kill_at = Some(Instant::now() + self.leave_limit);
            }
        }
    }

    async fn look(&self) {
        let mut agents = self.agents.lock().await;
        for agent in agents.values_mut() {
            self.take_away_in_time(agent);
            match (is_running(agent), agent.record.wanted) {
                (true, Wanted::Running) => kill_in_time(agent),
                (true, Wanted::Retired) => self.press(agent),
                (false, Wanted::Retired) => {}
                (false, Wanted::Running) => self.start_again(agent).await,
            }
        }
    }

    /// A retired agent is asked once, and killed when it takes too long.
    fn press(&self, agent: &mut Agent) {
        match agent.kill_at {
            None => {
                ask_to_end(agent);
                agent.kill_at = Some(Instant::now() + self.drain_limit);
            }
            Some(_) => kill_in_time(agent),
        }
    }

    async fn start_again(&self, agent: &mut Agent) {
        let instance = agent.record.instance;
        if let Some(started) = agent.started.take() {
            let settled = started.elapsed() >= SETTLED_AFTER;
            agent.failures = if settled { 1 } else { agent.failures + 1 };
            agent.not_before =
                Instant::now() + if settled { Duration::ZERO } else { backoff(agent.failures) };
            let ended = agent.last_end.as_deref().unwrap_or("");
            tracing::warn!(%instance, failures = agent.failures, ended, "an agent ended by itself and is started again");
        }
        if Instant::now() < agent.not_before {
            return;
        }
        if let Err(problem) = self.start(agent).await {
            agent.failures += 1;
            agent.not_before = Instant::now() + backoff(agent.failures);
            tracing::error!(%instance, %problem, "an agent could not be started");
        }
    }

    /// Starts the process of a record that is on disk already.
    async fn start(&self, agent: &mut Agent) -> Result<(), String> {
        let new = self.new_agent(agent);
        let config = self.provisioner.provision(&new).await?;
        let path = config_path(&self.folder, new.instance);
        record::write_private(&path, config.as_bytes())
            .map_err(|error| format!("{}: {error}", path.display()))?;
        self.announce_again(agent)?;
        let command = self.command_of(&new.pool);
        let process = Process::start(&command, &path, &new.folder)
            .map_err(|error| format!("{} could not be started: {error}", command.program.display()))?;
        agent.record.started = Some(process.started().clone());
        agent.process = Some(process);
        agent.started = Some(Instant::now());
        agent.unchecked = false;
        agent.kill_at = None;
        // Without this line on disk the process is found by its command line.
        record::write(&self.folder, &agent.record).map_err(|error| error.to_string())
    }

    fn command_of(&self, pool: &PoolName) -> AgentCommand {
        let own = self.pools.get(pool).and_then(|pool| pool.program.clone());
        AgentCommand { program: own.unwrap_or_else(|| self.command.program.clone()), ..self.command.clone() }
    }

    fn new_agent(&self, agent: &Agent) -> NewAgent {
        let instance = agent.record.instance;
        let folder = record::folder_of(&self.folder, instance);
        NewAgent { instance, pool: agent.record.pool.clone(), folder }
    }

    fn pool(&self, pool: &PoolName) -> Result<&LocalPool, InstancesError> {
        self.pools.get(pool).ok_or_else(|| InstancesError::NoSuchPool(pool.clone()))
    }

    fn new_instance(&self, number: usize) -> InstanceId {
        use std::hash::BuildHasher;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let high = self.seed.hash_one((number, now.as_nanos(), std::process::id()));
        let low = std::hash::RandomState::new().hash_one(high);
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        InstanceId::new(Timestamp::from_millis(millis), u128::from(high) << 64 | u128::from(low))
    }
}

impl Agent {
    /// One that is to be started at once.
    fn new(record: Record) -> Self {
        let not_before = Instant::now();
        let (failures, last_end, kill_at, unchecked) = (0, None, None, false);
        Self { record, process: None, failures, last_end, started: None, not_before, kill_at, unchecked }
    }

    /// Why it does not come up, when it has ended again and again.
    fn failed(&self) -> Option<String> {
        let ended = self.last_end.as_deref().unwrap_or("it could not be started");
        (self.failures >= FAILED_AFTER && self.record.wanted == Wanted::Running)
            .then(|| format!("its agent was started {} times and did not stay: {ended}", self.failures))
    }
}

/// What is left of the boot of an instance whose agent was never started. A clock that was set back makes it no longer
/// than a whole boot.
fn still_booting(record: &Record, boot: Duration, now_millis: u64) -> Duration {
    match (record.launched_at_millis, &record.started) {
        (Some(launched), None) => {
            boot.saturating_sub(Duration::from_millis(now_millis.saturating_sub(launched)))
        }
        _ => Duration::ZERO,
    }
}

fn system_millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn backoff(failures: u32) -> Duration {
    let seconds = Duration::from_secs(1).saturating_mul(1 << failures.clamp(1, 7).saturating_sub(1));
    seconds.min(MOST_BACKOFF)
}

fn config_path(agents: &Path, instance: InstanceId) -> PathBuf {
    record::folder_of(agents, instance).join("agent.toml")
}

fn is_running(agent: &mut Agent) -> bool {
    let running = agent.process.as_mut().is_some_and(Process::is_running);
    if !running && let Some(process) = agent.process.take() {
        agent.last_end = process.ended().map(|status| status.to_string());
    }
    running
}

fn ask_to_end(agent: &Agent) {
    if let Some(process) = &agent.process {
        process.ask_to_end();
    }
}

fn kill_in_time(agent: &Agent) {
    if let (Some(at), Some(process)) = (agent.kill_at, &agent.process)
        && Instant::now() >= at
    {
        tracing::warn!(instance = %agent.record.instance, "an agent did not end in time and is killed");
        process.kill();
    }
}

#[async_trait]
impl Instances for LocalInstances {
    async fn status(&self, pool: &PoolName) -> Result<PoolStatus, InstancesError> {
        self.pool(pool)?;
        let mut agents = self.agents.lock().await;
        let of_pool = agents.values_mut().filter(|agent| agent.record.pool == *pool);
        let instances = of_pool.map(|agent| ProvidedInstance {
            id: agent.record.instance,
            running: is_running_quietly(agent) && agent.record.wanted == Wanted::Running,
            failed: agent.failed(),
        });
        Ok(PoolStatus { instances: instances.collect(), pending: 0 })
    }

    async fn launch(&self, pool: &PoolName, count: u32) -> Result<(), InstancesError> {
        let LocalPool { most, capacity, boot, .. } = *self.pool(pool)?;
        let mut agents = self.agents.lock().await;
        let there = agents.values().filter(|agent| agent.record.pool == *pool).count();
        if there as u64 + u64::from(count) > u64::from(most) {
            let problem =
                format!("it has {there} of at most {most} instances, and {count} more were asked for");
            return Err(InstancesError::NoCapacity { pool: pool.clone(), problem });
        }
        if there as u64 + u64::from(count) > u64::from(capacity) {
            let problem = format!(
                "there are {capacity} to be had, {there} of them are taken, and {count} more were asked for"
            );
            return Err(InstancesError::NoCapacity { pool: pool.clone(), problem });
        }
        let mut ids = BTreeSet::new();
        while ids.len() < count as usize {
            ids.insert(self.new_instance(ids.len()));
        }
        for instance in ids {
            let launched_at_millis = Some(system_millis());
            let (pool, wanted) = (pool.clone(), Wanted::Running);
            let (started, taken_at_millis) = (None, None);
            let record = Record { instance, pool, wanted, started, launched_at_millis, taken_at_millis };
            record::write(&self.folder, &record).map_err(|error| {
                let folder = record::folder_of(&self.folder, instance);
                InstancesError::Unavailable(format!("{}: {error}", folder.display()))
            })?;
            let not_before = Instant::now() + boot;
            // Known before it is started, since whoever asked may give up meanwhile. The record says that it should run:
            // a start that fails is tried again by `supervise`.
            let agent = agents.entry(instance).or_insert(Agent { not_before, ..Agent::new(record) });
            self.start_again(agent).await;
        }
        Ok(())
    }

    async fn retire(&self, pool: &PoolName, instance: InstanceId) -> Result<(), InstancesError> {
        self.pool(pool)?;
        let mut agents = self.agents.lock().await;
        let Some(agent) = agents.get_mut(&instance).filter(|agent| agent.record.pool == *pool) else {
            return Ok(());
        };
        if agent.record.wanted == Wanted::Running {
            agent.record.wanted = Wanted::Retired;
            // One that is making way for the next: it is asked again, and in its own time.
            agent.kill_at = None;
            record::write(&self.folder, &agent.record)
                .map_err(|error| InstancesError::Unavailable(format!("{instance}: {error}")))?;
        }
        if agent.kill_at.is_none() {
            self.press(agent);
        }
        Ok(())
    }

    async fn interrupt(
        &self,
        pool: &PoolName,
        instance: InstanceId,
        at: Timestamp,
    ) -> Result<(), InstancesError> {
        self.pool(pool)?;
        self.announce_end(pool, instance, at).await
    }
}

fn is_running_quietly(agent: &mut Agent) -> bool {
    agent.process.as_mut().is_some_and(Process::is_running)
}
