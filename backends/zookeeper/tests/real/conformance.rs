//! Proves DCS-T1 … DCS-T14 as far as the suite says, with one server and with three.

use crate::harness::ZooKeeperHarness;
use hathi_dcs::conformance::servers::NEED_THREE;
use hathi_dcs::conformance::{Harness, Summary, run_all, table};
use std::sync::Arc;

async fn suite(members: usize) -> Summary {
    let harness: Arc<dyn Harness> = ZooKeeperHarness::new(members);
    run_all(harness).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zookeeper_with_one_server() {
    assert_eq!(suite(1).await.impossible(), NEED_THREE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zookeeper_with_three_servers() {
    let summary = suite(3).await;
    assert_eq!(summary.impossible(), [""; 0]);
    table::check("zookeeper", &summary);
}
