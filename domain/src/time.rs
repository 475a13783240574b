//! Points in time, as milliseconds since the Unix epoch, written as RFC 3339 in UTC.
//!
//! The domain never asks what time it is: `now` is always an argument.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time: milliseconds since 1970-01-01T00:00:00Z. Written as RFC 3339 with three decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

/// A text is not an RFC 3339 time between 1970 and 9999.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an RFC 3339 time such as 2026-11-22T15:04:05Z")]
pub struct InvalidTimestamp(String);

/// The last time that can be written in RFC 3339 at every offset (what the `jiff` crate accepts).
const LAST_MILLIS: u64 = 253_402_207_199_999;

impl Timestamp {
    /// From milliseconds since the Unix epoch; values past the year 9999 are held near its end.
    pub const fn from_millis(millis: u64) -> Self {
        if millis > LAST_MILLIS { Self(LAST_MILLIS) } else { Self(millis) }
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// `self + duration`, held near the end of the year 9999.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self::from_millis(self.0.saturating_add(millis))
    }

    /// Time from `earlier` to `self`, zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Reads RFC 3339, any offset.
    ///
    /// # Errors
    /// When the text is something else, or lies before 1970.
    pub fn parse(text: &str) -> Result<Self, InvalidTimestamp> {
        let invalid = || InvalidTimestamp(text.chars().take(64).collect());
        let parsed: jiff::Timestamp = text.parse().map_err(|_| invalid())?;
        let millis = u64::try_from(parsed.as_millisecond()).map_err(|_| invalid())?;
        Ok(Self::from_millis(millis))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0).expect("bounded by LAST_MILLIS");
        let time = jiff::Timestamp::from_millisecond(millis).expect("bounded by LAST_MILLIS");
        write!(f, "{time:.3}")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_and_read_as_rfc_3339() {
        let time = Timestamp::from_millis(1_795_359_845_120);
        assert_eq!(time.to_string(), "2026-11-22T15:04:05.120Z");
        assert_eq!(Timestamp::parse(&time.to_string()), Ok(time));
        assert_eq!(Timestamp::parse("2026-11-22T16:04:05.12+01:00"), Ok(time));
        assert!(Timestamp::parse("yesterday").is_err());
        assert!(Timestamp::parse("1969-12-31T23:59:59Z").is_err());
    }

    #[test]
    fn never_overflows() {
        let end = Timestamp::from_millis(u64::MAX);
        assert_eq!(end.to_string(), "9999-12-30T21:59:59.999Z");
        assert_eq!(end.after(Duration::MAX), end);
        assert_eq!(Timestamp::from_millis(5).since(end), Duration::ZERO);
    }
}
