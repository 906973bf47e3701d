//! Times and bounds of one host's state, each with its reason.

use std::time::Duration;

/// Beats that may be missing before a host is suspect: one may be late, two are silence.
pub(super) const SUSPECT_AFTER_BEATS: u32 = 2;
/// A reboot takes minutes on large machines; ten is more than any that is well.
pub(super) const REBOOT_BACK_WITHIN: Duration = Duration::from_secs(10 * 60);
/// The longest time that a host may announce for its reboot.
pub(super) const REBOOT_BACK_WITHIN_MAX: Duration = Duration::from_secs(2 * 3600);
/// An attempt: download and preflight on a slow line, without the wait for sessions.
pub(super) const UPGRADE_ATTEMPT: Duration = Duration::from_secs(15 * 60);
/// Switch to commit: a restart and one round of checks take seconds.
pub(super) const UPGRADE_SWITCH: Duration = Duration::from_secs(5 * 60);
/// The longest time that may be announced for an upgrade which others perform.
pub const UPGRADE_ANNOUNCED_MAX: Duration = Duration::from_secs(3600);
/// Silence during a switch that is hidden: the agent restarts, perhaps twice.
pub(super) const UPGRADE_SILENCE: Duration = Duration::from_secs(3 * 60);
/// Attempts remembered as over by somebody's word.
pub(super) const CLEARED_ATTEMPTS: usize = 8;
/// How long an incumbent with an open stream has to show that it is alive: any word within it.
pub(super) const PROOF_WITHIN: Duration = Duration::from_secs(5);
/// A challenge this old is over: the newcomer went away.
pub(super) const CHALLENGE_LASTS: Duration = Duration::from_secs(60);
/// A copy that is refused need not hurry: an operator has to decide.
pub(super) const CONFLICT_RETRY: Duration = Duration::from_secs(60);
/// A conflict is shown this long after the last try: ten tries of a copy.
pub(super) const CONFLICT_SHOWN: Duration = Duration::from_secs(10 * 60);
/// Used tokens that are remembered: a copy is usually a few sessions old; older ones are strangers,
/// and strangers wait for the incumbent's proof, which tells them apart too.
pub(super) const USED_TOKENS: usize = 8;
/// Drains of one host: operators, rollouts and a few tools.
pub const DRAINS: usize = 8;
/// How long a result may be said to be valid: a check's interval is at most a day.
pub(super) const RESULTS_VALID_MAX: Duration = Duration::from_secs(3 * 24 * 3600);
/// How long a result that came from the store stands without a new report of the same boot: the
/// time-to-live at the default pace.
pub(super) const LOADED_RESULTS_VALID: Duration = Duration::from_secs(100);
