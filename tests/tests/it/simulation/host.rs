//! An instance: the real coordinator with real workers as tasks of this process, over engines and mounts that are played.
//!
//! A worker dies by being dropped wherever it waits; a stalled worker has a clock that stands still and a network that
//! carries nothing, and afterwards goes on as if no time had passed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use telecine_agent::clock::Clock;
use telecine_agent::control;
use telecine_agent::folder::{Assignment, AttemptFolder};
use telecine_agent::launcher::{LiveWorker, WorkerLauncher};
use telecine_agent::runtime::{
    ContainerRuntime, ContainerSpec, EngineSignal, Exit, Output, PullProgress, RuntimeError, Runtimes, Usage,
};
use telecine_agent::worker::{self, Mounted, Mounts, WorkerParts};
use telecine_domain::attempt::AttemptId;
use telecine_domain::engine::ImageReference;
use telecine_domain::id::{Epoch, InstanceId, JobId};
use telecine_domain::instance::RuntimeKind;
use telecine_mount::{
    Backing, MountFailure, MountPlan, OutputTarget, SealError, SealedBytes, SealedFile, SealedOutputs,
    folder_etag,
};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Mutant;
use super::store::hidden_name;
use super::weather::AgentNetwork;

/// What all instances share.
pub(super) struct Stage {
    pub(super) clock: telecine_proto::clock::Clock,
    pub(super) mutant: Option<Mutant>,
    /// Whether workers stall and fail to start.
    pub(super) rough: AtomicBool,
    /// How long it takes to remove an engine.
    pub(super) clean_up: Mutex<Duration>,
    /// Attempts whose engines failed by themselves.
    pub(super) engine_failures: Mutex<BTreeSet<(JobId, Epoch)>>,
    pub(super) stalled: Mutex<u32>,
}

/// The lives of an instance's workers; they outlive its coordinator.
pub(super) struct Host {
    stage: Arc<Stage>,
    network: AgentNetwork,
    pub(super) engines: Arc<Engines>,
    random: Mutex<SmallRng>,
    workers: Mutex<BTreeMap<AttemptId, Process>>,
}

#[derive(Clone)]
struct Process {
    abort: AbortHandle,
    gone: watch::Receiver<bool>,
}

impl Host {
    pub(super) fn new(stage: Arc<Stage>, network: AgentNetwork, seed: u64) -> Arc<Self> {
        let engines = Arc::new(Engines { stage: stage.clone(), engines: Mutex::default() });
        let random = Mutex::new(SmallRng::seed_from_u64(seed));
        Arc::new(Self { stage, network, engines, random, workers: Mutex::default() })
    }

    /// Living workers, in order.
    pub(super) fn workers(&self) -> Vec<AttemptId> {
        let mut workers = self.workers.lock().unwrap();
        workers.retain(|_, process| !*process.gone.borrow());
        workers.keys().copied().collect()
    }

    pub(super) fn kill_worker(&self, attempt: AttemptId) {
        if let Some(process) = self.workers.lock().unwrap().get(&attempt) {
            process.abort.abort();
        }
    }

    /// All that runs on the machine is gone at once; its disk stays.
    pub(super) fn power_cut(&self) {
        self.workers().into_iter().for_each(|attempt| self.kill_worker(attempt));
        self.engines.kill_all();
    }

    pub(super) fn runtimes(&self) -> Runtimes {
        Runtimes::from([(RuntimeKind::Process, self.engines.clone() as Arc<dyn ContainerRuntime>)])
    }

    /// The worker's network, and its clock, which may stand still from now on for a while.
    fn surroundings(&self, attempt: AttemptId) -> (AgentNetwork, Clock) {
        let name = format!("worker {attempt}");
        let places = [&self.network.places[..], std::slice::from_ref(&name)].concat();
        let network = AgentNetwork { places, ..self.network.clone() };
        let mut random = self.random.lock().unwrap();
        if !self.stage.rough.load(Ordering::Relaxed) || !random.random_bool(0.2) {
            return (network, self.stage.clock.into());
        }
        *self.stage.stalled.lock().unwrap() += 1;
        let stall = Duration::from_millis(random.random_range(5_000..50_000));
        let begin = Duration::from_millis(random.random_range(0..10_000));
        let weather = self.network.weather.clone();
        tokio::spawn(async move {
            tokio::time::sleep(begin).await;
            weather.isolate(&name, stall.saturating_sub(begin));
        });
        let clock = telecine_proto::clock::Clock::Simulated {
            start: self.stage.clock.now(),
            since: Instant::now() + stall,
        };
        (network, clock.into())
    }
}

/// Workers as tasks.
pub(super) struct InProcess(pub(super) Arc<Host>);

#[async_trait]
impl WorkerLauncher for InProcess {
    async fn can_mount(&self) -> Result<(), String> {
        Ok(())
    }

