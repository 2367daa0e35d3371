//! Proof that the search for a second primary bites: without fencing there is one, and it is found.

use hathi_test_support::chaos::{Fault, Mode, Options, Schedule, Verdict, run};
use hathi_test_support::{Agent, Network, Store};
use std::sync::Arc;
use std::time::Duration;

/// Proves HA-177: `guard.mode: off`, the primary's agent frozen for longer than its lease: the chaos run must end
/// with «two writers». With the guard the same run is clean.
pub async fn without_a_guard_two_writers_are_found(network: Arc<Network>, store: Store) {
    assert_eq!(verdict_of(network, store, false).await, Verdict::TwoWriters);
}

pub async fn with_the_guard_the_same_run_is_clean(network: Arc<Network>, store: Store) {
    assert_eq!(verdict_of(network, store, true).await, Verdict::Clean);
}

/// One fault: the agent of the primary stands still, well past its lease.
async fn verdict_of(network: Arc<Network>, store: Store, guard: bool) -> Verdict {
    let only = vec![Fault::PrimaryAgentFrozen];
    let long = |seed: &u64| {
        let first = Schedule::new(*seed, only.clone()).next();
        first.is_some_and(|step| step.hold >= Duration::from_secs(30))
    };
    let seed = (0..).find(long).expect("a seed with a long fault");
    let options = Options {
        seed,
        lasts: Duration::from_millis(1),
        store,
        mode: Mode::Async,
        agent: Agent::Hathi,
        hathi: env!("CARGO_BIN_EXE_hathi").to_owned(),
        guard,
        only,
        wall_clocks: false,
    };
    let outcome = run(network, &options, &|line| println!("    {line}")).await;
    println!("    verdict: {} {:?}", outcome.verdict, outcome.why);
    outcome.verdict
}
