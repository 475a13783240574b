use super::*;
use crate::id::{InstanceId, PoolName};

pub(super) const MINUTE: u64 = 60_000;

pub(super) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(1_767_225_600_000 + seconds * 1000)
}

pub(super) fn name(text: &str) -> PoolName {
    text.parse().unwrap()
}

pub(super) fn id(number: u128) -> InstanceId {
    InstanceId::new(at(0), number)
}

pub(super) fn cores(cpu: u64, memory_gib: u64) -> Amounts {
    Amounts { cpu_milli: cpu * 1000, memory_mib: memory_gib * 1024, ..Amounts::ZERO }
}

pub(super) fn pool(pool: &str, capacity: Amounts, dollars_milli: u64) -> PoolFacts {
    PoolFacts {
        name: name(pool),
        capacity,
        market: Market::OnDemand,
        price_micros_per_hour: dollars_milli * 1000,
        speed_milli: 1000,
        boot_ms: 90_000,
        interruptions_per_1000_hours: 0,
        min: 0,
        max: 100,
        standby: 0,
        refused: None,
        boot_failures: None,
    }
}

pub(super) fn waiting(need: Amounts, count: u32, minutes: u64) -> Waiting {
    Waiting { need, interruptible: true, count, expected_ms: minutes * MINUTE, oldest: at(0), start_by: None }
}

/// A small and a large pool, and nothing else.
pub(super) fn empty() -> Snapshot {
    Snapshot {
        observed_at: at(0),
        queue: Vec::new(),
        instances: Vec::new(),
        launches: Vec::new(),
        pools: vec![pool("small", cores(4, 8), 170), pool("large", cores(16, 64), 768)],
        spent_this_month_micros: 0,
    }
}

/// An idle instance of `small`.
pub(super) fn idle(number: u128) -> InstanceFacts {
    InstanceFacts {
        id: id(number),
        pool: name("small"),
        life: Life::Ready,
        launched_at: at(0),
        capacity: cores(4, 8),
        free: cores(4, 8),
        leases: 0,
        idle_since: at(0),
        expected_end: at(0),
        last_cordon: 0,
        cordon: None,
        notice: None,
        rebalance: false,
    }
}

/// A full instance of `small` whose work ends after so many seconds.
fn busy(number: u128, end: u64) -> InstanceFacts {
    InstanceFacts { free: Amounts::ZERO, leases: 2, expected_end: at(end), ..idle(number) }
}

fn cordoned(number: u128, cause: CordonCause, acknowledged: bool) -> InstanceFacts {
    InstanceFacts { last_cordon: 3, cordon: Some(Cordon { number: 3, cause, acknowledged }), ..idle(number) }
}

fn thrift(snapshot: &Snapshot) -> ScaleDecision {
    decide(snapshot, &Policy::thrift(), snapshot.observed_at)
}

pub(super) fn launches(decision: &ScaleDecision) -> Vec<(&str, u32)> {
    let launch = |planned: &'_ Planned| match &planned.action {
        ScaleAction::Launch { .. } => true,
        ScaleAction::Cordon { .. } | ScaleAction::Uncordon { .. } | ScaleAction::Terminate { .. } => false,
    };
    let launches = decision.actions.iter().filter(|planned| launch(planned));
    launches
        .map(|planned| match &planned.action {
            ScaleAction::Launch { pool, count, .. } => (pool.as_str(), *count),
            _ => unreachable!("filtered above"),
        })
        .collect()
}

fn actions(decision: &ScaleDecision) -> Vec<&ScaleAction> {
    decision.actions.iter().map(|planned| &planned.action).collect()
}

fn kept(decision: &ScaleDecision, number: u128) -> Option<Keep> {
    decision.reasons.iter().find_map(|reason| match reason {
        Reason::Kept { instance, because } if *instance == id(number) => Some(*because),
        _ => None,
    })
}

#[test]
fn each_job_gets_what_fits_it() {
    let queue = vec![waiting(cores(4, 6), 3, 10), waiting(cores(16, 40), 2, 30)];
    let decision = thrift(&Snapshot { queue, ..empty() });
    assert_eq!(launches(&decision), [("large", 2), ("small", 3)]);
    let Reason::Demand { jobs, cost_milli, next } = &decision.actions[1].because else { panic!() };
    assert_eq!((*jobs, *cost_milli, next.as_ref()), (3, 1150, Some(&name("large"))));
}

