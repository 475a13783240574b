//! Engines as plain processes of the instance, for engine versions that an operator published as a command.
//!
//! There is no sandbox. Each runs in a session of its own with an empty environment, and is killed as a group. Every
//! process of an attempt carries `TELECINE_JOB` with the path of its attempt's `job.json`; that is how the coordinator
//! finds what a dead worker left behind, also what has left the session.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::BytesMut;
use rustix::process::{Pid, Signal};
use telecine_domain::engine::ImageReference;
use telecine_domain::id::InstanceId;
use telecine_domain::instance::RuntimeKind;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use super::{
    ContainerRuntime, ContainerSpec, EngineSignal, Exit, OUTPUT_PIECES, Output, Program, PullProgress,
    RuntimeError, Usage,
};

const NAME: &str = "the process runtime";
const JOB_VARIABLE: &str = "TELECINE_JOB";
const PIECE_BYTES: usize = 64 * 1024;

/// Runs engines as processes.
#[derive(Debug)]
pub struct Process {
    attempts_folder: PathBuf,
    engines: Mutex<BTreeMap<String, Engine>>,
}

/// One that was created.
#[derive(Debug)]
struct Engine {
    spec: ContainerSpec,
    /// Group of the started process, until it is known to be dead.
    group: Option<Pid>,
    exit: watch::Receiver<Option<Exit>>,
    report: Option<watch::Sender<Option<Exit>>>,
}

impl Process {
    /// A runtime for attempts whose folders are in `attempts_folder`.
    pub fn new(attempts_folder: &Path) -> Self {
        Self { attempts_folder: attempts_folder.to_owned(), engines: Mutex::default() }
    }

    fn with<T>(
        &self,
        name: &str,
        action: &'static str,
        then: impl FnOnce(&mut Engine) -> T,
    ) -> Result<T, RuntimeError> {
        let mut engines = self.engines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        engines.get_mut(name).map(then).ok_or_else(|| refused(action, name, "it was never created"))
    }

    fn job_file(&self, name: &str) -> PathBuf {
        self.attempts_folder.join(name).join("m/job.json")
    }
}

#[async_trait]
impl ContainerRuntime for Process {
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
        Err(refused("pull", image.as_str(), "images need Docker"))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        if let Program::Image(image) = &spec.program {
            return Err(refused("create", &spec.name, &format!("image {image} needs Docker")));
        }
        let (report, exit) = watch::channel(None);
        let engine = Engine { spec: spec.clone(), group: None, exit, report: Some(report) };
        let mut engines = self.engines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        engines.entry(spec.name.clone()).or_insert(engine);
        Ok(())
    }

    async fn start(&self, name: &str) -> Result<mpsc::Receiver<Output>, RuntimeError> {
        let (spec, report) =
            self.with(name, "start", |engine| (engine.spec.clone(), engine.report.take()))?;
        let report = report.ok_or_else(|| refused("start", name, "it was started before"))?;
        let mut child = command(&spec, &self.job_file(name))
            .spawn()
            .map_err(|error| refused("start", name, &format!("{}: {error}", program(&spec).display())))?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        self.with(name, "start", |engine| engine.group = group)?;
        let (sender, receiver) = mpsc::channel(OUTPUT_PIECES);
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(forward(stdout, true, sender.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(forward(stderr, false, sender));
        }
        // Ends with the process; its answer outlives this runtime's users by being a watch.
        tokio::spawn(reap(child, group, report));
        Ok(receiver)
    }

    async fn wait(&self, name: &str) -> Result<Exit, RuntimeError> {
        let mut exit = self.with(name, "wait for", |engine| engine.exit.clone())?;
        let ended = exit.wait_for(Option::is_some).await;
        ended
            .ok()
            .and_then(|exit| *exit)
            .ok_or_else(|| refused("wait for", name, "nobody waits for the process any more"))
    }

    async fn signal(&self, name: &str, signal: EngineSignal) -> Result<(), RuntimeError> {
        let group =
            self.with(name, "signal", |engine| engine.group.filter(|_| engine.exit.borrow().is_none()));
        if let Ok(Some(group)) = group {
            // A group without members is gone already.
            let _ = rustix::process::kill_process_group(group, number(signal));
        }
        Ok(())
    }

    async fn usage(&self, name: &str) -> Result<Usage, RuntimeError> {
        let group = self.with(name, "measure", |engine| engine.group)?;
        Ok(group.map(|pid| usage_of(pid.as_raw_nonzero().get())).unwrap_or_default())
    }

    async fn remove(&self, name: &str) -> Result<(), RuntimeError> {
        let known = self.engines.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(name);
        let clean =
            known.as_ref().is_some_and(|engine| engine.exit.borrow().is_some_and(|exit| exit.code == 0));
        // One that ended well took its group along; only what crashed, or what another process started, is searched.
        if !clean {
            if let Some(group) =
                known.and_then(|engine| engine.group.filter(|_| engine.exit.borrow().is_none()))
            {
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
            }
            let job_file = self.job_file(name);
            blocking(move || kill_all(&job_file)).await;
        }
        Ok(())
    }

    async fn ours(&self, _: &InstanceId) -> Result<Vec<String>, RuntimeError> {
        let folder = self.attempts_folder.clone();
        Ok(blocking(move || attempts_of_processes(&folder)).await)
    }
}

