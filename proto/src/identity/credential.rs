//! A key made in memory, the certificate it was given, and the places in TLS that take both and let them be replaced
//! while connections live.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use telecine_domain::time::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CertificateAuthority, IdentityError, Peer, peer_of};

/// Why a key or the certificate given for it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// No key was made.
    #[error("no key was made: {0}")]
    Key(String),
    /// The answer has no certificate.
    #[error("the answer has no certificate")]
    Empty,
    /// The certificate names nobody.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It is for another key.
    #[error("the certificate was signed for another key")]
    OtherKey,
    /// The authority did not sign.
    #[error(transparent)]
    Authority(#[from] super::AuthorityError),
}

/// A fresh P-256 key and the request for its certificate. The key stays in memory.
pub struct KeyAndRequest {
    key: KeyPair,
    request_der: Vec<u8>,
}

impl KeyAndRequest {
    /// Makes both.
    ///
    /// # Errors
    /// When the system gives no key.
    pub fn generate() -> Result<Self, CredentialError> {
        let failed = |problem: rcgen::Error| CredentialError::Key(problem.to_string());
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let request = CertificateParams::default().serialize_request(&key).map_err(failed)?;
        Ok(Self { request_der: request.der().to_vec(), key })
    }

    /// The request, PKCS#10 in DER, for `sign_worker` and its kin.
    pub fn request_der(&self) -> &[u8] {
        &self.request_der
    }

    /// Joins the key with the chain that was signed for it (leaf first, DER).
    ///
    /// # Errors
    /// When the chain is empty, names nobody, or belongs to another key.
    pub fn with_chain(self, chain_der: Vec<Vec<u8>>) -> Result<Credential, CredentialError> {
        let leaf = chain_der.first().ok_or(CredentialError::Empty)?;
        let (peer, not_after) = peer_of(leaf)?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|e| IdentityError::Unreadable(e.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != self.key.public_key_raw() {
            return Err(CredentialError::OtherKey);
        }
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|problem| CredentialError::Key(problem.to_string()))?;
        let chain = chain_der.into_iter().map(CertificateDer::from).collect();
        Ok(Credential { certified: Arc::new(CertifiedKey::new(chain, signing)), peer, not_after })
    }
}

impl fmt::Debug for KeyAndRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyAndRequest(…)")
    }
}

/// A key with its certificate. Its `Debug` shows no key.
#[derive(Clone)]
pub struct Credential {
    certified: Arc<CertifiedKey>,
    peer: Peer,
    not_after: Timestamp,
}

impl Credential {
    /// Whom it names.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// When it ends.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("peer", &self.peer)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// What a dialing program shows. Clones share one credential; a new connection shows the newest.
#[derive(Clone, Debug, Default)]
pub struct ClientIdentity {
    credential: Arc<RwLock<Option<Credential>>>,
}

impl ClientIdentity {
    /// Shows nothing until the first `replace`: good for enrolment only.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Shows this.
    pub fn new(credential: Credential) -> Self {
        Self { credential: Arc::new(RwLock::new(Some(credential))) }
    }

    /// From the next connection on, shows this.
    pub fn replace(&self, credential: Credential) {
        *self.credential.write().unwrap_or_else(PoisonError::into_inner) = Some(credential);
    }

    /// What is shown now.
    pub fn current(&self) -> Option<Credential> {
        self.credential.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesClientCert for ClientIdentity {
    fn resolve(&self, _root_hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let certified = self.current()?.certified;
        certified.key.choose_scheme(schemes)?;
        Some(certified)
    }

    fn has_certs(&self) -> bool {
        self.current().is_some()
    }
}

/// What a manager shows. Clones share one credential.
#[derive(Clone, Debug)]
pub struct ServerIdentity {
    credential: Arc<RwLock<Credential>>,
}

impl ServerIdentity {
    /// Shows this.
    pub fn new(credential: Credential) -> Self {
        Self { credential: Arc::new(RwLock::new(credential)) }
    }

    /// Makes a key and has it signed for a manager.
    ///
    /// # Errors
    /// When no key is made or the authority does not sign.
    pub fn signed_by(
        authority: &CertificateAuthority,
        peer: &Peer,
        life: Duration,
        now: Timestamp,
    ) -> Result<Self, CredentialError> {
        Ok(Self::new(manager_credential(authority, peer, life, now)?))
    }

    /// A new key and certificate for the same manager, shown from the next connection on.
    ///
    /// # Errors
    /// When no key is made or the authority does not sign; the old certificate stays.
    pub fn renew(
        &self,
        authority: &CertificateAuthority,
        life: Duration,
        now: Timestamp,
    ) -> Result<(), CredentialError> {
        let renewed = manager_credential(authority, self.current().peer(), life, now)?;
        *self.credential.write().unwrap_or_else(PoisonError::into_inner) = renewed;
        Ok(())
    }

    /// What is shown now.
    pub fn current(&self) -> Credential {
        self.credential.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn manager_credential(
    authority: &CertificateAuthority,
    peer: &Peer,
    life: Duration,
    now: Timestamp,
) -> Result<Credential, CredentialError> {
    let Peer::Manager { region, id } = peer else {
        return Err(CredentialError::Key(format!("{peer} does not serve")));
    };
    let key = KeyAndRequest::generate()?;
    let signed = authority.sign_manager(key.request_der(), region, id, life, now)?;
    key.with_chain(signed.chain_der)
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().certified)
    }
}