    fn mount(&self, _: &AttemptFolder, _: &Assignment) -> io::Result<Option<OwnedFd>> {
        Ok(None)
    }

    async fn launch(
        &self,
        folder: &AttemptFolder,
        attempt: AttemptId,
        device: Option<OwnedFd>,
    ) -> io::Result<LiveWorker> {
        let host = &self.0;
        if host.stage.rough.load(Ordering::Relaxed) && host.random.lock().unwrap().random_bool(0.05) {
            return Err(io::Error::other("made to fail"));
        }
        let lock = folder.try_lock().map_err(io::Error::other)?;
        let (network, clock) = host.surroundings(attempt);
        let parts = WorkerParts {
            folder: folder.clone(),
            lock: lock.ok_or_else(|| io::Error::other("another worker has the lock"))?,
            device,
            network: Arc::new(network),
            runtimes: host.runtimes(),
            mounts: Arc::new(PlayedMounts { mutant: host.stage.mutant }),
            clock,
            control: control::listen(&folder.socket(), attempt)?,
        };
        let task = tokio::spawn(worker::run(parts));
        let abort = task.abort_handle();
        let (died, gone) = watch::channel(false);
        tokio::spawn(async move {
            if let Ok(Err(error)) = task.await {
                panic!("{attempt}: the worker cannot work: {error}");
            }
            died.send_replace(true);
        });
        host.workers.lock().unwrap().insert(attempt, Process { abort, gone });
        Ok(self.adopt(folder, attempt).await)
    }

    async fn adopt(&self, folder: &AttemptFolder, attempt: AttemptId) -> LiveWorker {
        let process = self.0.workers.lock().unwrap().get(&attempt).cloned();
        let control = match control::connect(&folder.socket(), attempt).await {
            Ok((control, _)) => control,
            Err(_) => control::pair().0,
        };
        let (abort, gone) = process.map(|process| (process.abort, process.gone)).unzip();
        let gone = async move {
            if let Some(mut gone) = gone {
                let _ended = gone.wait_for(|gone| *gone).await;
            }
        };
        let kill = Arc::new(move || {
            if let Some(abort) = &abort {
                abort.abort();
            }
        });
        LiveWorker { control, gone: gone.boxed(), kill }
    }
}

/// Engines that work for a while, tell how far they are, and end as the name of their output says: `<seconds>s-<n>f-…`
/// works for so long and fails the first n times.
pub(super) struct Engines {
    stage: Arc<Stage>,
    engines: Mutex<BTreeMap<String, Engine>>,
}

struct Engine {
    spec: ContainerSpec,
    exit: watch::Sender<Option<Exit>>,
    work: Option<AbortHandle>,
}

impl Engine {
    fn end(&self, code: i32) {
        if let Some(work) = &self.work {
            work.abort();
        }
        end(&self.exit, code);
    }
}

fn end(exit: &watch::Sender<Option<Exit>>, code: i32) {
    exit.send_if_modified(|exit| exit.replace(exit.unwrap_or(Exit { code, out_of_memory: false })).is_none());
}

/// Seconds of work and failures before it succeeds.
fn script(spec: &ContainerSpec) -> (u32, usize) {
    let path = spec.arguments.first().expect("the output's path");
    let mut parts = path.rsplit('/').next().unwrap().split('-');
    let mut number = |unit| parts.next().unwrap().trim_end_matches(unit).parse::<u32>().unwrap();
    (number('s'), number('f') as usize)
}

impl Engines {
    fn kill_all(&self) {
        let engines = std::mem::take(&mut *self.engines.lock().unwrap());
        engines.values().for_each(|engine| engine.end(137));
    }

    fn refused(action: &'static str, name: &str) -> RuntimeError {
        let answer = "there is none".to_owned();
        RuntimeError::Refused { runtime: "simulation", action, name: name.to_owned(), answer }
    }

    /// Whether the engine of `attempt` fails now.
    fn fails(stage: &Stage, attempt: AttemptId, failures: usize) -> bool {
        let mut failed = stage.engine_failures.lock().unwrap();
        let before = failed.iter().filter(|(job, _)| *job == attempt.job).count();
        before < failures && failed.insert((attempt.job, attempt.epoch))
    }
}