fn program(spec: &ContainerSpec) -> PathBuf {
    match &spec.program {
        Program::Path(path) => path.clone(),
        Program::Image(image) => PathBuf::from(image.as_str()),
    }
}

fn command(spec: &ContainerSpec, job_file: &Path) -> Command {
    let mut command = Command::new(program(spec));
    command
        .args(&spec.arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .env(JOB_VARIABLE, job_file)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if !spec.gpus.is_empty() {
        command.env("CUDA_VISIBLE_DEVICES", spec.gpus.join(","));
    }
    // SAFETY: between fork and exec only two system calls are made; nothing allocates or locks.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            // A worker that is killed takes its engine along at once; the coordinator sees to the rest.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        });
    }
    command
}

async fn forward(mut from: impl AsyncRead + Unpin, stdout: bool, to: mpsc::Sender<Output>) {
    let mut buffer = BytesMut::with_capacity(PIECE_BYTES);
    while from.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
        if to.send(Output { stdout, data: buffer.split().freeze() }).await.is_err() {
            return;
        }
        buffer.reserve(PIECE_BYTES);
    }
}

async fn reap(mut child: Child, group: Option<Pid>, report: watch::Sender<Option<Exit>>) {
    use std::os::unix::process::ExitStatusExt as _;
    let code = match child.wait().await {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        Err(error) => {
            tracing::error!(%error, "an engine process cannot be waited for");
            -1
        }
    };
    if let Some(group) = group {
        // What it started in its group does not outlive it.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    report.send_replace(Some(Exit { code, out_of_memory: false }));
}

fn number(signal: EngineSignal) -> Signal {
    match signal {
        EngineSignal::Terminate => Signal::TERM,
        EngineSignal::Kill => Signal::KILL,
    }
}

async fn blocking<T: Default + Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

/// Process ids and the `TELECINE_JOB` of each process that has one.
fn processes_with_job() -> Vec<(Pid, PathBuf)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    ids.filter_map(|id| Some((Pid::from_raw(id)?, job_of(id)?))).collect()
}

fn job_of(id: i32) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    let environment = std::fs::read(format!("/proc/{id}/environ")).ok()?;
    let mut variables = environment.split(|&byte| byte == 0);
    let value = variables.find_map(|v| v.strip_prefix(JOB_VARIABLE.as_bytes())?.strip_prefix(b"="))?;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(value)))
}

/// Kills until a look finds nobody: a process that forks while it is looked at is found by the next look.
fn kill_all(job_file: &Path) {
    for _ in 0..100 {
        let found: Vec<Pid> =
            processes_with_job().into_iter().filter(|(_, job)| job == job_file).map(|(id, _)| id).collect();
        if found.is_empty() {
            return;
        }
        for id in found {
            let _ = rustix::process::kill_process(id, Signal::KILL);
        }
    }
}

fn attempts_of_processes(folder: &Path) -> Vec<String> {
    let name = |job: PathBuf| {
        let attempt = job.strip_prefix(folder).ok()?.components().next()?;
        Some(attempt.as_os_str().to_str()?.to_owned())
    };
    let names: BTreeSet<String> = processes_with_job().into_iter().filter_map(|(_, job)| name(job)).collect();
    names.into_iter().collect()
}

fn usage_of(id: i32) -> Usage {
    let read = |file| std::fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
    let (stat, memory) = (read("stat"), read("statm"));
    // The command name, in parentheses, may hold spaces; what follows it does not. Fields 14 and 15 are ticks.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|&i| fields.get(i)?.parse::<u64>().ok()).sum();
    let pages: u64 = memory.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    let page_bytes = rustix::param::page_size() as u64;
    Usage {
        memory_bytes: pages * page_bytes,
        cpu_millis: ticks * 1000 / rustix::param::clock_ticks_per_second().max(1),
    }
}

fn refused(action: &'static str, name: &str, answer: &str) -> RuntimeError {
    RuntimeError::Refused { runtime: NAME, action, name: name.to_owned(), answer: answer.to_owned() }
}
