//! Real API servers as the suite wants them.

use async_trait::async_trait;
use hathi_dcs::conformance::servers::Patient;
use hathi_dcs::conformance::{Cannot, Fault, Harness, Needs, Outcome, Store};
use hathi_dcs::{Dcs, MemberName, Scope, Timing};
use hathi_kubernetes::{Access, Kubernetes as Backend, KubernetesConfig, open};
use hathi_test_support::kubernetes::MEMBER;
use hathi_test_support::{Kubernetes, KubernetesOptions};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{Mutex, OnceCell};

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

pub struct KubernetesHarness {
    servers: usize,
    endpoints: bool,
    healthy: OnceCell<Arc<Mutex<Kubernetes>>>,
    scopes: AtomicU32,
}

impl KubernetesHarness {
    pub fn new(servers: usize, endpoints: bool) -> Arc<Self> {
        let scopes = AtomicU32::new(0);
        Arc::new(Self { servers, endpoints, healthy: OnceCell::new(), scopes })
    }

    async fn start(&self, proxied: bool) -> Arc<Mutex<Kubernetes>> {
        let options = KubernetesOptions { servers: self.servers, proxied };
        Arc::new(Mutex::new(Kubernetes::start(options).await))
    }
}

#[async_trait]
impl Harness for KubernetesHarness {
    fn label(&self) -> String {
        let objects = if self.endpoints { "Endpoints" } else { "ConfigMaps" };
        format!("Kubernetes 1.20, {objects}, {} API server(s)", self.servers)
    }

    async fn fresh(&self, needs: Needs) -> Box<dyn Store> {
        let kubernetes = match needs {
            Needs::Health => self.healthy.get_or_init(|| self.start(false)).await.clone(),
            Needs::Faults | Needs::Rights => self.start(false).await,
            Needs::LostAnswers => self.start(true).await,
        };
        // Every test has a Pod `a`.
        let namespace = format!("test{}", self.scopes.fetch_add(1, Ordering::Relaxed));
        let servers = kubernetes.lock().await;
        servers.make_namespace(&namespace);
        if let Needs::Rights = needs {
            servers.write_token(MEMBER);
            let objects = if self.endpoints { "endpoints" } else { "configmaps" };
            let all = "create get list patch watch";
            servers.allow(&namespace, &[(objects, all), ("pods", "list patch watch")]);
        }
        drop(servers);
        let config = KubernetesConfig {
            namespace,
            use_endpoints: self.endpoints,
            bypass_api_service: self.servers > 1,
            ..config(&*kubernetes.lock().await)
        };
        let patient = Patient::new(kubernetes, [0, 1]);
        Box::new(KubernetesStore { patient, config, servers: self.servers })
    }

    /// An API server is a heavy thing to start.
    fn parallel(&self) -> usize {
        (3 / self.servers).max(1)
    }
}

const SCOPE: &str = "batman";

struct KubernetesStore {
    patient: Patient<Kubernetes>,
    config: KubernetesConfig,
    servers: usize,
}

impl KubernetesStore {
    fn kind(&self) -> &'static str {
        if self.config.use_endpoints { "endpoints" } else { "configmaps" }
    }

    fn object(&self, suffix: &str) -> String {
        match (suffix, self.config.use_endpoints) {
            ("leader", true) => SCOPE.to_owned(),
            _ => format!("{SCOPE}-{suffix}"),
        }
    }

    async fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let path = format!("/api/v1/namespaces/{}/{path}", self.config.namespace);
        self.patient.servers.lock().await.api(method, &path, body)
    }

    async fn annotate(&self, suffix: &str, annotations: Value) {
        let (kind, name) = (self.kind(), self.object(suffix));
        let body = json!({"metadata": {
            "name": name, "labels": labels(SCOPE), "annotations": annotations,
        }});
        if self.api("PATCH", &format!("{kind}/{name}"), Some(&body)).await.is_err() {
            self.api("POST", kind, Some(&body)).await.expect("a healthy API server");
        }
    }
}

#[async_trait]
impl Store for KubernetesStore {
    async fn open(&self, me: &str, timing: Timing) -> Arc<dyn Dcs> {
        let servers = self.patient.servers.lock().await;
        servers.make_pod(&self.config.namespace, me, &labels(SCOPE));
        drop(servers);
        open(self.config.clone(), Scope::new("service", SCOPE), MemberName::from(me), timing)
    }

    fn members(&self) -> usize {
        self.servers
    }

    fn slack_ms(&self) -> u64 {
        500
    }

    fn equal_bytes_are_a_write(&self) -> bool {
        false
    }

    fn members_expire(&self) -> Outcome {
        Err(Cannot("its members are Pods, which stay as long as somebody keeps them"))
    }

    async fn raw(&self, _key: &str) -> Result<Option<Vec<u8>>, Cannot> {
        Err(Cannot("its records are annotations: tests/real/layout.rs compares them"))
    }

    async fn put_raw(&self, key: &str, value: &str) -> Outcome {
        match key {
            "leader" => self.annotate("leader", json!({"leader": value, "ttl": "30"})).await,
            "status" => self.annotate("leader", json!({"optime": value, "slots": value})).await,
            "failsafe" => self.annotate("leader", json!({"failsafe": value})).await,
            "sync" => self.annotate("sync", json!({"quorum": value})).await,
            "failover" => self.annotate("failover", json!({"scheduled_at": value})).await,
            "config" | "history" | "initialize" => {
                self.annotate("config", json!({key: value})).await;
            }
            _ => match key.strip_prefix("members/") {
                Some(name) if !name.contains('/') => {
                    let servers = self.patient.servers.lock().await;
                    servers.make_pod(&self.config.namespace, name, &labels(SCOPE));
                    drop(servers);
                    let body = json!({"metadata": {"annotations": {"status": value}}});
                    let path = format!("pods/{name}");
                    self.api("PATCH", &path, Some(&body)).await.expect("a healthy API server");
                }
                // No Pod can have such a name; a stranger's object is none of ours.
                _ => self.annotate("strange", json!({"unknown": value})).await,
            },
        }
        Ok(())
    }

    async fn inflict(&self, fault: Fault) -> Outcome {
        match &fault {
            // What a controller does that finds no Service to these Endpoints.
            Fault::LoseLease(_) => {
                let path = format!("{}/{}", self.kind(), self.object("leader"));
                self.api("DELETE", &path, None).await.expect("a healthy API server");
                return Ok(());
            }
            Fault::Compact => {
                let servers = self.patient.servers.lock().await;
                servers.forget_history();
                servers.proxies().for_each(|proxy| proxy.cut_all());
                return Ok(());
            }
            Fault::Forbid => {
                self.patient.servers.lock().await.unbind(&self.config.namespace);
                return Ok(());
            }
            Fault::Permit => {
                self.patient.servers.lock().await.bind(&self.config.namespace);
                return Ok(());
            }
            // The API servers go on, and have nobody behind them.
            Fault::KillMajority => {
                self.patient.servers.lock().await.etcd.kill_all();
                return Ok(());
            }
            Fault::PauseAll => self.patient.servers.lock().await.etcd.pause(),
            Fault::ResumeAll => self.patient.servers.lock().await.etcd.resume(),
            Fault::KillAll => self.patient.servers.lock().await.etcd.kill_all(),
            _ => {}
        }
        self.patient.inflict(&fault).await.expect("every other fault is one of servers")
    }
}
