//! The manager: the scheduler of one or several regions.
//!
//! It holds gRPC sessions with coordinators and workers, runs one dispatch loop per region over `domain::Region`, and
//! records what agents report. The table is the truth: everything that matters is a conditional write, so a manager may
//! die at any instant, and two that believe they lead the same region do no harm.
//!
//! The way of a job: `feed` reads it and tells the region; `dispatch` records its assignment, then sends it; `sessions`
//! answer its coordinator and its worker; `recorder`, `stops` and `publish` do what their names say. `leadership` decides
//! when all of this may run, under which term. What it is not: it opens no store and runs no engine.

mod autoscaling;
mod config;
mod cordons;
mod dispatch;
mod endpoint;
mod enrol;
mod feed;
mod lead;
mod leadership;
mod metrics;
mod publish;
mod recorder;
mod registry;
mod scaling;
mod scheduling;
mod sessions;
mod signing;
mod stops;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use telecine_core::backend::Backend;
use telecine_proto::identity::{CertificateAuthority, CredentialError, Peer, ServerIdentity};
use telecine_proto::net::{Listener, Network};
use telecine_proto::serve;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use autoscaling::{Autoscaling, PolicyChoice};
pub use config::{InvalidConfig, ManagerConfig};
pub use scheduling::Scheduling;

use enrol::Desk;
use leadership::Candidate;
use sessions::{Leads, Sessions};

/// Why a manager does not run.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// A setting is not valid.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// An address cannot be listened on.
    #[error("the manager cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It has no certificate to show.
    #[error("the manager has no certificate: {0}")]
    Certificate(#[from] CredentialError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// A part of it died.
    #[error("a part of the manager has died: {0}")]
    Died(String),
}

/// Runs a manager until `shutdown`: listens, sends the address it listens on to `ready`, and leads its regions whenever
/// it can. Returns after everything under way has ended, at the latest after the drain time.
///
/// # Errors
/// When it cannot begin, or when a part of it dies.
pub async fn run(
    config: ManagerConfig,
    backend: Backend,
    authority: Arc<CertificateAuthority>,
    network: Arc<dyn Network>,
    ready: oneshot::Sender<SocketAddr>,
    shutdown: CancellationToken,
) -> Result<(), ManagerError> {
    config.validate()?;
    metrics::recorder();
    let config = Arc::new(config);
    let identity = own_identity(&config, &authority)?;
    let listener = network.listen(&config.listen).await.map_err(cannot_listen(&config.listen))?;
    let address = listener.local_address().map_err(cannot_listen(&config.listen))?;
    let leads = Leads::default();
    let mut tasks = JoinSet::new();
    if let Some(observe) = &config.observe {
        let listener = tokio::net::TcpListener::bind(observe).await.map_err(cannot_listen(observe))?;
        let observed = endpoint::Observed::new(&config, backend.clone(), leads.clone());
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            endpoint::serve(listener, observed, shutdown).await.map_err(|problem| problem.to_string())
        });
    }
    // The listener outlives the leaderships: streams end with a status, not with a broken connection.
    let closing = CancellationToken::new();
    let desk = (backend.clone(), authority.clone(), config.clone());
    tasks.spawn(serve_agents(listener, identity.clone(), desk, leads.clone(), closing.clone())?);
    tasks.spawn(renew_own(identity, authority.clone(), config.clone(), shutdown.clone()));
    info!(%address, id = config.id, "the manager listens");
    // Whoever started it may not want to know.
    let _unasked = ready.send(address);

    let mut regions = JoinSet::new();
    let addresses = addresses(&config, address);
    for region in config.regions.clone() {
        let candidate = Candidate {
            region,
            backend: backend.clone(),
            authority: authority.clone(),
            config: config.clone(),
            leads: leads.clone(),
            addresses: addresses.clone(),
        };
        regions.spawn(leadership::run(candidate, shutdown.clone()));
    }
    let died = watch_over(&mut regions, &mut tasks, &shutdown).await;
    shutdown.cancel();
    while regions.join_next().await.is_some() {}
    closing.cancel();
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(config.drain, ended).await.is_err() {
        warn!("not every connection ended in time");
    }
    died.map_or(Ok(()), |problem| Err(ManagerError::Died(problem)))
}

