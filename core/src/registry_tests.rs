//! Stores, factories and engine versions: what is registered by name.

use std::collections::BTreeSet;

use futures::future::join_all;
use serde_json::{Value, json};
use telecine_domain::engine::{EngineVersion, Lifecycle};
use telecine_domain::factory::Factory;
use telecine_domain::id::AccountId;
use telecine_domain::store::{Permission, Provider};
use telecine_stores::StoreSecret;

use crate::engines::{self, EnginesError};
use crate::factories::{self, FactoriesError};
use crate::fixture::{FAULTS, World, region};
use crate::stores::{self, NewStore, StoresError};

fn local(name: &str) -> NewStore {
    let provider = Provider::Local { folder: "/no/such/folder".to_owned() };
    NewStore { name: name.to_owned(), provider, region: region(), secret: StoreSecret::None }
}

fn pointers(problems: &[crate::problem::Problem]) -> BTreeSet<&str> {
    problems.iter().map(|problem| problem.pointer.as_str()).collect()
}

#[tokio::test]
async fn a_secret_is_in_no_row_and_a_name_is_one_stores() {
    let world = World::new().await;
    let provider = json!({"provider": "s3", "bucket": "masters", "endpoint": "https://objects.example.com"});
    let secret = json!({"s3_keys": {"access_key_id": "AKIA", "secret_access_key": "very-secret-indeed"}});
    let new = NewStore {
        name: "masters".to_owned(),
        provider: serde_json::from_value(provider).unwrap(),
        region: region(),
        secret: serde_json::from_value(secret).unwrap(),
    };
    let tries = (0..10).map(|_| stores::create(&world.backend, world.account, new.clone(), world.now()));
    let results = join_all(tries).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "of ten at once one is made");
    for error in results.into_iter().filter_map(Result::err) {
        assert!(matches!(&error, StoresError::Invalid(problems) if problems[0].code == "name_taken"));
    }
    let hex = hex::encode("very-secret-indeed");
    for row in world.table.rows() {
        let text = row.body.to_string();
        assert!(!text.contains("very-secret-indeed") && !text.contains(&hex), "{:?}", row.key);
    }
    let found = stores::find(&world.backend, world.account, "masters").await.unwrap().unwrap().value;
    let by_id = stores::find(&world.backend, world.account, &found.id.to_string()).await.unwrap();
    assert_eq!(by_id.unwrap().value, found);
    assert_eq!(stores::find_anywhere(&world.backend, found.id).await.unwrap(), Some(found));
    let other = AccountId::new(world.now(), 9);
    assert!(stores::find(&world.backend, other, "masters").await.unwrap().is_none());
    assert!(stores::create(&world.backend, other, new, world.now()).await.is_ok(), "names are per account");
}

#[tokio::test]
async fn no_store_reaches_the_platforms_own_folder() {
    let mut world = World::new().await;
    let data = world.folder.path().join("in");
    let job = world.submitted("clip.mov").await;
    let attempt = world.assigned(job.id).await.attempt;
    // From here on the folder of store `in` is the platform's own, as in an installation that is older than the rule.
    world.backend.forbidden_folders = std::sync::Arc::from([data.clone()]);
    let (backend, account, now) = (&world.backend, world.account, world.now());
    for folder in [data.clone(), data.join("system"), world.folder.path().to_owned(), "/etc/ssl".into()] {
        let folder = folder.to_str().unwrap().to_owned();
        let new = NewStore { provider: Provider::Local { folder: folder.clone() }, ..local("own") };
        match stores::create(backend, account, new, now).await {
            Err(StoresError::Invalid(problems)) => {
                assert_eq!((problems[0].code.as_str(), problems.len()), ("folder_refused", 1));
                assert!(problems[0].message.contains(&folder), "{problems:?}");
            }
            other => panic!("{folder}: {other:?}"),
        }
    }
    assert!(matches!(stores::open(backend, &world.input, now).await, Err(StoresError::Open(_))));
    assert!(stores::open(backend, &world.output, now).await.is_ok());
    let validation = stores::validate(backend, account, "in", now).await.unwrap().validation.unwrap();
    assert!(!validation.allows(Permission::Read) && validation.checks.len() == 4);
    let access = crate::dispatch::store_access(backend, attempt, std::time::Duration::ZERO, now).await;
    assert!(matches!(access, Err(crate::dispatch::AccessError::Refused { store, .. }) if store == "in"));
}

