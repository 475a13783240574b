//! How much to buy and what to give back, as one pure function: a snapshot and a policy in, a decision out, with a
//! reason for everything that is done and for everything that is left.
//!
//! It is level-triggered: it reads the world and says what would bring it nearer to what is wanted. Asked twice about
//! the same snapshot it says the same; asked about the snapshot after its actions it says nothing more. It runs in the
//! manager, in a function and in the simulator alike. docs/autoscaling.md has the rules with their formulas.
//!
//! In this order: distrust a stale observation; bring pools to their minima; place what waits on what is there, booting
//! or asked for; buy for the rest; buy above the high mark; then take cordons back, end what has acknowledged, and
//! cordon what is idle.
//!
//! Invariant: an instance with a lease is never ended. Invariant: what is there, asked for and bought stays within the
//! caps. Invariant: only an acknowledged cordon ends an instance, and only one that was decided here.

mod amounts;
mod buy;
pub mod caps;
mod decision;
mod demand;
mod facts;
pub mod fit;
mod market;
mod policy;
#[cfg(test)]
mod properties;
mod retire;
mod spent;
#[cfg(test)]
mod tests;
mod words;

pub use amounts::Amounts;
pub use decision::{Cap, Keep, Planned, PoolProblem, Reason, ScaleAction, ScaleDecision};
pub use facts::{
    Cordon, CordonCause, InstanceFacts, LaunchFacts, Life, Market, PoolFacts, Snapshot, Trouble, Waiting,
};
pub use policy::{Breaker, Caps, Headroom, IdleRule, Marks, Patience, Policy, PolicyError, Schedule};
pub use spent::Spent;

use buy::Purchase;
use caps::{Claim, Ledger};
use demand::{Bin, Fleet};
use fit::{Cost, Load, Room};
use market::Market as Offers;

use crate::time::Timestamp;

/// What to do about a region now.
pub fn decide(snapshot: &Snapshot, policy: &Policy, now: Timestamp) -> ScaleDecision {
    let mut decision = ScaleDecision { at: now, actions: Vec::new(), reasons: Vec::new() };
    if is_stale(snapshot.observed_at, policy, now) {
        decision.reasons.push(Reason::Stale { observed_at: snapshot.observed_at });
        return decision;
    }
    let mut market = Offers::open(snapshot, policy, now, &mut decision.reasons);
    let mut ledger = ledger(snapshot, now);
    let mut fleet = Fleet::of(snapshot, &market, now);

    let mut purchase = Purchase::new(&mut market, &mut ledger, policy, now);
    purchase.minima();
    fleet.bins.extend(bought_bins(&purchase, now));
    let demand = place_first(snapshot, &mut fleet, purchase.market, policy, now, &mut decision.reasons);
    purchase.bought = (Amounts::ZERO, Amounts::ZERO);
    purchase.demand(demand);
    let (used, capacity) = fleet.usage();
    purchase.relieve(used, capacity);
    decision.actions.append(&mut purchase.actions);
    decision.reasons.append(&mut purchase.reasons);

    let mut retirement = retire::Retirement::new(snapshot, &market, &fleet, policy, now);
    retirement.run();
    decision.actions.append(&mut retirement.actions);
    decision.reasons.append(&mut retirement.reasons);
    decision
}

/// What is taken of the caps by what is there, before anything is bought. `version` is the stored ledger's matter.
pub fn ledger(snapshot: &Snapshot, now: Timestamp) -> Ledger {
    let mut ledger = Ledger { micros_this_month: snapshot.spent_this_month_micros, ..Ledger::default() };
    let pool = |name: &crate::id::PoolName| snapshot.pools.iter().find(|pool| pool.name == *name);
    let life = |end: Timestamp| end.as_millis().saturating_sub(now.as_millis());
    let free = Claim { micros_per_hour: 0, micros: 0 };
    for instance in &snapshot.instances {
        let claim = pool(&instance.pool).map(|pool| Claim::of(pool, life(instance.expected_end)));
        ledger.count(1, claim.unwrap_or(free));
    }
    for launch in &snapshot.launches {
        let claim = pool(&launch.pool).map(|pool| Claim::of(pool, life(launch.expected_end)));
        ledger.count(launch.count, claim.unwrap_or(free));
    }
    ledger
}

/// What a job costs on the cheapest instance of its own of these pools, boot included; `None` when none could take it.
pub fn alone(pools: &[PoolFacts], load: &Load, policy: &Policy) -> Option<Cost> {
    let snapshot = Snapshot {
        observed_at: Timestamp::default(),
        queue: Vec::new(),
        instances: Vec::new(),
        launches: Vec::new(),
        pools: pools.to_vec(),
        spent_this_month_micros: 0,
    };
    Offers::open(&snapshot, policy, Timestamp::default(), &mut Vec::new()).alone(load, policy)
}

/// Too old, or from so far ahead that a clock must have jumped.
fn is_stale(observed_at: Timestamp, policy: &Policy, now: Timestamp) -> bool {
    observed_at.as_millis().abs_diff(now.as_millis()) > policy.stale_after_ms
}

/// Places the queue, then replacements, then headroom; what is left is demand.
fn place_first(
    snapshot: &Snapshot,
    fleet: &mut Fleet,
    market: &Offers<'_>,
    policy: &Policy,
    now: Timestamp,
    reasons: &mut Vec<Reason>,
) -> Vec<demand::Line> {
    let queue = demand::lines(&snapshot.queue, policy);
    let demand = fleet.place_first(&queue, market, policy, now);
    let count = |lines: &[demand::Line]| lines.iter().map(|line| line.count).fold(0, u32::saturating_add);
    let jobs = count(&queue).saturating_sub(count(&demand));
    if jobs > 0 {
        reasons.push(Reason::Expected { jobs });
    }
    let (settling, mut demand): (Vec<_>, Vec<_>) =
        demand.into_iter().partition(|line| line.settles(policy, now));
    if !settling.is_empty() {
        reasons.push(Reason::Settling { jobs: count(&settling) });
    }
    let mut others = demand::replacements(snapshot, now);
    others.extend(demand::headroom(policy, now));
    demand.extend(fleet.place_first(&others, market, policy, now));
    demand
}

/// The instances of a purchase as places.
fn bought_bins(purchase: &Purchase<'_, '_>, now: Timestamp) -> Vec<Bin> {
    let mut bins = Vec::new();
    for planned in &purchase.actions {
        let ScaleAction::Launch { pool, count, expected_end } = &planned.action else { continue };
        let Some(offer) = purchase.market.offer(pool) else { continue };
        let from = Timestamp::from_millis(now.as_millis().saturating_add(offer.pool.boot_ms));
        let capacity = offer.pool.capacity;
        let room = Room { capacity, free: capacity, from, until: *expected_end, terms: offer.terms() };
        let bin = Bin { room, instance: None, is_cordoned: false, wanted: None };
        bins.extend((0..*count).map(|_| bin.clone()));
    }
    bins
}
