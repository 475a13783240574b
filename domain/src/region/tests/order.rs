//! Who goes first: priority, fair share, age; and what keeps a job back although there is room.

use proptest::prelude::*;

use super::*;

fn account(number: u128) -> AccountId {
    AccountId::new(at(0), number)
}

fn of(owner: u128, number: u128, priority: u16, seconds: u64) -> RegionEvent {
    let job = QueuedJob { account: account(owner), priority, queued_at: at(seconds), ..queued(number) };
    RegionEvent::JobQueued(job)
}

/// One instance with room for one job at a time; each ends when the next is to be chosen.
struct Desk {
    region: Region,
    now: u64,
    running: Option<u128>,
}

impl Desk {
    fn new(config: RegionConfig) -> Self {
        let mut region = Region::new(config);
        let profile = profile(1, cores(2, 4));
        region.handle(RegionEvent::InstanceAttached { profile, running: vec![] }, at(0));
        Self { region, now: 0, running: None }
    }

    fn tell(&mut self, event: RegionEvent) {
        let actions = self.region.handle(event, at(self.now));
        for action in actions {
            let Action::Assign { job, .. } = action else { panic!("{action:?}") };
            assert_eq!(self.running, None, "the instance is full");
            self.running = Some(job.bits() & u128::from(u64::MAX));
        }
    }

    /// The running job ends after some seconds; the number of the next one.
    fn next(&mut self, seconds: u64) -> Option<u128> {
        let number = self.running.take()?;
        let recorded =
            LiveAttempt { account: self.region.in_flight[&job_id(number)].job.account, ..live(number, 1, 1) };
        self.tell(RegionEvent::AttemptLive(recorded));
        for _ in 0..seconds / 30 {
            self.tell(RegionEvent::Renewed(attempt(number, 1)));
            self.now += 30;
        }
        self.now += seconds % 30;
        self.tell(RegionEvent::AttemptOver(attempt(number, 1)));
        self.running
    }
}

#[test]
fn accounts_of_the_same_priority_take_turns_and_priority_goes_first() {
    let mut desk = Desk::new(RegionConfig::default());
    for number in 1..=6 {
        desk.tell(of(1, number, 500, 0));
    }
    for number in 11..=13 {
        desk.tell(of(2, number, 500, 5));
    }
    desk.tell(of(1, 20, 501, 9));
    let served: Vec<u128> = std::iter::from_fn(|| desk.next(60)).collect();
    assert_eq!(served, [20, 11, 12, 2, 13, 3, 4, 5, 6], "one of the first account ran before, 20 counts too");
}

#[test]
fn a_weight_of_three_gets_three_of_four() {
    let weights = BTreeMap::from([(account(1), 300)]);
    let fair_share = FairShare { weights, ..FairShare::default() };
    let mut desk = Desk::new(RegionConfig { fair_share, ..RegionConfig::default() });
    for number in 0..40 {
        desk.tell(of(1, 100 + number, 500, 0));
        desk.tell(of(2, 200 + number, 500, 0));
    }
    let served: Vec<u128> = std::iter::from_fn(|| desk.next(60)).take(40).collect();
    let first = served.iter().filter(|number| **number < 200).count();
    assert!((28..=32).contains(&first), "{first} of 40 went to the account with weight 3");
}

#[test]
fn nothing_starves_and_the_bound_is_the_stated_one() {
    let aging = Aging { after: Duration::from_secs(600), every: 4 };
    let mut desk = Desk::new(RegionConfig { aging, ..RegionConfig::default() });
    desk.tell(of(1, 1, 900, 0));
    for number in [2, 3] {
        desk.tell(of(1, number, 0, 0));
    }
    let mut served = Vec::new();
    for number in 10..60 {
        desk.tell(of(2, number, 900, desk.now));
        served.extend(desk.next(60));
    }
    let place = |wanted: u128| served.iter().position(|number| *number == wanted);
    // Served after 10 minutes (10 assignments) and then at most every fourth.
    assert!(place(2).is_some_and(|place| (10..=13).contains(&place)), "{served:?}");
    assert!(place(3).is_some_and(|third| third <= place(2).unwrap() + 4), "{served:?}");
    assert_eq!(served.len(), 50);
}

#[test]
fn the_oldest_large_job_gets_an_instance_whatever_its_priority() {
    let aging = Aging { after: Duration::from_secs(600), every: 4 };
    let mut region = Region::new(RegionConfig { aging, ..RegionConfig::default() });
    for number in [1, 2] {
        attach(&mut region, number, vec![], 0);
        for half in [0, 10] {
            region.handle(now_live(number + half, 1, number, cores(2, 4)), at(0));
        }
    }
    let mut large = QueuedJob { priority: 0, queued_at: at(0), ..queued(100) };
    Arc::make_mut(&mut large.request).resources = cores(4, 8);
    region.handle(RegionEvent::JobQueued(large), at(0));
    let mut numbers = [1, 11, 2, 12].map(|number| (number, if number % 10 == 1 { 1 } else { 2 })).to_vec();
    let mut found = None;
    for round in 0..400u64 {
        let now = at(round * 10);
        let next = 1000 + u128::from(round);
        region.handle(of(2, next, 900, round * 10), now);
        for (number, _) in &numbers {
            region.handle(RegionEvent::Renewed(attempt(*number, 1)), now);
        }
        let (ended, _) = numbers.remove(0);
        for action in region.handle(RegionEvent::AttemptOver(attempt(ended, 1)), now) {
            let Action::Assign { job, instance } = action else { panic!("{action:?}") };
            if job == job_id(100) {
                found = Some(round);
            }
            let number = job.bits() & u128::from(u64::MAX);
            let host = instance.bits() & u128::from(u64::MAX);
            let account = region.in_flight[&job].job.account;
            region.handle(RegionEvent::AttemptLive(LiveAttempt { account, ..live(number, 1, host) }), now);
            numbers.push((number, host));
        }
        if found.is_some() || numbers.is_empty() {
            break;
        }
    }
    let round = found.expect("the large job was never placed");
    assert!((66..80).contains(&round), "reserved after 660 s, placed when the instance was empty: {round}");
}

