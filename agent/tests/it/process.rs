//! Engines as processes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use telecine_agent::runtime::{
    ContainerRuntime as _, ContainerSpec, EngineSignal, Process, Program, RuntimeError,
};

use crate::support::{run, spec};

fn shell(folder: &Path, script: &str) -> ContainerSpec {
    spec(folder, Program::Path(PathBuf::from("/bin/sh")), &["-c", script])
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(5), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // A zombie waits only for its parent.
    !stat.is_empty() && !stat.contains(") Z ")
}

#[tokio::test]
async fn the_environment_is_empty_and_the_exit_code_counts() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Process::new(folder.path());
    let spec = shell(folder.path(), "env; echo to-stderr >&2; exit 7");
    let (exit, text) = run(&runtime, &spec).await;
    assert_eq!(exit.code, 7);
    assert!(text.contains("to-stderr"));
    let job = format!("TELECINE_JOB={}/{}/m/job.json", folder.path().display(), spec.name);
    assert!(text.contains(&job), "{text}");
    let known = ["LANG=", "PATH=", "TELECINE_JOB=", "PWD=", "SHLVL=", "_=", "OLDPWD=", "to-stderr"];
    assert!(text.lines().all(|line| known.iter().any(|name| line.starts_with(name))), "{text}");
    assert_eq!(runtime.wait(&spec.name).await.unwrap().code, 7, "the end can be asked for again");
    runtime.remove(&spec.name).await.unwrap();
    assert!(runtime.wait(&spec.name).await.is_err());
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Process::new(folder.path());
    let spec = spec(folder.path(), Program::Path("/no/such/program".into()), &[]);
    runtime.create(&spec).await.unwrap();
    let error = runtime.start(&spec.name).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    assert!(matches!(error, RuntimeError::Refused { .. }));
}

#[tokio::test]
async fn a_kill_takes_the_whole_group() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Process::new(folder.path());
    let spec = shell(folder.path(), "trap 'echo asked' TERM; sleep 300 & echo $!; while :; do wait; done");
    runtime.create(&spec).await.unwrap();
    let mut output = runtime.start(&spec.name).await.unwrap();
    let child = String::from_utf8(output.recv().await.unwrap().data.to_vec()).unwrap();
    assert!(is_alive(&child));
    runtime.signal(&spec.name, EngineSignal::Kill).await.unwrap();
    let exit = runtime.wait(&spec.name).await.unwrap();
    assert_eq!(exit.code, 137);
    eventually("the child is gone", || !is_alive(&child)).await;
    runtime.signal(&spec.name, EngineSignal::Terminate).await.expect("one that ended was signalled already");
}

#[tokio::test]
async fn what_left_its_session_is_found_by_another_agent() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Process::new(folder.path());
    let spec = shell(folder.path(), "setsid sleep 300 & setsid sleep 301 & echo started; wait");
    runtime.create(&spec).await.unwrap();
    let mut output = runtime.start(&spec.name).await.unwrap();
    output.recv().await.unwrap();
    let successor = Process::new(folder.path());
    assert_eq!(successor.ours(&spec.instance).await.unwrap(), std::slice::from_ref(&spec.name));
    successor.remove(&spec.name).await.unwrap();
    assert_eq!(successor.ours(&spec.instance).await.unwrap(), Vec::<String>::new());
    assert_eq!(runtime.wait(&spec.name).await.unwrap().code, 137);
}
