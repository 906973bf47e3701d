//! What the machine has left: disk, memory, and how good its clock is. Each blocks while the
//! kernel answers; a dead file server may keep it from answering for ever.

use std::{io, path::Path};

use super::{
    bus::{connect, within},
    processes,
};

/// Room of a file system for users that are not root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that may still be written.
    pub free: u64,
    /// Files in all; 0 where the file system has no such limit.
    pub files_total: u64,
    /// Files that may still be made.
    pub files_free: u64,
    /// It is mounted read-only.
    pub is_read_only: bool,
}

/// Room of the file system that `path` is on.
///
/// # Errors
/// If there is no such path.
pub fn room(path: &Path) -> io::Result<Room> {
    let found = rustix::fs::statvfs(path)?;
    Ok(Room {
        total: found.f_blocks.saturating_mul(found.f_frsize),
        free: found.f_bavail.saturating_mul(found.f_frsize),
        files_total: found.f_files,
        files_free: found.f_favail,
        is_read_only: found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

/// Memory in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// In all.
    pub total: u64,
    /// That programs may still get without swapping, as the kernel estimates.
    pub available: u64,
}

/// Memory of the machine.
///
/// # Errors
/// If /proc/meminfo cannot be read.
pub fn memory() -> io::Result<Memory> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let kibibytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
        number
            .and_then(|number| number.parse::<u64>().ok())
            .map(|number| number * 1024)
            .ok_or_else(|| io::Error::other(format!("/proc/meminfo has no {name}")))
    };
    Ok(Memory {
        total: kibibytes("MemTotal")?,
        available: kibibytes("MemAvailable")?,
    })
}

/// Ids of the living processes whose program is of this name, a path being compared with the
/// executable.
///
/// # Errors
/// If /proc cannot be read.
pub fn processes_of(program: &str) -> io::Result<Vec<i32>> {
    /// The kernel keeps this many bytes of a program's name.
    const COMM_BYTES: usize = 15;
    let wanted = program.get(..COMM_BYTES).unwrap_or(program);
    let mut found = Vec::new();
    for process in processes::all().map_err(io::Error::other)? {
        let Ok(stat) = process.stat() else { continue };
        if matches!(stat.state, 'Z' | 'X') {
            continue;
        }
        let is_it = if program.starts_with('/') {
            process.exe().is_ok_and(|path| path == Path::new(program))
        } else {
            stat.comm == wanted
        };
        if is_it {
            found.push(stat.pid);
        }
    }
    Ok(found)
}

/// Does the kernel's clock follow a time source, as timedated tells? None where it cannot be asked.
pub async fn clock_is_synchronized() -> Option<bool> {
    let asked = async {
        let bus = connect().await?;
        let answer = bus
            .call_method(
                Some("org.freedesktop.timedate1"),
                "/org/freedesktop/timedate1",
                Some("org.freedesktop.DBus.Properties"),
                "Get",
                &("org.freedesktop.timedate1", "NTPSynchronized"),
            )
            .await?;
        let value: zbus::OwnedVariant = answer.body().deserialize()?;
        bool::try_from(value)
    };
    within(asked).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_room_and_the_machine_has_memory() {
        let room = room(Path::new("/")).unwrap();
        assert!(room.total >= room.free && room.total > 0);
        let memory = memory().unwrap();
        assert!(memory.available > 0 && memory.total >= memory.available);
    }

    #[test]
    fn this_very_process_is_found_by_name_and_by_path() {
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        let path = std::env::current_exe().unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        for name in [comm.trim(), path.to_str().unwrap()] {
            assert!(processes_of(name).unwrap().contains(&me), "{name}");
        }
        assert_eq!(processes_of("no-such-program").unwrap(), Vec::<i32>::new());
    }
}
