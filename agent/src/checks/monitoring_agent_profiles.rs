//! Where known monitoring agents have their parts. Those marked as tried are in the tests as their
//! packages are; the others are taken from the vendors' documents.

/// One monitoring agent.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Its name in `agent.toml`.
    pub name: &'static str,
    /// Its service; packages of different makers differ.
    pub services: &'static [&'static str],
    /// Its program, where packages put it.
    pub executables: &'static [&'static str],
    /// Tried against the real one.
    pub tried: bool,
}

/// All profiles.
pub const PROFILES: [Profile; 8] = [
    Profile {
        name: "node_exporter",
        services: &["prometheus-node-exporter", "node_exporter"],
        executables: &[
            "/usr/bin/prometheus-node-exporter",
            "/usr/local/bin/node_exporter",
        ],
        tried: true,
    },
    Profile {
        name: "zabbix-agent2",
        services: &["zabbix-agent2"],
        executables: &["/usr/sbin/zabbix_agent2"],
        tried: true,
    },
    Profile {
        name: "collectd",
        services: &["collectd"],
        executables: &["/usr/sbin/collectd"],
        tried: true,
    },
    Profile {
        name: "telegraf",
        services: &["telegraf"],
        executables: &["/usr/bin/telegraf"],
        tried: false,
    },
    Profile {
        name: "azuremonitoragent",
        services: &["azuremonitoragent"],
        executables: &["/opt/microsoft/azuremonitoragent/bin/mdsd"],
        tried: false,
    },
    Profile {
        name: "fluent-bit",
        services: &["fluent-bit"],
        executables: &["/opt/fluent-bit/bin/fluent-bit"],
        tried: false,
    },
    Profile {
        name: "datadog-agent",
        services: &["datadog-agent"],
        executables: &["/opt/datadog-agent/bin/agent/agent"],
        tried: false,
    },
    Profile {
        name: "otelcol",
        services: &["otelcol", "otelcol-contrib"],
        executables: &["/usr/bin/otelcol", "/usr/bin/otelcol-contrib"],
        tried: false,
    },
];

/// The profile of this name.
#[must_use]
pub fn profile(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.name == name)
}
