//! `monitoring_agent` against the real agents of the profiles that are marked as tried.

use anyhow::Result;

use super::{Place, Seen, nginx};

async fn look(agents: &str, script: &str) -> Result<Seen> {
    let config = format!("[check.monitoring_agent]\nagents = [{agents}]\n");
    Place::new()?
        .doctor("monitoring_agent", &config, script)
        .await
}

const NODE_EXPORTER: &str = "prometheus-node-exporter >/dev/null 2>&1 &\nup 9100\n";
const RUNS: &str = "MONITORING_AGENT_RUNS";

#[tokio::test]
async fn node_exporter_runs_and_answers_with_its_metrics() -> Result<()> {
    let agent = r#"{ profile = "node_exporter", health = "http://127.0.0.1:9100/metrics" }"#;
    look(agent, NODE_EXPORTER).await?.expect(
        "pass",
        RUNS,
        &[
            "/usr/bin/prometheus-node-exporter runs as process",
            "answered 200",
        ],
    )
}

#[tokio::test]
async fn zabbix_agent_2_and_collectd_run() -> Result<()> {
    let zabbix = "mkdir -p /run/zabbix /var/log/zabbix\n\
                  printf 'Server=127.0.0.1\\nHostname=x\\nLogType=console\\n' >\"$HERE/z.conf\"\n\
                  zabbix_agent2 -f -c \"$HERE/z.conf\" >/dev/null 2>&1 &\nup 10050\n";
    look(r#"{ profile = "zabbix-agent2" }"#, zabbix)
        .await?
        .expect("pass", RUNS, &["/usr/sbin/zabbix_agent2 runs as process"])?;
    let collectd = "printf 'BaseDir \"%s\"\\nHostname x\\nFQDNLookup false\\nLoadPlugin cpu\\n' \"$HERE\" >\"$HERE/c.conf\"\n\
                    collectd -f -C \"$HERE/c.conf\" -P /run/collectd.pid >/dev/null 2>&1 &\n\
                    until_true pgrep -x collectd >/dev/null\n";
    look(r#"{ profile = "collectd" }"#, collectd).await?.expect(
        "pass",
        RUNS,
        &["/usr/sbin/collectd runs as process"],
    )
}

#[tokio::test]
async fn an_agent_that_is_missing_down_or_ill_is_told_apart() -> Result<()> {
    let exporter = r#"profile = "node_exporter""#;
    look(r#"{ profile = "telegraf" }"#, "").await?.expect(
        "fail",
        "MONITORING_AGENT_NOT_INSTALLED",
        &["/usr/bin/telegraf is not there"],
    )?;
    look(&format!("{{ {exporter} }}"), "").await?.expect(
        "fail",
        "MONITORING_AGENT_DOWN",
        &["systemctl enable --now prometheus-node-exporter"],
    )?;
    let elsewhere = format!("{{ {exporter}, health = \"http://127.0.0.1:9101/metrics\" }}");
    look(&elsewhere, NODE_EXPORTER).await?.expect(
        "fail",
        "MONITORING_AGENT_PORT",
        &["http://127.0.0.1:9101/metrics"],
    )?;
    let place = Place::new()?;
    let start = nginx(&place, "server { listen 9101; return 500; }")?;
    let config = format!("[check.monitoring_agent]\nagents = [{elsewhere}]\n");
    place
        .doctor(
            "monitoring_agent",
            &config,
            &format!("{NODE_EXPORTER}{start}up 9101"),
        )
        .await?
        .expect("fail", "MONITORING_AGENT_UNHEALTHY", &["500"])
}

#[tokio::test]
async fn an_agent_that_stopped_writing_is_told_from_one_that_never_wrote() -> Result<()> {
    let agent = |file: &str| {
        format!("{{ profile = \"node_exporter\", file = \"/run/{file}\", fresh_within = \"5m\" }}")
    };
    let files = format!("{NODE_EXPORTER}touch /run/new; touch -d '1 hour ago' /run/old\n");
    look(&agent("new"), &files)
        .await?
        .expect("pass", RUNS, &[])?;
    look(&agent("old"), &files)
        .await?
        .expect("fail", "MONITORING_AGENT_STALE", &["/run/old"])?;
    look(&agent("none"), &files).await?.expect(
        "fail",
        "MONITORING_AGENT_FILE_MISSING",
        &["/run/none"],
    )
}

#[tokio::test]
async fn of_several_agents_the_one_that_is_down_is_named() -> Result<()> {
    let both = r#"{ profile = "node_exporter" }, { profile = "collectd" }"#;
    look(both, NODE_EXPORTER).await?.expect(
        "fail",
        "MONITORING_AGENT_DOWN",
        &["collectd does not run", RUNS],
    )
}
