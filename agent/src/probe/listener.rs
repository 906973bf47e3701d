//! The first words of the protocols that people connect with.
//!
//! Servers lock out who knocks and runs: every exchange here goes as far as it can without
//! credentials and ends politely. Nothing of the other side's words is kept beyond a short line.

use std::{
    io,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use muster_core::model::{Remedy, clean_text};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    rdp::{self, Offer},
    tcp::{Problem, took},
    tls,
};

/// Bytes that are read for the first words. An SSH server may say a few lines before its version.
const MAX_GREETING: usize = 8 << 10;
/// Bytes that are read and dropped so that the connection ends in order rather than by a reset.
const MAX_FAREWELL: usize = 16 << 10;
/// A certificate is warned of this long before its end: two weeks to get a new one.
const WARN_DAYS: i64 = 14;
/// How long the other side's last words are waited for.
const FAREWELL_WITHIN: Duration = Duration::from_millis(500);

/// What a listener that works said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spoken {
    /// The step that tells it; none where nothing is spoken beyond TCP.
    pub step: Option<String>,
    /// It works, and something should be looked at before it does no more.
    pub warning: Option<Problem>,
}

/// How far an exchange came, in words, and what should be looked at.
type Said = (Option<String>, Option<Problem>);

/// Speaks `protocol` over a connection that was just made. What is not known beyond TCP is closed
/// again at once.
///
/// # Errors
/// If the other side does not speak as it should within `limit`.
pub async fn exchange(
    protocol: &str,
    stream: TcpStream,
    limit: Duration,
    now: Timestamp,
) -> Result<Spoken, (String, Problem)> {
    let begun = Instant::now();
    let spoken: Result<Said, Broken> = timeout(limit, async {
        match protocol {
            "ssh" => Ok((Some(ssh(stream).await?), None)),
            "rdp" => rdp(stream).await,
            "vnc" => Ok((Some(vnc(stream).await?), None)),
            "https" | "tls" => certificate(stream, limit, now).await,
            _ => Ok((None, None)),
        }
    })
    .await
    .unwrap_or(Err(Broken::Silent));
    match spoken {
        Ok((said, warning)) => Ok(Spoken {
            step: said.map(|said| format!("{protocol}: {said} ({})", took(begun))),
            warning,
        }),
        Err(broken) => {
            let problem = broken.into_problem(protocol);
            let step = format!("{protocol}: {} ({})", problem.message, took(begun));
            Err((step, problem))
        }
    }
}

/// How an exchange broke.
pub(super) enum Broken {
    Silent,
    /// It speaks, and says itself why it is of no use.
    Useless(Problem),
    Closed(String),
    Other(String),
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Closed(String::new())
        } else {
            Self::Io(error)
        }
    }
}

impl Broken {
    fn into_problem(self, protocol: &str) -> Problem {
        let restart = "Restart the service that listens there; its log says more.";
        let (code, message, remedy) = match self {
            Self::Useless(problem) => return problem,
            Self::Silent => (
                "LISTENER_SILENT",
                format!("accepts connections but does not speak {protocol} in time"),
                restart,
            ),
            Self::Closed(said) if said.is_empty() => (
                "LISTENER_CLOSED",
                format!("closes connections before a word of {protocol}"),
                "The service may be at its limit of connections or locked this machine out; its \
                 log says more.",
            ),
            Self::Closed(said) => (
                "LISTENER_CLOSED",
                format!("closes connections, saying {said:?}"),
                "The service may be at its limit of connections; its log says more.",
            ),
            Self::Other(said) => (
                "LISTENER_OTHER_PROTOCOL",
                format!("does not speak {protocol}, but says {said:?}"),
                "See which program has the port, or name the right protocol in agent.toml.",
            ),
            Self::Io(error) => (
                "LISTENER_BROKEN",
                format!("the connection broke: {error}"),
                restart,
            ),
        };
        Problem {
            code,
            message,
            remedy: Remedy::text(remedy),
        }
    }
}

pub(super) fn shown(bytes: &[u8]) -> String {
    clean_text(String::from_utf8_lossy(bytes).trim(), 60)
}

/// Both sides' version lines, then an orderly disconnect before any key exchange.
async fn ssh(mut stream: TcpStream) -> Result<String, Broken> {
    let mut said = Vec::new();
    let version = loop {
        if let Some(version) = ssh_version(&said) {
            break version;
        }
        if said.len() >= MAX_GREETING {
            return Err(Broken::Other(shown(&said[..60])));
        }
        let mut chunk = [0; 1024];
        match stream.read(&mut chunk).await? {
            0 => return Err(Broken::Closed(shown(&said))),
            count => said.extend_from_slice(&chunk[..count]),
        }
    };
    if !version.starts_with("SSH-2.0-") && !version.starts_with("SSH-1.99-") {
        return Err(Broken::Other(version));
    }
    stream.write_all(b"SSH-2.0-muster_check\r\n").await?;
    stream.write_all(&ssh_disconnect("health check")).await?;
    farewell(stream).await;
    Ok(format!("greets as {version}"))
}

