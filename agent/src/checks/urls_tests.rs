use std::collections::BTreeMap;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

fn urls(brokers: &[String], required: &[String], link: LinkState) -> Urls {
    muster_runtime::tls::install_provider();
    let required = required.iter().map(|url| RequiredUrl {
        url: url.clone(),
        role: "custom".to_owned(),
    });
    Urls {
        brokers: brokers.to_vec(),
        local: required.collect(),
        of_pool: Vec::new(),
        observed: Arc::default(),
        link: watch::channel(link).1,
        budget: Duration::from_secs(9),
    }
}

async fn serve(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4];
            let _ = stream.read_exact(&mut head).await;
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    port
}

async fn closed() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn at(scheme: &str, port: u16) -> String {
    format!("{scheme}://127.0.0.1:{port}/x")
}

#[tokio::test]
async fn any_answer_but_a_server_error_counts() {
    let not_found = serve(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    let broken = serve(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
    let seen = urls(&[], &[at("http", not_found)], LinkState::default())
        .look()
        .await;
    assert_eq!(seen.outcome, Outcome::Pass, "{seen:?}");
    let steps = &seen.findings[0].steps;
    assert!(
        steps[0].starts_with("tcp: connected") && steps[1].contains("404"),
        "{steps:?}"
    );
    let seen = urls(&[], &[at("http", broken)], LinkState::default())
        .look()
        .await;
    assert_eq!(
        (seen.outcome, &*seen.findings[0].code),
        (Outcome::Fail, "HTTP_STATUS")
    );
}

#[tokio::test]
async fn the_step_that_fails_is_named() {
    let plain = serve(b"this is no TLS at all, not even close to it").await;
    let table = [
        (at("http", closed().await), "TCP_REFUSED"),
        (at("https", plain), "TLS_NOT_SPOKEN"),
        ("https://nowhere.invalid/".to_owned(), "DNS_"),
    ];
    for (url, code) in table {
        let seen = urls(&[], std::slice::from_ref(&url), LinkState::default())
            .look()
            .await;
        assert_eq!(seen.outcome, Outcome::Fail);
        let found = &seen.findings[0];
        assert!(found.code.starts_with(code), "{url}: {found:?}");
        assert!(found.remedy.is_some() && !found.steps.is_empty());
    }
}

#[tokio::test]
async fn a_broker_with_an_open_session_is_not_connected_to_again() {
    let (here, gone) = (
        "127.0.0.1:1".to_owned(),
        format!("127.0.0.1:{}", closed().await),
    );
    let link = LinkState {
        brokers: vec![here.as_str().into(), gone.as_str().into()],
        connected: Some(here.as_str().into()),
        address: None,
        problems: BTreeMap::from([(gone.clone(), "certificate expired".to_owned())]),
    };
    let seen = urls(&[], &[], link).look().await;
    assert_eq!(seen.outcome, Outcome::Warn, "a spare is missing: {seen:?}");
    assert!(seen.findings[0].steps[0].contains("certificate expired"));
    assert!(seen.findings[1].steps[0].contains("session is open"));
    let seen = urls(&[gone], &[], LinkState::default()).look().await;
    assert_eq!(seen.outcome, Outcome::Fail, "no broker at all");
}

#[tokio::test]
async fn nothing_to_reach_does_not_apply() {
    let seen = urls(&[], &[], LinkState::default()).look().await;
    assert_eq!(seen.outcome, Outcome::NotApplicable);
}

#[tokio::test]
async fn a_pool_cannot_make_its_hosts_probe_other_ports_or_show_credentials() {
    let required = |url: &str| RequiredUrl {
        url: url.to_owned(),
        role: "custom".to_owned(),
    };
    let mut check = urls(&[], &[], LinkState::default());
    check.of_pool = vec![
        required("http://127.0.0.1:22/"),
        required("https://user:secret@127.0.0.1/?key=secret"),
    ];
    let seen = check.look().await;
    assert_eq!(seen.findings.len(), 2);
    for found in &seen.findings {
        assert_eq!(found.code, "URL_NOT_ALLOWED");
        assert!(found.steps.is_empty());
    }
    assert!(!format!("{seen:?}").contains("secret"), "{seen:?}");
}

#[test]
fn an_entry_of_the_hosts_file_is_blamed_by_line() {
    let problem = Problem {
        code: "TCP_REFUSED",
        message: "0.0.0.0:443 refused".to_owned(),
        remedy: Remedy::default(),
    };
    let steps = ["hosts file: /etc/hosts line 4: 0.0.0.0 x.example".to_owned()];
    let blamed = blame_hosts_file(problem, &steps);
    assert_eq!(blamed.code, "HOSTS_FILE");
    assert!(
        blamed
            .message
            .starts_with("blocked by /etc/hosts line 4: 0.0.0.0 x.example")
    );
    assert_eq!(blamed.remedy.commands, ["sed -i '4d' /etc/hosts"]);
}

#[tokio::test]
async fn a_wildcard_of_which_nothing_is_known_fails_nothing() {
    let wildcard = "https://*.blob.example.net/".to_owned();
    let seen = urls(&[], std::slice::from_ref(&wildcard), LinkState::default())
        .look()
        .await;
    assert_eq!(seen.outcome, Outcome::NotApplicable);
    assert_eq!(seen.findings[0].code, "URL_NOT_OBSERVED");
    let web = serve(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    let both = [wildcard, at("http", web)];
    let seen = urls(&[], &both, LinkState::default()).look().await;
    assert_eq!(seen.outcome, Outcome::Pass);
    assert_eq!(
        seen.message,
        "all 1 reachable; no name of *.blob.example.net has been seen here yet"
    );
}

#[test]
fn a_name_is_gone_only_while_others_of_its_wildcard_are_reached() {
    let one = |kind, reached| Tried {
        finding: Finding::default(),
        kind,
        reached,
        wildcard: Some("*.example.net".to_owned()),
    };
    let gone = || one(Kind::Doubtful, false);
    let left = without_the_gone(vec![gone(), one(Kind::Url, true)]);
    assert_eq!(left.len(), 1);
    assert_eq!(judge(left).outcome, Outcome::Pass);
    // It may be that nothing of it is reached any more.
    assert_eq!(judge(without_the_gone(vec![gone()])).outcome, Outcome::Warn);
    let blocked = vec![gone(), one(Kind::Url, false)];
    assert_eq!(judge(without_the_gone(blocked)).outcome, Outcome::Fail);
}
