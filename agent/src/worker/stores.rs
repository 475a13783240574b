//! The right to use the job's stores becomes opened stores, in memory only.

use std::collections::BTreeMap;

use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::id::StoreId;
use telecine_domain::time::Timestamp;
use telecine_mount::Backing;
use telecine_proto::convert;
use telecine_proto::types::v1::StoreAccess;
use telecine_stores::{OpenedStore, StoreSecret};

/// The stores of a job, opened.
pub(crate) type Backings = BTreeMap<StoreId, Backing>;

/// Opens each store; `learn` is told every secret, so that none reaches a log.
pub(crate) fn open(access: Vec<StoreAccess>, learn: impl Fn(&str)) -> Result<Backings, Failure> {
    open_renewable(access, learn).map(|(backings, _)| backings)
}

/// The same with what keeps them open.
pub(crate) fn open_renewable(
    access: Vec<StoreAccess>,
    learn: impl Fn(&str),
) -> Result<(Backings, Rights), Failure> {
    let (mut backings, mut rights) = (Backings::new(), Rights::default());
    for access in access {
        let id = store_id(&access)?;
        let provider = convert::provider(&access).map_err(|error| unreadable(&error))?;
        let opened = telecine_stores::open(&provider, &secret(&access, &learn)?);
        let opened = opened.map_err(|error| open_failed(id, &error))?;
        backings.insert(id, backing(opened.clone()));
        rights.stores.insert(id, (opened, ends_at(&access)));
    }
    Ok((backings, rights))
}

/// The opened stores of an attempt and when each right to use them ends.
#[derive(Default)]
pub(crate) struct Rights {
    stores: BTreeMap<StoreId, (OpenedStore, Option<Timestamp>)>,
}

impl Rights {
    /// When the first of them ends, if any does.
    pub(crate) fn ends_at(&self) -> Option<Timestamp> {
        self.stores.values().filter_map(|(_, ends_at)| *ends_at).min()
    }

    /// Goes on with new rights to the same stores. What cannot be understood leaves that store, and those after it, as
    /// they were.
    pub(crate) fn renew(&mut self, access: Vec<StoreAccess>, learn: impl Fn(&str)) -> Result<(), Failure> {
        for access in access {
            let id = store_id(&access)?;
            let Some((opened, until)) = self.stores.get_mut(&id) else { continue };
            opened.renew(&secret(&access, &learn)?).map_err(|error| open_failed(id, &error))?;
            *until = ends_at(&access);
        }
        Ok(())
    }
}

fn store_id(access: &StoreAccess) -> Result<StoreId, Failure> {
    convert::parsed("stores.store_id", &access.store_id).map_err(|error| unreadable(&error))
}

fn ends_at(access: &StoreAccess) -> Option<Timestamp> {
    (access.expires_at_millis != 0).then(|| Timestamp::from_millis(access.expires_at_millis))
}

fn secret(access: &StoreAccess, learn: &impl Fn(&str)) -> Result<StoreSecret, Failure> {
    if access.secret_json.is_empty() {
        return Ok(StoreSecret::None);
    }
    // The parser's own words could quote the secret.
    let secret = serde_json::from_slice(&access.secret_json)
        .map_err(|_| unreadable(&"its secret cannot be understood"))?;
    if let StoreSecret::S3Keys { secret_access_key, session_token, .. } = &secret {
        learn(secret_access_key);
        session_token.iter().for_each(|token| learn(token));
    }
    Ok(secret)
}

fn open_failed(id: StoreId, error: &telecine_stores::OpenError) -> Failure {
    crate::failure::infrastructure("store_open_failed", format!("store {id}: {error}"))
}

/// What the mount works with.
pub(crate) fn backing(opened: OpenedStore) -> Backing {
    match opened {
        OpenedStore::Folder(folder) => Backing::Folder { dir: folder.dir },
        OpenedStore::Objects(objects) => {
            Backing::Objects { store: objects.store, multipart: objects.multipart, prefix: objects.prefix }
        }
    }
}

fn unreadable(problem: &dyn std::fmt::Display) -> Failure {
    let message = format!("the right to use the job's stores cannot be understood: {problem}");
    Failure::new(FailureClass::Internal, "stores_unreadable", message)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn access(provider: &str, secret: &str) -> StoreAccess {
        StoreAccess {
            store_id: "sto_00000000000000000000000001".into(),
            provider_json: provider.as_bytes().to_vec(),
            secret_json: secret.as_bytes().to_vec(),
            expires_at_millis: 0,
        }
    }

    #[test]
    fn secrets_are_learned_and_never_quoted() {
        let provider = r#"{"provider":"s3","bucket":"b","endpoint":"http://127.0.0.1:1","allow_http":true}"#;
        let secret = r#"{"s3_keys":{"access_key_id":"AK","secret_access_key":"very-secret","session_token":"token-1"}}"#;
        let learned = Mutex::new(Vec::new());
        let learn = |secret: &str| learned.lock().unwrap().push(secret.to_owned());
        assert_eq!(open(vec![access(provider, secret)], learn).unwrap().len(), 1);
        assert_eq!(*learned.lock().unwrap(), ["very-secret", "token-1"]);
        let failure = open(vec![access(provider, r#"{"s3_keys":"very-secret"}"#)], |_| ()).unwrap_err();
        assert!(!failure.message.contains("very-secret"), "{failure}");
    }

    #[test]
    fn a_folder_that_is_gone_is_named() {
        let failure =
            open(vec![access(r#"{"provider":"local","folder":"/no/such"}"#, "")], |_| ()).unwrap_err();
        assert_eq!(failure.code, "store_open_failed");
        assert!(failure.message.contains("/no/such"), "{failure}");
    }
}
