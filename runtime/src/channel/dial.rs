//! From a broker's name to a TLS connection with one of its addresses.

use std::{io, net::SocketAddr, time::Duration};

use rustls::{AlertDescription, CertificateError, Error as RustlsError};
use rustls_pki_types::ServerName;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{AddressError, AddressFailure, BrokerAddress, ConnectError, ConnectOptions};
use crate::{
    accept,
    tls::{BrokerProblem, ClientTls},
};

/// Addresses of one name that are tried: some brokers in both families.
const MAX_ADDRESSES: usize = 8;
/// Where a name has several addresses, one that does not take a connection at all is passed over
/// after this time: the system has sent its first packet twice by then.
const TCP_WITHIN: Duration = Duration::from_secs(3);

/// Dials one broker.
pub(super) struct Dialer {
    pub(super) endpoint: BrokerAddress,
    pub(super) tls: ClientTls,
    pub(super) options: ConnectOptions,
}

/// A connection whose peer is the broker.
pub(super) struct Dialled {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) address: SocketAddr,
    pub(super) passed_over: Vec<AddressFailure>,
}

impl Dialer {
    pub(super) async fn dial(&self) -> Result<Dialled, ConnectError> {
        let BrokerAddress { host, port } = &self.endpoint;
        let unresolved = |source| ConnectError::Resolve {
            host: host.clone(),
            source,
        };
        let found = lookup_host((host.as_str(), *port));
        let found = timeout(self.options.connect_timeout, found)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(unresolved)?;
        let addresses = both_families(found.collect());
        self.dial_any(&addresses).await
    }

    /// Tries each address until one is the broker's.
    pub(super) async fn dial_any(&self, addresses: &[SocketAddr]) -> Result<Dialled, ConnectError> {
        let tcp_within = if addresses.len() > 1 {
            TCP_WITHIN.min(self.options.connect_timeout)
        } else {
            self.options.connect_timeout
        };
        let mut passed_over = Vec::new();
        let mut last = None;
        for &address in addresses {
            match self.dial_one(address, tcp_within).await {
                Ok(stream) => {
                    return Ok(Dialled {
                        stream,
                        address,
                        passed_over,
                    });
                }
                Err(error) => {
                    let reason = match &error {
                        ConnectError::Tcp { source, .. } => source.to_string(),
                        other => other.to_string(),
                    };
                    passed_over.push(AddressFailure { address, reason });
                    last = Some(error);
                }
            }
        }
        Err(match last {
            Some(_) if addresses.len() > 1 => ConnectError::Addresses {
                endpoint: self.endpoint.clone(),
                failures: passed_over,
            },
            Some(error) => error,
            None => ConnectError::Resolve {
                host: self.endpoint.host.clone(),
                source: io::ErrorKind::NotFound.into(),
            },
        })
    }

    async fn dial_one(
        &self,
        address: SocketAddr,
        tcp_within: Duration,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let after = self.options.connect_timeout;
        let dialled = async {
            let tcp = timeout(tcp_within, TcpStream::connect(address)).await;
            let tcp = tcp
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                .and_then(|stream| {
                    accept::set_options(&stream, self.options.user_timeout)?;
                    Ok(stream)
                })
                .map_err(|source| ConnectError::Tcp {
                    endpoint: self.endpoint.clone(),
                    address,
                    source,
                })?;
            self.shake_hands(tcp).await
        };
        match timeout(after, dialled).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::Timeout {
                endpoint: self.endpoint.clone(),
                after,
            }),
        }
    }

    async fn shake_hands(&self, tcp: TcpStream) -> Result<TlsStream<TcpStream>, ConnectError> {
        let name = ServerName::try_from(self.endpoint.host.clone()).map_err(|_| AddressError {
            found: self.endpoint.to_string(),
        })?;
        let connector = TlsConnector::from(self.tls.config());
        let stream = connector
            .connect(name, tcp)
            .await
            .map_err(|error| self.tls_error(&error))?;
        if stream.get_ref().1.alpn_protocol().is_none() {
            return Err(self.no_tls("the server did not agree on HTTP/2: is it the broker's port?"));
        }
        Ok(stream)
    }

    fn no_tls(&self, reason: impl Into<String>) -> ConnectError {
        ConnectError::Tls {
            endpoint: self.endpoint.clone(),
            reason: reason.into(),
        }
    }

    fn tls_error(&self, error: &io::Error) -> ConnectError {
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<RustlsError>());
        match inner {
            Some(RustlsError::InvalidCertificate(CertificateError::Other(other))) => {
                match other.0.downcast_ref::<BrokerProblem>() {
                    Some(problem) => ConnectError::Broker {
                        endpoint: self.endpoint.clone(),
                        problem: problem.clone(),
                    },
                    None => self.no_tls(other.to_string()),
                }
            }
            Some(RustlsError::InvalidMessage(_)) => {
                self.no_tls("the server does not speak TLS: is it the broker's port?")
            }
            Some(RustlsError::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                self.no_tls("the server does not speak HTTP/2: is it the broker's port?")
            }
            Some(RustlsError::AlertReceived(AlertDescription::ProtocolVersion)) => {
                self.no_tls("the server does not speak TLS 1.3: is it the broker's port?")
            }
            Some(RustlsError::AlertReceived(alert)) => {
                self.no_tls(format!("the server ended the handshake: {alert:?}"))
            }
            Some(other) => self.no_tls(other.to_string()),
            None if error.kind() == io::ErrorKind::UnexpectedEof => self.no_tls(
                "the server closed the connection during the handshake: is it the broker's port?",
            ),
            None => self.no_tls(error.to_string()),
        }
    }
}

/// The addresses that are tried: in the system's order, but the families take turns, so that many
/// addresses of one cannot keep the other from its turn.
pub(super) fn both_families(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut addresses: Vec<SocketAddr> = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] || addresses.len() >= MAX_ADDRESSES {
            addresses.truncate(MAX_ADDRESSES);
            return addresses;
        }
        for address in pair.into_iter().flatten() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
}
