//! What a local agent needs to join: a token of its own, the authority's certificate, and its configuration.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use telecine_agent::config::AgentConfig;
use telecine_agent::remains;
use telecine_core::backend::Backend;
use telecine_core::enrolment::{self, Binding, EnrolmentError};
use telecine_domain::id::PoolName;
use telecine_domain::instance::RuntimeKind;
use telecine_embedded::{NOTICE_FILE, NewAgent, Provisioner};
use tokio::sync::watch;

use super::config::{LogChoice, UpConfig};
use super::managers::Addresses;
use super::pools::Planned;
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
    pools: BTreeMap<PoolName, Planned>,
    log_format: LogChoice,
    joining: watch::Sender<Option<Joining>>,
}

impl LocalProvisioner {
    /// For the agents of `pools`, which wait until `join` is called.
    ///
    /// # Errors
    /// When the data folder has no absolute path.
    pub(super) fn new(data: &Path, config: &UpConfig, pools: &[Planned]) -> Result<Self, Failure> {
        let data = std::path::absolute(data).map_err(|problem| {
            Failure::new(Exit::Usage, format!("{} has no absolute path: {problem}", data.display()))
        })?;
        Ok(Self {
            ca_file: data.join("ca/ca.pem"),
            pools: pools.iter().map(|planned| (planned.pool.name.clone(), planned.clone())).collect(),
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
        let planned =
            self.pools.get(&agent.pool).ok_or_else(|| format!("there is no pool {} here", agent.pool))?;
        let region = &planned.pool.region;
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
            capacity: planned.slice,
            // A program runs only as an engine version that somebody with the right to publish named as a command.
            runtimes: [RuntimeKind::Docker, RuntimeKind::Process].into(),
            notice_file: Some(agent.folder.join(NOTICE_FILE)),
            log_format: self.log_format.into(),
            ..AgentConfig::default()
        };
        toml::to_string(&config).map_err(|problem| problem.to_string())
    }

    async fn clear(&self, agent: &NewAgent) -> Result<(), String> {
        let path = agent.folder.join("agent.toml");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            // It was never started.
            Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(problem) => return Err(format!("{}: {problem}", path.display())),
        };
        let config = AgentConfig::parse(&text, &path.display().to_string(), std::iter::empty());
        let config = config.map_err(|problem| problem.to_string())?;
        remains::clear(&config, agent.instance).await.map_err(|problem| problem.to_string())
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
