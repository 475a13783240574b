//! Settings of `up`: `telecine.toml` in the data folder, with the command line and environment over it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use telecine_agent::config::{CapacityConfig, LogFormat as AgentLogFormat};
use telecine_domain::autoscale::Policy;
use telecine_domain::id::RegionName;
use telecine_manager::{Autoscaling, ManagerConfig, PolicyChoice, Scheduling};

use super::pools::{self, Planned, PoolConfig};
use crate::failure::{Exit, Failure};
use crate::process::LogFormat;

const FILE_NAME: &str = "telecine.toml";
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(5);

/// Arguments of `up`; each is a setting of `telecine.toml` too and wins over it.
#[derive(Debug, Default, Args)]
#[command(
    after_help = "Examples:\n  telecine up --data ./data\n  telecine up --data ./data --listen 127.0.0.1:9000 --instances 2\n\nSettings may also stand in telecine.toml in the data folder, with the same names and underscores."
)]
pub(crate) struct Arguments {
    /// Settings file [default: telecine.toml in the data folder, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the API [default: 127.0.0.1:8080]
    #[arg(long, env = "TELECINE_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Address where agents reach the manager of the first region; those of others listen behind it [default: 127.0.0.1:8081]
    #[arg(long, env = "TELECINE_MANAGER_LISTEN", value_name = "ADDRESS")]
    manager_listen: Option<SocketAddr>,
    /// Address of /metrics, /healthz and /readyz of the manager [default: none]
    #[arg(long, env = "TELECINE_OBSERVE", value_name = "ADDRESS")]
    observe: Option<SocketAddr>,
    /// A region to run; may be repeated, the first is the default [default: local]
    #[arg(long = "region", env = "TELECINE_REGIONS", value_delimiter = ',', value_name = "NAME")]
    regions: Vec<RegionName>,
    /// Local instances in each region [default: 1]
    #[arg(long, env = "TELECINE_INSTANCES", value_name = "COUNT")]
    instances: Option<u32>,
    /// How long an attempt may be silent before it is lost [default: 60]
    #[arg(long, env = "TELECINE_LEASE_SECONDS", value_name = "SECONDS")]
    lease_seconds: Option<u64>,
    /// Log as lines for people or as JSON [default: text]
    #[arg(long, env = "TELECINE_LOG_FORMAT", value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

/// Everything an operator of `up` may choose.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UpConfig {
    /// Address of the API.
    pub listen: SocketAddr,
    /// Address of the first region's manager; the others listen on ports behind it.
    pub manager_listen: SocketAddr,
    /// Address of the manager's metrics and health.
    pub observe: Option<SocketAddr>,
    /// The regions, the default one first.
    pub regions: Vec<RegionName>,
    /// Local instances in each region, 1 unless given; not together with `pools`.
    pub instances: Option<u32>,
    /// The pools of local instances; one for each region when there is none.
    pub pools: Vec<PoolConfig>,
    /// How long an attempt may be silent, in seconds: 1 to 3,600.
    pub lease_seconds: u64,
    /// Longest time for agents to finish what they run when they are stopped, in seconds.
    pub drain_seconds: u64,
    /// The slice of the machine that each local instance offers; what is unset is detected.
    pub capacity: CapacityConfig,
    /// How jobs are ordered, shared and limited; see docs/scheduling.md.
    pub scheduling: Scheduling,
    /// How instances of declared pools are bought and given back; see docs/autoscaling.md.
    pub autoscaling: Autoscaling,
    /// The form of the log.
    pub log_format: LogChoice,
    /// Which log lines are written; see `tracing-subscriber`'s EnvFilter. TELECINE_LOG wins.
    pub log_filter: String,
}

/// The form of the log, as written in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogChoice {
    #[default]
    Text,
    Json,
}

impl From<LogChoice> for LogFormat {
    fn from(choice: LogChoice) -> Self {
        match choice {
            LogChoice::Text => Self::Text,
            LogChoice::Json => Self::Json,
        }
    }
}

impl From<LogChoice> for AgentLogFormat {
    fn from(choice: LogChoice) -> Self {
        match choice {
            LogChoice::Text => Self::Text,
            LogChoice::Json => Self::Json,
        }
    }
}

impl Default for UpConfig {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8080).into(),
            manager_listen: ([127, 0, 0, 1], 8081).into(),
            observe: None,
            regions: vec!["local".parse().expect("a constant name")],
            instances: None,
            pools: Vec::new(),
            lease_seconds: 60,
            drain_seconds: 60,
            capacity: CapacityConfig::default(),
            scheduling: Scheduling::default(),
            autoscaling: Autoscaling::default(),
            log_format: LogChoice::default(),
            log_filter: "info".to_owned(),
        }
    }
}

