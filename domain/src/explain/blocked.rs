//! A queued job that no instance takes now: what is short, where it is nearest, and what would help for least.

use super::pools::{AskedPool, NeverFits, PoolAnswer};
use super::{Blocking, Explanation, Facts, MAX_REFUSALS, Nearest, ReasonCode, plural};
use crate::forecast::Start;
use crate::instance::{Instance, InstanceState, RuntimeKind};
use crate::job::Job;
use crate::placement::{RefusalReason, Request, Unplaceable};
use crate::resources::{ResourceKind, Resources};

struct Said {
    code: ReasonCode,
    blocking: Option<Blocking>,
    summary: String,
    next_step: String,
}

pub(super) fn explain(
    explanation: &mut Explanation,
    request: &Request,
    job: &Job,
    facts: &Facts<'_>,
    unplaceable: Unplaceable,
) {
    explanation.nearest = nearest(&unplaceable, facts.instances);
    let pool = explanation.pools.first().filter(|pool| pool.fits());
    let waits_for_pool =
        pool.filter(|pool| explanation.nearest.as_ref().is_none_or(|nearest| !outweighs(nearest, pool)));
    let said = match (&explanation.nearest, waits_for_pool) {
        (_, Some(pool)) => for_pool(pool, &explanation.pools),
        (Some(nearest), None) => refused(request, nearest, explanation, facts.instances.len()),
        (None, None) => match explanation.pools.first().map(|pool| (pool, &pool.answer)) {
            Some((pool, PoolAnswer::Refuses(never))) => {
                never_fits(&format!("pool {}", pool.pool), never, request)
            }
            Some(_) | None => no_instance(job),
        },
    };
    explanation.code = said.code;
    explanation.blocking = said.blocking;
    explanation.summary = said.summary;
    explanation.next_step = said.next_step;
    explanation.refusals = unplaceable.refusals;
    explanation.refusals.truncate(MAX_REFUSALS);
}

fn nearest(unplaceable: &Unplaceable, instances: &[Instance]) -> Option<Nearest> {
    let refusal = unplaceable.nearest()?;
    let instance = instances.iter().find(|instance| instance.profile.id == refusal.instance)?;
    let capacity = instance.profile.capacity;
    let free = capacity.saturating_sub(&instance.allocated);
    Some(Nearest { refusal: refusal.clone(), capacity, free })
}

/// Whether the instance is nearer to taking the job than a pool that would take it: it only has to end other work or to
/// be mended; or its cordon to be taken back, where the pool gives nothing. One that goes away or never fits is not.
fn outweighs(nearest: &Nearest, pool: &AskedPool) -> bool {
    match &nearest.refusal.reason {
        RefusalReason::Busy { .. } | RefusalReason::Unhealthy { .. } => true,
        RefusalReason::NotReady { state } => *state != InstanceState::Lost,
        RefusalReason::Cordoned => !pool.is_open(),
        RefusalReason::Draining | RefusalReason::TooSmall { .. } | RefusalReason::RuntimeMissing { .. } => {
            false
        }
    }
}

fn no_instance(job: &Job) -> Said {
    Said {
        code: ReasonCode::NoInstance,
        blocking: None,
        summary: format!("region {} has no instance", job.spec.region),
        next_step: "start an agent in the region, or submit the job to a region that has instances"
            .to_owned(),
    }
}

/// No instance takes it, and this pool, the nearest of those that would, says what it waits for.
fn for_pool(nearest: &AskedPool, pools: &[AskedPool]) -> Said {
    let name = &nearest.pool;
    let said = |code, summary, next_step| Said { code, blocking: None, summary, next_step };
    match &nearest.answer {
        PoolAnswer::Starting { .. } => said(
            ReasonCode::InstanceStarting,
            format!("no instance takes the job yet; in pool {name} {nearest}"),
            "wait until it is ready".to_owned(),
        ),
        PoolAnswer::MayLaunch => said(
            ReasonCode::InstanceWanted,
            format!("no instance takes the job yet; one of pool {name} {nearest}"),
            "wait for the autoscaler, whose reasons `telecine pools decisions` tells".to_owned(),
        ),
        PoolAnswer::Full { .. }
        | PoolAnswer::NoCapacity { .. }
        | PoolAnswer::BootsFail { .. }
        | PoolAnswer::Cap(_)
        | PoolAnswer::Refuses(_) => {
            let fitting = pools.iter().filter(|pool| pool.fits()).count();
            let which = if fitting == 1 {
                "the pool that would take it"
            } else {
                "of the pools that would take it, the nearest"
            };
            said(
                ReasonCode::PoolsClosed,
                format!("no instance takes the job, and {which}, {name}, gives none: {nearest}"),
                opened_by(nearest),
            )
        }
    }
}

