//! Retiring: cordon, acknowledgement, end. A busy instance is never ended.
//!
//! An idle instance is cordoned when nothing that waits goes there, it is not kept as headroom, minimum or standby, its
//! hold is over and what is left stays at or below the middle mark. So a removal cannot bring occupancy above the high
//! mark, and what waited before it was placed elsewhere: it cannot by itself trigger an addition.

use std::cmp::Reverse;

use super::demand::{Fleet, Want};
use super::market::Market;
use super::{
    Amounts, Cordon, CordonCause, InstanceFacts, Keep, Life, Planned, Policy, Reason, ScaleAction, Snapshot,
};
use crate::time::Timestamp;

/// A retirement in progress.
pub(super) struct Retirement<'t, 'a> {
    snapshot: &'t Snapshot,
    market: &'t Market<'a>,
    policy: &'t Policy,
    now: Timestamp,
    /// By position of the instance: what goes there.
    wanted: Vec<Option<Want>>,
    /// By position of the pool: instances that stay, and idle ones of them.
    staying: Vec<(u32, u32)>,
    used: Amounts,
    capacity: Amounts,
    left_at_once: usize,
    pub(super) actions: Vec<Planned>,
    pub(super) reasons: Vec<Reason>,
}

impl<'t, 'a> Retirement<'t, 'a> {
    pub(super) fn new(
        snapshot: &'t Snapshot,
        market: &'t Market<'a>,
        fleet: &Fleet,
        policy: &'t Policy,
        now: Timestamp,
    ) -> Self {
        let (used, capacity) = fleet.usage();
        let mut wanted = vec![None; snapshot.instances.len()];
        for bin in &fleet.bins {
            if let Some(index) = bin.instance {
                wanted[index] = bin.wanted;
            }
        }
        let count = snapshot.instances.len() as u64 * u64::from(policy.retire_milli) / 1000;
        let left_at_once = usize::try_from(count).unwrap_or(usize::MAX).max(1);
        let staying = staying(snapshot, market);
        let (actions, reasons) = (Vec::new(), Vec::new());
        Self {
            snapshot,
            market,
            policy,
            now,
            wanted,
            staying,
            used,
            capacity,
            left_at_once,
            actions,
            reasons,
        }
    }

    /// Goes through every instance, the dearest first.
    pub(super) fn run(&mut self) {
        let price = |facts: &InstanceFacts| {
            self.market.offer(&facts.pool).map_or(0, |offer| offer.pool.price_micros_per_hour)
        };
        let mut order: Vec<usize> = (0..self.snapshot.instances.len()).collect();
        order.sort_by_key(|&index| {
            let facts = &self.snapshot.instances[index];
            (Reverse(price(facts)), facts.idle_since, facts.id)
        });
        for index in order {
            let facts = &self.snapshot.instances[index];
            let kept = match (facts.life, facts.cordon) {
                (Life::Ready, Some(cordon)) => self.cordoned(index, facts, cordon),
                (Life::Ready, None) => self.open(index, facts),
                (life @ (Life::Booting | Life::Away | Life::Terminating), _) => Some(Keep::Life { life }),
            };
            let busy = facts.leases > 0 && facts.cordon.is_none();
            if let Some(because) = kept.filter(|_| !busy && facts.life != Life::Booting) {
                self.reasons.push(Reason::Kept { instance: facts.id, because });
            }
        }
    }

    /// A cordoned instance: take it back, end it, or wait.
    fn cordoned(&mut self, index: usize, facts: &InstanceFacts, cordon: Cordon) -> Option<Keep> {
        let (instance, number) = (facts.id, cordon.number);
        if cordon.cause.is_revocable() && self.wanted[index].is_some() {
            self.act(ScaleAction::Uncordon { instance, cordon: number }, Reason::WantedAgain);
            return None;
        }
        if cordon.cause == CordonCause::Operator {
            return Some(Keep::Operator);
        }
        if facts.leases > 0 {
            return Some(Keep::StillBusy);
        }
        if !cordon.acknowledged {
            return Some(Keep::NotAcknowledged);
        }
        self.act(ScaleAction::Terminate { instance, cordon: number }, Reason::Acknowledged);
        None
    }

