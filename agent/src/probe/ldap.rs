//! One question to a directory, without login: what time is it there? Domain controllers answer it
//! to everybody, because Kerberos needs clocks that agree.

use std::{io, time::Duration};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Bytes of an answer that are read: one attribute of a known length.
const MAX_ANSWER: usize = 4096;
/// Search of the root entry for `currentTime`: message 1, base "", scope base, no aliases, one
/// entry, no limit, `(objectClass=*)`.
const QUESTION: &[u8] = b"\x30\x32\x02\x01\x01\x63\x2d\x04\x00\x0a\x01\x00\x0a\x01\x00\x02\x01\x01\
                          \x02\x01\x00\x01\x01\x00\x87\x0bobjectClass\x30\x0d\x04\x0bcurrentTime";
/// Unbind: message 2.
const FAREWELL: &[u8] = b"\x30\x05\x02\x01\x02\x42\x00";

/// The directory's clock, over a connection that was just made; None if it does not tell.
///
/// # Errors
/// If it breaks off or does not answer within `limit`.
pub async fn clock(mut stream: TcpStream, limit: Duration) -> io::Result<Option<Timestamp>> {
    let asked = async {
        stream.write_all(QUESTION).await?;
        let mut answer = Vec::new();
        let mut chunk = [0; 1024];
        loop {
            match stream.read(&mut chunk).await? {
                0 => break,
                count => answer.extend_from_slice(&chunk[..count]),
            }
            if time_in(&answer).is_some() || ends(&answer) || answer.len() >= MAX_ANSWER {
                break;
            }
        }
        stream.write_all(FAREWELL).await?;
        io::Result::Ok(time_in(&answer))
    };
    timeout(limit, asked)
        .await
        .unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// Is the message that ends a search in there? Its tag, behind the message's id.
fn ends(answer: &[u8]) -> bool {
    answer.windows(4).any(|bytes| bytes == [2, 1, 1, 0x65])
}

/// The value behind the attribute's name: `20260131120000.0Z`.
fn time_in(answer: &[u8]) -> Option<Timestamp> {
    const NAME: &[u8] = b"currentTime";
    let at = answer.windows(NAME.len()).position(|bytes| bytes == NAME)?;
    // Set of values, its length, octet string, its length.
    let value = answer.get(at + NAME.len() + 4..at + NAME.len() + 4 + 14)?;
    let text = std::str::from_utf8(value).ok()?;
    let time = DateTime::strptime("%Y%m%d%H%M%S", text).ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_as_long_as_it_says() {
        assert_eq!(QUESTION.len(), usize::from(QUESTION[1]) + 2);
        assert_eq!(usize::from(QUESTION[6]) + 7, QUESTION.len());
    }

    #[test]
    fn the_time_is_read_and_other_answers_are_none() {
        let answer = b"\x30\x2f\x02\x01\x01\x64\x2a\x04\x00\x30\x26\x30\x24\x04\x0bcurrentTime\
                       \x31\x13\x04\x1120260131120000.0Z";
        let time: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        assert_eq!(time_in(answer), Some(time));
        for cut in 0..answer.len() - 3 {
            assert_eq!(time_in(&answer[..cut]), None);
        }
        assert!(ends(
            b"\x30\x0c\x02\x01\x01\x65\x07\x0a\x01\x00\x04\x00\x04\x00"
        ));
    }
}
