//! What may be chosen about a manager. The defaults run on a laptop.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use telecine_domain::id::RegionName;
use telecine_proto::clock::Clock;
use telecine_proto::identity::is_manager_id;
use telecine_proto::serve::Limits;

use crate::autoscaling::Autoscaling;
use crate::scheduling::Scheduling;

/// Settings of a manager.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManagerConfig {
    /// Its name, unique among the managers of its regions: 1 to 64 characters of a-z, 0-9, - and _.
    pub id: String,
    /// The regions it runs, or stands by for; the first is the one its certificate names.
    pub regions: Vec<RegionName>,
    /// Where agents connect, `host:port`.
    pub listen: String,
    /// The addresses under which agents reach the region's managers, in the order to try. Empty: the one they know.
    pub advertise: Vec<String>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served, `host:port`; nowhere when absent.
    pub observe: Option<String>,
    /// The regions that `/readyz` tells of; its own when empty. For the one of several managers in a process that answers
    /// for all of them.
    #[serde(skip)]
    pub observed: Vec<RegionName>,
    /// How long an attempt may be silent before it is lost.
    #[serde(rename = "lease_seconds", deserialize_with = "seconds")]
    pub lease: Duration,
    /// How often agents are to report.
    #[serde(rename = "heartbeat_seconds", deserialize_with = "seconds")]
    pub heartbeat: Duration,
    /// How long a leadership lasts without being renewed.
    #[serde(rename = "leadership_seconds", deserialize_with = "seconds")]
    pub leadership: Duration,
    /// How often live jobs are looked through for those to be stopped, in case a hint was lost.
    #[serde(rename = "stop_poll_seconds", deserialize_with = "seconds")]
    pub stop_poll: Duration,
    /// How often the whole queue is compared with the table when nothing is known to have changed.
    #[serde(rename = "sweep_seconds", deserialize_with = "seconds")]
    pub sweep: Duration,
    /// How often it is asked whether somebody watches a live job.
    #[serde(rename = "watch_poll_seconds", deserialize_with = "seconds")]
    pub watch_poll: Duration,
    /// Life of a worker's certificate.
    #[serde(rename = "worker_certificate_seconds", deserialize_with = "seconds")]
    pub worker_certificate: Duration,
    /// Life of a coordinator's and of the manager's own certificate.
    #[serde(rename = "certificate_seconds", deserialize_with = "seconds")]
    pub certificate: Duration,
    /// Longest time for what is under way to end when the manager stops.
    #[serde(rename = "drain_seconds", deserialize_with = "seconds")]
    pub drain: Duration,
    /// How jobs are ordered, shared and limited.
    pub scheduling: Scheduling,
    /// How instances are bought and given back.
    pub autoscaling: Autoscaling,
    /// What the listener allows.
    #[serde(skip)]
    pub limits: Limits,
    /// What time it is; simulated in tests.
    #[serde(skip)]
    pub clock: Clock,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            id: "manager".to_owned(),
            regions: vec!["local".parse().expect("a constant name")],
            listen: "127.0.0.1:8081".to_owned(),
            advertise: Vec::new(),
            observe: None,
            observed: Vec::new(),
            lease: Duration::from_secs(60),
            heartbeat: Duration::from_secs(5),
            leadership: Duration::from_secs(6),
            stop_poll: Duration::from_secs(1),
            sweep: Duration::from_secs(30),
            watch_poll: Duration::from_secs(5),
            worker_certificate: Duration::from_secs(30 * 60),
            certificate: Duration::from_secs(24 * 3600),
            drain: Duration::from_secs(10),
            scheduling: Scheduling::default(),
            autoscaling: Autoscaling::default(),
            limits: Limits::default(),
            clock: Clock::System,
        }
    }
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
}

/// A setting that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the setting `{setting}` of the manager is not valid: {problem}")]
pub struct InvalidConfig {
    /// Which.
    pub setting: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl ManagerConfig {
    /// Checks every setting, before anything is bound.
    ///
    /// # Errors
    /// The first setting that cannot be.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let check = |holds: bool, setting, problem: &str| {
            if holds { Ok(()) } else { Err(InvalidConfig { setting, problem: problem.to_owned() }) }
        };
        check(is_manager_id(&self.id), "id", "1 to 64 characters of a-z, 0-9, - and _ are needed")?;
        check(!self.regions.is_empty(), "regions", "a manager runs at least one region")?;
        let mut seen = self.regions.clone();
        seen.sort();
        seen.dedup();
        check(seen.len() == self.regions.len(), "regions", "a region is named twice")?;
        check(
            !self.heartbeat.is_zero() && self.heartbeat * 2 <= self.lease,
            "heartbeat_seconds",
            "it must be above 0 and at most half of `lease_seconds`, so that one lost heartbeat loses nothing",
        )?;
        let hour = Duration::from_secs(3600);
        check(self.lease <= hour, "lease_seconds", "more than an hour makes a lost instance stall its jobs")?;
        check(!self.leadership.is_zero(), "leadership_seconds", "it must be above 0")?;
        check(!self.stop_poll.is_zero(), "stop_poll_seconds", "it must be above 0")?;
        check(!self.sweep.is_zero(), "sweep_seconds", "it must be above 0")?;
        check(!self.watch_poll.is_zero(), "watch_poll_seconds", "it must be above 0")?;
        if let Some((setting, problem)) = self.scheduling.problem() {
            check(false, setting, problem)?;
        }
        if let Some((setting, problem)) = self.autoscaling.problem() {
            check(false, setting, &problem)?;
        }
        let lease = self.lease;
        check(
            self.worker_certificate >= lease * 2,
            "worker_certificate_seconds",
            "it must be at least two leases",
        )?;
        check(self.certificate >= lease * 2, "certificate_seconds", "it must be at least two leases")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_nonsense_is_named() {
        assert_eq!(ManagerConfig::default().validate(), Ok(()));
        let second = Duration::from_secs(1);
        let region: RegionName = "a".parse().unwrap();
        for (config, setting) in [
            (ManagerConfig { id: "A b".to_owned(), ..Default::default() }, "id"),
            (ManagerConfig { regions: Vec::new(), ..Default::default() }, "regions"),
            (ManagerConfig { regions: vec![region.clone(), region], ..Default::default() }, "regions"),
            (ManagerConfig { lease: second, heartbeat: second, ..Default::default() }, "heartbeat_seconds"),
            (ManagerConfig { lease: second * 7200, ..Default::default() }, "lease_seconds"),
            (ManagerConfig { leadership: Duration::ZERO, ..Default::default() }, "leadership_seconds"),
            (
                ManagerConfig { worker_certificate: second, ..Default::default() },
                "worker_certificate_seconds",
            ),
        ] {
            assert_eq!(config.validate().unwrap_err().setting, setting);
        }
    }

    #[test]
    fn unknown_settings_are_refused() {
        let read = |text| serde_json::from_str::<ManagerConfig>(text);
        assert_eq!(read(r#"{"lease_seconds": 2.5}"#).unwrap().lease, Duration::from_millis(2500));
        assert!(read(r#"{"lease": 5}"#).is_err() && read(r#"{"lease_seconds": -1}"#).is_err());
    }
}
