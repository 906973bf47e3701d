//! A name with several addresses: each is tried, and what each met is told.

use std::net::{Ipv6Addr, SocketAddrV4, SocketAddrV6};

use super::*;
use crate::channel::dial::{Dialer, both_families};

/// An address where nobody listens.
async fn refusing() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap()
}

fn dialer(tls: ClientTls, connect_timeout: Duration) -> Dialer {
    Dialer {
        endpoint: "brokers.example.org".parse().unwrap(),
        tls,
        options: ConnectOptions {
            connect_timeout,
            ..ConnectOptions::default()
        },
    }
}

#[tokio::test]
async fn each_address_of_a_name_is_tried_until_one_is_the_brokers() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let refused = refusing().await;
    // It takes connections and says nothing, as a broker that hangs.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let silent_address = silent.local_addr().unwrap();
    let other = serve(&stranger.broker(), AcceptOptions::default());
    let right = serve(&ca.broker(), AcceptOptions::default());
    let addresses = [refused, silent_address, other.address, right.address];
    // Long enough for a handshake on a busy machine: only the silent one has to use it up.
    let dialer = dialer(mutual(&ca.host()), Duration::from_secs(2));
    let dialled = dialer.dial_any(&addresses).await.unwrap();
    assert_eq!(dialled.address, right.address);
    let told: Vec<_> = dialled
        .passed_over
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(told.len(), 3, "{told:?}");
    for (line, address, reason) in [
        (&told[0], refused, "Connection refused"),
        (&told[1], silent_address, "within 2s"),
        (&told[2], other.address, "not issued by the CA"),
    ] {
        assert!(line.starts_with(&address.to_string()), "{line}");
        assert!(line.contains(reason), "{line}");
    }
    assert!(other.service.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn when_no_address_leads_to_the_broker_each_is_told_with_its_reason() {
    let ca = Ca::new();
    let (one, two) = (refusing().await, refusing().await);
    let dialer = dialer(mutual(&ca.host()), Duration::from_secs(10));
    let error = dialer.dial_any(&[one, two]).await.err().unwrap();
    let refused = "Connection refused (os error 111)";
    assert_eq!(
        error.to_string(),
        format!(
            "no address of brokers.example.org:7443 leads to the broker: {one}: {refused}; \
             {two}: {refused}"
        )
    );
    let error = dialer.dial_any(&[]).await.err().unwrap();
    assert!(matches!(error, ConnectError::Resolve { .. }), "{error}");
}

fn v4(last: u8) -> SocketAddr {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), 7443).into()
}

fn v6(last: u16) -> SocketAddr {
    let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
    SocketAddrV6::new(address, 7443, 0, 0).into()
}

#[test]
fn both_families_have_their_turn_however_many_addresses_a_name_has() {
    assert_eq!(both_families(Vec::new()), []);
    assert_eq!(both_families(vec![v4(1), v4(1), v4(2)]), [v4(1), v4(2)]);
    let mixed = both_families(vec![v6(1), v6(2), v6(3), v4(1)]);
    assert_eq!(mixed, [v6(1), v4(1), v6(2), v6(3)]);
    let many: Vec<_> = (0..100).map(v6).chain([v4(1)]).collect();
    let tried = both_families(many);
    assert_eq!(tried.len(), 8);
    assert!(tried.contains(&v4(1)));
}

#[tokio::test]
async fn the_channel_says_which_address_it_is_and_its_socket_follows_the_lease() {
    let ca = Ca::new();
    let server = serve(&ca.broker(), AcceptOptions::default());
    let options = ConnectOptions::default();
    let tls = mutual(&ca.host());
    let connected = connect_tls_at(&server.endpoint(), tls, options)
        .await
        .unwrap();
    assert_eq!(connected.address, server.address);
    assert_eq!(connected.passed_over, []);
    let user_timeout = || {
        let socket = rustix::net::sockopt::tcp_user_timeout(&connected.socket.0);
        u64::from(socket.unwrap())
    };
    assert_eq!(user_timeout(), 35_000);
    let lease = Duration::from_secs(305);
    connected.socket.set_user_timeout(lease).unwrap();
    assert_eq!(user_timeout(), 305_000);
    ask(connected.channel).await;
}
