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
        (3, 1) => Some(Offer::Wants("TLS")),
        (3, 2) => Some(Offer::Wants(STANDARD)),
        (3, 3) => Some(Offer::NoCertificate),
        (3, 5) => Some(Offer::Wants("CredSSP (network level authentication)")),
        (3, 6) => Some(Offer::Wants("TLS with a client certificate")),
        (2 | 3, other) => Some(Offer::Refuses(other)),
        _ => None,
    }
}

const STANDARD: &str = "standard RDP security alone";

#[cfg(test)]
mod tests {
    use super::*;

    fn confirm(answer: &[u8]) -> Vec<u8> {
        [&[6, 0xd0, 0, 0, 0x12, 0x34, 0], answer].concat()
    }

    #[test]
    fn every_answer_of_the_negotiation_is_told_apart() {
        let table = [
            (&[][..], Some(Offer::Chosen(STANDARD))),
            (&[2, 0, 8, 0, 1, 0, 0, 0], Some(Offer::Chosen("TLS"))),
            (&[2, 0x1f, 8, 0, 0, 0, 0, 0], Some(Offer::Chosen(STANDARD))),
            (&[3, 0, 8, 0, 2, 0, 0, 0], Some(Offer::Wants(STANDARD))),
            (&[3, 0, 8, 0, 3, 0, 0, 0], Some(Offer::NoCertificate)),
            (&[3, 0, 8, 0, 9, 1, 0, 0], Some(Offer::Refuses(265))),
            (&[7, 0, 8, 0, 9, 1, 0, 0], None),
        ];
        for (answer, offer) in table {
            assert_eq!(read(&confirm(answer)), offer, "{answer:?}");
        }
        assert_eq!(read(&[6, 0xe0, 0, 0, 0, 0, 0]), None);
        assert_eq!(read(&[6, 0xd0]), None);
    }
}
