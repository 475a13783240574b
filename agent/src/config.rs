//! What an operator decides about an agent: a TOML file, overridden by `TELECINE_AGENT_…` variables.
//!
//! Defaults run on a laptop. Unknown keys and variables are refused, and everything is checked before anything binds.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use telecine_domain::id::{InstanceId, PoolName, RegionName};
use telecine_domain::instance::RuntimeKind;
use telecine_domain::resources::Resources;
use toml::{Table, Value};

const PREFIX: &str = "TELECINE_AGENT_";
/// Names the file itself; read by the command line.
const FILE_VARIABLE: &str = "TELECINE_AGENT_CONFIG";

/// Everything an agent is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// Where the agent keeps its identity and its attempts. Absolute.
    pub data_folder: PathBuf,
    /// The region it works for.
    pub region: RegionName,
    /// The pool it belongs to.
    pub pool: PoolName,
    /// Its id. Made once and kept in the data folder when absent; refused when the folder holds another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// Addresses (host:port) of managers, in the order to try.
    pub managers: Vec<String>,
    /// Certificate of the platform's authority, PEM.
    pub ca_file: PathBuf,
    /// The token that lets this instance join.
    pub join_token_file: PathBuf,
    /// The slice of the machine that jobs may use; what is unset is detected.
    pub capacity: CapacityConfig,
    /// The ways to run engines that are allowed here.
    pub runtimes: BTreeSet<RuntimeKind>,
    /// Docker's socket.
    pub docker_socket: PathBuf,
    /// User id engines run as. Not 0.
    pub engine_uid: u32,
    /// Group id engines run as. Not 0.
    pub engine_gid: u32,
    /// Most processes and threads of one engine.
    pub pids_limit: u32,
    /// Memory for an attempt's block cache, in bytes.
    pub mount_cache_bytes: u64,
    /// Disk for an attempt's outputs on their way to an object store, in bytes; an attempt that reserves scratch
    /// space may use that instead when it is more.
    pub mount_spill_bytes: u64,
    /// Below this much free space in the data folder the instance takes no work, in bytes.
    pub minimum_free_bytes: u64,
    /// Where metrics are served, when they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// Where whoever watches the provider says that this instance is taken away; read again and again. Absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice_file: Option<PathBuf>,
    /// How long before its end what the instance runs is interrupted, in seconds; at most half of the time that was left
    /// when the end was announced.
    pub notice_margin_seconds: u32,
    /// How log lines are written.
    pub log_format: LogFormat,
}

/// The slice of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapacityConfig {
    /// Thousandths of a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u64>,
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Bytes of scratch space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch_bytes: Option<u64>,
    /// Whole GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u64>,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("agent configuration {path}: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or holds an unknown key or a value of the wrong kind.
    #[error("agent configuration {origin}: {message}")]
    Content {
        /// The file, or the environment.
        origin: String,
        /// What is wrong and where.
        message: String,
    },
    /// A variable is not one of ours.
    #[error(
        "environment variable {0} is not a setting of the agent; settings are named {PREFIX}<KEY> as in the file"
    )]
    UnknownVariable(String),
    /// A value makes no sense.
    #[error("agent configuration, {field}: {message}")]
    Invalid {
        /// The key.
        field: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
}

impl Default for AgentConfig {
    fn default() -> Self {
        let data_folder = PathBuf::from("/var/lib/telecine/agent");
        Self {
            region: "local".parse().expect("a region name"),
            pool: "default".parse().expect("a pool name"),
            instance_id: None,
            managers: vec!["127.0.0.1:8081".to_owned()],
            ca_file: data_folder.join("ca.pem"),
            join_token_file: data_folder.join("join-token"),
            data_folder,
            capacity: CapacityConfig::default(),
            runtimes: [RuntimeKind::Docker].into(),
            docker_socket: "/var/run/docker.sock".into(),
            engine_uid: 65534,
            engine_gid: 65534,
            pids_limit: 512,
            mount_cache_bytes: 256 << 20,
            mount_spill_bytes: 8 << 30,
            minimum_free_bytes: 1 << 30,
            metrics_listen: None,
            notice_file: None,
            notice_margin_seconds: 30,
            log_format: LogFormat::Text,
        }
    }
}

