//! `session_listener` against OpenSSH, xrdp, TigerVNC and nginx.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use muster_agent::{checks, config::Config, session::LinkState};
use muster_core::{agent::HostPolicy, model::Outcome};
use muster_tests::{process::Process, wait};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    process::Command,
    sync::watch,
};

use super::{Authority, Place, Seen, Until, nginx};

const SSHD: &str = r#"
ssh-keygen -q -N '' -t ed25519 -f "$HERE/host_key"
/usr/sbin/sshd -f /dev/null -h "$HERE/host_key" -o PidFile=none -o UsePAM=no
up 22
"#;

const XRDP: &str = r#"
xrdp --nodaemon >/dev/null 2>&1 &
up 3389
"#;

const VNC: &str = r#"
rm -f /tmp/.X7937-lock
Xtigervnc :7937 -rfbport 5907 -SecurityTypes None -nolisten local >"$HERE/vnc.log" 2>&1 &
up 5907
"#;

async fn look(config: &str, script: &str) -> Result<Seen> {
    let place = Place::new()?;
    place.doctor("session_listener", config, script).await
}

#[tokio::test]
async fn an_ssh_server_is_found_and_its_version_and_process_are_told() -> Result<()> {
    let seen = look("", SSHD).await?;
    seen.expect(
        "pass",
        "LISTENS",
        &[
            "ssh on port 22",
            "sshd (process ",
            "SSH-2.0-OpenSSH",
            "listens on 0.0.0.0",
        ],
    )
}

#[tokio::test]
async fn xrdp_negotiates_and_the_security_protocol_is_told() -> Result<()> {
    let seen = look("", XRDP).await?;
    seen.expect(
        "pass",
        "LISTENS",
        &["rdp on port 3389", "xrdp (process ", "offers TLS"],
    )
}

#[tokio::test]
async fn a_vnc_server_greets_with_its_version() -> Result<()> {
    let seen = look("", VNC).await?;
    seen.expect("pass", "LISTENS", &["vnc on port 5907", "RFB 003.008"])
}

#[tokio::test]
async fn a_host_without_a_listener_is_told_what_to_install() -> Result<()> {
    look("", "")
        .await?
        .expect("fail", "NO_LISTENER", &["apt-get install openssh-server"])
}

#[tokio::test]
async fn a_server_on_loopback_alone_fails_unless_a_gateway_is_behind_it() -> Result<()> {
    let local = SSHD.replace("-o UsePAM", "-o ListenAddress=127.0.0.1 -o UsePAM");
    look("", &local)
        .await?
        .expect("fail", "LISTENER_LOOPBACK_ONLY", &["allow_loopback"])?;
    let allowed = "[check.session_listener]\nallow_loopback = true\n";
    look(allowed, &local).await?.expect("pass", "LISTENS", &[])
}

const SSH_AND_WEB: &str =
    r#"listeners = [{ protocol = "ssh", port = 22 }, { protocol = "https", port = 8443 }]"#;

#[tokio::test]
async fn each_listener_is_reported_by_itself_and_any_may_be_enough() -> Result<()> {
    let all = format!("[check.session_listener]\n{SSH_AND_WEB}\n");
    let seen = look(&all, SSHD).await?;
    seen.expect("fail", "LISTENER_DOWN", &["https on port 8443"])?;
    ensure!(seen.codes() == ["LISTENER_DOWN", "LISTENS"], "{seen:?}");
    let any = format!("{all}require = \"any\"\n");
    look(&any, SSHD).await?.expect("warn", "LISTENER_DOWN", &[])
}

#[tokio::test]
async fn the_end_of_a_web_listeners_certificate_is_warned_of_and_then_fails() -> Result<()> {
    let web = "[check.session_listener]\nlisteners = [{ protocol = \"https\", port = 8443 }]\n";
    let table = [
        (Until::Days(90), "pass", "LISTENS"),
        (Until::Days(9), "warn", "LISTENER_CERTIFICATE_EXPIRES"),
        (Until::Past, "fail", "LISTENER_CERTIFICATE_EXPIRED"),
    ];
    for (until, outcome, code) in table {
        let place = Place::new()?;
        Authority::new("Test Root")?.issue(&place, "web", "web.example", until)?;
        let here = place.path().display();
        let start = nginx(
            &place,
            &format!(
                "server {{ listen 8443 ssl; ssl_certificate {here}/web.crt; \
                 ssl_certificate_key {here}/web.key; }}"
            ),
        )?;
        place
            .doctor("session_listener", web, &format!("{start}\nup 8443"))
            .await?
            .expect(outcome, code, &["nginx (process "])?;
    }
    Ok(())
}

#[tokio::test]
async fn a_web_server_on_the_port_of_rdp_is_another_protocol() -> Result<()> {
    let place = Place::new()?;
    let start = nginx(&place, "server { listen 3389; return 200; }")?;
    let seen = place
        .doctor("session_listener", "", &format!("{start}\nup 3389"))
        .await?;
    seen.expect(
        "fail",
        "LISTENER_OTHER_PROTOCOL",
        &["rdp on port 3389", "HTTP"],
    )
}

