//! Muster in virtual time: the real cores of many agents and one broker, a network, a disk and
//! people, and everything that can go wrong with them.
//!
//! A run follows from its seed alone. After every event the [`oracle`] compares what the broker
//! answers with books of its own. `docs/simulation.md` says what is simulated and how to replay.
//!
//! This crate knows nothing of sockets, threads of the broker, or the wall clock: only
//! `muster-core` is under test.

pub mod agent;
mod around;
pub mod batch;
pub mod broker;
mod edges;
pub mod faults;
mod happen;
pub mod net;
pub mod oracle;
pub mod plan;
pub mod rng;
pub mod shrink;
pub mod store;
pub mod trace;
pub mod watch;
pub mod world;

pub use oracle::Broken;
pub use plan::Plan;
pub use trace::Trace;
pub use world::{Ran, World};

/// Runs a plan, quietly.
///
/// # Errors
/// The first invariant that is broken.
pub fn run(plan: Plan) -> Result<Ran, Broken> {
    World::new(plan, Trace::quiet()).run().0
}
