//! Publishes what was granted when its worker is lost, and has the leftovers of closed epochs taken away.
//!
//! Both are done by a coordinator, without a container. Publishing is idempotent: the same attempt may be published by
//! two of them, and by its worker, and comes out once.

use std::sync::Arc;
use std::time::Duration;

use telecine_core::dispatch::{self, StoreAccess};
use telecine_core::fleet;
use telecine_core::record::RecordError;
use telecine_domain::attempt::AttemptId;
use telecine_domain::id::InstanceId;
use telecine_domain::instance::InstanceState;
use telecine_domain::job::{Job, JobState};
use telecine_domain::publication;
use telecine_domain::time::Timestamp;
use telecine_domain::trace::TraceId;
use telecine_proto::coordinator::v1::{CloseEpoch, Publish, from_coordinator, from_manager};
use telecine_proto::{convert, trace, types};
use tracing::{error, info, warn};

use crate::lead::Lead;

/// Life of the rights to stores that an attempt is given; renewed while its epoch stands.
pub(crate) const ACCESS_LIFE: Duration = Duration::from_secs(3600);
/// Longest time for a coordinator to publish a manifest.
const PUBLISHING: Duration = Duration::from_secs(900);
/// What a coordinator answers when all is published except hidden files that are gone from the folder it sees.
const BYTES_GONE: &str = "sealed_bytes_gone";
/// Longest time for a coordinator to take leftovers away.
const CLOSING: Duration = Duration::from_secs(120);

/// Rights to stores as they travel.
pub(crate) fn to_wire(access: &[StoreAccess]) -> Vec<types::v1::StoreAccess> {
    let each = |access: &StoreAccess| types::v1::StoreAccess {
        store_id: access.store.id.to_string(),
        provider_json: convert::json(&access.store.provider),
        secret_json: convert::json(&access.minted.secret),
        expires_at_millis: access.minted.expires_at.map_or(0, |at| at.as_millis()),
    };
    access.iter().map(each).collect()
}

/// Has `instance` publish a granted attempt. When that fails, the region asks again after a lease.
pub(crate) async fn elsewhere(lead: Arc<Lead>, attempt: AttemptId, instance: InstanceId) {
    let Some(Some(job)) = lead.load(attempt.job).await else { return };
    let JobState::Finalizing { manifest, .. } = &job.state else {
        return lead.tell_outcome(attempt, &job).await;
    };
    if job.live_attempt() != Some(attempt) {
        return lead.tell_outcome(attempt, &job).await;
    }
    let access = match dispatch::store_access(&lead.backend, attempt, ACCESS_LIFE, lead.now()).await {
        Ok(access) => access,
        Err(error) => return warn!(%attempt, %error, "a granted attempt cannot be published yet"),
    };
    let Some(coordinator) = lead.registry.coordinators.caller(instance) else { return };
    let publish = Publish {
        id: Some(attempt.into()),
        manifest: Some(manifest.clone().into()),
        stores: to_wire(&access),
    };
    match coordinator.about(&job).call(from_manager::Body::Publish(publish), PUBLISHING).await {
        Ok(Some(from_coordinator::Body::PublishReply(reply))) if reply.published => {
            info!(%attempt, %instance, "the outputs of a lost worker were published");
            lead.persist(attempt, || dispatch::published(&lead.backend, attempt, None, lead.now())).await;
        }
        Ok(Some(from_coordinator::Body::PublishReply(reply))) => {
            let failure = reply.failure.unwrap_or_default();
            let problem = failure.message;
            // Nobody but the granted attempt takes its bytes out of the folder, and that is by publishing them.
            let ran_there = job.state.run().is_some_and(|run| run.instance == instance);
            if failure.code == BYTES_GONE && ran_there {
                warn!(%attempt, %instance, problem, "sealed bytes are gone: they were published before");
                lead.persist(attempt, || dispatch::published(&lead.backend, attempt, None, lead.now())).await;
                return;
            }
            warn!(%attempt, %instance, problem, "outputs were not published; another instance will be asked");
            if failure.code == BYTES_GONE {
                give_up(lead, attempt).await;
            }
        }
        Ok(_) => warn!(%attempt, %instance, "the coordinator does not know how to publish"),
        Err(error) => warn!(%attempt, %instance, %error, "outputs were not published; it is tried again"),
    }
}

