//! Place first: what waits goes to what is ready, booting or asked for; the rest is demand.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::fit::{Load, Room, Score};
use super::market::Market;
use super::{Amounts, InstanceFacts, LaunchFacts, Life, Policy, Snapshot, Waiting};
use crate::id::InstanceId;
use crate::time::Timestamp;

/// An instance that is late is expected this soon, in milliseconds.
const SOON_MS: u64 = 5_000;

/// What a load is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    Jobs,
    Replacement(InstanceId),
    Headroom,
}

/// Alike loads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) load: Load,
    pub(super) count: u32,
    pub(super) want: Want,
    /// When the oldest of them began to wait.
    pub(super) since: Timestamp,
}

impl Line {
    /// Whether it is too early to buy for it.
    pub(super) fn settles(&self, policy: &Policy, now: Timestamp) -> bool {
        let settled = self.since.as_millis().saturating_add(policy.settle_ms);
        self.want == Want::Jobs
            && now.as_millis() < settled
            && policy.patience.has_slack(self.load.start_by, now)
    }
}

/// A place for loads.
#[derive(Clone, Debug)]
pub(super) struct Bin {
    pub(super) room: Room,
    /// Position of the instance in the snapshot; `None` for one that was only asked for.
    pub(super) instance: Option<usize>,
    /// Whether a cordon must be taken back before it is used.
    pub(super) is_cordoned: bool,
    /// What was placed here first.
    pub(super) wanted: Option<Want>,
}

/// One pass over the places: those that are ready, or those that are to come.
struct Placement<'t, 'a> {
    market: &'t Market<'a>,
    policy: &'t Policy,
    now: Timestamp,
    is_ready: bool,
}

impl Placement<'_, '_> {
    fn concerns(&self, bin: &Bin) -> bool {
        (bin.room.from <= self.now) == self.is_ready
    }
}

/// The places there are, best observed first.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) bins: Vec<Bin>,
}

impl Fleet {
    /// Every place that takes work now or soon: ready or booting, not cordoned for good, not about to be taken away.
    pub(super) fn of(snapshot: &Snapshot, market: &Market<'_>, now: Timestamp) -> Self {
        let instances = snapshot.instances.iter().enumerate();
        let mut bins: Vec<Bin> =
            instances.filter_map(|(index, facts)| instance_bin(index, facts, market, now)).collect();
        for launch in &snapshot.launches {
            let Some(offer) = market.offer(&launch.pool).filter(|offer| offer.valid) else { continue };
            let room = launch_room(launch, offer.pool.capacity, offer.pool.boot_ms, offer.terms(), now);
            let bin = Bin { room, instance: None, is_cordoned: false, wanted: None };
            bins.extend((0..launch.count).map(|_| bin.clone()));
        }
        Self { bins }
    }

    /// Places as much of each line as goes; what is left is demand. What is ready is given out in the order of the
    /// queue, as the scheduler does; what is to come in the order in which it was bought, the longest first.
    pub(super) fn place_first(
        &mut self,
        lines: &[Line],
        market: &Market<'_>,
        policy: &Policy,
        now: Timestamp,
    ) -> Vec<Line> {
        let mut placement = Placement { market, policy, now, is_ready: true };
        let mut left = self.place_all(lines.to_vec(), &placement);
        left.sort_by_key(|line| Reverse(line.load.expected_ms));
        placement.is_ready = false;
        self.place_all(left, &placement)
    }

    fn place_all(&mut self, lines: Vec<Line>, placement: &Placement<'_, '_>) -> Vec<Line> {
        let mut without_room = BTreeSet::new();
        let mut left = Vec::new();
        for mut line in lines {
            let need = line.load.need;
            if !without_room.contains(&need) {
                let before = line.count;
                line.count = self.place(&line, placement);
                if line.count == before && !self.has_room(&need, placement) {
                    without_room.insert(need);
                }
            }
            if line.count > 0 {
                left.push(line);
            }
        }
        left
    }

    fn has_room(&self, need: &Amounts, placement: &Placement<'_, '_>) -> bool {
        self.bins.iter().any(|bin| placement.concerns(bin) && need.fits_in(&bin.room.free))
    }

    /// Places a line, best place first, and returns how many are left.
    fn place(&mut self, line: &Line, placement: &Placement<'_, '_>) -> u32 {
        let Placement { market, policy, now, .. } = *placement;
        let alone = market.alone(&line.load, policy);
        let score = |bin: &Bin| bin.room.score(&line.load, alone, policy, now);
        let mut places: Vec<(bool, Score, usize)> = self
            .bins
            .iter()
            .enumerate()
            .filter(|(_, bin)| placement.concerns(bin))
            .filter_map(|(index, bin)| Some((bin.is_cordoned, score(bin)?, index)))
            .collect();
        places.sort_unstable();
        let mut left = line.count;
        for (_, _, index) in places {
            let bin = &mut self.bins[index];
            while left > 0 && bin.room.score(&line.load, alone, policy, now).is_some() {
                bin.room.add(&line.load);
                bin.wanted.get_or_insert(line.want);
                left -= 1;
            }
        }
        left
    }

