//! A small world for tests: one account, an engine version, two validated folders.

use std::sync::Arc;

use serde_json::{Value, json};
use telecine_domain::attempt::Counters;
use telecine_domain::factory::{ArrivedObject, Factory};
use telecine_domain::id::{AccountId, InstanceId, JobId, RegionName};
use telecine_domain::job::Job;
use telecine_domain::location::Location;
use telecine_domain::manifest::{Manifest, Sealed, SealedObject};
use telecine_domain::store::{Provider, Store};
use telecine_domain::time::Timestamp;
use telecine_stores::StoreSecret;
use tempfile::TempDir;

use crate::backend::Backend;
use crate::contract::HandClock;
use crate::dispatch::AssignedAttempt;
use crate::memory::{Fault, MemoryTable};
use crate::{accounts, dispatch, engines, factories, jobs, stores};

pub(crate) const FAULTS: [Fault; 3] = [Fault::Refused, Fault::LostBefore, Fault::LostAfter];

pub(crate) struct World {
    pub(crate) clock: HandClock,
    pub(crate) backend: Backend,
    pub(crate) table: Arc<MemoryTable>,
    pub(crate) account: AccountId,
    pub(crate) input: Store,
    pub(crate) output: Store,
    pub(crate) folder: TempDir,
}

pub(crate) fn region() -> RegionName {
    "local".parse().unwrap()
}

pub(crate) fn instance(number: u128) -> InstanceId {
    InstanceId::new(Timestamp::from_millis(1), number)
}

impl World {
    pub(crate) async fn new() -> Self {
        let clock = HandClock::at(Timestamp::from_millis(1_795_359_845_120));
        let (backend, table) = Backend::memory(clock.clock());
        let account = accounts::ensure_default(&backend, &region(), clock.now()).await.unwrap().id;
        let folder = tempfile::tempdir().unwrap();
        let engine = json!({
            "service": "transform", "version": "1.2.0", "resources": {"cpu_milli": 500},
            "launch": {"command": {"program": "/bin/true"}}, "lifecycle": "stable",
            "processing_schema": {
                "type": ["object", "null"], "properties": {"crf": {"type": "integer", "maximum": 51}},
                "additionalProperties": false,
            },
        });
        let engine = serde_json::from_value(engine).unwrap();
        engines::publish(&backend, AccountId::PLATFORM, engine).await.unwrap();
        let register = async |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            let provider = Provider::Local { folder: path.to_str().unwrap().to_owned() };
            let (name, secret) = (name.to_owned(), StoreSecret::None);
            let new = stores::NewStore { name, provider, region: region(), secret };
            let store = stores::create(&backend, account, new, clock.now()).await.unwrap();
            stores::validate(&backend, account, &store.id.to_string(), clock.now()).await.unwrap()
        };
        let (input, output) = (register("in").await, register("out").await);
        Self { clock, backend, table, account, input, output, folder }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Writes an object into the input store.
    pub(crate) fn write(&self, key: &str, bytes: &str) {
        let path = self.folder.path().join("in").join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// A request for a job that reads `key` of the input store and writes the same key of the output store.
    pub(crate) fn request(&self, key: &str) -> Value {
        json!({
            "service": "transform",
            "composition": {
                "inputs": {"source": {"store": "in", "key": key}},
                "outputs": {"main": {"store": "out", "key": key}},
            },
        })
    }

    pub(crate) async fn submitted(&self, key: &str) -> Job {
        self.write(key, "media");
        let request = self.request(key);
        jobs::submit(&self.backend, self.account, &request, None, self.now()).await.unwrap().job
    }

    pub(crate) async fn assigned(&self, job: JobId) -> AssignedAttempt {
        dispatch::assign(&self.backend, job, instance(1), self.now()).await.unwrap()
    }

    pub(crate) async fn job(&self, job: JobId) -> Job {
        jobs::find(&self.backend, self.account, job).await.unwrap().unwrap()
    }

    /// Every job of the account.
    pub(crate) async fn jobs(&self) -> Vec<Job> {
        let all = jobs::JobFilter::default();
        jobs::list(&self.backend, self.account, &all, 1000, None).await.unwrap().items
    }

    /// A factory that watches `store` for `.mov` below `prefix` and writes `done/…` into `target`.
    pub(crate) async fn factory(&self, name: &str, store: &str, prefix: &str, target: &str) -> Factory {
        let body = json!({
            "name": name, "service": "transform",
            "composition": {
                "inputs": {"source": {"store": store, "key": "{input.key}"}},
                "outputs": {"main": {"store": target, "key": format!("done/{name}/{{input.stem}}.mov")}},
            },
            "watch": [{"store": store, "prefix": prefix, "suffixes": [".mov"]}],
        });
        factories::create(&self.backend, self.account, &body, self.now()).await.unwrap()
    }

    /// What a watcher would tell of `key` in `store`.
    pub(crate) async fn arrival(&self, store: &Store, key: &str) -> ArrivedObject {
        let opened = stores::open(&self.backend, store, self.now()).await.unwrap();
        let key = key.parse().unwrap();
        let version = opened.head(&key).await.unwrap().expect("the object is there");
        ArrivedObject { location: Location { store: store.id, key }, version }
    }

    /// Every history of every job is complete: versions 1 to the job's, the last state the job's.
    pub(crate) async fn check_histories(&self) {
        for job in self.jobs().await {
            let history = jobs::history(&self.backend, self.account, job.id, 0, 1000).await.unwrap();
            let versions: Vec<u64> = history.iter().map(|record| record.version).collect();
            assert_eq!(versions, (1..=job.version).collect::<Vec<_>>(), "gaps in the history of {}", job.id);
            assert_eq!(history.last().unwrap().state, job.state.name());
            let attempts = jobs::attempts(&self.backend, self.account, job.id).await.unwrap();
            assert_eq!(attempts.len(), job.attempts.0 as usize, "attempts of {}", job.id);
        }
    }
}

/// The manifest of a job that made every declared file.
pub(crate) fn manifest(job: &Job) -> Manifest {
    let objects = job.spec.composition.outputs.iter().map(|(slot, output)| SealedObject {
        slot: slot.clone(),
        store: output.store,
        key: output.key.clone(),
        size_bytes: 5,
        sha256: "ab".repeat(32),
        etag: None,
        sealed: Sealed::HiddenFile { hidden_key: ".telecine-upload-1".to_owned() },
    });
    Manifest { objects: objects.collect() }
}

pub(crate) fn counters() -> Counters {
    Counters { mount_bytes_read: 5, ..Counters::default() }
}
