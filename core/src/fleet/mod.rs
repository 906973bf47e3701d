//! Many hosts: the broker's own sense of time, deadlines, the restart window.
//!
//! Nothing here knows a host's facts; the registry of the broker joins both.

mod judged;
mod wheel;
mod window;

pub use judged::{JudgedClock, Lateness, TICK, Tick};
pub use wheel::{BUCKET, Wheel};
pub use window::RestartWindow;
