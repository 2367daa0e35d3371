//! What the Role has to allow, what is said when it does not, and tokens that rotate.

use crate::harness::{config, member};
use futures::{FutureExt, StreamExt};
use hathi_dcs::conformance::soon;
use hathi_dcs::{
    Dcs, DcsError, Deadline, Expect, Failover, Failsafe, Freshness, History, MemberData, Status,
    Sync,
};
use hathi_kubernetes::{Kubernetes as Backend, KubernetesConfig, missing_rights};
use hathi_test_support::kubernetes::{ADMIN, MEMBER};
use hathi_test_support::{Kubernetes, KubernetesOptions};
use serde_json::Map;
use std::sync::Arc;
use std::time::Duration;

async fn start() -> Kubernetes {
    let kubernetes = Kubernetes::start(KubernetesOptions::default()).await;
    kubernetes.write_token(MEMBER);
    kubernetes
}

fn refused<T: std::fmt::Debug>(answer: Result<T, DcsError>) -> String {
    let Err(DcsError::Refused { why, .. }) = answer else { panic!("{answer:?}, not Refused") };
    assert!(!why.contains('\n'), "one line: {why}");
    why
}

pub async fn everything(dcs: &Backend) {
    let what = "the Role allows it";
    dcs.write_initialize("", Expect::Absent, soon()).await.expect(what);
    dcs.write_initialize("7711483843506703379", Expect::Anything, soon()).await.expect(what);
    dcs.write_config(&Map::new(), Expect::Anything, soon()).await.expect(what);
    dcs.acquire_leader(soon()).await.expect(what);
    dcs.write_status(&Status::default(), soon()).await.expect(what);
    dcs.write_failsafe(&Failsafe::default(), soon()).await.expect(what);
    dcs.write_member(&MemberData::default(), soon()).await.expect(what);
    dcs.renew_leader(soon()).await.expect(what);
    let sync = Sync { leader: Some("alpha".into()), ..Sync::default() };
    dcs.write_sync(&sync, Expect::Absent, soon()).await.expect(what);
    dcs.delete_sync(Expect::Anything, soon()).await.expect(what);
    dcs.write_failover(&Failover::default(), Expect::Anything, soon()).await.expect(what);
    dcs.write_history(&History::default(), soon()).await.expect(what);
    let view = dcs.load(Freshness::Latest, soon()).await.expect(what);
    assert_eq!(view.leader_name(), Some(&"alpha".into()));
    dcs.release_leader(None, soon()).await.expect(what);
}

