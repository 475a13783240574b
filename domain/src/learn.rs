//! How long work runs, learned from the work that has run: quantiles by kind of work, in bounded memory.
//!
//! What runs is known by account, service, engine version, factory and length of input. The most exact kind of which
//! enough has run speaks: factory, version and length; then version and length; then the version alone. When none is
//! known a default does, and says so. A run is learned under all three. When there are too many kinds, those that were
//! learned longest ago are forgotten, and of those the first in their order: the same runs leave the same knowledge.

mod sketch;

use std::collections::BTreeMap;
use std::time::Duration;

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::id::{AccountId, FactoryId, ServiceName};
use crate::job::{Job, JobSpec, JobState};
use crate::time::Timestamp;

pub use sketch::{InvalidSketch, LONGEST_MS, Quantile, Sketch};

/// Most kinds of work that are remembered.
pub const MAX_KINDS: usize = 4096;
/// Fewest runs from which a kind is preferred to a wider one.
pub const ENOUGH: u32 = 5;
/// What a run is taken to last when nothing is known of its kind: half of the runs, and nine of ten, in milliseconds.
pub const UNKNOWN_MS: (u64, u64) = (60_000, 300_000);

/// The length of the inputs together, in doublings of a byte: 0 for none, 1 for one byte, 2 for two or three, up to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Length(u8);

impl Length {
    /// The bucket of so many bytes.
    pub const fn of_bytes(bytes: u64) -> Self {
        Self((64 - bytes.leading_zeros()) as u8)
    }

    /// Its number, 0 to 64.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// The work of a job, as far as it tells how long it runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Work {
    /// Whose it is: accounts learn nothing of each other.
    pub account: AccountId,
    /// The kind of work.
    pub service: ServiceName,
    /// The exact engine version.
    pub version: Version,
    /// The factory that made it.
    pub factory: Option<FactoryId>,
    /// How much there is to read.
    pub length: Length,
}

/// A kind of work of which durations are learned; what is `None` does not matter to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kind {
    /// Whose.
    pub account: AccountId,
    /// The service.
    pub service: ServiceName,
    /// The engine version.
    pub version: Version,
    /// Inputs of this length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<Length>,
    /// Made by this factory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factory: Option<FactoryId>,
}

/// Which runs an expectation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Runs of the same factory and engine version with inputs of like length.
    Factory,
    /// Runs of the same engine version with inputs of like length.
    Length,
    /// Runs of the same engine version.
    Version,
    /// None: nothing is known.
    Default,
}

/// How long work is expected to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Half of the runs take at most this, in milliseconds.
    pub p50_ms: u64,
    /// Nine of ten runs take at most this, in milliseconds.
    pub p90_ms: u64,
    /// How many runs say so; older ones fade.
    pub samples: u32,
    /// Which runs.
    pub basis: Basis,
}

impl Expected {
    /// Nothing is known.
    pub const UNKNOWN: Self =
        Self { p50_ms: UNKNOWN_MS.0, p90_ms: UNKNOWN_MS.1, samples: 0, basis: Basis::Default };

    /// Whether it was learned.
    pub const fn is_learned(&self) -> bool {
        self.samples > 0
    }
}

/// How long an engine worked, when `after` is `before` with its outputs granted: from `running` to sealed.
pub fn ran(before: &Job, after: &Job) -> Option<Duration> {
    let sealed = matches!((&before.state, &after.state), (JobState::Running(_), JobState::Finalizing { .. }));
    sealed.then(|| after.state_since.since(before.state_since))
}

impl Work {
    /// The work of a job.
    pub fn of(job: &Job) -> Self {
        Self::of_spec(job.account, &job.spec)
    }

    /// The work of a job of this account with this specification.
    pub fn of_spec(account: AccountId, spec: &JobSpec) -> Self {
        let bytes = spec.inputs.values().map(|input| input.version.size_bytes).fold(0, u64::saturating_add);
        Self {
            account,
            service: spec.service.clone(),
            version: spec.engine.version.clone(),
            factory: spec.origin.factory(),
            length: Length::of_bytes(bytes),
        }
    }

    /// The kinds it is of, the most exact first.
    pub fn kinds(&self) -> impl Iterator<Item = (Basis, Kind)> {
        let kind = |length, factory| Kind {
            account: self.account,
            service: self.service.clone(),
            version: self.version.clone(),
            length,
            factory,
        };
        let of_factory = self.factory.map(|factory| (Basis::Factory, kind(Some(self.length), Some(factory))));
        let wider = [(Basis::Length, kind(Some(self.length), None)), (Basis::Version, kind(None, None))];
        of_factory.into_iter().chain(wider)
    }
}

