//! What operators see: instances in the table, metrics and readiness over HTTP.

use std::time::Duration;

use serde_json::json;
use telecine_core::fleet;
use telecine_domain::instance::InstanceState;
use telecine_manager::ManagerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::{Coordinator, instance};
use crate::world::{World, region};

#[tokio::test(start_paused = true)]
async fn instances_are_recorded_from_ready_to_lost() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    world.submit("a.mp4", json!({})).await;
    coordinator.assigned().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let recorded = async || fleet::instances(&world.backend, &region()).await.unwrap().remove(0);
    let ready = recorded().await;
    assert_eq!((ready.state, ready.allocated.cpu_milli), (InstanceState::Ready, 1000));
    coordinator.die().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(recorded().await.state, InstanceState::Disconnected);
    tokio::time::sleep(Duration::from_secs(70)).await;
    let lost = recorded().await;
    assert_eq!(lost.state, InstanceState::Lost);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_never_comes_back_after_a_restart_is_lost_too() {
    let mut world = World::new().await;
    let coordinator = Coordinator::attach(&world, instance(1)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.kill().await;
    coordinator.die().await;
    world.start().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let recorded = async || fleet::instances(&world.backend, &region()).await.unwrap().remove(0);
    assert_eq!(recorded().await.state, InstanceState::Ready, "it has a lease to come back");
    tokio::time::sleep(Duration::from_secs(45)).await;
    assert_eq!(recorded().await.state, InstanceState::Lost);
}

async fn get(address: &str, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn metrics_and_readiness_are_served() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let observe = free.local_addr().unwrap().to_string();
    drop(free);
    let config = ManagerConfig {
        listen: "127.0.0.1:0".to_owned(),
        observe: Some(observe.clone()),
        ..Default::default()
    };
    let mut world = World::of(config).await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    world.submit("a.mp4", json!({})).await;
    coordinator.assigned().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(get(&observe, "/healthz").await.starts_with("HTTP/1.1 200"));
    let ready = get(&observe, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("local: leading"), "{ready}");
    let metrics = get(&observe, "/metrics").await;
    for name in
        ["telecine_leader", "telecine_assignments_total", "telecine_queue_length", "telecine_sessions"]
    {
        assert!(metrics.contains(&format!("{name}{{region=\"local\"")), "{name} is not in\n{metrics}");
    }
    world.stop().await;
    assert!(tokio::net::TcpStream::connect(&observe).await.is_err());
}
