//! A broker that cannot start says why in one clear line, and leaves its data as it found them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use muster_broker::store::{Batch, EmbeddedStore, Store as _, keys};
use muster_tests::{
    broker::{Broker, Folder, Settings},
    process::{self, Output},
    wait,
};
use tokio::net::TcpListener;

/// Runs `muster-broker serve`, which must fail, and gives what it said.
async fn fails_to_start(folder: &Folder) -> Result<Output> {
    let output = process::run(folder.command(&["serve"])?, wait::PATIENCE).await?;
    ensure!(output.code.is_some_and(|code| code != 0), "{output:?}");
    ensure!(!output.stderr.contains("panicked"), "{output:?}");
    Ok(output)
}

/// Asserts that one line of the error output has all these parts.
fn says(output: &Output, parts: &[&str]) -> Result<()> {
    let line = output
        .stderr
        .lines()
        .find(|line| parts.iter().all(|part| line.contains(part)));
    ensure!(
        line.is_some(),
        "no line with all of {parts:?} in: {}",
        output.stderr
    );
    Ok(())
}

fn fresh(more: &str) -> Result<Folder> {
    let folder = Folder::temporary()?;
    let settings = Settings {
        more: more.to_owned(),
        ..Settings::default()
    };
    folder.write_config(&settings, "127.0.0.1:0", "127.0.0.1:0")?;
    Ok(folder)
}