#[test]
fn limits_keep_jobs_back_and_let_others_pass() {
    let factory = FactoryId::new(at(0), 1);
    let limits = Limits {
        accounts: BTreeMap::from([(account(1), 2)]),
        factories: BTreeMap::from([(factory, 1)]),
        every_account: None,
    };
    let mut region = Region::new(RegionConfig { limits, ..RegionConfig::default() });
    let profile = profile(1, cores(64, 256));
    region.handle(RegionEvent::InstanceAttached { profile, running: vec![] }, at(0));
    let made = |number| {
        let job = QueuedJob { account: account(2), factory: Some(factory), ..queued(number) };
        RegionEvent::JobQueued(job)
    };
    assert_eq!(region.handle(of(1, 1, 500, 0), at(0)), [assign(1, 1)]);
    assert_eq!(region.handle(of(1, 2, 500, 0), at(0)), [assign(2, 1)]);
    assert_eq!(region.handle(of(1, 3, 900, 0), at(0)), [], "the account's third");
    assert_eq!(region.handle(made(11), at(0)), [assign(11, 1)]);
    assert_eq!(region.handle(made(12), at(0)), [], "the factory's second");
    assert_eq!(region.limit_of(job_id(3)), Some(LimitReached { by: LimitedBy::Account, limit: 2 }));
    assert_eq!(region.limit_of(job_id(12)), Some(LimitReached { by: LimitedBy::Factory, limit: 1 }));
    let failed =
        |job, requeue| RegionEvent::AssignmentFailed { job: job_id(job), instance: instance_id(1), requeue };
    assert_eq!(region.handle(failed(1, false), at(1)), [assign(3, 1)]);
    assert_eq!(region.handle(failed(11, false), at(1)), [assign(12, 1)]);
}

#[derive(Clone, Debug)]
enum Step {
    Queue { number: u128, owner: u128, cores: u64, priority: u16 },
    Leave(u128),
    End,
    Attach(u128),
}

fn step() -> impl Strategy<Value = Step> {
    let priority = prop::sample::select(vec![500, 500, 500, 900]);
    prop_oneof![
        12 => (1..60u128, 1..3u128, 1..14u64, priority)
            .prop_map(|(number, owner, cores, priority)| Step::Queue { number, owner, cores, priority }),
        3 => (1..60u128).prop_map(Step::Leave),
        4 => Just(Step::End),
        1 => (1..4u128).prop_map(Step::Attach),
    ]
}

proptest! {
    /// Who stands among the first is worked out again only when it may have changed.
    #[test]
    fn the_contenders_are_the_first_that_wait_for_room(
        lone in any::<bool>(), limited in any::<bool>(), steps in prop::collection::vec(step(), 1..120),
    ) {
        let limits = Limits { every_account: limited.then_some(2), ..Limits::default() };
        let reserve_after = Duration::from_secs(100_000);
        let mut region = Region::new(RegionConfig { limits, reserve_after, ..RegionConfig::default() });
        let mut running = Vec::new();
        for (second, step) in steps.into_iter().enumerate() {
            let event = match step {
                Step::Queue { number, owner, cores: count, priority } => {
                    let owner = account(if lone { 1 } else { owner });
                    let queued_at = at(u64::try_from(number).unwrap() % 7);
                    let mut job = QueuedJob { account: owner, priority, queued_at, ..queued(number) };
                    Arc::make_mut(&mut job.request).resources = cores(count, 1);
                    RegionEvent::JobQueued(job)
                }
                Step::Leave(number) => RegionEvent::JobLeft(job_id(number)),
                Step::End => match running.pop() {
                    Some((job, instance)) => RegionEvent::AssignmentFailed { job, instance, requeue: false },
                    None => RegionEvent::Tick,
                },
                Step::Attach(number) => {
                    let profile = profile(number, cores(4 * u64::try_from(number).unwrap(), 64));
                    RegionEvent::InstanceAttached { profile, running: vec![] }
                }
            };
            for action in region.handle(event, at(u64::try_from(second).unwrap())) {
                if let Action::Assign { job, instance } = action {
                    running.push((job, instance));
                }
            }
            let (anew, noted) = region.contenders_anew();
            prop_assert_eq!(anew, noted);
        }
    }
}
