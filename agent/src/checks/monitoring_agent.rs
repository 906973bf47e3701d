//! `monitoring_agent`: does somebody watch this machine?
//!
//! Each configured agent must be installed at its place and run, answer on its own port where one
//! is named, and write its file where one is named. With none configured a known monitoring agent
//! that is installed and meant to run must run; without one the check does not apply.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use muster_core::{
    agent::Observation,
    model::{Finding, Outcome, Remedy},
};

use super::{Check, Inputs, cannot_run};
use crate::{
    config::{MonitorConfig, MonitoringAgentConfig},
    platform::{
        processes,
        sockets::Owner,
        units::{self, Unit},
    },
    probe::http,
};

#[path = "monitoring_agent_profiles.rs"]
mod profiles;
pub use profiles::{PROFILES, Profile, profile};

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
        wanted: wanted(&inputs.config.check.monitoring_agent),
        budget: inputs.budget(),
    })
}

struct MonitoringAgent {
    wanted: Vec<MonitorConfig>,
    budget: Duration,
}

/// Every agent that is named, in the short or in the long way.
fn wanted(config: &MonitoringAgentConfig) -> Vec<MonitorConfig> {
    let mut wanted = config.agents.clone();
    if config.service.is_some() || config.process.is_some() {
        wanted.push(MonitorConfig {
            service: config.service.clone(),
            process: config.process.clone(),
            ..MonitorConfig::default()
        });
    }
    wanted
}

impl Check for MonitoringAgent {
    fn run(&self) -> BoxFuture<'_, Observation> {
        async {
            if self.wanted.is_empty() {
                return detect().await;
            }
            let looks = self.wanted.iter().map(|wanted| look(wanted, self.budget));
            together(join_all(looks).await)
        }
        .boxed()
    }
}

/// The worst, with what was found of the others.
fn together(mut seen: Vec<Observation>) -> Observation {
    // Unknown before Warn, Fail before all.
    seen.sort_by_key(|one| match one.outcome {
        Outcome::Fail => 0,
        Outcome::Unknown(_) => 1,
        Outcome::Warn => 2,
        Outcome::Pass | Outcome::NotApplicable => 3,
    });
    let messages: Vec<_> = seen.iter().map(|one| one.message.clone()).collect();
    let mut all = seen.into_iter();
    let Some(mut worst) = all.next() else {
        return Observation::new(Outcome::NotApplicable, "no monitoring agent is expected");
    };
    worst.message = messages.join("; ");
    worst.findings.extend(all.flat_map(|one| one.findings));
    worst
}

/// One agent: installed, running, answering, writing.
async fn look(wanted: &MonitorConfig, budget: Duration) -> Observation {
    let mut seen = is_running(wanted).await;
    if seen.outcome == Outcome::Pass
        && let Some(url) = &wanted.health
    {
        seen = answers(seen, url, budget / 2).await;
    }
    if seen.outcome == Outcome::Pass
        && let (Some(file), Some(limit)) = (&wanted.file, wanted.fresh_within)
    {
        seen = is_fresh(seen, file, limit.0);
    }
    seen
}

async fn is_running(wanted: &MonitorConfig) -> Observation {
    let known = wanted.profile.as_deref().and_then(profile);
    let mut files: Vec<PathBuf> = wanted.executable.iter().cloned().collect();
    let mut services: Vec<&str> = wanted.service.iter().map(String::as_str).collect();
    if let Some(known) = known {
        if files.is_empty() {
            files.extend(known.executables.iter().map(PathBuf::from));
        }
        if services.is_empty() {
            services.extend(known.services);
        }
    }
    let first_file = files.first().map(|file| file.display().to_string());
    let name = [
        &wanted.profile,
        &wanted.service,
        &wanted.process,
        &first_file,
    ];
    let name = name
        .into_iter()
        .flatten()
        .next()
        .cloned()
        .unwrap_or_default();
    if !files.is_empty() && !files.iter().any(|file| file.exists()) {
        return missing(&name, &files);
    }
    if !services.is_empty() {
        match units::services(&services).await {
            Ok(units) => match units.iter().find(|unit| unit.installed) {
                Some(unit) => return judge_unit(unit),
                // A program that is started in another way is as good, where one is named.
                None if files.is_empty() && wanted.process.is_none() => {
                    return not_installed(&name);
                }
                None => {}
            },
            Err(error) if files.is_empty() && wanted.process.is_none() => {
                return no_manager(&name, &error.to_string());
            }
            Err(_) => {}
        }
    }
    let names: Vec<String> = wanted.process.iter().cloned().collect();
    match find_program(names, files.clone()).await {
        Ok(Some(owner)) => {
            let step = format!("{} runs as process {}", owner.name, owner.pid);
            running(&name, step)
        }
        Ok(None) => {
            let message = format!("{name} does not run");
            let mut steps: Vec<_> = wanted
                .process
                .iter()
                .map(|program| format!("no process is named {program}"))
                .collect();
            steps.extend(
                files
                    .iter()
                    .map(|file| format!("no process runs {}", file.display())),
            );
            let mut remedy = Remedy::text(format!("Start {name}."));
            if let Some(service) = services.first() {
                remedy = remedy
                    .command(format!("systemctl enable --now {service}"))
                    .command(format!("journalctl -u {service}"));
            }
            failing(&name, "MONITORING_AGENT_DOWN", message, steps, remedy)
        }
        Err(error) => no_processes(&error),
    }
}

