//! A machine with plugins of a test's own.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_agent::{checks::own, config::Config};
use muster_core::agent::Observation;
use rustix::process::Pid;
use tempfile::TempDir;

/// One machine with scripts and a file of checks.
pub(crate) struct Machine {
    folder: TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Plugins run as nobody, who must get there and write what they want to tell the test.
        mode(folder.path(), 0o755);
        for (name, bits) in [("checks.d", 0o755), ("said", 0o777), ("data", 0o700)] {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            mode(&path, bits);
        }
        Self { folder }
    }

    pub(crate) fn said(&self, name: &str) -> PathBuf {
        self.folder.path().join("said").join(name)
    }

    /// A plugin of this text; `SAID` in it is the folder that it may write to.
    pub(crate) fn script(&self, text: &str) -> String {
        let path = self.folder.path().join("plugin");
        let said = self.folder.path().join("said").display().to_string();
        fs::write(
            &path,
            format!("#!/bin/bash\n{}", text.replace("SAID", &said)),
        )
        .unwrap();
        mode(&path, 0o755);
        format!("command = {path:?}")
    }

    /// From now on everybody can change the plugin.
    pub(crate) fn open_to_all(&self) {
        mode(&self.folder.path().join("plugin"), 0o777);
    }

    pub(crate) fn check(
        &self,
        keys: &str,
        budget: Duration,
    ) -> impl Future<Output = Observation> + use<> {
        let folder = self.folder.path().join("checks.d");
        let text = format!("[[check]]\nname = 'mine'\nkind = 'exec'\n{keys}\n");
        fs::write(folder.join("a.toml"), text).unwrap();
        let config = Config {
            keeper: env!("CARGO_BIN_EXE_muster-agent").into(),
            data_dir: self.folder.path().join("data"),
            ..Config::default()
        };
        let own = own::load(&folder).unwrap();
        let check = own.iter().next().unwrap().make(&config, budget);
        async move { check.run().await }
    }

    /// Every process that wrote its id to a file in `said`.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let files = fs::read_dir(self.folder.path().join("said")).unwrap();
        let text = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
        text.filter_map(|text| Pid::from_raw(text.trim().parse().ok()?))
            .collect()
    }
}

fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
}
