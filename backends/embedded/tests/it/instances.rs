//! Local agents: real processes, found again, started again, ended for certain.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use rustix::process::{Pid, Signal, getsid, kill_process};
use telecine_core::contract::instances_contract;
use telecine_core::ports::instances::{Instances, InstancesError};
use telecine_domain::id::{InstanceId, PoolName};
use telecine_domain::time::Timestamp;
use telecine_embedded::{AgentCommand, Embedded, EmbeddedConfig, LocalPool, NewAgent, Provisioner};

use crate::opening::config as plain_config;

/// An agent that ends when it is asked to.
const GOOD: &str = "trap 'exit 0' TERM\necho \"$$\" > pid\nwhile :; do sleep 0.2; done\n";
/// One that does not.
const STUBBORN: &str = "trap '' TERM\necho \"$$\" > pid\nwhile :; do sleep 0.2; done\n";

struct Config {
    refusals: AtomicU32,
    manager: &'static str,
    /// What was cleared up after, in order.
    cleared: Mutex<Vec<InstanceId>>,
}

impl Config {
    fn new(refusals: u32, manager: &'static str) -> Self {
        Self { refusals: refusals.into(), manager, cleared: Mutex::default() }
    }
}

fn local_pool(boot: Duration) -> LocalPool {
    LocalPool { name: pool(), most: 3, capacity: 3, boot, program: None }
}

