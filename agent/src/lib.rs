//! Muster's agent: runs a session host's checks and streams its heartbeats to the broker.
#![warn(missing_docs)]

pub mod checks;
pub mod config;
pub mod platform;
pub mod probe;
pub mod scheduler;
pub mod session;
