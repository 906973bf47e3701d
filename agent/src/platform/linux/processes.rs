//! Running processes.

use std::path::PathBuf;

use procfs::{ProcError, process::Process};

use super::sockets::Owner;

/// The kernel keeps this many bytes of a program's name.
const COMM_BYTES: usize = 15;

/// All processes. A listing without this very one is none: /proc is something else there.
///
/// # Errors
/// If /proc cannot be read.
pub fn all() -> Result<impl Iterator<Item = Process>, ProcError> {
    Process::myself()?;
    Ok(procfs::process::all_processes()?.filter_map(Result::ok))
}

/// The first process whose program has one of these names. Blocks while the kernel lists them.
///
/// # Errors
/// If /proc cannot be read.
pub fn running(names: &[&str]) -> Result<Option<Owner>, ProcError> {
    for process in all()? {
        let Ok(stat) = process.stat() else { continue };
        // A dead process that nobody has waited for still has a name.
        if matches!(stat.state, 'Z' | 'X') {
            continue;
        }
        if let Some(name) = names.iter().find(|name| is_named(&stat.comm, name)) {
            return Ok(Some(Owner {
                pid: process.pid(),
                name: (*name).to_owned(),
            }));
        }
    }
    Ok(None)
}

/// The first process that runs one of these files. One of another user is visible to root alone.
/// Blocks while the kernel lists them.
///
/// # Errors
/// If /proc cannot be read.
pub fn executing(files: &[PathBuf]) -> Result<Option<Owner>, ProcError> {
    for process in all()? {
        let Ok(file) = process.exe() else { continue };
        if files.contains(&file) {
            return Ok(Some(Owner {
                pid: process.pid(),
                name: file.display().to_string(),
            }));
        }
    }
    Ok(None)
}

fn is_named(comm: &str, name: &str) -> bool {
    match name.get(..COMM_BYTES) {
        Some(cut) => comm == cut,
        None => comm == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_compared_as_the_kernel_cuts_them() {
        assert!(is_named("telegraf", "telegraf"));
        assert!(is_named("amazon-cloudwat", "amazon-cloudwatch-agent"));
        assert!(!is_named("telegraf", "telegra"));
    }

    #[test]
    fn a_program_that_does_not_run_is_not_found() {
        assert_eq!(running(&["no-such-program"]).unwrap(), None);
    }
}
