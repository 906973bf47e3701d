//! The first exchange of RDP: X.224 connection request and confirmation with the negotiation of
//! the security protocol (MS-RDPBCGR 2.2.1.1 and 2.2.1.2).

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::listener::{Broken, shown};

/// TPKT header, connection request, negotiation request for TLS and CredSSP.
pub const REQUEST: [u8; 19] = [3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 3, 0, 0, 0];
const CONNECTION_CONFIRM: u8 = 0xd0;
/// A confirmation has 19 bytes with negotiation and 11 without; routing tokens may make it longer.
const MAX_CONFIRM: usize = 1024;

/// What the server made of the request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Offer {
    /// It chose this security protocol.
    Chosen(&'static str),
    /// It wants something else than was asked for, which clients can give.
    Wants(&'static str),
    /// It has no certificate for TLS: clients are turned away.
    NoCertificate,
    /// It refuses with a code that is not known here.
    Refuses(u32),
}

/// Asks and reads the answer, and hands the connection back for a farewell.
pub(super) async fn negotiate(stream: &mut TcpStream) -> Result<Offer, Broken> {
    stream.write_all(&REQUEST).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if head[0] != 3 || !(11..=MAX_CONFIRM).contains(&length) {
        return Err(Broken::Other(shown(&head)));
    }
    let mut body = vec![0; length - head.len()];
    stream.read_exact(&mut body).await?;
    read(&body).ok_or_else(|| Broken::Other(shown(&[&head[..], &body].concat())))
}

/// The confirmation behind its TPKT header: length, code, destination, source, class, and the
/// negotiation's answer.
fn read(body: &[u8]) -> Option<Offer> {
    let (fixed, negotiated) = body.split_first_chunk::<7>()?;
    if fixed[1] & 0xf0 != CONNECTION_CONFIRM {
        return None;
    }
    let Some(answer) = negotiated.first_chunk::<8>() else {
        return Some(Offer::Chosen(STANDARD));
    };
    let value = u32::from_le_bytes([answer[4], answer[5], answer[6], answer[7]]);
    match (answer[0], value) {
        (2, 0) => Some(Offer::Chosen(STANDARD)),
        (2, 1) => Some(Offer::Chosen("TLS")),
        (2, 2) => Some(Offer::Chosen("CredSSP (network level authentication)")),
        (2, 4) => Some(Offer::Chosen("RDSTLS")),
        (2, 8) => Some(Offer::Chosen("CredSSP with early user authorisation")),
        (2, 16) => Some(Offer::Chosen(ENTRA)),
        (3, 1) => Some(Offer::Wants("TLS")),
        (3, 2) => Some(Offer::Wants(STANDARD)),
        (3, 3) => Some(Offer::NoCertificate),
        (3, 5) => Some(Offer::Wants("CredSSP (network level authentication)")),
        (3, 6) => Some(Offer::Wants("TLS with a client certificate")),
        (3, 7) => Some(Offer::Wants(ENTRA)),
        (2 | 3, other) => Some(Offer::Refuses(other)),
        _ => None,
    }
}

const STANDARD: &str = "standard RDP security alone";
const ENTRA: &str = "sign-in by Microsoft Entra ID (RDSAAD)";

#[cfg(test)]
mod tests {
    //! IronRDP, which clients and servers are made of, is the oracle: what it reads out of our
    //! bytes, and what we read out of its.

    use ironrdp_core::{decode, encode_vec};
    use ironrdp_pdu::{
        nego::{
            ConnectionConfirm, ConnectionRequest, FailureCode, RequestFlags, ResponseFlags,
            SecurityProtocol,
        },
        x224::X224,
    };
    use tokio::net::TcpListener;

    use super::*;

    fn request() -> ConnectionRequest {
        ConnectionRequest {
            nego_data: None,
            flags: RequestFlags::empty(),
            protocol: SecurityProtocol::SSL | SecurityProtocol::HYBRID,
            correlation_info: None,
        }
    }

    #[test]
    fn the_request_is_what_ironrdp_would_send_and_reads() {
        assert_eq!(encode_vec(&X224(request())).unwrap(), REQUEST);
        let read: X224<ConnectionRequest> = decode(&REQUEST).unwrap();
        assert_eq!(read.0, request());
    }

    fn answers() -> Vec<(ConnectionConfirm, Offer)> {
        let chosen = [
            (SecurityProtocol::empty(), STANDARD),
            (SecurityProtocol::SSL, "TLS"),
            (
                SecurityProtocol::HYBRID,
                "CredSSP (network level authentication)",
            ),
            (SecurityProtocol::RDSTLS, "RDSTLS"),
            (
                SecurityProtocol::HYBRID_EX,
                "CredSSP with early user authorisation",
            ),
            (SecurityProtocol::RDSAAD, ENTRA),
        ];
        let failed = [
            (FailureCode::SSL_REQUIRED_BY_SERVER, Offer::Wants("TLS")),
            (
                FailureCode::SSL_NOT_ALLOWED_BY_SERVER,
                Offer::Wants(STANDARD),
            ),
            (FailureCode::SSL_CERT_NOT_ON_SERVER, Offer::NoCertificate),
            (FailureCode::INCONSISTENT_FLAGS, Offer::Refuses(4)),
            (
                FailureCode::HYBRID_REQUIRED_BY_SERVER,
                Offer::Wants("CredSSP (network level authentication)"),
            ),
            (
                FailureCode::SSL_WITH_USER_AUTH_REQUIRED_BY_SERVER,
                Offer::Wants("TLS with a client certificate"),
            ),
            (
                FailureCode::ENTRA_AUTH_REQUIRED_BY_SERVER,
                Offer::Wants(ENTRA),
            ),
            (FailureCode::from(265), Offer::Refuses(265)),
        ];
        let flags = [ResponseFlags::empty(), ResponseFlags::all()];
        let chosen = flags.into_iter().flat_map(|flags| {
            chosen.map(|(protocol, name)| {
                let response = ConnectionConfirm::Response { flags, protocol };
                (response, Offer::Chosen(name))
            })
        });
        let failed = failed.map(|(code, offer)| (ConnectionConfirm::Failure { code }, offer));
        chosen.chain(failed).collect()
    }

    /// A server made of IronRDP takes the request from the network and answers.
    #[tokio::test]
    async fn every_answer_of_a_server_of_ironrdp_is_told_apart() {
        for (answer, wanted) in answers() {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let bytes = encode_vec(&X224(answer.clone())).unwrap();
            let server = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = [0; REQUEST.len()];
                stream.read_exact(&mut asked).await.unwrap();
                let asked: X224<ConnectionRequest> = decode(&asked).unwrap();
                stream.write_all(&bytes).await.unwrap();
                asked.0
            };
            let client = async {
                let mut stream = TcpStream::connect(address).await.unwrap();
                negotiate(&mut stream).await
            };
            let (asked, offer) = tokio::join!(server, client);
            assert_eq!(asked, request());
            assert_eq!(offer.ok(), Some(wanted), "{answer:?}");
        }
    }

    fn confirm(answer: &[u8]) -> Vec<u8> {
        [&[6, 0xd0, 0, 0, 0x12, 0x34, 0], answer].concat()
    }

    /// IronRDP makes none of these: servers from before the negotiation leave it out.
    #[test]
    fn an_old_confirmation_is_read_and_other_bytes_are_not() {
        let old = Some(Offer::Chosen(STANDARD));
        assert_eq!(read(&confirm(&[])), old);
        assert_eq!(read(&confirm(&[7, 0, 8, 0, 9, 1, 0, 0])), None);
        assert_eq!(read(&[6, 0xe0, 0, 0, 0, 0, 0]), None);
        assert_eq!(read(&[6, 0xd0]), None);
    }
}
