//! TLS from the channel to the accept loop, over loopback.

use std::{
    net::Ipv4Addr,
    pin::pin,
    sync::{Arc, Mutex},
};

use futures_util::future::{Either, select};
use muster_proto::v1::{
    EnrollRequest, EnrollResponse,
    enrollment_service_client::EnrollmentServiceClient,
    enrollment_service_server::{EnrollmentService, EnrollmentServiceServer},
};
use rcgen::ExtendedKeyUsagePurpose;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, yield_now},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{Request, Response, transport::Server};

use super::*;
use crate::{
    accept::{AcceptCounters, AcceptOptions, PeerInfo, bind_tcp, serve_tls, serve_unix},
    identity::LocalIdentity,
    refusal,
    testing::{BROKER, Ca, HOST, Spec},
    tls::{Peer, RefusedPeer, ServerTls, TlsVersions},
};

#[path = "dial_tests.rs"]
mod dial_tests;

/// Refuses every request, and notes from whom it came.
#[derive(Clone, Default)]
struct Refuses {
    seen: Arc<Mutex<Vec<PeerInfo>>>,
}

#[tonic::async_trait]
impl EnrollmentService for Refuses {
    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let info = request.extensions().get::<PeerInfo>().unwrap().clone();
        self.seen.lock().unwrap().push(info);
        Err(Refusal::new(refusal::TOKEN_UNKNOWN, "there is no such join token").into())
    }
}

/// A server on loopback; ends with the test's runtime.
struct Running {
    address: SocketAddr,
    tls: Arc<ServerTls>,
    counters: Arc<AcceptCounters>,
    service: Refuses,
    _task: JoinHandle<()>,
}

fn serve(identity: &LocalIdentity, options: AcceptOptions) -> Running {
    let listener = bind_tcp((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let tls = Arc::new(ServerTls::new(identity, TlsVersions::default()).unwrap());
    let incoming = serve_tls(listener, Arc::clone(&tls), options);
    let counters = incoming.counters();
    let service = Refuses::default();
    let server = Server::builder()
        .add_service(EnrollmentServiceServer::new(service.clone()))
        .serve_with_incoming(incoming);
    let task = tokio::spawn(async move { server.await.unwrap() });
    Running {
        address,
        tls,
        counters,
        service,
        _task: task,
    }
}

impl Running {
    fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Who the server takes this client for.
    async fn sees(&self, tls: ClientTls) -> Peer {
        let channel = connect_tls(&self.endpoint(), tls, ConnectOptions::default())
            .await
            .unwrap();
        let status = ask(channel).await;
        assert_eq!(
            explain_status(&status),
            "there is no such join token (TOKEN_UNKNOWN)"
        );
        let info = self.service.seen.lock().unwrap().pop().unwrap();
        assert!(info.address.unwrap().ip().is_loopback());
        info.peer
    }

    async fn refused_by(&self, tls: ClientTls) -> String {
        connect_tls(&self.endpoint(), tls, ConnectOptions::default())
            .await
            .unwrap_err()
            .to_string()
    }
}

async fn ask(channel: Channel) -> Status {
    EnrollmentServiceClient::new(channel)
        .enroll(EnrollRequest::default())
        .await
        .unwrap_err()
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), wait)
        .await
        .expect("the condition comes true");
}

fn mutual(identity: &LocalIdentity) -> ClientTls {
    ClientTls::mutual(identity).unwrap()
}

/// A client with a certificate of `signer` that trusts the broker of `trusted`.
fn stranger(signer: &Ca, trusted: &Ca, spec: &Spec) -> ClientTls {
    let mut identity = signer.issue(spec);
    identity.roots = vec![trusted.root()];
    mutual(&identity)
}

#[tokio::test]
async fn a_client_with_a_good_certificate_is_known() {
    let ca = Ca::new();
    let server = serve(&ca.broker(), AcceptOptions::default());
    let host = ca.host();
    let serial = host.info.serial_hex.clone();
    let known = Peer::Known(HOST.parse().unwrap(), serial.into());
    assert_eq!(server.sees(mutual(&host)).await, known);
}

#[tokio::test]
async fn a_client_with_the_pin_alone_is_anonymous() {
    let ca = Ca::new();
    let server = serve(&ca.broker(), AcceptOptions::default());
    let tls = ClientTls::pinned(ca.pin()).unwrap();
    assert_eq!(server.sees(tls).await, Peer::Anonymous);
}

