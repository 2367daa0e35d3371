//! Proves DCS-T1 … DCS-T14 as far as the suite says, with one server and with three.

use crate::harness::RealConsul;
use hathi_dcs::conformance::servers::judge;
use hathi_dcs::conformance::table;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consul_with_one_server() {
    judge(RealConsul(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consul_with_three_servers() {
    table::check("consul", &judge(RealConsul(3)).await);
}
