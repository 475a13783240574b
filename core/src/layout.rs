//! Where each record is: the only place that builds keys. docs/data-model.md lists the same places, and a test holds
//! the two together.

use semver::{Prerelease, Version};
use sha2::{Digest, Sha256};
use telecine_domain::id::{
    AccountId, ApiKeyId, AttemptNumber, FactoryId, InstanceId, JobId, PoolName, RegionName, ServiceName,
    StoreId, WatchRuleId,
};
use telecine_domain::job::{JobState, StateName};
use telecine_domain::location::{ObjectKey, ObjectVersion};
use telecine_domain::time::Timestamp;

use crate::ports::table::Key;

/// What a job's own row sorts under; an account id follows.
pub(crate) const JOB: &str = "job#";

/// Everything about one job.
pub(crate) fn job_partition(job: JobId) -> String {
    format!("job#{job}")
}

pub(crate) fn job(job: JobId, account: AccountId) -> Key {
    Key::new(job_partition(job), format!("{JOB}{account}"))
}

pub(crate) fn jobs_of(account: AccountId) -> String {
    format!("acc#{account}#jobs")
}

/// The second index of a job that is not over: the part of its region where somebody waits for it.
pub(crate) fn job_section(region: &RegionName, state: &JobState) -> Option<String> {
    let section = match state.name() {
        StateName::Held => "held",
        StateName::Queued => "queued",
        StateName::Assigned
        | StateName::Starting
        | StateName::Running
        | StateName::Finalizing
        | StateName::Canceling => "live",
        StateName::Succeeded | StateName::Failed | StateName::Canceled | StateName::Expired => return None,
    };
    Some(format!("region#{region}#{section}"))
}

pub(crate) fn queued_jobs(region: &RegionName) -> String {
    format!("region#{region}#queued")
}

pub(crate) fn live_jobs(region: &RegionName) -> String {
    format!("region#{region}#live")
}

pub(crate) fn held_jobs(region: &RegionName) -> String {
    format!("region#{region}#held")
}

pub(crate) fn attempts_prefix(account: AccountId) -> String {
    format!("attempt#{account}#")
}

pub(crate) fn attempt(job: JobId, account: AccountId, attempt: AttemptNumber) -> Key {
    Key::new(job_partition(job), format!("{}{:010}", attempts_prefix(account), attempt.0))
}

pub(crate) fn history_prefix(account: AccountId) -> String {
    format!("history#{account}#")
}

pub(crate) fn history(job: JobId, account: AccountId, version: u64) -> Key {
    Key::new(job_partition(job), format!("{}{version:010}", history_prefix(account)))
}

pub(crate) fn progress(job: JobId, account: AccountId) -> Key {
    Key::new(job_partition(job), format!("progress#{account}"))
}

pub(crate) fn watch(job: JobId, account: AccountId) -> Key {
    Key::new(job_partition(job), format!("watch#{account}"))
}

pub(crate) fn log(job: JobId, account: AccountId, attempt: AttemptNumber) -> Key {
    Key::new(job_partition(job), format!("log#{account}#{:010}", attempt.0))
}

pub(crate) fn log_chunks_prefix(account: AccountId, attempt: AttemptNumber) -> String {
    format!("logchunk#{account}#{:010}#", attempt.0)
}

pub(crate) fn log_chunk(job: JobId, account: AccountId, attempt: AttemptNumber, sequence: u64) -> Key {
    Key::new(job_partition(job), format!("{}{sequence:010}", log_chunks_prefix(account, attempt)))
}

pub(crate) fn factories_of(account: AccountId) -> String {
    format!("acc#{account}#factories")
}

pub(crate) fn factory(account: AccountId, factory: FactoryId) -> Key {
    Key::new(factories_of(account), factory.to_string())
}

pub(crate) fn factory_name(account: AccountId, name: &str) -> Key {
    Key::new(format!("acc#{account}#factorynames"), name)
}

/// The factories that watch a store.
pub(crate) fn watchers_of(store: StoreId) -> String {
    format!("store#{store}#watchers")
}

pub(crate) fn watcher(store: StoreId, factory: FactoryId) -> Key {
    Key::new(watchers_of(store), factory.to_string())
}

pub(crate) fn stores_of(account: AccountId) -> String {
    format!("acc#{account}#stores")
}

pub(crate) fn store(account: AccountId, store: StoreId) -> Key {
    Key::new(stores_of(account), store.to_string())
}

pub(crate) fn store_name(account: AccountId, name: &str) -> Key {
    Key::new(format!("acc#{account}#storenames"), name)
}

/// Which account a store belongs to, for events that name the store only.
pub(crate) fn store_owner(store: StoreId) -> Key {
    Key::new(format!("store#{store}"), "owner")
}

