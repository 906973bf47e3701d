//! Own checks: what this machine's administrator wants looked at, beside what every agent looks at.
//!
//! They stand in `checks.d/*.toml`, which only root can write. A broker may set the pace and the
//! weight of a check that stands there, by its name; what is run and where it looks, it cannot.
//!
//! To add a kind: write its file (keys by [`definition!`], and [`Definition`]), with its test, and
//! add its line to [`KINDS`].

mod clock;
mod disk;
mod exec;
mod file_fresh;
mod grpc;
mod http;
mod load;
mod memory;
mod nagios;
mod process;
mod secure;
mod service;
mod size;
mod tcp;
mod tls;

use std::{
    collections::BTreeMap,
    fmt, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{CheckName, Finding, Outcome, Remedy, UnknownCause},
};
use serde::de::DeserializeOwned;
use toml::{Spanned, de::DeValue};

use super::Check;
use crate::{
    config::{Config, PaceConfig},
    probe::tcp::Problem,
};

pub use load::{LoadError, load};

/// Every kind of own check, one line each.
const KINDS: &[Kind] = &[
    Kind::of::<exec::Exec>(),
    Kind::of::<tcp::Tcp>(),
    Kind::of::<http::Http>(),
    Kind::of::<tls::Tls>(),
    Kind::of::<grpc::Grpc>(),
    Kind::of::<service::Service>(),
    Kind::of::<process::Process>(),
    Kind::of::<disk::Disk>(),
    Kind::of::<memory::Memory>(),
    Kind::of::<clock::Clock>(),
    Kind::of::<file_fresh::FileFresh>(),
];

/// The kinds of own checks.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|kind| kind.name)
}

/// What `checks.d` defines.
#[derive(Clone, Debug, Default)]
pub struct OwnChecks(Vec<OwnCheck>);

impl OwnChecks {
    /// The checks in the order of their files.
    pub fn iter(&self) -> impl Iterator<Item = &OwnCheck> {
        self.0.iter()
    }
}

/// One check that `checks.d` defines.
#[derive(Clone)]
pub struct OwnCheck {
    /// What every kind has.
    pub common: Common,
    /// Its kind.
    pub kind: &'static str,
    make: Arc<dyn Fn(Place) -> Arc<dyn Check> + Send + Sync>,
}

