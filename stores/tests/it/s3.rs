//! Buckets, against a small S3 in this process that checks every signature.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use telecine_domain::location::ObjectKey;
use telecine_domain::store::{Permission, Provider, S3Authentication};
use telecine_domain::time::Timestamp;
use telecine_stores::{OpenedStore, StoreErrorClass, StoreSecret, open, validate};

use telecine_test_support::s3::{ACCESS_KEY, Behaviour, SECRET_KEY, Service, Verb};

fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

fn provider(service: &Service, prefix: &str) -> Provider {
    Provider::S3 {
        bucket: "media".to_owned(),
        prefix: prefix.to_owned(),
        endpoint: Some(service.url()),
        signing_region: "eu-central-1".to_owned(),
        allow_http: true,
        authentication: S3Authentication::StaticKeys,
    }
}

fn secret() -> StoreSecret {
    StoreSecret::S3Keys {
        access_key_id: ACCESS_KEY.to_owned(),
        secret_access_key: SECRET_KEY.to_owned(),
        session_token: None,
    }
}

async fn opened(behaviour: Behaviour, prefix: &str) -> (Service, OpenedStore) {
    let service = Service::start(behaviour).await;
    let store = open(&provider(&service, prefix), &secret()).unwrap();
    (service, store)
}

async fn keys(store: &OpenedStore, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let entries = store.list(prefix, after, limit).await.unwrap();
    entries.into_iter().map(|entry| entry.key.to_string()).collect()
}

const HOSTILE: [&str; 16] = [
    "new\nline\r\n.mov",
    "\u{1}\t\u{1b}\u{7f}",
    "\"q\" 'q' `q`",
    "100%2Fetc%00%",
    "%0A",
    " edge ",
    "a/ b /c d.mov",
    "a+b=c&d?e#f;g:h@i",
    "<tag>&amp;</Key>",
    "[]{}|\\^~*!()$,",
    "é漢/\u{1F39E}",
    "\u{10FFFD}",
    "\u{10FFFD}0a",
    "..x/...",
    "~tilde",
    "\u{85}\u{2028}",
];

#[tokio::test]
async fn hostile_keys_reach_the_store_byte_for_byte() {
    // XML 1.0 cannot carry control characters: services that do not encode their listings cannot list those keys.
    for (prefix, encodes) in [("", true), ("below/this one/", true), ("", false)] {
        let (service, store) = opened(Behaviour { encodes, ..Behaviour::default() }, prefix).await;
        let hostile: Vec<&str> =
            HOSTILE.into_iter().filter(|name| encodes || !name.contains(char::is_control)).collect();
        for name in &hostile {
            let put = store.put(&key(name), Bytes::from((*name).to_owned())).await.unwrap();
            assert_eq!(store.head(&key(name)).await.unwrap(), Some(put), "{name:?}");
            assert_eq!(store.read_all(&key(name), 1024).await.unwrap(), name.as_bytes(), "{name:?}");
        }
        let mut whole: Vec<String> = hostile.iter().map(|name| format!("{prefix}{name}")).collect();
        whole.sort();
        assert_eq!(service.keys(), whole, "the very bytes");
        let mut names = hostile.clone();
        names.sort_unstable();
        assert_eq!(keys(&store, "", None, 100).await, names);
        for pair in names.windows(2) {
            assert_eq!(keys(&store, "", Some(pair[0]), 1).await, [pair[1]], "after {:?}", pair[0]);
            assert!(
                keys(&store, pair[1], None, 100).await.contains(&pair[1].to_owned()),
                "prefix {:?}",
                pair[1]
            );
        }
        for name in &hostile {
            store.delete(&key(name)).await.unwrap();
            store.delete(&key(name)).await.unwrap();
            assert_eq!(store.head(&key(name)).await.unwrap(), None);
        }
        assert!(service.keys().is_empty());
    }
}

#[tokio::test]
async fn keys_that_break_our_rules_do_not_break_a_listing() {
    let (service, store) = opened(Behaviour::default(), "").await;
    for foreign in ["/rooted", "a//b", "marker/", "a/../b", "./c", ".telecine-upload-1", "good", "x/y"] {
        service.insert(foreign, b"x");
    }
    assert_eq!(keys(&store, "", None, 100).await, ["good", "x/y"]);
    assert_eq!(keys(&store, "", None, 1).await, ["good"], "pages of keys left out are passed over");
    assert_eq!(keys(&store, "", Some("good"), 1).await, ["x/y"]);
    assert!(store.put(&key("marker/"), Bytes::new()).await.is_err());
    assert!(store.put(&key(".telecine-upload-2"), Bytes::new()).await.is_err());
}

