//! What a month has cost: counted from look to look, by what is there and its price.
//!
//! Between two looks an instance is taken to have been there all the time, or since it was first seen. So what comes and
//! goes between two looks is not counted, and what vanished is counted until the look before: the error is at most
//! one tick for each instance.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

const MS_PER_HOUR: u128 = 3_600_000;

/// What was spent in a month, up to a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// The month in UTC, such as `2026-11`.
    pub month: String,
    /// Millionths of a dollar.
    pub micros: u64,
    /// What is less than a millionth of a dollar, in (millionths of a dollar per hour) × milliseconds.
    pub rest: u64,
    /// Up to when.
    pub counted_at: Timestamp,
}

impl Spent {
    /// Nothing yet.
    pub fn beginning(now: Timestamp) -> Self {
        Self { month: month_of(now), micros: 0, rest: 0, counted_at: now }
    }

    /// Whether its month is over.
    pub fn is_over(&self, now: Timestamp) -> bool {
        now > self.counted_at && month_of(now) != self.month
    }

    /// The same at `now`, when instances with these prices (millionths of a dollar per hour) are there since these times.
    /// A new month begins at nothing; a clock that went back counts nothing.
    #[must_use]
    pub fn counted(&self, running: impl IntoIterator<Item = (u64, Timestamp)>, now: Timestamp) -> Self {
        if now <= self.counted_at {
            return self.clone();
        }
        let month = month_of(now);
        let (before, from) = if month == self.month {
            (u128::from(self.micros) * MS_PER_HOUR + u128::from(self.rest), self.counted_at)
        } else {
            (0, first_moment_of(&month).max(self.counted_at))
        };
        let cost =
            |(price, since): (u64, Timestamp)| u128::from(price) * now.since(from.max(since)).as_millis();
        let sum = running.into_iter().map(cost).fold(before, u128::saturating_add);
        Self {
            month,
            micros: u64::try_from(sum / MS_PER_HOUR).unwrap_or(u64::MAX),
            rest: u64::try_from(sum % MS_PER_HOUR).expect("below an hour in milliseconds"),
            counted_at: now,
        }
    }
}

fn month_of(time: Timestamp) -> String {
    time.to_string().chars().take(7).collect()
}

fn first_moment_of(month: &str) -> Timestamp {
    Timestamp::parse(&format!("{month}-01T00:00:00Z")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    #[test]
    fn what_runs_is_counted_from_look_to_look_and_nothing_is_lost_in_rounding() {
        let noon = at("2026-11-22T12:00:00Z");
        let mut spent = Spent::beginning(noon);
        for look in 1..=3_600_u64 {
            let now = Timestamp::from_millis(noon.as_millis() + look * 1000);
            spent = spent.counted([(1_000_001, noon), (7, noon)], now);
        }
        assert_eq!((spent.micros, spent.rest), (1_000_008, 0));
        assert_eq!(spent.counted([(u64::MAX, noon)], noon), spent, "a clock that went back");
    }

    #[test]
    fn an_instance_counts_since_it_is_there_and_a_month_begins_at_nothing() {
        let evening = at("2026-11-30T23:00:00Z");
        let spent = Spent { micros: 5, ..Spent::beginning(evening) };
        let half = at("2026-11-30T23:30:00Z");
        assert_eq!(spent.counted([(1_000, half)], at("2026-11-30T23:59:00Z")).micros, 5 + 483);
        let new_year = spent.counted([(1_000, evening)], at("2026-12-01T00:30:00Z"));
        assert_eq!((new_year.month.as_str(), new_year.micros), ("2026-12", 500));
        assert_eq!(spent.counted([], at("2026-12-01T00:30:00Z")).micros, 0);
        assert!(spent.is_over(at("2026-12-01T00:00:00Z")) && !spent.is_over(at("2026-11-30T23:59:59Z")));
        assert!(!spent.is_over(at("2026-10-30T00:00:00Z")), "a clock that went back");
        assert_eq!(spent.counted([(u64::MAX, evening); 9], at("9999-12-30T00:00:00Z")).micros, u64::MAX);
    }
}
