//! People's sessions: from logind, else from the login records.

use std::{fs, io::Read as _, path::Path};

use muster_core::model::SessionCounts;

use super::bus::{LoginManagerProxy, LoginSessionProxy, connect, within};

/// Sessions that are looked at one by one. A host with more is full by any measure, and its count
/// is then not known exactly: it is told as unknown.
const MAX_SESSIONS: usize = 512;
/// Login records that are read, 384 bytes each.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// Sessions as counted now. What nobody can tell is None, never zero.
///
/// Logind knows sessions that began through PAM, the login records those of programs that write
/// them: the larger count of the living is told. A session that logind calls closing has lost its
/// connection while its programs run on.
pub async fn count() -> SessionCounts {
    let records = tokio::task::spawn_blocking(from_login_records)
        .await
        .ok()
        .flatten();
    let logind = from_logind().await;
    let active = logind.map(|(active, _)| active);
    SessionCounts {
        active: active.max(records),
        disconnected: logind.map(|(_, closing)| closing),
        // Neither source knows of sessions that are being set up.
        pending: None,
    }
}

/// Sessions of users: those alive, and those that are closing.
async fn from_logind() -> Option<(u32, u32)> {
    let bus = connect().await.ok()?;
    let manager = LoginManagerProxy::new(&bus).await.ok()?;
    let listed = within(manager.list_sessions()).await.ok()?;
    if listed.len() > MAX_SESSIONS {
        return None;
    }
    let (mut active, mut closing) = (0, 0);
    for (.., path) in listed {
        let session = LoginSessionProxy::new(&bus, path).await.ok()?;
        // A session may end while it is looked at.
        let (Ok(class), Ok(state)) = (within(session.class()).await, within(session.state()).await)
        else {
            continue;
        };
        match (class.starts_with("user"), &*state) {
            (false, _) => {}
            (true, "closing") => closing += 1,
            (true, _) => active += 1,
        }
    }
    Some((active, closing))
}

fn from_login_records() -> Option<u32> {
    for path in ["/run/utmp", "/var/run/utmp"] {
        if let Ok(file) = fs::File::open(path) {
            let mut bytes = Vec::new();
            file.take(MAX_RECORD_BYTES).read_to_end(&mut bytes).ok()?;
            return count_records(&bytes, |pid| Path::new(&format!("/proc/{pid}")).exists());
        }
    }
    None
}

/// Counts the records of users whose leading process lives.
fn count_records(bytes: &[u8], lives: impl Fn(i32) -> bool) -> Option<u32> {
    const USER_PROCESS: i16 = 7;
    // The C library's record is longer where its times have 64 bits.
    let size = [384, 400]
        .into_iter()
        .find(|size| bytes.len().is_multiple_of(*size))?;
    let mut active = 0;
    for record in bytes.chunks_exact(size) {
        let kind = i16::from_ne_bytes([record[0], record[1]]);
        let pid = i32::from_ne_bytes([record[4], record[5], record[6], record[7]]);
        if kind == USER_PROCESS && lives(pid) {
            active += 1;
        }
    }
    Some(active)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: i16, pid: i32) -> Vec<u8> {
        let mut record = vec![0; 384];
        record[..2].copy_from_slice(&kind.to_ne_bytes());
        record[4..8].copy_from_slice(&pid.to_ne_bytes());
        record
    }

    #[test]
    fn login_records_count_users_whose_process_lives() {
        let bytes = [record(2, 0), record(7, 10), record(7, 11), record(8, 12)].concat();
        assert_eq!(count_records(&bytes, |pid| pid == 10), Some(1));
        assert_eq!(count_records(&[], |_| true), Some(0));
    }

    #[test]
    fn a_damaged_file_of_login_records_is_unknown_not_zero() {
        assert_eq!(count_records(&[0; 100], |_| true), None);
    }
}
