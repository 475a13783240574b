//! A job as callers see it, and what they send to make or change one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use telecine_domain::id::{AccountId, FactoryId, InstanceId, JobId, StoreId, WatchRuleId};
use telecine_domain::job as domain;
use telecine_domain::job::{JobState, Origin, StateName};
use telecine_domain::location::Location;
use telecine_domain::manifest::Manifest;
use telecine_domain::time::Timestamp;
use utoipa::ToSchema;

use super::attempt::Progress;
use super::values::{Failure, Resources, RetryPolicy, Timeouts};

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its id.
    #[schema(value_type = String)]
    pub id: JobId,
    /// Whose it is.
    #[schema(value_type = String)]
    pub account_id: AccountId,
    /// The factory that made it.
    #[schema(value_type = Option<String>)]
    pub factory_id: Option<FactoryId>,
    /// What made it: `api`, `factory`, `arrival` or `retry`.
    pub origin: String,
    /// The watch rule that matched, for an arrival.
    #[schema(value_type = Option<String>)]
    pub watch_rule_id: Option<WatchRuleId>,
    /// The job that this one tries again.
    #[schema(value_type = Option<String>)]
    pub retry_of: Option<JobId>,
    /// The kind of work.
    pub service: String,
    /// The exact engine version.
    pub engine_version: String,
    /// The image it runs, by digest; null for a program of the instance.
    pub engine_image: Option<String>,
    /// Where it is queued and run.
    pub region: String,
    /// `held`, `queued`, `assigned`, `starting`, `running`, `finalizing`, `canceling`, `succeeded`, `failed`, `canceled`
    /// or `expired`.
    #[schema(value_type = String)]
    pub state: StateName,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub state_since: Timestamp,
    /// Number of the last change, from 1; the ETag.
    pub version: u64,
    /// Why it failed; or, while queued, what ended the attempt before.
    pub failure: Option<Failure>,
    /// Why it is held, being stopped, or not tried before a time.
    pub state_reason: Option<StateReason>,
    /// 0 to 1000, higher first.
    pub priority: u16,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
    /// What it needs on an instance.
    pub resources: Resources,
    /// How often it may be tried again.
    pub retry: RetryPolicy,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// The objects it reads, pinned to the version seen at submission.
    pub inputs: BTreeMap<String, PinnedObject>,
    /// The objects (or folders) it makes.
    pub outputs: BTreeMap<String, ObjectPlace>,
    /// What was published, once it was.
    pub published: Vec<PublishedObject>,
    /// Jobs that must have succeeded before it is queued.
    #[schema(value_type = Vec<String>)]
    pub depends_on: BTreeSet<JobId>,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it first entered the queue.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub queued_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    /// Number of attempts so far.
    pub attempts: u32,
    /// Retries taken after failures of the user's work.
    pub user_retries: u32,
    /// Retries taken after failures of the infrastructure.
    pub infrastructure_retries: u32,
    /// The attempt that holds the right to run it.
    pub run: Option<Run>,
    /// How far it is; only when one job is read, and only once its engine has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// Why a job is where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateReason {
    /// Stable word: `manual`, `dependencies`, `pause_after_failure`, `cancel_requested` or `total_timeout`.
    pub code: String,
    /// For people.
    pub message: String,
    /// Not tried before this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
}

/// An input as it was at submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinnedObject {
    /// The store.
    #[schema(value_type = String)]
    pub store_id: StoreId,
    /// The key in it.
    pub key: String,
    /// The version that will be read.
    pub etag: String,
    /// The store's version id, where it keeps versions.
    pub version_id: Option<String>,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// Where an object, or a folder of objects, will be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ObjectPlace {
    /// The store.
    #[schema(value_type = String)]
    pub store_id: StoreId,
    /// The key in it; a folder ends with `/`.
    pub key: String,
}

/// An object that was published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublishedObject {
    /// The output of the composition it belongs to.
    pub output: String,
    /// The store.
    #[schema(value_type = String)]
    pub store_id: StoreId,
    /// The key in it.
    pub key: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
    /// The store's etag, where known.
    pub etag: Option<String>,
}

/// The attempt that holds the right to run a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    /// Its number.
    pub attempt: u32,
    /// The instance.
    #[schema(value_type = String)]
    pub instance_id: InstanceId,
    /// When it was assigned.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

