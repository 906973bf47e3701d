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
        root: PathBuf::from("/nonexistent"),
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
        ok(r#"{"compute":{"vmId":"1234","location":"westeurope","vmSize":"Standard_D4s_v5"}}"#)
    })
    .await;
    let seen = check("azure", port, LONG).run().await;
    assert_eq!(seen.outcome, Outcome::Pass, "{seen:?}");
    for part in ["instance 1234", "type Standard_D4s_v5", "in westeurope"] {
        assert!(seen.message.contains(part), "{part}: {}", seen.message);
    }
    let cloud = seen.cloud.unwrap();
    assert_eq!((&*cloud.provider, &*cloud.instance_id), ("azure", "1234"));
    assert_eq!(cloud.instance_type, "Standard_D4s_v5");
}

#[tokio::test]
async fn aws_is_asked_for_a_token_first() {
    muster_runtime::tls::install_provider();
    let port = serve(|head| {
        if head.starts_with("PUT /latest/api/token") {
            ok("secret-token")
        } else if head.contains("secret-token") {
            ok(r#"{"instanceId":"i-0123","region":"eu-west-1"}"#)
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
        (refusing, LONG, Outcome::Fail, "METADATA_STATUS"),
        (closed, LONG, Outcome::Fail, "METADATA_CLOSED"),
        (endless, LONG, Outcome::Fail, "METADATA_OTHER"),
    ];
    for (port, budget, outcome, code) in table {
        let seen = check("gcp", port, budget).run().await;
        assert_eq!((seen.outcome, &*seen.findings[0].code), (outcome, code));
    }
    let seen = check("gcp", silent_port, short).run().await;
    assert_eq!(seen.outcome, Outcome::Fail);
    assert_eq!(seen.findings[0].code, "METADATA_SILENT");
    assert!(seen.findings[0].remedy.is_some());
}

#[test]
fn documents_of_every_cloud_are_read_and_others_are_not() {
    let table = [
        (
            "gcp",
            r#"{"id":7,"zone":"projects/1/zones/eu-a"}"#,
            "7",
            "eu-a",
        ),
        (
            "hetzner",
            "hostname: x\ninstance-id: 42\nregion: eu-central\n",
            "42",
            "eu-central",
        ),
        (
            "digitalocean",
            r#"{"droplet_id":9,"region":"fra1"}"#,
            "9",
            "fra1",
        ),
    ];
    for (name, body, id, region) in table {
        let found = read(provider(name), body.as_bytes()).unwrap();
        assert_eq!((&*found.instance_id, &*found.region), (id, region));
        assert_eq!(&*found.provider, name);
    }
    for other in ["", "<html>login: here</html>", "{}", "[1]"] {
        assert!(read(provider("azure"), other.as_bytes()).is_none());
    }
}

#[tokio::test]
async fn a_machine_in_no_cloud_is_not_concerned() {
    let check = MetadataService {
        provider: None,
        endpoint: None,
        configured: false,
        budget: LONG,
        root: PathBuf::from("/nonexistent"),
    };
    assert_eq!(check.run().await.outcome, Outcome::NotApplicable);
}
