//! The keys that a bucket's requests are signed with. They may be replaced while requests are on their way: each request
//! is signed with those that hold when it is made, so nobody has to open the bucket again.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

use crate::StoreSecret;
use crate::open::OpenError;

/// The keys that hold now; clones share them.
#[derive(Clone)]
pub(super) struct Keys(Arc<RwLock<Arc<AwsCredential>>>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

impl Keys {
    /// From a secret; `store` is named in errors.
    pub(super) fn of(secret: &StoreSecret, store: &str) -> Result<Self, OpenError> {
        Ok(Self(Arc::new(RwLock::new(Arc::new(credential(secret, store)?)))))
    }

    pub(super) fn now(&self) -> Arc<AwsCredential> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From the next request on; a secret that cannot work changes nothing.
    pub(super) fn replace(&self, secret: &StoreSecret, store: &str) -> Result<(), OpenError> {
        let credential = Arc::new(credential(secret, store)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = credential;
        Ok(())
    }
}

#[async_trait]
impl CredentialProvider for Keys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Ok(self.now())
    }
}

fn credential(secret: &StoreSecret, store: &str) -> Result<AwsCredential, OpenError> {
    let StoreSecret::S3Keys { access_key_id, secret_access_key, session_token } = secret else {
        return Err(OpenError::KeysMissing { store: store.to_owned() });
    };
    let sendable = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let token = session_token.as_deref();
    if !sendable(access_key_id) || !sendable(secret_access_key) || !token.is_none_or(sendable) {
        return Err(OpenError::KeysMalformed { store: store.to_owned() });
    }
    Ok(AwsCredential {
        key_id: access_key_id.clone(),
        secret_key: secret_access_key.clone(),
        token: session_token.clone(),
    })
}
