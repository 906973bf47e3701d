//! TLS over TCP: handshakes side by side, each with its own task, timeout and judgement.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::stream;
use rustix::net::sockopt;
use rustls_pki_types::UnixTime;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::Connected;

use super::{
    AcceptCounters, AcceptOptions, PeerInfo, Slot, free_slot, recover,
    sources::{Sources, Unfinished},
};
use crate::{clock, tls::ServerTls};

/// When an idle connection is asked whether its peer still lives, how often, and how many times.
/// The kernel does it: no memory, no wake-up of this process.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;

/// A connection whose client has proven its key, if it presented a certificate.
#[derive(Debug)]
pub struct TlsIo {
    stream: TlsStream<TcpStream>,
    info: PeerInfo,
    _slot: Slot,
}

/// Connections of a TLS listener.
pub struct TlsIncoming {
    inner: Pin<Box<dyn Stream<Item = TlsIo> + Send>>,
    counters: Arc<AcceptCounters>,
}

impl std::fmt::Debug for TlsIncoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIncoming")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Accepts connections on `listener` for as long as the stream is polled.
#[must_use]
pub fn serve_tls(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    options: AcceptOptions,
) -> TlsIncoming {
    let counters = Arc::new(AcceptCounters::default());
    let acceptor = Acceptor {
        listener,
        tls,
        options,
        slots: Arc::new(Semaphore::new(options.connections)),
        sources: Sources::new(options.handshakes, options.waiting),
        handshakes: JoinSet::new(),
        counters: Arc::clone(&counters),
    };
    let inner = stream::unfold(acceptor, |mut acceptor| async move {
        let io = acceptor.next().await;
        Some((io, acceptor))
    });
    TlsIncoming {
        inner: Box::pin(inner),
        counters,
    }
}

impl TlsIncoming {
    /// What this listener has seen.
    #[must_use]
    pub fn counters(&self) -> Arc<AcceptCounters> {
        Arc::clone(&self.counters)
    }

    /// The next connection, for servers that ask instead of taking a stream.
    pub async fn accept(&mut self) -> TlsIo {
        self.inner
            .next()
            .await
            .expect("the stream of connections has no end")
    }
}

impl Stream for TlsIncoming {
    type Item = io::Result<TlsIo>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(cx).map(|io| io.map(Ok))
    }
}

struct Acceptor {
    listener: TcpListener,
    tls: Arc<ServerTls>,
    options: AcceptOptions,
    slots: Arc<Semaphore>,
    sources: Arc<Sources>,
    handshakes: JoinSet<Option<TlsIo>>,
    counters: Arc<AcceptCounters>,
}

impl Acceptor {
    async fn next(&mut self) -> TlsIo {
        let most = self.options.handshakes + self.options.waiting;
        loop {
            let room = self.handshakes.len() < most;
            tokio::select! {
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(Some(io)) => return io,
                    Ok(None) => {}
                    Err(error) => tracing::error!(error = %error, "a handshake's task panicked"),
                },
                accepted = accept(&self.listener, &self.slots, &self.counters), if room => {
                    self.begin(accepted);
                }
            }
        }
    }

    fn begin(&mut self, accepted: Accepted) {
        let Some(unfinished) = self.sources.admit(accepted.address) else {
            self.counters.turned_away.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let task = Handshake {
            accepted,
            unfinished,
            tls: Arc::clone(&self.tls),
            options: self.options,
            counters: Arc::clone(&self.counters),
        };
        self.handshakes.spawn(task.run());
    }
}

struct Accepted {
    stream: TcpStream,
    address: SocketAddr,
    permit: OwnedSemaphorePermit,
}

struct Handshake {
    accepted: Accepted,
    unfinished: Unfinished,
    tls: Arc<ServerTls>,
    options: AcceptOptions,
    counters: Arc<AcceptCounters>,
}

impl Handshake {
    async fn run(self) -> Option<TlsIo> {
        let Accepted {
            stream,
            address,
            permit,
        } = self.accepted;
        let counters = self.counters;
        let place = {
            let _waiting = Counted::new(&counters.waiting);
            self.unfinished.place().await
        };
        let result = {
            let _under_way = Counted::new(&counters.handshaking);
            let handshake = handshake(stream, address, &self.tls, self.options);
            timeout(self.options.handshake_timeout, handshake).await
        };
        drop((place, self.unfinished));
        match result {
            Ok(Ok((stream, info))) => Some(TlsIo {
                stream,
                info,
                _slot: Slot::open(&counters, permit),
            }),
            Ok(Err(error)) => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(peer.address = %address, error = %error, "a handshake failed");
                None
            }
            Err(_) => {
                counters.timed_out.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(peer.address = %address, "a handshake took too long");
                None
            }
        }
    }
}

/// Counted for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    counters: &AcceptCounters,
) -> Accepted {
    let permit = free_slot(slots).await;
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                return Accepted {
                    stream,
                    address,
                    permit,
                };
            }
            Err(error) => recover(&error, counters).await,
        }
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    tls: &ServerTls,
    options: AcceptOptions,
) -> io::Result<(TlsStream<TcpStream>, PeerInfo)> {
    set_options(&stream, options.user_timeout)?;
    let is_local = stream
        .local_addr()
        .is_ok_and(|local| local.ip().to_canonical() == address.ip().to_canonical());
    // One session for the handshake and its judgement: a configuration that is exchanged in
    // between does not judge by other roots than were asked for.
    let session = tls.current();
    let stream = TlsAcceptor::from(session.config()).accept(stream).await?;
    let seconds = u64::try_from(clock::now().wall.as_second()).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let peer = session.judge(stream.get_ref().1.peer_certificates(), now);
    let info = PeerInfo {
        address: Some(address),
        is_local,
        peer,
    };
    Ok((stream, info))
}

/// Small messages at once, and an end to dead connections.
pub(crate) fn set_options(stream: &TcpStream, user_timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    set_user_timeout(stream, user_timeout)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_COUNT)?;
    Ok(())
}

/// A connection whose peer acknowledges nothing for `timeout` is dead.
pub(crate) fn set_user_timeout(socket: impl AsFd, timeout: Duration) -> io::Result<()> {
    let millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(socket, millis)?)
}

impl TlsIo {
    /// Who is at the other end.
    #[must_use]
    pub fn peer_info(&self) -> &PeerInfo {
        &self.info
    }
}

impl Connected for TlsIo {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
