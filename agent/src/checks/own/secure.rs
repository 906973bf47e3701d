//! TLS that judges: the certificate at the other end must be trusted by this machine, or by the
//! certificates of a file.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use muster_core::model::Remedy;
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Wrong, file_fresh::wrong_path, tcp::split};
use crate::probe::tcp::Problem;

/// Certificates of a file that are taken: a system's bundle has 150.
const MAX_ROOTS: usize = 1024;

/// What is wrong with the keys that TLS has everywhere, if anything.
pub(super) fn wrong(ca_file: Option<&PathBuf>, server_name: Option<&String>) -> Option<Wrong> {
    if let Some((_, value, allowed)) = ca_file.and_then(|path| wrong_path(path)) {
        return Some(("ca_file", value, allowed));
    }
    let bad = server_name.filter(|name| ServerName::try_from(name.as_str()).is_err())?;
    let allowed = "a DNS name or an address".to_owned();
    Some(("server_name", format!("{bad:?}"), allowed))
}

/// The name that the certificate must be for.
pub(super) fn expected_name<'a>(server_name: Option<&'a String>, address: &'a str) -> &'a str {
    let host = split(address).map_or(address, |(host, _)| host);
    server_name.map_or(host.trim_matches(['[', ']']), String::as_str)
}

/// Shakes hands over `stream` with somebody who proves to be `name`.
pub(super) async fn connect(
    stream: TcpStream,
    name: &str,
    ca_file: Option<&Path>,
    alpn: &[&[u8]],
    limit: Duration,
) -> Result<TlsStream<TcpStream>, Problem> {
    let file = ca_file.map(Path::to_owned);
    let roots = tokio::task::spawn_blocking(move || roots(file.as_deref())).await;
    let roots = match roots {
        Ok(Ok(roots)) => roots,
        Ok(Err(error)) => return Err(no_roots(&error)),
        Err(error) => return Err(no_roots(&io::Error::other(error))),
    };
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let server = ServerName::try_from(name.to_owned())
        .map_err(|error| no_handshake(&io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let shaking = TlsConnector::from(Arc::new(config)).connect(server, stream);
    match timeout(limit, shaking).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(no_handshake(&error)),
        Err(_) => Err(no_handshake(&io::ErrorKind::TimedOut.into())),
    }
}

fn roots(file: Option<&Path>) -> io::Result<RootCertStore> {
    let found: Vec<CertificateDer<'static>> = match file {
        Some(path) => CertificateDer::pem_file_iter(path)
            .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?
            .take(MAX_ROOTS)
            .filter_map(Result::ok)
            .collect(),
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(found);
    if added == 0 {
        let place = file.map_or("this system".to_owned(), |path| path.display().to_string());
        return Err(io::Error::other(format!("{place} has no CA certificates")));
    }
    Ok(store)
}

fn no_roots(error: &io::Error) -> Problem {
    Problem {
        code: "TLS_NO_ROOTS",
        message: format!("there is nobody to trust: {error}"),
        remedy: Remedy::text("Correct `ca_file`, or install the CA certificates of this system.")
            .command("apt-get install ca-certificates"),
    }
}

/// Why a handshake failed.
pub(super) fn no_handshake(error: &io::Error) -> Problem {
    use CertificateError as Bad;
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    let (code, remedy) = match of_tls {
        Some(rustls::Error::InvalidCertificate(Bad::UnknownIssuer)) => (
            "TLS_UNKNOWN_CA",
            "Name the CA's certificate in `ca_file`, or see whether somebody is in between.",
        ),
        Some(rustls::Error::InvalidCertificate(
            Bad::NotValidForName | Bad::NotValidForNameContext { .. },
        )) => (
            "TLS_WRONG_NAME",
            "Name the name of the certificate in `server_name`, or see who answers there.",
        ),
        Some(rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => (
            "TLS_EXPIRED",
            "Renew the certificate, or set this machine's clock.",
        ),
        Some(rustls::Error::InvalidMessage(_)) => {
            ("TLS_NOT_SPOKEN", "See whether the port is the right one.")
        }
        _ if error.kind() == io::ErrorKind::TimedOut => (
            "TLS_TIMED_OUT",
            "What listens there takes connections and is silent: look at its log.",
        ),
        _ => ("TLS_FAILED", "The log of what listens there says more."),
    };
    Problem {
        code,
        message: format!("the TLS handshake failed: {error}"),
        remedy: Remedy::text(remedy),
    }
}
