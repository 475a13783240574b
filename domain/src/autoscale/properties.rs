//! What holds of every decision, whatever it is asked about.

use proptest::collection::vec;
use proptest::prelude::*;

use super::caps::Claim;
use super::tests::{MINUTE, at, cores, empty, id, idle, launches, name, pool};
use super::*;

fn a_need() -> impl Strategy<Value = Amounts> {
    (1u64..20, 1u64..70).prop_map(|(cpu, memory)| cores(cpu, memory))
}

fn a_waiting() -> impl Strategy<Value = Waiting> {
    (a_need(), any::<bool>(), 0u32..40, 0u64..600, 0u64..200).prop_map(
        |(need, interruptible, count, minutes, oldest)| Waiting {
            need,
            interruptible,
            count,
            expected_ms: minutes * MINUTE,
            oldest: at(oldest),
            start_by: None,
        },
    )
}

fn a_cordon() -> impl Strategy<Value = Option<Cordon>> {
    let causes = [
        CordonCause::Idle,
        CordonCause::Consolidation,
        CordonCause::Rebalance,
        CordonCause::Notice,
        CordonCause::Operator,
    ];
    let cordon = (1u64..5, prop::sample::select(causes.to_vec()), any::<bool>());
    proptest::option::of(cordon.prop_map(|(number, cause, acknowledged)| Cordon {
        number,
        cause,
        acknowledged,
    }))
}

fn an_instance() -> impl Strategy<Value = InstanceFacts> {
    let lives = vec![Life::Booting, Life::Ready, Life::Ready, Life::Ready, Life::Away, Life::Terminating];
    let state = (prop::sample::select(lives), a_cordon(), any::<bool>());
    let use_of_it = (any::<bool>(), 0u32..3, 0u64..5, 0u64..4000);
    (state, use_of_it, proptest::option::of(150u64..400)).prop_map(
        |((life, cordon, rebalance), (is_large, leases, free, end), notice)| {
            let (pool, capacity) = if is_large { ("large", cores(16, 64)) } else { ("small", cores(4, 8)) };
            let free = if leases == 0 { capacity } else { cores(free, free * 2) };
            InstanceFacts {
                pool: name(pool),
                life,
                capacity,
                free,
                leases,
                expected_end: at(end),
                last_cordon: cordon.map_or(0, |cordon| cordon.number),
                cordon,
                notice: notice.map(at),
                rebalance,
                ..idle(1)
            }
        },
    )
}

fn a_snapshot() -> impl Strategy<Value = Snapshot> {
    let launch = (any::<bool>(), 1u32..5, 0u64..200).prop_map(|(is_large, count, requested)| LaunchFacts {
        pool: name(if is_large { "large" } else { "small" }),
        count,
        requested_at: at(requested),
        expected_end: at(requested + 600),
    });
    (vec(a_waiting(), 0..8), vec(an_instance(), 0..12), vec(launch, 0..3)).prop_map(
        |(queue, mut instances, launches)| {
            for (number, instance) in instances.iter_mut().enumerate() {
                instance.id = id(number as u128 + 1);
            }
            Snapshot { observed_at: at(200), queue, instances, launches, ..empty() }
        },
    )
}

fn a_policy() -> impl Strategy<Value = Policy> {
    let caps = (proptest::option::of(0u32..30), proptest::option::of(0u64..9_000_000));
    (any::<bool>(), caps, 0u32..1000, 0u32..500).prop_map(|(is_calm, caps, low, consolidate)| {
        let stock = if is_calm { Policy::calm() } else { Policy::thrift() };
        Policy {
            caps: Caps { instances: caps.0, micros_per_hour: caps.1, micros_per_month: None },
            marks: Marks { low, middle: low.midpoint(1000), high: 1000 },
            consolidate_below_milli: consolidate,
            ..stock
        }
    })
}

