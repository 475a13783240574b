//! Who gets in, who does not, and what an attacker costs.

use std::sync::Arc;
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use telecine_domain::time::Timestamp;
use telecine_proto::clock::Clock;
use telecine_proto::dial::{DialError, Dialer};
use telecine_proto::identity::{CertificateAuthority, ClientIdentity, Peer};
use telecine_proto::net::{MemoryNetwork, Network, TcpNetwork};
use telecine_proto::serve::{self, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Forgery, HOUR, Manager, RawAuthority, connect_raw, region, who_am_i, worker};

fn dialer(network: &Arc<dyn Network>, manager: &Manager, identity: ClientIdentity) -> Dialer {
    let pem = manager.authority.certificate_pem();
    Dialer::new(network.clone(), pem, identity, manager.clock).unwrap()
}

#[tokio::test]
async fn the_certificate_says_who_calls() {
    let network: Arc<dyn Network> = Arc::new(TcpNetwork);
    let manager = Manager::start(&*network, Limits::default(), Clock::System).await;
    let proven = dialer(&network, &manager, manager.worker_identity());
    let channel = proven.connect(&manager.address).await.unwrap();
    assert_eq!(who_am_i(channel).await.unwrap(), worker().to_string());
    let anonymous = dialer(&network, &manager, ClientIdentity::anonymous());
    let channel = anonymous.connect(&manager.address).await.unwrap();
    assert_eq!(who_am_i(channel).await.unwrap(), Peer::Anonymous.to_string());
}

#[tokio::test]
async fn a_manager_of_another_authority_is_not_trusted() {
    let network: Arc<dyn Network> = Arc::new(TcpNetwork);
    let manager = Manager::start(&*network, Limits::default(), Clock::System).await;
    let other = CertificateAuthority::in_memory(Clock::System.now()).unwrap();
    let dialer =
        Dialer::new(network.clone(), other.certificate_pem(), ClientIdentity::anonymous(), Clock::System);
    let error = dialer.unwrap().connect(&manager.address).await.unwrap_err();
    assert!(
        matches!(error, DialError::Connect { .. }) && error.to_string().contains("certificate"),
        "{error}"
    );
    assert!(Dialer::new(network, "no pem", ClientIdentity::anonymous(), Clock::System).is_err());
}

/// A listener whose authority we hold the key of, so that it signs what no Telecine authority would.
async fn raw_manager(network: &dyn Network, raw: &RawAuthority) -> (String, tokio::task::JoinSet<()>) {
    use telecine_proto::enrolment::v1::enrolment_server::EnrolmentServer;
    let authority = CertificateAuthority::from_pem(&raw.pem, &raw.key_pem).unwrap();
    let peer = Peer::Manager { region: region(), id: "m1".to_owned() };
    let identity =
        telecine_proto::identity::ServerIdentity::signed_by(&authority, &peer, HOUR, Clock::System.now());
    let tls = serve::tls(authority.roots(), identity.unwrap(), Clock::System).unwrap();
    let listener = network.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap().to_string();
    let incoming = serve::incoming(listener, tls, Limits::default());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let routes = serve::server().add_service(EnrolmentServer::new(crate::support::Mirror));
        routes.serve_with_incoming(incoming).await.unwrap();
    });
    (address, tasks)
}

#[tokio::test]
async fn hostile_certificates_do_not_get_in() {
    let (raw, foreign) = (RawAuthority::new(), RawAuthority::new());
    let (address, _tasks) = raw_manager(&TcpNetwork, &raw).await;
    let get_in =
        |certificate| connect_raw(&TcpNetwork, &address, &raw.pem, certificate, &rustls::version::TLS13);
    let name = worker().uri().unwrap();
    assert_eq!(get_in(raw.forge(&Forgery::default(), false)).await, Ok(worker().to_string()));
    let forgery = Forgery::default;
    let other_domain = name.replace("telecine", "example");
    for (what, forged) in [
        ("another authority", foreign.forge(&forgery(), false)),
        ("its own signature", raw.forge(&forgery(), true)),
        ("two names", raw.forge(&Forgery { uris: vec![name.clone(), name.clone()], ..forgery() }, false)),
        (
            "a second name elsewhere",
            raw.forge(&Forgery { uris: vec![name.clone(), other_domain.clone()], ..forgery() }, false),
        ),
        ("no name", raw.forge(&Forgery { uris: Vec::new(), ..forgery() }, false)),
        ("another domain", raw.forge(&Forgery { uris: vec![other_domain], ..forgery() }, false)),
        ("a wildcard", raw.forge(&Forgery { uris: vec![name.replace("local", "*")], ..forgery() }, false)),
        ("an authority as a leaf", raw.forge(&Forgery { is_ca: true, ..forgery() }, false)),
        ("the end of its life", raw.forge(&Forgery { years: (2019, 2020), ..forgery() }, false)),
        ("a life to come", raw.forge(&Forgery { years: (2079, 2080), ..forgery() }, false)),
        (
            "a server's purpose",
            raw.forge(&Forgery { purpose: ExtendedKeyUsagePurpose::ServerAuth, ..forgery() }, false),
        ),
    ] {
        assert!(get_in(forged).await.is_err(), "a certificate with {what} got in");
    }
}

