//! Which machine of a cloud a host is.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::clean_text;

/// Bytes of each text. Oracle's ids are the longest with about 100.
const MAX_TEXT_BYTES: usize = 128;

/// What the cloud's own metadata service says of the machine. For people, and for whoever looks
/// the machine up at its cloud; nothing is decided by it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct CloudInstance {
    /// The cloud, as `metadata_service` names it: azure, aws, gcp, openstack, ...
    pub provider: Arc<str>,
    /// The machine's id in its cloud.
    pub instance_id: String,
    /// Region or zone; empty where the cloud tells none.
    #[serde(default)]
    pub region: String,
    /// Type or size of the machine; empty where the cloud tells none.
    #[serde(default)]
    pub instance_type: String,
}

impl CloudInstance {
    /// The same with clean texts within their bounds; none if it names no machine.
    #[must_use]
    pub fn bounded(self) -> Option<Self> {
        let clean = |text: &str| clean_text(text.trim(), MAX_TEXT_BYTES).trim().to_owned();
        let bounded = Self {
            provider: clean(&self.provider).into(),
            instance_id: clean(&self.instance_id),
            region: clean(&self.region),
            instance_type: clean(&self.instance_type),
        };
        (!bounded.provider.is_empty() && !bounded.instance_id.is_empty()).then_some(bounded)
    }
}

impl std::fmt::Display for CloudInstance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} instance {}", self.provider, self.instance_id)?;
        for (word, value) in [("type", &self.instance_type), ("in", &self.region)] {
            if !value.is_empty() {
                write!(f, ", {word} {value}")?;
            }
        }
        Ok(())
    }
}
