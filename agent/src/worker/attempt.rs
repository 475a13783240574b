//! The attempt from beginning to end, read top to bottom.
//!
//! Certificate and connection, container, and mount are prepared at the same time; the engine starts when all are ready
//! and the manager has acknowledged the lease. However it goes on, `finish` has the last word.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use telecine_domain::attempt::Phase;
use telecine_domain::engine::Launch;
use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::time::Timestamp;
use telecine_proto::dial::Dialer;
use telecine_proto::engine::v1::RunRequest;
use telecine_proto::identity::{ClientIdentity, Credential, KeyAndRequest};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::engine::{Request, Running};
use super::finish::{self, Ended};
use super::mount::{self, Mounted};
use super::session::{self, NoAnswer};
use super::shared::{Halt, Shared};
use super::stores::{self, Backings};
use super::{WorkerError, WorkerParts, document, pull, renewal};
use crate::control::{FromWorker, ToWorker};
use crate::failure;
use crate::folder::{Assignment, AttemptFolder, AttemptLock, Outcome};
use crate::plain::{self, EnginePaths};
use crate::runtime::{ContainerRuntime, ContainerSpec, Program, Runtimes};

const READAHEAD_KIBIBYTES: u32 = 1024;
/// Between two requests for a certificate that were refused.
const SIGN_PAUSE: Duration = Duration::from_secs(1);
/// How long a create that is under way may take when the attempt is over.
const CREATE_PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(parts: WorkerParts) -> Result<Outcome, WorkerError> {
    let WorkerParts { folder, lock, device, network, runtimes, mounts, clock, control } = parts;
    let assignment = folder.assignment()?.ok_or_else(|| WorkerError::Unassigned(folder.name()))?;
    if let Some(trace) = assignment.trace {
        tracing::Span::current().record("trace", tracing::field::display(trace));
    }
    tracing::info!(
        job = %assignment.attempt.job,
        account = %assignment.account,
        instance = %assignment.surroundings.instance,
        region = %assignment.surroundings.region,
        engine = %format_args!("{}@{}", assignment.spec.service, assignment.spec.engine.version),
        "the attempt begins"
    );
    let lease = Duration::from_millis(assignment.lease_millis.into());
    let shared = Arc::new(Shared::new(assignment.attempt, assignment.trace, clock, lease));
    let identity = ClientIdentity::anonymous();
    let around = &assignment.surroundings;
    let dialer = Dialer::new(network, &around.ca_pem, identity, clock.wall())
        .map_err(|error| WorkerError::Authority(error.to_string()))?;

    let mut tasks = JoinSet::new();
    let (certificates, signed) = mpsc::channel(4);
    tasks.spawn(listen(shared.clone(), control.incoming, certificates));
    tasks.spawn(connect(shared.clone(), dialer, around.managers.clone(), control.outgoing, signed));
    let watching = shared.clone();
    tasks.spawn(async move { session::watch_lease(&watching).await });
    tasks.spawn(limit_time(shared.clone(), assignment.spec.timeouts.attempt_seconds, assignment.accepted_at));

    let mut attempt = Attempt::new(shared, assignment, folder, &runtimes, lock);
    let ended = attempt.live(mounts.as_ref(), device).await;
    let outcome = finish::finish(&mut attempt, ended).await;
    tasks.shutdown().await;
    outcome
}

/// What is known and held while the attempt lives.
pub(super) struct Attempt {
    pub(super) shared: Arc<Shared>,
    pub(super) assignment: Assignment,
    pub(super) folder: AttemptFolder,
    pub(super) backings: Backings,
    pub(super) mounted: Option<Arc<dyn Mounted>>,
    pub(super) name: String,
    runtime: Option<Arc<dyn ContainerRuntime>>,
    creating: Option<JoinHandle<Result<(), Failure>>>,
    _renewal: Option<AbortOnDropHandle<()>>,
    _lock: AttemptLock,
}

impl Attempt {
    fn new(
        shared: Arc<Shared>,
        assignment: Assignment,
        folder: AttemptFolder,
        runtimes: &Runtimes,
        lock: AttemptLock,
    ) -> Self {
        let runtime = runtimes.get(&assignment.spec.engine.launch.runtime()).cloned();
        let name = folder.name();
        let (backings, mounted, creating) = (Backings::new(), None, None);
        let (_renewal, _lock) = (None, lock);
        Self { shared, assignment, folder, backings, mounted, name, runtime, creating, _renewal, _lock }
    }

    async fn live(&mut self, mounts: &dyn super::Mounts, device: Option<std::os::fd::OwnedFd>) -> Ended {
        let shared = self.shared.clone();
        let request = tokio::select! {
            biased;
            _ = shared.until_halted() => return Ended::Halted,
            prepared = self.prepare(mounts, device) => match prepared {
                Ok(request) => request,
                Err(failure) => return Ended::Failed(failure),
            },
        };
        let Some(runtime) = self.runtime.clone() else { return Ended::Failed(no_runtime(&self.assignment)) };
        shared.enter(Phase::Running);
        let started = tokio::select! {
            biased;
            // Whatever may have come to life is removed with the container.
            _ = shared.until_halted() => return Ended::Halted,
            started = runtime.start(&self.name) => started,
        };
        let output = match started {
            Ok(output) => output,
            Err(error) => return Ended::Failed(failure::of_runtime(&error)),
        };
        let running = Running {
            shared: &shared,
            assignment: &self.assignment,
            runtime: runtime.as_ref(),
            name: &self.name,
            mounted: self.mounted.as_deref(),
        };
        match running.watch(output, request).await {
            _ if shared.halted().is_some() => Ended::Halted,
            Ok(()) => Ended::Well,
            Err(failure) => Ended::Failed(failure),
        }
    }

