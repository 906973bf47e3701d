//! What tests, quickstart and load generator share: real broker and agent processes on loopback
//! ports, fleets of light agents inside one process, clients of every service, bounded waits.
//!
//! Nothing here knows how broker or agent decide: it starts binaries and speaks their surfaces.
//! Everything that is started ends with the value that stands for it, and no wait is without end.

pub mod agent;
pub mod apart;
pub mod binaries;
pub mod broker;
pub mod clients;
pub mod fleet;
pub mod process;
pub mod relay;
pub mod session;
pub mod targets;
pub mod wait;
