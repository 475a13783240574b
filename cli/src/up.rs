//! `telecine up`: everything on one machine. One process is API and manager and the sole owner of the data folder;
//! agents run beside it in sessions of their own and outlive it.
//!
//! SIGINT and SIGTERM end this process and leave the agents, which the next `up` adopts. SIGUSR1 (what `telecine stop`
//! sends) drains the agents first. `telecine manager` is the same process without API, watchers and new instances.

mod arrivals;
mod config;
mod first_key;
mod managers;
mod pools;
mod provision;
mod serve;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use telecine_core::accounts::{self, Account};
use telecine_core::backend::Backend;
use telecine_core::ports::instances::Instances;
use telecine_domain::pool::Pool;
use telecine_embedded::{AgentCommand, Embedded, EmbeddedConfig, LocalPool};
use telecine_proto::identity::CertificateAuthority;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::cli::Global;
use crate::connection;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::process;

pub(crate) use config::Arguments;
use config::UpConfig;
use managers::{Addresses, Managers};
use pools::Planned;
use provision::{Joining, LocalProvisioner};

/// Longest time for requests, streams and the manager's sessions to end.
const DRAIN: Duration = Duration::from_secs(15);

/// An agent with an old configuration is killed when it has not made way for the next one after this.
const LEAVE_LIMIT: Duration = Duration::from_secs(15);

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Agents and their jobs go on.
    LeaveAgents,
    /// Agents finish what they have and end first.
    DrainAgents,
}

/// Which parts of the platform a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    /// API, manager, watchers and local instances.
    Everything,
    /// The manager alone: jobs that are recorded go on being scheduled, nothing new is accepted.
    Manager,
}

/// Runs until a signal.
///
/// # Errors
/// When a setting, the folder or a port cannot be used; nothing is left half-started.
pub(crate) async fn run(global: &Global, arguments: Arguments, which: Parts) -> Result<ExitCode, Failure> {
    let data = connection::data_folder(global.data.as_deref())?;
    let config = UpConfig::load(&data, arguments)?;
    process::start_log(config.log_format.into(), &config.log_filter)?;
    // Every port is taken before anything is written.
    let api = match which {
        Parts::Everything => Some(bind(config.listen, "listen").await?),
        Parts::Manager => None,
    };
    drop(bind(config.manager_listen, "manager_listen").await?);
    if let Some(observe) = config.observe {
        drop(bind(observe, "observe").await?);
    }
    let pools = config.pools(&data)?;
    let provisioner = Arc::new(LocalProvisioner::new(&data, &config, &pools)?);
    let embedded = open(&data, &config, &pools, provisioner.clone()).await?;
    let result = platform(&data, &config, &pools, api, &embedded, &provisioner).await;
    embedded.close().await;
    result
}

async fn bind(address: std::net::SocketAddr, setting: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|problem| {
        let flag = setting.replace('_', "-");
        Failure::new(Exit::Failed, format!("cannot listen on {address} (`{setting}`): {problem}"))
            .advise(format!("end what listens there, or choose another address with --{flag}"))
    })
}

async fn open(
    data: &Path,
    config: &UpConfig,
    pools: &[Planned],
    provisioner: Arc<LocalProvisioner>,
) -> Result<Embedded, Failure> {
    let program =
        std::env::current_exe().map_err(|problem| Failure::new(Exit::Failed, problem.to_string()))?;
    let local = |planned: &Planned| LocalPool {
        name: planned.pool.name.clone(),
        most: planned.pool.max,
        capacity: planned.capacity,
        boot: Duration::from_secs(planned.pool.boot_seconds.into()),
        program: planned.agent.clone(),
    };
    let pools = pools.iter().map(local).collect();
    let settings = EmbeddedConfig {
        folder: data.to_owned(),
        pools,
        regions: config.regions.clone(),
        agent: AgentCommand { program, arguments: vec!["agent".to_owned(), "--config".to_owned()] },
        provisioner,
        drain_limit: Duration::from_secs(config.drain_seconds),
        leave_limit: LEAVE_LIMIT,
    };
    Embedded::open(settings).await.map_err(|problem| Failure::new(Exit::Failed, problem.to_string()))
}

/// Everything that runs over an open data folder.
async fn platform(
    data: &Path,
    config: &UpConfig,
    pools: &[Planned],
    api: Option<TcpListener>,
    embedded: &Embedded,
    provisioner: &LocalProvisioner,
) -> Result<ExitCode, Failure> {
    let backend = embedded.backend();
    let authority =
        CertificateAuthority::open(&data.join("ca"), process::now()).map_err(anyhow::Error::from)?;
    let (shutdown, mut parts) = (CancellationToken::new(), JoinSet::new());
    if api.is_some() {
        // Before anybody scales them.
        declare(&backend, pools).await?;
    }
    let scales = api.is_some() && config.scales();
    let authority = authority.into();
    let managers = Managers { config, backend: &backend, authority, scales, shutdown: &shutdown };
    let managers = managers.start(&mut parts).await?;
    provisioner.join(Joining { backend: backend.clone(), managers: managers.clone() });
    let api = match api {
        Some(listener) => {
            let account = first_account(&backend, config).await?;
            let url = format!("http://{}", listener.local_addr().map_err(anyhow::Error::from)?);
            let key = first_key::ensure(data, &backend, &account, &url).await?;
            parts.spawn(serve::run(listener, backend.clone(), config.regions.clone(), shutdown.clone()));
            parts.spawn(arrivals::run(backend.clone(), shutdown.clone()));
            launch_instances(pools, embedded).await?;
            Some((url, key))
        }
        None => None,
    };
    announce(data, api.as_ref(), &listed(&managers))?;

    let ending = until_ending(&mut parts).await;
    tokio::select! {
        () = wind_up(config, embedded, &ending, &shutdown, &mut parts) => {}
        () = another_signal() => warn!("a second signal: ending at once, agents go on"),
    }
    ending.map(|_| ExitCode::SUCCESS)
}