#[test]
fn jobs_that_end_together_share_an_instance_when_that_is_cheaper() {
    let queue = vec![waiting(cores(2, 24), 2, 30)];
    assert_eq!(launches(&thrift(&Snapshot { queue, ..empty() })), [("large", 1)]);
}

#[test]
fn what_is_asked_for_counts() {
    let queue = vec![waiting(cores(4, 6), 3, 10)];
    let launch =
        |count| LaunchFacts { pool: name("small"), count, requested_at: at(0), expected_end: at(690) };
    let decision = thrift(&Snapshot { queue: queue.clone(), launches: vec![launch(3)], ..empty() });
    assert_eq!(decision.actions, []);
    assert_eq!(decision.reasons, [Reason::Expected { jobs: 3 }]);
    let booting = InstanceFacts { life: Life::Booting, expected_end: at(690), ..idle(1) };
    let instances = vec![booting];
    let decision = thrift(&Snapshot { queue, launches: vec![launch(1)], instances, ..empty() });
    assert_eq!(launches(&decision), [("small", 1)]);
}

#[test]
fn a_patient_job_waits_for_something_cheaper_and_a_late_one_takes_what_there_is() {
    let large =
        InstanceFacts { pool: name("large"), capacity: cores(16, 64), free: cores(16, 64), ..idle(1) };
    let mut snapshot =
        Snapshot { queue: vec![waiting(cores(4, 6), 1, 30)], instances: vec![large], ..empty() };
    let decision = thrift(&snapshot);
    assert_eq!(launches(&decision), [("small", 1)]);
    snapshot.queue[0].start_by = Some(at(100));
    let decision = thrift(&snapshot);
    assert_eq!(launches(&decision), []);
    assert_eq!(kept(&decision, 1), Some(Keep::Demand));
    snapshot.queue[0].start_by = None;
    assert_eq!(launches(&decide(&snapshot, &Policy::calm(), at(0))), []);
}

#[test]
fn a_job_that_ends_before_the_others_costs_nothing_more() {
    let shared = InstanceFacts { free: cores(2, 2), leases: 1, expected_end: at(3600), ..idle(1) };
    let queue = vec![waiting(cores(2, 2), 1, 59)];
    assert_eq!(launches(&thrift(&Snapshot { queue, instances: vec![shared], ..empty() })), []);
}

#[test]
fn uninterruptible_jobs_stay_off_spot_and_interruptions_are_priced() {
    let mut spot = pool("spot", cores(4, 8), 65);
    spot.market = Market::Spot;
    let mut snapshot = Snapshot { queue: vec![waiting(cores(4, 6), 1, 60)], ..empty() };
    snapshot.pools.push(spot);
    assert_eq!(launches(&thrift(&snapshot)), [("spot", 1)]);
    snapshot.pools[2].interruptions_per_1000_hours = 5000;
    assert_eq!(launches(&thrift(&snapshot)), [("small", 1)], "half of five runs is done again");
    snapshot.pools[2].interruptions_per_1000_hours = 10;
    snapshot.queue[0].interruptible = false;
    assert_eq!(launches(&thrift(&snapshot)), [("small", 1)]);
}

#[test]
fn pools_in_trouble_are_avoided_for_a_while_and_the_ladder_goes_on() {
    let mut snapshot = Snapshot { queue: vec![waiting(cores(4, 6), 1, 10)], ..empty() };
    snapshot.pools[0].refused = Some(Trouble { times: 2, last: at(0) });
    let decision = thrift(&snapshot);
    assert_eq!(launches(&decision), [("large", 1)]);
    assert!(decision.reasons.contains(&Reason::PoolRefused { pool: name("small"), until: at(240) }));
    let later = Snapshot { observed_at: at(240), ..snapshot.clone() };
    assert_eq!(launches(&thrift(&later)), [("small", 1)]);
    snapshot.pools[0].refused = None;
    snapshot.pools[0].boot_failures = Some(Trouble { times: 3, last: at(0) });
    let decision = thrift(&snapshot);
    assert_eq!(launches(&decision), [("large", 1)]);
    assert!(decision.reasons.contains(&Reason::PoolBroken { pool: name("small"), until: at(900) }));
    snapshot.pools[1].max = 0;
    let need = cores(4, 6);
    assert!(thrift(&snapshot).reasons.contains(&Reason::NoPoolOpen { need, jobs: 1 }));
}

