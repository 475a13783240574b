//! A whole coordinator in this process, with workers as real processes, against a scripted manager.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::Digest as _;
use telecine_agent::clock::Clock;
use telecine_agent::config::AgentConfig;
use telecine_agent::coordinator::{self, CoordinatorError, CoordinatorParts, Shutdown};
use telecine_agent::entry;
use telecine_agent::launcher::ProcessLauncher;
use telecine_agent::runtime::{ContainerRuntime, Docker, Process, Runtimes};
use telecine_domain::attempt::AttemptId;
use telecine_domain::id::{AccountId, AttemptNumber, Epoch, JobId};
use telecine_domain::instance::{InstanceProfile, RuntimeKind};
use telecine_domain::resources::Resources;
use telecine_domain::time::Timestamp;
use telecine_domain::trace::TraceContext;
use telecine_proto::coordinator::v1::{
    Assign, AssignReply, CloseEpoch, FromCoordinator, FromManager, Publish, StopAttempt, from_coordinator,
    from_manager,
};
use telecine_proto::net::TcpNetwork;
use telecine_proto::trace;
use telecine_proto::types::v1::StoreAccess;
use tokio::task::JoinHandle;

use crate::manager::{Manager, TOKEN};
use crate::support::{can_mount, docker, random};

mod cordons;

/// Not a test: the body of a worker process, which is this test binary with an attempt's folder as its last argument.
#[test]
fn worker_process() {
    let folder = std::env::args().next_back().unwrap_or_default();
    if !folder.starts_with('/') || !Path::new(&folder).join("assignment.json").exists() {
        return;
    }
    entry::worker_main(Path::new(&folder)).expect("the worker runs");
}

struct Stage {
    data: tempfile::TempDir,
    manager: Manager,
    config: AgentConfig,
    docker: Option<Docker>,
    shutdown: Shutdown,
    running: Option<JoinHandle<Result<(), CoordinatorError>>>,
}

impl Stage {
    async fn new(docker: Option<Docker>) -> Self {
        Self::with(docker, |_| {}).await
    }

    async fn with(docker: Option<Docker>, change: impl FnOnce(&mut AgentConfig)) -> Self {
        if std::env::var_os("RUST_LOG").is_some() {
            entry::init_logging(telecine_agent::config::LogFormat::Text);
        }
        let manager = Manager::start(&TcpNetwork, Clock::default().wall()).await;
        let data = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = data.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mut config = AgentConfig {
            data_folder: data.path().join("agent"),
            managers: vec![manager.address.clone()],
            ca_file: write("ca.pem", manager.book.authority.certificate_pem()),
            join_token_file: write("token", TOKEN),
            minimum_free_bytes: 1 << 20,
            runtimes: [RuntimeKind::Process].into(),
            ..AgentConfig::default()
        };
        config.capacity.cpu_milli = Some(1000);
        if docker.is_some() {
            config.runtimes.insert(RuntimeKind::Docker);
        }
        change(&mut config);
        let mut stage = Self { data, manager, config, docker, shutdown: Shutdown::default(), running: None };
        stage.start().await;
        stage
    }

    async fn start(&mut self) {
        let mut runtimes = Runtimes::new();
        let process: Arc<dyn ContainerRuntime> = Arc::new(Process::new(&self.config.attempts_folder()));
        runtimes.insert(RuntimeKind::Process, process);
        if let Some(docker) = &self.docker {
            runtimes.insert(RuntimeKind::Docker, Arc::new(docker.clone()));
        }
        let arguments = ["--exact", "coordinator::worker_process", "--nocapture"];
        let parts = CoordinatorParts {
            network: Arc::new(TcpNetwork),
            runtimes,
            docker_version: self.docker.as_ref().map(Docker::version),
            launcher: Arc::new(ProcessLauncher {
                program: std::env::current_exe().unwrap(),
                arguments: arguments.map(str::to_owned).to_vec(),
            }),
            clock: Clock::default(),
        };
        self.shutdown = Shutdown::default();
        self.running =
            Some(tokio::spawn(coordinator::run(self.config.clone(), parts, self.shutdown.clone())));
        self.manager.book.attached().await;
    }

