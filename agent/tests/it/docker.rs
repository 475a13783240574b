//! What a container may and may not do, shown from inside it.

use std::time::{Duration, Instant};

use telecine_agent::runtime::{
    ContainerRuntime as _, Docker, EngineSignal, Program, PullProgress, RuntimeError,
};
use telecine_domain::engine::ImageReference;
use tokio::sync::watch;

use crate::support::{Removed, SharedFolder, docker, run, spec};

const PROBE: &str = "TELECINE_PROBE_IMAGE";

async fn probe() -> Option<(Docker, ImageReference)> {
    let (docker, image) = docker(PROBE).await?;
    let (progress, _) = watch::channel(PullProgress::default());
    docker.pull(&image, &progress).await.expect("pulled");
    Some((docker, image))
}

#[tokio::test]
async fn the_sandbox_holds() {
    let Some((docker, image)) = probe().await else { return };
    let folder = SharedFolder::new();
    std::fs::write(folder.path().join("job.json"), "{}").unwrap();
    let script = r#"
        id -u; id -g
        grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status
        echo "interfaces: $(ls /sys/class/net | tr '\n' ' ')"
        touch /forbidden 2>&1; touch /telecine/forbidden 2>&1; touch /tmp/allowed && echo tmp-writable
        cp /bin/busybox /tmp/run 2>/dev/null; /tmp/run id 2>&1
        echo "environment:"; env | sort
        ls /var/run/docker.sock /run/docker.sock 2>&1
        cat /telecine/job.json; echo
        ls -a /telecine
    "#;
    let spec = spec(folder.path(), Program::Image(image), &["sh", "-c", script]);
    let removed = Removed(docker.clone(), spec.name.clone());
    let (exit, text) = run(&docker, &spec).await;
    removed.now().await;
    let has = |needle: &str| assert!(text.contains(needle), "{needle:?} is not in:\n{text}");
    assert!(text.trim_start().starts_with("65534\n"), "{text}");
    for needle in [
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "interfaces: lo \n",
        "tmp-writable",
        "TELECINE_JOB=/telecine/job.json",
        "{}",
    ] {
        has(needle);
    }
    let lower = text.to_ascii_lowercase();
    assert_eq!(lower.matches("read-only file system").count(), 1, "the root is read-only:\n{text}");
    assert!(
        lower.matches("permission denied").count() >= 2,
        "the attempt's folder and /tmp/run are refused:\n{text}"
    );
    for forbidden in ["aws_", "secret", "token", "docker.sock\n/"] {
        assert!(!lower.contains(forbidden), "{forbidden:?} is in:\n{text}");
    }
    let environment: Vec<&str> =
        text.split("environment:\n").nth(1).unwrap().lines().take_while(|line| line.contains('=')).collect();
    let known = ["HOME=", "HOSTNAME=", "PATH=", "PWD=", "SHLVL=", "TELECINE_JOB="];
    assert!(
        environment.iter().all(|line| known.iter().any(|name| line.starts_with(name))),
        "{environment:?}"
    );
    assert_eq!(exit.code, 0, "{text}");
}

#[tokio::test]
async fn too_much_memory_is_told_from_other_ends() {
    let Some((docker, image)) = probe().await else { return };
    let folder = SharedFolder::new();
    // A child of the first process, so that the exit code alone would not tell.
    let script = "dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?";
    let spec = spec(folder.path(), Program::Image(image), &["sh", "-c", script]);
    let removed = Removed(docker.clone(), spec.name.clone());
    let (exit, text) = run(&docker, &spec).await;
    removed.now().await;
    assert!(exit.code != 0, "{text}");
    assert_eq!(exit.code == 137, exit.out_of_memory, "{exit:?} {text}");
    assert!(exit.out_of_memory, "{exit:?} {text}");
}

#[tokio::test]
async fn sigterm_may_be_ignored_and_sigkill_not() {
    let Some((docker, image)) = probe().await else { return };
    let folder = SharedFolder::new();
    let script = "trap 'echo asked' TERM; echo ready; while :; do sleep 1; done";
    let spec = spec(folder.path(), Program::Image(image), &["sh", "-c", script]);
    let removed = Removed(docker.clone(), spec.name.clone());
    docker.create(&spec).await.unwrap();
    docker.create(&spec).await.expect("a create whose answer was lost is adopted");
    let mut output = docker.start(&spec.name).await.unwrap();
    assert_eq!(output.recv().await.unwrap().data, "ready\n");
    docker.signal(&spec.name, EngineSignal::Terminate).await.unwrap();
    let asked = tokio::time::timeout(Duration::from_secs(5), output.recv()).await.unwrap().unwrap();
    assert_eq!(asked.data, "asked\n");
    let ours = docker.ours(&spec.instance).await.unwrap();
    assert_eq!(ours, std::slice::from_ref(&spec.name));
    docker.signal(&spec.name, EngineSignal::Kill).await.unwrap();
    let exit = docker.wait(&spec.name).await.unwrap();
    assert_eq!((exit.code, exit.out_of_memory), (137, false));
    docker.signal(&spec.name, EngineSignal::Kill).await.expect("one that has ended was signalled already");
    removed.now().await;
    docker.remove(&spec.name).await.expect("one that is gone is removed already");
    docker.signal(&spec.name, EngineSignal::Terminate).await.expect("one that is gone needs no signal");
}

#[tokio::test]
async fn a_fork_bomb_is_bounded() {
    let Some((docker, image)) = probe().await else { return };
    let folder = SharedFolder::new();
    let script = "i=0; while [ $i -lt 100 ]; do sleep 30 & i=$((i+1)); done 2>&1; echo done";
    let spec = spec(folder.path(), Program::Image(image), &["sh", "-c", script]);
    let removed = Removed(docker.clone(), spec.name.clone());
    docker.create(&spec).await.unwrap();
    let mut output = docker.start(&spec.name).await.unwrap();
    let began = Instant::now();
    let mut text = String::new();
    while let Ok(Some(piece)) = tokio::time::timeout(Duration::from_secs(10), output.recv()).await {
        text.push_str(&String::from_utf8_lossy(&piece.data));
        if text.contains("fork") {
            break;
        }
    }
    assert!(text.contains("fork"), "forking was refused: {text}");
    assert!(began.elapsed() < Duration::from_secs(10));
    removed.now().await;
}

#[tokio::test]
async fn images_that_are_not_there_are_told_from_registries_that_are_not_there() {
    let Some((docker, image)) = probe().await else { return };
    let (progress, _) = watch::channel(PullProgress::default());
    let repository = image.as_str().split('@').next().unwrap();
    let unknown: ImageReference = format!("{repository}@sha256:{}", "0".repeat(64)).parse().unwrap();
    let error = docker.pull(&unknown, &progress).await.unwrap_err();
    assert!(matches!(error, RuntimeError::ImageNotFound { .. }), "{error}");
    let nowhere: ImageReference = format!("127.0.0.1:1/nothing@sha256:{}", "0".repeat(64)).parse().unwrap();
    let error = docker.pull(&nowhere, &progress).await.unwrap_err();
    assert!(matches!(error, RuntimeError::RegistryUnreachable { .. }), "{error}");
    let folder = SharedFolder::new();
    let error = docker.create(&spec(folder.path(), Program::Image(unknown), &[])).await.unwrap_err();
    assert!(matches!(error, RuntimeError::ImageAbsent(_)), "{error}");
    assert!(docker.images().await.unwrap().contains(image.digest()));
}
