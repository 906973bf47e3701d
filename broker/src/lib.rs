//! Muster's broker.
//!
//! Keeps the roll of a fleet: takes in the words of agents, holds each host's facts in the
//! registry, stores what must outlive the process, and answers front ends and operators. It
//! decides nothing itself: what a host is follows from `muster-core`.

pub mod ca;
pub mod cli;
pub mod config;
pub mod metrics;
pub mod policy;
mod prober;
pub mod registry;
pub mod serve;
pub mod services;
mod stop;
pub mod store;
pub mod token;
pub mod view;
mod watchdog;
pub mod web;

pub use config::Config;
pub use serve::{Endpoints, Running, ServeError, run, start};