impl fmt::Debug for OwnCheck {
    /// Without the definition: the arguments of a plugin may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnCheck")
            .field("common", &self.common)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl OwnCheck {
    /// The check as it runs. `budget` is the time that a run may take.
    #[must_use]
    pub fn make(&self, config: &Config, budget: Duration) -> Arc<dyn Check> {
        (self.make)(Place {
            name: self.common.name.clone(),
            labels: self.common.labels_shown(),
            budget,
            keeper: config.keeper.clone(),
            locks: config.data_dir.clone(),
        })
    }
}

/// The keys that every kind has.
#[derive(Clone, Debug)]
pub struct Common {
    /// Name of the check.
    pub name: CheckName,
    /// Its pace as far as the file sets it.
    pub pace: PaceConfig,
    /// Words of the administrator, shown with what is found.
    pub labels: BTreeMap<String, String>,
}

impl Common {
    fn labels_shown(&self) -> Option<String> {
        let shown: Vec<_> = self
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        (!shown.is_empty()).then(|| format!("labels: {}", shown.join(", ")))
    }
}

/// Where a check runs.
struct Place {
    name: CheckName,
    labels: Option<String>,
    budget: Duration,
    /// The program that keeps plugins: this one.
    keeper: PathBuf,
    /// Folder of the locks that keep a plugin from running twice at once.
    locks: PathBuf,
}

/// A key with a value that its type allows and its kind does not: key, value, what is allowed.
type Wrong = (&'static str, String, String);

/// What a kind is: the keys of its table, and how it looks.
trait Definition: Keys + DeserializeOwned + Send + Sync + Sized + 'static {
    /// The value of `kind`.
    const KIND: &'static str;

    /// The first value that is not allowed.
    fn wrong(&self) -> Option<Wrong> {
        None
    }

    /// Looks once, and ends within the budget of its place.
    fn look<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Observation>;
}

/// The keys that all kinds have; [`definition!`] writes it.
trait Keys {
    fn common(&self) -> Common;
}

/// The struct of a kind's table, with the keys that all have. (Serde cannot both flatten a shared
/// part and refuse unknown keys.)
macro_rules! definition {
    ($(#[$doc:meta])* $kind:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $kind {
            name: muster_core::model::CheckName,
            #[serde(rename = "kind")]
            _kind: String,
            interval: Option<muster_runtime::config::HumanDuration>,
            timeout: Option<muster_runtime::config::HumanDuration>,
            rise: Option<u32>,
            fall: Option<u32>,
            time_to_live: Option<muster_runtime::config::HumanDuration>,
            #[serde(default)]
            labels: std::collections::BTreeMap<String, String>,
            $($(#[$field_doc])* $field: $type,)*
        }

        impl super::Keys for $kind {
            fn common(&self) -> super::Common {
                super::Common {
                    name: self.name.clone(),
                    pace: crate::config::PaceConfig {
                        interval: self.interval.map(|duration| duration.0),
                        timeout: self.timeout.map(|duration| duration.0),
                        rise: self.rise,
                        fall: self.fall,
                        time_to_live: self.time_to_live.map(|duration| duration.0),
                    },
                    labels: self.labels.clone(),
                }
            }
        }
    };
}
use definition;

/// A registered kind.
struct Kind {
    name: &'static str,
    read: fn(Spanned<DeValue<'_>>) -> Result<Read, toml::de::Error>,
}

/// A definition that was read.
struct Read {
    own: OwnCheck,
    wrong: Option<Wrong>,
}

impl Kind {
    const fn of<D: Definition>() -> Self {
        Self {
            name: D::KIND,
            read: read::<D>,
        }
    }
}

fn read<D: Definition>(table: Spanned<DeValue<'_>>) -> Result<Read, toml::de::Error> {
    let definition = Arc::new(D::deserialize(toml::de::ValueDeserializer::from(table))?);
    Ok(Read {
        wrong: definition.wrong(),
        own: OwnCheck {
            common: definition.common(),
            kind: D::KIND,
            make: Arc::new(move |place| {
                Arc::new(Own {
                    definition: Arc::clone(&definition),
                    place,
                })
            }),
        },
    })
}

/// A check as it runs.
struct Own<D> {
    definition: Arc<D>,
    place: Place,
}

impl<D: Definition> Check for Own<D> {
    fn run(&self) -> BoxFuture<'_, Observation> {
        async {
            let mut seen = self.definition.look(&self.place).await;
            if let Some(labels) = &self.place.labels {
                for finding in &mut seen.findings {
                    finding.steps.insert(0, labels.clone());
                }
            }
            seen
        }
        .boxed()
    }
}

/// All is well.
fn pass(subject: &str, code: &str, message: impl Into<String>, steps: Vec<String>) -> Observation {
    seen(Outcome::Pass, subject, code, message, steps, None)
}

/// An outcome with its one finding.
fn seen(
    outcome: Outcome,
    subject: &str,
    code: &str,
    message: impl Into<String>,
    steps: Vec<String>,
    remedy: Option<Remedy>,
) -> Observation {
    let message = message.into();
    Observation::new(outcome, message.clone()).with(Finding {
        subject: subject.to_owned(),
        code: code.to_owned(),
        message,
        steps,
        remedy,
    })
}

/// What failed at a step of the network.
fn failed(subject: &str, problem: Problem, steps: Vec<String>) -> Observation {
    seen(
        Outcome::Fail,
        subject,
        problem.code,
        problem.message,
        steps,
        Some(problem.remedy),
    )
}

/// The check could not look.
fn cannot_run(subject: &str, code: &str, message: String, remedy: Remedy) -> Observation {
    let outcome = Outcome::Unknown(UnknownCause::CannotRun);
    seen(outcome, subject, code, message, Vec::new(), Some(remedy))
}

/// One question to the kernel at a time: a dead disk or file server may keep one from ever
/// ending, and each such question holds a thread.
#[derive(Clone, Default)]
struct OneAtATime(Arc<AtomicBool>);

impl OneAtATime {
    async fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        question: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if self.0.swap(true, Ordering::AcqRel) {
            return Err(io::Error::other(
                "an earlier look has not ended: the disk or file server does not answer",
            ));
        }
        let asking = Arc::clone(&self.0);
        let asked = tokio::task::spawn_blocking(move || {
            let answer = question();
            asking.store(false, Ordering::Release);
            answer
        });
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {limit:?}: the disk or file server does not answer"),
            )),
        }
    }
}

#[cfg(test)]
mod testing;