#[tokio::test]
async fn certificates_that_do_not_count_are_refused_by_name() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = serve(&ca.broker(), AcceptOptions::default());
    let elsewhere = "muster://muster-ffffffff/viewer/ann";
    let cases = [
        (
            stranger(&ca, &ca, &Spec::client(HOST).years(2000, 2001)),
            refusal::CERTIFICATE_EXPIRED,
            "the certificate ended at 2001-01-01T00:00:00Z",
            true,
        ),
        (
            stranger(&ca, &ca, &Spec::client(HOST).years(2990, 3000)),
            refusal::CERTIFICATE_NOT_YET_VALID,
            "the certificate begins at 2990-01-01T00:00:00Z",
            true,
        ),
        (
            stranger(&other, &ca, &Spec::client(HOST)),
            refusal::CERTIFICATE_UNTRUSTED,
            "it was not issued by this fleet's CA",
            false,
        ),
        (
            stranger(&other, &ca, &Spec::client(HOST).years(2000, 2001)),
            refusal::CERTIFICATE_UNTRUSTED,
            "",
            false,
        ),
        (
            stranger(&ca, &ca, &Spec::server(HOST)),
            refusal::CERTIFICATE_UNTRUSTED,
            "certificate does not allow extended key usage",
            false,
        ),
    ];
    for (tls, reason, detail, has_identity) in cases {
        let Peer::Refused(refused) = server.sees(tls).await else {
            panic!("{reason}");
        };
        assert_eq!(refused.reason, reason, "{refused:?}");
        assert!(refused.detail.contains(detail), "{refused:?}");
        let identity = has_identity.then(|| HOST.parse().unwrap());
        assert_eq!(refused.identity, identity, "{refused:?}");
        assert_eq!(refused.serial_hex.is_some(), has_identity, "{refused:?}");
    }
    // The client takes its trust domain from its own certificate: it must not believe ours.
    let text = server
        .refused_by(stranger(&other, &ca, &Spec::client(elsewhere)))
        .await;
    assert!(
        text.ends_with("is the broker of the fleet muster-0a1b2c3d, wanted is muster-ffffffff"),
        "{text}"
    );
}

#[tokio::test]
async fn certificates_of_another_fleet_or_without_identity_are_told_apart() {
    let (ca, other) = (Ca::new(), Ca::new());
    let tls = ServerTls::new(&ca.broker(), TlsVersions::default()).unwrap();
    let now = rustls_pki_types::UnixTime::now();
    let judge = |signer: &Ca, uri| {
        let (certificate, _) = signer.sign(&Spec::client(uri));
        match tls.current().judge(Some(&[certificate]), now) {
            Peer::Refused(RefusedPeer {
                reason,
                identity: None,
                ..
            }) => reason,
            other => panic!("{other:?}"),
        }
    };
    let elsewhere = "muster://muster-ffffffff/viewer/ann";
    for signer in [&ca, &other] {
        assert_eq!(
            judge(signer, elsewhere),
            refusal::CERTIFICATE_OTHER_TRUST_DOMAIN
        );
    }
    let foreign = "https://example.org/";
    assert_eq!(judge(&ca, foreign), refusal::CERTIFICATE_MALFORMED);
    assert_eq!(judge(&other, foreign), refusal::CERTIFICATE_UNTRUSTED);
}

#[tokio::test]
async fn after_an_exchange_of_roots_old_certificates_do_not_count() {
    let (old, new) = (Ca::new(), Ca::new());
    let server = serve(&old.broker(), AcceptOptions::default());
    let host = mutual(&old.host());
    assert!(server.sees(host.clone()).await.identity().is_some());
    let mut broker = old.broker();
    broker.roots = vec![new.root()];
    server.tls.replace(&broker, TlsVersions::default()).unwrap();
    let Peer::Refused(refused) = server.sees(host).await else {
        panic!("still known");
    };
    assert_eq!(refused.reason, refusal::CERTIFICATE_UNTRUSTED);
}

#[tokio::test]
async fn a_wrong_pin_is_answered_with_both_pins_and_what_to_do() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = serve(&ca.broker(), AcceptOptions::default());
    let text = server
        .refused_by(ClientTls::pinned(other.pin()).unwrap())
        .await;
    let pins = format!("wanted {}, got {};", other.pin(), ca.pin());
    assert!(text.contains(&pins), "{text}");
    assert!(text.contains("muster-broker token create"), "{text}");
}

