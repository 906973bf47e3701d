//! Who somebody is, as their certificate says it.
//!
//! The identity is the one URI of scheme `muster` among the certificate's alternative names:
//! `muster://<trust domain>/<role>/<name>`, for hosts with `/<host id>`. Nothing else in a
//! certificate (common name, DNS names) counts. Each identity has exactly one spelling.

mod certificate;
mod local;
mod request;

use std::{fmt, str::FromStr};

use muster_core::model::{HostId, HostName, NameError, Role, TrustDomain};

pub use certificate::{CertificateError, CertificateInfo, Pin, PinError, from_certificate, pin_of};
pub use local::{
    IdentityFiles, LocalIdentity, LocalIdentityError, certificates_from_pem, certificates_to_pem,
};
pub use request::{KeyPem, RequestError, csr_for_key, new_key_and_csr};

/// Who the holder of a certificate is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// What it may be.
    pub role: Role,
    /// The fleet.
    pub trust_domain: TrustDomain,
    /// Its name in that role.
    pub name: HostName,
    /// Of hosts, and of nobody else: the random id of the enrolled host.
    pub host_id: Option<HostId>,
}

/// Why a URI is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not of the form.
    #[error("{uri:?} is not of the form muster://<trust domain>/<role>/<name>[/<host id>]")]
    Form {
        /// The URI, cleaned and shortened.
        uri: String,
    },
    /// The trust domain or the name is not allowed.
    #[error("{uri:?} is no identity")]
    Name {
        /// The URI, cleaned and shortened.
        uri: String,
        /// What is wrong.
        #[source]
        source: NameError,
    },
    /// No such role.
    #[error("{uri:?} has an unknown role; known are host, frontend, viewer, operator, broker")]
    Role {
        /// The URI, cleaned and shortened.
        uri: String,
    },
    /// A host without id, another role with one, or an id in an unusual spelling.
    #[error("{uri:?} must end in a host id (lower-case UUID) if, and only if, its role is host")]
    HostId {
        /// The URI, cleaned and shortened.
        uri: String,
    },
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            role,
            trust_domain,
            name,
            host_id,
        } = self;
        write!(f, "muster://{trust_domain}/{role}/{name}")?;
        match host_id {
            Some(id) => write!(f, "/{id}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        // Long enough to show what is wrong, short enough for a log line.
        let uri = || muster_core::model::clean_text(text, 120);
        let form = || IdentityError::Form { uri: uri() };
        let named = |source| IdentityError::Name { uri: uri(), source };

        let path = text.strip_prefix("muster://").ok_or_else(form)?;
        let mut parts = path.split('/');
        let mut part = || parts.next().ok_or_else(form);
        let (domain, role, name) = (part()?, part()?, part()?);
        let id = parts.next();
        if parts.next().is_some() {
            return Err(form());
        }
        let identity = Self {
            role: Role::parse(role).ok_or_else(|| IdentityError::Role { uri: uri() })?,
            trust_domain: domain.parse().map_err(named)?,
            name: name.parse().map_err(named)?,
            host_id: id
                .map(str::parse)
                .transpose()
                .map_err(|_| IdentityError::HostId { uri: uri() })?,
        };
        let is_host = identity.role == Role::Host;
        // UUIDs have several spellings; one identity has one.
        if is_host != identity.host_id.is_some() || identity.to_string() != text {
            return Err(IdentityError::HostId { uri: uri() });
        }
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0e8a9d6a-3f0f-4d4c-9a55-0d6b3c1f2a77";

    #[test]
    fn identities_read_as_they_are_written() {
        for uri in [
            format!("muster://muster-0a1b2c3d/host/vdi-01.example.org/{ID}"),
            "muster://muster-0a1b2c3d/frontend/gateway".into(),
            "muster://muster-0a1b2c3d/viewer/grafana".into(),
            "muster://muster-0a1b2c3d/operator/ann".into(),
            "muster://muster-0a1b2c3d/broker/broker-1".into(),
        ] {
            assert_eq!(uri.parse::<Identity>().unwrap().to_string(), uri);
        }
    }

    #[test]
    fn what_is_no_identity_is_refused_and_shown() {
        let wrong = [
            "".to_owned(),
            "muster://".into(),
            "https://muster-0a1b2c3d/viewer/a".into(),
            "MUSTER://muster-0a1b2c3d/viewer/a".into(),
            "muster://muster-0a1b2c3d/viewer".into(),
            "muster://muster-0a1b2c3d/viewer/".into(),
            "muster://muster-0a1b2c3d/viewer/a/".into(),
            "muster://muster-0a1b2c3d/viewer/Ann".into(),
            "muster://muster-0a1b2c3d/viewer/a%2fb".into(),
            "muster://muster-0a1b2c3d/admin/a".into(),
            format!("muster://muster-0a1b2c3d/viewer/a/{ID}"),
            "muster://muster-0a1b2c3d/host/a".into(),
            "muster://muster-0a1b2c3d/host/a/1234".into(),
            format!("muster://muster-0a1b2c3d/host/a/{}", ID.to_uppercase()),
            format!("muster://muster-0a1b2c3d/host/a/{}", ID.replace('-', "")),
            format!("muster://muster-0a1b2c3d/host/a/{ID}/more"),
            format!("muster://user@muster-0a1b2c3d/host/a/{ID}"),
            format!("muster://muster-0a1b2c3d/host/{}/{ID}", "a".repeat(300)),
        ];
        for uri in wrong {
            let error = uri.parse::<Identity>().unwrap_err().to_string();
            assert!(error.len() < 250, "{error}");
        }
    }
}
