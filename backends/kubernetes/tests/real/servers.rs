//! What others do to the objects, and API servers found behind the service.

use crate::harness::{config, member};
use hathi_dcs::conformance::soon;
use hathi_dcs::{Dcs, Deadline};
use hathi_kubernetes::KubernetesConfig;
use hathi_test_support::kubernetes::MEMBER;
use hathi_test_support::{Kubernetes, KubernetesOptions};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Proves DCS-173, DCS-044: a stranger who touches the leader's object again and again costs nobody the
/// lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_storm_of_conflicts_is_outlived() {
    let kubernetes = Arc::new(Kubernetes::start(KubernetesOptions::default()).await);
    let config = KubernetesConfig { use_endpoints: true, ..config(&kubernetes) };
    let alpha = member(&kubernetes, config.clone(), "golden", "alpha");
    let beta = member(&kubernetes, config, "golden", "beta");
    alpha.acquire_leader(soon()).await.expect("free");
    let over = Arc::new(AtomicBool::new(false));
    let touching = {
        let (kubernetes, over) = (kubernetes.clone(), over.clone());
        tokio::task::spawn_blocking(move || {
            let path = "/api/v1/namespaces/default/endpoints/golden";
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                count += 1;
                let body = json!({"metadata": {"annotations": {"touched": count.to_string()}}});
                kubernetes.api("PATCH", path, Some(&body)).expect("healthy");
            }
            count
        })
    };
    for _ in 0..40 {
        alpha.renew_leader(soon()).await.expect("nobody else's name stands there");
        let lost = beta.acquire_leader(soon()).await;
        assert!(lost.is_err_and(|error| error.says_not_owner()), "it is held");
    }
    over.store(true, Ordering::Relaxed);
    let count = touching.await.expect("touched");
    assert!(count > 5, "touched {count} times only");
}

/// Proves DCS-178: who may not read the servers' addresses goes on with the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bypassing_needs_a_right() {
    let kubernetes = Kubernetes::start(KubernetesOptions::default()).await;
    kubernetes.announce();
    let config = KubernetesConfig { bypass_api_service: true, ..config(&kubernetes) };
    let alpha = member(&kubernetes, config.clone(), "golden", "alpha");
    alpha.acquire_leader(soon()).await.expect("free");
    kubernetes.allow("default", &[("configmaps", "*"), ("pods", "*")]);
    kubernetes.write_token(MEMBER);
    let beta = member(&kubernetes, config, "golden", "beta");
    let lost = beta.acquire_leader(soon()).await;
    assert!(lost.as_ref().is_err_and(hathi_dcs::DcsError::says_not_owner), "{lost:?}");
}

/// Proves DCS-302: a renewal gets through when the API server in use hangs, and it is one renewal only:
/// the second sending finds the version changed and looks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_renewal_is_sent_to_another_one_as_well() {
    let options = KubernetesOptions { servers: 2, proxied: true };
    let kubernetes = Kubernetes::start(options).await;
    let config = KubernetesConfig { bypass_api_service: true, ..config(&kubernetes) };
    let alpha = member(&kubernetes, config.clone(), "golden", "alpha");
    let beta = member(&kubernetes, config, "golden", "beta");
    alpha.acquire_leader(soon()).await.expect("free");
    alpha.renew_leader(soon()).await.expect("mine");
    for which in [0, 1] {
        kubernetes.proxy(which).hold_answers(true);
        let began = Instant::now();
        let renewed = alpha.renew_leader(Deadline::in_ms(6_000)).await;
        let took = began.elapsed();
        renewed.unwrap_or_else(|error| panic!("{which}, after {took:?}: {error}"));
        assert!(took < Duration::from_millis(5_000), "{took:?}");
        kubernetes.proxy(which).hold_answers(false);
    }
    let lost = beta.acquire_leader(soon()).await;
    assert!(lost.as_ref().is_err_and(hathi_dcs::DcsError::says_not_owner), "{lost:?}");
}
