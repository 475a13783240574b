//! The certificate authority of an installation: a P-256 key, and who it signs for how long.
//!
//! On disk it is `ca.key.pem` (mode 600, refused when others can read it) and `ca.pem` in one folder. The key is
//! written first and under its final name only when whole, so that a crash at any point leaves a folder from which
//! `open` goes on.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use telecine_domain::attempt::AttemptId;
use telecine_domain::id::{InstanceId, RegionName};
use telecine_domain::time::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{Peer, SERVER_NAME};

/// Longest request taken from a peer, in bytes.
const MAX_REQUEST_BYTES: usize = 4096;
/// Uncompressed point of P-256.
const P256_POINT_BYTES: usize = 65;
/// Certificates begin this long ago, for clocks that run behind.
const BACKDATE: Duration = Duration::from_secs(300);
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const KEY_FILE: &str = "ca.key.pem";
const CERTIFICATE_FILE: &str = "ca.pem";

/// Why an authority was not opened, or did not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of it was not read or written.
    #[error("the file {path} of the certificate authority was not {action}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// `read` or `written`.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read its key.
    #[error(
        "the key {path} can be read by others (mode {mode:o}); run `chmod 600` on it, or make a new authority if somebody may have read it"
    )]
    ReadableKey {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is a certificate without its key.
    #[error(
        "{0} is missing although the certificate is there; restore it from a backup, or remove the certificate to make a new authority (every agent must then enrol again)"
    )]
    KeyMissing(PathBuf),
    /// Key or certificate cannot be used.
    #[error("the certificate authority cannot be used: {0}")]
    Unusable(String),
    /// A request cannot be signed.
    #[error("the certificate request is refused: {0}")]
    Request(String),
}

/// Signs certificates.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    ends: Timestamp,
}

/// A certificate as signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCertificate {
    /// Leaf first, DER. The authority itself is not in it: who trusts it has it.
    pub chain_der: Vec<Vec<u8>>,
    /// When it ends.
    pub not_after: Timestamp,
}

impl CertificateAuthority {
    /// Makes an authority in `folder` (made if it is missing, mode 700).
    ///
    /// # Errors
    /// When there is one already, or a file cannot be written.
    pub fn create(folder: &Path, now: Timestamp) -> Result<Self, AuthorityError> {
        let key_path = folder.join(KEY_FILE);
        if key_path.exists() {
            return Err(AuthorityError::Unusable(format!("{} exists already", key_path.display())));
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| AuthorityError::File { path: folder.to_owned(), action: "written", source })?;
        let key = new_key()?;
        write_whole(&key_path, Zeroizing::new(key.serialize_pem()).as_bytes(), 0o600)?;
        Self::certify(folder, key, now)
    }

    /// Loads the authority of `folder`.
    ///
    /// # Errors
    /// When a file is missing, unreadable or does not fit the other, or when others can read the key.
    pub fn load(folder: &Path) -> Result<Self, AuthorityError> {
        let key = load_key(&folder.join(KEY_FILE))?;
        let path = folder.join(CERTIFICATE_FILE);
        let pem = fs::read_to_string(&path).map_err(|source| AuthorityError::File {
            path,
            action: "read",
            source,
        })?;
        Self::from_parts(&pem, key)
    }

    /// Loads the authority of `folder`, or makes it when there is none yet.
    ///
    /// # Errors
    /// As `load` and `create`; a certificate without its key is never replaced.
    pub fn open(folder: &Path, now: Timestamp) -> Result<Self, AuthorityError> {
        let (key_path, certificate) = (folder.join(KEY_FILE), folder.join(CERTIFICATE_FILE));
        match (key_path.exists(), certificate.exists()) {
            (true, true) => Self::load(folder),
            // A crash between the two files: the key is whole and nobody has seen a certificate of it.
            (true, false) => Self::certify(folder, load_key(&key_path)?, now),
            (false, true) => Err(AuthorityError::KeyMissing(key_path)),
            (false, false) => Self::create(folder, now),
        }
    }

