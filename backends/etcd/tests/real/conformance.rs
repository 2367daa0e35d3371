//! Proves DCS-T1 … DCS-T14 as far as the suite says, on every kind of etcd we can start.

use crate::harness::EtcdHarness;
use hathi_dcs::conformance::servers::NEED_THREE;
use hathi_dcs::conformance::{Harness, Summary, run_all, table};
use hathi_test_support::EtcdVersion;
use std::sync::Arc;

async fn suite(version: EtcdVersion, members: usize) -> Summary {
    let harness: Arc<dyn Harness> = EtcdHarness::new(version, members);
    run_all(harness).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_34_with_one_member() {
    assert_eq!(suite(EtcdVersion::V34, 1).await.impossible(), NEED_THREE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_35_with_one_member() {
    assert_eq!(suite(EtcdVersion::V35, 1).await.impossible(), NEED_THREE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_34_with_three_members() {
    assert_eq!(suite(EtcdVersion::V34, 3).await.impossible(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_35_with_three_members() {
    let summary = suite(EtcdVersion::V35, 3).await;
    assert_eq!(summary.impossible(), [""; 0]);
    table::check("etcd3", &summary);
}
