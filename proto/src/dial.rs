//! The dialing side: TLS to a manager, whatever its address, and a gRPC channel over it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::clock::Clock;
use crate::identity::{ClientIdentity, SERVER_NAME};
use crate::net::Network;

/// Why there is no connection to a manager.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// What is to be trusted cannot be read.
    #[error("the authority's certificate cannot be used: {0}")]
    Authority(String),
    /// The manager was not reached, or is not one of ours.
    #[error("no connection to the manager at {address}: {problem}")]
    Connect {
        /// Which address.
        address: String,
        /// What went wrong, with its causes.
        problem: String,
    },
}

/// Longest time for TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to managers.
#[derive(Clone)]
pub struct Dialer {
    network: Arc<dyn Network>,
    tls: TlsConnector,
    identity: ClientIdentity,
}

impl Dialer {
    /// Trusts the managers that the authority of `authority_pem` signed, and shows `identity`.
    ///
    /// # Errors
    /// `Authority` when the certificate cannot be read.
    pub fn new(
        network: Arc<dyn Network>,
        authority_pem: &str,
        identity: ClientIdentity,
        clock: Clock,
    ) -> Result<Self, DialError> {
        let unusable = |problem: &dyn fmt::Display| DialError::Authority(problem.to_string());
        let mut roots = RootCertStore::empty();
        let certificate =
            CertificateDer::from_pem_slice(authority_pem.as_bytes()).map_err(|e| unusable(&e))?;
        roots.add(certificate).map_err(|e| unusable(&e))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_details(provider, Arc::new(clock))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| unusable(&e))?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(identity.clone()));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self { network, tls: TlsConnector::from(Arc::new(config)), identity })
    }

    /// What is shown; `replace` on it takes effect with the next connection.
    pub fn identity(&self) -> &ClientIdentity {
        &self.identity
    }

    /// Connects to the manager at `address` (`host:port`). The channel lives as long as the connection: when it breaks,
    /// dial again (another address may be the one to take). A refusal of our certificate shows at the first call.
    ///
    /// # Errors
    /// `Connect` when the address does not answer within ten seconds or is not a manager of ours.
    pub async fn connect(&self, address: &str) -> Result<Channel, DialError> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, self.open(address))
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s")))
            .map_err(|error| DialError::Connect {
                address: address.to_owned(),
                problem: error.to_string(),
            })?;
        // One connection, used once: tonic must not dial behind our back.
        let mut once = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = once.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
            std::future::ready(stream)
        });
        Endpoint::from_static("http://manager.telecine.internal")
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|error| DialError::Connect { address: address.to_owned(), problem: causes(&error) })
    }

    async fn open(
        &self,
        address: &str,
    ) -> io::Result<tokio_rustls::client::TlsStream<crate::net::Connection>> {
        let stream = self.network.connect(address).await?;
        let name = ServerName::try_from(SERVER_NAME).expect("a constant DNS name");
        self.tls.connect(name, stream).await
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// An error and all its causes in one line; tonic's own text is only "transport error".
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
