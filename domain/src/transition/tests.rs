//! The state machine against a table written by hand, cell by cell and in long random sequences.

use proptest::prelude::*;

use super::*;
use crate::failure::FailureClass;
use crate::fixture::{at, failure, instance_id, job, manifest, sealed};

/// What every event does in every state. `=` is stale, `x` is illegal, a word is the state after.
///
/// The columns with an epoch are told under the epoch that holds the right. `again` means within the retry budget,
/// `last` beyond it; `early` is an assignment inside the pause after a failure; `due` and `not due` are before and
/// after the deadline. `stopping` is `canceling` because of the total timeout.
const TABLE: &str = "
           hold release assign   early started  engine  grant      grant=  published bytes-lost again  last   interrupted cancel    stopped  queue-due queue-not total-due total-not deps-done deps-lost
held       =    queued  x        x     =        =       =          =       =         =          =      =      =           canceled  =        x         x         failed    =         x         x
waiting    x    x       x        x     =        =       =          =       =         =          =      =      =           canceled  =        x         x         failed    =         queued    failed
queued     held =       assigned x     =        =       =          =       =         =          =      =      =           canceled  =        expired   =         failed    =         x         x
assigned   x    x       x        x     starting running finalizing finalizing x      x          queued failed queued      canceling x        x         x         stopping  =         x         x
starting   x    x       x        x     =        running finalizing finalizing x      x          queued failed queued      canceling x        x         x         stopping  =         x         x
running    x    x       x        x     =        =       finalizing finalizing x      x          queued failed queued      canceling x        x         x         stopping  =         x         x
finalizing x    x       x        x     =        =       x          =       succeeded failed     x      x      x           x         x        x         x         x         x         x         x
canceling  x    x       x        x     x        x       x          x       x         x          canceled canceled canceled =        canceled x         x         =         =         x         x
stopping   x    x       x        x     x        x       x          x       x         x          failed failed failed      =         failed   x         x         =         =         x         x
succeeded  x    x       x        x     =        =       =          =       =         =          =      =      =           x         =        x         x         x         x         x         x
failed     x    x       x        x     =        =       =          =       =         =          =      =      =           x         =        x         x         x         x         x         x
canceled   x    x       x        x     =        =       =          =       =         =          =      =      =           =         =        x         x         =         x         x         x
expired    x    x       x        x     =        =       =          =       =         =          =      =      =           x         =        =         =         x         x         x         x
";

/// What a job of the table is worth at its limits.
const QUEUE_SECONDS: u64 = 100;
const TOTAL_SECONDS: u64 = 1_000;

fn rows() -> Vec<(&'static str, Vec<(&'static str, &'static str)>)> {
    let mut lines = TABLE.trim_matches('\n').lines();
    let columns: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    lines
        .map(|line| {
            let mut cells = line.split_whitespace();
            let row = cells.next().unwrap();
            let cells: Vec<&str> = cells.collect();
            assert_eq!(cells.len(), columns.len(), "{row}");
            (row, columns.iter().copied().zip(cells).collect())
        })
        .collect()
}

fn cell(row: &str, column: &str) -> &'static str {
    let (_, cells) = rows().into_iter().find(|(name, _)| *name == row).unwrap();
    cells.into_iter().find(|(name, _)| *name == column).unwrap().1
}

fn limited() -> Job {
    let mut job = job(1);
    job.spec.timeouts.queue_seconds = Some(QUEUE_SECONDS);
    job.spec.timeouts.total_seconds = Some(TOTAL_SECONDS);
    job.spec.retry = crate::job::RetryPolicy { user: 1, infrastructure: 1 };
    job
}

fn run() -> Run {
    Run { attempt: AttemptNumber(3), epoch: Epoch(3), instance: instance_id(1), since: at(0) }
}