    /// Everything that must be there before the engine starts; answers what a gRPC engine is to be asked.
    async fn prepare(
        &mut self,
        mounts: &dyn super::Mounts,
        device: Option<std::os::fd::OwnedFd>,
    ) -> Result<Option<Request>, Failure> {
        let paths = document::paths(&self.assignment, &self.root());
        let written = self.folder.write_job(&document::job(&self.assignment, &paths));
        written.map_err(|error| failure::infrastructure("scratch_failed", error.to_string()))?;
        self.begin_create(&paths)?;
        self.attach().await?;
        if self.assignment.mounted {
            self.mount(mounts, device).await?;
        }
        if let Some(creating) = self.creating.as_mut() {
            let created =
                creating.await.map_err(|error| failure::infrastructure("worker_failed", error.to_string()));
            self.creating = None;
            created??;
        }
        Ok(self.request(&paths))
    }

    /// Where the engine sees `/telecine`.
    fn root(&self) -> String {
        match self.assignment.spec.engine.launch {
            Launch::Grpc { .. } | Launch::Plain { .. } => "/telecine".to_owned(),
            Launch::Command { .. } => self.folder.engine_folder().display().to_string(),
        }
    }

    /// The container is made in a task of its own: once begun, it is waited for, so that nothing appears after the end.
    /// Fetching its image ends with any reason to stop.
    fn begin_create(&mut self, paths: &EnginePaths) -> Result<(), Failure> {
        let runtime = self.runtime.clone().ok_or_else(|| no_runtime(&self.assignment))?;
        let spec = container(&self.assignment, &self.folder, paths)?;
        let (shared, pulls) = (self.shared.clone(), self.assignment.surroundings.pulls_folder.clone());
        self.creating = Some(tokio::spawn(async move {
            tokio::select! {
                created = pull::create(&shared, runtime.as_ref(), &spec, &pulls) => created,
                _ = shared.until_fenced() => Ok(()),
            }
        }));
        Ok(())
    }

    /// Waits for the first welcome: no engine starts before a manager has acknowledged the lease.
    async fn attach(&self) -> Result<(), Failure> {
        let mut callers = self.shared.caller.subscribe();
        let attached = callers.wait_for(Option::is_some).await;
        attached.map(drop).map_err(|error| failure::infrastructure("worker_failed", error.to_string()))
    }

    async fn mount(
        &mut self,
        mounts: &dyn super::Mounts,
        device: Option<std::os::fd::OwnedFd>,
    ) -> Result<(), Failure> {
        self.shared.enter(Phase::Mounting);
        let access = match renewal::ask(&self.shared).await {
            Ok(access) => access,
            Err(NoAnswer::Refused { message, .. }) => return Err(renewal::refused(&message)),
            Err(NoAnswer::Fenced) => {
                self.shared.halt(Halt::Fenced("the manager closed the epoch".to_owned()));
                return std::future::pending().await;
            }
        };
        let shared = self.shared.clone();
        let (backings, rights) = stores::open_renewable(access, |secret| shared.learn_secret(secret))?;
        self.backings = backings;
        self._renewal = Some(AbortOnDropHandle::new(tokio::spawn(renewal::keep(shared, rights))));
        let plan = mount::plan(&self.assignment, &self.folder, &self.backings)?;
        let mounted = mounts.serve(plan, device);
        self.mounted = Some(mounted.map_err(|error| {
            failure::infrastructure("mount_failed", format!("inputs and outputs cannot be mounted: {error}"))
        })?);
        // Larger requests only; without it the mount works all the same.
        let _ = telecine_mount::raise_readahead(&self.folder.mountpoint(), READAHEAD_KIBIBYTES);
        Ok(())
    }

    fn request(&self, paths: &EnginePaths) -> Option<Request> {
        let Launch::Grpc { .. } = self.assignment.spec.engine.launch else { return None };
        let run = RunRequest {
            processing_json: telecine_proto::convert::json(&self.assignment.spec.composition.processing),
            inputs: paths.inputs.clone().into_iter().collect(),
            outputs: paths.outputs.clone().into_iter().collect(),
            job_id: self.assignment.attempt.job.to_string(),
            attempt: self.assignment.attempt.attempt.0,
            cpu_milli: self.assignment.resources.cpu_milli,
            memory_bytes: self.assignment.resources.memory_bytes,
        };
        Some(Request { run_folder: self.folder.run_folder(), run })
    }

