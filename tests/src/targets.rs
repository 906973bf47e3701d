//! What checks of agents under test point at: listeners and web servers that can be made to fail.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// The head of a request that a check sends: far below this.
const REQUEST_BYTES: usize = 4096;

/// A listener on loopback that ends when dropped.
#[derive(Debug)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    status: Arc<AtomicU16>,
    task: AbortHandle,
}

impl Target {
    /// Takes connections and closes them after the other side did: enough for a check of `tcp`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn listener() -> Result<Self> {
        Self::start(None).await
    }

    /// Answers every request with a status that can be changed, 200 at first.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn web_server() -> Result<Self> {
        Self::start(Some("ok")).await
    }

    /// The same, with this body in every answer.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn web_server_with(body: &'static str) -> Result<Self> {
        Self::start(Some(body)).await
    }

    async fn start(body: Option<&'static str>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("cannot listen on loopback")?;
        let address = listener.local_addr()?;
        let status = Arc::new(AtomicU16::new(200));
        let shared = Arc::clone(&status);
        let task = tokio::spawn(async move {
            // Each connection is short and comes from a check of ours; they end with the runtime.
            while let Ok((stream, _)) = listener.accept().await {
                let status = Arc::clone(&shared);
                tokio::spawn(async move {
                    let answer = body.map(|body| (status.load(Ordering::Relaxed), body));
                    // Who connects may leave at any time.
                    drop(serve(stream, answer).await);
                });
            }
        })
        .abort_handle();
        Ok(Self {
            address,
            status,
            task,
        })
    }

    /// From now on answers with this status.
    pub fn answer_with(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// The table of an agent's configuration that has this as its only session listener.
    #[must_use]
    pub fn as_session_listener(&self) -> String {
        format!(
            "allow_loopback = true\nlisteners = [{{ protocol = \"tcp\", port = {}, address = \"{}\" }}]\n",
            self.address.port(),
            self.address.ip()
        )
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection: an answer for web servers, none for plain listeners.
async fn serve(mut stream: TcpStream, answer: Option<(u16, &'static str)>) -> std::io::Result<()> {
    let mut request = vec![0; REQUEST_BYTES];
    let mut length = 0;
    loop {
        let read = stream.read(&mut request[length..]).await?;
        if read == 0 {
            return Ok(());
        }
        length = (length + read).min(REQUEST_BYTES - 1);
        let whole = request[..length].windows(4).any(|end| end == b"\r\n\r\n");
        if let (Some((code, body)), true) = (answer, whole) {
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {code} Demo\r\nContent-Length: {length}\r\n\
                 Connection: close\r\n\r\n{body}"
            );
            return stream.write_all(answer.as_bytes()).await;
        }
    }
}
