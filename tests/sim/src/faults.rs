//! Shows that the simulation can fail: builds the core with one deliberate fault at a time, and
//! expects an invariant to break.
//!
//! A fault is a patch file under `tests/sim/faults`. Its first line says what it breaks and which
//! invariants may catch it, in this form:
//! `# What is wrong. Invariants: 1, 7. Minutes: 10.`

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

/// Seeds that are tried before a fault counts as not caught.
const SEEDS: u32 = 3000;

/// A deliberate fault.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Name of its file.
    pub name: String,
    /// What is wrong.
    pub what: String,
    /// Invariants that may catch it.
    pub invariants: Vec<u8>,
    /// Virtual minutes that it takes.
    pub minutes: u64,
    /// The file.
    pub path: PathBuf,
}

/// The repository that this crate stands in.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All faults, by name.
///
/// # Errors
/// If one cannot be read, or its first line does not say what it must.
pub fn all() -> anyhow::Result<Vec<Fault>> {
    let folder = repository().join("tests/sim/faults");
    let mut faults = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "patch")
        {
            faults.push(read(&path).with_context(|| format!("{}", path.display()))?);
        }
    }
    faults.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(faults)
}

fn read(path: &Path) -> anyhow::Result<Fault> {
    let text = fs::read_to_string(path)?;
    let first = text.lines().next().unwrap_or_default();
    let line = first
        .strip_prefix("# ")
        .context("the first line must begin with '# '")?;
    let (what, rest) = line
        .split_once(" Invariants: ")
        .context("no invariants are named")?;
    let (invariants, minutes) = rest
        .split_once(". Minutes: ")
        .context("no minutes are named")?;
    Ok(Fault {
        name: path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        what: what.to_owned(),
        invariants: invariants
            .split(", ")
            .map(str::parse)
            .collect::<Result<_, _>>()
            .context("invariants are numbers")?,
        minutes: minutes
            .trim_end_matches('.')
            .parse()
            .context("minutes are a number")?,
        path: path.to_owned(),
    })
}

/// Does the patch apply to the core as it is?
///
/// # Errors
/// What git says about it.
pub fn check(fault: &Fault) -> anyhow::Result<()> {
    let output = Command::new("git")
        .args(["apply", "--check"])
        .arg(&fault.path)
        .current_dir(repository())
        .output()
        .context("run git")?;
    ensure!(
        output.status.success(),
        "{} does not apply: {}",
        fault.name,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Builds the core with each fault and runs until an invariant breaks. `only` names one.
///
/// # Errors
/// If a fault does not apply or build, or is not caught by an invariant that its patch names.
pub fn run(only: Option<&str>) -> anyhow::Result<()> {
    let work = repository().join("target/sim-faults");
    let mut failed = Vec::new();
    for fault in all()? {
        if only.is_some_and(|only| only != fault.name) {
            continue;
        }
        match try_one(&fault, &work) {
            Ok(Some(caught)) => println!("caught      {:34} {caught}", fault.name),
            Ok(None) => {
                println!("NOT CAUGHT  {:34} {}", fault.name, fault.what);
                failed.push(fault.name);
            }
            Err(error) => {
                println!("FAILED      {:34} {error:#}", fault.name);
                failed.push(fault.name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("not caught: {}", failed.join(", "));
    }
    Ok(())
}

/// The invariant that caught it; none if none did.
fn try_one(fault: &Fault, work: &Path) -> anyhow::Result<Option<String>> {
    check(fault)?;
    lay_out(work)?;
    let applied = Command::new("git")
        .args(["apply", "--whitespace=nowarn"])
        .arg(&fault.path)
        .current_dir(work)
        // Outside of any repository paths are as they stand in the patch.
        .env("GIT_CEILING_DIRECTORIES", work.parent().unwrap_or(work))
        .status()
        .context("run git")?;
    ensure!(applied.success(), "the patch does not apply to a copy");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--offline", "--package", "muster-sim"])
        .current_dir(work)
        .env("CARGO_TARGET_DIR", work.join("target"))
        .env_remove("RUSTFLAGS")
        .output()
        .context("run cargo")?;
    ensure!(
        built.status.success(),
        "does not build: {}",
        String::from_utf8_lossy(&built.stderr)
    );
    let ran = Command::new(work.join("target/debug/muster-sim"))
        .args(["--first", "--seeds", &SEEDS.to_string()])
        .args(["--minutes", &fault.minutes.to_string()])
        .output()
        .context("run the faulty simulation")?;
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    // What it panics at is caught too.
    let line = said.lines().find(|line| line.starts_with("seed "));
    let Some(line) = line else {
        return Ok(None);
    };
    let invariant = line
        .split_once("invariant ")
        .and_then(|(_, rest)| rest.split([',', ':']).next()?.parse::<u8>().ok())
        .with_context(|| format!("cannot read {line:?}"))?;
    ensure!(
        fault.invariants.contains(&invariant),
        "caught by another invariant than it names: {line}"
    );
    Ok(Some(line.to_owned()))
}

/// A workspace of its own with copies of the core and of this crate. Files that are as they were
/// keep their times, so that only what differs is built anew.
fn lay_out(work: &Path) -> anyhow::Result<()> {
    let root = repository();
    copy(&root.join("core"), &work.join("core"))?;
    copy(&root.join("tests/sim/src"), &work.join("sim/src"))?;
    copy_file(
        &root.join("tests/sim/Cargo.toml"),
        &work.join("sim/Cargo.toml"),
    )?;
    copy_file(&root.join("Cargo.lock"), &work.join("Cargo.lock"))?;
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let manifest: String = manifest
        .lines()
        .map(|line| {
            let members = "members = [\"core\", \"sim\"]";
            format!(
                "{}\n",
                if line.starts_with("members = ") {
                    members
                } else {
                    line
                }
            )
        })
        .collect();
    write_if_other(&work.join("Cargo.toml"), manifest.as_bytes())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            copy_file(&path, &target)?;
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    write_if_other(to, &bytes)
}

fn write_if_other(to: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(to, bytes).with_context(|| format!("write {}", to.display()))
}