    /// Removes the container with everything it started; runs beside the publishing.
    pub(super) fn remove_container(&mut self) -> JoinHandle<()> {
        let (runtime, creating, name) = (self.runtime.clone(), self.creating.take(), self.name.clone());
        tokio::spawn(async move {
            if let Some(creating) = creating {
                let _ = tokio::time::timeout(CREATE_PATIENCE, creating).await;
            }
            let Some(runtime) = runtime else { return };
            if let Err(error) = runtime.remove(&name).await {
                tracing::warn!(container = %name, %error, "the container was not removed; the coordinator will");
            }
        })
    }
}

fn no_runtime(assignment: &Assignment) -> Failure {
    let kind = assignment.spec.engine.launch.runtime();
    failure::infrastructure(
        "runtime_unavailable",
        format!("this instance offers no {kind:?} runtime any more"),
    )
}

fn container(
    assignment: &Assignment,
    folder: &AttemptFolder,
    paths: &EnginePaths,
) -> Result<ContainerSpec, Failure> {
    let processing = &assignment.spec.composition.processing;
    let fill = |published: &[String]| {
        plain::arguments(published, processing, paths)
            .map_err(|error| Failure::new(FailureClass::Input, "invalid_arguments", error.to_string()))
    };
    let (program, arguments) = match &assignment.spec.engine.launch {
        Launch::Grpc { image } => (Program::Image(image.clone()), Vec::new()),
        Launch::Plain { image, arguments } => (Program::Image(image.clone()), fill(arguments)?),
        Launch::Command { program, arguments } => (Program::Path(PathBuf::from(program)), fill(arguments)?),
    };
    Ok(ContainerSpec {
        name: folder.name(),
        instance: assignment.surroundings.instance,
        program,
        arguments,
        folder: folder.engine_folder(),
        resources: assignment.resources,
        gpus: assignment.gpus.clone(),
        user: assignment.surroundings.engine_user,
        pids_limit: assignment.surroundings.pids_limit,
    })
}

/// Ends the attempt when it has had its time since it was accepted, in whatever it is then: waiting, fetching, starting,
/// running or sealing. Once the question for the grant is on its way, only the answer decides.
async fn limit_time(shared: Arc<Shared>, seconds: Option<u64>, accepted_at: Timestamp) {
    let Some(seconds) = seconds else { return };
    let used = shared.clock.now().since(accepted_at);
    tokio::time::sleep(Duration::from_secs(seconds).saturating_sub(used)).await;
    shared.halt(Halt::Failed(failure::attempt_timeout(seconds)));
}

/// Takes what the coordinator says for as long as the worker lives.
async fn listen(
    shared: Arc<Shared>,
    mut incoming: mpsc::Receiver<ToWorker>,
    certificates: mpsc::Sender<Option<Vec<Vec<u8>>>>,
) {
    while let Some(message) = incoming.recv().await {
        match message {
            ToWorker::Attach(_) => {}
            ToWorker::Certificate(chain) => {
                let chain: Option<Vec<Vec<u8>>> = chain.iter().map(|der| hex::decode(der).ok()).collect();
                let _ = certificates.send(chain).await;
            }
            ToWorker::Refused { stale: true, message } => shared.halt(Halt::Fenced(message)),
            ToWorker::Refused { stale: false, message } => {
                tracing::warn!(%message, "no certificate yet");
                let _ = certificates.send(None).await;
            }
            ToWorker::Stop { grace_millis, reason } => {
                tracing::info!(%reason, "the coordinator asks to stop");
                shared.halt(Halt::Asked { grace: Duration::from_millis(grace_millis.into()) });
            }
            ToWorker::Interrupt { grace_millis, reason } => {
                let grace = Duration::from_millis(grace_millis.into());
                shared.halt(Halt::Interrupted { grace, failure: failure::interrupted(reason) });
            }
            ToWorker::Fence { reason } => shared.halt(Halt::Fenced(reason)),
        }
    }
}

/// Gets a certificate through the coordinator, then keeps the connection to the manager.
async fn connect(
    shared: Arc<Shared>,
    dialer: Dialer,
    managers: Vec<String>,
    coordinator: mpsc::Sender<FromWorker>,
    mut signed: mpsc::Receiver<Option<Vec<Vec<u8>>>>,
) {
    let credential = loop {
        if let Some(credential) = certify(&coordinator, &mut signed).await {
            break credential;
        }
        tokio::time::sleep(SIGN_PAUSE).await;
    };
    dialer.identity().replace(credential);
    session::keep(shared, dialer, managers).await;
    // The way to the coordinator stays open for as long as the worker lives.
    drop(coordinator);
}

/// One request for a certificate. The key stays in this process's memory.
async fn certify(
    coordinator: &mpsc::Sender<FromWorker>,
    signed: &mut mpsc::Receiver<Option<Vec<Vec<u8>>>>,
) -> Option<Credential> {
    let key = KeyAndRequest::generate().inspect_err(|error| tracing::warn!(%error, "no key")).ok()?;
    coordinator.send(FromWorker::Sign(hex::encode(key.request_der()))).await.ok()?;
    let chain = signed.recv().await??;
    key.with_chain(chain).inspect_err(|error| tracing::warn!(%error, "an unusable certificate")).ok()
}