#[async_trait]
impl ContainerRuntime for Engines {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Process
    }

    async fn check(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn images(&self) -> Result<BTreeSet<String>, RuntimeError> {
        Ok(BTreeSet::new())
    }

    async fn pull(
        &self,
        image: &ImageReference,
        _: &watch::Sender<PullProgress>,
    ) -> Result<(), RuntimeError> {
        Err(Self::refused("pull", image.as_str()))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let engine = Engine { spec: spec.clone(), exit: watch::Sender::new(None), work: None };
        if let Some(before) = self.engines.lock().unwrap().insert(spec.name.clone(), engine) {
            before.end(137);
        }
        Ok(())
    }

    async fn start(&self, name: &str) -> Result<mpsc::Receiver<Output>, RuntimeError> {
        let mut engines = self.engines.lock().unwrap();
        let engine = engines.get_mut(name).ok_or_else(|| Self::refused("start", name))?;
        let (output, receiver) = mpsc::channel(64);
        let (seconds, failures) = script(&engine.spec);
        let (exit, stage, attempt) = (
            engine.exit.clone(),
            self.stage.clone(),
            AttemptFolder::attempt_of(name).expect("an attempt's name"),
        );
        let work = tokio::spawn(async move {
            for second in 1..=seconds {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let line = format!("telecine-progress: {}\n", 1_000_000 / seconds * second);
                let _unread = output.try_send(Output { stdout: true, data: Bytes::from(line) });
            }
            drop(output);
            end(&exit, if Self::fails(&stage, attempt, failures) { 3 } else { 0 });
        });
        engine.work = Some(work.abort_handle());
        Ok(receiver)
    }

    async fn wait(&self, name: &str) -> Result<Exit, RuntimeError> {
        let exit = self.engines.lock().unwrap().get(name).map(|engine| engine.exit.subscribe());
        let mut exit = exit.ok_or_else(|| Self::refused("wait for", name))?;
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        ended.ok_or_else(|| Self::refused("wait for", name))
    }

    async fn signal(&self, name: &str, signal: EngineSignal) -> Result<(), RuntimeError> {
        if let Some(engine) = self.engines.lock().unwrap().get(name) {
            match signal {
                EngineSignal::Kill => engine.end(137),
                // One in two does not listen.
                EngineSignal::Terminate if name.bytes().fold(0, |all, byte| all ^ byte) & 1 == 0 => {
                    engine.end(143)
                }
                EngineSignal::Terminate => {}
            }
        }
        Ok(())
    }

    async fn usage(&self, _: &str) -> Result<Usage, RuntimeError> {
        Ok(Usage::default())
    }

    async fn remove(&self, name: &str) -> Result<(), RuntimeError> {
        if let Some(engine) = self.engines.lock().unwrap().remove(name) {
            engine.end(137);
        }
        let clean_up = *self.stage.clean_up.lock().unwrap();
        tokio::time::sleep(clean_up).await;
        Ok(())
    }

    async fn ours(&self, _: &InstanceId) -> Result<Vec<String>, RuntimeError> {
        Ok(self.engines.lock().unwrap().keys().cloned().collect())
    }
}

/// Mounts without a kernel: sealing writes each output as a hidden file, journal first, as the real one does.
struct PlayedMounts {
    mutant: Option<Mutant>,
}

impl Mounts for PlayedMounts {
    fn serve(&self, plan: MountPlan, _: Option<OwnedFd>) -> Result<Arc<dyn Mounted>, String> {
        Ok(Arc::new(PlayedMount { plan, mutant: self.mutant }))
    }
}

struct PlayedMount {
    plan: MountPlan,
    mutant: Option<Mutant>,
}

/// What every output is.
fn content(tag: &str) -> String {
    format!("made by {tag}")
}

#[async_trait]
impl Mounted for PlayedMount {
    fn counters(&self) -> telecine_mount::Counters {
        telecine_mount::Counters::default()
    }

    fn failures(&self) -> Vec<MountFailure> {
        Vec::new()
    }

    async fn seal(&self) -> Result<SealedOutputs, SealError> {
        let mut sealed = SealedOutputs::default();
        for (nth, output) in self.plan.outputs.iter().enumerate() {
            let (Backing::Folder { dir }, OutputTarget::File { key, .. }) = (&output.backing, &output.target)
            else {
                panic!("a file in a folder is what the simulation submits");
            };
            let hidden_key = hidden_name(&output.hidden_tag, nth);
            let entry = json!({"hidden_file": {"output": output.name, "hidden_key": hidden_key}});
            let journal = std::fs::File::options().append(true).create(true).open(&self.plan.journal);
            writeln!(journal.unwrap(), "{entry}").unwrap();
            let bytes = content(&output.hidden_tag);
            dir.write(&hidden_key, &bytes).unwrap();
            let etag = folder_etag(&dir.metadata(&hidden_key).unwrap());
            if self.mutant == Some(Mutant::PublishesWithoutGrant) {
                dir.rename(&hidden_key, dir, key).unwrap();
            }
            sealed.files.push(SealedFile {
                output: output.name.clone(),
                key: key.clone(),
                size: bytes.len() as u64,
                sha256: Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
                etag: Some(etag),
                sealed: SealedBytes::HiddenFile { hidden_key },
            });
            // Checksums take their time.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(sealed)
    }

    fn close(&self) {}
}
