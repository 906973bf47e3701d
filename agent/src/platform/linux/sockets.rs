//! TCP sockets that listen, and whose they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use procfs::{ProcError, net::TcpState, process::FDTarget};

/// A TCP socket that listens on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListeningSocket {
    /// Where.
    pub address: SocketAddr,
    /// Names the socket until it is closed.
    pub inode: u64,
    /// Connections that wait to be accepted.
    pub waiting: u32,
}

/// A process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Its id.
    pub pid: i32,
    /// The name of its program.
    pub name: String,
}

/// Why the kernel's table cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the kernel's table of TCP sockets cannot be read")]
pub struct SocketsError(#[from] ProcError);

/// All TCP sockets that listen. Blocks for as long as the kernel takes to list its sockets.
///
/// # Errors
/// If /proc is not mounted or may not be read.
pub fn listening() -> Result<Vec<ListeningSocket>, SocketsError> {
    let mut entries = procfs::net::tcp()?;
    match procfs::net::tcp6() {
        Ok(more) => entries.extend(more),
        // A kernel without IPv6 has no such table.
        Err(ProcError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(entries
        .into_iter()
        .filter(|entry| entry.state == TcpState::Listen)
        .map(|entry| ListeningSocket {
            address: entry.local_address,
            inode: entry.inode,
            waiting: entry.rx_queue,
        })
        .collect())
}

/// The processes that hold these sockets. One of another user is visible to root alone, and is
/// missing otherwise.
#[must_use]
pub fn owners(inodes: &BTreeSet<u64>) -> BTreeMap<u64, Owner> {
    let mut owners = BTreeMap::new();
    let Ok(processes) = procfs::process::all_processes() else {
        return owners;
    };
    // Processes come and go while they are listed: what has gone is skipped.
    for process in processes.filter_map(Result::ok) {
        if owners.len() == inodes.len() {
            break;
        }
        let Ok(files) = process.fd() else { continue };
        for file in files.filter_map(Result::ok) {
            if let FDTarget::Socket(inode) = file.target
                && inodes.contains(&inode)
                && let Ok(stat) = process.stat()
            {
                let pid = process.pid();
                // systemd holds the socket of a service that it starts on demand, and a service
                // inherits it: the service says more.
                owners
                    .entry(inode)
                    .and_modify(|owner: &mut Owner| {
                        if owner.pid == 1 {
                            *owner = Owner {
                                pid,
                                name: stat.comm.clone(),
                            };
                        }
                    })
                    .or_insert_with(|| Owner {
                        pid,
                        name: stat.comm.clone(),
                    });
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_socket_that_listens_is_found_with_its_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let found = listening()
            .unwrap()
            .into_iter()
            .find(|socket| socket.address == address)
            .expect("the kernel lists it");
        let owners = owners(&BTreeSet::from([found.inode]));
        assert_eq!(
            owners[&found.inode].pid,
            i32::try_from(std::process::id()).unwrap()
        );
        drop(listener);
        assert!(
            listening()
                .unwrap()
                .iter()
                .all(|socket| socket.address != address)
        );
    }
}
