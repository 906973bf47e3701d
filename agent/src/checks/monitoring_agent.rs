//! `monitoring_agent`: does somebody watch this machine?
//!
//! A configured service or program must run. With none configured a known monitoring agent that is
//! installed and meant to run must run; without one the check does not apply.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Finding, Outcome, Remedy},
};

use super::{Check, Inputs, cannot_run};
use crate::{
    config::MonitoringAgentConfig,
    platform::{
        processes,
        units::{self, Unit},
    },
};

/// Services of known monitoring agents, and their programs where there is no service manager.
const KNOWN: [(&str, &str); 20] = [
    ("azuremonitoragent", "mdsd"),
    ("amazon-cloudwatch-agent", "amazon-cloudwatch-agent"),
    ("google-cloud-ops-agent", "google_cloud_ops_agent_engine"),
    ("prometheus-node-exporter", "prometheus-node-exporter"),
    ("node_exporter", "node_exporter"),
    ("telegraf", "telegraf"),
    ("datadog-agent", "datadog-agent"),
    ("zabbix-agent", "zabbix_agentd"),
    ("zabbix-agent2", "zabbix_agent2"),
    ("nagios-nrpe-server", "nrpe"),
    ("check-mk-agent-async", "cmk-agent-ctl"),
    ("collectd", "collectd"),
    ("netdata", "netdata"),
    ("newrelic-infra", "newrelic-infra"),
    ("elastic-agent", "elastic-agent"),
    ("metricbeat", "metricbeat"),
    ("grafana-agent", "grafana-agent"),
    ("alloy", "alloy"),
    ("otelcol", "otelcol"),
    ("otelcol-contrib", "otelcol-contrib"),
];

pub(super) fn make(inputs: Inputs<'_>) -> Arc<dyn Check> {
    Arc::new(MonitoringAgent {
        config: inputs.config.check.monitoring_agent.clone(),
    })
}

struct MonitoringAgent {
    config: MonitoringAgentConfig,
}

impl Check for MonitoringAgent {
    fn run(&self) -> BoxFuture<'_, Observation> {
        async {
            match (&self.config.service, &self.config.process) {
                (Some(service), _) => configured_service(service).await,
                (None, Some(program)) => configured_program(program).await,
                (None, None) => detect().await,
            }
        }
        .boxed()
    }
}

async fn configured_service(service: &str) -> Observation {
    match units::services(&[service]).await {
        Ok(units) => match units.first() {
            Some(unit) if unit.installed => judge_unit(unit),
            _ => not_installed(service),
        },
        Err(error) => cannot_run(
            service,
            format!("whether {service} runs cannot be told: {error}"),
            Remedy::text(
                "Without systemd, name the program: process = \"...\" under \
                 [check.monitoring_agent] in agent.toml.",
            ),
        ),
    }
}

async fn configured_program(program: &str) -> Observation {
    match find_program(vec![program.to_owned()]).await {
        Ok(Some((pid, name))) => running(&name, format!("{name} runs as process {pid}")),
        Ok(None) => {
            let message = format!("{program} does not run");
            let steps = vec![format!("no process is named {program}")];
            let remedy = Remedy::text(format!("Start {program}."));
            failing(program, "MONITORING_AGENT_DOWN", message, steps, remedy)
        }
        Err(error) => no_processes(&error),
    }
}

async fn detect() -> Observation {
    let names: Vec<_> = KNOWN.iter().map(|(service, _)| *service).collect();
    if let Ok(units) = units::services(&names).await {
        let mut meant: Vec<&Unit> = units
            .iter()
            .filter(|unit| unit.installed && is_meant_to_run(unit))
            .collect();
        // One that runs is enough; else the first one explains what is wrong.
        meant.sort_by_key(|unit| unit.active != "active");
        if let Some(unit) = meant.first() {
            return judge_unit(unit);
        }
    }
    let programs = KNOWN
        .iter()
        .map(|(_, program)| (*program).to_owned())
        .collect();
    match find_program(programs).await {
        Ok(Some((pid, name))) => running(&name, format!("{name} runs as process {pid}")),
        Ok(None) => Observation::new(
            Outcome::NotApplicable,
            "no monitoring agent is expected, and no known one is installed",
        ),
        Err(error) => no_processes(&error),
    }
}

fn is_meant_to_run(unit: &Unit) -> bool {
    unit.enabled == Some(true) || matches!(&*unit.active, "active" | "activating" | "failed")
}