/// A job in the state of a row, with three attempts behind it and its budgets as asked.
fn in_row(row: &str, budget_left: bool, paused: bool) -> Job {
    let last_failure = Some(failure(FailureClass::Engine));
    let state = match row {
        "held" => JobState::Held { reason: HoldReason::Manual },
        "waiting" => JobState::Held { reason: HoldReason::Dependencies },
        "queued" => JobState::Queued { not_before: paused.then(|| at(2)), last_failure },
        "assigned" => JobState::Assigned(run()),
        "starting" => JobState::Starting(run()),
        "running" => JobState::Running(run()),
        "finalizing" => JobState::Finalizing { run: run(), manifest: manifest() },
        "canceling" => JobState::Canceling { run: run(), cause: StopCause::Requested },
        "stopping" => JobState::Canceling { run: run(), cause: StopCause::TotalTimeout },
        "succeeded" => JobState::Succeeded { attempt: AttemptNumber(3), manifest: manifest() },
        "failed" => JobState::Failed { failure: failure(FailureClass::Input) },
        "canceled" => JobState::Canceled,
        "expired" => JobState::Expired,
        other => panic!("no such row: {other}"),
    };
    let used = u32::from(!budget_left);
    Job {
        state,
        version: 7,
        attempts: AttemptNumber(3),
        epoch: Epoch(3),
        user_retries: used,
        infrastructure_retries: used,
        ..limited()
    }
}

fn other_manifest() -> Manifest {
    Manifest { objects: vec![sealed("out/other.mp4", 11)] }
}

/// The event of a column and the time at which it is told.
fn event(column: &str, epoch: Epoch, class: FailureClass) -> (JobEvent, Timestamp) {
    let failure = failure(class);
    let now = at(1);
    match column {
        "hold" => (JobEvent::Hold(HoldReason::Manual), now),
        "release" => (JobEvent::Release, now),
        "deps-done" => (JobEvent::DependenciesDone, now),
        "deps-lost" => (JobEvent::DependencyFailed { failure }, now),
        "assign" => (JobEvent::Assign { instance: instance_id(2) }, at(2)),
        "early" => (JobEvent::Assign { instance: instance_id(2) }, now),
        "started" => (JobEvent::Started { epoch }, now),
        "engine" => (JobEvent::EngineRunning { epoch }, now),
        "grant" => (JobEvent::Grant { epoch, manifest: other_manifest() }, now),
        "grant=" => (JobEvent::Grant { epoch, manifest: manifest() }, now),
        "published" => (JobEvent::Published { epoch }, now),
        "bytes-lost" => (JobEvent::SealedBytesLost { epoch, failure }, now),
        "again" | "last" => (JobEvent::AttemptFailed { epoch, failure }, now),
        "interrupted" => (JobEvent::Interrupted { epoch, failure }, now),
        "cancel" => (JobEvent::Cancel, now),
        "stopped" => (JobEvent::Stopped { epoch }, now),
        "queue-due" => (JobEvent::QueueTimeout, at(QUEUE_SECONDS)),
        "queue-not" => (JobEvent::QueueTimeout, at(QUEUE_SECONDS - 1)),
        "total-due" => (JobEvent::TotalTimeout, at(TOTAL_SECONDS)),
        "total-not" => (JobEvent::TotalTimeout, at(TOTAL_SECONDS - 1)),
        other => panic!("no such column: {other}"),
    }
}

fn row_of(job: &Job) -> &'static str {
    match &job.state {
        JobState::Canceling { cause: StopCause::TotalTimeout, .. } => "stopping",
        JobState::Held { reason: HoldReason::Dependencies } => "waiting",
        state => state.name().as_str(),
    }
}

fn cell_of(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Applied(job) => row_of(job),
        Outcome::Stale => "=",
        Outcome::Illegal { .. } => "x",
    }
}

