//! Keys of the store. A letter for the kind, then what tells records of the kind apart.

use muster_core::model::{HostId, HostName, PoolName};

/// Version of the layout: the first thing that is read.
pub const FORMAT: &[u8] = b"m/format";
/// The broker's own record.
pub const BROKER: &[u8] = b"m/broker";
/// What was served without a word from hosts, while a restart window is open.
pub const UNHEARD: &[u8] = b"m/unheard";
/// What holds in mass losses took of the last hour.
pub const HOLDS: &[u8] = b"m/holds";
/// All hosts.
pub const HOSTS: &[u8] = b"h/";
/// What operators decided about hosts.
pub const ADMINS: &[u8] = b"a/";
/// All join tokens.
pub const TOKENS: &[u8] = b"t/";

/// Policies of pools.
pub const POOLS: &[u8] = b"p/";

/// A pool's policy.
#[must_use]
pub fn pool(name: &PoolName) -> Vec<u8> {
    [POOLS, name.as_str().as_bytes()].concat()
}

/// A host's record.
#[must_use]
pub fn host(id: HostId) -> Vec<u8> {
    [HOSTS, id.as_bytes()].concat()
}

/// What operators decided about a host.
#[must_use]
pub fn admin(id: HostId) -> Vec<u8> {
    [ADMINS, id.as_bytes()].concat()
}

/// Who holds a name: the value is the host's id.
#[must_use]
pub fn name(name: &HostName) -> Vec<u8> {
    [b"n/", name.as_str().as_bytes()].concat()
}

/// All journals.
pub const JOURNALS: &[u8] = b"j/";

/// The journal of a host.
#[must_use]
pub fn journal(id: HostId) -> Vec<u8> {
    [JOURNALS, id.as_bytes()].concat()
}

/// One entry of a host's journal.
#[must_use]
pub fn journal_entry(id: HostId, sequence: u64) -> Vec<u8> {
    [JOURNALS, id.as_bytes(), &sequence.to_be_bytes()].concat()
}

/// A join token's record.
#[must_use]
pub fn token(token_id: &str) -> Vec<u8> {
    [TOKENS, token_id.as_bytes()].concat()
}
