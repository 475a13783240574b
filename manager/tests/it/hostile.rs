//! Peers that are not who they say, or say what they may not.

use std::time::Duration;

use serde_json::json;
use telecine_core::enrolment::{self, Binding};
use telecine_domain::attempt::AttemptId;
use telecine_domain::id::{Epoch, RegionName};
use telecine_proto::coordinator::v1 as c;
use telecine_proto::dial::Dialer;
use telecine_proto::enrolment::v1::EnrolRequest;
use telecine_proto::enrolment::v1::enrolment_client::EnrolmentClient;
use telecine_proto::identity::{CertificateAuthority, ClientIdentity, KeyAndRequest, Peer};
use telecine_proto::worker::v1 as w;
use tokio::io::AsyncWriteExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::agent::{
    Coordinator, Habit, Worker, coordinator_identity, from_worker, hello, instance, is_accepted, profile,
};
use crate::world::{World, region};

/// Opens a coordinator's stream with any identity and any first message.
async fn attach(world: &World, identity: ClientIdentity, first: c::FromCoordinator) -> Status {
    let channel = match world.dialer(identity).connect(&world.address).await {
        Ok(channel) => channel,
        Err(error) => return Status::unknown(error.to_string()),
    };
    let (sender, feed) = tokio::sync::mpsc::channel(4);
    sender.send(first).await.unwrap();
    let mut client = c::coordinator_client::CoordinatorClient::new(channel);
    let mut stream = match client.attach(ReceiverStream::new(feed)).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return status,
    };
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Status::ok(""),
            Err(status) => return status,
        }
    }
}

