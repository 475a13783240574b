//! The authority on disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use telecine_domain::time::Timestamp;
use telecine_proto::clock::Clock;
use telecine_proto::identity::{AuthorityError, CertificateAuthority, CredentialError, KeyAndRequest, Peer};

use crate::support::{HOUR, attempt, instance, region};

fn now() -> Timestamp {
    Clock::System.now()
}

#[test]
fn is_made_once_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("ca");
    let made = CertificateAuthority::open(&folder, now()).unwrap();
    let found = CertificateAuthority::open(&folder, now()).unwrap();
    assert_eq!(made.certificate_pem(), found.certificate_pem());
    let mode = |path: &str| fs::metadata(folder.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca.key.pem"), mode("")), (0o600, 0o700));
    assert!(CertificateAuthority::create(&folder, now()).is_err(), "an authority is never overwritten");
    assert!(!format!("{made:?}").contains("PRIVATE"));
}

#[test]
fn a_key_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    CertificateAuthority::open(folder.path(), now()).unwrap();
    for mode in [0o640, 0o604, 0o660] {
        let key = folder.path().join("ca.key.pem");
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let error = CertificateAuthority::open(folder.path(), now()).unwrap_err();
        assert!(matches!(error, AuthorityError::ReadableKey { .. }), "{error}");
    }
}

#[test]
fn a_crash_between_the_files_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    CertificateAuthority::open(folder.path(), now()).unwrap();
    let (key, certificate) = (folder.path().join("ca.key.pem"), folder.path().join("ca.pem"));
    // Died before the certificate, with half a temporary file left.
    fs::remove_file(&certificate).unwrap();
    fs::write(folder.path().join("ca.new"), "half").unwrap();
    CertificateAuthority::open(folder.path(), now()).unwrap();
    // The key is gone: that is never mended silently, since every agent trusts the old one.
    fs::remove_file(&key).unwrap();
    let error = CertificateAuthority::open(folder.path(), now()).unwrap_err();
    assert!(matches!(error, AuthorityError::KeyMissing(_)), "{error}");
    // Another authority's key beside the certificate.
    let other = tempfile::tempdir().unwrap();
    CertificateAuthority::open(other.path(), now()).unwrap();
    fs::copy(other.path().join("ca.key.pem"), &key).unwrap();
    let error = CertificateAuthority::open(folder.path(), now()).unwrap_err();
    assert!(matches!(error, AuthorityError::Unusable(_)), "{error}");
    fs::write(&key, "not a key").unwrap();
    assert!(CertificateAuthority::open(folder.path(), now()).is_err());
}

#[test]
fn signs_only_what_proves_its_key_and_only_that_key() {
    let authority = CertificateAuthority::in_memory(now()).unwrap();
    let key = KeyAndRequest::generate().unwrap();
    let sign = |request: &[u8]| authority.sign_worker(request, &region(), attempt(), HOUR, now());
    let signed = sign(key.request_der()).unwrap();
    let credential = key.with_chain(signed.chain_der.clone()).unwrap();
    assert_eq!(credential.peer(), &Peer::Worker { region: region(), attempt: attempt() });
    assert!(!format!("{credential:?}").contains("key"));
    let other = KeyAndRequest::generate().unwrap();
    assert!(matches!(other.with_chain(signed.chain_der), Err(CredentialError::OtherKey)));
    assert!(matches!(KeyAndRequest::generate().unwrap().with_chain(Vec::new()), Err(CredentialError::Empty)));

    let mut tampered = KeyAndRequest::generate().unwrap().request_der().to_vec();
    *tampered.last_mut().unwrap() ^= 1;
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = rcgen::CertificateParams::default().serialize_request(&p384).unwrap();
    for hostile in [&b""[..], b"garbage", &[0x30; 5000], &tampered, p384.der()] {
        assert!(matches!(sign(hostile), Err(AuthorityError::Request(_))));
    }
}

#[test]
fn a_request_decides_no_name_and_no_power() {
    let authority = CertificateAuthority::in_memory(now()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut wish = rcgen::CertificateParams::new(vec!["manager.telecine.internal".to_owned()]).unwrap();
    let uri = "spiffe://telecine/region/local/manager/evil";
    wish.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
    wish.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = wish.serialize_request(&key).unwrap();
    let signed = authority.sign_coordinator(request.der(), &region(), instance(), HOUR, now()).unwrap();
    let (peer, _) = telecine_proto::identity::peer_of(&signed.chain_der[0]).unwrap();
    assert_eq!(peer, Peer::Coordinator { region: region(), instance: instance() });
}

#[test]
fn a_certificate_never_outlives_its_authority_and_serials_differ() {
    let authority = CertificateAuthority::in_memory(now()).unwrap();
    let sign = |life| {
        let key = KeyAndRequest::generate().unwrap();
        authority.sign_worker(key.request_der(), &region(), attempt(), life, now()).unwrap()
    };
    let ten_years = now().after(HOUR * 24 * 3651);
    assert!(sign(HOUR * 24 * 365 * 100).not_after < ten_years);
    let serial = |chain: &[Vec<u8>]| {
        let (_, certificate) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        certificate.raw_serial().to_vec()
    };
    assert_ne!(serial(&sign(HOUR).chain_der), serial(&sign(HOUR).chain_der));
    let key = KeyAndRequest::generate().unwrap();
    let bad_name = authority.sign_manager(key.request_der(), &region(), "a/../b", HOUR, now());
    assert!(bad_name.is_err());
}
