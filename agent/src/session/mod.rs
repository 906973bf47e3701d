//! The session with the broker, kept for ever.

mod link;

pub use link::LinkState;