    /// What is used of what there is: (used, capacity), without what is cordoned and unwanted.
    pub(super) fn usage(&self) -> (Amounts, Amounts) {
        let counted = self.bins.iter().filter(|bin| !bin.is_cordoned || bin.wanted.is_some());
        counted.fold((Amounts::ZERO, Amounts::ZERO), |(used, capacity), bin| {
            let here = bin.room.capacity.minus(&bin.room.free);
            (used.plus(&here), capacity.plus(&bin.room.capacity))
        })
    }
}

fn instance_bin(index: usize, facts: &InstanceFacts, market: &Market<'_>, now: Timestamp) -> Option<Bin> {
    let offer = market.offer(&facts.pool)?;
    let cordon_stands = facts.cordon.is_some_and(|cordon| !cordon.cause.is_revocable());
    if facts.notice.is_some() || facts.rebalance || cordon_stands {
        return None;
    }
    let from = match facts.life {
        Life::Ready => now,
        Life::Booting => expected_ready(facts.launched_at, offer.pool.boot_ms, now),
        Life::Away | Life::Terminating => return None,
    };
    // An instance that reports less than it was given holds no more than it reports.
    let free = Amounts {
        cpu_milli: facts.free.cpu_milli.min(facts.capacity.cpu_milli),
        memory_mib: facts.free.memory_mib.min(facts.capacity.memory_mib),
        scratch_mib: facts.free.scratch_mib.min(facts.capacity.scratch_mib),
        gpu_milli: facts.free.gpu_milli.min(facts.capacity.gpu_milli),
    };
    let room = Room { capacity: facts.capacity, free, from, until: facts.expected_end, terms: offer.terms() };
    Some(Bin { room, instance: Some(index), is_cordoned: facts.cordon.is_some(), wanted: None })
}

fn launch_room(
    launch: &LaunchFacts,
    capacity: Amounts,
    boot_ms: u64,
    terms: super::fit::Terms,
    now: Timestamp,
) -> Room {
    let from = expected_ready(launch.requested_at, boot_ms, now);
    Room { capacity, free: capacity, from, until: launch.expected_end, terms }
}

fn expected_ready(asked_at: Timestamp, boot_ms: u64, now: Timestamp) -> Timestamp {
    let usual = asked_at.as_millis().saturating_add(boot_ms);
    Timestamp::from_millis(usual.max(now.as_millis().saturating_add(SOON_MS)))
}

/// The queue in the order in which it is placed.
pub(super) fn lines(queue: &[Waiting], policy: &Policy) -> Vec<Line> {
    let mut waiting: Vec<&Waiting> = queue.iter().filter(|waiting| waiting.count > 0).collect();
    waiting.sort_by_key(|waiting| (waiting.oldest, waiting.need, waiting.expected_ms));
    let line = |waiting: &Waiting| Line {
        load: Load {
            need: waiting.need,
            expected_ms: waiting.expected_ms,
            interruptible: waiting.interruptible,
            start_by: waiting
                .start_by
                .unwrap_or_else(|| policy.patience.start_by(waiting.oldest, waiting.expected_ms)),
        },
        count: waiting.count,
        want: Want::Jobs,
        since: waiting.oldest,
    };
    waiting.into_iter().map(line).collect()
}

/// What runs on instances that will be taken away before it ends.
pub(super) fn replacements(snapshot: &Snapshot, now: Timestamp) -> Vec<Line> {
    let doomed = snapshot.instances.iter().filter_map(|facts| {
        let notice = facts.notice.filter(|&at| facts.expected_end > at)?;
        (facts.leases > 0 && facts.life == Life::Ready).then_some((facts, notice))
    });
    let line = |(facts, notice): (&InstanceFacts, Timestamp)| Line {
        load: Load {
            need: facts.capacity.minus(&facts.free),
            expected_ms: facts.expected_end.as_millis().saturating_sub(now.as_millis()),
            interruptible: true,
            start_by: notice,
        },
        count: 1,
        want: Want::Replacement(facts.id),
        since: now,
    };
    doomed.map(line).collect()
}

/// Jobs that may come.
pub(super) fn headroom(policy: &Policy, now: Timestamp) -> Vec<Line> {
    let line = |headroom: &super::Headroom| Line {
        load: Load {
            need: headroom.need,
            expected_ms: headroom.expected_ms,
            interruptible: false,
            start_by: now,
        },
        count: headroom.count,
        want: Want::Headroom,
        since: now,
    };
    policy.headroom.iter().map(line).collect()
}
