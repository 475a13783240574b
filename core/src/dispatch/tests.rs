use std::time::Duration;

use futures::future::join_all;
use telecine_domain::attempt::AttemptState;
use telecine_domain::failure::FailureClass;
use telecine_domain::id::{AttemptNumber, Epoch};
use telecine_domain::job::StateName;

use super::*;
use crate::fixture::{FAULTS, World, counters, instance, manifest, region};
use crate::memory::Fault;
use crate::update::Happened;
use crate::{jobs, sweep};

fn failure(class: FailureClass) -> Failure {
    Failure::new(class, "test", "made to fail")
}

/// A job from submission to its published outputs.
async fn whole_life(world: &World) -> Job {
    let job = world.submitted("clip.mov").await;
    let AssignedAttempt { attempt, .. } = world.assigned(job.id).await;
    let (backend, now) = (&world.backend, world.now());
    enter_phase(backend, attempt, Phase::Pulling, now).await.unwrap();
    started(backend, attempt, now).await.unwrap();
    engine_running(backend, attempt, now).await.unwrap();
    grant(backend, attempt, manifest(&job), counters(), now).await.unwrap();
    published(backend, attempt, None, now).await.unwrap()
}

#[tokio::test]
async fn a_row_that_nobody_can_read_stops_no_other_job() {
    let world = World::new().await;
    let mut jobs = Vec::new();
    for name in ["a.mov", "b.mov", "c.mov", "d.mov"] {
        jobs.push(world.submitted(name).await.id);
    }
    world.assigned(jobs[2]).await;
    world.assigned(jobs[3]).await;
    let table = world.backend.table.as_ref();
    // One row is no job, of the other a part is gone from the system store.
    let damage = async |job: JobId, damaged: fn(&mut serde_json::Value)| {
        let mut row = table.get(&layout::job(job, world.account)).await.unwrap().unwrap();
        damaged(&mut row.body);
        table.transact(vec![record::put(row, Condition::Any)]).await.unwrap();
    };
    damage(jobs[0], |body| body["job"]["spec"] = serde_json::json!("not a spec")).await;
    damage(jobs[2], |body| {
        let gone = serde_json::json!({"sha256": "0".repeat(64), "size_bytes": 1});
        body["bulk"] = serde_json::json!({"/spec/composition": gone});
    })
    .await;
    for damaged in [jobs[0], jobs[2]] {
        let error = load(&world.backend, damaged).await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
    }
    let (all, none) = (&world.backend, None);
    let ids = |listed: Listed<Job>| listed.items.into_iter().map(|job| job.id).collect::<Vec<_>>();
    assert_eq!(ids(queued(all, &region(), 10, none.clone()).await.unwrap()), [jobs[1]]);
    assert_eq!(ids(live(all, &region(), 10, none).await.unwrap()), [jobs[3]]);
    let later = world.now().after(Duration::from_secs(1000));
    let hinted = sweep::rehint(all, &region(), |_| false, Duration::ZERO, later).await.unwrap();
    assert_eq!(hinted, [jobs[1]]);
    sweep::overdue(all, &region(), later).await.unwrap();
}

#[tokio::test]
async fn nothing_is_lost_or_done_twice_whichever_transaction_fails() {
    let world = World::new().await;
    let before = world.table.transactions();
    whole_life(&world).await;
    let transactions = world.table.transactions() - before;
    for fault in FAULTS {
        for nth in 1..=transactions {
            let world = World::new().await;
            world.table.fail_transaction(nth, fault);
            let job = whole_life(&world).await;
            assert_eq!(job.state.name(), StateName::Succeeded, "{fault:?} of transaction {nth}");
            assert_eq!(world.jobs().await, vec![job.clone()]);
            world.check_histories().await;
            let history = jobs::history(&world.backend, world.account, job.id, 0, 100).await.unwrap();
            let events: Vec<Happened> = history.iter().map(|record| record.event).collect();
            let expected = [
                Happened::Accepted,
                Happened::Assigned,
                Happened::Started,
                Happened::EngineRunning,
                Happened::Granted,
                Happened::Published,
            ];
            assert_eq!(events, expected, "{fault:?} of transaction {nth}");
            let attempts = jobs::attempts(&world.backend, world.account, job.id).await.unwrap();
            assert_eq!(attempts[0].state, AttemptState::Ended(Ending::Succeeded));
            assert_eq!(attempts[0].counters, Some(counters()));
            let phases: Vec<Phase> = attempts[0].phases.iter().map(|start| start.phase).collect();
            assert_eq!(phases, [Phase::Leased, Phase::Pulling, Phase::Running, Phase::Flushing]);
        }
    }
}

