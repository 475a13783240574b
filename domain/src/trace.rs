//! Traces: which messages and log lines belong to one piece of work, in the words of W3C Trace Context.
//!
//! A job has one trace from its submission to its end, over all attempts: the caller's, where the call that submitted it
//! came in one, else its own, which is its id in another dress. So every part that knows the job knows its trace, also
//! after a restart.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::JobId;

/// Names a trace: 16 bytes, not all zero; 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId(NonZeroU128);

/// Names a step of a trace: 8 bytes, not all zero; 16 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId(NonZeroU64);

/// Where in which trace a message was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The step that sent it.
    pub span: SpanId,
    /// Whether the trace is to be recorded.
    pub sampled: bool,
}

/// Text that is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a W3C traceparent: 00, 32 and 16 hexadecimal digits in lower case and 2 of flags, joined by hyphens"
)]
pub struct InvalidTrace;

impl TraceId {
    /// The trace of a job that was submitted in none.
    pub fn of_job(job: JobId) -> Self {
        Self(NonZeroU128::new(job.bits()).unwrap_or(NonZeroU128::MIN))
    }
}

impl SpanId {
    /// A span with this number; zero is not one and becomes one.
    pub fn new(number: u64) -> Self {
        Self(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN))
    }
}

impl TraceContext {
    /// A step of a trace.
    pub const fn new(trace: TraceId, span: SpanId) -> Self {
        Self { trace, span, sampled: true }
    }

    /// The next step of the same trace.
    #[must_use]
    pub const fn child(self, span: SpanId) -> Self {
        Self { span, ..self }
    }
}

/// Digits of which none is upper-case, which `from_str_radix` would take.
fn digits(text: &str, length: usize) -> Result<u128, InvalidTrace> {
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != length || !text.bytes().all(lower_hex) {
        return Err(InvalidTrace);
    }
    u128::from_str_radix(text, 16).map_err(|_| InvalidTrace)
}

impl FromStr for TraceId {
    type Err = InvalidTrace;

    fn from_str(text: &str) -> Result<Self, InvalidTrace> {
        NonZeroU128::new(digits(text, 32)?).map(Self).ok_or(InvalidTrace)
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTrace;

    /// Reads a `traceparent`. Of a later version what is known of it counts, as the specification asks.
    fn from_str(text: &str) -> Result<Self, InvalidTrace> {
        let mut parts = text.splitn(5, '-');
        let mut part = || parts.next().ok_or(InvalidTrace);
        let (version, trace, span, flags) = (digits(part()?, 2)?, part()?, part()?, digits(part()?, 2)?);
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return Err(InvalidTrace);
        }
        let span = u64::try_from(digits(span, 16)?).ok().and_then(NonZeroU64::new).ok_or(InvalidTrace)?;
        Ok(Self { trace: trace.parse()?, span: SpanId(span), sampled: flags & 1 == 1 })
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TraceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{job, job_id};

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written_alike() {
        let context: TraceContext = GOOD.parse().unwrap();
        assert_eq!(context.to_string(), GOOD);
        assert!(context.sampled);
        let child = context.child(SpanId::new(7));
        assert_eq!(child.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000007-01");
        let later = format!("cc{}-what-the-future-brings", &GOOD[2..]);
        assert_eq!(later.parse::<TraceContext>().unwrap(), context);
        assert!(!GOOD.replace("-01", "-00").parse::<TraceContext>().unwrap().sampled);
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        let zeros = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let no_span = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01";
        let version = format!("ff{}", &GOOD[2..]);
        for bad in [
            "",
            "00",
            zeros,
            no_span,
            &version,
            &GOOD.to_uppercase(),
            &GOOD[..54],
            &format!("{GOOD}-x"),
            "+0-é",
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(InvalidTrace), "{bad}");
        }
    }

    #[test]
    fn a_job_has_its_callers_trace_else_its_own() {
        let mut traced = job(1);
        assert_eq!(traced.trace_id(), TraceId::of_job(job_id(1)));
        assert_ne!(job(2).trace_id(), traced.trace_id());
        let context: TraceContext = GOOD.parse().unwrap();
        traced.trace = Some(context.trace);
        assert_eq!(traced.trace_id(), context.trace);
        let text = serde_json::to_string(&traced).unwrap();
        assert_eq!(serde_json::from_str::<crate::job::Job>(&text).unwrap(), traced);
    }
}