/// What must hold of every change, whatever the table says.
fn check_change(before: &Job, after: &Job, now: Timestamp) {
    assert!(
        is_drawn(before.state.name(), after.state.name()),
        "{} to {}",
        before.state.name(),
        after.state.name()
    );
    assert!(!before.state.name().is_terminal());
    assert_eq!(after.version, before.version + 1);
    assert_eq!(after.state_since, now);
    assert_eq!((after.id, after.account, after.created_at), (before.id, before.account, before.created_at));
    assert_eq!(after.spec, before.spec);
    assert!(after.queued_at == before.queued_at || before.queued_at.is_none(), "queue time changed");
    let assigned = after.state.name() == StateName::Assigned;
    assert_eq!(after.epoch.0, before.epoch.0 + u64::from(assigned));
    assert_eq!(after.attempts.0, before.attempts.0 + u32::from(assigned));
    let (user, infrastructure) = (after.user_retries, after.infrastructure_retries);
    assert!(user >= before.user_retries && user <= before.spec.retry.user.max(before.user_retries));
    assert!(infrastructure >= before.infrastructure_retries);
    if let (Some(old), Some(new)) = (before.state.run(), after.state.run()) {
        assert_eq!(old, new, "a live attempt was replaced");
    }
    if let Some(run) = after.state.run() {
        assert_eq!((run.epoch, run.attempt), (after.epoch, after.attempts));
    }
}

#[test]
fn every_event_in_every_state() {
    let names: std::collections::BTreeSet<&str> = rows().iter().map(|(row, _)| *row).collect();
    assert!(StateName::ALL.iter().all(|state| names.contains(state.as_str())), "a state has no row");
    for (row, cells) in rows() {
        for (column, expected) in cells {
            for class in [FailureClass::Engine, FailureClass::Infrastructure] {
                let job = in_row(row, column != "last", matches!(column, "early" | "assign"));
                let (event, now) = event(column, Epoch(3), class);
                let outcome = apply(&job, event, now);
                assert_eq!(cell_of(&outcome), expected, "{row} × {column}");
                match outcome {
                    Outcome::Applied(after) => check_change(&job, &after, now),
                    Outcome::Illegal { state } => assert_eq!(state, job.state.name()),
                    Outcome::Stale => {}
                }
            }
        }
    }
}

#[test]
fn another_epoch_is_always_stale() {
    let with_epoch = [
        "started",
        "engine",
        "grant",
        "grant=",
        "published",
        "bytes-lost",
        "again",
        "interrupted",
        "stopped",
    ];
    for (row, _) in rows() {
        for column in with_epoch {
            for epoch in [0, 1, 2, 4, u64::MAX] {
                let (event, now) = event(column, Epoch(epoch), FailureClass::Infrastructure);
                assert_eq!(apply(&in_row(row, true, false), event, now), Outcome::Stale, "{row} × {column}");
            }
        }
    }
}

#[test]
fn every_change_that_is_drawn_happens_in_the_table() {
    let mut seen = std::collections::BTreeSet::new();
    for (row, cells) in rows() {
        let from = in_row(row, true, false).state.name();
        for (_, to) in cells.iter().filter(|(_, to)| !matches!(*to, "=" | "x")) {
            seen.insert((from, in_row(to, true, false).state.name()));
        }
    }
    for from in StateName::ALL {
        for to in StateName::ALL {
            assert_eq!(is_drawn(from, to), seen.contains(&(from, to)), "{from} to {to}");
        }
    }
}

fn fail_until_final(class: FailureClass) -> (Job, Vec<u64>) {
    let mut job = limited();
    job.spec.retry = crate::job::RetryPolicy { user: 2, infrastructure: 8 };
    let mut pauses = Vec::new();
    let mut now = at(0);
    loop {
        let Outcome::Applied(assigned) = apply(&job, JobEvent::Assign { instance: instance_id(1) }, now)
        else {
            panic!("not assigned")
        };
        let failed = JobEvent::AttemptFailed { epoch: assigned.epoch, failure: failure(class) };
        let Outcome::Applied(after) = apply(&assigned, failed, now) else { panic!("did not fail") };
        job = *after;
        match &job.state {
            JobState::Queued { not_before: Some(time), last_failure: Some(_) } => {
                pauses.push(time.since(now).as_secs());
                now = *time;
            }
            state => {
                assert_eq!(state.name(), StateName::Failed);
                return (job, pauses);
            }
        }
    }
}