fn opened_by(pool: &AskedPool) -> String {
    let name = &pool.pool;
    match &pool.answer {
        PoolAnswer::Full { max } => {
            format!("raise `max` of pool {name} above {max}, or mend or free the instances that it has")
        }
        PoolAnswer::NoCapacity { .. } => {
            "wait until the provider is asked again, or add a pool of another shape or market".to_owned()
        }
        PoolAnswer::BootsFail { .. } => {
            format!("look at the log of an instance of pool {name} that did not boot, or add another pool")
        }
        PoolAnswer::Cap(cap) => {
            format!(
                "raise the region's cap {}, or wait until instances are given back",
                super::pools::cap_words(*cap)
            )
        }
        PoolAnswer::Starting { .. } | PoolAnswer::MayLaunch | PoolAnswer::Refuses(_) => String::new(),
    }
}

/// The nearest instance speaks for all: the others are further away.
fn refused(request: &Request, nearest: &Nearest, explanation: &Explanation, instances: usize) -> Said {
    let host = &nearest.refusal.host;
    match &nearest.refusal.reason {
        RefusalReason::Busy { resource, need, free } => Said {
            code: ReasonCode::AllBusy,
            blocking: Some(Blocking { resource: *resource, need: *need, there: *free }),
            summary: format!(
                "no instance has enough {} free: the job needs {}, {host} has {} free",
                resource.name(),
                resource.display(*need),
                resource.display(*free)
            ),
            next_step: when_busy(&request.resources, nearest, explanation),
        },
        RefusalReason::TooSmall { resource, need, capacity } => {
            let (resource, need, capacity) = (*resource, *need, *capacity);
            let here = NeverFits::TooSmall { resource, need, capacity };
            match larger_pool(explanation, need, capacity) {
                Some((pool, never)) => never_fits(&format!("pool {}", pool.pool), never, request),
                None => never_fits(host, &here, request),
            }
        }
        RefusalReason::RuntimeMissing { .. } => {
            let (summary, next_step) = runtime_missing(request.runtime, instances);
            Said { code: ReasonCode::NoRuntime, blocking: None, summary, next_step }
        }
        reason @ (RefusalReason::NotReady { .. }
        | RefusalReason::Draining
        | RefusalReason::Cordoned
        | RefusalReason::Unhealthy { .. }) => Said {
            code: ReasonCode::NoneReady,
            blocking: None,
            summary: format!("no instance that is large enough takes work now: of {host}, {reason}"),
            next_step: none_ready_step(reason, host, explanation),
        },
    }
}

/// A pool that is too small, too, but by less than what has this much.
fn larger_pool(explanation: &Explanation, need: u64, there: u64) -> Option<(&AskedPool, &NeverFits)> {
    let part = |need: u64, there: u64| u128::from(there) * 1000 / u128::from(need.max(1));
    let pool = explanation.pools.first()?;
    match &pool.answer {
        PoolAnswer::Refuses(never @ NeverFits::TooSmall { need: other, capacity, .. })
            if part(*other, *capacity) > part(need, there) =>
        {
            Some((pool, never))
        }
        PoolAnswer::Refuses(_)
        | PoolAnswer::Starting { .. }
        | PoolAnswer::MayLaunch
        | PoolAnswer::Full { .. }
        | PoolAnswer::NoCapacity { .. }
        | PoolAnswer::BootsFail { .. }
        | PoolAnswer::Cap(_) => None,
    }
}

