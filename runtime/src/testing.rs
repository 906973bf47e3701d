//! A certificate authority for the tests of this crate.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::identity::{LocalIdentity, Pin, from_certificate, pin_of};

pub(crate) const BROKER: &str = "muster://muster-0a1b2c3d/broker/broker-1";
pub(crate) const HOST: &str =
    "muster://muster-0a1b2c3d/host/vdi-01/0e8a9d6a-3f0f-4d4c-9a55-0d6b3c1f2a77";

pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate says.
pub(crate) struct Spec {
    pub(crate) uri: &'static str,
    pub(crate) usage: Option<ExtendedKeyUsagePurpose>,
    /// First and last year.
    pub(crate) years: (i32, i32),
}

impl Spec {
    pub(crate) fn client(uri: &'static str) -> Self {
        Self {
            uri,
            usage: Some(ExtendedKeyUsagePurpose::ClientAuth),
            years: (2000, 3000),
        }
    }

    pub(crate) fn server(uri: &'static str) -> Self {
        Self {
            usage: Some(ExtendedKeyUsagePurpose::ServerAuth),
            ..Self::client(uri)
        }
    }

    pub(crate) fn years(self, first: i32, last: i32) -> Self {
        Self {
            years: (first, last),
            ..self
        }
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub(crate) fn pin(&self) -> Pin {
        pin_of(&self.root()).unwrap()
    }

    /// A certificate and its key in DER.
    pub(crate) fn sign(&self, spec: &Spec) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(spec.years.0, 1, 1);
        params.not_after = date_time_ymd(spec.years.1, 1, 1);
        params.extended_key_usages = spec.usage.iter().cloned().collect();
        params.subject_alt_names = vec![SanType::URI(spec.uri.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (certificate.der().clone(), key)
    }

    /// An identity that trusts this CA.
    pub(crate) fn issue(&self, spec: &Spec) -> LocalIdentity {
        let (certificate, key) = self.sign(spec);
        LocalIdentity {
            info: from_certificate(&certificate).unwrap(),
            chain: vec![certificate],
            key,
            roots: vec![self.root()],
        }
    }

    pub(crate) fn broker(&self) -> LocalIdentity {
        self.issue(&Spec::server(BROKER))
    }

    pub(crate) fn host(&self) -> LocalIdentity {
        self.issue(&Spec::client(HOST))
    }
}
