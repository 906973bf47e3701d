//! A Unix socket whose file permissions say who may speak.
//!
//! The socket is made in a folder that only this process may enter, given its owner and mode, and
//! then renamed to its place: nobody can connect before the permissions stand, and a dead
//! process's socket is replaced without a gap.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::stream;
use rustix::fs::{Gid, chown};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::Connected;

use super::{AcceptCounters, AcceptOptions, BindError, PeerInfo, Slot, free_slot, recover};
use crate::{files, tls::Peer};

/// A connection of a process of this machine.
#[derive(Debug)]
pub struct UnixIo {
    stream: UnixStream,
    info: PeerInfo,
    _slot: Slot,
}

/// Connections of a Unix socket. The socket is removed when this is dropped.
pub struct UnixIncoming {
    inner: Pin<Box<dyn Stream<Item = UnixIo> + Send>>,
    counters: Arc<AcceptCounters>,
}

impl std::fmt::Debug for UnixIncoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnixIncoming")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Listens on the Unix socket `path` with permission bits `mode`. With `group`, the socket
/// belongs to it; where that cannot be done (no such group, not a member), only the owner may use
/// the socket, and a warning says so.
///
/// # Errors
/// If another process answers there, or the socket cannot be made.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn serve_unix(
    path: &Path,
    mode: u32,
    group: Option<&str>,
    options: AcceptOptions,
) -> Result<UnixIncoming, BindError> {
    let listener = bind(path, mode, group)?;
    let counters = Arc::new(AcceptCounters::default());
    let acceptor = Acceptor {
        listener,
        slots: Arc::new(Semaphore::new(options.connections)),
        counters: Arc::clone(&counters),
    };
    let inner = stream::unfold(acceptor, |acceptor| async move {
        let io = acceptor.next().await;
        Some((io, acceptor))
    });
    Ok(UnixIncoming {
        inner: Box::pin(inner),
        counters,
    })
}

impl UnixIncoming {
    /// What this listener has seen.
    #[must_use]
    pub fn counters(&self) -> Arc<AcceptCounters> {
        Arc::clone(&self.counters)
    }

    /// The next connection, for servers that ask instead of taking a stream.
    pub async fn accept(&mut self) -> UnixIo {
        self.inner
            .next()
            .await
            .expect("the stream of connections has no end")
    }
}

impl Stream for UnixIncoming {
    type Item = io::Result<UnixIo>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(cx).map(|io| io.map(Ok))
    }
}

struct Acceptor {
    listener: Bound,
    slots: Arc<Semaphore>,
    counters: Arc<AcceptCounters>,
}

impl Acceptor {
    async fn next(&self) -> UnixIo {
        let permit = free_slot(&self.slots).await;
        loop {
            let accepted = self.listener.socket.accept().await;
            // The kernel noted who connected, at that time: nothing that the peer says.
            match accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream))) {
                Ok((uid, stream)) => {
                    let info = PeerInfo {
                        address: None,
                        is_local: true,
                        peer: Peer::Local { uid },
                    };
                    return UnixIo {
                        stream,
                        info,
                        _slot: Slot::open(&self.counters, permit),
                    };
                }
                Err(error) => recover(&error, &self.counters).await,
            }
        }
    }
}

