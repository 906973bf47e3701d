//! `service`: a service of the service manager runs.

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Outcome, Remedy},
};

use super::{Definition, Place, Wrong, cannot_run, definition, pass, seen};
use crate::platform::units::{self, Unit};

definition! {
    /// Keys of `kind = "service"`.
    Service {
        /// Name of the service; `.service` may be left out.
        service: String,
    }
}

impl Definition for Service {
    const KIND: &'static str = "service";

    fn wrong(&self) -> Option<Wrong> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        let good = !self.service.is_empty() && self.service.chars().all(is_name);
        let value = format!("{:?}", self.service);
        (!good).then(|| ("service", value, "the name of a unit".to_owned()))
    }

    fn look<'a>(&'a self, _place: &'a Place) -> BoxFuture<'a, Observation> {
        async {
            let name = &self.service;
            match units::services(&[name]).await {
                Ok(units) => match units.first() {
                    Some(unit) if unit.installed => judge(unit),
                    _ => seen(
                        Outcome::Fail,
                        name,
                        "SERVICE_NOT_INSTALLED",
                        format!("{name} is not installed"),
                        vec![format!("the service manager knows no {name}")],
                        Some(Remedy::text(format!(
                            "Install {name}, or correct its name in checks.d."
                        ))),
                    ),
                },
                Err(error) => cannot_run(
                    name,
                    "SERVICE_NOT_ASKED",
                    format!(
                        "whether {name} runs cannot be told: {}",
                        muster_runtime::explain::explain(&error)
                    ),
                    Remedy::text(
                        "Without a service manager, use a check of kind process for its program.",
                    ),
                ),
            }
        }
        .boxed()
    }
}

fn judge(unit: &Unit) -> Observation {
    let name = &unit.name;
    let steps = vec![format!("{name} is {} ({})", unit.active, unit.sub)];
    let remedy = Remedy::text(format!("Start {name}; its log says why it is down."))
        .command(format!("systemctl restart {name}"))
        .command(format!("journalctl --unit {name} --lines 50"));
    let (outcome, code, message) = match (&*unit.active, &*unit.sub) {
        ("active" | "reloading" | "refreshing", _) => {
            return pass(name, "SERVICE_RUNS", format!("{name} runs"), steps);
        }
        ("activating", "auto-restart") => (
            Outcome::Fail,
            "SERVICE_RESTARTING",
            format!("{name} ends again and again"),
        ),
        ("activating", _) => (
            Outcome::Warn,
            "SERVICE_STARTING",
            format!("{name} is starting"),
        ),
        (state, _) => (Outcome::Fail, "SERVICE_DOWN", format!("{name} is {state}")),
    };
    seen(outcome, name, code, message, steps, Some(remedy))
}

#[cfg(test)]
mod tests {
    use super::super::testing::refused;
    use super::*;

    #[test]
    fn every_state_of_a_service_has_its_outcome() {
        let table = [
            ("active", "running", Outcome::Pass, "SERVICE_RUNS"),
            ("activating", "start", Outcome::Warn, "SERVICE_STARTING"),
            (
                "activating",
                "auto-restart",
                Outcome::Fail,
                "SERVICE_RESTARTING",
            ),
            ("inactive", "dead", Outcome::Fail, "SERVICE_DOWN"),
            ("failed", "failed", Outcome::Fail, "SERVICE_DOWN"),
        ];
        for (active, sub, outcome, code) in table {
            let seen = judge(&Unit {
                name: "a.service".to_owned(),
                installed: true,
                enabled: None,
                active: active.to_owned(),
                sub: sub.to_owned(),
            });
            assert_eq!((seen.outcome, &*seen.findings[0].code), (outcome, code));
        }
    }

    #[test]
    fn a_name_that_no_unit_has_is_refused() {
        assert!(refused("kind = 'service'\nservice = 'a b'").contains("name of a unit"));
    }
}
