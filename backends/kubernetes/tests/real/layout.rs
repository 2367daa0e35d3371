//! The objects as Patroni 4.1.5 was recorded to make them, and what follows the lock.

use crate::harness::{TIMING, config, labels, member};
use hathi_dcs::conformance::soon;
use hathi_dcs::{
    Dcs, Expect, Failover, Failsafe, Freshness, History, MemberData, MemberName, Role, Scope,
    State, Status, Sync, Timing,
};
use hathi_kubernetes::{KubernetesConfig, Port, RoleLabels, open};
use hathi_test_support::{Kubernetes, KubernetesOptions};
use serde_json::{Map, Value, json};

async fn start() -> Kubernetes {
    Kubernetes::start(KubernetesOptions::default()).await
}

/// An object with what the server adds left out, and the moments in it replaced.
fn object(kubernetes: &Kubernetes, path: &str) -> Value {
    let path = format!("/api/v1/namespaces/default/{path}");
    let mut object = kubernetes.api("GET", &path, None).expect("it is there");
    let metadata = object["metadata"].take();
    let mut annotations = metadata["annotations"].clone();
    for moment in ["renewTime", "acquireTime"] {
        if let Some(text) = annotations.get(moment).and_then(Value::as_str) {
            let right = text.len() == "2026-11-23T21:36:06.047630+00:00".len();
            assert!(right && text.ends_with("+00:00"), "{moment} {text}");
            annotations[moment] = json!("T");
        }
    }
    let subsets = object["subsets"].take();
    let subsets = subsets.as_array().cloned().unwrap_or_default().into_iter().map(|mut one| {
        let target = &mut one["addresses"][0]["targetRef"];
        target["uid"] = json!("U");
        target["resourceVersion"] = json!("V");
        one
    });
    let subsets: Vec<Value> = subsets.collect();
    json!({"labels": metadata["labels"], "annotations": annotations, "subsets": subsets})
}

