//! What an operator may choose about autoscaling; docs/autoscaling.md says what each setting does.

use std::fmt;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use telecine_core::autoscale::Settings;
use telecine_domain::autoscale::Policy;

/// Settings of the autoscaler, the `[autoscaling]` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Autoscaling {
    /// Whether the manager decides and launches; it always writes down what waits. What starts it decides when absent.
    pub enabled: Option<bool>,
    /// `thrift`, `calm`, a policy file, or a policy written out.
    pub policy: PolicyChoice,
    /// Time between two decisions: 1 to 300 seconds.
    pub tick_seconds: u64,
    /// An instance that never said hello for so long does not boot: 10 seconds to 2 hours.
    pub boot_limit_seconds: u64,
    /// How long a job is expected to run of which nothing is known: 1 second to 30 days.
    pub expected_run_seconds: u64,
}

/// A policy as it is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyChoice {
    /// A stock policy, or the path of a file for whoever reads the settings.
    Named(String),
    /// Written out.
    Inline(Box<Policy>),
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self {
            enabled: None,
            policy: PolicyChoice::Named("thrift".to_owned()),
            tick_seconds: 5,
            boot_limit_seconds: 600,
            expected_run_seconds: 300,
        }
    }
}

impl<'de> Deserialize<'de> for PolicyChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ChoiceVisitor)
    }
}

struct ChoiceVisitor;

impl<'de> Visitor<'de> for ChoiceVisitor {
    type Value = PolicyChoice;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`thrift`, `calm`, the path of a policy file, or a policy as a table")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<PolicyChoice, E> {
        Ok(PolicyChoice::Named(name.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PolicyChoice, A::Error> {
        Policy::deserialize(MapAccessDeserializer::new(map))
            .map(|policy| PolicyChoice::Inline(Box::new(policy)))
    }
}

impl Autoscaling {
    /// Whether the manager decides and launches.
    pub fn is_enabled(&self) -> bool {
        self.enabled.unwrap_or(false)
    }

    /// The first setting that cannot be, and what would be right.
    pub(crate) fn problem(&self) -> Option<(&'static str, String)> {
        let day = 24 * 3600;
        if !(1..=300).contains(&self.tick_seconds) {
            return Some(("autoscaling.tick_seconds", "1 to 300".to_owned()));
        }
        if !(10..=7200).contains(&self.boot_limit_seconds) {
            return Some(("autoscaling.boot_limit_seconds", "10 to 7200".to_owned()));
        }
        if !(1..=30 * day).contains(&self.expected_run_seconds) {
            return Some(("autoscaling.expected_run_seconds", "1 to 2592000 (30 days)".to_owned()));
        }
        match self.chosen() {
            Ok(policy) => policy.check().err().map(|problem| ("autoscaling.policy", problem.to_string())),
            Err(problem) => Some(("autoscaling.policy", problem)),
        }
    }

    /// How long a job is expected to run of which nothing is known.
    pub(crate) fn expected_run(&self) -> Duration {
        Duration::from_secs(self.expected_run_seconds)
    }

    /// Time between two decisions.
    pub(crate) fn tick(&self) -> Duration {
        Duration::from_secs(self.tick_seconds)
    }

    /// What core decides by.
    pub(crate) fn settings(&self) -> Settings {
        let policy = self.chosen().unwrap_or_else(|_| Policy::thrift());
        Settings { policy, boot_limit: Duration::from_secs(self.boot_limit_seconds) }
    }

    fn chosen(&self) -> Result<Policy, String> {
        match &self.policy {
            PolicyChoice::Inline(policy) => Ok(policy.as_ref().clone()),
            PolicyChoice::Named(name) => Policy::stock(name).ok_or_else(|| {
                format!("there is no stock policy `{name}`; choose `thrift`, `calm` or a policy file")
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Autoscaling, String> {
        let read: Autoscaling = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match read.problem() {
            Some((setting, problem)) => Err(format!("{setting}: {problem}")),
            None => Ok(read),
        }
    }

    #[test]
    fn a_policy_is_named_or_written_out() {
        assert_eq!(Autoscaling::default().problem(), None);
        assert_eq!(read("{}").unwrap().settings().policy, Policy::thrift());
        assert_eq!(read(r#"{"policy": "calm"}"#).unwrap().settings().policy, Policy::calm());
        let inline = read(r#"{"policy": {"settle_ms": 7}, "boot_limit_seconds": 60}"#).unwrap().settings();
        assert_eq!((inline.policy.settle_ms, inline.boot_limit), (7, Duration::from_secs(60)));
        assert!(!Autoscaling::default().is_enabled());
    }

    #[test]
    fn nonsense_is_named() {
        for (text, named) in [
            (r#"{"tick_seconds": 0}"#, "autoscaling.tick_seconds"),
            (r#"{"boot_limit_seconds": 1}"#, "autoscaling.boot_limit_seconds"),
            (r#"{"expected_run_seconds": 0}"#, "autoscaling.expected_run_seconds"),
            (r#"{"policy": "generous"}"#, "generous"),
            (r#"{"policy": {"colour": 1}}"#, "colour"),
            (r#"{"policy": {"marks": {"low": 900, "middle": 100}}}"#, "900"),
            (r#"{"policy": 7}"#, "policy file"),
            (r#"{"colour": 1}"#, "colour"),
        ] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains(named), "{text}: {problem}");
        }
    }
}