/// Every store, for watchers and the reconcile pass.
pub(crate) const ALL_STORES: &str = "stores";

pub(crate) fn services_of(account: AccountId) -> String {
    format!("acc#{account}#services")
}

pub(crate) fn service(account: AccountId, service: &ServiceName) -> Key {
    Key::new(services_of(account), service.as_str())
}

pub(crate) fn engine_versions_of(account: AccountId, service: &ServiceName) -> String {
    format!("acc#{account}#service#{service}")
}

pub(crate) fn engine_version(account: AccountId, service: &ServiceName, version: &Version) -> Key {
    Key::new(engine_versions_of(account, service), padded(version))
}

/// A version whose bytes sort by precedence: numbers padded to 20 digits, a release behind its pre-releases.
fn padded(version: &Version) -> String {
    let numbers = format!("{:020}.{:020}.{:020}", version.major, version.minor, version.patch);
    let stage =
        if version.pre.is_empty() { "~".to_owned() } else { format!("-{}", padded_pre(&version.pre)) };
    let build = if version.build.is_empty() { String::new() } else { format!("+{}", version.build) };
    format!("{numbers}{stage}{build}")
}

/// Numeric identifiers sort before the others and by value; `!` lies below every character of an identifier.
fn padded_pre(pre: &Prerelease) -> String {
    let identifiers = pre.split('.').map(|identifier| {
        if identifier.bytes().all(|byte| byte.is_ascii_digit()) {
            format!("0{:04}{identifier}", identifier.len())
        } else {
            format!("1{identifier}")
        }
    });
    identifiers.collect::<Vec<_>>().join("!")
}

/// Every account.
pub(crate) const ACCOUNTS: &str = "accounts";

pub(crate) fn account(account: AccountId) -> Key {
    Key::new(ACCOUNTS, account.to_string())
}

/// Names the account that an installation begins with.
pub(crate) fn default_account() -> Key {
    Key::new("installation", "default-account")
}

/// The row that a presented API key is checked against.
pub(crate) fn api_key_secret(token: &str) -> Key {
    Key::new(format!("apikey#{}", sha256(token)), "key")
}

pub(crate) fn api_keys_of(account: AccountId) -> String {
    format!("acc#{account}#apikeys")
}

pub(crate) fn api_key(account: AccountId, key: ApiKeyId) -> Key {
    Key::new(api_keys_of(account), key.to_string())
}

pub(crate) fn join_token(token: &str) -> Key {
    Key::new(format!("join#{}", sha256(token)), "token")
}

/// The join token of an instance, to retire it.
pub(crate) fn instance_join(instance: InstanceId) -> Key {
    Key::new(format!("instance#{instance}"), "join")
}

/// That an instance was retired.
pub(crate) fn instance_retired(instance: InstanceId) -> Key {
    Key::new(format!("instance#{instance}"), "retired")
}

pub(crate) fn idempotency(account: AccountId, key: &str) -> Key {
    Key::new(format!("idem#{account}#{key}"), "request")
}

pub(crate) fn ingest_of(store: StoreId) -> String {
    format!("ingest#{store}")
}

/// The job of a rule and an object version: the row that makes it one job.
pub(crate) fn ingest_match(
    store: StoreId,
    rule: WatchRuleId,
    key: &ObjectKey,
    version: &ObjectVersion,
) -> Key {
    let parts = [rule.to_string(), key.to_string(), version.identity()];
    let hash = sha256(serde_json::to_string(&parts).expect("strings are JSON"));
    Key::new(ingest_of(store), format!("match#{hash}"))
}

/// An object version that made no job.
pub(crate) fn ingest_unmatched(store: StoreId, key: &ObjectKey, version: &ObjectVersion) -> Key {
    let parts = [key.to_string(), version.identity()];
    let hash = sha256(serde_json::to_string(&parts).expect("strings are JSON"));
    Key::new(ingest_of(store), format!("none#{hash}"))
}

pub(crate) fn arrivals_of(account: AccountId) -> String {
    format!("acc#{account}#arrivals")
}

pub(crate) fn unmatched_of(account: AccountId) -> String {
    format!("acc#{account}#unmatched")
}

/// Orders arrivals by time.
pub(crate) fn moment(at: Timestamp, tail: &str) -> String {
    format!("{:015}#{tail}", at.as_millis())
}

/// A location that a job writes, so that its factory does not take it for an arrival.
pub(crate) fn produced(store: StoreId, key: &str) -> Key {
    Key::new(format!("produced#{store}"), sha256(key))
}

pub(crate) fn leader(region: &RegionName) -> Key {
    Key::new(format!("region#{region}"), "leader")
}

/// Every region that ever had a manager.
pub(crate) const REGIONS: &str = "regions";

