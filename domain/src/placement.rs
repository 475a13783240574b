//! Which instance a job goes to: best fit over several resources, as a pure function.
//!
//! Among the instances that can take the request now, one that has the image is preferred, then the one with the least
//! left over afterwards (in its most plentiful resource, then over all of them), then the lowest id. So small jobs fill
//! gaps, and jobs that need no GPU stay away from instances with a free one.
//!
//! A refusal is data: what no instance takes comes back with the reason of each.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{InstanceId, PoolName};
use crate::instance::{HealthProblem, Instance, InstanceState, RuntimeKind};
use crate::job::JobSpec;
use crate::resources::{ResourceKind, Resources, share};

/// What placement needs to know of a job. Jobs with equal requests are placed alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What it needs.
    pub resources: Resources,
    /// The way its engine runs.
    pub runtime: RuntimeKind,
    /// Digest of its engine's image, `sha256:…`; `None` for a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

impl Request {
    /// What a job with this specification asks for.
    pub fn of(spec: &JobSpec) -> Self {
        Self {
            resources: spec.resources,
            runtime: spec.engine.launch.runtime(),
            image: spec.engine.launch.image().map(|image| image.digest().to_owned()),
        }
    }
}

/// An instance as placement sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Which one.
    pub id: InstanceId,
    /// Its pool.
    pub pool: &'a PoolName,
    /// Name of its host, for people.
    pub host: &'a str,
    /// What jobs may use.
    pub capacity: Resources,
    /// What of that is free.
    pub free: Resources,
    /// The ways it runs engines.
    pub runtimes: &'a BTreeSet<RuntimeKind>,
    /// Digests of the images it has.
    pub cached_images: &'a BTreeSet<String>,
    /// Where it is in its life; only `Ready` takes work.
    pub state: InstanceState,
    /// Its closed health gates.
    pub problems: &'a [HealthProblem],
}

impl<'a> From<&'a Instance> for Candidate<'a> {
    fn from(instance: &'a Instance) -> Self {
        let profile = &instance.profile;
        Self {
            id: profile.id,
            pool: &profile.pool,
            host: &profile.host,
            capacity: profile.capacity,
            free: profile.capacity.saturating_sub(&instance.allocated),
            runtimes: &profile.runtimes,
            cached_images: &profile.cached_images,
            state: instance.state,
            problems: &profile.problems,
        }
    }
}

/// What may be chosen about placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Prefer an instance that has the image over one that is a better fit.
    pub prefer_cached_image: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { prefer_cached_image: true }
    }
}

/// Why an instance does not take a request. The reasons that last longest come first: what is too small stays so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RefusalReason {
    /// It cannot run such engines.
    RuntimeMissing {
        /// The way that is missing.
        runtime: RuntimeKind,
    },
    /// It would not fit even if nothing else ran there.
    TooSmall {
        /// The first resource that is too small.
        resource: ResourceKind,
        /// What the request needs of it.
        need: u64,
        /// What the instance has of it.
        capacity: u64,
    },
    /// It is not connected.
    NotReady {
        /// What it is instead.
        state: InstanceState,
    },
    /// It finishes what it has and takes no more.
    Draining,
    /// It is cordoned, or its end was announced.
    Cordoned,
    /// Its own health keeps it from taking work.
    Unhealthy {
        /// The closed gates.
        gates: Vec<String>,
    },
    /// It is large enough, but other jobs use it.
    Busy {
        /// The first resource of which too little is free.
        resource: ResourceKind,
        /// What the request needs of it.
        need: u64,
        /// What is free of it.
        free: u64,
    },
}

/// One instance's refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The instance.
    pub instance: InstanceId,
    /// Its pool.
    pub pool: PoolName,
    /// Its host, for people.
    pub host: String,
    /// Why.
    pub reason: RefusalReason,
}

/// No instance takes the request now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unplaceable {
    /// Why each does not, the nearest to taking it first; empty when there is no instance.
    pub refusals: Vec<Refusal>,
}

impl Unplaceable {
    /// The instance that is nearest to taking it.
    pub fn nearest(&self) -> Option<&Refusal> {
        self.refusals.first()
    }
}

/// Chooses the instance for `request`.
///
/// # Errors
/// When none takes it now, with the reason of each.
pub fn place<'a>(
    request: &Request,
    candidates: impl Iterator<Item = Candidate<'a>> + Clone,
    policy: &Policy,
) -> Result<InstanceId, Unplaceable> {
    choose(request, candidates.clone(), policy).ok_or_else(|| refused(request, candidates))
}

/// Like [`place`], without the reasons.
pub fn choose<'a>(
    request: &Request,
    candidates: impl Iterator<Item = Candidate<'a>>,
    policy: &Policy,
) -> Option<InstanceId> {
    candidates
        .filter(|candidate| takes(request, candidate))
        .min_by_key(|candidate| preference(request, candidate, policy))
        .map(|candidate| candidate.id)
}

/// Why `candidate` does not take `request` now, or `None` when it does.
pub fn refusal(request: &Request, candidate: &Candidate<'_>) -> Option<RefusalReason> {
    let need = &request.resources;
    if !candidate.runtimes.contains(&request.runtime) {
        return Some(RefusalReason::RuntimeMissing { runtime: request.runtime });
    }
    if let Some(resource) = need.first_shortage(&candidate.capacity) {
        let (need, capacity) = (need.amount(resource), candidate.capacity.amount(resource));
        return Some(RefusalReason::TooSmall { resource, need, capacity });
    }
    match candidate.state {
        InstanceState::Ready => need.first_shortage(&candidate.free).map(|resource| {
            let (need, free) = (need.amount(resource), candidate.free.amount(resource));
            RefusalReason::Busy { resource, need, free }
        }),
        InstanceState::Unhealthy => Some(RefusalReason::Unhealthy {
            gates: candidate.problems.iter().map(|problem| problem.gate.clone()).collect(),
        }),
        InstanceState::Draining => Some(RefusalReason::Draining),
        InstanceState::Cordoned => Some(RefusalReason::Cordoned),
        state @ (InstanceState::Disconnected | InstanceState::Lost) => {
            Some(RefusalReason::NotReady { state })
        }
    }
}

