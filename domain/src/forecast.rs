//! When a job that waits may start: a look ahead over what is free, what will be free, and who goes first.
//!
//! Each job before it takes the place where it could begin soonest, in its turn, and keeps it for as long as it is
//! expected to run; then the job itself does. Attempts that run end after what is left of their expected time; pools
//! that may grow give an empty instance after their boot. Done twice: with the medians and the jobs that surely go first,
//! and with the nine-in-ten values, twice the boot, and everybody who may go first. It is a forecast and no promise:
//! jobs that are yet to come, reservations and turns of the oldest are not in it, and no gap before a job that waits on
//! an instance is filled.
//!
//! What runs for an unknown time never ends here: an answer that hangs on it is "unknown".

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::InstanceId;
use crate::instance::{Instance, InstanceState, RuntimeKind};
use crate::placement::Request;
use crate::resources::Resources;
use crate::time::Timestamp;

/// Most jobs before one for which a start is forecast.
pub const MAX_BEFORE: usize = 1000;
/// Most new instances of a pool that are reckoned with.
const MAX_NEW: u32 = 100;
/// Most pairs of job and instance that are looked at.
const MAX_PAIRS: usize = 4_000_000;

/// A time that half, and one that nine of ten, are expected to keep within; in milliseconds, `None` when unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Within {
    /// Half of the cases.
    pub p50_ms: Option<u64>,
    /// Nine of ten cases.
    pub p90_ms: Option<u64>,
}

/// An attempt that holds resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holds {
    /// Where.
    pub instance: InstanceId,
    /// What it holds.
    pub resources: Resources,
    /// How much longer.
    pub left: Within,
}

/// A job that waits, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// What it asks for.
    pub request: Request,
    /// How long it runs.
    pub runs: Within,
    /// Whether it goes first for certain, and not only perhaps.
    pub surely: bool,
}

/// Instances that could be launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launchable {
    /// What each has.
    pub capacity: Resources,
    /// The ways it runs engines, where that is known; any otherwise.
    pub runtimes: Option<BTreeSet<RuntimeKind>>,
    /// How many.
    pub count: u32,
    /// How long one takes to be ready, in milliseconds.
    pub boot_ms: u64,
}

/// What a forecast is made from.
#[derive(Clone, Copy, Debug)]
pub struct Outlook<'a> {
    /// The region's instances.
    pub instances: &'a [Instance],
    /// What runs on them.
    pub holds: &'a [Holds],
    /// What is starting or may be launched.
    pub launchable: &'a [Launchable],
    /// Who goes before it, in their order.
    pub before: &'a [Before],
}

/// When a job is expected to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Start {
    /// As far as anybody can tell.
    Expected {
        /// As likely before as after this time.
        p50: Timestamp,
        /// In nine of ten cases by this time; unknown when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        p90: Option<Timestamp>,
    },
    /// Nobody can tell.
    Unknown {
        /// Why not.
        because: UnknownStart,
    },
}

/// Why a start is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownStart {
    /// Nothing that is there or may be launched would take it.
    NothingTakesIt,
    /// It waits for work whose duration was not learned yet.
    NotLearned,
    /// It waits for something that has no time of its own: a release, or a limit.
    NoTime,
    /// Too many jobs stand before it.
    TooManyBefore,
}

impl UnknownStart {
    /// In words, to follow `unknown: `.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NothingTakesIt => "nothing that is there, or may be launched, would take it",
            Self::NotLearned => "how long the work runs that it waits for was not learned yet",
            Self::NoTime => "it waits for something that has no time",
            Self::TooManyBefore => "too many jobs stand before it",
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expected { p50, p90: Some(p90) } => write!(f, "about {p50}, in nine of ten cases by {p90}"),
            Self::Expected { p50, p90: None } => write!(f, "about {p50}, or much later"),
            Self::Unknown { because } => write!(f, "unknown: {}", because.words()),
        }
    }
}