#[test]
fn impossible_pools_and_jobs_are_named() {
    let mut snapshot = Snapshot { queue: vec![waiting(cores(99, 1), 7, 10)], ..empty() };
    let broken = |name, change: fn(&mut PoolFacts)| {
        let mut broken = pool(name, cores(128, 512), 100);
        change(&mut broken);
        broken
    };
    snapshot.pools.extend([
        broken("flat", |pool| pool.capacity.memory_mib = 0),
        broken("free", |pool| pool.price_micros_per_hour = 0),
        broken("upside", |pool| pool.min = 101),
        broken("slow", |pool| pool.speed_milli = 0),
        broken("small", |_| {}),
    ]);
    let decision = thrift(&snapshot);
    assert_eq!(decision.actions, []);
    let problems: Vec<PoolProblem> = decision
        .reasons
        .iter()
        .filter_map(|reason| match reason {
            Reason::PoolInvalid { problem, .. } => Some(*problem),
            _ => None,
        })
        .collect();
    use PoolProblem::*;
    assert_eq!(problems, [ImpossibleShape, PriceMissing, MinAboveMax, SpeedZero, Duplicate]);
    assert!(decision.reasons.contains(&Reason::NothingFits { need: cores(99, 1), jobs: 7 }));
}

#[test]
fn caps_are_not_overshot_and_a_smaller_pool_is_taken_below_them() {
    let queue = vec![waiting(cores(4, 6), 9, 10)];
    let snapshot = Snapshot { queue, instances: vec![busy(1, 3600)], ..empty() };
    let capped = |caps| decide(&snapshot, &Policy { caps, ..Policy::thrift() }, at(0));
    let decision = capped(Caps { instances: Some(4), ..Caps::default() });
    let total: u32 = launches(&decision).iter().map(|launch| launch.1).sum();
    assert_eq!(total, 3);
    assert!(matches!(decision.reasons[0], Reason::CapReached { cap: Cap::Instances, .. }));
    let decision = capped(Caps { micros_per_hour: Some(600_000), ..Caps::default() });
    assert_eq!(launches(&decision), [("small", 2)]);
    let decision = capped(Caps { micros_per_month: Some(200_000), ..Caps::default() });
    assert_eq!(launches(&decision), [], "what runs is reserved to its end: 0.17 of 0.2 dollars");
    let at_once = Policy { launches_at_once: 2, ..Policy::thrift() };
    assert_eq!(launches(&decide(&snapshot, &at_once, at(0))), [("small", 2)]);
}

#[test]
fn minima_schedules_headroom_and_standby_are_kept() {
    let mut snapshot = empty();
    snapshot.pools[0].min = 2;
    assert_eq!(launches(&thrift(&snapshot)), [("small", 2)]);
    snapshot.instances = vec![idle(1), idle(2)];
    let decision = thrift(&snapshot);
    assert_eq!((launches(&decision), kept(&decision, 1)), (vec![], Some(Keep::Minimum)));
    snapshot.pools[0].min = 0;
    snapshot.pools[0].standby = 1;
    let decision = thrift(&snapshot);
    assert_eq!((decision.actions.len(), kept(&decision, 2)), (1, Some(Keep::Standby)));
    snapshot.pools[0].standby = 0;
    let headroom = vec![Headroom { need: cores(4, 8), expected_ms: MINUTE, count: 3 }];
    let decision = decide(&snapshot, &Policy { headroom, ..Policy::thrift() }, at(0));
    assert_eq!((launches(&decision), kept(&decision, 1)), (vec![("small", 1)], Some(Keep::Headroom)));
    // A Thursday, one minute before the schedule begins: it is to be ready then.
    let schedule = Schedule { pool: name("large"), days: vec![4], from_minute: 1, to_minute: 60, min: 1 };
    let policy = Policy { schedules: vec![schedule], ..Policy::thrift() };
    assert_eq!(launches(&decide(&empty(), &policy, at(0))), [("large", 1)]);
}