#[tokio::test]
async fn of_many_that_assign_at_once_one_wins() {
    let world = World::new().await;
    let job = world.submitted("clip.mov").await;
    let tries = (1..=20).map(|n| assign(&world.backend, job.id, instance(n), world.now()));
    let results = join_all(tries).await;
    for result in &results {
        assert!(matches!(result, Ok(_) | Err(ChangeError::Illegal { .. })), "{result:?}");
    }
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    let job = world.job(job.id).await;
    assert_eq!((job.attempts, job.epoch), (AttemptNumber(1), Epoch(1)));
    world.check_histories().await;
}

#[tokio::test]
async fn a_cancel_that_races_the_grant_wins_or_loses_whole() {
    let (mut canceled, mut granted) = (0, 0);
    for round in 0..20 {
        let world = World::new().await;
        let job = world.submitted("clip.mov").await;
        let attempt = world.assigned(job.id).await.attempt;
        let cancel = async {
            for _ in 0..round % 5 {
                tokio::task::yield_now().await;
            }
            jobs::cancel(&world.backend, world.account, job.id, world.now()).await
        };
        let grant = grant(&world.backend, attempt, manifest(&job), counters(), world.now());
        let (cancel, grant) = tokio::join!(cancel, grant);
        let job = world.job(job.id).await;
        match (&cancel, &grant) {
            (Ok(_), Err(GrantError::Change(ChangeError::Illegal { .. }))) => {
                assert_eq!(job.state.name(), StateName::Canceling);
                let late = published(&world.backend, attempt, None, world.now()).await;
                assert!(matches!(late, Err(ChangeError::Illegal { .. })));
                stopped(&world.backend, attempt, None, world.now()).await.unwrap();
                canceled += 1;
            }
            (Err(ChangeError::Illegal { .. }), Ok(_)) => {
                assert_eq!(job.state.name(), StateName::Finalizing);
                published(&world.backend, attempt, None, world.now()).await.unwrap();
                granted += 1;
            }
            other => panic!("neither or both won: {other:?}"),
        }
        world.check_histories().await;
    }
    assert!(canceled > 0 && granted > 0, "{canceled} canceled, {granted} granted: no race was tested");
}

#[tokio::test]
async fn an_attempt_that_was_declared_lost_can_do_nothing_more() {
    let world = World::new().await;
    let (backend, now) = (&world.backend, world.now());
    let job = world.submitted("clip.mov").await;
    let first = world.assigned(job.id).await.attempt;
    lost(backend, first, failure(FailureClass::Infrastructure), now).await.unwrap();
    let again = assign(backend, job.id, instance(2), now).await;
    assert!(matches!(again, Err(ChangeError::Illegal { .. })), "it pauses before the next attempt");
    world.clock.advance(Duration::from_secs(60));
    let now = world.now();
    let second = assign(backend, job.id, instance(2), now).await.unwrap().attempt;
    assert_eq!((second.attempt, second.epoch), (AttemptNumber(2), Epoch(2)));

    let stale = |result: Result<Job, ChangeError>| matches!(result, Err(ChangeError::Stale { .. }));
    assert!(stale(started(backend, first, now).await));
    assert!(stale(engine_running(backend, first, now).await));
    assert!(stale(published(backend, first, None, now).await));
    assert!(stale(failed(backend, first, failure(FailureClass::Engine), None, now).await));
    assert!(stale(stopped(backend, first, None, now).await));
    assert!(stale(lost(backend, first, failure(FailureClass::Infrastructure), now).await));
    let phase = enter_phase(backend, first, Phase::Running, now).await;
    assert!(matches!(phase, Err(ChangeError::Stale { .. })));
    let late = grant(backend, first, manifest(&job), counters(), now).await;
    assert!(matches!(late, Err(GrantError::Change(ChangeError::Stale { .. }))));
    let access = store_access(backend, first, Duration::from_secs(60), now).await;
    assert!(matches!(access, Err(AccessError::Change(ChangeError::Stale { .. }))));

    grant(backend, second, manifest(&job), counters(), now).await.unwrap();
    let attempts = jobs::attempts(backend, world.account, job.id).await.unwrap();
    assert!(matches!(attempts[0].state, AttemptState::Ended(Ending::Lost(_))));
    world.check_histories().await;
}

