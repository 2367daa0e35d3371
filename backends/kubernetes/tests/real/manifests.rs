//! The manifests in docker/kubernetes: the real API server takes them, and their Role is enough.

use crate::harness::{config, member};
use crate::rights::everything;
use hathi_kubernetes::KubernetesConfig;
use hathi_test_support::kubernetes::MEMBER;
use hathi_test_support::{Kubernetes, KubernetesOptions, etcd::cache_dir};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Every document of a file. (The reader of YAML is the one in Patroni's virtual environment.)
fn documents(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docker/kubernetes").join(file);
    let out = Command::new(cache_dir().join("patroni-4.1.5/bin/python"))
        .args([
            "-c",
            "import json,sys,yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))",
        ])
        .arg(&path)
        .output()
        .expect("python runs (scripts/setup makes its environment)");
    assert!(out.status.success(), "{file}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

/// Where an object is posted to.
fn path(object: &Value, namespace: &str) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let root = if version.contains('/') { "apis" } else { "api" };
    let own = text(&object["metadata"]["namespace"]);
    let namespace = if own.is_empty() { namespace } else { &own };
    let kind = format!("{}s", text(&object["kind"]).to_lowercase());
    format!("/{root}/{version}/namespaces/{namespace}/{kind}")
}

/// Proves that they are right as far as an API server can tell (dryRun=All: admitted, defaulted,
/// validated, not stored), and section 9.2 for the Role in them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_takes_the_manifests() {
    let kubernetes = Kubernetes::start(KubernetesOptions::default()).await;
    kubernetes.make_namespace("main");
    let mut seen = Vec::new();
    for file in ["hathi.yaml", "bypass-api-service.yaml"] {
        for object in documents(file) {
            let kind = object["kind"].as_str().expect("a kind").to_owned();
            let dry = format!("{}?dryRun=All", path(&object, "main"));
            let taken = kubernetes.api("POST", &dry, Some(&object));
            let taken = taken.unwrap_or_else(|why| panic!("{file}: {kind}: {why}"));
            assert_eq!(taken["metadata"]["name"], object["metadata"]["name"]);
            seen.push(kind);
        }
    }
    for kind in ["StatefulSet", "Service", "Role", "RoleBinding", "ServiceAccount", "ConfigMap"] {
        assert!(seen.iter().any(|there| there == kind), "no {kind} among {seen:?}");
    }

    let role = documents("hathi.yaml").into_iter().find(|object| object["kind"] == "Role");
    let role = role.expect("it is there");
    kubernetes.api("POST", &path(&role, "main"), Some(&role)).expect("a Role");
    let binding = json!({
        "metadata": {"name": "test"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "main"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "member"}],
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/main/rolebindings";
    kubernetes.api("POST", bindings, Some(&binding)).expect("a RoleBinding");
    kubernetes.write_token(MEMBER);
    let config = KubernetesConfig { namespace: "main".into(), ..config(&kubernetes) };
    everything(&member(&kubernetes, config, "main", "alpha")).await;
}
