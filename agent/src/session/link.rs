//! How the session fares, for the `urls` check, the control socket and `doctor`.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

/// How the session fares.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LinkState {
    /// Brokers that are tried in turn, `host:port`.
    pub brokers: Vec<Arc<str>>,
    /// Broker that the session is open to.
    pub connected: Option<Arc<str>>,
    /// What the last attempt at each broker met, in words; gone once it succeeds.
    pub problems: BTreeMap<String, String>,
}
