//! The wire of a light agent: a TCP connection that ends as a killed process's does, or falls
//! silent as that of a process that hangs.
//!
//! A client that is dropped says goodbye: HTTP/2 and TLS both end in an orderly way. A process that
//! is killed says nothing: the kernel closes its sockets. [`Wire::cut`] does just that.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::task::AtomicWaker;
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream, lookup_host},
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::clients::Credentials;

/// TCP and TLS together may take this long: as the agent's.
const CONNECT: Duration = Duration::from_secs(10);
/// A connection whose peer acknowledges nothing for this time is dead: the usual lease.
const USER_TIMEOUT_MS: u32 = 35_000;

const OPEN: u8 = 0;
const FROZEN: u8 = 1;
const CUT: u8 = 2;

/// The control of one connection.
#[derive(Debug, Default)]
pub(super) struct Wire {
    state: AtomicU8,
    waker: AtomicWaker,
}

impl Wire {
    /// Closes the socket at once, without a word.
    pub(super) fn cut(&self) {
        self.state.store(CUT, Ordering::Release);
        self.waker.wake();
    }

    /// Neither reads nor writes from here on; only the kernel still acknowledges.
    pub(super) fn freeze(&self) {
        // What is cut stays cut.
        let _ = self
            .state
            .compare_exchange(OPEN, FROZEN, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// A TCP connection under the control of a [`Wire`].
struct Line {
    tcp: Option<TcpStream>,
    wire: Arc<Wire>,
}

impl Line {
    /// What the connection may do now. The task that polls is woken by a cut.
    fn poll_open(&mut self, cx: &Context<'_>) -> Poll<io::Result<Pin<&mut TcpStream>>> {
        self.wire.waker.register(cx.waker());
        match self.wire.state.load(Ordering::Acquire) {
            FROZEN => return Poll::Pending,
            CUT => self.tcp = None,
            _ => {}
        }
        Poll::Ready(match &mut self.tcp {
            Some(tcp) => Ok(Pin::new(tcp)),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        })
    }
}

/// The open stream, or returns from the caller.
macro_rules! open {
    ($line:ident, $cx:ident) => {
        match $line.poll_open($cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(stream)) => stream,
        }
    };
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        open!(self, cx).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        open!(self, cx).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        open!(self, cx).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        open!(self, cx).poll_shutdown(cx)
    }
}

/// Connects to the broker of these credentials from the address `from`, under the control of `wire`.
pub(super) async fn dial(
    credentials: &Credentials,
    from: Option<IpAddr>,
    wire: Arc<Wire>,
) -> Result<Channel> {
    let dialled = tokio::time::timeout(CONNECT, dial_slowly(credentials, from, wire));
    match dialled.await {
        Ok(channel) => channel,
        Err(_) => bail!(
            "no connection to {} within {CONNECT:?}",
            credentials.endpoint
        ),
    }
}

async fn dial_slowly(
    credentials: &Credentials,
    from: Option<IpAddr>,
    wire: Arc<Wire>,
) -> Result<Channel> {
    let endpoint = &credentials.endpoint;
    let address = lookup_host(endpoint.as_str())
        .await?
        .next()
        .with_context(|| format!("{endpoint} has no address"))?;
    let tcp = Some(connect(address, from).await?);
    let host = ServerName::from(address.ip());
    let tls = TlsConnector::from(credentials.tls().config())
        .connect(host, Line { tcp, wire })
        .await
        .context("no TLS")?;
    let mut once = Some(TokioIo::new(tls));
    // The first connection is the only one: who dials again does it here.
    let connector = service_fn(move |_| {
        let io = once.take().ok_or(io::ErrorKind::NotConnected);
        async move { io.map_err(io::Error::from) }
    });
    let endpoint = Endpoint::from_shared(format!("https://{endpoint}"))?;
    Ok(endpoint.connect_with_connector(connector).await?)
}

async fn connect(to: SocketAddr, from: Option<IpAddr>) -> Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    if let Some(from) = from {
        ensure!(from.is_ipv4() == to.is_ipv4(), "no way from {from} to {to}");
        socket.bind(SocketAddr::new(from, 0))?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT_MS)?;
    Ok(stream)
}
