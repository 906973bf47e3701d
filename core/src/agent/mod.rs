//! The host's own side, as pure code: when checks run, when their outcomes settle, when to beat
//! and when to try a broker again.
//!
//! Nothing here knows a clock or makes randomness: instants are [`Mono`](crate::model::Mono),
//! randomness is a [`Random`] that the caller drew. A shell of the agent moves the bytes, starts
//! the runs and waits until the instants that are returned.
//!
//! - [`Schedule`]: which check runs when, and what the results are worth now.
//! - [`Settle`]: rise and fall of one check.
//! - [`Pulse`]: whether the machine slept or the process was stopped.
//! - [`BeatClock`]: when the next beat is due.
//! - [`Reconnect`]: which broker to try next, and after how long.
//! - [`state_hash`]: one number that changes when the host's state does.

mod beat;
mod hash;
mod policy;
mod pulse;
mod random;
mod reconnect;
mod results;
mod schedule;
mod settle;

pub use beat::BeatClock;
pub use hash::state_hash;
pub use policy::{CheckPolicy, HostPolicy};
pub use pulse::{Gap, Pulse};
pub use random::Random;
pub use reconnect::{Failure, Reconnect, Try};
pub use results::{Observation, ResultSet};
pub use schedule::{CheckSpec, RunId, Schedule, Start};
pub use settle::{Settle, Settled};