    /// An instance that is not cordoned: cordon it, or say why not.
    fn open(&mut self, index: usize, facts: &InstanceFacts) -> Option<Keep> {
        if let Some(at) = facts.notice {
            self.cordon(facts, CordonCause::Notice, Reason::Notice { at });
            return None;
        }
        if facts.rebalance {
            self.cordon(facts, CordonCause::Rebalance, Reason::Rebalance);
            return None;
        }
        let Some(pool) = self.market.index(&facts.pool) else { return Some(Keep::UnknownPool) };
        let (cause, because) = match self.worth_retiring(index, facts, pool) {
            Ok(found) => found,
            Err(keep) => return Some(keep),
        };
        if let Some(keep) = self.forbidden(facts, pool) {
            return Some(keep);
        }
        self.left_at_once -= 1;
        self.capacity = self.capacity.minus(&facts.capacity);
        self.used = self.used.minus(&facts.capacity.minus(&facts.free));
        self.staying[pool].0 -= 1;
        self.staying[pool].1 -= u32::from(facts.leases == 0);
        self.cordon(facts, cause, because);
        None
    }

    fn worth_retiring(
        &self,
        index: usize,
        facts: &InstanceFacts,
        pool: usize,
    ) -> Result<(CordonCause, Reason), Keep> {
        match self.wanted[index] {
            Some(Want::Headroom) => return Err(Keep::Headroom),
            Some(Want::Jobs | Want::Replacement(_)) => return Err(Keep::Demand),
            None => {}
        }
        if facts.leases > 0 {
            return self.worth_consolidating(facts, pool);
        }
        let boot_ms = self.market.offers[pool].pool.boot_ms;
        let until = facts.idle_since.as_millis().saturating_add(self.policy.idle.hold_ms(boot_ms));
        if self.now.as_millis() < until {
            return Err(Keep::Hold { until: Timestamp::from_millis(until) });
        }
        let idle_ms = self.now.as_millis().saturating_sub(facts.idle_since.as_millis());
        Ok((CordonCause::Idle, Reason::Idle { idle_ms }))
    }

    /// A nearly empty instance takes no more work, when that saves more than its next boot costs.
    fn worth_consolidating(&self, facts: &InstanceFacts, pool: usize) -> Result<(CordonCause, Reason), Keep> {
        let below = u64::from(self.policy.consolidate_below_milli);
        let used = facts.capacity.minus(&facts.free);
        let offer = &self.market.offers[pool];
        let ends_soon = facts.expected_end.as_millis()
            <= self.now.as_millis().saturating_add(offer.pool.boot_ms.saturating_mul(2));
        let waits = self.snapshot.queue.iter().any(|waiting| waiting.count > 0);
        if used.share_of(&facts.capacity) >= below || ends_soon || waits {
            return Err(Keep::Demand);
        }
        let saved_micros_per_hour = offer.pool.price_micros_per_hour;
        Ok((CordonCause::Consolidation, Reason::Consolidation { saved_micros_per_hour }))
    }

    /// What forbids to retire an instance that is worth retiring.
    fn forbidden(&self, facts: &InstanceFacts, pool: usize) -> Option<Keep> {
        let offer = &self.market.offers[pool];
        let (all, idle) = self.staying[pool];
        // Its own work stays where it is until it ends, and is no part of what the rest does.
        let rest = self.capacity.minus(&facts.capacity);
        let rest_used = self.used.minus(&facts.capacity.minus(&facts.free));
        if all <= offer.min {
            Some(Keep::Minimum)
        } else if facts.leases == 0 && idle <= offer.pool.standby {
            Some(Keep::Standby)
        } else if self.used.share_of(&self.capacity) > u64::from(self.policy.marks.low) {
            Some(Keep::LowMark)
        } else if rest_used.share_of(&rest) > u64::from(self.policy.marks.middle) {
            Some(Keep::MiddleMark)
        } else if self.left_at_once == 0 {
            Some(Keep::Pace)
        } else {
            None
        }
    }

    fn cordon(&mut self, facts: &InstanceFacts, cause: CordonCause, because: Reason) {
        let cordon = facts.last_cordon.saturating_add(1);
        self.act(ScaleAction::Cordon { instance: facts.id, cordon, cause }, because);
    }

    fn act(&mut self, action: ScaleAction, because: Reason) {
        self.actions.push(Planned { action, because });
    }
}

fn staying(snapshot: &Snapshot, market: &Market<'_>) -> Vec<(u32, u32)> {
    let mut staying = vec![(0, 0); market.offers.len()];
    for facts in &snapshot.instances {
        let Some(pool) = market.index(&facts.pool) else { continue };
        let stays = matches!(facts.life, Life::Ready | Life::Booting) && facts.cordon.is_none();
        let idle = facts.life == Life::Ready && facts.leases == 0;
        if stays {
            staying[pool].0 += 1;
            staying[pool].1 += u32::from(idle);
        }
    }
    staying
}
