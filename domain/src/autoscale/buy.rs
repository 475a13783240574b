//! Buying: which instances for the demand, as few dollars as possible for each dollar of work.
//!
//! The longest jobs first, so that those on one instance end together. For the first of them each pool is asked what
//! one instance costs when it is filled from the list: price × (boot + longest run + idle hold) + launch cost, against
//! what the jobs on it are worth: the price of each alone on the cheapest instance that could hold it. The least ratio
//! wins. Pools that are full, refused or capped are left out, so the next best takes their place: the ladder.

use std::cmp::Ordering;

use super::caps::{Claim, Ledger};
use super::demand::{Line, Want};
use super::fit::Cost;
use super::market::{Market, Offer};
use super::{Amounts, Cap, Planned, Policy, Reason, ScaleAction};
use crate::id::PoolName;
use crate::time::Timestamp;

/// An instance is not bought for less than this, in milliseconds: the least that is billed.
const SHORTEST_SPAN_MS: u64 = 60_000;
/// So many lines that do not fit end the filling of an instance.
const MISSES: u32 = 64;
const MS_PER_HOUR: u128 = 3_600_000;

/// One instance, filled.
struct Package {
    offer: usize,
    /// Line and how many of it.
    taken: Vec<(usize, u32)>,
    cost: Cost,
    worth: Cost,
    span_ms: u64,
}

impl Package {
    fn compare(&self, other: &Self) -> Ordering {
        let mine = self.cost.saturating_mul(other.worth.max(1));
        let theirs = other.cost.saturating_mul(self.worth.max(1));
        mine.cmp(&theirs).then(self.offer.cmp(&other.offer))
    }

    fn jobs(&self) -> u32 {
        self.taken.iter().map(|&(_, count)| count).fold(0, u32::saturating_add)
    }
}

/// A purchase in progress.
pub(super) struct Purchase<'t, 'a> {
    pub(super) market: &'t mut Market<'a>,
    pub(super) ledger: &'t mut Ledger,
    pub(super) policy: &'t Policy,
    pub(super) now: Timestamp,
    pub(super) launched: u32,
    /// What the bought instances have, and what of it is meant for the demand.
    pub(super) bought: (Amounts, Amounts),
    pub(super) actions: Vec<Planned>,
    pub(super) reasons: Vec<Reason>,
    /// Pools that a cap forbids in this decision.
    forbidden: Vec<(usize, Cap)>,
}

impl<'t, 'a> Purchase<'t, 'a> {
    pub(super) fn new(
        market: &'t mut Market<'a>,
        ledger: &'t mut Ledger,
        policy: &'t Policy,
        now: Timestamp,
    ) -> Self {
        let bought = (Amounts::ZERO, Amounts::ZERO);
        let (actions, reasons, forbidden) = (Vec::new(), Vec::new(), Vec::new());
        Self { market, ledger, policy, now, launched: 0, bought, actions, reasons, forbidden }
    }

    /// Brings each pool to its minimum.
    pub(super) fn minima(&mut self) {
        for index in 0..self.market.offers.len() {
            let offer = &self.market.offers[index];
            let missing = offer.min.saturating_sub(offer.present).min(offer.left());
            if missing > 0 {
                let min = offer.min;
                self.launch(index, missing, SHORTEST_SPAN_MS, |_| Reason::Minimum { min });
            }
        }
    }

    /// Buys for the demand.
    pub(super) fn demand(&mut self, demand: Vec<Line>) {
        let (with_gpu, without): (Vec<Line>, Vec<Line>) =
            demand.into_iter().partition(|line| line.load.need.gpu_milli > 0);
        for mut lines in [without, with_gpu] {
            lines.sort_by_key(|line| std::cmp::Reverse(line.load.expected_ms));
            let worths: Vec<Cost> =
                lines.iter().map(|line| self.market.worth(&line.load, self.policy)).collect();
            for head in 0..lines.len() {
                while lines[head].count > 0 && self.buy_one_kind(&mut lines, &worths, head) {}
            }
        }
    }

    /// Buys instances of the pool that is best for the first line; `false` when there is none.
    fn buy_one_kind(&mut self, lines: &mut [Line], worths: &[Cost], head: usize) -> bool {
        let mut packages: Vec<Package> = (0..self.market.offers.len())
            .filter(|&offer| self.may_buy(offer) && self.market.offers[offer].suits(&lines[head].load))
            .map(|offer| self.fill(offer, lines, worths, head))
            .collect();
        packages.sort_by(Package::compare);
        let mut ranked = packages.into_iter();
        let Some(best) = ranked.next() else {
            self.reasons.push(self.why_none(&lines[head]));
            return false;
        };
        let next = ranked.next().map(|package| self.market.offers[package.offer].pool.name.clone());
        let times = best.taken.iter().map(|&(line, count)| lines[line].count / count).min().unwrap_or(1);
        let want = lines[head].want;
        let bought =
            self.launch(best.offer, times.max(1), best.span_ms, |count| because(want, &best, count, next));
        let needs = best.taken.iter().fold(Amounts::ZERO, |sum, &(line, count)| {
            sum.plus(&lines[line].load.need.times(u64::from(count)))
        });
        self.bought.1 = self.bought.1.plus(&needs.times(u64::from(bought)));
        for (line, count) in best.taken {
            lines[line].count = lines[line].count.saturating_sub(count.saturating_mul(bought));
        }
        true
    }

    fn may_buy(&self, offer: usize) -> bool {
        self.market.offers[offer].left() > 0 && !self.forbidden.iter().any(|&(index, _)| index == offer)
    }

