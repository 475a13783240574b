//! Who is at the other end of a connection: read from its certificate, never from a message.
//!
//! One certificate authority per installation signs everybody. A certificate names its bearer by exactly one URI in our
//! trust domain. A worker's names one attempt and its epoch; it lives for minutes and its key never touches a disk.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use telecine_domain::attempt::AttemptId;
use telecine_domain::id::{AttemptNumber, Epoch, InstanceId, RegionName};
use telecine_domain::time::Timestamp;

mod authority;
mod certificate;
mod credential;

pub use authority::{AuthorityError, CertificateAuthority, SignedCertificate};
pub use certificate::{IdentityError, peer_of};
pub use credential::{ClientIdentity, Credential, CredentialError, KeyAndRequest, ServerIdentity};

/// The name every manager's certificate carries, whatever its address.
pub const SERVER_NAME: &str = "manager.telecine.internal";

const TRUST_DOMAIN: &str = "spiffe://telecine/";

/// Who a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Nobody: no certificate was shown. May enrol and do nothing else.
    Anonymous,
    /// A manager.
    Manager {
        /// The region it is at home in.
        region: RegionName,
        /// Its name, 1 to 64 characters of a-z, 0-9, - and _.
        id: String,
    },
    /// The coordinator of an instance.
    Coordinator {
        /// The region of the instance.
        region: RegionName,
        /// The instance.
        instance: InstanceId,
    },
    /// The worker of one attempt under one epoch.
    Worker {
        /// The region of the job.
        region: RegionName,
        /// The attempt.
        attempt: AttemptId,
    },
}

/// The other end of an accepted connection; handlers find it in the request's extensions.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Who it is.
    pub peer: Peer,
    /// Where it comes from.
    pub address: SocketAddr,
    /// When its certificate ends; `None` without one.
    pub certificate_ends: Option<Timestamp>,
}

/// A text is not the URI of anybody in our trust domain.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} names nobody in the trust domain")]
pub struct InvalidPeer(String);

impl Peer {
    /// The URI in the certificate; `None` for `Anonymous`.
    pub fn uri(&self) -> Option<String> {
        let path = match self {
            Self::Anonymous => return None,
            Self::Manager { region, id } => format!("region/{region}/manager/{id}"),
            Self::Coordinator { region, instance } => format!("region/{region}/instance/{instance}"),
            Self::Worker { region, attempt: AttemptId { job, attempt, epoch } } => {
                format!("region/{region}/job/{job}/attempt/{attempt}/epoch/{epoch}")
            }
        };
        Some(format!("{TRUST_DOMAIN}{path}"))
    }

    fn parse_path(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').collect();
        match parts.as_slice() {
            ["region", region, "manager", id] if is_manager_id(id) => {
                Some(Self::Manager { region: region.parse().ok()?, id: (*id).to_owned() })
            }
            ["region", region, "instance", instance] => {
                Some(Self::Coordinator { region: region.parse().ok()?, instance: instance.parse().ok()? })
            }
            ["region", region, "job", job, "attempt", attempt, "epoch", epoch] => {
                let attempt = AttemptId {
                    job: job.parse().ok()?,
                    attempt: AttemptNumber(attempt.parse().ok()?),
                    epoch: Epoch(epoch.parse().ok()?),
                };
                Some(Self::Worker { region: region.parse().ok()?, attempt })
            }
            _ => None,
        }
    }
}

/// Whether a text may name a manager.
pub fn is_manager_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

impl FromStr for Peer {
    type Err = InvalidPeer;

    /// Accepts exactly what `uri` writes: numbers without signs or leading zeros, no query, no trailing slash.
    fn from_str(text: &str) -> Result<Self, InvalidPeer> {
        text.strip_prefix(TRUST_DOMAIN)
            .and_then(Self::parse_path)
            .filter(|peer| peer.uri().as_deref() == Some(text))
            .ok_or_else(|| InvalidPeer(text.chars().take(200).collect()))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("a peer without a certificate"),
            Self::Manager { region, id } => write!(f, "manager {id} of region {region}"),
            Self::Coordinator { region, instance } => {
                write!(f, "coordinator of {instance} in region {region}")
            }
            Self::Worker { region, attempt } => write!(f, "worker of {attempt} in region {region}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written_and_no_other_way() {
        let region: RegionName = "eu-central-1".parse().unwrap();
        let job = telecine_domain::id::JobId::new(Timestamp::from_millis(5), 7);
        let attempt = AttemptId { job, attempt: AttemptNumber(2), epoch: Epoch(3) };
        let instance = InstanceId::new(Timestamp::from_millis(5), 8);
        for peer in [
            Peer::Manager { region: region.clone(), id: "m-1".to_owned() },
            Peer::Coordinator { region: region.clone(), instance },
            Peer::Worker { region, attempt },
        ] {
            let uri = peer.uri().unwrap();
            assert_eq!(uri.parse(), Ok(peer));
            for hostile in [
                format!("{uri}/"),
                format!("{uri}?x"),
                uri.replace("telecine", "telecine.example"),
                uri.replace("spiffe", "SPIFFE"),
                uri.replace("eu-central-1", "*"),
                uri.replace("eu-central-1", "eu%2Dcentral-1"),
                uri.replace("/region", "//region"),
            ] {
                assert!(hostile.parse::<Peer>().is_err(), "{hostile}");
            }
            for (plain, odd) in
                [("attempt/2", "attempt/02"), ("attempt/2", "attempt/+2"), ("epoch/3", "epoch/-3")]
            {
                if uri.contains(plain) {
                    assert!(uri.replace(plain, odd).parse::<Peer>().is_err(), "{odd}");
                }
            }
        }
        assert!("spiffe://telecine/region/local/manager/".parse::<Peer>().is_err());
        assert!("spiffe://telecine/".parse::<Peer>().is_err());
    }
}
