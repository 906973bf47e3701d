//! Tables in `docs/` say what the code says.

use std::fs;

use anyhow::{Context, Result, ensure};
use muster_agent::checks::own;
use muster_broker::config::Config as BrokerConfig;
use muster_core::model::ReasonCode;
use muster_runtime::refusal::{self, Reaction};
use muster_tests::{agent::Agent, binaries::repository};

/// Compares the rows below the ruler of the table `docs/NAME` with these.
fn compare(name: &str, ruler: &str, rows: impl Iterator<Item = String>) -> Result<()> {
    let path = repository().join("docs").join(name);
    let documented = fs::read_to_string(&path)?;
    let (head, _) = documented.split_once(ruler).unwrap_or((&documented, ""));
    let rows: String = rows.map(|row| row + "\n").collect();
    let expected = format!("{head}{ruler}{rows}");
    let wanted = repository().join("target").join(name);
    fs::write(&wanted, &expected)?;
    ensure!(
        documented == expected,
        "the table differs from the code: cp {} {}",
        wanted.display(),
        path.display()
    );
    Ok(())
}

#[test]
fn the_table_of_reasons_is_the_codes() -> Result<()> {
    let rows = ReasonCode::ALL.iter().map(|info| {
        let remedy = info.remedy.unwrap_or("told with the reason");
        format!("| `{}` | {} | {remedy} |", info.code, info.meaning)
    });
    compare("reasons.md", "| --- | --- | --- |\n", rows)
}

#[test]
fn the_table_of_refusals_is_the_codes() -> Result<()> {
    let rows = refusal::REASONS.iter().map(|info| {
        let reaction = match info.reaction {
            Reaction::Retry => "tries again with backoff",
            Reaction::RetrySlowly => {
                "tries again at the slowest pace and says that an administrator must act"
            }
            Reaction::GiveUp => "gives up what it asked for",
        };
        format!(
            "| `{}` | {:?} | {} | {reaction} |",
            info.reason, info.code, info.meaning
        )
    });
    compare("refusals.md", "| --- | --- | --- | --- |\n", rows)
}

/// A sample with its examples switched on: each `# key = value` loses its mark.
fn with_examples(name: &str) -> Result<String> {
    let text = fs::read_to_string(repository().join("deploy").join(name))?;
    let is_example = |line: &&str| {
        let key = line.split(" = ").next().unwrap_or_default();
        line.contains(" = ") && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let lines = text.lines().map(|line| {
        let example = line.strip_prefix("# ").filter(is_example);
        example.unwrap_or(line).to_owned() + "\n"
    });
    Ok(lines.collect())
}

#[test]
fn the_brokers_sample_configuration_is_read_and_shows_the_defaults() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("broker.toml");
    fs::write(&path, with_examples("broker.toml")?)?;
    BrokerConfig::load(&path, true).context("with its examples")?;

    let sample = repository().join("deploy/broker.toml");
    let sample = format!("{:?}", BrokerConfig::load(&sample, true)?);
    let default = format!("{:?}", BrokerConfig::default());
    ensure!(sample == default, "{sample} is not {default}");
    Ok(())
}

#[test]
fn every_kind_of_own_check_is_documented_and_has_an_example_that_is_read() -> Result<()> {
    let document = fs::read_to_string(repository().join("docs/own-checks.md"))?;
    let (_, table) = document
        .split_once("| kind | keys | fails with |")
        .context("the table of kinds")?;
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut documented: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    let mut kinds: Vec<&str> = own::kinds().collect();
    documented.sort_unstable();
    kinds.sort_unstable();
    ensure!(documented == kinds, "{documented:?} are not {kinds:?}");

    // Each cause is made to happen by a test.
    let mut tests = String::new();
    for place in [
        "tests/end_to_end/checks/own.rs",
        "tests/end_to_end/own_checks.rs",
        "tests/end_to_end/checks/urls.rs",
        "tests/system-units",
        "agent/tests/own_checks/main.rs",
    ] {
        tests += &fs::read_to_string(repository().join(place))?;
    }
    let causes = table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .flat_map(|row| row.split('`'))
        .filter(|word| {
            word.contains('_') && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        });
    let unshown: Vec<_> = causes.filter(|cause| !tests.contains(cause)).collect();
    ensure!(unshown.is_empty(), "no test shows {unshown:?}");

    let folder = tempfile::tempdir()?;
    let sample = fs::read_to_string(repository().join("deploy/checks.d/examples.toml"))?;
    let examples = sample.lines().filter_map(|line| {
        let example = line.strip_prefix("# ")?;
        (example.starts_with('[') || example.contains(" = ")).then(|| example.to_owned() + "\n")
    });
    fs::write(
        folder.path().join("examples.toml"),
        examples.collect::<String>(),
    )?;
    let own = own::load(folder.path())?;
    let mut shown: Vec<&str> = own.iter().map(|own| own.kind).collect();
    shown.sort_unstable();
    shown.dedup();
    ensure!(shown == kinds, "{shown:?} are not {kinds:?}");
    Ok(())
}

#[tokio::test]
async fn the_agents_sample_configuration_is_read() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Its folders are the system's: only the rest is tried.
    let is_own = |line: &&str| !line.starts_with("data_dir") && !line.starts_with("control_socket");
    let text = with_examples("agent.toml")?;
    let text: Vec<&str> = text.lines().filter(is_own).collect();
    let agent = Agent::of_this_machine(folder.path(), "sample", &text.join("\n"))?;
    let output = agent
        .cli(&["doctor", "--check", "session_listener"])
        .await?;
    ensure!(output.code != Some(78), "{output:?}");
    Ok(())
}

#[test]
fn figures_of_the_swarm_are_of_runs_that_can_be_repeated() -> Result<()> {
    let listed = std::process::Command::new(repository().join("tests/swarm"))
        .arg("--list")
        .output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let document = fs::read_to_string(repository().join("docs/measured.md"))?;
    let (_, figures) = document
        .split_once("<!-- swarm -->")
        .context("where the swarm's figures begin")?;
    let shown: Vec<&str> = figures
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    let runs: Vec<&str> = listed.lines().collect();
    let unknown: Vec<&&str> = shown.iter().filter(|run| !runs.contains(run)).collect();
    ensure!(
        !shown.is_empty() && unknown.is_empty(),
        "{shown:?} are not of {runs:?}"
    );
    Ok(())
}
