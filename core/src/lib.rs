//! The use cases of Telecine over its ports: what is recorded when a job is submitted, assigned, granted or canceled,
//! an object arrives, a store is registered.
//!
//! `core` knows no database, no cloud and no transport: it speaks to `Table`, `Queue`, `Instances`, `Keys` and
//! `Credentials`, and `Backend` holds one of each. Decisions are `telecine-domain`'s; here they are read, asked for and
//! recorded with conditional writes. Time is an argument everywhere.
//!
//! Invariant: the record comes first, then the hint. Invariant: `update` is the only place that changes a job's row.
//! Invariant: a write whose result is unknown is settled by reading what it would have left behind.

pub mod access;
pub mod accounts;
pub mod autoscale;
pub mod backend;
pub mod contract;
pub mod cordon;
pub mod dispatch;
pub mod drain;
pub mod engines;
pub mod enrolment;
pub mod explain;
pub mod factories;
#[cfg(test)]
mod fixture;
pub mod fleet;
pub mod idempotency;
pub mod ingest;
mod job_row;
pub mod jobs;
mod layout;
pub mod leader;
pub mod memory;
pub mod pools;
pub mod ports;
pub mod problem;
mod produced;
pub mod record;
pub mod recorder;
#[cfg(test)]
mod registry_tests;
pub mod stores;
pub mod sweep;
pub mod system_store;
pub mod update;

pub use backend::Backend;

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use telecine_domain::attempt::AttemptId;
    use telecine_domain::factory::ArrivedObject;
    use telecine_domain::id::{AccountId, InstanceId, JobId, RegionName, StoreId};
    use telecine_domain::manifest::Manifest;
    use telecine_domain::time::Timestamp;

    use super::*;

    fn can_be_spawned<T: Send>(_: T) {}

    /// Callers spawn the use cases on a runtime of many threads. Never called: that it compiles is the test.
    #[expect(dead_code, reason = "that it compiles is the test")]
    fn use_cases_can_be_spawned(
        backend: &Backend,
        (account, job, store): (AccountId, JobId, StoreId),
        (attempt, object): (AttemptId, ArrivedObject),
        (body, region): (&Value, &RegionName),
        (instance, settings): (InstanceId, &autoscale::Settings),
        now: Timestamp,
    ) {
        can_be_spawned(jobs::submit(backend, account, body, None, now));
        can_be_spawned(jobs::submit_many(backend, account, &[], None, now));
        can_be_spawned(jobs::retry(backend, account, job, None, now));
        can_be_spawned(jobs::cancel(backend, account, job, now));
        can_be_spawned(jobs::edit(backend, account, job, jobs::JobEdit::default(), None, now));
        can_be_spawned(jobs::history(backend, account, job, 0, 1));
        can_be_spawned(dispatch::queued(backend, region, 1, None));
        can_be_spawned(dispatch::enter_phase(
            backend,
            attempt,
            telecine_domain::attempt::Phase::Running,
            now,
        ));
        can_be_spawned(dispatch::grant(backend, attempt, Manifest::default(), Default::default(), now));
        can_be_spawned(dispatch::published(backend, attempt, None, now));
        can_be_spawned(dispatch::store_access(backend, attempt, std::time::Duration::ZERO, now));
        can_be_spawned(factories::create(backend, account, body, now));
        can_be_spawned(factories::replace(backend, account, "", body, None, now));
        can_be_spawned(factories::remove(backend, account, "", None));
        can_be_spawned(ingest::arrived(backend, object, now));
        can_be_spawned(ingest::reconcile(backend, store, now));
        can_be_spawned(ingest::watched_stores(backend));
        can_be_spawned(stores::validate(backend, account, "", now));
        can_be_spawned(stores::remove(backend, account, ""));
        can_be_spawned(sweep::rehint(backend, region, |_| true, std::time::Duration::ZERO, now));
        can_be_spawned(sweep::overdue(backend, region, now));
        can_be_spawned(explain::explain(backend, account, job, now));
        can_be_spawned(leader::acquire(backend, region, "", &[], std::time::Duration::ZERO, now));
        can_be_spawned(recorder::append_log(backend, account, attempt, 0, &[], now));
        can_be_spawned(recorder::read_log(backend, account, job, attempt.attempt, 0, 1));
        can_be_spawned(access::authenticate(backend, "", now));
        can_be_spawned(accounts::ensure_default(backend, region, now));
        can_be_spawned(fleet::regions(backend));
        can_be_spawned(cordon::of_region(backend, region));
        can_be_spawned(cordon::claim(backend, region, instance, 1, now));
        can_be_spawned(autoscale::tick(backend, region, settings, now));
        can_be_spawned(drain::begin(backend, instance, now));
        can_be_spawned(drain::revoke(backend, instance, now));
        can_be_spawned(autoscale::observed(backend, region));
        can_be_spawned(autoscale::list(backend, None, 1, None));
        can_be_spawned(autoscale::replay(backend, region, 1));
    }
}
