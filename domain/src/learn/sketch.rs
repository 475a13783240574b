//! A histogram of durations in integers: buckets that grow with the value, weights that fade with what comes after.
//!
//! A value below 16 ms has a bucket of its own; above, each doubling is cut into 16. So what a sketch says of a value is
//! off by at most a 32nd of it, and there are 563 buckets. A sample weighs 64; when all weigh more than 128
//! samples do, every weight is halved, and what becomes less than one is forgotten: what happened in the last hundred
//! runs counts, what happened before fades. Merging adds the weights, so that the sketch of two sets is that of their
//! union as long as nothing has to fade.

use serde::{Deserialize, Serialize};

/// Longest duration that is told from longer ones: ten years, in milliseconds.
pub const LONGEST_MS: u64 = 315_360_000_000;
/// Parts of a doubling.
const PARTS: u64 = 16;
/// One above the last bucket.
const BUCKETS: u16 = bucket(LONGEST_MS) + 1;
/// What one sample weighs.
const SAMPLE: u32 = 64;
/// What all samples together may weigh.
const FULL: u32 = 128 * SAMPLE;

/// What is known of a duration. Written as a list of pairs: bucket, weight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<(u16, u32)>", try_from = "Vec<(u16, u32)>")]
pub struct Sketch {
    /// Weights by bucket, in the order of buckets, none of them zero.
    weights: Vec<(u16, u32)>,
    /// Their sum, at most `FULL`.
    total: u32,
}

/// A list is not what a sketch is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a sketch is a list of [bucket, weight] with rising buckets below {BUCKETS} and weights above 0, {FULL} in all"
)]
pub struct InvalidSketch;

/// A part of the samples, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantile(u32);

impl Quantile {
    /// Half of the samples are not above it.
    pub const P50: Self = Self(500);
    /// Nine of ten samples are not above it.
    pub const P90: Self = Self(900);

    /// From thousandths; more than 1,000 count as 1,000.
    pub const fn thousandths(part: u32) -> Self {
        if part > 1000 { Self(1000) } else { Self(part) }
    }
}

impl Sketch {
    /// Adds one sample, in milliseconds; more than [`LONGEST_MS`] counts as that.
    pub fn add(&mut self, ms: u64) {
        self.add_weight(bucket(ms.min(LONGEST_MS)), SAMPLE);
        self.fade();
    }

    /// Adds all that another knows.
    pub fn merge(&mut self, other: &Self) {
        for &(bucket, weight) in &other.weights {
            self.add_weight(bucket, weight);
        }
        self.fade();
    }

    /// Whether nothing is known.
    pub const fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// How many samples count; those that have faded in part count together.
    pub const fn samples(&self) -> u32 {
        self.total.div_ceil(SAMPLE)
    }

    /// The value at this part of the samples (the nearest rank), in milliseconds, off by at most a 32nd of it; `None`
    /// when nothing is known.
    pub fn quantile(&self, part: Quantile) -> Option<u64> {
        self.quantile_above(part, None)
    }

    /// How much longer something runs that has run for `ms` already, by the samples that ran longer; `None` when none
    /// of them did.
    pub fn remaining(&self, part: Quantile, ms: u64) -> Option<u64> {
        let whole = self.quantile_above(part, Some(bucket(ms.min(LONGEST_MS))))?;
        Some(whole.saturating_sub(ms))
    }

    /// The quantile of those samples that are in a later bucket than `above`.
    fn quantile_above(&self, part: Quantile, above: Option<u16>) -> Option<u64> {
        let later = self.weights.iter().filter(|(bucket, _)| above.is_none_or(|above| *bucket > above));
        let total: u64 = later.clone().map(|(_, weight)| u64::from(*weight)).sum();
        let rank = (total * u64::from(part.0)).div_ceil(1000).max(1);
        let mut below = 0;
        for &(bucket, weight) in later {
            below += u64::from(weight);
            if below >= rank {
                return Some(middle(bucket));
            }
        }
        None
    }

    fn add_weight(&mut self, bucket: u16, weight: u32) {
        match self.weights.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(place) => self.weights[place].1 += weight,
            Err(place) => self.weights.insert(place, (bucket, weight)),
        }
        self.total += weight;
    }

    fn fade(&mut self) {
        while self.total > FULL {
            self.weights.iter_mut().for_each(|(_, weight)| *weight /= 2);
            self.weights.retain(|(_, weight)| *weight > 0);
            self.total = self.weights.iter().map(|(_, weight)| weight).sum();
        }
    }
}

impl From<Sketch> for Vec<(u16, u32)> {
    fn from(sketch: Sketch) -> Self {
        sketch.weights
    }
}

impl TryFrom<Vec<(u16, u32)>> for Sketch {
    type Error = InvalidSketch;

    fn try_from(weights: Vec<(u16, u32)>) -> Result<Self, InvalidSketch> {
        let rising = weights.is_sorted_by(|(one, _), (next, _)| one < next);
        let known = weights.iter().all(|&(bucket, weight)| bucket < BUCKETS && weight > 0);
        let total = weights.iter().try_fold(0u32, |sum, (_, weight)| sum.checked_add(*weight));
        match total.filter(|&total| rising && known && total <= FULL) {
            Some(total) => Ok(Self { weights, total }),
            None => Err(InvalidSketch),
        }
    }
}

