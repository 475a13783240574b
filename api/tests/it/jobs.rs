//! Jobs: submitted, read, steered.

use http::Method;
use serde_json::{Value, json};
use telecine_core::{limits, pools};

use crate::harness::Studio;

fn pointers(problem: &Value) -> Vec<&str> {
    problem["errors"].as_array().unwrap().iter().map(|error| error["pointer"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_job_is_accepted_read_listed_and_canceled() {
    let studio = Studio::new().await;
    let app = &studio.app;
    let mut request = studio.request();
    request["labels"] = json!({"team": "news"});
    request["resources"] = json!({"cpu_milli": 2000});
    let answer = app.post("/v1/jobs", &request).await;
    let job = answer.expect(201);
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), Some(path.as_str()));
    assert_eq!(answer.header("etag"), Some("\"1\""));
    assert_eq!(
        (&job["state"], &job["priority"], &job["region"]),
        (&json!("queued"), &json!(500), &json!("local"))
    );
    assert_eq!(
        (&job["resources"]["cpu_milli"], &job["resources"]["memory_bytes"]),
        (&json!(2000), &json!(1 << 20))
    );
    assert_eq!(job["inputs"]["source"]["size_bytes"], 16);
    assert_eq!(app.get(&path).await.expect(200), job);
    let found = app.get("/v1/jobs?state=queued&label=team%3Dnews").await.expect(200);
    assert_eq!(found["data"], json!([job]));
    assert_eq!(app.get("/v1/jobs?label=team%3Dsport").await.expect(200)["data"], json!([]));
    let document = app.get(&format!("{path}/document")).await.expect(200);
    assert_eq!(document["processing"], json!({"speed": 2}));
    assert_eq!(app.get(&format!("{path}/attempts")).await.expect(200)["data"], json!([]));
    let explained = app.get(&format!("{path}/explain")).await.expect(200);
    assert_eq!(explained["code"], "no_instance", "{explained}");
    assert_eq!((&explained["queued_ahead"], &explained["queued_perhaps_ahead"]), (&json!(0), &json!(0)));
    assert_eq!(explained["start"]["unknown"], "nothing_takes_it");
    assert!(!explained["text"].as_str().unwrap().is_empty());
    let canceled = app.post(&format!("{path}/cancel"), &json!({})).await.expect(200);
    assert_eq!(canceled["state"], "canceled");
    app.post(&format!("{path}/cancel"), &json!({})).await.expect(200);
    app.post(&format!("{path}/hold"), &json!({})).await.problem(409, "illegal_state");
}

#[tokio::test]
async fn the_shape_of_an_explanation_and_of_an_estimate() {
    let studio = Studio::new().await;
    let backend = &studio.app.backend;
    let job = studio.submitted().await;
    let shape = json!({"cpu_milli": 4000, "memory_bytes": 1 << 30, "scratch_bytes": 0, "gpus": 0});
    let pool = json!({
        "name": "large", "region": "local", "shape": shape, "market": "spot", "price_micros_per_hour": 36_000,
        "boot_seconds": 20, "min": 0, "max": 1,
    });
    pools::declare(backend, &[serde_json::from_value(pool).unwrap()]).await.unwrap();
    let path = format!("/v1/jobs/{}/explain", job["id"].as_str().unwrap());
    let explained = studio.app.get(&path).await.expect(200);
    let expected = json!([{
        "pool": "large", "code": "may_launch", "answer": "would be launched, which takes about 20 s",
        "shape": shape, "price_micros_per_hour": 36_000, "boot_seconds": 20,
    }]);
    assert_eq!((&explained["code"], &explained["pools"]), (&json!("instance_wanted"), &expected));
    assert!(explained["start"]["expected_at"].is_string() && explained["start"]["likely_by"].is_string());
    let account = job["account_id"].as_str().unwrap();
    let limits = json!({"accounts": {account: 0}});
    let limits = serde_json::from_value(limits).unwrap();
    limits::declare(backend, &"local".parse().unwrap(), &limits).await.unwrap();
    let explained = studio.app.get(&path).await.expect(200);
    let limit = json!({"by": "account", "factory_id": null, "limit": 0, "running": 0});
    assert_eq!((&explained["code"], &explained["limit"]), (&json!("limit_reached"), &limit));

    let estimate = studio.app.post("/v1/jobs/estimate", &studio.request()).await.expect(200);
    assert_eq!((&estimate["engine_version"], &estimate["region"]), (&json!("1.0.0"), &json!("local")));
    assert_eq!((&estimate["input_bytes"], &estimate["queued_ahead"]), (&json!(16), &json!(1)));
    let duration = json!({"p50_ms": 60_000, "p90_ms": 300_000, "samples": 0, "basis": "default"});
    assert_eq!(estimate["duration"], duration);
    let cost =
        json!({"pool": "large", "price_micros_per_hour": 36_000, "p50_micros": 600, "p90_micros": 3000});
    assert_eq!(estimate["cost"], cost);
}

#[tokio::test]
async fn an_estimate_says_everything_that_is_wrong_and_writes_nothing() {
    let studio = Studio::new().await;
    let mut request = studio.request();
    request["composition"]["inputs"]["source"]["key"] = "gone.mov".into();
    request["priority"] = 5000.into();
    let problem = studio.app.post("/v1/jobs/estimate", &request).await.problem(422, "invalid_request");
    assert_eq!(pointers(&problem), ["/priority", "/composition/inputs/source"]);
    for _ in 0..2 {
        let call = studio.app.call(Method::POST, "/v1/jobs/estimate").header("idempotency-key", "one");
        let answer = call.json(&studio.request()).send().await;
        assert_eq!(
            (answer.expect(200)["service"].as_str(), answer.header("idempotency-replayed")),
            (Some("transform"), None)
        );
    }
    assert_eq!(studio.app.get("/v1/jobs").await.expect(200)["data"], json!([]));
}

#[tokio::test]
async fn a_job_that_depends_on_another_is_held_and_says_so() {
    let studio = Studio::new().await;
    let first = studio.submitted().await;
    let mut request = studio.request();
    request["depends_on"] = json!([first["id"]]);
    let job = studio.app.post("/v1/jobs", &request).await.expect(201);
    assert_eq!((&job["state"], &job["depends_on"]), (&json!("held"), &json!([first["id"]])));
    assert_eq!(job["state_reason"]["code"], "dependencies");
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    studio.app.post(&format!("{path}/release"), &json!({})).await.problem(409, "illegal_state");
    let explained = studio.app.get(&format!("{path}/explain")).await.expect(200);
    let waits = json!([{"job_id": first["id"], "state": "queued"}]);
    assert_eq!((&explained["code"], &explained["dependencies"]), (&json!("waits_for_jobs"), &waits));
    request["depends_on"] = json!([first["id"], "nonsense", 7]);
    let problem = studio.app.post("/v1/jobs", &request).await.problem(422, "invalid_request");
    assert_eq!(pointers(&problem), ["/depends_on/1", "/depends_on/2"]);
}

#[tokio::test]
async fn a_job_goes_on_with_the_trace_of_its_caller() {
    let studio = Studio::new().await;
    let (app, request) = (&studio.app, studio.request());
    let trace_of = async |answer: Value| {
        let id = answer["id"].as_str().unwrap().parse().unwrap();
        telecine_core::dispatch::load(&app.backend, id).await.unwrap().unwrap().trace
    };
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let header = format!("00-{trace}-00f067aa0ba902b7-01");
    let post = |path: &str, body: &Value, header: &str| {
        app.call(Method::POST, path).header("traceparent", header).json(body).send()
    };
    let traced = post("/v1/jobs", &request, &header).await.expect(201);
    assert_eq!(trace_of(traced).await, Some(trace.parse().unwrap()));
    let batch = post("/v1/jobs/batch", &json!({"jobs": [request]}), &header).await.expect(200);
    assert_eq!(trace_of(batch["data"][0]["job"].clone()).await, Some(trace.parse().unwrap()));
    let nonsense = post("/v1/jobs", &request, "00-nonsense").await.expect(201);
    assert_eq!(trace_of(nonsense).await, None, "as good as none");
}

#[tokio::test]
async fn everything_wrong_with_a_job_is_said_at_once() {
    let studio = Studio::new().await;
    let mut request = studio.request();
    request["composition"]["inputs"]["source"]["key"] = "gone.mov".into();
    request["composition"]["processing"]["speed"] = "fast".into();
    request["priority"] = 5000.into();
    request["colour"] = "red".into();
    let problem = studio.app.post("/v1/jobs", &request).await.problem(422, "invalid_request");
    let found = pointers(&problem);
    for expected in ["/composition/inputs/source", "/composition/processing/speed", "/priority", "/colour"] {
        assert!(found.iter().any(|pointer| pointer.starts_with(expected)), "{expected} in {found:?}");
    }
    let problem = studio.app.post("/v1/jobs", &json!([1])).await.problem(422, "invalid_request");
    assert!(!pointers(&problem).is_empty());
}

#[tokio::test]
async fn the_same_submission_makes_one_job() {
    let studio = Studio::new().await;
    let post =
        |body: &Value| studio.app.call(Method::POST, "/v1/jobs").header("idempotency-key", "one").json(body);
    let first = post(&studio.request()).send().await;
    let second = post(&studio.request()).send().await;
    assert_eq!(first.expect(201)["id"], second.expect(201)["id"]);
    assert_eq!(
        (first.header("idempotency-replayed"), second.header("idempotency-replayed")),
        (None, Some("true"))
    );
    let mut other = studio.request();
    other["priority"] = 1.into();
    post(&other).send().await.problem(422, "idempotency_key_reused");
    assert_eq!(studio.app.get("/v1/jobs").await.expect(200)["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn changes_are_conditional_on_what_was_read() {
    let studio = Studio::new().await;
    let job = studio.submitted().await;
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let patch = |etag: &str, body: &Value| {
        let call = studio.app.call(Method::PATCH, &path).json(body);
        if etag.is_empty() { call } else { call.header("if-match", etag) }
    };
    let changed = patch("\"1\"", &json!({"priority": 900})).send().await;
    assert_eq!((&changed.expect(200)["priority"], changed.header("etag")), (&json!(900), Some("\"2\"")));
    let problem = patch("\"1\"", &json!({"priority": 1})).send().await.problem(412, "etag_mismatch");
    assert!(problem["detail"].as_str().unwrap().contains("\"2\""), "{problem}");
    patch("2", &json!({"priority": 1})).send().await.problem(400, "invalid_header");
    patch("", &json!({"labels": {"team": "sport"}})).send().await.expect(200);
    patch("", &json!({"priority": 1001})).send().await.problem(422, "invalid_request");
    patch("", &json!({"state": "succeeded"})).send().await.problem(422, "invalid_request");
    assert_eq!(studio.app.get(&path).await.expect(200)["labels"], json!({"team": "sport"}));
}

#[tokio::test]
async fn held_jobs_wait_and_ended_ones_are_tried_again() {
    let studio = Studio::new().await;
    let mut request = studio.request();
    request["hold"] = true.into();
    let held = studio.app.post("/v1/jobs", &request).await.expect(201);
    assert_eq!((&held["state"], &held["state_reason"]["code"]), (&json!("held"), &json!("manual")));
    let path = format!("/v1/jobs/{}", held["id"].as_str().unwrap());
    let act = async |action: &str| studio.app.post(&format!("{path}/{action}"), &json!({})).await;
    assert_eq!(act("release").await.expect(200)["state"], "queued");
    assert_eq!(act("hold").await.expect(200)["state"], "held");
    act("retry").await.problem(409, "illegal_state");
    act("cancel").await.expect(200);
    let again = act("retry").await.expect(201);
    assert_eq!(
        (&again["retry_of"], &again["origin"], &again["state"]),
        (&held["id"], &json!("retry"), &json!("queued"))
    );
}

#[tokio::test]
async fn a_batch_has_a_result_for_each() {
    let studio = Studio::new().await;
    let mut wrong = studio.request();
    wrong["composition"]["inputs"]["source"]["store"] = "nowhere".into();
    let body = json!({"jobs": [studio.request(), wrong, studio.request()]});
    let post =
        || studio.app.call(Method::POST, "/v1/jobs/batch").header("idempotency-key", "b").json(&body).send();
    let first = post().await;
    let results = first.expect(200)["data"].as_array().unwrap().clone();
    assert_eq!(results.len(), 3);
    assert_eq!(results[0]["job"]["state"], "queued");
    assert_eq!(results[1]["refusal"]["code"], "invalid_request");
    assert_eq!(pointers(&results[1]["refusal"]), ["/composition/inputs/source/store"]);
    let second = post().await;
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    assert_eq!(second.expect(200)["data"][2]["job"]["id"], results[2]["job"]["id"]);
    let many = json!({"jobs": vec![json!({}); 1001]});
    let problem = studio.app.post("/v1/jobs/batch", &many).await.problem(422, "invalid_request");
    assert_eq!(pointers(&problem), ["/jobs"]);
}

#[tokio::test]
async fn another_accounts_job_is_not_there() {
    let (mine, other) = (Studio::new().await, Studio::new().await);
    let job = mine.submitted().await;
    let id = job["id"].as_str().unwrap();
    for path in ["", "/events", "/logs", "/explain", "/attempts", "/document"] {
        other.app.get(&format!("/v1/jobs/{id}{path}")).await.problem(404, "not_found");
    }
    for action in ["cancel", "retry", "hold", "release"] {
        other.app.post(&format!("/v1/jobs/{id}/{action}"), &json!({})).await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn lists_are_read_page_by_page_while_jobs_come() {
    let studio = Studio::new().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        studio.app.pass(10);
        ids.push(studio.submitted().await["id"].as_str().unwrap().to_owned());
    }
    ids.reverse();
    let (mut seen, mut path) = (Vec::new(), "/v1/jobs?limit=2".to_owned());
    loop {
        let page = studio.app.get(&path).await.expect(200);
        seen.extend(
            page["data"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()),
        );
        studio.app.pass(10);
        studio.submitted().await;
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/jobs?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, ids);
}