impl AgentConfig {
    /// Reads `path` (defaults when `None`), lays the environment over it, and checks the whole.
    ///
    /// # Errors
    /// When a file, a variable or a value is wrong; the message names it.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let text = match path {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?,
        };
        let origin = path.map_or("(defaults)".to_owned(), |path| path.display().to_string());
        Self::parse(&text, &origin, std::env::vars())
    }

    /// Reads `text`, lays `variables` over it, and checks the whole.
    ///
    /// # Errors
    /// When the text, a variable or a value is wrong; the message names it.
    pub fn parse(
        text: &str,
        origin: &str,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let content = |error: toml::de::Error| ConfigError::Content {
            origin: origin.to_owned(),
            message: error.to_string(),
        };
        let mut table: Table = text.parse().map_err(content)?;
        for (name, value) in variables {
            if name.starts_with(PREFIX) && name != FILE_VARIABLE {
                overlay(&mut table, &name, &value)?;
            }
        }
        let config: Self = table.try_into().map_err(content)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// When a value makes no sense; the message names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |field, message: &str| Err(ConfigError::Invalid { field, message: message.to_owned() });
        if !self.data_folder.is_absolute() {
            return invalid("data_folder", "an absolute path is needed, containers are bound to it");
        }
        if self.notice_file.as_ref().is_some_and(|file| !file.is_absolute()) {
            return invalid("notice_file", "an absolute path is needed");
        }
        if self.managers.is_empty() {
            return invalid("managers", "at least one address host:port is needed");
        }
        if let Some(address) = self.managers.iter().find(|address| !is_address(address)) {
            return invalid("managers", &format!("{address:?} is not an address host:port"));
        }
        if self.runtimes.is_empty() {
            return invalid("runtimes", "at least one of docker and process is needed");
        }
        if self.engine_uid == 0 || self.engine_gid == 0 {
            return invalid("engine_uid", "engines never run as root; choose a user and group above 0");
        }
        if self.pids_limit == 0 {
            return invalid("pids_limit", "an engine needs at least one process");
        }
        if self.capacity.cpu_milli == Some(0) {
            return invalid("capacity.cpu_milli", "an instance without CPU can run nothing");
        }
        Ok(())
    }

    /// Where the attempts are.
    pub fn attempts_folder(&self) -> PathBuf {
        self.data_folder.join("attempts")
    }
}

impl CapacityConfig {
    /// `detected`, held to this slice. Scratch space and memory can be cut, not grown; CPU may be promised more often
    /// than there is.
    pub fn slice(&self, detected: Resources) -> Resources {
        Resources {
            cpu_milli: self.cpu_milli.unwrap_or(detected.cpu_milli),
            memory_bytes: self.memory_bytes.map_or(detected.memory_bytes, |m| m.min(detected.memory_bytes)),
            scratch_bytes: self
                .scratch_bytes
                .map_or(detected.scratch_bytes, |s| s.min(detected.scratch_bytes)),
            gpus: self.gpus.map_or(detected.gpus, |gpus| gpus.min(detected.gpus)),
        }
    }
}

fn is_address(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// How a variable's text becomes a value.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Number,
    List,
}

const VARIABLES: [(&str, Kind); 23] = [
    ("data_folder", Kind::Text),
    ("region", Kind::Text),
    ("pool", Kind::Text),
    ("instance_id", Kind::Text),
    ("managers", Kind::List),
    ("ca_file", Kind::Text),
    ("join_token_file", Kind::Text),
    ("capacity.cpu_milli", Kind::Number),
    ("capacity.memory_bytes", Kind::Number),
    ("capacity.scratch_bytes", Kind::Number),
    ("capacity.gpus", Kind::Number),
    ("runtimes", Kind::List),
    ("docker_socket", Kind::Text),
    ("engine_uid", Kind::Number),
    ("engine_gid", Kind::Number),
    ("pids_limit", Kind::Number),
    ("mount_cache_bytes", Kind::Number),
    ("mount_spill_bytes", Kind::Number),
    ("minimum_free_bytes", Kind::Number),
    ("metrics_listen", Kind::Text),
    ("notice_file", Kind::Text),
    ("notice_margin_seconds", Kind::Number),
    ("log_format", Kind::Text),
];

