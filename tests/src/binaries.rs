//! The binaries under test: built by cargo when their sources are newer, refused when stale.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::SystemTime,
};

use anyhow::{Context, Result, bail, ensure};

/// Where the binaries are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `muster-broker`.
    pub broker: PathBuf,
    /// `muster-agent`.
    pub agent: PathBuf,
}

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Both binaries, no older than their sources. Builds them with cargo if they are; many processes
/// may ask at once and one builds.
///
/// # Errors
/// When cargo fails, with what it said, or when a binary is still older than a source afterwards.
pub fn fresh() -> Result<Binaries> {
    static READY: OnceLock<Binaries> = OnceLock::new();
    if let Some(ready) = READY.get() {
        return Ok(ready.clone());
    }
    let built = build_if_stale()?;
    Ok(READY.get_or_init(|| built).clone())
}

fn build_if_stale() -> Result<Binaries> {
    let folder = folder_of_builds()?;
    let binaries = Binaries {
        broker: folder.join("muster-broker"),
        agent: folder.join("muster-agent"),
    };
    let lock = File::create(folder.join(".muster-binaries.lock"))
        .with_context(|| format!("cannot write in {}", folder.display()))?;
    lock.lock().context("cannot lock the build folder")?;
    if stale(&binaries.broker)?.is_none() && stale(&binaries.agent)?.is_none() {
        return Ok(binaries);
    }
    cargo_build(&["-p", "muster-broker", "-p", "muster-agent", "--bins"])?;
    for binary in [&binaries.broker, &binaries.agent] {
        if let Some(why) = stale(binary)? {
            bail!("{} is stale: {why}", binary.display());
        }
    }
    Ok(binaries)
}

/// A command that runs a binary under test, with nothing of Muster's in its environment.
#[must_use]
pub fn command(binary: &Path) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(binary);
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("MUSTER_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs `cargo build` with these arguments, with the profile of the running program.
///
/// # Errors
/// When it fails, with what it said.
pub fn cargo_build(arguments: &[&str]) -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet"])
        .args(arguments)
        .current_dir(repository());
    if folder_of_builds()?.ends_with("release") {
        command.arg("--release");
    }
    let output = command.output().context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "cargo build failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// `target/debug` or `target/release`: where the running program was built.
fn folder_of_builds() -> Result<PathBuf> {
    let program = env::current_exe().context("cannot tell where the running program is")?;
    let folder = program.parent().context("the program has no folder")?;
    // Test programs are in `deps` below it.
    Ok(if folder.ends_with("deps") {
        folder.parent().unwrap_or(folder).to_owned()
    } else {
        folder.to_owned()
    })
}

/// Why the binary must be built anew, if it must: cargo's dep-info beside it names its sources.
fn stale(binary: &Path) -> Result<Option<String>> {
    let Ok(built) = modified(binary) else {
        return Ok(Some("there is none".to_owned()));
    };
    let Ok(info) = fs::read_to_string(binary.with_extension("d")) else {
        return Ok(Some("cargo left no list of its sources".to_owned()));
    };
    let sources = info.split_once(": ").map_or("", |(_, sources)| sources);
    for source in split_sources(sources) {
        let Ok(changed) = newest(&source) else {
            return Ok(Some(format!("{} is gone", source.display())));
        };
        if changed > built {
            return Ok(Some(format!("{} is newer", source.display())));
        }
    }
    Ok(None)
}

/// Paths of a make rule: blanks separate, a backslash keeps a blank inside a path.
fn split_sources(line: &str) -> Vec<PathBuf> {
    let kept = line.trim().replace("\\ ", "\0");
    kept.split_whitespace()
        .map(|path| PathBuf::from(path.replace('\0', " ")))
        .collect()
}

/// The last change of a file, or of any file below a folder.
fn newest(path: &Path) -> Result<SystemTime> {
    if !path.is_dir() {
        return modified(path);
    }
    let mut last = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(path)? {
        last = last.max(newest(&entry?.path())?);
    }
    Ok(last)
}

fn modified(path: &Path) -> Result<SystemTime> {
    Ok(fs::metadata(path)?.modified()?)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::{modified, split_sources, stale};

    #[test]
    fn a_binary_older_than_a_source_is_stale() {
        let folder = tempfile::tempdir().unwrap();
        let (binary, source) = (folder.path().join("prog"), folder.path().join("a b.rs"));
        fs::write(&source, "").unwrap();
        fs::write(&binary, "").unwrap();
        let rule = format!(
            "{}: {}\n",
            binary.display(),
            source.display().to_string().replace(' ', "\\ ")
        );
        fs::write(binary.with_extension("d"), rule).unwrap();
        let built = modified(&binary).unwrap();
        let file = fs::File::options().write(true).open(&source).unwrap();
        file.set_modified(built - Duration::from_secs(1)).unwrap();
        assert_eq!(stale(&binary).unwrap(), None);
        file.set_modified(built + Duration::from_secs(1)).unwrap();
        assert!(stale(&binary).unwrap().unwrap().ends_with("is newer"));
        fs::remove_file(&source).unwrap();
        assert!(stale(&binary).unwrap().unwrap().ends_with("is gone"));
    }

    #[test]
    fn blanks_inside_a_path_are_kept() {
        let paths = split_sources("/a/b.rs /c\\ d/e.rs\n");
        assert_eq!(
            paths,
            ["/a/b.rs", "/c d/e.rs"].map(std::path::PathBuf::from)
        );
    }
}
