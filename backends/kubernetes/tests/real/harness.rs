//! Real API servers as the suite wants them.

use async_trait::async_trait;
use hathi_dcs::conformance::servers::Kind;
use hathi_dcs::conformance::{Cannot, Needs, Outcome};
use hathi_dcs::{Dcs, MemberName, Scope, Timing};
use hathi_kubernetes::{Access, Kubernetes as Backend, KubernetesConfig, open};
use hathi_test_support::kubernetes::MEMBER;
use hathi_test_support::{Kubernetes, KubernetesOptions};
use serde_json::{Value, json};
use std::sync::Arc;

pub const TIMING: Timing = Timing { ttl: 20, loop_wait: 1, retry_timeout: 3 };

pub fn config(kubernetes: &Kubernetes) -> KubernetesConfig {
    // The program does that; the second one is told that there is a first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    KubernetesConfig {
        access: Access::Account {
            url: kubernetes.urls()[0].clone(),
            token_file: kubernetes.token_file(),
            cacert: kubernetes.certs.ca.clone(),
        },
        labels: [("application".to_owned(), "patroni".to_owned())].into(),
        ..KubernetesConfig::default()
    }
}

/// What every Pod and object of a scope carries.
pub fn labels(scope: &str) -> Value {
    json!({"application": "patroni", "cluster-name": scope})
}

/// A handle whose Pod is there.
pub fn member(
    kubernetes: &Kubernetes,
    config: KubernetesConfig,
    scope: &str,
    me: &str,
) -> Arc<Backend> {
    kubernetes.make_pod(&config.namespace, me, &labels(scope));
    open(config, Scope::new("service", scope), MemberName::from(me), TIMING)
}

/// So many API servers, and where the records lie.
#[derive(Clone)]
pub struct RealKubernetes {
    pub servers: usize,
    pub endpoints: bool,
}

const SCOPE: &str = "batman";

impl RealKubernetes {
    fn kind(&self) -> &'static str {
        if self.endpoints { "endpoints" } else { "configmaps" }
    }

    fn object(&self, suffix: &str) -> String {
        match (suffix, self.endpoints) {
            ("leader", true) => SCOPE.to_owned(),
            _ => format!("{SCOPE}-{suffix}"),
        }
    }

    fn annotate(
        &self,
        kubernetes: &Kubernetes,
        namespace: &str,
        suffix: &str,
        annotations: &Value,
    ) {
        let (kind, name) = (self.kind(), self.object(suffix));
        let body = json!({"metadata": {
            "name": name, "labels": labels(SCOPE), "annotations": annotations,
        }});
        let all = format!("/api/v1/namespaces/{namespace}/{kind}");
        if kubernetes.api("PATCH", &format!("{all}/{name}"), Some(&body)).is_err() {
            kubernetes.api("POST", &all, Some(&body)).expect("a healthy API server");
        }
    }
}

/// Every test has a Pod `a`: what differs between their clusters is the namespace.
#[async_trait]
impl Kind for RealKubernetes {
    type Servers = Kubernetes;

    fn label(&self) -> String {
        let objects = if self.endpoints { "Endpoints" } else { "ConfigMaps" };
        format!("Kubernetes 1.20, {objects}, {} API server(s)", self.servers)
    }

    fn members(&self) -> usize {
        self.servers
    }

    fn slack_ms(&self) -> u64 {
        500
    }

    /// An API server is a heavy thing to start.
    fn parallel(&self) -> usize {
        (3 / self.servers).max(1)
    }

    fn equal_bytes_are_a_write(&self) -> bool {
        false
    }

    fn members_expire(&self) -> Outcome {
        Err(Cannot("its members are Pods, which stay as long as somebody keeps them"))
    }

    async fn start(&self, needs: Needs) -> Kubernetes {
        let proxied = needs == Needs::LostAnswers;
        Kubernetes::start(KubernetesOptions { servers: self.servers, proxied }).await
    }

    async fn begin(&self, kubernetes: &Kubernetes, namespace: &str, needs: Needs) {
        kubernetes.make_namespace(namespace);
        if needs == Needs::Rights {
            kubernetes.write_token(MEMBER);
            let all = "create get list patch watch";
            kubernetes.allow(namespace, &[(self.kind(), all), ("pods", "list patch watch")]);
        }
    }

    fn open(
        &self,
        kubernetes: &Kubernetes,
        namespace: &str,
        me: MemberName,
        timing: Timing,
    ) -> Arc<dyn Dcs> {
        kubernetes.make_pod(namespace, me.as_str(), &labels(SCOPE));
        let config = KubernetesConfig {
            namespace: namespace.to_owned(),
            use_endpoints: self.endpoints,
            bypass_api_service: self.servers > 1,
            ..config(kubernetes)
        };
        open(config, Scope::new("service", SCOPE), me, timing)
    }

    async fn raw(
        &self,
        _kubernetes: &Kubernetes,
        _namespace: &str,
        _key: &str,
    ) -> Result<Option<Vec<u8>>, Cannot> {
        Err(Cannot("its records are annotations: tests/real/layout.rs compares them"))
    }

    async fn put_raw(&self, kubernetes: &Kubernetes, namespace: &str, key: &str, value: &str) {
        let (suffix, annotations) = match key {
            "leader" => ("leader", json!({"leader": value, "ttl": "30"})),
            "status" => ("leader", json!({"optime": value, "slots": value})),
            "failsafe" => ("leader", json!({"failsafe": value})),
            "sync" => ("sync", json!({"quorum": value})),
            "failover" => ("failover", json!({"scheduled_at": value})),
            "config" | "history" | "initialize" => ("config", json!({key: value})),
            _ => match key.strip_prefix("members/") {
                Some(name) if !name.contains('/') => {
                    kubernetes.make_pod(namespace, name, &labels(SCOPE));
                    let body = json!({"metadata": {"annotations": {"status": value}}});
                    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
                    kubernetes.api("PATCH", &path, Some(&body)).expect("a healthy API server");
                    return;
                }
                // No Pod can have such a name; a stranger's object is none of ours.
                _ => ("strange", json!({"unknown": value})),
            },
        };
        self.annotate(kubernetes, namespace, suffix, &annotations);
    }

    /// What a controller does that finds no Service to these Endpoints.
    async fn lose_lease(&self, kubernetes: &Kubernetes, namespace: &str, [leader, _]: [&str; 2]) {
        let (kind, name) = (self.kind(), self.object(leader));
        let path = format!("/api/v1/namespaces/{namespace}/{kind}/{name}");
        kubernetes.api("DELETE", &path, None).expect("a healthy API server");
    }

    async fn forbid(&self, kubernetes: &Kubernetes, namespace: &str) {
        kubernetes.unbind(namespace);
    }

    async fn permit(&self, kubernetes: &Kubernetes, namespace: &str) {
        kubernetes.bind(namespace);
    }

    async fn compact(&self, kubernetes: &Kubernetes) {
        kubernetes.forget_history();
    }
}
