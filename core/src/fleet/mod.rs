//! Many hosts: the broker's own sense of time, deadlines, the restart window, and the rules that
//! need to see more than one host.
//!
//! - [`JudgedClock`]: time, less the broker's own stalls.
//! - [`SteadyWall`]: the wall clock, less its jumps.
//! - [`Wheel`]: deadlines of many hosts.
//! - [`RestartWindow`]: how long a restarted broker believes what it knew before.
//! - [`Fleet`]: mass loss, flapping, the broker's own dials, what front ends met.
//!
//! Nothing here knows a host's facts; a host says how it stands, and is told what follows.

mod census;
mod flap;
mod hold;
mod judged;
mod outside;
mod probes;
mod rate;
mod roll;
mod steady;
mod wheel;
mod window;

#[cfg(test)]
mod tests;

pub use hold::{HOLD_MAX, HoldEnd, HoldView, HoldsRecord};
pub use judged::{JudgedClock, Lateness, TICK, Tick};
pub use outside::{Counted, Met};
pub use probes::{Dial, DialOutcome, Purpose};
pub use rate::RateLimit;
pub use roll::{Alert, Command, Fleet};
pub use steady::SteadyWall;
pub use wheel::{BUCKET, Wheel};
pub use window::RestartWindow;
