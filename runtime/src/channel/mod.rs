//! The way out: gRPC channels to a broker, with errors that say what is really wrong.
//!
//! A channel is handed over connected; when its connection ends, it dials again at its next use.
//! A name that has several addresses is tried at each of them in turn, of both families, until one
//! answers as the broker: a host behind a broker's name fails over without waiting for its DNS.

mod dial;

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use dial::Dialer;
use http::Uri;
use hyper_util::rt::TokioIo;
use muster_core::model::clean_text;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::{
    accept,
    explain::explain,
    refusal::Refusal,
    tls::{BrokerProblem, ClientTls},
};

/// Port of a broker where none is given.
pub const DEFAULT_PORT: u16 = 7443;
/// Bytes of a message of a server that may not be ours.
const MAX_FOREIGN_BYTES: usize = 1024;

/// Where a broker listens: `HOST:PORT`, `HOST`, or `[IPv6]:PORT`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BrokerAddress {
    host: String,
    port: u16,
}

/// A text that is no address of a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is no broker's address; write HOST:PORT, such as broker.example.org:7443 or [2001:db8::1]:7443"
)]
pub struct AddressError {
    found: String,
}

/// Times of one channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectOptions {
    /// TCP and TLS with one address may take this long, and so may finding the addresses.
    pub connect_timeout: Duration,
    /// A connection whose peer acknowledges nothing for this time is dead: the lease.
    pub user_timeout: Duration,
    /// Whether and when the peer is asked for a word.
    pub keepalive: Option<Keepalive>,
}

/// When a silent peer is asked for a word, over HTTP/2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keepalive {
    /// After so long without a word.
    pub after: Duration,
    /// For so long the answer is waited for before the connection is given up. That a path is dead
    /// shows by TCP long before: this is for a peer whose system acknowledges what nobody reads.
    pub patience: Duration,
}

/// A channel, and how it came to be.
#[derive(Debug)]
pub struct Connected {
    /// The channel.
    pub channel: Channel,
    /// The address that answered.
    pub address: SocketAddr,
    /// Addresses of the same name that did not, in the order tried.
    pub passed_over: Vec<AddressFailure>,
    /// Its socket, to be dropped soon: it keeps the connection from being closed.
    pub socket: Socket,
}

/// The socket under a channel.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// From now on a connection whose peer acknowledges nothing for this time is dead.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn set_user_timeout(&self, timeout: Duration) -> io::Result<()> {
        accept::set_user_timeout(&self.0, timeout)
    }
}

/// What one address met.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddressFailure {
    /// The address.
    pub address: SocketAddr,
    /// Why there is no connection with it.
    pub reason: String,
}

impl fmt::Display for AddressFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.address, self.reason)
    }
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            user_timeout: Duration::from_secs(35),
            keepalive: None,
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not an address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The name has no address.
    #[error("cannot find the address of {host}: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No connection.
    #[error("cannot connect to {endpoint} ({address}): {source}")]
    Tcp {
        /// The broker as given.
        endpoint: BrokerAddress,
        /// The last address tried.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Too slow.
    #[error("{endpoint} did not complete a connection within {after:?}")]
    Timeout {
        /// The broker as given.
        endpoint: BrokerAddress,
        /// The limit.
        after: Duration,
    },
    /// None of the addresses of a name.
    #[error("no address of {endpoint} leads to the broker: {}", join(failures))]
    Addresses {
        /// The broker as given.
        endpoint: BrokerAddress,
        /// What each address met, in the order tried; at least two.
        failures: Vec<AddressFailure>,
    },
    /// The server is not believed to be the broker.
    #[error("{endpoint} is not trusted: {problem}")]
    Broker {
        /// The broker as given.
        endpoint: BrokerAddress,
        /// Why not.
        problem: BrokerProblem,
    },
    /// The handshake failed otherwise.
    #[error("no TLS connection to {endpoint}: {reason}")]
    Tls {
        /// The broker as given.
        endpoint: BrokerAddress,
        /// Why.
        reason: String,
    },
    /// The Unix socket does not answer.
    #[error("cannot use the socket {}: {reason}", path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The connection stands, gRPC does not.
    #[error("no gRPC connection to {peer}: {reason}")]
    Grpc {
        /// The other end.
        peer: String,
        /// Why.
        reason: String,
    },
}

fn join(failures: &[AddressFailure]) -> String {
    let failures: Vec<_> = failures.iter().map(ToString::to_string).collect();
    failures.join("; ")
}

/// Connects to the broker at `endpoint` (`HOST:PORT`).
///
/// # Errors
/// [`ConnectError`] says in one line what is wrong and what to do.
pub async fn connect_tls(
    endpoint: &str,
    tls: ClientTls,
    options: ConnectOptions,
) -> Result<Channel, ConnectError> {
    let connected = connect_tls_at(endpoint, tls, options).await?;
    Ok(connected.channel)
}