#[tokio::test]
async fn how_long_an_engine_worked_is_told_once_whatever_fails() {
    for fault in FAULTS {
        let world = World::new().await;
        let backend = &world.backend;
        let job = world.submitted("clip.mov").await;
        let attempt = world.assigned(job.id).await.attempt;
        engine_running(backend, attempt, world.now()).await.unwrap();
        world.clock.advance(Duration::from_secs(42));
        world.table.fail_transaction(1, fault);
        let ask = || grant(backend, attempt, manifest(&job), counters(), world.now());
        let (first, again) = (ask().await.unwrap(), ask().await.unwrap());
        assert_eq!((first.ran, again.ran), (Some(Duration::from_secs(42)), None), "{fault:?}");
    }
}

#[tokio::test]
async fn asking_again_is_answered_like_the_first_time() {
    let world = World::new().await;
    let (backend, now) = (&world.backend, world.now());
    let job = world.submitted("clip.mov").await;
    let attempt = world.assigned(job.id).await.attempt;
    let first = grant(backend, attempt, manifest(&job), counters(), now).await.unwrap();
    let again = grant(backend, attempt, manifest(&job), counters(), now).await.unwrap();
    assert_eq!(first, again);
    let mut other = manifest(&job);
    other.objects[0].size_bytes += 1;
    let other = grant(backend, attempt, other, counters(), now).await;
    assert!(matches!(other, Err(GrantError::Change(ChangeError::Illegal { .. }))), "{other:?}");
    let first = published(backend, attempt, None, now).await.unwrap();
    assert_eq!(published(backend, attempt, None, now).await.unwrap(), first);
    let late = grant(backend, attempt, manifest(&job), counters(), now).await.unwrap();
    assert_eq!(
        late,
        Granted { job: first, ran: None },
        "a repeated question that arrives after the publication"
    );
    assert_eq!(world.job(job.id).await.version, 4);
}