#[tokio::test]
async fn a_stopped_server_is_silent_and_one_at_its_limit_hangs_up() -> Result<()> {
    let stopped = format!("{XRDP}\nkill -STOP $!\n");
    let quick = "[check.session_listener]\ntimeout = \"3s\"\n";
    look(quick, &stopped)
        .await?
        .expect("fail", "LISTENER_SILENT", &["xrdp (process "])?;
    // Past MaxStartups OpenSSH drops connections without a version.
    let full = SSHD.replace("-o UsePAM", "-o MaxStartups=1:100:1 -o UsePAM");
    let full = format!("{full}\nexec 7<>/dev/tcp/127.0.0.1/22\nread -r _ <&7\n");
    look("", &full)
        .await?
        .expect("fail", "LISTENER_CLOSED", &["ssh"])
}

#[tokio::test]
async fn xrdp_without_its_certificate_is_told_apart() -> Result<()> {
    let mut place = Place::new()?;
    let ini = std::fs::read_to_string("/etc/xrdp/xrdp.ini").context("xrdp is not installed")?;
    let ini = ini
        .replace("security_layer=negotiate", "security_layer=tls")
        .replace("\ncertificate=", "\ncertificate=/nonexistent")
        .replace("\nkey_file=", "\nkey_file=/nonexistent");
    place.over("/etc/xrdp/xrdp.ini", &ini)?;
    let seen = place.doctor("session_listener", "", XRDP).await?;
    seen.expect("fail", "RDP_NO_CERTIFICATE", &["xrdp.ini"])
}

/// A firewall that lets connections in and resets them at the first word.
#[tokio::test]
async fn a_connection_that_breaks_is_told_as_such() -> Result<()> {
    let resets = format!(
        "{XRDP}nft add table inet t\n\
         nft add chain inet t in '{{ type filter hook input priority 0; }}'\n\
         nft add rule inet t in tcp dport 3389 'tcp flags & psh == psh' \
         reject with tcp reset\n"
    );
    look("", &resets).await?.expect(
        "fail",
        "LISTENER_BROKEN",
        &["rdp on port 3389", "the connection broke", "xrdp (process "],
    )
}

/// No server at hand has a reason for this code (INCONSISTENT_FLAGS): its bytes are those that
/// IronRDP makes of it, which a test beside the probe shows.
#[tokio::test]
async fn an_rdp_server_that_refuses_by_another_code_is_told_with_it() -> Result<()> {
    let refuses = "python3 -c 'import socket\n\
                   s = socket.create_server((\"\", 3389))\n\
                   while True:\n\
                   \x20   c, _ = s.accept()\n\
                   \x20   c.recv(19)\n\
                   \x20   c.sendall(bytes.fromhex(\"030000130ed000000000000300080004000000\"))\n\
                   \x20   c.recv(1)\n' &\nup 3389\n";
    look("", refuses).await?.expect(
        "fail",
        "RDP_REFUSES",
        &[
            "rdp on port 3389",
            "refuses the negotiation with code 4",
            "python3 (process ",
        ],
    )
}

/// TigerVNC locks out an address after five connections that did not log in. A check that is made
/// anew speaks the protocol at once, so these are two hundred exchanges; a gateway on the host comes
/// from 127.0.0.1.
#[tokio::test]
async fn two_hundred_probes_lock_nobody_out_of_a_vnc_server() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let mut command = Command::new("Xtigervnc");
    // Long enough a name for no display of this machine.
    command
        .args([
            ":7931",
            "-rfbport",
            &port.to_string(),
            "-localhost",
            "-nolisten",
            "local",
        ])
        .args([
            "-SecurityTypes",
            "VncAuth",
            "-BlacklistThreshold",
            "5",
            "-rfbauth",
        ])
        .arg(folder.path().join("passwd"));
    std::fs::write(folder.path().join("passwd"), [0x17; 8])?;
    let _server = Process::spawn("Xtigervnc", command, &folder.path().join("vnc.log"))?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));

    let path = folder.path().join("agent.toml");
    let listener = format!("listeners = [{{ protocol = \"vnc\", port = {port} }}]");
    let text = format!("[check.session_listener]\nallow_loopback = true\n{listener}\n");
    std::fs::write(&path, text)?;
    let config = Config::load(&path, true)?;
    let (_sender, link) = watch::channel(LinkState::default());
    let check = || {
        let planned = checks::plan(&config, &HostPolicy::default(), &link);
        let mut planned = planned.into_iter();
        let check = planned.find(|check| check.spec.name.as_str() == "session_listener");
        check.and_then(|planned| planned.check).context("the check")
    };
    wait::until("the VNC server listens", wait::PATIENCE, || async {
        let seen = check()?.run().await;
        ensure!(seen.outcome == Outcome::Pass, "{seen:?}");
        Ok(())
    })
    .await?;
    for run in 0..200 {
        let seen = check()?.run().await;
        ensure!(seen.outcome == Outcome::Pass, "run {run}: {seen:?}");
        let steps = &seen.findings[0].steps;
        ensure!(
            steps.iter().any(|step| step.contains("greets as RFB")),
            "run {run}: {seen:?}"
        );
    }
    let mut client = TcpStream::connect(address).await?;
    let exchange = async {
        let mut version = [0; 12];
        client.read_exact(&mut version).await?;
        tokio::io::AsyncWriteExt::write_all(&mut client, &version).await?;
        client.read_u8().await
    };
    let security_types = tokio::time::timeout(Duration::from_secs(10), exchange).await??;
    ensure!(security_types > 0, "a person is locked out");
    Ok(())
}
