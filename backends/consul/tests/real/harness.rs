//! Real Consul as the suite wants it.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hathi_consul::{Consul as Backend, ConsulConfig, open};
use hathi_dcs::conformance::servers::Kind;
use hathi_dcs::conformance::{Cannot, Needs, until};
use hathi_dcs::{Dcs, MemberName, Scope, Timing};
use hathi_test_support::{Consul, ConsulOptions};
use serde_json::{Value, json};
use std::sync::Arc;

pub fn config(consul: &Consul) -> ConsulConfig {
    ConsulConfig { hosts: consul.hosts(), ..ConsulConfig::default() }
}

pub fn backend(config: ConsulConfig, me: &str, timing: Timing) -> Arc<Backend> {
    open(config, Scope::new("service", "batman"), MemberName::from(me), timing)
}

pub const TIMING: Timing = Timing { ttl: 20, loop_wait: 1, retry_timeout: 3 };

/// So many servers.
#[derive(Clone)]
pub struct RealConsul(pub usize);

/// Who shows no token.
const ANONYMOUS: &str = "/v1/acl/token/00000000-0000-0000-0000-000000000002";

async fn told(consul: &Consul, path: &str, body: &Value) {
    // A young Consul is not done with its own access control yet.
    until(path, 20_000, || async {
        let answer = consul.request("PUT", path, Some(body)).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}

async fn listed(consul: &Consul, scope: &str, key: &str) -> Option<Value> {
    let path = format!("/v1/kv/service/{scope}/{key}?consistent");
    let answer = consul.request("GET", &path, None).await.expect("a healthy Consul");
    (answer.status == 200).then(|| answer.json()[0].clone())
}

#[async_trait]
impl Kind for RealConsul {
    type Servers = Consul;

    fn label(&self) -> String {
        format!("Consul 1.8, {} server(s)", self.0)
    }

    fn members(&self) -> usize {
        self.0
    }

    fn slack_ms(&self) -> u64 {
        1_500
    }

    fn equal_bytes_are_a_write(&self) -> bool {
        false
    }

    async fn start(&self, needs: Needs) -> Consul {
        let rights = needs == Needs::Rights;
        Consul::start(ConsulOptions {
            members: self.0,
            proxied: needs == Needs::LostAnswers,
            session_ttl_min: Some("200ms"),
            token: rights.then(|| "3f1b7a70-0f3b-4d0e-9d34-0d2d2c1d9e12".to_owned()),
            open: rights,
            ..ConsulOptions::default()
        })
        .await
    }

    fn open(&self, consul: &Consul, scope: &str, me: MemberName, timing: Timing) -> Arc<dyn Dcs> {
        open(config(consul), Scope::new("service", scope), me, timing)
    }

    async fn raw(
        &self,
        consul: &Consul,
        scope: &str,
        key: &str,
    ) -> Result<Option<Vec<u8>>, Cannot> {
        let found = listed(consul, scope, key).await;
        Ok(found
            .map(|kv| STANDARD.decode(kv["Value"].as_str().unwrap_or_default()).expect("base64")))
    }

    async fn put_raw(&self, consul: &Consul, scope: &str, key: &str, value: &str) {
        let key = format!("service/{scope}/{key}");
        let op = json!([{"KV": {"Verb": "set", "Key": key, "Value": STANDARD.encode(value)}}]);
        let answer = consul.request("PUT", "/v1/txn", Some(&op)).await.expect("a healthy Consul");
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    async fn lose_lease(&self, consul: &Consul, scope: &str, keys: [&str; 2]) {
        let mut session = String::new();
        for key in keys {
            let found = listed(consul, scope, key).await.unwrap_or_default();
            let id = found["Session"].as_str().unwrap_or_default();
            if session.is_empty() {
                id.clone_into(&mut session);
            }
        }
        let path = format!("/v1/session/destroy/{session}");
        let gone = consul.request("PUT", &path, None).await.expect("a healthy Consul");
        assert_eq!(gone.body.trim(), "true", "the member has a session");
    }

    async fn forbid(&self, consul: &Consul, _scope: &str) {
        let rules = r#"key_prefix "" { policy = "deny" } session_prefix "" { policy = "deny" }"#;
        let policy = json!({"Name": "nothing", "Rules": rules});
        told(consul, "/v1/acl/policy", &policy).await;
        told(consul, ANONYMOUS, &json!({"Policies": [{"Name": "nothing"}]})).await;
    }

    async fn permit(&self, consul: &Consul, _scope: &str) {
        told(consul, ANONYMOUS, &json!({"Policies": []})).await;
    }
}
