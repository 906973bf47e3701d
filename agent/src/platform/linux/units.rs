//! Services of the service manager.

use super::bus::{SystemdManagerProxy, connect, within};

/// A service as the service manager sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unit {
    /// Its name, such as `telegraf.service`.
    pub name: String,
    /// Is it installed?
    pub installed: bool,
    /// Is it started at boot? None where that cannot be told.
    pub enabled: Option<bool>,
    /// active, activating, inactive, failed, ...
    pub active: String,
    /// running, exited, dead, auto-restart, ...
    pub sub: String,
}

/// Why the service manager cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("systemd cannot be asked over the system bus")]
pub struct UnitsError(#[from] zbus::Error);

/// The named services, in the order asked for.
///
/// # Errors
/// If there is no system bus, or nobody answers there.
pub async fn services(names: &[&str]) -> Result<Vec<Unit>, UnitsError> {
    let bus = connect().await?;
    let manager = SystemdManagerProxy::new(&bus).await?;
    let full: Vec<String> = names.iter().map(|name| full_name(name)).collect();
    let asked: Vec<&str> = full.iter().map(String::as_str).collect();
    let listed = within(manager.list_units_by_names(&asked)).await?;
    let mut units = Vec::new();
    for (at, listed) in listed.into_iter().enumerate().take(full.len()) {
        let installed = listed.2 != "not-found";
        let enabled = if installed {
            // An answer for a file that is not there is an error; it is then simply not known.
            within(manager.get_unit_file_state(&full[at]))
                .await
                .ok()
                .map(|state| state.starts_with("enabled") || state == "static")
        } else {
            None
        };
        units.push(Unit {
            name: full[at].clone(),
            installed,
            enabled,
            active: listed.3,
            sub: listed.4,
        });
    }
    Ok(units)
}

fn full_name(name: &str) -> String {
    if name.contains('.') {
        name.to_owned()
    } else {
        format!("{name}.service")
    }
}
