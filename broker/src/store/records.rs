//! Records of the store. JSON: small, readable in need, and tolerant of fields that come later.

use jiff::Timestamp;
use muster_core::model::{HostId, HostName, PoolName, TrustDomain};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::StoreError;

/// The broker itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerRecord {
    /// The fleet's trust domain, fixed at the first start.
    pub trust_domain: TrustDomain,
    /// The broker's own id, fixed at the first start.
    pub broker_id: String,
    /// Counts the starts.
    pub incarnation: u32,
    /// When the fleet began.
    pub created_at: Timestamp,
}

/// A join token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// SHA-256 of the secret, hex.
    pub secret_sha256: String,
    /// Pool of the hosts that enrol with it.
    pub pool: PoolName,
    /// The only name that it may enrol.
    pub host_name: Option<HostName>,
    /// How often it may be used.
    pub uses: u32,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Hosts that enrolled with it: a repetition with the same key gets its answer again.
    #[serde(default)]
    pub used: Vec<TokenUse>,
}

/// One use of a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// SHA-256 of the host's public key, hex.
    pub key_sha256: String,
    /// The host that it made.
    pub host_id: HostId,
    /// Its name.
    pub name: HostName,
}

/// A record as it is stored.
///
/// # Panics
/// Never: our records are maps with string keys.
#[must_use]
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records of ours are maps with string keys")
}

/// A record as it was stored.
///
/// # Errors
/// [`StoreError::Record`] names the key.
pub fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value).map_err(|source| StoreError::Record {
        key: key.escape_ascii().to_string(),
        source,
    })
}
