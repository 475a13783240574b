//! The managers of one `up`: one for each region, each with an id, a certificate, a port and a leadership of its own.
//!
//! The first region's manager listens where `manager_listen` says. Another one listens where its region's manager
//! listened last, since agents and workers that outlived `up` come back to the address they know; when that is taken,
//! or there was none, on the next free port behind `manager_listen`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use telecine_core::backend::Backend;
use telecine_core::leader;
use telecine_domain::id::RegionName;
use telecine_manager::ManagerError;
use telecine_proto::identity::CertificateAuthority;
use telecine_proto::net::TcpNetwork;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Part;
use super::config::UpConfig;
use crate::failure::{Exit, Failure};

/// Ports that are tried behind the first one, besides one for each region.
const SPARE_PORTS: u16 = 16;

/// Where the managers listen, by region.
pub(super) type Addresses = BTreeMap<RegionName, SocketAddr>;

/// What the managers of one process share.
pub(super) struct Managers<'a> {
    pub(super) config: &'a UpConfig,
    pub(super) backend: &'a Backend,
    pub(super) authority: Arc<CertificateAuthority>,
    /// Whether they launch and retire instances.
    pub(super) scales: bool,
    pub(super) shutdown: &'a CancellationToken,
}

impl Managers<'_> {
    /// Starts the manager of every region; each goes on as one of `parts`.
    ///
    /// # Errors
    /// When one of them cannot begin.
    pub(super) async fn start(&self, parts: &mut JoinSet<Part>) -> Result<Addresses, Failure> {
        let mut addresses = Addresses::new();
        for region in &self.config.regions {
            let address = if addresses.is_empty() {
                let first = self.config.manager_listen;
                self.listen(region, first, parts).await.map_err(|problem| refused(first, &problem))?
            } else {
                self.listen_anywhere(region, parts).await?
            };
            info!(%region, %address, "the region's manager listens");
            addresses.insert(region.clone(), address);
        }
        Ok(addresses)
    }

    /// The first of the candidates that is free.
    async fn listen_anywhere(
        &self,
        region: &RegionName,
        parts: &mut JoinSet<Part>,
    ) -> Result<SocketAddr, Failure> {
        let last = leader::current(self.backend, region).await.map_err(anyhow::Error::from)?;
        let known = last.map(|last| last.addresses).unwrap_or_default();
        let mut problem = None;
        for candidate in candidates(self.config.manager_listen, self.config.regions.len(), &known) {
            match self.listen(region, candidate, parts).await {
                Ok(address) => return Ok(address),
                Err(taken @ ManagerError::Listen { .. }) => problem = Some((candidate, taken)),
                Err(other) => return Err(refused(candidate, &other)),
            }
        }
        let (candidate, problem) = problem.expect("an address was tried");
        Err(refused(candidate, &problem))
    }

    /// Starts one manager and waits until it listens.
    async fn listen(
        &self,
        region: &RegionName,
        address: SocketAddr,
        parts: &mut JoinSet<Part>,
    ) -> Result<SocketAddr, ManagerError> {
        let (ready, mut listening) = oneshot::channel();
        let mut config = self.config.manager(region, address);
        config.autoscaling.enabled = Some(self.scales);
        let mut manager = Box::pin(telecine_manager::run(
            config,
            self.backend.clone(),
            self.authority.clone(),
            Arc::new(TcpNetwork),
            ready,
            // A manager that dies ends its own parts; `up` sees that and ends the rest in order.
            self.shutdown.child_token(),
        ));
        tokio::select! {
            biased;
            Ok(address) = &mut listening => {
                parts.spawn(async move { manager.await.map_err(|problem| problem.to_string()) });
                Ok(address)
            }
            ended = &mut manager => match ended {
                Err(problem) => Err(problem),
                Ok(()) => Err(ManagerError::Died("it ended at its start".to_owned())),
            },
        }
    }
}

/// Where to try to listen, best first: where agents look for it, then next to the first manager, then anywhere.
fn candidates(first: SocketAddr, regions: usize, known: &[String]) -> Vec<SocketAddr> {
    let known = known.iter().filter_map(|address| address.parse::<SocketAddr>().ok());
    let mut candidates: Vec<SocketAddr> = known.filter(|address| address.ip() == first.ip()).collect();
    if first.port() != 0 {
        let regions = u16::try_from(regions).unwrap_or(u16::MAX);
        let last = first.port().saturating_add(regions.saturating_add(SPARE_PORTS));
        candidates.extend((first.port()..=last).skip(1).map(|port| SocketAddr::new(first.ip(), port)));
    }
    candidates.push(SocketAddr::new(first.ip(), 0));
    candidates
}

fn refused(address: SocketAddr, problem: &ManagerError) -> Failure {
    let failure = Failure::new(Exit::Failed, problem.to_string());
    match problem {
        ManagerError::Listen { .. } => failure.advise(format!(
            "end what listens on {address}, or choose another address with --manager-listen"
        )),
        ManagerError::Config(_)
        | ManagerError::Certificate(_)
        | ManagerError::Tls(_)
        | ManagerError::Died(_) => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_comes_back_to_the_address_that_agents_know() {
        let first: SocketAddr = "127.0.0.1:8081".parse().unwrap();
        let known = ["manager:9".to_owned(), "10.0.0.1:7".to_owned(), "127.0.0.1:9000".to_owned()];
        let tried: Vec<String> = candidates(first, 2, &known).iter().map(SocketAddr::to_string).collect();
        assert_eq!(tried[..3], ["127.0.0.1:9000", "127.0.0.1:8082", "127.0.0.1:8083"]);
        assert_eq!(tried.last().map(String::as_str), Some("127.0.0.1:0"));
        assert!(!tried.contains(&first.to_string()), "the first manager has it");
        let any = candidates("127.0.0.1:0".parse().unwrap(), 2, &[]);
        assert_eq!(any, ["127.0.0.1:0".parse().unwrap()]);
        let top = candidates("127.0.0.1:65535".parse().unwrap(), 2, &[]);
        assert_eq!(top, ["127.0.0.1:0".parse().unwrap()], "there are no ports behind the last one");
    }
}
