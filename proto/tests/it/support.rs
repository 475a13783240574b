//! A small manager that answers every enrolment with the name of its caller, and certificates of every kind.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use telecine_domain::attempt::AttemptId;
use telecine_domain::id::{AttemptNumber, Epoch, InstanceId, JobId, RegionName};
use telecine_domain::time::Timestamp;
use telecine_proto::clock::Clock;
use telecine_proto::enrolment::v1::enrolment_client::EnrolmentClient;
use telecine_proto::enrolment::v1::enrolment_server::{Enrolment, EnrolmentServer};
use telecine_proto::enrolment::v1::{EnrolRequest, Enrolled};
use telecine_proto::identity::{
    CertificateAuthority, ClientIdentity, Credential, KeyAndRequest, Peer, SERVER_NAME, ServerIdentity,
};
use telecine_proto::net::Network;
use telecine_proto::serve::{self, Limits};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn region() -> RegionName {
    "local".parse().unwrap()
}

pub(crate) fn instance() -> InstanceId {
    InstanceId::new(Timestamp::from_millis(1), 1)
}

pub(crate) fn attempt() -> AttemptId {
    let job = JobId::new(Timestamp::from_millis(1), 2);
    AttemptId { job, attempt: AttemptNumber(1), epoch: Epoch(1) }
}

pub(crate) fn worker() -> Peer {
    Peer::Worker { region: region(), attempt: attempt() }
}

pub(crate) struct Mirror;

#[tonic::async_trait]
impl Enrolment for Mirror {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<Enrolled>, Status> {
        let remote = serve::remote(&request).expect("served by our own loop");
        Ok(Response::new(Enrolled { region: remote.peer.to_string(), ..Default::default() }))
    }
}

/// A listening manager; it ends when this is dropped.
pub(crate) struct Manager {
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) identity: ServerIdentity,
    pub(crate) address: String,
    pub(crate) clock: Clock,
    _tasks: JoinSet<()>,
}

impl Manager {
    pub(crate) async fn start(network: &dyn Network, limits: Limits, clock: Clock) -> Self {
        let authority = Arc::new(CertificateAuthority::in_memory(clock.now()).unwrap());
        let peer = Peer::Manager { region: region(), id: "m1".to_owned() };
        let identity = ServerIdentity::signed_by(&authority, &peer, HOUR, clock.now()).unwrap();
        let tls = serve::tls(authority.roots(), identity.clone(), clock).unwrap();
        let listener = network.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let incoming = serve::incoming(listener, tls, limits);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let routes = serve::server().add_service(EnrolmentServer::new(Mirror));
            routes.serve_with_incoming(incoming).await.unwrap();
        });
        Self { authority, identity, address, clock, _tasks: tasks }
    }

    pub(crate) fn worker_credential(&self, life: Duration) -> Credential {
        let key = KeyAndRequest::generate().unwrap();
        let now = self.clock.now();
        let signed = self.authority.sign_worker(key.request_der(), &region(), attempt(), life, now).unwrap();
        key.with_chain(signed.chain_der).unwrap()
    }

    pub(crate) fn worker_identity(&self) -> ClientIdentity {
        ClientIdentity::new(self.worker_credential(HOUR))
    }
}

/// Who the manager says we are.
pub(crate) async fn who_am_i(channel: Channel) -> Result<String, Status> {
    let answer = EnrolmentClient::new(channel).enrol(EnrolRequest::default()).await?;
    Ok(answer.into_inner().region)
}

/// Shows a certificate that our own `ClientIdentity` would refuse to hold.
#[derive(Debug)]
pub(crate) struct Forged(Arc<CertifiedKey>);

impl ResolvesClientCert for Forged {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What a forged certificate says.
pub(crate) struct Forgery {
    pub(crate) uris: Vec<String>,
    pub(crate) is_ca: bool,
    pub(crate) purpose: ExtendedKeyUsagePurpose,
    /// Years of the validity.
    pub(crate) years: (i32, i32),
}

impl Default for Forgery {
    fn default() -> Self {
        Self {
            uris: vec![worker().uri().unwrap()],
            is_ca: false,
            purpose: ExtendedKeyUsagePurpose::ClientAuth,
            years: (2020, 2080),
        }
    }
}

/// An authority of our own making, as rcgen holds it.
pub(crate) struct RawAuthority {
    pub(crate) pem: String,
    pub(crate) key_pem: String,
}

impl RawAuthority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "a test authority");
        let certificate = parameters.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), key_pem: key.serialize_pem() }
    }

    /// Signs the forgery; or lets it sign itself.
    pub(crate) fn forge(&self, forgery: &Forgery, self_signed: bool) -> Arc<Forged> {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        for uri in &forgery.uris {
            parameters.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
        }
        parameters.subject_alt_names.push(SanType::DnsName(SERVER_NAME.try_into().unwrap()));
        if forgery.is_ca {
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        parameters.extended_key_usages = vec![forgery.purpose.clone()];
        parameters.not_before = rcgen::date_time_ymd(forgery.years.0, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(forgery.years.1, 1, 1);
        let certificate = if self_signed {
            parameters.self_signed(&key).unwrap()
        } else {
            let own = KeyPair::from_pem(&self.key_pem).unwrap();
            let issuer = Issuer::from_ca_cert_pem(&self.pem, own).unwrap();
            parameters.signed_by(&key, &issuer).unwrap()
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        Arc::new(Forged(Arc::new(CertifiedKey::new(chain, key))))
    }
}

/// Connects with any certificate and any TLS version, past our own dialer; gives the manager's answer or the failure.
pub(crate) async fn connect_raw(
    network: &dyn Network,
    address: &str,
    authority_pem: &str,
    resolver: Arc<dyn ResolvesClientCert>,
    version: &'static rustls::SupportedProtocolVersion,
) -> Result<String, String> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = network.connect(address).await.map_err(|e| e.to_string())?;
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
    let mut once = Some(hyper_util::rt::TokioIo::new(stream));
    let connector = tower::service_fn(move |_: http::Uri| {
        std::future::ready(once.take().ok_or_else(|| std::io::Error::other("used")))
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://manager.telecine.internal");
    let channel = endpoint.connect_with_connector(connector).await.map_err(|e| e.to_string())?;
    who_am_i(channel).await.map_err(|e| e.to_string())
}