/// Forecasts the start of a job with this request, which may not start before `from`.
pub fn start(request: &Request, outlook: &Outlook<'_>, from: Timestamp) -> Start {
    let hosts = outlook.instances.len()
        + outlook.launchable.iter().map(|some| some.count.min(MAX_NEW) as usize).sum::<usize>();
    if outlook.before.len() > MAX_BEFORE || outlook.before.len().saturating_mul(hosts) > MAX_PAIRS {
        return Start::Unknown { because: UnknownStart::TooManyBefore };
    }
    if !hosts_of(outlook, Case::Likely, from).iter().any(|host| host.could_take(request)) {
        return Start::Unknown { because: UnknownStart::NothingTakesIt };
    }
    match start_in(request, outlook, Case::Likely, from) {
        None => Start::Unknown { because: UnknownStart::NotLearned },
        Some(p50) => {
            let p90 = start_in(request, outlook, Case::Late, from).map(|p90| p90.max(p50));
            Start::Expected { p50, p90 }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Likely,
    Late,
}

impl Case {
    const fn of(self, within: Within) -> Option<u64> {
        match self {
            Self::Likely => within.p50_ms,
            Self::Late => within.p90_ms,
        }
    }

    fn boot(self, boot_ms: u64) -> u64 {
        match self {
            Self::Likely => boot_ms,
            Self::Late => boot_ms.saturating_mul(2),
        }
    }

    const fn counts(self, before: &Before) -> bool {
        match self {
            Self::Likely => before.surely,
            Self::Late => true,
        }
    }
}

/// A place for jobs, as it will be.
struct Host {
    runtimes: Option<BTreeSet<RuntimeKind>>,
    capacity: Resources,
    /// What is free from `from` on.
    free: Resources,
    from: Timestamp,
    /// What becomes free and when, the earliest first.
    ends: Vec<(Timestamp, Resources)>,
}

impl Host {
    fn could_take(&self, request: &Request) -> bool {
        let runs = self.runtimes.as_ref().is_none_or(|runtimes| runtimes.contains(&request.runtime));
        runs && request.resources.fits_in(&self.capacity)
    }

    /// When the request would fit.
    fn earliest(&self, request: &Request) -> Option<Timestamp> {
        if !self.could_take(request) {
            return None;
        }
        let (mut at, mut free, mut ends) = (self.from, self.free, self.ends.iter());
        while !request.resources.fits_in(&free) {
            let (end, resources) = ends.next()?;
            (at, free) = (at.max(*end), free.saturating_add(resources));
        }
        Some(at)
    }

    /// Gives the request its place at `at`, and back after `runs_ms`.
    fn take(&mut self, request: &Request, at: Timestamp, runs_ms: Option<u64>) {
        let over = self.ends.partition_point(|(end, _)| *end <= at);
        for (_, resources) in self.ends.drain(..over) {
            self.free = self.free.saturating_add(&resources);
        }
        self.free = self.free.saturating_sub(&request.resources);
        self.from = at;
        if let Some(runs_ms) = runs_ms {
            let end = later(at, runs_ms);
            let place = self.ends.partition_point(|(other, _)| *other <= end);
            self.ends.insert(place, (end, request.resources));
        }
    }
}

fn start_in(request: &Request, outlook: &Outlook<'_>, case: Case, from: Timestamp) -> Option<Timestamp> {
    let mut hosts = hosts_of(outlook, case, from);
    let soonest = |hosts: &[Host], request: &Request| {
        let times =
            hosts.iter().enumerate().filter_map(|(index, host)| Some((host.earliest(request)?, index)));
        times.min()
    };
    for before in outlook.before.iter().filter(|before| case.counts(before)) {
        // What fits nowhere is in nobody's way.
        let Some((at, index)) = soonest(&hosts, &before.request) else { continue };
        hosts[index].take(&before.request, at, case.of(before.runs));
    }
    soonest(&hosts, request).map(|(at, _)| at)
}

fn hosts_of(outlook: &Outlook<'_>, case: Case, from: Timestamp) -> Vec<Host> {
    let ready = outlook.instances.iter().filter(|instance| instance.state == InstanceState::Ready);
    let there = ready.map(|instance| {
        let capacity = instance.profile.capacity;
        let held = outlook.holds.iter().filter(|held| held.instance == instance.profile.id);
        let mut ends: Vec<(Timestamp, Resources)> =
            held.filter_map(|held| Some((later(from, case.of(held.left)?), held.resources))).collect();
        ends.sort_unstable();
        let free = capacity.saturating_sub(&instance.allocated);
        Host { runtimes: Some(instance.profile.runtimes.clone()), capacity, free, from, ends }
    });
    let new = outlook.launchable.iter().flat_map(|some| {
        let from = later(from, case.boot(some.boot_ms));
        let host = move || Host {
            runtimes: some.runtimes.clone(),
            capacity: some.capacity,
            free: some.capacity,
            from,
            ends: Vec::new(),
        };
        (0..some.count.min(MAX_NEW)).map(move |_| host())
    });
    there.chain(new).collect()
}

fn later(at: Timestamp, ms: u64) -> Timestamp {
    Timestamp::from_millis(at.as_millis().saturating_add(ms))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixture::{at, cores, instance, instance_id, job};

    fn request(cpu: u64) -> Request {
        Request { resources: cores(cpu, 1), ..Request::of(&job(1).spec) }
    }

    const fn within(p50: u64, p90: u64) -> Within {
        Within { p50_ms: Some(p50 * 1000), p90_ms: Some(p90 * 1000) }
    }

    fn before(cpu: u64, runs: Within, surely: bool) -> Before {
        Before { request: request(cpu), runs, surely }
    }

    fn expected(p50: u64, p90: u64) -> Start {
        Start::Expected { p50: at(p50), p90: Some(at(p90)) }
    }

    const NOTHING: Outlook<'_> = Outlook { instances: &[], holds: &[], launchable: &[], before: &[] };

    #[test]
    fn what_fits_starts_now_and_what_fits_nowhere_is_unknown() {
        let instances = [instance(1, cores(4, 8))];
        let outlook = Outlook { instances: &instances, ..NOTHING };
        assert_eq!(start(&request(4), &outlook, at(0)), expected(0, 0));
        let unknown = Start::Unknown { because: UnknownStart::NothingTakesIt };
        assert_eq!(start(&request(5), &outlook, at(0)), unknown);
        assert_eq!(start(&request(1), &NOTHING, at(0)), unknown);
    }

    fn busy() -> ([Instance; 1], [Holds; 2]) {
        let mut busy = instance(1, cores(4, 8));
        busy.allocated = cores(4, 2);
        let held = |cpu, left| Holds { instance: instance_id(1), resources: cores(cpu, 1), left };
        ([busy], [held(3, within(100, 300)), held(1, within(10, 20))])
    }

    #[test]
    fn it_waits_until_enough_has_ended() {
        let (instances, holds) = busy();
        let outlook = Outlook { instances: &instances, holds: &holds, ..NOTHING };
        assert_eq!(start(&request(1), &outlook, at(0)), expected(10, 20));
        assert_eq!(start(&request(2), &outlook, at(0)), expected(100, 300));
    }

    #[test]
    fn jobs_before_it_take_their_turns_and_those_that_may_count_for_the_late_case() {
        let (instances, holds) = busy();
        let mut ahead = vec![before(1, within(5, 7), true), before(1, within(50, 70), false)];
        let outlook = |before: &[Before]| {
            start(
                &request(1),
                &Outlook { instances: &instances, holds: &holds, launchable: &[], before },
                at(0),
            )
        };
        assert_eq!(outlook(&ahead), expected(15, 97));
        ahead.push(before(64, within(5, 7), true));
        assert_eq!(outlook(&ahead), expected(15, 97), "what fits nowhere is in nobody's way");
        ahead[0].runs = Within::default();
        assert_eq!(outlook(&ahead), expected(100, 300), "it goes on for nobody knows how long");
        let many = vec![before(1, within(1, 1), true); MAX_BEFORE + 1];
        assert_eq!(outlook(&many), Start::Unknown { because: UnknownStart::TooManyBefore });
    }

    #[test]
    fn what_was_never_learned_makes_it_unknown() {
        let (instances, mut holds) = busy();
        holds[0].left = Within { p50_ms: Some(1000), p90_ms: None };
        holds[1].left = Within::default();
        let outlook = Outlook { instances: &instances, holds: &holds, ..NOTHING };
        assert_eq!(start(&request(3), &outlook, at(0)), Start::Expected { p50: at(1), p90: None });
        assert_eq!(start(&request(4), &outlook, at(0)), Start::Unknown { because: UnknownStart::NotLearned });
    }

    #[test]
    fn a_pool_that_may_grow_gives_an_instance_after_its_boot() {
        let pool = Launchable { capacity: cores(8, 8), runtimes: None, count: 1, boot_ms: 30_000 };
        let launchable = [pool];
        let outlook = Outlook { launchable: &launchable, ..NOTHING };
        assert_eq!(start(&request(2), &outlook, at(0)), expected(30, 60));
        let ahead = [before(8, within(100, 100), true)];
        let outlook = Outlook { before: &ahead, ..outlook };
        assert_eq!(start(&request(2), &outlook, at(0)), expected(130, 160));
    }

    proptest! {
        #[test]
        fn more_work_never_makes_it_sooner_and_the_late_case_is_never_before_the_likely(
            held in proptest::collection::vec((1..4u64, 0..100u64, 0..100u64), 0..4),
            ahead in proptest::collection::vec((1..6u64, 0..100u64, 0..100u64, any::<bool>()), 0..8),
            cpu in 1..8u64,
        ) {
            let mut host = instance(1, cores(8, 64));
            host.allocated = cores(held.iter().map(|(cpu, ..)| cpu).sum::<u64>().min(8), 1);
            let within = |p50: u64, more: u64| within(p50, p50 + more);
            let holds: Vec<Holds> = held.iter().map(|&(cpu, p50, more)| Holds {
                instance: instance_id(1), resources: cores(cpu, 0), left: within(p50, more),
            }).collect();
            let ahead: Vec<Before> =
                ahead.iter().map(|&(cpu, p50, more, surely)| before(cpu, within(p50, more), surely)).collect();
            let instances = [host];
            let told = |before: &[Before]| start(&request(cpu), &Outlook {
                instances: &instances, holds: &holds, launchable: &[], before,
            }, at(0));
            let (alone, with) = (told(&[]), told(&ahead));
            let (Start::Expected { p50: alone, .. }, Start::Expected { p50, p90 }) = (alone, with) else {
                return Err(TestCaseError::fail(format!("{alone:?} {with:?}")));
            };
            prop_assert!(alone <= p50 && p90.is_some_and(|p90| p50 <= p90));
        }
    }
}