/// The same, and tells which address it is.
///
/// # Errors
/// As [`connect_tls`].
pub async fn connect_tls_at(
    endpoint: &str,
    tls: ClientTls,
    options: ConnectOptions,
) -> Result<Connected, ConnectError> {
    let endpoint: BrokerAddress = endpoint.parse()?;
    let dialer = Arc::new(Dialer {
        endpoint,
        tls,
        options,
    });
    // Dialled here and not by the channel, because the channel would hide why it failed.
    let first = dialer.dial().await?;
    let uri = format!("https://{}", dialer.endpoint);
    let peer = dialer.endpoint.to_string();
    let socket = first.stream.get_ref().0.as_fd().try_clone_to_owned();
    let socket = Socket(socket.map_err(|source| ConnectError::Tcp {
        endpoint: dialer.endpoint.clone(),
        address: first.address,
        source,
    })?);
    let dial = move || {
        let dialer = Arc::clone(&dialer);
        async move { dialer.dial().await.map(|dialled| dialled.stream) }
    };
    Ok(Connected {
        channel: channel(uri, peer, options, first.stream, dial).await?,
        address: first.address,
        passed_over: first.passed_over,
        socket,
    })
}

/// Connects to a server of this machine over its Unix socket.
///
/// # Errors
/// [`ConnectError`] says in one line what is wrong and what to do.
pub async fn connect_unix(path: &Path, options: ConnectOptions) -> Result<Channel, ConnectError> {
    let first = dial_unix(path.to_owned()).await?;
    let peer = path.display().to_string();
    let path = path.to_owned();
    // The host of the URI is of no use over a Unix socket, but HTTP/2 wants one.
    let uri = "http://localhost".to_owned();
    channel(uri, peer, options, first, move || dial_unix(path.clone())).await
}

/// A status as people read it: our own refusals in their words, others with all their causes.
#[must_use]
pub fn explain_status(status: &Status) -> String {
    if let Some(refusal) = Refusal::from_status(status) {
        return refusal.to_string();
    }
    let message = clean_text(status.message(), MAX_FOREIGN_BYTES);
    let mut text = format!("{message} ({:?})", status.code());
    if let Some(source) = std::error::Error::source(status) {
        text.push_str(": ");
        text.push_str(&explain(source));
    }
    text
}

async fn channel<Io, F>(
    uri: String,
    peer: String,
    options: ConnectOptions,
    first: Io,
    dial: impl Fn() -> F + Send + Sync + 'static,
) -> Result<Channel, ConnectError>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Result<Io, ConnectError>> + Send + 'static,
{
    let grpc = |error: &tonic::transport::Error| ConnectError::Grpc {
        peer: peer.clone(),
        reason: explain(error),
    };
    let mut endpoint = Endpoint::from_shared(uri).map_err(|error| grpc(&error))?;
    if let Some(keepalive) = options.keepalive {
        endpoint = endpoint
            .http2_keep_alive_interval(keepalive.after)
            .keep_alive_timeout(keepalive.patience)
            .keep_alive_while_idle(true);
    }
    let first = Arc::new(Mutex::new(Some(first)));
    let connector = service_fn(move |_: Uri| {
        let ready = first.lock().take();
        let dialled = ready.is_none().then(&dial);
        async move {
            let io = match (ready, dialled) {
                (Some(io), _) => io,
                (None, Some(dialled)) => dialled.await?,
                (None, None) => unreachable!("what is not ready is dialled"),
            };
            Ok::<_, ConnectError>(TokioIo::new(io))
        }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| grpc(&error))
}

async fn dial_unix(path: PathBuf) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(&path).await.map_err(|error| {
        let reason = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                format!("nobody listens there ({error}); is the service running?")
            }
            io::ErrorKind::PermissionDenied => {
                "permission denied; be root, or in the group that the socket belongs to".to_owned()
            }
            _ => error.to_string(),
        };
        ConnectError::Unix { path, reason }
    })
}

impl BrokerAddress {
    /// Name or IP address.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for BrokerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError {
            found: clean_text(text, 120),
        };
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(wrong)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
                match after {
                    "" => (host, None),
                    _ => (host, Some(after.strip_prefix(':').ok_or_else(wrong)?)),
                }
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            None => DEFAULT_PORT,
            // `parse` would take a sign.
            Some(port) if port.bytes().all(|digit| digit.is_ascii_digit()) => {
                port.parse().map_err(|_| wrong())?
            }
            Some(_) => return Err(wrong()),
        };
        if port == 0 || ServerName::try_from(host).is_err() {
            return Err(wrong());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

#[cfg(test)]
mod tests;