/// Fails a granted attempt whose sealed bytes are on an instance that has been away for too long, when no other instance
/// has them: to be asked when those that are connected have said so, or there is none.
pub(crate) async fn give_up(lead: Arc<Lead>, attempt: AttemptId) {
    let Some(Some(job)) = lead.load(attempt.job).await else { return };
    let Some(run) = job.state.run().filter(|_| job.live_attempt() == Some(attempt)) else { return };
    let away_since = match away_since(&lead, run.instance, &job).await {
        Ok(away_since) => away_since,
        Err(error) => return warn!(%attempt, %error, "it is not known whether an instance is away"),
    };
    let Some(failure) = publication::given_up(&job, away_since, lead.now()) else { return };
    if lead.registry.coordinators.caller(run.instance).is_some() {
        // It has come back while its record was read, and is asked to publish.
        return;
    }
    error!(%attempt, instance = %run.instance, account = %job.account, problem = failure.message, "a granted job is given up");
    lead.persist(attempt, || {
        dispatch::sealed_bytes_lost(&lead.backend, attempt, failure.clone(), lead.now())
    })
    .await;
}

/// Whether a granted job may have to be given up, nobody being here who could say that its bytes are gone.
pub(crate) fn is_forsaken(lead: &Lead, job: &Job) -> bool {
    lead.registry.coordinators.len() == 0
        && matches!(job.state, JobState::Finalizing { .. })
        && lead.now().since(job.state_since.max(lead.began)) >= publication::PATIENCE
}

/// Since when an instance is away under this leadership; `None` while it is not. Before it, perhaps no manager was there
/// to be connected to: an instance must stay away from this one for the whole patience.
async fn away_since(lead: &Lead, instance: InstanceId, job: &Job) -> Result<Option<Timestamp>, RecordError> {
    if lead.registry.coordinators.caller(instance).is_some() {
        return Ok(None);
    }
    Ok(match fleet::instance(&lead.backend, instance).await? {
        None => Some(job.state_since.max(lead.began)),
        Some(record) => {
            let away = matches!(record.state, InstanceState::Disconnected | InstanceState::Lost);
            away.then_some(record.state_since.max(lead.began))
        }
    })
}

/// What is needed to take the leftovers of an attempt away; made while its epoch stands, used when it is closed.
pub(crate) struct Leftovers {
    attempt: AttemptId,
    instance: InstanceId,
    trace: TraceId,
    spec_json: Vec<u8>,
    stores: Vec<types::v1::StoreAccess>,
}

/// Prepares for the end of an epoch. `None` when the attempt has no right any more, or its stores cannot be opened:
/// then leftovers stay until the store's own rules remove them.
pub(crate) async fn leftovers(lead: &Lead, attempt: AttemptId) -> Option<Leftovers> {
    let job: Job = dispatch::load(&lead.backend, attempt.job).await.ok()??;
    let instance = job.state.run()?.instance;
    match dispatch::store_access(&lead.backend, attempt, ACCESS_LIFE, lead.now()).await {
        Ok(access) => Some(Leftovers {
            attempt,
            instance,
            trace: job.trace_id(),
            spec_json: convert::json(&job.spec),
            stores: to_wire(&access),
        }),
        Err(error) => {
            warn!(%attempt, %error, "the leftovers of an attempt cannot be taken away");
            None
        }
    }
}

/// Has the leftovers of an attempt that lost its right before taken away: it may have gone on for a while, and what was
/// asked for when its epoch was closed may not have been done.
pub(crate) async fn close_again(lead: Arc<Lead>, attempt: AttemptId, instance: InstanceId) {
    match dispatch::closing_access(&lead.backend, attempt, instance, ACCESS_LIFE, lead.now()).await {
        Ok((job, access)) => {
            let (trace, spec_json, stores) = (job.trace_id(), convert::json(&job.spec), to_wire(&access));
            close_epoch(lead, Leftovers { attempt, instance, trace, spec_json, stores }).await;
        }
        Err(error) => warn!(%attempt, %error, "the leftovers of an attempt cannot be taken away yet"),
    }
}

/// Has the leftovers of a closed epoch taken away: by the instance that made them, else by any other.
pub(crate) async fn close_epoch(lead: Arc<Lead>, leftovers: Leftovers) {
    let Leftovers { attempt, instance, trace, spec_json, stores } = leftovers;
    let coordinators = &lead.registry.coordinators;
    let Some(coordinator) = coordinators.caller(instance).or_else(|| coordinators.any()) else {
        return warn!(%attempt, "no instance is connected to take the leftovers of an attempt away");
    };
    let close = CloseEpoch { id: Some(attempt.into()), spec_json, stores };
    let coordinator = coordinator.in_trace(Some(trace::begin(trace)));
    match coordinator.call(from_manager::Body::CloseEpoch(close), CLOSING).await {
        Ok(Some(from_coordinator::Body::Done(done))) if done.problem.is_empty() => {}
        Ok(Some(from_coordinator::Body::Done(done))) => {
            warn!(%attempt, problem = done.problem, "leftovers of an attempt remain");
        }
        Ok(_) => warn!(%attempt, "the coordinator does not know how to close an epoch"),
        Err(error) => warn!(%attempt, %error, "leftovers of an attempt may remain"),
    }
}