#[tokio::test]
async fn bad_stores_are_refused_with_every_problem() {
    let world = World::new().await;
    let secret: StoreSecret =
        serde_json::from_value(json!({"s3_keys": {"access_key_id": "", "secret_access_key": ""}})).unwrap();
    let refused = async |name: &str, provider: Value, secret: &StoreSecret| {
        let provider = serde_json::from_value(provider).unwrap();
        let new = NewStore { name: name.to_owned(), provider, region: region(), secret: secret.clone() };
        match stores::create(&world.backend, world.account, new, world.now()).await {
            Err(StoresError::Invalid(problems)) => problems,
            other => panic!("{other:?}"),
        }
    };
    for folder in ["media", "", "/a/../b", "/a\0b"] {
        let found = refused("a b", json!({"provider": "local", "folder": folder}), &secret).await;
        assert_eq!(pointers(&found), BTreeSet::from(["/name", "/provider/folder", "/secret"]), "{folder:?}");
    }
    let s3 = json!({"provider": "s3", "bucket": "A", "prefix": "no-slash", "endpoint": "http://127.0.0.1:9"});
    let found = refused("s", s3, &secret).await;
    let expected = ["/provider/bucket", "/provider/endpoint", "/provider/prefix", "/secret"];
    assert_eq!(pointers(&found), BTreeSet::from(expected));
    let s3 = json!({"provider": "s3", "bucket": "abc", "endpoint": "https://user:password@host"});
    let found = refused("s", s3, &StoreSecret::None).await;
    assert_eq!(pointers(&found), BTreeSet::from(["/provider/endpoint", "/secret"]));
}

#[tokio::test]
async fn a_store_is_validated_for_real_and_removed_only_when_nobody_watches() {
    let world = World::new().await;
    for permission in [Permission::List, Permission::Read, Permission::Write, Permission::Delete] {
        assert!(world.input.validation.as_ref().unwrap().allows(permission), "{permission:?}");
    }
    world.factory("one", "in", "", "out").await;
    let (backend, account) = (&world.backend, world.account);
    let used = stores::remove(backend, account, "in").await;
    assert!(matches!(used, Err(StoresError::InUse { .. })));
    factories::remove(backend, account, "one", None).await.unwrap();
    stores::remove(backend, account, "in").await.unwrap();
    assert!(matches!(stores::remove(backend, account, "in").await, Err(StoresError::NotFound(_))));
    assert!(stores::find_anywhere(backend, world.input.id).await.unwrap().is_none());
    stores::create(backend, account, local("in"), world.now()).await.expect("the name is free again");
    let missing = stores::validate(backend, account, "in", world.now()).await.unwrap();
    assert!(!missing.validation.unwrap().allows(Permission::Read), "there is no such folder");
}

