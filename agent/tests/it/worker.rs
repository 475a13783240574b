//! A whole worker in this process, against a scripted manager. The coordinator's part (relaying the request for a
//! certificate) is played by the test.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use telecine_agent::clock::Clock;
use telecine_agent::control::{self, FromWorker, ToWorker};
use telecine_agent::folder::{Assignment, AttemptFolder, AttemptResult, Outcome, Surroundings};
use telecine_agent::runtime::{ContainerRuntime, Process, Runtimes};
use telecine_agent::worker::{self, FuseMounts, WorkerParts};
use telecine_domain::attempt::AttemptId;
use telecine_domain::id::{AccountId, AttemptNumber, Epoch, JobId};
use telecine_domain::instance::RuntimeKind;
use telecine_domain::resources::Resources;
use telecine_domain::time::Timestamp;
use telecine_proto::net::{MemoryNetwork, Network};
use telecine_proto::types::v1::StoreAccess;
use telecine_proto::worker::v1 as wire;
use telecine_test_support::s3;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::fake::Fake;
use crate::manager::{Manager, Policy, region};
use crate::support::{can_mount, instance, random};

const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const STORE: &str = "sto_00000000000000000000000001";

fn simulated() -> Clock {
    telecine_proto::clock::Clock::simulated(START).into()
}

struct Stage {
    _scratch: tempfile::TempDir,
    network: MemoryNetwork,
    manager: Manager,
    clock: Clock,
    folder: AttemptFolder,
    device: Option<OwnedFd>,
    /// The way from the coordinator to the worker.
    orders: Option<mpsc::Sender<ToWorker>>,
}

impl Stage {
    /// A command job; `change` edits its specification.
    async fn new(clock: Clock, change: impl FnOnce(&mut serde_json::Value)) -> Self {
        let network = MemoryNetwork::default();
        let manager = Manager::start(&network, clock.wall()).await;
        let scratch = tempfile::tempdir().unwrap();
        let mut spec = json!({
            "service": "transform",
            "engine": {"version": "1.0.0", "launch": {"command": {"program": "/bin/sh"}}},
            "composition": {"inputs": {}, "outputs": {}},
            "inputs": {},
            "region": "local",
            "resources": {"cpu_milli": 100},
            "priority": 500,
            "origin": "api"
        });
        change(&mut spec);
        let spec: telecine_domain::job::JobSpec = serde_json::from_value(spec).unwrap();
        let mounted = !spec.composition.inputs.is_empty() || !spec.composition.outputs.is_empty();
        let assignment = Assignment {
            attempt: AttemptId {
                job: JobId::new(START, random()),
                attempt: AttemptNumber(1),
                epoch: Epoch(1),
            },
            account: AccountId::PLATFORM,
            spec,
            resources: Resources { cpu_milli: 100, ..Resources::ZERO },
            gpus: Vec::new(),
            lease_millis: 60_000,
            accepted_at: clock.now(),
            trace: None,
            mounted,
            surroundings: Surroundings {
                instance: instance(),
                region: region(),
                managers: vec!["127.0.0.1:1".to_owned(), manager.address.clone()],
                ca_pem: manager.book.authority.certificate_pem().to_owned(),
                docker_socket: "/var/run/docker.sock".into(),
                docker_version: None,
                engine_user: (65534, 65534),
                pids_limit: 64,
                cache_bytes: 16 << 20,
                spill_bytes: 16 << 20,
                pulls_folder: scratch.path().to_owned(),
                json_logs: false,
            },
        };
        let folder = AttemptFolder::create(scratch.path(), &assignment).unwrap();
        Self { _scratch: scratch, network, manager, clock, folder, device: None, orders: None }
    }

    fn attempts(&self) -> PathBuf {
        self.folder.path().parent().unwrap().to_owned()
    }

    async fn interrupt(&self, grace: Duration) {
        let grace_millis = u32::try_from(grace.as_millis()).unwrap();
        let order = ToWorker::Interrupt { grace_millis, reason: "the provider takes it away".into() };
        self.orders.as_ref().unwrap().send(order).await.unwrap();
    }

