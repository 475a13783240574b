//! A world for one test: a table, a queue, a store with one input, a network, and a manager that can be stopped, killed
//! and started again.

use std::sync::Arc;
use std::time::Duration;

use semver::Version;
use serde_json::{Value, json};
use telecine_core::memory::MemoryTable;
use telecine_core::stores::NewStore;
use telecine_core::{Backend, accounts, dispatch, engines, jobs, stores};
use telecine_domain::engine::{EngineVersion, Launch, Lifecycle};
use telecine_domain::id::{AccountId, JobId, RegionName, StoreId};
use telecine_domain::job::{Job, StateName};
use telecine_domain::resources::Resources;
use telecine_domain::store::Provider;
use telecine_domain::time::Timestamp;
use telecine_manager::{ManagerConfig, ManagerError};
use telecine_proto::clock::Clock;
use telecine_proto::dial::Dialer;
use telecine_proto::identity::{CertificateAuthority, ClientIdentity};
use telecine_proto::net::{MemoryNetwork, Network};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const GIB: u64 = 1 << 30;
/// When every world begins.
const BEGIN: Timestamp = Timestamp::from_millis(1_795_359_845_000);

pub(crate) struct World {
    pub(crate) backend: Backend,
    pub(crate) table: Arc<MemoryTable>,
    pub(crate) clock: Clock,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) account: AccountId,
    pub(crate) store: StoreId,
    pub(crate) config: ManagerConfig,
    pub(crate) address: String,
    manager: Option<Running>,
    _folder: tempfile::TempDir,
}

struct Running {
    task: JoinHandle<Result<(), ManagerError>>,
    shutdown: CancellationToken,
}

pub(crate) fn region() -> RegionName {
    "local".parse().unwrap()
}

impl World {
    /// A world with a running manager of region `local`.
    pub(crate) async fn new() -> Self {
        Self::of(ManagerConfig { listen: "127.0.0.1:0".to_owned(), ..Default::default() }).await
    }

    pub(crate) async fn of(config: ManagerConfig) -> Self {
        let clock = Clock::simulated(BEGIN);
        let (backend, table) = Backend::memory(Arc::new(move || clock.now()));
        let account = accounts::ensure_default(&backend, &region(), clock.now()).await.unwrap().id;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("in.mov"), b"media").unwrap();
        let new = NewStore {
            name: "media".to_owned(),
            provider: Provider::Local { folder: folder.path().to_str().unwrap().to_owned() },
            region: region(),
            secret: Default::default(),
        };
        let store = stores::create(&backend, account, new, clock.now()).await.unwrap().id;
        publish_engine(&backend, account).await;
        let mut world = Self {
            authority: Arc::new(CertificateAuthority::in_memory(clock.now()).unwrap()),
            network: Arc::new(MemoryNetwork::default()),
            config: ManagerConfig { clock, ..config },
            address: String::new(),
            manager: None,
            _folder: folder,
            backend,
            table,
            clock,
            account,
            store,
        };
        world.start().await;
        world
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Starts a manager on a port of its own and waits until it leads every region.
    pub(crate) async fn start(&mut self) {
        let (ready, address) = oneshot::channel();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(telecine_manager::run(
            self.config.clone(),
            self.backend.clone(),
            self.authority.clone(),
            self.network.clone(),
            ready,
            shutdown.clone(),
        ));
        self.address = address.await.expect("the manager listens").to_string();
        self.manager = Some(Running { task, shutdown });
    }

    /// Stops the manager as an operator would.
    pub(crate) async fn stop(&mut self) {
        let running = self.manager.take().unwrap();
        running.shutdown.cancel();
        running.task.await.unwrap().unwrap();
    }

    /// Ends the manager without letting it finish anything.
    pub(crate) async fn kill(&mut self) {
        let running = self.manager.take().unwrap();
        running.task.abort();
        assert!(running.task.await.unwrap_err().is_cancelled());
    }

    /// Connects to the manager with whatever identity.
    pub(crate) fn dialer(&self, identity: ClientIdentity) -> Dialer {
        Dialer::new(self.network.clone(), self.authority.certificate_pem(), identity, self.clock).unwrap()
    }

    pub(crate) fn body(&self, output: &str, more: &Value) -> Value {
        let mut body = json!({
            "service": "stub",
            "composition": {
                "inputs": { "source": { "store": "media", "key": "in.mov" } },
                "processing": {},
                "outputs": { "result": { "store": "media", "key": output } },
            },
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    }

    /// Submits a job; `more` is laid over its body.
    pub(crate) async fn submit(&self, output: &str, more: Value) -> JobId {
        let body = self.body(output, &more);
        jobs::submit(&self.backend, self.account, &body, None, self.now()).await.unwrap().job.id
    }

    pub(crate) async fn job(&self, job: JobId) -> Job {
        dispatch::load(&self.backend, job).await.unwrap().expect("the job is there")
    }

    /// Waits until the job is in `state`, for at most `limit`.
    pub(crate) async fn wait_for(&self, job: JobId, state: StateName, limit: Duration) -> Job {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let found = self.job(job).await;
            if found.state.name() == state {
                return found;
            }
            assert!(tokio::time::Instant::now() < deadline, "{job} is {}, not {state}", found.state.name());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn publish_engine(backend: &Backend, account: AccountId) {
    let engine = EngineVersion {
        service: "stub".parse().unwrap(),
        version: Version::new(1, 0, 0),
        launch: Launch::Command { program: "/bin/true".to_owned(), arguments: Vec::new() },
        resources: Resources { cpu_milli: 1000, memory_bytes: GIB, ..Resources::ZERO },
        processing_schema: json!(true),
        lifecycle: Lifecycle::Stable,
        expires_at: None,
        changelog: String::new(),
    };
    engines::publish(backend, account, engine).await.unwrap();
}
