//! The commands that speak to a broker.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use jiff::Timestamp;
use muster_core::model::{HostName, Intent, Transition, Verdict};
use muster_proto::{
    border::{self, Word as _, millis, timestamp},
    v1,
};
use muster_runtime::{
    clock,
    config::HumanDuration,
    identity::{IdentityFiles, new_key_and_csr},
};
use serde_json::json;

use super::{
    CertCommand, Command, Failure, Global, HoldCommand, Output, RoleArg, TokenCommand,
    client::{connect, connection, fleet, refused},
    drain, pools, render, status,
};
use crate::{
    Config,
    view::{HostView, WatchView},
};

/// Exit code of `check` when no answer can be given.
pub(super) const CANNOT_TELL: u8 = 2;

pub(super) async fn run(
    command: Command,
    global: &Global,
    config: &Config,
) -> Result<ExitCode, Failure> {
    match command {
        // Answered by the caller.
        Command::Serve => {}
        Command::Token(TokenCommand::Create {
            pool,
            name,
            uses,
            ttl,
        }) => {
            let request = v1::CreateTokenRequest {
                pool,
                host_name: name.unwrap_or_default(),
                uses,
                ttl_ms: millis(ttl.0),
            };
            token_create(request, global, config).await?;
        }
        Command::Status => status::status(global, config).await?,
        Command::Hold(HoldCommand::End { pool }) => {
            status::end_holds(pool.unwrap_or_default(), global, config).await?;
        }
        Command::Trust { name, newcomer } => {
            status::trust(name, newcomer, global, config).await?;
        }
        Command::Hosts { pool } => hosts(pool.unwrap_or_default(), global, config).await?,
        Command::Host { name } => host(name, global, config).await?,
        Command::History { name, limit } => history(name, limit, global, config).await?,
        Command::Watch { pool, intent } => watch(pool, intent.into(), global, config).await?,
        Command::Check { name, intent } => {
            return check(name, intent.into(), global, config)
                .await
                .map_err(|failure| failure.coded(CANNOT_TELL));
        }
        Command::Drain {
            name,
            reason,
            owner,
            lasts,
            until_empty,
        } => {
            let until = lasts.map(until).transpose()?.map(timestamp);
            let request = v1::DrainHostRequest {
                name,
                owner,
                reason,
                until,
            };
            return drain::drain(request, until_empty, global, config).await;
        }
        Command::Undrain { name, owner, all } => {
            let request = v1::UndrainHostRequest { name, owner, all };
            let mut client = fleet(connect(global, config).await?);
            let answer = client
                .undrain_host(request)
                .await
                .map_err(refused)?
                .into_inner();
            say(answer.verdict, global)?;
        }
        Command::Remove { name } => remove(name, global, config).await?,
        Command::Recheck { name, check, wait } => {
            return recheck(name, check, wait, global, config).await;
        }
        Command::Pool(command) => pools::run(command, global, config).await?,
        Command::Cert(CertCommand::Issue {
            role,
            name,
            ttl,
            out,
        }) => {
            cert_issue(role, &name, ttl, out, global, config).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn remove(name: String, global: &Global, config: &Config) -> Result<(), Failure> {
    let mut client = fleet(connect(global, config).await?);
    let request = v1::RemoveHostRequest { name: name.clone() };
    let answer = client
        .remove_host(request)
        .await
        .map_err(refused)?
        .into_inner();
    match global.output {
        Output::Table => print(format_args!(
            "{name} is removed; its certificate is of no use any more\n"
        )),
        Output::Json => json_line(&json!({ "name": name, "host_id": answer.host_id })),
    }
}

fn until(lasts: HumanDuration) -> Result<Timestamp, Failure> {
    now()
        .checked_add(lasts.0)
        .map_err(|_| Failure::new("that time is too long").coded(super::USAGE))
}

async fn token_create(
    request: v1::CreateTokenRequest,
    global: &Global,
    config: &Config,
) -> Result<(), Failure> {
    let (pool, name) = (request.pool.clone(), request.host_name.clone());
    let mut client = fleet(connect(global, config).await?);
    let answer = client
        .create_token(request)
        .await
        .map_err(refused)?
        .into_inner();
    let expires_at = border::optional_instant("expires_at", answer.expires_at)?;
    let broker = answer.endpoints.first().cloned().unwrap_or_default();
    let named = if name.is_empty() {
        String::new()
    } else {
        format!(" --name {name}")
    };
    let enrol = format!(
        "muster-agent enroll --broker {broker} --token {} --ca-pin {}{named}",
        answer.token, answer.ca_pin
    );
    match global.output {
        Output::Json => json_line(&json!({
            "token": answer.token,
            "token_id": answer.token_id,
            "expires_at": expires_at,
            "ca_pin": answer.ca_pin,
            "endpoints": answer.endpoints,
            "pool": pool,
            "enroll_command": enrol,
        })),
        Output::Table => {
            let ends =
                expires_at.map_or_else(String::new, |at| format!(", until {}", render::time(at)));
            print(format_args!(
                "A token for the pool {pool}{ends}. It is shown only now. On the host:\n\n  {enrol}\n"
            ))
        }
    }
}

async fn all_hosts(
    pool: String,
    global: &Global,
    config: &Config,
) -> Result<Vec<HostView>, Failure> {
    let mut client = fleet(connect(global, config).await?);
    let mut hosts = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListFleetHostsRequest {
            pool: pool.clone(),
            page_size: 0,
            page_token,
        };
        let page = client
            .list_fleet_hosts(request)
            .await
            .map_err(refused)?
            .into_inner();
        for host in page.hosts {
            hosts.push(HostView::try_from(host)?);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(hosts);
        }
    }
}

async fn hosts(pool: String, global: &Global, config: &Config) -> Result<(), Failure> {
    let hosts = all_hosts(pool, global, config).await?;
    match global.output {
        Output::Json => json_line(&hosts),
        Output::Table if hosts.is_empty() => print(format_args!(
            "No hosts yet. Make a token and enrol one:\n\n  muster-broker token create\n"
        )),
        Output::Table => print(format_args!("{}\n", render::hosts(&hosts))),
    }
}

async fn host(name: String, global: &Global, config: &Config) -> Result<(), Failure> {
    let mut client = fleet(connect(global, config).await?);
    let answer = client
        .get_host(v1::GetHostRequest { name })
        .await
        .map_err(refused)?;
    let host = HostView::try_from(answer.into_inner().host.unwrap_or_default())?;
    match global.output {
        Output::Json => json_line(&host),
        Output::Table => print(format_args!("{}", render::host(&host))),
    }
}

/// Exits 0 if every result is a fresh one, 2 if some did not come in time.
async fn recheck(
    name: String,
    checks: Vec<String>,
    wait: HumanDuration,
    global: &Global,
    config: &Config,
) -> Result<ExitCode, Failure> {
    let mut client = fleet(connect(global, config).await?);
    let request = v1::RecheckHostRequest {
        name,
        checks,
        wait_ms: millis(wait.0),
    };
    let answer = client
        .recheck_host(request)
        .await
        .map_err(refused)?
        .into_inner();
    let host = HostView::try_from(answer.host.unwrap_or_default())?;
    match global.output {
        Output::Json => json_line(&json!({ "complete": answer.complete, "host": host }))?,
        Output::Table => {
            print(format_args!("{}", render::host(&host)))?;
            if !answer.complete {
                eprintln!("muster-broker: not every check finished within {wait}");
            }
        }
    }
    Ok(if answer.complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(CANNOT_TELL)
    })
}

async fn history(
    name: String,
    limit: u32,
    global: &Global,
    config: &Config,
) -> Result<(), Failure> {
    let mut client = fleet(connect(global, config).await?);
    let request = v1::GetHostHistoryRequest {
        name,
        limit,
        since: None,
    };
    let answer = client
        .get_host_history(request)
        .await
        .map_err(refused)?
        .into_inner();
    let transitions = answer
        .transitions
        .into_iter()
        .map(Transition::try_from)
        .collect::<Result<Vec<_>, _>>()?;
    match global.output {
        Output::Json => json_line(&transitions),
        Output::Table => print(format_args!("{}\n", render::history(&transitions))),
    }
}

async fn check(
    name: String,
    intent: Intent,
    global: &Global,
    config: &Config,
) -> Result<ExitCode, Failure> {
    let mut client = connection(connect(global, config).await?);
    let request = v1::CheckHostRequest {
        name,
        intent: intent.to_wire(),
        user_key: String::new(),
    };
    let answer = client
        .check_host(request)
        .await
        .map_err(refused)?
        .into_inner();
    let verdict = Verdict::try_from(answer.verdict.unwrap_or_default())?;
    match global.output {
        Output::Json => json_line(&verdict)?,
        Output::Table => print(format_args!("{}", render::verdict(&verdict)))?,
    }
    Ok(if verdict.connectable {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

pub(super) fn say(verdict: Option<v1::Verdict>, global: &Global) -> Result<(), Failure> {
    let verdict = Verdict::try_from(verdict.unwrap_or_default())?;
    match global.output {
        Output::Json => json_line(&verdict),
        Output::Table => print(format_args!("{}", render::verdict(&verdict))),
    }
}

async fn watch(
    pools: Vec<String>,
    intent: Intent,
    global: &Global,
    config: &Config,
) -> Result<(), Failure> {
    let mut client = connection(connect(global, config).await?);
    let request = v1::WatchHostsRequest {
        pools,
        position: Vec::new().into(),
        intent: intent.to_wire(),
    };
    let mut stream = client
        .watch_hosts(request)
        .await
        .map_err(refused)?
        .into_inner();
    while let Some(message) = stream.message().await.map_err(refused)? {
        for event in watch_events(message)? {
            match global.output {
                Output::Json => json_compact(&event)?,
                Output::Table => {
                    if let Some(line) = render::event(&event) {
                        print(format_args!("{line}\n"))?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn watch_events(message: v1::WatchHostsResponse) -> Result<Vec<WatchView>, Failure> {
    use v1::watch_hosts_response::Event;
    let verdict = |verdict: Option<v1::Verdict>| -> Result<Box<Verdict>, Failure> {
        Ok(Box::new(Verdict::try_from(verdict.unwrap_or_default())?))
    };
    Ok(match message.event {
        // Something newer than this program: not ours to show.
        None => Vec::new(),
        Some(Event::SnapshotChunk(chunk)) => chunk
            .verdicts
            .into_iter()
            .map(|each| {
                Ok(WatchView::Snapshot {
                    verdict: verdict(Some(each))?,
                })
            })
            .collect::<Result<_, Failure>>()?,
        Some(Event::SnapshotEnd(end)) => vec![WatchView::SnapshotEnd {
            revision: end.revision,
        }],
        Some(Event::Changed(change)) => vec![WatchView::Changed {
            verdict: verdict(change.verdict)?,
            revision: change.revision,
        }],
        Some(Event::Removed(removed)) => vec![WatchView::Removed {
            name: removed.name,
            host_id: removed.host_id,
            revision: removed.revision,
        }],
        Some(Event::Resync(resync)) => vec![WatchView::Resync {
            reason: resync.reason,
        }],
        Some(Event::Progress(progress)) => vec![WatchView::Progress {
            as_of: border::optional_instant("as_of", progress.as_of)?,
            revision: progress.revision,
        }],
    })
}

async fn cert_issue(
    role: RoleArg,
    name: &str,
    ttl: HumanDuration,
    out: Option<PathBuf>,
    global: &Global,
    config: &Config,
) -> Result<(), Failure> {
    let name =
        HostName::new(name).map_err(|error| Failure::new(error.to_string()).coded(super::USAGE))?;
    let (key, csr) = new_key_and_csr(&name)?;
    let request = v1::IssueCertificateRequest {
        role: role.as_str().to_owned(),
        name: name.to_string(),
        ttl_ms: millis(ttl.0),
        csr: csr.into(),
    };
    let mut client = fleet(connect(global, config).await?);
    let answer = client
        .issue_certificate(request)
        .await
        .map_err(refused)?
        .into_inner();
    let folder = out.unwrap_or_else(|| PathBuf::from(name.as_str()));
    let files = IdentityFiles::new(&folder);
    if files.exists() {
        let message = format!(
            "{} holds an identity already; name another folder",
            folder.display()
        );
        return Err(Failure::new(message));
    }
    files.store_key(&key)?;
    files.store_certificates(&[answer.certificate], &answer.ca_bundle)?;
    let not_after = border::optional_instant("not_after", answer.not_after)?;
    match global.output {
        Output::Json => json_line(&json!({
            "key": files.key_path(),
            "cert": files.certificate_path(),
            "ca": files.roots_path(),
            "not_after": not_after,
        })),
        Output::Table => print(format_args!(
            "{}\n{}\n{}\ngood until {}\n",
            files.key_path().display(),
            files.certificate_path().display(),
            files.roots_path().display(),
            not_after.map_or_else(String::new, render::time),
        )),
    }
}

pub(super) fn json_line(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(format_args!("{}\n", serde_json::to_string_pretty(value)?))
}

fn json_compact(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(format_args!("{}\n", serde_json::to_string(value)?))
}

/// Writes to standard output. A reader that went away (`| head`) is no failure.
pub(super) fn print(text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Now, for ages.
pub(super) fn now() -> Timestamp {
    clock::now().wall
}
