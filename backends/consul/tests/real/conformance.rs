//! Proves DCS-T1 … DCS-T14 as far as the suite says, with one server and with three.

use crate::harness::ConsulHarness;
use hathi_dcs::conformance::{Harness, Summary, run_all};
use std::sync::Arc;

async fn suite(members: usize) -> Summary {
    let harness: Arc<dyn Harness> = ConsulHarness::new(members);
    run_all(harness).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consul_with_one_server() {
    let summary = suite(1).await;
    let names: Vec<_> = summary.could_not.iter().map(|(name, _)| *name).collect();
    // What a single server cannot suffer: one of three gone, a minority cut off.
    assert_eq!(
        names,
        [
            "outage::without_quorum_nothing_is_promised",
            "faults::one_killed_follower_costs_nothing",
            "faults::one_killed_leader_costs_nothing",
            "faults::one_paused_follower_costs_nothing",
            "faults::one_paused_leader_costs_nothing",
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consul_with_three_servers() {
    assert!(suite(3).await.could_not.is_empty());
}