pub(crate) fn region(region: &RegionName) -> Key {
    Key::new(REGIONS, region.as_str())
}

pub(crate) fn instances_of(region: &RegionName) -> String {
    format!("region#{region}#instances")
}

pub(crate) fn instance(region: &RegionName, instance: InstanceId) -> Key {
    Key::new(instances_of(region), instance.to_string())
}

/// The first index of an instance's row: finds it without its region.
pub(crate) fn instance_by_id(instance: InstanceId) -> Key {
    Key::new(format!("instance#{instance}"), "instance")
}

pub(crate) fn cordons_of(region: &RegionName) -> String {
    format!("region#{region}#cordons")
}

pub(crate) fn cordon(region: &RegionName, instance: InstanceId) -> Key {
    Key::new(cordons_of(region), instance.to_string())
}

/// The books of a region's autoscaler.
pub(crate) fn scaling(region: &RegionName) -> Key {
    Key::new(format!("region#{region}"), "scaling")
}

pub(crate) fn launches_of(region: &RegionName) -> String {
    format!("region#{region}#launches")
}

pub(crate) fn launch(region: &RegionName, decision: u64, index: u32) -> Key {
    Key::new(launches_of(region), format!("{decision:010}#{index:010}"))
}

pub(crate) fn bought_of(region: &RegionName) -> String {
    format!("region#{region}#bought")
}

pub(crate) fn bought(region: &RegionName, instance: InstanceId) -> Key {
    Key::new(bought_of(region), instance.to_string())
}

/// What waits in a region: the head of the last observation.
pub(crate) fn observation(region: &RegionName) -> Key {
    Key::new(format!("region#{region}#observation"), "head")
}

/// What the chunks of one observation, by term and sequence, begin with.
pub(crate) fn observation_chunks((term, sequence): (u64, u64)) -> String {
    format!("chunk#{term:010}#{sequence:010}#")
}

pub(crate) fn observation_chunk(region: &RegionName, number: (u64, u64), index: u32) -> Key {
    Key::new(observation(region).partition, format!("{}{index:010}", observation_chunks(number)))
}

pub(crate) fn decisions_of(region: &RegionName) -> String {
    format!("region#{region}#decisions")
}

pub(crate) fn decision(region: &RegionName, number: u64) -> Key {
    Key::new(decisions_of(region), format!("{number:010}"))
}

/// The decisions of every region, by time.
pub(crate) const DECISIONS: &str = "decisions";

pub(crate) fn decision_by_time(region: &RegionName, number: u64, at: Timestamp) -> Key {
    Key::new(DECISIONS, moment(at, &format!("{region}#{number:010}")))
}

/// Every pool.
pub(crate) const POOLS: &str = "pools";

pub(crate) fn pool(pool: &PoolName) -> Key {
    Key::new(POOLS, pool.as_str())
}

