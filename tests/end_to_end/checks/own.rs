//! Own checks of every kind against the real parts, broken on purpose. Plugins and services have
//! tests elsewhere: `own_checks.rs`, the agent's own tests, and `tests/system-units`.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use muster_tests::binaries::repository;
use serde_json::Value;

use super::{Authority, Place, Until, nginx};

/// A check's name, its keys, and what it must say.
type Row = (&'static str, &'static str, &'static str, &'static str);

/// Runs the doctor in the place, after `script`, for checks of one kind.
async fn expect(place: &Place, kind: &str, script: &str, rows: &[Row]) -> Result<()> {
    let folder = place.path().join("checks.d");
    fs::create_dir_all(&folder)?;
    let here = place.path().display().to_string();
    let mut text = String::new();
    let mut wanted = String::new();
    for (name, keys, ..) in rows {
        let keys = keys.replace("HERE", &here);
        text += &format!("[[check]]\nname = \"{name}\"\nkind = \"{kind}\"\n{keys}\n");
        wanted += &format!(" --check {name}");
    }
    fs::write(folder.join("own.toml"), text)?;
    let config = format!("checks_dir = {:?}\n", folder.display().to_string());
    let script = format!(
        "{script}\n\"$AGENT\" doctor{wanted} --output json --config \"$CONFIG\" >\"$HERE/said\" || true\n"
    );
    let output = place.run(&config, &script).await?;
    ensure!(output.code == Some(0), "the place fell down: {output:?}");
    let said = fs::read_to_string(place.path().join("said"))?;
    let said: Value = serde_json::from_str(&said).with_context(|| format!("{output:?}"))?;
    let checks = said["checks"].as_array().context("no checks")?;
    let seen: BTreeMap<_, _> = checks
        .iter()
        .filter_map(|check| Some((check["name"].as_str()?, check)))
        .collect();
    for (name, _, outcome, code) in rows {
        let check = seen.get(name).with_context(|| format!("no {name}"))?;
        let found = &check["findings"][0];
        ensure!(
            check["outcome"] == *outcome && found["code"] == *code,
            "wanted {name}: {outcome} {code}: {check:#}"
        );
        ensure!(
            *outcome == "pass" || found["remedy"]["text"].is_string(),
            "no remedy: {check:#}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn disks_that_are_full_out_of_files_or_read_only_are_told_apart() -> Result<()> {
    let script = "mkdir /run/full /run/files /run/ro\n\
                  mount -t tmpfs -o size=1M tmpfs /run/full\n\
                  head -c 1000000 /dev/zero >/run/full/data\n\
                  mount -t tmpfs -o nr_inodes=20 tmpfs /run/files\n\
                  touch /run/files/{1..19}\n\
                  mount -t tmpfs -o ro tmpfs /run/ro\n";
    let rows = [
        ("room", "path = \"/run\"", "pass", "DISK_HAS_ROOM"),
        ("full", "path = \"/run/full\"", "fail", "DISK_FULL"),
        (
            "files",
            "path = \"/run/files\"",
            "fail",
            "DISK_OUT_OF_FILES",
        ),
        ("ro", "path = \"/run/ro\"", "fail", "DISK_READ_ONLY"),
        ("none", "path = \"/run/none\"", "unknown", "DISK_NOT_ASKED"),
    ];
    expect(&Place::new()?, "disk", script, &rows).await
}

#[tokio::test]
async fn files_processes_and_memory_are_told_apart() -> Result<()> {
    let script = "touch -d '1 hour ago' /run/old; echo words >/run/new; touch /run/a-file\n\
                  mkdir -p /run/private/below\n";
    let rows = [
        (
            "fresh",
            "path = \"/run/new\"\nmax_age = \"5m\"",
            "pass",
            "FILE_FRESH",
        ),
        (
            "old",
            "path = \"/run/old\"\nmax_age = \"5m\"",
            "fail",
            "FILE_STALE",
        ),
        (
            "small",
            "path = \"/run/new\"\nmax_age = \"5m\"\nmin_size = \"1KiB\"",
            "fail",
            "FILE_TOO_SMALL",
        ),
        (
            "gone",
            "path = \"/run/none\"\nmax_age = \"5m\"",
            "fail",
            "FILE_MISSING",
        ),
        (
            "odd",
            "path = \"/run/a-file/below\"\nmax_age = \"5m\"",
            "unknown",
            "FILE_NOT_ASKED",
        ),
    ];
    expect(&Place::new()?, "file_fresh", script, &rows).await?;
    let script = "sleep 60 & sleep 60 & sleep 60 &\n";
    let rows = [
        ("runs", "program = \"sleep\"", "pass", "PROCESS_RUNS"),
        ("none", "program = \"nosuch\"", "fail", "PROCESS_MISSING"),
        (
            "many",
            "program = \"sleep\"\nmax = 2",
            "fail",
            "PROCESS_TOO_MANY",
        ),
    ];
    expect(&Place::new()?, "process", script, &rows).await?;
    let hidden = [(
        "hidden",
        "program = \"x\"",
        "unknown",
        "PROCESSES_NOT_LISTED",
    )];
    let without = "mount -t tmpfs tmpfs /proc\n";
    expect(&Place::new()?, "process", without, &hidden).await?;
    let rows = [
        (
            "some",
            "min_available = \"1MiB\"",
            "pass",
            "MEMORY_AVAILABLE",
        ),
        ("all", "min_available = \"100%\"", "fail", "MEMORY_LOW"),
    ];
    expect(&Place::new()?, "memory", "", &rows).await?;
    let hidden = [("hidden", "", "unknown", "MEMORY_NOT_ASKED")];
    expect(&Place::new()?, "memory", without, &hidden).await?;
    let unmanaged = [(
        "unmanaged",
        "service = \"ssh\"",
        "unknown",
        "SERVICE_NOT_ASKED",
    )];
    expect(&Place::new()?, "service", "", &unmanaged).await
}

/// Firewalls and routes on the way to addresses that are elsewhere.
const WAYS: &str = "ip addr add 203.0.113.9/32 dev lo\n\
    ip addr add 203.0.113.10/32 dev lo\n\
    ip route add prohibit 203.0.113.11\n\
    nft add table inet t\n\
    nft add chain inet t in '{ type filter hook input priority 0; }'\n\
    nft add rule inet t in ip daddr 203.0.113.10 drop\n\
    nft add rule inet t in ip daddr 192.0.2.53 drop\n";

#[tokio::test]
async fn ways_that_tcp_and_names_do_not_take_are_told_apart() -> Result<()> {
    let place = Place::new()?;
    let web = nginx(&place, "server { listen 80; return 200; }")?;
    let script = format!("{WAYS}{web}up 80\n");
    let rows = [
        (
            "open",
            "address = \"127.0.0.1:80\"",
            "pass",
            "TCP_CONNECTED",
        ),
        (
            "refused",
            "address = \"203.0.113.9:81\"",
            "fail",
            "TCP_REFUSED",
        ),
        (
            "dropped",
            "address = \"203.0.113.10:80\"\ntimeout = \"2s\"",
            "fail",
            "TCP_TIMED_OUT",
        ),
        (
            "nowhere",
            "address = \"198.51.100.1:80\"",
            "fail",
            "TCP_UNREACHABLE",
        ),
        (
            "prohibited",
            "address = \"203.0.113.11:80\"",
            "fail",
            "TCP_FAILED",
        ),
    ];
    expect(&place, "tcp", &script, &rows).await
}

#[tokio::test]
async fn what_a_web_server_answers_is_held_against_what_is_wanted() -> Result<()> {
    let place = Place::new()?;
    let servers = "server { listen 80; location / { return 200 'all is well'; } \
                   location /ill { return 503; } }";
    let silent = "python3 -c 'import socket, time\n\
                  s = socket.create_server((\"127.0.0.1\", 81))\ntime.sleep(60)' &\nup 81\n";
    let script = format!("{}up 80\n{silent}", nginx(&place, servers)?);
    let rows = [
        (
            "well",
            "url = \"http://127.0.0.1/\"\ncontains = \"is well\"",
            "pass",
            "HTTP_ANSWERED",
        ),
        (
            "ill",
            "url = \"http://127.0.0.1/ill\"",
            "fail",
            "HTTP_STATUS",
        ),
        (
            "text",
            "url = \"http://127.0.0.1/\"\ncontains = \"is ill\"",
            "fail",
            "HTTP_TEXT_MISSING",
        ),
        (
            "silent",
            "url = \"http://127.0.0.1:81/\"\ntimeout = \"2s\"",
            "fail",
            "HTTP_TIMED_OUT",
        ),
    ];
    expect(&place, "http", &script, &rows).await
}

/// A web server with a certificate of each age on ports 8002 to 8005, one that rejects every
/// handshake on 8000, one without TLS on 8001, and a silent one on 8006.
fn certificates(place: &Place) -> Result<String> {
    let root = Authority::new("Site Root")?;
    place.file("root.pem", root.pem())?;
    place.file("other.pem", Authority::new("Other Root")?.pem())?;
    place.file("empty.pem", "")?;
    let here = place.path().display();
    let mut servers = "server { listen 8000 ssl; ssl_reject_handshake on; }\n\
                       server { listen 8001; return 200; }\n"
        .to_owned();
    for (port, until) in [
        (8002, Until::Days(90)),
        (8003, Until::Days(10)),
        (8004, Until::Days(3)),
        (8005, Until::Past),
    ] {
        root.issue(place, &format!("at{port}"), "web.example", until)?;
        servers += &format!(
            "server {{ listen {port} ssl; ssl_certificate {here}/at{port}.crt; \
             ssl_certificate_key {here}/at{port}.key; }}\n"
        );
    }
    let silent = "python3 -c 'import socket, time\n\
                  s = socket.create_server((\"127.0.0.1\", 8006))\ntime.sleep(60)' &\nup 8006\n";
    Ok(format!("{}up 8002\n{silent}", nginx(place, &servers)?))
}

#[tokio::test]
async fn certificates_of_a_real_web_server_are_told_apart() -> Result<()> {
    let place = Place::new()?;
    let script = certificates(&place)?;
    let good = "address = \"127.0.0.1:8002\"\nserver_name = \"web.example\"\n\
                ca_file = \"HERE/root.pem\"";
    let rows = [
        ("good", good, "pass", "TLS_GOOD"),
        (
            "warns",
            "address = \"127.0.0.1:8003\"\nserver_name = \"web.example\"\nca_file = \"HERE/root.pem\"",
            "warn",
            "TLS_EXPIRES",
        ),
        (
            "fails",
            "address = \"127.0.0.1:8004\"\nserver_name = \"web.example\"\nca_file = \"HERE/root.pem\"",
            "fail",
            "TLS_EXPIRES",
        ),
        (
            "past",
            "address = \"127.0.0.1:8005\"\nserver_name = \"web.example\"\nca_file = \"HERE/root.pem\"",
            "fail",
            "TLS_EXPIRED",
        ),
        (
            "stranger",
            "address = \"127.0.0.1:8002\"\nserver_name = \"web.example\"\nca_file = \"HERE/other.pem\"",
            "fail",
            "TLS_UNKNOWN_CA",
        ),
        (
            "name",
            "address = \"127.0.0.1:8002\"\nserver_name = \"other.example\"\nca_file = \"HERE/root.pem\"",
            "fail",
            "TLS_WRONG_NAME",
        ),
        (
            "plain",
            "address = \"127.0.0.1:8001\"",
            "fail",
            "TLS_NOT_SPOKEN",
        ),
        (
            "rejects",
            "address = \"127.0.0.1:8000\"\nverify = false",
            "fail",
            "TLS_FAILED",
        ),
        (
            "silent",
            "address = \"127.0.0.1:8006\"\ntimeout = \"2s\"",
            "fail",
            "TLS_TIMED_OUT",
        ),
        (
            "rootless",
            "address = \"127.0.0.1:8002\"\nca_file = \"HERE/empty.pem\"",
            "fail",
            "TLS_NO_ROOTS",
        ),
    ];
    expect(&place, "tls", &script, &rows).await?;
    // The certificate begins in 2020; this machine thinks that it is 2019.
    let early = "export LD_PRELOAD=$(echo /usr/lib/*/faketime/libfaketime.so.1)\n\
                 export FAKETIME='@2019-06-01 00:00:00' FAKETIME_DONT_FAKE_MONOTONIC=1\n";
    let rows = [("early", good, "fail", "TLS_NOT_YET_VALID")];
    expect(&place, "tls", &format!("{script}{early}"), &rows).await
}

/// A real chronyd that serves its own clock, or one that follows nobody.
fn chronyd(sources: &str) -> String {
    // Taken apart there by `tests/run`: as a package it would replace what keeps the clock.
    let tools = repository().join("target/tools/chrony/usr");
    let tools = tools.display();
    format!(
        "export PATH={tools}/bin:{tools}/sbin:$PATH\n\
         mkdir -p /run/chrony /run/lib\n\
         printf 'port 123\\nallow\\ncmdport 323\\ndriftfile /run/lib/drift\\n{sources}\\n' >/run/chrony.conf\n\
         chronyd -x -d -u root -f /run/chrony.conf >\"$HERE/chrony.log\" 2>&1 &\n\
         until_true chronyc -n tracking >/dev/null\n"
    )
}

#[tokio::test]
async fn clocks_are_held_against_a_real_chrony() -> Result<()> {
    let silent = "nft add table inet t\n\
                  nft add chain inet t in '{ type filter hook input priority 0; }'\n\
                  nft add rule inet t in ip daddr 127.0.0.9 udp dport 123 drop\n";
    let serves = format!("{}{silent}", chronyd("local stratum 8"));
    let rows = [
        ("right", "server = \"127.0.0.1:123\"", "pass", "CLOCK_RIGHT"),
        ("kept", "", "pass", "CLOCK_RIGHT"),
        (
            "silent",
            "server = \"127.0.0.9:123\"\ntimeout = \"2s\"",
            "fail",
            "CLOCK_SERVER_SILENT",
        ),
    ];
    expect(&Place::new()?, "clock", &serves, &rows).await?;
    let wrong = format!(
        "{serves}export LD_PRELOAD=$(echo /usr/lib/*/faketime/libfaketime.so.1)\n\
         export FAKETIME=+90s FAKETIME_DONT_FAKE_MONOTONIC=1\n"
    );
    let rows = [("wrong", "server = \"127.0.0.1:123\"", "fail", "CLOCK_WRONG")];
    expect(&Place::new()?, "clock", &wrong, &rows).await?;
    let rows = [
        (
            "useless",
            "server = \"127.0.0.1:123\"",
            "fail",
            "CLOCK_SERVER_USELESS",
        ),
        ("alone", "", "fail", "CLOCK_NOT_SYNCHRONIZED"),
    ];
    expect(&Place::new()?, "clock", &chronyd(""), &rows).await?;
    let rows = [("nobody", "", "unknown", "CLOCK_NOT_ASKED")];
    expect(&Place::new()?, "clock", "", &rows).await
}

/// A server of gRPC's own Python library: health on 5001, nothing on 5002, a health service that
/// fails on 5003.
const GRPC: &str = r#"
import sys, time
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

def serve(port, servicer=None):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    if servicer:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    return server

class Fails(health_pb2_grpc.HealthServicer):
    def Check(self, request, context):
        context.abort(grpc.StatusCode.INTERNAL, "out of memory")

well = health.HealthServicer()
well.set("up", health_pb2.HealthCheckResponse.SERVING)
well.set("down", health_pb2.HealthCheckResponse.NOT_SERVING)
servers = [serve(5001, well), serve(5002), serve(5003, Fails())]
time.sleep(60)
"#;

#[tokio::test]
async fn health_of_a_real_grpc_server_is_told_apart() -> Result<()> {
    let place = Place::new()?;
    place.file("server.py", GRPC)?;
    let python = repository().join("target/tools/venv/bin/python");
    let web = nginx(&place, "server { listen 5004; return 200; }")?;
    let silent = "python3 -c 'import socket, time\n\
                  s = socket.create_server((\"127.0.0.1\", 5005))\ntime.sleep(60)' &\nup 5005\n";
    let script = format!(
        "{} \"$HERE/server.py\" &\n{web}{silent}up 5001\nup 5003\nup 5004\n",
        python.display()
    );
    let rows = [
        (
            "up",
            "address = \"127.0.0.1:5001\"\nservice = \"up\"",
            "pass",
            "GRPC_SERVING",
        ),
        (
            "down",
            "address = \"127.0.0.1:5001\"\nservice = \"down\"",
            "fail",
            "GRPC_NOT_SERVING",
        ),
        (
            "unknown",
            "address = \"127.0.0.1:5001\"\nservice = \"nosuch\"",
            "fail",
            "GRPC_UNKNOWN_SERVICE",
        ),
        (
            "none",
            "address = \"127.0.0.1:5002\"",
            "fail",
            "GRPC_NO_HEALTH",
        ),
        ("ill", "address = \"127.0.0.1:5003\"", "fail", "GRPC_FAILED"),
        (
            "web",
            "address = \"127.0.0.1:5004\"",
            "fail",
            "GRPC_NOT_SPOKEN",
        ),
        (
            "silent",
            "address = \"127.0.0.1:5005\"\ntimeout = \"2s\"",
            "fail",
            "GRPC_SILENT",
        ),
    ];
    expect(&place, "grpc", &script, &rows).await
}