/// Drains the agents if that is asked for, then the parts of this process.
async fn wind_up(
    config: &UpConfig,
    embedded: &Embedded,
    ending: &Result<Ending, Failure>,
    shutdown: &CancellationToken,
    parts: &mut JoinSet<Part>,
) {
    if matches!(ending, Ok(Ending::DrainAgents)) {
        embedded.close().await;
        let left = embedded.instances.drain_all(Duration::from_secs(config.drain_seconds)).await;
        info!(left, "agents have drained");
    }
    shutdown.cancel();
    let ended = async {
        while let Some(ended) = parts.join_next().await {
            report(&ended);
        }
    };
    // Somebody may hold a connection open for ever.
    if tokio::time::timeout(DRAIN, ended).await.is_err() {
        warn!("not every connection ended in time");
    }
}

/// Waits for a signal to end while the first one is still being obeyed.
async fn another_signal() {
    let listen =
        |kind| signal(kind).inspect_err(|problem| warn!(%problem, "a second signal cannot be heard"));
    match (listen(SignalKind::interrupt()), listen(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}

async fn first_account(backend: &Backend, config: &UpConfig) -> Result<Account, Failure> {
    let region = config.regions.first().expect("validated: there is one");
    let account = accounts::ensure_default(backend, region, process::now()).await;
    account.map_err(|problem| Failure::new(Exit::Failed, problem.to_string()))
}

type Part = Result<(), String>;

/// The platform knows the pools of this configuration, and no others.
async fn declare(backend: &Backend, pools: &[Planned]) -> Result<(), Failure> {
    let pools: Vec<Pool> = pools.iter().map(|planned| planned.pool.clone()).collect();
    let declared = telecine_core::pools::declare(backend, &pools).await;
    declared.map_err(|problem| Failure::new(Exit::Failed, problem.to_string()))
}

/// As many local instances in each pool that is not scaled as it begins with; those that are there count.
async fn launch_instances(pools: &[Planned], embedded: &Embedded) -> Result<(), Failure> {
    for Planned { pool, start, .. } in pools {
        let failed = |problem| Failure::new(Exit::Failed, format!("{problem}"));
        let there = embedded.instances.status(&pool.name).await.map_err(failed)?.instances.len();
        let missing = start.saturating_sub(u32::try_from(there).unwrap_or(u32::MAX));
        if missing > 0 {
            embedded.instances.launch(&pool.name, missing).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// One address alone, several with their regions.
fn listed(managers: &Addresses) -> String {
    match managers.iter().collect::<Vec<_>>()[..] {
        [(_, address)] => format!("manager {address}"),
        ref several => {
            let named: Vec<String> =
                several.iter().map(|(region, address)| format!("{region} {address}")).collect();
            format!("managers {}", named.join(", "))
        }
    }
}

fn announce(data: &Path, api: Option<&(String, Option<String>)>, managers: &str) -> Result<(), Failure> {
    let data = data.display();
    match api {
        Some((url, _)) => output::line(&format!("Telecine is ready: API {url}, {managers}, data {data}"))?,
        None => output::line(&format!("Ready: {managers}, data {data}"))?,
    }
    if let Some((_, Some(key))) = api {
        output::line(&format!("First API key, shown this once and kept in client.toml there: {key}"))?;
    }
    output::line(&format!("Stop it with: telecine stop --data {data}"))
}

/// Waits for a signal, or for the death of a part.
async fn until_ending(parts: &mut JoinSet<Part>) -> Result<Ending, Failure> {
    let listen = |kind| signal(kind).map_err(|problem| Failure::new(Exit::Failed, problem.to_string()));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut drain = listen(SignalKind::user_defined1())?;
    tokio::select! {
        _ = interrupt.recv() => Ok(Ending::LeaveAgents),
        _ = terminate.recv() => Ok(Ending::LeaveAgents),
        _ = drain.recv() => Ok(Ending::DrainAgents),
        Some(ended) = parts.join_next() => {
            report(&ended);
            Err(Failure::new(Exit::Failed, "a part of `up` has died; see the log above"))
        }
    }
}

fn report(ended: &Result<Part, tokio::task::JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => error!(problem, "a part of `up` has failed"),
        Err(problem) => error!(%problem, "a part of `up` has died"),
    }
}