#[tokio::test]
async fn long_listings_come_in_pages() {
    let (service, store) = opened(Behaviour::default(), "p/").await;
    for n in 0..2500 {
        service.insert(&format!("p/{n:05}"), b"x");
    }
    service.insert("q/other", b"x");
    let all = keys(&store, "", None, 5000).await;
    assert_eq!((all.len(), all[0].as_str(), all[2499].as_str()), (2500, "00000", "02499"));
    assert_eq!(keys(&store, "", Some("01999"), 3).await, ["02000", "02001", "02002"]);
}

#[tokio::test]
async fn large_objects_go_up_in_parts_under_hostile_keys_too() {
    let (service, store) = opened(Behaviour::default(), "").await;
    let chunk = Bytes::from(vec![7; 1024 * 1024]);
    for name in ["large.mov", "large\n.mov"] {
        let chunks = stream::iter(vec![chunk.clone(); 9]).map(Ok);
        let put = store.put_stream(&key(name), chunks.boxed()).await.unwrap();
        assert_eq!(put.size_bytes, 9 * 1024 * 1024);
        assert_eq!(store.head(&key(name)).await.unwrap(), Some(put));
        let mut read = store.read(&key(name)).await.unwrap();
        let mut size = 0;
        while let Some(chunk) = read.stream.next().await {
            let chunk = chunk.unwrap();
            assert!(chunk.iter().all(|&byte| byte == 7));
            size += chunk.len();
        }
        assert_eq!(size, 9 * 1024 * 1024);
        let error = store.read_all(&key(name), 1024).await.unwrap_err();
        assert_eq!(error.class, StoreErrorClass::Invalid, "{error}");
    }
    let torn = stream::iter(vec![chunk; 9]).map(Ok).chain(stream::iter([Err(std::io::Error::other("gone"))]));
    assert!(store.put_stream(&key("torn"), torn.boxed()).await.is_err());
    assert_eq!(store.head(&key("torn")).await.unwrap(), None);
    assert_eq!(service.open_uploads(), 0, "the parts of a failed write are taken away");
}

