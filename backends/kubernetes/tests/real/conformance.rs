//! Proves DCS-T1 … DCS-T14 as far as the suite says, with Endpoints and ConfigMaps, one API server and
//! three.

use crate::harness::RealKubernetes;
use hathi_dcs::conformance::servers::on;
use hathi_dcs::conformance::{run_some, table};

/// No member goes with a lease, and no record is bytes under a key.
const NEVER: [&str; 2] =
    ["records::the_bytes_are_patronis", "records::a_member_record_lives_on_the_lease"];

/// Proves DCS-175 and DCS-176 (`watching::…`: what wakes, 410, restarts), DCS-301 (every call by its
/// deadline), DCS-170 (`lock::an_abandoned_lock_…`).
///
/// Proves DCS-178 and DCS-072 (one server after the other) in the one way that counts: one of three
/// found behind the service is killed or stands still, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_with_endpoints() {
    let harness = on(RealKubernetes { servers: 1, endpoints: true });
    let mut summary = run_some(harness, |name| !name.starts_with("faults::one_")).await;
    assert_eq!(summary.impossible(), NEVER);
    let harness = on(RealKubernetes { servers: 3, endpoints: true });
    let of_three = run_some(harness, |name| name.starts_with("faults::one_")).await;
    assert_eq!(of_three.impossible(), [""; 0]);
    summary.passed.extend(of_three.passed);
    summary.ran_on.extend(of_three.ran_on.iter().map(|servers| format!("one of three: {servers}")));
    table::check("kubernetes", &summary);
}

/// What does not depend on the servers, in the other layout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_with_config_maps() {
    let harness = on(RealKubernetes { servers: 1, endpoints: false });
    let healthy = |name: &str| {
        let faulty = ["survives", "second_bootstrap"].iter().any(|word| name.contains(word));
        !faulty && !name.starts_with("outage::") && !name.starts_with("faults::")
    };
    assert_eq!(run_some(harness, healthy).await.impossible(), NEVER);
}