    /// An authority that lives in memory only, for tests.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn in_memory(now: Timestamp) -> Result<Self, AuthorityError> {
        let key = new_key()?;
        Self::from_parts(&self_signed(&key, now)?, key)
    }

    /// From a certificate and its key, both PEM, kept somewhere else.
    ///
    /// # Errors
    /// When they cannot be read or do not fit each other.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        Self::from_parts(certificate, KeyPair::from_pem(key).map_err(unusable)?)
    }

    /// The authority's own certificate, PEM; what agents trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's own certificate as a set of roots.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("the certificate was read when the authority was opened");
        roots
    }

    /// Signs for a manager: a server's certificate.
    ///
    /// # Errors
    /// `Request` when the request is not a valid one for a P-256 key.
    pub fn sign_manager(
        &self,
        request_der: &[u8],
        region: &RegionName,
        id: &str,
        life: Duration,
        now: Timestamp,
    ) -> Result<SignedCertificate, AuthorityError> {
        self.sign(request_der, &Peer::Manager { region: region.clone(), id: id.to_owned() }, life, now)
    }

    /// Signs for the coordinator of an instance.
    ///
    /// # Errors
    /// `Request` when the request is not a valid one for a P-256 key.
    pub fn sign_coordinator(
        &self,
        request_der: &[u8],
        region: &RegionName,
        instance: InstanceId,
        life: Duration,
        now: Timestamp,
    ) -> Result<SignedCertificate, AuthorityError> {
        self.sign(request_der, &Peer::Coordinator { region: region.clone(), instance }, life, now)
    }

    /// Signs for the worker of an attempt.
    ///
    /// # Errors
    /// `Request` when the request is not a valid one for a P-256 key.
    pub fn sign_worker(
        &self,
        request_der: &[u8],
        region: &RegionName,
        attempt: AttemptId,
        life: Duration,
        now: Timestamp,
    ) -> Result<SignedCertificate, AuthorityError> {
        self.sign(request_der, &Peer::Worker { region: region.clone(), attempt }, life, now)
    }

    fn sign(
        &self,
        request_der: &[u8],
        peer: &Peer,
        life: Duration,
        now: Timestamp,
    ) -> Result<SignedCertificate, AuthorityError> {
        let public_key = public_key_of(request_der)?;
        let not_after = now.after(life).min(self.ends);
        let parameters = leaf(peer, now, not_after)?;
        let certificate = parameters
            .signed_by(&public_key, &self.issuer)
            .map_err(|problem| AuthorityError::Request(problem.to_string()))?;
        Ok(SignedCertificate { chain_der: vec![certificate.der().to_vec()], not_after })
    }

    fn certify(folder: &Path, key: KeyPair, now: Timestamp) -> Result<Self, AuthorityError> {
        let pem = self_signed(&key, now)?;
        write_whole(&folder.join(CERTIFICATE_FILE), pem.as_bytes(), 0o644)?;
        Self::from_parts(&pem, key)
    }

    fn from_parts(certificate_pem: &str, key: KeyPair) -> Result<Self, AuthorityError> {
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|problem| AuthorityError::Unusable(format!("its certificate is not PEM: {problem}")))?;
        let (_, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|problem| AuthorityError::Unusable(format!("its certificate: {problem}")))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(AuthorityError::Unusable("its certificate belongs to another key".to_owned()));
        }
        let ends = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let ends = Timestamp::from_millis(ends.saturating_mul(1000));
        RootCertStore::empty().add(certificate.clone()).map_err(unusable)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(unusable)?;
        Ok(Self {
            issuer,
            certificate_pem: certificate_pem.to_owned(),
            ends,
            certificate: certificate.clone(),
        })
    }
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").field("ends", &self.ends).finish_non_exhaustive()
    }
}

fn unusable(problem: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Unusable(problem.to_string())
}

fn new_key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(unusable)
}

fn load_key(path: &Path) -> Result<KeyPair, AuthorityError> {
    let failed = |source| AuthorityError::File { path: path.to_owned(), action: "read", source };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(AuthorityError::ReadableKey { path: path.to_owned(), mode });
    }
    let pem = Zeroizing::new(fs::read_to_string(path).map_err(failed)?);
    KeyPair::from_pem(&pem).map_err(|problem| unusable(format!("{}: {problem}", path.display())))
}

/// Writes a file so that it is there whole or not at all, also after a power cut.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| AuthorityError::File { path: path.to_owned(), action: "written", source })
}

fn self_signed(key: &KeyPair, now: Timestamp) -> Result<String, AuthorityError> {
    let mut parameters = validity(now, now.after(AUTHORITY_LIFE));
    // A name of its own: with equal names a leaf looks self-signed to some clients, which then refuse it.
    parameters.distinguished_name = name("Telecine certificate authority");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(parameters.self_signed(key).map_err(unusable)?.pem())
}

fn leaf(peer: &Peer, now: Timestamp, not_after: Timestamp) -> Result<CertificateParams, AuthorityError> {
    let refused = |problem: &str| AuthorityError::Request(problem.to_owned());
    let uri = peer.uri().ok_or_else(|| refused("nobody is to be named"))?;
    // What is signed is what will be read: a name that does not parse back is never given out.
    if uri.parse::<Peer>().as_ref() != Ok(peer) {
        return Err(refused("the name to be certified is not a valid one"));
    }
    let mut parameters = validity(now, not_after);
    parameters.subject_alt_names.push(SanType::URI(uri.as_str().try_into().map_err(unusable)?));
    let (common_name, purpose) = match peer {
        Peer::Manager { .. } => {
            parameters.subject_alt_names.push(SanType::DnsName(SERVER_NAME.try_into().map_err(unusable)?));
            ("Telecine manager", ExtendedKeyUsagePurpose::ServerAuth)
        }
        Peer::Coordinator { .. } => ("Telecine coordinator", ExtendedKeyUsagePurpose::ClientAuth),
        Peer::Worker { .. } | Peer::Anonymous => ("Telecine worker", ExtendedKeyUsagePurpose::ClientAuth),
    };
    parameters.distinguished_name = name(common_name);
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![purpose];
    parameters.use_authority_key_identifier_extension = true;
    Ok(parameters)
}

fn validity(now: Timestamp, not_after: Timestamp) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let begins = Duration::from_millis(now.as_millis()).saturating_sub(BACKDATE);
    let mut parameters = CertificateParams::default();
    parameters.not_before = epoch + begins;
    parameters.not_after = epoch + Duration::from_millis(not_after.as_millis());
    parameters.serial_number = Some(serial());
    parameters
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Telecine");
    name.push(DnType::CommonName, common_name);
    name
}

/// 127 random bits.
fn serial() -> SerialNumber {
    let mut bytes = [0; 16];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).expect("the system's random source answers");
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

/// The key of a request, once the request has proven that its sender holds it. Nothing else of a request is used.
fn public_key_of(request_der: &[u8]) -> Result<rcgen::PublicKey, AuthorityError> {
    let refused = |problem: &str| AuthorityError::Request(problem.to_owned());
    if request_der.len() > MAX_REQUEST_BYTES {
        return Err(refused("it is longer than 4 KiB"));
    }
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request_der))
        .map_err(|problem| AuthorityError::Request(problem.to_string()))?;
    let key = request.public_key;
    if *key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT_BYTES {
        return Err(refused("its key is not a P-256 key"));
    }
    Ok(key)
}
