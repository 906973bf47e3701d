//! A TLS handshake that looks and does not judge: what certificate is shown there, and by whom was
//! it issued?
//!
//! Nothing is ever sent over such a connection, so taking any certificate gives nothing away.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use jiff::Timestamp;
use muster_core::model::clean_text;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

/// Names of a certificate that are shown.
const MAX_NAMES: usize = 4;

/// A certificate as it is shown at the other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// Whose it is.
    pub subject: String,
    /// Who issued it.
    pub issuer: String,
    /// Names that it is for.
    pub names: Vec<String>,
    /// From when on it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// Issued by itself.
    pub self_signed: bool,
}

/// Shakes hands over `stream` and gives the certificate that was shown.
///
/// # Errors
/// If the other side does not speak TLS, breaks off, or does not end within `limit`.
pub async fn look(
    stream: TcpStream,
    server_name: &str,
    limit: Duration,
) -> io::Result<Certificate> {
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let shaking = TlsConnector::from(config()?).connect(name, stream);
    let mut stream = match timeout(limit, shaking).await {
        Ok(done) => done?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let shown = stream.get_ref().1.peer_certificates();
    let leaf = shown.and_then(<[_]>::first).map(|leaf| read(leaf));
    // Politely: servers log a connection that ends without a word. It may be gone already.
    let _ = timeout(limit, stream.shutdown()).await;
    leaf.flatten()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no readable certificate"))
}

fn config() -> io::Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let provider = CryptoProvider::get_default()
        .ok_or_else(|| io::Error::other("no cryptography is installed"))?;
    let looker = Looker(provider.signature_verification_algorithms);
    let config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(looker))
        .with_no_client_auth();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

fn read(der: &[u8]) -> Option<Certificate> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let at = |time: &x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let shown = |text: &str| clean_text(text, 100);
    Some(Certificate {
        subject: shown(&certificate.subject().to_string()),
        issuer: shown(&certificate.issuer().to_string()),
        names: names
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(shown(name)),
                _ => None,
            })
            .take(MAX_NAMES)
            .collect(),
        not_before: at(&certificate.validity().not_before)?,
        not_after: at(&certificate.validity().not_after)?,
        self_signed: certificate.subject() == certificate.issuer(),
    })
}

/// Takes any certificate, but asks for the proof that its key is there.
#[derive(Debug)]
struct Looker(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Looker {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
