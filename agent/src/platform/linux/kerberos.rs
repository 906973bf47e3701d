//! Whether the domain honours the machine's keys, as MIT's `kinit` says.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use super::domain::MachineKey;

/// Where packages put it.
const KINIT: &str = "/usr/bin/kinit";

/// What became of a login with the machine's own keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Login {
    /// A controller gave a ticket.
    Honoured,
    /// A controller refuses these keys, with its word.
    Refused(String),
    /// It cannot be told: no controller, no time, no program.
    NotTold(String),
}

/// Logs in with the keytab at `/etc/krb5.keytab` and forgets the ticket. No word of the keys leaves
/// this machine: Kerberos proves them.
pub async fn login(key: &MachineKey, limit: Duration) -> Login {
    if !Path::new(KINIT).exists() {
        return Login::NotTold("kinit is not installed (package krb5-user)".to_owned());
    }
    let run = Command::new(KINIT)
        .args(["-k", "-c", "MEMORY:muster"])
        .arg(format!("{}@{}", key.name, key.realm))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match timeout(limit, run).await {
        Ok(Ok(done)) if done.status.success() => Login::Honoured,
        Ok(Ok(done)) => {
            let said = String::from_utf8_lossy(&done.stderr);
            judge(said.trim().trim_start_matches("kinit: "))
        }
        Ok(Err(error)) => Login::NotTold(format!("kinit: {error}")),
        Err(_) => Login::NotTold(format!("no answer within {limit:?}")),
    }
}

/// Only a controller's own refusal counts; all else may be the way there.
fn judge(said: &str) -> Login {
    const REFUSALS: [&str; 5] = [
        "Preauthentication failed",
        "not found in Kerberos database",
        "credentials have been revoked",
        "Password incorrect",
        "integrity check failed",
    ];
    if REFUSALS.iter().any(|refusal| said.contains(refusal)) {
        Login::Refused(said.to_owned())
    } else {
        Login::NotTold(said.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controllers_refusal_is_told_from_the_way_there() {
        let refused = "Preauthentication failed while getting initial credentials";
        assert!(matches!(judge(refused), Login::Refused(_)));
        for other in [
            "Cannot contact any KDC for realm 'A.ORG'",
            "Clock skew too great",
        ] {
            assert!(matches!(judge(other), Login::NotTold(_)), "{other}");
        }
    }
}