#[tokio::test]
async fn a_manifest_holds_what_was_declared_and_nothing_else() {
    let world = World::new().await;
    world.write("clip.mov", "media");
    let mut request = world.request("clip.mov");
    request["composition"]["outputs"]["ladder"] = serde_json::json!({"store": "out", "key": "hls/"});
    request["composition"]["outputs"]["copy"] = serde_json::json!({"store": "in", "key": "copies/"});
    let job = jobs::submit(&world.backend, world.account, &request, None, world.now()).await.unwrap().job;
    let attempt = world.assigned(job.id).await.attempt;
    let mut good = manifest(&job);
    for (slot, key) in [("ladder", "hls/a/1.ts"), ("copy", "copies/x")] {
        let object = good.objects.iter_mut().find(|object| object.slot.as_str() == slot).unwrap();
        object.key = key.parse().unwrap();
    }
    let refused = async |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        match grant(&world.backend, attempt, manifest, counters(), world.now()).await {
            Err(GrantError::Manifest(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let position = |slot: &str| good.objects.iter().position(|object| object.slot.as_str() == slot).unwrap();
    let (main, ladder) = (position("main"), position("ladder"));
    let missing = refused(&|manifest| drop(manifest.objects.remove(ladder))).await;
    assert!(matches!(missing, ManifestError::Missing { .. }));
    let nothing = refused(&|manifest| manifest.objects.clear()).await;
    assert!(matches!(nothing, ManifestError::Missing { .. }));
    for key in ["hls", "hlsx/1.ts", "other.mov", "hls/"] {
        let error = refused(&|manifest| manifest.objects[ladder].key = key.parse().unwrap()).await;
        assert!(matches!(error, ManifestError::Invalid(InvalidManifest::Foreign { .. })), "{key}: {error}");
    }
    let error = refused(&|manifest| manifest.objects[main].key = "clip.mov.bak".parse().unwrap()).await;
    assert!(matches!(error, ManifestError::Invalid(InvalidManifest::Foreign { .. })));
    let error = refused(&|manifest| manifest.objects[main].store = world.input.id).await;
    assert!(matches!(error, ManifestError::Invalid(InvalidManifest::Foreign { .. })));
    let error = refused(&|manifest| manifest.objects[main].slot = "nothing".parse().unwrap()).await;
    assert!(matches!(error, ManifestError::Invalid(InvalidManifest::Foreign { .. })));
    let error = refused(&|manifest| manifest.objects.push(manifest.objects[main].clone())).await;
    assert!(matches!(error, ManifestError::Invalid(InvalidManifest::Twice { .. })));
    let error = refused(&|manifest| manifest.objects[main].sha256 = "AB".repeat(32)).await;
    assert!(matches!(error, ManifestError::Invalid(InvalidManifest::Checksum(_))));
    let copy = position("copy");
    let hidden =
        refused(&|manifest| manifest.objects[copy].key = "copies/.telecine-1".parse().unwrap()).await;
    assert!(matches!(hidden, ManifestError::Invalid(InvalidManifest::Hidden(_))));
    grant(&world.backend, attempt, good.clone(), counters(), world.now()).await.unwrap();
}

#[tokio::test]
async fn a_folder_output_may_not_replace_an_input() {
    let world = World::new().await;
    world.write("clips/a.mov", "media");
    let mut request = world.request("clips/a.mov");
    request["composition"]["outputs"] = serde_json::json!({"main": {"store": "in", "key": "clips/"}});
    let job = jobs::submit(&world.backend, world.account, &request, None, world.now()).await.unwrap().job;
    let attempt = world.assigned(job.id).await.attempt;
    let mut sealed = manifest(&job);
    sealed.objects[0].key = "clips/a.mov".parse().unwrap();
    let refused = grant(&world.backend, attempt, sealed, counters(), world.now()).await;
    assert!(matches!(refused, Err(GrantError::Manifest(ManifestError::ReplacesInput(_)))), "{refused:?}");
}

#[tokio::test]
async fn a_large_manifest_lies_in_the_system_store_and_comes_back_whole() {
    let world = World::new().await;
    world.write("clip.mov", "media");
    let mut request = world.request("clip.mov");
    request["composition"]["outputs"] = serde_json::json!({"main": {"store": "out", "key": "hls/"}});
    let job = jobs::submit(&world.backend, world.account, &request, None, world.now()).await.unwrap().job;
    let attempt = world.assigned(job.id).await.attempt;
    let one = manifest(&job).objects.remove(0);
    let segment = |n: usize| SealedObject { key: format!("hls/{n}.ts").parse().unwrap(), ..one.clone() };
    let large = Manifest { objects: (0..5000).map(segment).collect() };
    grant(&world.backend, attempt, large.clone(), counters(), world.now()).await.unwrap();
    let done = published(&world.backend, attempt, None, world.now()).await.unwrap();
    assert_eq!(world.job(job.id).await, done);
    let JobState::Succeeded { manifest: kept, .. } = done.state else { panic!("{:?}", done.state) };
    assert_eq!(kept, large.in_publishing_order());
    let row = world.table.rows().into_iter().find(|row| row.key == layout::job(job.id, world.account));
    assert!(row.unwrap().body.to_string().len() < 64 * 1024, "the row is small");
}

#[tokio::test]
async fn sections_follow_the_job() {
    let world = World::new().await;
    let (backend, now) = (&world.backend, world.now());
    let job = world.submitted("clip.mov").await;
    let section = async || {
        let ids = |page: Listed<Job>| page.items.len();
        let queued = ids(queued(backend, &region(), 10, None).await.unwrap());
        let live = ids(live(backend, &region(), 10, None).await.unwrap());
        (queued, live, ids(held(backend, &region(), 10, None).await.unwrap()))
    };
    assert_eq!(section().await, (1, 0, 0));
    jobs::hold(backend, world.account, job.id, now).await.unwrap();
    assert_eq!(section().await, (0, 0, 1));
    jobs::release(backend, world.account, job.id, now).await.unwrap();
    let attempt = world.assigned(job.id).await.attempt;
    assert_eq!(section().await, (0, 1, 0));
    interrupted(backend, attempt, failure(FailureClass::Infrastructure), None, now).await.unwrap();
    assert_eq!(section().await, (1, 0, 0));
    jobs::cancel(backend, world.account, job.id, now).await.unwrap();
    assert_eq!(section().await, (0, 0, 0));
    world.check_histories().await;
}

#[tokio::test]
async fn a_granted_job_whose_bytes_are_lost_fails_and_one_that_is_not_granted_does_not() {
    let world = World::new().await;
    let (backend, now) = (&world.backend, world.now());
    let job = world.submitted("clip.mov").await;
    let attempt = world.assigned(job.id).await.attempt;
    let gone = || failure(FailureClass::Infrastructure);
    let early = sealed_bytes_lost(backend, attempt, gone(), now).await;
    assert!(matches!(early, Err(ChangeError::Illegal { .. })), "{early:?}");
    grant(backend, attempt, manifest(&job), counters(), now).await.unwrap();
    let failed = sealed_bytes_lost(backend, attempt, gone(), now).await.unwrap();
    assert_eq!(failed.state, JobState::Failed { failure: gone() });
    let late = published(backend, attempt, None, now).await;
    assert!(matches!(late, Err(ChangeError::Stale { .. })), "{late:?}");
    let attempts = jobs::attempts(backend, world.account, job.id).await.unwrap();
    assert_eq!(attempts[0].state, AttemptState::Ended(Ending::Failed(gone())));
    world.check_histories().await;
}

#[tokio::test]
async fn store_access_is_limited_to_the_jobs_locations() {
    let world = World::new().await;
    let job = world.submitted("clip.mov").await;
    let attempt = world.assigned(job.id).await.attempt;
    let access = store_access(&world.backend, attempt, Duration::from_secs(60), world.now()).await.unwrap();
    let at = |store: StoreId| Location { store, key: "clip.mov".parse().unwrap() };
    let grants: Vec<(StoreId, Grants)> =
        access.into_iter().map(|access| (access.store.id, access.grants)).collect();
    let (input, output) = (world.input.id, world.output.id);
    let mut expected = vec![
        (input, Grants { read: vec![at(input)], write: vec![] }),
        (output, Grants { read: vec![], write: vec![at(output)] }),
    ];
    expected.sort_by_key(|(store, _)| *store);
    assert_eq!(grants, expected);
}

#[tokio::test]
async fn a_change_that_nobody_confirms_is_reported_and_can_be_tried_again() {
    let world = World::new().await;
    let job = world.submitted("clip.mov").await;
    for nth in 1..=u64::from(record::TRIES) {
        world.table.fail_transaction(nth, Fault::LostBefore);
    }
    let result = assign(&world.backend, job.id, instance(1), world.now()).await;
    assert!(matches!(&result, Err(ChangeError::Record(error)) if error.is_transient()), "{result:?}");
    world.assigned(job.id).await;
    world.check_histories().await;
}
