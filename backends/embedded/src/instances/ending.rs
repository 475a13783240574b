//! How instances end: taken away by their provider at a time that was announced, as a spot market does, and cleared up
//! after, so that nothing is left.
//!
//! That an instance is to be taken away is in its record before its agent can read it, so that whoever starts next goes
//! on with it; the agent is told by a file in its folder.

use std::path::{Path, PathBuf};

use telecine_core::ports::instances::InstancesError;
use telecine_domain::id::{InstanceId, PoolName};
use telecine_domain::time::Timestamp;

use super::record::{self, Wanted};
use super::{Agent, LocalInstances, NewAgent, is_running, system_millis};

/// What an agent watches; its configuration names it.
pub const NOTICE_FILE: &str = "notice.json";

fn notice_path(agents: &Path, instance: InstanceId) -> PathBuf {
    record::folder_of(agents, instance).join(NOTICE_FILE)
}

impl LocalInstances {
    /// Records that the instance is taken away at `at`, then announces it. The earlier of two times counts.
    pub(super) async fn announce_end(
        &self,
        pool: &PoolName,
        instance: InstanceId,
        at: Timestamp,
    ) -> Result<(), InstancesError> {
        let mut agents = self.agents.lock().await;
        let there = |agent: &&mut Agent| agent.record.pool == *pool && agent.record.wanted == Wanted::Running;
        let Some(agent) = agents.get_mut(&instance).filter(there) else {
            return Err(InstancesError::NoSuchInstance { pool: pool.clone(), instance });
        };
        let before = agent.record.taken_at_millis;
        agent.record.taken_at_millis =
            Some(before.map_or(at.as_millis(), |before| before.min(at.as_millis())));
        if let Err(error) = record::write(&self.folder, &agent.record) {
            agent.record.taken_at_millis = before;
            return Err(InstancesError::Unavailable(format!("{instance}: {error}")));
        }
        tracing::warn!(%instance, %at, "an instance will be taken away");
        self.announce_again(agent).map_err(InstancesError::Unavailable)
    }

    /// Tells the agent when its instance is taken away, if it is.
    pub(super) fn announce_again(&self, agent: &Agent) -> Result<(), String> {
        let Some(millis) = agent.record.taken_at_millis else { return Ok(()) };
        let path = notice_path(&self.folder, agent.record.instance);
        let text = format!("{{\"terminate_at\": \"{}\"}}\n", Timestamp::from_millis(millis));
        record::write_private(&path, text.as_bytes()).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// The time has come: the instance is dead from one moment to the next.
    pub(super) fn take_away_in_time(&self, agent: &mut Agent) {
        let due = agent.record.taken_at_millis.is_some_and(|at| at <= system_millis());
        if !due || agent.record.wanted == Wanted::Retired && agent.process.is_none() {
            return;
        }
        let instance = agent.record.instance;
        if agent.record.wanted == Wanted::Running {
            agent.record.wanted = Wanted::Retired;
            if let Err(error) = record::write(&self.folder, &agent.record) {
                // The next start finds the time passed, too.
                tracing::warn!(%instance, %error, "that an instance is gone was not recorded");
            }
            tracing::warn!(%instance, "an instance is taken away");
        }
        if let Some(process) = &agent.process {
            process.kill();
        }
    }

    /// Takes away what the agents that are over have left, then their records and folders.
    pub(super) async fn remove_ended(&self) {
        for ended in self.ended().await {
            let instance = ended.instance;
            // Without the lock: that may take a while.
            if let Err(problem) = self.provisioner.clear(&ended).await {
                tracing::warn!(%instance, problem, "something of a retired instance is still there; it is tried again");
                continue;
            }
            match record::remove(&self.folder, instance) {
                Ok(()) => {
                    tracing::info!(%instance, "instance retired");
                    self.agents.lock().await.remove(&instance);
                }
                Err(error) => {
                    tracing::warn!(%instance, %error, "the folder of a retired instance stays for now");
                }
            }
        }
    }

    /// Retired, and without a process. Nobody starts one again.
    async fn ended(&self) -> Vec<NewAgent> {
        let mut agents = self.agents.lock().await;
        let mut ended = Vec::new();
        for agent in agents.values_mut() {
            if agent.record.wanted == Wanted::Retired && !is_running(agent) {
                ended.push(self.new_agent(agent));
            }
        }
        ended
    }
}