/// Lower-case hexadecimal SHA-256.
pub(crate) fn sha256(text: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use telecine_domain::id::Epoch;
    use telecine_domain::job::Run;

    use super::*;

    #[test]
    fn versions_sort_by_precedence() {
        let ordered = [
            "0.9.10",
            "0.10.0",
            "1.0.0-1",
            "1.0.0-2",
            "1.0.0-11",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.0.1",
            "2.0.0",
            "10.0.0",
        ];
        let versions: Vec<Version> = ordered.iter().map(|text| text.parse().unwrap()).collect();
        assert!(versions.is_sorted(), "the list of the test itself");
        let keys: Vec<String> = versions.iter().map(padded).collect();
        assert!(keys.is_sorted(), "{keys:#?}");
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
    }

    fn id<T>(make: impl Fn(Timestamp, u128) -> T) -> T {
        make(Timestamp::from_millis(1), 1)
    }

    /// Of regions, instances and pools.
    fn places_of_regions(loc: &RegionName, ins: InstanceId, fleet: &PoolName) -> Vec<(&'static str, Key)> {
        vec![
            ("leader", leader(loc)),
            ("region", region(loc)),
            ("instance", instance(loc, ins)),
            ("instance by id", instance_by_id(ins)),
            ("cordon", cordon(loc, ins)),
            ("scaling books", scaling(loc)),
            ("launch", launch(loc, 7, 7)),
            ("bought instance", bought(loc, ins)),
            ("observation", observation(loc)),
            ("observation chunk", observation_chunk(loc, (7, 7), 7)),
            ("scaling decision", decision(loc, 7)),
            ("decisions by time", Key::new(DECISIONS, moment(Timestamp::from_millis(1), "x"))),
            ("pool", pool(fleet)),
        ]
    }

    /// Every key that is built, with what varies in angle brackets: `(what, partition, sort)`.
    fn places() -> Vec<(&'static str, String, String)> {
        let (acc, jid, sto, fac) = (id(AccountId::new), id(JobId::new), id(StoreId::new), id(FactoryId::new));
        let (rule, ins, api) = (id(WatchRuleId::new), id(InstanceId::new), id(ApiKeyId::new));
        let (n, loc): (_, RegionName) = (AttemptNumber(7), "berlin".parse().unwrap());
        let srv: ServiceName = "transform".parse().unwrap();
        let fleet: PoolName = "lagoon".parse().unwrap();
        let key: ObjectKey = "a.mov".parse().unwrap();
        let seen = ObjectVersion { etag: "e".to_owned(), version_id: None, size_bytes: 1 };
        let run = Run { attempt: n, epoch: Epoch(7), instance: ins, since: Timestamp::from_millis(1) };
        let section = |state: JobState| Key::new(job_section(&loc, &state).unwrap(), jid.to_string());
        let reason = telecine_domain::job::HoldReason::Manual;
        let queued = JobState::Queued { not_before: None, last_failure: None };
        let at = moment(Timestamp::from_millis(1), "x");
        let keys = [
            ("job", job(jid, acc)),
            ("job by account", Key::new(jobs_of(acc), jid.to_string())),
            ("job queued", section(queued)),
            ("job live", section(JobState::Running(run))),
            ("job held", section(JobState::Held { reason })),
            ("attempt", attempt(jid, acc, n)),
            ("history", history(jid, acc, 7)),
            ("progress", progress(jid, acc)),
            ("watch mark", watch(jid, acc)),
            ("log", log(jid, acc, n)),
            ("log chunk", log_chunk(jid, acc, n, 7)),
            ("factory", factory(acc, fac)),
            ("factory name", factory_name(acc, "<name>")),
            ("watcher", watcher(sto, fac)),
            ("store", store(acc, sto)),
            ("store name", store_name(acc, "<name>")),
            ("store owner", store_owner(sto)),
            ("every store", Key::new(ALL_STORES, sto.to_string())),
            ("service", service(acc, &srv)),
            ("engine version", Key::new(engine_versions_of(acc, &srv), "<padded version>")),
            ("account", account(acc)),
            ("default account", default_account()),
            ("API key by token", api_key_secret("x")),
            ("API key", api_key(acc, api)),
            ("join token", join_token("x")),
            ("join token by instance", instance_join(ins)),
            ("retired instance", instance_retired(ins)),
            ("idempotency key", idempotency(acc, "<key>")),
            ("arrival", ingest_match(sto, rule, &key, &seen)),
            ("unmatched arrival", ingest_unmatched(sto, &key, &seen)),
            ("arrivals by time", Key::new(arrivals_of(acc), at.clone())),
            ("unmatched by time", Key::new(unmatched_of(acc), at)),
            ("produced output", produced(sto, "x")),
        ];
        let keys = keys.into_iter().chain(places_of_regions(&loc, ins, &fleet));
        let names: [(String, &str); 9] = [
            (acc.to_string(), "<account>"),
            (jid.to_string(), "<job>"),
            (sto.to_string(), "<store>"),
            (fac.to_string(), "<factory>"),
            (ins.to_string(), "<instance>"),
            (api.to_string(), "<API key>"),
            (loc.to_string(), "<region>"),
            (srv.to_string(), "<service>"),
            (fleet.to_string(), "<pool>"),
        ];
        let named = |part: &str| {
            let part = names.iter().fold(part.to_owned(), |part, (value, name)| part.replace(value, name));
            let part = part.replace("0000000007", "<number>").replace("000000000000001#x", "<time>#<tail>");
            let hash = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
            match part.len().checked_sub(64).map(|cut| part.split_at(cut)) {
                Some((before, tail)) if hash(tail) => format!("{before}<sha256>"),
                Some(_) | None => part,
            }
        };
        keys.map(|(what, key)| (what, named(&key.partition), named(&key.sort))).collect()
    }

    #[test]
    fn the_document_lists_every_key_that_is_built_and_no_other() {
        let document = include_str!("../../docs/data-model.md");
        let table = document.split("<!-- keys -->").nth(1).expect("the table of keys is marked");
        let listed: BTreeSet<String> = table
            .lines()
            .filter(|line| line.starts_with("| ") && line.contains('`'))
            .map(|line| line.split('|').skip(1).take(3).map(str::trim).collect::<Vec<_>>().join(" | "))
            .collect();
        let built: BTreeSet<String> =
            places().into_iter().map(|(what, p, s)| format!("{what} | `{p}` | `{s}`")).collect();
        let missing: Vec<_> = built.difference(&listed).collect();
        let stale: Vec<_> = listed.difference(&built).collect();
        assert!(missing.is_empty() && stale.is_empty(), "missing: {missing:#?}\nstale: {stale:#?}");
    }
}
