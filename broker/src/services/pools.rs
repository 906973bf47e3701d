//! Pools: their policies, what a change would do, and putting it in force.
//!
//! A change and its preview are the same computation: every host of the pool judged under both
//! policies at one instant. A change that turns more than a tenth of the connectable hosts to no
//! is refused unless it is forced.

use std::{collections::BTreeSet, path::Path};

use muster_core::{
    host::{Assessment, Context, Facts, assess},
    model::{PoolName, PoolPolicy, Status as HostStatus},
};
use muster_proto::{border::timestamp, v1};
use muster_runtime::{
    clock,
    refusal::{self, Refusal},
};
use tonic::Status;

use super::{FleetEdge, access::Caller, invalid, refuse, stalled, store_failed};
use crate::{
    policy::{self, PolicyRecord},
    registry::Registry,
    store::{Applied, Batch, decode, encode, keys},
};

/// Hosts named in one preview.
const EFFECTS_MAX: usize = 1000;
/// Of the connectable hosts, this part at most may turn to no without force: one in ten.
const UNFORCED_PART: usize = 10;

impl FleetEdge {
    /// The pools that have hosts or a policy, or the one of that name.
    pub(super) async fn pools(&self, name: &str) -> Result<Vec<v1::Pool>, Status> {
        let records = self.policy_records().await?;
        let mut names: BTreeSet<PoolName> = records.iter().map(|(name, _)| name.clone()).collect();
        names.insert(PoolName::default_pool());
        for cell in self.registry.page(None, usize::MAX, |_| true) {
            names.insert(cell.published().snapshot.facts.identity.pool.clone());
        }
        if !name.is_empty() {
            if !names.iter().any(|known| known.as_str() == name) {
                return Err(unknown_pool(&self.registry, name));
            }
            names.retain(|known| known.as_str() == name);
        }
        names
            .into_iter()
            .map(|name| {
                let record = records.iter().find(|(known, _)| *known == name);
                self.pool(&name, record.map(|(_, record)| record))
            })
            .collect()
    }

    fn pool(&self, name: &PoolName, record: Option<&PolicyRecord>) -> Result<v1::Pool, Status> {
        let mut pool = v1::Pool {
            name: name.to_string(),
            policy_toml: record.map(|record| record.toml.clone()).unwrap_or_default(),
            revision: self.registry.policy(name).revision.clone(),
            set_at: record.map(|record| timestamp(record.set_at)),
            set_by: record
                .map(|record| record.set_by.clone())
                .unwrap_or_default(),
            hosts: 0,
            connectable_new: 0,
        };
        self.judge_all(name, |_, facts, context| {
            pool.hosts += 1;
            pool.connectable_new += u32::from(assess(facts, context).connectable_new);
        })?;
        Ok(pool)
    }