#[tokio::test]
async fn only_a_broker_of_the_same_ca_is_believed_to_be_the_broker() {
    let (ca, other) = (Ca::new(), Ca::new());
    let cases = [
        (ca.issue(&Spec::client(HOST)), "is not a broker"),
        (ca.issue(&Spec::server(HOST)), "is not a broker"),
        (
            ca.issue(&Spec {
                usage: None,
                ..Spec::server(BROKER)
            }),
            "is not a broker",
        ),
        (
            ca.issue(&Spec {
                usage: Some(ExtendedKeyUsagePurpose::ClientAuth),
                ..Spec::server(BROKER)
            }),
            "is not a broker",
        ),
        (
            ca.issue(&Spec::server(BROKER).years(2000, 2001)),
            "good from 2000-01-01T00:00:00Z to 2001-01-01T00:00:00Z, and this machine's clock",
        ),
    ];
    for (identity, says) in cases {
        let server = serve(&identity, AcceptOptions::default());
        for tls in [mutual(&ca.host()), ClientTls::pinned(ca.pin()).unwrap()] {
            let text = server.refused_by(tls).await;
            assert!(text.contains(says), "{text}");
        }
    }
    let server = serve(&other.broker(), AcceptOptions::default());
    let text = server.refused_by(mutual(&ca.host())).await;
    assert!(
        text.contains("not issued by the CA that this program trusts"),
        "{text}"
    );
}

#[tokio::test]
async fn plain_text_on_the_tls_port_hurts_nobody() {
    let ca = Ca::new();
    let server = serve(&ca.broker(), AcceptOptions::default());
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 100],
        &[0x16, 3, 1, 0xff, 0xff],
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // An alert, or a reset: in any case an end.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.len() < 100);
    }
    until(|| server.counters.failed() == 3).await;
    assert!(server.sees(mutual(&ca.host())).await.identity().is_some());
    assert_eq!(server.counters.handshaking(), 0);
}

#[tokio::test]
async fn a_client_that_speaks_only_tls_1_2_is_refused_unless_it_is_allowed() {
    let ca = Ca::new();
    let server = serve(&ca.broker(), AcceptOptions::default());
    let old_client = || async {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.root()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(server.address).await.unwrap();
        let name = ServerName::try_from("broker.invalid").unwrap();
        let error = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await;
        error.unwrap_err().to_string()
    };
    let text = old_client().await;
    assert!(text.contains("ProtocolVersion"), "{text}");
    let both = TlsVersions::Tls12AndTls13;
    server.tls.replace(&ca.broker(), both).unwrap();
    // It gets as far as the name, which no broker's certificate has.
    let text = old_client().await;
    assert!(text.contains("not valid for"), "{text}");
}

#[tokio::test]
async fn a_silent_client_is_shown_out_after_the_handshake_timeout() {
    let ca = Ca::new();
    let options = AcceptOptions {
        handshake_timeout: Duration::from_millis(20),
        ..AcceptOptions::default()
    };
    let server = serve(&ca.broker(), options);
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    until(|| server.counters.timed_out() == 1 && server.counters.handshaking() == 0).await;
}

