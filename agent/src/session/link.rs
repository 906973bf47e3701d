//! How the session fares, for the `urls` check, the control socket and `doctor`.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

/// How the session fares.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LinkState {
    /// Brokers that are tried in turn, `host:port`.
    pub brokers: Vec<Arc<str>>,
    /// Broker that the session is open to.
    pub connected: Option<Arc<str>>,
    /// The address of that broker that answered.
    #[serde(default)]
    pub address: Option<SocketAddr>,
    /// What the last attempt at each broker met, in words; gone once it succeeds at
    /// the first address.
    pub problems: BTreeMap<String, String>,
}

impl LinkState {
    /// Whether there is a session, and with whom.
    #[must_use]
    pub fn session(&self) -> String {
        match (&self.connected, self.address) {
            (Some(broker), Some(address)) if **broker != *address.to_string() => {
                format!("the session with {broker} ({address}) is open")
            }
            (Some(broker), _) => format!("the session with {broker} is open"),
            (None, _) => "the agent has no session".to_owned(),
        }
    }
}

impl fmt::Display for LinkState {
    /// In one line, with the first problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.session())?;
        match self.problems.first_key_value() {
            Some((broker, problem)) => write!(f, "; {broker}: {problem}"),
            None => Ok(()),
        }
    }
}