#[tokio::test]
async fn validate_tries_every_permission() {
    let now = Timestamp::from_millis(1);
    let (service, _) = opened(Behaviour::default(), "").await;
    let good = validate(&provider(&service, ""), &secret(), now).await;
    assert!(good.checks.iter().all(|check| check.problem.is_none()), "{good:?}");
    assert!(good.notes.iter().any(|note| note.contains("not narrowed")), "{good:?}");
    assert!(service.keys().is_empty(), "nothing is left behind");

    let all = [Permission::List, Permission::Read, Permission::Write, Permission::Delete];
    let actions = ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"];
    let verbs = [Verb::List, Verb::Read, Verb::Write, Verb::Delete];
    for ((denied, verb), action) in all.into_iter().zip(verbs).zip(actions) {
        let service = Service::start(Behaviour { denies: Some(verb), ..Behaviour::default() }).await;
        service.insert("there", b"already");
        let found = validate(&provider(&service, ""), &secret(), now).await;
        assert_eq!(found.checks.iter().map(|check| check.permission).collect::<Vec<_>>(), all);
        let problem = found.checks.iter().find(|check| check.permission == denied).unwrap().problem.clone();
        let problem = problem.unwrap_or_else(|| panic!("{denied:?} was denied: {found:?}"));
        assert!(problem.contains("AccessDenied") && problem.contains(action), "{problem}");
        for other in all.into_iter().filter(|other| *other != denied) {
            // Without writing there is nothing to delete.
            let expected = !(denied == Permission::Write && other == Permission::Delete);
            assert_eq!(found.allows(other), expected, "{denied:?} denied: {found:?}");
        }
        let probes = service.keys().into_iter().filter(|key| key.contains("validate")).count();
        assert_eq!(probes, usize::from(denied == Permission::Delete));
        assert_eq!(found.notes.len(), 1 + probes, "a probe that stays is told: {found:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let (service, store) = opened(Behaviour::default(), "").await;
    let missing = store.read(&key("none")).await.err().unwrap();
    assert_eq!(missing.class, StoreErrorClass::NotFound);
    assert!(missing.to_string().contains("\"none\"") && missing.to_string().contains("media"), "{missing}");
    let wrong = StoreSecret::S3Keys {
        access_key_id: ACCESS_KEY.to_owned(),
        secret_access_key: "not-the-secret".to_owned(),
        session_token: None,
    };
    let store = open(&provider(&service, ""), &wrong).unwrap();
    let denied = store.put(&key("a"), Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(denied.class, StoreErrorClass::Denied);
    assert!(denied.to_string().contains("SignatureDoesNotMatch"), "{denied}");
    assert!(
        !denied.to_string().contains("not-the-secret") && !format!("{store:?}").contains("not-the-secret")
    );

    let found =
        validate(&provider(&service, "").clone(), &StoreSecret::None, Timestamp::from_millis(1)).await;
    assert!(
        found.checks.iter().all(|check| check.problem.as_ref().unwrap().contains("give the store its key"))
    );
    let other = Provider::S3 {
        bucket: "elsewhere".to_owned(),
        prefix: String::new(),
        endpoint: Some(service.url()),
        signing_region: "eu-central-1".to_owned(),
        allow_http: true,
        authentication: S3Authentication::StaticKeys,
    };
    let store = open(&other, &secret()).unwrap();
    let error = store.list("", None, 1).await.unwrap_err();
    assert_eq!(error.class, StoreErrorClass::NotFound);
    assert!(error.to_string().contains("NoSuchBucket"), "{error}");
    assert!(store.delete(&key("a")).await.is_err(), "a bucket that is gone is no deleted object");
}

#[tokio::test]
async fn transient_failures_are_retried_and_an_absent_store_is_told_of_soon() {
    let (service, store) = opened(Behaviour { fails_first: 2, ..Behaviour::default() }, "").await;
    store.put(&key("a\n"), Bytes::from_static(b"x")).await.expect("the third time works");
    assert_eq!(service.keys(), ["a\n"]);
    drop(service);
    let started = Instant::now();
    let error = store.head(&key("a")).await.unwrap_err();
    assert_eq!(error.class, StoreErrorClass::Unreachable, "{error}");
    assert!(error.is_transient());
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[tokio::test]
async fn links_to_read_work_without_credentials() {
    let (service, store) = opened(Behaviour::default(), "in/").await;
    store.put(&key("a b+c%2F.mov"), Bytes::from_static(b"bytes")).await.unwrap();
    let url = store.sign_read(&key("a b+c%2F.mov"), Duration::from_secs(60)).await.unwrap().unwrap();
    assert!(url.starts_with(&service.url()) && url.contains("X-Amz-Expires=60"), "{url}");
    assert!(!url.contains(SECRET_KEY));
    assert!(service.presigned_is_valid(&url), "{url}");
    assert_eq!(store.sign_read(&key("a\nb"), Duration::from_secs(60)).await.unwrap(), None);
}

#[tokio::test]
async fn an_anonymous_store_signs_nothing() {
    let service = Service::start(Behaviour { anonymous: true, ..Behaviour::default() }).await;
    let Provider::S3 { bucket, prefix, endpoint, signing_region, allow_http, .. } = provider(&service, "")
    else {
        panic!("a bucket")
    };
    let authentication = S3Authentication::Anonymous;
    let provider = Provider::S3 { bucket, prefix, endpoint, signing_region, allow_http, authentication };
    let store = open(&provider, &StoreSecret::None).unwrap();
    store.put(&key("new\nline"), Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(keys(&store, "", None, 10).await, ["new\nline"]);
    assert_eq!(store.sign_read(&key("new"), Duration::from_secs(60)).await.unwrap(), None);
    let found = store.validate(Timestamp::from_millis(1)).await;
    assert!(found.checks.iter().all(|check| check.problem.is_none()), "{found:?}");
    assert!(found.notes[0].contains("not signed"));
}

/// Against a service of your own: `TELECINE_TEST_S3=http://127.0.0.1:5555` with a bucket `media` and any keys;
/// `TELECINE_TEST_S3_WITHOUT_CONTROLS=1` for one that refuses control characters.
#[tokio::test]
#[ignore = "against a service of your own, named by TELECINE_TEST_S3"]
async fn hostile_keys_reach_another_service_too() {
    let endpoint = std::env::var("TELECINE_TEST_S3").expect("TELECINE_TEST_S3 names a service");
    let provider = Provider::S3 {
        bucket: "media".to_owned(),
        prefix: format!("{}/", std::process::id()),
        endpoint: Some(endpoint),
        signing_region: "us-east-1".to_owned(),
        allow_http: true,
        authentication: S3Authentication::StaticKeys,
    };
    let store = open(&provider, &secret()).unwrap();
    let without = std::env::var("TELECINE_TEST_S3_WITHOUT_CONTROLS").is_ok();
    let mut names = HOSTILE.to_vec();
    names.retain(|name| !(without && name.contains(char::is_control)));
    names.sort_unstable();
    for name in &names {
        let put = store.put(&key(name), Bytes::from((*name).to_owned())).await.unwrap();
        assert_eq!(store.head(&key(name)).await.unwrap(), Some(put), "{name:?}");
        assert_eq!(store.read_all(&key(name), 1024).await.unwrap(), name.as_bytes(), "{name:?}");
    }
    assert_eq!(keys(&store, "", None, 100).await, names);
    for name in &names {
        store.delete(&key(name)).await.unwrap();
    }
    assert!(keys(&store, "", None, 100).await.is_empty());
    let found = store.validate(Timestamp::from_millis(1)).await;
    assert!(found.checks.iter().all(|check| check.problem.is_none()), "{found:?}");
}
