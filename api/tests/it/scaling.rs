//! Decisions of the autoscaler, and drains by hand.

use std::time::Duration;

use http::Method;
use serde_json::json;
use telecine_core::access::Scope;
use telecine_core::autoscale::{self, Observation, Settings};
use telecine_core::{cordon, fleet};
use telecine_domain::autoscale::{Policy, Waiting};
use telecine_domain::instance::Instance;
use telecine_domain::time::Timestamp;

use crate::harness::{App, START};

/// A decision about a region without pools in which a job waits.
async fn decided(app: &App, region: &str, seconds: u64) {
    let (region, now) = (region.parse().unwrap(), Timestamp::from_millis(START + seconds * 1000));
    let waiting: Waiting = serde_json::from_value(json!({
        "need": {"cpu_milli": 1000 * seconds}, "interruptible": true, "count": 1, "expected_ms": 1, "oldest": now,
    }))
    .unwrap();
    let observation = Observation { term: 1, sequence: seconds, observed_at: now, lines: vec![waiting] };
    autoscale::observe(&app.backend, &region, &observation).await.unwrap();
    let settings = Settings { policy: Policy::thrift(), boot_limit: Duration::from_secs(60) };
    autoscale::tick(&app.backend, &region, &settings, now).await.unwrap();
}

#[tokio::test]
async fn decisions_are_listed_newest_first_and_taken_again() {
    let app = App::new().await;
    assert_eq!(app.get("/v1/pools/decisions").await.expect(200)["data"], json!([]));
    for (region, seconds) in [("local", 1), ("north", 2), ("local", 3)] {
        decided(&app, region, seconds).await;
    }
    let all = app.get("/v1/pools/decisions").await.expect(200);
    let told: Vec<_> = all["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|decision| (decision["region"].as_str().unwrap(), decision["number"].as_u64().unwrap()))
        .collect();
    assert_eq!(told, [("local", 2), ("north", 1), ("local", 1)]);
    let newest = &all["data"][0];
    assert_eq!((&newest["actions"], &newest["reasons"][0]["code"]), (&json!([]), &json!("nothing_fits")));
    let reason = newest["reasons"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("3 cores"), "{reason}");

    let first = app.get("/v1/pools/decisions?region=local&limit=1").await.expect(200);
    let cursor = first["next_cursor"].as_str().unwrap();
    let next =
        app.get(&format!("/v1/pools/decisions?region=local&limit=1&cursor={cursor}")).await.expect(200);
    assert_eq!((&next["data"][0]["number"], &next["data"][0]["region"]), (&json!(1), &json!("local")));
    app.get(&format!("/v1/pools/decisions?cursor={cursor}")).await.problem(400, "invalid_cursor");
    app.get("/v1/pools/decisions?region=Local").await.problem(400, "invalid_parameter");

    let replay = app.get("/v1/pools/decisions/1/replay?region=north").await.expect(200);
    assert_eq!((&replay["same"], &replay["again"]), (&json!(true), &replay["recorded"]));
    assert_eq!(app.get("/v1/pools/decisions/2/replay").await.expect(200)["recorded"]["region"], "local");
    for nothing in ["3", "0", "x", "99999999999999999999"] {
        app.get(&format!("/v1/pools/decisions/{nothing}/replay")).await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn an_instance_is_drained_and_undrained_until_its_end_is_claimed() {
    let app = App::new().await;
    let id = "ins_01k00000000000000000000000";
    let (drain, undrain) = (format!("/v1/instances/{id}/drain"), format!("/v1/instances/{id}/undrain"));
    app.call(Method::POST, &drain).send().await.problem(404, "not_found");
    app.call(Method::POST, &undrain).send().await.problem(404, "not_found");
    let instance: Instance = serde_json::from_value(json!({
        "profile": {
            "id": id, "region": "local", "pool": "small", "host": "box", "agent_version": "0.1.0",
            "capacity": {"cpu_milli": 4000, "memory_bytes": 8000}, "runtimes": ["process"],
        },
        "state": "ready", "allocated": {}, "state_since": "2026-11-22T12:00:00Z",
    }))
    .unwrap();
    fleet::put_instance(&app.backend, &instance).await.unwrap();
    let untouched = app.call(Method::POST, &undrain).send().await.expect(200);
    assert_eq!((&untouched["state"], &untouched["number"]), (&json!("none"), &json!(0)));
    let drained = app.call(Method::POST, &drain).send().await.expect(200);
    assert_eq!((&drained["state"], &drained["cause"]), (&json!("standing"), &json!("operator")));
    assert_eq!(app.call(Method::POST, &drain).send().await.expect(200), drained, "again");
    let lifted = app.call(Method::POST, &undrain).send().await.expect(200);
    assert_eq!((&lifted["state"], &lifted["number"]), (&json!("lifted"), &json!(1)));
    assert_eq!(app.call(Method::POST, &drain).send().await.expect(200)["number"], 2);

    let (region, id, now) = ("local".parse().unwrap(), id.parse().unwrap(), Timestamp::from_millis(START));
    let done = cordon::acknowledge(&app.backend, &region, id, 2, now).await.unwrap();
    let claimed = cordon::claim(&app.backend, &region, id, 2, now).await.unwrap();
    assert_eq!((done, claimed), (cordon::Outcome::Done, cordon::Outcome::Done));
    for path in [&drain, &undrain] {
        let problem = app.call(Method::POST, path).send().await.problem(409, "illegal_state");
        assert!(problem["detail"].as_str().unwrap().contains("cannot be taken back"), "{problem}");
    }
    let weak = format!("Bearer {}", app.key(Scope::Write).await);
    app.call(Method::POST, &drain).header("authorization", &weak).send().await.problem(403, "forbidden");
}
