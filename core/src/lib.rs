//! Everything Muster decides, as pure code.
//!
//! This crate knows no clock, no randomness, no I/O, no tokio and no protobuf: time and randomness
//! are arguments, and what is to be done is returned. Its parts:
//!
//! - [`model`]: the words - names, outcomes, statuses, reasons, verdicts, policy.
//! - [`host`]: one host - facts, events in, presence, status and effects out.
//! - [`fleet`]: many hosts - judged time, deadlines, the restart window.
//! - [`agent`]: the host's own side - check schedule, rise and fall, reconnects.
//! - [`vigil`]: whether the loops of a process still turn.
#![warn(missing_docs)]

pub mod agent;
pub mod fleet;
pub mod host;
pub mod model;
pub mod vigil;
