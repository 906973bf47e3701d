//! `muster-broker drain`, and the wait until a drained host is empty.

use std::{process::ExitCode, time::Duration};

use muster_core::model::{SafeToPowerOff, Verdict};
use muster_proto::v1;
use muster_runtime::config::HumanDuration;
use tokio::time::{Instant, sleep_until};

use super::{
    Failure, Global,
    client::{connect, connection, fleet, refused},
    commands::{CANNOT_TELL, say},
};
use crate::Config;

/// Between two looks at a host that empties: people leave within minutes, and beats tell it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Exit code when somebody still has a session.
const NOT_EMPTY: u8 = 1;

/// Drains a host, and waits until it is empty if that is asked for.
pub(super) async fn drain(
    request: v1::DrainHostRequest,
    until_empty: Option<HumanDuration>,
    global: &Global,
    config: &Config,
) -> Result<ExitCode, Failure> {
    let name = request.name.clone();
    let mut client = fleet(connect(global, config).await?);
    let answer = client
        .drain_host(request)
        .await
        .map_err(refused)?
        .into_inner();
    let Some(within) = until_empty else {
        say(answer.verdict, global)?;
        return Ok(ExitCode::SUCCESS);
    };
    let deadline = Instant::now() + within.0;
    let mut client = connection(connect(global, config).await?);
    loop {
        let request = v1::CheckHostRequest {
            name: name.clone(),
            ..v1::CheckHostRequest::default()
        };
        let answer = client
            .check_host(request)
            .await
            .map_err(|status| refused(status).coded(CANNOT_TELL))?
            .into_inner();
        let wire = answer.verdict.unwrap_or_default();
        let verdict = Verdict::try_from(wire.clone())?;
        // Whoever is not heard may have people on it: only a host that counts none now is empty.
        if verdict.safe_to_power_off == SafeToPowerOff::Yes {
            say(Some(wire), global)?;
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() >= deadline {
            say(Some(wire), global)?;
            return Ok(still(&name, within, &verdict));
        }
        sleep_until((Instant::now() + LOOK_EVERY).min(deadline)).await;
    }
}

/// Says why the wait is over although the host is not known to be empty.
fn still(name: &str, within: HumanDuration, verdict: &Verdict) -> ExitCode {
    match (verdict.safe_to_power_off, verdict.sessions.total()) {
        (SafeToPowerOff::No, Some(count)) => {
            eprintln!("muster-broker: {name} still has {count} sessions after {within}");
            ExitCode::from(NOT_EMPTY)
        }
        (SafeToPowerOff::No | SafeToPowerOff::Unknown | SafeToPowerOff::Yes, _) => {
            eprintln!(
                "muster-broker: whether {name} is empty cannot be told: it is not heard, or does \
                 not know its sessions"
            );
            ExitCode::from(CANNOT_TELL)
        }
    }
}