async fn find_program(names: Vec<String>) -> Result<Option<(i32, String)>, String> {
    let look = move || {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        processes::running(&names)
    };
    match tokio::task::spawn_blocking(look).await {
        Ok(Ok(found)) => Ok(found.map(|owner| (owner.pid, owner.name))),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn judge_unit(unit: &Unit) -> Observation {
    let name = &unit.name;
    let step = format!("systemd says: {name} is {} ({})", unit.active, unit.sub);
    let start = Remedy::text(format!("Start {name}; its log says why it is down."))
        .command(format!("systemctl restart {name}"))
        .command(format!("journalctl -u {name}"));
    match &*unit.active {
        "active" | "reloading" | "refreshing" => running(name, step),
        "activating" if unit.sub == "auto-restart" => failing(
            name,
            "MONITORING_AGENT_RESTARTING",
            format!("{name} ends again and again"),
            vec![step],
            start,
        ),
        "activating" => {
            Observation::new(Outcome::Warn, format!("{name} is starting")).with(Finding {
                subject: name.clone(),
                code: "MONITORING_AGENT_STARTING".to_owned(),
                message: format!("{name} is starting"),
                steps: vec![step],
                remedy: None,
            })
        }
        state => failing(
            name,
            "MONITORING_AGENT_DOWN",
            format!("{name} is {state}"),
            vec![step],
            start,
        ),
    }
}

fn running(name: &str, step: String) -> Observation {
    let message = format!("{name} is running");
    Observation::new(Outcome::Pass, message.clone()).with(Finding {
        subject: name.to_owned(),
        code: "MONITORING_AGENT_RUNS".to_owned(),
        message,
        steps: vec![step],
        remedy: None,
    })
}

fn not_installed(service: &str) -> Observation {
    failing(
        service,
        "MONITORING_AGENT_NOT_INSTALLED",
        format!("{service} is not installed"),
        vec![format!("systemd knows no unit {service}")],
        Remedy::text(format!(
            "Install {service}, or correct the name under [check.monitoring_agent] in agent.toml."
        )),
    )
}

fn failing(
    subject: &str,
    code: &str,
    message: String,
    steps: Vec<String>,
    remedy: Remedy,
) -> Observation {
    Observation::new(Outcome::Fail, message.clone()).with(Finding {
        subject: subject.to_owned(),
        code: code.to_owned(),
        message,
        steps,
        remedy: Some(remedy),
    })
}

fn no_processes(error: &str) -> Observation {
    cannot_run(
        "/proc",
        format!("the processes cannot be listed: {error}"),
        Remedy::text("Mount /proc for the agent."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(active: &str, sub: &str, enabled: Option<bool>) -> Unit {
        Unit {
            name: "telegraf.service".to_owned(),
            installed: true,
            enabled,
            active: active.to_owned(),
            sub: sub.to_owned(),
        }
    }

    #[test]
    fn every_state_of_a_service_has_its_outcome() {
        let table = [
            ("active", "running", Outcome::Pass, "MONITORING_AGENT_RUNS"),
            (
                "activating",
                "start",
                Outcome::Warn,
                "MONITORING_AGENT_STARTING",
            ),
            (
                "activating",
                "auto-restart",
                Outcome::Fail,
                "MONITORING_AGENT_RESTARTING",
            ),
            ("inactive", "dead", Outcome::Fail, "MONITORING_AGENT_DOWN"),
            ("failed", "failed", Outcome::Fail, "MONITORING_AGENT_DOWN"),
        ];
        for (active, sub, outcome, code) in table {
            let seen = judge_unit(&unit(active, sub, None));
            assert_eq!((seen.outcome, &*seen.findings[0].code), (outcome, code));
            assert!(!seen.outcome.is_bad() || seen.findings[0].remedy.is_some());
        }
    }

    #[test]
    fn a_service_that_is_switched_off_is_not_expected() {
        assert!(!is_meant_to_run(&unit("inactive", "dead", Some(false))));
        assert!(is_meant_to_run(&unit("inactive", "dead", Some(true))));
        assert!(is_meant_to_run(&unit("failed", "failed", Some(false))));
    }

    #[tokio::test]
    async fn a_configured_program_is_found_among_the_processes() {
        let me = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(configured_program(me.trim()).await.outcome, Outcome::Pass);
        let seen = configured_program("no-such-program").await;
        assert_eq!(
            (seen.outcome, &*seen.findings[0].code),
            (Outcome::Fail, "MONITORING_AGENT_DOWN")
        );
    }
}