/// The version line, once it is whole; servers may say other lines before it.
fn ssh_version(said: &[u8]) -> Option<String> {
    said.split_inclusive(|byte| *byte == b'\n')
        .find(|line| line.starts_with(b"SSH-") && line.ends_with(b"\n"))
        .map(shown)
}

/// `SSH_MSG_DISCONNECT` in the clear, as it may be sent before keys are exchanged: length, padding
/// length, message 1, reason 11 (by application), description, language, padding to 8 bytes.
fn ssh_disconnect(description: &str) -> Vec<u8> {
    let mut payload = vec![1];
    payload.extend(11_u32.to_be_bytes());
    for text in [description, ""] {
        payload.extend(u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
        payload.extend(text.as_bytes());
    }
    let mut padding = 8 - (payload.len() + 5) % 8;
    if padding < 4 {
        padding += 8;
    }
    let length = payload.len() + padding + 1;
    let mut packet = u32::try_from(length).unwrap_or(0).to_be_bytes().to_vec();
    packet.push(u8::try_from(padding).unwrap_or(8));
    packet.extend(payload);
    packet.resize(length + 4, 0);
    packet
}

async fn rdp(mut stream: TcpStream) -> Result<Said, Broken> {
    let offer = rdp::negotiate(&mut stream).await?;
    farewell(stream).await;
    match offer {
        Offer::Chosen(security) => Ok((Some(format!("confirms, offers {security}")), None)),
        Offer::Wants(security) => Ok((Some(format!("confirms, wants {security}")), None)),
        Offer::NoCertificate => Err(Broken::Useless(Problem {
            code: "RDP_NO_CERTIFICATE",
            message: "turns clients away: it has no certificate for TLS".to_owned(),
            remedy: Remedy::text(
                "Give the RDP server its certificate and key (certificate and key_file in \
                 xrdp.ini), readable for it, and restart it.",
            )
            .command("systemctl restart xrdp"),
        })),
        Offer::Refuses(code) => Err(Broken::Useless(Problem {
            code: "RDP_REFUSES",
            message: format!("refuses the negotiation with code {code}"),
            remedy: Remedy::text("Look at the RDP server's log."),
        })),
    }
}

/// A TLS handshake, and how long the certificate is still good.
async fn certificate(stream: TcpStream, limit: Duration, now: Timestamp) -> Result<Said, Broken> {
    let address = stream.peer_addr()?;
    let found = match tls::look(stream, &address.ip().to_string(), limit).await {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(Broken::Silent),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(Broken::Closed(String::new()));
        }
        Err(error) => return Err(Broken::Other(error.to_string())),
    };
    let left = found.not_after.duration_since(now).as_hours();
    let renew = "Renew the certificate of this listener and have the service load it.";
    if left < 0 || found.not_after <= now {
        return Err(Broken::Useless(Problem {
            code: "LISTENER_CERTIFICATE_EXPIRED",
            message: format!("its certificate is over since {}", found.not_after),
            remedy: Remedy::text(renew),
        }));
    }
    let warning = (left < 24 * WARN_DAYS).then(|| Problem {
        code: "LISTENER_CERTIFICATE_EXPIRES",
        message: format!("its certificate is over in {} days", left / 24),
        remedy: Remedy::text(renew),
    });
    let said = format!(
        "certificate of {} by {}, good until {}",
        found.subject, found.issuer, found.not_after
    );
    Ok((Some(said), warning))
}

/// Version lines and security types. Where the server asks for no password the handshake is
/// finished, which clears whatever mark it has made of us.
async fn vnc(mut stream: TcpStream) -> Result<String, Broken> {
    const NO_PASSWORD: u8 = 1;
    let mut version = [0; 12];
    stream.read_exact(&mut version).await?;
    if !version.starts_with(b"RFB ") {
        return Err(Broken::Other(shown(&version)));
    }
    let version_shown = shown(&version);
    if version != *b"RFB 003.008\n" {
        // Older versions choose the security themselves: nothing polite is left to say.
        return Ok(format!("greets as {version_shown}"));
    }
    stream.write_all(&version).await?;
    let count = stream.read_u8().await?;
    if count == 0 {
        let mut reason = vec![
            0;
            usize::try_from(stream.read_u32().await?)
                .unwrap_or(0)
                .min(256)
        ];
        stream.read_exact(&mut reason).await?;
        // It lives and talks: that it is tired of us locks out nobody else.
        return Ok(format!(
            "greets as {version_shown}, then says {:?}",
            shown(&reason)
        ));
    }
    let mut kinds = vec![0; usize::from(count)];
    stream.read_exact(&mut kinds).await?;
    if kinds.contains(&NO_PASSWORD) {
        stream.write_all(&[NO_PASSWORD]).await?;
        let _accepted = stream.read_u32().await?;
        // Shared, so that nobody is thrown out.
        stream.write_all(&[1]).await?;
    }
    farewell(stream).await;
    Ok(format!("greets as {version_shown}"))
}

