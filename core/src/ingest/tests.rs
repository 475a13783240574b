use futures::future::join_all;
use serde_json::json;
use telecine_domain::job::Origin;

use super::*;
use crate::dispatch;
use crate::fixture::{FAULTS, World, counters, manifest, region};

fn verdicts(outcomes: Vec<Outcome>) -> Vec<Verdict> {
    outcomes.into_iter().map(|outcome| outcome.verdict).collect()
}

async fn arrive(world: &World, object: &ArrivedObject) -> Vec<Verdict> {
    verdicts(arrived(&world.backend, object.clone(), world.now()).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_deliveries_at_once_make_one_job() {
    let world = World::new().await;
    let factory = world.factory("one", "in", "", "out").await;
    world.write("clip.mov", "media");
    let object = world.arrival(&world.input, "clip.mov").await;
    let deliveries = (0..100).map(|_| {
        let (backend, object, now) = (world.backend.clone(), object.clone(), world.now());
        tokio::spawn(async move { arrived(&backend, object, now).await.unwrap() })
    });
    let verdicts: Vec<Verdict> =
        join_all(deliveries).await.into_iter().flat_map(|done| verdicts(done.unwrap())).collect();
    let jobs = world.jobs().await;
    assert_eq!(jobs.len(), 1);
    let accepted = verdicts.iter().filter(|verdict| **verdict == Verdict::Accepted(jobs[0].id)).count();
    let duplicates = verdicts.iter().filter(|verdict| **verdict == Verdict::Duplicate(jobs[0].id)).count();
    assert_eq!((accepted, duplicates), (1, 99));
    let rule = factory.watch[0].id;
    assert_eq!(jobs[0].spec.origin, Origin::Arrival { factory: factory.id, rule });
    assert_eq!(jobs[0].spec.inputs.values().next().unwrap().version, object.version);
    let depth = world.backend.queue.depth(&region()).await.unwrap();
    assert_eq!(depth.visible, 1, "one hint");
}

#[tokio::test]
async fn nothing_is_lost_or_done_twice_whichever_transaction_fails() {
    for fault in FAULTS {
        for nth in 1..=2 {
            let world = World::new().await;
            world.factory("one", "in", "", "out").await;
            world.write("clip.mov", "media");
            let object = world.arrival(&world.input, "clip.mov").await;
            world.table.fail_transaction(nth, fault);
            let first = arrive(&world, &object).await;
            let jobs = world.jobs().await;
            assert_eq!(jobs.len(), 1, "{fault:?} of transaction {nth}");
            assert_eq!(first, [Verdict::Accepted(jobs[0].id)]);
            assert_eq!(arrive(&world, &object).await, [Verdict::Duplicate(jobs[0].id)]);
            world.check_histories().await;
        }
    }
}

#[tokio::test]
async fn each_rule_and_each_version_makes_its_own_job() {
    let world = World::new().await;
    world.factory("one", "in", "", "out").await;
    world.factory("two", "in", "dailies/", "out").await;
    world.write("dailies/clip.mov", "media");
    let first = world.arrival(&world.input, "dailies/clip.mov").await;
    assert_eq!(arrive(&world, &first).await.len(), 2);
    assert_eq!(world.jobs().await.len(), 2);
    world.write("dailies/clip.mov", "other media");
    let second = world.arrival(&world.input, "dailies/clip.mov").await;
    assert_ne!(first.version, second.version);
    // The late event of the first version finds the second one there: it tells of an object that is gone.
    arrive(&world, &first).await;
    arrive(&world, &second).await;
    assert_eq!(world.jobs().await.len(), 4, "two rules, two versions");
    let matched = matched(&world.backend, world.account, 10, None).await.unwrap();
    assert_eq!(matched.items.len(), 4);
}

#[tokio::test]
async fn a_factory_is_not_set_off_by_its_own_outputs_but_by_those_of_another() {
    let world = World::new().await;
    let one = world.factory("one", "out", "", "out").await;
    let two = world.factory("two", "out", "done/one/", "out").await;
    let path = world.folder.path().join("out");
    std::fs::write(path.join("clip.mov"), "media").unwrap();
    let object = world.arrival(&world.output, "clip.mov").await;
    let made = arrive(&world, &object).await;
    let job = world.jobs().await.remove(0);
    assert!(made.contains(&Verdict::Accepted(job.id)), "{made:?}");

    let attempt = world.assigned(job.id).await.attempt;
    std::fs::create_dir_all(path.join("done/one")).unwrap();
    std::fs::write(path.join("done/one/clip.mov"), "made").unwrap();
    let output = world.arrival(&world.output, "done/one/clip.mov").await;
    let mut sealed = manifest(&job);
    sealed.objects[0].etag = Some(output.version.etag.clone());
    dispatch::grant(&world.backend, attempt, sealed, counters(), world.now()).await.unwrap();

    let outcomes = arrived(&world.backend, output, world.now()).await.unwrap();
    let verdict = |factory: FactoryId| {
        outcomes.iter().find(|outcome| outcome.factory == factory).unwrap().verdict.clone()
    };
    assert_eq!(verdict(one.id), Verdict::Unmatched(NoMatch::OwnOutput { job: job.id }));
    assert!(matches!(verdict(two.id), Verdict::Accepted(_)));

    std::fs::write(path.join("done/one/clip.mov"), "somebody else's media").unwrap();
    let foreign = world.arrival(&world.output, "done/one/clip.mov").await;
    let outcomes = arrived(&world.backend, foreign, world.now()).await.unwrap();
    let of_one = outcomes.iter().find(|outcome| outcome.factory == one.id).unwrap();
    // It would write what it reads, which is another matter.
    assert!(matches!(of_one.verdict, Verdict::Refused(_)), "another version under the key: {of_one:?}");
}

#[tokio::test]
async fn outputs_below_a_folder_and_of_a_retry_are_own_outputs_too() {
    let world = World::new().await;
    let factory = world.factory("one", "in", "", "out").await;
    world.write("clip.mov", "media");
    let object = world.arrival(&world.input, "clip.mov").await;
    arrive(&world, &object).await;
    let first = world.jobs().await.remove(0);
    crate::jobs::cancel(&world.backend, world.account, first.id, world.now()).await.unwrap();
    let again = crate::jobs::retry(&world.backend, world.account, first.id, None, world.now()).await.unwrap();
    assert_eq!(again.job.spec.origin, Origin::Retry(first.id));
    let attempt = world.assigned(again.job.id).await.attempt;
    let sealed = manifest(&again.job);
    dispatch::grant(&world.backend, attempt, sealed, counters(), world.now()).await.unwrap();
    let key = "done/one/clip.mov".parse().unwrap();
    let version = ObjectVersion { etag: "any".to_owned(), version_id: None, size_bytes: 1 };
    let own = produced::own_output(&world.backend, factory.id, world.output.id, &key, &version).await;
    assert_eq!(own.unwrap(), Some(again.job.id));
    let below = "done/one/clip.mov/x".parse().unwrap();
    let own = produced::own_output(&world.backend, factory.id, world.output.id, &below, &version).await;
    assert_eq!(own.unwrap(), None, "a file is no folder");
}

#[tokio::test]
async fn what_makes_no_job_is_listed_with_the_reason_until_it_does() {
    let world = World::new().await;
    let factory = world.factory("one", "in", "dailies/", "out").await;
    for (key, bytes, reason) in [
        ("other/clip.mov", "media", "does not begin with `dailies/`"),
        ("dailies/notes.txt", "media", "does not end with `.mov`"),
        ("dailies/empty.mov", "", "is empty"),
    ] {
        world.write(key, bytes);
        let object = world.arrival(&world.input, key).await;
        arrive(&world, &object).await;
        arrive(&world, &object).await;
        let listed = unmatched(&world.backend, world.account, 10, None).await.unwrap().items;
        let of_key: Vec<&Arrival> =
            listed.iter().filter(|arrival| arrival.location.key.as_str() == key).collect();
        assert_eq!(of_key.len(), 1, "listed once");
        assert!(of_key[0].reasons[0].message.contains(reason), "{:?}", of_key[0].reasons);
    }
    factories::set_enabled(&world.backend, world.account, "one", false).await.unwrap();
    world.write("dailies/clip.mov", "media");
    let object = world.arrival(&world.input, "dailies/clip.mov").await;
    assert_eq!(arrive(&world, &object).await, [Verdict::Unmatched(NoMatch::FactoryDisabled)]);
    factories::set_enabled(&world.backend, world.account, &factory.id.to_string(), true).await.unwrap();
    assert!(matches!(arrive(&world, &object).await[..], [Verdict::Accepted(_)]));
    let listed = unmatched(&world.backend, world.account, 10, None).await.unwrap().items;
    assert!(listed.iter().all(|arrival| arrival.location.key.as_str() != "dailies/clip.mov"));
    world.clock.advance(UNMATCHED_LIFE);
    assert!(unmatched(&world.backend, world.account, 10, None).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_store_that_was_never_proven_makes_no_job() {
    let world = World::new().await;
    let provider = world.input.provider.clone();
    let (name, secret) = ("unproven".to_owned(), telecine_stores::StoreSecret::None);
    let new = stores::NewStore { name, provider, region: region(), secret };
    let store = stores::create(&world.backend, world.account, new, world.now()).await.unwrap();
    world.factory("one", "unproven", "", "out").await;
    world.write("clip.mov", "media");
    let object = world.arrival(&store, "clip.mov").await;
    assert_eq!(arrive(&world, &object).await, [Verdict::Unmatched(NoMatch::StoreNotValidated)]);
    assert_eq!(reconcile(&world.backend, store.id, world.now()).await.unwrap().seen, 0);
    stores::validate(&world.backend, world.account, "unproven", world.now()).await.unwrap();
    assert_eq!(reconcile(&world.backend, store.id, world.now()).await.unwrap().accepted, 1);
}

#[tokio::test]
async fn reconcile_finds_what_lost_its_event_and_nothing_twice() {
    let world = World::new().await;
    world.factory("one", "in", "", "out").await;
    for name in ["a", "b c", "d'\"\n%20"] {
        world.write(&format!("{name}.mov"), "media");
    }
    let found = reconcile(&world.backend, world.input.id, world.now()).await.unwrap();
    assert_eq!(found, Reconciled { seen: 3, accepted: 3 });
    let again = reconcile(&world.backend, world.input.id, world.now()).await.unwrap();
    assert_eq!(again, Reconciled { seen: 3, accepted: 0 });
    assert_eq!(world.jobs().await.len(), 3);
    let watched = watched_stores(&world.backend).await.unwrap();
    assert_eq!(watched.iter().map(|watched| watched.store.id).collect::<Vec<_>>(), [world.input.id]);
}

#[tokio::test]
async fn what_a_factory_cannot_make_a_job_of_is_refused_and_listed() {
    let world = World::new().await;
    world.factory("one", "in", "", "out").await;
    let version = "1.2.0".parse().unwrap();
    let withdrawn = telecine_domain::engine::Lifecycle::Withdrawn;
    let service = "transform".parse().unwrap();
    let platform = AccountId::PLATFORM;
    crate::engines::set_lifecycle(&world.backend, platform, &service, &version, withdrawn, None)
        .await
        .unwrap();
    world.write("clip.mov", "media");
    let object = world.arrival(&world.input, "clip.mov").await;
    let verdicts = arrive(&world, &object).await;
    let [Verdict::Refused(problems)] = &verdicts[..] else { panic!("{verdicts:?}") };
    assert_eq!(problems[0].code, "engine_version_unusable");
    let listed = unmatched(&world.backend, world.account, 10, None).await.unwrap().items;
    assert!(listed[0].reasons[0].message.contains("withdrawn"), "{:?}", listed[0].reasons);
}

#[tokio::test]
async fn an_object_that_is_gone_makes_nothing() {
    let world = World::new().await;
    world.factory("one", "in", "", "out").await;
    world.write("clip.mov", "media");
    let object = world.arrival(&world.input, "clip.mov").await;
    std::fs::remove_file(world.folder.path().join("in/clip.mov")).unwrap();
    assert_eq!(arrive(&world, &object).await, [Verdict::Gone]);
    assert!(world.jobs().await.is_empty());
}

#[tokio::test]
async fn a_rule_that_is_added_changed_or_switched_on_later_is_told_and_sees_what_is_there() {
    let world = World::new().await;
    let (backend, account) = (&world.backend, world.account);
    world.factory("one", "in", "", "out").await;
    world.write("clip.mov", "media");
    let reconciled = async || reconcile(backend, world.input.id, world.now()).await.unwrap().accepted;
    let mark = async || watched_stores(backend).await.unwrap().remove(0).mark;
    assert_eq!(reconciled().await, 1);

    let first = mark().await;
    assert_eq!(mark().await, first, "nothing changed");
    let two = world.factory("two", "in", "", "out").await;
    let second = mark().await;
    assert_ne!(second, first, "a factory more");
    assert_eq!((reconciled().await, reconciled().await), (1, 0), "the new rule's job, once");

    factories::set_enabled(backend, account, "two", false).await.unwrap();
    world.write("later.mov", "media");
    assert_eq!(reconciled().await, 1, "the other one's");
    let third = mark().await;
    factories::set_enabled(backend, account, "two", true).await.unwrap();
    assert!(mark().await != third && third != second, "switched off and on");
    assert_eq!((reconciled().await, reconciled().await), (1, 0), "what came meanwhile");

    let fourth = mark().await;
    let body = json!({
        "name": "two", "service": "transform", "composition": two.composition,
        "watch": [{"store": "in", "suffixes": [".mov"]}, {"store": "in", "suffixes": [".txt"]}],
    });
    world.write("notes.txt", "words");
    factories::replace(backend, account, "two", &body, None, world.now()).await.unwrap();
    assert_ne!(mark().await, fourth, "a rule more");
    assert_eq!((reconciled().await, reconciled().await), (1, 0), "the new rule's; the old one kept its own");

    let fifth = mark().await;
    world.clock.advance(Duration::from_secs(1));
    stores::validate(backend, account, "in", world.now()).await.unwrap();
    assert_ne!(mark().await, fifth, "proven again");
    factories::remove(backend, account, "one", None).await.unwrap();
    factories::remove(backend, account, "two", None).await.unwrap();
    assert!(watched_stores(backend).await.unwrap().is_empty());
}
