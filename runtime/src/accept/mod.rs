//! The way in: listeners whose connections carry who is at the other end.
//!
//! Both kinds are streams of connections, for tonic's `serve_with_incoming` as for any other
//! server: TLS over TCP ([`serve_tls`]) and plain text over a Unix socket ([`serve_unix`]).
//! Each request finds its [`PeerInfo`] in the extensions.
//!
//! Invariants: a slow, silent or broken handshake delays nobody else and ends by its timeout;
//! neither a failed handshake nor a lack of file descriptors ends the stream or makes it spin;
//! dropping the stream ends all that it began.

mod sources;
mod tls;
mod unix;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

pub use tls::{TlsIncoming, TlsIo, serve_tls};
pub(crate) use tls::{set_options, set_user_timeout};
pub use unix::{UnixIncoming, UnixIo, serve_unix};

use crate::tls::Peer;

/// Connections that the kernel holds for us: a fleet that reconnects at once comes in here. The
/// kernel cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
/// Pause when the system has no descriptors or memory for another connection: long enough not
/// to spin, short enough to go unnoticed.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection; in the extensions of each of its requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerInfo {
    /// Address that the connection comes from; none over a Unix socket.
    pub address: Option<SocketAddr>,
    /// It comes from an address of this very machine.
    pub is_local: bool,
    /// Who it is.
    pub peer: Peer,
}

/// Limits of one listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AcceptOptions {
    /// Handshakes under way at once, at most half of them from one address. One costs about
    /// 50 KiB and half a millisecond of processor time: 512 are ten thousand hosts in seconds.
    pub handshakes: usize,
    /// Accepted connections that wait for a handshake, at most half of them from one address;
    /// more wait in the kernel. One costs a file descriptor and about 4 KiB.
    pub waiting: usize,
    /// A handshake is ended after this time. Generous for a far and loaded host.
    pub handshake_timeout: Duration,
    /// Connections open at once; more wait in the kernel. Twice the fleet that is designed for.
    pub connections: usize,
    /// A connection whose peer acknowledges nothing for this time is dead.
    pub user_timeout: Duration,
}

impl Default for AcceptOptions {
    fn default() -> Self {
        Self {
            handshakes: 512,
            waiting: 4096,
            handshake_timeout: Duration::from_secs(10),
            connections: 32_768,
            user_timeout: Duration::from_secs(35),
        }
    }
}

/// What a listener has seen, for metrics and for knowing whether handshakes queue.
#[derive(Debug, Default)]
pub struct AcceptCounters {
    waiting: AtomicUsize,
    handshaking: AtomicUsize,
    open: AtomicUsize,
    accepted: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
    turned_away: AtomicU64,
    exhausted: AtomicU64,
}

impl AcceptCounters {
    /// Connections that wait for their handshake to begin: the queue.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Handshakes under way.
    #[must_use]
    pub fn handshaking(&self) -> usize {
        self.handshaking.load(Ordering::Relaxed)
    }

    /// Connections open, after their handshake.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections accepted since the start, after their handshake.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Handshakes that failed since the start.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Handshakes that ran into their timeout since the start.
    #[must_use]
    pub fn timed_out(&self) -> u64 {
        self.timed_out.load(Ordering::Relaxed)
    }

    /// Connections that were closed at once, because too many of their address had not finished
    /// their handshake.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Times that the system had no descriptor or memory for a connection.
    #[must_use]
    pub fn exhausted(&self) -> u64 {
        self.exhausted.load(Ordering::Relaxed)
    }
}

/// A listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has the port.
    #[error(
        "the port of {address} is in use; `ss -ltnp 'sport = :{}'` shows by whom; \
         stop it or choose another address", address.port()
    )]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A living process has the socket.
    #[error("another process answers on {}; is a broker or agent running already?", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// The place of the socket is taken by something else.
    #[error("{} is not a socket; remove it or choose another path", path.display())]
    NotSocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot {action} the socket {}", path.display())]
    Unix {
        /// What was to be done.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// Listens on `address`; port 0 takes a free one.
///
/// # Errors
/// If the port is in use or the address cannot be listened on.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn bind_tcp(address: SocketAddr) -> Result<TcpListener, BindError> {
    let bind = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        // A restart must not wait for the old connections' last minutes.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address },
        _ => BindError::Tcp { address, source },
    })
}

/// Lets this process open as many files as its hard limit allows, and returns how many. Every
/// connection takes one, and the usual soft limit is 1,024.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// The slot of one connection: free again when the connection is dropped.
#[derive(Debug)]
struct Slot {
    counters: Arc<AcceptCounters>,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    fn open(counters: &Arc<AcceptCounters>, permit: OwnedSemaphorePermit) -> Self {
        counters.open.fetch_add(1, Ordering::Relaxed);
        counters.accepted.fetch_add(1, Ordering::Relaxed);
        Self {
            counters: Arc::clone(counters),
            _permit: permit,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.counters.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits for a free slot.
async fn free_slot(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(slots)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed")
}

/// Returns at once if the error concerns one connection alone, else after a pause in which the
/// system may recover.
async fn recover(error: &io::Error, counters: &AcceptCounters) {
    use io::ErrorKind as K;
    match error.kind() {
        // The client gave up before it was accepted.
        K::ConnectionAborted | K::ConnectionReset | K::Interrupted | K::NotConnected => {}
        _ => {
            // Only the first of each thousand: at ten a second that is a line in two minutes.
            let before = counters.exhausted.fetch_add(1, Ordering::Relaxed);
            if before.is_multiple_of(1000) {
                tracing::warn!(
                    error = %error,
                    connections.open = counters.open(),
                    "cannot accept connections; is the limit of open files too low?"
                );
            }
            sleep(EXHAUSTED_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lack_of_descriptors_is_waited_out_and_a_lost_client_is_not() {
        let counters = AcceptCounters::default();
        let start = Instant::now();
        recover(&Errno::CONNABORTED.into(), &counters).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS] {
            recover(&errno.into(), &counters).await;
        }
        assert_eq!(start.elapsed(), 4 * EXHAUSTED_PAUSE);
        assert_eq!(counters.exhausted(), 4);
    }

    #[tokio::test]
    async fn a_port_in_use_is_answered_with_how_to_find_who_uses_it() {
        let first = bind_tcp(([127, 0, 0, 1], 0).into()).unwrap();
        let address = first.local_addr().unwrap();
        let text = bind_tcp(address).unwrap_err().to_string();
        let says = format!("the port of {address} is in use; `ss -ltnp 'sport = :");
        assert!(text.starts_with(&says), "{text}");
        let text = bind_tcp(([192, 0, 2, 1], 0).into())
            .unwrap_err()
            .to_string();
        assert_eq!(text, "cannot listen on 192.0.2.1:0");
    }

    #[test]
    fn the_limit_of_open_files_never_falls() {
        let before = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert!(raise_open_files() >= before);
    }
}
