//! Identifiers: a prefix that names the kind, then 26 characters that sort by time of creation.
//!
//! The 26 characters are Crockford base 32 (lower case) of 48 bits of milliseconds and 80 random bits, the layout of a
//! ULID. An identifier exists only if it parses; there is no way to hold an invalid one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::time::Timestamp;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const BODY_LENGTH: usize = 26;

/// A text is not an identifier of the kind asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{text}` is not {article} {kind} id ({prefix}_ and 26 characters of 0-9 and a-z without i, l, o, u)"
)]
pub struct InvalidId {
    text: String,
    kind: &'static str,
    article: &'static str,
    prefix: &'static str,
}

fn encode(value: u128) -> String {
    (0..BODY_LENGTH)
        .map(|i| {
            let shift = 5 * (BODY_LENGTH - 1 - i);
            char::from(ALPHABET[((value >> shift) & 31) as usize])
        })
        .collect()
}

fn decode(body: &str) -> Option<u128> {
    if body.len() != BODY_LENGTH || body.as_bytes()[0] > b'7' {
        return None;
    }
    body.bytes().try_fold(0u128, |value, byte| {
        let digit = ALPHABET.iter().position(|&letter| letter == byte)?;
        Some(value << 5 | digit as u128)
    })
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $article:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// The prefix, without the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// Makes an identifier from the time of creation and random bits (80 of them are used).
            pub const fn new(created_at: Timestamp, random: u128) -> Self {
                let time = (created_at.as_millis() as u128) & ((1 << 48) - 1);
                Self((time << 80) | (random & ((1 << 80) - 1)))
            }

            /// All of it, as a number.
            pub const fn bits(self) -> u128 {
                self.0
            }

            /// The identifier with these bits.
            pub const fn from_bits(bits: u128) -> Self {
                Self(bits)
            }

            /// When it was made, to the millisecond.
            pub const fn created_at(self) -> Timestamp {
                Timestamp::from_millis((self.0 >> 80) as u64)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}_{}", $prefix, encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                text.strip_prefix(concat!($prefix, "_")).and_then(decode).map(Self).ok_or_else(|| InvalidId {
                    text: text.chars().take(64).collect(),
                    kind: $kind,
                    article: $article,
                    prefix: $prefix,
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

identifier!(/// A customer's account; every record belongs to one.
    AccountId, "acc", "an", "account");
identifier!(/// A job.
    JobId, "job", "a", "job");
identifier!(/// A factory.
    FactoryId, "fac", "a", "factory");
identifier!(/// A store.
    StoreId, "sto", "a", "store");
identifier!(/// A watch rule of a factory.
    WatchRuleId, "rul", "a", "watch rule");
identifier!(/// An instance, as long as its agent's data folder lives.
    InstanceId, "ins", "an", "instance");
identifier!(/// An API key; the secret part is not in it.
    ApiKeyId, "key", "an", "API key");

impl AccountId {
    /// The platform's own account: engine versions published by it are offered to every account.
    pub const PLATFORM: Self = Self(0);
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(/// Number of an attempt inside its job, from 1.
    AttemptNumber(u32));
counter!(/// Number of the right to run a job, from 1; grows with each assignment and never goes back.
    Epoch(u64));
counter!(/// Number of a manager's leadership of a region, from 1.
    Term(u64));

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if is_name(text, $max) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidName { text: text.chars().take(64).collect(), kind: $kind, max: $max })
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A text may not be used as the name of a service, region, pool or composition slot.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a {kind} name (1 to {max} characters of a-z, 0-9, - and _, starting with a letter)")]
pub struct InvalidName {
    text: String,
    kind: &'static str,
    max: usize,
}

fn is_name(text: &str, max: usize) -> bool {
    text.len() <= max
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

name!(/// A kind of work users ask for, such as `transform`.
    ServiceName, "service", 40);
name!(/// A region, such as `local` or `eu-central-1`.
    RegionName, "region", 40);
name!(/// A pool of instances of one shape and one market.
    PoolName, "pool", 40);
name!(/// The name of an input or output inside a composition, such as `source`.
    SlotName, "slot", 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_parse_back_and_sort_by_time() {
        let early = JobId::new(Timestamp::from_millis(1), u128::MAX);
        let late = JobId::new(Timestamp::from_millis(2), 0);
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(early.to_string().parse(), Ok(early));
        assert_eq!(late.created_at(), Timestamp::from_millis(2));
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        let id = JobId::new(Timestamp::from_millis(7), 9).to_string();
        for text in [
            "",
            "job_",
            &id.to_uppercase(),
            &id.replace("job", "fac"),
            &format!("{id}0"),
            "job_zzzzzzzzzzzzzzzzzzzzzzzzzz",
        ] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
        assert!("é".repeat(13).parse::<JobId>().is_err());
    }

    #[test]
    fn names_are_plain_words() {
        assert!("eu-central-1".parse::<RegionName>().is_ok());
        for text in ["", "1st", "Local", "a b", "a/b", &"a".repeat(41)] {
            assert!(text.parse::<RegionName>().is_err(), "{text}");
        }
    }
}