/// The world after a decision: launches are asked for, cordons acknowledged where nothing runs, the ended gone.
fn carried_out(snapshot: &Snapshot, decision: &ScaleDecision, now: Timestamp) -> Snapshot {
    let mut next = Snapshot { observed_at: now, ..snapshot.clone() };
    for planned in &decision.actions {
        match &planned.action {
            ScaleAction::Launch { pool, count, expected_end } => next.launches.push(LaunchFacts {
                pool: pool.clone(),
                count: *count,
                requested_at: decision.at,
                expected_end: *expected_end,
            }),
            ScaleAction::Cordon { instance, cordon, cause } => {
                let facts = next.instances.iter_mut().find(|facts| facts.id == *instance).unwrap();
                facts.last_cordon = *cordon;
                let acknowledged = facts.leases == 0;
                facts.cordon = Some(Cordon { number: *cordon, cause: *cause, acknowledged });
            }
            ScaleAction::Uncordon { instance, .. } => {
                next.instances.iter_mut().find(|facts| facts.id == *instance).unwrap().cordon = None;
            }
            ScaleAction::Terminate { instance, .. } => next.instances.retain(|facts| facts.id != *instance),
        }
    }
    next
}

fn bought(decision: &ScaleDecision) -> u32 {
    launches(decision).iter().map(|launch| launch.1).sum()
}

