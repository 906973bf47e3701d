//! The five checks against the real parts: servers from their packages, firewalls and name servers
//! in a network namespace that has nothing but loopback. Needs what `tests/run` installs, and root
//! or user namespaces.

mod domain;
mod metadata_service;
mod monitoring_agent;
mod own;
mod session_listener;
mod table;
mod urls;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    agent::Agent,
    binaries,
    process::{self, Output},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

/// A place runs a handful of servers and the doctor, mostly within a second.
const PATIENCE: Duration = Duration::from_secs(120);

/// What every script of a place begins with. The servers that it starts end with its process
/// namespace.
const PREAMBLE: &str = r#"
set -eu
ip link set lo up
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /run/sshd /run/lock /run/etc/upper /run/etc/work
# Nothing of this machine's own settings is written to.
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work /etc
unset http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY
until_true() {
    for _ in $(seq 400); do if "$@" 2>/dev/null; then return 0; fi; sleep 0.05; done
    echo "never true: $*" >&2; exit 99
}
listens() { ss -Hltn "sport = :$1" | grep -q .; }
up() { until_true listens "$1"; }
"#;

/// A machine of its own: network, processes, and files under `/etc` as a test wants them.
pub(super) struct Place {
    folder: TempDir,
    over: Vec<(&'static str, PathBuf)>,
}

/// What the doctor says of one check.
#[derive(Debug)]
pub(super) struct Seen(Value);

impl Place {
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut place = Self {
            folder,
            over: Vec::new(),
        };
        place.over("/etc/hosts", "127.0.0.1 localhost\n")?;
        place.over("/etc/resolv.conf", "nameserver 127.0.0.53\n")?;
        Ok(place)
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file into the place's folder, which scripts know as `$HERE`.
    pub(super) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::write(&path, content)?;
        Ok(path)
    }

    /// `content` stands in the place of the file at `target`.
    pub(super) fn over(&mut self, target: &'static str, content: &str) -> Result<()> {
        let path = self.file(&target.replace('/', "_"), content)?;
        self.over.retain(|(known, _)| *known != target);
        self.over.push((target, path));
        Ok(())
    }

    /// Runs `script` in the place.
    pub(super) async fn run(&self, config: &str, script: &str) -> Result<Output> {
        let agent = Agent::new(self.path(), "agent", config)?;
        let mut whole = PREAMBLE.to_owned();
        for (target, path) in &self.over {
            whole += &format!("[ -e {target} ] || touch {target}\n");
            whole += &format!("mount --bind {} {target}\n", path.display());
        }
        whole += script;
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command
            .args([
                "--net",
                "--uts",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ])
            .args(["bash", "-c", &whole])
            .env("HERE", self.path())
            .env("CONFIG", agent.config())
            .env("AGENT", &binaries::fresh()?.agent);
        process::run(command, PATIENCE).await
    }

    /// Runs `script`, which starts what is to be looked at, and then the doctor for `check`.
    pub(super) async fn doctor(&self, check: &str, config: &str, script: &str) -> Result<Seen> {
        let script = format!(
            "{script}\n\"$AGENT\" doctor --check {check} --output json --config \"$CONFIG\"\n"
        );
        let output = self.run(config, &script).await?;
        ensure!(
            matches!(output.code, Some(0..=2)),
            "the place fell down: {output:?}"
        );
        let json: Value =
            serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {output:?}"))?;
        Ok(Seen(json["checks"][0].clone()))
    }
}

impl Seen {
    pub(super) fn outcome(&self) -> &str {
        self.0["outcome"].as_str().unwrap_or_default()
    }

    /// Everything that is told, as one text.
    pub(super) fn text(&self) -> String {
        self.0.to_string()
    }

    pub(super) fn codes(&self) -> Vec<&str> {
        let findings = self.0["findings"].as_array();
        let findings = findings.map(Vec::as_slice).unwrap_or_default();
        findings
            .iter()
            .filter_map(|found| found["code"].as_str())
            .collect()
    }

    /// Asserts the outcome, the first cause, that it has a remedy where it is bad, and that all
    /// these words are in the evidence.
    pub(super) fn expect(&self, outcome: &str, code: &str, words: &[&str]) -> Result<()> {
        let first = self.codes().first().copied().unwrap_or_default();
        ensure!(
            (self.outcome(), first) == (outcome, code),
            "wanted {outcome} {code}: {:#}",
            self.0
        );
        ensure!(
            outcome == "pass" || self.0["findings"][0]["remedy"]["text"].is_string(),
            "no remedy: {:#}",
            self.0
        );
        let text = self.text();
        for word in words {
            ensure!(text.contains(word), "{word:?} is not told: {:#}", self.0);
        }
        Ok(())
    }
}

/// An authority whose certificates servers show.
pub(super) struct Authority {
    name: String,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(super) fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            name: name.to_owned(),
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// Its certificate as a file of trusted roots.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes `NAME.crt` and `NAME.key` for `host`, valid until `years` from the test's year.
    pub(super) fn issue(&self, place: &Place, name: &str, host: &str, until: Until) -> Result<()> {
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params
            .subject_alt_names
            .push(SanType::IpAddress("127.0.0.1".parse()?));
        params.distinguished_name.push(DnType::CommonName, host);
        let today = jiff::Timestamp::now()
            .to_zoned(jiff::tz::TimeZone::UTC)
            .date();
        params.not_before = date_time_ymd(2020, 1, 1);
        let end = match until {
            Until::Past => jiff::civil::date(2021, 1, 1),
            Until::Days(days) => today.checked_add(jiff::Span::new().days(days))?,
        };
        params.not_after = date_time_ymd(
            end.year().into(),
            end.month().try_into()?,
            end.day().try_into()?,
        );
        let key = KeyPair::generate()?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("{} signs", self.name))?;
        place.file(&format!("{name}.crt"), certificate.pem())?;
        place.file(&format!("{name}.key"), key.serialize_pem())?;
        Ok(())
    }
}

/// When a certificate ends.
#[derive(Clone, Copy)]
pub(super) enum Until {
    Past,
    Days(i64),
}

/// The words that start a real nginx with these `server` blocks.
pub(super) fn nginx(place: &Place, servers: &str) -> Result<&'static str> {
    let here = place.path().display();
    place.file(
        "nginx.conf",
        format!(
            "worker_processes 1; error_log {here}/nginx.log; pid {here}/nginx.pid;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log off; client_body_temp_path {here}/body; \
             proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fastcgi; \
             uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;\n{servers}\n}}\n"
        ),
    )?;
    // It stays root: the folder of a test is for its owner alone.
    Ok("nginx -g 'user root;' -c \"$HERE/nginx.conf\"\n")
}