#[test]
fn demand_settles_before_it_is_bought_unless_it_could_be_late() {
    let mut snapshot = Snapshot { queue: vec![waiting(cores(4, 6), 2, 30)], ..empty() };
    let policy = Policy { settle_ms: 60_000, ..Policy::thrift() };
    let decision = decide(&snapshot, &policy, at(0));
    assert_eq!((decision.actions, decision.reasons), (vec![], vec![Reason::Settling { jobs: 2 }]));
    snapshot.queue[0].start_by = Some(at(200));
    assert_eq!(launches(&decide(&snapshot, &policy, at(0))), [("small", 2)]);
    snapshot.queue[0].start_by = None;
    snapshot.observed_at = at(60);
    assert_eq!(launches(&decide(&snapshot, &policy, at(60))), [("small", 2)]);
}

#[test]
fn an_idle_instance_is_held_as_long_as_it_would_take_to_boot_again() {
    let snapshot = Snapshot { observed_at: at(89), instances: vec![idle(1)], ..empty() };
    let idle_rule = IdleRule { boots_milli: 1000, ..IdleRule::default() };
    let policy = Policy { idle: idle_rule, ..Policy::thrift() };
    let decision = decide(&snapshot, &policy, at(89));
    assert_eq!(kept(&decision, 1), Some(Keep::Hold { until: at(90) }));
    let decision = decide(&snapshot, &policy, at(90));
    assert_eq!(decision.actions[0].because, Reason::Idle { idle_ms: 90_000 });
}

#[test]
fn a_removal_may_not_lift_occupancy_above_the_middle_mark() {
    let full = |number| busy(number, 3600);
    let instances = vec![full(1), full(2), idle(3), idle(4)];
    let snapshot = Snapshot { instances, ..empty() };
    let marks = Marks { low: 600, middle: 700, high: 900 };
    let decision = decide(&snapshot, &Policy { marks, ..Policy::thrift() }, at(0));
    assert_eq!(actions(&decision).len(), 1, "two of three is 667, two of two is 1000");
    assert_eq!(kept(&decision, 4), Some(Keep::LowMark));
    let marks = Marks { low: 1000, middle: 600, high: 1000 };
    let decision = decide(&snapshot, &Policy { marks, ..Policy::thrift() }, at(0));
    assert_eq!(kept(&decision, 4), Some(Keep::MiddleMark));
}

#[test]
fn above_the_high_mark_more_is_bought_up_to_the_middle() {
    let snapshot = Snapshot { instances: (1..=9).map(|n| busy(n, 3600)).collect(), ..empty() };
    let marks = Marks { low: 300, middle: 700, high: 900 };
    let decision = decide(&snapshot, &Policy { marks, ..Policy::thrift() }, at(0));
    assert_eq!(decision.actions[0].because, Reason::AboveHighMark { occupancy: 1000, high: 900 });
    let total: u32 = launches(&decision).iter().map(|launch| launch.1).sum();
    assert_eq!((launches(&decision)[0].0, total), ("small", 4), "36 of 52 cores are 693");
}

#[test]
fn a_drain_goes_by_number_and_acknowledgement_and_can_be_taken_back() {
    let mut snapshot = Snapshot { instances: vec![idle(1)], ..empty() };
    snapshot.instances[0].last_cordon = 2;
    let cordon = ScaleAction::Cordon { instance: id(1), cordon: 3, cause: CordonCause::Idle };
    assert_eq!(actions(&thrift(&snapshot)), [&cordon]);
    snapshot.instances = vec![cordoned(1, CordonCause::Idle, false)];
    let decision = thrift(&snapshot);
    assert_eq!((actions(&decision), kept(&decision, 1)), (vec![], Some(Keep::NotAcknowledged)));
    snapshot.instances = vec![cordoned(1, CordonCause::Idle, true)];
    let terminate = ScaleAction::Terminate { instance: id(1), cordon: 3 };
    assert_eq!(actions(&thrift(&snapshot)), [&terminate]);
    snapshot.queue = vec![waiting(cores(4, 6), 1, 10)];
    let uncordon = ScaleAction::Uncordon { instance: id(1), cordon: 3 };
    assert_eq!(actions(&thrift(&snapshot)), [&uncordon], "and nothing is bought");
    snapshot.instances[0].life = Life::Terminating;
    assert_eq!(launches(&thrift(&snapshot)), [("small", 1)], "refused after the claim");
    snapshot.instances = vec![cordoned(1, CordonCause::Operator, true)];
    let decision = thrift(&snapshot);
    assert_eq!((launches(&decision), kept(&decision, 1)), (vec![("small", 1)], Some(Keep::Operator)));
}