/// What was learned of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lesson {
    /// The durations.
    pub durations: Sketch,
    /// When it was learned last.
    pub at: Timestamp,
}

impl Lesson {
    /// Adds what somebody else has learned.
    pub fn merge(&mut self, other: &Self) {
        self.durations.merge(&other.durations);
        self.at = self.at.max(other.at);
    }
}

/// What was learned of all kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    lessons: BTreeMap<Kind, Lesson>,
}

impl Learned {
    /// Learns that this work ran for so long, and ended now.
    pub fn learn(&mut self, work: &Work, ran: Duration, now: Timestamp) {
        let ms = u64::try_from(ran.as_millis()).unwrap_or(u64::MAX);
        for (_, kind) in work.kinds() {
            let lesson = self.lesson(kind);
            lesson.durations.add(ms);
            lesson.at = lesson.at.max(now);
        }
        self.forget_oldest();
    }

    /// Adds what somebody else has learned of a kind.
    pub fn merge(&mut self, kind: Kind, other: &Lesson) {
        self.lesson(kind).merge(other);
        self.forget_oldest();
    }

    /// How long this work is expected to run.
    pub fn expected(&self, work: &Work) -> Expected {
        let Some((basis, durations)) = self.durations(work) else { return Expected::UNKNOWN };
        let quantile = |part| durations.quantile(part).unwrap_or(0);
        Expected {
            p50_ms: quantile(Quantile::P50),
            p90_ms: quantile(Quantile::P90),
            samples: durations.samples(),
            basis,
        }
    }

    /// How much longer this work runs that has run for so long, in milliseconds; `None` when nothing is known of it, or
    /// when nothing like it ever ran so long.
    pub fn remaining(&self, work: &Work, part: Quantile, ran: Duration) -> Option<u64> {
        let ms = u64::try_from(ran.as_millis()).unwrap_or(u64::MAX);
        self.durations(work)?.1.remaining(part, ms)
    }

    /// What was learned, by kind.
    pub fn lessons(&self) -> impl Iterator<Item = (&Kind, &Lesson)> {
        self.lessons.iter()
    }

    /// Whether nothing was learned.
    pub fn is_empty(&self) -> bool {
        self.lessons.is_empty()
    }

    /// The most exact durations of which there are enough, else the widest of which there are any.
    fn durations(&self, work: &Work) -> Option<(Basis, &Sketch)> {
        let known = |(basis, kind)| Some((basis, &self.lessons.get(&kind)?.durations));
        let known: Vec<(Basis, &Sketch)> = work.kinds().filter_map(known).collect();
        let enough = known.iter().find(|(_, durations)| durations.samples() >= ENOUGH);
        enough.or_else(|| known.iter().rev().find(|(_, durations)| !durations.is_empty())).copied()
    }

    fn lesson(&mut self, kind: Kind) -> &mut Lesson {
        self.lessons.entry(kind).or_default()
    }