/// Whether the request would run on `candidate` if nothing else did.
pub fn could_take(request: &Request, candidate: &Candidate<'_>) -> bool {
    candidate.state == InstanceState::Ready
        && candidate.runtimes.contains(&request.runtime)
        && request.resources.fits_in(&candidate.capacity)
}

fn takes(request: &Request, candidate: &Candidate<'_>) -> bool {
    could_take(request, candidate) && request.resources.fits_in(&candidate.free)
}

fn preference(request: &Request, candidate: &Candidate<'_>, policy: &Policy) -> Preference {
    let has_image = request.image.as_ref().is_none_or(|image| candidate.cached_images.contains(image));
    Preference::of(&request.resources, &candidate.free, &candidate.capacity, has_image, candidate.id, policy)
}

/// The order of preference between instances that take a request: the least comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Preference {
    without_image: bool,
    largest_left: u32,
    all_left: u64,
    id: InstanceId,
}

impl Preference {
    pub(crate) fn of(
        need: &Resources,
        free: &Resources,
        capacity: &Resources,
        has_image: bool,
        id: InstanceId,
        policy: &Policy,
    ) -> Self {
        let left = free.saturating_sub(need);
        let mut all_left = 0;
        let mut largest_left = 0;
        for kind in ResourceKind::ALL {
            let share = share(left.amount(kind), capacity.amount(kind));
            all_left += u64::from(share);
            largest_left = largest_left.max(share);
        }
        Self { without_image: policy.prefer_cached_image && !has_image, largest_left, all_left, id }
    }
}

/// Sum over the kinds of what `part` is of `whole`, in thousandths: the larger, the emptier.
pub fn share_sum(part: &Resources, whole: &Resources) -> u64 {
    ResourceKind::ALL.into_iter().map(|kind| u64::from(share(part.amount(kind), whole.amount(kind)))).sum()
}

fn refused<'a>(request: &Request, candidates: impl Iterator<Item = Candidate<'a>>) -> Unplaceable {
    let mut refusals: Vec<(Refusal, (u8, Reverse<u32>))> = candidates
        .filter_map(|candidate| {
            let reason = refusal(request, &candidate)?;
            let nearness = (distance(&reason), Reverse(coverage(&reason)));
            let (pool, host) = (candidate.pool.clone(), candidate.host.to_owned());
            Some((Refusal { instance: candidate.id, pool, host, reason }, nearness))
        })
        .collect();
    refusals.sort_by_key(|(refusal, nearness)| (*nearness, refusal.instance));
    Unplaceable { refusals: refusals.into_iter().map(|(refusal, _)| refusal).collect() }
}

/// How far an instance with this reason is from taking the job: waiting helps first, a larger machine last but one.
const fn distance(reason: &RefusalReason) -> u8 {
    match reason {
        RefusalReason::Busy { .. } => 0,
        RefusalReason::Unhealthy { .. } => 1,
        RefusalReason::NotReady { .. } => 2,
        RefusalReason::Cordoned => 3,
        RefusalReason::Draining => 4,
        RefusalReason::TooSmall { .. } => 5,
        RefusalReason::RuntimeMissing { .. } => 6,
    }
}

/// How much of what is short is there, in thousandths.
fn coverage(reason: &RefusalReason) -> u32 {
    match *reason {
        RefusalReason::Busy { need, free: there, .. }
        | RefusalReason::TooSmall { need, capacity: there, .. } => {
            let thousandths = u128::from(there) * 1000 / u128::from(need.max(1));
            u32::try_from(thousandths).unwrap_or(u32::MAX)
        }
        RefusalReason::RuntimeMissing { .. }
        | RefusalReason::NotReady { .. }
        | RefusalReason::Draining
        | RefusalReason::Cordoned
        | RefusalReason::Unhealthy { .. } => 0,
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RuntimeMissing { runtime: RuntimeKind::Docker } => f.write_str("it has no Docker"),
            Self::RuntimeMissing { runtime: RuntimeKind::Process } => {
                f.write_str("it does not run commands of its own machine")
            }
            Self::TooSmall { resource, need, capacity } => {
                let (need, capacity) = (resource.display(*need), resource.display(*capacity));
                write!(f, "{} needed: {need}, it has {capacity}", resource.name())
            }
            Self::NotReady { state: InstanceState::Lost } => f.write_str("it is lost"),
            Self::NotReady { .. } => f.write_str("it is not connected"),
            Self::Draining => f.write_str("it is draining and takes no more work"),
            Self::Cordoned => f.write_str("it is cordoned and takes no new work"),
            Self::Unhealthy { gates } if gates.is_empty() => f.write_str("it is unhealthy"),
            Self::Unhealthy { gates } => write!(f, "it is unhealthy ({})", gates.join(", ")),
            Self::Busy { resource, need, free } => {
                let (need, free) = (resource.display(*need), resource.display(*free));
                write!(f, "{} needed: {need}, free now: {free}", resource.name())
            }
        }
    }
}

impl fmt::Display for Unplaceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nearest() {
            None => f.write_str("there is no instance"),
            Some(nearest) => write!(
                f,
                "none of {} instances takes it; nearest is {}: {}",
                self.refusals.len(),
                nearest.host,
                nearest.reason
            ),
        }
    }
}

#[cfg(test)]
mod tests;