#[tokio::test]
async fn handshakes_over_the_limit_wait_for_a_place() {
    let ca = Ca::new();
    let options = AcceptOptions {
        handshakes: 1,
        handshake_timeout: Duration::from_secs(3600),
        ..AcceptOptions::default()
    };
    let server = serve(&ca.broker(), options);
    let silent = TcpStream::connect(server.address).await.unwrap();
    until(|| server.counters.handshaking() == 1).await;
    let second = pin!(server.sees(mutual(&ca.host())));
    let Either::Right(((), second)) = select(second, pin!(turns())).await else {
        panic!("it did not wait");
    };
    assert_eq!(server.counters.waiting(), 1);
    drop(silent);
    assert!(second.await.identity().is_some());
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_place() {
    let ca = Ca::new();
    let options = AcceptOptions {
        connections: 1,
        ..AcceptOptions::default()
    };
    let server = serve(&ca.broker(), options);
    let tls = mutual(&ca.host());
    let first = connect_tls(&server.endpoint(), tls.clone(), ConnectOptions::default())
        .await
        .unwrap();
    until(|| server.counters.open() == 1).await;
    let second = pin!(server.sees(tls));
    let Either::Right(((), second)) = select(second, pin!(turns())).await else {
        panic!("it did not wait");
    };
    drop(first);
    assert!(second.await.identity().is_some());
}

/// Enough turns of the runtime for a handshake that nothing holds up.
async fn turns() {
    for _ in 0..200 {
        yield_now().await;
    }
}

#[tokio::test]
async fn a_channel_dials_again_when_its_connection_ended() {
    let ca = Ca::new();
    let listener = bind_tcp((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let tls = Arc::new(ServerTls::new(&ca.broker(), TlsVersions::default()).unwrap());
    let mut incoming = serve_tls(listener, tls, AcceptOptions::default());
    let counters = incoming.counters();
    tokio::spawn(async move {
        drop(incoming.accept().await);
        let service = EnrollmentServiceServer::new(Refuses::default());
        let server = Server::builder().add_service(service);
        server.serve_with_incoming(incoming).await.unwrap();
    });
    let channel = connect_tls(&endpoint, mutual(&ca.host()), ConnectOptions::default())
        .await
        .unwrap();
    let answered = async {
        // A request may still meet the end of the first connection.
        while Refusal::from_status(&ask(channel.clone()).await).is_none() {}
    };
    timeout(Duration::from_secs(20), answered).await.unwrap();
    assert_eq!(counters.accepted(), 2);
}

#[tokio::test]
async fn what_is_not_a_broker_is_said_to_be_none() {
    let ca = Ca::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        for greeting in [&b"SSH-2.0-OpenSSH_9.2p1\r\n"[..], b""] {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(greeting).await.unwrap();
            let mut hello = [0; 64];
            stream.read_exact(&mut hello).await.unwrap();
        }
    });
    let tls = mutual(&ca.host());
    let connect = || connect_tls(&endpoint, tls.clone(), ConnectOptions::default());
    let text = connect().await.unwrap_err().to_string();
    assert!(
        text.contains("does not speak TLS: is it the broker's port?"),
        "{text}"
    );
    let text = connect().await.unwrap_err().to_string();
    assert!(
        text.starts_with("no TLS connection to 127.0.0.1:"),
        "{text}"
    );
    server.await.unwrap();
    // The listener is gone with its task.
    let text = connect().await.unwrap_err().to_string();
    assert!(text.contains("Connection refused"), "{text}");
}

#[tokio::test]
async fn a_silent_server_is_given_up_after_the_timeout() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let options = ConnectOptions {
        connect_timeout: Duration::from_millis(20),
        ..ConnectOptions::default()
    };
    let error = connect_tls(&endpoint, mutual(&Ca::new().host()), options).await;
    let text = error.unwrap_err().to_string();
    assert_eq!(
        text,
        format!("{endpoint} did not complete a connection within 20ms")
    );
}

#[test]
fn addresses_of_brokers_read_as_they_are_written() {
    for (text, whole) in [
        ("broker.example.org", "broker.example.org:7443"),
        ("broker:1", "broker:1"),
        ("127.0.0.1:65535", "127.0.0.1:65535"),
        ("[::1]", "[::1]:7443"),
        ("[2001:db8::1]:7443", "[2001:db8::1]:7443"),
    ] {
        assert_eq!(text.parse::<BrokerAddress>().unwrap().to_string(), whole);
    }
    for wrong in [
        "",
        ":7443",
        "a b:1",
        "broker:0",
        "broker:65536",
        "broker:+1",
        "broker:",
        "::1",
        "https://broker:7443",
        "[::1",
        "[::1]x",
        "[broker]:1",
        "user@broker:1",
    ] {
        let text = wrong.parse::<BrokerAddress>().unwrap_err().to_string();
        assert!(text.contains("write HOST:PORT"), "{wrong:?}: {text}");
    }
}

#[tokio::test]
async fn a_unix_socket_carries_the_user_of_its_peer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("operator.sock");
    let incoming = serve_unix(&path, 0o660, None, AcceptOptions::default()).unwrap();
    let service = Refuses::default();
    let server = Server::builder()
        .add_service(EnrollmentServiceServer::new(service.clone()))
        .serve_with_incoming(incoming);
    tokio::spawn(async move { server.await.unwrap() });
    let channel = connect_unix(&path, ConnectOptions::default())
        .await
        .unwrap();
    assert_eq!(ask(channel).await.code(), tonic::Code::Unauthenticated);
    let uid = rustix::process::geteuid().as_raw();
    let local = PeerInfo {
        address: None,
        is_local: true,
        peer: Peer::Local { uid },
    };
    assert_eq!(*service.seen.lock().unwrap(), [local]);
}

#[tokio::test]
async fn a_socket_without_a_listener_is_answered_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("operator.sock");
    let error = connect_unix(&path, ConnectOptions::default()).await;
    let text = error.unwrap_err().to_string();
    assert!(text.contains("is the service running?"), "{text}");
}
