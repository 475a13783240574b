//! Values that several tests of this crate begin with.

use std::collections::{BTreeMap, BTreeSet};

use semver::Version;
use serde_json::Value;

use crate::composition::Composition;
use crate::engine::{ImageReference, Launch};
use crate::failure::{Failure, FailureClass};
use crate::id::{AccountId, InstanceId, JobId, SlotName, StoreId};
use crate::instance::{Instance, InstanceProfile, InstanceState, RuntimeKind};
use crate::job::{Job, JobSpec, Origin, PinnedEngine, RetryPolicy, Timeouts};
use crate::manifest::{Manifest, Sealed, SealedObject};
use crate::resources::Resources;
use crate::time::Timestamp;

pub(crate) const GIB: u64 = 1 << 30;

/// 2026-01-01T00:00:00Z and some seconds.
pub(crate) const fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(1_767_225_600_000 + seconds * 1000)
}

pub(crate) fn job_id(number: u128) -> JobId {
    JobId::new(at(0), number)
}

pub(crate) fn instance_id(number: u128) -> InstanceId {
    InstanceId::new(at(0), number)
}

pub(crate) const fn cores(cpu: u64, memory_gib: u64) -> Resources {
    Resources { cpu_milli: cpu * 1000, memory_bytes: memory_gib * GIB, scratch_bytes: 0, gpus: 0 }
}

pub(crate) fn image() -> ImageReference {
    format!("registry.example/telecine/transform@sha256:{}", "a".repeat(64)).parse().unwrap()
}

pub(crate) fn spec() -> JobSpec {
    JobSpec {
        service: "transform".parse().unwrap(),
        engine: PinnedEngine { version: Version::new(1, 0, 0), launch: Launch::Grpc { image: image() } },
        composition: Composition {
            inputs: BTreeMap::new(),
            processing: Value::Null,
            outputs: BTreeMap::new(),
        },
        inputs: BTreeMap::new(),
        region: "local".parse().unwrap(),
        resources: cores(2, 4),
        priority: 500,
        labels: BTreeMap::new(),
        retry: RetryPolicy::default(),
        timeouts: Timeouts::default(),
        origin: Origin::Api,
    }
}

pub(crate) fn job(number: u128) -> Job {
    Job::accepted(job_id(number), AccountId::new(at(0), 1), spec(), None, at(0))
}

pub(crate) fn profile(number: u128, capacity: Resources) -> InstanceProfile {
    InstanceProfile {
        id: instance_id(number),
        region: "local".parse().unwrap(),
        pool: "default".parse().unwrap(),
        host: format!("host-{number}"),
        agent_version: "0.1.0".to_owned(),
        capacity,
        runtimes: [RuntimeKind::Docker, RuntimeKind::Process].into(),
        cached_images: BTreeSet::new(),
        problems: Vec::new(),
    }
}

pub(crate) fn instance(number: u128, capacity: Resources) -> Instance {
    Instance {
        profile: profile(number, capacity),
        state: InstanceState::Ready,
        allocated: Resources::ZERO,
        state_since: at(0),
        leases: 0,
        idle_since: at(0),
        expected_end: None,
        notice: None,
        rebalance: false,
    }
}

pub(crate) fn failure(class: FailureClass) -> Failure {
    Failure::new(class, "test_failure", "something went wrong")
}

pub(crate) fn sealed(key: &str, size_bytes: u64) -> SealedObject {
    let slot: SlotName = "main".parse().unwrap();
    SealedObject {
        slot,
        store: StoreId::new(at(0), 1),
        key: key.parse().unwrap(),
        size_bytes,
        sha256: "0".repeat(64),
        etag: None,
        sealed: Sealed::HiddenFile { hidden_key: ".telecine-upload-1".to_owned() },
    }
}

pub(crate) fn manifest() -> Manifest {
    Manifest { objects: vec![sealed("out/a.mp4", 10)] }
}
