//! The simulation as a test: a fixed set of seeds, some fresh ones, and its own promises.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use muster_sim::{Plan, Trace, World, batch, faults};

const TEN_MINUTES: Duration = Duration::from_secs(600);
/// A few seconds' worth of runs.
const FIXED: u64 = 120;
const FRESH: u64 = 40;

fn hold(first: u64, seeds: u64, each: Duration) {
    let total = batch::run(first, seeds, each, false);
    println!("seeds {first} and on: {}", total.summary(each));
    let broken: Vec<String> = total
        .broken
        .iter()
        .map(|(seed, broken)| format!("cargo sim --seed {seed}: {broken}"))
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert_eq!(total.runs, seeds);
}

#[test]
fn no_invariant_breaks_in_a_fixed_set_of_runs() {
    hold(1, FIXED, TEN_MINUTES);
}

#[test]
fn no_invariant_breaks_in_longer_runs() {
    hold(500_000, 12, 4 * TEN_MINUTES);
}

#[test]
fn no_invariant_breaks_in_fresh_runs() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    hold(
        1_000_000 + since.as_secs() % 1_000_000_000,
        FRESH,
        TEN_MINUTES,
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 14, 77] {
        let run = || {
            World::new(Plan::of(seed, TEN_MINUTES), Trace::quiet())
                .run()
                .0
                .unwrap()
        };
        let (first, second) = (run(), run());
        assert_eq!(
            (first.hash, first.events),
            (second.hash, second.events),
            "seed {seed}"
        );
        let told = World::new(Plan::of(seed, TEN_MINUTES), Trace::telling(false))
            .run()
            .0
            .unwrap();
        assert_eq!(first.hash, told.hash, "telling a run must not change it");
    }
}

#[test]
fn every_deliberate_fault_applies_to_the_core_as_it_is() {
    let faults = faults::all().unwrap();
    assert!(faults.len() >= 12, "{}", faults.len());
    for fault in &faults {
        faults::check(fault).unwrap();
    }
}

#[test]
fn the_page_names_every_deliberate_fault() {
    let page = std::fs::read_to_string(faults::repository().join("docs/simulation.md")).unwrap();
    for fault in faults::all().unwrap() {
        let row = format!("| `{}` | {} |", fault.name, fault.what);
        assert!(page.contains(&row), "docs/simulation.md lacks: {row}");
    }
}

#[test]
fn plans_meet_every_kind_of_fault() {
    let kinds: BTreeSet<String> = (0..2000)
        .flat_map(|seed| Plan::of(seed, TEN_MINUTES).faults)
        .map(|fault| {
            let kind = format!("{:?}", fault.what);
            kind.split('(').next().unwrap_or_default().to_owned()
        })
        .collect();
    assert_eq!(kinds.len(), 35, "{kinds:?}");
}
