//! Reading a peer out of its certificate. The chain and the times were checked by rustls before; what is checked here
//! is what rustls does not know: that the certificate names exactly one of us.

use telecine_domain::time::Timestamp;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{InvalidPeer, Peer};

/// Why a certificate names nobody.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// It cannot be read.
    #[error("the certificate is not readable X.509: {0}")]
    Unreadable(String),
    /// It may sign others.
    #[error("the certificate is an authority's and names no peer")]
    IsAuthority,
    /// It has no URI name, or several.
    #[error("the certificate has {0} URI names, exactly one is needed")]
    UriNames(usize),
    /// The URI is not ours.
    #[error(transparent)]
    Foreign(#[from] InvalidPeer),
}

/// Who the certificate names, and when it ends.
///
/// # Errors
/// When it is unreadable, an authority's, or does not have exactly one URI name that is ours.
pub fn peer_of(leaf_der: &[u8]) -> Result<(Peer, Timestamp), IdentityError> {
    let unreadable = |problem: String| IdentityError::Unreadable(problem);
    let (rest, certificate) = X509Certificate::from_der(leaf_der).map_err(|e| unreadable(e.to_string()))?;
    if !rest.is_empty() {
        return Err(unreadable("there are bytes behind it".to_owned()));
    }
    if certificate.is_ca() {
        return Err(IdentityError::IsAuthority);
    }
    let names = certificate.subject_alternative_name().map_err(|e| unreadable(e.to_string()))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let &[uri] = uris.as_slice() else { return Err(IdentityError::UriNames(uris.len())) };
    let ends = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok((uri.parse()?, Timestamp::from_millis(ends.saturating_mul(1000))))
}