    /// Fills one instance from the lines, beginning with `head`. `worths` has what running one of each line is worth.
    fn fill(&self, index: usize, lines: &[Line], worths: &[Cost], head: usize) -> Package {
        let offer = &self.market.offers[index];
        let (mut free, mut misses) = (offer.pool.capacity, 0);
        let (mut taken, mut worth, mut span_ms) = (Vec::new(), 0, SHORTEST_SPAN_MS);
        for (position, line) in lines.iter().enumerate().skip(head).filter(|(_, line)| line.count > 0) {
            let fitting = if offer.suits(&line.load) { free.holds(&line.load.need) } else { 0 };
            let count = u32::try_from(fitting).unwrap_or(u32::MAX).min(line.count);
            if count == 0 {
                misses += 1;
                if misses > MISSES {
                    break;
                }
                continue;
            }
            free = free.minus(&line.load.need.times(u64::from(count)));
            span_ms = span_ms.max(line.load.run_ms(offer.pool.speed_milli));
            worth = Cost::saturating_add(worth, worths[position].saturating_mul(Cost::from(count)));
            taken.push((position, count));
        }
        Package { offer: index, taken, cost: self.cost(offer, span_ms), worth, span_ms }
    }

    fn cost(&self, offer: &Offer<'_>, span_ms: u64) -> Cost {
        let life = self.life_ms(offer, span_ms);
        let price = offer.price_for(span_ms, self.policy);
        let launch = Cost::from(self.policy.launch_cost_micros) * MS_PER_HOUR;
        (Cost::from(price) * Cost::from(life)).saturating_add(launch)
    }

    fn life_ms(&self, offer: &Offer<'_>, span_ms: u64) -> u64 {
        let boot = offer.pool.boot_ms;
        span_ms.saturating_add(boot).saturating_add(self.policy.idle.hold_ms(boot))
    }

    /// Launches as many of `wanted` as the pool and the caps allow, and forbids the pool if that is not all.
    fn launch(
        &mut self,
        index: usize,
        wanted: u32,
        span_ms: u64,
        because: impl FnOnce(u32) -> Reason,
    ) -> u32 {
        let offer = &self.market.offers[index];
        let claim = Claim::of(offer.pool, self.life_ms(offer, span_ms));
        let wanted = wanted.min(offer.left());
        let (at_once, most) = self.policy.at_once();
        let (mut count, mut stopped_by) = self.ledger.room(wanted, claim, &self.policy.caps);
        if count > most.saturating_sub(self.launched) {
            (count, stopped_by) = (most.saturating_sub(self.launched), Some(at_once));
        }
        self.forbidden.extend(stopped_by.map(|cap| (index, cap)));
        if count > 0 {
            let end = self.now.as_millis().saturating_add(offer.pool.boot_ms).saturating_add(span_ms);
            let expected_end = Timestamp::from_millis(end);
            let (pool, capacity) = (offer.pool.name.clone(), offer.pool.capacity);
            self.ledger.count(count, claim);
            self.launched += count;
            self.market.offers[index].present += count;
            self.bought.0 = self.bought.0.plus(&capacity.times(u64::from(count)));
            let action = ScaleAction::Launch { pool, count, expected_end };
            self.actions.push(Planned { action, because: because(count) });
        }
        count
    }

    fn why_none(&self, line: &Line) -> Reason {
        let (need, jobs) = (line.load.need, line.count);
        let capped = self.forbidden.iter().find(|&&(offer, _)| self.market.offers[offer].suits(&line.load));
        match capped {
            _ if !self.market.could_hold(&line.load) => Reason::NothingFits { need, jobs },
            Some(&(_, cap)) => Reason::CapReached { cap, jobs },
            None => Reason::NoPoolOpen { need, jobs },
        }
    }

    /// Buys until occupancy is no more than the middle mark, if it is above the high one.
    pub(super) fn relieve(&mut self, used: Amounts, capacity: Amounts) {
        let marks = self.policy.marks;
        let used = used.plus(&self.bought.1);
        let occupancy = |purchase: &Self| used.share_of(&capacity.plus(&purchase.bought.0));
        let high = u64::from(marks.high);
        let before = occupancy(self);
        if before <= high {
            return;
        }
        while occupancy(self) > u64::from(marks.middle) {
            let scarcity = |offer: &Offer<'_>| {
                let share = used.share_of(&offer.pool.capacity);
                u128::from(offer.pool.price_micros_per_hour).saturating_mul(u128::from(share))
            };
            let usable = |&index: &usize| {
                let offer = &self.market.offers[index];
                self.may_buy(index) && offer.valid && used.share_of(&offer.pool.capacity) < u64::MAX
            };
            let best = (0..self.market.offers.len())
                .filter(usable)
                .min_by_key(|&index| (scarcity(&self.market.offers[index]), index));
            let Some(best) = best else { return };
            let because = |_| Reason::AboveHighMark { occupancy: before, high };
            self.launch(best, 1, SHORTEST_SPAN_MS, because);
        }
    }
}

fn because(want: Want, package: &Package, count: u32, next: Option<PoolName>) -> Reason {
    match want {
        Want::Jobs => {
            let cost_milli = package.cost.saturating_mul(1000) / package.worth.max(1);
            let cost_milli = u64::try_from(cost_milli).unwrap_or(u64::MAX);
            Reason::Demand { jobs: package.jobs().saturating_mul(count), cost_milli, next }
        }
        Want::Replacement(instance) => Reason::Replaces { instance },
        Want::Headroom => Reason::Headroom,
    }
}
