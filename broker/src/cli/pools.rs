//! `muster-broker pool`.

use std::path::Path;

use jiff::Timestamp;
use muster_core::model::{Reason, Status};
use muster_proto::{
    border::{self, BorderError, Word as _},
    v1,
};
use muster_runtime::files;
use serde::Serialize;
use serde_json::json;

use super::{
    Failure, Global, Output, PoolCommand,
    client::{connect, fleet, refused},
    commands::{json_line, print},
    render::{self, short, table, yes_no},
};
use crate::{Config, policy};

/// A pool, in JSON.
#[derive(Debug, Serialize)]
struct PoolView {
    name: String,
    revision: String,
    hosts: u32,
    connectable_new: u32,
    set_at: Option<Timestamp>,
    set_by: String,
    policy: String,
}

/// What a policy changes for one host, in JSON.
#[derive(Debug, Serialize)]
struct EffectView {
    name: String,
    from: Option<Status>,
    to: Option<Status>,
    connectable_new_before: bool,
    connectable_new_after: bool,
    connectable_reconnect_before: bool,
    connectable_reconnect_after: bool,
    reasons: Vec<Reason>,
}

impl TryFrom<v1::Pool> for PoolView {
    type Error = BorderError;

    fn try_from(pool: v1::Pool) -> Result<Self, BorderError> {
        Ok(Self {
            set_at: border::optional_instant("set_at", pool.set_at)?,
            name: pool.name,
            revision: pool.revision,
            hosts: pool.hosts,
            connectable_new: pool.connectable_new,
            set_by: pool.set_by,
            policy: pool.policy_toml,
        })
    }
}

impl TryFrom<v1::PolicyEffect> for EffectView {
    type Error = BorderError;

    fn try_from(effect: v1::PolicyEffect) -> Result<Self, BorderError> {
        Ok(Self {
            name: effect.name,
            from: Status::from_wire(effect.from),
            to: Status::from_wire(effect.to),
            connectable_new_before: effect.connectable_new_before,
            connectable_new_after: effect.connectable_new_after,
            connectable_reconnect_before: effect.connectable_reconnect_before,
            connectable_reconnect_after: effect.connectable_reconnect_after,
            reasons: effect
                .reasons
                .into_iter()
                .map(Reason::try_from)
                .collect::<Result<_, _>>()?,
        })
    }
}

pub(super) async fn run(
    command: PoolCommand,
    global: &Global,
    config: &Config,
) -> Result<(), Failure> {
    match command {
        PoolCommand::Show { name } => show(name.unwrap_or_default(), global, config).await,
        PoolCommand::Preview { name, file } => {
            let policy_toml = read(&file)?;
            let mut client = fleet(connect(global, config).await?);
            let request = v1::PreviewPoolRequest { name, policy_toml };
            let changes = client
                .preview_pool(request)
                .await
                .map_err(refused)?
                .into_inner();
            changes_of(changes, global)
        }
        PoolCommand::Set { name, file, force } => {
            let policy_toml = read(&file)?;
            let mut client = fleet(connect(global, config).await?);
            let request = v1::SetPoolRequest {
                name,
                policy_toml,
                force,
            };
            let answer = client
                .set_pool(request)
                .await
                .map_err(refused)?
                .into_inner();
            let pool = PoolView::try_from(answer.pool.unwrap_or_default())?;
            if global.output == Output::Table {
                print(format_args!(
                    "{} is in force for {}\n",
                    pool.revision, pool.name
                ))?;
            }
            changes_of(answer.changes.unwrap_or_default(), global)
        }
    }
}

/// The text of a policy, checked here so that errors name the file.
fn read(file: &Path) -> Result<String, Failure> {
    let limit = u64::try_from(policy::POLICY_MAX_BYTES).unwrap_or(u64::MAX);
    let text = files::read_text(file, limit)?;
    policy::parse(file, &text)?;
    Ok(text)
}

async fn show(name: String, global: &Global, config: &Config) -> Result<(), Failure> {
    let one = !name.is_empty();
    let mut client = fleet(connect(global, config).await?);
    let answer = client
        .list_pools(v1::ListPoolsRequest { name })
        .await
        .map_err(refused)?;
    let pools = answer
        .into_inner()
        .pools
        .into_iter()
        .map(PoolView::try_from)
        .collect::<Result<Vec<_>, _>>()?;
    if global.output == Output::Json {
        return json_line(&pools);
    }
    let mut rows = table(["POOL", "HOSTS", "CONNECTABLE", "POLICY", "SET AT", "SET BY"]);
    for pool in &pools {
        rows.add_row([
            pool.name.clone(),
            pool.hosts.to_string(),
            pool.connectable_new.to_string(),
            pool.revision.clone(),
            pool.set_at.map_or_else(|| "-".to_owned(), render::time),
            pool.set_by.clone(),
        ]);
    }
    print(format_args!("{}\n", rows.trim_fmt()))?;
    match pools.first() {
        Some(pool) if one && !pool.policy.is_empty() => print(format_args!("\n{}\n", pool.policy)),
        _ => Ok(()),
    }
}

fn changes_of(changes: v1::PreviewPoolResponse, global: &Global) -> Result<(), Failure> {
    let (hosts, connectable, turned) = (changes.hosts, changes.connectable, changes.turned_to_no);
    let effects = changes
        .effects
        .into_iter()
        .map(EffectView::try_from)
        .collect::<Result<Vec<_>, _>>()?;
    if global.output == Output::Json {
        return json_line(&json!({
            "hosts": hosts,
            "connectable": connectable,
            "turned_to_no": turned,
            "effects": effects,
        }));
    }
    if effects.is_empty() {
        return print(format_args!("none of {hosts} hosts changes\n"));
    }
    let mut rows = table(["HOST", "FROM", "TO", "NEW", "RECONNECT", "REASON"]);
    let status = |status: Option<Status>| status.map_or("-", Status::title).to_owned();
    let change = |before, after| format!("{} -> {}", yes_no(before), yes_no(after));
    for effect in &effects {
        rows.add_row([
            effect.name.clone(),
            status(effect.from),
            status(effect.to),
            change(effect.connectable_new_before, effect.connectable_new_after),
            change(
                effect.connectable_reconnect_before,
                effect.connectable_reconnect_after,
            ),
            effect.reasons.first().map_or_else(String::new, short),
        ]);
    }
    print(format_args!(
        "{}\n{} of {hosts} hosts change; {turned} of {connectable} connectable ones take somebody no more\n",
        rows.trim_fmt(),
        effects.len()
    ))
}
