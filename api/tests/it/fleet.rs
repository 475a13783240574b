//! Regions and instances.

use serde_json::json;
use telecine_core::{fleet, pools};
use telecine_domain::instance::Instance;

use crate::harness::App;

fn instance(id: &str, state: &str) -> Instance {
    serde_json::from_value(json!({
        "profile": {
            "id": id, "region": "local", "pool": "local", "host": "box", "agent_version": "0.1.0",
            "capacity": {"cpu_milli": 4000, "memory_bytes": 8000}, "runtimes": ["process"],
        },
        "state": state, "allocated": {"cpu_milli": 1000}, "state_since": "2026-11-22T12:00:00Z",
    }))
    .unwrap()
}

#[tokio::test]
async fn instances_and_the_load_of_their_region_are_told() {
    let app = App::new().await;
    let (one, two) = ("ins_01k00000000000000000000000", "ins_01k00000000000000000000001");
    fleet::put_instance(&app.backend, &instance(one, "ready")).await.unwrap();
    fleet::put_instance(&app.backend, &instance(two, "lost")).await.unwrap();
    let listed = app.get("/v1/instances?region=local&limit=1").await.expect(200);
    assert_eq!(listed["data"][0]["id"], one);
    let cursor = listed["next_cursor"].as_str().unwrap();
    let next = app.get(&format!("/v1/instances?region=local&limit=1&cursor={cursor}")).await.expect(200);
    assert_eq!((&next["data"][0]["id"], &next["data"][0]["state"]), (&json!(two), &json!("lost")));
    assert_eq!(app.get(&format!("/v1/instances/{one}")).await.expect(200)["host"], "box");
    app.get("/v1/instances/ins_x").await.problem(404, "not_found");
    let region = app.get("/v1/regions/local").await.expect(200);
    assert_eq!((&region["instances"], &region["occupancy_thousandths"]), (&json!(1), &json!(250)));
    assert_eq!((&region["is_default"], &region["manager"]), (&json!(true), &json!(null)));
    app.get("/v1/regions/elsewhere").await.problem(404, "not_found");
    app.get("/v1/instances?region=Elsewhere").await.problem(400, "invalid_parameter");
}

#[tokio::test]
async fn an_instance_is_taken_away_only_where_the_provider_can() {
    let app = App::new().await;
    let one = "ins_01k00000000000000000000000";
    fleet::put_instance(&app.backend, &instance(one, "cordoned")).await.unwrap();
    assert_eq!(app.get(&format!("/v1/instances/{one}")).await.expect(200)["notice"], json!(null));
    let path = format!("/v1/instances/{one}/interrupt");
    let problem = app.post(&path, &json!({"in_seconds": 120})).await.problem(409, "illegal_state");
    assert!(problem["detail"].as_str().unwrap().contains("cannot take an instance away"), "{problem}");
    app.post(&path, &json!({"in_seconds": 86_401})).await.problem(422, "invalid_request");
    app.post(&path, &json!({"in_seconds": -1})).await.problem(422, "invalid_request");
    app.post(&path, &json!({})).await.problem(422, "invalid_request");
    app.post(&path, &json!({"in_seconds": 1, "why": "x"})).await.problem(422, "invalid_request");
    let other = "/v1/instances/ins_01k00000000000000000000009/interrupt";
    app.post(other, &json!({"in_seconds": 1})).await.problem(404, "not_found");
    let reader = app.key(telecine_core::access::Scope::Read).await;
    let call = app.call(http::Method::POST, &path).header("authorization", &format!("Bearer {reader}"));
    call.json(&json!({"in_seconds": 1})).send().await.problem(403, "forbidden");
}

#[tokio::test]
async fn pools_are_listed_with_what_they_cost_and_how_many_there_are() {
    let app = App::new().await;
    assert_eq!(app.get("/v1/pools").await.expect(200)["data"], json!([]));
    let pool = |name: &str, region: &str| {
        serde_json::from_value(json!({
            "name": name, "region": region, "shape": {"cpu_milli": 1000, "memory_bytes": 1 << 30},
            "market": "spot", "price_micros_per_hour": 12_500, "boot_seconds": 30, "min": 0, "max": 4,
        }))
        .unwrap()
    };
    pools::declare(&app.backend, &[pool("large", "local"), pool("small", "other")]).await.unwrap();
    let first = app.get("/v1/pools?limit=1").await.expect(200);
    let large = &first["data"][0];
    assert_eq!((&large["id"], &large["market"], &large["max"]), (&json!("large"), &json!("spot"), &json!(4)));
    assert_eq!((&large["price_micros_per_hour"], &large["running"]), (&json!(12_500), &json!(0)));
    assert_eq!(large["shape"]["cpu_milli"], 1000);
    let cursor = first["next_cursor"].as_str().unwrap();
    let next = app.get(&format!("/v1/pools?limit=1&cursor={cursor}")).await.expect(200);
    assert_eq!((&next["data"][0]["id"], &next["next_cursor"]), (&json!("small"), &json!(null)));
    let other = app.get("/v1/pools?region=other").await.expect(200);
    assert_eq!((other["data"].as_array().unwrap().len(), &other["data"][0]["id"]), (1, &json!("small")));
    app.get("/v1/pools?region=Other").await.problem(400, "invalid_parameter");
}
