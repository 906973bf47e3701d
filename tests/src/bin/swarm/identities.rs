//! Identities of the swarm's hosts: enrolled by the real rpc, kept in a file for its workers and,
//! with `--keep`, for the next run.

use std::{
    fs,
    io::{BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use muster_core::model::HostName;
use muster_proto::v1::EnrollRequest;
use muster_runtime::identity::{KeyPem, new_key_and_csr};
use muster_tests::{
    broker::Broker,
    clients::{Credentials, Token, WayIn},
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::progress::Progress;

/// Hosts that one token enrols, one after the other: a token's record grows with its uses and is
/// written with each, and two uses at once get into each other's way.
const PER_TOKEN: usize = 64;
/// Enrolments at once: as many as a broker takes.
const AT_ONCE: usize = 8;

/// One host's identity.
#[derive(Clone, Serialize, Deserialize)]
struct Identity {
    name: String,
    host_id: String,
    key: String,
    /// Hexadecimal DER.
    certificate: String,
    roots: Vec<String>,
}

/// The file with all identities, one in a line.
#[derive(Clone, Debug)]
pub(crate) struct Identities {
    file: PathBuf,
}

impl Identities {
    /// Those of a broker's folder.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self::at(folder.join("swarm.jsonl"))
    }

    /// Those in this file.
    pub(crate) fn at(file: PathBuf) -> Self {
        Self { file }
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// How many there are.
    pub(crate) fn len(&self) -> Result<usize> {
        match fs::read_to_string(&self.file) {
            Ok(text) => Ok(text.lines().count()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error).with_context(|| format!("{}", self.file.display())),
        }
    }

    /// The name of the host with this number.
    pub(crate) fn name(number: usize) -> String {
        format!("swarm-{number}")
    }

    /// Enrols hosts until there are `wanted`, and says how many were.
    pub(crate) async fn enrol(
        &self,
        broker: &Broker,
        pool: &str,
        wanted: usize,
        progress: &Progress,
    ) -> Result<usize> {
        let from = self.len()?;
        let mut file = fs::File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.file)
            .map(BufWriter::new)
            .with_context(|| format!("cannot write {}", self.file.display()))?;
        let mut under_way = JoinSet::new();
        let (mut next, mut written) = (from, from);
        // Written in the order of their numbers.
        let mut early = std::collections::BTreeMap::new();
        while written < wanted {
            while next < wanted && under_way.len() < AT_ONCE {
                let count = PER_TOKEN.min(wanted - next);
                let token = broker.token(pool, None, u32::try_from(count)?).await?;
                under_way.spawn(enrol(broker.way_in(), token, next, count));
                next += count;
            }
            let done = under_way
                .join_next()
                .await
                .context("nothing is under way")?;
            let (first, identities) = done.context("an enrolment panicked")??;
            early.insert(first, identities);
            while let Some(identities) = early.remove(&written) {
                for identity in &identities {
                    serde_json::to_writer(&mut file, identity)?;
                    file.write_all(b"\n")?;
                }
                written += identities.len();
            }
            let of = u64::try_from(wanted)?;
            progress.bar("enrolled", u64::try_from(written)?, of);
        }
        file.flush()?;
        Ok(wanted.saturating_sub(from))
    }

    /// The credentials of the hosts with these numbers, for the broker at `endpoint`.
    pub(crate) fn load(
        &self,
        numbers: std::ops::Range<usize>,
        endpoint: &str,
    ) -> Result<Vec<Credentials>> {
        let text = fs::read_to_string(&self.file)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        let lines: Vec<&str> = text.lines().collect();
        let Some(lines) = lines.get(numbers.clone()) else {
            bail!(
                "{} has {} identities, not {numbers:?}",
                self.file.display(),
                lines.len()
            );
        };
        lines
            .iter()
            .map(|line| {
                let identity: Identity = serde_json::from_str(line)?;
                identity.credentials(endpoint)
            })
            .collect()
    }
}

impl Identity {
    fn credentials(&self, endpoint: &str) -> Result<Credentials> {
        let roots: Vec<Vec<u8>> = self
            .roots
            .iter()
            .map(|root| bytes(root))
            .collect::<Result<_>>()?;
        let certificate = bytes(&self.certificate)?;
        let key = KeyPem::new(self.key.clone());
        let mut credentials = Credentials::new(endpoint, key, &certificate, &roots)?;
        credentials.host_id.clone_from(&self.host_id);
        Ok(credentials)
    }
}

/// Enrols hosts one after the other over one connection.
async fn enrol(
    way_in: WayIn,
    token: Token,
    first: usize,
    count: usize,
) -> Result<(usize, Vec<Identity>)> {
    let mut client = way_in.enrolment(&token.ca_pin).await?;
    let mut identities = Vec::with_capacity(count);
    for number in first..first + count {
        let name = Identities::name(number);
        let (key, csr) = new_key_and_csr(&HostName::new(&name)?)?;
        let request = EnrollRequest {
            token: token.token.clone(),
            csr: csr.into(),
            name,
            request_id: uuid::Uuid::from_u128(rand::random()).to_string(),
        };
        let answer = client.enroll(request).await?.into_inner();
        identities.push(Identity {
            name: answer.name,
            host_id: answer.host_id,
            key: key.as_str().to_owned(),
            certificate: hex(&answer.certificate),
            roots: answer.ca_bundle.iter().map(|root| hex(root)).collect(),
        });
    }
    Ok((first, identities))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = hex.bytes().collect();
    digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair)?;
            Ok(u8::from_str_radix(pair, 16)?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{bytes, hex};

    #[test]
    fn bytes_survive_the_file() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(bytes(&hex(&all)).unwrap(), all);
        assert!(bytes("0g").is_err());
    }
}
