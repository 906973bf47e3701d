//! Coming shutdowns and sleeps, as logind announces them.

use std::time::Duration;

use futures_util::StreamExt as _;
use muster_core::model::Leave;
use tokio::sync::mpsc;
use zbus::OwnedFd;

use super::bus::{LoginManagerProxy, SystemdManagerProxy, connect, within};

/// What the machine is about to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PowerEvent {
    /// It leaves.
    Leaving(Leave),
    /// It stays after all, or is back from sleep.
    Staying,
}

/// Why logind cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    /// The bus or logind does not answer.
    #[error("logind cannot be asked over the system bus")]
    Bus(#[from] zbus::Error),
    /// The stream of signals ended.
    #[error("logind's signals ended")]
    Ended,
}

/// Holds back a shutdown or sleep until it is dropped, or logind's patience ends.
#[derive(Debug)]
pub struct Inhibitor {
    _lock: OwnedFd,
    /// How long logind waits for all who hold one.
    pub patience: Duration,
}

/// Asks logind to wait for us before it shuts down or sleeps.
///
/// # Errors
/// If logind does not answer or refuses.
pub async fn inhibit() -> Result<Inhibitor, PowerError> {
    let bus = connect().await?;
    let login = LoginManagerProxy::new(&bus).await?;
    let why = "tells the broker that this host leaves";
    let lock = within(login.inhibit("shutdown:sleep", "muster-agent", why, "delay")).await?;
    let patience = within(login.inhibit_delay_max_usec()).await?;
    Ok(Inhibitor {
        _lock: lock,
        patience: Duration::from_micros(patience),
    })
}

/// Tells what logind announces, until it stops answering. Never returns without an error.
///
/// # Errors
/// If logind cannot be asked, or goes away.
pub async fn watch(events: &mpsc::Sender<PowerEvent>) -> Result<(), PowerError> {
    let bus = connect().await?;
    let login = LoginManagerProxy::new(&bus).await?;
    let mut shutdowns = login.receive_prepare_for_shutdown().await?;
    let mut sleeps = login.receive_prepare_for_sleep().await?;
    // Subscribed first: a shutdown that began before is seen here, a later one as a signal.
    if within(login.preparing_for_shutdown()).await? {
        tell(events, PowerEvent::Leaving(shutdown_kind(&login).await)).await;
    }
    loop {
        let event = tokio::select! {
            signal = shutdowns.next() => {
                let signal = signal.ok_or(PowerError::Ended)?;
                if signal.args()?.start {
                    PowerEvent::Leaving(shutdown_kind(&login).await)
                } else {
                    PowerEvent::Staying
                }
            }
            signal = sleeps.next() => {
                let signal = signal.ok_or(PowerError::Ended)?;
                if signal.args()?.start {
                    PowerEvent::Leaving(Leave::Suspend)
                } else {
                    PowerEvent::Staying
                }
            }
        };
        tell(events, event).await;
    }
}

async fn tell(events: &mpsc::Sender<PowerEvent>, event: PowerEvent) {
    // Nobody listens any more once the agent itself ends.
    let _ = events.send(event).await;
}

async fn shutdown_kind(login: &LoginManagerProxy<'_>) -> Leave {
    // systemd 252 and later has the kind here when it announces the shutdown.
    match within(login.scheduled_shutdown()).await {
        Ok((kind, _)) => leave_of(&kind),
        Err(_) => Leave::Poweroff,
    }
}

fn leave_of(kind: &str) -> Leave {
    match kind.trim_start_matches("dry-") {
        "reboot" | "kexec" | "soft-reboot" => Leave::Reboot,
        // The machine does not come back by itself: what is not known is told as the longer way.
        _ => Leave::Poweroff,
    }
}

/// How the system manager is stopping the machine, if it is. None where it stays up, or cannot be
/// asked.
pub async fn system_is_stopping() -> Option<Leave> {
    let bus = connect().await.ok()?;
    let manager = SystemdManagerProxy::new(&bus).await.ok()?;
    if within(manager.system_state()).await.ok()? != "stopping" {
        return None;
    }
    // The target that is being started says it best, and does so without logind too.
    let targets = ["reboot", "kexec", "soft-reboot", "poweroff", "halt"];
    let units = targets.map(|kind| format!("{kind}.target"));
    let asked = units.each_ref().map(String::as_str);
    for unit in within(manager.list_units_by_names(&asked))
        .await
        .unwrap_or_default()
    {
        let (name, active, job) = (&unit.0, &unit.3, unit.7);
        if job != 0 || active == "active" {
            return name.strip_suffix(".target").map(leave_of);
        }
    }
    let login = LoginManagerProxy::new(&bus).await.ok()?;
    Some(shutdown_kind(&login).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_back_is_told_as_a_reboot() {
        for kind in ["reboot", "kexec", "dry-reboot", "soft-reboot"] {
            assert_eq!(leave_of(kind), Leave::Reboot, "{kind}");
        }
        for kind in ["poweroff", "halt", "", "something-newer"] {
            assert_eq!(leave_of(kind), Leave::Poweroff, "{kind}");
        }
    }
}