#[async_trait]
impl Provisioner for Config {
    async fn provision(&self, agent: &NewAgent) -> Result<String, String> {
        let left = self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(_) => Err("no token just now".to_owned()),
            Err(_) => {
                Ok(format!("instance_id = \"{}\"\nmanagers = [\"{}\"]\n", agent.instance, self.manager))
            }
        }
    }

    async fn clear(&self, agent: &NewAgent) -> Result<(), String> {
        self.cleared.lock().unwrap().push(agent.instance);
        match std::fs::read_to_string(agent.folder.join("worker")) {
            Ok(worker) if is_alive(worker.trim().parse().unwrap()) => {
                kill_process(Pid::from_raw(worker.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
                Err("its worker was alive".to_owned())
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

fn pool() -> PoolName {
    "default".parse().unwrap()
}

fn config(folder: &Path, script: &str, refusals: u32, drain_limit: Duration) -> EmbeddedConfig {
    // A data folder with a foreign file in it must be closed to others.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    let program = folder.join("agent.sh");
    std::fs::write(&program, script).unwrap();
    EmbeddedConfig {
        pools: vec![local_pool(Duration::ZERO)],
        agent: AgentCommand {
            program: "/bin/sh".into(),
            arguments: vec![program.to_str().unwrap().to_owned()],
        },
        provisioner: Arc::new(Config::new(refusals, "here")),
        drain_limit,
        ..plain_config(folder)
    }
}

const LONG: Duration = Duration::from_secs(600);
/// A machine that is busy with other things may starve an agent for a while; no test takes this long otherwise.
const PATIENCE: Duration = Duration::from_secs(120);

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn running(embedded: &Embedded) -> Vec<InstanceId> {
    let status = embedded.instances.status(&pool()).await.unwrap();
    status.instances.into_iter().filter(|one| one.running).map(|one| one.id).collect()
}

fn folder_of(data: &Path, instance: InstanceId) -> PathBuf {
    data.join("agents").join(instance.to_string())
}

fn pid_of(data: &Path, instance: InstanceId) -> Option<i32> {
    std::fs::read_to_string(folder_of(data, instance).join("pid")).ok()?.trim().parse().ok()
}

async fn started(embedded: &Embedded, data: &Path) -> (InstanceId, i32) {
    until("the agent runs", async || match running(embedded).await.first() {
        Some(&instance) => pid_of(data, instance).is_some(),
        None => false,
    })
    .await;
    let instance = running(embedded).await[0];
    (instance, pid_of(data, instance).unwrap())
}

fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(config(folder.path(), GOOD, 0, LONG)).await.unwrap();
    instances_contract(async || embedded.instances.clone() as Arc<dyn Instances>).await;
    embedded.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_outlives_its_starter_and_is_adopted() {
    let folder = tempfile::tempdir().unwrap();
    let first = Embedded::open(config(folder.path(), GOOD, 0, LONG)).await.unwrap();
    first.instances.launch(&pool(), 1).await.unwrap();
    let (instance, pid) = started(&first, folder.path()).await;
    let raw = Pid::from_raw(pid).unwrap();
    assert_eq!(getsid(Some(raw)).unwrap(), raw, "it has a session of its own");
    first.close().await;
    drop(first);
    assert!(is_alive(pid));

    let second = Embedded::open(config(folder.path(), GOOD, 0, LONG)).await.unwrap();
    assert_eq!(running(&second).await, [instance]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(pid_of(folder.path(), instance), Some(pid), "it was not started a second time");
    second.instances.retire(&pool(), instance).await.unwrap();
    until("it ends", async || !is_alive(pid)).await;
    until("its folder goes", async || !folder_of(folder.path(), instance).exists()).await;
    assert!(second.instances.status(&pool()).await.unwrap().instances.is_empty());
    second.instances.retire(&pool(), instance).await.expect("one that is gone is no error");
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_agent_whose_manager_moved_leaves_its_workers_to_the_next() {
    // A worker has a session of its own; on SIGTERM the agent would end its worker too.
    const WITH_WORKER: &str = "if [ ! -e worker ]; then setsid sleep 300 & echo $! > worker; fi\n\
        trap 'kill $(cat worker); exit 0' TERM\ntrap 'echo left > left; exit 0' HUP\n\
        echo \"$$\" > pid\nwhile :; do sleep 0.2; done\n";
    let folder = tempfile::tempdir().unwrap();
    let first = Embedded::open(config(folder.path(), WITH_WORKER, 0, LONG)).await.unwrap();
    first.instances.launch(&pool(), 1).await.unwrap();
    let (instance, pid) = started(&first, folder.path()).await;
    first.close().await;
    drop(first);

    // The provisioner fails at first: it is asked again.
    let moved = Arc::new(Config::new(1, "there"));
    let second = EmbeddedConfig { provisioner: moved, ..config(folder.path(), WITH_WORKER, 0, LONG) };
    let second = Embedded::open(second).await.unwrap();
    until("the next agent runs", async || {
        pid_of(folder.path(), instance).is_some_and(|next| next != pid && is_alive(next))
    })
    .await;
    assert!(!is_alive(pid), "never two at a time");
    assert_eq!(running(&second).await, [instance]);
    let own = folder_of(folder.path(), instance);
    assert!(std::fs::read_to_string(own.join("agent.toml")).unwrap().contains("there"));
    assert!(own.join("left").exists(), "it was asked to leave, not to drain");
    let worker: i32 = std::fs::read_to_string(own.join("worker")).unwrap().trim().parse().unwrap();
    assert!(is_alive(worker));
    let next = pid_of(folder.path(), instance).unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(pid_of(folder.path(), instance), Some(next), "once");
    assert_eq!(second.instances.drain_all(PATIENCE).await, 0);
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unrecorded_start_is_found_by_its_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let first = Embedded::open(config(folder.path(), GOOD, 0, LONG)).await.unwrap();
    first.instances.launch(&pool(), 1).await.unwrap();
    let (instance, pid) = started(&first, folder.path()).await;
    first.close().await;
    drop(first);
    // As if the starter had died between the start and the record of it.
    let record = folder_of(folder.path(), instance).join("instance.json");
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    value["started"] = serde_json::Value::Null;
    std::fs::write(&record, value.to_string()).unwrap();

    let second = Embedded::open(config(folder.path(), GOOD, 0, LONG)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(pid_of(folder.path(), instance), Some(pid), "it was not started a second time");
    assert_eq!(second.instances.drain_all(PATIENCE).await, 0);
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_is_started_again_as_the_same_instance() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(config(folder.path(), GOOD, 0, LONG)).await.unwrap();
    embedded.instances.launch(&pool(), 1).await.unwrap();
    let (instance, pid) = started(&embedded, folder.path()).await;
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    until("it runs again", async || {
        pid_of(folder.path(), instance).is_some_and(|again| again != pid && is_alive(again))
    })
    .await;
    assert_eq!(running(&embedded).await, [instance]);
    let again = pid_of(folder.path(), instance).unwrap();
    embedded.instances.retire(&pool(), instance).await.unwrap();
    until("it ends", async || !is_alive(again)).await;
    embedded.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_agent_that_does_not_end_is_killed_also_by_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let limit = Duration::from_secs(1);
    let first = Embedded::open(config(folder.path(), STUBBORN, 0, LONG)).await.unwrap();
    first.instances.launch(&pool(), 1).await.unwrap();
    let (instance, pid) = started(&first, folder.path()).await;
    first.instances.retire(&pool(), instance).await.unwrap();
    assert!(running(&first).await.is_empty(), "a retired instance is going away");
    first.close().await;
    drop(first);
    assert!(is_alive(pid));
    let second = Embedded::open(config(folder.path(), STUBBORN, 0, limit)).await.unwrap();
    until("it is killed", async || !is_alive(pid)).await;
    until("its folder goes", async || !folder_of(folder.path(), instance).exists()).await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_gives_no_more_than_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(config(folder.path(), GOOD, 0, LONG)).await.unwrap();
    let error = embedded.instances.launch(&pool(), 4).await.unwrap_err();
    assert!(matches!(&error, InstancesError::NoCapacity { .. }), "{error}");
    assert!(embedded.instances.status(&pool()).await.unwrap().instances.is_empty());
    embedded.instances.launch(&pool(), 3).await.unwrap();
    assert_eq!(embedded.instances.status(&pool()).await.unwrap().instances.len(), 3);
    assert!(embedded.instances.launch(&pool(), 1).await.is_err());
    until("all run", async || running(&embedded).await.len() == 3).await;
    assert_eq!(embedded.instances.drain_all(PATIENCE).await, 0);
    embedded.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(config(folder.path(), GOOD, 1, LONG)).await.unwrap();
    embedded.instances.launch(&pool(), 1).await.unwrap();
    let status = embedded.instances.status(&pool()).await.unwrap();
    assert_eq!((status.instances.len(), status.instances[0].running), (1, false));
    let (instance, pid) = started(&embedded, folder.path()).await;
    embedded.instances.retire(&pool(), instance).await.unwrap();
    until("it ends", async || !is_alive(pid)).await;
    embedded.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_a_pool_that_is_gone_is_retired() {
    let folder = tempfile::tempdir().unwrap();
    let first = Embedded::open(config(folder.path(), GOOD, 0, LONG)).await.unwrap();
    first.instances.launch(&pool(), 1).await.unwrap();
    let (instance, pid) = started(&first, folder.path()).await;
    first.close().await;
    drop(first);
    let without = EmbeddedConfig { pools: Vec::new(), ..config(folder.path(), GOOD, 0, LONG) };
    let second = Embedded::open(without).await.unwrap();
    until("it ends", async || !is_alive(pid)).await;
    until("its folder goes", async || !folder_of(folder.path(), instance).exists()).await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_boots_as_long_as_its_pool_says_and_a_restart_does_not_begin_again() {
    const HOUR: Duration = Duration::from_secs(3600);
    let folder = tempfile::tempdir().unwrap();
    let booting = || EmbeddedConfig { pools: vec![local_pool(HOUR)], ..config(folder.path(), GOOD, 0, LONG) };
    let first = Embedded::open(booting()).await.unwrap();
    first.instances.launch(&pool(), 1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let status = first.instances.status(&pool()).await.unwrap();
    assert_eq!((status.instances.len(), status.instances[0].running), (1, false), "it boots");
    let instance = status.instances[0].id;
    first.close().await;
    drop(first);
    // As if the hour had passed.
    let record = folder_of(folder.path(), instance).join("instance.json");
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let launched = value["launched_at_millis"].as_u64().unwrap();
    value["launched_at_millis"] = (launched - 3_600_000).into();
    std::fs::write(&record, value.to_string()).unwrap();

    let second = Embedded::open(booting()).await.unwrap();
    let (same, pid) = started(&second, folder.path()).await;
    assert_eq!(same, instance);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    until("it runs again without another boot", async || {
        pid_of(folder.path(), instance).is_some_and(|again| again != pid && is_alive(again))
    })
    .await;
    assert_eq!(second.instances.drain_all(PATIENCE).await, 0);
    second.close().await;
}

/// One with a worker that outlives it.
const WITH_A_WORKER: &str = "setsid sleep 300 & echo $! > worker\ntrap 'exit 0' TERM\necho \"$$\" > pid\nwhile :; do sleep 0.2; done\n";

async fn gone(data: &Path, instance: InstanceId) {
    until("its folder goes", async || !folder_of(data, instance).exists()).await;
}

fn in_millis(millis: u64) -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_millis(u64::try_from(now.as_millis()).unwrap() + millis)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_taken_away_is_told_before_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(config(folder.path(), WITH_A_WORKER, 0, LONG)).await.unwrap();
    embedded.instances.launch(&pool(), 1).await.unwrap();
    let (instance, pid) = started(&embedded, folder.path()).await;
    let own = folder_of(folder.path(), instance);
    let worker: i32 = std::fs::read_to_string(own.join("worker")).unwrap().trim().parse().unwrap();
    let at = in_millis(2_500);
    embedded.instances.interrupt(&pool(), instance, in_millis(600_000)).await.unwrap();
    embedded.instances.interrupt(&pool(), instance, at).await.unwrap();
    embedded
        .instances
        .interrupt(&pool(), instance, in_millis(600_000))
        .await
        .expect("a later one changes nothing");
    let notice: serde_json::Value =
        serde_json::from_slice(&std::fs::read(own.join("notice.json")).unwrap()).unwrap();
    assert_eq!(notice, serde_json::json!({ "terminate_at": at }));
    assert_eq!(running(&embedded).await, [instance], "until then it runs");
    until("it is dead", async || !is_alive(pid)).await;
    assert!(in_millis(0) >= at, "not before the time");
    gone(folder.path(), instance).await;
    assert!(!is_alive(worker), "what it had started is dead, too");
    assert!(embedded.instances.status(&pool()).await.unwrap().instances.is_empty());
    let error = embedded.instances.interrupt(&pool(), instance, at).await.unwrap_err();
    assert!(matches!(error, InstancesError::NoSuchInstance { .. }), "{error}");
    let nowhere = embedded.instances.interrupt(&"other".parse().unwrap(), instance, at).await;
    assert!(matches!(nowhere, Err(InstancesError::NoSuchPool(_))));
    embedded.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_outlives_whoever_gave_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = Embedded::open(config(folder.path(), STUBBORN, 0, LONG)).await.unwrap();
    first.instances.launch(&pool(), 1).await.unwrap();
    let (instance, pid) = started(&first, folder.path()).await;
    first.instances.interrupt(&pool(), instance, in_millis(1_500)).await.unwrap();
    first.close().await;
    drop(first);
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    assert!(is_alive(pid), "nobody was there to do it");
    let second = Embedded::open(config(folder.path(), STUBBORN, 0, LONG)).await.unwrap();
    until("it is dead", async || !is_alive(pid)).await;
    gone(folder.path(), instance).await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_instance_goes_only_when_nothing_of_it_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let provisioner = Arc::new(Config::new(0, "here"));
    let settings = config(folder.path(), WITH_A_WORKER, 0, LONG);
    let settings = EmbeddedConfig { provisioner: provisioner.clone(), ..settings };
    let embedded = Embedded::open(settings).await.unwrap();
    embedded.instances.launch(&pool(), 1).await.unwrap();
    let (instance, _) = started(&embedded, folder.path()).await;
    embedded.instances.retire(&pool(), instance).await.unwrap();
    gone(folder.path(), instance).await;
    let cleared = provisioner.cleared.lock().unwrap().clone();
    assert_eq!(cleared, [instance, instance], "once its worker was alive, then it was not");
    embedded.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_may_have_less_than_its_most_and_an_image_of_its_own_that_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let settings = config(folder.path(), GOOD, 0, LONG);
    let scarce = LocalPool { capacity: 1, program: Some("/bin/false".into()), ..local_pool(Duration::ZERO) };
    let embedded = Embedded::open(EmbeddedConfig { pools: vec![scarce], ..settings }).await.unwrap();
    let error = embedded.instances.launch(&pool(), 2).await.unwrap_err();
    assert!(matches!(&error, InstancesError::NoCapacity { .. }), "{error}");
    assert!(error.to_string().contains("1 to be had"), "{error}");
    embedded.instances.launch(&pool(), 1).await.unwrap();
    let only = async || embedded.instances.status(&pool()).await.unwrap().instances.remove(0);
    assert_eq!(only().await.failed, None, "once is not again and again");
    until("it counts as failed", async || only().await.failed.is_some()).await;
    let failed = only().await;
    assert!(!failed.running && failed.failed.as_ref().unwrap().contains("exit status: 1"), "{failed:?}");
    embedded.instances.retire(&pool(), failed.id).await.unwrap();
    gone(folder.path(), failed.id).await;
    embedded.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_without_a_record_is_nobodys() {
    let folder = tempfile::tempdir().unwrap();
    let settings = config(folder.path(), GOOD, 0, LONG);
    let instance = InstanceId::new(in_millis(0), 7);
    std::fs::create_dir_all(folder_of(folder.path(), instance).join("data")).unwrap();
    let foreign = folder.path().join("agents/foreign");
    std::fs::create_dir_all(&foreign).unwrap();
    let embedded = Embedded::open(settings).await.unwrap();
    assert!(!folder_of(folder.path(), instance).exists() && foreign.exists());
    embedded.close().await;
}
