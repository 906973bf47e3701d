//! Own checks as tests write them.

use std::{fs, path::Path, time::Duration};

use muster_core::agent::Observation;

use super::{OwnChecks, load};
use crate::config::Config;

fn read(keys: &str) -> Result<OwnChecks, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("a.toml"),
        format!("[[check]]\nname = 'mine'\n{keys}\n"),
    )
    .unwrap();
    load(folder.path()).map_err(|error| error.to_string())
}

/// What a check with these keys sees.
pub(super) async fn look(keys: &str) -> Observation {
    look_within(keys, Duration::from_secs(8)).await
}

/// The same within another budget.
pub(super) async fn look_within(keys: &str, budget: Duration) -> Observation {
    muster_runtime::tls::install_provider();
    let config = Config {
        data_dir: Path::new("/nonexistent").to_owned(),
        ..Config::default()
    };
    let own = read(keys).unwrap();
    let check = own.iter().next().unwrap().make(&config, budget);
    check.run().await
}

/// Why a check with these keys is refused.
pub(super) fn refused(keys: &str) -> String {
    read(keys).unwrap_err()
}