#[tokio::test]
async fn only_tls_1_3_is_spoken() {
    let raw = RawAuthority::new();
    let (address, _tasks) = raw_manager(&TcpNetwork, &raw).await;
    let forged = raw.forge(&Forgery::default(), false);
    let old = connect_raw(&TcpNetwork, &address, &raw.pem, forged, &rustls::version::TLS12).await;
    assert!(old.is_err(), "{old:?}");
}

#[tokio::test]
async fn a_replaced_certificate_is_shown_to_the_next_connection() {
    let network: Arc<dyn Network> = Arc::new(TcpNetwork);
    let manager = Manager::start(&*network, Limits::default(), Clock::System).await;
    let dialer = dialer(&network, &manager, manager.worker_identity());
    let channel = dialer.connect(&manager.address).await.unwrap();
    let before = manager.identity.current().not_after();
    manager.identity.renew(&manager.authority, 2 * HOUR, Clock::System.now()).unwrap();
    assert!(manager.identity.current().not_after() > before);
    who_am_i(channel).await.expect("the connection lives on");
    dialer.identity().replace(manager.worker_credential(HOUR));
    let channel = dialer.connect(&manager.address).await.unwrap();
    assert_eq!(who_am_i(channel).await.unwrap(), worker().to_string());
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_is_refused_by_both_sides() {
    let network: Arc<dyn Network> = Arc::new(MemoryNetwork::default());
    let clock = Clock::simulated(Timestamp::from_millis(1_795_359_845_000));
    let manager = Manager::start(&*network, Limits::default(), clock).await;
    let dialer = dialer(&network, &manager, ClientIdentity::new(manager.worker_credential(HOUR / 2)));
    who_am_i(dialer.connect(&manager.address).await.unwrap()).await.unwrap();
    tokio::time::sleep(HOUR / 2 + Duration::from_secs(1)).await;
    let refused = match dialer.connect(&manager.address).await {
        Ok(channel) => who_am_i(channel).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "an expired worker got in");
    tokio::time::sleep(HOUR / 2).await;
    let error = dialer.connect(&manager.address).await.unwrap_err().to_string();
    assert!(error.contains("expired"), "{error}");
}

#[tokio::test]
async fn garbage_and_slow_clients_cost_nobody_else_anything() {
    let network: Arc<dyn Network> = Arc::new(TcpNetwork);
    let limits =
        Limits { handshake_timeout: Duration::from_millis(300), handshakes: 64, ..Limits::default() };
    let manager = Manager::start(&*network, limits, Clock::System).await;
    let mut garbage = network.connect(&manager.address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(network.connect(&manager.address).await.unwrap());
    }
    let dialer = dialer(&network, &manager, manager.worker_identity());
    who_am_i(dialer.connect(&manager.address).await.unwrap()).await.unwrap();
    // The silent ones are closed when their time is up.
    for mut stream in silent {
        let closed = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 1])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    }
    who_am_i(dialer.connect(&manager.address).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn connections_are_bounded_and_places_come_back() {
    let network: Arc<dyn Network> = Arc::new(TcpNetwork);
    let manager =
        Manager::start(&*network, Limits { connections: 2, ..Limits::default() }, Clock::System).await;
    let dialer = dialer(&network, &manager, manager.worker_identity());
    let first = dialer.connect(&manager.address).await.unwrap();
    let second = dialer.connect(&manager.address).await.unwrap();
    assert!(dialer.connect(&manager.address).await.is_err());
    who_am_i(first.clone()).await.unwrap();
    drop((first, second));
    let mut again = dialer.connect(&manager.address).await;
    for _ in 0..100 {
        if again.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        again = dialer.connect(&manager.address).await;
    }
    who_am_i(again.expect("a closed connection gives its place back")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_cut_at_its_age() {
    let network: Arc<dyn Network> = Arc::new(MemoryNetwork::default());
    let clock = Clock::simulated(Timestamp::from_millis(1_795_359_845_000));
    let limits = Limits { connection_age: Duration::from_secs(600), ..Limits::default() };
    let manager = Manager::start(&*network, limits, clock).await;
    let dialer = dialer(&network, &manager, manager.worker_identity());
    let channel = dialer.connect(&manager.address).await.unwrap();
    tokio::time::sleep(Duration::from_secs(450)).await;
    who_am_i(channel.clone()).await.expect("still young");
    tokio::time::sleep(Duration::from_secs(300)).await;
    who_am_i(channel).await.expect_err("too old");
    who_am_i(dialer.connect(&manager.address).await.unwrap()).await.expect("a new one is welcome");
}