#[tokio::test]
async fn a_typo_is_named_with_file_line_key_and_the_nearest_key() -> Result<()> {
    let folder = fresh("intervall = \"1s\"\n")?;
    let text = fs::read_to_string(folder.config())?;
    let line = text.lines().count();
    let place = format!("{}:{line}", folder.config().display());
    let output = fails_to_start(&folder).await?;
    says(&output, &[&place, "`intervall`", "liveness", "`interval`"])?;
    ensure!(output.code == Some(78), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn a_value_out_of_range_is_named_with_what_is_allowed() -> Result<()> {
    let folder = Folder::temporary()?;
    let settings = Settings {
        interval: std::time::Duration::from_millis(50),
        ..Settings::default()
    };
    folder.write_config(&settings, "127.0.0.1:0", "127.0.0.1:0")?;
    let output = fails_to_start(&folder).await?;
    says(&output, &["broker.toml", "interval", "50ms", "100ms"])
}

#[tokio::test]
async fn a_missing_configuration_is_named() -> Result<()> {
    let folder = fresh("")?;
    fs::remove_file(folder.config())?;
    says(&fails_to_start(&folder).await?, &["broker.toml"])
}

#[tokio::test]
async fn a_port_in_use_is_named() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    let address = taken.local_addr()?.to_string();
    let folder = Folder::temporary()?;
    folder.write_config(&Settings::default(), &address, "127.0.0.1:0")?;
    says(&fails_to_start(&folder).await?, &[&address, "in use"])?;
    folder.write_config(&Settings::default(), "127.0.0.1:0", &address)?;
    says(&fails_to_start(&folder).await?, &[&address, "in use"])
}

#[tokio::test]
async fn a_data_folder_that_cannot_be_written_is_named() -> Result<()> {
    let folder = fresh("")?;
    // A file where the folder should be: refused to root as well, unlike missing permissions.
    fs::write(folder.data(), "")?;
    let data = folder.data().display().to_string();
    says(&fails_to_start(&folder).await?, &[&data])?;
    if !rustix::process::geteuid().is_root() {
        fs::remove_file(folder.data())?;
        fs::create_dir(folder.data())?;
        fs::set_permissions(folder.data(), fs::Permissions::from_mode(0o500))?;
        says(&fails_to_start(&folder).await?, &[&data])?;
        fs::set_permissions(folder.data(), fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

#[tokio::test]
async fn a_second_broker_on_the_same_data_is_refused() -> Result<()> {
    let broker = Broker::start().await?;
    let folder = broker.folder();
    folder.write_config(&broker.settings, "127.0.0.1:0", "127.0.0.1:0")?;
    let output = fails_to_start(folder).await?;
    says(&output, &[&folder.data().display().to_string()])?;
    broker.json(&["hosts"]).await?;
    Ok(())
}

/// The one store file in a data folder.
fn store_file(folder: &Folder) -> Result<PathBuf> {
    let mut stores = fs::read_dir(folder.data())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "redb"));
    stores.next().context("no store file")
}

/// Damages the store of a stopped broker and asserts that a start is refused with the file and a
/// word, and that the broker starts again with the store restored. Tells whether the refused start
/// left the file byte for byte.
async fn refuses(damage: impl FnOnce(&Path) -> Result<()>, word: &str) -> Result<bool> {
    let mut broker = Broker::start().await?;
    let token = broker.token("default", None, 1).await?;
    broker.way_in().enrol(&token, "host-1").await?;
    broker.stop().await?;
    let store = store_file(broker.folder())?;
    let whole = fs::read(&store)?;
    damage(&store)?;
    let damaged = fs::read(&store)?;
    let output = fails_to_start(broker.folder()).await?;
    says(&output, &[&store.display().to_string(), word])?;
    let untouched = fs::read(&store)? == damaged;

    fs::write(&store, whole)?;
    broker.start_again().await?;
    broker.verdict("host-1").await?;
    Ok(untouched)
}

#[tokio::test]
async fn a_store_cut_in_half_is_refused() -> Result<()> {
    let cut = |store: &Path| {
        let bytes = fs::read(store)?;
        Ok(fs::write(store, &bytes[..bytes.len() / 2])?)
    };
    ensure!(refuses(cut, "damaged").await?, "it was changed");
    Ok(())
}

#[tokio::test]
async fn an_empty_store_is_refused() -> Result<()> {
    ensure!(
        refuses(|store| Ok(fs::write(store, "")?), "empty").await?,
        "it was changed"
    );
    Ok(())
}

#[tokio::test]
async fn a_store_with_flipped_bytes_is_refused() -> Result<()> {
    let flip = |store: &Path| {
        let mut bytes = fs::read(store)?;
        // Some in every page: wherever the data are, some are hit.
        for at in (0..bytes.len()).step_by(512) {
            bytes[at] ^= 0xff;
        }
        Ok(fs::write(store, bytes)?)
    };
    ensure!(refuses(flip, "damaged").await?, "it was changed");
    Ok(())
}

#[tokio::test]
async fn a_store_from_a_newer_version_is_refused() -> Result<()> {
    let age = |store: &Path| {
        let newer = Batch {
            require: Vec::new(),
            write: vec![(keys::FORMAT.to_vec(), Some(b"99".to_vec()))],
        };
        EmbeddedStore::open(store)?.commit(&[newer])?;
        Ok(())
    };
    // The store's library notes in the file's head that it was opened; the contents stay.
    refuses(age, "format 99").await.map(drop)
}

#[tokio::test]
async fn a_store_that_went_missing_is_not_made_anew() -> Result<()> {
    let mut broker = Broker::start().await?;
    let token = broker.token("default", None, 1).await?;
    broker.way_in().enrol(&token, "host-1").await?;
    broker.stop().await?;
    let store = store_file(broker.folder())?;
    let aside = store.with_extension("aside");
    fs::rename(&store, &aside)?;
    says(
        &fails_to_start(broker.folder()).await?,
        &[&store.display().to_string()],
    )?;
    fs::rename(&aside, &store)?;
    broker.start_again().await?;
    broker.verdict("host-1").await?;
    Ok(())
}

#[tokio::test]
async fn usage_errors_exit_64() -> Result<()> {
    let folder = fresh("")?;
    for arguments in [
        &["no-such-command"][..],
        &["check"],
        &["hosts", "--output", "xml"],
    ] {
        let output = process::run(folder.command(arguments)?, wait::PATIENCE).await?;
        ensure!(output.code == Some(64), "{arguments:?}: {output:?}");
    }
    let output = process::run(folder.command(&["--help"])?, wait::PATIENCE).await?;
    ensure!(
        output.code == Some(0) && output.stdout.contains("check"),
        "{output:?}"
    );
    Ok(())
}
