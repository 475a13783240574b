//! What a local agent needs to join: a token of its own, the authority's certificate, and its configuration.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use telecine_agent::config::{AgentConfig, CapacityConfig};
use telecine_agent::inventory;
use telecine_core::backend::Backend;
use telecine_core::enrolment::{self, Binding, EnrolmentError};
use telecine_domain::id::{PoolName, RegionName};
use telecine_domain::instance::RuntimeKind;
use telecine_embedded::{NewAgent, Provisioner};
use tokio::sync::watch;

use super::config::{LogChoice, UpConfig};
use super::managers::Addresses;
use crate::failure::{Exit, Failure};
use crate::process;

/// What is known once the managers listen.
#[derive(Clone)]
pub(super) struct Joining {
    /// Where join tokens are recorded.
    pub backend: Backend,
    /// Where each region's manager listens.
    pub managers: Addresses,
}

/// Provisions agents of this machine.
pub(super) struct LocalProvisioner {
    ca_file: PathBuf,
    regions: BTreeMap<PoolName, RegionName>,
    capacity: CapacityConfig,
    log_format: LogChoice,
    joining: watch::Sender<Option<Joining>>,
}

impl LocalProvisioner {
    /// For the pools of `config`; agents wait until `join` is called.
    ///
    /// # Errors
    /// When the data folder has no absolute path.
    pub(super) fn new(data: &Path, config: &UpConfig) -> Result<Self, Failure> {
        let data = std::path::absolute(data).map_err(|problem| {
            Failure::new(Exit::Usage, format!("{} has no absolute path: {problem}", data.display()))
        })?;
        Ok(Self {
            ca_file: data.join("ca/ca.pem"),
            regions: config.pools().collect(),
            capacity: share(config.capacity, config.agents(), &data),
            log_format: config.log_format,
            joining: watch::Sender::new(None),
        })
    }

    /// The managers listen: agents may be started.
    pub(super) fn join(&self, joining: Joining) {
        self.joining.send_replace(Some(joining));
    }

    async fn joining(&self) -> Result<Joining, String> {
        let mut joining = self.joining.subscribe();
        let known = joining.wait_for(Option::is_some).await.map_err(|_| "`up` is ending".to_owned())?;
        known.clone().ok_or_else(|| "`up` is ending".to_owned())
    }
}

#[async_trait]
impl Provisioner for LocalProvisioner {
    async fn provision(&self, agent: &NewAgent) -> Result<String, String> {
        let Joining { backend, managers } = self.joining().await?;
        let region =
            self.regions.get(&agent.pool).ok_or_else(|| format!("pool {} has no region", agent.pool))?;
        let manager = managers.get(region).ok_or_else(|| format!("no manager here runs region {region}"))?;
        let token_file = agent.folder.join("join-token");
        if !token_file.exists() {
            let binding =
                Binding { instance: agent.instance, pool: agent.pool.clone(), region: region.clone() };
            write_token(&token_file, &new_token(&backend, binding).await?)?;
        }
        let config = AgentConfig {
            data_folder: agent.folder.join("data"),
            region: region.clone(),
            pool: agent.pool.clone(),
            instance_id: Some(agent.instance),
            managers: vec![manager.to_string()],
            ca_file: self.ca_file.clone(),
            join_token_file: token_file,
            capacity: self.capacity,
            // A program runs only as an engine version that somebody with the right to publish named as a command.
            runtimes: [RuntimeKind::Docker, RuntimeKind::Process].into(),
            log_format: self.log_format.into(),
            ..AgentConfig::default()
        };
        toml::to_string(&config).map_err(|problem| problem.to_string())
    }
}

/// The slice of this machine that one of `count` agents offers: what is set, else an equal share of what there is.
/// Without it each of them would offer all of it.
fn share(given: CapacityConfig, count: u32, data: &Path) -> CapacityConfig {
    let existing = data.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let (Ok(machine), 2..) = (inventory::measure(existing, &CapacityConfig::default()), count) else {
        // One agent measures for itself, and says why when it cannot.
        return given;
    };
    let (all, count) = (machine.capacity, u64::from(count));
    CapacityConfig {
        cpu_milli: given.cpu_milli.or(Some((all.cpu_milli / count).max(1))),
        memory_bytes: given.memory_bytes.or(Some(all.memory_bytes / count)),
        scratch_bytes: given.scratch_bytes.or(Some(all.scratch_bytes / count)),
        gpus: given.gpus.or(Some(all.gpus / count)),
    }
}

/// A fresh token; one that was recorded but never reached its file is taken back.
async fn new_token(backend: &Backend, binding: Binding) -> Result<String, String> {
    let told = |problem: EnrolmentError| problem.to_string();
    match enrolment::create(backend, binding.clone(), process::now()).await {
        Ok(token) => Ok(token.to_string()),
        Err(EnrolmentError::Exists(instance)) => {
            enrolment::withdraw(backend, instance).await.map_err(|problem| problem.to_string())?;
            enrolment::create(backend, binding, process::now())
                .await
                .map(|token| token.to_string())
                .map_err(told)
        }
        Err(problem) => Err(told(problem)),
    }
}

/// Whole or not at all: a token that is there is a token that works.
fn write_token(path: &Path, token: &str) -> Result<(), String> {
    let temporary = path.with_extension("new");
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(token.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    written.map_err(|problem: std::io::Error| format!("{}: {problem}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_of_one_machine_share_it() {
        let data = Path::new("/tmp/not/there/yet");
        let given = CapacityConfig { cpu_milli: Some(700), ..CapacityConfig::default() };
        assert_eq!(share(given, 1, data), given);
        let all = inventory::measure(Path::new("/tmp"), &CapacityConfig::default()).unwrap().capacity;
        let shared = share(given, 4, data);
        assert_eq!((shared.cpu_milli, shared.memory_bytes), (Some(700), Some(all.memory_bytes / 4)));
    }
}
