//! The session listener of a light agent: answers who knocks as the real one would, and closes or
//! falls silent with its host.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use muster_proto::v1;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

/// Connections that wait to be taken: a probe or two.
const BACKLOG: u32 = 8;
/// Conversations under way: a probe or two, and a check.
const CONVERSATIONS: usize = 8;
/// A conversation takes at most this long: whoever probes gives up before.
const CONVERSATION: Duration = Duration::from_secs(5);
/// Bytes of a first request that are read: X.224 has 19, an SSH banner at most 255.
const REQUEST_BYTES: usize = 512;

/// X.224 connection confirmation that chooses TLS (MS-RDPBCGR 2.2.1.2).
const RDP_CONFIRM: [u8; 19] = [
    3, 0, 0, 19, 14, 0xd0, 0, 0, 0x12, 0x34, 0, 2, 0, 8, 0, 1, 0, 0, 0,
];
const SSH_BANNER: &[u8] = b"SSH-2.0-swarm\r\n";

/// What a session listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// Confirms an X.224 connection request.
    Rdp,
    /// Greets with its version.
    Ssh,
}

/// A session listener of a light agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerKind {
    /// What it speaks.
    pub speaks: Speaks,
    /// Its port.
    pub port: u16,
}

impl ListenerKind {
    /// As it is announced in reports.
    #[must_use]
    pub fn announced(self, address: IpAddr) -> v1::Listener {
        v1::Listener {
            protocol: match self.speaks {
                Speaks::Rdp => "rdp",
                Speaks::Ssh => "ssh",
            }
            .to_owned(),
            addresses: vec![address.to_string()],
            port: u32::from(self.port),
        }
    }
}

/// A listener that is open. Dropped, it closes as a killed process's does.
#[derive(Debug)]
pub struct SessionListener {
    task: JoinHandle<()>,
    frozen: Arc<Notify>,
}

impl SessionListener {
    /// Opens it.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn open(address: IpAddr, kind: ListenerKind) -> Result<Self> {
        let bind = || {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::new(address, kind.port))?;
            socket.listen(BACKLOG)
        };
        let listener = bind().with_context(|| {
            format!("cannot open a session listener on {address}:{}", kind.port)
        })?;
        let frozen = Arc::new(Notify::new());
        let task = tokio::spawn(serve(listener, kind.speaks, Arc::clone(&frozen)));
        Ok(Self { task, frozen })
    }

    /// Takes no connection and says nothing from here on, and stays open.
    pub fn freeze(&self) {
        self.frozen.notify_one();
    }

    /// Closes it and waits until it is closed.
    pub async fn close(mut self) {
        self.task.abort();
        // An aborted task gives an error, which is what was asked for.
        drop((&mut self.task).await);
    }
}

impl Drop for SessionListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, speaks: Speaks, frozen: Arc<Notify>) {
    // Dropped with this task: so end the conversations of a process that is killed.
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if conversations.len() < CONVERSATIONS => {
                if let Ok((stream, _)) = accepted {
                    conversations.spawn(timeout(CONVERSATION, greet(stream, speaks)));
                }
            }
            Some(_) = conversations.join_next() => {}
            () = frozen.notified() => std::future::pending().await,
        }
    }
}

/// The first exchange, and then whatever the other side says, until it goes.
async fn greet(mut stream: TcpStream, speaks: Speaks) -> io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    match speaks {
        Speaks::Ssh => stream.write_all(SSH_BANNER).await?,
        Speaks::Rdp => {
            if stream.read(&mut request).await? == 0 {
                return Ok(());
            }
            stream.write_all(&RDP_CONFIRM).await?;
        }
    }
    while stream.read(&mut request).await? > 0 {}
    Ok(())
}
