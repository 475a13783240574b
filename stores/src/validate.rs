//! Tries what a store allows: each permission is used once, on a hidden object that is removed again.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use telecine_domain::location::ObjectKey;
use telecine_domain::store::{Permission, PermissionCheck, Provider, S3Authentication, Validation};
use telecine_domain::time::Timestamp;

use crate::error::{StoreError, StoreErrorClass};
use crate::{OpenedStore, StoreSecret, open};

const PROBE: &[u8] = b"telecine tried whether it may write here\n";

/// Opens a store and tries each permission; what cannot even be opened fails all four, with the reason.
pub async fn validate(provider: &Provider, secret: &StoreSecret, now: Timestamp) -> Validation {
    match open(provider, secret) {
        Ok(store) => validate_opened(&store, now).await,
        Err(error) => {
            let problem = error.to_string();
            let checks = ALL.map(|permission| PermissionCheck { permission, problem: Some(problem.clone()) });
            Validation { at: now, checks: checks.into(), notes: notes(provider) }
        }
    }
}

const ALL: [Permission; 4] = [Permission::List, Permission::Read, Permission::Write, Permission::Delete];

pub(crate) async fn validate_opened(store: &OpenedStore, now: Timestamp) -> Validation {
    let probe = probe_key(now);
    let mut notes = match store {
        OpenedStore::Objects(objects) if objects.is_signed() => vec![NOT_NARROWED.to_owned()],
        OpenedStore::Objects(_) => vec![ANONYMOUS.to_owned()],
        OpenedStore::Folder(_) => Vec::new(),
    };
    let listed = store.list("", None, 1).await;
    let written = store.put_any(&probe, stream::once(async { Ok(Bytes::from_static(PROBE)) }).boxed()).await;
    let read = match (&written, &listed) {
        (Ok(_), _) => read_probe(store, &probe).await,
        (Err(_), Ok(entries)) => match entries.first() {
            Some(entry) => read_first_bytes(store, &entry.key).await,
            None => Err(NOTHING_TO_READ.to_owned()),
        },
        (Err(_), Err(_)) => Err(NOTHING_TO_READ.to_owned()),
    };
    let deleted = match &written {
        Ok(_) => delete_probe(store, &probe).await,
        Err(_) => Err("it was not tried, because nothing could be written that may be deleted".to_owned()),
    };
    if written.is_ok() && deleted.is_err() {
        notes.push(format!(
            "the object {:?} was written to try the store and could not be removed: remove it",
            probe.as_str()
        ));
    }
    let advise = |permission, result: Result<(), StoreError>| {
        result.map_err(|error| with_advice(store, permission, &error))
    };
    let results = [
        advise(Permission::List, listed.map(drop)),
        read,
        advise(Permission::Write, written.map(drop)),
        deleted,
    ];
    let checks = ALL
        .into_iter()
        .zip(results)
        .map(|(permission, result)| PermissionCheck { permission, problem: result.err() });
    Validation { at: now, checks: checks.collect(), notes }
}

const NOT_NARROWED: &str = "these are static keys and no token service is known for them: they are not narrowed to a \
    job's objects, so every attempt that uses this store holds them, in memory only, with all they allow";
const ANONYMOUS: &str = "requests are not signed: everybody who reaches this store can do the same";
const NOTHING_TO_READ: &str = "it was not tried, because nothing could be written and no object was found to read: put \
    an object there and validate again";

fn notes(provider: &Provider) -> Vec<String> {
    match provider {
        Provider::S3 { authentication: S3Authentication::StaticKeys, .. } => vec![NOT_NARROWED.to_owned()],
        Provider::S3 { authentication: S3Authentication::Anonymous, .. } => vec![ANONYMOUS.to_owned()],
        Provider::Local { .. } => Vec::new(),
    }
}

/// A name of its own for each try, so that two at a time do not meet.
fn probe_key(now: Timestamp) -> ObjectKey {
    let unique =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let name = format!(".telecine-validate-{:x}-{unique:x}-{:x}", now.as_millis(), std::process::id());
    name.parse().expect("letters, digits, dots and hyphens are a key")
}

async fn read_probe(store: &OpenedStore, probe: &ObjectKey) -> Result<(), String> {
    match store.read_all_any(probe, PROBE.len() * 2).await {
        Ok(bytes) if bytes == PROBE => Ok(()),
        Ok(_) => Err(format!("{} gave back other bytes than were written a moment before", store.location())),
        Err(error) => Err(with_advice(store, Permission::Read, &error)),
    }
}

async fn read_first_bytes(store: &OpenedStore, key: &ObjectKey) -> Result<(), String> {
    let advise = |error: StoreError| with_advice(store, Permission::Read, &error);
    let mut read = store.read_any(key).await.map_err(advise)?;
    match read.stream.next().await {
        Some(Err(error)) => Err(advise(error)),
        Some(Ok(_)) | None => Ok(()),
    }
}

async fn delete_probe(store: &OpenedStore, probe: &ObjectKey) -> Result<(), String> {
    store.delete_any(probe).await.map_err(|error| with_advice(store, Permission::Delete, &error))?;
    let left = match store {
        OpenedStore::Folder(folder) => folder.head(probe).await,
        OpenedStore::Objects(objects) => objects.head(probe).await,
    };
    match left {
        Ok(Some(_)) => {
            Err(format!("{} said that it deleted an object, and it is still there", store.location()))
        }
        Ok(None) | Err(_) => Ok(()),
    }
}

/// The store's answer and what to do about it.
fn with_advice(store: &OpenedStore, permission: Permission, error: &StoreError) -> String {
    let advice = match (store, error.class) {
        (OpenedStore::Folder(folder), StoreErrorClass::Denied) => {
            let letter =
                if matches!(permission, Permission::List | Permission::Read) { "r-x" } else { "rwx" };
            format!("give the user that runs Telecine the rights {letter} on {}", folder.root.display())
        }
        (OpenedStore::Folder(folder), StoreErrorClass::NotFound) => {
            format!("create the folder {} again, or correct the store", folder.root.display())
        }
        (OpenedStore::Objects(_), StoreErrorClass::Denied) => {
            format!("check the access key, and allow it {} on this bucket", s3_action(permission))
        }
        (OpenedStore::Objects(_), StoreErrorClass::NotFound) => {
            "check the bucket's name and region".to_owned()
        }
        (OpenedStore::Objects(_), StoreErrorClass::Unreachable) => {
            "check the endpoint, and that this machine can reach it".to_owned()
        }
        (OpenedStore::Objects(_), StoreErrorClass::Invalid) => {
            "check the endpoint, the signing region and the bucket's name".to_owned()
        }
        _ => return error.to_string(),
    };
    format!("{error}. To mend it: {advice}")
}

fn s3_action(permission: Permission) -> &'static str {
    match permission {
        Permission::List => "s3:ListBucket",
        Permission::Read => "s3:GetObject",
        Permission::Write => "s3:PutObject and s3:AbortMultipartUpload",
        Permission::Delete => "s3:DeleteObject",
    }
}