    /// Every host of the pool with what judges it now.
    fn judge_all(
        &self,
        pool: &PoolName,
        mut look: impl FnMut(&crate::registry::Question, &Facts, &Context<'_>),
    ) -> Result<(), Status> {
        let cells = self.registry.page(None, usize::MAX, |published| {
            published.snapshot.facts.identity.pool == *pool
        });
        for cell in cells {
            let question = self
                .registry
                .question(&cell)
                .map_err(|error| stalled(&self.registry, error))?;
            look(
                &question,
                &question.published.snapshot.facts,
                &question.context(),
            );
        }
        Ok(())
    }

    async fn policy_records(&self) -> Result<Vec<(PoolName, PolicyRecord)>, Status> {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut records = Vec::new();
            for (key, value) in store.scan(keys::POOLS, usize::MAX, false)? {
                let name = String::from_utf8_lossy(&key[keys::POOLS.len()..]).into_owned();
                if let Ok(name) = PoolName::new(&name) {
                    records.push((name, decode::<PolicyRecord>(&key, &value)?));
                }
            }
            Ok::<_, crate::store::StoreError>(records)
        });
        read.await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| store_failed(&self.registry))
    }

    /// The pool and the policy that a request names.
    pub(super) fn policy_for(
        &self,
        name: &str,
        toml: &str,
    ) -> Result<(PoolName, PoolPolicy), Status> {
        let pool = PoolName::new(name).map_err(|error| {
            refuse(
                &self.registry,
                Refusal::new(refusal::NAME_INVALID, error.to_string()),
            )
        })?;
        let policy = policy::parse(Path::new("policy"), toml).map_err(|error| {
            refuse(
                &self.registry,
                Refusal::new(refusal::POLICY_INVALID, error.to_string()),
            )
        })?;
        Ok((pool, policy))
    }

    /// What the policy would change, once hosts had their time to answer: without the grace that
    /// newly required checks have.
    pub(super) fn preview(
        &self,
        pool: &PoolName,
        policy: &PoolPolicy,
    ) -> Result<v1::PreviewPoolResponse, Status> {
        let mut changes = v1::PreviewPoolResponse::default();
        self.judge_all(pool, |question, facts, context| {
            let before = assess(facts, context);
            let after = assess(facts, &question.context_under(policy));
            changes.hosts += 1;
            if takes_somebody(&before) {
                changes.connectable += 1;
                changes.turned_to_no += u32::from(
                    before.connectable_new && !after.connectable_new
                        || before.connectable_reconnect && !after.connectable_reconnect,
                );
            }
            let same = |assessed: &Assessment| {
                (
                    assessed.status,
                    assessed.connectable_new,
                    assessed.connectable_reconnect,
                )
            };
            if same(&before) != same(&after) && changes.effects.len() < EFFECTS_MAX {
                changes.effects.push(effect(facts, &before, &after));
            }
        })?;
        Ok(changes)
    }

    /// Puts a policy in force. Called one at a time.
    pub(super) async fn set(
        &self,
        caller: &Caller,
        request: &v1::SetPoolRequest,
    ) -> Result<v1::SetPoolResponse, Status> {
        let (pool, policy) = self.policy_for(&request.name, &request.policy_toml)?;
        let changes = self.preview(&pool, &policy)?;
        let (turned, connectable) = (changes.turned_to_no, changes.connectable);
        let part = u32::try_from(UNFORCED_PART).unwrap_or(u32::MAX);
        if turned.saturating_mul(part) > connectable && !request.force {
            let message = format!(
                "{turned} of {connectable} connectable hosts of {pool} would take nobody any more; \
                 see them with: muster-broker pool preview {pool} FILE; force it with --force"
            );
            let refusal = Refusal::new(refusal::POLICY_TOO_SHARP, message)
                .with("turned_to_no", turned.to_string())
                .with("connectable", connectable.to_string());
            return Err(refuse(&self.registry, refusal));
        }
        let key = keys::pool(&pool);
        let stored = self
            .store
            .get(&key)
            .map_err(|_| store_failed(&self.registry))?;
        let before: Option<PolicyRecord> = match &stored {
            Some(bytes) => Some(decode(&key, bytes).map_err(|_| store_failed(&self.registry))?),
            None => None,
        };
        let now = clock::now().wall;
        let policy = policy.taking_over(&self.registry.policy(&pool), now);
        let record = PolicyRecord {
            toml: request.policy_toml.clone(),
            number: before.map_or(1, |before| before.number.saturating_add(1)),
            set_at: now,
            set_by: caller.name.to_string(),
            newly_fatal: policy.newly_fatal.clone(),
        };
        let policy = PoolPolicy {
            revision: record.revision(pool.as_str()),
            ..policy
        };
        let batch = Batch {
            require: vec![(key.clone(), stored)],
            write: vec![(key, Some(encode(&record)))],
        };
        // It may turn a no into a yes: first durable, then it acts.
        match self.registry.queue().commit(batch).await {
            Ok(Applied::Yes) => {}
            Ok(Applied::Conflict) | Err(_) => return Err(store_failed(&self.registry)),
        }
        self.registry.set_policy(&pool, policy);
        let pool = Some(self.pool(&pool, Some(&record))?);
        Ok(v1::SetPoolResponse {
            pool,
            changes: Some(changes),
        })
    }
}

fn takes_somebody(assessed: &Assessment) -> bool {
    assessed.connectable_new || assessed.connectable_reconnect
}

fn effect(facts: &Facts, before: &Assessment, after: &Assessment) -> v1::PolicyEffect {
    let word = |status: HostStatus| v1::HostStatus::from(status) as i32;
    v1::PolicyEffect {
        name: facts.identity.name.to_string(),
        from: word(before.status),
        to: word(after.status),
        connectable_new_before: before.connectable_new,
        connectable_new_after: after.connectable_new,
        connectable_reconnect_before: before.connectable_reconnect,
        connectable_reconnect_after: after.connectable_reconnect,
        reasons: after.reasons.iter().map(Into::into).collect(),
    }
}

fn unknown_pool(registry: &Registry, name: &str) -> Status {
    match PoolName::new(name) {
        Ok(_) => {
            let message =
                format!("there is no pool {name}; a pool begins with its first token or policy");
            refuse(
                registry,
                Refusal::new(refusal::POOL_UNKNOWN, message).with("pool", name),
            )
        }
        Err(error) => invalid(registry, "name", error.to_string()),
    }
}
