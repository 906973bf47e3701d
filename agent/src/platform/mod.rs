//! What asks the operating system. Nothing outside this folder knows which one it is; each has a
//! folder of its own with the same names.
//!
//! Everything here is read-only except [`power::Inhibitor`], and nothing here decides: checks and
//! the session do. What cannot be told is an error or None, never a guess.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::{
    domain, kerberos, machine, plugin, power, processes, proxies, resources, sessions, sockets,
    units,
};
