//! Proves DCS-T1 … DCS-T14 as far as the suite says and one server can.

use crate::harness::RealRedis;
use hathi_dcs::conformance::servers::judge;
use hathi_dcs::conformance::table;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_with_one_server() {
    table::check("redis", &judge(RealRedis).await);
}
