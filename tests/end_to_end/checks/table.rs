//! `docs/checks.md` has every cause that the checks tell, and for each a test that exists.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Result, ensure};
use muster_tests::binaries::repository;

const CHECKS: [&str; 6] = [
    "session_listener",
    "domain",
    "domain_reachable",
    "monitoring_agent",
    "metadata_service",
    "urls",
];

/// Words of this shape that are no cause, or stand for success alone.
const OTHERS: [&str; 1] = ["CARGO_PKG_VERSION"];

fn is_code(text: &str) -> bool {
    text.contains('_') && text.len() > 6 && text.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

/// Codes in the source at `path`, without its tests.
fn codes(path: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(path)?;
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let literals = code.split('"');
    let found = literals.filter(|text| is_code(text) && !OTHERS.contains(text));
    Ok(found.map(str::to_owned).collect())
}

#[test]
fn the_table_of_checks_is_the_codes() -> Result<()> {
    let source = repository().join("agent/src");
    let mut told = BTreeSet::new();
    for file in fs::read_dir(source.join("checks"))? {
        let name = file?.file_name().to_string_lossy().into_owned();
        let is_of_a_check = CHECKS.iter().any(|check| name.starts_with(check));
        if is_of_a_check && !name.ends_with("_tests.rs") {
            told.append(&mut codes(&source.join("checks").join(name))?);
        }
    }
    for probe in fs::read_dir(source.join("probe"))? {
        told.append(&mut codes(&probe?.path())?);
    }
    let mut tests = String::new();
    for module in fs::read_dir(repository().join("tests/end_to_end/checks"))? {
        tests += &fs::read_to_string(module?.path())?;
    }
    let document = fs::read_to_string(repository().join("docs/checks.md"))?;
    let mut documented = BTreeSet::new();
    let mut shown = 0;
    for row in document
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("| `"))
    {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        ensure!(cells.len() == 7 && CHECKS.contains(&cells[0]), "{row}");
        documented.insert(cells[1].trim_matches('`').to_owned());
        let test = cells[6].trim_matches(['`', ' ', '|']);
        let is_there = if test.starts_with("tests/") {
            let code = cells[1].trim_matches('`');
            fs::read_to_string(repository().join(test))?.contains(code)
        } else {
            tests.contains(&format!("fn {test}("))
        };
        ensure!(is_there, "there is no test {test} of {}", cells[1]);
        shown += 1;
    }
    let difference: Vec<_> = told.symmetric_difference(&documented).collect();
    ensure!(
        difference.is_empty(),
        "in the code or in the table alone: {difference:?}"
    );
    ensure!(shown >= 30, "only {shown} causes are told apart");
    Ok(())
}