/// Says that we are done and lets the other side finish, within bounds.
async fn farewell(mut stream: TcpStream) {
    let _ = timeout(FAREWELL_WITHIN, async {
        stream.shutdown().await?;
        let mut dropped = [0; 1024];
        let mut total = 0;
        while total < MAX_FAREWELL {
            match stream.read(&mut dropped).await? {
                0 => break,
                count => total += count,
            }
        }
        io::Result::Ok(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// A server that says `first` and then keeps what it hears; the exchange, and what was heard.
    async fn served(
        protocol: &str,
        first: Vec<u8>,
        limit: Duration,
    ) -> (Result<Spoken, Problem>, String, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // The other side may close before everything is said.
            let _ = stream.write_all(&first).await;
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard).await;
            heard
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let (result, step) = match exchange(protocol, stream, limit, Timestamp::UNIX_EPOCH).await {
            Ok(spoken) => (Ok(spoken.clone()), spoken.step.unwrap_or_default()),
            Err((step, problem)) => (Err(problem), step),
        };
        (result, step, server.await.unwrap())
    }

    #[tokio::test]
    async fn ssh_is_greeted_and_left_politely() {
        let greeting = b"Welcome\r\nSSH-2.0-OpenSSH_9.2p1 Debian\r\n".to_vec();
        let (result, step, heard) = served("ssh", greeting, LIMIT).await;
        result.unwrap();
        assert!(step.contains("OpenSSH_9.2p1"), "{step}");
        let disconnect = heard.strip_prefix(b"SSH-2.0-muster_check\r\n").unwrap();
        assert_eq!(disconnect.len() % 8, 0);
        assert_eq!(
            u32::from_be_bytes(disconnect[..4].try_into().unwrap()) as usize + 4,
            disconnect.len()
        );
        assert_eq!(disconnect[5], 1);
    }

    #[tokio::test]
    async fn ten_megabytes_instead_of_a_greeting_are_not_read() {
        let (result, step, _) = served("ssh", vec![b'x'; 10 << 20], LIMIT).await;
        assert_eq!(result.unwrap_err().code, "LISTENER_OTHER_PROTOCOL");
        assert!(step.len() < 256);
    }

    #[tokio::test]
    async fn a_listener_that_never_speaks_is_silent() {
        muster_runtime::tls::install_provider();
        for protocol in ["ssh", "rdp", "vnc", "https"] {
            let (result, ..) = served(protocol, Vec::new(), Duration::from_millis(50)).await;
            assert_eq!(result.unwrap_err().code, "LISTENER_SILENT", "{protocol}");
        }
    }

    #[tokio::test]
    async fn a_listener_that_hangs_up_is_told_with_its_words() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"Exceeded MaxStartups\r\n").await.unwrap();
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let (_, problem) = exchange("ssh", stream, LIMIT, now).await.unwrap_err();
        assert_eq!(problem.code, "LISTENER_CLOSED");
        assert!(problem.message.contains("MaxStartups"), "{problem:?}");
    }

    #[tokio::test]
    async fn rdp_confirms_the_connection() {
        let confirm = vec![
            3, 0, 0, 19, 14, 0xd0, 0, 0, 0x12, 0x34, 0, 2, 0, 8, 0, 1, 0, 0, 0,
        ];
        let (result, step, heard) = served("rdp", confirm, LIMIT).await;
        result.unwrap();
        assert!(step.contains("offers TLS"), "{step}");
        assert_eq!(&heard[..6], [3, 0, 0, 19, 14, 0xe0]);
        let (result, ..) = served("rdp", b"HTTP/1.1 400\r\n".to_vec(), LIMIT).await;
        assert_eq!(result.unwrap_err().code, "LISTENER_OTHER_PROTOCOL");
    }

    #[tokio::test]
    async fn vnc_without_password_is_finished_and_a_tired_one_still_lives() {
        let open = [&b"RFB 003.008\n"[..], &[2, 1, 2], &[0; 4]].concat();
        let (result, _, heard) = served("vnc", open, LIMIT).await;
        result.unwrap();
        assert_eq!(heard, b"RFB 003.008\n\x01\x01");
        let tired = [&b"RFB 003.008\n"[..], &[0, 0, 0, 0, 8], b"too many"].concat();
        let (result, step, _) = served("vnc", tired, LIMIT).await;
        result.unwrap();
        assert!(step.contains("too many"), "{step}");
    }

    #[tokio::test]
    async fn other_protocols_need_a_connection_and_no_word() {
        let (result, step, heard) = served("tcp", Vec::new(), LIMIT).await;
        result.unwrap();
        assert!(step.is_empty() && heard.is_empty());
    }
}