impl UpConfig {
    /// Reads the file, lays the arguments over it and checks the whole.
    ///
    /// # Errors
    /// When the file or a setting is wrong; the message names it.
    pub(super) fn load(data: &Path, arguments: Arguments) -> Result<Self, Failure> {
        let mut config = Self::read(data, arguments.config.as_deref())?.overlaid(arguments);
        config.read_policy()?;
        config.check()?;
        Ok(config)
    }

    fn read(data: &Path, given: Option<&Path>) -> Result<Self, Failure> {
        let path = given.map_or_else(|| data.join(FILE_NAME), Path::to_owned);
        let failed = |problem: String| Failure::new(Exit::Usage, format!("{}: {problem}", path.display()));
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|problem| failed(problem.to_string())),
            Err(problem) if problem.kind() == std::io::ErrorKind::NotFound && given.is_none() => {
                Ok(Self::default())
            }
            Err(problem) => Err(failed(problem.to_string())),
        }
    }

    /// A policy that is neither stock nor written out is a file.
    fn read_policy(&mut self) -> Result<(), Failure> {
        let PolicyChoice::Named(name) = &self.autoscaling.policy else { return Ok(()) };
        if Policy::stock(name).is_some() {
            return Ok(());
        }
        let failed = |problem: String| {
            Failure::usage(format!(
                "the setting `autoscaling.policy` is neither `thrift` nor `calm`, and as a file: {name}: {problem}"
            ))
        };
        let text = std::fs::read_to_string(name).map_err(|problem| failed(problem.to_string()))?;
        let policy: Policy = toml::from_str(&text).map_err(|problem| failed(problem.to_string()))?;
        self.autoscaling.policy = PolicyChoice::Inline(Box::new(policy));
        Ok(())
    }

    /// Whether instances come and go by themselves: those of declared pools do unless that is switched off.
    pub(super) fn scales(&self) -> bool {
        !self.pools.is_empty() && self.autoscaling.enabled.unwrap_or(true)
    }

    fn overlaid(self, arguments: Arguments) -> Self {
        let log_format = arguments.log_format.map(|format| match format {
            LogFormat::Text => LogChoice::Text,
            LogFormat::Json => LogChoice::Json,
        });
        Self {
            listen: arguments.listen.unwrap_or(self.listen),
            manager_listen: arguments.manager_listen.unwrap_or(self.manager_listen),
            observe: arguments.observe.or(self.observe),
            regions: if arguments.regions.is_empty() { self.regions } else { arguments.regions },
            instances: arguments.instances.or(self.instances),
            lease_seconds: arguments.lease_seconds.unwrap_or(self.lease_seconds),
            log_format: log_format.unwrap_or(self.log_format),
            ..self
        }
    }

    fn check(&self) -> Result<(), Failure> {
        let wrong =
            |setting: &str, problem: &str| Err(Failure::usage(format!("the setting `{setting}`: {problem}")));
        if self.regions.is_empty() {
            return wrong("regions", "at least one region is needed");
        }
        if !(1..=3600).contains(&self.lease_seconds) {
            return wrong("lease_seconds", "1 to 3,600 seconds are possible");
        }
        if self.instances.is_some_and(|instances| instances > 64) {
            return wrong("instances", "at most 64 local instances in a region are possible");
        }
        if !self.pools.is_empty() && (self.instances.is_some() || self.capacity != CapacityConfig::default())
        {
            return wrong(
                "pools",
                "with it each pool says how many instances of which shape there are; leave `instances` and `capacity` out",
            );
        }
        if self.pools.is_empty() && self.autoscaling.enabled == Some(true) {
            return wrong("autoscaling.enabled", "there is nothing to scale without `pools`; declare some");
        }
        if self.listen == self.manager_listen && self.listen.port() != 0 {
            return wrong("manager_listen", "it is the address of the API; two different ones are needed");
        }
        if self.observe.is_some_and(|it| it.port() != 0 && (it == self.listen || it == self.manager_listen)) {
            return wrong("observe", "it is the address of the API or of the manager; another one is needed");
        }
        let mut regions = self.regions.clone();
        regions.sort();
        regions.dedup();
        if regions.len() < self.regions.len() {
            return wrong("regions", "a region is named twice");
        }
        let first = self.manager(&self.regions[0], self.manager_listen);
        first.validate().map_err(|problem| Failure::usage(problem.to_string()))
    }

    /// The settings of a region's manager. Metrics and health are the process's: the first manager serves them, for
    /// every region.
    pub(super) fn manager(&self, region: &RegionName, listen: SocketAddr) -> ManagerConfig {
        let lease = Duration::from_secs(self.lease_seconds);
        let observe = self.observe.filter(|_| self.regions.first() == Some(region));
        ManagerConfig {
            id: region.to_string(),
            regions: vec![region.clone()],
            listen: listen.to_string(),
            observe: observe.map(|address| address.to_string()),
            observed: self.regions.clone(),
            lease,
            heartbeat: (lease / 4).min(LONGEST_HEARTBEAT),
            scheduling: self.scheduling.clone(),
            autoscaling: self.autoscaling.clone(),
            ..ManagerConfig::default()
        }
    }

    /// The pools of this machine: the declared ones, else one for each region.
    ///
    /// # Errors
    /// The pool that cannot be, and why.
    pub(super) fn pools(&self, data: &Path) -> Result<Vec<Planned>, Failure> {
        if self.pools.is_empty() {
            return Ok(pools::shared(&self.regions, self.instances.unwrap_or(1), self.capacity, data));
        }
        pools::declared(&self.pools, &self.regions, self.scales(), data)
            .map_err(|problem| Failure::usage(format!("the setting `pools`: {problem}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, arguments: Arguments) -> Result<UpConfig, Failure> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), text).unwrap();
        UpConfig::load(folder.path(), arguments)
    }

    #[test]
    fn arguments_win_over_the_file_and_the_file_over_defaults() {
        let arguments = Arguments { lease_seconds: Some(3), ..Arguments::default() };
        let config = load("instances = 2\nlease_seconds = 9\n", arguments).unwrap();
        assert_eq!((config.instances, config.lease_seconds, config.drain_seconds), (Some(2), 3, 60));
        let first = config.manager(&config.regions[0], config.manager_listen);
        assert_eq!(first.heartbeat, Duration::from_millis(750));
    }

    #[test]
    fn declared_pools_are_scaled_by_a_stock_policy_a_file_or_a_table() {
        const POOL: &str =
            "\n[[pools]]\nname = \"a\"\ncpu_milli = 1\nmemory_bytes = 1\nprice_usd_per_hour = 1.0\nmax = 1\n";
        let load = |text: &str| load(&format!("{text}{POOL}"), Arguments::default()).unwrap();
        assert!(load("").scales() && !load("[autoscaling]\nenabled = false").scales());
        assert!(
            !super::tests::load("", Arguments::default()).unwrap().scales(),
            "no pools, nothing to scale"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "settle_ms = 9\n").unwrap();
        let named = load(&format!("[autoscaling]\npolicy = \"{}\"", file.path().display()));
        let written = load("[autoscaling.policy]\nsettle_ms = 9");
        assert_eq!(named.autoscaling, written.autoscaling);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("colour = 1", "colour"),
            ("regions = []", "regions"),
            ("regions = [\"a\", \"a\"]", "regions"),
            ("lease_seconds = 0", "lease_seconds"),
            (
                "instances = 2\n[[pools]]\nname = \"a\"\ncpu_milli = 1\nmemory_bytes = 1\nprice_usd_per_hour = 0.0\nmax = 1",
                "pools",
            ),
            ("[[pools]]\nname = \"A\"", "pool name"),
            ("instances = 100", "instances"),
            ("manager_listen = \"127.0.0.1:8080\"", "manager_listen"),
            ("observe = \"127.0.0.1:8081\"", "observe"),
            ("[scheduling]\naging_every = 1", "aging_every"),
            ("[autoscaling]\ntick_seconds = 0", "autoscaling.tick_seconds"),
            ("[autoscaling]\nenabled = true", "autoscaling.enabled"),
            ("[autoscaling]\npolicy = \"/nonexistent/policy.toml\"", "/nonexistent/policy.toml"),
            ("[autoscaling.policy]\ncolour = 1", "colour"),
            ("[autoscaling.policy.marks]\nlow = 900\nmiddle = 100", "900"),
            ("[scheduling.account_limits]\nsomebody = 1", "somebody"),
        ] {
            let failure = load(text, Arguments::default()).unwrap_err();
            assert!(failure.to_string().contains(named), "{text}: {failure}");
            assert_eq!(failure.exit, Exit::Usage);
        }
        let missing = Arguments { config: Some("/nonexistent.toml".into()), ..Arguments::default() };
        assert!(
            UpConfig::load(Path::new("/"), missing).unwrap_err().to_string().contains("/nonexistent.toml")
        );
    }
}
