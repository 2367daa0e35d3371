//! The deterministic simulator: the core's real code in a world of models, virtual time and seeded
//! faults. (section 7 of docs/design.md)
//!
//! ```text
//! SIM_SEED=4711   replays one seed and prints its trace
//! SIM_SEEDS=20000 runs so many (default 2,000), SIM_FROM=n beginning with n
//! SIM_UNGUARDED=1 without the guard, as some deliberate breakages run
//! SIM_BREAKAGE=Restart only the deliberate breakages with this in their name
//! UPDATE_TRANSCRIPTS=1 rewrites tests/simulation/transcripts
//! ```

mod agent;
#[cfg(feature = "breakages")]
mod bites;
mod dcs_port;
mod executor;
mod failsafe;
mod faults;
mod invariants;
mod operators;
mod postgres_port;
mod random;
mod replays;
mod server;
mod store;
mod synchronous;
mod transcript;
mod wal;
mod watchdog;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What came of one run.
struct Run {
    failed: Option<(String, String)>,
    hash: u64,
    trace: Vec<String>,
    faults: BTreeMap<&'static str, u64>,
    commits: u64,
    promotions: u64,
    /// Turns that were recorded and run again.
    replayed: u64,
    /// Ended with nobody allowed to lead; with two timelines that cannot be told apart.
    nobody_eligible: bool,
    twins: bool,
}

fn run_seed(seed: u64, tracing: bool) -> Run {
    run(faults::random_run(seed, tracing, std::env::var_os("SIM_UNGUARDED").is_none()))
}

fn run(world: world::Shared) -> Run {
    let mut executor = executor::Executor::new(world.clone());
    executor.run_until(faults::RUN);
    if world.lock().unwrap().failed.is_none() {
        world.lock().unwrap().check_end();
    }
    drop(executor);
    let mut world = world.lock().unwrap();
    Run {
        failed: world.failed.clone(),
        hash: world.hash,
        trace: std::mem::take(&mut world.trace),
        faults: std::mem::take(&mut world.faults),
        commits: world.watched.commits,
        promotions: world.watched.promotions,
        replayed: world.watched.replayed,
        nobody_eligible: world.watched.nobody_eligible,
        twins: world.watched.twins,
    }
}

/// Over all seeds.
#[derive(Default)]
struct Total {
    faults: BTreeMap<&'static str, u64>,
    commits: u64,
    promotions: u64,
    replayed: u64,
    nobody_eligible: Vec<u64>,
    twins: Vec<u64>,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The readable end of a failing run.
fn explain(seed: u64, tail: usize) -> String {
    let again = run_seed(seed, true);
    let (rule, what) = again.failed.unwrap_or_default();
    let from = again.trace.len().saturating_sub(tail);
    format!(
        "seed {seed} breaks {rule}: {what}\n{}\nreplay: SIM_SEED={seed} cargo test --test simulation \
         seeds -- --nocapture\n",
        again.trace[from..].join("\n")
    )
}

/// Under random faults; each ends the run that breaks it (invariants.rs, operators.rs).
/// Proves INV-2, INV-4, INV-5, INV-8, INV-13, INV-17, INV-18, INV-20, INV-21, INV-22, INV-24.
/// Proves INV-29, INV-33, INV-34.
#[test]
fn seeds() {
    if let Some(seed) = std::env::var("SIM_SEED").ok().and_then(|text| text.parse().ok()) {
        let run = run_seed(seed, true);
        println!("{}", run.trace.join("\n"));
        assert_eq!(run.failed, None, "seed {seed}");
        return;
    }
    let (from, count) = (number("SIM_FROM", 1), number("SIM_SEEDS", 2_000));
    let next = AtomicU64::new(from);
    let failed: Mutex<BTreeMap<u64, (String, String)>> = Mutex::default();
    let total: Mutex<Total> = Mutex::default();
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..number("SIM_THREADS", 2) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= from + count {
                        return;
                    }
                    let run = run_seed(seed, false);
                    let mut total = total.lock().unwrap();
                    for (fault, times) in run.faults {
                        *total.faults.entry(fault).or_default() += times;
                    }
                    total.commits += run.commits;
                    total.promotions += run.promotions;
                    total.replayed += run.replayed;
                    total.nobody_eligible.extend(run.nobody_eligible.then_some(seed));
                    total.twins.extend(run.twins.then_some(seed));
                    if let Some(why) = run.failed {
                        failed.lock().unwrap().insert(seed, why);
                    }
                }
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    let Total { faults, commits, promotions, replayed, nobody_eligible, twins } =
        total.into_inner().unwrap();
    println!("{count} seeds from {from} in {seconds:.1} s, {:.0} a second", count as f64 / seconds);
    println!("{commits} commits acknowledged, {promotions} promotions; faults injected:");
    println!("{replayed:>8}  turns recorded and run again (not a fault)");
    for (fault, times) in faults {
        println!("{times:>8}  {fault}");
    }
    println!("ended with nobody whom the rules allow to lead: {nobody_eligible:?}");
    println!("ended by two timelines of one number that no agent could tell apart: {twins:?}");
    let failed = failed.into_inner().unwrap();
    let mut by_rule: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (seed, (rule, _)) in &failed {
        by_rule.entry(rule).or_default().push(*seed);
    }
    for (rule, seeds) in &by_rule {
        println!("FAILED {rule}: {} seeds: {:?}", seeds.len(), &seeds[..seeds.len().min(12)]);
    }
    if let Some(seed) = failed.keys().next() {
        panic!("{} of {count} seeds fail; the first:\n{}", failed.len(), explain(*seed, 60));
    }
}

/// Proves HA-320 and INV-32: every turn of a run, whatever goes wrong in it, replays from its
/// recording to the identical line, reasons, task, effects and memory.
#[test]
fn every_turn_replays() {
    let mut replayed = 0;
    for seed in (1..=8).map(|seed| seed * 60) {
        let run = run_seed(seed, false);
        assert_eq!(run.failed, None, "seed {seed}");
        replayed += run.replayed;
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