/// Asks the agent's own health or metrics.
async fn answers(mut seen: Observation, url: &str, limit: Duration) -> Observation {
    let client = match http::builder(limit).no_proxy().build() {
        Ok(client) => client,
        Err(error) => {
            let problem = http::no_client(&error);
            return cannot_run(url, problem.message, problem.remedy);
        }
    };
    let mut steps = Vec::new();
    let answer = http::send(client.get(url), &format!("GET {url}"), &mut steps).await;
    if let Some(found) = seen.findings.first_mut() {
        found.steps.append(&mut steps);
    }
    let (code, message) = match answer {
        Ok(response) if response.status().as_u16() < 400 => return seen,
        Ok(response) => (
            "MONITORING_AGENT_UNHEALTHY",
            format!("runs, but {url} answers {}", response.status()),
        ),
        Err(problem) => (
            "MONITORING_AGENT_PORT",
            format!("runs, but {url} does not answer: {}", problem.message),
        ),
    };
    let remedy = Remedy::text("Look at its log and its configured address, then restart it.");
    turned(seen, code, &message, remedy)
}

/// Looks whether the agent still writes.
fn is_fresh(seen: Observation, file: &Path, limit: Duration) -> Observation {
    let shown = file.display();
    let written = std::fs::metadata(file).and_then(|found| found.modified());
    let (code, message) = match written {
        Ok(at) => {
            // A file from the future was written just now by another clock.
            let age = SystemTime::now().duration_since(at).unwrap_or_default();
            if age <= limit {
                return seen;
            }
            let message = format!("runs, but wrote {shown} {} s ago", age.as_secs());
            ("MONITORING_AGENT_STALE", message)
        }
        Err(error) => (
            "MONITORING_AGENT_FILE_MISSING",
            format!("runs, but its file {shown} cannot be looked at: {error}"),
        ),
    };
    let remedy = Remedy::text("It hangs or writes elsewhere: look at its log and restart it.")
        .command(format!("ls -l {shown}"));
    turned(seen, code, &message, remedy)
}

/// The finding of an agent that runs, made into a failure.
fn turned(seen: Observation, code: &str, why: &str, remedy: Remedy) -> Observation {
    let found = seen.findings.into_iter().next().unwrap_or_default();
    let message = format!("{} {why}", found.subject);
    failing(&found.subject, code, message, found.steps, remedy)
}

fn missing(name: &str, files: &[PathBuf]) -> Observation {
    let steps = files
        .iter()
        .map(|file| format!("{} is not there", file.display()));
    failing(
        name,
        "MONITORING_AGENT_NOT_INSTALLED",
        format!("{name} is not installed"),
        steps.collect(),
        Remedy::text(format!(
            "Install {name}; where it is somewhere else, name its executable under \
             [check.monitoring_agent] agents in agent.toml."
        )),
    )
}

fn no_manager(service: &str, error: &str) -> Observation {
    cannot_run(
        service,
        format!("whether {service} runs cannot be told: {error}"),
        Remedy::text(
            "Without systemd, name the program: process = \"...\" under \
             [check.monitoring_agent] in agent.toml.",
        ),
    )
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
    match find_program(programs, Vec::new()).await {
        Ok(Some(owner)) => {
            let step = format!("{} runs as process {}", owner.name, owner.pid);
            running(&owner.name, step)
        }
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

async fn find_program(names: Vec<String>, files: Vec<PathBuf>) -> Result<Option<Owner>, String> {
    let look = move || {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        match processes::executing(&files) {
            Ok(None) => processes::running(&names),
            found => found,
        }
    };
    match tokio::task::spawn_blocking(look).await {
        Ok(Ok(found)) => Ok(found),
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
        let program = |name: &str| MonitorConfig {
            process: Some(name.to_owned()),
            ..MonitorConfig::default()
        };
        let me = std::fs::read_to_string("/proc/self/comm").unwrap();
        let seen = look(&program(me.trim()), Duration::from_secs(5)).await;
        assert_eq!(seen.outcome, Outcome::Pass);
        let seen = look(&program("no-such-program"), Duration::from_secs(5)).await;
        assert_eq!(
            (seen.outcome, &*seen.findings[0].code),
            (Outcome::Fail, "MONITORING_AGENT_DOWN")
        );
    }
}