/// The bucket of a duration of at most `LONGEST_MS`.
const fn bucket(ms: u64) -> u16 {
    if ms < PARTS {
        return ms as u16;
    }
    let power = ms.ilog2() as u64;
    let part = (ms >> (power - 4)) - PARTS;
    (PARTS * (power - 3) + part) as u16
}

/// The middle of a bucket, in milliseconds.
const fn middle(bucket: u16) -> u64 {
    let bucket = bucket as u64;
    if bucket < PARTS {
        return bucket;
    }
    let step = 1 << (bucket / PARTS - 1);
    (PARTS + bucket % PARTS) * step + (step - 1) / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(samples: &[u64]) -> Sketch {
        let mut sketch = Sketch::default();
        samples.iter().for_each(|&ms| sketch.add(ms));
        sketch
    }

    /// The sample of the nearest rank.
    fn exact(samples: &[u64], part: Quantile) -> u64 {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let rank = (sorted.len() * part.0 as usize).div_ceil(1000).max(1);
        sorted[rank - 1]
    }

    fn durations(most: usize) -> impl Strategy<Value = Vec<u64>> {
        let one = prop_oneof![0..40u64, 0..LONGEST_MS, Just(u64::MAX), Just(LONGEST_MS), Just(3_600_000)];
        proptest::collection::vec(one, 1..=most)
    }

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        assert_eq!(BUCKETS, 563);
        for at in 0..BUCKETS {
            assert_eq!(bucket(middle(at)), at);
        }
        for ms in (0..5000).chain([LONGEST_MS - 1, LONGEST_MS]) {
            assert!(bucket(ms) <= bucket(ms + 1) && bucket(ms + 1) - bucket(ms) <= 1, "{ms}");
        }
    }

    #[test]
    fn nothing_is_known_of_nothing() {
        let none = Sketch::default();
        assert!(none.is_empty());
        assert_eq!((none.quantile(Quantile::P50), none.remaining(Quantile::P50, 0)), (None, None));
        assert_eq!(none.samples(), 0);
    }

    #[test]
    fn what_is_left_goes_by_those_that_ran_longer() {
        let sketch = of(&[1000, 1000, 1000, 1000, 8000]);
        assert_eq!(sketch.quantile(Quantile::P50), Some(bucketed(1000)));
        assert_eq!(sketch.remaining(Quantile::P50, 2000), Some(bucketed(8000) - 2000));
        assert_eq!(sketch.remaining(Quantile::P90, 9000), None, "nothing ever ran so long");
    }

    fn bucketed(ms: u64) -> u64 {
        middle(bucket(ms))
    }

    #[test]
    fn new_behaviour_wins() {
        let mut sketch = of(&[60_000; 10_000]);
        (0..128).for_each(|_| sketch.add(1000));
        assert_eq!(sketch.quantile(Quantile::P50), Some(bucketed(1000)));
        (0..512).for_each(|_| sketch.add(1000));
        assert_eq!(sketch.quantile(Quantile::P90), Some(bucketed(1000)));
        assert!(sketch.samples() <= 128);
    }

    #[test]
    fn damaged_sketches_are_refused() {
        for text in ["[[3,64],[2,64]]", "[[3,64],[3,64]]", "[[3,0]]", "[[9999,1]]", "[[1,4294967295],[2,64]]"]
        {
            assert!(serde_json::from_str::<Sketch>(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_quantile_is_off_by_a_32nd_at_most(samples in durations(128), part in 0..1001u32) {
            let part = Quantile::thousandths(part);
            let (told, exact) = (of(&samples).quantile(part).unwrap(), exact(&samples, part).min(LONGEST_MS));
            prop_assert!(told.abs_diff(exact) <= exact / 32, "{told} for {exact}");
        }

        #[test]
        fn the_sketch_of_two_sets_is_that_of_their_union(one in durations(64), other in durations(64)) {
            let mut merged = of(&one);
            merged.merge(&of(&other));
            prop_assert_eq!(&merged, &of(&[one.clone(), other.clone()].concat()));
            let mut turned = of(&other);
            turned.merge(&of(&one));
            prop_assert_eq!(turned, merged);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn however_much_is_merged_it_stays_small_and_is_read_as_it_is_written(
            sets in proptest::collection::vec(durations(300), 1..8),
        ) {
            let mut all = Sketch::default();
            for set in &sets {
                all.merge(&of(set));
                all.merge(&all.clone());
                prop_assert!((1..=FULL).contains(&all.total) && all.weights.len() <= usize::from(BUCKETS));
                prop_assert_eq!(all.total, all.weights.iter().map(|(_, weight)| weight).sum::<u32>());
                let text = serde_json::to_string(&all).unwrap();
                prop_assert_eq!(serde_json::from_str::<Sketch>(&text).unwrap(), all.clone());
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_left_never_grows_beyond_the_longest(samples in durations(50), ran in any::<u64>()) {
            let sketch = of(&samples);
            if let Some(left) = sketch.remaining(Quantile::P90, ran) {
                prop_assert!(left <= LONGEST_MS && ran <= LONGEST_MS);
            }
        }
    }
}
