//! Proves DCS-T1 … DCS-T14 as far as the suite says, on every kind of etcd we can start.

use crate::harness::EtcdHarness;
use hathi_dcs::conformance::{Harness, Summary, run_all};
use hathi_test_support::EtcdVersion;
use std::sync::Arc;

async fn suite(version: EtcdVersion, members: usize) -> Summary {
    let harness: Arc<dyn Harness> = EtcdHarness::new(version, members);
    run_all(harness).await
}

/// What a single server cannot suffer: one of three gone, a minority cut off.
fn only_the_faults_of_three(summary: &Summary) {
    let names: Vec<_> = summary.could_not.iter().map(|(name, _)| *name).collect();
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
async fn etcd_34_with_one_member() {
    only_the_faults_of_three(&suite(EtcdVersion::V34, 1).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_35_with_one_member() {
    only_the_faults_of_three(&suite(EtcdVersion::V35, 1).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_34_with_three_members() {
    assert!(suite(EtcdVersion::V34, 3).await.could_not.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_35_with_three_members() {
    assert!(suite(EtcdVersion::V35, 3).await.could_not.is_empty());
}