    async fn leave(&mut self) {
        self.shutdown.now.cancel();
        self.running.take().unwrap().await.unwrap().unwrap();
        self.manager.book.until("coordinator left").await;
        self.manager.book.coordinator.send_replace(None);
    }

    async fn call(&self, body: from_manager::Body) -> from_coordinator::Body {
        self.call_in(None, body).await.body.unwrap()
    }

    async fn call_in(&self, trace: Option<TraceContext>, body: from_manager::Body) -> FromCoordinator {
        let message = FromManager { call_id: 0, trace: trace::to_wire(trace), term: 3, body: Some(body) };
        let caller = self.manager.book.attached().await;
        caller.call(message, Duration::from_secs(30)).await.unwrap()
    }

    async fn assign(&self, attempt: AttemptId, spec: &Value) -> AssignReply {
        self.assign_within(attempt, spec, 60_000).await
    }

    async fn assign_within(&self, attempt: AttemptId, spec: &Value, lease_millis: u32) -> AssignReply {
        let assign = from_manager::Body::Assign(assignment(attempt, spec, lease_millis));
        match self.call(assign).await {
            from_coordinator::Body::AssignReply(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// How often the manager was told what the instance is, beyond the hello.
    fn profiles_told(&self) -> usize {
        self.manager.book.events().iter().filter(|event| event.starts_with("profile")).count()
    }

    fn attempts(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.config.attempts_folder()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    async fn until_clean(&self) {
        eventually("no attempt is left", || self.attempts().is_empty()).await;
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = telecine_agent::mounts::unmount_all(self.data.path());
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn attempt() -> AttemptId {
    let job = JobId::new(Timestamp::from_millis(1_800_000_000_000), random());
    AttemptId { job, attempt: AttemptNumber(1), epoch: Epoch(1) }
}

fn assignment(attempt: AttemptId, spec: &Value, lease_millis: u32) -> Assign {
    let resources = Resources { cpu_milli: 600, memory_bytes: 64 << 20, ..Resources::ZERO };
    Assign {
        id: Some(attempt.into()),
        account_id: AccountId::PLATFORM.to_string(),
        spec_json: spec.to_string().into_bytes(),
        resources: Some(resources.into()),
        lease_millis,
    }
}

fn launch(launch: &Value) -> Value {
    json!({
        "service": "transform",
        "engine": {"version": "1.0.0", "launch": launch},
        "composition": {"inputs": {}, "outputs": {}},
        "inputs": {},
        "region": "local",
        "resources": {"cpu_milli": 600},
        "priority": 500,
        "origin": "api"
    })
}

fn shell(script: &str) -> Value {
    launch(&json!({"command": {"program": "/bin/sh", "arguments": ["-c", script]}}))
}

const STORE: &str = "sto_00000000000000000000000001";

fn with_output(mut spec: Value) -> Value {
    spec["composition"]["outputs"] = json!({"result": {"store": STORE, "key": "out/result.txt"}});
    spec
}

fn access(folder: &Path) -> StoreAccess {
    StoreAccess {
        store_id: STORE.into(),
        provider_json: json!({"provider": "local", "folder": folder}).to_string().into_bytes(),
        secret_json: Vec::new(),
        expires_at_millis: 0,
    }
}

/// Process ids of workers of this stage.
fn workers(stage: &Stage) -> Vec<i32> {
    let attempts = stage.config.attempts_folder().display().to_string();
    let entries = std::fs::read_dir("/proc").unwrap();
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let of_stage = |id: &i32| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains("worker_process") && line.contains(&attempts)
    };
    ids.filter(of_stage).collect()
}

fn kill_workers(stage: &Stage) {
    let found = workers(stage);
    assert!(!found.is_empty(), "a worker lives");
    for id in found {
        let id = rustix::process::Pid::from_raw(id).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_assignment_is_run_reported_and_cleaned_up() {
    let stage = Stage::new(None).await;
    let profile: InstanceProfile =
        serde_json::from_slice(&stage.manager.book.hellos.lock().unwrap()[0].profile_json).unwrap();
    assert_eq!(profile.capacity.cpu_milli, 1000);
    assert_eq!(profile.problems, []);
    let first = attempt();
    assert!(stage.assign(first, &shell("echo hello; sleep 1")).await.accepted);
    assert!(
        stage.assign(first, &shell("echo hello; sleep 1")).await.accepted,
        "a second time is the first time"
    );
    let published = |events: Vec<String>| events.iter().filter(|event| *event == "published").count();
    assert!(stage.assign(attempt(), &shell("exit 0")).await.accepted, "it waits for room");
    assert_eq!(published(stage.manager.book.events()), 1, "and gets it when the first is gone");
    assert_eq!(stage.manager.book.log_text(), "hello\n");
    assert!(!stage.manager.book.events().iter().any(|event| event.starts_with("worker gone")));
    eventually("the second is published", || published(stage.manager.book.events()) == 2).await;
    stage.until_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_room_is_refused_with_what_is_free_and_what_is_stopped_meanwhile_never_begins() {
    let stage = Stage::new(None).await;
    let (first, stopped, short) = (attempt(), attempt(), attempt());
    assert!(stage.assign(first, &shell("sleep 60")).await.accepted);
    let stop = StopAttempt { id: Some(stopped.into()), grace_millis: 0, reason: "canceled".into() };
    let nothing = shell("exit 0");
    let waiting = stage.assign(stopped, &nothing);
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stage.call(from_manager::Body::StopAttempt(stop)).await
    };
    let (reply, _) = tokio::join!(waiting, stopping);
    assert_eq!((reply.accepted, reply.failure.unwrap().code.as_str()), (false, "stopped"));
    assert_eq!(reply.free, None, "that says nothing of the room here");
    let refused = stage.assign_within(short, &shell("exit 0"), 1_500).await;
    assert_eq!((refused.accepted, refused.failure.unwrap().code.as_str()), (false, "not_enough_free"));
    assert_eq!(refused.free.unwrap().cpu_milli, 400);
    let profiles = stage.profiles_told();
    let end = StopAttempt { id: Some(first.into()), grace_millis: 0, reason: "make room".into() };
    stage.call(from_manager::Body::StopAttempt(end)).await;
    eventually("what is free is told", || stage.profiles_told() > profiles).await;
    stage.until_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_said_of_an_attempt_is_in_the_trace_of_its_job() {
    let stage = Stage::new(None).await;
    let job = trace::begin("4bf92f3577b34da6a3ce929d0e0e4736".parse().unwrap());
    let assign = from_manager::Body::Assign(assignment(attempt(), &shell("echo traced"), 60_000));
    let answer = stage.call_in(Some(job), assign).await;
    assert_eq!(trace::of_wire(answer.trace.as_ref()).map(|context| context.trace), Some(job.trace));
    stage.manager.book.until("published").await;
    stage.until_clean().await;
    let traces = stage.manager.book.traces.lock().unwrap().clone();
    assert!(["worker", "sign"].iter().all(|who| traces.iter().any(|(said, _)| said == who)), "{traces:?}");
    assert!(traces.iter().all(|(_, trace)| *trace == Some(job.trace)), "{traces:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_takes_its_engine_along_and_is_reported() {
    let stage = Stage::new(None).await;
    let store = tempfile::tempdir().unwrap();
    stage.manager.book.policy(|policy| policy.stores = vec![access(store.path())]);
    let id = attempt();
    let marker = stage.data.path().join("pid");
    let script = format!(
        "echo half > {{output.result}}; echo $$ > {}; setsid sleep 300 & sleep 301",
        marker.display()
    );
    let spec = with_output(shell(&script));
    assert!(stage.assign(id, &spec).await.accepted);
    eventually("the engine works", || std::fs::read_to_string(&marker).is_ok_and(|pid| pid.ends_with('\n')))
        .await;
    let hidden = || std::fs::read_dir(store.path()).unwrap().count();
    assert_eq!(hidden(), 1, "a hidden file is being written");
    kill_workers(&stage);
    assert_eq!(stage.manager.book.until("worker gone").await, "worker gone worker_died");
    // The manager asks at once, while the attempt is still being put away here.
    let close = CloseEpoch {
        id: Some(id.into()),
        spec_json: spec.to_string().into_bytes(),
        stores: vec![access(store.path())],
    };
    for _ in 0..2 {
        match stage.call(from_manager::Body::CloseEpoch(close.clone())).await {
            from_coordinator::Body::Done(done) => assert_eq!(done.problem, ""),
            other => panic!("{other:?}"),
        }
        assert_eq!(hidden(), 0);
    }
    let ours = Process::new(&stage.config.attempts_folder());
    let instance = InstanceProfile::deserialize_id(&stage);
    assert_eq!(ours.ours(&instance).await.unwrap(), Vec::<String>::new(), "nothing of the engine is left");
    stage.until_clean().await;
    let mounted = telecine_agent::mounts::mounted_at_or_below(&stage.config.attempts_folder()).unwrap();
    assert_eq!(mounted, Vec::<std::path::PathBuf>::new());
    assert_eq!(std::fs::read_dir(stage.config.data_folder.join("journals")).unwrap().count(), 0);
}

/// The instance's id, from its hello.
trait FromStage {
    fn deserialize_id(stage: &Stage) -> telecine_domain::id::InstanceId;
}

impl FromStage for InstanceProfile {
    fn deserialize_id(stage: &Stage) -> telecine_domain::id::InstanceId {
        let hellos = stage.manager.book.hellos.lock().unwrap();
        serde_json::from_slice::<Self>(&hellos[0].profile_json).unwrap().id
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_coordinator_finds_its_workers() {
    let mut stage = Stage::new(None).await;
    let id = attempt();
    assert!(stage.assign(id, &shell("sleep 2; echo survived")).await.accepted);
    stage.manager.book.until("phase running").await;
    stage.leave().await;
    assert_eq!(workers(&stage).len(), 1, "the worker goes on");
    stage.start().await;
    let hellos = stage.manager.book.hellos.lock().unwrap().clone();
    assert_eq!(hellos.len(), 2);
    assert_eq!(hellos[1].running.len(), 1);
    assert_eq!(hellos[1].running[0].id, Some(id.into()));
    assert_eq!(hellos[1].running[0].resources.unwrap().cpu_milli, 600);
    assert!(stage.assign(attempt(), &shell("exit 0")).await.accepted, "what runs is counted and waited for");
    assert!(stage.manager.book.events().iter().any(|event| event == "published"));
    assert_eq!(stage.manager.book.log_text(), "survived\n");
    stage.until_clean().await;
    assert!(!stage.manager.book.events().iter().any(|event| event.starts_with("worker gone")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_died_without_a_coordinator_is_cleaned_up_by_the_next() {
    let mut stage = Stage::new(None).await;
    let store = tempfile::tempdir().unwrap();
    stage.manager.book.policy(|policy| policy.stores = vec![access(store.path())]);
    assert!(stage.assign(attempt(), &with_output(shell("setsid sleep 300 & sleep 301"))).await.accepted);
    stage.manager.book.until("phase running").await;
    stage.leave().await;
    kill_workers(&stage);
    eventually("the worker is dead", || workers(&stage).is_empty()).await;
    stage.start().await;
    assert_eq!(stage.manager.book.until("worker gone").await, "worker gone worker_died");
    stage.until_clean().await;
    let ours = Process::new(&stage.config.attempts_folder());
    assert_eq!(ours.ours(&InstanceProfile::deserialize_id(&stage)).await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_runs_and_takes_nothing() {
    let mut stage = Stage::new(None).await;
    assert!(stage.assign(attempt(), &shell("sleep 2")).await.accepted);
    stage.manager.book.until("phase running").await;
    stage.shutdown.drain.cancel();
    stage.manager.book.until("profile draining=true").await;
    let refused = stage.assign(attempt(), &shell("exit 0")).await;
    assert_eq!(refused.failure.unwrap().code, "draining");
    let ended = tokio::time::timeout(Duration::from_secs(30), stage.running.take().unwrap()).await;
    ended.expect("ends when empty").unwrap().unwrap();
    assert!(stage.manager.book.events().contains(&"published".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_reaches_the_engine_at_once() {
    let stage = Stage::new(None).await;
    let id = attempt();
    assert!(
        stage
            .assign(id, &shell("trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.05; done"))
            .await
            .accepted
    );
    stage.manager.book.until("phase running").await;
    let asked = Instant::now();
    let stop = StopAttempt { id: Some(id.into()), grace_millis: 20_000, reason: "a test".into() };
    stage.call(from_manager::Body::StopAttempt(stop)).await;
    assert_eq!(stage.manager.book.until("ended").await, "ended as asked");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    stage.until_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_term_is_not_obeyed() {
    let mut stage = Stage::new(None).await;
    *stage.manager.book.term.lock().unwrap() = 9;
    stage.manager.book.cut();
    let written = stage.config.data_folder.join("term");
    eventually("the new term is written down", || {
        std::fs::read_to_string(&written).is_ok_and(|term| term == "9")
    })
    .await;
    stage.leave().await;
    *stage.manager.book.term.lock().unwrap() = 8;
    let before = stage.manager.book.hellos.lock().unwrap().len();
    stage.shutdown = Shutdown::default();
    stage.start().await;
    eventually("it comes again and again", || stage.manager.book.hellos.lock().unwrap().len() > before + 2)
        .await;
    assert_eq!(stage.manager.book.hellos.lock().unwrap().last().unwrap().highest_term, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn granted_outputs_of_a_lost_worker_are_published_here() {
    let stage = Stage::new(None).await;
    let store = tempfile::tempdir().unwrap();
    let hidden = ".telecine-upload-job-1-1-1";
    std::fs::write(store.path().join(hidden), "sealed").unwrap();
    let dir = cap_std::fs::Dir::open_ambient_dir(store.path(), cap_std::ambient_authority()).unwrap();
    let etag = telecine_mount::folder_etag(&dir.metadata(hidden).unwrap());
    let sha256 = hex::encode(sha2::Sha256::digest(b"sealed"));
    let manifest = json!([{
        "slot": "result", "store": STORE, "key": "out/result.txt", "size_bytes": 6, "sha256": sha256, "etag": etag,
        "sealed": {"hidden_file": {"hidden_key": hidden}},
    }]);
    let manifest: telecine_domain::manifest::Manifest = serde_json::from_value(manifest).unwrap();
    let publish = Publish {
        id: Some(attempt().into()),
        manifest: Some(manifest.into()),
        stores: vec![access(store.path())],
    };
    let from_coordinator::Body::PublishReply(reply) = stage.call(from_manager::Body::Publish(publish)).await
    else {
        panic!("no reply")
    };
    assert!(reply.published, "{reply:?}");
    assert_eq!(std::fs::read_to_string(store.path().join("out/result.txt")).unwrap(), "sealed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_was_moved_away_keeps_no_other_from_being_published() {
    let stage = Stage::new(None).await;
    let store = tempfile::tempdir().unwrap();
    let hidden = ".telecine-upload-job-1-1-2";
    std::fs::write(store.path().join(hidden), "sealed").unwrap();
    let dir = cap_std::fs::Dir::open_ambient_dir(store.path(), cap_std::ambient_authority()).unwrap();
    let etag = telecine_mount::folder_etag(&dir.metadata(hidden).unwrap());
    let sha256 = hex::encode(sha2::Sha256::digest(b"sealed"));
    let object = |key: &str, hidden: &str| {
        json!({
            "slot": "result", "store": STORE, "key": key, "size_bytes": 6, "sha256": sha256, "etag": etag,
            "sealed": {"hidden_file": {"hidden_key": hidden}},
        })
    };
    let moved = object("out/first.txt", ".telecine-upload-job-1-1-1");
    let manifest = json!([moved, object("out/second.txt", hidden)]);
    let manifest: telecine_domain::manifest::Manifest = serde_json::from_value(manifest).unwrap();
    let id = attempt();
    // As often as it is asked for.
    for _ in 0..2 {
        let publish = Publish {
            id: Some(id.into()),
            manifest: Some(manifest.clone().into()),
            stores: vec![access(store.path())],
        };
        let from_coordinator::Body::PublishReply(reply) =
            stage.call(from_manager::Body::Publish(publish)).await
        else {
            panic!("no reply")
        };
        let failure = reply.failure.unwrap();
        assert_eq!(failure.code, "sealed_bytes_gone", "{failure:?}");
        assert!(failure.message.contains("out/first.txt"), "{failure:?}");
        assert_eq!(std::fs::read_to_string(store.path().join("out/second.txt")).unwrap(), "sealed");
    }
}

// With Docker.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_goes_all_the_way_and_fast() {
    let Some((docker, image)) = docker("TELECINE_NOOP_IMAGE").await else { return };
    let stage = Stage::new(Some(docker.clone())).await;
    let spec = launch(&json!({"plain": {"image": image}}));
    let mut fastest = Duration::MAX;
    for round in 0..4 {
        let began = Instant::now();
        assert!(stage.assign(attempt(), &spec).await.accepted);
        let published = || stage.manager.book.events().iter().filter(|event| *event == "published").count();
        eventually("published", || published() > round).await;
        fastest = fastest.min(began.elapsed());
        stage.until_clean().await;
    }
    #[expect(clippy::print_stdout, reason = "a measurement for people")]
    {
        println!("assign to published: {fastest:?}");
    }
    let ours = docker.ours(&InstanceProfile::deserialize_id(&stage)).await.unwrap();
    assert_eq!(ours, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_of_a_killed_worker_is_removed_before_the_report() {
    let Some((docker, image)) = docker("TELECINE_PROBE_IMAGE").await else { return };
    let stage = Stage::new(Some(docker.clone())).await;
    let store = tempfile::tempdir().unwrap();
    stage.manager.book.policy(|policy| policy.stores = vec![access(store.path())]);
    let arguments = [
        "sh",
        "-c",
        "echo x > {output.result}; echo ready; while :; do echo y >> {output.result}; sleep 0.2; done",
    ];
    let spec = with_output(launch(&json!({"plain": {"image": image, "arguments": arguments}})));
    assert!(stage.assign(attempt(), &spec).await.accepted);
    stage.manager.book.until("phase running").await;
    let instance = InstanceProfile::deserialize_id(&stage);
    assert_eq!(docker.ours(&instance).await.unwrap().len(), 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    kill_workers(&stage);
    stage.manager.book.until("worker gone").await;
    assert_eq!(docker.ours(&instance).await.unwrap(), Vec::<String>::new());
    stage.until_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_writes_through_the_mount() {
    let Some((docker, image)) = docker("TELECINE_PROBE_IMAGE").await else { return };
    if !can_mount() {
        return;
    }
    let stage = Stage::new(Some(docker)).await;
    let store = tempfile::tempdir().unwrap();
    stage.manager.book.policy(|policy| policy.stores = vec![access(store.path())]);
    let arguments = [
        "sh",
        "-c",
        "id -u > {output.result}; env | grep -i -E 'key|token|secret' ; echo telecine-progress: 900000",
    ];
    let spec = with_output(launch(&json!({"plain": {"image": image, "arguments": arguments}})));
    assert!(stage.assign(attempt(), &spec).await.accepted);
    stage.manager.book.until("published").await;
    assert_eq!(std::fs::read_to_string(store.path().join("out/result.txt")).unwrap(), "65534\n");
    stage.until_clean().await;
    assert_eq!(stage.manager.book.log_text(), "");
}

/// A job of the engine that ships: its input made by the ffmpeg of this machine.
async fn transform(seconds: u32, processing: &Value) -> Option<(Stage, tempfile::TempDir, AttemptId)> {
    let (docker, image) = docker("TELECINE_TRANSFORM_IMAGE").await?;
    if !can_mount() || !telecine_test_support::has_program("ffmpeg") {
        return None;
    }
    let store = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("ffmpeg")
        .args(["-v", "error", "-y", "-f", "lavfi", "-i", &format!("testsrc=d={seconds}:s=320x180:r=25")])
        .args(["-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "ultrafast"])
        .arg(store.path().join("clip.mp4"))
        .status();
    assert!(made.is_ok_and(|status| status.success()), "ffmpeg makes a clip");
    let dir = cap_std::fs::Dir::open_ambient_dir(store.path(), cap_std::ambient_authority()).unwrap();
    let metadata = dir.metadata("clip.mp4").unwrap();
    let location = |key: &str| json!({"store": STORE, "key": key});
    let mut spec = launch(&json!({"grpc": {"image": image}}));
    spec["composition"] = json!({
        "inputs": {"source": location("clip.mp4")},
        "processing": processing,
        "outputs": {"result": location("out/clip.mkv")},
    });
    spec["inputs"] = json!({"source": {
        "location": location("clip.mp4"),
        "version": {"etag": telecine_mount::folder_etag(&metadata), "size_bytes": metadata.len()},
    }});
    let stage = Stage::new(Some(docker)).await;
    stage.manager.book.policy(|policy| (policy.stores, policy.watched) = (vec![access(store.path())], true));
    let id = attempt();
    let resources = Resources { cpu_milli: 900, memory_bytes: 512 << 20, ..Resources::ZERO };
    let assign = Assign {
        id: Some(id.into()),
        account_id: AccountId::PLATFORM.to_string(),
        spec_json: spec.to_string().into_bytes(),
        resources: Some(resources.into()),
        lease_millis: 60_000,
    };
    let reply = stage.call(from_manager::Body::Assign(assign)).await;
    assert!(matches!(&reply, from_coordinator::Body::AssignReply(reply) if reply.accepted), "{reply:?}");
    Some((stage, store, id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_that_ships_makes_a_rendition() {
    let processing =
        json!({"video": {"codec": "h264", "width": 160, "preset": "ultrafast"}, "container": "mkv"});
    let Some((stage, store, _)) = transform(4, &processing).await else { return };
    stage.manager.book.until("published").await;
    let made = std::fs::metadata(store.path().join("out/clip.mkv")).unwrap();
    assert!(made.len() > 1000);
    stage.until_clean().await;
    let events = stage.manager.book.events();
    assert!(events.iter().any(|event| event.starts_with("progress Some(")), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_that_ships_stops_when_asked_and_leaves_nothing() {
    let processing =
        json!({"video": {"codec": "h264", "width": 1920, "preset": "veryslow"}, "container": "mkv"});
    let Some((stage, store, id)) = transform(120, &processing).await else { return };
    stage.manager.book.until("progress").await;
    let asked = Instant::now();
    let stop = StopAttempt { id: Some(id.into()), grace_millis: 10_000, reason: "a test".into() };
    stage.call(from_manager::Body::StopAttempt(stop)).await;
    assert_eq!(stage.manager.book.until("ended").await, "ended as asked");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    stage.until_clean().await;
    assert_eq!(std::fs::read_dir(store.path()).unwrap().count(), 1, "only the input is there");
}