#[test]
fn a_busy_instance_is_never_ended_even_when_it_is_acknowledged() {
    let lying = InstanceFacts { leases: 1, ..cordoned(1, CordonCause::Idle, true) };
    let decision = thrift(&Snapshot { instances: vec![lying], ..empty() });
    assert_eq!((actions(&decision), kept(&decision, 1)), (vec![], Some(Keep::StillBusy)));
}

#[test]
fn a_notice_starts_the_replacement_and_a_hint_only_cordons() {
    let doomed = InstanceFacts { notice: Some(at(120)), ..busy(1, 3600) };
    let mut snapshot = Snapshot { instances: vec![doomed], ..empty() };
    let decision = thrift(&snapshot);
    assert_eq!(decision.actions[0].because, Reason::Replaces { instance: id(1) });
    let cordon = ScaleAction::Cordon { instance: id(1), cordon: 1, cause: CordonCause::Notice };
    assert_eq!(actions(&decision)[1..], [&cordon]);
    snapshot.instances = vec![InstanceFacts { notice: Some(at(120)), ..busy(1, 110) }];
    assert_eq!(actions(&thrift(&snapshot)), [&cordon], "it ends in time");
    snapshot.instances = vec![InstanceFacts { rebalance: true, ..busy(1, 3600) }];
    let cordon = ScaleAction::Cordon { instance: id(1), cordon: 1, cause: CordonCause::Rebalance };
    assert_eq!(actions(&thrift(&snapshot)), [&cordon]);
}

#[test]
fn an_observation_that_is_old_or_from_the_future_holds_everything() {
    let snapshot = Snapshot { queue: vec![waiting(cores(4, 6), 1, 10)], instances: vec![idle(1)], ..empty() };
    for now in [at(61), Timestamp::from_millis(at(0).as_millis() - 61_000)] {
        let decision = decide(&snapshot, &Policy::thrift(), now);
        assert_eq!(decision.actions, []);
        assert_eq!(decision.reasons, [Reason::Stale { observed_at: at(0) }]);
    }
}

#[test]
fn a_nearly_empty_instance_is_left_to_empty() {
    let nearly = InstanceFacts {
        pool: name("large"),
        capacity: cores(16, 64),
        free: cores(15, 60),
        leases: 1,
        expected_end: at(7200),
        ..idle(1)
    };
    let snapshot = Snapshot { instances: vec![nearly, busy(2, 3600)], ..empty() };
    assert_eq!(thrift(&snapshot).actions, []);
    let policy = Policy { consolidate_below_milli: 200, ..Policy::thrift() };
    let cordon = ScaleAction::Cordon { instance: id(1), cordon: 1, cause: CordonCause::Consolidation };
    assert_eq!(actions(&decide(&snapshot, &policy, at(0))), [&cordon]);
}

#[test]
fn an_instance_that_reports_less_than_it_was_given_is_believed() {
    let shrunken = InstanceFacts { capacity: cores(1, 1), ..idle(1) };
    let snapshot =
        Snapshot { queue: vec![waiting(cores(4, 6), 1, 10)], instances: vec![shrunken], ..empty() };
    assert_eq!(launches(&thrift(&snapshot)), [("small", 1)]);
}

#[test]
fn decisions_are_written_and_read_back() {
    let snapshot = Snapshot {
        queue: vec![waiting(cores(4, 6), 1, 10), waiting(cores(99, 1), 1, 1)],
        instances: vec![idle(1), cordoned(2, CordonCause::Idle, true), busy(3, 60)],
        ..empty()
    };
    let decision = thrift(&snapshot);
    let text = serde_json::to_string(&decision).unwrap();
    assert_eq!(serde_json::from_str::<ScaleDecision>(&text).unwrap(), decision);
    let text = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
    let policy: Policy = serde_json::from_str(r#"{"caps": {"instances": 5}}"#).unwrap();
    assert_eq!(policy, Policy { caps: Caps { instances: Some(5), ..Caps::default() }, ..Policy::thrift() });
    assert!(serde_json::from_str::<Policy>(r#"{"cap": {}}"#).is_err());
}
