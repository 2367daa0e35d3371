//! The deterministic simulator: the core's real code in a world of models, virtual time and seeded
//! faults. (section 7 of docs/design.md)
//!
//! ```text
//! cargo test -p hathi-simulation               optimised, and nothing else of hathi is built
//! SIM_SEED=4711                                replays one seed and prints its trace
//! SIM_SEED=4711 SIM_KEEP=3,17                  the same with only these of its planned faults
//! SIM_SEEDS=20000                              runs so many (default 2,000; scripts/test: 10,000),
//!                                              SIM_FROM=n from n on
//! SIM_THREADS=2                                on so many threads
//! SIM_REPLAY=1                                 records and runs again every turn of every seed
//! SIM_UNGUARDED=1                              without the guard, as some deliberate breakages run
//! SIM_BREAKAGE=Restart                         only the breakages with this in their name
//! UPDATE_TRANSCRIPTS=1                         rewrites tests/simulation/transcripts
//! ```

#[cfg(feature = "own-core")]
extern crate hathi_core as hathi;

mod agent;
#[cfg(feature = "breakages")]
mod bites;
#[cfg(feature = "breakages")]
mod branches;
mod clocks;
mod dcs_port;
mod executor;
mod failsafe;
mod faults;
mod invariants;
mod looks;
mod operators;
mod patroni;
mod patroni_failsafe;
mod pause;
mod plan;
mod postgres_port;
mod random;
mod replays;
mod requests;
mod server;
mod shrink;
mod stalls;
mod standby;
mod store;
mod stores;
mod synchronous;
mod total;
mod transcript;
mod wal;
mod watchdog;
mod world;

use plan::Case;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What came of one run.
struct Run {
    failed: Option<(String, String)>,
    hash: u64,
    trace: Vec<String>,
    /// How often each fault struck, and whatever else is counted.
    faults: BTreeMap<&'static str, u64>,
    counted: BTreeMap<&'static str, u64>,
    /// The numbers of the planned faults that struck.
    struck: Vec<usize>,
    /// Ended with nobody allowed to lead; with two timelines that cannot be told apart.
    nobody_eligible: bool,
    twins: bool,
}

fn run_seed(seed: u64, tracing: bool) -> Run {
    run(&Case::of(seed), tracing)
}

fn run(case: &Case, tracing: bool) -> Run {
    let world = case.world(tracing);
    let mut executor = executor::Executor::new(world.clone());
    executor.run_until(plan::RUN);
    if world.lock().unwrap().failed.is_none() {
        world.lock().unwrap().check_end();
    }
    drop(executor);
    let mut world = world.lock().unwrap();
    let world = &mut *world;
    world.counted.insert("commits acknowledged", world.watched.commits);
    world.counted.insert("promotions", world.watched.promotions);
    world.counted.insert("turns recorded and run again", world.watched.replayed);
    Run {
        failed: world.failed.clone(),
        hash: world.hash,
        trace: std::mem::take(&mut world.trace),
        faults: std::mem::take(&mut world.faults),
        counted: std::mem::take(&mut world.counted),
        struck: std::mem::take(&mut world.struck),
        nobody_eligible: world.watched.nobody_eligible,
        twins: world.watched.twins,
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The checkout.
fn root() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    if cfg!(feature = "own-core") { package.join("../..") } else { package }
}

/// Under random faults; each ends the run that breaks it (invariants.rs, operators.rs).
/// Proves INV-2, INV-4, INV-5, INV-8, INV-12, INV-13, INV-17, INV-18, INV-20, INV-21, INV-22, INV-24.
/// Proves INV-25, INV-26, INV-27, INV-29, INV-30, INV-33, INV-34, INV-36, INV-37, INV-38, INV-39.
#[test]
fn seeds() {
    match std::env::var("SIM_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => replay_one(seed),
        None => total::run_all(number("SIM_FROM", 1), number("SIM_SEEDS", 2_000)),
    }
}

fn replay_one(seed: u64) {
    let keep = std::env::var("SIM_KEEP").ok();
    let keep =
        keep.map(|text| text.split(',').filter_map(|word| word.trim().parse().ok()).collect());
    let guarded = std::env::var_os("SIM_UNGUARDED").is_none();
    let run = run(&Case { keep, guarded, ..Case::of(seed) }, true);
    println!("{}", run.trace.join("\n"));
    assert_eq!(run.failed, None, "seed {seed}");
}

/// Proves HA-320 and INV-32: every turn of a run, whatever goes wrong in it, replays from its
/// recording to the identical line, reasons, task, effects and memory.
#[test]
fn every_turn_replays() {
    let mut replayed = 0;
    for seed in (1..=8).map(|seed| seed * 60) {
        let run = run_seed(seed, false);
        assert_eq!(run.failed, None, "seed {seed}");
        replayed += run.counted["turns recorded and run again"];
    }
    println!("{replayed} turns replayed");
    assert!(replayed > 2_000, "{replayed} turns were recorded");
}

/// Proves INV-32: the same seed gives the same run, to the last event.
#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2, 3, 500] {
        let (first, second) = (run_seed(seed, false), run_seed(seed, true));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_ne!(first.hash, run_seed(seed + 1, false).hash);
    }
}
