//! Proves DCS-T1 … DCS-T14 as far as the suite says and one server can.

use crate::harness::RedisHarness;
use hathi_dcs::conformance::servers::NEED_THREE;
use hathi_dcs::conformance::{Harness, run_all, table};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_with_one_server() {
    let harness: Arc<dyn Harness> = RedisHarness::new();
    let summary = run_all(harness).await;
    assert_eq!(summary.impossible(), NEED_THREE);
    table::check("redis", &summary);
}