#[test]
fn each_class_of_failure_has_its_budget_and_its_pauses() {
    let (job, pauses) = fail_until_final(FailureClass::Engine);
    assert_eq!((pauses, job.user_retries, job.infrastructure_retries), (vec![1, 2], 2, 0));
    for class in [FailureClass::Infrastructure, FailureClass::Internal] {
        let (job, pauses) = fail_until_final(class);
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!((job.user_retries, job.infrastructure_retries), (0, 8));
    }
    for class in [FailureClass::Input, FailureClass::Policy] {
        let (job, pauses) = fail_until_final(class);
        assert_eq!((pauses, job.attempts), (vec![], AttemptNumber(1)));
    }
}

#[test]
fn a_first_infrastructure_retry_pauses_a_second_whatever_the_user_spent() {
    let mut job = in_row("running", true, false);
    job.user_retries = 6;
    let lost = JobEvent::AttemptFailed { epoch: Epoch(3), failure: failure(FailureClass::Infrastructure) };
    let Outcome::Applied(after) = apply(&job, lost, at(5)) else { panic!("refused") };
    assert!(matches!(after.state, JobState::Queued { not_before: Some(time), .. } if time == at(6)));
}

#[test]
fn an_interruption_costs_no_budget_and_no_pause() {
    let job = in_row("running", false, false);
    let event = JobEvent::Interrupted { epoch: Epoch(3), failure: failure(FailureClass::Infrastructure) };
    let Outcome::Applied(after) = apply(&job, event, at(5)) else { panic!("refused") };
    assert!(matches!(after.state, JobState::Queued { not_before: None, .. }));
    assert_eq!((after.user_retries, after.infrastructure_retries), (1, 1));
}

#[test]
fn a_stay_in_the_queue_is_timed_from_its_beginning() {
    let job = in_row("running", true, false);
    let event = JobEvent::Interrupted { epoch: Epoch(3), failure: failure(FailureClass::Infrastructure) };
    let Outcome::Applied(queued) = apply(&job, event, at(500)) else { panic!("refused") };
    assert_eq!(queued.queued_at, Some(at(0)), "its place in the order is kept");
    assert_eq!(queued.queue_deadline(), Some(at(500 + QUEUE_SECONDS)));
    assert_eq!(apply(&queued, JobEvent::QueueTimeout, at(501)), Outcome::Stale);
}

#[test]
fn the_total_timeout_ends_as_a_policy_failure() {
    let Outcome::Applied(stopping) =
        apply(&in_row("running", true, false), JobEvent::TotalTimeout, at(TOTAL_SECONDS))
    else {
        panic!("refused")
    };
    let Outcome::Applied(over) = apply(&stopping, JobEvent::Stopped { epoch: Epoch(3) }, at(1_001)) else {
        panic!("refused")
    };
    let JobState::Failed { failure } = &over.state else { panic!("{:?}", over.state) };
    assert_eq!((failure.class, failure.code.as_str()), (FailureClass::Policy, "total_timeout"));
}

#[test]
fn a_job_is_the_same_after_a_trip_through_json() {
    for (row, _) in rows() {
        let job = in_row(row, true, true);
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job, "{row}");
    }
}

