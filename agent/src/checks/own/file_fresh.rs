//! `file_fresh`: a file that something should keep writing.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Outcome, Remedy},
};
use muster_runtime::config::HumanDuration;

use super::{
    Definition, OneAtATime, Place, Wrong, cannot_run, definition, pass, seen,
    size::{Amount, shown},
};

definition! {
    /// Keys of `kind = "file_fresh"`.
    FileFresh {
        /// The file.
        path: PathBuf,
        /// It fails when it was last written longer ago.
        max_age: HumanDuration,
        /// It fails when it is smaller.
        min_size: Option<Amount>,
        #[serde(skip)]
        asked: OneAtATime,
    }
}

/// What is wrong with a path, if anything.
pub(super) fn wrong_path(path: &Path) -> Option<Wrong> {
    let value = format!("{path:?}");
    (!path.is_absolute()).then(|| ("path", value, "an absolute path".to_owned()))
}

impl Definition for FileFresh {
    const KIND: &'static str = "file_fresh";

    fn wrong(&self) -> Option<Wrong> {
        let share = self
            .min_size
            .filter(|size| matches!(size, Amount::Share(_)));
        let allowed = "bytes such as \"1KiB\"".to_owned();
        wrong_path(&self.path)
            .or_else(|| share.map(|share| ("min_size", share.to_string(), allowed)))
    }

    fn look<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Observation> {
        async {
            let path = self.path.clone();
            let asked = self
                .asked
                .ask(place.budget, move || {
                    let metadata = std::fs::metadata(path)?;
                    let written = metadata.modified()?;
                    // One of the future is as fresh as can be; `clock` looks at the clock.
                    let age = SystemTime::now()
                        .duration_since(written)
                        .unwrap_or_default();
                    Ok((age, metadata.len()))
                })
                .await;
            let subject = self.path.display().to_string();
            match asked {
                Ok((age, size)) => self.judge(&subject, age, size),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => seen(
                    Outcome::Fail,
                    &subject,
                    "FILE_MISSING",
                    format!("{subject} is not there"),
                    Vec::new(),
                    Some(Remedy::text(
                        "See whether what writes it runs and may write there.",
                    )),
                ),
                Err(error) => cannot_run(
                    &subject,
                    "FILE_NOT_ASKED",
                    format!("the age of {subject} cannot be told: {error}"),
                    Remedy::text("See whether the agent may enter the folder."),
                ),
            }
        }
        .boxed()
    }
}

impl FileFresh {
    fn judge(&self, subject: &str, age: Duration, size: u64) -> Observation {
        let age = Duration::from_secs(age.as_secs());
        let step = format!(
            "{} was written {} ago and has {}",
            subject,
            HumanDuration(age),
            shown(size)
        );
        let remedy = || Remedy::text("See whether what writes it still runs; its log says more.");
        let fails = |code, message| {
            let steps = vec![step.clone()];
            seen(Outcome::Fail, subject, code, message, steps, Some(remedy()))
        };
        let least = self.min_size.map_or(0, |size| size.of(0));
        if age > self.max_age.0 {
            let (age, max) = (HumanDuration(age), self.max_age);
            let message = format!("{subject} was written {age} ago, more than {max}");
            fails("FILE_STALE", message)
        } else if size < least {
            let message = format!("{subject} has {}, less than {}", shown(size), shown(least));
            fails("FILE_TOO_SMALL", message)
        } else {
            pass(subject, "FILE_FRESH", step.clone(), vec![step])
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::testing::{look, refused};
    use super::*;

    #[tokio::test]
    async fn a_file_is_fresh_stale_too_small_or_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump");
        let keys = format!(
            "kind = 'file_fresh'\npath = '{}'\nmax_age = '1h'",
            path.display()
        );
        let code = async |keys: &str| look(keys).await.findings[0].code.clone();
        assert_eq!(code(&keys).await, "FILE_MISSING");
        let file = File::create(&path).unwrap();
        assert_eq!(code(&keys).await, "FILE_FRESH");
        assert_eq!(
            code(&format!("{keys}\nmin_size = '1B'")).await,
            "FILE_TOO_SMALL"
        );
        let old = SystemTime::now() - Duration::from_secs(2 * 3600);
        file.set_modified(old).unwrap();
        assert_eq!(code(&keys).await, "FILE_STALE");
        assert_eq!(look(&keys).await.outcome, Outcome::Fail);
    }

    #[test]
    fn keys_are_checked() {
        assert!(refused("kind = 'file_fresh'\npath = 'a'\nmax_age = '1h'").contains("absolute"));
    }
}
