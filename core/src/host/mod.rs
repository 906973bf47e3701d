//! One host: facts, events in, presence, status and effects out.
//!
//! Owned by the broker's registry, one [`Host`] per enrolled machine, and knows nothing of it.
//! Read [`assess`] for what a host *is*, [`Host::handle`] for what happens to it.
//!
//! Why no dead host is ever called connectable: [`assess`] computes both booleans from the facts
//! at the instant of the question. They demand a presence that is not Absent, and [`presence`]
//! says Absent as soon as the lease of the last beat is over - by comparison with the question's
//! own instant, not by a flag. Only [`Host::handle`] moves the last beat, and only for a beat or a
//! full report of the live session.
#![warn(clippy::wildcard_enum_match_arm)]

mod admission;
mod assess;
mod calm;
mod conclude;
mod event;
mod facts;
mod flips;
mod health;
mod imposed;
mod limits;
mod machine;
mod presence;
mod reasons;
mod record;
mod standing;
mod upgrade;
mod verdict;

#[cfg(test)]
mod tests;

pub use assess::{Assessment, assess, judged};
pub use event::{Admission, Beat, Effects, Event, Hello, Report, Terms, Undrain};
pub use facts::{
    About, AbsentWhy, Admin, Challenge, Conflict, Drain, Facts, FailedUpgrade, Health, Heard, Held,
    Identity, InProgress, Link, Power, Resume, Session, Upgrade,
};
pub use flips::{CheckStanding, FLIPS_MAX, Flip, flips};
pub use imposed::{HeldDown, Hold, HoldAnswers, Imposed, OutsideView};
pub use limits::{DRAINS, UPGRADE_ANNOUNCED_MAX};
pub use machine::{Host, Snapshot, Told};
pub use presence::{Context, Presence, SuspectWhy, presence};
pub use record::HostRecord;
pub use standing::{Conviction, Gone, Here, Standing};
pub use verdict::{Asked, verdict};