/// A step of a sequence: a column of the table, how far the epoch is off, and the seconds that pass before.
fn step() -> impl Strategy<Value = (&'static str, u64, bool, u64)> {
    let columns = [
        "hold",
        "release",
        "assign",
        "started",
        "engine",
        "grant",
        "grant=",
        "published",
        "bytes-lost",
        "again",
        "interrupted",
        "cancel",
        "stopped",
        "queue-due",
        "total-due",
    ];
    // What makes a job live on is drawn more often than what ends it.
    let weights = [1, 3, 9, 5, 5, 2, 2, 3, 1, 4, 3, 1, 2, 1, 1];
    let column = proptest::sample::select(
        columns.iter().zip(weights).flat_map(|(column, weight)| vec![*column; weight]).collect::<Vec<_>>(),
    );
    (
        column,
        prop_oneof![4 => Just(0u64), 1 => 1u64..3],
        any::<bool>(),
        prop_oneof![9 => 0u64..4, 1 => 60u64..120],
    )
}

/// The slow reference: looks every answer up in the table and counts budgets and deadlines on its own.
#[derive(Debug)]
struct Reference {
    row: &'static str,
    granted_same: bool,
    epoch: u64,
    user: u32,
    infrastructure: u32,
    not_before: u64,
    state_since: u64,
}

impl Reference {
    fn column(&self, column: &'static str, engine: bool, now: u64) -> &'static str {
        let (used, budget) = if engine { (self.user, 2) } else { (self.infrastructure, 3) };
        match column {
            "assign" if now < self.not_before => "early",
            "again" if used >= budget => "last",
            "queue-due" if now < self.state_since + QUEUE_SECONDS => "queue-not",
            "total-due" if now < TOTAL_SECONDS => "total-not",
            // Which of the two manifests was granted first decides which one is the same.
            "grant" if self.row == "finalizing" && !self.granted_same => "grant=",
            "grant=" if self.row == "finalizing" && !self.granted_same => "grant",
            other => other,
        }
    }

    fn expect(&mut self, told: &'static str, current: bool, engine: bool, now: u64) -> &'static str {
        let column = self.column(told, engine, now);
        let has_epoch = !matches!(
            column,
            "hold"
                | "release"
                | "assign"
                | "early"
                | "cancel"
                | "queue-due"
                | "queue-not"
                | "total-due"
                | "total-not"
        );
        if has_epoch && !current {
            return "=";
        }
        let to = cell(self.row, column);
        if !matches!(to, "=" | "x") {
            self.advance(told, column, to, engine, now);
        }
        to
    }

    fn advance(&mut self, told: &str, column: &str, to: &'static str, engine: bool, now: u64) {
        self.epoch += u64::from(column == "assign");
        self.granted_same |= told == "grant=" && to == "finalizing";
        self.not_before = 0;
        if column == "again" && to == "queued" {
            let used = if engine { &mut self.user } else { &mut self.infrastructure };
            self.not_before = now + [1, 2, 4][*used as usize];
            *used += 1;
        }
        (self.row, self.state_since) = (to, now);
    }
}

proptest! {
    #[test]
    fn long_stories_follow_the_table(steps in prop::collection::vec(step(), 1..120)) {
        let mut job = limited();
        job.spec.retry = crate::job::RetryPolicy { user: 2, infrastructure: 3 };
        let mut reference = Reference {
            row: "queued", granted_same: false, epoch: 0, user: 0, infrastructure: 0, not_before: 0, state_since: 0,
        };
        let mut now = 0;
        for (column, behind, engine, passed) in steps {
            now += passed;
            let epoch = Epoch(job.epoch.0.wrapping_sub(behind));
            let class = if engine { FailureClass::Engine } else { FailureClass::Infrastructure };
            let (event, _) = event(column, epoch, class);
            let expected = reference.expect(column, behind == 0, engine, now);
            let outcome = apply(&job, event.clone(), at(now));
            prop_assert_eq!(cell_of(&outcome), expected, "{:?} at {} in {:?}", event, now, reference);
            if let Outcome::Applied(after) = outcome {
                check_change(&job, &after, at(now));
                job = *after;
            }
            prop_assert_eq!(job.epoch.0, reference.epoch);
            prop_assert_eq!((job.user_retries, job.infrastructure_retries), (reference.user, reference.infrastructure));
        }
    }
}