    fn begin(&mut self, runtime: Arc<dyn ContainerRuntime>) -> JoinHandle<Outcome> {
        let (mut coordinator, control) = control::pair();
        self.orders = Some(coordinator.outgoing.clone());
        let book = self.manager.book.clone();
        let attempt = self.folder.assignment().unwrap().unwrap().attempt;
        let parts = WorkerParts {
            folder: self.folder.clone(),
            lock: self.folder.try_lock().unwrap().expect("nobody else works here"),
            device: self.device.take(),
            network: Arc::new(self.network.clone()) as Arc<dyn Network>,
            runtimes: Runtimes::from([(runtime.kind(), runtime)]),
            mounts: Arc::new(FuseMounts),
            clock: self.clock,
            control,
        };
        tokio::spawn(async move {
            let relaying = async {
                while let Some(FromWorker::Sign(request)) = coordinator.incoming.recv().await {
                    let chain = book.sign_worker(&hex::decode(request).unwrap(), attempt);
                    let chain = chain.iter().map(hex::encode).collect();
                    coordinator.outgoing.send(ToWorker::Certificate(chain)).await.unwrap();
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                outcome = worker::run(parts) => outcome.unwrap(),
                () = relaying => unreachable!("relays for ever"),
            }
        })
    }

    fn result(&self) -> AttemptResult {
        self.folder.result().unwrap().expect("a result was recorded")
    }

    async fn stop(&self, grace: Duration) {
        let caller = self.manager.book.worker.borrow().clone().expect("attached");
        let stop =
            wire::Stop { grace_millis: u32::try_from(grace.as_millis()).unwrap(), reason: "a test".into() };
        let body = Some(wire::from_manager::Body::Stop(stop));
        let message = wire::FromManager { call_id: 0, trace: None, term: 3, body };
        let answer = caller.call(message, Duration::from_secs(5)).await.unwrap();
        assert!(matches!(answer.body, Some(wire::from_worker::Body::Stopping(_))));
    }
}

fn fake(polite: bool) -> Arc<Fake> {
    Arc::new(Fake::new(RuntimeKind::Process, polite))
}

async fn started(fake: &Fake) {
    while !fake.words().contains(&"start".to_owned()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_without_media_goes_all_the_way() {
    let mut stage = Stage::new(simulated(), |_| ()).await;
    let engine = fake(true);
    let worker = stage.begin(engine.clone());
    started(&engine).await;
    engine.print("telecine-progress: 500000\nhello\n").await;
    engine.exit(0);
    assert_eq!(worker.await.unwrap(), Outcome::Published);
    let events = stage.manager.book.events();
    let position = |prefix: &str| events.iter().position(|event| event.starts_with(prefix));
    assert!(position("hello leased") < position("phase running"), "{events:?}");
    assert!(
        position("phase running").is_some() && position("phase running") < position("seal []"),
        "{events:?}"
    );
    assert!(position("seal []") < position("published"), "{events:?}");
    assert!(position("progress Some(500000)").is_some(), "{events:?}");
    assert_eq!(position("phase mounting"), None);
    assert_eq!(stage.manager.book.log_text(), "hello\n");
    assert_eq!(engine.words(), ["create", "start", "remove"]);
    let result = stage.result();
    assert!(result.acknowledged && result.clean);
}

#[tokio::test(start_paused = true)]
async fn a_failing_engine_is_reported_with_its_last_words() {
    let mut stage = Stage::new(simulated(), |_| ()).await;
    let engine = fake(true);
    let worker = stage.begin(engine.clone());
    started(&engine).await;
    engine.print("cannot open\n").await;
    engine.exit(3);
    assert!(matches!(worker.await.unwrap(), Outcome::Failed(failure) if failure.exit_code == Some(3)));
    let ended = stage.manager.book.until("ended").await;
    assert!(ended.contains("engine_exit") && ended.contains("cannot open"), "{ended}");
    assert!(!stage.manager.book.events().iter().any(|event| event.starts_with("seal")));
}

#[tokio::test(start_paused = true)]
async fn a_refused_grant_publishes_nothing() {
    let mut stage = Stage::new(simulated(), |_| ()).await;
    stage.manager.book.policy(|policy| policy.refuse_seal = Some("stale"));
    let engine = fake(true);
    let worker = stage.begin(engine.clone());
    started(&engine).await;
    engine.exit(0);
    assert_eq!(worker.await.unwrap(), Outcome::Fenced);
    let events = stage.manager.book.events();
    assert!(
        !events.iter().any(|event| event.starts_with("published") || event.starts_with("ended")),
        "{events:?}"
    );
    assert!(stage.result().clean);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_renews_ends_the_engine() {
    let mut stage = Stage::new(simulated(), |_| ()).await;
    stage
        .manager
        .book
        .policy(|policy| *policy = Policy { lease_millis: 20_000, renew_millis: 4_000, ..Policy::default() });
    let engine = fake(false);
    let worker = stage.begin(engine.clone());
    started(&engine).await;
    stage.manager.book.until("phase running").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!worker.is_finished(), "renewals keep it alive");
    let silent = tokio::time::Instant::now();
    stage.manager.book.policy(|policy| (policy.renews, policy.welcomes) = (false, false));
    assert_eq!(worker.await.unwrap(), Outcome::Fenced);
    let killed = engine.when("Kill").duration_since(silent);
    assert!(!engine.words().contains(&"Terminate".to_owned()), "a lost right leaves no time for manners");
    assert!((Duration::from_secs(16)..=Duration::from_millis(20_500)).contains(&killed), "{killed:?}");
    let events = stage.manager.book.events();
    assert!(
        !events.iter().any(|event| event.starts_with("seal") || event.starts_with("ended")),
        "{events:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_is_gone_ends_the_engine_exactly_one_lease_after_the_last_renewal() {
    let mut stage = Stage::new(simulated(), |_| ()).await;
    stage
        .manager
        .book
        .policy(|policy| *policy = Policy { lease_millis: 30_000, renew_millis: 5_000, ..Policy::default() });
    let engine = fake(false);
    let worker = stage.begin(engine.clone());
    started(&engine).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(!worker.is_finished(), "renewals keep it alive");
    let gone = tokio::time::Instant::now();
    let network = std::mem::take(&mut stage.network);
    let other = Manager::start(&network, stage.clock.wall()).await;
    let gone_manager = std::mem::replace(&mut stage.manager, other);
    gone_manager.book.cut();
    drop(gone_manager);
    assert_eq!(worker.await.unwrap(), Outcome::Fenced);
    let after = engine.when("Kill").duration_since(gone);
    assert!((Duration::from_secs(24)..=Duration::from_secs(31)).contains(&after), "{after:?}");
    let result = stage.result();
    assert_eq!(result.outcome, Outcome::Fenced);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_asks_waits_and_kills() {
    let mut stage = Stage::new(simulated(), |_| ()).await;
    let engine = fake(false);
    let worker = stage.begin(engine.clone());
    started(&engine).await;
    stage.manager.book.until("phase running").await;
    let asked = tokio::time::Instant::now();
    stage.stop(Duration::from_secs(7)).await;
    assert_eq!(worker.await.unwrap(), Outcome::Stopped);
    assert!(engine.when("Terminate").duration_since(asked) < Duration::from_secs(1));
    assert!(engine.when("Kill").duration_since(asked) >= Duration::from_secs(7));
    assert_eq!(stage.manager.book.until("ended").await, "ended as asked");
}

#[tokio::test(start_paused = true)]
async fn an_interruption_asks_waits_no_longer_than_there_is_and_is_told_as_one() {
    let mut stage = Stage::new(simulated(), |_| ()).await;
    let engine = fake(false);
    let worker = stage.begin(engine.clone());
    started(&engine).await;
    stage.manager.book.until("phase running").await;
    let asked = tokio::time::Instant::now();
    stage.interrupt(Duration::from_secs(4)).await;
    let outcome = worker.await.unwrap();
    assert!(
        matches!(&outcome, Outcome::Interrupted(failure) if failure.code == "interrupted"),
        "{outcome:?}"
    );
    assert!(engine.when("Terminate").duration_since(asked) < Duration::from_secs(1));
    assert_eq!(engine.when("Kill").duration_since(asked).as_secs(), 4);
    let told = stage.manager.book.until("interrupted").await;
    assert!(told.starts_with("interrupted interrupted the provider takes it away"), "{told}");
    assert_eq!(stage.result().outcome, outcome);
}

#[tokio::test(start_paused = true)]
async fn what_is_about_to_be_granted_is_not_interrupted() {
    let mut stage = Stage::new(simulated(), |_| ()).await;
    let engine = fake(true);
    let worker = stage.begin(engine.clone());
    started(&engine).await;
    stage.manager.book.until("phase running").await;
    stage.manager.book.policy(|policy| policy.answers = false);
    engine.exit(0);
    stage.manager.book.until("seal").await;
    stage.interrupt(Duration::from_secs(1)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    stage.manager.book.policy(|policy| policy.answers = true);
    assert_eq!(worker.await.unwrap(), Outcome::Published, "the answer to the question decides");
}

#[tokio::test(start_paused = true)]
async fn a_polite_engine_is_not_killed() {
    let mut stage = Stage::new(simulated(), |_| ()).await;
    let engine = fake(true);
    let worker = stage.begin(engine.clone());
    started(&engine).await;
    stage.manager.book.until("phase running").await;
    stage.stop(Duration::from_secs(60)).await;
    assert_eq!(worker.await.unwrap(), Outcome::Stopped);
    assert!(!engine.words().contains(&"Kill".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn limits_in_time_are_enforced() {
    for (field, code) in [("attempt_seconds", "attempt_timeout"), ("no_progress_seconds", "no_progress")] {
        let mut stage = Stage::new(simulated(), |spec| spec["timeouts"] = json!({ field: 40 })).await;
        let engine = fake(false);
        let worker = stage.begin(engine.clone());
        started(&engine).await;
        let began = tokio::time::Instant::now();
        for i in 0..3 {
            engine.print(&format!("telecine-progress: {i}\n")).await;
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        let outcome = worker.await.unwrap();
        assert!(matches!(&outcome, Outcome::Failed(failure) if failure.code == code), "{outcome:?}");
        let asked = engine.when("Terminate").duration_since(began).as_secs();
        let expected = if code == "no_progress" { 60..=62 } else { 39..=41 };
        assert!(expected.contains(&asked), "{code}: {asked}");
        assert_eq!(
            engine.when("Kill").duration_since(began).as_secs(),
            asked + 10,
            "the grace period passes"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_loses_nothing() {
    let mut stage = Stage::new(simulated(), |_| ()).await;
    let engine = fake(true);
    let worker = stage.begin(engine.clone());
    started(&engine).await;
    for round in 0..5 {
        engine.print(&format!("line {round}\n")).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        stage.manager.book.cut();
        engine.print(&format!("away {round}\n")).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    engine.exit(0);
    assert_eq!(worker.await.unwrap(), Outcome::Published);
    let expected: String = (0..5).map(|round| format!("line {round}\naway {round}\n")).collect();
    assert_eq!(stage.manager.book.log_text(), expected);
    let hellos = stage.manager.book.events().iter().filter(|event| event.starts_with("hello")).count();
    assert!(hellos >= 6, "{hellos}");
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_question_for_the_grant_leaves_everything_to_the_manager() {
    let mut stage = Stage::new(simulated(), |_| ()).await;
    stage.manager.book.policy(|policy| *policy = Policy { lease_millis: 20_000, ..Policy::default() });
    let engine = fake(true);
    let worker = stage.begin(engine.clone());
    started(&engine).await;
    stage.manager.book.until("phase running").await;
    stage
        .manager
        .book
        .policy(|policy| (policy.answers, policy.renews, policy.welcomes) = (false, false, false));
    engine.exit(0);
    assert_eq!(worker.await.unwrap(), Outcome::Fenced);
    let result = stage.result();
    assert!(!result.acknowledged && !result.clean, "the answer may have been yes: {result:?}");
}

#[tokio::test(start_paused = true)]
async fn an_absent_image_is_pulled_and_seen() {
    let image = format!("127.0.0.1:5000/a@sha256:{}", "0".repeat(64));
    let mut stage =
        Stage::new(simulated(), |spec| spec["engine"]["launch"] = json!({"plain": {"image": image}})).await;
    stage.manager.book.policy(|policy| policy.watched = true);
    let engine = Arc::new(Fake::new(RuntimeKind::Docker, true));
    *engine.image_absent.lock().unwrap() = true;
    let worker = stage.begin(engine.clone());
    started(&engine).await;
    engine.exit(0);
    assert_eq!(worker.await.unwrap(), Outcome::Published);
    assert_eq!(engine.words(), ["create", "create", "pull", "create", "start", "remove"]);
    let events = stage.manager.book.events();
    assert!(events.contains(&"phase pulling".to_owned()), "{events:?}");
    assert!(events.iter().any(|event| event.contains("pulling")), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_brings_nothing_ends_the_attempt_at_the_first_limit() {
    let image = format!("127.0.0.1:5000/a@sha256:{}", "0".repeat(64));
    for (attempt_seconds, code, after) in [(40, "attempt_timeout", 40), (600, "registry_unreachable", 120)] {
        let mut stage = Stage::new(simulated(), |spec| {
            spec["engine"]["launch"] = json!({"plain": {"image": image}});
            spec["timeouts"] = json!({"attempt_seconds": attempt_seconds});
        })
        .await;
        let engine = Arc::new(Fake::new(RuntimeKind::Docker, true));
        *engine.image_absent.lock().unwrap() = true;
        *engine.registry_silent.lock().unwrap() = true;
        let began = tokio::time::Instant::now();
        let outcome = stage.begin(engine.clone()).await.unwrap();
        let Outcome::Failed(failure) = &outcome else { panic!("{outcome:?}") };
        assert_eq!(failure.code, code);
        let took = began.elapsed().as_secs();
        assert!((after..after + 15).contains(&took), "{took} s");
        assert_eq!(engine.words(), ["create", "create", "pull", "remove"], "nothing is made after the end");
        assert!(stage.manager.book.until("ended").await.contains(code));
    }
}

// With a real mount and real processes.

async fn media(script: &str) -> Option<(Stage, tempfile::TempDir)> {
    if !can_mount() {
        return None;
    }
    let store = tempfile::tempdir().unwrap();
    std::fs::create_dir(store.path().join("in")).unwrap();
    let source = store.path().join("in/a clip.mov");
    std::fs::write(&source, vec![7u8; 300_000]).unwrap();
    let dir = cap_std::fs::Dir::open_ambient_dir(store.path(), cap_std::ambient_authority()).unwrap();
    let etag = telecine_mount::folder_etag(&dir.metadata("in/a clip.mov").unwrap());
    let mut stage = Stage::new(telecine_proto::clock::Clock::System.into(), |spec| {
        let location = |key: &str| json!({"store": STORE, "key": key});
        spec["engine"]["launch"]["command"]["arguments"] = json!(["-c", script]);
        spec["composition"] = json!({
            "inputs": {"source": location("in/a clip.mov")},
            "outputs": {"result": location("out/new/a clip.mp4")},
        });
        spec["inputs"] = json!({"source": {
            "location": location("in/a clip.mov"),
            "version": {"etag": etag, "size_bytes": 300_000},
        }});
    })
    .await;
    let provider = json!({"provider": "local", "folder": store.path()});
    stage.manager.book.policy(|policy| {
        policy.stores = vec![StoreAccess {
            store_id: STORE.into(),
            provider_json: provider.to_string().into_bytes(),
            secret_json: Vec::new(),
            expires_at_millis: 0,
        }];
    });
    stage.device = Some(telecine_mount::open_device_and_mount(&stage.folder.mountpoint()).unwrap());
    Some((stage, store))
}

fn files(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

async fn run_media(stage: &mut Stage) -> Outcome {
    let runtime = Arc::new(Process::new(&stage.attempts()));
    let outcome = tokio::time::timeout(Duration::from_secs(60), stage.begin(runtime)).await.unwrap().unwrap();
    telecine_mount::unmount(&stage.folder.mountpoint()).unwrap();
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn media_is_read_made_and_published() {
    let script = "cat \"{input.source}\" \"{input.source}\" > \"{output.result}\"; echo extra > \"$(dirname \"{output.result}\")/left\"";
    let Some((mut stage, store)) = media(script).await else { return };
    let outcome = run_media(&mut stage).await;
    assert_eq!(outcome, Outcome::Published, "{:?}", stage.manager.book.events());
    assert_eq!(std::fs::read(store.path().join("out/new/a clip.mp4")).unwrap(), vec![7u8; 600_000]);
    assert_eq!(files(store.path()), ["a clip.mov", "a clip.mp4"]);
    let events = stage.manager.book.events();
    let position = |prefix: &str| {
        events
            .iter()
            .position(|event| event.starts_with(prefix))
            .unwrap_or_else(|| panic!("{prefix} {events:?}"))
    };
    assert!(position("phase mounting") < position("phase running"));
    assert!(position("phase flushing") < position("published"));
    let result = stage.result();
    assert!(result.acknowledged && result.clean);
    assert_eq!(result.counters.mount_bytes_written, 600_006);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_epoch_leaves_no_trace_in_the_store() {
    let Some((mut stage, store)) = media("cat \"{input.source}\" > \"{output.result}\"").await else {
        return;
    };
    stage.manager.book.policy(|policy| policy.refuse_seal = Some("stale"));
    assert_eq!(run_media(&mut stage).await, Outcome::Fenced);
    assert_eq!(files(store.path()), ["a clip.mov"]);
    assert!(stage.result().clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_succeeds_without_its_output_has_failed() {
    let Some((mut stage, store)) = media("exit 0").await else { return };
    let outcome = run_media(&mut stage).await;
    assert!(matches!(&outcome, Outcome::Failed(failure) if failure.code == "output_missing"), "{outcome:?}");
    assert_eq!(files(store.path()), ["a clip.mov"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_input_that_has_changed_is_named() {
    let Some((mut stage, store)) = media("cat \"{input.source}\" > \"{output.result}\"").await else {
        return;
    };
    std::fs::write(store.path().join("in/a clip.mov"), "another take").unwrap();
    let outcome = run_media(&mut stage).await;
    let Outcome::Failed(failure) = &outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.code, "input_changed", "{failure:?}");
    assert!(failure.message.contains("in/a clip.mov"));
    assert_eq!(files(store.path()), ["a clip.mov"]);
}

/// What the manager hands out for the bucket: keys that end in `life`, or never.
fn bucket_access(url: &str, secret: &str, life: Option<Duration>) -> StoreAccess {
    let provider = json!({"provider": "s3", "bucket": "media", "endpoint": url, "allow_http": true});
    let secret = json!({"s3_keys": {"access_key_id": s3::ACCESS_KEY, "secret_access_key": secret}});
    let ends_at = life.map(|life| Clock::default().now().after(life).as_millis());
    StoreAccess {
        store_id: STORE.into(),
        provider_json: provider.to_string().into_bytes(),
        secret_json: secret.to_string().into_bytes(),
        expires_at_millis: ends_at.unwrap_or(0),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_end_are_renewed_under_a_running_engine() {
    if !can_mount() {
        return;
    }
    let service = s3::Service::start(s3::Behaviour::default()).await;
    service.insert("in.mov", &[7; 300_000]);
    let first = bucket_access(&service.url(), s3::SECRET_KEY, Some(Duration::from_secs(4)));
    let provider = serde_json::from_slice(&first.provider_json).unwrap();
    let secret = serde_json::from_slice(&first.secret_json).unwrap();
    let store = telecine_stores::open(&provider, &secret).unwrap();
    let version = store.head(&"in.mov".parse().unwrap()).await.unwrap().unwrap();
    let flags = tempfile::tempdir().unwrap();
    let flag = flags.path().join("read-now");
    let mut stage = Stage::new(telecine_proto::clock::Clock::System.into(), |spec| {
        let location = |key: &str| json!({"store": STORE, "key": key});
        let waits = format!("until [ -e {} ]; do sleep 0.05; done; ", flag.display());
        let script = waits + "cat \"{input.source}\" > \"{output.result}\"";
        spec["engine"]["launch"]["command"]["arguments"] = json!(["-c", script]);
        spec["composition"] =
            json!({"inputs": {"source": location("in.mov")}, "outputs": {"result": location("out.mov")}});
        spec["inputs"] = json!({"source": {"location": location("in.mov"), "version": version}});
    })
    .await;
    stage.manager.book.policy(|policy| policy.stores = vec![first]);
    stage.device = Some(telecine_mount::open_device_and_mount(&stage.folder.mountpoint()).unwrap());
    let worker = stage.begin(Arc::new(Process::new(&stage.attempts())));
    stage.manager.book.until("phase running").await;
    let second = bucket_access(&service.url(), "another-secret", None);
    stage.manager.book.policy(|policy| policy.stores = vec![second]);
    // Asked again well before the four seconds are over; only then the service forgets the first keys.
    let renewed = async {
        while stage.manager.book.events().iter().filter(|event| *event == "open stores").count() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), renewed).await.expect("the worker asks again");
    tokio::time::sleep(Duration::from_millis(500)).await;
    service.rotate("another-secret");
    std::fs::write(&flag, "").unwrap();
    let outcome = tokio::time::timeout(Duration::from_secs(60), worker).await.unwrap().unwrap();
    telecine_mount::unmount(&stage.folder.mountpoint()).unwrap();
    assert_eq!(outcome, Outcome::Published, "{:?}", stage.manager.book.events());
    assert_eq!(service.object("out.mov").unwrap(), vec![7; 300_000]);
    let asked = stage.manager.book.events().iter().filter(|event| *event == "open stores").count();
    assert_eq!(asked, 2, "keys that do not end are not asked for again");
}
