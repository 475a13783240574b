//! What requests name: stores, factories, engine versions, objects. Each is looked up once, however many jobs of a call
//! name it.

use std::collections::BTreeMap;
use std::sync::Arc;

use semver::Version;
use telecine_domain::engine::EngineVersion;
use telecine_domain::factory::Factory;
use telecine_domain::id::{AccountId, RegionName, ServiceName};
use telecine_domain::location::{ObjectKey, ObjectVersion};
use telecine_domain::store::Store;
use telecine_domain::time::Timestamp;
use telecine_domain::trace::TraceId;
use telecine_stores::{OpenedStore, StoreError};
use tokio::sync::Mutex;

use crate::backend::Backend;
use crate::record::RecordError;
use crate::stores::{self, StoresError};
use crate::{accounts, engines, factories};

/// Something that a request names could not be looked up; that says nothing about the request.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The records were out of reach.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A store did not answer.
    #[error("store {store} did not answer, try again: {problem}")]
    Store {
        /// Its name.
        store: String,
        /// What it said.
        problem: String,
    },
}

/// An engine version with its schema compiled.
pub(crate) struct Engine {
    pub(crate) version: EngineVersion,
    pub(crate) schema: jsonschema::Validator,
}

/// What was found under an input's key.
pub(crate) enum Found {
    Object(ObjectVersion),
    Nothing,
    /// The store refuses; its words.
    Refused(String),
}

type Cache<K, V> = Mutex<BTreeMap<K, V>>;

/// Looks up what requests of one account name.
pub(crate) struct Catalog<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) account: AccountId,
    pub(crate) now: Timestamp,
    /// The trace in which the request came.
    pub(crate) trace: Option<TraceId>,
    stores: Cache<String, Option<Arc<Store>>>,
    opened: Cache<String, Result<Arc<OpenedStore>, String>>,
    factories: Cache<String, Option<Arc<Factory>>>,
    engines: Cache<(ServiceName, Option<Version>), Option<Arc<Engine>>>,
}

impl<'a> Catalog<'a> {
    pub(crate) fn new(backend: &'a Backend, account: AccountId, now: Timestamp) -> Self {
        Self {
            backend,
            account,
            now,
            trace: None,
            stores: Cache::default(),
            opened: Cache::default(),
            factories: Cache::default(),
            engines: Cache::default(),
        }
    }

    /// The same for a request that came in a trace.
    pub(crate) fn in_trace(self, trace: Option<TraceId>) -> Self {
        Self { trace, ..self }
    }

    pub(crate) async fn store(&self, id_or_name: &str) -> Result<Option<Arc<Store>>, LookupError> {
        let mut known = self.stores.lock().await;
        if let Some(found) = known.get(id_or_name) {
            return Ok(found.clone());
        }
        let found = stores::find(self.backend, self.account, id_or_name).await?;
        let found = found.map(|found| Arc::new(found.value));
        known.insert(id_or_name.to_owned(), found.clone());
        Ok(found)
    }

    pub(crate) async fn factory(&self, id_or_name: &str) -> Result<Option<Arc<Factory>>, LookupError> {
        let mut known = self.factories.lock().await;
        if let Some(found) = known.get(id_or_name) {
            return Ok(found.clone());
        }
        let found = factories::find(self.backend, self.account, id_or_name).await?.map(Arc::new);
        known.insert(id_or_name.to_owned(), found.clone());
        Ok(found)
    }

    /// The version of a service's engine, the recommended one when none is named.
    pub(crate) async fn engine(
        &self,
        service: &ServiceName,
        version: Option<&Version>,
    ) -> Result<Option<Arc<Engine>>, LookupError> {
        let mut known = self.engines.lock().await;
        let key = (service.clone(), version.cloned());
        if let Some(found) = known.get(&key) {
            return Ok(found.clone());
        }
        let found = match version {
            Some(version) => engines::find(self.backend, self.account, service, version).await?,
            None => engines::recommended(self.backend, self.account, service, self.now).await?,
        };
        let compiled = found.map(|version| {
            let schema = jsonschema::validator_for(&version.processing_schema).map_err(|error| {
                let place = crate::layout::engine_version(self.account, service, &version.version);
                RecordError::damaged(&place, error)
            })?;
            Ok::<_, RecordError>(Arc::new(Engine { version, schema }))
        });
        let found = compiled.transpose()?;
        known.insert(key, found.clone());
        Ok(found)
    }

    /// What lies under `key` now.
    pub(crate) async fn object(&self, store: &Store, key: &ObjectKey) -> Result<Found, LookupError> {
        let opened = match self.opened(store).await? {
            Ok(opened) => opened,
            Err(problem) => return Ok(Found::Refused(problem)),
        };
        match opened.head(key).await {
            Ok(Some(version)) => Ok(Found::Object(version)),
            Ok(None) => Ok(Found::Nothing),
            Err(error) if error.is_transient() => Err(unreachable(store, &error)),
            Err(error) => Ok(Found::Refused(error.to_string())),
        }
    }

    pub(crate) async fn default_region(&self) -> Result<Option<RegionName>, LookupError> {
        let account = accounts::find(self.backend, self.account).await?;
        Ok(account.map(|account| account.default_region))
    }

    /// The store, opened, or why it does not open.
    async fn opened(&self, store: &Store) -> Result<Result<Arc<OpenedStore>, String>, LookupError> {
        let mut known = self.opened.lock().await;
        let key = store.id.to_string();
        if let Some(found) = known.get(&key) {
            return Ok(found.clone());
        }
        let opened = match stores::open(self.backend, store, self.now).await {
            Ok(opened) => Ok(Arc::new(opened)),
            Err(StoresError::Record(error)) => return Err(error.into()),
            Err(error) => Err(error.to_string()),
        };
        known.insert(key, opened.clone());
        Ok(opened)
    }
}

fn unreachable(store: &Store, error: &StoreError) -> LookupError {
    LookupError::Store { store: store.name.clone(), problem: error.to_string() }
}
