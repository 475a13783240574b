use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use telecine_domain::id::AccountId;
use telecine_domain::job::{MAX_SPEC_BYTES, StateName};

use super::*;
use crate::fixture::{FAULTS, World, region};
use crate::idempotency::IdempotencyKey;
use crate::memory::Fault;
use crate::{stores, sweep};

fn key() -> IdempotencyKey {
    "a-key".parse().unwrap()
}

async fn problems(world: &World, body: &Value) -> Vec<(String, String)> {
    match submit(&world.backend, world.account, body, None, world.now()).await {
        Err(SubmitError::Invalid(problems)) => {
            problems.into_iter().map(|problem| (problem.pointer, problem.code)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn everything_that_is_wrong_is_said_at_once() {
    let world = World::new().await;
    let labels: serde_json::Map<String, Value> = (0..33).map(|n| (format!("l{n}"), json!("x"))).collect();
    let found = problems(
        &world,
        &json!({
            "service": "transform", "engine_version": "9.9.9", "priority": 1001, "labels": labels, "colour": 1,
            "resources": {"cpu_milli": -1, "gpus": 1, "tpus": 1}, "timeouts": {"queue_seconds": "long"},
            "retry": 3, "hold": "yes", "region": "Not A Region", "input": "x",
            "composition": {
                "inputs": {"a": {"store": "nowhere", "key": "x"}, "b": {"store": "in", "key": "/x"}},
                "outputs": {"o": {"store": "out", "key": "../x"}, "p": {"key": "y"}}, "more": 1,
            },
        }),
    )
    .await;
    let expected = [
        ("/engine_version", "unknown_engine_version"),
        ("/priority", "out_of_range"),
        ("/labels", "too_many"),
        ("/colour", "unknown_field"),
        ("/resources/cpu_milli", "invalid_value"),
        ("/resources/tpus", "invalid_value"),
        ("/timeouts/queue_seconds", "invalid_value"),
        ("/retry", "wrong_type"),
        ("/hold", "invalid_value"),
        ("/region", "invalid_value"),
        ("/input", "not_needed"),
        ("/composition/inputs/a/store", "unknown_store"),
        ("/composition/inputs/b/key", "invalid_composition"),
        ("/composition/outputs/o/key", "invalid_composition"),
        ("/composition/outputs/p/store", "invalid_composition"),
        ("/composition/more", "invalid_composition"),
    ];
    let found: BTreeSet<(String, String)> = found.into_iter().collect();
    let expected: BTreeSet<(String, String)> =
        expected.into_iter().map(|(pointer, code)| (pointer.to_owned(), code.to_owned())).collect();
    assert_eq!(found, expected);
    for body in [json!(null), json!([]), json!("x"), json!(7)] {
        assert!(problems(&world, &body).await.iter().any(|(_, code)| code == "wrong_type"), "{body}");
    }
    assert_eq!(world.jobs().await.len(), 0);
}

#[tokio::test]
async fn what_a_good_document_names_is_checked_too() {
    let world = World::new().await;
    world.write("clip.mov", "media");
    let mut request = world.request("missing.mov");
    request["composition"]["processing"] = json!({"crf": 99, "unknown": 1});
    let found = problems(&world, &request).await;
    let pointers: Vec<&str> = found.iter().map(|(pointer, _)| pointer.as_str()).collect();
    assert!(pointers.contains(&"/composition/processing/crf"), "{found:?}");
    assert!(pointers.contains(&"/composition/processing"), "{found:?}");
    assert!(found.contains(&("/composition/inputs/source".to_owned(), "input_missing".to_owned())));

    let mut twice = world.request("clip.mov");
    twice["composition"]["outputs"]["second"] = json!({"store": "out", "key": "clip.mov"});
    twice["composition"]["outputs"]["third"] = json!({"store": "in", "key": "clip.mov"});
    let found = problems(&world, &twice).await;
    assert_eq!(found.len(), 2, "an output twice, an output that is an input: {found:?}");

    std::fs::remove_dir(world.folder.path().join("out")).unwrap();
    stores::validate(&world.backend, world.account, "out", world.now()).await.unwrap();
    let found = problems(&world, &world.request("clip.mov")).await;
    let expected = ("/composition/outputs/main/store".to_owned(), "store_not_writable".to_owned());
    assert_eq!(found, [expected]);
}

#[tokio::test]
async fn a_job_that_no_message_can_carry_is_refused_at_once() {
    let world = World::new().await;
    let engine = json!({
        "service": "transform", "version": "1.3.0", "resources": {"cpu_milli": 500}, "lifecycle": "stable",
        "launch": {"command": {"program": "/bin/true"}}, "processing_schema": {},
    });
    let engine = serde_json::from_value(engine).unwrap();
    crate::engines::publish(&world.backend, AccountId::PLATFORM, engine).await.unwrap();
    world.write("clip.mov", "media");
    let request = |bytes: usize| {
        let mut request = world.request("clip.mov");
        request["composition"]["processing"] = json!({"note": "x".repeat(bytes)});
        request
    };
    let refused = [("/composition".to_owned(), "too_large".to_owned())];
    for bytes in [600 * 1024, MAX_SPEC_BYTES - 200] {
        assert_eq!(problems(&world, &request(bytes)).await, refused, "{bytes}");
    }
    let most = request(MAX_SPEC_BYTES - 2000);
    let job = submit(&world.backend, world.account, &most, None, world.now()).await.unwrap().job;
    assert!(serde_json::to_vec(&job.spec).unwrap().len() <= MAX_SPEC_BYTES);
}

#[tokio::test]
async fn a_job_is_pinned_to_what_was_there() {
    let world = World::new().await;
    let job = world.submitted("clip.mov").await;
    let seen = world.arrival(&world.input, "clip.mov").await.version;
    let source = "source".parse().unwrap();
    assert_eq!(job.spec.inputs[&source].version, seen);
    assert_eq!((job.spec.engine.version.to_string(), job.spec.region), ("1.2.0".to_owned(), region()));
    assert_eq!((job.spec.resources.cpu_milli, job.spec.priority), (500, 500));
    assert_eq!(job.state.name(), StateName::Queued);
    let hints = world.backend.queue.receive(&region(), 10, Duration::ZERO, Duration::ZERO).await.unwrap();
    assert_eq!(hints[0].job, job.id);
}

#[tokio::test]
async fn a_factory_lends_what_the_request_leaves_out() {
    let world = World::new().await;
    world.factory("one", "in", "", "out").await;
    world.write("day 1/clip.mov", "media");
    let body = json!({"factory": "one", "input": "day 1/clip.mov", "timeouts": {"queue_seconds": null}, "hold": true});
    let job = submit(&world.backend, world.account, &body, None, world.now()).await.unwrap().job;
    assert_eq!(job.state.name(), StateName::Held);
    assert_eq!((job.spec.timeouts.queue_seconds, job.spec.timeouts.cancel_grace_seconds), (None, 10));
    let output = job.spec.composition.outputs.values().next().unwrap();
    assert_eq!(output.key.as_str(), "done/one/clip.mov");
    let found = problems(&world, &json!({"factory": "none", "input": "x"})).await;
    assert_eq!(found, [("/factory".to_owned(), "unknown_factory".to_owned())]);
    let found = problems(&world, &json!({"factory": "one"})).await;
    assert_eq!(found, [("/input".to_owned(), "missing".to_owned())]);
}

#[tokio::test]
async fn one_key_makes_one_job_whichever_transaction_fails() {
    for key in [None, Some(key())] {
        for fault in FAULTS {
            let world = World::new().await;
            world.write("clip.mov", "media");
            let request = world.request("clip.mov");
            world.table.fail_transaction(1, fault);
            let ask = || submit(&world.backend, world.account, &request, key.as_ref(), world.now());
            let first = ask().await.unwrap();
            assert!(!first.replayed, "{fault:?}");
            assert_eq!(world.jobs().await, vec![first.job.clone()]);
            if key.is_some() {
                world.clock.advance(Duration::from_secs(3600));
                let again = submit(&world.backend, world.account, &request, key.as_ref(), world.now()).await;
                let again = again.unwrap();
                assert_eq!((again.job.id, again.replayed), (first.job.id, true));
                assert_eq!(world.jobs().await.len(), 1);
            }
            world.check_histories().await;
        }
    }
}

#[tokio::test]
async fn the_same_key_at_once_makes_one_job_and_with_another_body_none() {
    let world = World::new().await;
    world.write("clip.mov", "media");
    let (request, key) = (world.request("clip.mov"), key());
    let asks = (0..50).map(|_| submit(&world.backend, world.account, &request, Some(&key), world.now()));
    let answers: Vec<Accepted> = join_all(asks).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1);
    assert_eq!(world.jobs().await.len(), 1);
    let other = json!({"service": "transform"});
    let other = submit(&world.backend, world.account, &other, Some(&key), world.now()).await;
    assert!(matches!(other, Err(SubmitError::KeyReused)));
    // The object is gone since: the answer is still the first one.
    std::fs::remove_file(world.folder.path().join("in/clip.mov")).unwrap();
    let late = submit(&world.backend, world.account, &request, Some(&key), world.now()).await.unwrap();
    assert!(late.replayed);
}

#[tokio::test]
async fn a_key_of_a_refused_request_is_free() {
    let world = World::new().await;
    let (request, key) = (world.request("clip.mov"), key());
    let refused = submit(&world.backend, world.account, &request, Some(&key), world.now()).await;
    assert!(matches!(refused, Err(SubmitError::Invalid(_))));
    world.write("clip.mov", "media");
    let mut mended = request.clone();
    mended["priority"] = json!(7);
    let accepted = submit(&world.backend, world.account, &mended, Some(&key), world.now()).await.unwrap();
    assert!(!accepted.replayed);
}

#[tokio::test]
async fn each_of_many_is_accepted_or_refused_on_its_own() {
    let world = World::new().await;
    world.write("clip.mov", "media");
    let bodies: Vec<Value> = (0..130)
        .map(|n| if n % 10 == 3 { world.request("missing.mov") } else { world.request("clip.mov") })
        .collect();
    let key = key();
    let ask = || submit_many(&world.backend, world.account, &bodies, Some(&key), world.now());
    let first = ask().await.unwrap();
    assert!(!first.replayed);
    for (n, result) in first.results.iter().enumerate() {
        assert_eq!(matches!(result, Err(Refusal::Invalid(_))), n % 10 == 3, "item {n}: {result:?}");
    }
    assert_eq!(world.jobs().await.len(), 117);
    // What was refused is refused again, although it could be accepted now: it is the same answer.
    world.write("missing.mov", "media");
    let again = ask().await.unwrap();
    assert_eq!((again.results, again.replayed), (first.results, true));
    assert_eq!(world.jobs().await.len(), 117);
    assert_eq!(world.backend.queue.depth(&region()).await.unwrap().visible, 117);
    world.check_histories().await;
    let too_many = vec![json!({}); MAX_JOBS + 1];
    let refused = submit_many(&world.backend, world.account, &too_many, None, world.now()).await;
    assert!(matches!(refused, Err(SubmitError::TooMany(1001))));
}

#[tokio::test]
async fn a_bulk_that_died_in_the_middle_converges() {
    let world = World::new().await;
    world.write("clip.mov", "media");
    let bodies = vec![world.request("clip.mov"); 60];
    let key = key();
    // The claim, the first chunk of fifty, then nothing works for as long as it is tried.
    for nth in 3..3 + 11 * u64::from(crate::record::TRIES) {
        world.table.fail_transaction(nth, Fault::Refused);
    }
    let ask = || submit_many(&world.backend, world.account, &bodies, Some(&key), world.now());
    let first = tokio::time::timeout(Duration::from_secs(2), ask()).await;
    assert!(first.is_err(), "the caller died");
    let made: BTreeSet<JobId> = world.jobs().await.into_iter().map(|job| job.id).collect();
    assert_eq!(made.len(), 50);
    world.table.mend();
    world.clock.advance(Duration::from_secs(60));
    let second = submit_many(&world.backend, world.account, &bodies, Some(&key), world.now()).await.unwrap();
    let ids: BTreeSet<JobId> = second.results.iter().map(|result| result.as_ref().unwrap().id).collect();
    assert_eq!(ids.len(), 60);
    assert!(made.is_subset(&ids), "what was made before is part of the answer");
    assert_eq!(world.jobs().await.len(), 60);
}

#[tokio::test]
async fn bulks_with_one_key_at_once_make_one_set_of_jobs() {
    let world = World::new().await;
    world.write("clip.mov", "media");
    let (bodies, key) = (vec![world.request("clip.mov"); 5], key());
    let asks = (0..8).map(|_| submit_many(&world.backend, world.account, &bodies, Some(&key), world.now()));
    let answers: Vec<AcceptedMany> = join_all(asks).await.into_iter().map(Result::unwrap).collect();
    for answer in &answers {
        assert_eq!(answer.results, answers[0].results);
    }
    assert_eq!(world.jobs().await.len(), 5);
    world.check_histories().await;
}

#[tokio::test]
async fn a_retry_is_a_new_job_that_names_the_old_one() {
    let world = World::new().await;
    let job = world.submitted("clip.mov").await;
    let (backend, account, key) = (&world.backend, world.account, key());
    let early = retry(backend, account, job.id, None, world.now()).await;
    assert!(matches!(early, Err(SubmitError::Change(ChangeError::Illegal { .. }))));
    cancel(backend, account, job.id, world.now()).await.unwrap();
    world.write("clip.mov", "other media");
    let first = retry(backend, account, job.id, Some(&key), world.now()).await.unwrap();
    let again = retry(backend, account, job.id, Some(&key), world.now()).await.unwrap();
    assert_eq!((first.job.id, again.replayed), (again.job.id, true));
    assert_ne!(first.job.spec.inputs, job.spec.inputs, "pinned to what is there now");
    assert_eq!(first.job.spec.composition, job.spec.composition);
}

#[tokio::test]
async fn accounts_see_nothing_of_each_other() {
    let world = World::new().await;
    let job = world.submitted("clip.mov").await;
    let other = AccountId::new(world.now(), 99);
    let (backend, now) = (&world.backend, world.now());
    assert_eq!(find(backend, other, job.id).await.unwrap(), None);
    assert!(attempts(backend, other, job.id).await.unwrap().is_empty());
    assert!(history(backend, other, job.id, 0, 10).await.unwrap().is_empty());
    let all = JobFilter::default();
    assert!(list(backend, other, &all, 10, None).await.unwrap().items.is_empty());
    for result in [cancel(backend, other, job.id, now).await, hold(backend, other, job.id, now).await] {
        assert!(matches!(result, Err(ChangeError::NotFound(_))));
    }
    let edited = edit(backend, other, job.id, JobEdit::default(), None, now).await;
    assert!(matches!(edited, Err(EditError::Change(ChangeError::NotFound(_)))));
    let foreign = submit(backend, other, &world.request("clip.mov"), None, now).await;
    assert!(matches!(foreign, Err(SubmitError::Invalid(_))), "another account's stores");
    assert_eq!(world.job(job.id).await, job);
}

#[tokio::test]
async fn edits_are_conditional_and_checked() {
    let world = World::new().await;
    let job = world.submitted("clip.mov").await;
    let (backend, account, now) = (&world.backend, world.account, world.now());
    let priority = |priority| JobEdit { priority: Some(priority), labels: None };
    let changed = edit(backend, account, job.id, priority(900), Some(1), now).await.unwrap();
    assert_eq!((changed.spec.priority, changed.version), (900, 2));
    let late = edit(backend, account, job.id, priority(1), Some(1), now).await;
    assert!(matches!(late, Err(EditError::Change(ChangeError::Outdated { version: 2, .. }))));
    let wrong = edit(backend, account, job.id, priority(1001), None, now).await;
    assert!(matches!(wrong, Err(EditError::Invalid(_))));
    world.assigned(job.id).await;
    let busy = edit(backend, account, job.id, priority(1), None, now).await;
    assert!(matches!(busy, Err(EditError::Change(ChangeError::Illegal { .. }))));
    let labels = JobEdit { priority: None, labels: Some([("a".to_owned(), "b".to_owned())].into()) };
    assert_eq!(edit(backend, account, job.id, labels, None, now).await.unwrap().spec.labels["a"], "b");
    world.check_histories().await;
}

#[tokio::test]
async fn lists_are_newest_first_filtered_and_paged() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for n in 0..7 {
        world.clock.advance(Duration::from_millis(1));
        let job = world.submitted("clip.mov").await;
        if n % 2 == 0 {
            cancel(&world.backend, world.account, job.id, world.now()).await.unwrap();
            ids.push(job.id);
        }
    }
    ids.reverse();
    let filter = JobFilter { state: Some(StateName::Canceled), ..JobFilter::default() };
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = list(&world.backend, world.account, &filter, 2, after).await.unwrap();
        found.extend(page.items.into_iter().map(|job| job.id));
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(found, ids);
}

#[tokio::test]
async fn a_lost_hint_is_sent_again_and_what_waits_too_long_ends() {
    let world = World::new().await;
    let job = world.submitted("clip.mov").await;
    let (backend, queue) = (&world.backend, &world.backend.queue);
    let hints = queue.receive(&region(), 10, Duration::ZERO, Duration::from_secs(60)).await.unwrap();
    queue.acknowledge(&region(), &[hints[0].receipt.clone()]).await.unwrap();
    let patience = Duration::from_secs(30);
    let again = async |known: bool| {
        sweep::rehint(backend, &region(), |_| known, patience, world.now()).await.unwrap()
    };
    assert!(again(false).await.is_empty(), "too early");
    world.clock.advance(patience);
    assert!(again(true).await.is_empty(), "somebody knows it");
    assert_eq!(again(false).await, [job.id]);
    assert_eq!(queue.depth(&region()).await.unwrap().visible, 1);
    assert_eq!(sweep::overdue(backend, &region(), world.now()).await.unwrap(), sweep::Overdue::default());
    world.clock.advance(Duration::from_secs(8 * 24 * 3600));
    let ended = sweep::overdue(backend, &region(), world.now()).await.unwrap();
    assert_eq!((ended.expired, ended.timed_out), (vec![job.id], vec![]));
    assert_eq!(world.job(job.id).await.state.name(), StateName::Expired);
}

#[tokio::test]
async fn an_explanation_counts_who_is_ahead() {
    let world = World::new().await;
    world.submitted("clip.mov").await;
    world.clock.advance(Duration::from_secs(1));
    let job = world.submitted("clip.mov").await;
    let explained = crate::explain::explain(&world.backend, world.account, job.id, world.now()).await;
    let explained = explained.unwrap().unwrap();
    assert_eq!((explained.job, explained.position.map(|it| it.before)), (job.id, Some(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_changes_at_once_leave_a_history_without_gaps() {
    let world = World::new().await;
    let job = world.submitted("clip.mov").await;
    for nth in [3, 7, 11] {
        world.table.fail_transaction(nth, Fault::LostAfter);
    }
    let changes = (0..6u16).map(|n| {
        let (backend, account, now) = (world.backend.clone(), world.account, world.now());
        tokio::spawn(async move {
            match n % 3 {
                0 => hold(&backend, account, job.id, now).await.map(drop),
                1 => release(&backend, account, job.id, now).await.map(drop),
                _ => {
                    let edit_to = JobEdit { priority: Some(n), labels: None };
                    let edited = edit(&backend, account, job.id, edit_to, None, now).await;
                    assert!(edited.is_ok(), "{edited:?}");
                    Ok(())
                }
            }
        })
    });
    for result in join_all(changes).await {
        result.unwrap().unwrap();
    }
    world.check_histories().await;
    let history = history(&world.backend, world.account, job.id, 0, 100).await.unwrap();
    let edits = history.iter().filter(|record| record.event == Happened::Edited).count();
    assert_eq!(edits, 2, "each edit once, whatever was not confirmed");
    let tokens: BTreeSet<&String> = history.iter().map(|record| &record.token).collect();
    assert_eq!(tokens.len(), history.len(), "each change by another call");
}

#[tokio::test]
async fn a_region_that_nobody_runs_is_refused_where_it_is_named() {
    let mut world = World::new().await;
    world.write("a.mov", "media");
    let factory = world.factory("one", "in", "", "out").await;
    world.backend.regions = std::sync::Arc::from(["south".parse().unwrap(), "north".parse().unwrap()]);
    let refused = async |body: Value| {
        let problems = match submit(&world.backend, world.account, &body, None, world.now()).await {
            Err(SubmitError::Invalid(problems)) => problems,
            other => panic!("{other:?}"),
        };
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert_eq!(problem.code, "unknown_region");
        problem.clone()
    };
    let named = |region: &str| {
        let mut body = world.request("a.mov");
        body["region"] = json!(region);
        body
    };
    let explicit = refused(named("west")).await;
    assert_eq!(explicit.pointer, "/region");
    assert!(explicit.message.contains("`west`") && explicit.message.contains("south, north"), "{explicit}");
    let of_store = refused(world.request("a.mov")).await;
    assert_eq!(of_store.pointer, "/composition/inputs/source/store", "the store says so");
    let nothing = json!({"service": "transform", "composition": {"inputs": {}, "outputs": {}}});
    assert_eq!(refused(nothing).await.pointer, "/region", "the account's default");
    let explicit = json!({"factory": "one", "input": "a.mov", "region": "west"});
    assert_eq!(refused(explicit).await.pointer, "/region", "the request wins over the factory");
    let body = serde_json::to_value(&factory).unwrap();
    let mut body = json!({
        "name": "one", "service": "transform", "composition": body["composition"], "watch": [],
        "region": "south",
    });
    crate::factories::replace(&world.backend, world.account, "one", &body, None, world.now()).await.unwrap();
    submit(&world.backend, world.account, &named("north"), None, world.now()).await.unwrap();
    world.backend.regions = std::sync::Arc::from(["north".parse().unwrap()]);
    let by_factory = json!({"factory": "one", "input": "a.mov"});
    let problems = submit(&world.backend, world.account, &by_factory, None, world.now()).await.unwrap_err();
    assert!(problems.to_string().contains("/factory: no manager here runs region `south`"), "{problems}");
    body["region"] = json!("west");
    let again =
        crate::factories::replace(&world.backend, world.account, "one", &body, None, world.now()).await;
    assert!(again.unwrap_err().to_string().contains("/region: no manager here runs region `west`"));
    let provider = world.input.provider.clone();
    let secret = telecine_stores::StoreSecret::None;
    let new = stores::NewStore { name: "new".to_owned(), provider, region: "west".parse().unwrap(), secret };
    let store = stores::create(&world.backend, world.account, new, world.now()).await.unwrap_err();
    assert!(store.to_string().contains("/region: no manager here runs region `west`"), "{store}");
}