proptest! {
    #[test]
    fn the_same_input_gives_the_same_decision(snapshot in a_snapshot(), policy in a_policy()) {
        prop_assert_eq!(decide(&snapshot, &policy, at(200)), decide(&snapshot, &policy, at(200)));
    }

    #[test]
    fn nothing_with_a_lease_and_nothing_unacknowledged_is_ended(
        snapshot in a_snapshot(),
        policy in a_policy(),
    ) {
        for planned in decide(&snapshot, &policy, at(200)).actions {
            let ScaleAction::Terminate { instance, cordon } = planned.action else { continue };
            let facts = snapshot.instances.iter().find(|facts| facts.id == instance).unwrap();
            prop_assert_eq!(facts.leases, 0);
            prop_assert_eq!(facts.life, Life::Ready);
            let standing = facts.cordon.unwrap();
            prop_assert!(standing.acknowledged && standing.number == cordon);
            prop_assert!(standing.cause != CordonCause::Operator);
        }
    }

    #[test]
    fn no_cap_is_exceeded(snapshot in a_snapshot(), policy in a_policy()) {
        let before = ledger(&snapshot, at(200));
        let decision = decide(&snapshot, &policy, at(200));
        let after = ledger(&carried_out(&snapshot, &decision, at(200)), at(200));
        let bought = bought(&decision);
        if let Some(cap) = policy.caps.instances {
            prop_assert!(bought == 0 || before.instances + bought <= cap);
        }
        if let Some(cap) = policy.caps.micros_per_hour {
            let price = after.micros_per_hour;
            prop_assert!(bought == 0 || price <= cap.max(before.micros_per_hour), "{price} of {cap}");
        }
    }

    /// Of one kind of job: how different kinds are packed on what is asked for may differ by an instance from how they
    /// were packed when it was bought.
    #[test]
    fn a_decision_that_was_carried_out_is_not_taken_again(
        mut snapshot in a_snapshot(),
        policy in a_policy(),
    ) {
        snapshot.queue.truncate(1);
        snapshot.instances.iter_mut().for_each(|facts| facts.notice = None);
        // What ends would make room below a cap, and what settles is bought for a little later.
        let policy = Policy { caps: Caps::default(), settle_ms: 0, ..policy };
        let first = decide(&snapshot, &policy, at(200));
        let next = carried_out(&snapshot, &first, at(201));
        let second = decide(&next, &policy, at(201));
        prop_assert_eq!(launches(&second), Vec::<(&str, u32)>::new(), "after {:?}", first);
    }

    #[test]
    fn nothing_is_added_after_a_removal_without_new_demand(
        snapshot in a_snapshot(),
        policy in a_policy(),
    ) {
        let mut world = Snapshot { queue: Vec::new(), ..snapshot };
        world.instances.iter_mut().for_each(|facts| facts.notice = None);
        for second in 200..300 {
            world.observed_at = at(second);
            let decision = decide(&world, &policy, at(second));
            prop_assert_eq!(bought(&decision), 0, "{:?}", decision);
            world = carried_out(&world, &decision, at(second));
        }
    }

    #[test]
    fn there_is_progress_when_queue_capacity_and_caps_allow_it(
        need in a_need(),
        count in 1u32..50,
        minutes in 0u64..600,
        policy in a_policy(),
    ) {
        let waiting = Waiting { need, count, ..super::tests::waiting(need, count, minutes) };
        let snapshot = Snapshot { observed_at: at(200), queue: vec![waiting], ..empty() };
        let fits = need.fits_in(&cores(16, 64));
        let may = policy.caps.instances != Some(0)
            && policy.caps.micros_per_hour.is_none_or(|cap| cap >= 768_000);
        let decision = decide(&snapshot, &policy, at(200));
        prop_assert_eq!(bought(&decision) > 0, fits && (may || bought(&decision) > 0), "{:?}", decision);
    }

    #[test]
    fn every_waiting_job_is_accounted_for(mut snapshot in a_snapshot(), policy in a_policy()) {
        // An instance that replaces another may be filled with jobs, and its reason is still the replacement.
        snapshot.instances.iter_mut().for_each(|facts| facts.notice = None);
        let decision = decide(&snapshot, &policy, at(200));
        let of_actions = decision.actions.iter().map(|planned| match planned.because {
            Reason::Demand { jobs, .. } => jobs,
            _ => 0,
        });
        let of_reasons = decision.reasons.iter().map(|reason| match *reason {
            Reason::Expected { jobs }
            | Reason::Settling { jobs }
            | Reason::NothingFits { jobs, .. }
            | Reason::NoPoolOpen { jobs, .. }
            | Reason::CapReached { jobs, .. } => jobs,
            _ => 0,
        });
        let told: u32 = of_actions.chain(of_reasons).sum();
        let queued: u32 = snapshot.queue.iter().map(|waiting| waiting.count).sum();
        prop_assert!(told >= queued, "{told} of {queued}: {decision:?}");
    }

    /// Many decide on what they saw, each writes the ledger on the condition that it has not changed since.
    #[test]
    fn caps_hold_under_concurrent_ticks(cap in 1u32..20, who in vec(0usize..4, 1..60)) {
        let caps = Caps { instances: Some(cap), ..Caps::default() };
        let claim = Claim::of(&pool("small", cores(4, 8), 170), 60_000);
        let mut stored = Ledger::default();
        let mut read: [Option<Ledger>; 4] = [None; 4];
        for decider in who {
            match read[decider].take() {
                None => read[decider] = Some(stored),
                Some(seen) => {
                    let wanted = 1 + decider as u32;
                    if let Ok(next) = seen.reserve(wanted, claim, &caps)
                        && stored.version == seen.version
                    {
                        stored = next;
                    }
                }
            }
            prop_assert!(stored.instances <= cap);
        }
    }

    #[test]
    fn enormous_numbers_are_survived(
        numbers in vec(any::<u64>(), 8),
        count in any::<u32>(),
        small in 1u32..5,
    ) {
        let n = |index: usize| numbers[index];
        let huge = Amounts { cpu_milli: n(0), memory_mib: n(1), scratch_mib: n(2), gpu_milli: n(3) };
        let mut snapshot = empty();
        snapshot.observed_at = Timestamp::from_millis(n(4));
        snapshot.pools.push(PoolFacts {
            capacity: huge,
            price_micros_per_hour: n(5),
            boot_ms: n(6),
            interruptions_per_1000_hours: count,
            max: small,
            ..pool("huge", huge, 1)
        });
        snapshot.queue = vec![
            Waiting { expected_ms: n(7), ..super::tests::waiting(huge, count, 1) },
            super::tests::waiting(cores(1, 1), small, 1),
        ];
        let facts = InstanceFacts { pool: name("huge"), free: huge, expected_end: at(1), ..idle(1) };
        snapshot.instances = vec![facts];
        let decision = decide(&snapshot, &Policy::thrift(), snapshot.observed_at);
        prop_assert!(bought(&decision) <= 200 + small);
    }
}
