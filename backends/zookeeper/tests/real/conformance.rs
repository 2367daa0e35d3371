//! Proves DCS-T1 … DCS-T14 as far as the suite says, with one server and with three.

use crate::harness::RealZooKeeper;
use hathi_dcs::conformance::servers::judge;
use hathi_dcs::conformance::table;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zookeeper_with_one_server() {
    judge(RealZooKeeper(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zookeeper_with_three_servers() {
    table::check("zookeeper", &judge(RealZooKeeper(3)).await);
}
