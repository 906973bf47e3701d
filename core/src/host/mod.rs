//! One host: facts, events in, presence, status and effects out.

mod event;

pub use event::{Beat, Hello, Report};
