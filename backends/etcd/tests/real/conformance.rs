//! Proves DCS-T1 … DCS-T14 as far as the suite says, on every kind of etcd we can start.

use crate::harness::RealEtcd;
use hathi_dcs::conformance::servers::judge;
use hathi_dcs::conformance::table;
use hathi_test_support::EtcdVersion;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_34_with_one_member() {
    judge(RealEtcd { version: EtcdVersion::V34, members: 1 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_35_with_one_member() {
    judge(RealEtcd { version: EtcdVersion::V35, members: 1 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_34_with_three_members() {
    judge(RealEtcd { version: EtcdVersion::V34, members: 3 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_35_with_three_members() {
    table::check("etcd3", &judge(RealEtcd { version: EtcdVersion::V35, members: 3 }).await);
}