fn overlay(table: &mut Table, name: &str, text: &str) -> Result<(), ConfigError> {
    let key = name[PREFIX.len()..].to_ascii_lowercase();
    let (path, kind) = VARIABLES
        .into_iter()
        .find(|(path, _)| path.replace('.', "_") == key)
        .ok_or_else(|| ConfigError::UnknownVariable(name.to_owned()))?;
    let value = match kind {
        Kind::Text => Value::String(text.to_owned()),
        Kind::Number => Value::Integer(text.trim().parse().map_err(|_| ConfigError::Content {
            origin: format!("environment variable {name}"),
            message: format!("{text:?} is not a whole number"),
        })?),
        Kind::List => text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .into(),
    };
    match path.split_once('.') {
        None => drop(table.insert(path.to_owned(), value)),
        Some((section, field)) => {
            let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                section.insert(field.to_owned(), value);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<AgentConfig, ConfigError> {
        let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        AgentConfig::parse(text, "agent.toml", variables)
    }

    #[test]
    fn defaults_stand_and_the_environment_wins() {
        assert_eq!(parse("", &[]).unwrap(), AgentConfig::default());
        let text = "managers = [\"a:1\"]\nruntimes = [\"docker\"]\n[capacity]\ncpu_milli = 100\n";
        let variables = [
            ("TELECINE_AGENT_MANAGERS", "b:2, c:3"),
            ("TELECINE_AGENT_RUNTIMES", "docker,process"),
            ("TELECINE_AGENT_CAPACITY_CPU_MILLI", "4000"),
            ("TELECINE_AGENT_CONFIG", "ignored"),
            ("PATH", "ignored"),
        ];
        let config = parse(text, &variables).unwrap();
        assert_eq!(config.managers, ["b:2", "c:3"]);
        assert_eq!(config.capacity.cpu_milli, Some(4000));
        assert_eq!(config.runtimes.len(), 2);
    }

    #[test]
    fn what_is_written_reads_back() {
        let config = AgentConfig { metrics_listen: Some(([127, 0, 0, 1], 9).into()), ..Default::default() };
        assert_eq!(parse(&toml::to_string(&config).unwrap(), &[]).unwrap(), config);
    }

    #[test]
    fn every_key_has_its_variable() {
        let config = AgentConfig {
            instance_id: Some("ins_00000000000000000000000000".parse().unwrap()),
            metrics_listen: Some(([127, 0, 0, 1], 9).into()),
            notice_file: Some("/run/notice.json".into()),
            capacity: CapacityConfig {
                cpu_milli: Some(1),
                memory_bytes: Some(1),
                scratch_bytes: Some(1),
                gpus: Some(1),
            },
            ..Default::default()
        };
        let keys = Table::try_from(&config).unwrap().into_iter().flat_map(|(key, value)| match value {
            Value::Table(section) => section.keys().map(|field| format!("{key}.{field}")).collect(),
            _ => vec![key],
        });
        let mut keys: Vec<String> = keys.collect();
        keys.sort();
        let mut known: Vec<&str> = VARIABLES.iter().map(|(path, _)| *path).collect();
        known.sort_unstable();
        assert_eq!(keys, known);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, variables, needle) in [
            ("colour = 1", vec![], "colour"),
            ("", vec![("TELECINE_AGENT_COLOUR", "1")], "TELECINE_AGENT_COLOUR"),
            ("", vec![("TELECINE_AGENT_PIDS_LIMIT", "many")], "TELECINE_AGENT_PIDS_LIMIT"),
            ("managers = []", vec![], "managers"),
            ("managers = [\"host\"]", vec![], "host"),
            ("data_folder = \"data\"", vec![], "data_folder"),
            ("notice_file = \"notice.json\"", vec![], "notice_file"),
            ("notice_margin_seconds = -1", vec![], "notice_margin_seconds"),
            ("engine_uid = 0", vec![], "root"),
            ("runtimes = []", vec![], "runtimes"),
            ("region = \"Not A Region\"", vec![], "Not A Region"),
        ] {
            let error = parse(text, &variables).unwrap_err();
            assert!(error.to_string().contains(needle), "{text} {variables:?}: {error}");
        }
    }

    #[test]
    fn a_slice_is_never_more_than_the_machine_has() {
        let detected = Resources { cpu_milli: 2000, memory_bytes: 100, scratch_bytes: 100, gpus: 1 };
        let slice = CapacityConfig {
            memory_bytes: Some(500),
            gpus: Some(4),
            cpu_milli: Some(8000),
            scratch_bytes: Some(50),
        };
        assert_eq!(
            slice.slice(detected),
            Resources { cpu_milli: 8000, memory_bytes: 100, scratch_bytes: 50, gpus: 1 }
        );
    }
}