impl From<domain::Job> for Job {
    fn from(job: domain::Job) -> Self {
        let state = job.state.name();
        let (retry_of, watch_rule_id) = (retried(&job.spec.origin), rule(&job.spec.origin));
        let run = job.state.run().map(|run| Run {
            attempt: run.attempt.0,
            instance_id: run.instance,
            since: run.since,
        });
        let state_reason = state_reason(&job.state);
        let (failure, published) = ending(job.state);
        let inputs = job.spec.inputs.into_iter().map(|(slot, input)| (slot.to_string(), pinned(input)));
        let outputs = job.spec.composition.outputs.into_iter();
        Self {
            id: job.id,
            account_id: job.account,
            factory_id: job.spec.origin.factory(),
            origin: origin(&job.spec.origin).to_owned(),
            watch_rule_id,
            retry_of,
            service: job.spec.service.to_string(),
            engine_version: job.spec.engine.version.to_string(),
            engine_image: job.spec.engine.launch.image().map(ToString::to_string),
            region: job.spec.region.to_string(),
            state,
            state_since: job.state_since,
            version: job.version,
            failure,
            state_reason,
            priority: job.spec.priority,
            labels: job.spec.labels,
            resources: job.spec.resources.into(),
            retry: job.spec.retry.into(),
            timeouts: job.spec.timeouts.into(),
            inputs: inputs.collect(),
            outputs: outputs.map(|(slot, location)| (slot.to_string(), location.into())).collect(),
            published,
            depends_on: job.spec.depends_on,
            created_at: job.created_at,
            queued_at: job.queued_at,
            finished_at: state.is_terminal().then_some(job.state_since),
            attempts: job.attempts.0,
            user_retries: job.user_retries,
            infrastructure_retries: job.infrastructure_retries,
            run,
            progress: None,
        }
    }
}

impl From<Location> for ObjectPlace {
    fn from(location: Location) -> Self {
        Self { store_id: location.store, key: location.key.to_string() }
    }
}

fn pinned(input: domain::PinnedInput) -> PinnedObject {
    PinnedObject {
        store_id: input.location.store,
        key: input.location.key.to_string(),
        etag: input.version.etag,
        version_id: input.version.version_id,
        size_bytes: input.version.size_bytes,
    }
}

fn origin(origin: &Origin) -> &'static str {
    match origin {
        Origin::Api => "api",
        Origin::Factory(_) => "factory",
        Origin::Arrival { .. } => "arrival",
        Origin::Retry(_) => "retry",
    }
}

fn retried(origin: &Origin) -> Option<JobId> {
    if let Origin::Retry(job) = origin { Some(*job) } else { None }
}

fn rule(origin: &Origin) -> Option<WatchRuleId> {
    if let Origin::Arrival { rule, .. } = origin { Some(*rule) } else { None }
}

fn state_reason(state: &JobState) -> Option<StateReason> {
    let reason = |code: &str, message: &str, until| {
        Some(StateReason { code: code.to_owned(), message: message.to_owned(), until })
    };
    match state {
        JobState::Held { reason: domain::HoldReason::Manual } => {
            reason("manual", "somebody held it; release it to let it into the queue", None)
        }
        JobState::Held { reason: domain::HoldReason::Dependencies } => {
            reason("dependencies", "it waits until the jobs that it depends on have succeeded", None)
        }
        JobState::Queued { not_before: Some(time), .. } => {
            reason("pause_after_failure", "it is tried again after a pause", Some(*time))
        }
        JobState::Canceling { cause: domain::StopCause::Requested, .. } => {
            reason("cancel_requested", "somebody canceled it; the engine is being stopped", None)
        }
        JobState::Canceling { cause: domain::StopCause::TotalTimeout, .. } => {
            reason("total_timeout", "it took longer than it may; the engine is being stopped", None)
        }
        JobState::Queued { not_before: None, .. }
        | JobState::Assigned(_)
        | JobState::Starting(_)
        | JobState::Running(_)
        | JobState::Finalizing { .. }
        | JobState::Succeeded { .. }
        | JobState::Failed { .. }
        | JobState::Canceled
        | JobState::Expired => None,
    }
}

fn ending(state: JobState) -> (Option<Failure>, Vec<PublishedObject>) {
    match state {
        JobState::Failed { failure } => (Some(failure.into()), Vec::new()),
        JobState::Queued { last_failure, .. } => (last_failure.map(Failure::from), Vec::new()),
        JobState::Succeeded { manifest, .. } => (None, published(manifest)),
        JobState::Held { .. }
        | JobState::Assigned(_)
        | JobState::Starting(_)
        | JobState::Running(_)
        | JobState::Finalizing { .. }
        | JobState::Canceling { .. }
        | JobState::Canceled
        | JobState::Expired => (None, Vec::new()),
    }
}