fn never_fits(nearest: &str, never: &NeverFits, request: &Request) -> Said {
    match *never {
        NeverFits::TooSmall { resource, need, capacity } => Said {
            code: ReasonCode::TooLarge,
            blocking: Some(Blocking { resource, need, there: capacity }),
            summary: format!(
                "nothing is large enough: the job needs {} of {}, the nearest, {nearest}, has {}",
                resource.display(need),
                resource.name(),
                resource.display(capacity)
            ),
            next_step: format!(
                "submit the job with {0} of {1} or less, or add an instance or a pool with at least {2} of {1}",
                resource.display(capacity),
                resource.name(),
                resource.display(need)
            ),
        },
        NeverFits::RuntimeMissing { .. } => {
            let (summary, next_step) = runtime_missing(request.runtime, 0);
            let summary = format!("{summary} of {nearest}");
            Said { code: ReasonCode::NoRuntime, blocking: None, summary, next_step }
        }
    }
}

/// The cheapest first: waiting costs nothing, what is there helps at once, more costs money.
fn when_busy(need: &Resources, nearest: &Nearest, explanation: &Explanation) -> String {
    let mut ways = vec![match explanation.start {
        Some(Start::Expected { p50, .. }) => format!("wait until about {p50}"),
        Some(Start::Unknown { .. }) | None => "wait until running jobs end".to_owned(),
    }];
    if let Some((resource, free)) = only_shortage(need, &nearest.free) {
        let (free, host) = (resource.display(free), &nearest.refusal.host);
        ways.push(format!(
            "submit the job with {free} of {} or less, which {host} has free",
            resource.name()
        ));
    }
    match explanation.pools.first().map(|pool| (&pool.answer, &pool.pool)) {
        Some((PoolAnswer::Full { max }, name)) => {
            ways.push(format!("raise `max` of pool {name} above {max}"));
        }
        Some((PoolAnswer::Starting { .. } | PoolAnswer::MayLaunch, _)) => {}
        Some((
            PoolAnswer::NoCapacity { .. }
            | PoolAnswer::BootsFail { .. }
            | PoolAnswer::Cap(_)
            | PoolAnswer::Refuses(_),
            _,
        ))
        | None => ways.push("add an instance".to_owned()),
    }
    ways.join(", or ")
}

/// The one resource of which too little is free, if it is one and some of it is.
fn only_shortage(need: &Resources, free: &Resources) -> Option<(ResourceKind, u64)> {
    let mut short = ResourceKind::ALL.into_iter().filter(|&kind| need.amount(kind) > free.amount(kind));
    let (resource, others) = (short.next()?, short.next());
    let there = free.amount(resource);
    (others.is_none() && there > 0).then_some((resource, there))
}

fn runtime_missing(runtime: RuntimeKind, instances: usize) -> (String, String) {
    let whose = if instances == 0 {
        "no instance".to_owned()
    } else {
        format!("none of {}", plural(instances, "instance"))
    };
    match runtime {
        RuntimeKind::Docker => (
            format!("the engine is a container image, and Docker runs on {whose}"),
            "install and start Docker on an instance, then start its agent again; or choose an engine version \
             that is published as a command"
                .to_owned(),
        ),
        RuntimeKind::Process => (
            format!("the engine is a command of the machine, and {whose} runs such commands"),
            "allow the process runtime in an agent's configuration, or choose an engine version that is \
             published as an image"
                .to_owned(),
        ),
    }
}

fn none_ready_step(reason: &RefusalReason, host: &str, explanation: &Explanation) -> String {
    let pool = explanation.pools.first().filter(|pool| pool.is_open());
    let otherwise = match pool {
        Some(pool) => format!("wait for pool {}, which gives another instance", pool.pool),
        None => "add an instance".to_owned(),
    };
    match reason {
        RefusalReason::Unhealthy { .. } => {
            format!("run `telecine doctor` on {host} and mend what it names, or {otherwise}")
        }
        RefusalReason::NotReady { .. } => {
            format!("start the agent on {host}, or mend its connection to the manager, or {otherwise}")
        }
        RefusalReason::Cordoned => {
            format!("take the cordon of {host} back with `telecine instances undrain`, or {otherwise}")
        }
        RefusalReason::Draining
        | RefusalReason::RuntimeMissing { .. }
        | RefusalReason::TooSmall { .. }
        | RefusalReason::Busy { .. } => otherwise,
    }
}
