//! Real Consul as the suite wants it.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hathi_consul::{Consul as Backend, ConsulConfig, open};
use hathi_dcs::conformance::servers::Patient;
use hathi_dcs::conformance::{Cannot, Fault, Harness, Needs, Outcome, Store, until};
use hathi_dcs::{Dcs, MemberName, Scope, Timing};
use hathi_test_support::{Consul, ConsulOptions};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{Mutex, OnceCell};

pub fn config(consul: &Consul) -> ConsulConfig {
    ConsulConfig { hosts: consul.hosts(), ..ConsulConfig::default() }
}

pub fn backend(config: ConsulConfig, me: &str, timing: Timing) -> Arc<Backend> {
    open(config, Scope::new("service", "batman"), MemberName::from(me), timing)
}

pub const TIMING: Timing = Timing { ttl: 20, loop_wait: 1, retry_timeout: 3 };

pub struct ConsulHarness {
    members: usize,
    healthy: OnceCell<Arc<Mutex<Consul>>>,
    scopes: AtomicU32,
}

impl ConsulHarness {
    pub fn new(members: usize) -> Arc<Self> {
        Arc::new(Self { members, healthy: OnceCell::new(), scopes: AtomicU32::new(0) })
    }

    fn options(&self, proxied: bool) -> ConsulOptions {
        let members = self.members;
        let session_ttl_min = Some("200ms");
        ConsulOptions { members, proxied, session_ttl_min, ..ConsulOptions::default() }
    }

    async fn start(&self, proxied: bool) -> Arc<Mutex<Consul>> {
        Arc::new(Mutex::new(Consul::start(self.options(proxied)).await))
    }
}

#[async_trait]
impl Harness for ConsulHarness {
    fn label(&self) -> String {
        format!("Consul 1.8, {} server(s)", self.members)
    }

    async fn fresh(&self, needs: Needs) -> Box<dyn Store> {
        let consul = match needs {
            Needs::Health => self.healthy.get_or_init(|| self.start(false)).await.clone(),
            Needs::Faults => self.start(false).await,
            Needs::LostAnswers => self.start(true).await,
            Needs::Rights => {
                let token = Some("3f1b7a70-0f3b-4d0e-9d34-0d2d2c1d9e12".to_owned());
                let options = ConsulOptions { token, open: true, ..self.options(false) };
                Arc::new(Mutex::new(Consul::start(options).await))
            }
        };
        // A name that is the beginning of another one's must not matter.
        let scope = format!("batman{}", self.scopes.fetch_add(1, Ordering::Relaxed));
        let config = config(&*consul.lock().await);
        let patient = Patient::new(consul, [0, 1]);
        Box::new(ConsulStore { patient, config, scope, members: self.members })
    }

    fn parallel(&self) -> usize {
        6
    }
}

struct ConsulStore {
    patient: Patient<Consul>,
    config: ConsulConfig,
    scope: String,
    members: usize,
}

/// Who shows no token.
const ANONYMOUS: &str = "/v1/acl/token/00000000-0000-0000-0000-000000000002";

impl ConsulStore {
    async fn told(&self, path: &str, body: &Value) {
        let consul = self.patient.servers.lock().await;
        // A young Consul is not done with its own access control yet.
        until(path, 20_000, || async {
            let answer = consul.request("PUT", path, Some(body)).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    async fn listed(&self, key: &str) -> Option<Value> {
        let path = format!("/v1/kv/service/{}/{key}?consistent", self.scope);
        let consul = self.patient.servers.lock().await;
        let answer = consul.request("GET", &path, None).await.expect("a healthy Consul");
        (answer.status == 200).then(|| answer.json()[0].clone())
    }
}

#[async_trait]
impl Store for ConsulStore {
    async fn open(&self, me: &str, timing: Timing) -> Arc<dyn Dcs> {
        let scope = Scope::new("service", &self.scope);
        open(self.config.clone(), scope, MemberName::from(me), timing)
    }

    fn members(&self) -> usize {
        self.members
    }

    fn slack_ms(&self) -> u64 {
        1_500
    }

    fn equal_bytes_are_a_write(&self) -> bool {
        false
    }

    async fn raw(&self, key: &str) -> Result<Option<Vec<u8>>, Cannot> {
        let found = self.listed(key).await;
        Ok(found
            .map(|kv| STANDARD.decode(kv["Value"].as_str().unwrap_or_default()).expect("base64")))
    }

    async fn put_raw(&self, key: &str, value: &str) -> Outcome {
        let key = format!("service/{}/{key}", self.scope);
        let op = json!([{"KV": {"Verb": "set", "Key": key, "Value": STANDARD.encode(value)}}]);
        let consul = self.patient.servers.lock().await;
        let answer = consul.request("PUT", "/v1/txn", Some(&op)).await.expect("a healthy Consul");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Ok(())
    }

    async fn inflict(&self, fault: Fault) -> Outcome {
        if let Some(outcome) = self.patient.inflict(&fault).await {
            return outcome;
        }
        match fault {
            Fault::LoseLease(name) => {
                let mut session = String::new();
                for key in ["leader".to_owned(), format!("members/{name}")] {
                    let found = self.listed(&key).await.unwrap_or_default();
                    let id = found["Session"].as_str().unwrap_or_default();
                    if session.is_empty() {
                        id.clone_into(&mut session);
                    }
                }
                let path = format!("/v1/session/destroy/{session}");
                let consul = self.patient.servers.lock().await;
                let gone = consul.request("PUT", &path, None).await.expect("a healthy Consul");
                assert_eq!(gone.body.trim(), "true", "the member has a session");
            }
            Fault::Forbid => {
                let rules =
                    r#"key_prefix "" { policy = "deny" } session_prefix "" { policy = "deny" }"#;
                let policy = json!({"Name": "nothing", "Rules": rules});
                self.told("/v1/acl/policy", &policy).await;
                self.told(ANONYMOUS, &json!({"Policies": [{"Name": "nothing"}]})).await;
            }
            Fault::Permit => self.told(ANONYMOUS, &json!({"Policies": []})).await,
            // Consul keeps no history; what is left of the fault is the cut.
            _ => self.patient.servers.lock().await.proxies().for_each(|proxy| proxy.cut_all()),
        }
        Ok(())
    }
}