/// A listening socket and its file.
struct Bound {
    socket: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Only our own: a successor may have put its socket there already.
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if ours {
            // A socket that is left behind is replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind(path: &Path, mode: u32, group: Option<&str>) -> Result<Bound, BindError> {
    let failed = |action| {
        move |source| BindError::Unix {
            action,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("create the folder of"))?;
    }
    refuse_taken(path)?;
    let private = Private::new(path).map_err(failed("prepare"))?;
    let temporary = private.0.join("s");
    let socket = StdListener::bind(&temporary).map_err(failed("bind"))?;
    let mode = match group.map(|group| give_to(&temporary, group)) {
        None | Some(Ok(())) => mode,
        Some(Err(problem)) => {
            tracing::warn!(
                socket.path = %path.display(),
                socket.group = group,
                problem,
                "only the socket's owner may use it"
            );
            mode & 0o700
        }
    };
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))
        .map_err(failed("set the permissions of"))?;
    let inode = fs::symlink_metadata(&temporary)
        .map_err(failed("look at"))?
        .ino();
    fs::rename(&temporary, path).map_err(failed("move to its place"))?;
    socket.set_nonblocking(true).map_err(failed("set up"))?;
    Ok(Bound {
        socket: UnixListener::from_std(socket).map_err(failed("set up"))?,
        path: path.to_owned(),
        inode,
    })
}

/// Only a socket on which nobody answers any more is replaced.
fn refuse_taken(path: &Path) -> Result<(), BindError> {
    let path_buf = || path.to_owned();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(BindError::Unix {
            action: "look at",
            path: path_buf(),
            source,
        }),
        Ok(file) if !file.file_type().is_socket() => Err(BindError::NotSocket { path: path_buf() }),
        Ok(_) => match StdStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // Connected, or somebody is there who may not be asked: either way it is in use.
            Ok(_) | Err(_) => Err(BindError::SocketInUse { path: path_buf() }),
        },
    }
}

/// A folder beside the socket that only this user may enter; removed with what is in it.
struct Private(PathBuf);

impl Private {
    fn new(path: &Path) -> io::Result<Self> {
        let folder = files::beside(path);
        // As with files: only a dead process can have left it.
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // What is left behind is an empty folder with a dot before its name.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn give_to(path: &Path, group: &str) -> Result<(), String> {
    let groups = fs::read_to_string("/etc/group")
        .map_err(|error| format!("cannot read /etc/group: {error}"))?;
    let gid = gid_of(&groups, group)
        .ok_or_else(|| format!("there is no group; create it: groupadd --system {group}"))?;
    chown(path, None, Some(Gid::from_raw(gid)))
        .map_err(|error| format!("cannot give the socket to the group: {error}"))
}

fn gid_of(groups: &str, wanted: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(wanted)).then(|| fields.nth(1)?.parse().ok())?
    })
}

impl UnixIo {
    /// Who is at the other end.
    #[must_use]
    pub fn peer_info(&self) -> &PeerInfo {
        &self.info
    }
}

impl Connected for UnixIo {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for UnixIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for UnixIo {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[tokio::test]
    async fn a_socket_has_its_mode_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/operator.sock");
        let incoming = serve_unix(&path, 0o660, None, AcceptOptions::default()).unwrap();
        assert_eq!(mode(&path), 0o660);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        drop(incoming);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.sock");
        drop(StdListener::bind(&path).unwrap());
        let _incoming = serve_unix(&path, 0o600, None, AcceptOptions::default()).unwrap();
        let error = serve_unix(&path, 0o600, None, AcceptOptions::default()).unwrap_err();
        assert!(matches!(error, BindError::SocketInUse { .. }), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_file_in_the_socket_s_place_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.sock");
        fs::write(&path, "precious").unwrap();
        let error = serve_unix(&path, 0o600, None, AcceptOptions::default()).unwrap_err();
        assert!(matches!(error, BindError::NotSocket { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn without_its_group_only_the_owner_may_use_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.sock");
        let group = Some("no-such-group-here");
        let _incoming = serve_unix(&path, 0o660, group, AcceptOptions::default()).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn group_ids_are_found_by_the_whole_name() {
        let groups = "root:x:0:\nmusters:x:5:\nmuster:x:987:ann,bob\nbroken\nbad:x:y:\n";
        assert_eq!(gid_of(groups, "muster"), Some(987));
        assert_eq!(gid_of(groups, "muste"), None);
        assert_eq!(gid_of(groups, "broken"), None);
        assert_eq!(gid_of(groups, "bad"), None);
    }
}
