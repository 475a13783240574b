//! Regions and instances.

use serde_json::json;
use telecine_core::fleet;
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