/// Proves DCS-150, DCS-151, DCS-152, DCS-153, DCS-155, DCS-171, DCS-172, DCS-174 and DCS-T10: each
/// object as recorded.
async fn objects_are_patronis(endpoints: bool) {
    let kubernetes = start().await;
    let (kind, leader) = match endpoints {
        true => ("endpoints", "endpoints/golden".to_owned()),
        false => ("configmaps", "configmaps/golden-leader".to_owned()),
    };
    let config = |ip: &str, port: u16| KubernetesConfig {
        use_endpoints: endpoints,
        pod_ip: Some(ip.to_owned()),
        ports: vec![Port { name: Some("postgresql".into()), port, protocol: None }],
        ..config(&kubernetes)
    };
    let alpha = member(&kubernetes, config("10.0.0.11", 22432), "golden", "alpha");
    let beta = member(&kubernetes, config("10.0.0.12", 22433), "golden", "beta");
    let (all, any) = (labels("golden"), Expect::Anything);
    let same = |path: &str, annotations: Value, subsets: Value| {
        let expected = json!({"labels": all, "annotations": annotations, "subsets": subsets});
        assert_eq!(object(&kubernetes, path), expected, "{path}");
    };
    let none = || json!([]);

    alpha.write_initialize("", Expect::Absent, soon()).await.expect("nobody else is there");
    let begun = object(&kubernetes, &format!("{kind}/golden-config"));
    assert_eq!(begun["annotations"]["initialize"], "");
    alpha.write_initialize("7711483843506703379", any, soon()).await.expect("mine");
    let map: Map<String, Value> = [("ttl".to_owned(), json!(20))].into_iter().collect();
    alpha.write_config(&map, any, soon()).await.expect("healthy");
    let history =
        r#"[[1,50332136,"no recovery target specified","2026-11-23T20:36:24.035490+00:00","pg2"]]"#;
    alpha.write_history(&History::parse(history), soon()).await.expect("healthy");
    let annotations = json!({
        "config": r#"{"ttl":20}"#, "initialize": "7711483843506703379", "history": history,
    });
    same(&format!("{kind}/golden-config"), annotations, none());

    alpha.acquire_leader(soon()).await.expect("free");
    let address = |ip: &str, name: &str, port: u16| match endpoints {
        false => json!([]),
        true => json!([{
            "addresses": [{"ip": ip, "targetRef": {"kind": "Pod", "namespace": "default",
                "name": name, "uid": "U", "resourceVersion": "V"}}],
            "ports": [{"name": "postgresql", "port": port, "protocol": "TCP"}],
        }]),
    };
    let mut held = json!({
        "leader": "alpha", "ttl": "20", "renewTime": "T", "acquireTime": "T", "transitions": "0",
    });
    same(&leader, held.clone(), address("10.0.0.11", "alpha", 22432));
    let wire = r#"{"optime":67108960,"slots":{"alpha":67108960,"beta":67108960},"retain_slots":["alpha","beta"]}"#;
    alpha.write_status(&Status::parse(wire), soon()).await.expect("healthy");
    let failsafe = r#"{"alpha":"http://127.0.0.1:22008/patroni"}"#;
    alpha.write_failsafe(&Failsafe::parse(failsafe).expect("one"), soon()).await.expect("healthy");
    alpha.renew_leader(soon()).await.expect("mine");
    held["optime"] = json!("67108960");
    held["slots"] = json!(r#"{"alpha":67108960,"beta":67108960}"#);
    held["retain_slots"] = json!(r#"["alpha", "beta"]"#);
    held["failsafe"] = json!(failsafe);
    same(&leader, held.clone(), address("10.0.0.11", "alpha", 22432));

    let sync = format!("{kind}/golden-sync");
    alpha.write_sync(&Sync::parse(r#"{"leader":"alpha"}"#), any, soon()).await.expect("healthy");
    same(&sync, json!({"leader": "alpha", "quorum": "0"}), none());
    let both = Sync::parse(r#"{"leader":"alpha","quorum":1,"sync_standby":"gamma,beta"}"#);
    alpha.write_sync(&both, any, soon()).await.expect("healthy");
    let annotations = json!({"leader": "alpha", "quorum": "1", "sync_standby": "beta,gamma"});
    same(&sync, annotations, none());
    alpha.delete_sync(any, soon()).await.expect("healthy");
    same(&sync, Value::Null, none());

    let failover = format!("{kind}/golden-failover");
    let asked = r#"{"leader":"alpha","member":"beta","scheduled_at":"2026-11-24T00:43:22+00:00"}"#;
    alpha.write_failover(&Failover::parse(asked), any, soon()).await.expect("healthy");
    let annotations = json!({
        "leader": "alpha", "member": "beta", "scheduled_at": "2026-11-24T00:43:22+00:00",
    });
    same(&failover, annotations, none());
    alpha.write_failover(&Failover::default(), any, soon()).await.expect("healthy");
    same(&failover, Value::Null, none());

    let status = r#"{"conn_url":"postgres://127.0.0.1:22432/postgres","api_url":"http://127.0.0.1:22008/patroni","state":"running","role":"primary","version":"4.1.5","xlog_location":67108960,"timeline":1}"#;
    alpha.write_member(&MemberData::parse(status), soon()).await.expect("healthy");
    let pod = object(&kubernetes, "pods/alpha");
    assert_eq!(pod["annotations"], json!({"status": status}));
    assert_eq!(pod["labels"]["role"], "primary");
    let service = "/api/v1/namespaces/default/services/golden-config";
    let service = kubernetes.api("GET", service, None);
    assert_eq!(service.is_ok(), endpoints, "{service:?}");
    if let Ok(service) = service {
        assert_eq!(service["spec"]["clusterIP"], "None");
        assert_eq!(service["metadata"]["labels"], all);
    }

    let last = Status::parse(r#"{"optime":83886520}"#);
    alpha.release_leader(Some(&last), soon()).await.expect("mine");
    let released = json!({
        "ttl": "20", "renewTime": "T", "acquireTime": "T", "transitions": "0",
        "optime": "83886520", "failsafe": failsafe,
    });
    same(&leader, released, none());
    beta.acquire_leader(soon()).await.expect("free");
    let taken = json!({
        "leader": "beta", "ttl": "20", "renewTime": "T", "acquireTime": "T", "transitions": "1",
        "optime": "83886520", "failsafe": failsafe,
    });
    same(&leader, taken, address("10.0.0.12", "beta", 22433));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_patronis() {
    objects_are_patronis(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_maps_are_patronis() {
    objects_are_patronis(false).await;
}

/// Proves DCS-154 and DCS-155 on real Pods: labels follow the lock, foreign ones stay; and that a Pod
/// without a record is no member, a name without a Pod is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_labelled() {
    let kubernetes = start().await;
    let config = KubernetesConfig {
        roles: RoleLabels {
            leader: "master".into(),
            tmp_label: Some("tmp_role".into()),
            ..RoleLabels::default()
        },
        bootstrap_labels: [("phase".to_owned(), "bootstrapping".to_owned())].into(),
        ..config(&kubernetes)
    };
    let alpha = member(&kubernetes, config.clone(), "golden", "alpha");
    let beta = member(&kubernetes, config.clone(), "golden", "beta");
    let label = |name: &str| {
        let labels = object(&kubernetes, &format!("pods/{name}"))["labels"].clone();
        let text = |key: &str| labels[key].as_str().unwrap_or("-").to_owned();
        assert_eq!(
            (text("application"), text("cluster-name")),
            ("patroni".into(), "golden".into())
        );
        [text("role"), text("tmp_role"), text("phase")].join(" ")
    };
    let data =
        |role, state| MemberData { role: Some(role), state: Some(state), ..MemberData::default() };
    assert_eq!(label("alpha"), "- - -");
    let view = beta.load(Freshness::Latest, soon()).await.expect("healthy");
    assert_eq!(view.members, [], "nobody said anything yet");
    let write = |dcs: std::sync::Arc<hathi_kubernetes::Kubernetes>, role, state| async move {
        dcs.write_member(&data(role, state), soon()).await.expect("healthy");
    };
    write(alpha.clone(), Role::Uninitialized, State::Initdb).await;
    assert_eq!(label("alpha"), "- - bootstrapping");
    write(alpha.clone(), Role::Primary, State::Running).await;
    assert_eq!(label("alpha"), "- - -", "a primary without the lock leads nobody");
    alpha.acquire_leader(soon()).await.expect("free");
    write(alpha.clone(), Role::Primary, State::Running).await;
    assert_eq!(label("alpha"), "master primary -");
    write(beta.clone(), Role::Replica, State::CreatingReplica).await;
    assert_eq!(label("beta"), "- - bootstrapping");
    write(beta.clone(), Role::Replica, State::Running).await;
    assert_eq!(label("beta"), "replica replica -");
    alpha.release_leader(None, soon()).await.expect("mine");
    beta.acquire_leader(soon()).await.expect("free");
    write(beta.clone(), Role::Replica, State::Running).await;
    assert_eq!(label("beta"), "master primary -", "found before it is promoted");
    write(alpha, Role::Replica, State::Stopped).await;
    assert_eq!(label("alpha"), "- - -");

    let ghost = open(config, Scope::new("service", "golden"), MemberName::from("ghost"), TIMING);
    let missing = ghost.write_member(&MemberData::default(), soon()).await;
    let Err(hathi_dcs::DcsError::NotRetriable { why, .. }) = missing else { panic!("{missing:?}") };
    assert!(why.contains(r#"no Pod "ghost" in namespace "default""#), "{why}");
}

/// Proves DCS-170 (who comes back knows nothing of the past, and waits a whole ttl), DCS-171 (hands are
/// counted) and DCS-026.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_observer_counts_for_itself() {
    let kubernetes = start().await;
    let timing = Timing { ttl: 3, loop_wait: 1, retry_timeout: 3 };
    let handle = |me: &str| {
        kubernetes.make_pod("default", me, &labels("golden"));
        open(config(&kubernetes), Scope::new("", "golden"), MemberName::from(me), timing)
    };
    let (alpha, beta) = (handle("alpha"), handle("beta"));
    alpha.acquire_leader(soon()).await.expect("free");
    let free = || async { beta.load(Freshness::Latest, soon()).await.expect("up").is_unlocked() };
    hathi_dcs::conformance::until("beta counted to the end", 6_000, || async {
        free().await.then_some(())
    })
    .await;
    let gamma = handle("gamma");
    let early = gamma.acquire_leader(soon()).await;
    assert!(early.is_err_and(|error| error.says_not_owner()), "it has only just come");
    let view = gamma.load(Freshness::Latest, soon()).await.expect("up");
    assert_eq!(view.leader_name(), Some(&"alpha".into()));
    beta.acquire_leader(soon()).await.expect("it has seen it end");
    let lost = alpha.renew_leader(soon()).await;
    assert_eq!(lost, Err(hathi_dcs::DcsError::NotOwner { holder: Some("beta".into()) }));
    let now = object(&kubernetes, "configmaps/golden-leader");
    assert_eq!(now["annotations"]["transitions"], "1");
}