fn published(manifest: Manifest) -> Vec<PublishedObject> {
    let object = |sealed: telecine_domain::manifest::SealedObject| PublishedObject {
        output: sealed.slot.to_string(),
        store_id: sealed.store,
        key: sealed.key.to_string(),
        size_bytes: sealed.size_bytes,
        sha256: sealed.sha256,
        etag: sealed.etag,
    };
    manifest.objects.into_iter().map(object).collect()
}

/// One change of a job, in its event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateEvent {
    /// The job.
    #[schema(value_type = String)]
    pub job_id: JobId,
    /// The job's version after the change.
    pub version: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What happened, such as `assigned` or `attempt_failed`.
    #[schema(value_type = String)]
    pub event: telecine_core::jobs::Happened,
    /// The state after it.
    #[schema(value_type = String)]
    pub state: StateName,
    /// Number of the last attempt, 0 before the first.
    pub attempt: u32,
    /// Where that attempt runs, while it does.
    #[schema(value_type = Option<String>)]
    pub instance_id: Option<InstanceId>,
    /// What went wrong, when something did.
    pub failure: Option<Failure>,
}

impl StateEvent {
    /// The event for a change of `job`.
    pub fn of(job: JobId, change: telecine_core::jobs::JobRecord) -> Self {
        Self {
            job_id: job,
            version: change.version,
            at: change.at,
            event: change.event,
            state: change.state,
            attempt: change.attempt.0,
            instance_id: change.instance,
            failure: change.failure.map(Failure::from),
        }
    }
}

/// What changes of a job; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateJob {
    /// 0 to 1000, higher first; while the job is held or queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 1000)]
    pub priority: Option<u16>,
    /// All labels it shall have, at most 32; until the job has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

/// The document an engine works on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Document {
    /// The objects it reads.
    pub inputs: BTreeMap<String, ObjectPlace>,
    /// What is done with them, in the engine version's own shape.
    pub processing: serde_json::Value,
    /// The objects (or folders) it makes.
    pub outputs: BTreeMap<String, ObjectPlace>,
}

impl From<domain::Job> for Document {
    fn from(job: domain::Job) -> Self {
        let composition = job.spec.composition;
        let places = |slots: BTreeMap<telecine_domain::id::SlotName, Location>| {
            slots.into_iter().map(|(slot, location)| (slot.to_string(), location.into())).collect()
        };
        Self {
            inputs: places(composition.inputs),
            processing: composition.processing,
            outputs: places(composition.outputs),
        }
    }
}

/// A job to be: a `service` with a `composition`, or a `factory` with an `input`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitJob {
    /// The kind of work, such as `transform`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What to read, what to do, where to write. Stores are named by id or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Composition>)]
    pub composition: Option<serde_json::Value>,
    /// The factory, by id or name, whose work is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factory: Option<String>,
    /// The key of the object that the factory works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// The engine version; the factory's, or the newest stable one, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// The region; follows the data unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// What it needs; what is not given is the engine version's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Resources>)]
    pub resources: Option<serde_json::Value>,
    /// 0 to 1000, higher first; 500 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 1000)]
    pub priority: Option<u16>,
    /// For people and filters, at most 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// How often it may be tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// Accept it, but keep it out of the queue until it is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
    /// Jobs of the account, accepted before, that must have succeeded before this one is queued; at most 100. It fails
    /// when one of them does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 100)]
    pub depends_on: Option<Vec<String>>,
}

/// What to read, what to do, where to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Composition {
    /// Objects the engine reads, by name.
    pub inputs: BTreeMap<String, NamedPlace>,
    /// What the engine does with them; its shape is the engine version's `processing_schema`.
    #[serde(default)]
    pub processing: serde_json::Value,
    /// Objects the engine makes, by name; a key that ends with `/` is a folder of objects.
    pub outputs: BTreeMap<String, NamedPlace>,
}

/// An object in a store that is named by id or name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedPlace {
    /// The store's id or name.
    pub store: String,
    /// The key in it.
    pub key: String,
}

/// Jobs to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitBatch {
    /// At most 1,000.
    #[schema(max_items = 1000)]
    pub jobs: Vec<SubmitJob>,
}

/// What came of each job of a batch, in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SubmittedBatch {
    /// One for each.
    pub data: Vec<BatchItem>,
}

/// What came of one job of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchItem {
    /// The job, when it was accepted.
    pub job: Option<Job>,
    /// Why it was not.
    pub refusal: Option<BatchRefusal>,
}

/// Why one job of a batch was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchRefusal {
    /// Stable word for programs, as in problems.
    pub code: String,
    /// What happened and what to do.
    pub detail: String,
    /// Everything that is wrong; pointers are into this job.
    pub errors: Vec<crate::problem::FieldProblem>,
}