/// Waits for the shutdown, or for the death of a part.
async fn watch_over(
    regions: &mut JoinSet<Result<(), String>>,
    tasks: &mut JoinSet<Result<(), String>>,
    shutdown: &CancellationToken,
) -> Option<String> {
    let problem = tokio::select! {
        () = shutdown.cancelled() => return None,
        Some(ended) = regions.join_next() => format!("a region: {ended:?}"),
        Some(ended) = tasks.join_next() => format!("a task: {ended:?}"),
    };
    if shutdown.is_cancelled() {
        return None;
    }
    error!(problem, "a part of the manager has died");
    Some(problem)
}

/// Where agents are told to connect. An address that means "every interface" is nobody's to dial: then agents go on with
/// the addresses they were given.
fn addresses(config: &ManagerConfig, listening: SocketAddr) -> Vec<String> {
    if !config.advertise.is_empty() {
        config.advertise.clone()
    } else if listening.ip().is_unspecified() {
        Vec::new()
    } else {
        vec![listening.to_string()]
    }
}

fn cannot_listen(address: &str) -> impl Fn(std::io::Error) -> ManagerError {
    move |source| ManagerError::Listen { address: address.to_owned(), source }
}

fn own_identity(
    config: &ManagerConfig,
    authority: &CertificateAuthority,
) -> Result<ServerIdentity, ManagerError> {
    let region = config.regions.first().expect("validated: there is one").clone();
    let peer = Peer::Manager { region, id: config.id.clone() };
    Ok(ServerIdentity::signed_by(authority, &peer, config.certificate, config.clock.now())?)
}

/// A new certificate at half life; connections that live go on with the old one.
async fn renew_own(
    identity: ServerIdentity,
    authority: Arc<CertificateAuthority>,
    config: Arc<ManagerConfig>,
    shutdown: CancellationToken,
) -> Result<(), String> {
    let mut wait = config.certificate / 2;
    while tokio::time::timeout(wait, shutdown.cancelled()).await.is_err() {
        wait = match identity.renew(&authority, config.certificate, config.clock.now()) {
            Ok(()) => config.certificate / 2,
            Err(problem) => {
                error!(%problem, "the manager's own certificate was not renewed");
                Duration::from_secs(60).min(config.certificate / 8)
            }
        };
    }
    Ok(())
}

fn serve_agents(
    listener: Box<dyn Listener>,
    identity: ServerIdentity,
    (backend, authority, config): (Backend, Arc<CertificateAuthority>, Arc<ManagerConfig>),
    leads: Leads,
    closing: CancellationToken,
) -> Result<impl Future<Output = Result<(), String>> + Send + 'static, ManagerError> {
    let tls = serve::tls(authority.roots(), identity, config.clock)
        .map_err(|problem| ManagerError::Tls(problem.to_string()))?;
    let incoming = serve::incoming(listener, tls, config.limits);
    let sessions = Sessions::new(leads);
    let routes = serve::server()
        .add_service(sessions.coordinators())
        .add_service(sessions.workers())
        .add_service(Desk::service(backend, authority, config));
    Ok(async move {
        let served = routes.serve_with_incoming_shutdown(incoming, closing.cancelled_owned());
        served.await.map_err(|problem| telecine_proto::dial::causes(&problem))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_told_only_addresses_that_can_be_dialed() {
        let config = ManagerConfig::default();
        let told = |address: &str| addresses(&config, address.parse().unwrap());
        assert_eq!(told("10.0.0.1:8081"), ["10.0.0.1:8081"]);
        assert!(told("0.0.0.0:8081").is_empty() && told("[::]:8081").is_empty());
        let named = ManagerConfig { advertise: vec!["manager:8081".to_owned()], ..config };
        assert_eq!(addresses(&named, "0.0.0.0:8081".parse().unwrap()), ["manager:8081"]);
    }
}