#[tokio::test]
async fn names_and_watchers_follow_a_factory_whichever_transaction_fails() {
    for fault in FAULTS {
        let world = World::new().await;
        let (backend, account) = (&world.backend, world.account);
        world.table.fail_transaction(1, fault);
        let made = world.factory("one", "in", "a/", "out").await;
        let mut body = json!({
            "name": "renamed", "service": "transform", "composition": made.composition,
            "watch": [
                {"store": "in", "prefix": "a/", "suffixes": [".mov"]}, {"store": "out", "prefix": "b/"},
            ],
        });
        world.table.fail_transaction(1, fault);
        let replaced =
            factories::replace(backend, account, "one", &body, Some(1), world.now()).await.unwrap();
        assert_eq!((replaced.version, replaced.id), (2, made.id));
        assert_eq!(replaced.watch[0].id, made.watch[0].id, "the rule is the same: it remembers");
        assert_ne!(replaced.watch[1].id, made.watch[0].id);
        let watching = async |store| factories::watching(backend, store).await.unwrap();
        assert_eq!(watching(world.output.id).await, vec![replaced.clone()]);
        assert!(factories::find(backend, account, "one").await.unwrap().is_none(), "the old name is free");
        let late = factories::replace(backend, account, "renamed", &body, Some(1), world.now()).await;
        assert!(matches!(late, Err(FactoriesError::Outdated { version: 2, .. })));
        body["watch"] = json!([]);
        factories::replace(backend, account, "renamed", &body, None, world.now()).await.unwrap();
        assert!(watching(world.input.id).await.is_empty() && watching(world.output.id).await.is_empty());
        world.factory("second", "in", "", "out").await;
        body["name"] = json!("second");
        let taken = factories::replace(backend, account, "renamed", &body, None, world.now()).await;
        assert!(matches!(taken, Err(FactoriesError::Invalid(problems)) if problems[0].code == "name_taken"));
        world.table.fail_transaction(1, fault);
        factories::remove(backend, account, "renamed", None).await.unwrap();
        assert!(factories::find(backend, account, &made.id.to_string()).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_factory_is_refused_with_every_problem() {
    let world = World::new().await;
    let body = json!({
        "name": "-", "service": "transform", "engine_version": "7.0.0", "extra": 1, "region": "No",
        "composition": {
            "inputs": {"source": {"store": "nowhere", "key": "{input.key}"}},
            "outputs": {"main": {"store": "out", "key": "x/{input.stem}.mp4"}},
        },
        "watch": [{"store": "nowhere"}, {"prefix": "/a", "colour": 1}],
        "defaults": {"priority": 2000},
    });
    let refused = factories::create(&world.backend, world.account, &body, world.now()).await;
    let Err(FactoriesError::Invalid(problems)) = refused else { panic!("{refused:?}") };
    let expected = [
        "/composition/inputs/source/store",
        "/defaults/priority",
        "/engine_version",
        "/extra",
        "/name",
        "/region",
        "/watch/0/store",
        "/watch/1/colour",
        "/watch/1/prefix",
        "/watch/1/store",
    ];
    assert_eq!(pointers(&problems), BTreeSet::from(expected));
    let placeholder = json!({
        "name": "a", "service": "transform",
        "composition": {"inputs": {}, "outputs": {"main": {"store": "out", "key": "{input.size}"}}},
    });
    let refused = factories::create(&world.backend, world.account, &placeholder, world.now()).await;
    let Err(FactoriesError::Invalid(problems)) = refused else { panic!("{refused:?}") };
    assert_eq!(pointers(&problems), BTreeSet::from(["/composition/outputs/main/key"]));
    let nothing: Result<Factory, _> =
        factories::create(&world.backend, world.account, &json!({}), world.now()).await;
    let Err(FactoriesError::Invalid(problems)) = nothing else { panic!("{nothing:?}") };
    assert_eq!(pointers(&problems), BTreeSet::from(["/composition", "/name", "/service"]));
}

fn engine(version: &str, lifecycle: &str) -> EngineVersion {
    let engine = json!({
        "service": "transform", "version": version, "resources": {},
        "launch": {"command": {"program": "/bin/true"}}, "lifecycle": lifecycle, "processing_schema": true,
    });
    serde_json::from_value(engine).unwrap()
}

#[tokio::test]
async fn what_was_published_never_changes_but_its_place_in_its_life() {
    let world = World::new().await;
    let (backend, account, now) = (&world.backend, world.account, world.now());
    let service = "transform".parse().unwrap();
    for version in ["1.10.0", "1.9.0", "1.10.0-rc.1"] {
        engines::publish(backend, account, engine(version, "stable")).await.unwrap();
    }
    let listed = engines::list(backend, account, &service).await.unwrap();
    let versions: Vec<String> = listed.iter().map(|engine| engine.version.to_string()).collect();
    assert_eq!(versions, ["1.2.0", "1.9.0", "1.10.0-rc.1", "1.10.0"], "the platform's and the account's own");
    let recommended = async || {
        let found = engines::recommended(backend, account, &service, now).await.unwrap();
        found.unwrap().version.to_string()
    };
    assert_eq!(recommended().await, "1.10.0");
    let newest = "1.10.0".parse().unwrap();
    let withdraw = Lifecycle::Withdrawn;
    engines::set_lifecycle(backend, account, &service, &newest, withdraw, None).await.unwrap();
    assert_eq!(recommended().await, "1.10.0-rc.1");
    let again = engines::publish(backend, account, engine("1.10.0", "stable")).await.unwrap();
    assert_eq!(again.lifecycle, Lifecycle::Withdrawn, "publishing the same again brings nothing back");
    let mut other = engine("1.10.0", "stable");
    other.changelog = "changed".to_owned();
    let refused = engines::publish(backend, account, other).await;
    assert!(matches!(refused, Err(EnginesError::Published { .. })));
    let platforms = "1.2.0".parse().unwrap();
    let foreign = engines::set_lifecycle(backend, account, &service, &platforms, withdraw, None).await;
    assert!(matches!(foreign, Err(EnginesError::NotFound { .. })), "not the account's own");
    let mut broken = engine("2.0.0", "stable");
    broken.processing_schema = json!({"type": "no such type"});
    let refused = engines::publish(backend, account, broken).await;
    assert!(matches!(refused, Err(EnginesError::Invalid(_))));
    assert_eq!(engines::services(backend, account).await.unwrap(), [service]);
}