fn greeting(hello: c::Hello) -> c::FromCoordinator {
    c::FromCoordinator { body: Some(c::from_coordinator::Body::Hello(hello)), ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn without_a_certificate_only_enrolment_is_open() {
    let world = World::new().await;
    let first = greeting(hello(instance(1), region(), &[]));
    let status = attach(&world, ClientIdentity::anonymous(), first).await;
    assert_eq!(status.code(), Code::Unauthenticated);
    let channel = world.dialer(ClientIdentity::anonymous()).connect(&world.address).await.unwrap();
    let (_sender, feed) = tokio::sync::mpsc::channel(1);
    let status =
        w::worker_client::WorkerClient::new(channel).attach(ReceiverStream::new(feed)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test(start_paused = true)]
async fn a_join_token_gives_its_own_instance_a_certificate_and_no_other() {
    let world = World::new().await;
    let binding = Binding { instance: instance(1), pool: "default".parse().unwrap(), region: region() };
    let token = enrolment::create(&world.backend, binding, world.now()).await.unwrap();
    let enrol = async |token: &str, id: String, request_der: Vec<u8>| {
        let channel = world.dialer(ClientIdentity::anonymous()).connect(&world.address).await.unwrap();
        let request = EnrolRequest { join_token: token.to_owned(), instance_id: id, request_der };
        EnrolmentClient::new(channel).enrol(request).await.map(tonic::Response::into_inner)
    };
    let request = || KeyAndRequest::generate().unwrap().request_der().to_vec();
    let own = instance(1).to_string();
    for (token, id, request, code) in [
        ("tj_wrong", own.clone(), request(), Code::Unauthenticated),
        ("", own.clone(), request(), Code::Unauthenticated),
        (&**token, instance(2).to_string(), request(), Code::Unauthenticated),
        (&**token, "ins_x".to_owned(), request(), Code::InvalidArgument),
        (&**token, own.clone(), vec![0x30, 0x80], Code::InvalidArgument),
    ] {
        let status = enrol(token, id, request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(token.is_empty() || !status.message().contains(token));
    }
    // Again and again, until the instance is retired.
    for _ in 0..2 {
        let key = KeyAndRequest::generate().unwrap();
        let enrolled = enrol(&token, own.clone(), key.request_der().to_vec()).await.unwrap();
        assert_eq!((enrolled.region.as_str(), enrolled.pool.as_str()), ("local", "default"));
        let credential = key.with_chain(enrolled.chain_der).unwrap();
        assert_eq!(credential.peer(), &Peer::Coordinator { region: region(), instance: instance(1) });
        let identity = ClientIdentity::new(credential);
        let greeting = hello(instance(1), region(), &[]);
        Coordinator::try_attach(&world, identity, greeting, Habit::Willing).await.unwrap();
    }
    enrolment::retire(&world.backend, instance(1), world.now()).await.unwrap();
    assert_eq!(enrol(&token, own, request()).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(start_paused = true)]
async fn a_retired_instance_gets_no_certificate_and_no_stream_and_its_worker_no_new_one() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    world.submit("out.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    let worker = Worker::start(&world, &coordinator, attempt).await;
    let request_der = || KeyAndRequest::generate().unwrap().request_der().to_vec();
    let own = async || {
        let sign = c::SignCoordinator { request_der: request_der() };
        coordinator.call(c::from_coordinator::Body::SignCoordinator(sign)).await
    };
    let again = async || {
        let renew = w::RenewCertificate { request_der: request_der() };
        worker.call(w::from_worker::Body::RenewCertificate(renew)).await
    };
    assert!(matches!(own().await, c::from_manager::Body::Signed(_)));
    assert!(matches!(again().await, w::from_manager::Body::Signed(_)));
    enrolment::retire(&world.backend, instance(1), world.now()).await.unwrap();
    assert!(matches!(own().await, c::from_manager::Body::Refused(refused) if refused.code == "retired"));
    assert_eq!(coordinator.sign(attempt).await.unwrap_err().code, "retired");
    assert!(matches!(again().await, w::from_manager::Body::Refused(refused) if refused.code == "retired"));
    let first = greeting(hello(instance(1), region(), &[]));
    let status = attach(&world, coordinator_identity(&world, instance(1), &region()), first).await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("retired"), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_foreign_certificate_is_refused_in_the_handshake() {
    let world = World::new().await;
    let _welcome = Coordinator::attach(&world, instance(3)).await;
    let foreign = CertificateAuthority::in_memory(world.now()).unwrap();
    let key = KeyAndRequest::generate().unwrap();
    let life = Duration::from_secs(3600);
    let signed =
        foreign.sign_coordinator(key.request_der(), &region(), instance(1), life, world.now()).unwrap();
    let identity = ClientIdentity::new(key.with_chain(signed.chain_der).unwrap());
    let status = attach(&world, identity, greeting(hello(instance(1), region(), &[]))).await;
    assert!(matches!(status.code(), Code::Unknown | Code::Unavailable), "{status:?}");
    assert!(!status.message().contains("lead"), "{status:?}");
    let other = Dialer::new(
        world.network.clone(),
        foreign.certificate_pem(),
        ClientIdentity::anonymous(),
        world.clock,
    );
    assert!(other.unwrap().connect(&world.address).await.is_err(), "nor does it trust our manager");
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_speaks_for_its_own_instance_and_region_only() {
    let world = World::new().await;
    // The region is led once somebody is welcome.
    let _welcome = Coordinator::attach(&world, instance(3)).await;
    let identity = || coordinator_identity(&world, instance(1), &region());
    let other_region: RegionName = "other".parse().unwrap();
    for (hello, code) in [
        (hello(instance(2), region(), &[]), Code::PermissionDenied),
        (hello(instance(1), other_region.clone(), &[]), Code::PermissionDenied),
        (
            c::Hello { profile_json: b"{}".to_vec(), ..hello(instance(1), region(), &[]) },
            Code::InvalidArgument,
        ),
        (c::Hello { versions: vec![9], ..hello(instance(1), region(), &[]) }, Code::FailedPrecondition),
        (c::Hello { highest_term: 99, ..hello(instance(1), region(), &[]) }, Code::Unavailable),
        (
            c::Hello {
                running: vec![c::RunningAttempt { id: None, resources: None }],
                ..hello(instance(1), region(), &[])
            },
            Code::InvalidArgument,
        ),
    ] {
        let status = attach(&world, identity(), greeting(hello)).await;
        assert_eq!(status.code(), code, "{status}");
    }
    let not_a_hello = c::FromCoordinator {
        body: Some(c::from_coordinator::Body::Heartbeat(c::Heartbeat::default())),
        ..Default::default()
    };
    assert_eq!(attach(&world, identity(), not_a_hello).await.code(), Code::InvalidArgument);
    let elsewhere = coordinator_identity(&world, instance(1), &other_region);
    let status = attach(&world, elsewhere, greeting(hello(instance(1), other_region, &[]))).await;
    assert_eq!(status.code(), Code::Unavailable, "a region that this manager does not run");
}

#[tokio::test(start_paused = true)]
async fn a_worker_speaks_for_its_own_attempt_only() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    let (a, b) = (world.submit("a.mp4", json!({})).await, world.submit("b.mp4", json!({})).await);
    let mut attempts = [coordinator.assigned().await, coordinator.assigned().await];
    attempts.sort_by_key(|attempt| attempt.job == b);
    assert_eq!((attempts[0].job, attempts[1].job), (a, b));
    let credential = coordinator.sign(attempts[0]).await.unwrap();
    let status = Worker::connect(&world, credential.clone(), attempts[1]).await.err().unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
    let mut worker = Worker::connect(&world, credential.clone(), attempts[0]).await.unwrap().ok().unwrap();
    let lie = w::from_worker::Body::Ended(w::Ended::default());
    worker.caller.notify(from_worker(attempts[1], lie.clone())).await.unwrap();
    assert_eq!(worker.status().await.code(), Code::PermissionDenied);
    assert_eq!(world.job(b).await.live_attempt(), Some(attempts[1]), "job b is as it was");
    let other_epoch = AttemptId { epoch: Epoch(2), ..attempts[0] };
    let mut worker = Worker::connect(&world, credential.clone(), attempts[0]).await.unwrap().ok().unwrap();
    worker.caller.notify(from_worker(other_epoch, lie)).await.unwrap();
    assert_eq!(worker.status().await.code(), Code::PermissionDenied);
    // A worker's certificate opens no coordinator's stream.
    let status =
        attach(&world, ClientIdentity::new(credential), greeting(hello(instance(1), region(), &[]))).await;
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_reports_and_signs_for_its_own_attempts_only() {
    let world = World::new().await;
    let mut owner = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("a.mp4", json!({})).await;
    let attempt = owner.assigned().await;
    let other = Coordinator::attach(&world, instance(2)).await;
    assert_eq!(other.sign(attempt).await.unwrap_err().code, "not_yours");
    let refused = other.worker_gone(attempt).await;
    assert!(matches!(refused, c::from_manager::Body::Refused(refused) if refused.code == "not_yours"));
    assert_eq!(world.job(job).await.live_attempt(), Some(attempt));
    let mut other = other;
    let lie = c::ProfileChanged {
        profile_json: telecine_proto::convert::json(&profile(instance(1), region())),
        draining: true,
        ..Default::default()
    };
    other.notify(c::from_coordinator::Body::ProfileChanged(lie)).await;
    assert_eq!(other.ended().await.code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_on_the_stream_or_end_it() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    world.submit("a.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    let mut worker = Worker::start(&world, &coordinator, attempt).await;
    let half = Duration::from_secs(5);
    let renew_for = async |worker: &Worker, minutes: u64| {
        for _ in 0..minutes * 12 {
            tokio::time::sleep(half).await;
            if worker.caller.is_ended() || !is_accepted(&worker.renew().await) {
                return false;
            }
        }
        true
    };
    assert!(renew_for(&worker, 15).await);
    let key = KeyAndRequest::generate().unwrap();
    let renew = w::RenewCertificate { request_der: key.request_der().to_vec() };
    let w::from_manager::Body::Signed(signed) =
        worker.call(w::from_worker::Body::RenewCertificate(renew)).await
    else {
        panic!("not signed")
    };
    let renewed = key.with_chain(signed.chain_der).unwrap();
    assert_eq!(renewed.peer(), worker.credential.peer());
    assert!(renew_for(&worker, 25).await, "the stream lives on with the new certificate");
    tokio::time::sleep(Duration::from_secs(300) + half * 3).await;
    assert_eq!(worker.status().await.code(), Code::Unauthenticated);
}

#[tokio::test(start_paused = true)]
async fn garbage_on_the_port_and_in_frames_harms_nobody() {
    let world = World::new().await;
    let mut coordinator = Coordinator::attach(&world, instance(1)).await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &[0x16, 3, 1, 0xff, 0xff, 1], b""] {
        let mut stream = world.network.connect(&world.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        if bytes.len() % 2 == 0 {
            std::mem::forget(stream);
        }
    }
    // A proven worker that sends nonsense loses its stream and nothing else.
    let job = world.submit("a.mp4", json!({})).await;
    let attempt = coordinator.assigned().await;
    let credential = coordinator.sign(attempt).await.unwrap();
    for nonsense in [
        w::from_worker::Body::Progress(w::Progress { ratio_ppm: Some(u32::MAX), ..Default::default() }),
        w::from_worker::Body::Log(w::LogChunk { sequence: 0, ..Default::default() }),
        w::from_worker::Body::Log(w::LogChunk { sequence: 1, data: vec![0; 300 * 1024], at_millis: 0 }),
        w::from_worker::Body::Hello(w::Hello::default()),
    ] {
        let mut worker = Worker::connect(&world, credential.clone(), attempt).await.unwrap().ok().unwrap();
        worker.caller.notify(from_worker(attempt, nonsense)).await.unwrap();
        assert_eq!(worker.status().await.code(), Code::InvalidArgument);
    }
    let worker = Worker::connect(&world, credential, attempt).await.unwrap().ok().unwrap();
    assert!(is_accepted(&worker.renew().await));
    assert_eq!(world.job(job).await.live_attempt(), Some(attempt));
}
