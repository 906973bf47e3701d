//! What a process has used, as the kernel tells it under `/proc`.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
/// Of `/proc/PID/stat` behind the name of the program: user and system time.
const USER_TIME: usize = 11;
const SYSTEM_TIME: usize = 12;

/// Of those times in a second: `USER_HZ`, the same on every architecture that this is built for.
const TICKS: u64 = 100;

/// What a process has used up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Processor time, user and system.
    pub(crate) cpu: Duration,
    /// Resident memory, KiB.
    pub(crate) rss_kib: u64,
    /// The same, with shared pages counted by share.
    pub(crate) pss_kib: u64,
}

/// What the process has used up to now.
///
/// # Errors
/// When it has ended or belongs to somebody else.
pub(crate) fn usage(process: u32) -> Result<Usage> {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))
        .with_context(|| format!("cannot read the memory of process {process}"))?;
    Ok(Usage {
        cpu: cpu(process)?,
        rss_kib: field(&rollup, "Rss:")?,
        pss_kib: field(&rollup, "Pss:")?,
    })
}

/// Processor time of a process up to now: much cheaper to ask than [`usage`].
///
/// # Errors
/// When it has ended.
pub(crate) fn cpu(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))
        .with_context(|| format!("cannot read the times of process {process}"))?;
    cpu_of(&stat).with_context(|| format!("no times in {stat:?}"))
}

fn cpu_of(stat: &str) -> Option<Duration> {
    // The program's name may hold blanks and brackets; the last bracket ends it.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = ticks(USER_TIME)? + ticks(SYSTEM_TIME)?;
    Some(Duration::from_millis(ticks * 1000 / TICKS))
}

fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| format!("no {name} in {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_a_name_with_blanks_and_brackets() {
        let stat = "7 (a ) (b) S 1 7 7 0 -1 4194560 1 0 0 0 150 70 0 0 20 0 3 0";
        assert_eq!(cpu_of(stat), Some(Duration::from_millis(2200)));
        assert_eq!(cpu_of("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let used = usage(std::process::id()).unwrap();
        assert!(
            used.rss_kib >= used.pss_kib && used.pss_kib > 100,
            "{used:?}"
        );
        assert!(usage(u32::MAX).is_err());
    }
}
