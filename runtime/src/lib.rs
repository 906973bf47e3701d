//! What both binaries need, and nothing that decides.
//!
//! - [`clock`]: the two clocks, read.
//! - [`config`]: configuration files, with errors that name file, line and the nearest key.
//! - [`shutdown`], [`supervisor`]: the end of the process, and who owns its tasks.
//! - [`files`]: writes that survive a crash, and secrets that nobody else may read.
//! - [`identity`]: what a certificate says, and where a host keeps its own.
//! - [`refusal`]: the stable reasons with which a broker says no.
//!
//! This crate knows nothing of hosts' states, checks or stores.
#![warn(missing_docs)]

pub mod clock;
pub mod config;
pub mod explain;
pub mod files;
pub mod identity;
pub mod refusal;
pub mod shutdown;
pub mod supervisor;