    fn forget_oldest(&mut self) {
        while self.lessons.len() > MAX_KINDS {
            let oldest = self.lessons.iter().min_by_key(|(_, lesson)| lesson.at);
            let oldest = oldest.map(|(kind, _)| kind.clone()).expect("there are too many");
            self.lessons.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixture::{at, instance_id, job, manifest};
    use crate::id::Epoch;
    use crate::transition::{JobEvent, Outcome, apply};

    const SECOND: Duration = Duration::from_secs(1);

    fn work(bytes: u64, factory: Option<u128>) -> Work {
        let mut work = Work::of(&job(1));
        work.length = Length::of_bytes(bytes);
        work.factory = factory.map(|number| FactoryId::new(at(0), number));
        work
    }

    fn about(told: u64, exact: u64) -> bool {
        told.abs_diff(exact) <= exact / 32
    }

    #[test]
    fn lengths_are_doublings() {
        let lengths = [0, 1, 2, 3, 4, 1 << 20, u64::MAX].map(|bytes| Length::of_bytes(bytes).number());
        assert_eq!(lengths, [0, 1, 2, 2, 3, 21, 64]);
    }

    #[test]
    fn the_most_exact_kind_of_which_enough_has_run_speaks() {
        let mut learned = Learned::default();
        let mine = work(1000, Some(1));
        assert_eq!(learned.expected(&mine), Expected::UNKNOWN);
        learned.learn(&work(1 << 30, Some(2)), SECOND * 500, at(1));
        let wide = learned.expected(&mine);
        assert!(wide.basis == Basis::Version && wide.samples == 1 && about(wide.p50_ms, 500_000), "{wide:?}");
        for second in 0..u64::from(ENOUGH) {
            learned.learn(&work(1001, None), SECOND * 100, at(second));
        }
        let alike = learned.expected(&mine);
        assert!(alike.basis == Basis::Length && about(alike.p90_ms, 100_000), "{alike:?}");
        for second in 0..u64::from(ENOUGH) {
            learned.learn(&mine, SECOND * 10, at(second));
        }
        let own = learned.expected(&mine);
        assert!(own.basis == Basis::Factory && own.samples == ENOUGH && about(own.p50_ms, 10_000), "{own:?}");
        assert_eq!(learned.expected(&Work { version: Version::new(9, 0, 0), ..mine }), Expected::UNKNOWN);
    }

    #[test]
    fn what_is_left_of_a_run_is_known_only_where_something_ran_longer() {
        let mut learned = Learned::default();
        let work = work(0, None);
        assert_eq!(learned.remaining(&work, Quantile::P50, SECOND), None);
        learned.learn(&work, SECOND * 100, at(0));
        assert!(
            learned
                .remaining(&work, Quantile::P50, SECOND * 40)
                .is_some_and(|left| about(left + 40_000, 100_000))
        );
        assert_eq!(learned.remaining(&work, Quantile::P50, SECOND * 101), None);
    }

    #[test]
    fn the_kinds_that_were_learned_longest_ago_are_forgotten() {
        let mut learned = Learned::default();
        for number in 0..MAX_KINDS as u64 + 200 {
            learned.learn(&work(1, Some(u128::from(number))), SECOND, at(number));
        }
        assert_eq!(learned.lessons().count(), MAX_KINDS);
        let (first, last) = (work(1, Some(0)), work(1, Some(MAX_KINDS as u128 + 199)));
        let of_factory = |work: &Work| learned.lessons.contains_key(&work.kinds().next().unwrap().1);
        assert!(!of_factory(&first) && of_factory(&last));
        assert_eq!(learned.expected(&first).basis, Basis::Length, "the wider kinds are learned all the time");
    }

    #[test]
    fn the_time_from_running_to_sealed_is_what_counts() {
        let step = |job: &Job, event, seconds| match apply(job, event, at(seconds)) {
            Outcome::Applied(job) => *job,
            outcome => panic!("{outcome:?}"),
        };
        let assigned = step(&job(1), JobEvent::Assign { instance: instance_id(1) }, 1);
        let epoch = Epoch(1);
        let running = step(&assigned, JobEvent::EngineRunning { epoch }, 10);
        let granted = step(&running, JobEvent::Grant { epoch, manifest: manifest() }, 52);
        assert_eq!(ran(&running, &granted), Some(SECOND * 42));
        assert_eq!(ran(&assigned, &granted), None, "when it began is not known");
        assert_eq!(ran(&granted, &step(&granted, JobEvent::Published { epoch }, 60)), None);
    }

    #[test]
    fn all_inputs_count_and_hostile_sizes_are_held() {
        let mut large = job(1);
        let location = crate::manifest::SealedObject::clone(&manifest().objects[0]);
        for slot in ["a", "b"] {
            let input = crate::job::PinnedInput {
                location: crate::location::Location { store: location.store, key: location.key.clone() },
                version: crate::location::ObjectVersion {
                    etag: "e".into(),
                    version_id: None,
                    size_bytes: u64::MAX,
                },
            };
            large.spec.inputs.insert(slot.parse().unwrap(), input);
        }
        assert_eq!(Work::of(&large).length, Length::of_bytes(u64::MAX));
    }

    proptest! {
        #[test]
        fn what_two_have_learned_is_what_one_would_have(
            runs in proptest::collection::vec((0..4u64, 0..3u128, any::<u64>(), any::<bool>(), 0..100u64), 0..60),
        ) {
            let (mut one, mut other, mut both) = (Learned::default(), Learned::default(), Learned::default());
            for (bytes, factory, ms, mine, second) in runs {
                let (work, ran) = (work(bytes, Some(factory)), Duration::from_millis(ms));
                if mine { one.learn(&work, ran, at(second)) } else { other.learn(&work, ran, at(second)) }
                both.learn(&work, ran, at(second));
            }
            for (kind, lesson) in other.lessons() {
                one.merge(kind.clone(), lesson);
            }
            prop_assert_eq!(one, both);
        }

        #[test]
        fn hostile_durations_do_no_harm(seconds in any::<u64>(), now in any::<u64>()) {
            let mut learned = Learned::default();
            learned.learn(&work(now, None), Duration::from_secs(seconds), Timestamp::from_millis(now));
            let expected = learned.expected(&work(now, None));
            prop_assert!(expected.p50_ms <= expected.p90_ms && expected.p90_ms <= LONGEST_MS + LONGEST_MS / 32);
        }
    }
}
