//! Tells the broker in time that the machine is about to leave.
//!
//! While logind can be asked, a delay inhibitor is held: a shutdown or sleep waits until the word
//! is acknowledged, at most a second less than logind's own patience. Where there is no logind,
//! the end of the process is all that is seen.

use std::time::Duration;

use muster_core::model::PowerAnnouncement;
use muster_runtime::{explain::explain, shutdown::Shutdown};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    announce::{Announcer, Delivered},
    platform::power::{self, Inhibitor, PowerError, PowerEvent},
};

/// How often a logind that is not there is looked for again.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// Logind's patience where it does not say.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(5);
/// Left of logind's patience for letting go.
const MARGIN: Duration = Duration::from_secs(1);
/// Announcements that may wait: shutdown, sleep and their withdrawal.
const MAX_EVENTS: usize = 4;

/// Watches power until shutdown is requested.
///
/// # Errors
/// Never; the type is what the supervisor asks for.
pub async fn run(announcer: Announcer, shutdown: Shutdown) -> Result<(), std::convert::Infallible> {
    let mut said = false;
    loop {
        let ended = tokio::select! {
            () = shutdown.requested() => return Ok(()),
            ended = watch(&announcer) => ended,
        };
        if !said {
            let why = explain(&ended);
            tracing::info!(
                why,
                "shutdowns are not seen coming: logind cannot be watched"
            );
            said = true;
        }
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            () = sleep(RETRY_AFTER) => {}
        }
    }
}

async fn watch(announcer: &Announcer) -> PowerError {
    let (sender, mut events) = mpsc::channel(MAX_EVENTS);
    let watching = power::watch(&sender);
    tokio::pin!(watching);
    // Where holding is not allowed, as for an agent that is not root, watching is still worth it.
    let mut held = tokio::select! {
        ended = &mut watching => return ended.err().unwrap_or(PowerError::Ended),
        held = hold() => held,
    };
    loop {
        let event = tokio::select! {
            ended = &mut watching => return ended.err().unwrap_or(PowerError::Ended),
            Some(event) = events.recv() => event,
        };
        held = handle(announcer, event, held).await;
    }
}

/// Tells what happens; lets go of the inhibitor once the broker knows that the host leaves.
async fn handle(
    announcer: &Announcer,
    event: PowerEvent,
    held: Option<Inhibitor>,
) -> Option<Inhibitor> {
    match event {
        PowerEvent::Leaving(how) => {
            let patience = held.as_ref().map_or(DEFAULT_PATIENCE, |held| held.patience);
            let leaving = PowerAnnouncement::Leaving {
                how,
                back_within: None,
            };
            let delivered = announcer
                .system_power(leaving, patience.saturating_sub(MARGIN))
                .await;
            tracing::info!(how = how.as_str(), ?delivered, "the machine leaves");
            None
        }
        PowerEvent::Staying => {
            let staying = announcer.system_power(PowerAnnouncement::Running, DEFAULT_PATIENCE);
            let (delivered, held) = tokio::join!(staying, hold());
            tracing::info!(
                told = delivered == Delivered::Acknowledged,
                "the machine stays"
            );
            held
        }
    }
}

/// None if shutdowns will not wait for us.
async fn hold() -> Option<Inhibitor> {
    match timeout(DEFAULT_PATIENCE, power::inhibit()).await {
        Ok(Ok(inhibitor)) => Some(inhibitor),
        Ok(Err(error)) => {
            tracing::warn!(
                why = explain(&error),
                "a shutdown will not wait for the broker to know of it"
            );
            None
        }
        Err(_) => None,
    }
}