/// Proves DCS-309 (what is missing is said at start) and section 9.2: these rights are enough, and each of them is needed; the missing one is named.
/// The Service (DCS-152) is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_smallest_role_is_enough() {
    let kubernetes = start().await;
    for kind in ["endpoints", "configmaps"] {
        let config = KubernetesConfig { use_endpoints: kind == "endpoints", ..config(&kubernetes) };
        let scope = format!("scope-{kind}");
        kubernetes.allow(
            "default",
            &[(kind, "create get list patch watch"), ("pods", "list patch watch")],
        );
        let dcs = member(&kubernetes, config.clone(), &scope, "alpha");
        everything(&dcs).await;
        let remove = dcs.delete_cluster(soon()).await;
        assert!(refused(remove).contains(&format!(r#"verb "deletecollection" on "{kind}""#)));
        kubernetes
            .api("DELETE", "/api/v1/namespaces/default/pods/alpha?gracePeriodSeconds=0", None)
            .expect("a Pod goes");

        let by = || Deadline::in_ms(5_000);
        assert_eq!(missing_rights(config.clone(), by()).await, Ok(vec![]));
        kubernetes.allow("default", &[(kind, "get list watch"), ("pods", "list watch")]);
        let lacking = [format!("create {kind}"), format!("patch {kind}"), "patch pods".to_owned()];
        assert_eq!(missing_rights(config.clone(), by()).await, Ok(lacking.to_vec()));

        // Who may not watch looks for himself.
        kubernetes.allow("default", &[(kind, "create get list patch"), ("pods", "list patch")]);
        let blind = member(&kubernetes, config.clone(), &format!("blind-{kind}"), "alpha");
        let mut wakes = blind.watch();
        everything(&blind).await;
        let watched = blind.load(Freshness::Watched, soon()).await.expect("it is read");
        assert!(watched.is_unlocked(), "as of now");
        assert!(wakes.next().now_or_never().is_none(), "nothing wakes it");
        kubernetes
            .api("DELETE", "/api/v1/namespaces/default/pods/alpha?gracePeriodSeconds=0", None)
            .expect("a Pod goes");

        for (resource, verb) in [
            (kind, "create"),
            (kind, "get"),
            (kind, "list"),
            (kind, "patch"),
            ("pods", "list"),
            ("pods", "patch"),
        ] {
            let left = |name: &str, verbs: &str| {
                let verbs = verbs.split(' ').filter(|v| (name, *v) != (resource, verb));
                verbs.collect::<Vec<_>>().join(" ")
            };
            let objects = left(kind, "create get list patch watch");
            let pods = left("pods", "list patch watch");
            kubernetes.allow("default", &[(kind, &objects), ("pods", &pods)]);
            let scope = format!("{kind}-{resource}-{verb}");
            let me = format!("{kind}-{resource}-{verb}");
            let dcs = member(&kubernetes, config.clone(), &scope, &me);
            let by = || Deadline::in_ms(1_200);
            let mut said = Vec::new();
            let mut add = |answer: Result<(), DcsError>| {
                if let Err(error) = answer {
                    assert!(!error.says_not_owner(), "{error}");
                    said.push(error.to_string());
                }
            };
            add(dcs.load(Freshness::Latest, by()).await.map(drop));
            add(dcs.write_config(&Map::new(), Expect::Absent, by()).await.map(drop));
            add(dcs.acquire_leader(by()).await);
            add(dcs.write_member(&MemberData::default(), by()).await);
            add(dcs.write_history(&History::default(), by()).await);
            add(dcs.renew_leader(by()).await);
            let wanted = format!(r#"the verb "{verb}" on "{resource}" in namespace "default""#);
            assert!(said.iter().any(|line| line.contains(&wanted)), "{wanted}: {said:?}");
        }
    }
}

/// Proves DCS-045 (403 on the leader's object alone is asked again), DCS-046, DCS-T8: rights withdrawn
/// under the holder say nothing about the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_come_back_cost_nothing() {
    let kubernetes = Arc::new(start().await);
    kubernetes.allow(
        "default",
        &[("configmaps", "create get list patch watch"), ("pods", "list patch watch")],
    );
    let dcs = member(&kubernetes, config(&kubernetes), "golden", "alpha");
    dcs.acquire_leader(soon()).await.expect("free");
    kubernetes.unbind("default");
    let why = refused(dcs.renew_leader(Deadline::in_ms(1_200)).await);
    assert!(why.contains(r#"the verb "patch" on "configmaps""#), "{why}");
    let asked_again = {
        let kubernetes = kubernetes.clone();
        tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(800));
            kubernetes.bind("default");
        })
    };
    dcs.renew_leader(soon()).await.expect("the right came back within the call");
    asked_again.await.expect("bound");
}

/// Proves DCS-177 and DCS-307 (a token that is not taken is read again at once).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_token_is_read_again() {
    let kubernetes = Arc::new(start().await);
    kubernetes.write_token("expired");
    let dcs = member(&kubernetes, config(&kubernetes), "golden", "alpha");
    let why = refused(dcs.acquire_leader(Deadline::in_ms(3_000)).await);
    assert!(why.contains("is the token still valid?"), "{why}");
    let rotating = {
        let kubernetes = kubernetes.clone();
        tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(500));
            kubernetes.write_token(ADMIN);
        })
    };
    dcs.acquire_leader(soon()).await.expect("the new token is read within the call");
    rotating.await.expect("written");
    dcs.renew_leader(soon()).await.expect("mine");
}
