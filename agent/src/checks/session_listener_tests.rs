use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::config::ListenerConfig;

fn socket(address: &str, inode: u64) -> ListeningSocket {
    ListeningSocket {
        address: address.parse().unwrap(),
        inode,
        waiting: 0,
    }
}

fn owned(names: &[(u64, &str)]) -> BTreeMap<u64, Owner> {
    let owner = |(inode, name): &(u64, &str)| {
        (
            *inode,
            Owner {
                pid: 7,
                name: (*name).to_owned(),
            },
        )
    };
    names.iter().map(owner).collect()
}

fn check(listeners: &[(&str, u16)], allow_loopback: bool) -> SessionListener {
    let mut config = SessionListenerConfig::default();
    config.allow_loopback = allow_loopback;
    config.listeners = listeners
        .iter()
        .map(|(protocol, port)| ListenerConfig {
            protocol: (*protocol).to_owned(),
            port: *port,
            address: Some(Ipv4Addr::LOCALHOST.into()),
        })
        .collect();
    SessionListener {
        config,
        budget: Duration::from_secs(5),
        memory: Mutex::default(),
    }
}

/// A server on loopback that greets each connection so; its port.
async fn serve(greeting: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(greeting).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    port
}

#[test]
fn known_listeners_are_found_by_port_and_by_program() {
    let sockets = [
        socket("0.0.0.0:22", 1),
        socket("[::]:22", 2),
        socket("0.0.0.0:3390", 3),
        socket("0.0.0.0:5901", 4),
        socket("0.0.0.0:5801", 4),
        socket("127.0.0.1:6010", 1),
        socket("0.0.0.0:80", 5),
    ];
    let owners = owned(&[
        (1, "sshd"),
        (2, "sshd"),
        (3, "xrdp"),
        (4, "Xtigervnc"),
        (5, "nginx"),
    ]);
    let found = discover(&sockets, &owners);
    let shown: Vec<_> = found.iter().map(Target::listener).collect();
    let listener = |protocol: &str, port| Listener {
        protocol: protocol.into(),
        addresses: Vec::new(),
        port,
    };
    assert_eq!(
        shown,
        [
            listener("rdp", 3390),
            listener("ssh", 22),
            listener("vnc", 5901)
        ]
    );
    assert_eq!(found[1].sockets, [1, 2]);
}

#[test]
fn an_address_that_reaches_the_socket_is_tried() {
    let of = |address: &str| {
        let found = discover(&[socket(address, 1)], &BTreeMap::new()).remove(0);
        found
            .addresses()
            .iter()
            .map(SocketAddr::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(of("0.0.0.0:22"), ["127.0.0.1:22"]);
    assert_eq!(of("[::]:22"), ["127.0.0.1:22", "[::1]:22"]);
    assert_eq!(of("192.0.2.7:22"), ["192.0.2.7:22"]);
}

#[test]
fn no_listener_is_a_failure_with_a_remedy() {
    let seen = none_found(12);
    assert_eq!(seen.outcome, Outcome::Fail);
    assert_eq!(seen.findings[0].code, "NO_LISTENER");
    assert!(seen.findings[0].remedy.is_some());
    assert_eq!(seen.listeners, Some(Vec::new()));
}

#[tokio::test]
async fn a_configured_listener_that_greets_passes_and_is_reported() {
    let port = serve(b"SSH-2.0-test\r\n").await;
    let seen = check(&[("ssh", port)], true).look().await;
    assert_eq!(seen.outcome, Outcome::Pass, "{seen:?}");
    let listeners = seen.listeners.unwrap();
    assert_eq!(listeners.len(), 1);
    assert_eq!(
        (listeners[0].port, &*listeners[0].addresses[0]),
        (port, "127.0.0.1")
    );
}

#[tokio::test]
async fn loopback_alone_is_a_failure_of_its_own() {
    let port = serve(b"SSH-2.0-test\r\n").await;
    let seen = check(&[("ssh", port)], false).look().await;
    assert_eq!(seen.outcome, Outcome::Fail);
    assert_eq!(seen.findings[0].code, "LISTENER_LOOPBACK_ONLY");
    let remedy = seen.findings[0].remedy.as_ref().unwrap();
    assert!(remedy.text.contains("allow_loopback"));
    assert_eq!(seen.listeners, Some(Vec::new()));
}

#[tokio::test]
async fn one_of_two_configured_listeners_down_is_a_failure() {
    let port = serve(b"").await;
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let seen = check(&[("tcp", port), ("rdp", gone)], true).look().await;
    assert_eq!(seen.outcome, Outcome::Fail);
    assert_eq!(seen.findings[0].code, "LISTENER_DOWN");
    assert_eq!(
        seen.findings[0].remedy.as_ref().unwrap().commands,
        ["systemctl restart xrdp"]
    );
    assert!(seen.message.contains(&gone.to_string()));
    assert_eq!(seen.findings[1].code, "LISTENS");
}

#[tokio::test]
async fn a_listener_with_ten_megabytes_of_greeting_gives_a_small_answer() {
    static HUGE: [u8; 10 << 20] = [b'x'; 10 << 20];
    let port = serve(&HUGE).await;
    let seen = check(&[("ssh", port)], true).look().await;
    assert_eq!(seen.outcome, Outcome::Fail);
    assert!(format!("{seen:?}").len() < 4096);
}

#[tokio::test]
async fn a_server_that_spoke_is_not_knocked_at_again_for_five_minutes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"RFB 003.008\n\x01\x02").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        listener
    });
    let check = check(&[("vnc", port)], true);
    assert_eq!(check.look().await.outcome, Outcome::Pass);
    let listener = server.await.unwrap();
    let again = check.look().await;
    assert_eq!(again.outcome, Outcome::Pass);
    assert!(
        again.findings[0].steps[1].contains("same socket"),
        "{again:?}"
    );
    let later = {
        let mut memory = check.memory.lock();
        for last in memory.spoken.values_mut() {
            last.at = last.at.back(SPEAK_EVERY);
        }
        drop(memory);
        check.look()
    };
    let knocked = async { listener.accept().await.unwrap() };
    let (_, _gone) = tokio::join!(tokio::time::timeout(Duration::from_secs(9), later), knocked);
    drop(listener);
    assert_eq!(check.look().await.outcome, Outcome::Fail);
}

#[tokio::test]
async fn one_of_two_is_enough_where_any_is_required() {
    let port = serve(b"").await;
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut check = check(&[("tcp", port), ("rdp", gone)], true);
    check.config.require = Require::Any;
    let seen = check.look().await;
    assert_eq!(seen.outcome, Outcome::Warn, "{seen:?}");
    assert_eq!(seen.findings[0].code, "LISTENER_DOWN");
    check.config.listeners.remove(0);
    assert_eq!(check.look().await.outcome, Outcome::Fail);
}
