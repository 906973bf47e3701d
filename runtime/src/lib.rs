//! What both binaries need, and nothing that decides.
//!
//! - [`clock`]: the two clocks, read.
//! - [`config`]: configuration files, with errors that name file, line and the nearest key.
//! - [`telemetry`]: what the process says while it runs, on standard error.
//! - [`explain`]: errors with all their causes, in one line.
//! - [`shutdown`], [`supervisor`]: the end of the process, and who owns its tasks.
//! - [`watchdog`], [`service`]: an end to a process that is stuck, and words for the service manager.
//! - [`files`]: writes that survive a crash, and secrets that nobody else may read.
//! - [`identity`]: what a certificate says, and where a program keeps its own.
//! - [`tls`], [`accept`], [`channel`]: one way in and one way out, with the peer's identity.
//! - [`refusal`]: the stable reasons with which a broker says no.
//!
//! This crate knows nothing of hosts' states, checks or stores.
#![warn(missing_docs)]

pub mod accept;
pub mod channel;
pub mod clock;
pub mod config;
pub mod explain;
pub mod files;
pub mod identity;
pub mod refusal;
pub mod service;
pub mod shutdown;
pub mod supervisor;
pub mod telemetry;
pub mod tls;
pub mod watchdog;

#[cfg(test)]
mod testing;
