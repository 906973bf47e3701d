//! The control socket: how `announce` and `doctor` speak to the agent that runs.
//!
//! One request and one answer per connection, each one line of JSON. Only the owner of the agent's
//! process may connect (the socket has mode 0600).

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_runtime::{
    accept::{AcceptOptions, BindError, UnixIncoming, serve_unix},
    clock,
    explain::explain,
    files,
    shutdown::Shutdown,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader,
    },
    net::UnixStream,
    sync::watch,
    time::timeout,
};

use crate::{
    announce::{Announcement, Announcer, Delivered},
    session::LinkState,
};

/// A request or an answer: an announcement with its error text fits many times.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// Connections at once: each is a command that somebody typed.
const MAX_CONNECTIONS: usize = 16;
/// Time for a request to arrive.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// Time for the broker to acknowledge an announcement.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(10);
/// Time for the agent to answer a command: the above, twice where two words are told.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// Announce this.
    Announce {
        /// What.
        announcement: Announcement,
    },
    /// How does the session fare?
    Link,
}

/// What is answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Answer {
    /// What became of the announcement.
    Announced {
        /// See there.
        delivered: Delivered,
    },
    /// How the session fares.
    Link {
        /// See there.
        link: LinkState,
    },
    /// It was not done.
    Refused {
        /// Why.
        why: String,
    },
}

/// Why the agent that runs could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens there.
    #[error(
        "no agent answers at {} ({source}); is it running (systemctl status muster-agent), and is \
         this the socket of its configuration (--config, --control-socket)?", path.display()
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Not for us.
    #[error("{} may be used by the user that the agent runs as alone, and by root", path.display())]
    NotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// It answers with something else.
    #[error("the agent at {} gave no usable answer: {problem}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Listens on `path`.
///
/// # Errors
/// If another agent answers there, or the socket cannot be made.
pub fn bind(path: &Path) -> Result<UnixIncoming, BindError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        // If that fails, so does the next step, and says it better.
        let _ = files::create_private_directory(folder);
    }
    let options = AcceptOptions {
        connections: MAX_CONNECTIONS,
        ..AcceptOptions::default()
    };
    serve_unix(path, files::SECRET_MODE, None, options)
}

/// Answers until shutdown is requested.
///
/// # Errors
/// Never; the type is what the supervisor asks for.
pub async fn serve(
    mut incoming: UnixIncoming,
    announcer: Announcer,
    link: watch::Receiver<LinkState>,
    shutdown: Shutdown,
) -> Result<(), std::convert::Infallible> {
    loop {
        let stream = tokio::select! {
            () = shutdown.requested() => return Ok(()),
            stream = incoming.accept() => stream,
        };
        let (announcer, link, shutdown) = (announcer.clone(), link.clone(), shutdown.clone());
        // Bounded by the slots of the listener and by the times of each step.
        tokio::spawn(async move {
            let answered = answer(stream, &announcer, &link);
            tokio::select! {
                result = answered => if let Err(error) = result {
                    tracing::debug!(%error, "a command went away");
                },
                () = shutdown.requested() => {}
            }
        });
    }
}

async fn answer<Io: AsyncRead + AsyncWrite + Unpin>(
    mut stream: Io,
    announcer: &Announcer,
    link: &watch::Receiver<LinkState>,
) -> io::Result<()> {
    let answer = match timeout(REQUEST_WITHIN, read_line::<Request>(&mut stream)).await {
        Ok(Ok(request)) => handle(request, announcer, link).await,
        Ok(Err(problem)) => Answer::Refused { why: problem },
        Err(_) => return Ok(()),
    };
    write_line(&mut stream, &answer).await
}

async fn handle(
    request: Request,
    announcer: &Announcer,
    link: &watch::Receiver<LinkState>,
) -> Answer {
    match request {
        Request::Link => Answer::Link {
            link: link.borrow().clone(),
        },
        Request::Announce { announcement } => {
            let now = clock::now().wall;
            match announcer
                .announce(&announcement, now, ACKNOWLEDGED_WITHIN)
                .await
            {
                Ok(delivered) => Answer::Announced { delivered },
                Err(error) => Answer::Refused {
                    why: explain(&error),
                },
            }
        }
    }
}

