//! Dials session listeners when the rules of the fleet ask for it. What an answer or a refusal
//! means is decided there; here are only sockets.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use muster_core::fleet::{BUCKET, DialOutcome};
use muster_runtime::shutdown::Shutdown;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::registry::Registry;

/// Longer than the kernel takes to find out that nobody on the link has the address (three tries
/// of a second each).
const DIAL_WITHIN: Duration = Duration::from_secs(4);
/// The other side's last words are waited for this long.
const FAREWELL_WITHIN: Duration = Duration::from_millis(500);

/// Dials until shutdown. The rules bound how many at once.
///
/// # Errors
/// Never.
pub(crate) async fn run(registry: Arc<Registry>, shutdown: Shutdown) -> Result<(), Infallible> {
    let mut dials = JoinSet::new();
    let mut ticks = interval(BUCKET);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while let Some(dial) = registry.poll_dial() {
            let protocol = registry.protocol_of(&dial);
            dials.spawn(async move {
                let outcome = knock(dial.target, protocol.as_deref()).await;
                (dial, outcome)
            });
        }
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            Some(done) = dials.join_next() => match done {
                Ok((dial, outcome)) => registry.handle_dialled(&dial, outcome),
                Err(error) => tracing::error!(error = %error, "a dial's task panicked"),
            },
            () = registry.dials() => {}
            _ = ticks.tick() => {}
        }
    }
}

/// Connects, and takes leave politely.
async fn knock(target: SocketAddr, protocol: Option<&str>) -> DialOutcome {
    let connected = timeout(DIAL_WITHIN, TcpStream::connect(target)).await;
    match connected {
        Err(_) => DialOutcome::Silent,
        Ok(Ok(stream)) => {
            // What comes of it says nothing more about the host.
            let _ = timeout(FAREWELL_WITHIN, farewell(stream, protocol)).await;
            DialOutcome::Answered
        }
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::ConnectionRefused => DialOutcome::Refused,
            io::ErrorKind::HostUnreachable => DialOutcome::Unreachable,
            // No route at all is this machine's own trouble, as is a lack of sockets.
            _ => DialOutcome::Silent,
        },
    }
}

/// Servers lock out who knocks and runs: each is told, in a few fixed bytes, that this was all.
async fn farewell(mut stream: TcpStream, protocol: Option<&str>) -> io::Result<()> {
    let mut words = [0; 256];
    match protocol {
        Some("ssh") => {
            stream.write_all(b"SSH-2.0-muster_probe\r\n").await?;
            let _ = stream.read(&mut words).await?;
        }
        Some("vnc") => {
            // Version, security types, and "none" of them: an order that every server can refuse.
            stream.read_exact(&mut words[..12]).await?;
            stream.write_all(b"RFB 003.008\n").await?;
            let _ = stream.read(&mut words).await?;
        }
        _ => {}
    }
    stream.shutdown().await?;
    while stream.read(&mut words).await? > 0 {}
    Ok(())
}
