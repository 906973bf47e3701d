//! A relay between two processes: a bad line that the kernel need not know how to make. It can be
//! slow, stand still, lose one direction, or break.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks under way in one direction: 200 ms of a chatty session; more wait in the kernel.
const UNDER_WAY: usize = 256;

/// How the line is just now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Line {
    /// From reading to writing, in either direction.
    delay: Duration,
    /// Nothing is delivered; what comes is kept.
    still: bool,
    /// What clients say is lost; they see an open connection.
    deaf: bool,
    /// Connections of an earlier number are broken.
    generation: u64,
}

/// A relay to one target. Dropped, it closes its port and all connections.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    line: watch::Sender<Line>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens at `address` on any port and connects on to `target`, `host:port`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(address: IpAddr, target: &str) -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::new(address, 0))
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let address = listener.local_addr()?;
        let (line, lines) = watch::channel(Line::default());
        let task = tokio::spawn(serve(listener, target.to_owned(), lines));
        Ok(Self {
            address,
            line,
            task,
        })
    }

    /// From now on what is said arrives that much later.
    pub fn delay(&self, delay: Duration) {
        self.line.send_modify(|line| line.delay = delay);
    }

    /// Nothing arrives in either direction until [`Relay::go_on`]; connections stay open.
    pub fn stand_still(&self) {
        self.line.send_modify(|line| line.still = true);
    }

    /// What clients say is lost, although their connections stay open: half open.
    pub fn lose_what_clients_say(&self) {
        self.line.send_modify(|line| line.deaf = true);
    }

    /// The line is well again. Connections that lost something cannot be mended and are broken.
    pub fn go_on(&self) {
        self.line.send_modify(|line| {
            line.still = false;
            if std::mem::take(&mut line.deaf) {
                line.generation += 1;
            }
        });
    }

    /// Breaks all connections. New ones are taken.
    pub fn cut(&self) {
        self.line.send_modify(|line| line.generation += 1);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target: String, line: watch::Receiver<Line>) {
    // Dropped with this task: so end the connections.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(connect(client, target.clone(), line.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(client: TcpStream, target: String, mut line: watch::Receiver<Line>) {
    let generation = line.borrow_and_update().generation;
    let broken = {
        let mut line = line.clone();
        async move {
            // The sender is gone when the relay is.
            drop(line.wait_for(|line| line.generation > generation).await);
        }
    };
    tokio::select! {
        () = broken => {}
        // Whoever ends a connection ends both halves of it.
        _ = relay(client, target, line) => {}
    }
}

async fn relay(client: TcpStream, target: String, line: watch::Receiver<Line>) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_rx, client_tx) = client.into_split();
    let (server_rx, server_tx) = server.into_split();
    tokio::select! {
        ended = one_way(client_rx, server_tx, line.clone(), true) => ended,
        ended = one_way(server_rx, client_tx, line, false) => ended,
    }
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    line: watch::Receiver<Line>,
    from_client: bool,
) -> io::Result<()> {
    let (tx, mut rx) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let read = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let length = from.read(&mut chunk).await?;
            let now = *line.borrow();
            if length == 0 {
                return io::Result::Ok(());
            }
            if !(now.deaf && from_client)
                && tx
                    .send((Instant::now() + now.delay, chunk[..length].to_vec()))
                    .await
                    .is_err()
            {
                return Ok(());
            }
        }
    };
    let mut moves = line.clone();
    let write = async {
        while let Some((due, bytes)) = rx.recv().await {
            sleep_until(due).await;
            if moves.wait_for(|line| !line.still).await.is_err() {
                break;
            }
            to.write_all(&bytes).await?;
        }
        io::Result::Ok(())
    };
    tokio::select! {
        ended = read => ended,
        ended = write => ended,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::wait;

    /// A server that says back what it hears, behind a relay, and a client of it.
    async fn echo() -> Result<(Relay, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let target = listener.local_addr()?.to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut rx, mut tx) = stream.into_split();
                    drop(tokio::io::copy(&mut rx, &mut tx).await);
                });
            }
        });
        let relay = Relay::start(Ipv4Addr::LOCALHOST.into(), &target).await?;
        let client = TcpStream::connect(relay.address).await?;
        Ok((relay, client))
    }

    async fn hear(client: &mut TcpStream) -> Result<u8> {
        Ok(wait::within("an echo", wait::PATIENCE, client.read_u8()).await??)
    }

    #[tokio::test]
    async fn what_is_said_arrives_late_and_in_order() -> Result<()> {
        let (relay, mut client) = echo().await?;
        relay.delay(Duration::from_millis(100));
        let begun = Instant::now();
        for word in 0..3 {
            client.write_u8(word).await?;
        }
        for word in 0..3 {
            anyhow::ensure!(hear(&mut client).await? == word);
        }
        // There and back again.
        anyhow::ensure!(begun.elapsed() >= Duration::from_millis(200));
        Ok(())
    }

    #[tokio::test]
    async fn a_line_that_stands_still_loses_nothing() -> Result<()> {
        let (relay, mut client) = echo().await?;
        client.write_u8(1).await?;
        anyhow::ensure!(hear(&mut client).await? == 1);
        relay.stand_still();
        client.write_u8(2).await?;
        let early = tokio::time::timeout(Duration::from_millis(100), client.read_u8()).await;
        anyhow::ensure!(early.is_err(), "{early:?}");
        relay.go_on();
        anyhow::ensure!(hear(&mut client).await? == 2);
        Ok(())
    }

    #[tokio::test]
    async fn a_half_open_line_loses_words_and_breaks_when_it_is_well_again() -> Result<()> {
        let (relay, mut client) = echo().await?;
        relay.lose_what_clients_say();
        client.write_u8(1).await?;
        let early = tokio::time::timeout(Duration::from_millis(100), client.read_u8()).await;
        anyhow::ensure!(early.is_err(), "{early:?}");
        relay.go_on();
        let ended = wait::within("the end", wait::PATIENCE, client.read(&mut [0])).await?;
        anyhow::ensure!(!matches!(ended, Ok(1..)), "{ended:?}");
        Ok(())
    }
}
