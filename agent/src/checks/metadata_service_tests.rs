use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

fn provider(name: &str) -> &'static Provider {
    PROVIDERS
        .iter()
        .find(|provider| provider.name == name)
        .unwrap()
}

fn check(name: &str, port: u16, budget: Duration) -> MetadataService {
    MetadataService {
        provider: Some(provider(name)),
        endpoint: Some(format!("http://127.0.0.1:{port}/")),
        configured: true,
        budget,
    }
}

/// A server that answers each request by what `answer` makes of its head.
async fn serve(answer: fn(&str) -> Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let answer = answer(&String::from_utf8(head).unwrap());
                // The client stops reading at its bound.
                let _ = stream.write_all(&answer).await;
            });
        }
    });
    port
}

fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

const LONG: Duration = Duration::from_secs(8);

#[test]
fn firmware_tells_the_provider() {
    let firmware = Firmware {
        sys_vendor: "Amazon EC2".to_owned(),
        ..Firmware::default()
    };
    let here: Vec<_> = PROVIDERS
        .iter()
        .filter(|known| (known.is_here)(&firmware))
        .map(|known| known.name)
        .collect();
    assert_eq!(here, ["aws"]);
    assert!(
        PROVIDERS
            .iter()
            .all(|known| !(known.is_here)(&Firmware::default()))
    );
}

#[tokio::test]
async fn azure_is_asked_with_its_header() {
    muster_runtime::tls::install_provider();
    let port = serve(|head| {
        assert!(head.to_lowercase().contains("metadata: true"), "{head}");
        ok("1234")
    })
    .await;
    let seen = check("azure", port, LONG).run().await;
    assert_eq!(seen.outcome, Outcome::Pass, "{seen:?}");
    assert!(
        !format!("{seen:?}").contains("1234"),
        "bodies stay out of evidence"
    );
}

#[tokio::test]
async fn aws_is_asked_for_a_token_first() {
    muster_runtime::tls::install_provider();
    let port = serve(|head| {
        if head.starts_with("PUT /latest/api/token") {
            ok("secret-token")
        } else if head.contains("secret-token") {
            ok("i-0123")
        } else {
            b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n".to_vec()
        }
    })
    .await;
    let seen = check("aws", port, LONG).run().await;
    assert_eq!(seen.outcome, Outcome::Pass, "{seen:?}");
    assert!(!format!("{seen:?}").contains("secret-token"));
}

#[tokio::test]
async fn refusals_silence_and_closed_ports_are_told_apart() {
    muster_runtime::tls::install_provider();
    let refusing = serve(|_| b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".to_vec()).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let endless = serve(|_| {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 10485760\r\n\r\n".to_vec();
        [head, vec![b'x'; 10 << 20]].concat()
    })
    .await;
    let short = Duration::from_millis(300);
    let table = [
        (refusing, LONG, Outcome::Fail, "METADATA_REFUSED"),
        (closed, LONG, Outcome::Fail, "METADATA_UNREACHABLE"),
        (endless, LONG, Outcome::Pass, "METADATA_REACHED"),
    ];
    for (port, budget, outcome, code) in table {
        let seen = check("gcp", port, budget).run().await;
        assert_eq!((seen.outcome, &*seen.findings[0].code), (outcome, code));
    }
    let seen = check("gcp", silent_port, short).run().await;
    assert_eq!(seen.outcome, Outcome::Fail);
    assert!(seen.findings[0].remedy.is_some());
}

#[tokio::test]
async fn a_machine_in_no_cloud_is_not_concerned() {
    let check = MetadataService {
        provider: None,
        endpoint: None,
        configured: false,
        budget: LONG,
    };
    assert_eq!(check.run().await.outcome, Outcome::NotApplicable);
}
