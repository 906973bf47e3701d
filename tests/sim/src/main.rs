//! `cargo sim`: runs the simulation, replays a seed, or shows that faults are caught.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use muster_sim::{Broken, Plan, Trace, World, batch, faults, shrink};

/// Lines of a failing run that are shown.
const LINES: usize = 60;
/// Failing seeds that are explained; more are only counted.
const EXPLAINED: usize = 3;

/// Runs Muster's cores in virtual time and checks its invariants after every event.
///
/// Examples:
///   cargo sim                          the default set
///   cargo sim --seeds 10000            a long run
///   cargo sim --seed 42 --trace        one seed, told line by line
///   cargo sim --faults                 shows that deliberate faults are caught
#[derive(Parser, Debug)]
#[command(name = "cargo sim", verbatim_doc_comment)]
struct Cli {
    /// So many seeds
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Only this seed
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Virtual minutes of each run
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Print readable lines as they happen (with --seed)
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Keep only these faults of the seed's plan, by their numbers: 0,3 (with --seed)
    #[arg(long, requires = "seed", value_delimiter = ',')]
    only: Option<Vec<usize>>,
    /// Keep only so many hosts of the seed's plan (with --seed)
    #[arg(long, requires = "seed")]
    hosts: Option<usize>,
    /// End after so many virtual seconds (with --seed)
    #[arg(long, requires = "seed")]
    until: Option<u64>,
    /// Stop at the first run that breaks an invariant, and only name it
    #[arg(long)]
    first: bool,
    /// Build the core with each deliberate fault, and show that it is caught; or with this one
    #[arg(long, num_args = 0..=1, value_name = "NAME")]
    faults: Option<Option<String>>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody to tell it to is no reason to fail otherwise.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    if let Some(only) = &cli.faults {
        return match faults::run(only.as_deref()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("cargo sim: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let each = Duration::from_secs(60 * cli.minutes);
    match cli.seed {
        Some(seed) => one(&cli, seed, each),
        None => many(&cli, each),
    }
}

fn many(cli: &Cli, each: Duration) -> ExitCode {
    let total = batch::run(cli.from, cli.seeds, each, cli.first);
    for (number, (seed, broken)) in total.broken.iter().enumerate() {
        println!("seed {seed}: {broken}");
        if number < EXPLAINED && !cli.first {
            explain(&Plan::of(*seed, each), broken, cli.minutes);
        }
    }
    println!("{}", total.summary(each));
    if total.broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn one(cli: &Cli, seed: u64, each: Duration) -> ExitCode {
    let until = cli.until.map(Duration::from_secs);
    let plan = shrink::cut(Plan::of(seed, each), cli.only.as_deref(), cli.hosts, until);
    println!("seed {seed}: {}", plan.summary());
    for (number, fault) in plan.faults.iter().enumerate() {
        println!("  fault {number}: {fault}");
    }
    let trace = if cli.trace {
        Trace::telling(true)
    } else {
        Trace::quiet()
    };
    let (result, _) = World::new(plan.clone(), trace).run();
    match result {
        Ok(ran) => {
            println!(
                "all invariants held: {} events, {} answers judged, trace {:016x}",
                ran.events, ran.verdicts, ran.hash
            );
            ExitCode::SUCCESS
        }
        Err(broken) => {
            println!("seed {seed}: {broken}");
            if !cli.trace {
                last_lines(&plan);
            }
            ExitCode::FAILURE
        }
    }
}

/// The last lines of a failing run, how to replay it, and a smaller one.
fn explain(plan: &Plan, broken: &Broken, minutes: u64) {
    println!("{}", plan.summary());
    last_lines(plan);
    println!(
        "replay: cargo sim --minutes {minutes} --seed {} --trace",
        plan.seed
    );
    let small = shrink::shrink(plan, broken.clone());
    println!(
        "smaller: {}; {}",
        small.plan.summary(),
        small
            .plan
            .faults
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ")
    );
    println!("         {}", small.broken);
    let only: Vec<String> = small.only.iter().map(ToString::to_string).collect();
    let until = small.plan.until.map_or_else(String::new, |until| {
        format!(" --until {}", until.as_secs() + 1)
    });
    let only = if only.is_empty() {
        String::new()
    } else {
        format!(" --only {}", only.join(","))
    };
    println!(
        "replay: cargo sim --minutes {minutes} --seed {}{only} --hosts {}{until} --trace",
        plan.seed, small.plan.hosts
    );
}

fn last_lines(plan: &Plan) {
    let (_, trace) = World::new(plan.clone(), Trace::telling(false)).run();
    let skip = trace.lines.len().saturating_sub(LINES);
    for line in trace.lines.iter().skip(skip) {
        println!("  {line}");
    }
}