/// Asks the agent that runs.
///
/// # Errors
/// If it does not run, or does not answer.
pub async fn ask(path: &Path, request: &Request) -> Result<Answer, ControlError> {
    let path = path.to_owned();
    let mut stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(ControlError::NotAllowed { path });
        }
        Err(source) => return Err(ControlError::NotRunning { path, source }),
    };
    let exchange = async {
        write_line(&mut stream, request)
            .await
            .map_err(|error| error.to_string())?;
        read_line(&mut stream).await
    };
    match timeout(ANSWER_WITHIN, exchange).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(problem)) => Err(ControlError::Answer { path, problem }),
        Err(_) => Err(ControlError::Answer {
            path,
            problem: format!("it did not answer within {ANSWER_WITHIN:?}"),
        }),
    }
}

async fn write_line<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &T,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}

async fn read_line<T: for<'de> Deserialize<'de>>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, String> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(MAX_LINE_BYTES));
    reader
        .read_line(&mut line)
        .await
        .map_err(|error| error.to_string())?;
    if !line.ends_with('\n') {
        return Err(format!(
            "a line of JSON of at most {MAX_LINE_BYTES} bytes is expected"
        ));
    }
    serde_json::from_str(&line).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use muster_core::model::Leave;

    use super::*;
    use crate::store::DataDir;

    struct Running {
        folder: tempfile::TempDir,
        deliveries: tokio::sync::mpsc::Receiver<crate::announce::Delivery>,
        shutdown: Shutdown,
    }

    fn start() -> Running {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::new(folder.path().join("data"));
        let (announcer, deliveries) = Announcer::new(data, "boot", "1.0.0");
        let incoming = bind(&folder.path().join("run/control.sock")).unwrap();
        let link = watch::channel(LinkState::default()).1;
        let shutdown = Shutdown::new();
        tokio::spawn(serve(incoming, announcer, link, shutdown.clone()));
        Running {
            folder,
            deliveries,
            shutdown,
        }
    }

    impl Running {
        fn socket(&self) -> PathBuf {
            self.folder.path().join("run/control.sock")
        }
    }

    fn shutdown_request() -> Request {
        Request::Announce {
            announcement: Announcement::Shutdown {
                kind: Leave::Poweroff,
                back_within: None,
            },
        }
    }

    #[tokio::test]
    async fn an_announcement_is_answered_when_the_broker_has_it() {
        let mut running = start();
        let socket = running.socket();
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let asked = tokio::spawn(async move { ask(&socket, &shutdown_request()).await });
        running
            .deliveries
            .recv()
            .await
            .unwrap()
            .acknowledged
            .send(())
            .unwrap();
        let delivered = Delivered::Acknowledged;
        assert_eq!(
            asked.await.unwrap().unwrap(),
            Answer::Announced { delivered }
        );
        running.shutdown.request();
    }

    #[tokio::test]
    async fn without_a_session_that_is_said() {
        let mut running = start();
        let socket = running.socket();
        let asked = tokio::spawn(async move { ask(&socket, &shutdown_request()).await });
        drop(running.deliveries.recv().await.unwrap());
        let delivered = Delivered::NoSession;
        assert_eq!(
            asked.await.unwrap().unwrap(),
            Answer::Announced { delivered }
        );
    }

    #[tokio::test]
    async fn nonsense_is_refused_and_the_agent_goes_on() {
        let running = start();
        for nonsense in ["hello\n".to_owned(), "x".repeat(1 << 20)] {
            let mut stream = UnixStream::connect(running.socket()).await.unwrap();
            // The agent stops reading at its bound and may close before everything is written.
            let _ = stream.write_all(nonsense.as_bytes()).await;
            let answer = read_line::<Answer>(&mut stream).await;
            assert!(!matches!(
                answer,
                Ok(Answer::Announced { .. } | Answer::Link { .. })
            ));
        }
        let answer = ask(&running.socket(), &Request::Link).await.unwrap();
        assert_eq!(
            answer,
            Answer::Link {
                link: LinkState::default()
            }
        );
    }

    #[tokio::test]
    async fn an_agent_that_does_not_run_is_said_so() {
        let error = ask(Path::new("/nonexistent/c.sock"), &Request::Link)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("is it running"), "{error}");
    }

    #[tokio::test]
    async fn two_agents_do_not_share_a_socket() {
        let running = start();
        assert!(bind(&running.socket()).is_err());
    }
}
